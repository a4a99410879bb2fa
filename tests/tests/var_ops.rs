//! Every operation on `Var`: its values against the oracle, and of its derivatives what must hold of any.
//!
//! For each case in f64: the rules read exactly what they declare; the vjp that is recorded and the one that is dropped
//! as it goes agree bit for bit; `⟨g, J·v⟩ = ⟨Jᵀ·g, v⟩` to rounding; `⟨Jᵀ·g, v⟩` is the central difference of `⟨g, f⟩`
//! along v, a vector of ±1, which no wrong element can hide from; and fused operations agree with their expansions.

// A table's type lists its columns.
#![allow(clippy::type_complexity)]

use limpid_autograd::ops::einsum::einsum;
use limpid_autograd::ops::elementwise::where_;
use limpid_autograd::ops::movement::{concat, stack};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{Activation, DType, Map, Reduce, Tensor};
use limpid_tests::array::{Array, with};
use limpid_tests::case::{
    Case, Drawn, Layouts, Numbers, Operand, Values, broadcastable, cases, factors, full_shapes, make, one,
    permutation, shapes,
};
use limpid_tests::judge;
use limpid_tests::naive;
use limpid_tests::property::check;

const CASES: u32 = 64;
/// Values at which a function is smooth, and (one case in three) values at which its conventions show.
const SMOOTH_AND_TIES: [Values; 3] = [Values::Interior, Values::Interior, Values::Ties];
const SMOOTH: [Values; 1] = [Values::Interior];
const POSITIVE: [Values; 1] = [Values::Positive];

/// Sizes small enough that the values of an operand all differ.
fn small(shapes: Drawn<Vec<usize>>) -> Drawn<Vec<usize>> {
    let shrink = |n| match n {
        17 => 9,
        33 => 11,
        71 => 13,
        n => n,
    };
    shapes.map(move |shape| shape.into_iter().map(shrink).collect())
}

fn f64s(shapes: Drawn<Vec<usize>>, values: &[Values]) -> Drawn<Case> {
    cases(one(small(shapes), &[DType::F64], values, Layouts::Any))
}

/// Without repeated elements: for functions with kinks where two are equal.
fn distinct_f64s(shapes: Drawn<Vec<usize>>, values: &[Values]) -> Drawn<Case> {
    cases(one(small(shapes), &[DType::F64], values, Layouts::Dense))
}

fn pairs(values: &[Values]) -> Drawn<Case> {
    cases(broadcastable(2, small(shapes(0..=5)), &[DType::F64], values, Layouts::Any))
}

fn floats(x: &[Numbers]) -> Vec<&Array<f64>> {
    x.iter().map(Numbers::float).collect()
}

fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, size), (a, b)| (sum + a * b, size + (a * b).abs()))
}

fn values(x: Var<'_>) -> Result<Vec<f64>, String> {
    x.value().map(|v| v.to_f64_vec().expect("on the host")).map_err(|e| e.to_string())
}

fn agree(what: &str, found: &[f64], expected: &[f64], relative: f64) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().filter(|v| v.is_finite()).fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        if !judge::same(f, e)
            && (f - e).abs().partial_cmp(&(relative * size)) != Some(std::cmp::Ordering::Less)
        {
            return Err(format!("{what}: element {i} is {f:e}, expected {e:e}"));
        }
    }
    Ok(())
}

/// Checks an operation with one result of f64.
fn verify(
    name: &str,
    cases: Drawn<Case>,
    apply: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t>,
    oracle: impl Fn(&[Numbers], &Case) -> Array<f64>,
) {
    check(&format!("var {name}"), CASES, cases, |case| {
        let (x, numbers): (Vec<Tensor>, Vec<Numbers>) = case.operands.iter().map(make).unzip();
        let expected = oracle(&numbers, case);
        let tape = Tape::inference();
        let y = apply(&x.iter().map(|x| tape.constant(x)).collect::<Vec<_>>(), case);
        if y.shape()[..] != expected.shape[..] {
            return Err(format!("the result has shape {}, expected {:?}", y.shape(), expected.shape));
        }
        agree("value", &values(y)?, &expected.data, 1e-12)?;
        let smooth = case
            .operands
            .iter()
            .all(|o| matches!(o.values, Values::Interior | Values::Positive | Values::Below(_)));
        derivatives(&x, &expected.shape, smooth, |x| apply(x, case))
    });
}

