//! Every operation: the operands it is tried on, and where it has kinks, what is agreed about them.

// A table's type lists its columns.
#![allow(clippy::type_complexity)]

use limpid::autograd::check::case::draw::{Drawn, broadcastable, factors, one, shapes};
use limpid::autograd::check::case::{Case, Draw, Looks, Values};
use limpid::autograd::ops::sinkhorn::{Gradient, Order, Sinkhorn};
use limpid::autograd::{concat, einsum, stack, where_};
use limpid::nn::losses::{self, Reduction};
use limpid::tensor::{Activation, Stop};
use limpid::{DType, Shape, Tensor, Var};

use crate::subject::{Group, Subject};

use Values::{Interior, Normal, Positive};

/// Every differentiable operation on `Var`, and every loss.
pub fn ops() -> Vec<Subject> {
    let mut all = Vec::new();
    all.extend(functions_of_one());
    all.extend(functions_of_two());
    all.extend(reductions());
    all.extend(products());
    all.extend(rows());
    all.extend(sinkhorns());
    all.extend(streams());
    all.extend(movements());
    all.extend(indices());
    all.extend(orders());
    all.extend(loss_functions());
    all
}

/// The slope of the straight line that a function with flat parts is added to, so that there is a derivative, and with it
/// something that can be wrong, at every operand that is drawn.
const LINE: f64 = 0.125;

type Unary = for<'t> fn(Var<'t>) -> Var<'t>;
type Binary = for<'t> fn(Var<'t>, Var<'t>) -> Var<'t>;

fn op(
    name: &'static str,
    cases: Drawn<Case>,
    f: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t> + 'static,
) -> Subject {
    Subject::new(name, Group::Op, cases, f)
}

fn unary(name: &'static str, values: Values, f: Unary) -> Subject {
    op(name, one(shapes(0..=4), values), move |x, _| f(x[0])).finite_at_extremes()
}

/// Without repeated elements: for functions with kinks where two are equal.
fn dense(values: Values) -> Looks {
    Looks::from(values).dense()
}

fn functions_of_one() -> Vec<Subject> {
    let smooth: [(&str, Values, Unary); 25] = [
        ("neg", Interior, |x| -x),
        ("affine", Interior, |x| x * 1.5 - 0.25),
        ("exp", Interior, |x| x.exp()),
        ("expm1", Interior, |x| x.expm1()),
        ("log", Positive, |x| x.log()),
        ("log1p", Positive, |x| x.log1p()),
        ("sqrt", Positive, |x| x.sqrt()),
        ("rsqrt", Positive, |x| x.rsqrt()),
        ("recip", Interior, |x| x.recip()),
        ("sin", Interior, |x| x.sin()),
        ("cos", Interior, |x| x.cos()),
        ("tanh", Interior, |x| x.tanh()),
        ("sigmoid", Interior, |x| x.sigmoid()),
        ("erf", Interior, |x| x.erf()),
        ("softplus", Interior, |x| x.softplus()),
        ("gelu", Interior, |x| x.gelu()),
        ("gelu_tanh", Interior, |x| x.gelu_tanh()),
        ("silu", Interior, |x| x.silu()),
        ("powf", Positive, |x| x.powf(2.5)),
        ("powf (square)", Interior, |x| x.powf(2.0)),
        ("powf (inverse)", Interior, |x| x.powf(-1.0)),
        ("cumsum of squares", Interior, |x| if x.shape().is_empty() { x * x } else { (x * x).cumsum(-1) }),
        ("a use twice", Interior, |x| x * x + x),
        ("in a scope", Interior, |x| x.tape().scope("block", || (x + 1.0).tanh() * x)),
        ("dropout", Interior, |x| x.dropout(0.4) * x + x),
    ];
    // Name, function, its derivative where it has none by convention and elsewhere.
    let kinked: [(&str, Unary, fn(f64) -> f64); 7] = [
        ("abs", |x| x.abs(), |x| if x == 0.0 { 0.0 } else { x.signum() }),
        ("sign", |x| x * x.sign(), |x| if x == 0.0 { 0.0 } else { x.signum() }),
        ("relu", |x| x.relu(), |x| f64::from(x > 0.0)),
        ("leaky_relu", |x| x.leaky_relu(0.1), |x| if x > 0.0 { 1.0 } else { 0.1 }),
        ("elu", |x| x.elu(1.3), |x| if x > 0.0 { 1.0 } else { 1.3 * x.exp() }),
        ("clamp", |x| x.clamp(-1.0, 1.0), |x| f64::from((-1.0..=1.0).contains(&x))),
        ("clamp (half open)", |x| x.clamp(0.0, f64::INFINITY), |x| f64::from(x >= 0.0)),
    ];
    let smooth = smooth.into_iter().map(|(name, values, f)| unary(name, values, f));
    let kinked = kinked.into_iter().map(|(name, f, derivative)| {
        op(name, one(shapes(0..=4), Interior), move |x, _| f(x[0]) + x[0] * LINE)
            .finite_at_extremes()
            .with_kinks(one(shapes(0..=2), dense(Values::NearKink)))
            .with_convention(one(shapes(1..=2), dense(Values::Ties)), move |x, _, u| {
                vec![x[0].iter().zip(u).map(|(&x, u)| u * derivative(x)).collect()]
            })
            .convention_of(move |x, _| f(x[0]))
    });
    smooth.chain(kinked).collect()
}

