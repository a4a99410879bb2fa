//! LayerNorm and RmsNorm over the last axis.
//!
//! The variance takes a second pass over the row: E[x²] − mean² would cancel where the mean is large beside the
//! spread. For the same reason the mean is subtracted in f64, before the one rounding to the element's type.
//! Squares of f32 values cannot overflow; an f64 row with values beyond 10¹⁵⁴ has an infinite variance, as in the
//! expansion.

use super::{Real, last_axis, map_rows, per_column, sum};
use crate::{Result, Tensor};

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
            let mean = sum(x, T::wide) / columns as f64;
            let variance = sum(x, |v| (v.wide() - mean) * (v.wide() - mean)) / columns as f64;
            let scale = T::of(1.0 / (variance + eps).sqrt());
            for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                *y = T::of(x.wide() - mean) * scale * gain + bias;
            }
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
            let mean_square = sum(x, |v| v.wide() * v.wide()) / columns as f64;
            let scale = T::of(1.0 / (mean_square + eps).sqrt());
            for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * scale * gain;
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_one_answer, numbers};
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
            }
            for shape in [&[6][..], &[2, 3, 6], &[2, 1, 3, 6]] {
                check(&numbers(shape, dtype, 1), &numbers([6], dtype, 2), &numbers([6], dtype, 3), "rank");
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_spread() {
        // Neighbouring f32 values near 2²⁰: E[x²] − mean² in f32 would be noise, and so would a mean rounded to f32.
        let row: Vec<f32> = (0..1000).map(|i| 1_048_576.0 + (i % 7) as f32 * 0.125).collect();
        let x = Tensor::from_vec(row, [1, 1000]);
        check(&x, &Tensor::ones([1000], DType::F32), &Tensor::zeros([1000], DType::F32), "f32");
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
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            for (rows, columns) in [(1000, 77), (3, 40_001), (5, 77)] {
                let x = numbers([rows, columns], dtype, 1);
                let (gain, bias) = (numbers([columns], dtype, 2), numbers([columns], dtype, 3));
                assert_one_answer(Fused::LayerNorm { eps: EPS }, &[&x, &gain, &bias]);
                assert_one_answer(Fused::RmsNorm { eps: EPS }, &[&x, &gain]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "rms_norm: expected one element for each of the 4 columns, found shape [1]")]
    fn a_gain_of_another_size_panics() {
        let _ = rms(&numbers([2, 4], DType::F32, 1), &numbers([1], DType::F32, 2));
    }
}