fn derivatives(
    x: &[Tensor],
    shape: &[usize],
    smooth: bool,
    apply: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
) -> Result<(), String> {
    fn placed<'t>(tape: &'t Tape, x: &[Tensor]) -> Vec<Var<'t>> {
        let place = |x: &Tensor| if x.dtype().is_float() { tape.variable(x) } else { tape.constant(x) };
        x.iter().map(place).collect()
    }
    let draw = |shape: &[usize], seed: u64, values: Values| Operand::new(shape, values, seed).tensor();
    let signs = |x: &Tensor, seed| Tensor::map(Map::Sign, &[&draw(x.shape(), seed, Values::Interior)]);
    let wanted: Vec<usize> = (0..x.len()).filter(|&i| x[i].dtype().is_float()).collect();
    let g = draw(shape, 7, Values::Interior);
    let g_values = g.to_vec::<f64>().map_err(|e| e.to_string())?;
    let directions: Vec<Tensor> = wanted
        .iter()
        .map(|&i| signs(&x[i], 11 + i as u64).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let text = |e: limpid_autograd::Error| e.to_string();

    // What the rules read, and the gradient of a pass that drops what it records.
    let tape = Tape::new();
    let vars = placed(&tape, x);
    let loss = (apply(&vars) * tape.constant(&g)).sum(&[]);
    let audit = tape.audit_reads(loss).map_err(text)?;
    if audit.declared != audit.read {
        let (declared, read) = (audit.declared, audit.read);
        return Err(format!("rules declare {declared:?} and read {read:?}, as (operation, value)"));
    }
    let tape = Tape::new();
    let vars = placed(&tape, x);
    let loss = (apply(&vars) * tape.constant(&g)).sum(&[]);
    let gradients = tape.backward(loss).map_err(text)?;
    let zeros = |i: usize| vec![0.0; x[i].elements()];
    let first: Vec<Vec<f64>> = wanted
        .iter()
        .map(|&i| gradients.of(vars[i]).map_or_else(|| zeros(i), |g| g.to_f64_vec().expect("on the host")))
        .collect();

    // The recorded pass, and forward mode.
    let tape = Tape::new();
    let vars = placed(&tape, x);
    let y = apply(&vars);
    let sources: Vec<Var> = wanted.iter().map(|&i| vars[i]).collect();
    for ((&i, found), expected) in
        wanted.iter().zip(tape.vjp(y, tape.constant(&g), &sources).map_err(text)?).zip(&first)
    {
        let found = found.map_or_else(|| Ok(zeros(i)), values)?;
        if !found.iter().zip(expected).all(|(a, b)| judge::same(*a, *b)) {
            return Err(format!("vjp by operand {i} is {found:?}, backward gives {expected:?}"));
        }
    }
    let tangents: Vec<(Var, Var)> =
        sources.iter().zip(&directions).map(|(&x, v)| (x, tape.constant(v))).collect();
    let tangent = tape.jvp(y, &tangents).map_err(text)?;
    if tangent.meta() != y.meta() {
        return Err(format!("the tangent is {}, expected {}", tangent.meta(), y.meta()));
    }
    let (forward, forward_size) = dot(&g_values, &values(tangent)?);
    let (mut backward, mut size) = (0.0, 0.0);
    for (gradient, v) in first.iter().zip(&directions) {
        let (sum, terms) = dot(gradient, &v.to_f64_vec().map_err(|e| e.to_string())?);
        (backward, size) = (backward + sum, size + terms);
    }
    if (forward - backward).abs() > 1e-12 * (1.0 + size + forward_size)
        || forward.is_nan() != backward.is_nan()
    {
        return Err(format!("⟨g, J·v⟩ = {forward:e} and ⟨Jᵀ·g, v⟩ = {backward:e}"));
    }

    // Expanded.
    let tape = Tape::new().with_fused_expanded(true);
    let vars = placed(&tape, x);
    let y = apply(&vars);
    let fused = Tape::inference();
    let direct = apply(&x.iter().map(|x| fused.constant(x)).collect::<Vec<_>>());
    agree("expanded value", &values(y)?, &values(direct)?, 1e-12)?;
    let gradients = tape.backward((y * tape.constant(&g)).sum(&[])).map_err(text)?;
    for (&i, expected) in wanted.iter().zip(&first) {
        let found = gradients.of(vars[i]).map_or_else(|| zeros(i), |g| g.to_f64_vec().expect("on the host"));
        agree("expanded gradient", &found, expected, 1e-11)?;
    }

    if smooth { differences(x, &wanted, &directions, &g_values, (backward, size), apply) } else { Ok(()) }
}

/// `⟨Jᵀ·g, v⟩` against differences of `⟨g, f(x + t·v)⟩`, of fourth order. A step that meets a kink is tried shorter.
fn differences(
    x: &[Tensor],
    wanted: &[usize],
    directions: &[Tensor],
    g: &[f64],
    (derivative, size): (f64, f64),
    apply: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
) -> Result<(), String> {
    let at = |step: f64| -> Result<(f64, f64), String> {
        let mut moved = x.to_vec();
        for (&i, v) in wanted.iter().zip(directions) {
            let scaled = Tensor::map(Map::Affine { mul: step, add: 0.0 }, &[v]).map_err(|e| e.to_string())?;
            moved[i] = Tensor::map(Map::Add, &[&x[i], &scaled]).map_err(|e| e.to_string())?;
        }
        let tape = Tape::inference();
        let y = apply(&moved.iter().map(|x| tape.constant(x)).collect::<Vec<_>>());
        Ok(dot(g, &values(y)?))
    };
    let mut found = f64::NAN;
    for h in [5e-5, 4e-6, 3e-7] {
        let [(a, level), (b, _), (c, _), (d, _)] = [at(h)?, at(-h)?, at(2.0 * h)?, at(-2.0 * h)?];
        found = (8.0 * (a - b) - (c - d)) / (12.0 * h);
        if (found - derivative).abs() <= 1e-9 * (1.0 + size) + 2e-15 / h * level {
            return Ok(());
        }
    }
    Err(format!(
        "⟨Jᵀ·g, v⟩ = {derivative:e}, and differences give {found:e} (of terms that add up to {size:e})"
    ))
}

