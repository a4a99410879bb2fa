//! Functions of one number, for f32 and f64.

/// The floating-point types the CPU computes in, and their functions. No method panics; NaN in gives NaN out.
pub(super) trait Float:
    Copy
    + PartialOrd
    + std::ops::Neg<Output = Self>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + bytemuck::Pod
    + Send
    + Sync
{
    const ZERO: Self;
    const ONE: Self;
    /// The nearest value.
    fn of(v: f64) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn expm1(self) -> Self;
    fn log(self) -> Self;
    fn log1p(self) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    fn pow(self, exponent: Self) -> Self;

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }

    /// The larger, NaN if either is.
    #[inline(always)]
    fn maximum(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    /// The smaller, NaN if either is.
    #[inline(always)]
    fn minimum(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }

    /// −1, 0 or 1.
    #[inline(always)]
    fn sign(self) -> Self {
        if self > Self::ZERO {
            Self::ONE
        } else if self < Self::ZERO {
            -Self::ONE
        } else {
            // ±0 becomes +0, NaN stays.
            self + Self::ZERO
        }
    }

    /// 1/(1 + e⁻ˣ). Only e^(−|x|) is formed, which cannot overflow.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let e = (-self.abs()).exp();
        let numerator = if self < Self::ZERO { e } else { Self::ONE };
        numerator / (Self::ONE + e)
    }

    /// ln(1 + eˣ) = max(x, 0) + ln(1 + e^(−|x|)).
    #[inline(always)]
    fn softplus(self) -> Self {
        let positive = if self < Self::ZERO { Self::ZERO } else { self };
        positive + (-self.abs()).exp().log1p()
    }

    /// max(x, 0).
    #[inline(always)]
    fn relu(self) -> Self {
        if self <= Self::ZERO { Self::ZERO } else { self }
    }
}

macro_rules! float {
    ($t:ident { $($name:ident => $function:path),* $(,)? }) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            $(
                #[inline(always)]
                fn $name(self) -> Self {
                    $function(self)
                }
            )*
            #[inline(always)]
            fn pow(self, exponent: Self) -> Self {
                // IEEE 754 has x⁰ = 1 and 1ʸ = 1 even where the other is NaN.
                if self.is_nan() || exponent.is_nan() { $t::NAN } else { libm::Libm::<$t>::pow(self, exponent) }
            }
        }
    };
}

float!(f32 {
    exp => exp_f32, expm1 => libm::expm1f, log => libm::logf, log1p => libm::log1pf,
    sin => libm::sinf, cos => libm::cosf, tanh => libm::tanhf, erf => libm::erff,
});
float!(f64 {
    exp => libm::exp, expm1 => libm::expm1, log => libm::log, log1p => libm::log1p,
    sin => libm::sin, cos => libm::cos, tanh => libm::tanh, erf => libm::erf,
});

/// eˣ in f32, without a branch or a call so that loops over it vectorise. x = n·ln 2 + r with |r| ≤ ln 2 / 2, and
/// eʳ by the polynomial of Cephes' `expf` (S. L. Moshier, 1989). Within 1.2 ulp, subnormal results included.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Beyond these bounds the result is infinity or 0. NaN fails both comparisons and stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    // ln 2 in two parts, the first with few enough bits that its product with n is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2ⁿ in two factors, as n may lie beyond the exponents of normal numbers at either end.
    let n = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    let half = n >> 1;
    let power_of_two = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance to the exact value in units of the last place of f32 there.
    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if found.to_bits() == nearest.to_bits() || (found.is_nan() && nearest.is_nan()) {
            return 0.0;
        }
        let unit = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
        (f64::from(found) - exact).abs() / unit
    }

    /// The largest error over every 499th f32, of both signs, infinities and NaN among them.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
        let sample = (0..=u32::MAX).step_by(499).chain([0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x8000_0000]);
        sample
            .map(f32::from_bits)
            .map(|x| (ulps(f(x), exact(f64::from(x))), x))
            .fold((0.0, 0.0), |worst, here| if here.0 > worst.0 || here.0.is_nan() { here } else { worst })
    }

    #[test]
    fn f32_functions_are_close_to_f64_ones_everywhere() {
        type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);
        let cases: [Case; 6] = [
            ("exp", Float::exp, libm::exp, 1.2),
            ("log", Float::log, libm::log, 1.0),
            ("tanh", Float::tanh, libm::tanh, 2.5),
            ("erf", Float::erf, libm::erf, 1.5),
            ("sigmoid", Float::sigmoid, Float::sigmoid, 3.0),
            ("softplus", Float::softplus, Float::softplus, 2.5),
        ];
        let missed: Vec<String> = cases
            .into_iter()
            .map(|(name, f, exact, bound)| (name, worst(f, exact), bound))
            .filter(|(_, (error, _), bound)| error.is_nan() || error > bound)
            .map(|(name, (error, x), bound)| format!("{name}({x:e}): {error} ulp, allowed {bound}"))
            .collect();
        assert!(missed.is_empty(), "{missed:#?}");
    }

    #[test]
    fn f64_functions_at_known_points() {
        // Values to 17 digits from tables (DLMF 4, 7).
        let near =
            |found: f64, expected: f64| (found - expected).abs() <= 2.0 * f64::EPSILON * expected.abs();
        assert!(near(Float::exp(1f64), std::f64::consts::E));
        assert!(near(Float::erf(0.5f64), 0.520_499_877_813_046_5));
        assert!(near(Float::tanh(1f64), 0.761_594_155_955_764_9));
        assert!(near(1f64.sigmoid(), 0.731_058_578_630_004_9));
        assert!(near(0f64.softplus(), std::f64::consts::LN_2));
        assert!(near(Float::log1p(1e-10f64), 9.999_999_999_5e-11));
        assert!(near(Float::expm1(1e-10f64), 1.000_000_000_05e-10));
    }
}
