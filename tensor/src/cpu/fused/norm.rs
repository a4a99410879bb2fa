//! LayerNorm and RmsNorm over the last axis, and their derivatives.
//!
//! Mean and variance are those of `x − p` for an element p of the row, in f64: p is no further from the mean than the
//! spread allows, so that little cancels in `E[(x − p)²] − E[x − p]²`, at most as many bits as the number of columns has.
//! E[x²] − mean² would be noise where the mean is large beside the spread. For the same reason the mean is subtracted in
//! two parts, of which the first cancels without rounding, or in f64. Squares of f32 values cannot overflow; an f64 row
//! with values beyond 10¹⁵⁴ has an infinite variance, as in the expansion.

use smallvec::smallvec;

use super::super::fold::{moments_about, sum, sum_of_products, sum_of_squares};
use super::super::simd::widest;
use super::super::threads;
use super::rows::map_rows;
use super::{PARALLEL_ELEMENTS, Real, expect_shape, last_axis, per_column, row_major};
use crate::{HostBuffer, Result, Results, Tensor};

/// `(x − mean)/√(var + eps)·γ + β`: x `[.., C]`, γ and β `[C]`. var is the mean of `(x − mean)²`.
///
/// J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450.
pub(super) fn layer_norm<T: Real>(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let columns = last_axis(x);
    let (gain, bias) = (gain.contiguous()?, bias.contiguous()?);
    let gain = per_column::<T>("layer_norm", &gain, columns);
    let bias = per_column::<T>("layer_norm", &bias, columns);
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, y| {
            let Statistics { mean, scale } = Statistics::centred(x, eps);
            // The nearest number, and what that leaves: x less the first is exact where the two are near each other.
            let nearest = T::of(mean);
            let rest = T::of(mean - nearest.wide());
            y.put(
                [x, gain, bias],
                #[inline(always)]
                |[x, gain, bias]| ((x - nearest) - rest) * scale * gain + bias,
            );
        },
    )
}

/// `x/√(mean(x²) + eps)·γ`: x `[.., C]`, γ `[C]`.
///
/// B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.
pub(super) fn rms_norm<T: Real>(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let columns = last_axis(x);
    let gain = gain.contiguous()?;
    let gain = per_column::<T>("rms_norm", &gain, columns);
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, y| {
            let Statistics { scale, .. } = Statistics::uncentred(x, eps);
            y.put(
                [x, gain],
                #[inline(always)]
                |[x, gain]| x * scale * gain,
            );
        },
    )
}

/// What a row is normalised with: `x̂ = (x − mean)·scale`.
struct Statistics<T> {
    mean: f64,
    scale: T,
}

impl<T: Real> Statistics<T> {
    /// The mean, and `1/√(var + eps)`.
    #[inline(always)]
    fn centred(x: &[T], eps: f64) -> Self {
        let (pivot, n) = (x[0].wide(), x.len() as f64);
        let [first, second] = moments_about(pivot, x);
        let below = first / n;
        let variance = if second == f64::INFINITY { second } else { second / n - below * below };
        // What is left of nothing may lie below it. NaN stays.
        let variance = if variance < 0.0 { 0.0 } else { variance };
        Statistics { mean: pivot + below, scale: T::of(1.0 / (variance + eps).sqrt()) }
    }

    /// No mean, and `1/√(mean(x²) + eps)`.
    #[inline(always)]
    fn uncentred(x: &[T], eps: f64) -> Self {
        let mean_square = sum_of_squares(x) / x.len() as f64;
        Statistics { mean: 0.0, scale: T::of(1.0 / (mean_square + eps).sqrt()) }
    }
}

/// The cotangents of x, γ and β: x and g, which is that of the result, `[.., C]`, γ `[C]`.
pub(super) fn layer_norm_backward<T: Real>(
    x: &Tensor,
    gain: &Tensor,
    g: &Tensor,
    eps: f64,
) -> Result<Results> {
    backward::<T, true>("layer_norm_backward", x, gain, g, eps)
}

/// The cotangents of x and γ: x and g, which is that of the result, `[.., C]`, γ `[C]`.
pub(super) fn rms_norm_backward<T: Real>(x: &Tensor, gain: &Tensor, g: &Tensor, eps: f64) -> Result<Results> {
    backward::<T, false>("rms_norm_backward", x, gain, g, eps)
}

/// Rows whose part in the cotangents of γ and β is summed up by itself. Many enough for the sums to be small beside the
/// rows; slabs are enough for every thread to have some. A function of the shape alone: it is part of the bits.
fn slab(rows: usize) -> usize {
    rows.div_ceil(64).max(32)
}

