//! The residual connection with a learned number per channel.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::init::{Init, Initializer};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = x + λ∘F(x)` with a learned λ `[C]`: a = 1, b = λ, A = 1.
///
/// H. Touvron et al., *Going deeper with Image Transformers* (CaiT), arXiv 2103.17239.
#[derive(Clone, Debug)]
pub struct LayerScale {
    /// λ, `[C]`: `{path}.scale`.
    pub scale: Parameter,
}

impl LayerScale {
    /// A scale of `channels` channels that starts, as the paper has it, where the depth of the network says
    /// ([`LayerScale::initial`]).
    pub fn new(init: &Init, channels: usize, blocks: usize) -> LayerScale {
        LayerScale::with_initial(init, channels, LayerScale::initial(blocks))
    }

    /// The same with another number to start from.
    pub fn with_initial(init: &Init, channels: usize, initial: f64) -> LayerScale {
        LayerScale { scale: init.weight("scale", [channels], Initializer::Constant(initial)) }
    }

    /// Where λ starts in a network of so many blocks: 0.1 up to 18, 10⁻⁵ up to 24, 10⁻⁶ beyond.
    pub fn initial(blocks: usize) -> f64 {
        match blocks {
            0..=18 => 0.1,
            19..=24 => 1e-5,
            _ => 1e-6,
        }
    }
}

impl Parameters for LayerScale {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.scale);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.scale);
    }
}

impl Connection for LayerScale {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Value(self.scale.on(x.tape())),
        }
    }
}
