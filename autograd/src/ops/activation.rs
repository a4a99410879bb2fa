//! Activations made of other operations, and gated linear units.
//!
//! The ones that are operations themselves (relu, leaky_relu, elu, tanh, sigmoid, softplus) are in `elementwise.rs`.

use std::f64::consts::FRAC_1_SQRT_2;

use crate::var::Var;

/// √(2/π).
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

impl<'t> Var<'t> {
    /// `x·Φ(x)` with the normal distribution function `Φ(x) = ½(1 + erf(x/√2))`.
    ///
    /// D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    #[track_caller]
    pub fn gelu(self) -> Var<'t> {
        self * (((self * FRAC_1_SQRT_2).erf() + 1.0) * 0.5)
    }

    /// The approximation of [`gelu`](Var::gelu) by `½x(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, from the same article. It
    /// is off by at most 4.8·10⁻⁴.
    ///
    /// Beyond ±10 the tanh is ±1 to the last bit; there its argument stays where it is, so that the cube does not
    /// overflow and its derivative is no ∞ to be multiplied by 0.
    #[track_caller]
    pub fn gelu_tanh(self) -> Var<'t> {
        let x = self.clamp(-10.0, 10.0);
        let inner = x * (x * x * (0.044715 * SQRT_2_OVER_PI) + SQRT_2_OVER_PI);
        self * ((inner.tanh() + 1.0) * 0.5)
    }

    /// `x·σ(x)`, also called swish.
    ///
    /// S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units", arXiv:1702.03118.
    #[track_caller]
    pub fn silu(self) -> Var<'t> {
        self * self.sigmoid()
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
