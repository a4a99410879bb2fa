//! The norm after the addition.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::init::Init;
use crate::module::{Module, Parameters};
use crate::norm::LayerNorm;
use crate::parameter::Parameter;

/// `x' = norm(α·x + F(x))`: a = 1, b = 1, A = α, and a norm of the stream itself.
///
/// The norm is why it is not of the algebra: it is no linear map of x and F(x). What reaches a block without crossing a
/// branch is the product of α's and the norms' Jacobians, of which each takes off what lies along its operand.
///
/// α = 1 is the first Transformer (A. Vaswani et al., arXiv 1706.03762). Larger, it is DeepNorm (H. Wang et al., arXiv
/// 2203.00555), with α = (2N)^¼ for N blocks and [smaller branches](deep_norm_gain) to start with.
#[derive(Clone, Debug)]
pub struct PostNorm {
    /// What the stream is multiplied by before the addition.
    pub alpha: f64,
    /// `{path}.norm.weight` and `{path}.norm.bias`.
    pub norm: LayerNorm,
}

/// What the branches' initial weights are multiplied by in a network of N blocks with DeepNorm: β = (8N)^(−¼).
///
/// # Panics
/// If there are no blocks.
#[track_caller]
pub fn deep_norm_gain(blocks: usize) -> f64 {
    assert!(blocks > 0, "deep_norm: expected at least one block");
    (8.0 * blocks as f64).powf(-0.25)
}

impl PostNorm {
    /// α = 1, for `channels` channels.
    pub fn new(init: &Init, channels: usize) -> PostNorm {
        PostNorm { alpha: 1.0, norm: LayerNorm::new(&init.enter("norm"), channels) }
    }

    /// DeepNorm's α for a network of so many blocks.
    ///
    /// # Panics
    /// If there are no blocks.
    #[track_caller]
    pub fn deep_norm(init: &Init, channels: usize, blocks: usize) -> PostNorm {
        assert!(blocks > 0, "deep_norm: expected at least one block");
        PostNorm { alpha: (2.0 * blocks as f64).powf(0.25), ..PostNorm::new(init, channels) }
    }
}

impl Parameters for PostNorm {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm.visit_mut(f);
    }
}

impl Connection for PostNorm {
    fn coefficients<'t>(&self, _: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(self.alpha),
            write: Coefficient::Constant(1.0),
        }
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        self.norm.forward(super::write(x, output, by))
    }
}
