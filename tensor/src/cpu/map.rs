//! Functions of one, two or three elements.
//!
//! Each operation is one loop over slices ([`elementwise1`] and its kin write it), compiled for the widest
//! vectors there are; strides are a [`Reader`]'s business.

use bytemuck::Pod;
use smallvec::SmallVec;

use super::copy::{cast, contiguous, with_bits};
use super::math::Float;
use super::past_caches::{GROUP, Stores, in_lines};
use super::simd::widest;
use super::threads;
use super::turn::Turned;
use super::vector::{Kernel, Vector, for_vectors};
use super::walk::{BLOCK, Reader, contiguous_data};
use crate::{DType, HostBuffer, Map, Result, Shape, Tensor};

/// Applies a function element by element, with broadcasting. i64 arithmetic wraps around.
pub(super) fn map(f: Map, x: &[&Tensor]) -> Result<Tensor> {
    if f == Map::Where {
        return Ok(with_bits!(x[1].dtype(), T => elementwise3(x, x[1].dtype(), |c: u8, a: T, b: T| {
            if c != 0 { a } else { b }
        })));
    }
    Ok(match x[0].dtype() {
        DType::F32 => float::<f32>(f, x),
        DType::F64 => float::<f64>(f, x),
        // By way of f32 tensors: a loop of its own for every function would take a third of this crate's build.
        DType::BF16 => {
            let wide = x.iter().map(|x| cast(x, DType::F32)).collect::<Result<SmallVec<[Tensor; 3]>>>()?;
            let y = map(f, &wide.iter().collect::<SmallVec<[&Tensor; 3]>>())?;
            if y.dtype() == DType::F32 { cast(&y, DType::BF16)? } else { y }
        }
        DType::I64 => integer(f, x),
        DType::Bool => boolean(f, x),
    })
}

/// `sum[i] = sum[i] + x[i]`, for contiguous tensors of one shape, f32 or f64, where nothing else refers to `sum`.
pub(super) fn add_in_place(sum: &mut Tensor, x: &Tensor) {
    fn add<T: Float + crate::Element + Pod>(sum: &mut Tensor, x: &Tensor) {
        let x = contiguous_data::<T>(x).expect("what is added is contiguous");
        let sum = sum.as_mut_slice::<T>().expect("nothing else refers to the sum");
        threads::pieces(sum, |start, sum| {
            let x = &x[start..start + sum.len()];
            widest(
                #[inline(always)]
                || (0..x.len()).for_each(|i| sum[i] = sum[i] + x[i]),
            )
        });
    }
    match x.dtype() {
        DType::F32 => add::<f32>(sum, x),
        _ => add::<f64>(sum, x),
    }
}

