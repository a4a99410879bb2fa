//! Small operations that between them launch every kernel, each on any device.

use limpid_cuda::{Cuda, by_name};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{
    Activation, DType, Descent, Device, Fused, Handed, Layout, Map, Pace, Rate, Reduce, Result, Stop, Tensor,
    WeightStep,
};

type Run = Box<dyn Fn(&Device) -> Result<Vec<Tensor>>>;

/// An operation on a device, at one dtype.
pub struct Demo {
    /// What it is, `softmax f32 [5, 33]`.
    pub name: String,
    /// How far from the CPU's the results may be, in roundings of each element. Of bf16 it is one, whatever this says: both
    /// devices compute in float, and round once.
    roundings: f64,
    /// Whether it adds what may cancel. Then roundings are those of the largest element of each result.
    cancels: bool,
    /// The kernel of products that it asks for by name.
    product: Option<String>,
    run: Run,
}

impl Demo {
    fn new(name: impl Into<String>, run: impl Fn(&Device) -> Result<Vec<Tensor>> + 'static) -> Demo {
        // A library's functions are off by up to 4, a formula has one or two of them.
        Demo { name: name.into(), roundings: 8.0, cancels: false, product: None, run: Box::new(run) }
    }

    fn one(name: impl Into<String>, run: impl Fn(&Device) -> Result<Tensor> + 'static) -> Demo {
        Demo::new(name, move |device| Ok(vec![run(device)?]))
    }

    /// With another limit.
    fn within(self, roundings: f64) -> Demo {
        Demo { roundings, ..self }
    }

    /// With a limit in roundings of the largest element: terms cancel.
    fn cancelling(self, roundings: f64) -> Demo {
        Demo { roundings, cancels: true, ..self }
    }

    /// How far from the CPU's results a device's are.
    pub fn distance(&self, found: &[Tensor], expected: &[Tensor]) -> Distance {
        let of = found.iter().zip(expected).map(|(found, expected)| Distance::between(self, found, expected));
        let part = |distance: &Distance| distance.roundings / distance.allowed;
        of.max_by(|a, b| part(a).total_cmp(&part(b))).expect("every operation has a result")
    }

    /// Whether a card has the instructions and the memory for it.
    pub fn runs_on(&self, cuda: &Cuda) -> bool {
        self.product.as_ref().is_none_or(|kernel| by_name::has_product(cuda, kernel))
    }

    /// Computes it on a device. The results are on the host.
    pub fn run(&self, device: &Device) -> Result<Vec<Tensor>> {
        (self.run)(device)?.iter().map(|y| y.to(&Device::cpu())).collect()
    }
}

pub const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
pub const NUMBERS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::I64];
pub const ALL: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool];

/// Numbers between −2 and 4 without a pattern (bool: some of both), on a device.
fn numbers(device: &Device, shape: &[usize], dtype: DType, seed: usize) -> Result<Tensor> {
    let elements: usize = shape.iter().product();
    let value = |i: usize| ((i * 7919 + seed * 104_729) as f64 * 0.618_033_988_75).fract() * 6.0 - 2.0;
    let value = |i: usize| if dtype == DType::Bool { f64::from(u8::from(value(i) > 1.0)) } else { value(i) };
    Tensor::from_f64(&(0..elements).map(value).collect::<Vec<_>>(), shape, dtype).to(device)
}

/// Indices below `n`, on a device.
fn indices(device: &Device, shape: &[usize], n: usize) -> Result<Tensor> {
    let elements: usize = shape.iter().product();
    let values: Vec<i64> = (0..elements).map(|i| (i * 31 % n) as i64).collect();
    Tensor::from_vec(values, shape).to(device)
}

/// All of them.
pub fn all() -> Vec<Demo> {
    let groups = [
        maps(),
        reductions(),
        copies(),
        indexed(),
        draws(),
        products(),
        products_by_name(),
        fused(),
        sinkhorns(),
        connections(),
        updates(),
    ];
    groups.into_iter().flatten().collect()
}

/// Every function of floats.
pub const OF_FLOATS: [Map; 23] = {
    use Map::*;
    [
        Exp,
        Expm1,
        Log,
        Log1p,
        Sqrt,
        Rsqrt,
        Recip,
        Sin,
        Cos,
        Tanh,
        Sigmoid,
        Erf,
        Softplus,
        Relu,
        Div,
        Pow,
        LeakyRelu(0.125),
        Elu(0.5),
        Powf(1.0),
        Powf(2.0),
        Powf(3.0),
        Powf(1.5),
        Clamp { low: -1.0, high: 1.0 },
    ]
};

/// Every function of integers too.
pub const OF_NUMBERS: [Map; 13] = {
    use Map::*;
    [Neg, Abs, Sign, Affine { mul: 2.0, add: -1.0 }, Add, Sub, Mul, Max, Min, Lt, Le, Gt, Ge]
};