/// Checks the values of an operation whose result carries no gradient.
fn verify_constant(
    name: &str,
    cases: Drawn<Case>,
    apply: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t>,
    oracle: impl Fn(&[Numbers], &Case) -> Numbers,
) {
    check(&format!("var {name}"), CASES, cases, |case| {
        let (x, numbers): (Vec<Tensor>, Vec<Numbers>) = case.operands.iter().map(make).unzip();
        let tape = Tape::new();
        let place = |x: &Tensor| if x.dtype().is_float() { tape.variable(x) } else { tape.constant(x) };
        let y = apply(&x.iter().map(place).collect::<Vec<_>>(), case);
        if y.is_tracked() {
            return Err("the result carries a gradient".into());
        }
        let y = y.value().map_err(|e| e.to_string())?;
        match oracle(&numbers, case) {
            Numbers::Float(x) => judge::exact(&y, y.dtype(), &x),
            Numbers::Int(x) => judge::ints(&y, &x),
            Numbers::Bool(x) => judge::bools(&y, &x),
        }
    });
}

type Unary = for<'t> fn(Var<'t>) -> Var<'t>;

#[test]
fn functions_of_one() {
    let table: &[(&str, &[Values], Unary, fn(f64) -> f64)] = &[
        ("neg", &SMOOTH_AND_TIES, |x| -x, |v| -v),
        ("abs", &SMOOTH_AND_TIES, |x| x.abs(), f64::abs),
        ("sign", &SMOOTH_AND_TIES, |x| x.sign(), |v| naive::float_map(Map::Sign, &[v])),
        ("exp", &SMOOTH_AND_TIES, |x| x.exp(), f64::exp),
        ("expm1", &SMOOTH_AND_TIES, |x| x.expm1(), f64::exp_m1),
        ("log", &POSITIVE, |x| x.log(), f64::ln),
        ("log1p", &POSITIVE, |x| x.log1p(), f64::ln_1p),
        ("sqrt", &POSITIVE, |x| x.sqrt(), f64::sqrt),
        ("rsqrt", &POSITIVE, |x| x.rsqrt(), |v| 1.0 / v.sqrt()),
        ("recip", &SMOOTH, |x| x.recip(), |v| 1.0 / v),
        ("sin", &SMOOTH_AND_TIES, |x| x.sin(), f64::sin),
        ("cos", &SMOOTH_AND_TIES, |x| x.cos(), f64::cos),
        ("tanh", &SMOOTH_AND_TIES, |x| x.tanh(), f64::tanh),
        ("sigmoid", &SMOOTH_AND_TIES, |x| x.sigmoid(), naive::sigmoid),
        ("erf", &SMOOTH_AND_TIES, |x| x.erf(), naive::erf),
        ("softplus", &SMOOTH_AND_TIES, |x| x.softplus(), naive::softplus),
        ("relu", &SMOOTH_AND_TIES, |x| x.relu(), |v| v.max(0.0)),
        ("leaky_relu", &SMOOTH_AND_TIES, |x| x.leaky_relu(0.1), |v| if v > 0.0 { v } else { 0.1 * v }),
        ("elu", &SMOOTH_AND_TIES, |x| x.elu(0.7), |v| if v > 0.0 { v } else { 0.7 * v.exp_m1() }),
        ("clamp", &SMOOTH_AND_TIES, |x| x.clamp(-1.0, 1.0), |v| v.clamp(-1.0, 1.0)),
        ("powf 0", &SMOOTH_AND_TIES, |x| x.powf(0.0), |_| 1.0),
        ("powf 1", &SMOOTH_AND_TIES, |x| x.powf(1.0), |v| v),
        ("powf 2", &SMOOTH_AND_TIES, |x| x.powf(2.0), |v| v * v),
        ("powf 3", &SMOOTH_AND_TIES, |x| x.powf(3.0), |v| v * v * v),
        ("powf -2", &SMOOTH, |x| x.powf(-2.0), |v| 1.0 / (v * v)),
        ("powf 2.5", &POSITIVE, |x| x.powf(2.5), |v| v * v * v.sqrt()),
        ("gelu", &SMOOTH_AND_TIES, |x| x.gelu(), |v| 0.5 * v * (1.0 + naive::erf(v / 2f64.sqrt()))),
        (
            "gelu_tanh",
            &SMOOTH_AND_TIES,
            |x| x.gelu_tanh(),
            |v| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                0.5 * v * (1.0 + inner.tanh())
            },
        ),
        ("silu", &SMOOTH_AND_TIES, |x| x.silu(), |v| v * naive::sigmoid(v)),
        ("+ number", &SMOOTH_AND_TIES, |x| 2.5 + (x + 0.3), |v| 2.5 + (v + 0.3)),
        ("- number", &SMOOTH_AND_TIES, |x| 2.5 - (x - 0.3), |v| 2.5 - (v - 0.3)),
        ("· number", &SMOOTH_AND_TIES, |x| -2.5 * (x * 0.3), |v| -2.5 * (v * 0.3)),
        ("/ number", &SMOOTH_AND_TIES, |x| x / 0.3, |v| v / 0.3),
        ("number /", &SMOOTH, |x| -2.5 / x, |v| -2.5 / v),
    ];
    for &(name, values, f, oracle) in table {
        verify(name, f64s(shapes(0..=5), values), |x, _| f(x[0]), |x, _| x[0].float().map(oracle));
    }
}

#[test]
fn the_power_0_is_1_everywhere_and_its_derivative_0() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.0, f64::INFINITY, -2.0], [3]));
    let y = x.powf(0.0);
    assert_eq!(values(y), Ok(vec![1.0; 3]));
    let gradients = tape.backward(y.sum(&[])).unwrap();
    assert_eq!(gradients.of(x).unwrap().to_vec::<f64>().unwrap(), [0.0; 3]);
}

