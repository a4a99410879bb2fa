//! Where a branch's norms go.

use limpid_autograd::Var;

use crate::init::Init;
use crate::module::{Module, Parameters};
use crate::norm::RmsNorm;
use crate::parameter::Parameter;

/// Where the norms of a branch go. (After the addition is not the branch's business: [`PostNorm`](super::PostNorm),
/// [`ResiDual`](super::ResiDual).)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// `F`: nowhere.
    None,
    /// `F∘norm`. R. Xiong et al., *On Layer Normalization in the Transformer Architecture*, arXiv 2002.04745.
    Pre,
    /// `norm∘F∘norm`, so that what is added has a size of its own choosing. J. Kim et al., *Peri-LN*, arXiv 2502.02732.
    Peri,
}

/// A branch with its norms: `after(branch(before(x)))`, where what is `None` is left out.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::{Normed, Placement};
/// use limpid_nn::{Activation, Init, Module};
/// use limpid_tensor::{DType, Tensor};
/// let init = Init::new(0).with_dtype(DType::F64);
/// let mut branch = Normed::new(&init, 2, Placement::Pre, Activation::Relu);
/// branch.before.as_mut().unwrap().eps = 0.0;
/// let tape = Tape::new();
/// let y = branch.forward(tape.variable(&Tensor::from_vec(vec![2.0f64, -2.0], [2])));
/// assert_eq!(y.value()?.to_vec::<f64>()?, [1.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Normed<F> {
    /// Of the branch's operand.
    pub before: Option<RmsNorm>,
    /// F.
    pub branch: F,
    /// Of the branch's result.
    pub after: Option<RmsNorm>,
}

impl<F> Normed<F> {
    /// RMS norms of `channels` channels around `branch`: `{path}.norm_before.weight` and `{path}.norm_after.weight`.
    pub fn new(init: &Init, channels: usize, placement: Placement, branch: F) -> Normed<F> {
        let norm = |name: &str| RmsNorm::new(&init.enter(name), channels);
        Normed {
            before: (placement != Placement::None).then(|| norm("norm_before")),
            branch,
            after: (placement == Placement::Peri).then(|| norm("norm_after")),
        }
    }
}

impl<F: Parameters> Parameters for Normed<F> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.before.iter().for_each(|norm| norm.visit(f));
        self.branch.visit(f);
        self.after.iter().for_each(|norm| norm.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.before.iter_mut().for_each(|norm| norm.visit_mut(f));
        self.branch.visit_mut(f);
        self.after.iter_mut().for_each(|norm| norm.visit_mut(f));
    }
}

impl<F: Module> Module for Normed<F> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let normed = |norm: &Option<RmsNorm>, x| norm.as_ref().map_or(x, |norm| norm.forward(x));
        normed(&self.after, self.branch.forward(normed(&self.before, x)))
    }
}