/// Those of bool alone, and those of every dtype.
pub const OF_BOOL: [Map; 3] = [Map::Not, Map::And, Map::Or];
pub const OF_ALL: [Map; 3] = [Map::Eq, Map::Ne, Map::Where];

fn maps() -> Vec<Demo> {
    let mut demos = Vec::new();
    let mut add = |f: Map, dtypes: &[DType]| {
        for &dtype in dtypes {
            // Contiguous with a tail, then transposed and broadcast.
            demos.push(Demo::new(format!("{} {dtype} [13, 17]", f.name()), move |device| {
                let of = |shape: &[usize], seed| numbers(device, shape, dtype, seed);
                let (a, b) = (of(&[13, 17], 1)?, of(&[13, 17], 2)?);
                let (turned, row) = (of(&[17, 13], 3)?.transpose(0, 1), of(&[17], 4)?);
                let condition = numbers(device, &[13, 17], DType::Bool, 5)?;
                match f.arity() {
                    1 => Ok(vec![Tensor::map(f, &[&a])?, Tensor::map(f, &[&turned])?]),
                    2 => Ok(vec![Tensor::map(f, &[&a, &b])?, Tensor::map(f, &[&turned, &row])?]),
                    _ => Ok(vec![
                        Tensor::map(f, &[&condition, &a, &b])?,
                        Tensor::map(f, &[&condition, &turned, &row])?,
                    ]),
                }
            }));
        }
    };
    OF_FLOATS.into_iter().for_each(|f| add(f, &FLOATS));
    OF_NUMBERS.into_iter().for_each(|f| add(f, &NUMBERS));
    OF_BOOL.into_iter().for_each(|f| add(f, &[DType::Bool]));
    OF_ALL.into_iter().for_each(|f| add(f, &ALL));
    for dtype in FLOATS {
        // So large that it is copied first.
        demos.push(Demo::one(format!("sub {dtype} [64, 128], one turned"), move |device| {
            let turned = numbers(device, &[128, 64], dtype, 1)?.transpose(0, 1);
            Tensor::map(Map::Sub, &[&turned, &numbers(device, &[64, 128], dtype, 2)?])
        }));
    }
    demos
}

/// The limit of a sum of so many products, where the CPU has a chain of fused ones.
fn of_terms(terms: usize) -> f64 {
    if terms < 100 { 4.0 } else { 32.0 }
}

impl Demo {
    /// With the limit of a reduction.
    fn of_reduction(self, f: Reduce) -> Demo {
        match f {
            // A rounding for each of up to 9000 factors, of either sign.
            Reduce::Prod => self.within(32.0),
            _ => self.cancelling(4.0),
        }
    }
}

fn reductions() -> Vec<Demo> {
    let mut demos = Vec::new();
    let shapes: [&[usize]; 5] = [&[7, 40], &[3, 1500], &[900, 3], &[2, 9000], &[9000, 2]];
    for dtype in NUMBERS {
        for f in [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min, Reduce::ArgMax] {
            for shape in shapes {
                demos.push(
                    Demo::new(format!("{} {dtype} {shape:?}", f.name()), move |device| {
                        let x = numbers(device, shape, dtype, 1)?;
                        let mut y =
                            vec![x.reduce(f, &[0])?, x.reduce(f, &[1])?, x.transpose(0, 1).reduce(f, &[1])?];
                        if f != Reduce::ArgMax {
                            y.push(x.reduce(f, &[])?);
                        }
                        Ok(y)
                    })
                    .of_reduction(f),
                );
            }
        }
        // In parts of parts, of which other rows and columns of this size have none.
        for f in [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min, Reduce::ArgMax] {
            let row = match (f, dtype) {
                (Reduce::ArgMax, DType::F32) => 530_000,
                (Reduce::ArgMax, DType::F64 | DType::I64) => 135_000,
                _ => 9000,
            };
            demos.push(
                Demo::new(format!("{} {dtype} in parts of [{row}]", f.name()), move |device| {
                    let of = |shape: &[usize], axis: usize| {
                        let x = numbers(device, shape, dtype, 1)?;
                        if *device == Device::cpu() {
                            x.reduce(f, &[axis as isize])
                        } else {
                            by_name::reduce_in_turns(f, &x, &[axis], 1)
                        }
                    };
                    Ok(vec![of(&[row], 0)?, of(&[300, 128], 0)?])
                })
                .of_reduction(f),
            );
        }
        // The longest row is of several segments in bf16 too.
        for shape in shapes.into_iter().chain([&[1, 17_000][..]]) {
            // The CPU adds one by one.
            demos.push(
                Demo::new(format!("cumsum {dtype} {shape:?}"), move |device| {
                    let x = numbers(device, shape, dtype, 1)?;
                    Ok(vec![x.cumsum(0)?, x.cumsum(1)?])
                })
                .cancelling(8.0),
            );
        }
    }
    // Of three tiles, the longest here: a pass of merging, and another with a tile left over.
    let shapes: [&[usize]; 5] = [&[7, 40], &[3, 1500], &[900, 3], &[1, 4500], &[4500, 1]];
    for dtype in ALL {
        for shape in shapes {
            demos.push(Demo::new(format!("argsort {dtype} {shape:?}"), move |device| {
                let x = numbers(device, shape, dtype, 1)?;
                Ok(vec![x.argsort(0, false)?, x.argsort(1, true)?])
            }));
        }
    }
    demos
}

