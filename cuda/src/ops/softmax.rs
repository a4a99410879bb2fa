//! Softmax, its logarithm and cross-entropy over the last axis, and their derivatives: `softmax.cu`.

use limpid_tensor::{Meta, Result, Tensor};

use super::rows::{Matrix, Rows, assert_cotangent};
use crate::device::Cuda;
use crate::launch::Arguments;
use crate::module::Family;

pub(crate) static SOFTMAX: Family =
    Family { name: "softmax.cu", text: include_str!("../../kernels/softmax.cu") };

/// `exp(x − max x)/Σ exp(x − max x)`.
pub(crate) fn softmax(cuda: &'static Cuda, x: &Tensor) -> Result<Tensor> {
    each_row(cuda, "softmax", x)
}

/// `x − max x − ln Σ exp(x − max x)`.
pub(crate) fn log_softmax(cuda: &'static Cuda, x: &Tensor) -> Result<Tensor> {
    each_row(cuda, "log_softmax", x)
}

fn each_row(cuda: &'static Cuda, function: &str, x: &Tensor) -> Result<Tensor> {
    let mut y = cuda.empty(x.shape(), x.dtype())?;
    let x = Matrix::new(x)?;
    let rows = Rows::new(&[&x], &[]);
    let (kernel, grid) = rows.kernel(function, y.dtype());
    let mut arguments = Arguments::default();
    arguments.output(&mut y);
    x.add_to(&mut arguments);
    arguments.value(rows);
    cuda.launch(&SOFTMAX, &kernel, grid, &mut arguments)?;
    Ok(y)
}

/// `ln Σ exp(x − max x) − (x[label] − max x)` per row: logits `[N, C]`, labels i64 `[N]` → `[N]`.
///
/// A label outside `0..C` is an error when results are next read.
///
/// # Panics
/// If the shapes are not these.
pub(crate) fn cross_entropy(cuda: &'static Cuda, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    assert_labels("cross_entropy", logits, labels);
    let mut loss = cuda.empty(labels.shape(), logits.dtype())?;
    let x = Matrix::new(logits)?;
    let rows = Rows::new(&[&x], &[]);
    let (kernel, grid) = rows.kernel("cross_entropy", loss.dtype());
    let mut arguments = Arguments::default();
    arguments.output(&mut loss);
    x.add_to(&mut arguments);
    arguments.input(labels).value(labels.layout().strides()[0] as i64).value(rows);
    cuda.checked_index(&mut arguments, "cross_entropy", rows.columns as usize)?;
    cuda.launch(&SOFTMAX, &kernel, grid, &mut arguments)?;
    Ok(loss)
}

fn assert_labels(function: &str, logits: &Tensor, labels: &Tensor) {
    assert!(
        logits.shape().len() == 2 && labels.shape()[..] == logits.shape()[..1],
        "{function}: expected logits [N, C] and labels [N], found {} and {}",
        logits.shape(),
        labels.shape()
    );
}

/// The cotangent of the logits, `g·(softmax(x) − onehot(label))`: g `[N]` is that of the losses. A label outside `0..C` is
/// none of the classes here: [`cross_entropy`] says so.
///
/// # Panics
/// If the shapes are not these.
pub(crate) fn cross_entropy_backward(
    cuda: &'static Cuda,
    logits: &Tensor,
    labels: &Tensor,
    g: &Tensor,
) -> Result<Tensor> {
    assert_labels("cross_entropy_backward", logits, labels);
    assert_cotangent("cross_entropy_backward", g, &Meta::new(labels.shape(), logits.dtype()));
    let mut dx = cuda.empty(logits.shape(), logits.dtype())?;
    let x = Matrix::new(logits)?;
    let rows = Rows::new(&[&x], &[]);
    let (kernel, grid) = rows.kernel("cross_entropy_backward", dx.dtype());
    let mut arguments = Arguments::default();
    arguments.output(&mut dx);
    x.add_to(&mut arguments);
    for per_row in [labels, g] {
        arguments.input(per_row).value(per_row.layout().strides()[0] as i64);
    }
    arguments.value(rows);
    cuda.launch(&SOFTMAX, &kernel, grid, &mut arguments)?;
    Ok(dx)
}

/// `y∘(g − Σ g∘y)`.
///
/// # Panics
/// If y and its cotangent g have different shapes.
pub(crate) fn softmax_backward(cuda: &'static Cuda, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    backward(cuda, "softmax_backward", y, g)
}

