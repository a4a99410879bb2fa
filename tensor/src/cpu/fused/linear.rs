//! `act(x·wᵀ + b) + r`: a matrix product, then bias, activation and residual in one pass over the rows of the result (a residual
//! alone is the product's own business); and the pass over the cotangent of a product with which its derivative begins.

use smallvec::smallvec;

use super::rows::for_rows;
use super::{PARALLEL_ELEMENTS, Real, expect_shape, last_axis, per_column, row_major};
use crate::cpu::matmul::{matmul, matmul_add};
use crate::cpu::reduce;
use crate::cpu::simd::widest;
use crate::cpu::threads;
use crate::primitive::Activation;
use crate::{HostBuffer, Result, Results, Shape, Tensor};

/// x `[.., in]`, w `[out, in]`, b `[out]`, r `[.., out]` → `[.., out]`. Whatever the strides of w, it is not copied.
pub(super) fn linear<T: Real>(
    act: Activation,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    r: Option<&Tensor>,
) -> Result<Tensor> {
    assert_eq!(w.shape().len(), 2, "linear: the weight must be [out, in], found {}", w.shape());
    let width = w.shape()[0];
    if let &[columns] = &x.shape()[..] {
        let r = r.map(|r| r.reshape([1, width])).transpose()?;
        let row = linear::<T>(act, &x.reshape([1, columns])?, w, b, r.as_ref())?;
        return row.reshape([width]);
    }
    let b = b.map(Tensor::contiguous).transpose()?;
    let b = b.as_ref().map(|b| per_column::<T>("linear", b, width));
    let r = r.map(|r| r.contiguous()).transpose()?;
    if let (Activation::Identity, None, Some(r)) = (act, b, &r) {
        return Ok(matmul_add::<T>(x, &w.transpose(0, 1), r));
    }
    let mut y = matmul(x, &w.transpose(0, 1))?;
    let r = r.as_ref().map(|r| {
        assert!(r.shape() == y.shape(), "linear: the residual must be {}, found {}", y.shape(), r.shape());
        row_major::<T>(r)
    });
    let rows = y.as_mut_slice::<T>().expect("nobody else refers to a product just made");
    match act {
        Activation::Identity if b.is_none() => {}
        Activation::Identity => finish(rows, width, b, r, |v| v),
        Activation::Relu => finish(rows, width, b, r, T::relu),
        Activation::Tanh => finish(rows, width, b, r, T::tanh),
        Activation::Sigmoid => finish(rows, width, b, r, T::sigmoid),
    }
    Ok(y)
}

fn finish<T: Real>(
    y: &mut [T],
    width: usize,
    b: Option<&[T]>,
    r: Option<&[T]>,
    act: impl Fn(T) -> T + Copy + Sync,
) {
    for_rows(
        y,
        width,
        width,
        #[inline(always)]
        |i, row| {
            // Index by index: of two iterators side by side the compiler makes a function.
            match b {
                Some(b) => {
                    let b = &b[..row.len()];
                    for i in 0..row.len() {
                        row[i] = act(row[i] + b[i]);
                    }
                }
                None => {
                    for y in row.iter_mut() {
                        *y = act(*y);
                    }
                }
            }
            // The row is still at hand.
            if let Some(r) = r {
                let r = &r[i * width..][..row.len()];
                for i in 0..row.len() {
                    row[i] = row[i] + r[i];
                }
            }
        },
    );
}

/// y and ȳ, both `[.., C]` → `z̄ = ȳ∘act′` and `b̄ = Σ_rows z̄`, `[C]`, which is added up as [`Reduce::Sum`](crate::Reduce)
/// does it: [`reduce::ROWS`] rows one after the other, then in a tree.
pub(super) fn linear_backward<T: Real>(act: Activation, y: &Tensor, g: &Tensor) -> Result<Results> {
    expect_shape("linear_backward", g, y.shape());
    let (shape, columns) = (y.shape(), last_axis(y));
    let (y, g) = (y.contiguous()?, g.contiguous()?);
    let (y, g) = (row_major::<T>(&y), row_major::<T>(&g));
    Ok(match act {
        Activation::Identity => backward(
            shape,
            columns,
            y,
            g,
            #[inline(always)]
            |_, g| g,
        ),
        Activation::Relu => backward(
            shape,
            columns,
            y,
            g,
            #[inline(always)]
            |y, g| g * y.sign(),
        ),
        Activation::Tanh => backward(
            shape,
            columns,
            y,
            g,
            #[inline(always)]
            |y, g| g * (T::ONE - y * y),
        ),
        Activation::Sigmoid => backward(
            shape,
            columns,
            y,
            g,
            #[inline(always)]
            |y, g| g * (y * (T::ONE - y)),
        ),
    })
}

