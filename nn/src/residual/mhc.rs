//! Manifold-constrained hyper-connections: the mix is doubly stochastic, by Sinkhorn–Knopp.

use limpid_autograd::Var;
use limpid_autograd::ops::sinkhorn::Sinkhorn;

use super::projection::{Gates, Projection, Start};
use super::{Coefficients, Connection};
use crate::init::Init;
use crate::module::Parameters;
use crate::parameter::Parameter;

/// ```text
/// v = vec(X)   r = √(mean(v²) + ε)
/// a = σ(α_pre·(v·φ_pre)/r + b_pre)   b = 2σ(α_post·(v·φ_post)/r + b_post)   A = SK(α_res·(v·φ_res)/r + b_res)
/// ```
///
/// SK is [`Sinkhorn`]: `exp`, then 20 times columns and rows divided by their sums, so that rows sum to 1 and columns
/// nearly do. A product of such matrices can neither amplify nor swallow the mean of the streams; what they differ by it
/// can only shrink.
///
/// A `[.., n, n]` multiplies from the left, as in the paper; column i·n + j of φ_res is its logit in row i and column j.
/// (DeepSeek's published kernels hold the transpose.) Coefficients are f32 where the stream is bf16.
///
/// Z. Xie et al., *mHC: Manifold-Constrained Hyper-Connections*, arXiv 2512.24880, Eq. 7–9. [`Start`] is where it starts.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::{Coefficient, Connection, Mhc, Start};
/// use limpid_nn::Init;
/// use limpid_tensor::{DType, Tensor};
/// let mhc = Mhc::new(&Init::new(0).with_dtype(DType::F64), 64, 4, 0, Start::default());
/// let tape = Tape::new();
/// let streams = tape.constant(&Tensor::ones([128, 4, 64], DType::F64));
/// let Coefficient::Streams(mix) = mhc.coefficients(streams).mix else { panic!("A is between streams") };
/// assert_eq!(mix.shape().to_string(), "[128, 4, 4]");
/// let off = (mix.sum(&[-1]) - 1.0).abs().max(&[]).item()?;
/// assert!(off < 1e-15);
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mhc {
    /// Of a and b: `{path}.pre.*` and `{path}.post.*`.
    pub gates: Gates,
    /// The logits of A: `{path}.res.phi` `[nC, n²]`, `{path}.res.alpha` and `{path}.res.bias` `[n, n]`.
    pub res: Projection,
    /// How they become A; [the default](Sinkhorn::default) unless changed.
    pub sinkhorn: Sinkhorn,
}

impl Mhc {
    /// The connection of layer `layer` (counted from 0) with n streams of `channels` channels.
    ///
    /// # Panics
    /// If there are no streams.
    #[track_caller]
    pub fn new(init: &Init, channels: usize, streams: usize, layer: usize, start: Start) -> Mhc {
        let gates = Gates::new(init, channels, streams, layer, start);
        let bias = |i| start.mix.bias(i / streams == i % streams);
        let (inputs, shape) = (channels * streams, [streams, streams]);
        let res = Projection::new(&init.enter("res"), inputs, start.phi, start.alpha, &shape, bias);
        Mhc { gates, res, sinkhorn: Sinkhorn::default() }
    }
}

impl Parameters for Mhc {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.gates.visit(f);
        self.res.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.gates.visit_mut(f);
        self.res.visit_mut(f);
    }
}

impl Connection for Mhc {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        self.gates.coefficients(x, &self.res, |logits| logits.sinkhorn(&self.sinkhorn))
    }
}