#[test]
fn functions_of_two() {
    type Binary = for<'t> fn(Var<'t>, Var<'t>) -> Var<'t>;
    let table: &[(&str, &[Values], Binary, fn(f64, f64) -> f64)] = &[
        ("add", &SMOOTH_AND_TIES, |a, b| a + b, |a, b| a + b),
        ("sub", &SMOOTH_AND_TIES, |a, b| a - b, |a, b| a - b),
        ("mul", &SMOOTH_AND_TIES, |a, b| a * b, |a, b| a * b),
        ("div", &SMOOTH, |a, b| a / b, |a, b| a / b),
        ("pow", &POSITIVE, |a, b| a.pow(b), f64::powf),
        ("maximum", &SMOOTH_AND_TIES, |a, b| a.maximum(b), f64::max),
        ("minimum", &SMOOTH_AND_TIES, |a, b| a.minimum(b), f64::min),
    ];
    for &(name, values, f, oracle) in table {
        verify(
            name,
            pairs(values),
            |x, _| f(x[0], x[1]),
            |x, _| naive::broadcast_map(&floats(x), |v| oracle(v[0], v[1])),
        );
    }
    let operands = broadcastable(3, small(shapes(0..=5)), &[DType::F64], &SMOOTH_AND_TIES, Layouts::Any);
    let condition_first = operands.map(|mut operands| {
        operands[0].dtype = DType::Bool;
        operands
    });
    verify(
        "where",
        cases(condition_first),
        |x, _| where_(x[0], x[1], x[2]),
        |x, _| naive::where_(x[0].bool(), x[1].float(), x[2].float()),
    );
}

#[test]
fn comparisons() {
    type Binary = for<'t> fn(Var<'t>, Var<'t>) -> Var<'t>;
    let table: &[(&str, Binary, Map)] = &[
        ("equal", |a, b| a.equal(b), Map::Eq),
        ("not_equal", |a, b| a.not_equal(b), Map::Ne),
        ("lt", |a, b| a.lt(b), Map::Lt),
        ("le", |a, b| a.le(b), Map::Le),
        ("gt", |a, b| a.gt(b), Map::Gt),
        ("ge", |a, b| a.ge(b), Map::Ge),
    ];
    for &(name, f, map) in table {
        let compare = |a: Array<bool>| Numbers::Bool(a);
        verify_constant(
            name,
            pairs(&[Values::Ties, Values::Nan]),
            |x, _| f(x[0], x[1]),
            |x, _| compare(naive::broadcast_map(&floats(x), |v| naive::compare(map, v[0], v[1]))),
        );
    }
    let bits = broadcastable(2, small(shapes(0..=5)), &[DType::Bool], &SMOOTH, Layouts::Any);
    verify_constant(
        "logic",
        cases(bits),
        |x, case| if case.choose(0, 2) == 0 { x[0].and(x[1].not()) } else { x[0].or(x[1].not()) },
        |x, case| {
            let both = case.choose(0, 2) == 0;
            let pick = |v: &[bool]| if both { v[0] && !v[1] } else { v[0] || !v[1] };
            Numbers::Bool(naive::broadcast_map(&[x[0].bool(), x[1].bool()], pick))
        },
    );
}

/// The axes of a case's first operand as a caller writes them, and the positions they stand for.
fn chosen_axes(case: &Case) -> (Vec<isize>, Vec<usize>) {
    let (axes, rank) = (case.axes(0, 0), case.operands[0].shape.len());
    let count =
        |&axis: &usize| axis as isize - if case.choices[1] >> axis & 1 == 1 { rank as isize } else { 0 };
    let written = axes.iter().map(count).collect();
    (written, if axes.is_empty() { (0..rank).collect() } else { axes })
}

/// A reduction by the oracle, its axes left out of the shape.
fn reduced(x: &Array<f64>, axes: &[usize], f: impl Fn(&[f64]) -> f64) -> Array<f64> {
    let y = naive::along(x, axes, f);
    let kept: Vec<usize> =
        (0..x.shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| x.shape[axis]).collect();
    y.reshape(&kept)
}

