//! The residual connection with a constant in front of the branch.

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
