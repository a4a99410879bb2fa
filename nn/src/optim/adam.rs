//! Adam, and AdamW.

use std::collections::BTreeMap;

use limpid_autograd::Gradients;
use limpid_tensor::{Descent, Rate, Tensor};

use super::memory::{At, Memory, Real, Rule};
use super::{Group, Groups, Optimizer};
use crate::{Error, Parameters, Result};

/// Adam (Kingma and Ba, 2015, Algorithm 1) and AdamW (Loshchilov and Hutter, 2019, Algorithm 2), with ε where PyTorch
/// has it:
///
/// ```text
/// g ← ∇ + λ·w                             coupled (Adam)
/// w ← (1 − η·λ)·w                         decoupled (AdamW)
/// m ← β₁·m + (1 − β₁)·g                   m and v start at 0
/// v ← β₂·v + (1 − β₂)·g²
/// w ← w − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
/// ```
///
/// t counts the steps of the weight, from 1. Remembers `first_moment` (m) and `second_moment` (v).
#[derive(Clone)]
pub struct Adam {
    rule: Moments,
    groups: Groups,
    max_norm: Option<f64>,
    memory: Memory,
}

#[derive(Clone)]
struct Moments {
    betas: [f64; 2],
    eps: f64,
    decoupled: bool,
}

impl Adam {
    /// Adam with β = (0.9, 0.999), ε = 10⁻⁸ and no weight decay; if [`Groups`] bring one, it is part of the gradient.
    #[allow(clippy::new_without_default)] // Adam or AdamW is a choice to make.
    pub fn new() -> Adam {
        let rule = Moments { betas: [0.9, 0.999], eps: 1e-8, decoupled: false };
        Adam { rule, groups: Groups::default(), max_norm: None, memory: Memory::default() }
    }

    /// AdamW: β and ε as for Adam, and a weight decay of 0.01, until [`Groups`] bring another, that acts on the weight
    /// by itself.
    #[doc(alias = "AdamW")]
    pub fn adamw() -> Adam {
        let groups = Groups::new(Group { weight_decay: 0.01, ..Group::default() });
        let adam = Adam::new().with_groups(groups);
        Adam { rule: Moments { decoupled: true, ..adam.rule }, ..adam }
    }

    /// Sets β₁ and β₂, from 0 up to but not including 1; the range is checked when a step is made.
    pub fn with_betas(mut self, beta1: f64, beta2: f64) -> Adam {
        self.rule.betas = [beta1, beta2];
        self
    }

    /// Sets ε, a number above 0 (at 0 an element whose gradients are all 0 would become NaN); the range is checked
    /// when a step is made.
    pub fn with_eps(mut self, eps: f64) -> Adam {
        self.rule.eps = eps;
        self
    }

    /// Scales the gradients of every step so that their global norm is at most `max_norm`, as
    /// [`clip_norm`](crate::clip_norm) does; the range is checked when a step is made. Where all weights lie on one
    /// device that can, it is done there without waiting for the norm: a norm that is not finite leaves everything as it
    /// was, and is an error when the thread next reads results.
    pub fn with_max_norm(mut self, max_norm: f64) -> Adam {
        self.max_norm = Some(max_norm);
        self
    }

    /// The norm of all gradients in the last step [before they were scaled](Adam::with_max_norm), wherever it lies: f64,
    /// `[]`.
    pub fn norm(&self) -> Option<&Tensor> {
        self.memory.norm()
    }

    /// Sets how each weight is treated.
    pub fn with_groups(mut self, groups: Groups) -> Adam {
        self.groups = groups;
        self
    }
}

impl Optimizer for Adam {
    #[track_caller]
    fn step_at(&mut self, model: &mut dyn Parameters, gradients: &Gradients, rate: Rate) -> Result<()> {
        for (name, beta) in ["beta1", "beta2"].into_iter().zip(self.rule.betas) {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::argument(name, "a number from 0 to below 1", beta));
            }
        }
        if !(self.rule.eps > 0.0 && self.rule.eps.is_finite()) {
            return Err(Error::argument("eps", "a finite number above 0", self.rule.eps));
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

impl Rule for Moments {
    fn memory(&self) -> &'static [&'static str] {
        &["first_moment", "second_moment"]
    }

    fn descent(&self) -> Descent {
        Descent::Adam { betas: self.betas, eps: self.eps, decoupled: self.decoupled }
    }

    #[inline(always)]
    fn update<T: Real>(&self, at: At, weight: &mut [T], gradient: &[T], memory: &mut [&mut [T]]) {
        let [m, v] = memory else { unreachable!("two tensors were asked for") };
        let [beta1, beta2] = self.betas;
        // Constants in f64, rounded once; std's powi is not the same everywhere.
        let correction = |beta: f64| 1.0 - libm::pow(beta, at.step as f64);
        let rate = T::from_f64(at.learning_rate / correction(beta1));
        let root = T::from_f64(correction(beta2).sqrt());
        let (coupled, kept) = match self.decoupled {
            true => (0.0, 1.0 - at.learning_rate * at.weight_decay),
            false => (at.weight_decay, 1.0),
        };
        let [coupled, kept, eps] = [coupled, kept, self.eps].map(T::from_f64);
        let [beta1, beta2, rest1, rest2] = [beta1, beta2, 1.0 - beta1, 1.0 - beta2].map(T::from_f64);
        for (((w, m), v), &g) in weight.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(gradient) {
            let g = at.clip(g) + coupled * *w;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *w = kept * *w - rate * *m / (v.sqrt() / root + eps);
        }
    }
}