#[test]
fn reductions() {
    type Over = for<'t> fn(Var<'t>, &[isize]) -> Var<'t>;
    let total = |v: &[f64]| v.iter().sum::<f64>();
    let table: &[(&str, &[Values], Over, fn(&[f64]) -> f64)] = &[
        ("sum", &SMOOTH_AND_TIES, |x, axes| x.sum(axes), |v| v.iter().sum()),
        ("prod", &SMOOTH_AND_TIES, |x, axes| x.prod(axes), |v| v.iter().product()),
    ];
    for &(name, values, f, oracle) in table {
        let over = |x: &[Numbers], case: &Case| reduced(x[0].float(), &chosen_axes(case).1, oracle);
        verify(name, f64s(shapes(0..=4), values), |x, case| f(x[0], &chosen_axes(case).0), over);
    }
    let table: &[(&str, Over, fn(&[f64]) -> f64)] = &[
        ("mean", |x, axes| x.mean(axes), |v| v.iter().sum::<f64>() / v.len() as f64),
        ("max", |x, axes| x.max(axes), |v| naive::extreme(Reduce::Max, v)),
        ("min", |x, axes| x.min(axes), |v| naive::extreme(Reduce::Min, v)),
        ("logsumexp", |x, axes| x.logsumexp(axes), |v| v.iter().map(|v| v.exp()).sum::<f64>().ln()),
    ];
    for &(name, f, oracle) in table {
        let over = |x: &[Numbers], case: &Case| reduced(x[0].float(), &chosen_axes(case).1, oracle);
        let cases = distinct_f64s(full_shapes(0..=5), &SMOOTH_AND_TIES);
        verify(name, cases, |x, case| f(x[0], &chosen_axes(case).0), over);
    }
    verify(
        "var",
        f64s(full_shapes(0..=5), &SMOOTH_AND_TIES),
        |x, case| x[0].var(&chosen_axes(case).0, 0),
        |x, case| {
            reduced(x[0].float(), &chosen_axes(case).1, |v| {
                let mean = total(v) / v.len() as f64;
                v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / v.len() as f64
            })
        },
    );
    verify(
        "cumsum",
        f64s(shapes(1..=5), &SMOOTH_AND_TIES),
        |x, case| x[0].cumsum(case.axis(0, 0).unwrap() as isize),
        |x, case| {
            let sums = |row: &[f64]| (1..=row.len()).map(|k| total(&row[..k])).collect();
            naive::rows(x[0].float(), case.axis(0, 0).unwrap(), sums)
        },
    );
    verify_constant(
        "argmax",
        f64s(full_shapes(1..=5), &[Values::Ties, Values::Nan]),
        |x, case| x[0].argmax(case.axis(0, 0).unwrap() as isize),
        |x, case| {
            let (x, axis) = (x[0].float(), case.axis(0, 0).unwrap());
            let mut kept = x.shape.clone();
            kept.remove(axis);
            Numbers::Int(naive::along(x, &[axis], naive::argmax).reshape(&kept))
        },
    );
}

#[test]
fn movements() {
    let any = || f64s(shapes(0..=5), &SMOOTH);
    let with_axis = || f64s(shapes(1..=5), &SMOOTH);
    verify(
        "reshape",
        any(),
        |x, case| {
            let cut = case.choose(0, x[0].shape().len() + 1);
            x[0].flatten(cut).unsqueeze(case.choose(1, cut + 1))
        },
        |x, case| {
            let (x, cut) = (x[0].float(), case.choose(0, case.operands[0].shape.len() + 1));
            let mut shape = x.shape[..cut].to_vec();
            shape.push(x.shape[cut..].iter().product());
            shape.insert(case.choose(1, cut + 1), 1);
            x.reshape(&shape)
        },
    );
    verify(
        "permute",
        any(),
        |x, case| x[0].permute(&permutation(case.choose(0, 120), x[0].shape().len())),
        |x, case| x[0].float().permute(&permutation(case.choose(0, 120), case.operands[0].shape.len())),
    );
    fn larger(shape: &[usize]) -> Vec<usize> {
        [2].iter().chain(shape).map(|&n| if n == 1 { 3 } else { n }).collect()
    }
    verify(
        "expand",
        any(),
        |x, _| x[0].expand(larger(&x[0].shape())),
        |x, _| x[0].float().expand(&larger(&x[0].float().shape)),
    );
    fn range(case: &Case) -> (usize, usize, usize, usize) {
        let axis = case.axis(0, 0).unwrap();
        let n = case.operands[0].shape[axis];
        let start = case.choose(1, n + 1);
        (axis, start, start + case.choose(2, n - start + 1), 1 + case.choose(3, 3))
    }
    verify(
        "slice",
        with_axis(),
        |x, case| {
            let (axis, start, end, step) = range(case);
            x[0].slice(axis as isize, start, end, step)
        },
        |x, case| {
            let (axis, start, end, step) = range(case);
            x[0].float().slice(axis, start, end, step)
        },
    );
    verify(
        "select",
        f64s(full_shapes(1..=5), &SMOOTH),
        |x, case| {
            let axis = case.axis(0, 0).unwrap();
            x[0].select(axis as isize, case.choose(1, x[0].shape()[axis]))
        },
        |x, case| {
            let (x, axis) = (x[0].float(), case.axis(0, 0).unwrap());
            let at = case.choose(1, x.shape[axis]);
            let mut kept = x.shape.clone();
            kept.remove(axis);
            x.slice(axis, at, at + 1, 1).reshape(&kept)
        },
    );
    verify(
        "flip",
        with_axis(),
        |x, case| x[0].flip(case.axis(0, 0).unwrap() as isize),
        |x, case| x[0].float().flip(case.axis(0, 0).unwrap()),
    );
    verify(
        "pad",
        with_axis(),
        |x, case| x[0].pad(case.axis(0, 0).unwrap() as isize, case.choose(1, 3), case.choose(2, 3), 0.5),
        |x, case| {
            let (x, axis, before) = (x[0].float(), case.axis(0, 0).unwrap(), case.choose(1, 3));
            let n = x.shape[axis];
            Array::from_fn(&with(&x.shape, axis, n + before + case.choose(2, 3)), |i| {
                let inside = i[axis] >= before && i[axis] < before + n;
                if inside { x.at(&with(i, axis, i[axis] - before)) } else { 0.5 }
            })
        },
    );
    // The second operand is another size along the axis, and the first comes again at the end.
    fn joined(case: Case, same: bool) -> Case {
        let mut case = case;
        let shape = case.operands[0].shape.clone();
        let axis = case.axis(0, 0);
        case.operands[1].shape = match axis {
            Some(axis) if !same => with(&shape, axis, case.choose(1, 4)),
            _ => shape,
        };
        case
    }
    let two = || cases(broadcastable(2, small(shapes(1..=5)), &[DType::F64], &SMOOTH, Layouts::Any));
    let rank_one = |mut case: Case| {
        if case.operands[0].shape.is_empty() {
            case.operands[0].shape = vec![2];
        }
        case
    };
    verify(
        "concat",
        two().map(move |case| joined(rank_one(case), false)),
        |x, case| concat(&[x[0], x[1], x[0]], case.axis(0, 0).unwrap() as isize),
        |x, case| {
            let (a, b, axis) = (x[0].float(), x[1].float(), case.axis(0, 0).unwrap());
            let (n, m) = (a.shape[axis], b.shape[axis]);
            Array::from_fn(&with(&a.shape, axis, n + m + n), |i| match i[axis] {
                k if k < n => a.at(i),
                k if k < n + m => b.at(&with(i, axis, k - n)),
                k => a.at(&with(i, axis, k - n - m)),
            })
        },
    );
    verify(
        "stack",
        two().map(move |case| joined(rank_one(case), true)),
        |x, case| stack(&[x[0], x[1]], case.choose(2, x[0].shape().len() + 1)),
        |x, case| {
            let (a, b) = (x[0].float(), x[1].float());
            let axis = case.choose(2, a.shape.len() + 1);
            let mut shape = a.shape.clone();
            shape.insert(axis, 2);
            Array::from_fn(&shape, |i| {
                let mut inner = i.to_vec();
                if inner.remove(axis) == 0 { a.at(&inner) } else { b.at(&inner) }
            })
        },
    );
    for lower in [true, false] {
        verify(
            if lower { "tril" } else { "triu" },
            f64s(shapes(2..=4), &SMOOTH),
            |x, case| {
                let diagonal = case.choose(0, 7) as isize - 3;
                if lower { x[0].tril(diagonal) } else { x[0].triu(diagonal) }
            },
            |x, case| {
                let (x, rank, diagonal) =
                    (x[0].float(), case.operands[0].shape.len(), case.choose(0, 7) as isize - 3);
                Array::from_fn(&x.shape, |i| {
                    let offset = i[rank - 1] as isize - i[rank - 2] as isize;
                    let stays = if lower { offset <= diagonal } else { offset >= diagonal };
                    if stays { x.at(i) } else { 0.0 }
                })
            },
        );
    }
}

