//! One gradient from many micro-batches.

use limpid_autograd::Gradients;
use limpid_tensor::{Map, Tensor};

use crate::{Error, Parameters, Result};

/// The weighted sum of the gradients of several backward passes over one model: a large batch in small parts.
///
/// The gradient of a sum is the sum of the gradients. So for a loss that sums over samples, [`sum`](Accumulator::sum)
/// of parts added with weight 1 is the gradient of the whole batch; for a loss that averages, [`mean`](Accumulator::mean)
/// of parts added with the number of their samples is, also if the parts differ in size:
/// `∇(1/N Σᵢ lᵢ) = Σₖ nₖ·∇(1/nₖ Σ_{i∈k} lᵢ) / Σₖ nₖ`. The terms are added in the order of the parts, in the
/// gradients' dtype.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::{Accumulator, Parameter, Parameters, Role};
/// use limpid_tensor::Tensor;
///
/// struct Model(Parameter);
/// impl Parameters for Model {
///     fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
///         f(&self.0)
///     }
///     fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
///         f(&mut self.0)
///     }
/// }
///
/// let model = Model(Parameter::new("w", Tensor::scalar(1.0f64), Role::Weight));
/// let mut parts = Accumulator::new();
/// for part in [vec![1.0, 2.0, 3.0], vec![6.0]] {
///     let n = part.len();
///     let tape = Tape::new();
///     let x = tape.constant(&Tensor::from_vec(part, [n]));
///     parts.add(&model, &tape.backward((model.0.on(&tape) * x).mean(&[]))?, n as f64)?;
/// }
/// assert_eq!(parts.mean(&model)?.of_parameter(model.0.id()).unwrap().item()?, 3.0); // (1 + 2 + 3 + 6)/4
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Accumulator {
    sum: Gradients,
    weight: f64,
}

impl Accumulator {
    /// Nothing yet.
    pub fn new() -> Accumulator {
        Accumulator::default()
    }

    /// Adds `weight` times the gradients by the model's trainable weights. One that has no gradient counts as zero.
    ///
    /// # Errors
    /// If `weight` is not above 0 and finite, or a device fails.
    ///
    /// # Panics
    /// If a gradient differs in shape or dtype from those before.
    #[track_caller]
    pub fn add(&mut self, model: &dyn Parameters, gradients: &Gradients, weight: f64) -> Result<()> {
        if !(weight > 0.0 && weight.is_finite()) {
            return Err(Error::argument("weight of a micro-batch", "a finite number above 0", weight));
        }
        for p in model.parameters().into_iter().filter(|p| p.is_trainable()) {
            let Some(gradient) = gradients.of_parameter(p.id()) else { continue };
            let term = scaled(gradient, weight)?;
            let sum = match self.sum.of_parameter(p.id()) {
                None => term,
                Some(before) => {
                    assert_eq!(before.meta(), term.meta(), "accumulate: gradients of {} differ", p.path());
                    Tensor::map(Map::Add, &[before, &term])?
                }
            };
            self.sum.set_parameter(p.id(), sum);
        }
        self.weight += weight;
        Ok(())
    }

    /// `Σ w·∇`.
    pub fn sum(&self) -> &Gradients {
        &self.sum
    }

    /// `Σ w·∇ / Σ w`.
    ///
    /// # Errors
    /// If nothing has been added, or a device fails.
    pub fn mean(&self, model: &dyn Parameters) -> Result<Gradients> {
        if self.weight == 0.0 {
            return Err(Error::argument("micro-batches", "at least one", 0));
        }
        let mut mean = Gradients::default();
        for p in model.parameters() {
            if let Some(sum) = self.sum.of_parameter(p.id()) {
                let total = Tensor::full([], self.weight, sum.dtype()).to(sum.device())?;
                mean.set_parameter(p.id(), Tensor::map(Map::Div, &[sum, &total])?);
            }
        }
        Ok(mean)
    }
}

/// `factor·x`; `x` itself if the factor is 1.
fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(x.clone()) } else { Ok(Tensor::map(Map::Affine { mul: factor, add: 0.0 }, &[x])?) }
}
