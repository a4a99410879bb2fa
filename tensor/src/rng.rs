//! Random numbers as a pure function of a key: Philox 4×32-10.
//!
//! Nothing here has state. A draw is `(key, index) → 64 bits`, and everything else is arithmetic on those bits, the
//! same for every dtype and every device:
//!
//! | step | formula |
//! |---|---|
//! | words | `w = philox4x32(counter = [b, stream], key = seed)`, block `b = i / 2`, low words first |
//! | bits of element `i` | `w[0] + 2³²·w[1]` for even `i`, `w[2] + 2³²·w[3]` for odd `i` |
//! | [`unit()`], in `[0, 1)` | `(bits >> 11) · 2⁻⁵³` |
//! | [`open_unit`], in `(0, 1)` | `((bits >> 12) + ½) · 2⁻⁵²` |
//!
//! Both conversions are exact, so whoever follows them gets the same uniforms bit for bit. A distribution is
//! evaluated in f64 and rounded once to the tensor's dtype: the f32 tensor of a key is the f64 tensor, rounded.

use crate::primitive::{Inferred, Meta};
use crate::{DType, Shape};

/// One block of the Philox 4×32 generator with 10 rounds.
///
/// A bijection of the counter for every key: two different counters never give the same four words. From
/// J. Salmon, M. Moraes, R. Dror and D. Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).
///
/// ```
/// use limpid_tensor::rng::philox4x32;
/// assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    // The multipliers, and the Weyl increments of the key: the fractional parts of the golden ratio and of √3.
    const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let ([mut a, mut b, mut c, mut d], [mut k, mut l]) = (counter, key);
    for _ in 0..10 {
        let p = u64::from(M[0]) * u64::from(a);
        let q = u64::from(M[1]) * u64::from(c);
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k, q as u32, (p >> 32) as u32 ^ d ^ l, p as u32);
        (k, l) = (k.wrapping_add(W[0]), l.wrapping_add(W[1]));
    }
    [a, b, c, d]
}

/// A number of `[0, 1)`: the 53 high bits, times 2⁻⁵³.
#[inline]
pub fn unit(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    (bits >> 11) as f64 * STEP
}

/// A number strictly between 0 and 1, and symmetric about ½: the 52 high bits plus a half, times 2⁻⁵².
#[inline]
pub fn open_unit(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 52) as f64;
    ((bits >> 12) as f64 + 0.5) * STEP
}

/// Which stream of random numbers: a seed, and what has been folded into it since (step, scope, ordinal).
///
/// ```
/// use limpid_tensor::rng::Key;
/// let key = Key::new(7).fold(1).fold_str("block3/dropout");
/// assert_eq!(key.uniform(5), key.uniform(5));
/// assert_ne!(key.uniform(5), key.fold(0).uniform(5));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The user's seed: Philox's 64-bit key.
    pub seed: u64,
    /// The upper half of Philox's 128-bit counter. The lower half counts blocks of two elements, so that under
    /// one seed two streams never share a block.
    pub stream: u64,
}

impl Key {
    /// The first stream of a seed.
    pub fn new(seed: u64) -> Key {
        Key { seed, stream: 0 }
    }

    /// A stream derived from this one and a number: the step, the ordinal of a draw.
    ///
    /// Different numbers give different streams, always. Chains of folds that differ give streams that differ but
    /// for the chance of two random 64-bit numbers being equal.
    pub fn fold(self, data: u64) -> Key {
        // SplitMix64's finaliser, a bijection that spreads every input bit over the stream number. The addend
        // keeps fold(0) from leaving stream 0 as it is.
        let mut z = (self.stream ^ data).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Key { seed: self.seed, stream: z ^ (z >> 31) }
    }