fn copies() -> Vec<Demo> {
    let mut demos = Vec::new();
    for dtype in ALL {
        demos.push(Demo::new(format!("contiguous {dtype} [35, 70]"), move |device| {
            let x = numbers(device, &[35, 70], dtype, 1)?;
            let cube = numbers(device, &[5, 6, 7], dtype, 2)?;
            // Elements of 16 bytes.
            let blocks = numbers(device, &[34, 33, 16 / dtype.size()], dtype, 4)?;
            Ok(vec![
                x.transpose(0, 1).contiguous()?,
                x.slice(1, 1, 70, 3).contiguous()?,
                x.flip(0).contiguous()?,
                cube.permute(&[2, 0, 1]).contiguous()?,
                blocks.transpose(0, 1).contiguous()?,
                numbers(device, &[1, 9], dtype, 3)?.expand([4, 9]).contiguous()?,
            ])
        }));
        for to in ALL {
            if to != dtype {
                demos.push(Demo::new(format!("cast {dtype} to {to}"), move |device| {
                    let x = numbers(device, &[9, 33], dtype, 1)?;
                    Ok(vec![x.cast(to)?, x.transpose(0, 1).cast(to)?])
                }));
            }
        }
        demos.push(Demo::one(format!("assemble {dtype} [6, 10]"), move |device| {
            let (a, b) = (numbers(device, &[2, 10], dtype, 1)?, numbers(device, &[4, 5], dtype, 2)?);
            let whole = Layout::contiguous([6, 10]);
            let parts = [(whole.slice(0, 0, 2, 1), &a), (whole.slice(0, 2, 6, 1).slice(1, 0, 10, 2), &b)];
            Tensor::assemble(device, [6, 10], dtype, &parts)
        }));
    }
    demos
}

fn indexed() -> Vec<Demo> {
    let mut demos = Vec::new();
    for dtype in ALL {
        demos.push(Demo::new(format!("gather {dtype} [9, 20]"), move |device| {
            let x = numbers(device, &[9, 20], dtype, 1)?;
            let rows = indices(device, &[5, 20], 9)?;
            let columns = indices(device, &[9, 4], 20)?;
            let whole_rows = indices(device, &[5, 1], 9)?.expand([5, 20]);
            Ok(vec![
                x.gather(0, &rows)?,
                x.gather(0, &whole_rows)?,
                x.gather(1, &columns)?,
                x.gather(1, &columns.flip(0))?,
            ])
        }));
        demos.push(Demo::new(format!("scatter_add {dtype} [9, 20]"), move |device| {
            let x = numbers(device, &[9, 20], dtype, 1)?;
            let rows = indices(device, &[50, 20], 9)?;
            let columns = indices(device, &[9, 4], 20)?;
            Ok(vec![
                x.scatter_add(0, &rows, &numbers(device, &[50, 20], dtype, 2)?)?,
                x.scatter_add(1, &columns, &numbers(device, &[9, 4], dtype, 3)?)?,
            ])
        }));
    }
    demos
}

fn draws() -> Vec<Demo> {
    let mut demos = Vec::new();
    let floats = [
        Distribution::Uniform { low: -1.0, high: 2.0 },
        Distribution::Normal { mean: 0.5, std: 2.0 },
        Distribution::TruncatedNormal { mean: 0.0, std: 1.0, low: -1.5, high: 1.0 },
    ];
    for dtype in FLOATS {
        for what in floats {
            // A mean is added.
            demos.push(
                Demo::one(format!("{} {dtype} [301]", what.name()), move |device| {
                    device.backend().random(what, &[301].into(), dtype, Key::new(7))
                })
                .cancelling(8.0),
            );
        }
    }
    for dtype in ALL {
        let what = Distribution::Bernoulli { p: 0.3 };
        if what.infer(&[301].into(), dtype).is_ok() {
            demos.push(Demo::one(format!("{} {dtype} [301]", what.name()), move |device| {
                device.backend().random(what, &[301].into(), dtype, Key::new(7))
            }));
        }
    }
    demos.push(Demo::one("permutation of 301", |device| {
        device.backend().random(Distribution::Permutation, &[301].into(), DType::I64, Key::new(7))
    }));
    demos
}

