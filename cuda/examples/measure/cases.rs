//! What is timed: cases of every file of kernels that the vocabulary of a backend reaches.

use limpid_cuda::Cuda;
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{
    Activation, DType, Descent, Fused, Handed, Map, Pace, Rate, Reduce, Result, Shape, Stop, Tensor,
    WeightStep,
};

use crate::case::{Case, Sizes, Source, Work};
use crate::report::Goal;

pub const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
const BYTES: Work = Work::Bytes { in_place: 0 };

/// All of them; the copy that others are compared with is the first.
pub fn all(sizes: &Sizes) -> Vec<Case> {
    let groups = [
        copies(sizes),
        maps(sizes),
        reductions(sizes),
        rows(sizes),
        indexed(sizes),
        draws(sizes),
        updates(sizes),
        products(sizes),
        sinkhorns(sizes),
        connections(sizes),
        launches(),
    ];
    groups.into_iter().flatten().collect()
}

/// A case with one result.
pub fn one(
    name: String,
    operands: impl Fn(&Source) -> Result<Vec<Tensor>> + 'static,
    queue: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    Case::new(name, BYTES, operands, move |x| Ok(vec![queue(x)?]))
}

pub fn fused(f: Fused, x: &[Tensor]) -> Result<Tensor> {
    Tensor::fused(f, &x.iter().collect::<Vec<_>>()).expect("a CUDA device has all fused kernels")
}

pub fn map(f: Map, x: &[Tensor]) -> Result<Tensor> {
    Tensor::map(f, &x.iter().collect::<Vec<_>>())
}

fn copies(sizes: &Sizes) -> Vec<Case> {
    let n = sizes.elements(DType::F32);
    let mut copy = one(
        format!("copy by the driver, {} bytes", sizes.bytes),
        move |source| Ok(vec![source.normal(&[n], DType::F32, 0)?]),
        // Not the tensor's method, which has nothing to do for what is contiguous.
        |x| x[0].device().backend().contiguous(&x[0]),
    );
    copy.is_reference = true;
    let mut cases = vec![copy];
    for dtype in [DType::F32, DType::BF16] {
        let [rows, columns] = sizes.rows_of(4096, dtype);
        cases.push(one(
            format!("transpose {dtype} [{rows}, {columns}]"),
            move |source| Ok(vec![source.normal(&[rows, columns], dtype, 0)?.transpose(0, 1)]),
            |x| x[0].contiguous(),
        ));
        cases.push(one(
            format!("left half of rows {dtype} [{rows}, {columns}]"),
            move |source| Ok(vec![source.normal(&[rows, columns], dtype, 0)?.slice(1, 0, columns / 2, 1)]),
            |x| x[0].contiguous(),
        ));
    }
    for (from, to) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::F32, DType::F64)] {
        let n = sizes.bytes / from.size().max(to.size());
        cases.push(one(
            format!("cast {from} to {to} [{n}]"),
            move |source| Ok(vec![source.normal(&[n], from, 0)?]),
            move |x| x[0].cast(to),
        ));
    }
    cases
}

fn maps(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        let shape = sizes.rows_of(4096, dtype);
        let [rows, columns] = shape;
        for f in [Map::Relu, Map::Exp, Map::Tanh] {
            cases.push(one(
                format!("{} {dtype} {shape:?}", f.name()),
                move |source| Ok(vec![source.normal(&shape, dtype, 0)?]),
                move |x| map(f, x),
            ));
        }
        cases.push(one(
            format!("add {dtype} {shape:?}"),
            move |source| Ok(vec![source.normal(&shape, dtype, 0)?, source.normal(&shape, dtype, 1)?]),
            |x| map(Map::Add, x),
        ));
        cases.push(one(
            format!("add {dtype} {shape:?} and a row"),
            move |source| Ok(vec![source.normal(&shape, dtype, 0)?, source.normal(&[columns], dtype, 1)?]),
            |x| map(Map::Add, x),
        ));
        cases.push(one(
            format!("multiply {dtype} {shape:?} and a column"),
            move |source| Ok(vec![source.normal(&shape, dtype, 0)?, source.normal(&[rows, 1], dtype, 1)?]),
            |x| map(Map::Mul, x),
        ));
        let turned = one(
            format!("add {dtype} {shape:?}, one transposed"),
            move |source| {
                let turned = source.normal(&[columns, rows], dtype, 0)?.transpose(0, 1);
                Ok(vec![turned, source.normal(&shape, dtype, 1)?])
            },
            |x| map(Map::Add, x),
        );
        // It is copied first: five sizes are moved instead of three.
        cases.push(turned.taking(5.0 / 3.0));
    }
    cases
}

