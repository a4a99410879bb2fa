//! The micro-kernel: a tile of the result whose sums stay in registers while they run.

use super::{Factor, Matrix};
use crate::cpu::vector::Vector;

/// Rows of the largest tile. Twelve sums of a vector each, six rows of two, keep two units with a latency of four or five
/// cycles busy, and leave four of sixteen registers for what is multiplied.
pub(super) const ROWS: usize = 6;

/// The most vectors in a row of the tiles for a result of m rows: of few rows more of them, so that enough sums run side by
/// side, and twice as many where there are 32 registers.
pub(super) const fn most<T, V: Vector<T>>(m: usize) -> usize {
    match m {
        1 => 8,
        2 => 4,
        _ if V::WIDTH * size_of::<T>() == 64 => 4,
        _ => 2,
    }
}

/// The tiles down so many rows: where each begins, and its rows. Those of four and five rows are nearly as fast as the largest,
/// smaller ones are not.
pub(super) fn heights(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let height = match rows - done {
            0 => return None,
            7 | 8 => 4,
            9 => 5,
            left => left.min(ROWS),
        };
        done += height;
        Some((done - height, height))
    })
}

/// Where a tile of `c = a·b`, or `c = c + a·b`, lies.
pub(super) struct Tile<T> {
    /// The number of terms that are added.
    pub k: usize,
    pub a: Matrix<T>,
    /// The first row of B, whose numbers follow each other, and the step to the next.
    pub b: *const T,
    pub b_step: isize,
    /// The first row of the result, whose numbers follow each other, and the step to the next.
    pub c: *mut T,
    pub c_step: usize,
    /// Whether the sums begin at 0 and not with what the result holds.
    pub first: bool,
    /// What is added to the sums in the end, as far apart as the rows of the result; null if nothing is.
    pub added: *const T,
}

impl<T: Factor> Tile<T> {
    /// Computes a tile of 1 to [`ROWS`] rows of 1, 2, 4 or 8 vectors, at most [`most`].
    ///
    /// # Safety
    /// The numbers of so many rows and columns lie where the tile says, those of the result for writing, and for reading unless
    /// it is the first; what is added is there, unless it is null.
    #[inline(always)]
    pub unsafe fn compute<V: Vector<T>>(self, rows: usize, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match (rows, vectors) {
                (1, 1) => self.of::<V, 1, 1>(),
                (2, 1) => self.of::<V, 2, 1>(),
                (3, 1) => self.of::<V, 3, 1>(),
                (4, 1) => self.of::<V, 4, 1>(),
                (5, 1) => self.of::<V, 5, 1>(),
                (6, 1) => self.of::<V, 6, 1>(),
                (1, 2) => self.of::<V, 1, 2>(),
                (2, 2) => self.of::<V, 2, 2>(),
                (3, 2) => self.of::<V, 3, 2>(),
                (4, 2) => self.of::<V, 4, 2>(),
                (5, 2) => self.of::<V, 5, 2>(),
                (6, 2) => self.of::<V, 6, 2>(),
                (1, 4) => self.of::<V, 1, 4>(),
                (2, 4) => self.of::<V, 2, 4>(),
                (3, 4) if most::<T, V>(3) == 4 => self.of::<V, 3, 4>(),
                (4, 4) if most::<T, V>(4) == 4 => self.of::<V, 4, 4>(),
                (5, 4) if most::<T, V>(5) == 4 => self.of::<V, 5, 4>(),
                (6, 4) if most::<T, V>(6) == 4 => self.of::<V, 6, 4>(),
                (1, 8) => self.of::<V, 1, 8>(),
                _ => unreachable!("no tile has {rows} rows of {vectors} vectors"),
            }
        }
    }

    /// Computes a tile of R rows of N vectors.
    #[inline(always)]
    unsafe fn of<V: Vector<T>, const R: usize, const N: usize>(self) {
        let Tile { k, mut a, mut b, b_step, c, c_step, first, added } = self;
        let mut sums = [[V::all(T::ZERO); N]; R];
        let place = |i: usize, j: usize| c.wrapping_add(i * c_step + j * V::WIDTH);
        // SAFETY: the caller promises that the numbers of the tile are there.
        unsafe {
            if !first {
                for i in 0..R {
                    for j in 0..N {
                        sums[i][j] = V::read(place(i, j));
                    }
                }
            }
            // Two at a time: large products are up to a fifteenth faster than with a loop of one.
            for _ in 0..k / 2 {
                add_term(&mut sums, a, b);
                add_term(&mut sums, a.from(0, 1), b.wrapping_offset(b_step));
                a = a.from(0, 2);
                b = b.wrapping_offset(2 * b_step);
            }
            if !k.is_multiple_of(2) {
                add_term(&mut sums, a, b);
            }
            if !added.is_null() {
                for i in 0..R {
                    for j in 0..N {
                        sums[i][j] = sums[i][j] + V::read(added.wrapping_add(i * c_step + j * V::WIDTH));
                    }
                }
            }
            for i in 0..R {
                for j in 0..N {
                    sums[i][j].write(place(i, j));
                }
            }
        }
    }
}

/// Adds one term to each sum: the numbers of a's first column, each times those of a row of B.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn add_term<T: Factor, V: Vector<T>, const R: usize, const N: usize>(
    sums: &mut [[V; N]; R],
    a: Matrix<T>,
    b: *const T,
) {
    let mut row = [V::all(T::ZERO); N];
    // SAFETY: the caller's promise.
    unsafe {
        for j in 0..N {
            row[j] = V::read(b.add(j * V::WIDTH));
        }
        for i in 0..R {
            let factor = V::all(*a.at(i, 0));
            for j in 0..N {
                sums[i][j] = factor.mul_add(row[j], sums[i][j]);
            }
        }
    }
}
