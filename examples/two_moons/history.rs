//! What a run measured, and the files it leaves.

use std::fmt::Write;

/// Everything measured in training one variant with one seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The parameter paths of the layers' weights, first to last.
    pub layers: Vec<String>,
    /// Per epoch: loss on the training batches (mean), then loss and accuracy on the validation part.
    pub metrics: Vec<Metrics>,
    /// Per epoch and layer: the mean over its steps of the L2 norm of the weight's gradient, before clipping.
    pub gradient_norms: Vec<Vec<f64>>,
    /// Per step and layer, if asked for; the first step always.
    pub step_norms: Vec<Vec<f64>>,
    /// Where training stopped making sense, if it did.
    pub divergence: Option<Divergence>,
}

/// How one epoch went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    pub train_loss: f64,
    pub validation_loss: f64,
    pub validation_accuracy: f64,
}

/// The first non-finite loss or gradient of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    pub epoch: usize,
    pub step: usize,
    /// The first operation whose result was not finite, with scope and source line.
    pub cause: String,
}

impl History {
    pub fn new(layers: Vec<String>) -> History {
        History { layers, ..History::default() }
    }

    /// The last epoch's metrics; `None` if the first epoch diverged.
    pub fn last(&self) -> Option<Metrics> {
        self.metrics.last().copied()
    }

    /// The gradient norms of the first step, before anything was learned.
    pub fn first_step(&self) -> &[f64] {
        self.step_norms.first().map_or(&[], Vec::as_slice)
    }

    /// `variant,epoch,layer,name,grad_norm` rows.
    pub fn gradient_rows(&self, variant: &str, csv: &mut String) {
        for (epoch, norms) in self.gradient_norms.iter().enumerate() {
            for (layer, (name, norm)) in self.layers.iter().zip(norms).enumerate() {
                let _ = writeln!(csv, "{variant},{epoch},{layer},{name},{norm:e}");
            }
        }
    }

    /// `variant,step,layer,name,grad_norm` rows.
    pub fn step_rows(&self, variant: &str, csv: &mut String) {
        for (step, norms) in self.step_norms.iter().enumerate() {
            for (layer, (name, norm)) in self.layers.iter().zip(norms).enumerate() {
                let _ = writeln!(csv, "{variant},{step},{layer},{name},{norm:e}");
            }
        }
    }

    /// `variant,epoch,train_loss,val_loss,val_accuracy` rows.
    pub fn metric_rows(&self, variant: &str, csv: &mut String) {
        for (epoch, m) in self.metrics.iter().enumerate() {
            let Metrics { train_loss, validation_loss, validation_accuracy } = m;
            let _ = writeln!(csv, "{variant},{epoch},{train_loss},{validation_loss},{validation_accuracy}");
        }
    }
}

/// FNV-1a, 64 bits: tells whether two runs wrote the same bytes. Not a defence against forgery.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &byte in parts.into_iter().flatten() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{hash:016x}")
}
