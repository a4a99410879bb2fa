//! Kernels that do in one pass what their expansions into primitives do in several.
//!
//! Statistics of a row (sums, means, variances, also of f32 rows) are kept in f64: their error does not grow with
//! the row, and squares of f32 values do not overflow. Elements are computed in their own type.

mod linear;
mod norm;
mod rows;
mod sinkhorn;
mod softmax;
mod streams;

use bytemuck::Pod;
use smallvec::{SmallVec, smallvec};

use super::fold::Real;
use super::walk::contiguous_data;
use crate::primitive::Fused;
use crate::{DType, Element, Meta, Result, Results, Shape, Tensor};

/// Below this many elements waking a second thread costs more than it saves.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// Whether there is a kernel for a first operand of this dtype.
pub(super) fn has(f: Fused, dtype: DType) -> bool {
    // Several writes are asked for one by one then.
    dtype.is_float() && f != Fused::StreamWrites
}

/// The kernel for `f`. f32 and f64 are computed as they are, bf16 in f32 with one rounding at the end; `None` for
/// what else is asked for.
///
/// # Panics
/// If the operands' shapes are not those that [`Fused`] states.
pub(super) fn fused(f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
    if !has(f, x[0].dtype()) {
        return None;
    }
    match x[0].dtype() {
        DType::F32 => Some(kernel::<f32>(f, x)),
        DType::F64 => Some(kernel::<f64>(f, x)),
        DType::BF16 => Some(through_f32(f, x)),
        DType::I64 | DType::Bool => None,
    }
}

fn kernel<T: Real>(f: Fused, x: &[&Tensor]) -> Result<Results> {
    let only = match (f, x) {
        (Fused::Linear(act), &[x, w, ref b @ ..]) if b.len() < 2 => {
            linear::linear::<T>(act, x, w, b.first().copied(), None)
        }
        (Fused::LinearAdd(act), &[r, x, w, ref b @ ..]) if b.len() < 2 => {
            linear::linear::<T>(act, x, w, b.first().copied(), Some(r))
        }
        (Fused::LinearBackward(act), &[y, g]) => return linear::linear_backward::<T>(act, y, g),
        (Fused::Softmax, &[x]) => softmax::softmax::<T>(x),
        (Fused::SoftmaxBackward, &[y, g]) => softmax::softmax_backward::<T>(y, g),
        (Fused::LogSoftmax, &[x]) => softmax::log_softmax::<T>(x),
        (Fused::LogSoftmaxBackward, &[y, g]) => softmax::log_softmax_backward::<T>(y, g),
        (Fused::CrossEntropy, &[logits, labels]) => softmax::cross_entropy::<T>(logits, labels),
        (Fused::CrossEntropyBackward, &[logits, labels, g]) => {
            softmax::cross_entropy_backward::<T>(logits, labels, g)
        }
        (Fused::LayerNorm { eps }, &[x, gain, bias]) => norm::layer_norm::<T>(x, gain, bias, eps),
        (Fused::LayerNormBackward { eps }, &[x, gain, g]) => {
            return norm::layer_norm_backward::<T>(x, gain, g, eps);
        }
        (Fused::RmsNorm { eps }, &[x, gain]) => norm::rms_norm::<T>(x, gain, eps),
        (Fused::RmsNormBackward { eps }, &[x, gain, g]) => {
            return norm::rms_norm_backward::<T>(x, gain, g, eps);
        }
        (Fused::Sinkhorn(stop), &[x]) => sinkhorn::sinkhorn::<T>(x, stop),
        (Fused::SinkhornBackward(stop), &[x, g]) => sinkhorn::backward::<T>(x, g, stop),
        (Fused::SinkhornSteps(stop), &[x]) => sinkhorn::steps::<T>(x, stop),
        (Fused::StreamProject { eps }, &[x, ref phi @ ..]) => streams::project::<T>(x, phi, eps),
        (Fused::StreamProjectBackward(handed), x) => return streams::project_backward::<T>(x, handed),
        (Fused::StreamRead, &[x, a]) => streams::read::<T>(x, a),
        (Fused::StreamReadBackward, &[x, h]) => streams::read_backward::<T>(x, h),
        (Fused::StreamWrite, &[x, branch, mix, b]) => streams::write::<T>(x, branch, mix, b),
        (Fused::StreamWriteBackward, &[x, branch, b, g]) => {
            return streams::write_backward::<T>(x, branch, b, g);
        }
        (Fused::StreamCotangent(handed), x) => streams::cotangent::<T>(x, handed),
        (f, x) => panic!("{f:?} does not take {} operands", x.len()),
    };
    Ok(smallvec![only?])
}

fn through_f32(f: Fused, x: &[&Tensor]) -> Result<Results> {
    let mixed = f.mixes_dtypes();
    let widen = |x: &&Tensor| match x.dtype() {
        DType::BF16 => x.cast(DType::F32),
        DType::I64 => Ok((*x).clone()),
        DType::F32 if mixed => Ok((*x).clone()),
        other => panic!("a fused kernel found an operand of {other}, expected bf16"),
    };
    let wide = x.iter().map(widen).collect::<Result<SmallVec<[Tensor; 3]>>>()?;
    let metas: SmallVec<[Meta; 3]> = x.iter().map(|x| x.meta()).collect();
    let expected = f.results(&metas.iter().collect::<SmallVec<[&Meta; 3]>>());
    let results = kernel::<f32>(f, &wide.iter().collect::<SmallVec<[&Tensor; 3]>>())?;
    results.iter().zip(expected).map(|(y, expected)| y.cast(expected.dtype)).collect()
}