fn reductions(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for columns in [64, 4096] {
            let shape = sizes.rows_of(columns, dtype);
            for (f, axes, over) in [
                (Reduce::Sum, &[1][..], "rows"),
                (Reduce::Sum, &[0], "columns"),
                (Reduce::ArgMax, &[1], "rows"),
                (Reduce::Sum, &[], "everything"),
            ] {
                cases.push(one(
                    format!("{} {dtype} {shape:?}, {over}", f.name()),
                    move |source| Ok(vec![source.normal(&shape, dtype, 0)?]),
                    move |x| x[0].reduce(f, axes),
                ));
            }
        }
        let shape = sizes.rows_of(4096, dtype);
        for (axis, over) in [(1, "rows"), (0, "columns")] {
            let sums = one(
                format!("cumsum {dtype} {shape:?}, {over}"),
                move |source| Ok(vec![source.normal(&shape, dtype, 0)?]),
                move |x| x[0].cumsum(axis),
            );
            // A long line has several blocks, for which its segments are read twice. Rows of 4096 have one.
            cases.push(if axis == 0 { sums.taking(3.0 / 2.0) } else { sums });
        }
    }
    let shape = sizes.rows_of(1024, DType::F32);
    let argsort = one(
        format!("argsort f32 {shape:?}, rows"),
        move |source| Ok(vec![source.normal(&shape, DType::F32, 0)?]),
        |x| x[0].argsort(1, false),
    );
    // Bound by steps in shared memory.
    cases.push(argsort.with_goal(Goal::None));
    cases
}

/// Functions of rows: what fits a warp's registers, a block's, and a large vocabulary.
fn rows(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for columns in [64, 1024, 4096, 65_536] {
            cases.extend(rows_of(dtype, sizes.rows_of(columns, dtype)));
        }
    }
    cases
}

/// Those of one shape.
pub fn rows_of(dtype: DType, shape: [usize; 2]) -> Vec<Case> {
    let mut cases = Vec::new();
    let [rows, columns] = shape;
    for (name, f) in [("softmax", Fused::Softmax), ("log_softmax", Fused::LogSoftmax)] {
        cases.push(one(
            format!("{name} {dtype} {shape:?}"),
            move |source| Ok(vec![source.normal(&shape, dtype, 0)?]),
            move |x| fused(f, x),
        ));
    }
    cases.push(one(
        format!("cross_entropy {dtype} {shape:?}"),
        move |source| Ok(vec![source.normal(&shape, dtype, 0)?, source.indices(&[rows], columns, 1)?]),
        |x| fused(Fused::CrossEntropy, x),
    ));
    for (name, f) in
        [("softmax backward", Fused::SoftmaxBackward), ("log_softmax backward", Fused::LogSoftmaxBackward)]
    {
        cases.push(one(
            format!("{name} {dtype} {shape:?}"),
            move |source| (0..2).map(|label| source.normal(&shape, dtype, label)).collect(),
            move |x| fused(f, x),
        ));
    }
    cases.push(one(
        format!("cross_entropy backward {dtype} {shape:?}"),
        move |source| {
            let (x, labels) = (source.normal(&shape, dtype, 0)?, source.indices(&[rows], columns, 1)?);
            Ok(vec![x, labels, source.normal(&[rows], dtype, 2)?])
        },
        |x| fused(Fused::CrossEntropyBackward, x),
    ));
    let of_rows = move |source: &Source, parameters: u64| -> Result<Vec<Tensor>> {
        let parameters = (1..=parameters).map(|label| source.normal(&[columns], dtype, label));
        [source.normal(&shape, dtype, 0)].into_iter().chain(parameters).collect()
    };
    cases.push(one(
        format!("layer_norm {dtype} {shape:?}"),
        move |source| of_rows(source, 2),
        |x| fused(Fused::LayerNorm { eps: 1e-5 }, x),
    ));
    cases.push(one(
        format!("rms_norm {dtype} {shape:?}"),
        move |source| of_rows(source, 1),
        |x| fused(Fused::RmsNorm { eps: 1e-5 }, x),
    ));
    for (name, f) in [
        ("layer_norm backward", Fused::LayerNormBackward { eps: 1e-5 }),
        ("rms_norm backward", Fused::RmsNormBackward { eps: 1e-5 }),
    ] {
        let backward = Case::new(
            format!("{name} {dtype} {shape:?}"),
            BYTES,
            move |source| {
                let mut operands = of_rows(source, 1)?;
                operands.push(source.normal(&shape, dtype, 2)?);
                Ok(operands)
            },
            move |x| {
                let results = Tensor::fused_all(f, &x.iter().collect::<Vec<_>>());
                Ok(results.expect("a CUDA device has all fused kernels")?.into_vec())
            },
        );
        // x and its cotangent are read for x̄, and again for the sums over rows: five sizes instead of three.
        cases.push(backward.taking(5.0 / 3.0));
    }
    cases.push(linear_backward(Activation::Relu, dtype, shape));
    cases
}