fn products() -> Vec<Demo> {
    let mut demos = Vec::new();
    for dtype in FLOATS {
        for (m, k, n) in [(5, 7, 3), (33, 65, 40), (64, 32, 64), (130, 40, 136), (4, 700, 4), (3, 3000, 5)] {
            demos.push(
                Demo::new(format!("matmul {dtype} {m}×{k}×{n}"), move |device| {
                    let (a, b) = (numbers(device, &[m, k], dtype, 1)?, numbers(device, &[k, n], dtype, 2)?);
                    let (at, bt) = (numbers(device, &[k, m], dtype, 3)?, numbers(device, &[n, k], dtype, 4)?);
                    let (at, bt) = (at.transpose(0, 1), bt.transpose(0, 1));
                    Ok(vec![a.matmul(&b)?, at.matmul(&b)?, a.matmul(&bt)?, at.matmul(&bt)?])
                })
                .cancelling(of_terms(k)),
            );
        }
        demos.push(
            Demo::one(format!("matmul {dtype} 3 of 8×16×8"), move |device| {
                let (a, b) = (numbers(device, &[3, 8, 16], dtype, 1)?, numbers(device, &[16, 8], dtype, 2)?);
                a.matmul(&b)
            })
            .cancelling(of_terms(16)),
        );
        for act in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid] {
            demos.push(
                Demo::new(format!("linear {act:?} {dtype} 33×20×24"), move |device| {
                    let (x, w) =
                        (numbers(device, &[33, 20], dtype, 1)?, numbers(device, &[24, 20], dtype, 2)?);
                    let (b, r) = (numbers(device, &[24], dtype, 3)?, numbers(device, &[33, 24], dtype, 4)?);
                    let linear = |x: &[&Tensor]| fused_of(Fused::Linear(act), x);
                    let added = |x: &[&Tensor]| fused_of(Fused::LinearAdd(act), x);
                    Ok(vec![
                        linear(&[&x, &w, &b])?,
                        linear(&[&x, &w])?,
                        added(&[&r, &x, &w, &b])?,
                        added(&[&r, &x, &w])?,
                    ])
                })
                .cancelling(of_terms(20)),
            );
            // Few columns and many, one slab of rows and several, aligned and not.
            for [rows, width] in [[150, 7], [300, 8], [5, 40], [150, 33], [130, 200], [3, 1500]] {
                let name = format!("linear backward {act:?} {dtype} [{rows}, {width}]");
                let demo = Demo::new(name, move |device| {
                    let (y, g) = (
                        numbers(device, &[rows, width], dtype, 1)?,
                        numbers(device, &[rows, width], dtype, 2)?,
                    );
                    let results = Tensor::fused_all(Fused::LinearBackward(act), &[&y, &g]);
                    Ok(results.expect("every device here has this kernel")?.into_vec())
                });
                demos.push(demo.cancelling(4.0));
            }
        }
        // A thread for each element, a warp, and sums in parts; the residual begins anywhere, or lies turned.
        for (m, k, n) in [(5, 7, 3), (4, 700, 4), (3, 3000, 5), (34, 65, 36)] {
            demos.push(
                Demo::new(format!("linear_add {dtype} {m}×{k}×{n}"), move |device| {
                    let (x, w) = (numbers(device, &[m, k], dtype, 1)?, numbers(device, &[n, k], dtype, 2)?);
                    let (b, r) = (numbers(device, &[n], dtype, 3)?, numbers(device, &[n * m + 1], dtype, 4)?);
                    let (inside, first) = (r.slice(0, 1, n * m + 1, 1), r.slice(0, 0, n * m, 1));
                    let turned = first.reshape([n, m])?.transpose(0, 1);
                    let added = |x: &[&Tensor]| fused_of(Fused::LinearAdd(Activation::Identity), x);
                    Ok(vec![
                        added(&[&first.reshape([m, n])?, &x, &w])?,
                        added(&[&inside.reshape([m, n])?, &x, &w, &b])?,
                        added(&[&turned, &x, &w])?,
                    ])
                })
                .cancelling(of_terms(k)),
            );
        }
    }
    demos
}

