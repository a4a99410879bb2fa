//! The residual connection.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = x + F(x)`: a = 1, b = 1, A = 1. The stream's map is the identity, so `x̄ = x̄' + J_Fᵀ·x̄'`.
///
/// K. He et al., *Identity Mappings in Deep Residual Networks*, arXiv 1603.05027.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity;

impl Parameters for Identity {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

impl Connection for Identity {
    fn coefficients<'t>(&self, _: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Constant(1.0),
        }
    }
}
