//! The delta rule: a block erases what it is about to write.

use limpid_autograd::Var;
use limpid_autograd::ops::movement::concat;

use super::{Coefficient, Coefficients, Connection, entering, expect_kept, mix};
use crate::activation::Activation;
use crate::init::{Init, Initializer};
use crate::linear::Linear;
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `x' = x + β·(v − kᵀx)·k`, where F gives the direction `k = F(x)/√(|F(x)|² + ε)`, and two linear maps of x give
/// `β = 2σ(·)` and v, a number each for every sample.
///
/// So `x' = (1 − β·k·kᵀ)·x + β·v·k`: along k, x stays as it is for β = 0, is replaced by v for β = 1, and reflected at v
/// for β = 2. That A acts on channels, not on streams, and it is the branch that chooses it, so it does not fit the algebra:
/// `coefficients` returns β and v as the two numbers of b, `[.., 2]`, and the erasing is part of the write. What reaches
/// a block without crossing a branch is the product of the matrices `1 − β·k·kᵀ`, at the k's there are.
///
/// Where F is 0 there is no direction, and with ε > 0 nothing happens.
///
/// *Deep Delta Learning*, arXiv 2601.00417, where v is one number.
#[derive(Clone, Debug)]
pub struct Delta {
    /// β/2 = σ(w·x + c): `{path}.beta.weight` `[1, C]` and `{path}.beta.bias` `[1]`.
    pub beta: Linear,
    /// v: `{path}.value.weight` `[1, C]` and `{path}.value.bias` `[1]`.
    pub value: Linear,
    /// ε in the norm of k; 10⁻⁶ unless changed.
    pub eps: f64,
}

impl Delta {
    /// A connection of `channels` channels, whose maps start as any linear layer's, but for the bias of β: −2, so that
    /// β ≈ 0.24 and a deep network begins near the identity.
    #[track_caller]
    pub fn new(init: &Init, channels: usize) -> Delta {
        Delta::with_bias(init, channels, -2.0)
    }

    /// The same with another bias of β.
    #[track_caller]
    pub fn with_bias(init: &Init, channels: usize, bias: f64) -> Delta {
        let bias = Initializer::Constant(bias);
        let weight = Initializer::LINEAR;
        let beta = init.enter("beta");
        Delta {
            beta: Linear::with_initial(&beta, channels, 1, Activation::Sigmoid, weight, bias),
            value: Linear::new(&init.enter("value"), channels, 1, Activation::Identity),
            eps: 1e-6,
        }
    }
}

impl Parameters for Delta {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.beta.visit(f);
        self.value.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.beta.visit_mut(f);
        self.value.visit_mut(f);
    }
}

impl Connection for Delta {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let beta = self.beta.forward(x) * 2.0;
        Coefficients {
            read: Coefficient::Constant(1.0),
            mix: Coefficient::Constant(1.0),
            write: Coefficient::Value(concat(&[beta, self.value.forward(x)], -1)),
        }
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        let (Some(x), Coefficient::Value(b)) = (mix(x, by.mix), by.write) else {
            panic!("delta: expected its own coefficients, found {by:?}");
        };
        expect_kept(x.meta(), output.meta());
        let f = entering(output);
        let along = |u: Var<'t>, v: Var<'t>| (u * v).sum(&[-1]).keep(&[-1], &v.shape());
        let k = f * (along(f, f) + self.eps).rsqrt();
        let (beta, v) = (b.control().slice(-1, 0, 1, 1), b.control().slice(-1, 1, 2, 1));
        x + beta * (v - along(x, k)) * k
    }
}
