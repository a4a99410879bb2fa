//! Softmax, its logarithm, and cross-entropy, each over the last axis.
//!
//! The largest logit of a row is subtracted first, so that no exponential overflows. A logit of −∞ has probability
//! 0; a row that holds a NaN or +∞, or nothing but −∞, is all NaN, as in the expansions.

use super::super::math::Float;
use super::{Real, for_rows, last_axis, map_rows, max, row_major, sum};
use crate::{Error, HostBuffer, Result, Tensor};

/// `exp(x − max x)/Σ exp(x − max x)`, x of rank 1 or more.
pub(super) fn softmax<T: Real>(x: &Tensor) -> Result<Tensor> {
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, y| {
            let largest = max(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - largest).exp();
            }
            let total = T::of(sum(y, T::wide));
            for y in y {
                *y = *y / total;
            }
        },
    )
}

/// `x − max x − ln Σ exp(x − max x)`, x of rank 1 or more.
pub(super) fn log_softmax<T: Real>(x: &Tensor) -> Result<Tensor> {
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, y| {
            let largest = max(x);
            let log_total = T::of(log_sum_exp(x, largest));
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - largest) - log_total;
            }
        },
    )
}

/// `ln Σ exp(x − max x) − (x[label] − max x)` per row: logits `[N, C]`, labels i64 `[N]` → `[N]`.
///
/// # Errors
/// If a label is outside `0..C`; of several, the first is named.
pub(super) fn cross_entropy<T: Real>(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    assert!(
        logits.shape().len() == 2 && labels.shape()[..] == logits.shape()[..1],
        "cross_entropy: expected logits [N, C] and labels [N], found {} and {}",
        logits.shape(),
        labels.shape()
    );
    let classes = last_axis(logits);
    let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
    let (logits, labels) = (row_major::<T>(&logits), row_major::<i64>(&labels));
    let outside = |&label: &i64| usize::try_from(label).map_or(true, |label| label >= classes);
    if let Some(row) = labels.iter().position(outside) {
        let message = format!("cross_entropy: label {} in row {row} is outside 0..{classes}", labels[row]);
        return Err(Error::Device { device: "cpu".into(), message });
    }
    let mut out = HostBuffer::new(labels.len() * T::DTYPE.size());
    for_rows(
        out.as_mut::<T>(),
        1,
        classes,
        #[inline(always)]
        |row, out| {
            let x = &logits[row * classes..][..classes];
            let largest = max(x);
            let chosen = x[labels[row] as usize].wide() - largest.wide();
            out[0] = T::of(log_sum_exp(x, largest) - chosen);
        },
    );
    Ok(out.into_tensor([labels.len()], T::DTYPE))
}

