//! Several numbers as one value, for kernels that a compiler does not make vectors of by itself.
//!
//! A kernel generic in a [`Vector`] reads like one about single numbers, and with `f32` or `f64` for a vector it is one.
//! Every operation acts on each number by itself and rounds once, so which vectors are used changes no bit.

use std::ops::{Add, Div, Mul, Sub};

use super::simd::Level;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2, avx512};

/// Some numbers of type T, [`WIDTH`](Vector::WIDTH) of them.
///
/// The methods of a type other than `f32` and `f64` are for processors that have its instructions: take it from
/// [`for_vectors`] alone.
pub(super) trait Vector<T>:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    const WIDTH: usize;
    /// The same number throughout.
    fn all(v: T) -> Self;
    /// The numbers from place `at` on.
    ///
    /// # Panics
    /// If there are fewer than [`WIDTH`](Vector::WIDTH).
    fn load(from: &[T], at: usize) -> Self;
    /// The reverse of [`load`](Vector::load).
    fn store(self, to: &mut [T], at: usize);
}

/// A number that there are vectors of: itself the one of width 1.
pub(super) trait Scalar: Vector<Self> {
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Self>;
}

/// A computation with vectors of T. `run` and what it calls must be marked `#[inline(always)]`.
pub(super) trait Kernel<T> {
    fn run<V: Vector<T>>(self);
}

/// Runs `kernel` with the widest vectors the processor has.
#[inline(always)]
pub(super) fn for_vectors<T: Scalar>(kernel: impl Kernel<T>) {
    match Level::current() {
        Level::Baseline => kernel.run::<T>(),
        // SAFETY: the level says that the processor has these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe {
            avx2(
                #[inline(always)]
                || kernel.run::<T::Avx2>(),
            )
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe {
            avx512(
                #[inline(always)]
                || kernel.run::<T::Avx512>(),
            )
        },
    }
}

macro_rules! scalar {
    ($t:ident) => {
        impl Vector<$t> for $t {
            const WIDTH: usize = 1;
            #[inline(always)]
            fn all(v: $t) -> $t {
                v
            }
            #[inline(always)]
            fn load(from: &[$t], at: usize) -> $t {
                from[at]
            }
            #[inline(always)]
            fn store(self, to: &mut [$t], at: usize) {
                to[at] = self;
            }
        }
    };
}

scalar!(f32);
scalar!(f64);

#[cfg(not(target_arch = "x86_64"))]
impl Scalar for f32 {}
#[cfg(not(target_arch = "x86_64"))]
impl Scalar for f64 {}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    macro_rules! vector {
        ($name:ident: $width:literal of $t:ident in $register:ident, $all:ident, $load:ident, $store:ident,
         $($trait:ident $method:ident $operation:ident),*) => {
            #[derive(Clone, Copy)]
            pub(in super::super) struct $name($register);

            impl Vector<$t> for $name {
                const WIDTH: usize = $width;
                #[inline(always)]
                fn all(v: $t) -> $name {
                    // SAFETY: `for_vectors` gives this type to nobody unless the processor has its instructions.
                    unsafe { $name($all(v)) }
                }
                #[inline(always)]
                fn load(from: &[$t], at: usize) -> $name {
                    let from = &from[at..at + $width];
                    // SAFETY: as above; the slice has as many elements as are read.
                    unsafe { $name($load(from.as_ptr())) }
                }
                #[inline(always)]
                fn store(self, to: &mut [$t], at: usize) {
                    let to = &mut to[at..at + $width];
                    // SAFETY: as above; the slice has as many elements as are written.
                    unsafe { $store(to.as_mut_ptr(), self.0) }
                }
            }
            $(
                impl $trait for $name {
                    type Output = $name;
                    #[inline(always)]
                    fn $method(self, other: $name) -> $name {
                        // SAFETY: `for_vectors` gives this type to nobody unless the processor has its instructions.
                        unsafe { $name($operation(self.0, other.0)) }
                    }
                }
            )*
        };
    }

    vector!(F32x8: 8 of f32 in __m256, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,
            Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
    vector!(F64x4: 4 of f64 in __m256d, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd,
            Add add _mm256_add_pd, Sub sub _mm256_sub_pd, Mul mul _mm256_mul_pd, Div div _mm256_div_pd);
    vector!(F32x16: 16 of f32 in __m512, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps,
            Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
    vector!(F64x8: 8 of f64 in __m512d, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd,
            Add add _mm512_add_pd, Sub sub _mm512_sub_pd, Mul mul _mm512_mul_pd, Div div _mm512_div_pd);

    impl Scalar for f32 {
        type Avx2 = F32x8;
        type Avx512 = F32x16;
    }

    impl Scalar for f64 {
        type Avx2 = F64x4;
        type Avx512 = F64x8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::at_every_level;
    use super::*;

    /// `a·b − a/b + 1`, and how many of them at a time.
    struct Formula<'a> {
        a: &'a [f32],
        b: &'a [f32],
        out: &'a mut [f32],
        width: &'a mut usize,
    }

    impl Kernel<f32> for Formula<'_> {
        #[inline(always)]
        fn run<V: Vector<f32>>(self) {
            *self.width = V::WIDTH;
            for at in (0..self.out.len()).step_by(V::WIDTH) {
                let (a, b) = (V::load(self.a, at), V::load(self.b, at));
                (a * b - a / b + V::all(1.0)).store(self.out, at);
            }
        }
    }

    #[test]
    fn vectors_of_any_width_round_like_numbers() {
        let a: Vec<f32> = (0..64).map(|i| (i as f32).sin() * 1e3).collect();
        let b: Vec<f32> = (0..64).map(|i| (i as f32).cos() / 3.0).collect();
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b - a / b + 1.0).collect();
        let widths = at_every_level(|| {
            let (mut out, mut width) = (vec![0.0; 64], 0);
            for_vectors(Formula { a: &a, b: &b, out: &mut out, width: &mut width });
            assert_eq!(out, expected);
            width
        });
        for ((level, width), expected) in widths.into_iter().zip([1, 8, 16]) {
            assert_eq!(width, expected, "{level:?}");
        }
    }
}
