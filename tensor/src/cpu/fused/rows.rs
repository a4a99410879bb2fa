//! Results made row by row.
//!
//! A row is one thread's, whole, so the number of threads cannot change its bits. Functions of rows, and what they call, must
//! be marked `#[inline(always)]` (see [`widest`]).

use super::super::past_caches::{self, GROUP, Stores};
use super::super::simd::widest;
use super::super::threads;
use super::super::vector::{Kernel, Vector, for_vectors, prefetch};
use super::{PARALLEL_ELEMENTS, Real, expect_shape, last_axis, row_major};
use crate::{HostBuffer, Result, Tensor};

/// Of longer rows, in bytes, a draft would not stay in a core's caches: those are drafted where they will lie.
const LONGEST_DRAFT: usize = 512 << 10;

/// Calls `f` with each row of `out` and its number. `work` is the number of elements handled per row.
pub(super) fn for_rows<T: Real>(
    out: &mut [T],
    width: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Copy + Sync,
) {
    for_blocks(
        out,
        width,
        work,
        #[inline(always)]
        move |first, rows| {
            // Not `for_each`: that would be a function of its own, compiled for the vectors that every processor has.
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                f(first + i, row);
            }
        },
    );
}

/// Calls `f` with some rows at a time and the number of the first.
fn for_blocks<T: Real>(out: &mut [T], width: usize, work: usize, f: impl Fn(usize, &mut [T]) + Copy + Sync) {
    if out.is_empty() {
        return;
    }
    // `f` goes on by value: behind a reference it would be called, and compiled for the vectors that every processor has.
    let block = move |first: usize, rows: &mut [T]| {
        widest(
            #[inline(always)]
            move || f(first, rows),
        )
    };
    let rows_per_task = (PARALLEL_ELEMENTS / 2).div_ceil(work.max(1));
    if out.len() / width * work < PARALLEL_ELEMENTS {
        block(0, out);
    } else {
        threads::chunks(out, width * rows_per_task, |i, rows| block(i * rows_per_task, rows));
    }
}