#[test]
fn products() {
    verify(
        "matmul",
        cases(factors(&[DType::F64], &SMOOTH_AND_TIES, Layouts::Any)),
        |x, _| x[0].matmul(x[1]),
        |x, _| naive::matmul(x[0].float(), x[1].float(), DType::F64).map(|near| near.value),
    );
    // Without its leading axes, and one or both operands a vector.
    let vectors = cases(factors(&[DType::F64], &SMOOTH_AND_TIES, Layouts::Any)).map(|mut case| {
        let k = *case.operands[0].shape.last().expect("a matrix");
        let which = case.choose(0, 3);
        if which != 1 {
            case.operands[0].shape = vec![k];
        }
        if which != 0 {
            case.operands[1].shape = vec![k];
        }
        case
    });
    verify(
        "matmul of vectors",
        vectors,
        |x, _| x[0].matmul(x[1]),
        |x, _| {
            let (a, b) = (x[0].float(), x[1].float());
            let k = a.shape[a.shape.len() - 1];
            let row = if a.shape.len() == 1 { a.reshape(&[1, k]) } else { a.clone() };
            let column = if b.shape.len() == 1 { b.reshape(&[k, 1]) } else { b.clone() };
            let y = naive::matmul(&row, &column, DType::F64).map(|near| near.value);
            let mut shape = y.shape.clone();
            if b.shape.len() == 1 {
                shape.pop();
            }
            if a.shape.len() == 1 {
                shape.remove(shape.len() - if b.shape.len() == 1 { 1 } else { 2 });
            }
            y.reshape(&shape)
        },
    );
}

/// The sum over all assignments of numbers to indices, term by term.
fn naive_einsum(spec: &str, x: &[&Array<f64>]) -> Array<f64> {
    let (inputs, output) = spec.split_once("->").expect("an explicit output");
    let inputs: Vec<Vec<char>> = inputs.split(',').map(|indices| indices.chars().collect()).collect();
    let mut names: Vec<char> = output.chars().collect();
    let kept = names.len();
    for &name in inputs.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let size = |name: &char| {
        let found = inputs.iter().zip(x).find_map(|(i, x)| Some(x.shape[i.iter().position(|n| n == name)?]));
        found.expect("an input has every index")
    };
    let sizes: Vec<usize> = names.iter().map(size).collect();
    Array::from_fn(&sizes[..kept], |outer| {
        let terms = Array::from_fn(&sizes[kept..], |inner| {
            let value = |name: &char| {
                let i = names.iter().position(|n| n == name).expect("listed");
                if i < kept { outer[i] } else { inner[i - kept] }
            };
            inputs.iter().zip(x).map(|(i, x)| x.at(&i.iter().map(value).collect::<Vec<_>>())).product::<f64>()
        });
        terms.data.iter().sum()
    })
}

