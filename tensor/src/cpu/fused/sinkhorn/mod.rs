//! Sinkhorn–Knopp: the columns of `exp(H)`, then its rows, divided by their sums, again and again.
//!
//! Every iterate is `diag(u)·K·diag(v)` with one K, so a step is two products of a matrix and a vector:
//! `v = 1/(Kᵀu)`, `u = 1/(Kv)`. There are two ways to carry it out.
//!
//! - **Scalings.** `K = exp(H − column maxima)` (the first step divides the maxima out again) has no entry above 1, and u
//!   and v are multiplied as they are. Matrices of up to 16×16 go side by side, one in each lane of the vectors; of a larger
//!   one the rows are vectors.
//!   What underflows in K is less than 10⁻³⁸ (f32) or 10⁻³⁰⁸ (f64), and can be left out as long as every uᵢ stays within
//!   10⁻¹²..10¹² or 10⁻¹²⁰..10¹²⁰: then every vⱼ does too, because the entry 1 of a column bounds its sum.
//! - **Logarithms.** A matrix whose u leaves that range (or has a NaN) is computed again with `f = ln u`, `g = ln v` and
//!   log-sum-exp, in f64. Nothing overflows there, and no column is lost, whatever the logits are; it takes an
//!   exponential for every entry and half step. It is the reference that the scalings are tested against.
//!
//! Which way a matrix takes, how many steps, and in which order its sums are added up depends on its own logits alone:
//! not on its neighbours, its lane, or the number of threads.

mod logarithms;
mod scalings;

use super::super::threads;
use super::super::vector::{Kernel, Vector, for_vectors};
use super::{Real, row_major};
use crate::{DType, Error, HostBuffer, Result, Stop, Tensor};
use logarithms::Logarithms;
use scalings::{Any, Known, Scalings, Size};

/// One thread's task is a multiple of so many matrices, as many as lie side by side in any vectors.
const SIDE_BY_SIDE: usize = 64;
/// Fewer left over than so many are computed one by one.
const FEW: usize = 4;
/// The largest matrices that go side by side.
const LARGEST_SIDE_BY_SIDE: usize = 16;
/// The most steps whose scalings are kept for matrices side by side.
const LONGEST_SIDE_BY_SIDE: usize = 1000;
/// Products in one thread's task: 50 to 100 microseconds.
const TASK: usize = 1 << 19;
/// Logits looked through at a time.
const CHUNK: usize = 256;

/// `Fused::Sinkhorn`.
pub(super) fn sinkhorn<T: Real>(x: &Tensor, stop: Stop) -> Result<Tensor> {
    kernel::<T>(x, stop, Wanted::Matrix)
}

/// `Fused::SinkhornBackward`.
pub(super) fn backward<T: Real>(x: &Tensor, g: &Tensor, stop: Stop) -> Result<Tensor> {
    assert_eq!(x.shape(), g.shape(), "sinkhorn_backward: the cotangent must have the logits' shape");
    let g = g.contiguous()?;
    kernel::<T>(x, stop, Wanted::Gradient(row_major::<T>(&g)))
}

/// `Fused::SinkhornSteps`.
pub(super) fn steps<T: Real>(x: &Tensor, stop: Stop) -> Result<Tensor> {
    kernel::<T>(x, stop, Wanted::Steps)?.cast(DType::I64)
}

/// What is asked of an iteration.
#[derive(Clone, Copy)]
enum Wanted<'a, T> {
    /// The matrix it ends at.
    Matrix,
    /// The cotangent of the logits, given that of the matrix.
    Gradient(&'a [T]),
    /// How many steps it took.
    Steps,
}

impl<'a, T> Wanted<'a, T> {
    /// The same for some of the matrices; `elements` are theirs.
    fn of(self, elements: std::ops::Range<usize>) -> Wanted<'a, T> {
        match self {
            Wanted::Gradient(g) => Wanted::Gradient(&g[elements]),
            other => other,
        }
    }
}

/// When to stop, resolved for the matrices at hand.
#[derive(Clone, Copy)]
struct End {
    at_most: usize,
    error: Option<f64>,
}