fn float<T: Float>(f: Map, x: &[&Tensor]) -> Tensor {
    use Map::*;
    let of = T::of;
    match f {
        Neg => unary::<T>(x, |v| -v),
        Abs => unary::<T>(x, Float::abs),
        Sign => unary::<T>(x, Float::sign),
        Exp => unary::<T>(x, Float::exp),
        Expm1 => library::<T>(x, Float::expm1),
        Log => library::<T>(x, Float::log),
        Log1p => library::<T>(x, Float::log1p),
        Sqrt => unary::<T>(x, Float::sqrt),
        Rsqrt => unary::<T>(x, |v| T::ONE / v.sqrt()),
        Recip => unary::<T>(x, |v| T::ONE / v),
        Sin => scalar::<T>(x, Float::sin),
        Cos => scalar::<T>(x, Float::cos),
        Tanh => library::<T>(x, Float::tanh),
        Sigmoid => unary::<T>(x, Float::sigmoid),
        Erf => library::<T>(x, Float::erf),
        Softplus => library::<T>(x, Float::softplus),
        Relu => unary::<T>(x, Float::relu),
        LeakyRelu(slope) => {
            let slope = of(slope);
            unary::<T>(x, move |v| if v > T::ZERO { v } else { slope * v })
        }
        Elu(alpha) => {
            let alpha = of(alpha);
            // Both sides are computed for every element: a branch would keep the loop from becoming vectors.
            library::<T>(
                x,
                #[inline(always)]
                move |v| {
                    let negative = alpha * v.expm1();
                    if v > T::ZERO { v } else { negative }
                },
            )
        }
        Affine { mul, add } => {
            let (mul, add) = (of(mul), of(add));
            unary::<T>(x, move |v| v * mul + add)
        }
        // Products are exact to an ulp, and far faster than the general power.
        Powf(1.0) => unary::<T>(x, |v| v),
        Powf(2.0) => unary::<T>(x, |v| v * v),
        Powf(3.0) => unary::<T>(x, |v| v * v * v),
        Powf(-1.0) => unary::<T>(x, |v| T::ONE / v),
        Powf(p) => {
            let p = of(p);
            scalar::<T>(x, move |v| v.pow(p))
        }
        Clamp { low, high } => {
            let (low, high) = (of(low), of(high));
            unary::<T>(x, move |v| {
                let v = if v < low { low } else { v };
                if v > high { high } else { v }
            })
        }
        Add => binary::<T>(x, |a, b| a + b),
        Sub => binary::<T>(x, |a, b| a - b),
        Mul => binary::<T>(x, |a, b| a * b),
        Div => binary::<T>(x, |a, b| a / b),
        Pow => drive2(x, x[0].dtype(), &|out: &mut [T], _, a: &[T], b: &[T]| {
            out.iter_mut().zip(a).zip(b).for_each(|((out, &a), &b)| *out = a.pow(b));
        }),
        Max => binary::<T>(x, Float::maximum),
        Min => binary::<T>(x, Float::minimum),
        Eq => compare(x, |a: T, b| a == b),
        Ne => compare(x, |a: T, b| a != b),
        Lt => compare(x, |a: T, b| a < b),
        Le => compare(x, |a: T, b| a <= b),
        Gt => compare(x, |a: T, b| a > b),
        Ge => compare(x, |a: T, b| a >= b),
        Not | And | Or | Where => unreachable!("{} has no float kernel", f.name()),
    }
}

fn integer(f: Map, x: &[&Tensor]) -> Tensor {
    use Map::*;
    match f {
        Neg => elementwise1(x[0], DType::I64, i64::wrapping_neg),
        Abs => elementwise1(x[0], DType::I64, i64::wrapping_abs),
        Sign => elementwise1(x[0], DType::I64, i64::signum),
        Affine { mul, add } => {
            let (mul, add) = (mul as i64, add as i64);
            elementwise1(x[0], DType::I64, move |v: i64| v.wrapping_mul(mul).wrapping_add(add))
        }
        Add => elementwise2(x, DType::I64, i64::wrapping_add),
        Sub => elementwise2(x, DType::I64, i64::wrapping_sub),
        Mul => elementwise2(x, DType::I64, i64::wrapping_mul),
        Max => elementwise2(x, DType::I64, |a: i64, b: i64| a.max(b)),
        Min => elementwise2(x, DType::I64, |a: i64, b: i64| a.min(b)),
        Eq => compare(x, |a: i64, b| a == b),
        Ne => compare(x, |a: i64, b| a != b),
        Lt => compare(x, |a: i64, b| a < b),
        Le => compare(x, |a: i64, b| a <= b),
        Gt => compare(x, |a: i64, b| a > b),
        Ge => compare(x, |a: i64, b| a >= b),
        _ => unreachable!("{} has no i64 kernel", f.name()),
    }
}

fn boolean(f: Map, x: &[&Tensor]) -> Tensor {
    match f {
        Map::Not => elementwise1(x[0], DType::Bool, |v: u8| v ^ 1),
        Map::And => elementwise2(x, DType::Bool, |a: u8, b: u8| a & b),
        Map::Or => elementwise2(x, DType::Bool, |a: u8, b: u8| a | b),
        Map::Eq => compare(x, |a: u8, b| a == b),
        Map::Ne => compare(x, |a: u8, b| a != b),
        _ => unreachable!("{} has no bool kernel", f.name()),
    }
}

