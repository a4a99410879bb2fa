//! What each kernel asks of memory, counted: it moves the bytes of its operands and results and no more, and no request
//! of a warp takes more sectors, or passes over the banks of shared memory, than its bytes need. What does is listed here,
//! with how much and why; so are the kernels that are not measured, with what stands for them.

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
use limpid_tensor::{Activation, DType};

use case::{Case, Sizes, Work};

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
    ("project backward *", 1.6, "X is read for X̄, and again for φ̄; q, and parts of φ̄, for 8 tokens"),
    ("connection, backward *", 1.44, "as above, with the other shares"),
    ("* 128 weights", 1.14, "a line of a table for each weight, half of which have 4 elements"),
    ("add f32 [1], *", 8.0, "a sector for an element"),
];

/// The part of all sectors of a kernel's requests that a better order would not touch.
const WASTED: f64 = 0.025;
const WASTED_SECTORS: Limits = &[
    ("adam_steps", 0.53, "a thread takes all numbers of a weight"),
    (
        "connection_phi_backward_*",
        0.43,
        "a thread has two columns of each row of a part of φ̄, stored one by one",
    ),
    (
        "connection_project_*",
        0.34,
        "columns of φ come in rows of 4 and 16; a block's threads read a row each",
    ),
    ("connection_scale_*", 0.88, "a thread takes all numbers of a token, 1/(3C) of what the others read"),
    ("connection_stream_*", 0.23, "as `connection_project`, once for 128 tokens"),
    ("connection_sum_*", 0.25, "as `connection_project`, when φ̄ is written"),
    ("cross_entropy_*_four", 0.37, "the logit of the label is read again: a sector for each row of 8"),
    ("gather_*", 0.39, "what an index chooses"),
    ("*_norm_backward_*_four", 0.2, "16 bytes of statistics, stored as 8 and 8, for each row of 8"),
    (
        "sinkhorn_*alone_4_f32",
        0.5,
        "a thread reads a matrix in four rows; the cache has the other half of the sector",
    ),
];

/// The same of passes over banks.
const WASTED_PASSES: Limits = &[
    ("matmul_*x*", 0.101, "a factor that is read along the terms is turned when it is stored: two passes"),
    ("sum_columns_*", 0.1, "the tree over a block's rows of threads"),
    ("linear_slabs_*", 0.13, "of 8 columns: the lanes beyond them store their zeros by themselves"),
    ("tiles_f32", 0.51, "steps of the sorting network over 1 to 16 items meet in banks"),
    ("tiles_i64", 0.43, "as above"),
];

