//! `act(x·wᵀ + b)`: a matrix product, then bias and activation in one pass over each row of the result.

use super::{Real, for_rows, per_column};
use crate::cpu::matmul::matmul;
use crate::primitive::Activation;
use crate::{Result, Tensor};

/// x `[.., in]`, w `[out, in]`, b `[out]` → `[.., out]`. Whatever the strides of w, it is not copied.
pub(super) fn linear<T: Real>(act: Activation, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    assert_eq!(w.shape().len(), 2, "linear: the weight must be [out, in], found {}", w.shape());
    if let &[columns] = &x.shape()[..] {
        let row = linear::<T>(act, &x.reshape([1, columns])?, w, b)?;
        return row.reshape([w.shape()[0]]);
    }
    let b = b.map(Tensor::contiguous).transpose()?;
    let b = b.as_ref().map(|b| per_column::<T>("linear", b, w.shape()[0]));
    let mut y = matmul(x, &w.transpose(0, 1))?;
    let rows = y.as_mut_slice::<T>().expect("nobody else refers to a product just made");
    let width = w.shape()[0];
    match act {
        Activation::Identity if b.is_none() => {}
        Activation::Identity => finish(rows, width, b, |v| v),
        Activation::Relu => finish(rows, width, b, T::relu),
        Activation::Tanh => finish(rows, width, b, T::tanh),
        Activation::Sigmoid => finish(rows, width, b, T::sigmoid),
    }
    Ok(y)
}

fn finish<T: Real>(y: &mut [T], width: usize, b: Option<&[T]>, act: impl Fn(T) -> T + Sync) {
    for_rows(
        y,
        width,
        width,
        #[inline(always)]
        |_, row| match b {
            Some(b) => {
                for (y, &b) in row.iter_mut().zip(b) {
                    *y = act(*y + b);
                }
            }
            None => {
                for y in row {
                    *y = act(*y);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_one_answer, numbers};
    use super::*;
    use crate::cpu::fixture::{naive, views};
    use crate::{DType, Fused, Shape};

    const ACTIVATIONS: [Activation; 4] =
        [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];

    fn definition(act: Activation, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Vec<f64> {
        let (out, inside) = (w.shape()[0], w.shape()[1]);
        let rows = x.shape()[..x.shape().len() - 1].iter().product();
        let (x, w) = (naive(x), naive(w));
        let b = b.map_or(vec![0.0; out], naive);
        let mut y = Vec::new();
        for i in 0..rows {
            for j in 0..out {
                let v: f64 = (0..inside).map(|p| x[i * inside + p] * w[j * inside + p]).sum::<f64>() + b[j];
                y.push(match act {
                    Activation::Identity => v,
                    Activation::Relu => v.max(0.0),
                    Activation::Tanh => v.tanh(),
                    Activation::Sigmoid => 1.0 / (1.0 + (-v).exp()),
                });
            }
        }
        y
    }

    fn check(act: Activation, x: &Tensor, w: &Tensor, b: Option<&Tensor>, what: &str) {
        let operands: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
        let y = Tensor::fused(Fused::Linear(act), &operands).unwrap().unwrap();
        let shape: Shape = x.shape()[..x.shape().len() - 1].iter().copied().chain([w.shape()[0]]).collect();
        assert_eq!(y.shape(), &shape);
        assert_near(&y, &definition(act, x, w, b), &format!("{act:?} {}, {what}", x.dtype()));
    }

    #[test]
    fn every_layout_gives_the_definition() {
        for dtype in [DType::F32, DType::F64] {
            for act in ACTIVATIONS {
                for (rows, inside, out) in [(1, 1, 1), (3, 5, 2), (9, 4, 17)] {
                    let b = numbers([2 * out], dtype, 3);
                    for x in views(&[rows, inside], dtype) {
                        for w in views(&[out, inside], dtype) {
                            let what = format!("{:?} · {:?}", x.layout(), w.layout());
                            check(act, &x, &w, None, &what);
                            check(act, &x, &w, Some(&b.slice(0, 1, out + 1, 1)), &what);
                            check(act, &x, &w, Some(&b.slice(0, 0, 2 * out, 2).flip(0)), &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_rank_and_sizes_zero() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let (w, b) = (numbers([3, 4], dtype, 1), numbers([3], dtype, 2));
            let shapes: [&[usize]; 6] = [&[4], &[1, 4], &[2, 3, 4], &[2, 1, 5, 4], &[0, 4], &[2, 0, 4]];
            for shape in shapes {
                check(Activation::Relu, &numbers(shape, dtype, 3), &w, Some(&b), "");
            }
            check(Activation::Tanh, &numbers([2, 4, 5], dtype, 3).transpose(1, 2), &w, Some(&b), "");
            check(Activation::Identity, &numbers([8], dtype, 3).slice(0, 1, 8, 2), &w, None, "");
            check(Activation::Sigmoid, &numbers([2, 0], dtype, 3), &numbers([3, 0], dtype, 3), Some(&b), "");
            check(Activation::Relu, &numbers([2, 4], dtype, 3), &numbers([0, 4], dtype, 3), None, "");
        }
    }

    #[test]
    fn activations_at_the_ends() {
        let x = Tensor::from_vec(vec![-1e30f32, -100.0, -0.0, 0.0, 100.0, 1e30, f32::NAN], [7, 1]);
        let w = Tensor::ones([1, 1], DType::F32);
        let of =
            |act| Tensor::fused(Fused::Linear(act), &[&x, &w]).unwrap().unwrap().to_vec::<f32>().unwrap();
        let relu = of(Activation::Relu);
        assert_eq!(relu[..6], [0.0, 0.0, 0.0, 0.0, 100.0, 1e30]);
        assert!(relu[..3].iter().all(|v| v.is_sign_positive()));
        assert_eq!(of(Activation::Tanh)[..6], [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]);
        let sigmoid = of(Activation::Sigmoid);
        assert_eq!([sigmoid[0], sigmoid[2], sigmoid[3], sigmoid[4], sigmoid[5]], [0.0, 0.5, 0.5, 1.0, 1.0]);
        assert!(sigmoid[1] > 0.0 && sigmoid[1] < 4e-44, "{}", sigmoid[1]);
        for act in ACTIVATIONS {
            assert!(of(act)[6].is_nan(), "{act:?}");
        }
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            let (x, w, b) =
                (numbers([400, 130], dtype, 1), numbers([211, 130], dtype, 2), numbers([211], dtype, 3));
            for act in ACTIVATIONS {
                assert_one_answer(Fused::Linear(act), &[&x, &w, &b]);
                assert_one_answer(Fused::Linear(act), &[&x.slice(0, 0, 30, 1), &w, &b]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "linear: expected one element for each of the 3 columns, found shape [4]")]
    fn a_bias_of_another_size_panics() {
        let (x, w) = (numbers([2, 4], DType::F32, 1), numbers([3, 4], DType::F32, 2));
        let _ = Tensor::fused(Fused::Linear(Activation::Relu), &[&x, &w, &numbers([4], DType::F32, 3)]);
    }
}
