//! Moving elements without computing, and changing their dtype: `copy.cu`.

use std::cmp::Reverse;

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Layout, Result, Shape, Tensor};
use smallvec::SmallVec;

use crate::device::{Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::walk::{Divisor, Walk, merged};

pub(crate) static COPY: Family = Family { name: "copy.cu", text: include_str!("../../kernels/copy.cu") };

const THREADS: u32 = 256;

/// Units that a thread of `copy` takes at once.
const ITEMS: usize = 4;

/// Bytes of the largest unit.
const LARGEST: usize = 16;

/// Both axes of a plane must have so many elements for its tiles to be worth their barrier.
const WORTH_TILES: usize = 16;

/// The elements in row-major order, in memory of their own.
pub(crate) fn contiguous(cuda: &'static Cuda, x: &Tensor) -> Result<Tensor> {
    let mut y = cuda.empty(x.shape(), x.dtype())?;
    write(cuda, &mut y, &Layout::contiguous(x.shape()), x)?;
    Ok(y)
}

/// Zeros with each part written where its layout says.
pub(crate) fn assemble(
    cuda: &'static Cuda,
    shape: &Shape,
    dtype: DType,
    parts: &[(Layout, &Tensor)],
) -> Result<Tensor> {
    let mut y = cuda.empty(shape, dtype)?;
    let covered: usize = parts.iter().map(|(_, part)| part.elements()).sum();
    // Parts do not overlap, so as many elements as the result has leave no gap to be zeroed.
    if covered < shape.elements() {
        cuda.fill(address_of(&y), 0, shape.elements() * dtype.size())?;
    }
    for (place, part) in parts {
        write(cuda, &mut y, place, part)?;
    }
    Ok(y)
}

/// Another dtype.
pub(crate) fn cast(cuda: &'static Cuda, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return contiguous(cuda, x);
    }
    let vector = x.layout().is_contiguous() && address_of(x).is_multiple_of(LARGEST as u64);
    let walk = if vector { Some(Walk::zeroed()) } else { Walk::new([x.layout()]) };
    let turned =
        Move::new(0, &Layout::contiguous(x.shape()), 0, x.layout(), x.dtype().size()).planes().is_some();
    let Some(walk) = walk.filter(|_| !turned) else {
        // Two passes in order take less time than one that reads every element from another row.
        return cast(cuda, &contiguous(cuda, x)?, dtype);
    };
    let mut y = cuda.empty(x.shape(), dtype)?;
    let n = x.elements();
    let per_thread = if vector { LARGEST / x.dtype().size().max(dtype.size()) } else { 1 };
    let mut arguments = Arguments::default();
    arguments.output(&mut y).input(x).value(n as i64).value(walk).value(i32::from(vector));
    let grid = match n {
        0 => Grid::new(0, THREADS),
        n => Grid::covering(n.div_ceil(per_thread), THREADS, cuda.most_blocks()),
    };
    cuda.launch(&COPY, &format!("cast_{}_{dtype}", x.dtype()), grid, &mut arguments)?;
    Ok(y)
}

/// Writes x into y, where a layout of y's memory says.
fn write(cuda: &'static Cuda, y: &mut Tensor, place: &Layout, x: &Tensor) -> Result<()> {
    let size = x.dtype().size();
    let start = address_of(x) - (x.layout().offset() * size) as u64;
    queue(cuda, Move::new(address_of(y), place, start, x.layout(), size))
}

fn queue(cuda: &'static Cuda, elements: Move) -> Result<()> {
    if elements.count() == 0 {
        return Ok(());
    }
    if let Some(bytes) = elements.gapless() {
        return cuda.copy_within(elements.to, elements.from, bytes);
    }
    let units = elements.in_units();
    let Some(walk) = units.walk() else {
        return units.halves().into_iter().try_for_each(|half| queue(cuda, half));
    };
    let mut arguments = Arguments::default();
    arguments.value(units.to).value(units.from);
    match units.planes() {
        Some(Planes { plane, batch, tiles }) => {
            arguments.value(plane).value(batch);
            let grid = Grid::new(tiles, THREADS);
            cuda.launch(&COPY, &format!("tiles_{}", units.size), grid, &mut arguments)
        }
        None => {
            let n = units.count();
            arguments.value(n as i64).value(walk);
            let grid = Grid::covering(n.div_ceil(ITEMS), THREADS, cuda.most_blocks());
            cuda.launch(&COPY, &format!("copy_{}", units.size), grid, &mut arguments)
        }
    }
}

