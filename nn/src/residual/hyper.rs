//! Hyper-connections: n streams whose coefficients are free.

use limpid_autograd::Var;
use limpid_tensor::Tensor;

use super::projection::{projected, root_mean_square};
use super::streams::widened;
use super::{Coefficient, Coefficients, Connection};
use crate::init::{Init, Initializer};
use crate::module::Parameters;
use crate::parameter::{Parameter, Role};

/// Static hyper-connections: a, b and A are learned numbers, the same for every sample.
///
/// In layer l they start as a = e_{l mod n}, b = 1 and A = 1: all streams stay copies, and each block is a residual block.
/// With n = 1 it is the residual connection with learned numbers in place of its three ones.
///
/// D. Zhu et al., *Hyper-Connections*, arXiv 2409.19606. Their A_r is applied as A_rᵀ·H (Eq. 3–5); what is stored here is
/// A = A_rᵀ, which multiplies from the left. Their B and A_m are b and a.
#[derive(Clone, Debug)]
pub struct HyperConnection {
    /// a, `[n]`: `{path}.read`.
    pub read: Parameter,
    /// b, `[n]`: `{path}.write`.
    pub write: Parameter,
    /// A, `[n, n]`: `{path}.mix`.
    pub mix: Parameter,
}

impl HyperConnection {
    /// The connection of layer `layer` (counted from 0) with n streams.
    ///
    /// # Panics
    /// If there are no streams.
    #[track_caller]
    pub fn new(init: &Init, streams: usize, layer: usize) -> HyperConnection {
        assert!(streams > 0, "hyper_connection: expected at least one stream");
        let numbers = |name: &str, shape: &[usize], value: &dyn Fn(usize) -> bool| {
            let values: Vec<f64> =
                (0..shape.iter().product()).map(|i| f64::from(u8::from(value(i)))).collect();
            let values = Tensor::from_f64(&values, shape, init.dtype());
            Parameter::new(init.enter(name).path(), values, Role::Weight).without_decay()
        };
        HyperConnection {
            read: numbers("read", &[streams], &|i| i == layer % streams),
            write: numbers("write", &[streams], &|_| true),
            mix: numbers("mix", &[streams, streams], &|i| i / streams == i % streams),
        }
    }
}

impl Parameters for HyperConnection {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        [&self.read, &self.write, &self.mix].into_iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        [&mut self.read, &mut self.write, &mut self.mix].into_iter().for_each(f);
    }
}

impl Connection for HyperConnection {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let on = |parameter: &Parameter| Coefficient::Streams(widened(parameter.on(x.tape())));
        Coefficients { read: on(&self.read), mix: on(&self.mix), write: on(&self.write) }
    }
}

/// Dynamic hyper-connections: what is added to the static coefficients depends on the stream,
///
/// ```text
/// a = a₀ + s·tanh(Y·w_read)       b = b₀ + t·tanh(Y·w_write)       A = A₀ + s·tanh(Y·W_mix)ᵀ
/// ```
///
/// with `Y = X/√(mean(X²) + ε)`, each stream normalised by itself. Column j of W_mix says what the streams give to stream j;
/// the transpose makes that row j of A, which multiplies from the left.
///
/// w and W start at 0, s and t at 0.01: at first it is exactly the [static](HyperConnection) connection.
#[derive(Clone, Debug)]
pub struct DynamicHyperConnection {
    /// a₀, b₀ and A₀.
    pub fixed: HyperConnection,
    /// w_read, `[C]`: `{path}.dynamic.read`.
    pub read: Parameter,
    /// w_write, `[C]`: `{path}.dynamic.write`.
    pub write: Parameter,
    /// W_mix, `[C, n]`: `{path}.dynamic.mix`.
    pub mix: Parameter,
    /// s, a scalar, of read and mix: `{path}.dynamic.scale`.
    pub scale: Parameter,
    /// t, a scalar: `{path}.dynamic.write_scale`.
    pub write_scale: Parameter,
    /// ε; 10⁻⁶ unless changed.
    pub eps: f64,
}

impl DynamicHyperConnection {
    /// The connection of layer `layer` (counted from 0) with n streams of `channels` channels.
    ///
    /// # Panics
    /// If there are no streams.
    #[track_caller]
    pub fn new(init: &Init, channels: usize, streams: usize, layer: usize) -> DynamicHyperConnection {
        let dynamic = init.enter("dynamic");
        let scale = Initializer::Constant(0.01);
        DynamicHyperConnection {
            fixed: HyperConnection::new(init, streams, layer),
            read: dynamic.weight("read", [channels], Initializer::ZEROS),
            write: dynamic.weight("write", [channels], Initializer::ZEROS),
            mix: dynamic.weight("mix", [channels, streams], Initializer::ZEROS),
            scale: dynamic.weight("scale", [], scale).without_decay(),
            write_scale: dynamic.weight("write_scale", [], scale).without_decay(),
            eps: 1e-6,
        }
    }
}

impl Parameters for DynamicHyperConnection {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.fixed.visit(f);
        let DynamicHyperConnection { read, write, mix, scale, write_scale, .. } = self;
        [read, write, mix, scale, write_scale].into_iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.fixed.visit_mut(f);
        let DynamicHyperConnection { read, write, mix, scale, write_scale, .. } = self;
        [read, write, mix, scale, write_scale].into_iter().for_each(f);
    }
}

impl Connection for DynamicHyperConnection {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let on = |parameter: &Parameter| widened(parameter.on(x.tape()));
        let x = widened(x);
        let r = root_mean_square(x, self.eps);
        let each = |w: &Parameter| projected(x, on(w).unsqueeze(1), r).squeeze(-1).tanh();
        let (s, t) = (on(&self.scale), on(&self.write_scale));
        let a = on(&self.fixed.read) + s * each(&self.read);
        let b = on(&self.fixed.write) + t * each(&self.write);
        let mix = on(&self.fixed.mix) + s * projected(x, on(&self.mix), r).tanh().transpose(-2, -1);
        Coefficients {
            read: Coefficient::Streams(a),
            mix: Coefficient::Streams(mix),
            write: Coefficient::Streams(b),
        }
    }
}
