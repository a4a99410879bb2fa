//! Running sums along an axis: `scan.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Result, Tensor};
use smallvec::SmallVec;

use crate::device::{Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::walk::{Walk, merged, only};

pub(crate) static SCAN: Family = Family { name: "scan.cu", text: include_str!("../../kernels/scan.cu") };

/// The most threads of a block.
const THREADS: usize = 256;
/// Elements of a line that a thread of `columns` takes at a time; `RUN` of `scan.cu`.
const RUN: usize = 16;
/// Turns that a line has a warp for, before it gets a block.
const TURNS_OF_WARP: usize = 16;

/// `y[k] = x[0] + … + x[k]` along `axis`.
pub(crate) fn cumsum(cuda: &'static Cuda, x: &Tensor, axis: usize) -> Result<Tensor> {
    let y = cuda.empty(x.shape(), x.dtype())?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let split = Split::of(x, axis);
    let lines = Lines::of(x, &y, axis, &split).ok_or_else(|| {
        cuda.error(format!(
            "cumsum: the lines of {}, strided, are more than 8 axes or 2³¹ to walk",
            x.shape()
        ))
    })?;
    let launch = |what: &str, y: u64, totals: u64| {
        let kernel = format!("{what}_{}_{}", split.version, x.dtype());
        let mut arguments = Arguments::default();
        arguments.value(y).value(totals).input(x).value(lines);
        cuda.launch(&SCAN, &kernel, Grid::new(split.blocks, split.threads as u32), &mut arguments)
    };
    if split.segments == 1 {
        launch("cumsum", address_of(&y), 0)?;
        return Ok(y);
    }
    let wide = if x.dtype() == DType::BF16 { DType::F32 } else { x.dtype() };
    let totals = cuda.scratch(lines.count as usize * split.segments * wide.size())?;
    launch("totals", 0, totals.address)?;
    launch("cumsum", address_of(&y), totals.address)?;
    Ok(y)
}

/// Who adds up what.
struct Split {
    /// The kernels' name for it: `rows` or `columns`.
    version: &'static str,
    /// Of a line.
    segments: usize,
    /// The elements of each segment, but for the last.
    span: usize,
    /// Threads beside each other.
    team: usize,
    threads: usize,
    blocks: usize,
}

impl Split {
    /// Depends on sizes alone; `rows` on nothing but the length of a line.
    fn of(x: &Tensor, axis: usize) -> Split {
        let length = x.shape()[axis];
        let lines = x.elements() / length;
        if x.shape()[axis + 1..].iter().all(|&size| size == 1) {
            let width = 16 / x.dtype().size();
            let runs = length.div_ceil(width);
            let alone = runs <= 32 * TURNS_OF_WARP;
            let team = if alone { runs.next_power_of_two().min(32) } else { THREADS };
            let span = if alone { length } else { span(length, THREADS * width, 8, 512) };
            let segments = length.div_ceil(span);
            let blocks = (lines * segments).div_ceil(THREADS / team);
            Split { version: "rows", segments, span, team, threads: THREADS, blocks }
        } else {
            let widest = lines.next_power_of_two();
            let rows = length.div_ceil(RUN).next_power_of_two().min(THREADS / widest.clamp(8, 32));
            let team = widest.min(THREADS / rows);
            let span = span(length, rows * RUN, 4, 64);
            let segments = length.div_ceil(span);
            let blocks = lines.div_ceil(team) * segments;
            Split { version: "columns", segments, span, team, threads: rows * team, blocks }
        }
    }
}

/// The elements of a segment: `least` turns, or more if there would be more than `most` segments.
fn span(length: usize, turn: usize, least: usize, most: usize) -> usize {
    turn * length.div_ceil(turn * most).max(least)
}

/// How lines lie, and who adds them up; `Lines` of `scan.cu`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct Lines {
    starts: Walk<2>,
    count: i64,
    length: i64,
    step_x: i64,
    step_y: i64,
    segments: u32,
    span: u32,
    team: u32,
    vector: u32,
}

impl Lines {
    /// `None` if there are too many to walk.
    fn of(x: &Tensor, y: &Tensor, axis: usize, split: &Split) -> Option<Lines> {
        let others: SmallVec<[usize; 6]> = (0..x.shape().len()).filter(|&a| a != axis).collect();
        let starts = [x, y].map(|t| only(t.layout(), &others));
        let [step_x, step_y] = [x, y].map(|t| t.layout().strides()[axis]);
        let length = x.shape()[axis];
        let width = (16 / x.dtype().size()) as isize;
        let vector = (step_x, step_y) == (1, 1)
            && address_of(x).is_multiple_of(16)
            && merged([&starts[0], &starts[1]]).iter().all(|(_, [x, y])| x % width == 0 && y % width == 0);
        (length <= 1 << 31).then_some(Lines {
            starts: Walk::new([&starts[0], &starts[1]])?,
            count: starts[0].shape().elements() as i64,
            length: length as i64,
            step_x: step_x as i64,
            step_y: step_y as i64,
            segments: split.segments as u32,
            span: split.span as u32,
            team: split.team as u32,
            vector: u32::from(vector),
        })
    }
}