/// ln Σ exp(x − largest).
#[inline(always)]
fn log_sum_exp<T: Real>(x: &[T], largest: T) -> f64 {
    Float::log(sum(x, |x| (x - largest).exp().wide()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_one_answer, numbers};
    use super::*;
    use crate::cpu::fixture::{naive, views};
    use crate::{DType, Fused};

    fn run(f: Fused, x: &[&Tensor]) -> Tensor {
        Tensor::fused(f, x).unwrap().unwrap()
    }

    fn naive_log_softmax(x: &Tensor) -> Vec<f64> {
        let rows = naive(x);
        rows.chunks(last_axis(x).max(1))
            .flat_map(|row| {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_total = row.iter().map(|v| (v - largest).exp()).sum::<f64>().ln();
                row.iter().map(move |v| v - largest - log_total).collect::<Vec<_>>()
            })
            .collect()
    }

    fn exp_all(x: &[f64]) -> Vec<f64> {
        x.iter().map(|v| v.exp()).collect()
    }

    #[test]
    fn every_layout_gives_the_definition() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for (rows, columns) in [(1, 1), (1, 7), (5, 8), (3, 29), (4, 1), (0, 3), (3, 0)] {
                for x in views(&[rows, columns], dtype) {
                    let expected = naive_log_softmax(&x);
                    let what = format!("{dtype} {:?}", x.layout());
                    assert_near(&run(Fused::LogSoftmax, &[&x]), &expected, &what);
                    assert_near(&run(Fused::Softmax, &[&x]), &exp_all(&expected), &what);
                    if columns > 0 {
                        let labels: Vec<i64> = (0..rows).map(|i| (i * 5 % columns) as i64).collect();
                        let chosen: Vec<f64> = labels
                            .iter()
                            .enumerate()
                            .map(|(i, &l)| -expected[i * columns + l as usize])
                            .collect();
                        let labels = Tensor::from_vec(labels, [rows]);
                        let loss = run(Fused::CrossEntropy, &[&x, &labels]);
                        assert_eq!(loss.shape()[..], [rows]);
                        assert_near(&loss, &chosen, &what);
                    }
                }
            }
            for shape in [&[6][..], &[2, 3, 4], &[2, 1, 3, 5]] {
                let x = numbers(shape, dtype, 1);
                let y = run(Fused::Softmax, &[&x]);
                assert_eq!(y.shape(), x.shape());
                assert_near(&y, &exp_all(&naive_log_softmax(&x)), "rank");
            }
        }
    }

    #[test]
    fn labels_may_have_any_layout() {
        let x = numbers([3, 4], DType::F64, 1);
        let expected = run(Fused::CrossEntropy, &[&x, &Tensor::from_vec(vec![3i64, 0, 2], [3])]);
        let strided = Tensor::from_vec(vec![2i64, 9, 0, 9, 3], [5]).slice(0, 0, 5, 2).flip(0);
        let found = run(Fused::CrossEntropy, &[&x, &strided]);
        assert_eq!(found.to_vec::<f64>().unwrap(), expected.to_vec::<f64>().unwrap());
    }

    #[test]
    fn rows_sum_to_one() {
        for columns in [1, 3, 10, 1000, 50_257] {
            let x = numbers([3, columns], DType::F32, 1);
            let y = run(Fused::Softmax, &[&x]).to_f64_vec().unwrap();
            for row in y.chunks(columns) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 2e-7, "{columns} columns");
                assert!(row.iter().all(|&p| (0.0..=1.0).contains(&p)));
            }
        }
    }

    #[test]
    fn a_shift_changes_nothing() {
        // Quarters and a power of two: the shifted logits are exact, so the results have the same bits.
        let logits: Vec<f32> = (0..60).map(|i| (i * 37 % 41) as f32 / 4.0).collect();
        let labels = Tensor::from_vec(vec![1i64, 0, 19], [3]);
        let all = |shift: f32| {
            let x = Tensor::from_vec(logits.iter().map(|v| v + shift).collect(), [3, 20]);
            [
                run(Fused::Softmax, &[&x]),
                run(Fused::LogSoftmax, &[&x]),
                run(Fused::CrossEntropy, &[&x, &labels]),
            ]
            .map(|y| y.to_vec::<f32>().unwrap())
        };
        for shift in [1024.0, -65536.0, 1_048_576.0] {
            assert_eq!(all(shift), all(0.0));
        }
    }

    #[test]
    fn huge_and_infinite_logits() {
        let inf = f32::INFINITY;
        let x = Tensor::from_vec(vec![3e38f32, -3e38, 3e38, -inf], [1, 4]);
        assert_eq!(run(Fused::Softmax, &[&x]).to_vec::<f32>().unwrap(), [0.5, 0.0, 0.5, 0.0]);
        let half = -std::f32::consts::LN_2;
        assert_eq!(run(Fused::LogSoftmax, &[&x]).to_vec::<f32>().unwrap(), [half, -inf, half, -inf]);
        let loss = |label: i64| {
            let labels = Tensor::from_vec(vec![label], [1]);
            run(Fused::CrossEntropy, &[&x, &labels]).to_vec::<f32>().unwrap()[0]
        };
        assert_eq!([loss(0), loss(3)], [-half, inf]);
        for row in [[-inf, -inf], [inf, 0.0], [f32::NAN, 0.0], [0.0, f32::NAN]] {
            let x = Tensor::from_vec(row.to_vec(), [1, 2]);
            for y in [
                run(Fused::Softmax, &[&x]),
                run(Fused::LogSoftmax, &[&x]),
                run(Fused::CrossEntropy, &[&x, &Tensor::from_vec(vec![1i64], [1])]),
            ] {
                assert!(y.to_vec::<f32>().unwrap().iter().all(|v| v.is_nan()), "{row:?}");
            }
        }
    }

    #[test]
    fn a_nearly_certain_prediction_keeps_its_loss() {
        // ln(1 + e⁻³⁰) is far below f32's resolution at 1: an f32 sum of exponentials would make it 0.
        let x = Tensor::from_vec(vec![30.0f32, 0.0], [1, 2]);
        let loss = run(Fused::CrossEntropy, &[&x, &Tensor::from_vec(vec![0i64], [1])]).item().unwrap();
        let exact = (-30.0f64).exp().ln_1p();
        assert!((loss / exact - 1.0).abs() < 1e-2, "{loss} against {exact}");
    }

    #[test]
    fn a_label_outside_the_classes_is_an_error() {
        let x = numbers([3, 4], DType::F32, 1);
        for (labels, message) in [
            ([0, 4, -1], "cpu: cross_entropy: label 4 in row 1 is outside 0..4"),
            ([0, 3, -1], "cpu: cross_entropy: label -1 in row 2 is outside 0..4"),
            ([i64::MIN, 0, 0], "cpu: cross_entropy: label -9223372036854775808 in row 0 is outside 0..4"),
        ] {
            let labels = Tensor::from_vec(labels.to_vec(), [3]);
            let error = Tensor::fused(Fused::CrossEntropy, &[&x, &labels]).unwrap().err().unwrap();
            assert!(matches!(error, Error::Device { .. }));
            assert_eq!(error.to_string(), message);
        }
        let no_classes = Tensor::zeros([1, 0], DType::F32);
        let label = Tensor::from_vec(vec![0i64], [1]);
        assert!(Tensor::fused(Fused::CrossEntropy, &[&no_classes, &label]).unwrap().is_err());
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            for (rows, columns) in [(1000, 77), (3, 40_001), (5, 77)] {
                let x = numbers([rows, columns], dtype, 1);
                let labels = Tensor::from_vec((0..rows as i64).map(|i| i % columns as i64).collect(), [rows]);
                assert_one_answer(Fused::Softmax, &[&x]);
                assert_one_answer(Fused::LogSoftmax, &[&x]);
                assert_one_answer(Fused::CrossEntropy, &[&x, &labels]);
            }
        }
    }
}
