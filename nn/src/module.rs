//! What a model is: something with parameters that can be visited, and a function on a tape.

use limpid_autograd::Var;
use limpid_tensor::{DType, Device};

use crate::error::{Error, Result};
use crate::parameter::{Parameter, Role};

/// Something that owns parameters, and lets them be visited.
///
/// Parameters know their own path, so an implementation names its fields and nothing else. They are visited in the
/// order in which they are used, the same in both methods; whoever lists, saves or updates them relies on it.
pub trait Parameters {
    /// Visits every parameter, buffers and frozen ones among them.
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter));

    /// Visits every parameter for changing it.
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter));

    /// Every parameter, in order of visit.
    fn parameters(&self) -> Vec<&Parameter> {
        let mut all = Vec::new();
        self.visit(&mut |parameter| all.push(parameter));
        all
    }

    /// Every parameter for changing, in order of visit.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = Vec::new();
        self.visit_mut(&mut |parameter| all.push(parameter));
        all
    }

    /// The number of elements of all weights, frozen ones among them; buffers do not count.
    fn weight_count(&self) -> usize {
        let mut count = 0;
        self.visit(&mut |p| count += if p.role() == Role::Weight { p.value().elements() } else { 0 });
        count
    }

    /// The bytes of all parameters, buffers among them.
    fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.visit(&mut |p| bytes += p.meta().bytes());
        bytes
    }

    /// Freezes (`true`) or thaws (`false`) the weights whose path matches a pattern, in which `*` stands for any run
    /// of characters, dots among them; returns how many it matched.
    ///
    /// # Errors
    /// If it matches no weight: a misspelt pattern would otherwise train what it meant to keep.
    ///
    /// ```
    /// use limpid_nn::{Activation, Init, Linear, Parameters};
    /// let mut layer = Linear::new(&Init::new(0).enter("head"), 64, 2, Activation::Identity);
    /// assert_eq!(layer.set_frozen("head.*", true).unwrap(), 2);
    /// let error = layer.set_frozen("haed.*", true).unwrap_err();
    /// assert_eq!(error.to_string(), "pattern: expected a match in head.weight, head.bias, found haed.*");
    /// ```
    fn set_frozen(&mut self, pattern: &str, frozen: bool) -> Result<usize> {
        let mut matched = 0;
        self.visit_mut(&mut |p| {
            if p.role() == Role::Weight && matches(pattern, p.path()) {
                p.set_frozen(frozen);
                matched += 1;
            }
        });
        if matched > 0 {
            return Ok(matched);
        }
        let weights = self.parameters().into_iter().filter(|p| p.role() == Role::Weight);
        let paths: Vec<&str> = weights.map(Parameter::path).collect();
        Err(Error::argument("pattern", format!("a match in {}", paths.join(", ")), pattern))
    }

    /// Moves every parameter to a device.
    ///
    /// # Errors
    /// If a copy fails; parameters visited before it have moved.
    fn move_to(&mut self, device: &Device) -> limpid_tensor::Result<()> {
        let mut moved = Ok(());
        self.visit_mut(&mut |p| {
            if moved.is_ok() {
                moved = p.value().to(device).map(|value| p.set_value(value));
            }
        });
        moved
    }

    /// Converts every float parameter to another float dtype.
    ///
    /// # Errors
    /// If the device cannot; parameters visited before it have been converted.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    fn cast(&mut self, dtype: DType) -> limpid_tensor::Result<()> {
        assert!(dtype.is_float(), "cast: parameters are floats, asked for {dtype}");
        let mut converted = Ok(());
        self.visit_mut(&mut |p| {
            if converted.is_ok() && p.value().dtype().is_float() {
                converted = p.value().cast(dtype).map(|value| *p.value_mut() = value);
            }
        });
        converted
    }
}

/// A function from one value to another that has parameters: a layer, or a model made of layers.
///
/// The tape is the one its operand is on. Object-safe, so that models can be put together at run time.
pub trait Module: Parameters {
    /// Records the module's function of `x` and returns its result.
    ///
    /// # Panics
    /// If `x` does not have the shape or dtype the module takes.
    #[track_caller]
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t>;
}

