//! One module after another.

use limpid_autograd::Var;

use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// Modules applied in order, each in a scope called after its position.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::{Activation, Init, LayerNorm, Linear, Module, Parameters, Sequential};
/// use limpid_tensor::{DType, Tensor};
/// let init = Init::new(0);
/// let model = Sequential::new(vec![
///     Box::new(LayerNorm::new(&init.enter(0), 2)),
///     Box::new(Linear::new(&init.enter(1), 2, 8, Activation::Gelu)),
/// ]);
/// let paths: Vec<&str> = model.parameters().iter().map(|p| p.path()).collect();
/// assert_eq!(paths, ["0.weight", "0.bias", "1.weight", "1.bias"]);
/// let tape = Tape::new();
/// assert_eq!(model.forward(tape.constant(&Tensor::ones([5, 2], DType::F32))).shape().to_string(), "[5, 8]");
/// ```
pub struct Sequential {
    modules: Vec<Box<dyn Module>>,
}

impl Sequential {
    /// These modules, the first applied first. No module at all is the identity.
    pub fn new(modules: Vec<Box<dyn Module>>) -> Sequential {
        Sequential { modules }
    }
}

impl Parameters for Sequential {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.modules.iter().for_each(|module| module.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.modules.iter_mut().for_each(|module| module.visit_mut(f));
    }
}

impl Module for Sequential {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let numbered = self.modules.iter().enumerate();
        numbered.fold(x, |x, (i, module)| x.tape().scope(i, || module.forward(x)))
    }
}
