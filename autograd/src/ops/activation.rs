//! Activations that gate their operand by a function of it, and gated linear units.
//!
//! The ones of one function (relu, leaky_relu, elu, tanh, sigmoid, softplus) are in `elementwise.rs`.

use std::f64::consts::FRAC_1_SQRT_2;

use limpid_tensor::{Inferred, Meta};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::var::Var;

/// √(2/π).
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// What the approximation of gelu multiplies the cube by.
const CUBE: f64 = 0.044715;

/// 1/√(2π).
const ONE_OVER_SQRT_2_PI: f64 = 0.398_942_280_401_432_7;

/// `y = x·s(x)` for each element: `x̄ = ȳ·(s(x) + x·s′(x))`.
///
/// The rule reads x alone. The steps of the expansion, differentiated one by one, would read three values of the size of
/// x for gelu, five for gelu_tanh and two for silu, and a tape would hold them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SelfGated {
    /// `s = Φ`, the normal distribution function; `s′(x) = exp(−x²/2)/√(2π)`.
    Gelu,
    /// `s = ½(1 + tanh u)` with `u(x) = √(2/π)(x + 0.044715x³)`; `s′ = 2s(1 − s)·u′`.
    GeluTanh,
    /// `s = σ`; `s′ = σ(1 − σ)`.
    Silu,
}

/// Where `tanh u` is not yet ±1 to the last bit, x; beyond, ±10, so that its cube does not overflow.
fn bounded(x: Var<'_>) -> Var<'_> {
    x.clamp(-10.0, 10.0)
}

impl SelfGated {
    fn gate(self, x: Var<'_>) -> Var<'_> {
        match self {
            SelfGated::Gelu => ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
            SelfGated::GeluTanh => {
                let x = bounded(x);
                let u = x * (x * x * (CUBE * SQRT_2_OVER_PI) + SQRT_2_OVER_PI);
                (u.tanh() + 1.0) * 0.5
            }
            SelfGated::Silu => x.sigmoid(),
        }
    }

    /// `s(x) + x·s′(x)`.
    fn slope(self, x: Var<'_>) -> Var<'_> {
        let gate = self.gate(x);
        match self {
            SelfGated::Gelu => gate + x * ((x * x * -0.5).exp() * ONE_OVER_SQRT_2_PI),
            SelfGated::GeluTanh => {
                let x = bounded(x);
                let twice_du = x * x * (6.0 * CUBE * SQRT_2_OVER_PI) + 2.0 * SQRT_2_OVER_PI;
                gate + x * (gate * (1.0 - gate) * twice_du)
            }
            SelfGated::Silu => gate * (x * (1.0 - gate) + 1.0),
        }
    }
}

impl Op for SelfGated {
    fn name(&self) -> &'static str {
        match self {
            SelfGated::Gelu => "gelu",
            SelfGated::GeluTanh => "gelu_tanh",
            SelfGated::Silu => "silu",
        }
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        match x[0].dtype {
            dtype if dtype.is_float() => Ok(x[0].clone()),
            dtype => Err(format!("is not defined for {dtype}")),
        }
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g() * self.slope(at.x(0)))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx * self.slope(at.x(0)))
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(x[0] * self.gate(x[0]))
    }

    fn flops(&self, _x: &[&Meta], y: &Meta) -> u64 {
        let of_one = match self {
            SelfGated::Gelu => 5,
            SelfGated::GeluTanh => 9,
            SelfGated::Silu => 2,
        };
        of_one * y.shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// `x·Φ(x)` with the normal distribution function `Φ(x) = ½(1 + erf(x/√2))`.
    ///
    /// D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    #[track_caller]
    pub fn gelu(self) -> Var<'t> {
        self.tape().record(SelfGated::Gelu, &[self])
    }

    /// The approximation of [`gelu`](Var::gelu) by `½x(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, from the same article. It
    /// is off by at most 4.8·10⁻⁴.
    ///
    /// Beyond ±10 the tanh is ±1 to the last bit; there its argument stays where it is, so that the cube does not
    /// overflow and its derivative is no ∞ to be multiplied by 0.
    #[track_caller]
    pub fn gelu_tanh(self) -> Var<'t> {
        self.tape().record(SelfGated::GeluTanh, &[self])
    }

    /// `x·σ(x)`, also called swish.
    ///
    /// S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units", arXiv:1702.03118.
    #[track_caller]
    pub fn silu(self) -> Var<'t> {
        self.tape().record(SelfGated::Silu, &[self])
    }

    /// The gated linear unit `a·σ(b)` of the halves a, b of the last axis: `[.., 2C]` → `[.., C]`. The second half is
    /// the gate, as in PyTorch's `glu`; the same holds for the three variants below.
    ///
    /// Y. N. Dauphin et al., "Language Modeling with Gated Convolutional Networks", arXiv:1612.08083.
    ///
    /// # Panics
    /// If there is no last axis, or its size is odd.
    #[track_caller]
    pub fn glu(self) -> Var<'t> {
        let (a, b) = self.halves("glu");
        a * b.sigmoid()
    }

    /// `a·silu(b)` of the halves a, b of the last axis: `[.., 2C]` → `[.., C]`; the second half is the gate.
    ///
    /// N. Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
    ///
    /// # Panics
    /// If there is no last axis, or its size is odd.
    #[track_caller]
    pub fn swiglu(self) -> Var<'t> {
        let (a, b) = self.halves("swiglu");
        a * b.silu()
    }

    /// `a·gelu(b)` of the halves a, b of the last axis: `[.., 2C]` → `[.., C]`; the second half is the gate. From the
    /// article that [`swiglu`](Var::swiglu) names.
    ///
    /// # Panics
    /// If there is no last axis, or its size is odd.
    #[track_caller]
    pub fn geglu(self) -> Var<'t> {
        let (a, b) = self.halves("geglu");
        a * b.gelu()
    }

    /// `a·relu(b)` of the halves a, b of the last axis: `[.., 2C]` → `[.., C]`; the second half is the gate. From the
    /// article that [`swiglu`](Var::swiglu) names.
    ///
    /// # Panics
    /// If there is no last axis, or its size is odd.
    #[track_caller]
    pub fn reglu(self) -> Var<'t> {
        let (a, b) = self.halves("reglu");
        a * b.relu()
    }

    /// The two halves of the last axis.
    #[track_caller]
    fn halves(self, name: &str) -> (Var<'t>, Var<'t>) {
        let shape = self.shape();
        match shape.last() {
            Some(&n) if n % 2 == 0 => (self.slice(-1, 0, n / 2, 1), self.slice(-1, n / 2, n, 1)),
            _ => panic!("{name}: the last axis must have two halves of one size, found shape {shape}"),
        }
    }
}
