//! A residual network as a differential equation.

use limpid_autograd::Var;

use super::{Residual, Scaled};
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `x ← x + Δt·F(x)`, some times over: explicit Euler's method for `dx/dt = F(x)`. Each step is a residual block, a = 1,
/// b = Δt, A = 1, and all of them have the same F, so its gradients add up over the steps.
///
/// R. T. Q. Chen et al., *Neural Ordinary Differential Equations*, arXiv 1806.07366, by the simplest of solvers and
/// differentiated as it was run.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::Euler;
/// use limpid_nn::{Activation, Module};
/// use limpid_tensor::Tensor;
/// // dx/dt = x from 1 to t = 1 is e; Euler's (1 + 1/1000)¹⁰⁰⁰ falls short of it by about e/2000.
/// let flow = Euler::new(Activation::Identity, 1000, 1.0);
/// let tape = Tape::new();
/// let x = flow.forward(tape.variable(&Tensor::scalar(1.0f64))).item()?;
/// assert!((x - 1f64.exp() * (1.0 - 1.0 / 2000.0)).abs() < 1e-5);
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Euler<F> {
    /// One step.
    pub block: Residual<Scaled, F>,
    /// How many there are.
    pub steps: usize,
}

impl<F> Euler<F> {
    /// `steps` steps from t = 0 to t = `until`: Δt = until/steps.
    ///
    /// # Panics
    /// If there is no step, or `until` is not finite.
    #[track_caller]
    pub fn new(branch: F, steps: usize, until: f64) -> Euler<F> {
        Euler { block: Residual { connection: Scaled::euler(steps, until), branch }, steps }
    }
}

impl<F: Parameters> Parameters for Euler<F> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.block.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.block.visit_mut(f);
    }
}

/// Any shape that F keeps. Step k records in the scope `step.k`.
impl<F: Module> Module for Euler<F> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        (0..self.steps).fold(x, |x, k| x.tape().scope(format_args!("step.{k}"), || self.block.forward(x)))
    }
}