fn functions_of_two() -> Vec<Subject> {
    let pairs = |values| broadcastable(2, shapes(0..=4), values);
    let smooth: [(&str, Values, Binary); 5] = [
        ("add", Interior, |a, b| a + b),
        ("sub", Interior, |a, b| a - b),
        ("mul", Interior, |a, b| a * b),
        ("div", Interior, |a, b| a / b),
        ("pow", Positive, |a, b| a.pow(b)),
    ];
    let smooth = smooth.into_iter().map(|(name, values, f)| {
        let subject = op(name, pairs(values), move |x, _| f(x[0], x[1]));
        // The derivative by a tiny divisor or base is beyond the largest number where the result is not.
        if name == "div" || name == "pow" { subject } else { subject.finite_at_extremes() }
    });
    let kinked: [(&str, Binary, fn(f64, f64) -> f64); 2] = [
        ("maximum", |a, b| a.maximum(b), |a, b| if a == b { 0.5 } else { f64::from(a > b) }),
        ("minimum", |a, b| a.minimum(b), |a, b| if a == b { 0.5 } else { f64::from(a < b) }),
    ];
    let kinked = kinked.into_iter().map(|(name, f, share)| {
        let same = |values| {
            Drawn::new(move |draw: &mut Draw| {
                let shape = draw.shape(1..=2);
                let operands = draw.operands(vec![shape.clone(), shape], &dense(values));
                draw.case(operands)
            })
        };
        let cases = broadcastable(2, shapes(0..=4), dense(Interior));
        op(name, cases, move |x, _| f(x[0], x[1]) + (x[0] + x[1]) * LINE)
            .with_kinks(same(Values::NearKink))
            .with_convention(same(Values::Ties), move |x, _, u| {
                let (a, b) = (&x[0], &x[1]);
                let of = |x: &[f64], y: &[f64]| (0..u.len()).map(|i| u[i] * share(x[i], y[i])).collect();
                vec![of(a, b), of(b, a)]
            })
            .convention_of(move |x, _| f(x[0], x[1]))
    });
    let same_shape = |values| {
        Drawn::new(move |draw: &mut Draw| {
            let shape = draw.shape(1..=2);
            let operands = draw.operands(vec![shape.clone(), shape], &dense(values));
            draw.case(operands)
        })
    };
    // (x²)^(b² + 1), and (x²)^0 for every third element: at x = 0 the formulas say 0·ln 0 and 0·0⁻¹.
    let exponent = |i: usize| f64::from(!i.is_multiple_of(3));
    let pow_at_zero = op("pow (at zero)", same_shape(Interior), move |x, _| {
        let exponents: Vec<f64> = (0..x[1].shape().elements()).map(exponent).collect();
        let exponents = Tensor::from_vec(exponents, x[1].shape()).cast(x[1].dtype());
        let exponents = x[1].tape().constant(&exponents.expect("0 and 1 are of every dtype"));
        (x[0] * x[0]).pow((x[1] * x[1] + 1.0) * exponents) + (x[0] + x[1]) * LINE
    })
    .with_convention(same_shape(Values::Ties), move |x, _, u| {
        let by_x = |x: f64, b: f64| 2.0 * (b * b + 1.0) * (x * x).powf(b * b) * x;
        let by_b = |x: f64, b: f64| match x {
            0.0 => 0.0,
            _ => (x * x).powf(b * b + 1.0) * (x * x).ln() * 2.0 * b,
        };
        let each = |f: fn(f64, f64) -> f64| {
            (0..u.len()).map(|i| u[i] * (LINE + exponent(i) * f(x[0][i], x[1][i]))).collect()
        };
        vec![each(by_x), each(by_b)]
    });
    let select = op(
        "where",
        Drawn::new(|draw| {
            let shape = draw.shape(0..=4);
            let shapes = match draw.below(3) {
                0 => vec![shape; 3],
                1 => vec![draw.broadcasts_to(&shape), draw.broadcasts_to(&shape), shape],
                _ => vec![shape.clone(), draw.broadcasts_to(&shape), draw.broadcasts_to(&shape)],
            };
            let mut operands = draw.operands(shapes, &Looks::default());
            operands[2].dtype = DType::Bool;
            draw.case(operands)
        }),
        |x, _| where_(x[2], x[0], x[1]) + (x[0] + x[1]) * LINE,
    );
    smooth.chain(kinked).chain([pow_at_zero, select]).collect()
}