    /// A stream derived from this one and a name: a scope path, a parameter's path.
    pub fn fold_str(self, name: &str) -> Key {
        // The marker keeps names apart from numbers: without it "" would be fold(0). The length keeps
        // "ab" then "c" apart from "a" then "bc".
        let start = self.fold(u64::from_le_bytes(*b"fold_str")).fold(name.len() as u64);
        name.bytes().fold(start, |key, byte| key.fold(u64::from(byte)))
    }

    /// Four random words; elements `2·index` and `2·index + 1` are made of them.
    #[inline]
    pub fn block(self, index: u64) -> [u32; 4] {
        let halves = |x: u64| (x as u32, (x >> 32) as u32);
        let (i, s, k) = (halves(index), halves(self.stream), halves(self.seed));
        philox4x32([i.0, i.1, s.0, s.1], [k.0, k.1])
    }

    /// The bits of both elements of a block.
    #[inline]
    pub fn pair(self, block: u64) -> [u64; 2] {
        let [a, b, c, d] = self.block(block);
        [u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32]
    }

    /// The 64 random bits of element `index`.
    #[inline]
    pub fn bits(self, index: u64) -> u64 {
        self.pair(index / 2)[(index % 2) as usize]
    }

    /// Element `index` of a uniform draw from `[0, 1)`; see [`unit()`].
    pub fn uniform(self, index: u64) -> f64 {
        unit(self.bits(index))
    }

    /// Element `index` of a standard normal draw: [`inverse_normal_cdf`] of [`open_unit`].
    pub fn normal(self, index: u64) -> f64 {
        inverse_normal_cdf(open_unit(self.bits(index)))
    }

    /// `0..n` in random order: sorted by [`bits`](Key::bits), equal bits by index.
    ///
    /// Which of two numbers comes first does not depend on n: leaving the numbers from m on out of the
    /// permutation of n gives the permutation of m.
    ///
    /// ```
    /// use limpid_tensor::rng::Key;
    /// let mut order = Key::new(0).permutation(5);
    /// order.sort();
    /// assert_eq!(order, [0, 1, 2, 3, 4]);
    /// ```
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<(u64, usize)> = (0..n).map(|i| (self.bits(i as u64), i)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, i)| i).collect()
    }
}

/// What random values look like.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Distribution {
    /// Evenly spread over `low..high` (floats): `low + (high − low)·u` with `u` from [`unit()`], the product and the
    /// sum each rounded to f64. What rounding would lift to `high` becomes the largest value below it.
    Uniform {
        /// The smallest value that can occur.
        low: f64,
        /// Just above the largest value that can occur, unless it equals `low`: then every value is that.
        high: f64,
    },
    /// A Gaussian (floats): `mean + std·Φ⁻¹(u)` with `u` from [`open_unit`], so at most 8.3 standard deviations
    /// from its mean.
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },
    /// A Gaussian confined to `low..=high` by inverting its distribution function (floats):
    /// `mean + std·Φ⁻¹(Φ(a) + u·(Φ(b) − Φ(a)))`, where a and b are the bounds in standard deviations from the
    /// mean and `u` is from [`open_unit`]. Bounds above the mean are reflected, so both tails are resolved
    /// alike; an interval beyond 37 standard deviations (probability below 10⁻³⁰⁰) collapses to its point nearest to the mean.
    TruncatedNormal {
        /// The mean before truncation.
        mean: f64,
        /// The standard deviation before truncation.
        std: f64,
        /// The lower bound, possibly −∞.
        low: f64,
        /// The upper bound, possibly ∞.
        high: f64,
    },
    /// 1 with probability `p`, else 0 (any dtype; `true`/`false` for bool): whether [`unit()`] is below `p`.
    Bernoulli {
        /// The probability of a 1.
        p: f64,
    },
    /// Each of `0..n` once, in random order; the shape must be `[n]` (i64). See [`Key::permutation`].
    Permutation,
}