/// `f` makes z̄ of y and ȳ. It goes on by value: behind a reference it would be called for each element.
fn backward<T: Real>(
    shape: &Shape,
    columns: usize,
    y: &[T],
    g: &[T],
    f: impl Fn(T, T) -> T + Copy + Sync,
) -> Results {
    let rows = y.len() / columns.max(1);
    let mut dz = HostBuffer::new(size_of_val(y));
    // Of each slab of rows its sum; in the end the first is the sum of all.
    let mut sums = HostBuffer::new(rows.div_ceil(reduce::ROWS).max(1) * columns * size_of::<T>());
    let slab = reduce::ROWS * columns;
    let task = |number: usize, dz: &mut [T], sum: &mut [T]| {
        let (y, g) = (&y[number * slab..][..dz.len()], &g[number * slab..][..dz.len()]);
        widest(
            #[inline(always)]
            || slab_backward(dz, sum, y, g, f),
        );
    };
    if y.len() >= PARALLEL_ELEMENTS {
        threads::chunks_of_two(dz.as_mut(), slab, sums.as_mut(), columns, task);
    } else if y.is_empty() {
        sums.as_mut::<T>().fill(T::ZERO);
    } else {
        let slabs = dz.as_mut().chunks_mut(slab).zip(sums.as_mut().chunks_mut(columns));
        slabs.enumerate().for_each(|(number, (dz, sum))| task(number, dz, sum));
    }
    let sums = sums.as_mut::<T>();
    add_up(sums, rows, columns);
    let mut db = HostBuffer::new(columns * size_of::<T>());
    db.as_mut::<T>().copy_from_slice(&sums[..columns]);
    smallvec![dz.into_tensor(shape, T::DTYPE), db.into_tensor([columns], T::DTYPE)]
}

/// Columns whose sums stay in registers: four of sixteen f32.
const TILE: usize = 64;

/// Some rows of z̄, and their sum.
#[inline(always)]
fn slab_backward<T: Real>(dz: &mut [T], sum: &mut [T], y: &[T], g: &[T], f: impl Fn(T, T) -> T) {
    let columns = sum.len();
    let (tiles, rest) = sum.as_chunks_mut::<TILE>();
    let in_tiles = tiles.len() * TILE;
    for (number, tile) in tiles.iter_mut().enumerate() {
        let mut sum = [T::ZERO; TILE];
        for at in (number * TILE..dz.len()).step_by(columns) {
            let (dz, y, g) = (&mut dz[at..][..TILE], &y[at..][..TILE], &g[at..][..TILE]);
            for i in 0..TILE {
                dz[i] = f(y[i], g[i]);
                sum[i] = sum[i] + dz[i];
            }
        }
        *tile = sum;
    }
    if !rest.is_empty() {
        rest.fill(T::ZERO);
        for at in (in_tiles..dz.len()).step_by(columns) {
            let n = rest.len();
            let (dz, y, g) = (&mut dz[at..][..n], &y[at..][..n], &g[at..][..n]);
            for i in 0..n {
                dz[i] = f(y[i], g[i]);
                rest[i] = rest[i] + dz[i];
            }
        }
    }
}

