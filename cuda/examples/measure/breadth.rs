//! The other kernels, each once: every function of elements, and the dtypes and sizes that `cases` leaves out.

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{
    Activation, DType, Descent, Fused, Layout, Map, Pace, Rate, Reduce, Result, Shape, Stop, Tensor,
    WeightStep,
};

use crate::case::{Case, Sizes, Source, Work};
use crate::cases::{FLOATS, fused, linear_backward, map, one};
use crate::report::Goal;

/// All of them.
pub fn all(sizes: &Sizes) -> Vec<Case> {
    let groups = [
        copies(sizes),
        maps(sizes),
        reductions(sizes),
        indexed(sizes),
        updates(sizes),
        linear(sizes),
        sinkhorns(sizes),
    ];
    groups.into_iter().flatten().collect()
}

/// Truth values, about half of them true.
fn booleans(source: &Source, shape: &[usize], label: u64) -> Result<Tensor> {
    let zero = Tensor::zeros([1], DType::F32).to(&source.device)?;
    Tensor::map(Map::Gt, &[&source.normal(shape, DType::F32, label)?, &zero])
}

/// A tensor of any dtype.
fn numbers(source: &Source, shape: &[usize], dtype: DType, label: u64) -> Result<Tensor> {
    match dtype {
        DType::I64 => source.indices(shape, 1000, label),
        DType::Bool => booleans(source, shape, label),
        _ => source.positive(shape, dtype, label),
    }
}

fn copies(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F64, DType::I64, DType::Bool] {
        let [rows, columns] = sizes.rows_of(4096, dtype);
        cases.push(one(
            format!("transpose {dtype} [{rows}, {columns}]"),
            move |source| Ok(vec![numbers(source, &[rows, columns], dtype, 0)?.transpose(0, 1)]),
            |x| x[0].contiguous(),
        ));
    }
    for (from, to) in [(DType::I64, DType::F32), (DType::Bool, DType::F32), (DType::F64, DType::BF16)] {
        let n = sizes.bytes / from.size().max(to.size());
        cases.push(one(
            format!("cast {from} to {to} [{n}]"),
            move |source| Ok(vec![numbers(source, &[n], from, 0)?]),
            move |x| x[0].cast(to),
        ));
    }
    let [rows, columns] = sizes.rows_of(4096, DType::F32);
    cases.push(one(
        format!("concatenate f32, two [{}, {columns}]", rows / 2),
        move |source| (0..2).map(|label| source.normal(&[rows / 2, columns], DType::F32, label)).collect(),
        move |x| {
            let whole = Layout::contiguous([2 * (rows / 2), columns]);
            let parts = [
                (whole.slice(0, 0, rows / 2, 1), &x[0]),
                (whole.slice(0, rows / 2, 2 * (rows / 2), 1), &x[1]),
            ];
            Tensor::assemble(x[0].device(), [2 * (rows / 2), columns], DType::F32, &parts)
        },
    ));
    cases
}

fn maps(sizes: &Sizes) -> Vec<Case> {
    use Map::*;
    let mut cases = Vec::new();
    let mut push = |f: Map, dtype: DType| {
        // What is compared gives truth values, and so may be larger.
        let shape = sizes.rows_of(4096, dtype);
        cases.push(one(
            format!("{} {dtype} {shape:?}", f.name()),
            move |source| {
                let mut operands = Vec::new();
                if f == Where {
                    operands.push(booleans(source, &shape, 9)?);
                }
                for label in operands.len()..f.arity() {
                    operands.push(numbers(source, &shape, dtype, label as u64)?);
                }
                Ok(operands)
            },
            move |x| map(f, x),
        ));
    };
    let affine = Affine { mul: 2.0, add: 1.0 };
    for f in [
        Neg,
        Abs,
        Sign,
        Expm1,
        Log,
        Log1p,
        Sqrt,
        Rsqrt,
        Recip,
        Sin,
        Cos,
        Sigmoid,
        Erf,
        Softplus,
        LeakyRelu(0.1),
        Elu(1.0),
        affine,
        Powf(1.5),
        Clamp { low: 0.7, high: 1.2 },
        Sub,
        Mul,
        Div,
        Pow,
        Max,
        Min,
        Eq,
        Ne,
        Lt,
        Le,
        Gt,
        Ge,
        Where,
    ] {
        push(f, DType::F32);
    }
    for f in [Mul, Div, Where] {
        [DType::F64, DType::BF16].into_iter().for_each(|dtype| push(f, dtype));
    }
    [Neg, Add, Mul, Lt, Where].into_iter().for_each(|f| push(f, DType::I64));
    [Not, And, Or].into_iter().for_each(|f| push(f, DType::Bool));
    cases
}

