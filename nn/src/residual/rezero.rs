//! The residual connection that begins as the identity.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::init::{Init, Initializer};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = x + α·F(x)` with one learned number α, at first 0: a = 1, b = α, A = 1.
///
/// At first no gradient reaches the branch's weights, only α: they learn from the second step on.
///
/// T. Bachlechner et al., *ReZero is All You Need*, arXiv 2003.04887; the same as SkipInit of S. De, S. L. Smith, arXiv
/// 2002.10444.
#[derive(Clone, Debug)]
pub struct ReZero {
    /// α, a scalar: `{path}.alpha`.
    pub alpha: Parameter,
}

impl ReZero {
    /// The connection with α = 0.
    pub fn new(init: &Init) -> ReZero {
        ReZero { alpha: init.weight("alpha", [], Initializer::ZEROS) }
    }
}

impl Parameters for ReZero {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.alpha);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.alpha);
    }
}

impl Connection for ReZero {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Value(self.alpha.on(x.tape())),
        }
    }
}