/// A tensor like `x` whose rows (along the last axis) are made of the rows of `x`.
pub(super) fn map_rows<T: Real>(x: &Tensor, f: impl Fn(&[T], Row<'_, T, 1>) + Copy + Sync) -> Result<Tensor> {
    let (width, x) = (last_axis(x), x.contiguous()?);
    let out = rows_of(
        [row_major::<T>(&x)],
        width,
        #[inline(always)]
        move |_, [x], out| f(x, out),
    );
    Ok(out.into_tensor(x.shape(), T::DTYPE))
}

/// A tensor like `a` whose rows are made of those of `a` and `b`, which has the same shape. `kernel` is named in messages.
pub(super) fn zip_rows<T: Real>(
    kernel: &str,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(&[T], &[T], Row<'_, T, 2>) + Copy + Sync,
) -> Result<Tensor> {
    expect_shape(kernel, b, a.shape());
    let (shape, width) = (a.shape(), last_axis(a));
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let out = rows_of(
        [row_major::<T>(&a), row_major::<T>(&b)],
        width,
        #[inline(always)]
        move |_, [a, b], out| f(a, b, out),
    );
    Ok(out.into_tensor(shape, T::DTYPE))
}

/// A result with as many elements as each of K operands: calls `f` with the number of each row, the operands' rows and the
/// result's.
pub(super) fn rows_of<T: Real, const K: usize>(
    x: [&[T]; K],
    width: usize,
    f: impl Fn(usize, [&[T]; K], Row<'_, T, K>) + Copy + Sync,
) -> HostBuffer {
    let mut out = HostBuffer::new(size_of_val(x[0]));
    // Of short rows, some at a time: the very next would be asked for too late.
    let ahead = (past_caches::AHEAD / size_of::<T>()).div_ceil(width.max(1)) * width;
    for_blocks(
        out.as_mut(),
        width,
        width,
        #[inline(always)]
        move |first, rows| {
            Stores::with(
                size_of_val(x[0]),
                rows,
                #[inline(always)]
                move |rows, stores| {
                    let mut buffer = None;
                    for (i, out) in rows.chunks_exact_mut(width).enumerate() {
                        let (at, mut row, mut next) = ((first + i) * width, x, x);
                        for k in 0..K {
                            row[k] = &x[k][at..at + width];
                            next[k] = &x[k][(at + ahead).min(x[k].len())..];
                        }
                        let next = stores.are_past().then_some(next);
                        f(first + i, row, Row { out, stores, next, buffer: &mut buffer, is_apart: false });
                    }
                },
            );
        },
    );
    out
}

/// A row of a result that is made of rows of K operands.
pub(super) struct Row<'a, T, const K: usize> {
    out: &'a mut [T],
    stores: Stores,
    /// What will be read of the operands a while after this row, unless it has been asked for.
    next: Option<[&'a [T]; K]>,
    /// Where rows are drafted that are stored past the caches: what is stored so is not to be read again.
    buffer: &'a mut Option<HostBuffer>,
    /// Whether the draft lies there, and not in the row itself.
    is_apart: bool,
}

impl<T: Real, const K: usize> Row<'_, T, K> {
    /// The last pass: element i is `f` of the elements i of some rows.
    #[inline(always)]
    pub fn put<const N: usize>(self, x: [&[T]; N], f: impl Fn([T; N]) -> T) {
        let Row { out, stores, next, .. } = self;
        pass(
            out,
            stores,
            next,
            x,
            #[inline(always)]
            |_, v| f(v),
        );
    }

    /// A pass before the last: element i is `f` of element i of a row. [`put_drafted`](Row::put_drafted) reads them.
    #[inline(always)]
    pub fn draft(&mut self, x: &[T], f: impl Fn(T) -> T) -> &[T] {
        let bytes = size_of_val(&*self.out);
        self.is_apart = self.stores.are_past() && bytes <= LONGEST_DRAFT;
        let draft = if self.is_apart {
            self.buffer.get_or_insert_with(|| HostBuffer::new(bytes)).as_mut()
        } else {
            &mut *self.out
        };
        pass(
            draft,
            Stores::THROUGH,
            self.next.take(),
            [x],
            #[inline(always)]
            |_, [v]| f(v),
        );
        draft
    }

    /// The last pass: element i is `f` of i and element i of the draft.
    #[inline(always)]
    pub fn put_drafted(self, f: impl Fn(usize, T) -> T) {
        let Row { out, stores, next, buffer, is_apart } = self;
        match buffer {
            Some(draft) if is_apart => pass(
                out,
                stores,
                next,
                [draft.as_mut()],
                #[inline(always)]
                |i, [v]| f(i, v),
            ),
            _ => {
                for i in 0..out.len() {
                    out[i] = f(i, out[i]);
                }
            }
        }
    }
}

/// Writes `f` of each place and the elements of N rows there, and meanwhile asks for what is `next`.
#[inline(always)]
fn pass<T: Real, const N: usize, const K: usize>(
    out: &mut [T],
    stores: Stores,
    next: Option<[&[T]; K]>,
    x: [&[T]; N],
    f: impl Fn(usize, [T; N]) -> T,
) {
    for_vectors::<f32>(Pass { out, stores, next, x, f });
}

struct Pass<'a, T, F, const N: usize, const K: usize> {
    out: &'a mut [T],
    stores: Stores,
    next: Option<[&'a [T]; K]>,
    x: [&'a [T]; N],
    f: F,
}

impl<T: Real, F: Fn(usize, [T; N]) -> T, const N: usize, const K: usize> Kernel<f32>
    for Pass<'_, T, F, N, K>
{
    #[inline(always)]
    fn run<V: Vector<f32>>(self) {
        let Pass { out, stores, next, x, f } = self;
        let (mut x_groups, mut x_rest) = ([&[][..]; N], [&[][..]; N]);
        for k in 0..N {
            (x_groups[k], x_rest[k]) = x[k][..out.len()].as_chunks::<GROUP>();
        }
        let (mut groups, rest) = stores.groups(out);
        for i in 0..groups.len() {
            fetch(next, i * GROUP, GROUP);
            let mut y = [T::ZERO; GROUP];
            for j in 0..GROUP {
                let mut v = [T::ZERO; N];
                for k in 0..N {
                    v[k] = x_groups[k][i][j];
                }
                y[j] = f(i * GROUP + j, v);
            }
            groups.put::<V>(i, y);
        }
        let whole = groups.len() * GROUP;
        fetch(next, whole, rest.len());
        for j in 0..rest.len() {
            let mut v = [T::ZERO; N];
            for k in 0..N {
                v[k] = x_rest[k][j];
            }
            rest[j] = f(whole + j, v);
        }
    }
}

/// Asks for so many elements of what is next.
#[inline(always)]
fn fetch<T, const K: usize>(next: Option<[&[T]; K]>, at: usize, count: usize) {
    if let Some(next) = next {
        for k in 0..K {
            for line in (at..at + count).step_by(past_caches::LINE / size_of::<T>()) {
                prefetch::<2, _>(next[k], line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;
    use crate::{DType, Fused};

    #[test]
    fn rows_past_the_caches_have_the_bits_of_those_through_them() {
        // Rows of whole lines, and rows of which most begin within one.
        for columns in [1024, 1003] {
            let rows = past_caches::LARGE / (4 * columns) + 2;
            let [x, g] = [1, 2].map(|seed| numbers([rows, columns], DType::F32, seed));
            let [gain, bias] = [3, 4].map(|seed| numbers([columns], DType::F32, seed));
            let labels = Tensor::from_vec((0..rows as i64).map(|i| i % 7).collect(), [rows]);
            let scale = numbers([rows], DType::F32, 5);
            let eps = 1e-5;
            let all = |at: usize, count: usize| -> Vec<Tensor> {
                let part = |x: &Tensor| x.slice(0, at, at + count, 1);
                let [x, g, labels, scale] = [&x, &g, &labels, &scale].map(part);
                let run = |f, x: &[&Tensor]| Tensor::fused(f, x).unwrap().unwrap();
                vec![
                    run(Fused::Softmax, &[&x]),
                    run(Fused::LogSoftmax, &[&x]),
                    run(Fused::SoftmaxBackward, &[&x, &g]),
                    run(Fused::LogSoftmaxBackward, &[&x, &g]),
                    run(Fused::CrossEntropyBackward, &[&x, &labels, &scale]),
                    run(Fused::LayerNorm { eps }, &[&x, &gain, &bias]),
                    run(Fused::RmsNorm { eps }, &[&x, &gain]),
                ]
            };
            let whole = all(0, rows);
            for at in [0, 1, rows / 2, rows - 3] {
                for (whole, part) in whole.iter().zip(all(at, 3)) {
                    let expected = &row_major::<f32>(whole)[at * columns..][..3 * columns];
                    let found = row_major::<f32>(&part);
                    let same = expected.iter().zip(found).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "rows {at} to {} of {columns} columns", at + 3);
                }
            }
        }
    }
}
