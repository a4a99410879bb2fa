//! Attention over everything that was written before.

use limpid_autograd::Var;
use limpid_autograd::ops::movement::concat;

use super::projection::{projected, root_mean_square};
use super::streams::{self, widened};
use super::{Coefficient, Coefficients, Connection, mix};
use crate::init::{Init, Initializer};
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// The branch reads `Σᵢ aᵢ·vᵢ` with `a = softmaxᵢ(q·vᵢ/√(mean(vᵢ²) + ε))`, over v₀, the embedding, and the results v₁, v₂, …
/// of all branches before it. Its own result is appended.
///
/// The state `[.., l, C]` holds them, so it does not fit n×n: it grows by a row with every block. A keeps every row, b
/// appends one. In front of the first block there is one row, an [expansion](super::Expand::copies) by 1. The last read,
/// which feeds the head, is this type as a [`Module`]: `[.., l, C]` → `[.., C]`.
///
/// With q = 0, where it starts, every read is the mean of all rows: not a residual network. What reaches a block without
/// crossing a branch is the part of the embedding in its read, and the composite map from the embedding to the head the
/// weight of v₀ in the last one.
///
/// Appending copies the rows there are: a network of L blocks holds about L²/2 rows, where a list without copies would
/// hold L.
///
/// Kimi Team, *Attention Residuals*, arXiv 2603.15031.
#[derive(Clone, Debug)]
pub struct AttnRes {
    /// q, `[C]`: `{path}.query`. It takes in the weight that the norm of vᵢ would have.
    pub query: Parameter,
    /// ε; 10⁻⁶ unless changed.
    pub eps: f64,
}

impl AttnRes {
    /// A read of `channels` channels, with q = 0.
    pub fn new(init: &Init, channels: usize) -> AttnRes {
        AttnRes::with_initial(init, channels, Initializer::ZEROS)
    }

    /// The same with another q to start from.
    #[track_caller]
    pub fn with_initial(init: &Init, channels: usize, query: Initializer) -> AttnRes {
        AttnRes { query: init.weight("query", [channels], query), eps: 1e-6 }
    }

    /// a: `[.., l, C]` → `[.., l]`.
    #[track_caller]
    fn weights<'t>(&self, x: Var<'t>) -> Var<'t> {
        let (x, q) = (widened(x), widened(self.query.on(x.tape())));
        projected(x, q.unsqueeze(1), root_mean_square(x, self.eps)).squeeze(-1).softmax(-1)
    }
}

impl Parameters for AttnRes {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.query);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.query);
    }
}

impl Connection for AttnRes {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        Coefficients {
            read: Coefficient::Streams(self.weights(x)),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Constant(1.0),
        }
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        let row = output.branch().unsqueeze(output.shape().len() - 1);
        mix(x, by.mix).map_or(row, |rows| concat(&[rows, row], -2))
    }
}

impl Module for AttnRes {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        streams::read(self.weights(x), x)
    }
}
