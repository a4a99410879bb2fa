//! What a row comes to: the sum of its numbers, of their squares, of their products with those of another row; its largest number.
//!
//! A row is dealt out to [`LANES`] running sums, so that a processor works on several at once; in the end they are added up in
//! pairs. Their number is part of a result's bits: it does not depend on the machine. Sums are in f64, whatever the row is in.

use std::marker::PhantomData;

use super::math::Float;
use super::vector::{Kernel, Scalar, Vector, for_vectors};
use super::walk::contiguous_data;
use crate::{DType, Element, Result, Tensor};

/// Four vectors of eight f64: enough to hide how long an addition takes.
const LANES: usize = 32;
/// Lanes of what is left of a row.
const FEW_LANES: usize = 4;

/// A float that kernels compute in, keeping statistics in f64.
pub(super) trait Real: Element + Float + Scalar {
    /// The same number.
    fn wide(self) -> f64;

    /// The numbers of a row from place `at` on, widened.
    fn load_wide<V: Vector<f64>>(row: &[Self], at: usize) -> V;
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn load_wide<V: Vector<f64>>(row: &[f32], at: usize) -> V {
        V::load_f32(row, at)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn load_wide<V: Vector<f64>>(row: &[f64], at: usize) -> V {
        V::load(row, at)
    }
}

/// Σ v.
#[inline(always)]
pub(super) fn sum<T: Real>(row: &[T]) -> f64 {
    let [found] = fold(Add, Numbers(row));
    found
}

/// Σ (v − centre) and Σ (v − centre)².
#[inline(always)]
pub(super) fn moments_about<T: Real>(centre: f64, row: &[T]) -> [f64; 2] {
    fold(Add, MomentsAbout(centre, row))
}

/// Σ v².
#[inline(always)]
pub(super) fn sum_of_squares<T: Real>(row: &[T]) -> f64 {
    let [found] = fold(Add, Squares(row));
    found
}

/// Σ v² over a whole float tensor.
pub(super) fn sum_of_all_squares(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let of = |x: &Tensor| contiguous_data(x).map(sum_of_squares::<f32>).expect("made contiguous");
    Ok(match x.dtype() {
        DType::F32 => of(&x),
        DType::F64 => contiguous_data(&x).map(sum_of_squares::<f64>).expect("made contiguous"),
        DType::BF16 => of(&x.cast(DType::F32)?),
        DType::I64 | DType::Bool => panic!("a sum of squares is not defined for {}", x.dtype()),
    })
}

/// Σ a·b over two rows.
///
/// # Panics
/// If `b` is shorter than `a`.
#[inline(always)]
pub(super) fn sum_of_products<T: Real>(a: &[T], b: &[T]) -> f64 {
    let [found] = fold(Add, Products(a, b));
    found
}

/// The largest value of a row that is not NaN; −∞ if there is none.
#[inline(always)]
pub(super) fn max<T: Real>(row: &[T]) -> T {
    let [found] = fold(Largest, Narrow(row));
    found
}

/// What is merged over a row: N numbers for each element.
trait Terms<A: Scalar, const N: usize>: Copy {
    fn count(self) -> usize;
    /// So many of them from number `at` on: of as many as a constant says, no place has to be looked at twice.
    fn part(self, at: usize, count: usize) -> Self;
    /// A vector of them from number `at` on.
    fn load<V: Vector<A>>(self, at: usize) -> [V; N];
}

/// The numbers themselves.
#[derive(Clone, Copy)]
struct Numbers<'a, T>(&'a [T]);

impl<T: Real> Terms<f64, 1> for Numbers<'_, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn part(self, at: usize, count: usize) -> Self {
        Numbers(&self.0[at..at + count])
    }
    #[inline(always)]
    fn load<V: Vector<f64>>(self, at: usize) -> [V; 1] {
        [T::load_wide(self.0, at)]
    }
}

#[derive(Clone, Copy)]
struct Squares<'a, T>(&'a [T]);

impl<T: Real> Terms<f64, 1> for Squares<'_, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn part(self, at: usize, count: usize) -> Self {
        Squares(&self.0[at..at + count])
    }
    #[inline(always)]
    fn load<V: Vector<f64>>(self, at: usize) -> [V; 1] {
        let v = T::load_wide::<V>(self.0, at);
        [v * v]
    }
}

#[derive(Clone, Copy)]
struct MomentsAbout<'a, T>(f64, &'a [T]);

impl<T: Real> Terms<f64, 2> for MomentsAbout<'_, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.1.len()
    }
    #[inline(always)]
    fn part(self, at: usize, count: usize) -> Self {
        MomentsAbout(self.0, &self.1[at..at + count])
    }
    #[inline(always)]
    fn load<V: Vector<f64>>(self, at: usize) -> [V; 2] {
        let v = T::load_wide::<V>(self.1, at) - V::all(self.0);
        [v, v * v]
    }
}

#[derive(Clone, Copy)]
struct Products<'a, T>(&'a [T], &'a [T]);

impl<T: Real> Terms<f64, 1> for Products<'_, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn part(self, at: usize, count: usize) -> Self {
        Products(&self.0[at..at + count], &self.1[at..at + count])
    }
    #[inline(always)]
    fn load<V: Vector<f64>>(self, at: usize) -> [V; 1] {
        [T::load_wide::<V>(self.0, at) * T::load_wide::<V>(self.1, at)]
    }
}

/// The numbers, not widened.
#[derive(Clone, Copy)]
struct Narrow<'a, T>(&'a [T]);

