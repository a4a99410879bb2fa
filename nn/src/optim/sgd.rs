//! Stochastic gradient descent with momentum.

use std::collections::BTreeMap;

use limpid_autograd::Gradients;
use limpid_tensor::{Descent, Rate, Tensor};

use super::memory::{At, Memory, Real, Rule};
use super::{Groups, Optimizer};
use crate::{Error, Parameters, Result};

/// Stochastic gradient descent, with momentum μ and Nesterov's variant as PyTorch defines them (Sutskever et al.,
/// 2013, with the learning rate outside the velocity):
///
/// ```text
/// g ← ∇ + λ·w
/// v ← μ·v + g              v starts at 0
/// w ← w − η·v              or, with Nesterov, w − η·(g + μ·v)
/// ```
///
/// Weight decay λ is coupled: it is part of the gradient, and so of the velocity. Remembers `velocity`, if μ > 0.
///
/// ```
/// use limpid_nn::optim::{Group, Groups, Sgd};
/// let decayed = Groups::new(Group { weight_decay: 1e-4, ..Group::default() });
/// let optimizer = Sgd::new().with_momentum(0.9).with_nesterov(true).with_groups(decayed);
/// ```
#[derive(Clone, Default)]
pub struct Sgd {
    rule: Momentum,
    groups: Groups,
    max_norm: Option<f64>,
    memory: Memory,
}

#[derive(Clone, Default)]
struct Momentum {
    momentum: f64,
    nesterov: bool,
}

impl Sgd {
    /// Plain gradient descent, `w ← w − η·∇`.
    pub fn new() -> Sgd {
        Sgd::default()
    }

    /// Sets μ, from 0 up to but not including 1; the range is checked when a step is made.
    pub fn with_momentum(mut self, momentum: f64) -> Sgd {
        self.rule.momentum = momentum;
        self
    }

    /// Steps by `g + μ·v` in place of `v`.
    pub fn with_nesterov(mut self, on: bool) -> Sgd {
        self.rule.nesterov = on;
        self
    }

    /// Scales the gradients of every step so that their global norm is at most `max_norm`, as
    /// [`clip_norm`](crate::clip_norm) does; the range is checked when a step is made. Where all weights lie on one
    /// device that can, it is done there without waiting for the norm: a norm that is not finite leaves everything as it
    /// was, and is an error when the thread next reads results.
    pub fn with_max_norm(mut self, max_norm: f64) -> Sgd {
        self.max_norm = Some(max_norm);
        self
    }

    /// The norm of all gradients in the last step [before they were scaled](Sgd::with_max_norm), wherever it lies: f64,
    /// `[]`.
    pub fn norm(&self) -> Option<&Tensor> {
        self.memory.norm()
    }

    /// Sets how each weight is treated.
    pub fn with_groups(mut self, groups: Groups) -> Sgd {
        self.groups = groups;
        self
    }
}

impl Optimizer for Sgd {
    #[track_caller]
    fn step_at(&mut self, model: &mut dyn Parameters, gradients: &Gradients, rate: Rate) -> Result<()> {
        if !(0.0..1.0).contains(&self.rule.momentum) {
            return Err(Error::argument("momentum", "a number from 0 to below 1", self.rule.momentum));
        }
        self.memory.step(&self.rule, &self.groups, self.max_norm, model, gradients, rate)
    }

    fn state(&self, model: &dyn Parameters) -> Vec<(String, Tensor)> {
        self.memory.save(&self.rule, model)
    }

    fn load_state(&mut self, model: &dyn Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.memory.load(&self.rule, &self.groups, model, state)
    }
}

impl Rule for Momentum {
    fn memory(&self) -> &'static [&'static str] {
        if self.momentum > 0.0 { &["velocity"] } else { &[] }
    }

    fn descent(&self) -> Descent {
        Descent::Momentum { momentum: self.momentum, nesterov: self.nesterov }
    }

    #[inline(always)]
    fn update<T: Real>(&self, at: At, weight: &mut [T], gradient: &[T], memory: &mut [&mut [T]]) {
        let [rate, decay, momentum] = [at.learning_rate, at.weight_decay, self.momentum].map(T::from_f64);
        match memory {
            [velocity] => {
                for ((w, v), &g) in weight.iter_mut().zip(velocity.iter_mut()).zip(gradient) {
                    let g = at.clip(g) + decay * *w;
                    *v = momentum * *v + g;
                    *w = *w - rate * if self.nesterov { g + momentum * *v } else { *v };
                }
            }
            _ => {
                for (w, &g) in weight.iter_mut().zip(gradient) {
                    *w = *w - rate * (at.clip(g) + decay * *w);
                }
            }
        }
    }
}
