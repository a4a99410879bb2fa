//! Combining the elements along some axes.
//!
//! The order of combination is a balanced tree that depends on the shape and the axes alone: not on strides, not
//! on threads. A sum of n numbers so loses O(log n) roundings, not O(n).
//!
//! The axes are brought into the order (kept, reduced, kept), of sizes `[K, R, C]`. Where C = 1 each row is
//! reduced by lanes, lane i combining every 32nd element; otherwise whole rows of C columns are combined, so that
//! memory is read in order in either case.

use half::bf16;
use smallvec::SmallVec;

use super::math::Float;
use super::simd::widest;
use super::stored::Stored;
use super::threads::{self, CHUNK, PARALLEL};
use super::walk::{BLOCK, Reader, contiguous_data};
use crate::{DType, HostBuffer, Reduce, Result, Tensor};

/// Combines the elements along `axes`, which keep size 1. i64 arithmetic wraps around.
pub(super) fn reduce(f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F32 => of_number::<f32>(f, x, axes),
        DType::F64 => of_number::<f64>(f, x, axes),
        DType::BF16 => of_number::<bf16>(f, x, axes),
        DType::I64 => of_number::<i64>(f, x, axes),
        DType::Bool => unreachable!("{} is not defined for bool", f.name()),
    })
}

/// What the accumulating types have in common.
pub(super) trait Number: Copy {
    const ZERO: Self;
    const ONE: Self;
    const LOWEST: Self;
    const HIGHEST: Self;
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// The larger, NaN if either is.
    fn larger(self, other: Self) -> Self;
    /// The smaller, NaN if either is.
    fn smaller(self, other: Self) -> Self;
}

macro_rules! number {
    ($t:ty, $zero:expr, $one:expr, $lowest:expr, $highest:expr, $add:expr, $mul:expr, $larger:expr, $smaller:expr) => {
        impl Number for $t {
            const ZERO: Self = $zero;
            const ONE: Self = $one;
            const LOWEST: Self = $lowest;
            const HIGHEST: Self = $highest;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                $add(self, other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                $mul(self, other)
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                $larger(self, other)
            }
            #[inline(always)]
            fn smaller(self, other: Self) -> Self {
                $smaller(self, other)
            }
        }
    };
}

use std::ops::{Add, Mul};
number!(f32, 0.0, 1.0, f32::NEG_INFINITY, f32::INFINITY, Add::add, Mul::mul, Float::maximum, Float::minimum);
number!(f64, 0.0, 1.0, f64::NEG_INFINITY, f64::INFINITY, Add::add, Mul::mul, Float::maximum, Float::minimum);
number!(i64, 0, 1, i64::MIN, i64::MAX, i64::wrapping_add, i64::wrapping_mul, Ord::max, Ord::min);

fn of_number<S: Stored<Wide: Number>>(f: Reduce, x: &Tensor, axes: &[usize]) -> Tensor {
    match f {
        Reduce::Sum => fold::<S>(x, axes, Number::ZERO, Number::add),
        Reduce::Prod => fold::<S>(x, axes, Number::ONE, Number::mul),
        Reduce::Max => fold::<S>(x, axes, Number::LOWEST, Number::larger),
        Reduce::Min => fold::<S>(x, axes, Number::HIGHEST, Number::smaller),
        Reduce::ArgMax => argmax::<S>(x, axes[0]),
    }
}

fn fold<S: Stored>(
    x: &Tensor,
    axes: &[usize],
    identity: S::Wide,
    combine: impl Fn(S::Wide, S::Wide) -> S::Wide + Copy + Sync,
) -> Tensor {
    let shape = x.shape().with_ones(axes);
    let after = axes.last().map_or(0, |&last| last + 1);
    let kept = (0..after).filter(|axis| !axes.contains(axis));
    let order: SmallVec<[usize; 6]> =
        kept.chain(axes.iter().copied()).chain(after..x.shape().len()).collect();
    let view = x.permute(&order);
    let r: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
    let c: usize = x.shape()[after..].iter().product();

    let mut buffer = HostBuffer::new(shape.elements() * size_of::<S>());
    let out = buffer.as_mut::<S>();
    let fold = Fold::<S, _> { view: &view, data: contiguous_data(&view), r, c, identity, combine };
    if r == 0 {
        out.fill(S::store(identity));
    } else if c == 1 {
        fold.rows(out);
    } else if c > 1 {
        fold.columns(out);
    }
    buffer.into_tensor(shape, x.dtype())
}