/// Products by kernels that only large matrices get, and floats by tensor cores, of matrices with and without a tail.
fn products_by_name() -> Vec<Demo> {
    let mut demos = Vec::new();
    let mut add = |kernel: String, dtype: DType, a_turned: bool, b_turned: bool, sizes: &[[usize; 3]]| {
        let sizes = sizes.to_vec();
        // Factors that tf32 holds as well as f32.
        let rounded = if kernel.starts_with("tensor_core") { DType::BF16 } else { dtype };
        let matrix = move |device: &Device, rows, columns, turned, seed| {
            let shape = if turned { [columns, rows] } else { [rows, columns] };
            let x = numbers(device, &shape, rounded, seed)?.cast(dtype)?;
            Ok(if turned { x.transpose(0, 1) } else { x })
        };
        let name = kernel.clone();
        let demo = Demo::new(format!("by {kernel}"), move |device| {
            let mut results = Vec::new();
            for &[m, k, n] in &sizes {
                let (a, b) = (matrix(device, m, k, a_turned, 1)?, matrix(device, k, n, b_turned, 2)?);
                let (w, act) = (b.transpose(0, 1), Activation::Relu);
                let (bias, r) = (matrix(device, 1, n, false, 3)?, matrix(device, m, n, false, 4)?);
                let bias = bias.reshape([n])?;
                results.extend(if *device == Device::cpu() {
                    [a.matmul(&b)?, fused_of(Fused::LinearAdd(act), &[&r, &a, &w, &bias])?]
                } else {
                    let added = by_name::linear_add_by(&name, act, [&r, &a, &w], Some(&bias))?;
                    [by_name::product_by(&name, &a, &b)?, added]
                });
            }
            Ok(results)
        });
        // A card's tensor cores have an order of their own, and cut off where they add.
        let demo = demo.cancelling(if kernel.starts_with("tensor_core") { 128.0 } else { of_terms(40) });
        demos.push(Demo { product: Some(kernel), ..demo });
    };
    for dtype in FLOATS {
        add(format!("matmul_64x64_{dtype}"), dtype, false, true, &[[64, 32, 64], [70, 40, 66]]);
        add(format!("matmul_128x128_{dtype}"), dtype, true, false, &[[128, 32, 128], [100, 40, 130]]);
    }
    // More stages than there is room for: the first are overwritten.
    let layouts = [("kk", false, true), ("kn", false, false), ("mk", true, true), ("mn", true, false)];
    for (axes, a_turned, b_turned) in layouts {
        for (stem, sizes) in [
            ("tensor_core_64x64", [40, 264, 56]),
            ("tensor_core_128x128", [104, 264, 120]),
            ("tensor_core_128x256", [104, 328, 232]),
            ("wgmma_128x256", [104, 328, 232]),
        ] {
            add(format!("{stem}_{axes}_bf16"), DType::BF16, a_turned, b_turned, &[sizes]);
        }
    }
    add("tensor_core_64x64_kk_f32".into(), DType::F32, false, true, &[[40, 136, 56]]);
    add("tensor_core_128x128_kk_f32".into(), DType::F32, false, true, &[[104, 136, 120]]);
    demos
}

fn fused_of(f: Fused, x: &[&Tensor]) -> Result<Tensor> {
    Tensor::fused(f, x).expect("every device here has this kernel")
}

fn fused() -> Vec<Demo> {
    let mut demos = Vec::new();
    for dtype in FLOATS {
        for width in [1, 33, 200, 600, 1500, 5000, 20000] {
            let rows = if width < 5000 { 5 } else { 2 };
            for f in [Fused::Softmax, Fused::LogSoftmax] {
                demos.push(Demo::one(format!("{f:?} {dtype} [{rows}, {width}]"), move |device| {
                    fused_of(f, &[&numbers(device, &[rows, width], dtype, 1)?])
                }));
            }
            demos.push(Demo::one(format!("CrossEntropy {dtype} [{rows}, {width}]"), move |device| {
                let labels = indices(device, &[rows], width)?;
                fused_of(Fused::CrossEntropy, &[&numbers(device, &[rows, width], dtype, 1)?, &labels])
            }));
            // A mean is taken off.
            demos.push(
                Demo::new(format!("LayerNorm, RmsNorm {dtype} [{rows}, {width}]"), move |device| {
                    let of = |shape: &[usize], seed| numbers(device, shape, dtype, seed);
                    let (x, gain, bias) = (of(&[rows, width], 1)?, of(&[width], 2)?, of(&[width], 3)?);
                    let eps = 1e-5;
                    Ok(vec![
                        fused_of(Fused::LayerNorm { eps }, &[&x, &gain, &bias])?,
                        fused_of(Fused::RmsNorm { eps }, &[&x, &gain])?,
                    ])
                })
                .cancelling(8.0),
            );
            for f in [Fused::SoftmaxBackward, Fused::LogSoftmaxBackward] {
                // What all have in common is taken off.
                demos.push(
                    Demo::one(format!("{f:?} {dtype} [{rows}, {width}]"), move |device| {
                        let of = |seed| numbers(device, &[rows, width], dtype, seed);
                        fused_of(f, &[&of(1)?, &of(2)?])
                    })
                    .cancelling(8.0),
                );
            }
            // 1 is taken off the probability of the label.
            demos.push(
                Demo::one(format!("CrossEntropyBackward {dtype} [{rows}, {width}]"), move |device| {
                    let labels = indices(device, &[rows], width)?;
                    let (x, g) =
                        (numbers(device, &[rows, width], dtype, 1)?, numbers(device, &[rows], dtype, 2)?);
                    fused_of(Fused::CrossEntropyBackward, &[&x, &labels, &g])
                })
                .cancelling(8.0),
            );
        }
        // The last has more rows than a slab.
        for [rows, width] in [[5, 2], [5, 33], [5, 200], [5, 600], [5, 1500], [2, 5000], [1, 20000], [150, 9]]
        {
            // As in theirs.
            demos.push(
                Demo::new(
                    format!("LayerNormBackward, RmsNormBackward {dtype} [{rows}, {width}]"),
                    move |device| {
                        let of = |shape: &[usize], seed| numbers(device, shape, dtype, seed);
                        let (x, gain, g) = (of(&[rows, width], 1)?, of(&[width], 2)?, of(&[rows, width], 3)?);
                        let mut results = Vec::new();
                        for f in
                            [Fused::LayerNormBackward { eps: 1e-5 }, Fused::RmsNormBackward { eps: 1e-5 }]
                        {
                            let of_f = Tensor::fused_all(f, &[&x, &gain, &g]);
                            results.extend(of_f.expect("every device here has this kernel")?);
                        }
                        Ok(results)
                    },
                )
                .cancelling(8.0),
            );
        }
    }
    demos
}

