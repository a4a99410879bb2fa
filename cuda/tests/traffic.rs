//! What each kernel asks of memory, counted: it moves the bytes of its operands and results and no more, and no request
//! of a warp takes more sectors, or passes over the banks of shared memory, than its bytes need. What does is listed here,
//! with how much and why. What no case of the program that measures launches is launched here in shapes of whole sectors, and
//! what remains by operations of odd sizes, with limits of their own.

#![allow(dead_code, reason = "what only the program that measures needs is not used here")]

#[path = "../examples/measure/case.rs"]
mod case;
#[path = "../examples/measure/cases.rs"]
mod cases;
#[path = "../examples/measure/clock.rs"]
mod clock;
mod names;
#[path = "../examples/measure/operations.rs"]
mod operations;
#[path = "../examples/measure/report.rs"]
mod report;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use limpid_cuda::emulated::{self, Config};
use limpid_cuda::{Cuda, by_name};
use limpid_emulator::{MemoryTraffic, Traffic};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Activation, DType, Fused, Map, Reduce, Shape, Stop, Tensor};

use case::{Case, Sizes, Work};
use operations::demos;

/// What may be exceeded, up to what, and why; `*` stands for anything.
type Limits = &'static [(&'static str, f64, &'static str)];

/// Bytes that are moved for each that operands and results have, where each sector counts once in a launch.
const MOVED: f64 = 1.08;
const MOVED_MORE: Limits = &[
    (
        "add *, one transposed",
        1.67,
        "it is copied first: written and read once more, of five instead of three",
    ),
    ("matmul tf32 *", 1.67, "the second factor is transposed first"),
    (
        "*norm backward *, 8192]",
        2.61,
        "as below; of a few rows, the sums of slabs, in double, are as large as x",
    ),
    ("*norm backward *, 8]", 2.42, "as below; for 8 elements there are 16 bytes of statistics"),
    ("*norm backward *", 1.79, "x and its cotangent are read for x̄, and again for the sums over rows"),
    ("project backward *", 1.91, "X is read for X̄, and again for φ̄; q, and parts of φ̄, for 8 and 16 tokens"),
    ("connection, backward *", 1.8, "as above, with the other shares"),
    ("cumsum * in segments", 1.51, "segments are read twice"),
    ("argmax *, in parts", 1.13, "parts of 64 columns, as wide as their elements and an index beside"),
    ("Sinkhorn*(Steps(2)) f* 1", 1.25, "a byte for each matrix says whether it is marked"),
    ("SinkhornBackward(Steps(2)) f64 32", 1.84, "vectors of every step, in scratch memory"),
    ("* 128 weights", 1.14, "a line of a table for each weight, half of which have 4 elements"),
    ("add f32 [1], *", 8.0, "a sector for an element"),
];

/// The part of all sectors of a kernel's requests that a better order would not touch.
const WASTED: f64 = 0.025;
const WASTED_SECTORS: Limits = &[
    ("adam_steps", 0.53, "a thread takes all numbers of a weight"),
    (
        "connection_phi_backward_*",
        0.44,
        "a thread has two columns of each row of a part of φ̄, stored one by one",
    ),
    (
        "connection_project_24_*",
        0.34,
        "columns of φ come in rows of 4 and 16; a block's threads read a row each",
    ),
    ("connection_project_*", 0.5, "as above, in rows of 2 to 64"),
    ("connection_scale_*", 0.88, "a thread takes all numbers of a token, 1/(3C) of what the others read"),
    ("connection_stream_2_*", 0.45, "as `connection_project`, once for 128 tokens; rows of 2 and 4"),
    ("connection_stream_4_32_bf16", 0.27, "as above"),
    ("connection_stream_8_80_bf16", 0.32, "as above"),
    ("connection_stream_*", 0.24, "as above"),
    ("connection_sum_*", 0.34, "as `connection_project`, when φ̄ is written"),
    ("cross_entropy_*_four", 0.37, "the logit of the label is read again: a sector for each row of 8"),
    ("gather_*", 0.39, "what an index chooses"),
    ("*_norm_backward_*_four", 0.2, "16 bytes of statistics, stored as 8 and 8, for each row of 8"),
    (
        "sinkhorn_*alone_*",
        0.5,
        "a thread reads a matrix 16 bytes at a time; the cache has the other half of the sector",
    ),
    ("sinkhorn_*lanes_*", 0.81, "a lane reads its row, and its column, one by one; the cache has the rest"),
];

