//! Normalisations: over the channels of one sample, or over the samples of one channel.

use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

use crate::init::{Init, Initializer};
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// `(x − mean)/√(var + eps)∘γ + β` over the last axis: x `[.., C]` → `[.., C]`, variance divided by C.
///
/// J. L. Ba, J. R. Kiros, G. E. Hinton, arXiv 1607.06450.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// γ, `[C]`, initially 1.
    pub weight: Parameter,
    /// β, `[C]`, initially 0.
    pub bias: Parameter,
    /// Added to the variance; 1e-5 unless changed.
    pub eps: f64,
}

impl LayerNorm {
    /// A normalisation of `channels` channels.
    pub fn new(init: &Init, channels: usize) -> LayerNorm {
        LayerNorm {
            weight: init.weight("weight", [channels], Initializer::ONES),
            bias: init.weight("bias", [channels], Initializer::ZEROS),
            eps: 1e-5,
        }
    }
}

impl Parameters for LayerNorm {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        [&self.weight, &self.bias].into_iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        [&mut self.weight, &mut self.bias].into_iter().for_each(f);
    }
}

impl Module for LayerNorm {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        x.layer_norm(self.weight.on(x.tape()), self.bias.on(x.tape()), self.eps)
    }
}

/// `x/√(mean(x²) + eps)∘γ` over the last axis: x `[.., C]` → `[.., C]`.
///
/// B. Zhang, R. Sennrich, arXiv 1910.07467.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// γ, `[C]`, initially 1.
    pub weight: Parameter,
    /// Added to the mean square; 1e-6 unless changed.
    pub eps: f64,
}

impl RmsNorm {
    /// A normalisation of `channels` channels.
    pub fn new(init: &Init, channels: usize) -> RmsNorm {
        RmsNorm { weight: init.weight("weight", [channels], Initializer::ONES), eps: 1e-6 }
    }
}

impl Parameters for RmsNorm {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.weight);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.weight);
    }
}

impl Module for RmsNorm {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        x.rms_norm(self.weight.on(x.tape()), self.eps)
    }
}

/// `(x − mean)/√(var + eps)∘γ + β` per channel, over all samples (and positions): x `[N, C]` or `[N, C, L]`.
///
/// While training, mean and variance are the batch's (the variance divided by the count n), and running statistics
/// move towards them: `running ← (1 − m)·running + m·batch` with the variance divided by n − 1. In evaluation the
/// running statistics take their place.
///
/// The normalisation is a pure function of the batch. The running statistics are updated by effects on the tape, once
/// per use, however often the layer is computed again; [`commit_updates`] carries them out after the step.
///
/// S. Ioffe, C. Szegedy, arXiv 1502.03167.
#[derive(Clone, Debug)]
pub struct BatchNorm1d {
    /// γ, `[C]`, initially 1.
    pub weight: Parameter,
    /// β, `[C]`, initially 0.
    pub bias: Parameter,
    /// `[C]`, initially 0.
    pub running_mean: Parameter,
    /// `[C]`, initially 1.
    pub running_var: Parameter,
    /// The number of batches seen, i64. Nothing here reads it; checkpoints made elsewhere have it.
    pub num_batches_tracked: Parameter,
    /// The weight m of the newest batch; 0.1 unless changed.
    pub momentum: f64,
    /// Added to the variance; 1e-5 unless changed.
    pub eps: f64,
}

impl BatchNorm1d {
    /// A normalisation of `channels` channels.
    pub fn new(init: &Init, channels: usize) -> BatchNorm1d {
        BatchNorm1d {
            weight: init.weight("weight", [channels], Initializer::ONES),
            bias: init.weight("bias", [channels], Initializer::ZEROS),
            running_mean: init.buffer("running_mean", Tensor::zeros([channels], init.dtype())),
            running_var: init.buffer("running_var", Tensor::ones([channels], init.dtype())),
            num_batches_tracked: init.buffer("num_batches_tracked", Tensor::zeros([], DType::I64)),
            momentum: 0.1,
            eps: 1e-5,
        }
    }