/// Where the derivative of a linear layer begins: y and its cotangent in, that of what was activated and the bias's out.
pub fn linear_backward(act: Activation, dtype: DType, shape: [usize; 2]) -> Case {
    Case::new(
        format!("linear backward {act:?} {dtype} {shape:?}"),
        BYTES,
        move |source| (0..2).map(|label| source.normal(&shape, dtype, label)).collect(),
        move |x| {
            let results = Tensor::fused_all(Fused::LinearBackward(act), &[&x[0], &x[1]]);
            Ok(results.expect("a CUDA device has all fused kernels")?.into_vec())
        },
    )
}

fn indexed(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let shape = sizes.rows_of(1024, dtype);
        let [rows, columns] = shape;
        cases.push(one(
            format!("gather {dtype} {shape:?}, whole rows"),
            move |source| {
                let chosen = source.indices(&[rows, 1], rows, 1)?.expand(shape);
                Ok(vec![source.normal(&shape, dtype, 0)?, chosen])
            },
            |x| x[0].gather(0, &x[1]),
        ));
        // The index is the largest operand.
        let within = sizes.rows_of(1024, DType::I64);
        cases.push(one(
            format!("gather {dtype} {within:?}, within rows"),
            move |source| Ok(vec![source.normal(&within, dtype, 0)?, source.indices(&within, within[1], 1)?]),
            |x| x[0].gather(1, &x[1]),
        ));
        // The gradient of an embedding.
        let words = (rows / 8).max(1);
        let scatter = one(
            format!("scatter_add {dtype} {shape:?} to {words} rows"),
            move |source| {
                let chosen = source.indices(&[rows, 1], words, 1)?.expand(shape);
                Ok(vec![
                    source.normal(&[words, columns], dtype, 0)?,
                    chosen,
                    source.normal(&shape, dtype, 2)?,
                ])
            },
            |x| x[0].scatter_add(0, &x[1], &x[2]),
        );
        // Where many elements have one destination, its chain of additions bounds it.
        cases.push(scatter.with_goal(Goal::None));
    }
    cases
}

fn draws(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let n = sizes.elements(dtype);
        for what in
            [Distribution::Uniform { low: 0.0, high: 1.0 }, Distribution::Normal { mean: 0.0, std: 1.0 }]
        {
            // The operand names the device; it holds nothing.
            let draw = one(
                format!("{} {dtype} [{n}]", what.name()),
                move |source| Ok(vec![source.normal(&[0], dtype, 0)?]),
                move |x| x[0].device().backend().random(what, &Shape::from([n]), dtype, Key::new(1)),
            );
            // Bound by arithmetic.
            cases.push(draw.with_goal(Goal::None));
        }
    }
    cases
}

/// A model's weights, large and small: of every layer a matrix and a bias.
fn updates(sizes: &Sizes) -> Vec<Case> {
    const LAYERS: usize = 64;
    let dtype = DType::F32;
    let elements: Vec<usize> = (0..LAYERS)
        .flat_map(|_| [sizes.elements(dtype) / LAYERS, sizes.elements(dtype) / LAYERS / 64])
        .collect();
    let weights = elements.len();
    let rules = [
        ("sgd", Descent::Momentum { momentum: 0.0, nesterov: false }),
        ("momentum", Descent::Momentum { momentum: 0.9, nesterov: false }),
        ("adamw", Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: true }),
    ];
    let mut cases = Vec::new();
    for (name, rule) in rules {
        // First what is changed: weights, and what is remembered of each; then gradients, and counts of steps.
        let changed = weights * (1 + rule.remembers());
        let elements_of = elements.clone();
        cases.push(Case::new(
            format!("{name} {dtype}, {weights} weights"),
            Work::Bytes { in_place: changed },
            move |source| {
                let tensor = |i: usize| source.positive(&[elements_of[i % weights]], dtype, i as u64);
                let count = |_| source.indices(&[], 1, 0);
                (0..changed + weights).map(tensor).chain((0..weights).map(count)).collect()
            },
            move |x| {
                step(rule, weights, x)?;
                Ok(Vec::new())
            },
        ));
    }
    let elements_of = elements.clone();
    cases.push(Case::new(
        format!("sums of squares {dtype}, {weights} weights"),
        BYTES,
        move |source| {
            elements_of.iter().enumerate().map(|(i, &n)| source.normal(&[n], dtype, i as u64)).collect()
        },
        |x| {
            let sums = x[0].device().backend().sums_of_squares(&x.iter().collect::<Vec<_>>());
            sums.expect("a CUDA device has this kernel").map(|_| Vec::new())
        },
    ));
    cases
}

