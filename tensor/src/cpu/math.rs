//! Functions of one number, for f32 and f64.
//!
//! The largest errors in f32, in units of the last place, over all 2³² inputs:
//!
//! | function | ulp | at | |
//! |---|---|---|---|
//! | exp | 0.94 | −80.72 | own |
//! | expm1 | 1.24 | −0.3468 | own |
//! | log | 0.90 | 1.398 | own |
//! | log1p | 1.49 | 0.4147 | own |
//! | tanh | 1.50 | 0.5520 | own |
//! | sigmoid | 1.70 | −1.105 | own |
//! | erf | 1.58 | 0.4665 | own |
//! | softplus | 1.73 | −0.8812 | own |
//! | sin, cos, pow | 1 | | `libm` |
//!
//! "Own" are the functions of [`elementary`]; `LIMPID_EVERY_F32=all cargo test --release -p limpid-tensor --lib
//! close_to_f64 -- --nocapture` goes through all of them, in an hour, or `=erf,tanh` through these. In f64 exp is own too,
//! within 0.85 ulp where it was compared with 36 digits (60,000 draws), and so is the sigmoid that is made of it; the others
//! are `libm`'s.

use super::elementary;

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
    /// Whether the functions below are those of [`elementary`] (but for sin, cos and pow), which become vectors.
    const OWN_FUNCTIONS: bool;
    /// The nearest value.
    fn of(v: f64) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    /// eˣ for x ≤ 0; in f32 it is 0 from about −87.7 down.
    fn exp_nonpositive(self) -> Self;
    fn expm1(self) -> Self;
    fn log(self) -> Self;
    fn log1p(self) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    /// 1/(1 + e⁻ˣ).
    fn sigmoid(self) -> Self;
    /// ln(1 + eˣ).
    fn softplus(self) -> Self;
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

    /// max(x, 0).
    #[inline(always)]
    fn relu(self) -> Self {
        if self <= Self::ZERO { Self::ZERO } else { self }
    }
}

