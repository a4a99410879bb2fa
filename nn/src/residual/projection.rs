//! Coefficients computed from all streams at once: what mHC, mHC-lite and identity-HC have in common.

use limpid_autograd::Var;
use limpid_tensor::{Shape, Tensor};

use super::streams::widened;
use super::{Coefficient, Coefficients};
use crate::init::{Init, Initializer};
use crate::module::Parameters;
use crate::parameter::{Parameter, Role};

/// `H̃ = α·(v·φ)/r + b` with v = vec(X) `[.., nC]` and r = √(mean(v²) + ε), one number for all streams. The bias is added
/// after the division.
///
/// Z. Xie et al., arXiv 2512.24880, Eq. 7. ([Hyper-connections](super::DynamicHyperConnection) normalise each stream by itself
/// and bound the product by a tanh.)
#[derive(Clone, Debug)]
pub struct Projection {
    /// φ, `[nC, m]`: `{path}.phi`.
    pub phi: Parameter,
    /// α, a scalar: `{path}.alpha`. It does not decay.
    pub alpha: Parameter,
    /// b, m numbers in the shape of H̃: `{path}.bias`. It does not decay: towards 0, streams are alike.
    pub bias: Parameter,
}

/// √(mean(v²) + ε) over the last axis, which stays with size 1.
#[track_caller]
pub(super) fn root_mean_square(v: Var<'_>, eps: f64) -> Var<'_> {
    ((v * v).mean(&[-1]).keep(&[-1], &v.shape()) + eps).sqrt()
}

/// `v·w/r`: v `[.., k]`, w `[k, m]`, r `[.., 1]` → `[.., m]`. The rows of all leading axes are multiplied together, so that
/// w̄ is one product and not a sum of one for each.
#[track_caller]
pub(super) fn projected<'t>(v: Var<'t>, w: Var<'t>, r: Var<'t>) -> Var<'t> {
    let (shape, columns) = (v.shape(), w.shape()[1]);
    let last = shape.len() - 1;
    let rows: usize = shape[..last].iter().product();
    v.reshape([rows, shape[last]]).matmul(w).reshape(shape.with(last, columns)) / r
}

impl Projection {
    /// φ for `inputs` = nC numbers, this α, and a bias of this shape with `bias` of each position.
    #[track_caller]
    pub(super) fn new(
        init: &Init,
        inputs: usize,
        phi: Initializer,
        alpha: f64,
        shape: &[usize],
        bias: impl Fn(usize) -> f64,
    ) -> Projection {
        let count = shape.iter().product();
        let values: Vec<f64> = (0..count).map(bias).collect();
        let values = Tensor::from_f64(&values, shape, init.dtype());
        Projection {
            phi: init.weight("phi", [inputs, count], phi),
            alpha: init.weight("alpha", [], Initializer::Constant(alpha)).without_decay(),
            bias: Parameter::new(init.enter("bias").path(), values, Role::Weight).without_decay(),
        }
    }

    /// H̃ of `v·φ/r`: `[.., m]` → `[..]` and the bias's shape.
    #[track_caller]
    fn logits<'t>(&self, product: Var<'t>) -> Var<'t> {
        let on = |parameter: &Parameter| widened(parameter.on(product.tape()));
        let lead = product.shape();
        let shape: Shape =
            lead[..lead.len() - 1].iter().chain(&self.bias.value().shape()[..]).copied().collect();
        (product * on(&self.alpha)).reshape(shape) + on(&self.bias)
    }
}

/// H̃ of each projection of a state `[.., n, C]`, whose elements all of them see in one pass.
#[track_caller]
pub(super) fn logits<'t, const K: usize>(
    x: Var<'t>,
    projections: [&Projection; K],
    eps: f64,
) -> [Var<'t>; K] {
    let phi = projections.map(|projection| widened(projection.phi.on(x.tape())));
    let products = x.stream_project(&phi, eps);
    std::array::from_fn(|i| projections[i].logits(products[i]))
}

impl Parameters for Projection {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        [&self.phi, &self.alpha, &self.bias].into_iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        [&mut self.phi, &mut self.alpha, &mut self.bias].into_iter().for_each(f);
    }
}

/// Where the coefficients of [`Mhc`](super::Mhc) and its relatives start. α = 0.01 is the only value that is published; what
/// codes do besides differs widely.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Start {
    /// The biases of read and write.
    pub gates: GateStart,
    /// The bias of the mix.
    pub mix: MixStart,
    /// All φ.
    pub phi: Initializer,
    /// All α.
    pub alpha: f64,
}