/// One operand and a set of its axes.
fn reduction(
    name: &'static str,
    looks: impl Into<Looks>,
    f: for<'t> fn(Var<'t>, &[isize], &Case) -> Var<'t>,
) -> Subject {
    op(name, one(shapes(0..=4), looks), move |x, case| f(x[0], &signed(&case.axes(0, 0)), case))
}

fn signed(axes: &[usize]) -> Vec<isize> {
    axes.iter().map(|&axis| axis as isize).collect()
}

fn axis(x: Var<'_>, case: &Case) -> Option<isize> {
    case.axis(0, 0).map(|axis| {
        if case.choose(1, 2) == 0 { axis as isize } else { axis as isize - x.shape().len() as isize }
    })
}

/// `f` along an axis; a scalar has none and is squared.
fn along(
    name: &'static str,
    looks: impl Into<Looks>,
    f: for<'t> fn(Var<'t>, isize, &Case) -> Var<'t>,
) -> Subject {
    op(name, one(shapes(0..=4), looks), move |x, case| match axis(x[0], case) {
        Some(axis) => f(x[0], axis, case),
        None => x[0] * x[0],
    })
}

/// How much of the cotangent of a row's extreme each element gets: an equal share where several tie.
fn shares(row: &[f64], extreme: fn(f64, f64) -> f64) -> Vec<f64> {
    let best = row.iter().copied().reduce(extreme).unwrap_or(0.0);
    let ties = row.iter().filter(|&&x| x == best).count() as f64;
    row.iter().map(|&x| if x == best { 1.0 / ties } else { 0.0 }).collect()
}

fn extreme(
    name: &'static str,
    f: for<'t> fn(Var<'t>, &[isize]) -> Var<'t>,
    pick: fn(f64, f64) -> f64,
) -> Subject {
    let at_kinks = Looks { values: vec![Values::NearKink, Values::Ties], ..dense(Values::Ties) };
    op(name, one(shapes(0..=4), dense(Interior)), move |x, case| f(x[0], &signed(&case.axes(0, 0))))
        .with_kinks(one(shapes(1..=3), at_kinks))
        .with_convention(one(shapes(1..=3), dense(Values::Ties)), move |x, shapes, u| {
            let row = *shapes[0].last().unwrap_or(&1);
            let rows = x[0].chunks(row).zip(u);
            vec![rows.flat_map(|(row, u)| shares(row, pick).into_iter().map(move |s| s * u)).collect()]
        })
        .convention_of(move |x, _| f(x[0], &[-1]))
}

fn reductions() -> Vec<Subject> {
    vec![
        reduction("sum", Interior, |x, axes, _| x.sum(axes)),
        reduction("mean", Interior, |x, axes, _| x.mean(axes)),
        reduction("keep", Interior, |x, axes, _| x * x.sum(axes).keep(axes, &x.shape())),
        reduction("prod", Interior, |x, axes, _| x.prod(axes)),
        reduction("prod (with zeros)", dense(Values::Ties), |x, axes, _| x.prod(axes)),
        extreme("max", |x, axes| x.max(axes), f64::max),
        extreme("min", |x, axes| x.min(axes), f64::min),
        reduction("logsumexp", Interior, |x, axes, _| x.logsumexp(axes)).finite_at_extremes(),
        op("var", one(shapes(1..=4), Interior), |x, case| {
            let axes = case.axes(0, 0);
            let reduced: usize = match axes[..] {
                [] => x[0].shape().elements(),
                _ => axes.iter().map(|&a| x[0].shape()[a]).product(),
            };
            x[0].var(&signed(&axes), usize::from(reduced > 1 && case.choose(1, 2) == 1))
                + x[0].sum(&signed(&axes))
        }),
        along("cumsum", Interior, |x, axis, _| x.cumsum(axis)),
        along("tril", Interior, |x, _, case| {
            if x.shape().len() < 2 { x } else { x.tril(case.choose(2, 5) as isize - 2) + x * LINE }
        }),
        along("triu", Interior, |x, _, case| {
            if x.shape().len() < 2 { x } else { x.triu(case.choose(2, 5) as isize - 2) + x * LINE }
        }),
    ]
}