fn reductions(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    let over_rows = [
        (Reduce::Max, DType::F32),
        (Reduce::Min, DType::BF16),
        (Reduce::Prod, DType::F64),
        (Reduce::Min, DType::F64),
        (Reduce::Sum, DType::I64),
        (Reduce::Max, DType::I64),
    ];
    for (f, dtype) in over_rows {
        let shape = sizes.rows_of(4096, dtype);
        cases.push(one(
            format!("{} {dtype} {shape:?}, rows", f.name()),
            move |source| Ok(vec![numbers(source, &shape, dtype, 0)?]),
            move |x| x[0].reduce(f, &[1]),
        ));
    }
    for dtype in [DType::F64, DType::BF16, DType::I64] {
        let shape = sizes.rows_of(1024, dtype);
        let sorted = one(
            format!("argsort {dtype} {shape:?}, rows"),
            move |source| Ok(vec![numbers(source, &shape, dtype, 0)?]),
            |x| x[0].argsort(1, false),
        );
        // Bound by steps in shared memory.
        cases.push(sorted.with_goal(Goal::None));
    }
    let n = sizes.elements(DType::F64);
    let draw = one(
        format!("uniform f64 [{n}]"),
        move |source| Ok(vec![source.normal(&[0], DType::F64, 0)?]),
        move |x| {
            let what = Distribution::Uniform { low: 0.0, high: 1.0 };
            x[0].device().backend().random(what, &Shape::from([n]), DType::F64, Key::new(1))
        },
    );
    // Bound by arithmetic.
    cases.push(draw.with_goal(Goal::None));
    cases
}

fn indexed(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F64, DType::I64] {
        let shape = sizes.rows_of(1024, dtype);
        let [rows, columns] = shape;
        cases.push(one(
            format!("gather {dtype} {shape:?}, whole rows"),
            move |source| {
                let chosen = source.indices(&[rows, 1], rows, 1)?.expand(shape);
                Ok(vec![numbers(source, &shape, dtype, 0)?, chosen])
            },
            |x| x[0].gather(0, &x[1]),
        ));
        let words = (rows / 8).max(1);
        let scatter = one(
            format!("scatter_add {dtype} {shape:?} to {words} rows"),
            move |source| {
                let chosen = source.indices(&[rows, 1], words, 1)?.expand(shape);
                let (base, added) =
                    (numbers(source, &[words, columns], dtype, 0)?, numbers(source, &shape, dtype, 2)?);
                Ok(vec![base, chosen, added])
            },
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        );
        // Where many elements have one destination, its chain of additions bounds it.
        cases.push(scatter.with_goal(Goal::None));
    }
    cases
}

/// Steps of one large weight: with gradients in bf16, in f64, and the norm that limits them.
fn updates(sizes: &Sizes) -> Vec<Case> {
    let adam = Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: true };
    let momentum = Descent::Momentum { momentum: 0.9, nesterov: true };
    let mut cases = Vec::new();
    for (name, rule, weights, gradients) in [
        ("adamw", adam, DType::F32, DType::BF16),
        ("momentum", momentum, DType::F32, DType::BF16),
        ("adamw", adam, DType::F64, DType::F64),
        ("momentum", momentum, DType::F64, DType::F64),
    ] {
        let n = sizes.elements(weights);
        // First what is changed: the weight, and what is remembered of it.
        let changed = 1 + rule.remembers();
        cases.push(Case::new(
            format!("{name} {weights}, gradients {gradients} [{n}]"),
            Work::Bytes { in_place: changed },
            move |source| {
                let mut all: Vec<Tensor> = (0..changed)
                    .map(|label| source.positive(&[n], weights, label as u64))
                    .collect::<Result<_>>()?;
                all.push(source.normal(&[n], gradients, 9)?);
                all.push(source.indices(&[], 1, 0)?);
                Ok(all)
            },
            move |x| {
                step(rule, x)?;
                Ok(Vec::new())
            },
        ));
    }
    for dtype in FLOATS {
        let n = sizes.elements(dtype);
        cases.push(one(
            format!("norm and scale {dtype} [{n}]"),
            move |source| Ok(vec![source.normal(&[n], dtype, 0)?]),
            |x| {
                let done = x[0].device().backend().norm_and_scale(&[("weight", &x[0])], 1.0);
                done.expect("a CUDA device has this kernel")
            },
        ));
    }
    cases
}