impl Default for Start {
    /// Gates cycled by layer, a mix near the identity, φ normal of standard deviation 0.02, α = 0.01.
    fn default() -> Start {
        Start {
            gates: GateStart::Cycled,
            mix: MixStart::NearIdentity,
            phi: Initializer::Normal { std: 0.02 },
            alpha: 0.01,
        }
    }
}

/// Where the biases of a read and a write start, in layer l.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateStart {
    /// 0: a = ½ and b = 1 for every stream. With φ = 0, copied streams then stay copies for ever.
    Equal,
    /// 1 for stream l mod n and −1 for the others: a = 0.73 and 0.27, b = 1.46 and 0.54.
    Cycled,
}

impl GateStart {
    fn bias(self, stream: usize, layer: usize, streams: usize) -> f64 {
        match self {
            GateStart::Equal => 0.0,
            GateStart::Cycled if stream == layer % streams => 1.0,
            GateStart::Cycled => -1.0,
        }
    }
}

/// Where the logits of a mix start, with what a Sinkhorn of temperature 1 makes of them for n = 4.
///
/// At temperature 0.05 the last is the identity to 10⁻⁶⁹, and its logits never learn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MixStart {
    /// 0: A = 1/n throughout. One layer makes all streams alike.
    Uniform,
    /// The identity as logits: a diagonal of 0.475. What streams differ by shrinks to 0.30 in a layer.
    IdentityLogits,
    /// 0 on the diagonal and −8 off it: a diagonal of 0.999. The logits learn slowly, because A hardly depends on them:
    /// their gradient is 6·10⁻⁴ of A's.
    NearIdentity,
}

impl MixStart {
    /// The logit of what A is to be like (`chosen`), and of everything else.
    pub(super) fn bias(self, chosen: bool) -> f64 {
        match (self, chosen) {
            (MixStart::Uniform, _) | (MixStart::IdentityLogits, false) | (MixStart::NearIdentity, true) => {
                0.0
            }
            (MixStart::IdentityLogits, true) => 1.0,
            (MixStart::NearIdentity, false) => -8.0,
        }
    }
}

/// Read and write of [`Mhc`](super::Mhc) and its relatives: a = σ(H̃_pre), b = 2σ(H̃_post).
#[derive(Clone, Debug)]
pub struct Gates {
    /// H̃_pre, `[.., n]`: `{path}.pre.phi` and so on.
    pub pre: Projection,
    /// H̃_post, `[.., n]`: `{path}.post.phi` and so on.
    pub post: Projection,
    /// ε in r; 10⁻⁶ unless changed. (The paper's table has 10⁻²⁰, its published inference code 10⁻⁶.)
    pub eps: f64,
}

impl Gates {
    #[track_caller]
    pub(super) fn new(init: &Init, channels: usize, streams: usize, layer: usize, start: Start) -> Gates {
        assert!(streams > 0, "streams: expected at least one");
        let projection = |name: &str| {
            let bias = |stream| start.gates.bias(stream, layer, streams);
            Projection::new(&init.enter(name), channels * streams, start.phi, start.alpha, &[streams], bias)
        };
        Gates { pre: projection("pre"), post: projection("post"), eps: 1e-6 }
    }

    /// The coefficients of streams `x`, with what `mix` makes of the logits of A that a projection has.
    #[track_caller]
    pub(super) fn coefficients<'t>(
        &self,
        x: Var<'t>,
        res: &Projection,
        mix: impl FnOnce(Var<'t>) -> Var<'t>,
    ) -> Coefficients<'t> {
        let [pre, post, res] = logits(x, [&self.pre, &self.post, res], self.eps);
        Gates::gated(pre, post, Coefficient::Streams(mix(res)))
    }

    /// The same where A is 1.
    #[track_caller]
    pub(super) fn without_mix<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let [pre, post] = logits(x, [&self.pre, &self.post], self.eps);
        Gates::gated(pre, post, Coefficient::Constant(1.0))
    }

    fn gated<'t>(pre: Var<'t>, post: Var<'t>, mix: Coefficient<'t>) -> Coefficients<'t> {
        let [read, write] = [pre.sigmoid(), post.sigmoid() * 2.0].map(Coefficient::Streams);
        Coefficients { read, mix, write }
    }
}

impl Parameters for Gates {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.pre.visit(f);
        self.post.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.pre.visit_mut(f);
        self.post.visit_mut(f);
    }
}