fn unary<T: Float>(x: &[&Tensor], f: impl Fn(T) -> T + Sync) -> Tensor {
    elementwise1(x[0], x[0].dtype(), f)
}

/// For functions that become vectors in f32 and are a library's in f64.
fn library<T: Float>(x: &[&Tensor], f: impl Fn(T) -> T + Sync) -> Tensor {
    if T::OWN_FUNCTIONS { unary(x, f) } else { scalar(x, f) }
}

/// For functions that no vector unit helps with: one loop, for every processor.
fn scalar<T: Float>(x: &[&Tensor], f: impl Fn(T) -> T + Sync) -> Tensor {
    drive1(x[0], x[0].dtype(), &|out: &mut [T], _, x: &[T]| {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = f(x));
    })
}

fn binary<T: Float>(x: &[&Tensor], f: impl Fn(T, T) -> T + Sync) -> Tensor {
    elementwise2(x, x[0].dtype(), f)
}

fn compare<T: Pod + Send + Sync>(x: &[&Tensor], f: impl Fn(T, T) -> bool + Sync) -> Tensor {
    elementwise2(
        x,
        DType::Bool,
        #[inline(always)]
        |a: T, b: T| u8::from(f(a, b)),
    )
}

// Each of the three loops below computes a group of elements in registers, and then stores it, if a group is whole lines.

/// `f` of every element of `x`, as a tensor of `dtype`, whose elements are `R`.
pub(super) fn elementwise1<T, R>(x: &Tensor, dtype: DType, f: impl Fn(T) -> R + Sync) -> Tensor
where
    T: Pod + Sync,
    R: Pod + Send,
{
    drive1(x, dtype, &|out: &mut [R], stores: Stores, x: &[T]| {
        for_vectors(Loop1 { out, stores, x, f: &f });
    })
}

struct Loop1<'a, R, T, F> {
    out: &'a mut [R],
    stores: Stores,
    x: &'a [T],
    f: &'a F,
}

impl<R: Pod, T: Pod, F: Fn(T) -> R> Kernel<f32> for Loop1<'_, R, T, F> {
    #[inline(always)]
    fn run<V: Vector<f32>>(self) {
        let Loop1 { out, stores, x, f } = self;
        if !in_lines::<R>() {
            let x = &x[..out.len()];
            for i in 0..out.len() {
                out[i] = f(x[i]);
            }
            return;
        }
        let (x, x_rest) = x[..out.len()].as_chunks();
        let (mut groups, rest) = stores.groups(out);
        for i in 0..groups.len() {
            stores.fetch_ahead(x, i);
            let mut y = [R::zeroed(); GROUP];
            for j in 0..GROUP {
                y[j] = f(x[i][j]);
            }
            groups.put::<V>(i, y);
        }
        for j in 0..rest.len() {
            rest[j] = f(x_rest[j]);
        }
    }
}

/// `f` of the elements of two tensors, broadcast.
pub(super) fn elementwise2<A, B, R>(x: &[&Tensor], dtype: DType, f: impl Fn(A, B) -> R + Sync) -> Tensor
where
    A: Pod + Sync,
    B: Pod + Sync,
    R: Pod + Send,
{
    drive2(x, dtype, &|out: &mut [R], stores: Stores, a: &[A], b: &[B]| {
        for_vectors(Loop2 { out, stores, a, b, f: &f });
    })
}

struct Loop2<'a, R, A, B, F> {
    out: &'a mut [R],
    stores: Stores,
    a: &'a [A],
    b: &'a [B],
    f: &'a F,
}

impl<R: Pod, A: Pod, B: Pod, F: Fn(A, B) -> R> Kernel<f32> for Loop2<'_, R, A, B, F> {
    #[inline(always)]
    fn run<V: Vector<f32>>(self) {
        let Loop2 { out, stores, a, b, f } = self;
        if !in_lines::<R>() {
            let (a, b) = (&a[..out.len()], &b[..out.len()]);
            for i in 0..out.len() {
                out[i] = f(a[i], b[i]);
            }
            return;
        }
        let (a, a_rest) = a[..out.len()].as_chunks();
        let (b, b_rest) = b[..out.len()].as_chunks();
        let (mut groups, rest) = stores.groups(out);
        for i in 0..groups.len() {
            stores.fetch_ahead(a, i);
            stores.fetch_ahead(b, i);
            let mut y = [R::zeroed(); GROUP];
            for j in 0..GROUP {
                y[j] = f(a[i][j], b[i][j]);
            }
            groups.put::<V>(i, y);
        }
        for j in 0..rest.len() {
            rest[j] = f(a_rest[j], b_rest[j]);
        }
    }
}