    /// Statistics and what they scale, in their dtype.
    fn normalised<'t>(&self, x: Var<'t>) -> Var<'t> {
        let (tape, shape) = (x.tape(), x.shape());
        let channels = self.weight.value().elements();
        assert!(
            matches!(shape.len(), 2 | 3) && shape[1] == channels,
            "batch_norm: the operand must be [N, {channels}] or [N, {channels}, L], found {shape}"
        );
        let axes: &[isize] = if shape.len() == 2 { &[0] } else { &[0, 2] };
        let per_channel = |v: Var<'t>| v.keep(axes, &shape);
        let (centred, var) = if tape.is_training() {
            let n = shape.elements() / channels;
            assert!(n > 1, "batch_norm: a batch of one value per channel has no variance, found {shape}");
            let mean = x.mean(axes);
            let centred = x - per_channel(mean);
            let var = (centred * centred).mean(axes);
            self.update_running(mean, var, n);
            (centred, var)
        } else {
            (x - per_channel(self.running_mean.on(tape)), self.running_var.on(tape))
        };
        let scale = (var + self.eps).rsqrt() * self.weight.on(tape);
        centred * per_channel(scale) + per_channel(self.bias.on(tape))
    }

    /// Notes what the running statistics become after a batch of n values per channel.
    fn update_running(&self, mean: Var<'_>, var: Var<'_>, n: usize) {
        let tape = mean.tape();
        // A second use on one tape goes on from where the first one got to.
        let latest = |p: &Parameter| tape.pending_update(p.id()).unwrap_or_else(|| p.on(tape));
        let (m, unbiased) = (self.momentum, n as f64 / (n as f64 - 1.0));
        tape.without_gradients(|| {
            let mean = latest(&self.running_mean) * (1.0 - m) + mean * m;
            let var = latest(&self.running_var) * (1.0 - m) + var * (m * unbiased);
            tape.update_later(self.running_mean.id(), mean);
            tape.update_later(self.running_var.id(), var);
            tape.update_later(self.num_batches_tracked.id(), latest(&self.num_batches_tracked) + 1.0);
        });
    }
}

impl Parameters for BatchNorm1d {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        let BatchNorm1d { weight, bias, running_mean, running_var, num_batches_tracked, .. } = self;
        [weight, bias, running_mean, running_var, num_batches_tracked].into_iter().for_each(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        let BatchNorm1d { weight, bias, running_mean, running_var, num_batches_tracked, .. } = self;
        [weight, bias, running_mean, running_var, num_batches_tracked].into_iter().for_each(f);
    }
}

/// In [another precision](limpid_autograd::Tape::in_precision) it computes in that of its statistics, between casts.
impl Module for BatchNorm1d {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let of_statistics = self.running_mean.meta().dtype;
        match x.tape().precision() {
            None => self.normalised(x),
            Some(_) => {
                let normalised = || self.normalised(x.cast(of_statistics));
                x.tape().in_precision(of_statistics, normalised).cast(x.dtype())
            }
        }
    }
}