/// Lanes of a long row: two registers of sixteen f32, eight of four.
const LANES: usize = 32;
/// Lanes of a row shorter than that.
const FEW_LANES: usize = 4;
/// Columns combined at once, if the rows lie one behind the other: memory is fastest where a row is read to its end.
const TILE: usize = 4 * BLOCK;
/// Rows combined one after the other before the tree begins.
pub(super) const ROWS: usize = 16;

struct Fold<'a, S: Stored, F> {
    /// The operand with its axes in the order kept, reduced, kept.
    view: &'a Tensor,
    /// Its elements, if they lie in that order.
    data: Option<&'a [S]>,
    /// Elements along the reduced axes.
    r: usize,
    /// Elements along the kept axes after them.
    c: usize,
    identity: S::Wide,
    combine: F,
}

impl<S: Stored, F: Fn(S::Wide, S::Wide) -> S::Wide + Copy + Sync> Fold<'_, S, F> {
    /// Reduces rows of `r` elements, one per element of `out`.
    fn rows(&self, out: &mut [S]) {
        if self.r >= PARALLEL {
            for (k, out) in out.iter_mut().enumerate() {
                *out = self.lanes_into_one(self.forked_row(k * self.r, self.r));
            }
        } else if self.r * out.len() >= PARALLEL {
            let rows = (CHUNK / self.r).max(1);
            threads::chunks(out, rows, |i, out| self.some_rows(i * rows, out));
        } else {
            self.some_rows(0, out);
        }
    }

    /// Rows number `first`, `first + 1`, …
    fn some_rows(&self, first: usize, out: &mut [S]) {
        let mut reader = Reader::of(self.view, first * self.r);
        if self.r > BLOCK {
            out.iter_mut().for_each(|out| *out = self.lanes_into_one(self.row(&mut reader, self.r)));
        } else if self.r >= LANES {
            self.short_rows::<LANES>(&mut reader, out);
        } else {
            self.short_rows::<FEW_LANES>(&mut reader, out);
        }
    }

    /// The next rows, of one block each.
    fn short_rows<const L: usize>(&self, reader: &mut Reader<S>, out: &mut [S]) {
        widest(
            #[inline(always)]
            || {
                for out in out {
                    *out = self.lanes_into_one::<L>(self.block(reader.next(self.r)));
                }
            },
        )
    }

    /// The next `len` elements, combined into lanes.
    fn row(&self, reader: &mut Reader<S>, len: usize) -> [S::Wide; LANES] {
        if len <= BLOCK {
            let x = reader.next(len);
            return widest(
                #[inline(always)]
                || self.block(x),
            );
        }
        let half = half_of(len, BLOCK);
        let left = self.row(reader, half);
        self.merge(left, self.row(reader, len - half))
    }

    /// What [`row`](Fold::row) returns for the elements from `start` on, by several threads.
    fn forked_row(&self, start: usize, len: usize) -> [S::Wide; LANES] {
        if len < PARALLEL {
            return self.row(&mut Reader::of(self.view, start), len);
        }
        let half = half_of(len, BLOCK);
        let (left, right) =
            threads::join(|| self.forked_row(start, half), || self.forked_row(start + half, len - half));
        self.merge(left, right)
    }

    #[inline(always)]
    fn block<const L: usize>(&self, x: &[S]) -> [S::Wide; L] {
        let combine = self.combine;
        let mut lanes = [self.identity; L];
        let (whole, rest) = x.as_chunks::<L>();
        for chunk in whole {
            for i in 0..L {
                lanes[i] = combine(lanes[i], chunk[i].load());
            }
        }
        for (lane, v) in lanes.iter_mut().zip(rest) {
            *lane = combine(*lane, v.load());
        }
        lanes
    }

    fn merge(&self, mut left: [S::Wide; LANES], right: [S::Wide; LANES]) -> [S::Wide; LANES] {
        self.merge_into(&mut left, &right);
        left
    }

    #[inline(always)]
    fn lanes_into_one<const L: usize>(&self, lanes: [S::Wide; L]) -> S {
        S::store(in_pairs(lanes, self.combine))
    }

    /// Reduces `[K, r, c]` to `out`, `[K, c]`.
    fn columns(&self, out: &mut [S]) {
        let width = if self.data.is_some() { TILE } else { BLOCK };
        let tile = |k: usize, t: usize, out: &mut [S]| {
            self.with_nothing(out.len(), |acc| {
                self.forked_tile(k * self.r * self.c + t * width, self.r, acc);
                out.iter_mut().zip(acc).for_each(|(out, acc)| *out = S::store(*acc));
            });
        };
        if self.r * out.len() >= PARALLEL {
            threads::chunks(out, self.c, |k, out| threads::chunks(out, width, |t, out| tile(k, t, out)));
        } else {
            for (k, out) in out.chunks_mut(self.c).enumerate() {
                out.chunks_mut(width).enumerate().for_each(|(t, out)| tile(k, t, out));
            }
        }
    }

    /// Calls `f` with so many values to combine others into.
    fn with_nothing(&self, count: usize, f: impl FnOnce(&mut [S::Wide])) {
        if count <= BLOCK {
            f(&mut [self.identity; BLOCK][..count]);
        } else {
            let mut buffer = HostBuffer::new(count * size_of::<S::Wide>());
            buffer.as_mut().fill(self.identity);
            f(buffer.as_mut());
        }
    }

    /// Combines `rows` rows, the first at element number `start`, into `acc`; by several threads if they are many.
    fn forked_tile(&self, start: usize, rows: usize, acc: &mut [S::Wide]) {
        if rows * acc.len() < PARALLEL {
            return self.tile(&mut Reader::of(self.view, start), start, rows, acc);
        }
        let half = half_of(rows, ROWS);
        self.with_nothing(acc.len(), |other| {
            threads::join(
                || self.forked_tile(start, half, acc),
                || self.forked_tile(start + half * self.c, rows - half, other),
            );
            self.merge_into(acc, other);
        });
    }

    fn tile(&self, reader: &mut Reader<S>, start: usize, rows: usize, acc: &mut [S::Wide]) {
        if rows > ROWS {
            let half = half_of(rows, ROWS);
            self.tile(reader, start, half, acc);
            return self.with_nothing(acc.len(), |other| {
                self.tile(reader, start + half * self.c, rows - half, other);
                self.merge_into(acc, other);
            });
        }
        widest(
            #[inline(always)]
            || match self.data {
                Some(data) => self.combine_rows(&data[start..], rows, acc),
                None => self.read_rows(reader, start, rows, acc),
            },
        )
    }

    /// Combines `rows` rows into `acc`, which begin with `x` and every `c` elements after it: four at a time, so that `acc` is read
    /// and written once for all of them.
    #[inline(always)]
    fn combine_rows(&self, x: &[S], rows: usize, acc: &mut [S::Wide]) {
        let (combine, width) = (self.combine, acc.len());
        let row = |i: usize| &x[i * self.c..][..width];
        let in_fours = rows - rows % 4;
        for i in (0..in_fours).step_by(4) {
            let (a, b, c, d) = (row(i), row(i + 1), row(i + 2), row(i + 3));
            for j in 0..width {
                let two = combine(combine(acc[j], a[j].load()), b[j].load());
                acc[j] = combine(combine(two, c[j].load()), d[j].load());
            }
        }
        for i in in_fours..rows {
            let x = row(i);
            for j in 0..width {
                acc[j] = combine(acc[j], x[j].load());
            }
        }
    }

    /// As [`combine_rows`](Fold::combine_rows), of rows that do not lie in order. Narrow ones are read several at a time; wider
    /// ones than a block leave a gap to the next.
    #[inline(always)]
    fn read_rows(&self, reader: &mut Reader<S>, start: usize, rows: usize, acc: &mut [S::Wide]) {
        let (combine, width) = (self.combine, acc.len());
        let at_once = if width == self.c { BLOCK / width } else { 1 };
        for row in (0..rows).step_by(at_once) {
            if width < self.c {
                reader.seek(start + row * self.c);
            }
            let x = reader.next(width * at_once.min(rows - row));
            for x in x.chunks_exact(width) {
                for j in 0..width {
                    acc[j] = combine(acc[j], x[j].load());
                }
            }
        }
    }

    fn merge_into(&self, acc: &mut [S::Wide], other: &[S::Wide]) {
        acc.iter_mut().zip(other).for_each(|(acc, &other)| *acc = (self.combine)(*acc, other));
    }
}