/// `x [.., in]`, `w [out, in]` and, if asked for, `b [out]`; in one case of four square.
fn linear_shapes(draw: &mut Draw, bias: bool) -> Vec<Vec<usize>> {
    let mut sizes = draw.sizes(3);
    if draw.one_in(4) {
        sizes[1] = sizes[0];
    }
    let [inputs, outputs, rows] = sizes[..] else { unreachable!("three were asked for") };
    let x = match draw.below(3) {
        0 => vec![rows, inputs],
        1 => vec![inputs],
        _ => vec![2, rows, inputs],
    };
    let mut shapes = vec![x, vec![outputs, inputs]];
    shapes.extend(bias.then(|| vec![outputs]));
    shapes
}

fn linear_cases(bias: bool, values: Values) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let shapes = linear_shapes(draw, bias);
        let operands = draw.operands(shapes, &Looks::from(values));
        draw.case(operands)
    })
}

/// The gradients of max(x·wᵀ + b, 0): none where the sum is 0.
fn relu_layer(x: &[Vec<f64>], shapes: &[Vec<usize>], u: &[f64]) -> Vec<Vec<f64>> {
    let (inputs, outputs) = (shapes[1][1], shapes[1][0]);
    let mut gradients: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
    for (at, u) in u.iter().enumerate() {
        let (row, out) = (at / outputs * inputs, at % outputs);
        let sum = x[2][out] + (0..inputs).map(|i| x[0][row + i] * x[1][out * inputs + i]).sum::<f64>();
        if sum > 0.0 {
            (0..inputs).for_each(|i| gradients[0][row + i] += u * x[1][out * inputs + i]);
            (0..inputs).for_each(|i| gradients[1][out * inputs + i] += u * x[0][row + i]);
            gradients[2][out] += u;
        }
    }
    gradients
}

fn linear(name: &'static str, activation: Activation, bias: bool) -> Subject {
    op(name, linear_cases(bias, Interior), move |x, _| {
        let line = x[0].linear(x[1], x.get(2).copied(), Activation::Identity) * LINE;
        x[0].linear(x[1], x.get(2).copied(), activation) + line
    })
}

/// `r [.., out]`, then x, w and perhaps b.
fn linear_add(name: &'static str, bias: bool) -> Subject {
    let cases = Drawn::new(move |draw: &mut Draw| {
        let mut shapes = linear_shapes(draw, bias);
        let mut sum = shapes[0].clone();
        sum[shapes[0].len() - 1] = shapes[1][0];
        shapes.insert(0, sum);
        let operands = draw.operands(shapes, &Looks::from(Interior));
        draw.case(operands)
    });
    op(name, cases, |x, _| x[0].linear_add(x[1], x[2], x.get(3).copied()))
}

fn contraction(name: &'static str, spec: &'static str) -> Subject {
    let cases = Drawn::new(move |draw: &mut Draw| {
        // One size for each index, whichever operand it is in; all equal in one case of four.
        let names: Vec<char> = ('a'..='z').collect();
        let mut sizes = [draw.sizes(3), draw.sizes(3)].concat();
        if draw.one_in(4) {
            sizes = vec![sizes[0]; 6];
        }
        let size = |c: char| sizes[names.iter().position(|&n| n == c).unwrap_or(0) % 6];
        let inputs = spec.split("->").next().unwrap_or(spec);
        let shapes = inputs.split(',').map(|input| input.chars().map(size).collect()).collect();
        let operands = draw.operands(shapes, &Looks::default());
        draw.case(operands)
    });
    op(name, cases, move |x, _| einsum(spec, x))
}