/// The same of passes over banks.
const WASTED_PASSES: Limits = &[
    ("matmul_*x*", 0.101, "a factor that is read along the terms is turned when it is stored: two passes"),
    ("*_columns_bf16_bf16", 0.36, "the tree over a block's rows of threads, for few elements of a pack of 8"),
    ("argmax_columns_bf16_i64", 0.36, "as above"),
    ("argmax_columns_*", 0.19, "as above, for packs of 2 and 4"),
    ("*_columns_*", 0.04, "as above"),
    ("connection_project_*_f64", 0.101, "q of tokens lies as far apart as rows of φ"),
    ("linear_slabs_*", 0.13, "of 8 columns: the lanes beyond them store their zeros by themselves"),
    ("tiles_f32", 0.51, "steps of the sorting network over 1 to 16 items meet in banks"),
    ("tiles_i64", 0.43, "as above"),
];

/// Operations of odd sizes that launch what no case does.
const ODD: [&str; 14] = [
    "*, 20000]",
    "Adam*",
    "Momentum*",
    "argmax * in parts *",
    "argsort*",
    "contiguous*",
    "cotangents*",
    "gather*",
    "matmul*",
    "norm and scale*",
    "permutation*",
    "scatter_add*",
    "sinkhorn*",
    "streams*",
];

/// The same of kernels that only operations of odd sizes launch, with rows that begin anywhere and end within a sector.
const ODD_SECTORS: Limits = &[
    (
        "connection_*_any_*",
        0.74,
        "three streams and one: few columns of φ, and channels that end within a pack",
    ),
    ("connection_cotangent_4_bf16", 0.87, "20 channels, whose packs are not aligned: element by element"),
    ("connection_recompute_4_bf16", 0.86, "as above"),
    ("connection_cotangent_*", 0.28, "rows of 24 to 300 channels begin within a sector"),
    ("connection_recompute_*", 0.31, "as above"),
    ("connection_project_24_f64", 0.49, "as f32: a block's threads read a row of φ each"),
    ("connection_stream_4_24_f64", 0.38, "as above"),
    (
        "copy_*",
        0.62,
        "small units, where rows are not aligned: what has larger ones is of `copy_16` or `tiles`",
    ),
    ("gather_*", 0.42, "what an index chooses"),
    ("matmul_sum_parts_*", 0.21, "results of 12 to 20 elements"),
    ("scatter_*", 0.82, "a thread follows a column, or a run, wherever its index leads"),
    (
        "sinkhorn_*alone_3_*",
        0.79,
        "a thread reads a matrix of nine numbers; the cache has the rest of the sector",
    ),
    ("tiles_1", 0.37, "rows of 35 and 70 bytes"),
    ("tiles_16", 0.03, "matrices of 34×33: the last tile has two rows"),
    ("tiles_*", 0.19, "what sorts rows of 40 to 4500 elements writes them where they begin"),
];
const ODD_PASSES: Limits = &[
    ("connection_project_24_f64", 0.101, "q of tokens lies as far apart as rows of φ"),
    ("merge_*", 0.7, "where a run is read next is what its elements say"),
    ("tiles_16", 0.17, "matrices of 34×33: the last tile has two rows"),
    ("tiles_*", 0.48, "as tiles_f32"),
];

/// What the requests of a kernel took, and what went beyond the best order of the same bytes, line by line.
#[derive(Default, Clone, Copy)]
struct Cost {
    took: u64,
    wasted: f64,
}

impl Cost {
    fn add(&mut self, line: &Traffic) {
        self.took += line.cost;
        self.wasted += (line.cost as f64 - line.ideal() * line.requests as f64).max(0.0);
    }

    fn wasted_part(self) -> f64 {
        self.wasted / self.took.max(1) as f64
    }
}

/// A launch of a case.
struct Launch {
    kernel: String,
    lines: Vec<Traffic>,
    memory: MemoryTraffic,
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((front, rest)) => name
            .strip_prefix(front)
            .is_some_and(|tail| tail.char_indices().any(|(i, _)| fits(&tail[i..], rest)) || rest.is_empty()),
    }
}

