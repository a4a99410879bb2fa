//! Softmax, its logarithm, and cross-entropy, each over the last axis, and their derivatives.
//!
//! The largest logit of a row is subtracted first, so that no exponential overflows. A logit of −∞ has probability
//! 0; a row that holds a NaN or +∞, or nothing but −∞, is all NaN, as in the expansions.

use super::super::fold::{max, sum, sum_of_products};
use super::super::math::Float;
use super::rows::{Row, for_rows, map_rows, rows_of, zip_rows};
use super::{Real, expect_shape, last_axis, row_major};
use crate::{Error, HostBuffer, Result, Tensor};

/// `exp(x − max x)/Σ exp(x − max x)`, x of rank 1 or more.
pub(super) fn softmax<T: Real>(x: &Tensor) -> Result<Tensor> {
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, mut y| {
            let share = T::of(1.0 / sum(exponentials(x, max(x), &mut y)));
            y.put_drafted(
                #[inline(always)]
                |_, e| e * share,
            );
        },
    )
}

/// `y∘(g − Σ g∘y)`: y and g of rank 1 or more, of one shape.
pub(super) fn softmax_backward<T: Real>(y: &Tensor, g: &Tensor) -> Result<Tensor> {
    zip_rows::<T>(
        "softmax_backward",
        y,
        g,
        #[inline(always)]
        |y, g, dx| {
            let along = T::of(sum_of_products(g, y));
            dx.put(
                [y, g],
                #[inline(always)]
                |[y, g]| y * (g - along),
            );
        },
    )
}

/// `x − max x − ln Σ exp(x − max x)`, x of rank 1 or more.
pub(super) fn log_softmax<T: Real>(x: &Tensor) -> Result<Tensor> {
    map_rows::<T>(
        x,
        #[inline(always)]
        |x, mut y| {
            let largest = max(x);
            let log_total = T::of(Float::log(sum(exponentials(x, largest, &mut y))));
            y.put(
                [x],
                #[inline(always)]
                |[x]| (x - largest) - log_total,
            );
        },
    )
}

/// `g − exp(y)·Σ g`: y and g of rank 1 or more, of one shape.
pub(super) fn log_softmax_backward<T: Real>(y: &Tensor, g: &Tensor) -> Result<Tensor> {
    zip_rows::<T>(
        "log_softmax_backward",
        y,
        g,
        #[inline(always)]
        |y, g, dx| {
            let total = T::of(sum(g));
            dx.put(
                [y, g],
                #[inline(always)]
                |[y, g]| g - y.exp() * total,
            );
        },
    )
}