/// `f` of the elements of three tensors, broadcast.
fn elementwise3<A, B, C, R>(x: &[&Tensor], dtype: DType, f: impl Fn(A, B, C) -> R + Sync) -> Tensor
where
    A: Pod + Sync,
    B: Pod + Sync,
    C: Pod + Sync,
    R: Pod + Send,
{
    drive3(x, dtype, &|out: &mut [R], stores: Stores, a: &[A], b: &[B], c: &[C]| {
        for_vectors(Loop3 { out, stores, a, b, c, f: &f });
    })
}

struct Loop3<'a, R, A, B, C, F> {
    out: &'a mut [R],
    stores: Stores,
    a: &'a [A],
    b: &'a [B],
    c: &'a [C],
    f: &'a F,
}

impl<R: Pod, A: Pod, B: Pod, C: Pod, F: Fn(A, B, C) -> R> Kernel<f32> for Loop3<'_, R, A, B, C, F> {
    #[inline(always)]
    fn run<V: Vector<f32>>(self) {
        let Loop3 { out, stores, a, b, c, f } = self;
        if !in_lines::<R>() {
            let (a, b, c) = (&a[..out.len()], &b[..out.len()], &c[..out.len()]);
            for i in 0..out.len() {
                out[i] = f(a[i], b[i], c[i]);
            }
            return;
        }
        let (a, a_rest) = a[..out.len()].as_chunks();
        let (b, b_rest) = b[..out.len()].as_chunks();
        let (c, c_rest) = c[..out.len()].as_chunks();
        let (mut groups, rest) = stores.groups(out);
        for i in 0..groups.len() {
            stores.fetch_ahead(a, i);
            stores.fetch_ahead(b, i);
            stores.fetch_ahead(c, i);
            let mut y = [R::zeroed(); GROUP];
            for j in 0..GROUP {
                y[j] = f(a[i][j], b[i][j], c[i][j]);
            }
            groups.put::<V>(i, y);
        }
        for j in 0..rest.len() {
            rest[j] = f(a_rest[j], b_rest[j], c_rest[j]);
        }
    }
}

// The three functions below are compiled once per combination of types, not once per operation: the loop over
// a block comes in by reference.

type Kernel1<'a, R, A> = &'a (dyn Fn(&mut [R], Stores, &[A]) + Sync);
type Kernel2<'a, R, A, B> = &'a (dyn Fn(&mut [R], Stores, &[A], &[B]) + Sync);
type Kernel3<'a, R, A, B, C> = &'a (dyn Fn(&mut [R], Stores, &[A], &[B], &[C]) + Sync);

fn drive1<R: Pod + Send, A: Pod + Sync>(x: &Tensor, dtype: DType, kernel: Kernel1<R, A>) -> Tensor {
    let mut buffer = HostBuffer::new(x.elements() * size_of::<R>());
    let x = &in_order(x);
    match contiguous_data::<A>(x) {
        Some(x) => threads::fill(buffer.as_mut::<R>(), |start, out, stores| {
            kernel(out, stores, &x[start..start + out.len()])
        }),
        None => threads::fill(buffer.as_mut::<R>(), |start, out, stores| {
            let mut x = Reader::of(x, start);
            out.chunks_mut(BLOCK).for_each(|out| kernel(out, stores, x.next(out.len())));
        }),
    }
    buffer.into_tensor(x.shape(), dtype)
}

