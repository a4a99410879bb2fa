//! Two streams, one normalised after every block and one never.

use limpid_autograd::Var;
use limpid_autograd::ops::movement::stack;
use limpid_tensor::Tensor;

use super::{Coefficient, Coefficients, Connection};
use crate::init::Init;
use crate::module::{Module, Parameters};
use crate::norm::LayerNorm;
use crate::parameter::Parameter;

/// ```text
/// post' = norm(post + F(post))
/// dual' = dual + F(post)
/// ```
///
/// The state `[.., 2, C]` is (post, dual): a = (1, 0), b = (1, 1), A = 1, and a norm of the first stream. As in
/// [`PostNorm`](super::PostNorm), the norm is why it is not of the algebra; the second stream's map is the identity. The
/// streams enter as [two copies](super::Expand::copies) and leave by [`ResiDualRead`].
///
/// S. Xie et al., *ResiDual: Transformer with Dual Residual Connections*, arXiv 2304.14802.
#[derive(Clone, Debug)]
pub struct ResiDual {
    /// Of the first stream: `{path}.norm.weight` and `{path}.norm.bias`.
    pub norm: LayerNorm,
}

impl ResiDual {
    /// A connection of `channels` channels.
    pub fn new(init: &Init, channels: usize) -> ResiDual {
        ResiDual { norm: LayerNorm::new(&init.enter("norm"), channels) }
    }
}

impl Parameters for ResiDual {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm.visit_mut(f);
    }
}

impl Connection for ResiDual {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let pair = |values| x.tape().constant_here(&Tensor::from_f64(values, [2], x.dtype()));
        Coefficients {
            read: Coefficient::Streams(pair(&[1.0, 0.0])),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Streams(pair(&[1.0, 1.0])),
        }
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        let sum = super::write(x, output, by);
        let (post, dual) = (sum.select(-2, 0), sum.select(-2, 1));
        stack(&[self.norm.forward(post), dual], sum.shape().len() - 2)
    }
}

/// `post + norm(dual)`: `[.., 2, C]` → `[.., C]`, what [`ResiDual`]'s streams leave by.
#[derive(Clone, Debug)]
pub struct ResiDualRead {
    /// Of the second stream: `{path}.norm.weight` and `{path}.norm.bias`.
    pub norm: LayerNorm,
}

impl ResiDualRead {
    /// A read of `channels` channels.
    pub fn new(init: &Init, channels: usize) -> ResiDualRead {
        ResiDualRead { norm: LayerNorm::new(&init.enter("norm"), channels) }
    }
}

impl Parameters for ResiDualRead {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm.visit_mut(f);
    }
}

impl Module for ResiDualRead {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        x.select(-2, 0) + self.norm.forward(x.select(-2, 1))
    }
}
