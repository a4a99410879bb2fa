//! Combining the elements along some axes: `reduce.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Layout, Reduce, Result, Tensor};
use smallvec::SmallVec;

use crate::device::{Buffer, Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::walk::{Walk, merged, only};

pub(crate) static REDUCE: Family =
    Family { name: "reduce.cu", text: include_str!("../../kernels/reduce.cu") };

/// The most threads of a block.
const THREADS: usize = 256;
/// Combinations that a thread makes with one accumulator before the tree begins. So sums are exact to a few roundings,
/// and a block reads at most 64 KiB.
const TURNS: usize = 16;

/// Combines the elements along `axes`, which keep size 1.
pub(crate) fn reduce(cuda: &'static Cuda, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    in_turns(cuda, f, x, axes, TURNS)
}

/// The same with so many turns of a thread: with few, short rows and columns come in parts too, and in parts of parts.
///
/// # Errors
/// If there is no memory, or the elements cannot be walked.
///
/// # Panics
/// If x is not on a card.
pub fn reduce_in_turns(f: Reduce, x: &Tensor, axes: &[usize], turns: usize) -> Result<Tensor> {
    in_turns(Cuda::of(x.device()).expect("x is on a card"), f, x, axes, turns)
}

fn in_turns(cuda: &'static Cuda, f: Reduce, x: &Tensor, axes: &[usize], turns: usize) -> Result<Tensor> {
    let dtype = if f == Reduce::ArgMax { DType::I64 } else { x.dtype() };
    let y = cuda.empty(x.shape().with_ones(axes), dtype)?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let mut task = Task::of(x, axes, y.layout());
    // What the task reads, once that is not x.
    let mut parts: Option<Buffer> = None;
    let mut split = task.split(turns);
    while split.parts > 1 {
        let state = Elements::state(f, x.dtype());
        let buffer = cuda.scratch(y.elements() * split.parts * state.bytes)?;
        let to = Elements { address: buffer.address, ..state };
        let next = task.of_parts(&split, to);
        task.queue(cuda, f, &split, &next.from, &next.kept, next.combined.strides()[0])?;
        (task, parts) = (next, Some(buffer));
        split = task.split(turns);
    }
    task.queue(cuda, f, &split, &Elements::of(&y), &task.results, 0)?;
    drop(parts);
    Ok(y)
}

/// Elements in memory.
#[derive(Clone)]
struct Elements {
    /// As kernels are named after them.
    name: String,
    /// Of one.
    bytes: usize,
    address: u64,
}

impl Elements {
    fn of(x: &Tensor) -> Elements {
        Elements { name: x.dtype().to_string(), bytes: x.dtype().size(), address: address_of(x) }
    }

    /// What parts of a result are kept as: the type that is computed in, for argmax with a place of the same size.
    fn state(f: Reduce, dtype: DType) -> Elements {
        let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
        match f {
            Reduce::ArgMax => Elements { name: format!("{wide}_at"), bytes: 2 * wide.size(), address: 0 },
            _ => Elements { name: wide.to_string(), bytes: wide.size(), address: 0 },
        }
    }
}

/// Elements to combine.
struct Task {
    from: Elements,
    /// Where, along the kept axes, the elements of a result begin.
    kept: Layout,
    /// Where, along the same axes, the results lie at last.
    results: Layout,
    /// Where, from there, the elements of one result lie.
    combined: Layout,
}

/// Whether threads beside each other combine elements of one result, or of results beside each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    Rows,
    Columns,
}

/// Who combines what.
struct Split {
    version: Version,
    /// Of each result.
    parts: usize,
    /// The elements of each part, but for the last.
    span: usize,
    /// Threads beside each other.
    team: usize,
    threads: usize,
    blocks: usize,
}

impl Task {
    /// Axes with larger steps come first: the order in which elements are combined is free, and so is that of results.
    fn of(x: &Tensor, axes: &[usize], results: &Layout) -> Task {
        let step = |&axis: &usize| std::cmp::Reverse(step(x.layout().strides()[axis]));
        let mut kept: SmallVec<[usize; 6]> = (0..x.shape().len()).filter(|a| !axes.contains(a)).collect();
        kept.sort_by_key(step);
        let mut combined: SmallVec<[usize; 6]> = axes.into();
        combined.sort_by_key(step);
        Task {
            from: Elements::of(x),
            kept: only(x.layout(), &kept),
            results: only(results, &kept),
            combined: only(x.layout(), &combined),
        }
    }