fn drive2<R, A, B>(x: &[&Tensor], dtype: DType, kernel: Kernel2<R, A, B>) -> Tensor
where
    R: Pod + Send,
    A: Pod + Sync,
    B: Pod + Sync,
{
    if x[0].shape() == x[1].shape()
        && let Some((a, b)) = contiguous_data::<A>(x[0]).zip(contiguous_data::<B>(x[1]))
    {
        let mut buffer = HostBuffer::new(x[0].elements() * size_of::<R>());
        threads::fill(buffer.as_mut::<R>(), |start, out, stores| {
            let end = start + out.len();
            kernel(out, stores, &a[start..end], &b[start..end]);
        });
        return buffer.into_tensor(x[0].shape(), dtype);
    }
    let shape = broadcast_shape(x);
    let (a, b) = (&in_order(&x[0].expand(&shape)), &in_order(&x[1].expand(&shape)));
    let mut buffer = HostBuffer::new(shape.elements() * size_of::<R>());
    threads::fill(buffer.as_mut::<R>(), |start, out, stores| {
        let (mut a, mut b) = (Reader::of(a, start), Reader::of(b, start));
        for out in out.chunks_mut(BLOCK) {
            kernel(out, stores, a.next(out.len()), b.next(out.len()));
        }
    });
    buffer.into_tensor(shape, dtype)
}

fn drive3<R, A, B, C>(x: &[&Tensor], dtype: DType, kernel: Kernel3<R, A, B, C>) -> Tensor
where
    R: Pod + Send,
    A: Pod + Sync,
    B: Pod + Sync,
    C: Pod + Sync,
{
    let shape = broadcast_shape(x);
    let expanded = |i: usize| x[i].expand(&shape);
    let (a, b, c) = (&in_order(&expanded(0)), &in_order(&expanded(1)), &in_order(&expanded(2)));
    let mut buffer = HostBuffer::new(shape.elements() * size_of::<R>());
    threads::fill(buffer.as_mut::<R>(), |start, out, stores| {
        let (mut a, mut b, mut c) = (Reader::of(a, start), Reader::of(b, start), Reader::of(c, start));
        for out in out.chunks_mut(BLOCK) {
            kernel(out, stores, a.next(out.len()), b.next(out.len()), c.next(out.len()));
        }
    });
    buffer.into_tensor(shape, dtype)
}

/// A copy, where reading that is faster than reading the operand number by number.
fn in_order(x: &Tensor) -> Tensor {
    let copy = Turned::of(x.layout()).map(|_| contiguous(x).expect("memory for a copy"));
    copy.unwrap_or_else(|| x.clone())
}