/// Kernels that no case launches, by file and name, and what stands for them.
const UNMEASURED: &[(&str, &str)] = &[
    ("connection.cu *_f64", "those of f32: the same loads and stores of packs of 16 bytes"),
    ("connection.cu *_2_*", "those of four streams"),
    ("connection.cu *_8_*", "those of four streams, and of 24 columns"),
    ("connection.cu *_any_*", "those of four streams"),
    ("connection.cu *_40_*", "those of 24 columns"),
    ("connection.cu connection_stream_4_32_*", "those of 24 columns"),
    ("connection.cu connection_cotangent_4_*", "`write`, which has the same text"),
    ("connection.cu connection_recompute_*", "`write`, for block after block"),
    ("copy.cu cast_*", "other casts: packs of the wider of both dtypes"),
    ("copy.cu copy_*", "`copy_16`: the same loop over smaller units, where rows are not aligned"),
    ("copy.cu tiles_*", "tiles of other units"),
    ("index.cu gather_*", "gathers of other units"),
    ("index.cu scatter_columns_*", "nothing: a thread follows a column wherever its index leads"),
    ("index.cu scatter_runs_*", "those of f32 and bf16"),
    ("linear.cu linear_backward_*", "those of relu: another derivative of what was read"),
    ("map.cu *", "other functions: all have the loads and stores of `each`"),
    (
        "matmul.cu matmul_sum_parts_*",
        "nothing: it adds a few parts of a result that was too small for a card",
    ),
    ("norm.cu *_f64_warp", "those of f32 and bf16"),
    ("norm.cu *_stream", "those of a block: the same packs in a loop"),
    ("optimizer.cu *_f32_bf16", "those with gradients of f32"),
    ("optimizer.cu *_f64*", "those of f32"),
    ("optimizer.cu squares_bf16", "that of f32"),
    ("optimizer.cu clip_to_norm", "nothing: one block adds the parts of a norm"),
    ("random.cu *", "other distributions: a draw is stored as it is made"),
    ("reduce.cu *", "sums and argmax of rows: whatever is combined has their loads"),
    ("scan.cu *_i64", "those of f64"),
    ("scan.cu totals_*", "`cumsum`, which reads the same a second time"),
    ("sinkhorn.cu *", "4×4 in f32, a thread each: iterations move nothing, and time goes into divisions"),
    ("softmax.cu *_f64_warp", "those of f32 and bf16"),
    ("softmax.cu *_stream", "those of a block: the same packs in a loop"),
    ("sort.cu merge_*", "nothing: where a run is read next is what its elements say"),
    ("sort.cu tiles_*", "those of f32 and i64: items of 8 and of 16 bytes"),
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

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn kernels_move_what_their_operands_have_and_waste_no_request() {
    let stand_in = emulated::install(Config { check: true, ..Default::default() }).unwrap();
    let cuda = Cuda::new(0).unwrap();
    let seen: Arc<Mutex<Vec<Launch>>> = Arc::default();
    let mut moved = Judged::new("moved", MOVED, MOVED_MORE);
    let mut kernels: BTreeMap<String, [Cost; 2]> = BTreeMap::new();
    for case in cases::all(&Sizes::of_traffic()).into_iter().chain(products_by_name()) {
        let log = seen.clone();
        let observe = || {
            stand_in.count_traffic(true);
            stand_in.observe(move |launched| {
                let (kernel, report) = (launched.kernel.to_string(), launched.report);
                let launch = Launch { kernel, lines: report.traffic.clone(), memory: report.memory };
                log.lock().expect("nobody panics with it").push(launch);
            });
        };
        let bytes = case.run_once(cuda, observe).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        stand_in.stop_observing();
        stand_in.count_traffic(false);
        let launches = std::mem::take(&mut *seen.lock().expect("nobody panics with it"));
        let touched: u64 = launches.iter().map(|launch| launch.memory.read + launch.memory.written).sum();
        moved.judge(&case.name, touched as f64 / bytes as f64);
        for Launch { kernel, lines, .. } in launches {
            let costs = kernels.entry(kernel).or_default();
            lines.iter().for_each(|line| costs[usize::from(line.shared)].add(line));
        }
    }
    let mut sectors = Judged::new("wasted of sectors", WASTED, WASTED_SECTORS);
    let mut passes = Judged::new("wasted of passes", WASTED, WASTED_PASSES);
    for (kernel, [global, shared]) in &kernels {
        sectors.judge(kernel, global.wasted_part());
        passes.judge(kernel, shared.wasted_part());
    }
    let mut stood_for = vec![false; UNMEASURED.len()];
    let mut unmeasured = Vec::new();
    for (kernel, file) in names::every_kernel().iter().filter(|(kernel, _)| !kernels.contains_key(*kernel)) {
        let name = format!("{file} {kernel}");
        match UNMEASURED.iter().position(|(pattern, _)| fits(&name, pattern)) {
            Some(i) => stood_for[i] = true,
            None => {
                unmeasured.push(format!("{name}: no case launches it, and nothing is said to stand for it"))
            }
        }
    }
    for ((pattern, _), _) in UNMEASURED.iter().zip(stood_for).filter(|(_, is_used)| !is_used) {
        unmeasured.push(format!("{pattern}: every kernel that fits is measured, or fits what comes before"));
    }
    let wrong = [moved.wrong(), sectors.wrong(), passes.wrong(), unmeasured].concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} kernels", kernels.len());
}
