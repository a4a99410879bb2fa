//! How gradients become steps.
//!
//! An optimiser is a formula for one element ([`Sgd`], [`Adam`]) and what all of them share: [`Groups`] say with which
//! weight decay and rate each weight is treated, and a memory keyed by path holds what is carried from step to step.

mod adam;
mod groups;
mod memory;
mod sgd;

use std::collections::BTreeMap;

use limpid_autograd::Gradients;
use limpid_tensor::Tensor;

use crate::{Parameters, Result};

pub use adam::Adam;
pub use groups::{Group, Groups};
pub use sgd::Sgd;

/// Changes a model's weights by their gradients, and remembers what it needs for the next step.
///
/// Weights are f32 or f64. They and the memory are updated in place where nothing else refers to them: clear the tape
/// before the step, and the second step and those after it allocate nothing. A tensor that is still referred to (by a
/// tape, a checkpoint being written, a clone) is left as it is, and the weight gets a new one.
pub trait Optimizer {
    /// Changes every trainable weight of `model`.
    ///
    /// # Errors
    /// If an option or the learning rate is outside its range, a pattern of the groups applies to no weight, a
    /// trainable weight has no gradient (all are named; nothing has been changed), or a device fails (weights visited
    /// before have been changed).
    ///
    /// # Panics
    /// If a gradient, or what is remembered, differs in shape or dtype from its weight, or two weights have one path.
    fn step(&mut self, model: &mut dyn Parameters, gradients: &Gradients, learning_rate: f64) -> Result<()>;

    /// What is remembered: for each weight a count of its steps, `PATH.step` (i64, `[]`), and if it is not 0 the
    /// tensors of the optimiser, such as `PATH.velocity`, of the weight's shape and dtype.
    fn state(&self, model: &dyn Parameters) -> Vec<(String, Tensor)>;

    /// Replaces what is remembered by what [`state`](Optimizer::state) has given.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of another shape or dtype; nothing has been changed then.
    fn load_state(&mut self, model: &dyn Parameters, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
