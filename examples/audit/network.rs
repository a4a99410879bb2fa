//! A network on two moons: built, trained, and every layer's gradient norm in every epoch.

use limpid::autograd::{Profile, Tape};
use limpid::nn::data::{Batch, Batches, Dataset, StandardScaler};
use limpid::nn::losses::{Reduction, cross_entropy};
use limpid::nn::optim::{Optimizer, Sgd};
use limpid::nn::residual::Variant;
use limpid::nn::{Init, Mlp, MlpConfig, Module, clip_norm, gradient_norms};
use limpid::tensor::rng::Key;
use limpid::{DType, Tensor, Var};

use crate::Failure;
use crate::settings::{BATCH, CLIP, MOMENTUM, RATE, Settings};

/// The points, standardised by the mean and deviation of the training part.
pub struct Data {
    pub train: Dataset,
    pub validation: Dataset,
    pub scaler: StandardScaler,
    /// All points as they were drawn, for the figure.
    pub raw: Dataset,
}

impl Data {
    pub fn new(raw: Dataset, key: Key) -> Result<Data, Failure> {
        let (train, validation) = raw.split(0.7, key.fold_str("split"))?;
        let scaler = StandardScaler::fit(train.features())?;
        Ok(Data {
            train: train.with_features(scaler.transform(train.features())?),
            validation: validation.with_features(scaler.transform(validation.features())?),
            scaler,
            raw,
        })
    }

    /// The first `count` training points: what an audit looks at.
    pub fn first(&self, count: usize) -> Batch {
        let count = count.min(self.train.len());
        Batch {
            features: self.train.features().slice(0, 0, count, 1),
            labels: self.train.labels().slice(0, 0, count, 1),
        }
    }
}

/// How one epoch went.
pub struct Epoch {
    /// Mean over its steps.
    pub train_loss: f64,
    pub validation_loss: f64,
    pub validation_accuracy: f64,
    /// By linear layer: the mean over the epoch's steps of the norm of its weight's gradient, before clipping.
    pub gradient_norms: Vec<f64>,
}

/// A network and what its training was like so far.
pub struct Network {
    pub variant: Variant,
    pub model: Mlp,
    /// The paths of the linear layers' weights, first to last.
    pub layers: Vec<String>,
    pub epochs: Vec<Epoch>,
    /// Validation loss and accuracy now.
    pub evaluation: (f64, f64),
    /// Where training met a number that is not finite, if it did: epoch, step, and the first operation to blame.
    pub divergence: Option<(usize, usize, String)>,
    /// Where the time of some steps of training went, if that was asked for.
    pub profile: Profile,
}

impl Network {
    pub fn new(settings: &Settings, variant: Variant, data: &Data) -> Result<Network, Failure> {
        let a = &settings.arguments;
        let config = MlpConfig { width: a.width, depth: a.depth, ..MlpConfig::default() };
        let init = Init::new(a.seed).with_dtype(settings.dtype);
        let model = Mlp::of_variant(&init, config, variant, &settings.config)?;
        let layers = (0..model.depth()).map(|i| model.layer(i).weight.path().to_string()).collect();
        let evaluation = evaluate(&model, &data.validation)?;
        let profile = Profile::of_steps(0..0);
        Ok(Network { variant, model, layers, epochs: Vec::new(), evaluation, divergence: None, profile })
    }