/// The elements that are to be moved, and how both sides walk them.
#[derive(Clone, Debug)]
struct Move {
    /// Address of the first element at the destination.
    to: u64,
    /// Address of the first element at the source.
    from: u64,
    /// Bytes of an element.
    size: usize,
    /// Sizes, and the strides of destination and source. Those of the destination are positive and fall.
    axes: Axes,
}

type Axes = SmallVec<[(usize, [isize; 2]); 6]>;

/// Two axes that change places; `Plane` of `copy.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Plane {
    tiles_across: Divisor,
    tiles_down: Divisor,
    columns: i64,
    rows: i64,
    to_column: i64,
    to_row: i64,
    from_column: i64,
    from_row: i64,
}

/// A plane for every element of a batch, and how many tiles that makes.
struct Planes {
    plane: Plane,
    batch: Walk<2>,
    tiles: usize,
}

impl Move {
    /// From a layout of the memory at one address to a layout of that at another, both of one shape.
    fn new(to: u64, place: &Layout, from: u64, layout: &Layout, size: usize) -> Move {
        let (mut place, mut layout) = (place.clone(), layout.clone());
        for axis in 0..place.shape().len() {
            if place.strides()[axis] < 0 {
                (place, layout) = (place.flip(axis), layout.flip(axis));
            }
        }
        let mut order: SmallVec<[usize; 6]> = (0..place.shape().len()).collect();
        order.sort_by_key(|&axis| Reverse(place.strides()[axis]));
        let (place, layout) = (place.permute(&order), layout.permute(&order));
        let behind = |address: u64, layout: &Layout| address + (layout.offset() * size) as u64;
        let axes = match place.shape().elements() {
            0 => SmallVec::from_slice(&[(0, [1, 1])]),
            _ => merged([&place, &layout]),
        };
        Move { to: behind(to, &place), from: behind(from, &layout), size, axes }
    }

    fn count(&self) -> usize {
        self.axes.iter().map(|(n, _)| n).product()
    }

    /// The bytes of all elements, if they lie side by side on both sides.
    fn gapless(&self) -> Option<usize> {
        match self.axes[..] {
            [] | [(_, [1, 1])] => Some(self.count() * self.size),
            _ => None,
        }
    }

    /// The same bytes with neighbours joined, as many as stay neighbours and are aligned on both sides.
    fn in_units(mut self) -> Move {
        if let Some(((n, [1, 1]), outer)) = self.axes.split_last_mut() {
            let strides = outer.iter().flat_map(|(_, strides)| strides).map(|stride| stride.unsigned_abs());
            let places = [self.to, self.from].map(|address| address as usize / self.size);
            let joined = per_unit(self.size, strides.chain(places).chain([*n]));
            *n /= joined;
            for stride in outer.iter_mut().flat_map(|(_, strides)| strides) {
                *stride /= joined as isize;
            }
            self.size *= joined;
        }
        self.axes.retain(|(n, _)| *n != 1);
        self
    }

    fn walk(&self) -> Option<Walk<2>> {
        walk(&self.axes)
    }

    /// The two axes that change places, if there are such: the last, along which the destination has neighbours, and that
    /// along which the source has.
    fn planes(&self) -> Option<Planes> {
        let (&(rows, row), outer) = self.axes.split_last()?;
        let step = |strides: [isize; 2]| strides[1].unsigned_abs();
        let moving = outer.iter().enumerate().filter(|(_, (_, strides))| strides[1] != 0);
        let (at, &(columns, column)) = moving.min_by_key(|(_, (_, strides))| step(*strides))?;
        if step(column) >= step(row) || columns.min(rows) < WORTH_TILES {
            return None;
        }
        let mut batch = self.axes.clone();
        batch.pop();
        batch.remove(at);
        let side = if self.size < 4 { 64 } else { 32 };
        let (across, down) = (columns.div_ceil(side), rows.div_ceil(side));
        let plane = Plane {
            tiles_across: Divisor::new(across),
            tiles_down: Divisor::new(down),
            columns: columns as i64,
            rows: rows as i64,
            to_column: column[0] as i64,
            to_row: row[0] as i64,
            from_column: column[1] as i64,
            from_row: row[1] as i64,
        };
        Some(Planes { plane, batch: walk(&batch)?, tiles: self.count() / (columns * rows) * across * down })
    }