/// Adds up the sums of all slabs of so many rows, into the first.
fn add_up<T: Real>(sums: &mut [T], rows: usize, columns: usize) {
    if rows <= reduce::ROWS {
        return;
    }
    let half = reduce::half_of(rows, reduce::ROWS);
    let (left, right) = sums.split_at_mut(half / reduce::ROWS * columns);
    add_up(left, half, columns);
    add_up(right, rows - half, columns);
    left[..columns].iter_mut().zip(&right[..columns]).for_each(|(left, &right)| *left = *left + right);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, assert_one_answer, numbers};
    use super::*;
    use crate::cpu::fixture::{naive, views};
    use crate::{DType, Fused, Map, Reduce, Shape};

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

    /// A residual is what is added to the layer, with the same bits; of bf16, before the sum is rounded.
    fn check_added(act: Activation, r: &Tensor, x: &Tensor, w: &Tensor, b: Option<&Tensor>, what: &str) {
        let of = |f, first: Option<&Tensor>, x: &Tensor, w: &Tensor, b: Option<&Tensor>| {
            let operands: Vec<&Tensor> = first.into_iter().chain([x, w]).chain(b).collect();
            Tensor::fused(f, &operands).unwrap().unwrap()
        };
        let y = of(Fused::LinearAdd(act), Some(r), x, w, b);
        let wide =
            |x: &Tensor| if x.dtype() == DType::BF16 { x.cast(DType::F32).unwrap() } else { x.clone() };
        let b = b.map(wide);
        let layer = of(Fused::Linear(act), None, &wide(x), &wide(w), b.as_ref());
        let expected = Tensor::map(Map::Add, &[&wide(r), &layer]).unwrap().cast(x.dtype()).unwrap();
        assert_eq!(y.meta(), expected.meta());
        let bits = |y: Tensor| y.storage().host().unwrap().to_vec();
        assert!(bits(y) == bits(expected), "{act:?} {}, {what}", x.dtype());
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
                            let r = numbers([out, rows], dtype, 4).transpose(0, 1);
                            check_added(act, &r, &x, &w, None, &what);
                            check_added(act, &r.flip(1), &x, &w, Some(&b.slice(0, 1, out + 1, 1)), &what);
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
                let x = numbers(shape, dtype, 3);
                check(Activation::Relu, &x, &w, Some(&b), "");
                let r = numbers(x.shape().with(shape.len() - 1, 3), dtype, 4);
                for act in ACTIVATIONS {
                    check_added(act, &r, &x, &w, Some(&b), "");
                }
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
                let r = numbers([400, 211], dtype, 4);
                assert_one_answer(Fused::LinearAdd(act), &[&r, &x, &w, &b]);
                assert_one_answer(Fused::LinearAdd(act), &[&r.slice(0, 0, 30, 1), &x.slice(0, 0, 30, 1), &w]);
            }
        }
    }

    fn backward(act: Activation, y: &Tensor, g: &Tensor) -> Results {
        Tensor::fused_all(Fused::LinearBackward(act), &[y, g]).unwrap().unwrap()
    }

    #[test]
    fn the_cotangent_is_what_the_primitives_make_of_it() {
        let map = |f, x: &[&Tensor]| Tensor::map(f, x).unwrap();
        let from_one = Map::Affine { mul: -1.0, add: 1.0 };
        for dtype in [DType::F32, DType::F64] {
            let shapes: [&[usize]; 8] =
                [&[2], &[1, 3], &[16, 5], &[17, 64], &[4, 10, 70], &[130, 300], &[0, 3], &[3, 0]];
            for shape in shapes {
                let (y, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                for act in ACTIVATIONS {
                    let y = act.map().map_or(y.clone(), |f| map(f, &[&y]));
                    let dz = match act {
                        Activation::Identity => g.clone(),
                        Activation::Relu => map(Map::Mul, &[&g, &map(Map::Sign, &[&y])]),
                        Activation::Tanh => {
                            map(Map::Mul, &[&g, &map(from_one, &[&map(Map::Mul, &[&y, &y])])])
                        }
                        Activation::Sigmoid => {
                            map(Map::Mul, &[&g, &map(Map::Mul, &[&y, &map(from_one, &[&y])])])
                        }
                    };
                    let axes: Vec<isize> = (0..shape.len() as isize - 1).collect();
                    // No axes would be all.
                    let db =
                        if axes.is_empty() { dz.clone() } else { dz.reduce(Reduce::Sum, &axes).unwrap() };
                    let found = backward(act, &y, &g);
                    assert_eq!(naive(&found[0]), naive(&dz), "{act:?} {dtype} {shape:?}");
                    assert_eq!(naive(&found[1]), naive(&db), "{act:?} {dtype} {shape:?}");
                    assert_eq!(found[1].shape()[..], shape[shape.len() - 1..]);
                }
            }
        }
    }

    #[test]
    fn a_cotangent_of_any_layout_and_nan_where_there_was_one() {
        let y = Tensor::from_vec(vec![0.0f32, 2.0, f32::NAN, 1.0, 0.0, 3.0], [3, 2]);
        for g in views(&[3, 2], DType::F32) {
            let found = backward(Activation::Relu, &y, &g);
            let dz = naive(&found[0]);
            assert!(dz[2].is_nan() && naive(&found[1])[0].is_nan());
            assert_eq!([dz[0], dz[1], dz[3], dz[4], dz[5]], {
                let g = naive(&g);
                [0.0, g[1], g[3], 0.0, g[5]]
            });
        }
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_cotangent() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for rows in [40, 700] {
                let (y, g) = (numbers([rows, 67], dtype, 1), numbers([rows, 67], dtype, 2));
                for act in ACTIVATIONS {
                    assert_one_answer(Fused::LinearBackward(act), &[&y, &g]);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "linear_backward: expected a cotangent [2, 3], found [2, 4]")]
    fn a_cotangent_of_another_shape_panics() {
        backward(Activation::Relu, &numbers([2, 3], DType::F32, 1), &numbers([2, 4], DType::F32, 1));
    }

    #[test]
    #[should_panic(expected = "linear: the residual must be [2, 3], found [2, 1]")]
    fn a_residual_does_not_broadcast() {
        let (x, w) = (numbers([2, 4], DType::F32, 1), numbers([3, 4], DType::F32, 2));
        let _ = Tensor::fused(Fused::LinearAdd(Activation::Relu), &[&numbers([2, 1], DType::F32, 3), &x, &w]);
    }

    #[test]
    #[should_panic(expected = "linear: expected one element for each of the 3 columns, found shape [4]")]
    fn a_bias_of_another_size_panics() {
        let (x, w) = (numbers([2, 4], DType::F32, 1), numbers([3, 4], DType::F32, 2));
        let _ = Tensor::fused(Fused::Linear(Activation::Relu), &[&x, &w, &numbers([4], DType::F32, 3)]);
    }
}
