//! exp, log and their kin in f32, and exp in f64, without a branch, a call or a table: a loop over one becomes vector
//! instructions of any width.
//!
//! Each is additions, multiplications, both fused where the text says `mul_add`, and at most one division in an order that the
//! text fixes, so every width gives the same bits. The largest errors are in the table of [`math`](super::math).
//!
//! The polynomials are minimax approximations by Remez' exchange, in 40 digits, weighted so that the error relative to
//! the function is level; coefficients were rounded from the lowest up, the others fitted again each time. Beside each
//! stands its error after that, relative to the function; rounding an f32 result is 6·10⁻⁸ in any case.

/// c₀ + c₁x + c₂x² + …, with the even and the odd powers apart, which are computed at the same time.
macro_rules! polynomial {
    ($x:expr, $square:expr; $($even:literal, $odd:literal),+ $(; $last:literal)?) => {
        $x.mul_add(horner!($square; $($odd),+), horner!($square; $($even),+ $(, $last)?))
    };
}

/// c₀ + x·(c₁ + x·(c₂ + …)).
macro_rules! horner {
    ($x:expr; $c:literal) => { $c };
    ($x:expr; $c:literal, $($higher:literal),+) => { $x.mul_add(horner!($x; $($higher),+), $c) };
}

/// The smaller of a value and a bound; NaN stays.
#[inline(always)]
fn at_most(x: f32, bound: f32) -> f32 {
    if x > bound { bound } else { x }
}

/// The value within bounds; NaN stays.
#[inline(always)]
fn between(low: f32, x: f32, high: f32) -> f32 {
    let x = at_most(x, high);
    if x < low { low } else { x }
}

/// ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// e^(x − y) as 2ⁿ·(1 + head + tail). The parts are not yet added up, so that 1 can be subtracted without cancellation.
struct Exponential {
    /// n + 254, in the low bits.
    exponent: u32,
    /// x − n·ln 2, but for the second part of ln 2.
    head: f32,
    /// The rest.
    tail: f32,
}

impl Exponential {
    /// For `|x − y| ≤ 104`. n is the integer nearest (x − y)/ln 2, so that r = x − y − n·ln 2 is within ±0.347, and
    /// eʳ = 1 + r + r²·p(r).
    #[inline(always)]
    fn of(x: f32, y: f32) -> Exponential {
        // A sum near 1.5·2²³ has an integer in its low bits, the nearest. 254 is the bias of two exponents.
        const SHIFT: f32 = 12_582_912.0 + 254.0;
        let shifted = (x - y).mul_add(std::f32::consts::LOG2_E, SHIFT);
        let n = shifted - SHIFT;
        let head = n.mul_add(-LN_2[0], x);
        let rest = n.mul_add(LN_2[1], y);
        let r = head - rest;
        let square = r * r;
        // 1.4·10⁻⁸ of eʳ − 1.
        let p =
            polynomial!(r, square; 0.499_999_97, 0.166_665_39, 0.041_667_74, 0.008_367_048; 0.001_383_996_3);
        Exponential { exponent: shifted.to_bits(), head, tail: square.mul_add(p, -rest) }
    }

    /// 2ⁿ⁺ᵏ, for −126 ≤ n + k ≤ 127.
    #[inline(always)]
    fn power(&self, k: i32) -> f32 {
        f32::from_bits(self.exponent.wrapping_add_signed(k - 127) << 23)
    }

    /// 2^(n/2), rounded down to a whole exponent, and what 2ⁿ is beside it.
    #[inline(always)]
    fn powers(&self) -> [f32; 2] {
        let half = self.exponent >> 1;
        [f32::from_bits(half << 23), f32::from_bits(self.exponent.wrapping_sub(half) << 23)]
    }
}

/// eˣ.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these bounds it is 0 or infinite.
    let e = Exponential::of(between(-104.0, x, 89.0), 0.0);
    // n goes beyond the exponents of normal numbers at either end.
    let [a, b] = e.powers();
    (1.0 + (e.head + e.tail)) * a * b
}

/// eˣ for x ≤ 0, and 0 from about −87.7 down, where that is no normal number: of terms of a sum of which one is 1.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    // n is −127 there, and its power 0.
    let e = Exponential::of(if x < -88.0 { -88.0 } else { x }, 0.0);
    (1.0 + (e.head + e.tail)) * e.power(0)
}

/// eˣ − 1 = (2ⁿ − 1) + 2ⁿ·head + 2ⁿ·tail.
#[inline(always)]
pub(super) fn expm1(x: f32) -> f32 {
    // Below −18 it is −1.
    let e = Exponential::of(between(-18.0, x, 89.0), 0.0);
    // Half of everything, as 2¹²⁸ is too large.
    let power = e.power(-1);
    let y = 2.0 * power.mul_add(e.tail, power.mul_add(e.head, power - 0.5));
    if x.abs() < 1e-10 { x } else { y }
}

/// tanh |x| = t/(t + 2) with t = e^(2|x|) − 1, written as c + (t − c·(t + 2))/(t + 2) with a c near it, |x| or 1, so
/// that the quotient is small and so is what its roundings do.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    // Beyond 9.02 it is 1.
    let twice = at_most(2.0 * size, 20.0);
    let e = Exponential::of(twice, 0.0);
    let power = e.power(0);
    let (large, small) = (power.mul_add(e.head, power - 1.0), power * e.tail);
    let t = large + small;
    let (c, rest) =
        if size < 0.55 { (size, (-size).mul_add(t, (large - twice) + small)) } else { (1.0, -2.0) };
    (c + rest / (t + 2.0)).copysign(x)
}