/// A step of the weight that is the first operand. All leave their list meanwhile: what nothing else refers to is changed
/// where it is.
fn step(rule: Descent, operands: &mut Vec<Tensor>) -> Result<()> {
    let device = operands[0].device().clone();
    let mut all = std::mem::take(operands).into_iter();
    let weight = all.next().expect("the weight is the first");
    let memory = all.by_ref().take(rule.remembers()).collect();
    let (gradient, steps) = (all.next().expect("the gradient"), all.next().expect("the count of steps"));
    let mut step =
        WeightStep { weight, gradient, memory, steps, copy: None, rate_scale: 1.0, weight_decay: 0.01 };
    let pace = Pace { rate: Rate::Number(1e-3), clip: None };
    let done = device.backend().descend(rule, pace, &mut [&mut step]);
    operands.push(step.weight);
    operands.extend(step.memory);
    operands.extend([step.gradient, step.steps]);
    done.expect("a CUDA device has this kernel")
}

fn linear(sizes: &Sizes) -> Vec<Case> {
    let n = sizes.sides[1];
    let work = Work::Operations(2.0 * (n as f64).powi(3));
    let mut cases = Vec::new();
    for (dtype, activation, name) in [
        (DType::F32, Activation::Relu, "relu"),
        (DType::F64, Activation::Identity, "nothing"),
        (DType::BF16, Activation::Tanh, "tanh"),
    ] {
        cases.push(Case::new(
            format!("linear with bias and {name} {dtype} {n}"),
            work,
            move |source| {
                let square = |label| source.normal(&[n, n], dtype, label);
                Ok(vec![square(0)?, square(1)?, source.normal(&[n], dtype, 2)?])
            },
            move |x| Ok(vec![fused(Fused::Linear(activation), x)?]),
        ));
    }
    cases.push(Case::new(
        format!("linear with bias and residual bf16 {n}"),
        work,
        move |source| {
            let square = |label| source.normal(&[n, n], DType::BF16, label);
            Ok(vec![square(0)?, square(1)?, square(2)?, source.normal(&[n], DType::BF16, 3)?])
        },
        move |x| Ok(vec![fused(Fused::LinearAdd(Activation::Identity), x)?]),
    ));
    for dtype in FLOATS {
        for activation in [Activation::Identity, Activation::Tanh, Activation::Sigmoid] {
            cases.push(linear_backward(activation, dtype, sizes.rows_of(4096, dtype)));
        }
        // So few columns that many rows are taken at once.
        cases.push(linear_backward(Activation::Relu, dtype, [sizes.elements(dtype) / 8, 8]));
    }
    // Sums of many terms for few elements, in parts.
    let (m, k) = (n / 32, n * 4);
    cases.push(Case::new(
        format!("matmul bf16 [{m}, {k}] by [{k}, {m}]"),
        Work::Operations(2.0 * (m * m * k) as f64),
        move |source| {
            Ok(vec![source.normal(&[m, k], DType::BF16, 0)?, source.normal(&[k, m], DType::BF16, 1)?])
        },
        |x| Ok(vec![x[0].matmul(&x[1])?]),
    ));
    // A matrix and a vector: memory bounds it.
    let shape = sizes.rows_of(4096, DType::F32);
    cases.push(one(
        format!("matmul f32 {shape:?} by [{}, 1]", shape[1]),
        move |source| {
            Ok(vec![source.normal(&shape, DType::F32, 0)?, source.normal(&[shape[1], 1], DType::F32, 1)?])
        },
        |x| x[0].matmul(&x[1]),
    ));
    cases
}

/// As many elements as those of 4×4 have, by each way of sharing a matrix among threads; it is the time that counts.
fn sinkhorns(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, side) in [
        (DType::F32, 2),
        (DType::F32, 8),
        (DType::F32, 16),
        (DType::F32, 64),
        (DType::F64, 2),
        (DType::F64, 4),
        (DType::F64, 8),
        (DType::F64, 16),
        (DType::BF16, 4),
    ] {
        let n = (sizes.matrices * 16 / (side * side)).max(1);
        let stop = Stop::Steps(20);
        for (name, f, operands) in
            [("sinkhorn", Fused::Sinkhorn(stop), 1), ("sinkhorn backward", Fused::SinkhornBackward(stop), 2)]
        {
            cases.push(Case::new(
                format!("{name} {dtype}, {n} of {side}×{side}, 20 steps"),
                Work::Nothing { captured: true },
                move |source| {
                    (0..operands).map(|label| source.normal(&[n, side, side], dtype, label)).collect()
                },
                move |x| Ok(vec![fused(f, x)?]),
            ));
        }
    }
    cases
}