fn sinkhorns() -> Vec<Demo> {
    let mut demos = Vec::new();
    let stops = [Stop::Steps(20), Stop::Tolerance { error: 1e-3, at_most: 50 }, Stop::Converged];
    for dtype in FLOATS {
        for n in [1, 2, 3, 4, 8, 12, 17, 40] {
            for stop in stops {
                let matrices = if n < 40 { 5 } else { 2 };
                let name = format!("sinkhorn {dtype} {matrices} of {n}×{n}, {stop:?}");
                let demo = Demo::new(name, move |device| {
                    let x = numbers(device, &[matrices, n, n], dtype, 1)?;
                    let g = numbers(device, &[matrices, n, n], dtype, 2)?;
                    let steps = fused_of(Fused::SinkhornSteps(stop), &[&x])?;
                    let y = fused_of(Fused::Sinkhorn(stop), &[&x])?;
                    let mut results = vec![y, fused_of(Fused::SinkhornBackward(stop), &[&x, &g])?];
                    // Which step is the last to change a bit is a matter of rounding.
                    results.extend((stop != Stop::Converged).then_some(steps));
                    Ok(results)
                });
                // Where it ends is a matter of rounding too. Else steps add up what one of them is off.
                demos.push(demo.cancelling(if stop == Stop::Converged { 256.0 } else { 16.0 }));
            }
        }
    }
    demos
}

/// Connections between streams: what is read and written, what coefficients are computed from, and what flows back.
fn connections() -> Vec<Demo> {
    let mut demos = Vec::new();
    let all = |f: Fused, x: &[&Tensor]| Tensor::fused_all(f, x).expect("every device here has this kernel");
    for dtype in FLOATS {
        let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
        for [tokens, n, c] in [[5, 1, 7], [33, 2, 24], [2, 3, 16], [7, 4, 20], [3, 4, 300], [2, 8, 40]] {
            let what = format!("{dtype} [{tokens}, {n}, {c}]");
            let state = move |device: &Device, seed| numbers(device, &[tokens, n, c], dtype, seed);
            let one = move |device: &Device, seed| numbers(device, &[tokens, c], dtype, seed);
            let vector = move |device: &Device, seed| numbers(device, &[tokens, n], wide, seed);
            let matrix = move |device: &Device, seed| numbers(device, &[tokens, n, n], wide, seed);
            demos.push(
                Demo::new(format!("streams read and written {what}"), move |device| {
                    let (x, f) = (state(device, 1)?, one(device, 2)?);
                    let (a, b, mix) = (vector(device, 3)?, vector(device, 4)?, matrix(device, 5)?);
                    let written = fused_of(Fused::StreamWrite, &[&x, &f, &mix, &b])?;
                    Ok(vec![fused_of(Fused::StreamRead, &[&x, &a])?, written])
                })
                .cancelling(4.0),
            );
            demos.push(
                Demo::new(format!("cotangents of streams {what}"), move |device| {
                    let (x, f, g, h) =
                        (state(device, 1)?, one(device, 2)?, state(device, 6)?, one(device, 7)?);
                    let (a, b, mix) = (vector(device, 3)?, vector(device, 4)?, matrix(device, 5)?);
                    let mut results = all(Fused::StreamWriteBackward, &[&x, &f, &b, &g])?.to_vec();
                    results.push(fused_of(Fused::StreamReadBackward, &[&x, &h])?);
                    let shares = [&g, &mix, &h, &a];
                    for (written, read, own) in [(true, true, 0..4), (true, false, 0..2), (false, true, 2..4)]
                    {
                        results
                            .push(fused_of(Fused::StreamCotangent(Handed { written, read }), &shares[own])?);
                    }
                    Ok(results)
                })
                .cancelling(4.0),
            );
            if n > 1 {
                demos.push(
                    Demo::new(format!("streams of three blocks again {what}"), move |device| {
                        let left = |l: usize| {
                            Ok([one(device, 20 + l)?, matrix(device, 30 + l)?, vector(device, 40 + l)?])
                        };
                        let (x, left) = (state(device, 1)?, (0..3).map(left).collect::<Result<Vec<_>>>()?);
                        if *device != Device::cpu() {
                            let x: Vec<&Tensor> = [&x].into_iter().chain(left.iter().flatten()).collect();
                            return Ok(all(Fused::StreamWrites, &x)?.to_vec());
                        }
                        let mut streams = vec![x];
                        for [f, mix, b] in &left {
                            streams.push(fused_of(
                                Fused::StreamWrite,
                                &[&streams[streams.len() - 1], f, mix, b],
                            )?);
                        }
                        Ok(streams.split_off(1))
                    })
                    .cancelling(4.0),
                );
            }
            // As mHC and mHC-lite have them.
            let (matrix_logits, permutations) = (n * n, (1..=n.min(4)).product());
            for last in [matrix_logits, permutations].into_iter().skip(usize::from(n == 1)) {
                let name = format!("streams projected on {n} + {n} + {last} {what}");
                let demo = Demo::new(name, move |device| {
                    let phi = |width: usize, seed| numbers(device, &[n * c, width], wide, seed);
                    let phi = [phi(n, 11)?, phi(n, 12)?, phi(last, 13)?];
                    let x = state(device, 1)?;
                    let own = [&x, &phi[0], &phi[1], &phi[2]];
                    let y = fused_of(Fused::StreamProject { eps: 1e-3 }, &own)?;
                    let dy = numbers(device, y.shape(), wide, 14)?;
                    let (g, mix, h, a) =
                        (state(device, 6)?, matrix(device, 5)?, one(device, 7)?, vector(device, 3)?);
                    let mut results = vec![y.clone()];
                    for (written, read) in [(true, true), (false, false)] {
                        let shares = [&g, &mix, &h, &a];
                        let shares = if written { &shares[..] } else { &[] };
                        let x: Vec<&Tensor> =
                            own.into_iter().chain([&y, &dy]).chain(shares.iter().copied()).collect();
                        results.extend(all(Fused::StreamProjectBackward(Handed { written, read }), &x)?);
                    }
                    Ok(results)
                });
                demos.push(demo.cancelling(4.0));
            }
        }
    }
    demos
}