fn products() -> Vec<Subject> {
    vec![
        op("matmul", factors(Interior), |x, _| x[0].matmul(x[1])),
        op("matmul (transposed)", factors(Interior), |x, _| {
            x[1].transpose(-1, -2).matmul(x[0].transpose(-1, -2))
        }),
        op("matmul (vectors)", factors(Interior), |x, case| {
            let k = x[0].shape()[x[0].shape().len() - 1];
            let row = |x: Var<'_>| x.shape().elements() / k;
            let (a, b) = (x[0].reshape([row(x[0]), k]), x[1].transpose(-1, -2).reshape([row(x[1]), k]));
            match case.choose(0, 2) {
                0 => a.select(0, 0).matmul(b.transpose(0, 1)),
                _ => a.matmul(b.select(0, 0)),
            }
        }),
        linear("linear", Activation::Identity, true),
        linear("linear (no bias)", Activation::Identity, false),
        // Whole numbers, or nearly, so that sums of products are 0, or nearly.
        linear("linear + relu", Activation::Relu, true)
            .with_kinks(linear_cases(true, Values::NearKink))
            .with_convention(linear_cases(true, Values::Ties), relu_layer)
            .convention_of(|x, _| x[0].linear(x[1], Some(x[2]), Activation::Relu)),
        linear("linear + tanh", Activation::Tanh, true),
        linear("linear + sigmoid", Activation::Sigmoid, true),
        linear_add("linear_add", true),
        linear_add("linear_add (no bias)", false),
        contraction("einsum ab,bc->ac", "ab,bc->ac"),
        contraction("einsum abc,cd->bda", "abc,cd->bda"),
        contraction("einsum ab,ab->a", "ab,ab->a"),
        contraction("einsum a,b->ab", "a,b->ab"),
        contraction("einsum aa->a", "aa->a"),
        contraction("einsum ab,bc,cd->ad", "ab,bc,cd->ad"),
    ]
}

/// The vector–Jacobian product of `y` by `x` with `cotangent`, as a function to be differentiated.
fn backward<'t>(y: Var<'t>, cotangent: Var<'t>, x: Var<'t>) -> Var<'t> {
    let found = y.tape().vjp(y, cotangent, &[x]).ok().and_then(|mut found| found.pop().flatten());
    // What went wrong, if anything, is kept by the tape.
    found.unwrap_or(x)
}

/// `[.., n, n]`, for a kernel and for its backward pass, which has a cotangent too.
fn squares(operands: usize) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let n = 2 + draw.below(if operands == 1 { 3 } else { 2 });
        let shape = if draw.one_in(3) { vec![2, n, n] } else { vec![n, n] };
        let operands = draw.operands(vec![shape; operands], &Looks::from(Normal(1.0)).dense());
        draw.case(operands)
    })
}

/// With few steps: a derivative of more has the same parts, more of them. (The tests of the operation take up to 20.)
fn sinkhorns() -> Vec<Subject> {
    fn how(case: &Case, gradient: Gradient, steps: &[usize]) -> Sinkhorn {
        let order = [Order::ColumnsFirst, Order::RowsFirst][case.choose(1, 2)];
        let stop = match gradient {
            Gradient::Implicit => Stop::Converged,
            _ => Stop::Steps(steps[case.choose(0, steps.len())]),
        };
        Sinkhorn { stop, order, temperature: [1.0, 0.7][case.choose(2, 2)], gradient }
    }
    let row = |name, gradient| {
        op(name, squares(1), move |x, case| x[0].sinkhorn(&how(case, gradient, &[1, 2])) + x[0] * LINE)
    };
    vec![
        row("sinkhorn", Gradient::Unrolled),
        row("sinkhorn (on tape)", Gradient::OnTape),
        row("sinkhorn_fixed_point", Gradient::Implicit),
        op("sinkhorn_backward", squares(2), |x, case| {
            backward(x[0].sinkhorn(&how(case, Gradient::Unrolled, &[1])), x[1], x[0]) + (x[0] + x[1]) * LINE
        }),
        op("sinkhorn_potentials", squares(2), |x, case| {
            backward(x[0].sinkhorn(&how(case, Gradient::Implicit, &[])), x[1], x[0]) + (x[0] + x[1]) * LINE
        }),
    ]
}

/// Streams and what `operands` adds for n streams of C channels, after the same leading axes or without any.
fn of_streams(operands: fn(&[usize], usize, usize) -> Vec<Vec<usize>>) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let lead = draw.shape(0..=2);
        let (n, channels) = (1 + draw.below(3), 1 + draw.below(4));
        let mut shapes = vec![[&lead[..], &[n, channels]].concat()];
        shapes.extend(operands(&lead, n, channels));
        let operands = draw.operands(shapes, &dense(Interior));
        draw.case(operands)
    })
}

/// Coefficients are f32 where streams are bf16.
fn wide(v: Var<'_>) -> Var<'_> {
    if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v }
}