/// 1/(1 + e⁻ˣ) = a/(a + b + b·(head + tail)), where e⁻ˣ = (b/a)·(1 + head + tail) and neither power of two overflows.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    // Beyond −104 it is 0.
    let e = Exponential::of(between(-104.0, -x, 104.0), 0.0);
    let [b, over_a] = e.powers();
    let a = f32::from_bits(0x7F00_0000u32.wrapping_sub(over_a.to_bits()));
    let sum = a + b;
    // What a loses where it is small beside b goes with the small terms.
    a / (sum + b.mul_add(e.head + e.tail, a - (sum - b)))
}

/// erf |x| = 1 − e^(−v), where v = −ln erfc |x| = |x| + |x|·P(|x|) is smooth.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    // Beyond 3.92 it is 1.
    let t = at_most(x.abs(), 3.95);
    let square = t * t;
    // 4.3·10⁻⁹ of erf.
    let p = polynomial!(t, square; 0.128_379_17, 0.636_619_57, 0.102_776_304, -0.019_147_824, -1.694_946_7e-4,
        0.001_675_659_3, -6.373_495e-4, 1.188_559_8e-4; -9.387_179e-6);
    let e = Exponential::of(-t, t * p);
    let power = e.power(0);
    (-power).mul_add(e.tail, (-power).mul_add(e.head, 1.0 - power)).copysign(x)
}

/// ln(2ᵏ·(1 + f)) for √½ ≤ 1 + f < √2, where ln(1 + f) = f − f²/2 + f³·P(f).
#[inline(always)]
fn log_of(k: f32, f: f32) -> f32 {
    let square = f * f;
    // 6.4·10⁻⁹ of ln(1 + f).
    let p = polynomial!(f, square; 0.333_333_3, -0.250_008_2, 0.200_012_27, -0.166_233_57,
        0.142_017_56, -0.131_601_81, 0.127_615_91, -0.076_345_16);
    let small = square.mul_add(f.mul_add(p, -0.5), k * LN_2[1]);
    let large = k * LN_2[0];
    let sum = large + f;
    // With what the sum has lost.
    sum + ((f - (sum - large)) + small)
}

/// √½. The bits of a number less these have k in the bits from 23 up, for the number's form 2ᵏ·(1 + f).
const ROOT: u32 = 0x3F35_04F3;

/// ln x, x = 2ᵏ·(1 + f).
#[inline(always)]
pub(super) fn log(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let normal = if subnormal { x * 8_388_608.0 } else { x };
    let bits = normal.to_bits().wrapping_sub(ROOT);
    let k = (bits as i32 >> 23) as f32;
    let k = if subnormal { k - 23.0 } else { k };
    let y = log_of(k, f32::from_bits((bits & 0x7F_FFFF) + ROOT) - 1.0);
    let y = if x < f32::INFINITY { y } else { x };
    let outside = if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    if x > 0.0 { y } else { outside }
}

/// ln(1 + x), 1 + x = 2ᵏ·(1 + f): the rounded sum gives k, and f = 2⁻ᵏ·x − (1 − 2⁻ᵏ) is exact or nearly.
#[inline(always)]
pub(super) fn log1p(x: f32) -> f32 {
    let k = (1.0 + x).to_bits().wrapping_sub(ROOT) as i32 >> 23;
    let scaled = f32::from_bits(x.to_bits().wrapping_sub((k << 23) as u32));
    let power = f32::from_bits(((127 - k.min(127)) << 23) as u32);
    let y = log_of(k as f32, scaled - (1.0 - power)).copysign(x);
    let y = if x < f32::INFINITY { y } else { x };
    let outside = if x == -1.0 { f32::NEG_INFINITY } else { f32::NAN };
    if x > -1.0 { y } else { outside }
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + e^(−|x|)), and 1 + e = 2·(1 + (e − 1)/2).
#[inline(always)]
pub(super) fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    let (k, f) = if e > 0.414_213_57 { (1.0, 0.5 * e - 0.5) } else { (0.0, e) };
    (if x < 0.0 { 0.0 } else { x }) + log_of(k, f)
}

/// eˣ in f64, the same way.
#[inline(always)]
pub(super) fn exp_f64(x: f64) -> f64 {
    // Beyond these bounds it is infinite or 0.
    let x = if x > 710.0 { 710.0 } else { x };
    let x = if x < -746.0 { -746.0 } else { x };
    const SHIFT: f64 = 6_755_399_441_055_744.0 + 2046.0;
    let shifted = x.mul_add(std::f64::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let head = n.mul_add(-0.693_147_180_369_123_8, x);
    let rest = n * 1.908_214_929_270_587_7e-10;
    let r = head - rest;
    let square = r * r;
    // 2.9·10⁻¹⁸ of eʳ − 1.
    let p = polynomial!(r, square; 0.5, 0.166_666_666_666_666_69, 0.041_666_666_666_666_62, 0.008_333_333_333_329_418,
        0.001_388_888_888_892_350_8, 1.984_126_986_377_681_8e-4, 2.480_158_721_404_677_5e-5,
        2.755_726_908_641_356e-6, 2.755_739_709_730_79e-7, 2.509_961_056_980_090_8e-8; 2.086_787_947_191_34e-9);
    let half = shifted.to_bits() >> 1;
    let power_of_two = |exponent: u64| f64::from_bits(exponent << 52);
    let y = 1.0 + (head + square.mul_add(p, -rest));
    y * power_of_two(half) * power_of_two(shifted.to_bits().wrapping_sub(half))
}
