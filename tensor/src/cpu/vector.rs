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
    /// The f32 numbers from place `at` on, in type T.
    ///
    /// # Panics
    /// As [`load`](Vector::load).
    fn load_f32(from: &[f32], at: usize) -> Self;
    /// The reverse of [`load`](Vector::load).
    fn store(self, to: &mut [T], at: usize);
    /// `self·factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// [`load`](Vector::load) from a place in memory.
    ///
    /// # Safety
    /// [`WIDTH`](Vector::WIDTH) numbers lie there.
    unsafe fn read(from: *const T) -> Self;
    /// [`store`](Vector::store) to a place in memory.
    ///
    /// # Safety
    /// [`WIDTH`](Vector::WIDTH) numbers may be written there.
    unsafe fn write(self, to: *mut T);
    /// [`write`](Vector::write) past the caches, if the processor can.
    ///
    /// # Safety
    /// As for `write`, and the place is aligned to a vector. Before another thread reads what was written, this one has to
    /// fence (`sfence`).
    unsafe fn stream(self, to: *mut T);
    /// The larger of each two numbers; where `other` is NaN, that of `self`.
    fn larger(self, other: Self) -> Self;
    /// The numbers of two vectors in turn, `a₀ b₀ a₁ b₁ …`, as two vectors.
    fn interleave(self, other: Self) -> [Self; 2];
    /// All numbers of some vectors, one vector after the other.
    fn numbers(vectors: &[Self]) -> &[T];
    /// [`numbers`](Vector::numbers), to be written.
    fn numbers_mut(vectors: &mut [Self]) -> &mut [T];
}

/// No vector has more numbers.
pub(super) const WIDEST: usize = 16;

/// Transposes a square of as many vectors as each has numbers: calls `to` with each j and the vector of the numbers j
/// of `from(0)`, `from(1)`, …
#[inline(always)]
pub(super) fn transpose<T, V: Vector<T>>(from: impl Fn(usize) -> V, mut to: impl FnMut(usize, V)) {
    const { assert!(V::WIDTH <= WIDEST && V::WIDTH.is_power_of_two()) }
    let mut square = [from(0); WIDEST];
    for i in 1..V::WIDTH {
        square[i] = from(i);
    }
    // To interleave the upper half and the lower moves the first bit of every number's place, as the rows' come before
    // the columns', to the end; when that has been done with each bit of the row, the column's come first.
    for _ in 0..V::WIDTH.ilog2() {
        let before = square;
        for i in 0..V::WIDTH / 2 {
            [square[2 * i], square[2 * i + 1]] = before[i].interleave(before[i + V::WIDTH / 2]);
        }
    }
    for j in 0..V::WIDTH {
        to(j, square[j]);
    }
}

