//! Connections that divide one unit between the stream and the branch.

use limpid_autograd::Var;

use super::{Coefficient, Coefficients, Connection};
use crate::activation::Activation;
use crate::init::{Init, Initializer};
use crate::linear::Linear;
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// Where a gate's argument starts: σ(−2) ≈ 0.12, so that a deep network begins near the identity.
const START: f64 = -2.0;

/// `x' = (1 − g)∘x + g∘F(x)` with `g = σ(W·x + c)` per channel: a = 1, b = g, A = 1 − g.
///
/// The gradient has a third way back to x, through g: `∂g/∂x·((F(x) − x)∘x̄')`.
///
/// R. K. Srivastava, K. Greff, J. Schmidhuber, *Highway Networks*, arXiv 1505.00387, where g is the transform gate.
#[derive(Clone, Debug)]
pub struct Gated {
    /// W `[C, C]`, c `[C]` and the sigmoid: `{path}.gate.weight` and `{path}.gate.bias`.
    pub gate: Linear,
}

impl Gated {
    /// A gate over `channels` channels: W like any linear layer's, c = −2.
    #[track_caller]
    pub fn new(init: &Init, channels: usize) -> Gated {
        Gated::with_bias(init, channels, START)
    }

    /// The same with another c: the lower, the nearer the block begins to the identity.
    #[track_caller]
    pub fn with_bias(init: &Init, channels: usize, c: f64) -> Gated {
        let (weight, bias) = (Initializer::LINEAR, Initializer::Constant(c));
        let gate = init.enter("gate");
        Gated { gate: Linear::with_initial(&gate, channels, channels, Activation::Sigmoid, weight, bias) }
    }
}

impl Parameters for Gated {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.gate.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.gate.visit_mut(f);
    }
}

impl Connection for Gated {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        interpolating(self.gate.forward(x))
    }
}

/// `x' = (1 − g)·x + g·F(x)` with one learned number `g = σ(s)`: a = 1, b = g, A = 1 − g.
#[derive(Clone, Debug)]
pub struct Interpolated {
    /// s, a scalar: `{path}.gate`.
    pub gate: Parameter,
}

impl Interpolated {
    /// A gate with s = −2.
    pub fn new(init: &Init) -> Interpolated {
        Interpolated::with_start(init, START)
    }

    /// The same with another s.
    pub fn with_start(init: &Init, s: f64) -> Interpolated {
        Interpolated { gate: init.weight("gate", [], Initializer::Constant(s)) }
    }
}

impl Parameters for Interpolated {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.gate);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.gate);
    }
}

impl Connection for Interpolated {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        interpolating(self.gate.on(x.tape()).sigmoid())
    }
}

/// b = g and A = 1 − g.
fn interpolating(g: Var<'_>) -> Coefficients<'_> {
    Coefficients {
        read: Coefficient::Constant(1.0),
        mix: Coefficient::Value(1.0 - g),
        write: Coefficient::Value(g),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residual::Residual;
    use limpid_autograd::Tape;
    use limpid_tensor::{DType, Tensor};

    fn init() -> Init {
        Init::new(3).with_dtype(DType::F64).enter("layers").enter(1)
    }

    #[test]
    fn names_and_start() {
        let gated = Gated::new(&init(), 4);
        let paths: Vec<&str> = gated.parameters().iter().map(|p| p.path()).collect();
        assert_eq!(paths, ["layers.1.gate.weight", "layers.1.gate.bias"]);
        assert_eq!(gated.gate.bias.as_ref().unwrap().value().to_vec::<f64>().unwrap(), [-2.0; 4]);
        assert_eq!(Interpolated::new(&init()).gate.path(), "layers.1.gate");
    }

    #[test]
    fn a_closed_gate_is_the_identity_and_an_open_one_the_branch() {
        let x = Tensor::from_vec(vec![0.3f64, -1.7, 2.9], [1, 3]);
        let branch = Linear::new(&init(), 3, 3, Activation::Relu);
        for (c, open) in [(-800.0, false), (800.0, true)] {
            let connections: [Box<dyn Connection>; 2] =
                [Box::new(Gated::with_bias(&init(), 3, c)), Box::new(Interpolated::with_start(&init(), c))];
            for connection in connections {
                let tape = Tape::new();
                let x = tape.variable(&x);
                let expected = if open { branch.forward(x) } else { x };
                let y = Residual { connection, branch: branch.clone() }.forward(x);
                assert_eq!(
                    y.value().unwrap().to_vec::<f64>().unwrap(),
                    expected.value().unwrap().to_vec::<f64>().unwrap()
                );
            }
        }
    }

    #[test]
    fn one_learned_number() {
        // g = σ(ln 3) = 3/4 between x = 4 and F(x) = relu(x) = 4: x' = 4, and ∂x'/∂s = 0; at x = −4,
        // x' = −4/4 = −1 and ∂x'/∂s = g(1 − g)(0 − (−4)) = 3/4.
        for (at, expected, slope) in [(4.0, 4.0, 0.0), (-4.0, -1.0, 0.75)] {
            let connection = Interpolated::with_start(&init(), 3f64.ln());
            let id = connection.gate.id();
            let block = Residual { connection, branch: Activation::Relu };
            let tape = Tape::new();
            let y = block.forward(tape.variable(&Tensor::scalar(at)));
            assert!((y.item().unwrap() - expected).abs() < 1e-14);
            let gradients = tape.backward(y).unwrap();
            assert!((gradients.of_parameter(id).unwrap().item().unwrap() - slope).abs() < 1e-14);
        }
    }
}