macro_rules! float {
    ($t:ident, own functions $own:literal { $($name:ident => $function:path),* $(,)? }) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const OWN_FUNCTIONS: bool = $own;
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

float!(f32, own functions true {
    exp => elementary::exp, exp_nonpositive => elementary::exp_nonpositive, expm1 => elementary::expm1, log => elementary::log, log1p => elementary::log1p,
    sin => libm::sinf, cos => libm::cosf, tanh => elementary::tanh, erf => elementary::erf,
    sigmoid => elementary::sigmoid, softplus => elementary::softplus,
});
float!(f64, own functions false {
    exp => elementary::exp_f64, exp_nonpositive => elementary::exp_f64, expm1 => libm::expm1, log => libm::log, log1p => libm::log1p,
    sin => libm::sin, cos => libm::cos, tanh => libm::tanh, erf => libm::erf,
    sigmoid => sigmoid_f64, softplus => softplus_f64,
});

/// Only e^(−|x|) is formed, which cannot overflow.
#[inline(always)]
fn sigmoid_f64(x: f64) -> f64 {
    let e = elementary::exp_f64(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// max(x, 0) + ln(1 + e^(−|x|)).
#[inline(always)]
fn softplus_f64(x: f64) -> f64 {
    let positive = if x < 0.0 { 0.0 } else { x };
    positive + libm::log1p(elementary::exp_f64(-x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    /// A function in f32, the same in f64, and the error allowed in units of the last place.
    type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);

    const CASES: [Case; 8] = [
        ("exp", Float::exp, libm::exp, 1.0),
        ("expm1", Float::expm1, libm::expm1, 1.5),
        ("log", Float::log, libm::log, 1.0),
        ("log1p", Float::log1p, libm::log1p, 1.6),
        ("tanh", Float::tanh, libm::tanh, 1.5),
        ("sigmoid", Float::sigmoid, Float::sigmoid, 1.7),
        ("erf", Float::erf, libm::erf, 1.75),
        ("softplus", Float::softplus, Float::softplus, 1.8),
    ];

    /// The distance to the exact value in units of the last place of f32 there. Infinite between the zeros of two
    /// signs, NaN where one of the two is.
    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if found.to_bits() == nearest.to_bits() || (found.is_nan() && nearest.is_nan()) {
            return 0.0;
        }
        if found == nearest {
            return f64::INFINITY;
        }
        let exponent = (nearest.abs().min(f32::MAX).to_bits() >> 23).max(1) as i32 - 150;
        // Infinity counts as the number after the largest.
        let finite = |v: f64| v.clamp(-(2f64.powi(128)), 2f64.powi(128));
        (finite(f64::from(found)) - finite(exact)).abs() / 2f64.powi(exponent)
    }

    /// The largest error over some bit patterns, and where.
    fn worst(case: &Case, patterns: impl Iterator<Item = u32>) -> (f64, f32) {
        let &(_, f, exact, _) = case;
        patterns.map(f32::from_bits).map(|x| (ulps(f(x), exact(f64::from(x))), x)).fold((0.0, 0.0), larger)
    }

    fn larger(a: (f64, f32), b: (f64, f32)) -> (f64, f32) {
        if b.0 > a.0 || b.0.is_nan() { b } else { a }
    }

    #[track_caller]
    fn assert_within_bounds(worst: impl Fn(&Case) -> (f64, f32)) {
        let mut missed = Vec::new();
        for case in &CASES {
            let (error, x) = worst(case);
            println!("{:8} {error:.3} ulp at {x:e}", case.0);
            if error.is_nan() || error > case.3 {
                missed.push(format!("{}({x:e}): {error} ulp, allowed {}", case.0, case.3));
            }
        }
        assert!(missed.is_empty(), "{missed:#?}");
    }

    /// Every 499th number; all 2³², which takes minutes for each function, where `LIMPID_EVERY_F32` is `all` or names it.
    #[test]
    fn f32_functions_are_close_to_f64_ones() {
        let every = std::env::var("LIMPID_EVERY_F32").unwrap_or_default();
        let ends = [0.0, -0.0, 1.0, -1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        assert_within_bounds(|case| {
            let is_named = every.split(',').any(|name| name == "all" || name == case.0);
            let step = if is_named { 1 } else { 499 };
            let part = |high: u32| worst(case, (high << 16..=high << 16 | 0xFFFF).step_by(step));
            let most = (0..1 << 16).into_par_iter().map(part).reduce(|| (0.0, 0.0), larger);
            larger(most, worst(case, ends.into_iter().map(f32::to_bits)))
        });
    }

    #[test]
    fn exp_of_what_is_not_positive_is_exp() {
        for bits in (0x8000_0000..=0xFF80_0000u32).step_by(499).chain([0, 0x8000_0000, 0xFF80_0000]) {
            let x = f32::from_bits(bits);
            let (found, exact) = (Float::exp_nonpositive(x), libm::exp(f64::from(x)));
            if found == 0.0 {
                assert!(exact < 1.01 * f64::from(f32::MIN_POSITIVE), "exp({x:e}) is {exact:e}, found 0");
            } else {
                assert!(ulps(found, exact) <= 1.0, "exp({x:e}) is {exact:e}, found {found:e}");
            }
        }
        assert!(Float::exp_nonpositive(f32::NAN).is_nan());
        assert_eq!(Float::exp_nonpositive(f32::NEG_INFINITY).to_bits(), 0);
    }

    #[test]
    fn exp_in_f64_is_within_one_number_of_the_library() {
        let spread = (-800_000..800_000).map(|i| f64::from(i) * 1e-3 + f64::from(i).sin() * 1e-3);
        let ends = [0.0, -0.0, f64::MIN_POSITIVE, f64::MAX, f64::MIN, f64::INFINITY, f64::NEG_INFINITY];
        for x in spread.chain(ends) {
            let (found, expected) = (Float::exp(x), libm::exp(x));
            assert!(
                found.to_bits().abs_diff(expected.to_bits()) <= 1,
                "exp({x:e}) is {found:e}, expected {expected:e}"
            );
        }
        assert!(Float::exp(f64::NAN).is_nan());
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
