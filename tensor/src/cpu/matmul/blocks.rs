//! A product by one thread: blocks that fit the caches, and what of the factors is packed for them.
//!
//! A panel of B, as wide as a tile, stays in the first-level cache while tiles go down the rows of A, a block of A in the second
//! while the panels follow each other, and the panels of a block of B in the last. What lies well is read where it lies: rows of A
//! one number at a time with any step, rows of B in vectors. The rest is copied ([`pack`](super::pack)).

use super::kernel::{ROWS, Tile, heights, most};
use super::pack::{panel, row};
use super::{Factor, Matrix};
use crate::HostBuffer;
use crate::cpu::vector::{Kernel, Vector, for_vectors};

/// Bytes of a line of the caches.
const LINE: usize = 64;
/// Bytes of a panel of B.
const PANEL: usize = 32 << 10;
/// Bytes of a block of A.
const BLOCK_OF_A: usize = 192 << 10;
/// Bytes of a block of B.
const BLOCK_OF_B: usize = 4 << 20;
/// Rows of B are read where they lie if a panel of them spans no more bytes: more, at regular steps, share few places in the
/// first-level cache.
const SPAN_OF_B: usize = 32 << 10;
/// The same of the columns of A, of which a tile reads a few numbers each.
const SPAN_OF_A: usize = 128 << 10;
/// Columns of A that are packed before the next: as many lines, at regular steps, as the first-level cache has places for.
const PACKED_TOGETHER: usize = 8;
/// Fewer rows of A than this make no copy of B worth while.
const FEW_ROWS: usize = 4 * ROWS;
/// Fewer columns of B than this make no copy of A worth while.
const FEW_COLUMNS: usize = 64;

/// `c = a·b`, m×k times k×n, none of them 0, or `c = a·b + added`; the rows of c, and of what is added, lie `c_step` apart.
pub(super) struct Product<T> {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub a: Matrix<T>,
    pub b: Matrix<T>,
    pub c: *mut T,
    pub c_step: usize,
    /// Null if nothing is.
    pub added: *const T,
}

impl<T: Factor> Product<T> {
    /// Computes it.
    ///
    /// # Safety
    /// The elements of the factors and of what is added lie in memory, and nothing else reads or writes the result's.
    pub unsafe fn compute(self) {
        for_vectors(self);
    }
}