    /// Two moves that together are this one.
    fn halves(&self) -> [Move; 2] {
        let longest = (0..self.axes.len()).max_by_key(|&axis| self.axes[axis].0).unwrap_or(0);
        let (n, strides) = self.axes[longest];
        let part = |start: usize, end: usize| {
            let mut part = self.clone();
            part.axes[longest].0 = end - start;
            part.axes.retain(|(n, _)| *n != 1);
            let skipped = strides.map(|stride| (start as i64 * stride as i64 * self.size as i64) as u64);
            (part.to, part.from) = (self.to.wrapping_add(skipped[0]), self.from.wrapping_add(skipped[1]));
            part
        };
        [part(0, n / 2), part(n / 2, n)]
    }
}

/// How many neighbouring elements of `size` bytes make a unit: the largest power of two that all these numbers are multiples
/// of, as long as the unit has no more than 16 bytes.
pub(crate) fn per_unit(size: usize, multiples: impl IntoIterator<Item = usize>) -> usize {
    let all = multiples.into_iter().fold(LARGEST / size, |all, multiple| all | multiple);
    1 << all.trailing_zeros()
}

/// The walk along axes given as sizes and strides.
pub(crate) fn walk<const N: usize>(axes: &[(usize, [isize; N])]) -> Option<Walk<N>> {
    let shape: Shape = axes.iter().map(|(n, _)| *n).collect();
    let layouts: [Layout; N] = std::array::from_fn(|k| {
        let strides: SmallVec<[isize; 6]> = axes.iter().map(|(_, strides)| strides[k]).collect();
        // Where the first element lies is no matter of the walk, but that all others lie behind the start.
        let reach = axes.iter().map(|(n, strides)| strides[k].unsigned_abs() * (n - 1)).sum();
        Layout::strided(&shape, &strides, reach)
    });
    Walk::new(std::array::from_fn(|k| &layouts[k]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(place: &Layout, layout: &Layout, size: usize) -> Move {
        Move::new(0, place, 0, layout, size).in_units()
    }

    #[test]
    fn rows_of_a_slice_move_in_the_largest_units_that_fit() {
        let whole = Layout::contiguous([5, 24]);
        let row_major = Layout::contiguous([5, 8]);
        for (start, size, unit) in
            [(0, 2, 16), (4, 2, 8), (2, 2, 4), (1, 2, 2), (4, 4, 16), (1, 8, 8), (8, 1, 8)]
        {
            let units = moved(&row_major, &whole.slice(1, start, start + 8, 1), size);
            assert_eq!(units.size, unit, "{size}-byte elements from column {start}");
            assert_eq!(units.count() * unit, 40 * size);
        }
    }

    #[test]
    fn everything_side_by_side_is_one_copy() {
        let x = Layout::contiguous([3, 4, 5]);
        assert_eq!(moved(&x, &x, 4).gapless(), Some(240));
        assert_eq!(moved(&x.permute(&[2, 0, 1]), &x.permute(&[2, 0, 1]), 4).gapless(), Some(240));
        assert_eq!(moved(&x.flip(1), &x.flip(1), 4).gapless(), Some(240));
        assert_eq!(moved(&x, &x.flip(1), 4).gapless(), None);
        assert_eq!(moved(&Layout::contiguous([]), &Layout::contiguous([]), 4).gapless(), Some(4));
    }

    #[test]
    fn axes_that_change_places_are_a_plane_if_they_are_long_enough() {
        let plane = |x: &Layout| moved(&Layout::contiguous(x.shape()), x, 4).planes();
        let Planes { plane: found, tiles, .. } =
            plane(&Layout::contiguous([7, 40, 33]).permute(&[0, 2, 1])).expect("a transposed batch");
        assert_eq!((found.columns, found.rows, tiles), (33, 40, 7 * 2 * 2));
        assert_eq!([found.to_column, found.to_row, found.from_column, found.from_row], [40, 1, 1, 33]);
        assert!(plane(&Layout::contiguous([40, 3]).permute(&[1, 0])).is_none());
        assert!(plane(&Layout::contiguous([40, 30])).is_none());
    }

    #[test]
    fn halves_make_the_whole() {
        let x = Layout::contiguous([4, 7]).permute(&[1, 0]);
        let whole = moved(&Layout::contiguous([7, 4]), &x, 4);
        let [a, b] = whole.halves();
        assert_eq!((a.count(), b.count()), (12, 16));
        assert_eq!((b.to, b.from), (3 * 4 * 4, 3 * 4));
    }
}