/// Streams: read and written by coefficients, and projected. The rules of the last two are kernels whose expansions have
/// hundreds of mutants, a check each: minutes, so that they are not scored.
fn streams() -> Vec<Subject> {
    let read = of_streams(|lead, n, _| vec![[lead, &[n]].concat()]);
    let write =
        of_streams(|lead, n, c| vec![[lead, &[c]].concat(), [lead, &[n, n]].concat(), [lead, &[n]].concat()]);
    let project = of_streams(|_, n, c| vec![vec![n * c, 2], vec![n * c, 1]]);
    vec![
        op("stream_read", read, |x, _| x[0].stream_read(wide(x[1]))),
        op("stream_write (unmutated)", write, |x, _| x[0].stream_write(x[1], wide(x[2]), wide(x[3]))),
        op("stream_project (unmutated)", project, |x, _| {
            concat(&x[0].stream_project(&[wide(x[1]), wide(x[2])], 0.1), -1).cast(x[0].dtype())
        }),
    ]
}

/// Rows and values for each column.
fn with_columns(n: usize) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let mut shape = draw.shape(1..=3);
        // Normalising leaves nothing of a row of one element, and of one of two only which is larger.
        let columns = 3 + draw.below(3);
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let mut shapes = vec![shape];
        shapes.extend((0..n).map(|_| vec![columns]));
        let operands = draw.operands(shapes, &dense(Interior));
        draw.case(operands)
    })
}

/// A last axis of two halves.
fn halves(values: Values) -> Drawn<Case> {
    Drawn::new(move |draw: &mut Draw| {
        let mut shape = draw.shape(1..=3);
        if let Some(last) = shape.last_mut() {
            *last = 2 * (1 + draw.below(3));
        }
        let operands = draw.operands(vec![shape], &dense(values));
        draw.case(operands)
    })
}

fn gated(name: &'static str, f: Unary) -> Subject {
    op(name, halves(Interior), move |x, _| f(x[0]) + x[0].sum(&[-1]).keep(&[-1], &x[0].shape()) * LINE)
}

fn rows() -> Vec<Subject> {
    vec![
        along("softmax", Normal(1.0), |x, axis, _| x.softmax(axis) + x * LINE).finite_at_extremes(),
        along("log_softmax", Normal(1.0), |x, axis, _| x.log_softmax(axis) + x * LINE).finite_at_extremes(),
        op("layer_norm", with_columns(2), |x, _| x[0].layer_norm(x[1], x[2], 1e-5)).finite_at_extremes(),
        op("rms_norm", with_columns(1), |x, _| x[0].rms_norm(x[1], 1e-6)).finite_at_extremes(),
        gated("glu", |x| x.glu()),
        gated("swiglu", |x| x.swiglu()),
        gated("geglu", |x| x.geglu()),
        gated("reglu", |x| x.reglu())
            .with_kinks(halves(Values::NearKink))
            .with_convention(halves(Values::Ties), |x, shapes, u| {
                let half = shapes[0].last().unwrap_or(&0) / 2;
                let by = |(row, u): (&[f64], &[f64])| {
                    let (a, b) = row.split_at(half);
                    let by_a = u.iter().zip(b).map(|(u, b)| u * b.max(0.0));
                    let by_b = u.iter().zip(a).zip(b).map(|((u, a), b)| if *b > 0.0 { u * a } else { 0.0 });
                    by_a.chain(by_b).collect::<Vec<f64>>()
                };
                vec![x[0].chunks(2 * half).zip(u.chunks(half)).flat_map(by).collect()]
            })
            .convention_of(|x, _| x[0].reglu()),
    ]
}

