//! mHC without a mix.

use limpid_autograd::Var;

use super::projection::{Gates, Start};
use super::{Coefficients, Connection};
use crate::init::Init;
use crate::module::Parameters;
use crate::parameter::Parameter;

/// As [`Mhc`](super::Mhc), but for A = 1: streams are read and written by what they hold, and never mixed. Its composite map
/// is the identity.
///
/// H_res = I in the notation of Z. Xie et al., arXiv 2512.24880: an ablation of mHC.
#[derive(Clone, Debug)]
pub struct IdentityHc {
    /// Of a and b: `{path}.pre.*` and `{path}.post.*`.
    pub gates: Gates,
}

impl IdentityHc {
    /// The connection of layer `layer` (counted from 0) with n streams of `channels` channels. There is no use for
    /// `start.mix`.
    ///
    /// # Panics
    /// If there are no streams.
    #[track_caller]
    pub fn new(init: &Init, channels: usize, streams: usize, layer: usize, start: Start) -> IdentityHc {
        IdentityHc { gates: Gates::new(init, channels, streams, layer, start) }
    }
}

impl Parameters for IdentityHc {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.gates.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.gates.visit_mut(f);
    }
}

impl Connection for IdentityHc {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        self.gates.without_mix(x)
    }
}