fn kernel<T: Real>(x: &Tensor, stop: Stop, wanted: Wanted<'_, T>) -> Result<Tensor> {
    let rank = x.shape().len();
    assert!(
        rank >= 2 && x.shape()[rank - 1] == x.shape()[rank - 2] && x.shape()[rank - 1] > 0,
        "sinkhorn: expected square matrices in the last two axes, found shape {}",
        x.shape()
    );
    let n = x.shape()[rank - 1];
    let x = x.contiguous()?;
    let logits = row_major::<T>(&x);
    expect_support(logits, n)?;
    let shape = match wanted {
        Wanted::Steps => x.shape().with_ones(&[rank - 2, rank - 1]),
        _ => x.shape().clone(),
    };
    let width = if matches!(wanted, Wanted::Steps) { 1 } else { n * n };
    let mut out = HostBuffer::new(shape.elements() * size_of::<T>());
    let all = out.as_mut::<T>();
    if !all.is_empty() {
        let end = End { at_most: stop.at_most(), error: stop.error(n, T::DTYPE) };
        let task = |first: usize, out: &mut [T]| {
            let elements = first * n * n..(first + out.len() / width) * n * n;
            let logits = &logits[elements.clone()];
            for_vectors(Several { n, logits, wanted: wanted.of(elements), end, width, out });
        };
        // An iteration that waits for a tolerance is taken to last as long as the usual one.
        let work = n * n * 2 * end.at_most.min(20);
        let per_task = TASK.div_ceil(work).next_multiple_of(SIDE_BY_SIDE);
        if all.len() / width < 2 * per_task {
            task(0, all);
        } else {
            threads::chunks(all, per_task * width, |i, out| task(i * per_task, out));
        }
    }
    Ok(out.into_tensor(shape, T::DTYPE))
}

/// A row or a column of nothing but −∞ cannot be scaled to sum to 1.
fn expect_support<T: Real>(logits: &[T], n: usize) -> Result<()> {
    let masked = |v: T| v == T::of(f64::NEG_INFINITY);
    // A chunk at a time, without an early end, becomes vectors.
    if !logits.chunks(CHUNK).any(|chunk| chunk.iter().fold(false, |any, &v| any | masked(v))) {
        return Ok(());
    }
    for (m, h) in logits.chunks_exact(n * n).enumerate() {
        let row = |i: usize| (0..n).all(|j| masked(h[i * n + j]));
        let column = |j: usize| (0..n).all(|i| masked(h[i * n + j]));
        if (0..n).any(|i| row(i) || column(i)) {
            let message = format!(
                "sinkhorn: matrix {m} has a row or a column that is −∞ throughout and cannot sum to 1"
            );
            return Err(Error::Device { device: "cpu".into(), message });
        }
    }
    Ok(())
}

/// Some matrices, computed by one thread.
struct Several<'a, T> {
    n: usize,
    logits: &'a [T],
    wanted: Wanted<'a, T>,
    end: End,
    /// Elements of the result for each matrix.
    width: usize,
    out: &'a mut [T],
}

impl<T: Real> Kernel<T> for Several<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        // The scalings of a long iteration are kept for one matrix at a time: 100,000 steps of many would be gigabytes.
        let kept = if matches!(self.wanted, Wanted::Gradient(_)) { self.end.at_most } else { 0 };
        let side_by_side = self.n <= LARGEST_SIDE_BY_SIDE && kept <= LONGEST_SIDE_BY_SIDE;
        let rest = self.matrices() % V::WIDTH;
        let alone = if !side_by_side {
            self.matrices()
        } else if rest < FEW {
            rest
        } else {
            0
        };
        let together = self.matrices() - alone;
        let (together, alone) = self.split(together);
        match together.n {
            2 => together.scale::<V, _, false>(Known::<2, 4>),
            4 => together.scale::<V, _, false>(Known::<4, 16>),
            8 => together.scale::<V, _, false>(Known::<8, 64>),
            n => together.scale::<V, _, false>(Any(n)),
        }
        let n = alone.n;
        alone.scale::<V, _, true>(Any(n));
    }
}