/// `ln Σ exp(x − max x) − (x[label] − max x)` per row: logits `[N, C]`, labels i64 `[N]` → `[N]`.
///
/// # Errors
/// If a label is outside `0..C`; of several, the first is named.
pub(super) fn cross_entropy<T: Real>(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let classes = expect_labels("cross_entropy", logits, labels);
    let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
    let (logits, labels) = (row_major::<T>(&logits), row_major::<i64>(&labels));
    expect_classes("cross_entropy", labels, classes)?;
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

/// `g·(softmax(x) − onehot(label))` per row: logits `[N, C]`, labels i64 `[N]`, g `[N]` → `[N, C]`.
///
/// # Errors
/// As [`cross_entropy`].
pub(super) fn cross_entropy_backward<T: Real>(
    logits: &Tensor,
    labels: &Tensor,
    g: &Tensor,
) -> Result<Tensor> {
    let kernel = "cross_entropy_backward";
    let classes = expect_labels(kernel, logits, labels);
    expect_shape(kernel, g, labels.shape());
    let (labels, g) = (labels.contiguous()?, g.contiguous()?);
    let (labels, g) = (row_major::<i64>(&labels), row_major::<T>(&g));
    expect_classes(kernel, labels, classes)?;
    let logits = logits.contiguous()?;
    let values = row_major::<T>(&logits);
    let out = rows_of(
        [values],
        classes,
        #[inline(always)]
        |row, [x], mut dx| {
            let share = T::of(1.0 / sum(exponentials(x, max(x), &mut dx)));
            let (g, label) = (g[row], labels[row] as usize);
            dx.put_drafted(
                #[inline(always)]
                |class, e| {
                    let is_label = if class == label { T::ONE } else { T::ZERO };
                    g * (e * share - is_label)
                },
            );
        },
    );
    Ok(out.into_tensor(logits.shape(), T::DTYPE))
}

/// The number of classes, of logits `[N, C]` and labels `[N]`.
fn expect_labels(kernel: &str, logits: &Tensor, labels: &Tensor) -> usize {
    assert!(
        logits.shape().len() == 2 && labels.shape()[..] == logits.shape()[..1],
        "{kernel}: expected logits [N, C] and labels [N], found {} and {}",
        logits.shape(),
        labels.shape()
    );
    last_axis(logits)
}

fn expect_classes(kernel: &str, labels: &[i64], classes: usize) -> Result<()> {
    let outside = |&label: &i64| usize::try_from(label).map_or(true, |label| label >= classes);
    let Some(row) = labels.iter().position(outside) else { return Ok(()) };
    let message = format!("{kernel}: label {} in row {row} is outside 0..{classes}", labels[row]);
    Err(Error::Device { device: "cpu".into(), message })
}

/// exp(x − largest), in a row's draft.
#[inline(always)]
fn exponentials<'a, T: Real>(x: &[T], largest: T, row: &'a mut Row<'_, T, 1>) -> &'a [T] {
    row.draft(
        x,
        #[inline(always)]
        |x| (x - largest).exp_nonpositive(),
    )
}

/// ln Σ exp(x − largest).
#[inline(always)]
fn log_sum_exp<T: Real>(x: &[T], largest: T) -> f64 {
    // A short row should not wait for a long block to be cleared.
    let total =
        if x.len() <= 128 { in_blocks::<T, 128>(x, largest) } else { in_blocks::<T, 1024>(x, largest) };
    Float::log(total)
}

/// Σ exp(x − largest), the exponentials a block at a time: a loop that does nothing else becomes vectors.
#[inline(always)]
fn in_blocks<T: Real, const BLOCK: usize>(x: &[T], largest: T) -> f64 {
    let mut block = [T::ZERO; BLOCK];
    let mut total = 0.0;
    for x in x.chunks(BLOCK) {
        let block = &mut block[..x.len()];
        for (e, &x) in block.iter_mut().zip(x) {
            *e = (x - largest).exp_nonpositive();
        }
        total += sum(block);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_near_largest, assert_one_answer, numbers};
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

    /// `f` of each pair of rows.
    fn of_rows(a: &Tensor, b: &Tensor, f: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Vec<f64> {
        let (width, a, b) = (last_axis(a).max(1), naive(a), naive(b));
        a.chunks(width).zip(b.chunks(width)).flat_map(|(a, b)| f(a, b)).collect()
    }

    #[test]
    fn cotangents_of_every_layout_are_those_of_the_formulas() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for (rows, columns) in [(1, 1), (1, 7), (5, 8), (3, 29), (4, 1), (0, 3), (3, 0)] {
                let layouts = views(&[rows, columns], dtype);
                // The formulas hold for any y, so it need not be a softmax.
                for (y, g) in layouts.iter().zip(layouts.iter().rev()) {
                    let what = format!("{dtype} {:?} {:?}", y.layout(), g.layout());
                    let expected = of_rows(y, g, |y, g| {
                        let along: f64 = y.iter().zip(g).map(|(y, g)| y * g).sum();
                        y.iter().zip(g).map(|(y, g)| y * (g - along)).collect()
                    });
                    assert_near_largest(&run(Fused::SoftmaxBackward, &[y, g]), &expected, &what);
                    let expected = of_rows(y, g, |y, g| {
                        let total: f64 = g.iter().sum();
                        y.iter().zip(g).map(|(y, g)| g - y.exp() * total).collect()
                    });
                    assert_near_largest(&run(Fused::LogSoftmaxBackward, &[y, g]), &expected, &what);
                }
                let g = numbers([2 * rows], dtype, 3).slice(0, 0, 2 * rows, 2).flip(0);
                let chosen: Vec<i64> = (0..rows).map(|i| (i * 5 % columns.max(1)) as i64).collect();
                let labels = Tensor::from_vec(chosen.clone(), [rows]);
                for x in layouts.iter().filter(|_| columns > 0) {
                    let mut expected = exp_all(&naive_log_softmax(x));
                    for ((row, &label), g) in expected.chunks_mut(columns).zip(&chosen).zip(naive(&g)) {
                        row[label as usize] -= 1.0;
                        row.iter_mut().for_each(|v| *v *= g);
                    }
                    let dx = run(Fused::CrossEntropyBackward, &[x, &labels, &g]);
                    assert_eq!(dx.shape(), x.shape());
                    assert_near(&dx, &expected, &format!("{dtype} {:?}", x.layout()));
                }
            }
            for shape in [&[6][..], &[2, 3, 4], &[2, 1, 3, 5]] {
                let (y, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                for f in [Fused::SoftmaxBackward, Fused::LogSoftmaxBackward] {
                    let matrix = |x: &Tensor| x.reshape([x.elements() / last_axis(x), last_axis(x)]).unwrap();
                    let found = run(f, &[&y, &g]);
                    assert_eq!(found.shape(), y.shape());
                    assert_eq!(naive(&found), naive(&run(f, &[&matrix(&y), &matrix(&g)])));
                }
            }
        }
    }

    #[test]
    fn what_is_masked_has_no_gradient() {
        let inf = f32::INFINITY;
        let x = Tensor::from_vec(vec![3e38f32, -inf, 3e38, -3e38], [1, 4]);
        let g = Tensor::from_vec(vec![3.0f32, 5.0, -1.0, 7.0], [1, 4]);
        let dx = run(Fused::SoftmaxBackward, &[&run(Fused::Softmax, &[&x]), &g]);
        assert_eq!(dx.to_vec::<f32>().unwrap(), [1.0, 0.0, -1.0, 0.0]);
        let (label, g) = (Tensor::from_vec(vec![2i64], [1]), Tensor::from_vec(vec![4.0f32], [1]));
        let dx = run(Fused::CrossEntropyBackward, &[&x, &label, &g]);
        assert_eq!(dx.to_vec::<f32>().unwrap(), [2.0, 0.0, -2.0, 0.0]);
        for row in [[-inf, -inf], [inf, 0.0], [f32::NAN, 0.0]] {
            let x = Tensor::from_vec(row.to_vec(), [1, 2]);
            let dx = run(Fused::CrossEntropyBackward, &[&x, &Tensor::from_vec(vec![1i64], [1]), &g]);
            assert!(dx.to_vec::<f32>().unwrap().iter().all(|v| v.is_nan()), "{row:?}");
        }
    }

    #[test]
    fn labels_may_have_any_layout() {
        let (x, g) = (numbers([3, 4], DType::F64, 1), numbers([3], DType::F64, 2));
        let labels = Tensor::from_vec(vec![3i64, 0, 2], [3]);
        let strided = Tensor::from_vec(vec![2i64, 9, 0, 9, 3], [5]).slice(0, 0, 5, 2).flip(0);
        let both = |labels: &Tensor| {
            let losses = run(Fused::CrossEntropy, &[&x, labels]);
            [losses, run(Fused::CrossEntropyBackward, &[&x, labels, &g])].map(|y| naive(&y))
        };
        assert_eq!(both(&strided), both(&labels));
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
            let g = Tensor::ones([3], DType::F32);
            let error =
                Tensor::fused(Fused::CrossEntropyBackward, &[&x, &labels, &g]).unwrap().err().unwrap();
            assert_eq!(error.to_string(), message.replace("cross_entropy", "cross_entropy_backward"));
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
                let (g, of_losses) = (numbers([rows, columns], dtype, 2), numbers([rows], dtype, 3));
                assert_one_answer(Fused::SoftmaxBackward, &[&x, &g]);
                assert_one_answer(Fused::LogSoftmaxBackward, &[&x, &g]);
                assert_one_answer(Fused::CrossEntropyBackward, &[&x, &labels, &of_losses]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "softmax_backward: expected a cotangent [2, 3], found [3]")]
    fn a_cotangent_of_another_shape_panics() {
        let _ = run(Fused::SoftmaxBackward, &[&numbers([2, 3], DType::F32, 1), &numbers([3], DType::F32, 2)]);
    }
}
