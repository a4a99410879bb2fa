//! How gradients become steps.
//!
//! An optimiser is a formula for one element ([`Sgd`], [`Adam`]) and what all of them share: [`Groups`] say with which
//! weight decay and rate each weight is treated, and a memory keyed by path holds what is carried from step to step.
//!
//! ```
//! use limpid_autograd::Tape;
//! use limpid_nn::optim::{Group, Groups, Optimizer, Sgd};
//! use limpid_nn::{Activation, Init, Linear, Module};
//! use limpid_tensor::Tensor;
//!
//! let mut model = Linear::new(&Init::new(0).enter("line"), 1, 1, Activation::Identity);
//! let decayed = Group { weight_decay: 1e-4, ..Group::default() };
//! let groups = Groups::new(decayed).with("*.bias", Group::default());
//! let mut optimizer = Sgd::new().with_momentum(0.5).with_groups(groups);
//! let x = Tensor::from_vec(vec![0.0f32, 1.0, 2.0], [3, 1]);
//! let mut tape = Tape::new();
//! let mut losses = Vec::new();
//! for step in 0..50 {
//!     let input = tape.constant(&x);
//!     let error = model.forward(input) - (input * 3.0 - 1.0);
//!     let loss = (error * error).mean(&[]);
//!     losses.push(loss.value()?.item()?);
//!     let gradients = tape.backward(loss)?;
//!     tape.clear(step + 1); // lets go of the weights, so that they are updated in place
//!     optimizer.step(&mut model, &gradients, 0.1)?;
//! }
//! assert!(losses[49] < 1e-3 * losses[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adam;
mod groups;
mod memory;
mod sgd;

use std::collections::BTreeMap;

use limpid_autograd::Gradients;
use limpid_tensor::{Rate, Tensor};

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
    #[track_caller]
    fn step(&mut self, model: &mut dyn Parameters, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step_at(model, gradients, Rate::Number(learning_rate))
    }

    /// As [`step`](Optimizer::step), by a rate that may lie in a tensor. Where that is on the device of all weights, it
    /// is read there when the step runs: so the steps of a captured graph follow a schedule.
    ///
    /// # Panics
    /// As `step`, or if the tensor is not f64 `[]`.
    #[track_caller]
    fn step_at(&mut self, model: &mut dyn Parameters, gradients: &Gradients, rate: Rate) -> Result<()>;

    /// What is remembered, wherever it lies: for each weight a count of its steps, `PATH.step` (i64, `[]`), and once it
    /// made one the tensors of the optimiser, such as `PATH.velocity`, of the weight's shape and dtype.
    fn state(&self, model: &dyn Parameters) -> Vec<(String, Tensor)>;

    /// Replaces what is remembered by what [`state`](Optimizer::state) has given.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of another shape or dtype; nothing has been changed then.
    fn load_state(&mut self, model: &dyn Parameters, state: &BTreeMap<String, Tensor>) -> Result<()>;
}