fn movements() -> Vec<Subject> {
    let moved = |name, f: for<'t> fn(Var<'t>, &Case) -> Var<'t>| {
        op(name, one(shapes(1..=4), Interior), move |x, case| f(x[0], case))
    };
    let joined = |same: bool| {
        Drawn::new(move |draw: &mut Draw| {
            let shape = draw.shape(1..=3);
            let axis = draw.below(shape.len());
            let mut other = shape.clone();
            if !same {
                other[axis] = 1 + draw.below(4);
            }
            let operands = draw.operands(vec![shape, other], &Looks::default());
            let mut case = draw.case(operands);
            case.choices[0] = axis as u16;
            case
        })
    };
    vec![
        moved("reshape", |x, _| x.reshape([x.shape().elements()]) * 1.5),
        moved("flatten", |x, case| x.flatten(case.choose(0, x.shape().len()))),
        moved("unsqueeze", |x, case| x.unsqueeze(case.choose(0, x.shape().len() + 1))),
        moved("squeeze", |x, case| {
            let at = case.choose(0, x.shape().len() + 1);
            x.unsqueeze(at).sin().squeeze(at as isize)
        }),
        moved("permute", |x, case| {
            x.permute(&limpid::autograd::check::case::permutation(case.choose(0, 24), x.shape().len()))
        }),
        moved("transpose", |x, case| {
            let rank = x.shape().len();
            x.transpose(case.choose(0, rank) as isize, -1)
        }),
        moved("expand", |x, case| {
            let wide: Shape = [2 + case.choose(0, 2)].into_iter().chain(x.shape().iter().copied()).collect();
            x.expand(wide)
        }),
        moved("sum_to", |x, case| {
            let kept: Shape = x
                .shape()
                .iter()
                .enumerate()
                .map(|(i, &n)| if case.choices[0] >> i & 1 == 1 { 1 } else { n })
                .collect();
            x.sum_to(&kept)
        }),
        moved("slice", |x, case| {
            let axis = case.choose(0, x.shape().len());
            let n = x.shape()[axis];
            let start = case.choose(1, n);
            x.slice(axis as isize, start, start + 1 + case.choose(2, n - start), 1 + case.choose(3, 2))
        }),
        moved("select", |x, case| {
            let axis = case.choose(0, x.shape().len());
            x.select(axis as isize, case.choose(1, x.shape()[axis]))
        }),
        moved("pad", |x, case| {
            let axis = case.choose(0, x.shape().len()) as isize;
            x.pad(axis, case.choose(1, 3), case.choose(2, 3), 0.5)
        }),
        moved("flip", |x, case| x.flip(case.choose(0, x.shape().len()) as isize)),
        // What the gradient of a slice is made by.
        moved("place", |x, case| {
            let axis = case.choose(0, x.shape().len()) as isize;
            let n = x.shape()[axis as usize];
            let (before, step) = (case.choose(1, 3), 1 + case.choose(2, 2));
            let end = before + step * (n - 1) + 1;
            let wide = x
                .tape()
                .variable(&Tensor::zeros(x.shape().with(axis as usize, end + case.choose(3, 2)), x.dtype()));
            backward(wide.slice(axis, before, end, step), x, wide)
        }),
        op("concat", joined(false), |x, case| {
            concat(&[x[0], x[1], x[0]], case.choose(0, x[0].shape().len()) as isize)
        }),
        op("stack", joined(true), |x, case| stack(&[x[0], x[1]], case.choose(1, x[0].shape().len() + 1))),
    ]
}

/// A value, an index along axis `choices[0]` of it with another size there, and as many further values.
fn indexed(further: bool) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let shape = draw.shape(1..=3);
        let axis = draw.below(shape.len());
        let mut at = shape.clone();
        at[axis] = 1 + draw.below(5);
        let mut shapes = vec![shape.clone()];
        shapes.extend(further.then(|| at.clone()));
        let mut operands = draw.operands(shapes, &Looks::default());
        operands.insert(1, draw.indices(at, shape[axis]));
        let mut case = draw.case(operands);
        case.choices[0] = axis as u16;
        case
    })
}

fn indices() -> Vec<Subject> {
    let list = Drawn::new(|draw: &mut Draw| {
        let shape = draw.shape(1..=3);
        let axis = draw.below(shape.len());
        let n = 1 + draw.below(4);
        let mut operands = draw.operands(vec![shape.clone()], &Looks::default());
        operands.push(draw.indices(vec![n], shape[axis]));
        let mut case = draw.case(operands);
        case.choices[0] = axis as u16;
        case
    });
    vec![
        op("gather", indexed(false), |x, case| x[0].gather(case.choices[0] as isize, x[1])),
        op("scatter_add", indexed(true), |x, case| x[0].scatter_add(case.choices[0] as isize, x[1], x[2])),
        op("index_select", list, |x, case| x[0].index_select(case.choices[0] as isize, x[1])),
    ]
}