/// A step of the weights that are operands as [`updates`] has them. They leave their list meanwhile: what nothing else refers
/// to is changed where it is.
fn step(rule: Descent, weights: usize, operands: &mut Vec<Tensor>) -> Result<()> {
    let device = operands[0].device().clone();
    let counts = operands.split_off(weights * (2 + rule.remembers()));
    let gradients = operands.split_off(weights * (1 + rule.remembers()));
    let mut changed = std::mem::take(operands).into_iter();
    let mut steps: Vec<WeightStep> = (changed.by_ref().take(weights).zip(gradients).zip(counts))
        .map(|((weight, gradient), steps)| WeightStep {
            weight,
            gradient,
            memory: Default::default(),
            steps,
            copy: None,
            rate_scale: 1.0,
            weight_decay: 0.01,
        })
        .collect();
    for (memory, i) in changed.zip((0..weights).cycle()) {
        steps[i].memory.push(memory);
    }
    let pace = Pace { rate: Rate::Number(1e-3), clip: None };
    let done = device.backend().descend(rule, pace, &mut steps.iter_mut().collect::<Vec<_>>());
    let memory = (0..rule.remembers()).flat_map(|k| steps.iter().map(move |step| &step.memory[k]));
    let changed = steps.iter().map(|step| &step.weight).chain(memory);
    let others = steps.iter().map(|step| &step.gradient).chain(steps.iter().map(|step| &step.steps));
    *operands = changed.chain(others).cloned().collect();
    done.expect("a CUDA device has this kernel")
}

fn products(sizes: &Sizes) -> Vec<Case> {
    let mut cases = Vec::new();
    for n in sizes.sides {
        let work = Work::Operations(2.0 * (n as f64).powi(3));
        let square = move |dtype: DType| {
            move |source: &Source| {
                Ok(vec![source.normal(&[n, n], dtype, 0)?, source.normal(&[n, n], dtype, 1)?])
            }
        };
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let product = Case::new(format!("matmul {dtype} {n}"), work, square(dtype), |x| {
                Ok(vec![x[0].matmul(&x[1])?])
            });
            let is_goal = dtype == DType::BF16 && n >= 4096;
            cases.push(if is_goal { product.with_goal(Goal::Library) } else { product });
        }
        cases.push(Case::new(format!("matmul tf32 {n}"), work, square(DType::F32), |x| {
            Cuda::allow_tf32(true);
            let y = x[0].matmul(&x[1]);
            Cuda::allow_tf32(false);
            Ok(vec![y?])
        }));
        cases.push(Case::new(
            format!("matmul bf16 {n}, second transposed"),
            work,
            square(DType::BF16),
            |x| Ok(vec![x[0].matmul(&x[1].transpose(0, 1))?]),
        ));
        cases.push(Case::new(format!("linear with relu bf16 {n}"), work, square(DType::BF16), move |x| {
            Ok(vec![fused(Fused::Linear(Activation::Relu), &x[..2])?])
        }));
    }
    cases
}

/// Bound by the time that a division takes, and so small that the cache has everything: it is the time that counts.
fn sinkhorns(sizes: &Sizes) -> Vec<Case> {
    let n = sizes.matrices;
    let stop = Stop::Steps(20);
    let mut cases = Vec::new();
    for (name, f, operands) in
        [("sinkhorn", Fused::Sinkhorn(stop), 1), ("sinkhorn backward", Fused::SinkhornBackward(stop), 2)]
    {
        let case = Case::new(
            format!("{name} f32, {n} of 4×4, 20 steps"),
            Work::Nothing { captured: true },
            move |source| (0..operands).map(|label| source.normal(&[n, 4, 4], DType::F32, label)).collect(),
            move |x| Ok(vec![fused(f, x)?]),
        );
        cases.push(if operands == 1 { case.with_goal(Goal::Within(30.0)) } else { case });
    }
    cases
}

