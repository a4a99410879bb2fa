//! A residual block whose addition is part of its last product.

use limpid_autograd::Var;

use crate::activation::Activation;
use crate::linear::Linear;
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `x' = x + L(F(x))`, where L is a linear layer without activation: [`Residual`](super::Residual) with the connection
/// [`Identity`](super::Identity) and the branch L∘F, the sum taken while L's product is written. A state less is made, and
/// none is read again to be added.
///
/// The write is the last product, so the block's branch edges are those by which F's result, the weight and the bias enter it:
/// three instead of one. A path through the branch crosses exactly one of them, and x goes on by a skip edge, so that gradients, ledger
/// and spectrum are those of `Residual`, bit for bit (of bf16 the sum is rounded once, there twice).
///
/// ```
/// use limpid_autograd::{Route, Tape};
/// use limpid_nn::residual::FusedResidual;
/// use limpid_nn::{Activation, Init, Linear, Module};
/// use limpid_tensor::{DType, Tensor};
/// let last = Linear::new(&Init::new(0).with_dtype(DType::F64), 3, 3, Activation::Identity);
/// let block = FusedResidual { branch: Activation::Tanh, last };
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::ones([2, 3], DType::F64));
/// let (_, ledger) = tape.backward_with_ledger(block.forward(x).sum(&[]))?;
/// let at_x = ledger.fan_in(x).unwrap();
/// assert!(at_x.by(Route::Skip).is_some() && at_x.by(Route::Branch).is_some());
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct FusedResidual<F> {
    /// F.
    pub branch: F,
    /// L. Behind an activation the sum would hide the result that its derivative is a function of.
    pub last: Linear,
}

impl<F: Parameters> Parameters for FusedResidual<F> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.branch.visit(f);
        self.last.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.branch.visit_mut(f);
        self.last.visit_mut(f);
    }
}

impl<F: Module> Module for FusedResidual<F> {
    /// # Panics
    /// If the last layer has an activation, or the branch does not keep the stream's shape.
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let Linear { weight, bias, activation } = &self.last;
        assert!(
            *activation == Activation::Identity,
            "write: the last layer of a branch that is added in its product must be without activation, found {activation}"
        );
        let tape = x.tape();
        let output = tape.scope("branch", || self.branch.forward(x));
        tape.scope("write", || {
            let weight = weight.on(tape).branch();
            let bias = bias.as_ref().map(|bias| bias.on(tape).branch());
            x.skip().linear_add(output.branch(), weight, bias)
        })
    }
}