/// The cotangents of x and γ, and, if rows were centred, of β.
fn backward<T: Real, const CENTRED: bool>(
    kernel: &str,
    x: &Tensor,
    gain: &Tensor,
    g: &Tensor,
    eps: f64,
) -> Result<Results> {
    expect_shape(kernel, g, x.shape());
    let (shape, columns) = (x.shape(), last_axis(x));
    let (gain, x, g) = (gain.contiguous()?, x.contiguous()?, g.contiguous()?);
    let gain = per_column::<T>(kernel, &gain, columns);
    let (x, g) = (row_major::<T>(&x), row_major::<T>(&g));
    // For each slab Σ g∘x̂ and, where there is a bias, behind it Σ g.
    let parameters = 1 + usize::from(CENTRED);
    let (rows, width) = (x.len() / columns.max(1), parameters * columns);
    let slab = slab(rows);
    let mut dx = HostBuffer::new(size_of_val(x));
    let mut sums = HostBuffer::new(rows.div_ceil(slab) * width * size_of::<f64>());
    let task = |number: usize, dx: &mut [T], sums: &mut [f64]| {
        let first = number * slab * columns;
        let (x, g) = (&x[first..][..dx.len()], &g[first..][..dx.len()]);
        widest(
            #[inline(always)]
            || slab_backward::<T, CENTRED>(dx, sums, x, gain, g, eps),
        );
    };
    if x.len() >= PARALLEL_ELEMENTS {
        threads::chunks_of_two(dx.as_mut(), slab * columns, sums.as_mut(), width, task);
    } else if !x.is_empty() {
        let slabs = dx.as_mut().chunks_mut(slab * columns).zip(sums.as_mut().chunks_mut(width));
        slabs.enumerate().for_each(|(number, (dx, sums))| task(number, dx, sums));
    }
    let mut totals = vec![0.0; width];
    for slab in sums.as_mut::<f64>().chunks_exact(width.max(1)) {
        totals.iter_mut().zip(slab).for_each(|(total, sum)| *total += sum);
    }
    let mut results: Results = smallvec![dx.into_tensor(shape, T::DTYPE)];
    for k in 0..parameters {
        let totals = totals[k * columns..][..columns].iter();
        results.push(Tensor::from_vec(totals.map(|&v| T::of(v)).collect(), [columns]));
    }
    Ok(results)
}