/// Asks the processor to bring what stands at a place nearer, as it will be read soon: into the first-level cache, or the second
/// if `LEVEL` says so. Wherever that is, nothing else happens.
#[inline(always)]
pub(super) fn prefetch<const LEVEL: u32, T>(from: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such processor has the instruction, which reads nothing that a program could see, at any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let place = from.as_ptr().wrapping_add(at).cast();
        match LEVEL {
            1 => _mm_prefetch::<_MM_HINT_T0>(place),
            _ => _mm_prefetch::<_MM_HINT_T1>(place),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, at);
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
            fn load_f32(from: &[f32], at: usize) -> $t {
                $t::from(from[at])
            }
            #[inline(always)]
            fn store(self, to: &mut [$t], at: usize) {
                to[at] = self;
            }
            #[inline(always)]
            fn mul_add(self, factor: $t, addend: $t) -> $t {
                self.mul_add(factor, addend)
            }
            #[inline(always)]
            unsafe fn read(from: *const $t) -> $t {
                // SAFETY: the caller's promise.
                unsafe { *from }
            }
            #[inline(always)]
            unsafe fn write(self, to: *mut $t) {
                // SAFETY: the caller's promise.
                unsafe { *to = self }
            }
            #[inline(always)]
            unsafe fn stream(self, to: *mut $t) {
                // SAFETY: the caller's promise.
                unsafe { *to = self }
            }
            #[inline(always)]
            fn larger(self, other: $t) -> $t {
                if other > self { other } else { self }
            }
            #[inline(always)]
            fn interleave(self, other: $t) -> [$t; 2] {
                [self, other]
            }
            #[inline(always)]
            fn numbers(vectors: &[$t]) -> &[$t] {
                vectors
            }
            #[inline(always)]
            fn numbers_mut(vectors: &mut [$t]) -> &mut [$t] {
                vectors
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
        ($name:ident: $width:literal of $t:ident in $register:ident, $all:ident, $load:ident, $load_f32:expr, $store:ident, $stream:ident,
         $mul_add:ident, $larger:ident, $interleave:ident,
         $($trait:ident $method:ident $operation:ident),*) => {
            #[derive(Clone, Copy)]
            #[repr(transparent)]
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
                fn load_f32(from: &[f32], at: usize) -> $name {
                    let from = &from[at..at + $width];
                    // SAFETY: as above.
                    unsafe { $name($load_f32(from.as_ptr())) }
                }
                #[inline(always)]
                fn store(self, to: &mut [$t], at: usize) {
                    let to = &mut to[at..at + $width];
                    // SAFETY: as above; the slice has as many elements as are written.
                    unsafe { $store(to.as_mut_ptr(), self.0) }
                }
                #[inline(always)]
                fn mul_add(self, factor: $name, addend: $name) -> $name {
                    // SAFETY: as above.
                    unsafe { $name($mul_add(self.0, factor.0, addend.0)) }
                }
                #[inline(always)]
                unsafe fn read(from: *const $t) -> $name {
                    // SAFETY: as above, and the caller's promise.
                    unsafe { $name($load(from)) }
                }
                #[inline(always)]
                unsafe fn write(self, to: *mut $t) {
                    // SAFETY: as above, and the caller's promise.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn stream(self, to: *mut $t) {
                    // SAFETY: as above, and the caller's promise.
                    unsafe { $stream(to, self.0) }
                }
                #[inline(always)]
                fn larger(self, other: $name) -> $name {
                    // SAFETY: as above. The instruction gives its second operand where one of the two is NaN.
                    unsafe { $name($larger(other.0, self.0)) }
                }
                #[inline(always)]
                fn interleave(self, other: $name) -> [$name; 2] {
                    // SAFETY: as above.
                    let [a, b] = unsafe { $interleave(self.0, other.0) };
                    [$name(a), $name(b)]
                }
                #[inline(always)]
                fn numbers(vectors: &[$name]) -> &[$t] {
                    // SAFETY: a register is that many numbers and nothing else, and any bits are a number.
                    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), vectors.len() * $width) }
                }
                #[inline(always)]
                fn numbers_mut(vectors: &mut [$name]) -> &mut [$t] {
                    // SAFETY: as above.
                    unsafe { std::slice::from_raw_parts_mut(vectors.as_mut_ptr().cast(), vectors.len() * $width) }
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

    macro_rules! interleave {
        ($name:ident: $register:ident, $features:literal, |$a:ident, $b:ident| $halves:expr) => {
            #[inline]
            #[target_feature(enable = $features)]
            fn $name($a: $register, $b: $register) -> [$register; 2] {
                $halves
            }
        };
    }

    // Unpacking interleaves within each half of a register.
    interleave!(interleave_256_ps: __m256, "avx2", |a, b| {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
    });
    interleave!(interleave_256_pd: __m256d, "avx2", |a, b| {
        let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        [_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high)]
    });
    // Numbers of b are counted on from those of a.
    interleave!(interleave_512_ps: __m512, "avx512f", |a, b| {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
    });
    interleave!(interleave_512_pd: __m512d, "avx512f", |a, b| {
        let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        let high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        [_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b)]
    });

    vector!(F32x8: 8 of f32 in __m256, _mm256_set1_ps, _mm256_loadu_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_stream_ps,
            _mm256_fmadd_ps, _mm256_max_ps, interleave_256_ps,
            Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
    vector!(F64x4: 4 of f64 in __m256d, _mm256_set1_pd, _mm256_loadu_pd,
            |from| _mm256_cvtps_pd(_mm_loadu_ps(from)), _mm256_storeu_pd, _mm256_stream_pd,
            _mm256_fmadd_pd, _mm256_max_pd, interleave_256_pd,
            Add add _mm256_add_pd, Sub sub _mm256_sub_pd, Mul mul _mm256_mul_pd, Div div _mm256_div_pd);
    vector!(F32x16: 16 of f32 in __m512, _mm512_set1_ps, _mm512_loadu_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_stream_ps,
            _mm512_fmadd_ps, _mm512_max_ps, interleave_512_ps,
            Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
    vector!(F64x8: 8 of f64 in __m512d, _mm512_set1_pd, _mm512_loadu_pd,
            |from| _mm512_cvtps_pd(_mm256_loadu_ps(from)), _mm512_storeu_pd, _mm512_stream_pd,
            _mm512_fmadd_pd, _mm512_max_pd, interleave_512_pd,
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
    use super::super::math::Float;
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

    /// Transposes 0, 1, 2, …, and compares numbers with what lies beside them, with and without NaN.
    struct Square;

    impl<T: Float + std::fmt::Debug> Kernel<T> for Square {
        #[inline(always)]
        fn run<V: Vector<T>>(self) {
            let (width, of) = (V::WIDTH, |number: usize| T::of(number as f64));
            let mut square = vec![V::all(T::ZERO); width];
            for (at, v) in V::numbers_mut(&mut square).iter_mut().enumerate() {
                *v = of(at);
            }
            let mut turned = vec![V::all(T::ZERO); width];
            transpose(|i| square[i], |j, v| turned[j] = v);
            for at in 0..width * width {
                let expected = of(at % width * width + at / width);
                assert_eq!(V::numbers(&turned)[at], expected, "number {at} of vectors of {width}");
            }
            let [zero, one, nan] = [T::ZERO, T::ONE, T::of(f64::NAN)].map(V::all);
            let larger = [zero.larger(one), one.larger(zero), one.larger(nan)];
            assert_eq!(V::numbers(&larger), V::numbers(&[one; 3]));
            assert!(V::numbers(&[nan.larger(one)]).iter().all(|v| v.is_nan()));
        }
    }

    #[test]
    fn vectors_of_any_width_are_transposed_and_compared() {
        at_every_level(|| {
            for_vectors::<f32>(Square);
            for_vectors::<f64>(Square);
        });
    }
}