    /// Combining the parts that this task leaves in `from`: side by side, as its threads are.
    fn of_parts(&self, split: &Split, from: Elements) -> Task {
        let results = self.kept.shape();
        let (step, part_step) = match split.version {
            Version::Rows => (split.parts, 1),
            Version::Columns => (1, results.elements()),
        };
        let steps: SmallVec<[isize; 6]> =
            Layout::contiguous(results).strides().iter().map(|s| s * step as isize).collect();
        Task {
            from,
            kept: Layout::strided(results, &steps, 0),
            results: self.results.clone(),
            combined: Layout::strided([split.parts], &[part_step as isize], 0),
        }
    }

    /// Depends on sizes and steps alone; `rows` on nothing but the length of a row.
    fn split(&self, turns: usize) -> Split {
        let (results, length) = (self.kept.shape().elements(), self.combined.shape().elements());
        let width = 16 / self.from.bytes;
        let smallest = |layout: &Layout| merged([layout]).iter().map(|&(_, [s])| step(s)).min();
        let in_rows =
            smallest(&self.combined).unwrap_or(usize::MAX) <= smallest(&self.kept).unwrap_or(usize::MAX);
        if in_rows {
            let runs = length.div_ceil(width);
            let alone = runs <= 32 * turns;
            let team = if alone { runs.next_power_of_two().min(32) } else { THREADS };
            let span = if alone { length.max(1) } else { THREADS * width * turns };
            let parts = length.div_ceil(span).max(1);
            let blocks = (results * parts).div_ceil(THREADS / team);
            Split { version: Version::Rows, parts, span, team, threads: THREADS, blocks }
        } else {
            let runs = results.div_ceil(width);
            // A warp beside each other at least, and half of the turns for each thread.
            let rows = (2 * length).div_ceil(turns).next_power_of_two();
            let rows = rows.min(THREADS / runs.next_power_of_two().min(32));
            let team = runs.next_power_of_two().min(THREADS / rows);
            let parts = length.div_ceil(rows * turns).max(1);
            let blocks = runs.div_ceil(team) * parts;
            Split { version: Version::Columns, parts, span: rows * turns, team, threads: rows * team, blocks }
        }
    }

    /// Queues combining each part into `to`: the first part of a result where `places` says, the next `part_step` on.
    fn queue(
        &self,
        cuda: &'static Cuda,
        f: Reduce,
        split: &Split,
        to: &Elements,
        places: &Layout,
        part_step: isize,
    ) -> Result<()> {
        let walks = Walk::new([&self.kept, places]).zip(Walk::new([&self.combined]));
        let (kept, combined) = walks.ok_or_else(|| {
            let shapes = format!("{} results of {} elements", self.kept.shape(), self.combined.shape());
            cuda.error(format!("{}: {shapes}, strided, are more than 8 axes or 2³¹ to walk", f.name()))
        })?;
        let pass = Pass {
            kept,
            combined,
            results: self.kept.shape().elements() as i64,
            length: self.combined.shape().elements() as i64,
            part_step: part_step as i64,
            parts: split.parts as u32,
            span: split.span as u32,
            team: split.team as u32,
            vector: u32::from(self.is_vector(split.version)),
        };
        let version = match split.version {
            Version::Rows => "rows",
            Version::Columns => "columns",
        };
        let kernel = format!("{}_{version}_{}_{}", f.name(), self.from.name, to.name);
        let mut arguments = Arguments::default();
        arguments.value(to.address).value(self.from.address).value(pass);
        cuda.launch(&REDUCE, &kernel, Grid::new(split.blocks, split.threads as u32), &mut arguments)
    }

    /// Whether every run of 16 bytes begins at a multiple of 16 bytes, but for what a single row ends with.
    fn is_vector(&self, version: Version) -> bool {
        let width = 16 / self.from.bytes;
        let (along, others) = match version {
            Version::Rows => (&self.combined, &self.kept),
            Version::Columns => (&self.kept, &self.combined),
        };
        let (along, others) = (merged([along]), merged([others]));
        let Some((&(size, [1]), outer)) = along.split_last() else { return false };
        (outer.is_empty() || size.is_multiple_of(width))
            && outer.iter().chain(&others).all(|&(_, [s])| s.unsigned_abs().is_multiple_of(width))
            && self.from.address.is_multiple_of(16)
    }
}

/// How far apart neighbours are in memory; an axis along which nothing moves is as good as the farthest.
fn step(stride: isize) -> usize {
    if stride == 0 { usize::MAX } else { stride.unsigned_abs() }
}

/// How the elements and the results of a pass lie, and who combines them; `Pass` of `reduce.cu`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct Pass {
    kept: Walk<2>,
    combined: Walk<1>,
    results: i64,
    length: i64,
    part_step: i64,
    parts: u32,
    span: u32,
    team: u32,
    vector: u32,
}
