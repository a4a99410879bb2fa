//! The residual connection with a constant in front of the branch.

use std::f64::consts::FRAC_1_SQRT_2;

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = x + α·F(x)`: a = 1, b = α, A = 1, with a constant α.
///
/// With the branches' gain fixed, α decides how the stream grows over L blocks: 1/√L keeps its variance bounded, 1/L its
/// size. 1/L is also the rule under which hyperparameters carry over from one depth to another (CompleteP, arXiv
/// 2505.01618, in whose notation the multiplier is L^(−α) with α = 1).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scaled {
    alpha: f64,
}

impl Scaled {
    /// The connection with this α.
    ///
    /// # Panics
    /// If α is not finite.
    #[track_caller]
    pub fn new(alpha: f64) -> Scaled {
        assert!(alpha.is_finite(), "scaled: α must be finite, found {alpha}");
        Scaled { alpha }
    }

    /// α = 1/√2.
    pub fn one_over_sqrt_2() -> Scaled {
        Scaled::new(FRAC_1_SQRT_2)
    }

    /// α = L^(−exponent) for a network of L blocks. CompleteP is exponent 1, that is 1/L; exponent 0 is no scaling.
    ///
    /// # Panics
    /// If there are no blocks, or the exponent is not finite.
    #[track_caller]
    pub fn complete_p(blocks: usize, exponent: f64) -> Scaled {
        assert!(blocks > 0, "scaled: expected at least one block");
        Scaled::new((blocks as f64).powf(-exponent))
    }

    /// α = Δt for so many steps from t = 0 to t = `until`: see [`Euler`](super::Euler).
    ///
    /// # Panics
    /// If there is no step, or `until` is not finite.
    #[track_caller]
    pub fn euler(steps: usize, until: f64) -> Scaled {
        assert!(steps > 0, "euler: expected at least one step");
        Scaled::new(until / steps as f64)
    }

    /// α.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }
}

impl Parameters for Scaled {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

impl Connection for Scaled {
    fn coefficients<'t>(&self, _: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Constant(self.alpha),
        }
    }
}
