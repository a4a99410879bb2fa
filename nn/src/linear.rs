//! The linear layer, with its activation.

use limpid_autograd::Var;
use limpid_tensor::Activation as Fused;

use crate::activation::Activation;
use crate::init::{Init, Initializer};
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `act(x·Wᵀ + b)`: x `[.., in]`, W `[out, in]`, b `[out]` → `[.., out]`.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::{Activation, Init, Linear, Module, Parameters};
/// use limpid_tensor::{DType, Tensor};
/// let layer = Linear::new(&Init::new(0).enter("layers").enter(0), 2, 64, Activation::Relu);
/// assert_eq!(layer.parameters()[0].path(), "layers.0.weight");
/// let tape = Tape::new();
/// let y = layer.forward(tape.constant(&Tensor::zeros([128, 2], DType::F32)));
/// assert_eq!(y.shape().to_string(), "[128, 64]");
/// ```
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// Applied to the sum; fused with it where the kernel can.
    pub activation: Activation,
}

impl Linear {
    /// A layer whose weight and bias are uniform in ±1/√in, as PyTorch's are.
    #[track_caller]
    pub fn new(init: &Init, inputs: usize, outputs: usize, activation: Activation) -> Linear {
        let bias = Initializer::Uniform { bound: 1.0 / (inputs as f64).sqrt() };
        Linear::with_initial(init, inputs, outputs, activation, Initializer::LINEAR, bias)
    }

    /// A layer with the given initial values.
    #[track_caller]
    pub fn with_initial(
        init: &Init,
        inputs: usize,
        outputs: usize,
        activation: Activation,
        weight: Initializer,
        bias: Initializer,
    ) -> Linear {
        Linear {
            weight: init.weight("weight", [outputs, inputs], weight),
            bias: Some(init.weight("bias", [outputs], bias)),
            activation,
        }
    }

    /// The same layer without its bias.
    pub fn without_bias(self) -> Linear {
        Linear { bias: None, ..self }
    }

    /// The size of the last axis it takes.
    pub fn inputs(&self) -> usize {
        self.weight.value().shape()[1]
    }

    /// The size of the last axis it gives.
    pub fn outputs(&self) -> usize {
        self.weight.value().shape()[0]
    }
}

impl Parameters for Linear {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.weight);
        self.bias.iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.weight);
        self.bias.iter_mut().for_each(f);
    }
}

impl Module for Linear {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let weight = self.weight.on(x.tape());
        let bias = self.bias.as_ref().map(|bias| bias.on(x.tape()));
        match self.activation.fused() {
            Some(activation) => x.linear(weight, bias, activation),
            None => self.activation.apply(x.linear(weight, bias, Fused::Identity)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_autograd::Tape;
    use limpid_tensor::{DType, Tensor};

    fn layer(activation: Activation) -> Linear {
        let mut layer = Linear::new(&Init::new(0).with_dtype(DType::F64), 2, 3, activation);
        layer.weight.set_value(Tensor::from_vec(vec![1.0, 2.0, 0.0, -1.0, -1.0, -1.0], [3, 2]));
        layer.bias.as_mut().unwrap().set_value(Tensor::from_vec(vec![0.5, 0.0, 1.0], [3]));
        layer
    }

    #[test]
    fn fused_or_not_it_is_the_activation_of_the_product() {
        for activation in Activation::ALL {
            let tape = Tape::new();
            let x = tape.constant(&Tensor::from_vec(vec![1.0f64, -1.0, 2.0, 0.5], [2, 2]));
            let y = layer(activation).forward(x);
            let products = tape.constant(&Tensor::from_vec(vec![-0.5f64, 1.0, 1.0, 3.5, -0.5, -1.5], [2, 3]));
            let expected = activation.apply(products);
            let difference = (y - expected).abs().max(&[]).item().unwrap();
            assert!(difference < 1e-15, "{activation}: {difference}");
        }
    }

    #[test]
    fn a_layer_used_twice_adds_up_its_gradients() {
        let layer = layer(Activation::Identity);
        let tape = Tape::new();
        let a = tape.constant(&Tensor::from_vec(vec![1.0f64, 2.0], [1, 2]));
        let b = tape.constant(&Tensor::from_vec(vec![10.0f64, 20.0], [1, 2]));
        let loss = (layer.forward(a) + layer.forward(b)).sum(&[]);
        let gradients = tape.backward(loss).unwrap();
        let of = |p: &Parameter| gradients.of_parameter(p.id()).unwrap().to_vec::<f64>().unwrap();
        assert_eq!(of(&layer.weight), [11.0, 22.0, 11.0, 22.0, 11.0, 22.0]);
        assert_eq!(of(layer.bias.as_ref().unwrap()), [2.0; 3]);
        assert_eq!(tape.program().to_string().matches("= weight ").count(), 1);
    }

    #[test]
    fn without_bias() {
        let layer = layer(Activation::Identity).without_bias();
        assert_eq!((layer.parameters().len(), layer.weight_count()), (1, 6));
        let tape = Tape::new();
        let y = layer.forward(tape.constant(&Tensor::ones([1, 2], DType::F64)));
        assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), [3.0, -1.0, -2.0]);
    }
}
