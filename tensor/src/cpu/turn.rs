//! Copies of tensors whose neighbours in memory are not neighbours in the result: transposes, and other orders of axes.
//!
//! Number by number, each one read would lie on a line of its own, fetched again for the next row. A copy by squares reads
//! and writes whole lines, and what is between them never leaves the first-level cache.

use smallvec::SmallVec;

use super::simd::widest;
use super::threads;
use crate::Layout;

/// Rows and columns of a square. As a row of the result it is a line of four-byte numbers.
const SQUARE: usize = 16;
/// Bytes that are read of a column before the next one: some lines, since the next one is on another page.
const BAND: usize = 256;
/// Of fewer rows or columns, most squares would not be whole.
const FEW: usize = SQUARE / 2;
/// Fewer numbers than this stay in the caches until they are all read.
const SMALL: usize = 1 << 12;

/// A copy as that of matrices, whose rows are one number apart in memory, and whose columns are in the result.
pub(super) struct Turned {
    offset: usize,
    rows: Axis,
    columns: Axis,
    /// Where there is more than one matrix.
    others: SmallVec<[Axis; 4]>,
}

/// An axis: its size, and the steps along it in memory and in the result.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    from: isize,
    to: usize,
}

impl Turned {
    /// How to copy a layout, if it is one to be copied by squares.
    pub fn of(layout: &Layout) -> Option<Turned> {
        if layout.shape().elements() < SMALL {
            return None;
        }
        let mut to = 1;
        let mut others: SmallVec<[Axis; 4]> = SmallVec::new();
        for &(size, from) in layout.merged().iter().rev() {
            others.push(Axis { size, from, to });
            to *= size;
        }
        let columns = others.remove(0);
        let rows = others.remove(others.iter().position(|axis| axis.from == 1)?);
        let is_wide = rows.size >= FEW && columns.size >= FEW && columns.from != 0;
        is_wide.then(|| Turned { offset: layout.offset(), rows, columns, others })
    }

    /// Copies the layout's elements, which lie in `data`, to `out` in row-major order.
    pub fn copy<T: Copy + Default + Send + Sync>(&self, data: &[T], out: &mut [T]) {
        let Turned { rows, columns, others, .. } = self;
        let matrices: usize = others.iter().map(|axis| axis.size).product();
        assert_eq!(out.len(), matrices * rows.size * columns.size);
        let band = BAND / size_of::<T>();
        let bands = rows.size.div_ceil(band);
        let size = out.len();
        let out = Out(out.as_mut_ptr());
        threads::tasks(matrices * bands, size, |task| {
            let (mut from, mut to, mut matrix) = (self.offset as isize, 0, task / bands);
            for axis in others {
                let along = matrix % axis.size;
                matrix /= axis.size;
                (from, to) = (from + along as isize * axis.from, to + along * axis.to);
            }
            let first = task % bands * band;
            let band = first..rows.size.min(first + band);
            widest(
                #[inline(always)]
                || {
                    for column in (0..columns.size).step_by(SQUARE) {
                        for row in band.clone().step_by(SQUARE) {
                            let part = (SQUARE.min(band.end - row), SQUARE.min(columns.size - column));
                            let from = from + row as isize + column as isize * columns.from;
                            // SAFETY: the rows and columns are the matrix's, and each axis' steps in the result are those
                            // of row-major order: places inside it, each of one task.
                            unsafe {
                                let to = out.at(to + row * rows.to + column);
                                square(data, from, columns.from, part, to, rows.to);
                            }
                        }
                    }
                },
            )
        });
    }
}

/// The result, which several threads write to different places of.
struct Out<T>(*mut T);

// SAFETY: nothing is read, and no two tasks write to the same place.
unsafe impl<T: Send> Sync for Out<T> {}

impl<T> Out<T> {
    /// # Safety
    /// It is a place in the result.
    unsafe fn at(&self, place: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(place) }
    }
}

/// Copies so many rows and columns, at most a square of them. Columns lie `step` apart in memory, rows in the result `to_step`.
///
/// # Safety
/// So many rows of so many numbers may be written.
#[inline(always)]
unsafe fn square<T: Copy + Default>(
    data: &[T],
    from: isize,
    step: isize,
    (rows, columns): (usize, usize),
    to: *mut T,
    to_step: usize,
) {
    let mut square = [[T::default(); SQUARE]; SQUARE];
    let column = |j: usize| &data[(from + j as isize * step) as usize..][..rows];
    if (rows, columns) == (SQUARE, SQUARE) {
        for j in 0..SQUARE {
            square[j].copy_from_slice(column(j));
        }
        for i in 0..SQUARE {
            let mut row = [T::default(); SQUARE];
            for j in 0..SQUARE {
                row[j] = square[j][i];
            }
            // SAFETY: the caller's promise.
            unsafe { to.add(i * to_step).cast::<[T; SQUARE]>().write(row) };
        }
    } else {
        for j in 0..columns {
            for (i, &number) in column(j).iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.add(i * to_step + j).write(number) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{ALL, naive};
    use super::*;
    use crate::{DType, Tensor};

    /// Every kind of square there is: whole ones, and those at the ends of rows and columns.
    #[test]
    fn every_order_of_axes_gives_the_elements_in_their_places() {
        let numbers = |sizes: &[usize], dtype| {
            let count = sizes.iter().product::<usize>() as f64;
            Tensor::arange(0.0, count, 1.0, DType::I64).reshape(sizes).unwrap().cast(dtype).unwrap()
        };
        let orders: [&[usize]; 5] = [&[2, 1, 0], &[1, 2, 0], &[2, 0, 1], &[0, 2, 1], &[1, 0, 2]];
        for dtype in ALL {
            for order in orders {
                for x in [
                    numbers(&[16, 32, 64], dtype).permute(order),
                    numbers(&[9, 300, 17], dtype).permute(order),
                    numbers(&[40, 21, 35], dtype)
                        .slice(0, 1, 38, 2)
                        .slice(2, 3, 33, 1)
                        .permute(order)
                        .flip(1),
                ] {
                    let expected: Vec<f64> = naive(&x);
                    assert_eq!(naive(&x.contiguous().unwrap()), expected, "{dtype} {:?}", x.layout());
                }
            }
        }
    }

    #[test]
    fn of_what_lies_in_order_or_has_few_rows_nothing_is_turned() {
        let is_turned = |layout: &Layout| Turned::of(layout).is_some();
        let matrix = Layout::contiguous([100, 200]);
        assert!(is_turned(&matrix.permute(&[1, 0])));
        assert!(
            !is_turned(&matrix) && !is_turned(&matrix.flip(1)) && !is_turned(&matrix.slice(1, 0, 200, 2))
        );
        assert!(!is_turned(&Layout::contiguous([7, 2000]).permute(&[1, 0])));
        assert!(!is_turned(&Layout::contiguous([2000, 7]).permute(&[1, 0])));
        assert!(!is_turned(&Layout::contiguous([10, 20]).permute(&[1, 0])));
        let column = Layout::contiguous([100, 1]).broadcast(&[100, 200].into()).unwrap();
        assert!(!is_turned(&column) && !is_turned(&column.permute(&[1, 0])));
    }
}
