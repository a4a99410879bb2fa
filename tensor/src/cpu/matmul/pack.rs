//! Copies of parts of a factor, in the order in which tiles read them.

use super::{Factor, Matrix};
use crate::cpu::vector::{Vector, WIDEST, transpose};

/// Copies the first `columns` columns of the first k rows of `x` to a panel, whose rows of `width` numbers follow each other.
/// What stands behind the columns in a row of the panel is not defined.
///
/// # Safety
/// The columns are there, at least one and at most `width`, and [`WIDTH`](Vector::WIDTH) numbers behind the panel may be
/// written too.
#[inline(always)]
pub(super) unsafe fn panel<T: Factor, V: Vector<T>>(
    x: Matrix<T>,
    k: usize,
    columns: usize,
    to: *mut T,
    width: usize,
) {
    let mut done = 0;
    // SAFETY: the caller's promise. A square is written from a place inside a row on: what is beyond the row's end lies in rows
    // that are written later, or behind the panel. The pointers to columns behind the last are those of the last.
    unsafe {
        if x.steps.row == 1 && x.steps.column != 1 {
            done = k - k % V::WIDTH;
            for j in (0..columns).step_by(V::WIDTH) {
                let mut starts = [x.first; WIDEST];
                for i in 0..V::WIDTH {
                    starts[i] = x.at(0, (j + i).min(columns - 1));
                }
                for p in (0..done).step_by(V::WIDTH) {
                    transpose(
                        #[inline(always)]
                        |i| V::read(starts[i].add(p)),
                        #[inline(always)]
                        |row, numbers: V| numbers.write(to.add((p + row) * width + j)),
                    );
                }
            }
        }
        for p in done..k {
            row::<T, V>(x.from(p, 0), columns, to.add(p * width));
        }
    }
}

/// Copies the first `columns` numbers of the first row of `x` to a place where they follow each other.
///
/// # Safety
/// They are there, and as many may be written.
#[inline(always)]
pub(super) unsafe fn row<T: Factor, V: Vector<T>>(x: Matrix<T>, columns: usize, to: *mut T) {
    // SAFETY: the caller's promise.
    unsafe {
        if x.steps.column != 1 || columns < 4 {
            for j in 0..columns {
                *to.add(j) = *x.at(0, j);
            }
        } else if columns.is_multiple_of(V::WIDTH) {
            for j in (0..columns).step_by(V::WIDTH) {
                V::read(x.at(0, j)).write(to.add(j));
            }
        } else {
            // Fours, the last of which overlaps the one before.
            let four = |j: usize| x.at(0, j).cast::<[T; 4]>().read_unaligned();
            for j in (0..columns - 3).step_by(4) {
                to.add(j).cast::<[T; 4]>().write_unaligned(four(j));
            }
            to.add(columns - 4).cast::<[T; 4]>().write_unaligned(four(columns - 4));
        }
    }
}
