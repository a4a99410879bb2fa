//! The indices that sort along an axis: `sort.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Result, Tensor};
use smallvec::SmallVec;

use crate::device::{Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::walk::{Walk, only};

pub(crate) static SORT: Family = Family { name: "sort.cu", text: include_str!("../../kernels/sort.cu") };

/// Items that a block sorts or merges; `TILE` of `sort.cu`.
const TILE: usize = 2048;
const THREADS: u32 = 256;

/// The indices (i64) that sort along `axis`; equal elements keep their order, NaN comes last either way.
pub(crate) fn argsort(cuda: &'static Cuda, x: &Tensor, axis: usize, descending: bool) -> Result<Tensor> {
    let y = cuda.empty(x.shape(), DType::I64)?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let lines = Lines::of(x, &y, axis, descending).ok_or_else(|| {
        cuda.error(format!(
            "argsort: the lines of {}, strided, are more than 8 axes or 2³¹ to walk",
            x.shape()
        ))
    })?;
    let (length, tiles) = (lines.length as usize, lines.tiles as usize);
    let blocks = (lines.count as usize).div_ceil(TILE / lines.slot as usize) * tiles;
    let grid = Grid::new(blocks, THREADS);
    let (item, bytes) = if x.dtype().size() == 8 { ("long", 16) } else { ("short", 8) };
    let kernel = format!("tiles_{}", x.dtype());
    if tiles == 1 {
        let mut arguments = Arguments::default();
        arguments.value(address_of(&y)).value(0u64).input(x).value(lines);
        cuda.launch(&SORT, &kernel, grid, &mut arguments)?;
        return Ok(y);
    }
    let mut from = cuda.scratch(x.elements() * bytes)?;
    let mut to = cuda.scratch(x.elements() * bytes)?;
    let mut arguments = Arguments::default();
    arguments.value(0u64).scratch(&from).input(x).value(lines);
    cuda.launch(&SORT, &kernel, grid, &mut arguments)?;
    for run in std::iter::successors(Some(TILE), |run| Some(2 * run)).take_while(|&run| run < length) {
        let last = i32::from(2 * run >= length);
        let mut arguments = Arguments::default();
        arguments.value(address_of(&y)).scratch(&to).scratch(&from);
        arguments.value(run as u32).value(last).value(lines);
        cuda.launch(&SORT, &format!("merge_{item}"), grid, &mut arguments)?;
        std::mem::swap(&mut from, &mut to);
    }
    Ok(y)
}

/// How the lines that are sorted lie; `Lines` of `sort.cu`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct Lines {
    starts: Walk<2>,
    count: i64,
    length: u32,
    slot: u32,
    step_x: i64,
    step_y: i64,
    tiles: u32,
    descending: u32,
}

impl Lines {
    /// `None` if there are too many to walk.
    fn of(x: &Tensor, y: &Tensor, axis: usize, descending: bool) -> Option<Lines> {
        let others: SmallVec<[usize; 6]> = (0..x.shape().len()).filter(|&a| a != axis).collect();
        let starts = [x, y].map(|t| only(t.layout(), &others));
        let length = x.shape()[axis];
        (length <= 1 << 31).then_some(Lines {
            starts: Walk::new([&starts[0], &starts[1]])?,
            count: starts[0].shape().elements() as i64,
            length: length as u32,
            slot: length.next_power_of_two().min(TILE) as u32,
            step_x: x.layout().strides()[axis] as i64,
            step_y: y.layout().strides()[axis] as i64,
            tiles: length.div_ceil(TILE) as u32,
            descending: u32::from(descending),
        })
    }
}