#[test]
fn sums_over_named_indices() {
    for spec in [
        "ij->ji",
        "ij->i",
        "ij->",
        "ii->i",
        "iji->j",
        "i,j->ij",
        "ij,jk->ik",
        "bij,bjk->bik",
        "bij,bkj->ibk",
        "ij,ij->",
        "ij,k->ik",
        "ijk,jl,kl->il",
        "ab,bc,cd->ad",
        "ii,ij->j",
    ] {
        let inputs: Vec<String> =
            spec.split("->").next().expect("inputs").split(',').map(String::from).collect();
        let operands = broadcastable(3, shapes(5..=5), &[DType::F64], &SMOOTH, Layouts::Any);
        let named = cases(operands).map(move |mut case| {
            // One size for each index, whichever operand it is in.
            let size = |name: char| [3, 2, 4, 1, 5, 0][(case.choices[0] as usize + name as usize) % 6];
            let shapes: Vec<Vec<usize>> = inputs.iter().map(|i| i.chars().map(size).collect()).collect();
            case.operands.truncate(shapes.len());
            case.operands.iter_mut().zip(shapes).for_each(|(operand, shape)| operand.shape = shape);
            case
        });
        verify(
            &format!("einsum {spec}"),
            named,
            |x, _| einsum(spec, x),
            |x, _| naive_einsum(spec, &floats(x)),
        );
    }
}

/// A tensor, an index into axis `choices[0]` of it with another size there, and as many further values.
fn indexed() -> Drawn<Case> {
    let operands = broadcastable(3, small(full_shapes(1..=4)), &[DType::F64], &SMOOTH, Layouts::Any);
    cases(operands).map(|mut case| {
        let size = case.choose(5, 7);
        if case.operands[0].shape.is_empty() {
            case.operands[0].shape = vec![2];
        }
        let axis = case.axis(0, 0).expect("an axis");
        let n = case.operands[0].shape[axis];
        let chosen = with(&case.operands[0].shape, axis, size);
        case.operands[1].shape.clone_from(&chosen);
        case.operands[2].shape = chosen;
        (case.operands[1].dtype, case.operands[1].values) = (DType::I64, Values::Below(n));
        case
    })
}

#[test]
fn indices() {
    let two = |mut case: Case| {
        case.operands.truncate(2);
        case
    };
    verify(
        "gather",
        indexed().map(two),
        |x, case| x[0].gather(case.axis(0, 0).unwrap() as isize, x[1]),
        |x, case| naive::gather(x[0].float(), case.axis(0, 0).unwrap(), x[1].int()),
    );
    verify(
        "scatter_add",
        indexed(),
        |x, case| x[0].scatter_add(case.axis(0, 0).unwrap() as isize, x[1], x[2]),
        |x, case| {
            let base = x[0].float();
            let terms = naive::scatter_terms(base, case.axis(0, 0).unwrap(), x[1].int(), x[2].float());
            Array::new(&base.shape, terms.iter().map(|t| t.iter().sum()).collect())
        },
    );
    let vector = move |case: Case| {
        let mut case = two(case);
        let axis = case.axis(0, 0).expect("an axis");
        case.operands[1].shape = vec![case.operands[1].shape[axis]];
        case
    };
    verify(
        "index_select",
        indexed().map(vector),
        |x, case| x[0].index_select(case.axis(0, 0).unwrap() as isize, x[1]),
        |x, case| {
            let (x, index, axis) = (x[0].float(), x[1].int(), case.axis(0, 0).unwrap());
            let shape = with(&x.shape, axis, index.shape[0]);
            Array::from_fn(&shape, |i| x.at(&with(i, axis, index.at(&[i[axis]]) as usize)))
        },
    );
}

#[test]
fn orders() {
    let sorted = |x: &Array<f64>, axis: usize, descending: bool| {
        naive::rows(x, axis, |row| {
            naive::argsort(row, descending).into_iter().map(|i| row[i as usize]).collect::<Vec<_>>()
        })
    };
    verify(
        "sort",
        distinct_f64s(shapes(1..=4), &SMOOTH_AND_TIES),
        |x, case| x[0].sort(case.axis(0, 0).unwrap() as isize, case.choose(1, 2) == 1).0,
        |x, case| sorted(x[0].float(), case.axis(0, 0).unwrap(), case.choose(1, 2) == 1),
    );
    verify(
        "topk",
        distinct_f64s(shapes(1..=4), &SMOOTH_AND_TIES),
        |x, case| {
            let axis = case.axis(0, 0).unwrap();
            x[0].topk(case.choose(2, x[0].shape()[axis] + 1), axis as isize, case.choose(1, 2) == 1).0
        },
        |x, case| {
            let (x, axis) = (x[0].float(), case.axis(0, 0).unwrap());
            sorted(x, axis, case.choose(1, 2) == 1).slice(axis, 0, case.choose(2, x.shape[axis] + 1), 1)
        },
    );
    verify_constant(
        "argsort, and the indices of sort and topk",
        f64s(full_shapes(1..=4), &[Values::Ties, Values::Nan]),
        |x, case| {
            let (axis, descending) = (case.axis(0, 0).unwrap(), case.choose(1, 2) == 1);
            let (n, a) = (x[0].shape()[axis], axis as isize);
            match case.choose(2, 3) {
                0 => x[0].argsort(a, descending),
                1 => x[0].sort(a, descending).1,
                _ => x[0].topk(n, a, descending).1,
            }
        },
        |x, case| {
            let order = |row: &[f64]| naive::argsort(row, case.choose(1, 2) == 1);
            Numbers::Int(naive::rows(x[0].float(), case.axis(0, 0).unwrap(), order))
        },
    );
}

