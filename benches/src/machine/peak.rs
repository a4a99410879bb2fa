//! The most multiplications and additions that one thread can do in a second: independent chains of fused
//! multiply-adds in registers, more of them than a unit's latency times its number. And the most instructions of any kind:
//! half of them additions, for which some processors have units besides.

use std::hint::black_box;
use std::time::Duration;

use crate::clock;

/// Chains in a loop: two units with a latency of four or five cycles want ten.
const CHAINS: usize = 12;
/// Times around the loop in a repetition.
const TURNS: usize = 10_000;

/// Goes around a loop so many times.
type Loop = fn(usize);

/// Loops in f32 and in f64, the numbers in each one's vectors, and the instructions that they are made of.
fn loops() -> ([(usize, Loop); 2], &'static str) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has these instructions.
            let loops: [(usize, Loop); 2] =
                [(16, |turns| unsafe { avx512_f32(turns) }), (8, |turns| unsafe { avx512_f64(turns) })];
            return (loops, "AVX-512");
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has these instructions.
            let loops: [(usize, Loop); 2] =
                [(8, |turns| unsafe { avx2_f32(turns) }), (4, |turns| unsafe { avx2_f64(turns) })];
            return (loops, "AVX2 and FMA");
        }
    }
    ([(4, baseline::<f32, 4>), (2, baseline::<f64, 2>)], "what every processor of this kind has")
}

/// Operations a second in f32 and in f64, and the instructions that did them.
pub(super) fn measure(samples: usize) -> ([f64; 2], &'static str) {
    let (loops, instructions) = loops();
    let rate = |(lanes, run): (usize, Loop)| {
        let operations = (2 * lanes * CHAINS * TURNS) as f64;
        operations / clock::time(samples, Duration::from_millis(10), || run(TURNS)).shortest
    };
    (loops.map(rate), instructions)
}

/// The numbers (f32) that all arithmetic instructions of a second work on: in the fastest of loops of few pairs of chains and of many,
/// as how well they are dealt out to the units depends on their number.
pub(super) fn measure_instructions(samples: usize) -> f64 {
    let rate = |pairs: usize, (lanes, run): (usize, Loop)| {
        let numbers = (lanes * 2 * pairs * TURNS) as f64;
        numbers / clock::time(samples, Duration::from_millis(10), || run(TURNS)).shortest
    };
    [rate(4, mixed::<4>()), rate(5, mixed::<5>()), rate(6, mixed::<6>()), rate(7, mixed::<7>())]
        .into_iter()
        .fold(0.0, f64::max)
}

/// The numbers in a vector of this processor's, and the loop of so many pairs of chains.
fn mixed<const PAIRS: usize>() -> (usize, Loop) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has these instructions.
            return (16, |turns| unsafe { mixed_avx512::<PAIRS>(turns) });
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return (8, |turns| unsafe { mixed_avx2::<PAIRS>(turns) });
        }
    }
    (4, mixed_baseline::<PAIRS>)
}

/// Does so many operations in f32, as fast as one thread can.
pub fn compute(operations: usize) {
    let ([(lanes, run), _], _) = loops();
    run(operations.div_ceil(2 * lanes * CHAINS));
}

/// A loop of fused multiply-adds in one kind of register.
#[cfg(target_arch = "x86_64")]
macro_rules! chains {
    ($name:ident, $features:literal, $set:ident, $multiply_add:ident) => {
        #[target_feature(enable = $features)]
        fn $name(turns: usize) {
            use std::arch::x86_64::*;
            let (scale, shift) = (black_box($set(0.999)), black_box($set(0.001)));
            let mut chains = [shift; CHAINS];
            for _ in 0..turns {
                for chain in &mut chains {
                    *chain = $multiply_add(*chain, scale, shift);
                }
            }
            black_box(chains);
        }
    };
}

/// A loop of fused multiply-adds and additions, as many of each.
#[cfg(target_arch = "x86_64")]
macro_rules! mixed {
    ($name:ident, $features:literal, $set:ident, $multiply_add:ident, $add:ident) => {
        #[target_feature(enable = $features)]
        fn $name<const PAIRS: usize>(turns: usize) {
            use std::arch::x86_64::*;
            let (scale, shift) = (black_box($set(0.999)), black_box($set(0.001)));
            let mut chains = [[shift; 2]; PAIRS];
            for _ in 0..turns {
                for [multiplied, added] in &mut chains {
                    *multiplied = $multiply_add(*multiplied, scale, shift);
                    *added = $add(*added, shift);
                }
            }
            black_box(chains);
        }
    };
}

#[cfg(target_arch = "x86_64")]
mixed!(mixed_avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps);
#[cfg(target_arch = "x86_64")]
mixed!(mixed_avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps);

/// The same with multiplications.
fn mixed_baseline<const PAIRS: usize>(turns: usize) {
    let (scale, shift) = (black_box(0.999f32), black_box(0.001));
    let mut chains = [[[shift; 4]; 2]; PAIRS];
    for _ in 0..turns {
        for [multiplied, added] in &mut chains {
            multiplied.iter_mut().for_each(|v| *v *= scale);
            added.iter_mut().for_each(|v| *v += shift);
        }
    }
    black_box(chains);
}

#[cfg(target_arch = "x86_64")]
chains!(avx512_f32, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(avx512_f64, "avx512f", _mm512_set1_pd, _mm512_fmadd_pd);
#[cfg(target_arch = "x86_64")]
chains!(avx2_f32, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
#[cfg(target_arch = "x86_64")]
chains!(avx2_f64, "avx2,fma", _mm256_set1_pd, _mm256_fmadd_pd);

/// The same with a multiplication and an addition, in vectors that the compiler chooses.
fn baseline<T, const LANES: usize>(turns: usize)
where
    T: Copy + From<f32> + std::ops::Mul<Output = T> + std::ops::Add<Output = T>,
{
    let (scale, shift) = (black_box(T::from(0.999)), black_box(T::from(0.001)));
    let mut chains = [[shift; LANES]; CHAINS];
    for _ in 0..turns {
        for chain in chains.as_flattened_mut() {
            *chain = *chain * scale + shift;
        }
    }
    black_box(chains);
}