/// The module as a function of its weights too: its forward pass with `weights` in place of its own trainable
/// parameters, in order of visit. Buffers and frozen weights stay as they are.
///
/// With it the gradient checker sees a module as it sees any function:
///
/// ```
/// use limpid_autograd::check;
/// use limpid_nn::{Activation, Init, Linear, Parameters, forward_with};
/// use limpid_tensor::{DType, Tensor};
/// let layer = Linear::new(&Init::new(0).with_dtype(DType::F64), 3, 2, Activation::Tanh);
/// let mut at = vec![Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [1, 3])];
/// at.extend(layer.parameters().into_iter().map(|p| p.value().clone()));
/// check(|x| forward_with(&layer, x[0], &x[1..]), &at).expect_pass();
/// ```
///
/// # Panics
/// If there are not as many, if one has not its parameter's shape and dtype, or if a parameter is on the tape already.
#[track_caller]
pub fn forward_with<'t, M: Module + ?Sized>(module: &M, x: Var<'t>, weights: &[Var<'t>]) -> Var<'t> {
    let own: Vec<&Parameter> = module.parameters().into_iter().filter(|p| p.is_trainable()).collect();
    let (expected, given) = (own.len(), weights.len());
    assert!(expected == given, "forward_with: the module has {expected} weights, found {given}");
    for (parameter, &weight) in own.iter().zip(weights) {
        let (expected, given) = (parameter.meta(), weight.meta());
        assert!(expected == given, "forward_with: {} is {expected}, found {given}", parameter.path());
        x.tape().bind_parameter(parameter.id(), weight);
    }
    module.forward(x)
}

impl<P: Parameters + ?Sized> Parameters for Box<P> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        (**self).visit(f)
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        (**self).visit_mut(f)
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        (**self).forward(x)
    }
}

/// Whether `pattern`, in which `*` stands for any run of characters, matches all of `path`.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let Some((literal, rest)) = pattern.split_once('*') else { return pattern == path };
    let Some(path) = path.strip_prefix(literal) else { return false };
    // The last piece must end the path; every other one is best matched as early as it occurs.
    let (middle, last) = match rest.rsplit_once('*') {
        Some((middle, last)) => (middle, last),
        None => ("", rest),
    };
    let Some(mut path) = path.strip_suffix(last) else { return false };
    for piece in middle.split('*') {
        match path.find(piece) {
            Some(at) => path = &path[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, BatchNorm1d, Init, Linear, Sequential};
    use limpid_autograd::Tape;
    use limpid_tensor::Tensor;

    fn model() -> Sequential {
        let (layer, norm) = (Init::new(0).enter("layer"), Init::new(0).enter("norm"));
        Sequential::new(vec![
            Box::new(Linear::new(&layer, 2, 3, Activation::Relu)),
            Box::new(BatchNorm1d::new(&norm, 3)),
        ])
    }

    #[test]
    fn sizes() {
        let mut model = model();
        // Weights 6 + 3 + 3 + 3, buffers 3 + 3 and one i64.
        assert_eq!((model.weight_count(), model.bytes()), (15, 4 * 21 + 8));
        model.cast(DType::F64).unwrap();
        assert_eq!((model.weight_count(), model.bytes()), (15, 8 * 21 + 8));
        model.move_to(&Device::cpu()).unwrap();
    }

    #[test]
    fn what_is_frozen_gets_no_gradient() {
        let mut model = model();
        assert_eq!(model.set_frozen("*", true).unwrap(), 4);
        assert_eq!(model.set_frozen("layer.*", false).unwrap(), 2);
        assert!(model.set_frozen("norm.running_*", true).is_err(), "buffers are no weights");
        let tape = Tape::new();
        let x = Tensor::from_vec(vec![1.0f32, 2.0, -1.0, 0.5], [2, 2]);
        let gradients = tape.backward(model.forward(tape.constant(&x)).sum(&[])).unwrap();
        for parameter in model.parameters() {
            let expected = parameter.path().starts_with("layer.");
            assert_eq!(gradients.of_parameter(parameter.id()).is_some(), expected, "{parameter:?}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("layers.3.weight", "layers.3.weight", true),
            ("layers.3.weight", "layers.3.weight2", false),
            ("layers.*.weight", "layers.3.weight", true),
            ("layers.*.weight", "layers.3.gate.weight", true),
            ("layers.*.weight", "layers.3.bias", false),
            ("*", "", true),
            ("*.bias", "layers.0.bias", true),
            ("*.bias", "bias", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*b*", "abb", true),
            ("*b*b*", "ab", false),
            ("*ab*c", "aabxc", true),
            ("**", "anything", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} on {path}");
        }
    }
}
