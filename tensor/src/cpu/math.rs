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
    exp => libm::expf, expm1 => libm::expm1f, log => libm::logf, log1p => libm::log1pf,
    sin => libm::sinf, cos => libm::cosf, tanh => libm::tanhf, erf => libm::erff,
});
float!(f64 {
    exp => libm::exp, expm1 => libm::expm1, log => libm::log, log1p => libm::log1p,
    sin => libm::sin, cos => libm::cos, tanh => libm::tanh, erf => libm::erf,
});