    /// Trains for as many epochs as the settings say, or until a number is not finite.
    pub fn train(&mut self, settings: &Settings, data: &Data) -> Result<(), Failure> {
        let a = &settings.arguments;
        let mut optimizer = Sgd::new().with_momentum(MOMENTUM);
        let batches = Batches::new(data.train.len(), BATCH, Key::new(a.seed).fold_str("batches"))?;
        if a.profile {
            self.profile = Profile::after_warm_up((a.epochs * batches.per_epoch()) as u64);
        }
        let profile = self.profile.clone();
        let mut tape = Tape::new().with_seed(a.seed).with_profile(&profile);
        let mut step = 0;
        for epoch in 0..a.epochs {
            let (mut losses, mut norms, mut steps) = (0.0, vec![0.0; self.layers.len()], 0);
            for batch in batches.of(&data.train, epoch as u64)? {
                let batch = batch?;
                let _step = profile.step(step as u64);
                tape.clear(step as u64);
                let loss = loss(&tape, &self.model, &batch);
                let value = loss.item()?;
                let mut gradients = tape.backward(loss)?;
                tape.clear(step as u64); // nothing refers to the weights any more: they can be updated in place
                let found = profile.span("gradient norms", || gradient_norms(&self.model, &gradients))?;
                if !value.is_finite() || found.iter().any(|(_, norm)| !norm.is_finite()) {
                    let cause = first_non_finite(&self.model, &batch, a.seed, step);
                    self.divergence = Some((epoch, step, cause));
                    return Ok(());
                }
                norms.iter_mut().zip(self.of_layers(&found)).for_each(|(sum, norm)| *sum += norm);
                profile.span("clipping", || clip_norm(&self.model, &mut gradients, CLIP))?;
                profile.span("optimiser", || optimizer.step(&mut self.model, &gradients, RATE))?;
                losses += value;
                steps += 1;
                step += 1;
            }
            let mean = |sum: f64| sum / f64::from(steps);
            let evaluation = evaluate(&self.model, &data.validation)?;
            self.evaluation = evaluation;
            self.epochs.push(Epoch {
                train_loss: mean(losses),
                validation_loss: evaluation.0,
                validation_accuracy: evaluation.1,
                gradient_norms: norms.into_iter().map(mean).collect(),
            });
        }
        Ok(())
    }

    /// Of all gradient norms those of the linear layers' weights; 0 where the loss does not reach one.
    pub fn of_layers(&self, norms: &[(&str, f64)]) -> Vec<f64> {
        let norm = |path: &String| norms.iter().find(|(p, _)| p == path).map_or(0.0, |(_, norm)| *norm);
        self.layers.iter().map(norm).collect()
    }

    /// The probability of the second class at each point (`[N, 2]`, in the data's own coordinates).
    pub fn probabilities(&self, scaler: &StandardScaler, points: &Tensor) -> Result<Vec<f64>, Failure> {
        let tape = Tape::inference();
        let logits = self.model.forward(tape.constant(&scaler.transform(points)?));
        Ok(logits.softmax(-1).select(-1, 1).value()?.to_f64_vec()?)
    }
}

/// The mean cross-entropy of a batch.
pub fn loss<'t>(tape: &'t Tape, model: &Mlp, batch: &Batch) -> Var<'t> {
    let logits = model.forward(tape.constant(&batch.features));
    tape.scope("loss", || cross_entropy(logits, tape.constant(&batch.labels), Reduction::Mean))
}

/// Repeats a step that went wrong in anomaly mode, which stops at the first operation whose result is not finite.
fn first_non_finite(model: &Mlp, batch: &Batch, seed: u64, step: usize) -> String {
    let mut tape = Tape::new().with_seed(seed).with_anomaly_detection(true);
    tape.clear(step as u64);
    match tape.backward(loss(&tape, model, batch)) {
        Err(error) => error.to_string(),
        Ok(_) => "every value is finite, but the square of a gradient's norm is not".into(),
    }
}

/// Mean cross-entropy and accuracy over a data set.
fn evaluate(model: &Mlp, data: &Dataset) -> Result<(f64, f64), Failure> {
    let tape = Tape::inference();
    let labels = tape.constant(data.labels());
    let logits = model.forward(tape.constant(data.features()));
    let loss = cross_entropy(logits, labels, Reduction::Mean).item()?;
    let accuracy = logits.argmax(-1).equal(labels).cast(DType::F64).mean(&[]).item()?;
    Ok((loss, accuracy))
}