impl Distribution {
    /// The name in printed tapes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Distribution::Uniform { .. } => "uniform",
            Distribution::Normal { .. } => "normal",
            Distribution::TruncatedNormal { .. } => "truncated_normal",
            Distribution::Bernoulli { .. } => "bernoulli",
            Distribution::Permutation => "permutation",
        }
    }

    /// The shape and dtype of a draw, or why the parameters, the dtype or the shape do not allow it.
    pub fn infer(self, shape: &Shape, dtype: DType) -> Inferred {
        let name = self.name();
        let fits = match self {
            Distribution::Bernoulli { .. } => true,
            Distribution::Permutation => dtype == DType::I64,
            _ => dtype.is_float(),
        };
        if !fits {
            return Err(format!("{name} is not defined for {dtype}"));
        }
        let spread = |std: f64| std >= 0.0 && std.is_finite();
        let wrong = match self {
            Distribution::Uniform { low, high } if !(low <= high && (high - low).is_finite()) => {
                format!("low {low} and high {high} are not the ends of a finite range")
            }
            Distribution::Normal { mean, std } if !(mean.is_finite() && spread(std)) => {
                format!("mean {mean} and standard deviation {std} must be finite, the latter not negative")
            }
            Distribution::TruncatedNormal { mean, std, .. } if !(mean.is_finite() && spread(std)) => {
                format!("mean {mean} and standard deviation {std} must be finite, the latter not negative")
            }
            Distribution::TruncatedNormal { low, high, .. }
                if !(low <= high && low < f64::INFINITY && high > f64::NEG_INFINITY) =>
            {
                format!("low {low} and high {high} are not the ends of a range")
            }
            Distribution::Bernoulli { p } if !(0.0..=1.0).contains(&p) => {
                format!("{p} is not a probability")
            }
            Distribution::Permutation if shape.len() != 1 => {
                format!("a permutation has one axis, found shape {shape}")
            }
            _ => return Ok(Meta::new(shape, dtype)),
        };
        Err(format!("{name}: {wrong}"))
    }
}