impl<T: Factor> Kernel<T> for Product<T> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let Product { m, k, n, a, b, c, c_step, added } = self;
        let most = most::<T, V>(m);
        let numbers = |bytes: usize| bytes / size_of::<T>();
        // Every block of k is a pass over the result. Rather than more than two, blocks one level farther from the processor:
        // those with vectors of a line have a second level of a megabyte and more, and load from it as fast as a tile multiplies.
        // But rather passes than a copy of A.
        let near = numbers(PANEL) / (most * V::WIDTH);
        let spans = |step: isize, k: usize| step.unsigned_abs() * k * size_of::<T>();
        let must_be_packed = |k: usize| n >= FEW_COLUMNS && spans(a.steps.column, k) > SPAN_OF_A;
        let has_far = V::WIDTH * size_of::<T>() == LINE && k > 2 * near;
        let farther =
            if has_far && (must_be_packed(near) || !must_be_packed(k.min(8 * near))) { 8 } else { 1 };
        let k_block = part(k, farther * near, 1);
        let m_block = part(m, farther * numbers(BLOCK_OF_A) / k_block, ROWS);
        let n_block = part(n, numbers(BLOCK_OF_B) / k_block, most * V::WIDTH);

        let pack_a = must_be_packed(k_block);
        let pack_b = b.steps.column != 1 || m >= FEW_ROWS && spans(b.steps.row, k_block) > SPAN_OF_B;
        // One panel after another takes the same place, unless they are read again for another block of A.
        let keep_b = pack_b && m > m_block;
        // A panel that is not whole vectors is copied in any case, and the tiles of its part of the result are computed apart.
        let ragged = n % V::WIDTH > 0;
        let scratch =
            |wanted: bool, size: usize| wanted.then(|| HostBuffer::new((size + V::WIDTH) * size_of::<T>()));
        let mut packed_a = scratch(pack_a, m.min(m_block) * k_block);
        let mut packed_b = scratch(
            pack_b || ragged,
            k_block * if keep_b { n.min(n_block).next_multiple_of(most * V::WIDTH) } else { most * V::WIDTH },
        );
        let mut apart = scratch(ragged, ROWS * most * V::WIDTH);
        let [packed_a, packed_b, apart] = [&mut packed_a, &mut packed_b, &mut apart].map(start::<T>);

        for (j_block, n_part) in parts(n, n_block) {
            for (p, k_part) in parts(k, k_block) {
                for (i_block, m_part) in parts(m, m_block) {
                    if pack_a {
                        // A few columns of A for all tiles, then the next: what a tile takes of a column is less than a line.
                        for (q, columns) in parts(k_part, PACKED_TOGETHER) {
                            for (i, rows) in heights(m_part) {
                                let tile = a.from(i_block + i, p + q).transposed();
                                let to = packed_a.wrapping_add(i * k_part + q * rows);
                                // SAFETY: rows and terms of the block are there, and the memory has room for the block and a
                                // vector. Columns of A do not lie one number apart, so none of those is written (`panel`
                                // does only where it transposes): it could be another tile's.
                                unsafe { panel::<T, V>(tile, columns, rows, to, rows) };
                            }
                        }
                    }
                    let mut done = 0;
                    while done < n_part {
                        let j = j_block + done;
                        let vectors = 1 << (n_part - done).div_ceil(V::WIDTH).min(most).ilog2();
                        let width = vectors * V::WIDTH;
                        let columns = width.min(n_part - done);
                        let whole = columns == width;
                        let (from, b_step) = if pack_b || !whole {
                            let to = packed_b.wrapping_add(if keep_b { done * k_part } else { 0 });
                            if i_block == 0 {
                                // SAFETY: columns and terms are there, and the memory has room for the panels and a vector.
                                unsafe { panel::<T, V>(b.from(p, j), k_part, columns, to, width) };
                            }
                            (to.cast_const(), width as isize)
                        } else {
                            (b.at(p, j), b.steps.row)
                        };
                        for (i, rows) in heights(m_part) {
                            let a = if pack_a {
                                Matrix::new(packed_a.wrapping_add(i * k_part), 1, rows as isize)
                            } else {
                                a.from(i_block + i, p)
                            };
                            let at = (i_block + i) * c_step + j;
                            let place = c.wrapping_add(at);
                            // The sums are whole after the last of their terms.
                            let added = if added.is_null() || p + k_part < k {
                                std::ptr::null()
                            } else {
                                added.wrapping_add(at)
                            };
                            let (to, to_step) = if whole { (place, c_step) } else { (apart, width) };
                            let first = p == 0;
                            if !whole && !first {
                                copy_rows::<T, V>(rows, columns, place, c_step, apart, width);
                            }
                            let in_tile = if whole { added } else { std::ptr::null() };
                            let tile = Tile {
                                k: k_part,
                                a,
                                b: from,
                                b_step,
                                c: to,
                                c_step: to_step,
                                first,
                                added: in_tile,
                            };
                            // SAFETY: `a` has these rows and terms; `from` has whole vectors, of B itself or of a panel; the
                            // tile is whole in the result, or in memory for one, and what is added lies as the result does.
                            unsafe { tile.compute::<V>(rows, vectors) };
                            if !whole {
                                copy_rows::<T, V>(rows, columns, apart, width, place, c_step);
                                if !added.is_null() {
                                    add_rows(rows, columns, added, place, c_step);
                                }
                            }
                        }
                        done += columns;
                    }
                }
            }
        }
    }
}

/// Where scratch memory begins, if there is any.
fn start<T: Factor>(scratch: &mut Option<HostBuffer>) -> *mut T {
    scratch.as_mut().map_or(std::ptr::null_mut(), |scratch| scratch.as_mut().as_mut_ptr())
}

/// The size of equal parts of at most `most`, in whole units.
fn part(total: usize, most: usize, unit: usize) -> usize {
    total.div_ceil(total.div_ceil(most.max(unit)).max(1)).next_multiple_of(unit)
}

/// Parts of a size: where each begins and how much of it there is.
fn parts(total: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(size).map(move |start| (start, size.min(total - start)))
}

/// Adds `columns` numbers to those of each of some rows. Both places have them, the rows equally far apart.
#[inline(always)]
fn add_rows<T: Factor>(rows: usize, columns: usize, added: *const T, to: *mut T, step: usize) {
    for at in (0..rows).flat_map(|i| (0..columns).map(move |j| i * step + j)) {
        // SAFETY: the rows are in the result and in what is added, both of which have these columns.
        unsafe { *to.wrapping_add(at) = *to.wrapping_add(at) + *added.wrapping_add(at) };
    }
}

/// Copies `columns` numbers of each of some rows. Both places have them.
#[inline(always)]
fn copy_rows<T: Factor, V: Vector<T>>(
    rows: usize,
    columns: usize,
    from: *const T,
    from_step: usize,
    to: *mut T,
    to_step: usize,
) {
    for i in 0..rows {
        let of_row = Matrix::new(from.wrapping_add(i * from_step), 0, 1);
        // SAFETY: the rows are in the result or in memory for a tile, both of which have these columns.
        unsafe { row::<T, V>(of_row, columns, to.wrapping_add(i * to_step)) };
    }
}
