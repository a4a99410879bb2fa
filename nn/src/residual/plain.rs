//! No connection at all.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = F(x)`: a = 1, b = 1, A = 0. What the others are compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain;

impl Parameters for Plain {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

impl Connection for Plain {
    fn coefficients<'t>(&self, _: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(0.0),
            write: Coefficient::Constant(1.0),
        }
    }
}