/// Φ(x) = ½ erfc(−x/√2), the distribution function of the standard normal. Accurate relative to itself in the
/// lower tail.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Φ⁻¹(p): the x at which the standard normal's distribution function is p, to about 1 part in 10¹⁶.
///
/// M. Wichura, *Algorithm AS 241: the percentage points of the normal distribution* (Applied Statistics 37,
/// 1988), routine PPND16: one rational function in the middle, two in `√(−ln min(p, 1 − p))` for the tails. −∞
/// at 0, ∞ at 1, NaN outside.
///
/// ```
/// use limpid_tensor::rng::inverse_normal_cdf;
/// assert!((inverse_normal_cdf(0.975) - 1.959963984540054).abs() < 1e-15);
/// ```
pub fn inverse_normal_cdf(p: f64) -> f64 {
    const MIDDLE: [[f64; 8]; 2] = [
        [
            3.387_132_872_796_366_5,
            133.141_667_891_784_38,
            1_971.590_950_306_551_3,
            13_731.693_765_509_46,
            45_921.953_931_549_87,
            67_265.770_927_008_7,
            33_430.575_583_588_13,
            2_509.080_928_730_122_7,
        ],
        [
            1.0,
            42.313_330_701_600_91,
            687.187_007_492_057_9,
            5_394.196_021_424_751,
            21_213.794_301_586_597,
            39_307.895_800_092_71,
            28_729.085_735_721_943,
            5_226.495_278_852_854,
        ],
    ];
    const TAIL: [[f64; 8]; 2] = [
        [
            1.423_437_110_749_683_5,
            4.630_337_846_156_546,
            5.769_497_221_460_691,
            3.647_848_324_763_204_5,
            1.270_458_252_452_368_4,
            0.241_780_725_177_450_6,
            0.022_723_844_989_269_184,
            7.745_450_142_783_414e-4,
        ],
        [
            1.0,
            2.053_191_626_637_759,
            1.676_384_830_183_803_8,
            0.689_767_334_985_1,
            0.148_103_976_427_480_08,
            0.015_198_666_563_616_457,
            5.475_938_084_995_345e-4,
            1.050_750_071_644_416_9e-9,
        ],
    ];
    const FAR_TAIL: [[f64; 8]; 2] = [
        [
            6.657_904_643_501_103,
            5.463_784_911_164_114,
            1.784_826_539_917_291_3,
            0.296_560_571_828_504_87,
            0.026_532_189_526_576_124,
            1.242_660_947_388_078_4e-3,
            2.711_555_568_743_487_6e-5,
            2.010_334_399_292_288_1e-7,
        ],
        [
            1.0,
            0.599_832_206_555_888,
            0.136_929_880_922_735_8,
            0.014_875_361_290_850_615,
            7.868_691_311_456_133e-4,
            1.846_318_317_510_054_8e-5,
            1.421_511_758_316_446e-7,
            2.044_263_103_389_939_8e-15,
        ],
    ];
    fn ratio([numerator, denominator]: [[f64; 8]; 2], x: f64) -> f64 {
        let horner = |c: [f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
        horner(numerator) / horner(denominator)
    }
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(MIDDLE, 0.180625 - q * q);
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    if tail == 0.0 {
        return f64::INFINITY.copysign(q);
    }
    let r = libm::sqrt(-libm::log(tail));
    let x = if r <= 5.0 { ratio(TAIL, r - 1.6) } else { ratio(FAR_TAIL, r - 5.0) };
    x.copysign(q)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Random123's kat_vectors.
        let known = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, words) in known {
            assert_eq!(philox4x32(counter, key), words);
        }
    }

    #[test]
    fn a_key_is_philox_key_and_counter() {
        let key = Key { seed: 0x299f31d0_a4093822, stream: 0x03707344_13198a2e };
        assert_eq!(key.block(0x85a308d3_243f6a88), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
        let zero = Key::new(0);
        assert_eq!([zero.bits(0), zero.bits(1)], [0xe169c58d_6627e8d5, 0x9b00dbd8_bc57ac4c]);
    }

    #[test]
    fn bits_become_numbers_by_the_documented_formula() {
        assert_eq!(unit(0), 0.0);
        assert_eq!(unit(u64::MAX), 1.0 - 2f64.powi(-53));
        assert_eq!(unit(1 << 63), 0.5);
        assert_eq!(open_unit(0), 2f64.powi(-53));
        assert_eq!(open_unit(u64::MAX), 1.0 - 2f64.powi(-53));
        assert_eq!(open_unit(1 << 63) + open_unit((1 << 63) - 1), 1.0);
    }

    #[test]
    fn folding_gives_different_streams() {
        let root = Key::new(3);
        let mut streams = HashSet::from([root.stream]);
        let mut count = 1;
        for step in 0..1000 {
            for ordinal in 0..100 {
                streams.insert(root.fold(step).fold(ordinal).stream);
                count += 1;
            }
            let name = format!("block{step}/mlp");
            streams.extend([root.fold(step).stream, root.fold_str(&name).stream]);
            count += 2;
        }
        for name in ["", "\0", "\0\0", "a", "b", "ab", "ba"] {
            streams.insert(root.fold_str(name).stream);
            count += 1;
        }
        streams.insert(root.fold_str("a").fold_str("b").stream);
        streams.insert(root.fold_str("b").fold_str("a").stream);
        assert_eq!(streams.len(), count + 2);
    }

    #[test]
    fn folding_spreads_every_bit() {
        // Flipping one bit of the data flips each bit of the stream about half the time.
        let mut flips = [[0u32; 64]; 64];
        const TRIALS: u64 = 2000;
        for trial in 0..TRIALS {
            let data = Key::new(1).bits(trial);
            for bit in 0..64 {
                let change = Key::new(0).fold(data).stream ^ Key::new(0).fold(data ^ 1 << bit).stream;
                (0..64).for_each(|out| flips[bit][out] += (change >> out) as u32 & 1);
            }
        }
        for &count in flips.as_flattened() {
            let share = f64::from(count) / TRIALS as f64;
            // Five standard deviations of a fair coin tossed 2000 times.
            assert!((share - 0.5).abs() < 5.0 * 0.5 / (TRIALS as f64).sqrt(), "{share}");
        }
    }

    #[test]
    fn inverse_normal_cdf_matches_known_quantiles_and_inverts() {
        // Quantiles to 16 digits (Wichura's own check values are the first three).
        for (p, x) in [
            (0.25, -0.674_489_750_196_081_7),
            (0.001, -3.090_232_306_167_813_5),
            (1e-20, -9.262_340_089_798_408),
            (0.975, 1.959_963_984_540_054),
            (0.5, 0.0),
        ] {
            assert!((inverse_normal_cdf(p) - x).abs() <= 4.0 * f64::EPSILON * x.abs(), "{p}");
        }
        for k in 1..2000 {
            let p = k as f64 / 4000.0;
            for p in [p, p.powi(40)] {
                if p < 1e-300 {
                    continue;
                }
                let x = inverse_normal_cdf(p);
                // A relative error ε in x moves Φ by about x·φ(x)·ε ≤ (1 + x²)·Φ(x)·ε below 0.
                let tolerance = p * (1.0 + x * x) * 1e-15;
                assert!((normal_cdf(x) - p).abs() <= tolerance, "{p}: {x} goes back to {}", normal_cdf(x));
            }
            assert_eq!(inverse_normal_cdf(1.0 - (1.0 - p)), -inverse_normal_cdf(1.0 - p), "odd about ½");
        }
        assert_eq!(inverse_normal_cdf(0.0), f64::NEG_INFINITY);
        assert_eq!(inverse_normal_cdf(1.0), f64::INFINITY);
        assert!(inverse_normal_cdf(-0.1).is_nan() && inverse_normal_cdf(f64::NAN).is_nan());
    }

    #[test]
    fn a_permutation_holds_each_index_once_and_keeps_its_order_as_n_grows() {
        let key = Key::new(11).fold_str("shuffle");
        for n in [0, 1, 2, 3, 1000] {
            let order = key.permutation(n);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n));
            let longer: Vec<usize> = key.permutation(n + 100).into_iter().filter(|&i| i < n).collect();
            assert_eq!(longer, order);
        }
    }

    #[test]
    fn every_permutation_of_four_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        const TRIALS: u64 = 24_000;
        for trial in 0..TRIALS {
            *counts.entry(Key::new(5).fold(trial).permutation(4)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = TRIALS as f64 / 24.0;
        let chi2: f64 = counts.values().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
        // The 99.99 % point of χ² with 23 degrees of freedom.
        assert!(chi2 < 56.0, "χ² = {chi2}");
    }

    #[test]
    fn wrong_parameters_are_named() {
        let infer = |what: Distribution, dtype| what.infer(&Shape::from([3]), dtype).unwrap_err();
        let normal = Distribution::Normal { mean: 0.0, std: -1.0 };
        assert!(infer(normal, DType::F32).contains("standard deviation -1"));
        assert_eq!(
            infer(Distribution::Bernoulli { p: 1.5 }, DType::Bool),
            "bernoulli: 1.5 is not a probability"
        );
        assert!(infer(Distribution::Bernoulli { p: f64::NAN }, DType::Bool).contains("NaN"));
        assert_eq!(infer(Distribution::Permutation, DType::F32), "permutation is not defined for f32");
        let uniform = Distribution::Uniform { low: 1.0, high: 0.0 };
        assert!(infer(uniform, DType::F64).contains("low 1 and high 0"));
        let matrix = Shape::from([2, 2]);
        assert!(Distribution::Permutation.infer(&matrix, DType::I64).unwrap_err().contains("[2, 2]"));
    }
}