/// Lanes combined in pairs, again and again.
#[inline(always)]
fn in_pairs<T: Copy, const L: usize>(mut lanes: [T; L], combine: impl Fn(T, T) -> T) -> T {
    let mut n = L;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = combine(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}

/// Where to cut `n > unit` in two: a multiple of `unit` near the middle.
pub(super) fn half_of(n: usize, unit: usize) -> usize {
    (n / 2).next_multiple_of(unit)
}

/// The index of the first largest element along an axis; a NaN counts as largest.
fn argmax<S: Stored<Wide: Number>>(x: &Tensor, axis: usize) -> Tensor {
    let n = x.shape()[axis];
    let order: SmallVec<[usize; 6]> = (0..x.shape().len()).filter(|&a| a != axis).chain([axis]).collect();
    let view = x.permute(&order);
    let shape = x.shape().with_ones(&[axis]);
    let mut buffer = HostBuffer::new(shape.elements() * size_of::<i64>());
    threads::pieces(buffer.as_mut::<i64>(), |first, out| {
        let mut reader = Reader::<S>::of(&view, first * n);
        for out in out {
            let mut best = (0, S::Wide::LOWEST);
            for start in (0..n).step_by(BLOCK) {
                let (i, v) = first_largest(reader.next(BLOCK.min(n - start)));
                if start == 0 || v > best.1 || is_nan(v) && !is_nan(best.1) {
                    best = (start + i, v);
                }
            }
            *out = best.0 as i64;
        }
    });
    buffer.into_tensor(shape, DType::I64)
}

/// The first largest element of a block, NaN if there is one, and where it stands: what it is first, by vectors, and then
/// where that is.
fn first_largest<S: Stored<Wide: Number>>(x: &[S]) -> (usize, S::Wide) {
    widest(
        #[inline(always)]
        || {
            let (groups, rest) = x.as_chunks::<LANES>();
            let mut lanes = [S::Wide::LOWEST; LANES];
            for group in groups {
                for i in 0..LANES {
                    lanes[i] = lanes[i].larger(group[i].load());
                }
            }
            let mut largest = in_pairs(lanes, Number::larger);
            for v in rest {
                largest = largest.larger(v.load());
            }
            let is_it = |v: S::Wide| v == largest || is_nan(v) && is_nan(largest);
            // Of each lane the first group in which it is the largest.
            let mut first = [groups.len() as u32; LANES];
            for g in (0..groups.len()).rev() {
                for i in 0..LANES {
                    first[i] = if is_it(groups[g][i].load()) { g as u32 } else { first[i] };
                }
            }
            for i in 0..LANES {
                first[i] = first[i] * LANES as u32 + i as u32;
            }
            let mut at = in_pairs(first, u32::min) as usize;
            // Otherwise it is in the rest.
            if at >= groups.len() * LANES {
                at = groups.len() * LANES;
                while !is_it(x[at].load()) {
                    at += 1;
                }
            }
            (at, largest)
        },
    )
}

/// Whether a value does not even compare with itself.
#[inline(always)]
pub(super) fn is_nan<T: PartialOrd>(v: T) -> bool {
    v.partial_cmp(&v).is_none()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{FLOATS, assert_close, naive, values, views};
    use super::*;

    const NUMBERS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::I64];

    /// Folds in f64, element by element, by the definition.
    fn by_definition(f: Reduce, x: &Tensor, axes: &[usize]) -> Vec<f64> {
        let shape = x.shape().with_ones(axes);
        let identity = match f {
            Reduce::Sum => 0.0,
            Reduce::Prod => 1.0,
            Reduce::Max => f64::NEG_INFINITY,
            _ => f64::INFINITY,
        };
        let mut out = vec![identity; shape.elements()];
        for (position, v) in naive(x).into_iter().enumerate() {
            let (mut rest, mut at, mut step) = (position, 0, 1);
            for axis in (0..shape.len()).rev() {
                let i = rest % x.shape()[axis];
                rest /= x.shape()[axis];
                at += if shape[axis] == 1 { 0 } else { i * step };
                step *= shape[axis];
            }
            out[at] = match f {
                Reduce::Sum => out[at] + v,
                Reduce::Prod => out[at] * v,
                Reduce::Max => out[at].max(v),
                _ => out[at].min(v),
            };
        }
        out
    }

    #[test]
    fn every_reduction_agrees_with_its_definition() {
        let cases: [(&[usize], &[&[usize]]); 8] = [
            (&[], &[&[]]),
            (&[1], &[&[0]]),
            (&[3, 4], &[&[0], &[1], &[0, 1]]),
            (&[2, 3, 5], &[&[0], &[1], &[2], &[0, 2], &[0, 1], &[1, 2], &[0, 1, 2]]),
            (&[2, 3, 2, 2], &[&[1, 3], &[0, 2], &[0, 3]]),
            (&[40, 3], &[&[0], &[1]]),
            (&[3, 70], &[&[0], &[1]]),
            (&[37, 1030], &[&[0], &[1]]),
        ];
        for dtype in NUMBERS {
            for (sizes, all_axes) in cases {
                for x in views(sizes, dtype) {
                    for &axes in all_axes {
                        for f in [Reduce::Sum, Reduce::Max, Reduce::Min] {
                            let y = reduce(f, &x, axes).unwrap();
                            assert_eq!(y.shape(), &x.shape().with_ones(axes));
                            // These values are multiples of 1/8, so sums below 2^20 are exact in f32.
                            assert_close(f.name(), &y, &by_definition(f, &x, axes), 0.5);
                        }
                        if sizes.iter().product::<usize>() <= 30 {
                            let ones = x.cast(DType::Bool).unwrap().cast(dtype).unwrap();
                            let two = crate::Map::Affine { mul: 2.0, add: 0.0 };
                            let x = Tensor::map(two, &[&ones]).unwrap();
                            let y = reduce(Reduce::Prod, &x, axes).unwrap();
                            assert_close("prod", &y, &by_definition(Reduce::Prod, &x, axes), 0.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_sums_to_zero_and_multiplies_to_one() {
        for dtype in NUMBERS {
            let x = Tensor::zeros([2, 0, 3], dtype);
            assert_eq!(naive(&reduce(Reduce::Sum, &x, &[1]).unwrap()), [0.0; 6]);
            assert_eq!(naive(&reduce(Reduce::Prod, &x, &[0, 1, 2]).unwrap()), [1.0]);
            assert_eq!(reduce(Reduce::Max, &x, &[0]).unwrap().elements(), 0);
            assert_eq!(reduce(Reduce::ArgMax, &x, &[2]).unwrap().elements(), 0);
        }
    }

    #[test]
    fn one_nan_anywhere_is_seen() {
        for dtype in FLOATS {
            for at in [0, 1, 31, 32, 299] {
                let mut v = values(300, dtype);
                v[at] = f64::NAN;
                let x = Tensor::from_f64(&v, [300], dtype);
                for x in [x.reshape([300, 1]).unwrap(), x.expand([2, 300]).transpose(0, 1)] {
                    for f in [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min] {
                        let y = naive(&reduce(f, &x, &[0]).unwrap());
                        assert!(y.iter().all(|v| v.is_nan()), "{} with NaN at {at}", f.name());
                    }
                    assert_eq!(naive(&reduce(Reduce::ArgMax, &x, &[0]).unwrap())[0], at as f64);
                }
            }
        }
    }

    #[test]
    fn argmax_is_the_first_largest() {
        for dtype in NUMBERS {
            for x in views(&[4, 5, 3], dtype) {
                for axis in 0..3 {
                    let y = reduce(Reduce::ArgMax, &x, &[axis]).unwrap();
                    let largest = naive(&reduce(Reduce::Max, &x, &[axis]).unwrap());
                    let back: Vec<usize> = (0..3).filter(|&a| a != axis).chain([axis]).collect();
                    let rows = naive(&x.permute(&back));
                    let n = x.shape()[axis];
                    for (row, (found, max)) in rows.chunks(n).zip(naive(&y).into_iter().zip(largest)) {
                        assert_eq!(found as usize, row.iter().position(|&v| v == max).unwrap());
                    }
                }
            }
        }
        let x = Tensor::from_vec(vec![1.0f32, f32::NAN, 3.0, f32::NAN], [4]);
        assert_eq!(naive(&reduce(Reduce::ArgMax, &x, &[0]).unwrap()), [1.0]);
        // In rows of several blocks: ties between lanes, groups, blocks and what is left of a row, and NaN in two of them.
        for at in [[33, 40], [31, 64], [255, 256], [5, 599], [590, 599]] {
            for (largest, dtype) in
                [(9.0, DType::F32), (9.0, DType::I64), (9.0, DType::BF16), (f64::NAN, DType::F64)]
            {
                let mut v = vec![1.0; 600];
                at.into_iter().for_each(|at| v[at] = largest);
                let x = Tensor::from_f64(&v, [600], dtype);
                assert_eq!(naive(&reduce(Reduce::ArgMax, &x, &[0]).unwrap()), [at[0] as f64], "{dtype}");
            }
        }
        let lowest = Tensor::full([600], f64::NEG_INFINITY, DType::F64);
        assert_eq!(naive(&reduce(Reduce::ArgMax, &lowest, &[0]).unwrap()), [0.0]);
        let lowest = Tensor::from_vec(vec![i64::MIN; 600], [600]);
        assert_eq!(naive(&reduce(Reduce::ArgMax, &lowest, &[0]).unwrap()), [0.0]);
        let x = Tensor::full([3], f64::NEG_INFINITY, DType::F32);
        assert_eq!(naive(&reduce(Reduce::ArgMax, &x, &[0]).unwrap()), [0.0]);
    }

    #[test]
    fn sums_of_many_numbers_keep_their_digits() {
        // 0.1 added one after the other 2^20 times loses more than a thousandth in f32.
        let n = 1 << 20;
        for (dtype, ulps) in [(DType::F32, 2.0), (DType::F64, 2.0), (DType::BF16, 0.5)] {
            let tenth = Tensor::full([], 0.1, dtype);
            let exact = naive(&tenth)[0] * n as f64;
            for (shape, axes) in [(vec![n], &[0][..]), (vec![n, 2], &[0]), (vec![2, n], &[1])] {
                let y = reduce(Reduce::Sum, &tenth.expand(shape).contiguous().unwrap(), axes).unwrap();
                assert_close("sum", &y, &vec![exact; y.elements()], ulps);
            }
        }
    }

    #[test]
    fn bits_depend_on_shape_and_axes_alone() {
        let (m, n) = (1200, 300);
        let x = Tensor::from_f64(&values(m * n, DType::F32), [m, n], DType::F32);
        let x = Tensor::map(crate::Map::Sin, &[&x]).unwrap();
        let turned = x.transpose(0, 1).contiguous().unwrap().transpose(0, 1);
        let bits = |x: &Tensor, axes: &[usize]| {
            let y = reduce(Reduce::Sum, x, axes).unwrap();
            y.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for axes in [&[0][..], &[1], &[0, 1]] {
            let expected = bits(&x, axes);
            assert_eq!(bits(&turned, axes), expected, "another layout, axes {axes:?}");
            for pool in &pools {
                assert_eq!(pool.install(|| bits(&x, axes)), expected, "threads, axes {axes:?}");
            }
        }
        let part = bits(&x.slice(0, 100, 110, 1), &[1]);
        assert_eq!(part, bits(&x, &[1])[100..110], "a row alone, and among others");
    }
}