/// A cotangent has the shape of what it is the cotangent of.
fn expect_shape(kernel: &str, g: &Tensor, shape: &Shape) {
    assert!(g.shape() == shape, "{kernel}: expected a cotangent {shape}, found {}", g.shape());
}

/// The size of the last axis.
fn last_axis(x: &Tensor) -> usize {
    *x.shape().last().expect("a kernel over the last axis needs an operand of rank 1 or more")
}

/// The elements of a tensor that was made contiguous.
fn row_major<T: Element + Pod>(x: &Tensor) -> &[T] {
    assert_eq!(
        x.dtype(),
        T::DTYPE,
        "a fused kernel found an operand of {}, expected {}",
        x.dtype(),
        T::DTYPE
    );
    contiguous_data(x).expect("the caller has made it contiguous")
}

/// The elements of a per-column operand: shape `[columns]`, made contiguous in `copy`.
fn per_column<'a, T: Real>(kernel: &str, copy: &'a Tensor, columns: usize) -> &'a [T] {
    assert!(
        copy.shape()[..] == [columns],
        "{kernel}: expected one element for each of the {columns} columns, found shape {}",
        copy.shape()
    );
    row_major(copy)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::naive;
    use super::super::simd::tests::at_every_level;
    use super::*;

    /// Numbers in −4..4 without a pattern that a kernel could profit from.
    pub(super) fn numbers(shape: impl Into<Shape>, dtype: DType, seed: usize) -> Tensor {
        let shape = shape.into();
        let values: Vec<f64> = (0..shape.elements())
            .map(|i| ((i * 7919 + seed) as f64 * 0.618_033_988_75).fract() * 8.0 - 4.0)
            .collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    /// Relative to the larger of 1 and the expected value, a few roundings of the dtype.
    #[track_caller]
    pub(super) fn assert_near(found: &Tensor, expected: &[f64], what: &str) {
        assert_near_beside(found, expected, |e| e.abs().max(1.0), what);
    }

    /// Relative to the larger of 1 and the largest expected value: of results in which larger terms cancel.
    #[track_caller]
    pub(super) fn assert_near_largest(found: &Tensor, expected: &[f64], what: &str) {
        let largest = expected.iter().fold(1.0f64, |largest, e| largest.max(e.abs()));
        assert_near_beside(found, expected, |_| largest, what);
    }

    #[track_caller]
    fn assert_near_beside(found: &Tensor, expected: &[f64], size: impl Fn(f64) -> f64, what: &str) {
        let tolerance = match found.dtype() {
            DType::F64 => 1e-14,
            DType::F32 => 2e-6,
            _ => 4e-3,
        };
        let found = naive(found);
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (&y, &e)) in found.iter().zip(expected).enumerate() {
            let near = (y - e).abs() <= tolerance * size(e) || y == e || (y.is_nan() && e.is_nan());
            assert!(near, "{what}: element {i} is {y}, expected {e}");
        }
    }

    fn all_bits(results: Results) -> Vec<Vec<u8>> {
        results.iter().map(|y| y.storage().host().unwrap().to_vec()).collect()
    }

    /// The kernel gives the same bits with one thread and several, and at every vector width.
    #[track_caller]
    pub(super) fn assert_one_answer(f: Fused, x: &[&Tensor]) {
        let bits = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            all_bits(pool.install(|| Tensor::fused_all(f, x)).unwrap().unwrap())
        };
        let alone = bits(1);
        for threads in [2, 3, 5] {
            assert!(alone == bits(threads), "{f:?}: {threads} threads give other bits than one");
        }
        // Small enough for one thread: a level is forced for the thread that asks only.
        if x[0].elements() < PARALLEL_ELEMENTS {
            for (level, y) in at_every_level(|| Tensor::fused_all(f, x).unwrap().unwrap()) {
                assert!(alone == all_bits(y), "{f:?}: {level:?} gives other bits");
            }
        }
    }

    #[test]
    fn integers_have_no_kernel() {
        let x = Tensor::zeros([2, 3], DType::I64);
        assert!(Tensor::fused(Fused::Softmax, &[&x]).is_none());
    }

    #[test]
    #[should_panic(expected = "a fused kernel found an operand of f64, expected f32")]
    fn operands_of_two_dtypes_panic() {
        let (x, gain) = (numbers([2, 3], DType::F32, 1), numbers([3], DType::F64, 1));
        let _ = Tensor::fused(Fused::RmsNorm { eps: 1e-5 }, &[&x, &gain]);
    }

    #[test]
    #[should_panic(expected = "a fused kernel found an operand of f32, expected bf16")]
    fn bf16_is_not_promoted_to_meet_f32() {
        let (x, gain) = (numbers([2, 3], DType::BF16, 1), numbers([3], DType::F32, 1));
        let _ = Tensor::fused(Fused::RmsNorm { eps: 1e-5 }, &[&x, &gain]);
    }

    #[test]
    #[should_panic(expected = "Softmax does not take 2 operands")]
    fn a_wrong_number_of_operands_panics() {
        let x = numbers([2, 3], DType::F32, 1);
        let _ = Tensor::fused(Fused::Softmax, &[&x, &x]);
    }
}