fn orders() -> Vec<Subject> {
    /// Where the elements of a row go: stable, so that of equal elements the first stays first.
    fn order(row: &[f64], descending: bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order
            .sort_by(|&a, &b| if descending { row[b].total_cmp(&row[a]) } else { row[a].total_cmp(&row[b]) });
        order
    }
    fn scattered(x: &[f64], row: usize, taken: usize, descending: bool, u: &[f64]) -> Vec<f64> {
        // −0 and 0 are equal.
        let x: Vec<f64> = x.iter().map(|x| x + 0.0).collect();
        let mut gradient = vec![0.0; x.len()];
        for (r, row_values) in x.chunks(row).enumerate() {
            for (place, &from) in order(row_values, descending).iter().take(taken).enumerate() {
                gradient[r * row + from] += u[r * taken + place];
            }
        }
        gradient
    }
    let last = |shapes: &[Vec<usize>]| *shapes[0].last().unwrap_or(&1);
    let ordered = |name, f: for<'t> fn(Var<'t>, isize, &Case) -> Var<'t>| {
        along(name, dense(Interior), f).with_kinks(one(shapes(1..=2), dense(Values::NearKink)))
    };
    vec![
        ordered("sort", |x, axis, case| x.sort(axis, case.choose(2, 2) == 1).0)
            .with_convention(one(shapes(1..=2), dense(Values::Ties)), move |x, shapes, u| {
                vec![scattered(&x[0], last(shapes), last(shapes), true, u)]
            })
            .convention_of(|x, _| x[0].sort(-1, true).0),
        ordered("topk", |x, axis, case| {
            let n = x.shape()[x.shape().axis(axis)];
            x.topk(1 + case.choose(2, n), axis, case.choose(3, 2) == 1).0
        })
        .with_convention(one(shapes(1..=2), dense(Values::Ties)), move |x, shapes, u| {
            vec![scattered(&x[0], last(shapes), 1, true, u)]
        })
        .convention_of(|x, _| x[0].topk(1, -1, true).0),
    ]
}

/// Values, and as many targets.
fn targeted(values: Values, targets: Values) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let shape = draw.shape(0..=3);
        let mut operands = draw.operands(vec![shape.clone(), shape], &dense(values));
        operands[1].values = targets;
        draw.case(operands)
    })
}

/// The gradients of a loss of d = x − t, whose derivative by d is `slope`.
fn deviations(x: &[Vec<f64>], u: &[f64], slope: fn(f64) -> f64) -> Vec<Vec<f64>> {
    let by_x: Vec<f64> = u.iter().enumerate().map(|(i, u)| u * slope(x[0][i] - x[1][i])).collect();
    let by_target = by_x.iter().map(|g| -g).collect();
    vec![by_x, by_target]
}

fn classified() -> Drawn<Case> {
    Drawn::new(|draw| {
        let [rows, classes] = draw.sizes(2)[..] else { unreachable!("two were asked for") };
        let classes = classes.max(2);
        let mut operands = draw.operands(vec![vec![rows, classes]], &Normal(1.0).into());
        operands.push(draw.indices(vec![rows], classes));
        draw.case(operands)
    })
}

fn reduction_of(case: &Case) -> Reduction {
    [Reduction::None, Reduction::Mean, Reduction::Sum][case.choose(0, 3)]
}

fn loss_functions() -> Vec<Subject> {
    vec![
        op("cross_entropy", classified(), |x, case| losses::cross_entropy(x[0], x[1], reduction_of(case)))
            .finite_at_extremes(),
        op("cross_entropy_smoothed", classified(), |x, case| {
            losses::cross_entropy_smoothed(x[0], x[1], 0.1, reduction_of(case))
        }),
        op("nll", classified(), |x, case| losses::nll(x[0], x[1], reduction_of(case))),
        op("mse", targeted(Interior, Interior), |x, case| losses::mse(x[0], x[1], reduction_of(case))),
        op("l1", targeted(Interior, Interior), |x, case| losses::l1(x[0], x[1], reduction_of(case)))
            .finite_at_extremes()
            .with_kinks(targeted(Values::NearKink, Values::Ties))
            .with_convention(targeted(Values::Ties, Values::Ties), |x, _, u| {
                deviations(x, u, |d| if d == 0.0 { 0.0 } else { d.signum() })
            })
            .convention_of(|x, _| losses::l1(x[0], x[1], Reduction::None)),
        op("huber", targeted(Interior, Interior), |x, case| {
            losses::huber(x[0], x[1], 1.0, reduction_of(case))
        })
        .finite_at_extremes()
        .with_kinks(targeted(Values::NearKink, Values::Ties))
        .with_convention(targeted(Values::Ties, Values::Ties), |x, _, u| {
            deviations(x, u, |d| d.clamp(-1.0, 1.0))
        })
        .convention_of(|x, _| losses::huber(x[0], x[1], 1.0, Reduction::None)),
        op("bce_with_logits", targeted(Interior, Positive), |x, case| {
            losses::bce_with_logits(x[0], x[1], reduction_of(case))
        })
        .finite_at_extremes(),
    ]
}