/// Carries out what a program noted on its tape: running statistics take their new values.
///
/// Call it once after each training step, before the tape is cleared.
///
/// # Panics
/// If a note is for a parameter that the model does not have: it was made by another model.
#[track_caller]
pub fn commit_updates(tape: &Tape, model: &mut (impl Parameters + ?Sized)) {
    let mut updates = tape.take_updates();
    model.visit_mut(&mut |parameter| {
        if let Some(i) = updates.iter().position(|(id, _)| *id == parameter.id()) {
            parameter.set_value(updates.swap_remove(i).1);
        }
    });
    assert!(
        updates.is_empty(),
        "commit_updates: {} updates on the tape are of another model's parameters",
        updates.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init() -> Init {
        Init::new(0).with_dtype(DType::F64)
    }

    fn close(found: &Tensor, expected: &[f64]) {
        let found = found.to_f64_vec().unwrap();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn layer_norm_and_rms_norm_by_hand() {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 3.0, -2.0, 2.0], [2, 2]));
        let mut layer = LayerNorm::new(&init(), 2);
        layer.eps = 0.0;
        close(&layer.forward(x).value().unwrap(), &[-1.0, 1.0, -1.0, 1.0]);
        let mut rms = RmsNorm::new(&init(), 2);
        rms.eps = 0.0;
        let r = 5f64.sqrt();
        close(&rms.forward(x).value().unwrap(), &[1.0 / r, 3.0 / r, -1.0, 1.0]);
        let loss = (layer.forward(x) * rms.forward(x) * x).sum(&[]);
        let gradients = tape.backward(loss).unwrap();
        assert!(gradients.unreached().is_empty());
        close(gradients.of_parameter(layer.bias.id()).unwrap(), &[1.0 / r + 2.0, 9.0 / r + 2.0]);
    }

    #[test]
    fn batch_norm_normalises_by_the_batch_and_runs_after_it() {
        // Channels (1, 3, 5) and (0, 0, 6): means 3 and 2, biased variances 8/3 and 8, unbiased 4 and 12.
        let x = Tensor::from_vec(vec![1.0f64, 0.0, 3.0, 0.0, 5.0, 6.0], [3, 2]);
        let mut norm = BatchNorm1d::new(&init(), 2);
        let tape = Tape::new();
        let y = tape.scope("norm", || norm.forward(tape.constant(&x)));
        let (a, b) = ((8.0 / 3.0 + 1e-5f64).sqrt().recip(), (8.0 + 1e-5f64).sqrt().recip());
        close(&y.value().unwrap(), &[-2.0 * a, -2.0 * b, 0.0, -2.0 * b, 2.0 * a, 4.0 * b]);
        close(norm.running_mean.value(), &[0.0, 0.0]);

        commit_updates(&tape, &mut norm);
        close(norm.running_mean.value(), &[0.3, 0.2]);
        close(norm.running_var.value(), &[0.9 + 0.4, 0.9 + 1.2]);
        assert_eq!(norm.num_batches_tracked.value().item().unwrap(), 1.0);
        commit_updates(&tape, &mut norm);
        close(norm.running_mean.value(), &[0.3, 0.2]);

        let evaluation = Tape::inference();
        let y = norm.forward(evaluation.constant(&Tensor::from_vec(vec![1.3f64, 0.2], [1, 2])));
        close(&y.value().unwrap(), &[(1.3f64 + 1e-5).sqrt().recip(), 0.0]);
        assert!(evaluation.take_updates().is_empty());
    }

    #[test]
    fn batch_norm_over_positions_is_over_samples() {
        let x = Tensor::arange(0.0, 24.0, 1.0, DType::F64);
        let tape = Tape::new();
        let norm = BatchNorm1d::new(&init(), 3);
        let positions = tape.constant(&x).reshape([2, 3, 4]);
        let samples = positions.transpose(1, 2).reshape([8, 3]);
        let expected = norm.forward(samples).reshape([2, 4, 3]).transpose(1, 2);
        let difference = (norm.forward(positions) - expected).abs().max(&[]);
        assert!(difference.item().unwrap() < 1e-14);
    }

    #[test]
    fn two_uses_on_one_tape_are_two_updates_and_recomputing_is_none() {
        let mut norm = BatchNorm1d::new(&init(), 1);
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_vec(vec![0.0f64, 2.0], [2, 1]));
        let y = tape.scope("block", || tape.scope("norm", || norm.forward(x)).tanh());
        let loss = (y + norm.forward(x)).sum(&[]);
        assert!(tape.memory().dropped_values > 0);
        let gradients = tape.backward(loss).unwrap();
        assert!(gradients.unreached().is_empty());
        commit_updates(&tape, &mut norm);
        close(norm.running_mean.value(), &[0.1 * 0.9 + 0.1]);
        close(norm.running_var.value(), &[(0.9 + 0.2) * 0.9 + 0.2]);
        assert_eq!(norm.num_batches_tracked.value().item().unwrap(), 2.0);
    }

    #[test]
    #[should_panic(expected = "batch_norm: a batch of one value per channel has no variance, found [1, 2]")]
    fn one_sample_has_no_variance() {
        let tape = Tape::new();
        BatchNorm1d::new(&init(), 2).forward(tape.constant(&Tensor::zeros([1, 2], DType::F64)));
    }

    #[test]
    #[should_panic(expected = "3 updates on the tape are of another model's parameters")]
    fn updates_go_to_the_model_that_made_them() {
        let norm = BatchNorm1d::new(&init(), 2);
        let tape = Tape::new();
        norm.forward(tape.constant(&Tensor::zeros([2, 2], DType::F64)));
        commit_updates(&tape, &mut norm.clone());
    }
}