impl<T: Real> Terms<T, 1> for Narrow<'_, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn part(self, at: usize, count: usize) -> Self {
        Narrow(&self.0[at..at + count])
    }
    #[inline(always)]
    fn load<V: Vector<T>>(self, at: usize) -> [V; 1] {
        [V::load(self.0, at)]
    }
}

/// How terms are merged.
trait Merge<A: Scalar> {
    /// What nothing comes to.
    fn nothing() -> A;
    fn merge<V: Vector<A>>(a: V, b: V) -> V;
}

struct Add;

impl Merge<f64> for Add {
    #[inline(always)]
    fn nothing() -> f64 {
        0.0
    }
    #[inline(always)]
    fn merge<V: Vector<f64>>(a: V, b: V) -> V {
        a + b
    }
}

struct Largest;

impl<T: Real> Merge<T> for Largest {
    #[inline(always)]
    fn nothing() -> T {
        T::of(f64::NEG_INFINITY)
    }
    #[inline(always)]
    fn merge<V: Vector<T>>(a: V, b: V) -> V {
        a.larger(b)
    }
}

/// Whole groups of [`LANES`] and then the rest, element i of a group in lane i.
#[inline(always)]
fn fold<A: Scalar, M: Merge<A>, const N: usize>(_how: M, terms: impl Terms<A, N>) -> [A; N] {
    let (count, mut totals) = (terms.count(), [M::nothing(); N]);
    let whole = count - count % LANES;
    if whole > 0 {
        for_vectors(Groups { terms, whole, how: PhantomData::<M>, totals: &mut totals });
    }
    let mut lanes = [[M::nothing(); FEW_LANES]; N];
    let in_fours = count - count % FEW_LANES;
    for at in (whole..in_fours).step_by(FEW_LANES) {
        let few = terms.part(at, FEW_LANES);
        for i in 0..FEW_LANES {
            let terms = few.load::<A>(i);
            for n in 0..N {
                lanes[n][i] = M::merge(lanes[n][i], terms[n]);
            }
        }
    }
    // Each lane's number is a constant, so that they are registers.
    let rest = terms.part(in_fours, count - in_fours);
    for i in 0..FEW_LANES {
        if i < rest.count() {
            let terms = rest.load::<A>(i);
            for n in 0..N {
                lanes[n][i] = M::merge(lanes[n][i], terms[n]);
            }
        }
    }
    for n in 0..N {
        totals[n] = M::merge(totals[n], merged::<A, M, FEW_LANES>(lanes[n]));
    }
    totals
}

/// The whole groups of a row, `whole` elements together.
struct Groups<'a, A, M, R, const N: usize> {
    terms: R,
    whole: usize,
    how: PhantomData<M>,
    totals: &'a mut [A; N],
}

impl<A: Scalar, M: Merge<A>, R: Terms<A, N>, const N: usize> Kernel<A> for Groups<'_, A, M, R, N> {
    #[inline(always)]
    fn run<V: Vector<A>>(self) {
        const { assert!(LANES.is_multiple_of(V::WIDTH)) }
        let vectors = LANES / V::WIDTH;
        // As many as there are with vectors of one.
        let mut sums = [[V::all(M::nothing()); LANES]; N];
        for at in (0..self.whole).step_by(LANES) {
            for j in 0..vectors {
                let terms = self.terms.load::<V>(at + j * V::WIDTH);
                for n in 0..N {
                    sums[n][j] = M::merge(sums[n][j], terms[n]);
                }
            }
        }
        for n in 0..N {
            let mut lanes = [M::nothing(); LANES];
            lanes.copy_from_slice(V::numbers(&sums[n][..vectors]));
            self.totals[n] = merged::<A, M, LANES>(lanes);
        }
    }
}

/// The lanes' first half with their second, until one is left.
#[inline(always)]
fn merged<A: Scalar, M: Merge<A>, const L: usize>(mut lanes: [A; L]) -> A {
    const { assert!(L.is_power_of_two()) }
    let mut half = L / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = M::merge(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::at_every_level;
    use super::*;

    #[test]
    fn sums_and_maxima_see_every_element() {
        at_every_level(|| {
            for n in 0..110 {
                let row: Vec<f64> = (0..n).map(|i| f64::from(1 << (i % 20))).collect();
                assert_eq!(sum(&row), row.iter().sum::<f64>());
                assert_eq!(sum_of_squares(&row), row.iter().map(|v| v * v).sum::<f64>());
                let about = |power: i32| row.iter().map(|v| (v - 3.0).powi(power)).sum::<f64>();
                assert_eq!(moments_about(3.0, &row), [about(1), about(2)]);
                let other: Vec<f64> = (0..n).map(|i| f64::from(i + 1)).collect();
                let products: f64 = row.iter().zip(&other).map(|(a, b)| a * b).sum();
                assert_eq!(sum_of_products(&row, &other), products);
                for peak in 0..n as usize {
                    let mut row = vec![-5.0f32; n as usize];
                    row[peak] = -1.0;
                    assert_eq!(max(&row), -1.0);
                }
            }
            assert_eq!(max::<f32>(&[]), f32::NEG_INFINITY);
            assert_eq!(max(&[f64::NAN, 2.0, f64::NAN]), 2.0);
        });
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        for n in [1, 5, 31, 32, 33, 64, 100, 1000] {
            let (a, b): (Vec<f32>, Vec<f32>) =
                (0..n).map(|i| ((i as f32).sin(), (i as f32 * 0.7).cos())).unzip();
            let found = at_every_level(|| {
                let [first, second] = moments_about(0.1, &a);
                [sum(&a), sum_of_squares(&a), first, second, sum_of_products(&a, &b)].map(f64::to_bits)
            });
            assert!(found.iter().all(|(_, bits)| *bits == found[0].1), "{n} numbers");
        }
    }
}