/// The learning rate of these steps.
const RATE: f64 = 0.01;

fn updates() -> Vec<Demo> {
    let rules = [
        Descent::Momentum { momentum: 0.0, nesterov: false },
        Descent::Momentum { momentum: 0.9, nesterov: false },
        Descent::Momentum { momentum: 0.9, nesterov: true },
        Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: false },
        Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: true },
    ];
    let mut demos = Vec::new();
    let dtypes = [(DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::F64, DType::F64)];
    for (dtype, of_gradient) in dtypes {
        for rule in rules {
            // A step may nearly undo a weight.
            demos.push(
                Demo::new(format!("{rule:?} {dtype}, gradients {of_gradient}"), move |device| {
                    let mut weights = Vec::new();
                    for (i, elements) in [3, 700, 5000].into_iter().enumerate() {
                        let of = |seed| numbers(device, &[elements], dtype, 10 * i + seed);
                        let memory = [of(3), of(4).and_then(|v| Tensor::map(Map::Abs, &[&v]))];
                        weights.push(WeightStep {
                            weight: of(1)?,
                            gradient: numbers(device, &[elements], of_gradient, 10 * i + 2)?,
                            memory: memory.into_iter().take(rule.remembers()).collect::<Result<_>>()?,
                            steps: Tensor::scalar(2i64),
                            copy: None,
                            rate_scale: (i + 1) as f64,
                            weight_decay: 0.1,
                        });
                    }
                    let pace = Pace { rate: Rate::Number(RATE), clip: None };
                    match device.backend().descend(rule, pace, &mut weights.iter_mut().collect::<Vec<_>>()) {
                        Some(done) => done?,
                        None => weights.iter_mut().try_for_each(|weight| on_host(rule, weight))?,
                    }
                    Ok(weights.into_iter().flat_map(|w| [w.weight].into_iter().chain(w.memory)).collect())
                })
                .cancelling(4.0),
            );
        }
    }
    for dtype in FLOATS {
        let gradients = move |device: &Device| {
            let x = [3, 700, 9000].map(|elements| numbers(device, &[elements], dtype, elements));
            x.into_iter().collect::<Result<Vec<Tensor>>>()
        };
        for most in [0.5, 1e6] {
            demos.push(Demo::one(format!("norm and scale to {most} {dtype}"), move |device| {
                let x = gradients(device)?;
                let named: Vec<(&str, &Tensor)> = x.iter().map(|x| ("w", x)).collect();
                match device.backend().norm_and_scale(&named, most) {
                    Some(clip) => clip,
                    None => {
                        let norm = sums(&x)?.iter().sum::<f64>().sqrt();
                        Ok(Tensor::from_vec(vec![norm, (most / norm).min(1.0)], [2]))
                    }
                }
            }));
        }
        demos.push(Demo::one(format!("sums of squares {dtype}"), move |device| {
            let x = gradients(device)?;
            // The processor's own kernel adds up in another order than primitives, by which a device's is judged.
            if *device == Device::cpu() {
                return Ok(Tensor::from_vec(sums(&x)?, [3]));
            }
            let found = device.backend().sums_of_squares(&x.iter().collect::<Vec<_>>());
            Ok(Tensor::from_vec(found.expect("the device has a kernel for it")?, [3]))
        }));
    }
    demos
}