fn broadcast_shape(x: &[&Tensor]) -> Shape {
    x.iter().skip(1).fold(x[0].shape().clone(), |shape, x| {
        shape.broadcast(x.shape()).expect("the operands of a map broadcast together")
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{ALL, FLOATS, assert_close, naive, rounded, values, views};
    use super::super::past_caches::LARGE;
    use super::super::simd::tests::at_every_level;
    use super::super::threads::PARALLEL;
    use super::*;
    use Map::*;

    const NAN: f64 = f64::NAN;

    #[test]
    fn results_too_large_for_the_caches_are_those_of_their_parts() {
        let n = LARGE / size_of::<f32>() + 12_345;
        let x = Tensor::from_vec((0..n).map(|i| (i % 8191) as f32 - 4000.0).collect::<Vec<f32>>(), [n]);
        let bytes = |x: &Tensor| cast(x, DType::Bool).unwrap();
        let whole = [
            map(Affine { mul: 3.0, add: 1.0 }, &[&x]).unwrap(),
            map(Sub, &[&x, &x.flip(0)]).unwrap(),
            map(Mul, &[&x, &x]).unwrap(),
            map(Where, &[&bytes(&x), &x, &Tensor::scalar(7.0f32)]).unwrap(),
            contiguous(&x.flip(0)).unwrap(),
        ];
        for start in (0..n).step_by(1 << 20) {
            let end = n.min(start + (1 << 20));
            let (x, flipped) = (x.slice(0, start, end, 1), x.flip(0).slice(0, start, end, 1));
            let parts = [
                map(Affine { mul: 3.0, add: 1.0 }, &[&x]).unwrap(),
                map(Sub, &[&x, &flipped]).unwrap(),
                map(Mul, &[&x, &x]).unwrap(),
                map(Where, &[&bytes(&x), &x, &Tensor::scalar(7.0f32)]).unwrap(),
                contiguous(&flipped).unwrap(),
            ];
            for (i, (whole, part)) in whole.iter().zip(&parts).enumerate() {
                let whole = whole.slice(0, start, end, 1);
                assert!(whole.as_slice::<f32>() == part.as_slice::<f32>(), "function {i} from {start} on");
            }
        }
    }

    #[test]
    fn a_sum_in_place_has_the_bits_of_a_sum() {
        for n in [0, 1, 7, 1000, PARALLEL + 3] {
            let at = |i: usize, k: f64| ((i as f64 * k).sin() * 1e3) as f32;
            let a: Vec<f32> = (0..n).map(|i| at(i, 0.7)).collect();
            let x = Tensor::from_vec((0..n).map(|i| at(i, 1.3)).collect::<Vec<f32>>(), [n]);
            let expected = map(Add, &[&Tensor::from_slice(&a, [n]), &x]).unwrap();
            let mut beside = Tensor::from_slice(&a, [n]);
            let (id, mut within) = (beside.storage().id(), beside.clone());
            beside.add_in_place(&x).unwrap();
            assert_ne!(beside.storage().id(), id, "somebody else refers to it");
            within.add_in_place(&x).unwrap();
            assert_eq!(within.storage().id(), id);
            for sum in [beside, within] {
                let bits =
                    |t: &Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert_eq!(bits(&sum), bits(&expected));
            }
        }
    }

    /// Each function, its definition in f64, and the ulps its composition may lose.
    type Definition1 = (Map, fn(f64) -> f64, f64);
    type Definition2 = (Map, fn(f64, f64) -> f64, f64);

    fn unary_definitions() -> Vec<Definition1> {
        vec![
            (Neg, |v| -v, 0.0),
            (Abs, f64::abs, 0.0),
            (Sign, |v| if v == 0.0 { 0.0 } else { v.signum() }, 0.0),
            (Exp, libm::exp, 2.0),
            (Expm1, libm::expm1, 2.0),
            (Log, libm::log, 2.0),
            (Log1p, libm::log1p, 2.0),
            (Sqrt, f64::sqrt, 0.5),
            (Rsqrt, |v| 1.0 / v.sqrt(), 1.5),
            (Recip, |v| 1.0 / v, 0.5),
            (Sin, libm::sin, 2.0),
            (Cos, libm::cos, 2.0),
            (Tanh, libm::tanh, 2.0),
            (
                Sigmoid,
                |v| if v < 0.0 { libm::exp(v) / (1.0 + libm::exp(v)) } else { 1.0 / (1.0 + libm::exp(-v)) },
                3.0,
            ),
            (Erf, libm::erf, 2.0),
            (
                Softplus,
                |v| if v > 0.0 { v + libm::log1p(libm::exp(-v)) } else { libm::log1p(libm::exp(v)) },
                3.0,
            ),
            (Relu, |v| v.max(0.0), 0.0),
            (LeakyRelu(0.25), |v| if v > 0.0 { v } else { 0.25 * v }, 0.0),
            (Elu(2.0), |v| if v > 0.0 { v } else { 2.0 * libm::expm1(v) }, 2.0),
            (Affine { mul: 0.5, add: 2.0 }, |v| v * 0.5 + 2.0, 0.5),
            (Powf(2.0), |v| v * v, 0.5),
            (Powf(3.0), |v| v * v * v, 1.0),
            (Powf(-1.0), |v| 1.0 / v, 0.5),
            (Powf(1.5), |v| libm::pow(v, 1.5), 2.0),
            (Clamp { low: -1.5, high: 2.0 }, |v| v.clamp(-1.5, 2.0), 0.0),
        ]
    }

    fn binary_definitions() -> Vec<Definition2> {
        vec![
            (Add, |a, b| a + b, 0.5),
            (Sub, |a, b| a - b, 0.5),
            (Mul, |a, b| a * b, 0.5),
            (Div, |a, b| a / b, 0.5),
            (Pow, libm::pow, 2.0),
            (Max, f64::max, 0.0),
            (Min, f64::min, 0.0),
            (Eq, |a, b| f64::from(a == b), 0.0),
            (Ne, |a, b| f64::from(a != b), 0.0),
            (Lt, |a, b| f64::from(a < b), 0.0),
            (Le, |a, b| f64::from(a <= b), 0.0),
            (Gt, |a, b| f64::from(a > b), 0.0),
            (Ge, |a, b| f64::from(a >= b), 0.0),
        ]
    }

    #[test]
    fn functions_of_one_element_agree_with_their_definitions() {
        for dtype in FLOATS {
            for (f, definition, ulps) in unary_definitions() {
                for x in views(&[5, 6], dtype) {
                    let exact: Vec<f64> = naive(&x).into_iter().map(definition).collect();
                    assert_close(f.name(), &map(f, &[&x]).unwrap(), &exact, ulps);
                }
            }
        }
    }

    #[test]
    fn functions_of_two_elements_agree_with_their_definitions() {
        for dtype in FLOATS {
            for (f, definition, ulps) in binary_definitions() {
                let others = views(&[3, 4], dtype);
                for (a, b) in views(&[3, 4], dtype).iter().zip(others.iter().rev()) {
                    let exact: Vec<f64> =
                        naive(a).into_iter().zip(naive(b)).map(|(a, b)| definition(a, b)).collect();
                    assert_close(f.name(), &map(f, &[a, b]).unwrap(), &exact, ulps);
                }
            }
        }
    }

    #[test]
    fn integers_wrap_around() {
        let x = Tensor::from_vec(vec![i64::MIN, -3, 0, i64::MAX], [4]);
        let one = Tensor::scalar(1i64);
        let ints = |f, x: &[&Tensor]| map(f, x).unwrap().to_vec::<i64>().unwrap();
        assert_eq!(ints(Neg, &[&x]), [i64::MIN, 3, 0, -i64::MAX]);
        assert_eq!(ints(Abs, &[&x]), [i64::MIN, 3, 0, i64::MAX]);
        assert_eq!(ints(Sign, &[&x]), [-1, -1, 0, 1]);
        assert_eq!(ints(Affine { mul: 2.0, add: 1.0 }, &[&x]), [1, -5, 1, -1]);
        assert_eq!(ints(Add, &[&x, &one]), [i64::MIN + 1, -2, 1, i64::MIN]);
        assert_eq!(ints(Sub, &[&x, &one]), [i64::MAX, -4, -1, i64::MAX - 1]);
        assert_eq!(ints(Mul, &[&x, &x]), [0, 9, 0, 1]);
        assert_eq!(ints(Max, &[&x, &one]), [1, 1, 1, i64::MAX]);
        assert_eq!(ints(Min, &[&x, &one]), [i64::MIN, -3, 0, 1]);
        for f in [Eq, Ne, Lt, Le, Gt, Ge] {
            let definition = binary_definitions().into_iter().find(|d| d.0 == f).unwrap().1;
            let expected: Vec<f64> = [-2.0, -3.0, 0.0, 2.0].iter().map(|&a| definition(a, 1.0)).collect();
            assert_eq!(naive(&map(f, &[&x, &one]).unwrap())[1..3], expected[1..3], "{}", f.name());
        }
    }

    #[test]
    fn truth_tables() {
        let a = Tensor::from_vec(vec![false, false, true, true], [4]);
        let b = Tensor::from_vec(vec![false, true, false, true], [4]);
        let bools = |f, x: &[&Tensor]| map(f, x).unwrap().to_vec::<bool>().unwrap();
        assert_eq!(bools(Not, &[&a]), [true, true, false, false]);
        assert_eq!(bools(And, &[&a, &b]), [false, false, false, true]);
        assert_eq!(bools(Or, &[&a, &b]), [false, true, true, true]);
        assert_eq!(bools(Eq, &[&a, &b]), [true, false, false, true]);
        assert_eq!(bools(Ne, &[&a, &b]), [false, true, true, false]);
    }

    #[test]
    fn where_chooses_between_elements_of_any_dtype_and_layout() {
        for dtype in ALL {
            for c in views(&[2, 3], DType::Bool) {
                for (a, b) in views(&[2, 3], dtype).iter().zip(views(&[3], dtype)) {
                    let y = map(Where, &[&c, a, &b]).unwrap();
                    let (c, a, b) = (naive(&c), naive(a), naive(&b));
                    let expected: Vec<f64> =
                        (0..6).map(|i| if c[i] != 0.0 { a[i] } else { b[i % 3] }).collect();
                    assert_eq!(naive(&y), expected);
                }
            }
        }
    }

    #[test]
    fn nan_stays_visible() {
        for dtype in FLOATS {
            let nan = Tensor::full([3], NAN, dtype);
            let one = Tensor::ones([3], dtype);
            let all_nan = |y: Tensor| naive(&y).iter().all(|v| v.is_nan());
            for (f, ..) in unary_definitions() {
                assert!(all_nan(map(f, &[&nan]).unwrap()), "{} of NaN ({dtype})", f.name());
            }
            for f in [Add, Sub, Mul, Div, Max, Min] {
                assert!(all_nan(map(f, &[&nan, &one]).unwrap()), "{}(NaN, 1)", f.name());
                assert!(all_nan(map(f, &[&one, &nan]).unwrap()), "{}(1, NaN)", f.name());
            }
            for f in [Eq, Lt, Le, Gt, Ge] {
                assert_eq!(naive(&map(f, &[&nan, &nan]).unwrap()), [0.0; 3]);
            }
            assert_eq!(naive(&map(Ne, &[&nan, &nan]).unwrap()), [1.0; 3]);
        }
    }

    #[test]
    fn saturating_functions_do_not_overflow() {
        for dtype in FLOATS {
            let x = Tensor::from_f64(&[-1e30, -200.0, 0.0, 200.0, 1e30], [5], dtype);
            let x_values = naive(&x);
            let sigmoid = naive(&map(Sigmoid, &[&x]).unwrap());
            assert_eq!([sigmoid[0], sigmoid[2], sigmoid[3], sigmoid[4]], [0.0, 0.5, 1.0, 1.0]);
            assert!(sigmoid[1] < 1e-80);
            let softplus = naive(&map(Softplus, &[&x]).unwrap());
            assert_eq!(softplus[3..], x_values[3..]);
            assert_eq!((softplus[0], softplus[2]), (0.0, rounded(std::f64::consts::LN_2, dtype)));
            assert_eq!(naive(&map(Tanh, &[&x]).unwrap())[3..], [1.0, 1.0]);
            assert_eq!(naive(&map(Elu(1.0), &[&x]).unwrap())[..2], [-1.0, -1.0]);
        }
    }

    #[test]
    fn every_vector_width_and_thread_count_gives_the_same_bits() {
        let n = PARALLEL + 4321;
        let x = Tensor::from_f64(&values(n, DType::F32), [n], DType::F32);
        let bits = |t: Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for f in [Exp, Tanh, Sigmoid, Erf, Softplus, Log1p, Affine { mul: 1.1, add: 0.3 }] {
            let results = at_every_level(|| {
                (
                    bits(map(f, &[&x.slice(0, 0, 3000, 1)]).unwrap()),
                    bits(pool.install(|| map(f, &[&x])).unwrap()),
                )
            });
            let (_, (short, long)) = &results[0];
            assert_eq!(short[..], long[..3000], "{}", f.name());
            for (level, result) in &results {
                assert!(*result == results[0].1, "{} at {level:?}", f.name());
            }
        }
    }

    #[test]
    fn shapes_broadcast_also_to_nothing() {
        let a = Tensor::zeros([3, 1], DType::F32);
        let y = map(Add, &[&a, &Tensor::zeros([0], DType::F32)]).unwrap();
        assert_eq!((&y.shape()[..], y.elements()), (&[3, 0][..], 0));
    }
}