impl<T: Real> Several<'_, T> {
    fn matrices(&self) -> usize {
        self.out.len() / self.width
    }

    /// The first `count` of them, and the others.
    fn split(self, count: usize) -> (Self, Self) {
        let elements = count * self.n * self.n;
        let (logits, other_logits) = self.logits.split_at(elements);
        let (out, other_out) = self.out.split_at_mut(count * self.width);
        let wanted = self.wanted.of(0..elements);
        let other_wanted = self.wanted.of(elements..self.logits.len());
        (
            Several { logits, wanted, out, ..self },
            Several { logits: other_logits, wanted: other_wanted, out: other_out, ..self },
        )
    }

    /// Computes them, as many at a time as there is room for.
    #[inline(always)]
    fn scale<V: Vector<T>, S: Size, const ALONE: bool>(self, size: S) {
        if self.out.is_empty() {
            return;
        }
        let mut scalings = Scalings::<T, V, S, ALONE>::new(size, self.matrices());
        let mut logarithms = Logarithms::new(self.n);
        let mut left = self;
        while !left.out.is_empty() {
            let count = left.matrices().min(scalings.room());
            let (some, others) = left.split(count);
            scalings.run(&mut logarithms, some);
            left = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::tests::{assert_one_answer, numbers};
    use super::*;
    use crate::Fused;
    use crate::cpu::fixture::{naive, views};

    const STOPS: [Stop; 4] =
        [Stop::Steps(1), Stop::Steps(20), Stop::Tolerance { error: 1e-3, at_most: 40 }, Stop::Converged];

    fn run(f: Fused, x: &[&Tensor]) -> Vec<f64> {
        naive(&Tensor::fused(f, x).unwrap().unwrap())
    }

    /// What the logarithms make of every matrix.
    fn reference(x: &Tensor, stop: Stop, wanted: Wanted<'_, f64>) -> Vec<f64> {
        let n = x.shape()[x.shape().len() - 1];
        let end = End { at_most: stop.at_most(), error: stop.error(n, x.dtype()) };
        let (values, mut logarithms) = (naive(x), Logarithms::new(n));
        let width = if matches!(wanted, Wanted::Steps) { 1 } else { n * n };
        let mut all = Vec::new();
        for (m, h) in values.chunks_exact(n * n).enumerate() {
            let mut out = vec![0.0; width];
            logarithms.run(h, wanted.of(m * n * n..(m + 1) * n * n), end, &mut out);
            all.extend(out);
        }
        all
    }

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= tolerance * b.abs().max(1.0),
                "{what}: element {i} is {a}, expected {b}"
            );
        }
    }

    #[test]
    fn logarithms_give_the_definition() {
        let h = numbers([3, 3], DType::F64, 5);
        let mut m: Vec<f64> = naive(&h).iter().map(|h| h.exp()).collect();
        for _ in 0..20 {
            for j in 0..3 {
                let sum: f64 = (0..3).map(|i| m[i * 3 + j]).sum();
                (0..3).for_each(|i| m[i * 3 + j] /= sum);
            }
            for row in m.chunks_exact_mut(3) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        assert_near(&reference(&h, Stop::Steps(20), Wanted::Matrix), &m, 1e-14, "20 steps");
    }

    #[test]
    fn scalings_are_logarithms() {
        // In f32 the two may stop a step apart, so that a tolerance is kept but the results differ by as much.
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
            for shape in
                [&[1, 1][..], &[2, 2], &[1, 3, 3], &[135, 4, 4], &[70, 8, 8], &[65, 9, 9], &[2, 40, 40]]
            {
                let (x, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                for stop in STOPS {
                    if dtype == DType::F32 && !matches!(stop, Stop::Steps(_)) {
                        continue;
                    }
                    let what = format!("{dtype} {shape:?} {stop:?}");
                    let found = run(Fused::Sinkhorn(stop), &[&x]);
                    assert_near(&found, &reference(&x, stop, Wanted::Matrix), tolerance, &what);
                    let found = run(Fused::SinkhornBackward(stop), &[&x, &g]);
                    let expected = reference(&x, stop, Wanted::Gradient(&naive(&g)));
                    assert_near(&found, &expected, tolerance, &what);
                    if stop != Stop::Converged {
                        let found = run(Fused::SinkhornSteps(stop), &[&x]);
                        assert_eq!(found, reference(&x, stop, Wanted::Steps), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn scalings_hand_over_where_they_end() {
        // Logits of growing size, in f32: some matrices stay, others go to the logarithms, and none of them is wrong.
        for size in [1.0, 10.0, 30.0, 60.0, 100.0, 1000.0, 10_000.0] {
            let logits: Vec<f64> =
                naive(&numbers([100, 3, 3], DType::F32, 3)).iter().map(|v| v * size).collect();
            let x = Tensor::from_f64(&logits, [100, 3, 3], DType::F32);
            let g = numbers([100, 3, 3], DType::F32, 4);
            let stop = Stop::Steps(20);
            let found = run(Fused::Sinkhorn(stop), &[&x]);
            assert_near(&found, &reference(&x, stop, Wanted::Matrix), 3e-5, &format!("{size}"));
            let found = run(Fused::SinkhornBackward(stop), &[&x, &g]);
            let expected = reference(&x, stop, Wanted::Gradient(&naive(&g)));
            assert_near(&found, &expected, 2e-4, &format!("gradient, {size}"));
        }
        // Both ways are taken.
        let trusted = |size: f32| {
            let logits: Vec<f32> =
                naive(&numbers([3, 3], DType::F32, 3)).iter().map(|v| *v as f32 * size).collect();
            let mut scalings = Scalings::<f32, f32, Any, false>::new(Any(3), 1);
            scalings.begin(&logits, false);
            scalings.iterate(End { at_most: 20, error: None });
            !scalings.lost[0]
        };
        assert!(trusted(1.0) && !trusted(10_000.0));
    }

    #[test]
    fn a_matrix_that_is_lost_on_the_way_to_a_tolerance_is_handed_over() {
        // The first two rows share the only entry of their column, so that u doubles in each step without end, and the
        // column never sums to 1.
        const NONE: f64 = f64::NEG_INFINITY;
        let logits = [0.0, NONE, NONE, 0.0, NONE, NONE, 0.0, 0.0, 0.0];
        let stop = Stop::Tolerance { error: 1e-3, at_most: 100 };
        let x = Tensor::from_f64(&logits, [1, 3, 3], DType::F32);
        assert_eq!(run(Fused::SinkhornSteps(stop), &[&x]), [100.0]);
        let expected = reference(&x, stop, Wanted::Matrix);
        assert_near(&run(Fused::Sinkhorn(stop), &[&x]), &expected, 1e-7, "lost");
    }

    #[test]
    fn a_matrix_is_the_same_in_a_group_and_alone() {
        // The last matrices of each count go alone, and the same matrices at another place go in a group.
        for n in [1, 2, 3, 4, 7, 8, 16] {
            for dtype in [DType::F32, DType::F64] {
                let (x, g) = (numbers([67, n, n], dtype, 1), numbers([67, n, n], dtype, 2));
                for f in [Fused::Sinkhorn(STOPS[2]), Fused::SinkhornBackward(STOPS[1])] {
                    let operands = |range: std::ops::Range<usize>| {
                        let part = |x: &Tensor| x.slice(0, range.start, range.end, 1).contiguous().unwrap();
                        if matches!(f, Fused::Sinkhorn(_)) {
                            vec![part(&x)]
                        } else {
                            vec![part(&x), part(&g)]
                        }
                    };
                    let all = run(f, &operands(0..67).iter().collect::<Vec<_>>());
                    for m in [0, 40, 65] {
                        let one = run(f, &operands(m..m + 1).iter().collect::<Vec<_>>());
                        assert_eq!(one, all[m * n * n..(m + 1) * n * n], "{f:?} {dtype} n = {n}, matrix {m}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_layout_gives_the_same() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let all = views(&[70, 4, 4], dtype);
            for x in &all {
                let packed = x.contiguous().unwrap();
                for f in [Fused::Sinkhorn(STOPS[1]), Fused::SinkhornSteps(STOPS[2])] {
                    assert_eq!(run(f, &[x]), run(f, &[&packed]), "{dtype} {:?}", x.layout());
                }
                let backward = Fused::SinkhornBackward(STOPS[1]);
                assert_eq!(run(backward, &[x, x]), run(backward, &[&packed, &packed]));
            }
        }
        let counts = Tensor::fused(Fused::SinkhornSteps(STOPS[2]), &[&numbers([5, 4, 4], DType::BF16, 1)]);
        assert_eq!(counts.unwrap().unwrap().dtype(), DType::I64);
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            for shape in
                [&[137, 4, 4][..], &[101, 2, 2], &[70, 7, 7], &[70, 8, 8], &[3000, 4, 4], &[7, 37, 37]]
            {
                let (x, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                assert_one_answer(Fused::Sinkhorn(Stop::Steps(20)), &[&x]);
                assert_one_answer(Fused::SinkhornBackward(Stop::Steps(20)), &[&x, &g]);
                assert_one_answer(Fused::SinkhornSteps(STOPS[2]), &[&x]);
            }
        }
    }

    #[test]
    fn no_step_at_all_panics() {
        let x = numbers([2, 2], DType::F32, 1);
        let none = Stop::Tolerance { error: 1.0, at_most: 0 };
        for (f, said) in [
            (Fused::Sinkhorn(Stop::Steps(0)), "Steps(0)"),
            (Fused::SinkhornBackward(Stop::Steps(0)), "Steps(0)"),
            (Fused::SinkhornSteps(none), "Tolerance { error: 1.0, at_most: 0 }"),
        ] {
            let run = AssertUnwindSafe(|| drop(Tensor::fused(f, &[&x, &x])));
            let panicked = catch_unwind(run).unwrap_err();
            let expected = format!("sinkhorn: expected at least one step, found {said}");
            assert_eq!(panicked.downcast_ref::<String>(), Some(&expected));
        }
    }

    #[test]
    #[should_panic(expected = "sinkhorn: expected square matrices in the last two axes, found shape [2, 3]")]
    fn a_matrix_that_is_not_square_panics() {
        let _ = Tensor::fused(Fused::Sinkhorn(Stop::Steps(1)), &[&numbers([2, 3], DType::F32, 1)]);
    }
}