/// Figures by name against the limit of most, and those of some.
struct Judged {
    what: &'static str,
    limit: f64,
    limits: Limits,
    /// The largest figure to which each of `limits` was applied.
    used: Vec<f64>,
    wrong: Vec<String>,
}

impl Judged {
    fn new(what: &'static str, limit: f64, limits: Limits) -> Judged {
        Judged { what, limit, limits, used: vec![0.0; limits.len()], wrong: Vec::new() }
    }

    fn judge(&mut self, name: &str, figure: f64) {
        if figure <= self.limit {
            return;
        }
        println!("{figure:8.3} {:<8} {name}", self.what);
        let limit = match self.limits.iter().position(|(pattern, ..)| fits(name, pattern)) {
            None => self.limit,
            Some(i) => {
                self.used[i] = self.used[i].max(figure);
                self.limits[i].1
            }
        };
        if figure > limit {
            self.wrong.push(format!("{name}: {figure:.3} {}, at most {limit} expected", self.what));
        }
    }

    /// What exceeds its limit, and limits that nothing comes near.
    fn wrong(mut self) -> Vec<String> {
        for ((pattern, limit, _), used) in self.limits.iter().zip(self.used) {
            if used < self.limit + 0.8 * (limit - self.limit) {
                self.wrong
                    .push(format!("{pattern}: {limit} {} is allowed, {used:.3} is the most", self.what));
            }
        }
        self.wrong
    }
}

/// Products of a tile by kernels that only large matrices get, and of few rows and columns; each also with a
/// residual.
fn products_by_name() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |kernel: String, dtype: DType, rows: usize, columns: usize, [a_turned, b_turned]: [bool; 2]| {
            const TERMS: usize = 320;
            let operands = move |source: &case::Source| {
                let of = |rows: usize, columns: usize, turned: bool, label| match turned {
                    true => Ok(source.normal(&[columns, rows], dtype, label)?.transpose(0, 1)),
                    false => source.normal(&[rows, columns], dtype, label),
                };
                Ok(vec![of(rows, TERMS, a_turned, 0)?, of(TERMS, columns, b_turned, 1)?])
            };
            let (name, by) = (format!("product by {kernel}"), kernel.clone());
            let queue =
                move |x: &mut Vec<limpid_tensor::Tensor>| Ok(vec![by_name::product_by(&by, &x[0], &x[1])?]);
            cases.push(Case::new(name, Work::Bytes { in_place: 0 }, operands, queue));
            let more = move |source: &case::Source| {
                let mut x = operands(source)?;
                x.push(source.normal(&[rows, columns], dtype, 2)?);
                Ok(x)
            };
            let name = format!("linear_add by {kernel}");
            let queue = move |x: &mut Vec<limpid_tensor::Tensor>| {
                let (w, act) = (x[1].transpose(0, 1), Activation::Relu);
                Ok(vec![by_name::linear_add_by(&kernel, act, [&x[2], &x[0], &w], None)?])
            };
            cases.push(Case::new(name, Work::Bytes { in_place: 0 }, more, queue));
        };
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        add(format!("matmul_direct_{dtype}"), dtype, 64, 64, [false, false]);
        add(format!("matmul_dot_{dtype}"), dtype, 4, 64, [false, true]);
        for side in [32, 64, 128] {
            add(format!("matmul_{side}x{side}_{dtype}"), dtype, side, side, [false, true]);
        }
    }
    for (axes, turned) in
        [("kk", [false, true]), ("kn", [false, false]), ("mk", [true, true]), ("mn", [true, false])]
    {
        for (stem, rows, columns) in [
            ("tensor_core_64x64", 64, 64),
            ("tensor_core_128x128", 128, 128),
            ("tensor_core_128x256", 128, 256),
            ("wgmma_128x256", 128, 256),
        ] {
            add(format!("{stem}_{axes}_bf16"), DType::BF16, rows, columns, turned);
        }
    }
    for side in [64, 128] {
        add(format!("tensor_core_{side}x{side}_kk_f32"), DType::F32, side, side, [false, true]);
    }
    cases
}