/// A connection of mHC, between four streams of 4096 channels: each word, and those of one block one after the other. It moves
/// 18 elements a token and channel forward and 32 backward, where X̄ and φ̄ each read X; X once would be 28.
fn connections(sizes: &Sizes) -> Vec<Case> {
    const N: usize = 4;
    let of = |dtype| {
        let [tokens, numbers] = sizes.rows_of(N * 4096, dtype);
        connections_of(dtype, [tokens, N, numbers / N], N * N)
    };
    [DType::F32, DType::BF16].into_iter().flat_map(of).collect()
}

/// The words of a connection between n streams of C channels, whose φ has n + n + `last` columns.
pub fn connections_of(dtype: DType, [tokens, n, c]: [usize; 3], last: usize) -> Vec<Case> {
    use Fused::*;
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    // With the number of its operands.
    let (project, read, write) = ((StreamProject { eps: 1e-6 }, 4), (StreamRead, 2), (StreamWrite, 4));
    let (of_write, of_read) = ((StreamWriteBackward, 4), (StreamReadBackward, 2));
    let of_project = (StreamProjectBackward(Handed { written: true, read: true }), 10);
    let mut cases = Vec::new();
    for (name, words) in [
        ("project", vec![project]),
        ("read", vec![read]),
        ("write", vec![write]),
        ("connection, forward", vec![project, read, write]),
        ("write backward", vec![of_write]),
        ("read backward", vec![of_read]),
        ("project backward", vec![of_project]),
        ("connection, backward", vec![of_write, of_read, of_project]),
    ] {
        let of_words = words.clone();
        let operands = move |source: &Source| {
            let of_token =
                |own: &[usize], dtype, label| source.positive(&[&[tokens], own].concat(), dtype, label);
            let (x, g) = (of_token(&[n, c], dtype, 0)?, of_token(&[n, c], dtype, 1)?);
            let (f, h) = (of_token(&[c], dtype, 2)?, of_token(&[c], dtype, 3)?);
            let (a, b) = (of_token(&[n], wide, 4)?, of_token(&[n], wide, 5)?);
            let mix = of_token(&[n, n], wide, 6)?;
            let phi = |width, label| source.normal(&[n * c, width], wide, label);
            let (pre, post, res) = (phi(n, 7)?, phi(n, 8)?, phi(last, 9)?);
            let columns = last + 2 * n + 1;
            let (y, dy) = (of_token(&[columns], wide, 10)?, of_token(&[columns], wide, 11)?);
            let mut all: Vec<&Tensor> = Vec::new();
            for (word, _) in &of_words {
                match word {
                    StreamRead => all.extend([&x, &a]),
                    StreamReadBackward => all.extend([&x, &h]),
                    StreamWrite => all.extend([&x, &f, &mix, &b]),
                    StreamWriteBackward => all.extend([&x, &f, &b, &g]),
                    StreamProject { .. } => all.extend([&x, &pre, &post, &res]),
                    _ => all.extend([&x, &pre, &post, &res, &y, &dy, &g, &mix, &h, &a]),
                }
            }
            Ok(all.into_iter().cloned().collect())
        };
        let is_forward = words.len() == 3 && words.contains(&write);
        let case = Case::new(format!("{name} {dtype} [{tokens}, {n}, {c}]"), BYTES, operands, move |x| {
            let (mut results, mut rest) = (Vec::new(), &x[..]);
            for &(word, operands) in &words {
                let (own, others) = rest.split_at(operands);
                let own: Vec<&Tensor> = own.iter().collect();
                results.extend(Tensor::fused_all(word, &own).expect("a CUDA device has all fused kernels")?);
                rest = others;
            }
            Ok(results)
        });
        let least = (18 * c * tokens * dtype.size()) as f64;
        // What the products with φ take, in sizes a token and channel: at 2 bytes an element, arithmetic (`connection.cu`).
        let [project, phi] = if dtype == DType::BF16 { [7.2, 6.9] } else { [4.0, 4.0] };
        cases.push(match name {
            _ if is_forward => case.with_goal(Goal::Passes { bytes: least }),
            "project" => case.taking(project / 4.0),
            "project backward" => case.taking((13.0 + phi) / 13.0),
            "connection, backward" => case.taking((28.0 + phi) / 28.0),
            _ => case,
        });
    }
    cases
}

/// What a launch takes: one element is added to another.
fn launches() -> Vec<Case> {
    let mut cases = Vec::new();
    for (how, captured) in [("one by one", false), ("as a graph", true)] {
        cases.push(Case::new(
            format!("add f32 [1], {how}"),
            Work::Nothing { captured },
            |source| Ok(vec![source.normal(&[1], DType::F32, 0)?, source.normal(&[1], DType::F32, 1)?]),
            |x| Ok(vec![map(Map::Add, x)?]),
        ));
    }
    cases
}