/// Σ x² of each tensor, in f64.
fn sums(x: &[Tensor]) -> Result<Vec<f64>> {
    let sum = |x: &Tensor| {
        let x = x.cast(DType::F64)?;
        Tensor::map(Map::Mul, &[&x, &x])?.reduce(Reduce::Sum, &[])?.item()
    };
    x.iter().map(sum).collect()
}

/// The formulas of [`Descent`], element by element in f64.
fn on_host(rule: Descent, step: &mut WeightStep) -> Result<()> {
    let (dtype, n) = (step.weight.dtype(), step.weight.elements());
    let mut w = step.weight.to_f64_vec()?;
    let g = step.gradient.to_f64_vec()?;
    let mut memory = step.memory.iter().map(Tensor::to_f64_vec).collect::<Result<Vec<_>>>()?;
    let (rate, decay) = (RATE * step.rate_scale, step.weight_decay);
    for i in 0..n {
        match (rule, &mut memory[..]) {
            (Descent::Momentum { momentum, nesterov }, [v]) => {
                let g = g[i] + decay * w[i];
                v[i] = momentum * v[i] + g;
                w[i] -= rate * if nesterov { g + momentum * v[i] } else { v[i] };
            }
            (Descent::Adam { betas: [b1, b2], eps, decoupled }, [m, v]) => {
                let t = step.steps.item()? + 1.0;
                let g = if decoupled { g[i] } else { g[i] + decay * w[i] };
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let kept = if decoupled { 1.0 - rate * decay } else { 1.0 };
                let root = v[i].sqrt() / (1.0 - b2.powf(t)).sqrt() + eps;
                w[i] = kept * w[i] - rate / (1.0 - b1.powf(t)) * m[i] / root;
            }
            _ => w[i] -= rate * (g[i] + decay * w[i]),
        }
    }
    step.weight = Tensor::from_f64(&w, [n], dtype);
    step.memory = memory.iter().map(|v| Tensor::from_f64(v, [n], dtype)).collect();
    Ok(())
}

/// The bytes of a result.
pub fn bits(x: &Tensor) -> &[u8] {
    x.storage().host().expect("results are on the host")
}

/// How far results are off, in roundings of their dtype.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Distance {
    /// Of the result that comes nearest to what is allowed, or is farthest beyond.
    pub roundings: f64,
    pub allowed: f64,
}

impl Distance {
    pub fn is_allowed(self) -> bool {
        self.roundings <= self.allowed
    }

    fn between(demo: &Demo, found: &Tensor, expected: &Tensor) -> Distance {
        let allowed = if found.dtype() == DType::BF16 { 1.0 } else { demo.roundings };
        let (Ok(a), Ok(b)) = (found.to_f64_vec(), expected.to_f64_vec()) else {
            return Distance { roundings: f64::INFINITY, allowed };
        };
        // Below the smallest, digits are lost. Sums of bf16 are float: what is lost in them is a part of the largest.
        let (unit, smallest, of_largest) = match found.dtype() {
            DType::F64 => (f64::EPSILON, f64::MIN_POSITIVE, 0.0),
            DType::F32 => (f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE), 0.0),
            DType::BF16 => (2f64.powi(-7), f64::from(f32::MIN_POSITIVE), 2f64.powi(-13)),
            _ => (f64::MIN_POSITIVE, 1.0, 0.0),
        };
        let is_by_largest = demo.cancels && found.dtype() != DType::BF16;
        let largest = b.iter().filter(|v| v.is_finite()).fold(smallest, |m, v| m.max(v.abs()));
        let off = a.iter().zip(&b).map(|(a, b)| {
            let size = if is_by_largest { largest } else { b.abs().max(smallest) + largest * of_largest };
            let off = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() / (size * unit) };
            if off.is_nan() { f64::INFINITY } else { off }
        });
        let (most, sum) = off.fold((0.0f64, 0.0), |(most, sum), off| (most.max(off), sum + off));
        // What floats differ by takes few elements of bf16 over a border between two. Else the rounding itself is another.
        let others = if found.dtype() == DType::BF16 { 16.0 * (sum - most) / a.len() as f64 } else { 0.0 };
        Distance { roundings: most.max(others), allowed }
    }
}