/// Rows, and further operands with shapes that follow from the number of columns.
fn with_columns(shapes: fn(usize, &Case) -> [Vec<usize>; 2]) -> Drawn<Case> {
    let operands = broadcastable(3, small(full_shapes(1..=4)), &[DType::F64], &SMOOTH_AND_TIES, Layouts::Any);
    cases(operands).map(move |mut case| {
        if case.operands[0].shape.is_empty() {
            case.operands[0].shape = vec![2];
        }
        let columns = *case.operands[0].shape.last().expect("just seen to");
        let [second, third] = shapes(columns, &case);
        (case.operands[1].shape, case.operands[2].shape) = (second, third);
        case
    })
}

#[test]
fn fused_rows() {
    let value = |near: judge::Near| near.value;
    for (name, logarithm) in [("softmax", false), ("log_softmax", true)] {
        verify(
            name,
            f64s(full_shapes(1..=4), &SMOOTH_AND_TIES),
            |x, case| {
                let axis = case.axis(0, 0).unwrap() as isize;
                if logarithm { x[0].log_softmax(axis) } else { x[0].softmax(axis) }
            },
            |x, case| {
                let row = |row: &[f64]| {
                    if logarithm {
                        naive::log_softmax(row, DType::F64)
                    } else {
                        naive::softmax(row, DType::F64)
                    }
                };
                naive::rows(x[0].float(), case.axis(0, 0).unwrap(), row).map(value)
            },
        );
    }
    let rows = |x: &[Numbers], f: &dyn Fn(&[f64], &[f64], &[f64]) -> Vec<judge::Near>| {
        let last = x[0].float().shape.len() - 1;
        naive::rows(x[0].float(), last, |row| f(row, &x[1].float().data, &x[2].float().data)).map(value)
    };
    verify(
        "layer_norm",
        with_columns(|c, _| [vec![c], vec![c]]),
        |x, _| x[0].layer_norm(x[1], x[2], 1e-2),
        |x, _| rows(x, &|row, gain, bias| naive::layer_norm(row, gain, bias, 1e-2, DType::F64)),
    );
    verify(
        "rms_norm",
        with_columns(|c, _| [vec![c], vec![c]]),
        |x, _| x[0].rms_norm(x[1], 1e-2) + x[2] * 0.0,
        |x, _| rows(x, &|row, gain, _| naive::rms_norm(row, gain, 1e-2, DType::F64)),
    );
    const ACTIVATIONS: [Activation; 4] =
        [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];
    verify(
        "linear",
        with_columns(|c, case| {
            let out = case.choose(1, 7);
            [vec![out, c], vec![out]]
        }),
        |x, case| x[0].linear(x[1], Some(x[2]), ACTIVATIONS[case.choose(0, 4)]),
        |x, case| {
            let (w, b) = (x[1].float(), x[2].float());
            naive::linear(x[0].float(), w, Some(b), ACTIVATIONS[case.choose(0, 4)], DType::F64).map(value)
        },
    );
    verify(
        "linear_add",
        with_columns(|c, case| {
            let (x, out) = (&case.operands[0].shape, case.choose(1, 7));
            [vec![out, c], x[..x.len() - 1].iter().copied().chain([out]).collect()]
        }),
        |x, _| x[2].linear_add(x[0], x[1], None),
        |x, _| {
            let layer = naive::linear(x[0].float(), x[1].float(), None, Activation::Identity, DType::F64);
            naive::added(x[2].float(), &layer, DType::F64).map(value)
        },
    );
    let classified = indexed().map(|mut case| {
        case.operands.truncate(2);
        let (rows, classes) = (case.choose(1, 6), 1 + case.choose(2, 7));
        (case.operands[0].shape, case.operands[1].shape) = (vec![rows, classes], vec![rows]);
        case.operands[1].values = Values::Below(classes);
        case
    });
    verify(
        "cross_entropy",
        classified,
        |x, _| x[0].cross_entropy(x[1]),
        |x, _| {
            let logarithms = naive::rows(x[0].float(), 1, |row| naive::log_softmax(row, DType::F64));
            let labels = x[1].int();
            Array::from_fn(&labels.shape, |i| -logarithms.at(&[i[0], labels.at(i) as usize]).value)
        },
    );
    type Gated = for<'t> fn(Var<'t>) -> Var<'t>;
    let gates: &[(&str, Gated, fn(f64) -> f64)] = &[
        ("glu", |x| x.glu(), naive::sigmoid),
        ("swiglu", |x| x.swiglu(), |v| v * naive::sigmoid(v)),
        ("geglu", |x| x.geglu(), |v| 0.5 * v * (1.0 + naive::erf(v / 2f64.sqrt()))),
        ("reglu", |x| x.reglu(), |v| v.max(0.0)),
    ];
    for &(name, f, gate) in gates {
        let even = f64s(shapes(1..=4), &SMOOTH_AND_TIES).map(|mut case| {
            *case.operands[0].shape.last_mut().expect("an axis") *= 2;
            case
        });
        verify(
            name,
            even,
            |x, _| f(x[0]),
            |x, _| {
                let x = x[0].float();
                let last = x.shape.len() - 1;
                let half = x.shape[last] / 2;
                Array::from_fn(&with(&x.shape, last, half), |i| {
                    x.at(i) * gate(x.at(&with(i, last, i[last] + half)))
                })
            },
        );
    }
}