/// `g − exp(y)·Σ g`.
///
/// # Panics
/// If y and its cotangent g have different shapes.
pub(crate) fn log_softmax_backward(cuda: &'static Cuda, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    backward(cuda, "log_softmax_backward", y, g)
}

fn backward(cuda: &'static Cuda, function: &str, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    assert_cotangent(function, g, &y.meta());
    let mut dx = cuda.empty(y.shape(), y.dtype())?;
    let (y, g) = (Matrix::new(y)?, Matrix::new(g)?);
    let rows = Rows::new(&[&y, &g], &[]);
    let (kernel, grid) = rows.kernel(function, dx.dtype());
    let mut arguments = Arguments::default();
    arguments.output(&mut dx);
    y.add_to(&mut arguments);
    g.add_to(&mut arguments);
    arguments.value(rows);
    cuda.launch(&SOFTMAX, &kernel, grid, &mut arguments)?;
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use limpid_tensor::DType;

    use super::super::rows::tests::{Emulated, assert_near, numbers, shapes, sum};
    use super::*;

    const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

    fn probabilities(row: &[f64]) -> Vec<f64> {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = sum(row.iter().map(|v| (v - largest).exp()));
        row.iter().map(|v| (v - largest).exp() / total).collect()
    }

    /// `f` of each row of matrices with so many columns.
    fn rows(columns: usize, x: [&[f64]; 2], f: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Vec<f64> {
        let [a, b] = x.map(|x| x.chunks(columns.max(1)));
        a.zip(b).flat_map(|(a, b)| f(a, b)).collect()
    }

    fn labels(count: usize, columns: usize) -> Vec<i64> {
        (0..count).map(|i| (i * 5 % columns.max(1)) as i64).collect()
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn every_kind_of_row_gives_the_definition() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for [count, columns] in shapes(dtype) {
                let what = format!("{dtype} [{count}, {columns}]");
                let x = numbers([count, columns], dtype, 1);
                let values = x.to_f64_vec().unwrap();
                let x = emulated.place(&x);
                let expected = rows(columns, [&values, &values], |row, _| probabilities(row));
                assert_near(&emulated.read(softmax(emulated.cuda, &x)), &expected, dtype, 4.0, &what);
                let expected: Vec<f64> = expected.iter().map(|p| p.ln()).collect();
                assert_near(&emulated.read(log_softmax(emulated.cuda, &x)), &expected, dtype, 4.0, &what);
                if columns > 0 {
                    let chosen = labels(count, columns);
                    let losses: Vec<f64> = chosen
                        .iter()
                        .enumerate()
                        .map(|(row, &l)| -expected[row * columns + l as usize])
                        .collect();
                    let chosen = emulated.place(&Tensor::from_vec(chosen, [count]));
                    let loss = cross_entropy(emulated.cuda, &x, &chosen);
                    assert_near(&emulated.read(loss), &losses, dtype, 4.0, &what);
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn cotangents_are_those_of_the_formulas() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for [count, columns] in shapes(dtype) {
                let what = format!("{dtype} [{count}, {columns}]");
                let (y, g) = (numbers([count, columns], dtype, 2), numbers([count, columns], dtype, 3));
                let [y_values, g_values] = [&y, &g].map(|x| x.to_f64_vec().unwrap());
                let [y, g] = [&y, &g].map(|x| emulated.place(x));
                // The formulas hold for any y, so probabilities need not be made.
                let expected = rows(columns, [&y_values, &g_values], |y, g| {
                    let total = sum(y.iter().zip(g).map(|(y, g)| y * g));
                    y.iter().zip(g).map(|(y, g)| y * (g - total)).collect()
                });
                let found = emulated.read(softmax_backward(emulated.cuda, &y, &g));
                assert_near(&found, &expected, dtype, 64.0, &what);
                let expected = rows(columns, [&y_values, &g_values], |y, g| {
                    let total = sum(g.iter().copied());
                    y.iter().zip(g).map(|(y, g)| g - y.exp() * total).collect()
                });
                let found = emulated.read(log_softmax_backward(emulated.cuda, &y, &g));
                assert_near(&found, &expected, dtype, 64.0, &what);
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_cotangent_of_the_logits() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for [count, columns] in shapes(dtype) {
                let (x, g) = (numbers([count, columns], dtype, 1), numbers([2 * count], dtype, 2));
                // Every second element, from the last to the first.
                let g = g.slice(0, 0, 2 * count, 2).flip(0);
                let chosen = labels(count, columns);
                let g_values = g.to_f64_vec().unwrap();
                let values = x.to_f64_vec().unwrap();
                let mut expected = rows(columns, [&values, &values], |row, _| probabilities(row));
                for (row, &label) in chosen.iter().enumerate().filter(|_| columns > 0) {
                    expected[row * columns + label as usize] -= 1.0;
                    expected[row * columns..][..columns].iter_mut().for_each(|v| *v *= g_values[row]);
                }
                let [x, chosen] = [&x, &Tensor::from_vec(chosen, [count])].map(|x| emulated.place(x));
                let wide = emulated.place(&numbers([2 * count], dtype, 2));
                let g = wide.slice(0, 0, 2 * count, 2).flip(0);
                let found = emulated.read(cross_entropy_backward(emulated.cuda, &x, &chosen, &g));
                assert_near(&found, &expected, dtype, 8.0, &format!("{dtype} [{count}, {columns}]"));
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_same_rows_have_the_same_bits_wherever_they_lie_and_whoever_is_first() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for [count, columns] in shapes(dtype) {
                let x = numbers([count, columns], dtype, 1);
                let aligned = emulated.read(softmax(emulated.cuda, &emulated.place(&x)));
                for seed in [1, 2] {
                    emulated.shuffle(seed);
                    let found = emulated.read(softmax(emulated.cuda, &emulated.place_unaligned(&x)));
                    assert_eq!(found, aligned, "{dtype} [{count}, {columns}]");
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn infinite_logits_in_rows_of_every_kind() {
        let emulated = Emulated::device();
        let inf = f64::INFINITY;
        for columns in [3, 40, 300, 600, 9000] {
            let last = columns - 1;
            let row = |first: f64, rest: f64, end: f64| {
                (0..columns)
                    .map(|i| {
                        if i == 0 {
                            first
                        } else if i == last {
                            end
                        } else {
                            rest
                        }
                    })
                    .collect::<Vec<f64>>()
            };
            // What is masked has no part; −∞ first, so that a sum that is scaled begins with nothing.
            let x = [row(-inf, -inf, 2.0), row(3e38, -inf, 3e38), row(-inf, 1.0, -inf)].concat();
            let x = emulated.place(&Tensor::from_f64(&x, [3, columns], DType::F32));
            let middle = 1.0 / (columns - 2) as f64;
            let expected = [row(0.0, 0.0, 1.0), row(0.5, 0.0, 0.5), row(0.0, middle, 0.0)].concat();
            let found = emulated.read(softmax(emulated.cuda, &x));
            assert_near(&found, &expected, DType::F32, 1.0, "masked");
            let nan = [
                row(-inf, -inf, -inf),
                row(0.0, 1.0, inf),
                row(0.0, -inf, f64::NAN),
                row(f64::NAN, -inf, 1.0),
            ];
            let x = emulated.place(&Tensor::from_f64(&nan.concat(), [4, columns], DType::F32));
            let labels = emulated.place(&Tensor::from_vec(vec![1i64; 4], [4]));
            for y in [
                softmax(emulated.cuda, &x),
                log_softmax(emulated.cuda, &x),
                cross_entropy(emulated.cuda, &x, &labels),
            ] {
                assert!(emulated.read(y).iter().all(|v| v.is_nan()), "{columns} columns");
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_nearly_certain_prediction_keeps_its_loss() {
        let emulated = Emulated::device();
        let label = emulated.place(&Tensor::from_vec(vec![0i64], [1]));
        for dtype in FLOATS {
            let x = emulated.place(&Tensor::from_f64(&[30.0, 0.0], [1, 2], dtype));
            let loss = emulated.read(cross_entropy(emulated.cuda, &x, &label))[0];
            let exact = (-30.0f64).exp().ln_1p();
            assert!((loss / exact - 1.0).abs() < 1e-2, "{dtype}: {loss} against {exact}");
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_label_outside_the_classes_is_an_error_when_results_are_read() {
        let emulated = Emulated::device();
        for columns in [4, 600, 9000] {
            let x = emulated.place(&numbers([3, columns], DType::F32, 1));
            for (labels, row) in [([0, columns as i64, -1], 1), ([0, 3, -1], 2), ([i64::MIN, 0, 0], 0)] {
                let labels = emulated.place(&Tensor::from_vec(labels.to_vec(), [3]));
                let loss = cross_entropy(emulated.cuda, &x, &labels).unwrap();
                let error = loss.to_f64_vec().unwrap_err().to_string();
                let expected = format!("cross_entropy: the index at element {row} is outside 0..{columns}");
                assert!(error.ends_with(&expected), "{error}");
            }
        }
    }
}