/// [`backward`] of one slab of rows; `sums` are set to its part.
#[inline(always)]
fn slab_backward<T: Real, const CENTRED: bool>(
    dx: &mut [T],
    sums: &mut [f64],
    x: &[T],
    gain: &[T],
    g: &[T],
    eps: f64,
) {
    let columns = gain.len();
    sums.fill(0.0);
    let (of_gain, of_bias) = sums.split_at_mut(columns);
    let gain = &gain[..columns];
    let rows = x.chunks_exact(columns).zip(g.chunks_exact(columns));
    // x̂ of the row at hand.
    let mut normalised = vec![T::ZERO; columns];
    for (dx, (x, g)) in dx.chunks_exact_mut(columns).zip(rows) {
        let Statistics { mean, scale } =
            if CENTRED { Statistics::centred(x, eps) } else { Statistics::uncentred(x, eps) };
        // Index by index: of iterators side by side, over two types, the compiler makes functions.
        for i in 0..columns {
            normalised[i] = if CENTRED { T::of(x[i].wide() - mean) * scale } else { x[i] * scale };
        }
        for i in 0..columns {
            of_gain[i] += g[i].wide() * normalised[i].wide();
        }
        if CENTRED {
            for i in 0..columns {
                of_bias[i] += g[i].wide();
            }
        }
        // ĝ, until it is known how much of it lies along x̂ and, of rows that were centred, along 1.
        for i in 0..columns {
            dx[i] = g[i] * gain[i];
        }
        let mean_of = |sum: f64| T::of(sum / columns as f64);
        let along = mean_of(sum_of_products(dx, &normalised));
        let level = if CENTRED { mean_of(sum(dx)) } else { T::ZERO };
        for i in 0..columns {
            dx[i] = scale * (dx[i] - level - normalised[i] * along);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_near_largest, assert_one_answer, numbers};
    use super::*;
    use crate::cpu::fixture::{naive, views};
    use crate::{DType, Fused};

    const EPS: f64 = 1e-5;

    fn layer(x: &Tensor, gain: &Tensor, bias: &Tensor) -> Tensor {
        Tensor::fused(Fused::LayerNorm { eps: EPS }, &[x, gain, bias]).unwrap().unwrap()
    }

    fn rms(x: &Tensor, gain: &Tensor) -> Tensor {
        Tensor::fused(Fused::RmsNorm { eps: EPS }, &[x, gain]).unwrap().unwrap()
    }

    /// One row of LayerNorm and of RmsNorm, by definition.
    fn definition(row: &[f64], gain: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let mean_square = row.iter().map(|v| v * v).sum::<f64>() / n;
        let layer = |i: usize| (row[i] - mean) / (variance + EPS).sqrt() * gain[i] + bias[i];
        let rms = |i: usize| row[i] / (mean_square + EPS).sqrt() * gain[i];
        ((0..row.len()).map(layer).collect(), (0..row.len()).map(rms).collect())
    }

    fn backward(f: Fused, x: &Tensor, gain: &Tensor, g: &Tensor) -> Results {
        Tensor::fused_all(f, &[x, gain, g]).unwrap().unwrap()
    }

    const BACKWARD: [Fused; 2] = [Fused::LayerNormBackward { eps: EPS }, Fused::RmsNormBackward { eps: EPS }];

    /// The cotangents by the formulas.
    fn backward_definition(centred: bool, x: &Tensor, gain: &Tensor, g: &Tensor) -> Vec<Vec<f64>> {
        let (columns, [x, gain, g]) = (last_axis(x), [x, gain, g].map(naive));
        let mean = |v: &[f64]| v.iter().sum::<f64>() / columns as f64;
        let (mut dx, mut of_gain, mut of_bias) = (Vec::new(), vec![0.0; columns], vec![0.0; columns]);
        for (x, g) in x.chunks(columns.max(1)).zip(g.chunks(columns.max(1))) {
            let level = if centred { mean(x) } else { 0.0 };
            let below: Vec<f64> = x.iter().map(|v| v - level).collect();
            let scale = 1.0 / (mean(&below.iter().map(|v| v * v).collect::<Vec<_>>()) + EPS).sqrt();
            let normalised: Vec<f64> = below.iter().map(|v| v * scale).collect();
            let weighed: Vec<f64> = g.iter().zip(&gain).map(|(g, gain)| g * gain).collect();
            let level = if centred { mean(&weighed) } else { 0.0 };
            let along = mean(&weighed.iter().zip(&normalised).map(|(w, n)| w * n).collect::<Vec<_>>());
            dx.extend(weighed.iter().zip(&normalised).map(|(w, n)| scale * (w - level - n * along)));
            for i in 0..columns {
                of_gain[i] += g[i] * normalised[i];
                of_bias[i] += g[i];
            }
        }
        if centred { vec![dx, of_gain, of_bias] } else { vec![dx, of_gain] }
    }

    #[track_caller]
    fn check_backward(x: &Tensor, gain: &Tensor, g: &Tensor, what: &str) {
        for (f, centred) in BACKWARD.into_iter().zip([true, false]) {
            let expected = backward_definition(centred, x, gain, g);
            let found = backward(f, x, gain, g);
            assert_eq!(found.len(), expected.len());
            assert_eq!(found[0].shape(), x.shape());
            for (found, expected) in found.iter().zip(&expected) {
                assert_near_largest(found, expected, &format!("{f:?} {what} {}", found.shape()));
            }
        }
    }

    #[track_caller]
    fn check(x: &Tensor, gain: &Tensor, bias: &Tensor, what: &str) {
        let [rows, gains, biases] = [x, gain, bias].map(naive);
        let (layers, rmses): (Vec<_>, Vec<_>) =
            rows.chunks(last_axis(x).max(1)).map(|row| definition(row, &gains, &biases)).unzip();
        let y = layer(x, gain, bias);
        assert_eq!(y.shape(), x.shape());
        assert_near(&y, &layers.concat(), what);
        assert_near(&rms(x, gain), &rmses.concat(), what);
    }

    #[test]
    fn every_layout_gives_the_definition() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for (rows, columns) in [(1, 1), (1, 7), (5, 8), (3, 29), (4, 1), (0, 3), (3, 0)] {
                let (gain, bias) = (numbers([2 * columns], dtype, 7), numbers([2 * columns], dtype, 8));
                let gain = gain.slice(0, 0, 2 * columns, 2).flip(0);
                let bias = bias.slice(0, columns, 2 * columns, 1);
                for x in views(&[rows, columns], dtype) {
                    check(&x, &gain, &bias, &format!("{dtype} {:?}", x.layout()));
                }
                let layouts = views(&[rows, columns], dtype);
                for (x, g) in layouts.iter().zip(layouts.iter().rev()) {
                    check_backward(x, &gain, g, &format!("{dtype} {:?} {:?}", x.layout(), g.layout()));
                }
            }
            for shape in [&[6][..], &[2, 3, 6], &[2, 1, 3, 6]] {
                check(&numbers(shape, dtype, 1), &numbers([6], dtype, 2), &numbers([6], dtype, 3), "rank");
                check_backward(
                    &numbers(shape, dtype, 1),
                    &numbers([6], dtype, 2),
                    &numbers(shape, dtype, 3),
                    "rank",
                );
            }
            // More rows than a slab has, and more than there are slabs of the least size.
            for rows in [32, 33, 150, 5000] {
                let (x, g) = (numbers([rows, 3], dtype, 1), numbers([rows, 3], dtype, 3));
                check_backward(&x, &numbers([3], dtype, 2), &g, &format!("{rows} rows"));
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_spread() {
        // Neighbouring f32 values near 2²⁰: E[x²] − mean² in f32 would be noise, and so would a mean rounded to f32.
        let row: Vec<f32> = (0..1000).map(|i| 1_048_576.0 + (i % 7) as f32 * 0.125).collect();
        let x = Tensor::from_vec(row, [1, 1000]);
        check(&x, &Tensor::ones([1000], DType::F32), &Tensor::zeros([1000], DType::F32), "f32");
        check_backward(&x, &Tensor::ones([1000], DType::F32), &numbers([1, 1000], DType::F32, 1), "f32");
        let row: Vec<f64> = (0..1000).map(|i| 1e9 + (i % 7) as f64).collect();
        let x = Tensor::from_vec(row, [1, 1000]);
        let y = layer(&x, &Tensor::ones([1000], DType::F64), &Tensor::zeros([1000], DType::F64));
        let y = y.to_f64_vec().unwrap();
        let variance = y.iter().map(|v| v * v).sum::<f64>() / 1000.0;
        assert!((variance - 1.0).abs() < 1e-5, "{variance}");
    }

    #[test]
    fn huge_f32_rows_do_not_overflow() {
        let x = Tensor::from_vec(vec![1e38f32, -1e38, 3e38, -3e38], [1, 4]);
        check(&x, &Tensor::ones([4], DType::F32), &Tensor::zeros([4], DType::F32), "huge");
        check_backward(&x, &Tensor::ones([4], DType::F32), &numbers([1, 4], DType::F32, 1), "huge");
    }

    #[test]
    fn a_variance_beyond_f64_leaves_the_bias() {
        for row in [[1e200f64, 0.0, 0.0, 0.0], [0.0, 3.0, -1e300, 1e300]] {
            let x = Tensor::from_vec(row.to_vec(), [1, 4]);
            let (gain, bias) = (numbers([4], DType::F64, 1), numbers([4], DType::F64, 2));
            assert_eq!(naive(&layer(&x, &gain, &bias)), naive(&bias));
            let dx = backward(BACKWARD[0], &x, &gain, &numbers([1, 4], DType::F64, 3));
            assert_eq!(naive(&dx[0]), [0.0; 4]);
        }
    }

    #[test]
    fn a_constant_row_is_its_bias() {
        let x = Tensor::full([2, 5], 3.25, DType::F32);
        let bias = numbers([5], DType::F32, 2);
        let y = layer(&x, &numbers([5], DType::F32, 1), &bias).to_vec::<f32>().unwrap();
        assert_eq!(y, bias.to_vec::<f32>().unwrap().repeat(2));
        let zero = Tensor::zeros([1, 5], DType::F32);
        assert_eq!(rms(&zero, &Tensor::ones([5], DType::F32)).to_vec::<f32>().unwrap(), [0.0; 5]);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let x = Tensor::from_vec(vec![1.0f32, f32::NAN, 1.0, 2.0], [2, 2]);
        let (one, zero) = (Tensor::ones([2], DType::F32), Tensor::zeros([2], DType::F32));
        for y in [layer(&x, &one, &zero), rms(&x, &one)] {
            let nan: Vec<bool> = y.to_vec::<f32>().unwrap().iter().map(|v| v.is_nan()).collect();
            assert!(nan[1] && !nan[2] && !nan[3]);
        }
        for f in BACKWARD {
            let results = backward(f, &x, &one, &Tensor::ones([2, 2], DType::F32));
            let nan = |y: &Tensor| y.to_vec::<f32>().unwrap().iter().map(|v| v.is_nan()).collect::<Vec<_>>();
            assert_eq!(nan(&results[0]), [true, true, false, false]);
            assert_eq!(nan(&results[1]), [true, true]);
        }
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            for (rows, columns) in [(1000, 77), (3, 40_001), (5, 77)] {
                let x = numbers([rows, columns], dtype, 1);
                let (gain, bias) = (numbers([columns], dtype, 2), numbers([columns], dtype, 3));
                assert_one_answer(Fused::LayerNorm { eps: EPS }, &[&x, &gain, &bias]);
                assert_one_answer(Fused::RmsNorm { eps: EPS }, &[&x, &gain]);
                let g = numbers([rows, columns], dtype, 4);
                BACKWARD.into_iter().for_each(|f| assert_one_answer(f, &[&x, &gain, &g]));
            }
        }
    }

    #[test]
    #[should_panic(expected = "rms_norm: expected one element for each of the 4 columns, found shape [1]")]
    fn a_gain_of_another_size_panics() {
        let _ = rms(&numbers([2, 4], DType::F32, 1), &numbers([1], DType::F32, 2));
    }
}