/// What nobody times, in shapes whose rows are whole sectors: other functions, reductions, casts, draws and derivatives, and
/// connections of other dtypes and numbers of streams.
fn others() -> Vec<Case> {
    const SHAPE: [usize; 2] = [32, 256];
    let of = |source: &case::Source, dtype, label| source.positive(&SHAPE, DType::F64, label)?.cast(dtype);
    let mut cases = Vec::new();
    let maps = [
        (&demos::OF_FLOATS[..], &demos::FLOATS[..]),
        (&demos::OF_NUMBERS, &demos::NUMBERS),
        (&demos::OF_BOOL, &[DType::Bool]),
        (&demos::OF_ALL, &demos::ALL),
    ];
    for (functions, dtypes) in maps {
        for (&f, &dtype) in functions.iter().flat_map(|f| dtypes.iter().map(move |dtype| (f, dtype))) {
            let operands = move |source: &case::Source| {
                let first = if f == Map::Where { DType::Bool } else { dtype };
                (0..f.arity()).map(|i| of(source, if i == 0 { first } else { dtype }, i as u64)).collect()
            };
            cases.push(cases::one(format!("{} {dtype}", f.name()), operands, move |x| cases::map(f, x)));
        }
    }
    for dtype in demos::NUMBERS {
        for f in [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min, Reduce::ArgMax] {
            for axis in [0, 1] {
                let operands = move |source: &case::Source| Ok(vec![of(source, dtype, 0)?]);
                let name = format!("{} {dtype} along {axis}", f.name());
                cases.push(cases::one(name, operands, move |x| x[0].reduce(f, &[axis])));
                // Rows and columns so long that they are reduced in parts.
                let shape = if axis == 0 { [4096, 64] } else { [2, 1 << 14] };
                let operands = move |source: &case::Source| {
                    Ok(vec![source.positive(&shape, DType::F64, 0)?.cast(dtype)?])
                };
                let name = format!("{} {dtype} along {axis}, in parts", f.name());
                let queue = move |x: &[Tensor]| by_name::reduce_in_turns(f, &x[0], &[axis as usize], 4);
                cases.push(cases::one(name, operands, queue));
            }
        }
        let long =
            move |source: &case::Source| Ok(vec![source.positive(&[1 << 16], DType::F64, 0)?.cast(dtype)?]);
        cases.push(cases::one(format!("cumsum {dtype} of a row in segments"), long, |x| x[0].cumsum(0)));
        let long =
            move |source: &case::Source| Ok(vec![source.positive(&[1024, 64], DType::F64, 0)?.cast(dtype)?]);
        cases.push(cases::one(format!("cumsum {dtype} of columns in segments"), long, |x| x[0].cumsum(0)));
    }
    for (from, to) in demos::ALL.into_iter().flat_map(|from| demos::ALL.map(|to| (from, to))) {
        let operands = move |source: &case::Source| Ok(vec![of(source, from, 0)?]);
        if from != to {
            cases.push(cases::one(format!("every cast, {from} to {to}"), operands, move |x| x[0].cast(to)));
        }
    }
    for dtype in demos::ALL {
        for what in [
            Distribution::Uniform { low: 0.0, high: 1.0 },
            Distribution::Normal { mean: 0.0, std: 1.0 },
            Distribution::TruncatedNormal { mean: 0.0, std: 1.0, low: -1.5, high: 1.0 },
            Distribution::Bernoulli { p: 0.3 },
        ] {
            if what.infer(&Shape::from(SHAPE), dtype).is_ok() {
                let operands = move |source: &case::Source| Ok(vec![source.normal(&[0], DType::F32, 0)?]);
                cases.push(cases::one(format!("draws of {} {dtype}", what.name()), operands, move |x| {
                    x[0].device().backend().random(what, &Shape::from(SHAPE), dtype, Key::new(1))
                }));
            }
        }
    }
    for dtype in demos::FLOATS {
        for act in [Activation::Identity, Activation::Sigmoid, Activation::Tanh] {
            for shape in [[1024, 8], [64, 256]] {
                cases.push(cases::linear_backward(act, dtype, shape));
            }
        }
        for [tokens, n, c] in [[16, 2, 512], [16, 4, 512], [16, 8, 256]] {
            // As mHC has them, and four streams as mHC-lite has them.
            let last = if n == 4 { 24 } else { n * n };
            cases.extend(cases::connections_of(dtype, [tokens, n, c], last));
        }
    }
    cases.extend(cases::rows_of(DType::F64, [64, 64]));
    for dtype in [DType::F32, DType::F64] {
        for n in [1, 2, 4, 8, 16, 32] {
            let stop = Stop::Steps(2);
            for (f, operands) in [(Fused::Sinkhorn(stop), 1), (Fused::SinkhornBackward(stop), 2)] {
                let shape = [1024 / n, n, n];
                let of = move |source: &case::Source| {
                    (0..operands).map(|label| source.normal(&shape, dtype, label)).collect()
                };
                cases.push(cases::one(format!("{f:?} {dtype} {n}"), of, move |x| cases::fused(f, x)));
            }
        }
    }
    cases
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn kernels_move_what_their_operands_have_and_waste_no_request() {
    let stand_in = emulated::install(Config { check: true, ..Default::default() }).unwrap();
    let cuda = Cuda::new(0).unwrap();
    let seen: Arc<Mutex<Vec<Launch>>> = Arc::default();
    let observe = || {
        let log = seen.clone();
        stand_in.count_traffic(true);
        stand_in.observe(move |launched| {
            let (kernel, report) = (launched.kernel.to_string(), launched.report);
            let launch = Launch { kernel, lines: report.traffic.clone(), memory: report.memory };
            log.lock().expect("nobody panics with it").push(launch);
        });
    };
    let take = || {
        stand_in.stop_observing();
        stand_in.count_traffic(false);
        std::mem::take(&mut *seen.lock().expect("nobody panics with it"))
    };
    let watched = |run: &dyn Fn() -> limpid_tensor::Result<()>| {
        observe();
        run().expect("it runs");
        take()
    };
    let mut moved = Judged::new("moved", MOVED, MOVED_MORE);
    let mut kernels: BTreeMap<String, [Cost; 2]> = BTreeMap::new();
    let sizes = Sizes::of_traffic();
    for case in cases::all(&sizes).into_iter().chain(products_by_name()).chain(others()) {
        let bytes = case.run_once(cuda, observe).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let launches = take();
        let touched: u64 = launches.iter().map(|launch| launch.memory.read + launch.memory.written).sum();
        moved.judge(&case.name, touched as f64 / bytes as f64);
        for Launch { kernel, lines, .. } in launches {
            let costs = kernels.entry(kernel).or_default();
            lines.iter().for_each(|line| costs[usize::from(line.shared)].add(line));
        }
    }
    // What no case launches, operations of odd sizes do.
    let mut odd: BTreeMap<String, [Cost; 2]> = BTreeMap::new();
    for demo in demos::all().into_iter().filter(|demo| ODD.iter().any(|name| fits(&demo.name, name))) {
        let launches = watched(&|| demo.run(&cuda.device()).map(drop));
        for Launch { kernel, lines, .. } in launches {
            if !kernels.contains_key(&kernel) {
                let costs = odd.entry(kernel).or_default();
                lines.iter().for_each(|line| costs[usize::from(line.shared)].add(line));
            }
        }
    }
    let mut sectors = Judged::new("wasted of sectors", WASTED, WASTED_SECTORS);
    let mut passes = Judged::new("wasted of passes", WASTED, WASTED_PASSES);
    for (kernel, [global, shared]) in &kernels {
        sectors.judge(kernel, global.wasted_part());
        passes.judge(kernel, shared.wasted_part());
    }
    let mut odd_sectors = Judged::new("wasted of sectors", WASTED, ODD_SECTORS);
    let mut odd_passes = Judged::new("wasted of passes", WASTED, ODD_PASSES);
    for (kernel, [global, shared]) in &odd {
        odd_sectors.judge(kernel, global.wasted_part());
        odd_passes.judge(kernel, shared.wasted_part());
    }
    let is_measured = |kernel: &&String| kernels.contains_key(*kernel) || odd.contains_key(*kernel);
    let every = names::every_kernel();
    let missed: Vec<&String> = every.keys().filter(|kernel| !is_measured(kernel)).collect();
    assert!(missed.is_empty(), "nothing launches {missed:?}");
    let judged = [moved, sectors, passes, odd_sectors, odd_passes];
    let wrong: Vec<String> = judged.into_iter().flat_map(Judged::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} kernels by cases, {} by operations of odd sizes", kernels.len(), odd.len());
}
