//! The experiment itself: one network, one seed, every layer's gradient norm at every step.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use limpid::autograd::{Gradients, Profile, Replay, Tape, format_bytes};
use limpid::nn::data::{Batch, Batches, Dataset, StandardScaler};
use limpid::nn::losses::{Reduction, cross_entropy};
use limpid::nn::optim::{Optimizer, Sgd};
use limpid::nn::residual::Variant;
use limpid::nn::{Checkpoint, Mlp, Module, Parameters, clip_norm, gradient_norms};
use limpid::tensor::Element;
use limpid::tensor::rng::Key;
use limpid::{DType, Tensor, Var};
use serde_json::{Map, Value};

use crate::Failure;
use crate::history::{Divergence, History, Metrics, fingerprint};
use crate::norm::network;
use crate::settings::Settings;

/// The points, standardised by the mean and deviation of the training part.
pub struct Data {
    pub train: Dataset,
    pub validation: Dataset,
    pub scaler: StandardScaler,
    /// All points as they were given, for the figure.
    pub raw: Dataset,
    /// Tells whether two runs saw the same points.
    pub fingerprint: String,
}

impl Data {
    pub fn new(raw: Dataset, key: Key) -> Result<Data, Failure> {
        let (train, validation) = raw.split(0.7, key.fold_str("split"))?;
        let scaler = StandardScaler::fit(train.features())?;
        Ok(Data {
            train: train.with_features(scaler.transform(train.features())?),
            validation: validation.with_features(scaler.transform(validation.features())?),
            scaler,
            fingerprint: fingerprint([
                f32::to_bytes(&raw.features().to_vec()?),
                i64::to_bytes(&raw.labels().to_vec()?),
            ]),
            raw,
        })
    }
}

/// A network after training, or as far as it got.
pub struct Trained {
    pub variant: Variant,
    /// What a block computes, for figures and tables.
    pub formula: String,
    pub model: Mlp,
    pub history: History,
    /// Somebody asked to stop before the last epoch.
    pub interrupted: bool,
    /// Where the time of some steps went, if that was asked for.
    pub profile: Profile,
}

/// Trains one variant. `on_epoch` is told each finished epoch; `stop` ends training after the epoch under way, and
/// leaves a checkpoint from which it goes on to the same bits.
pub fn train(
    settings: &Settings,
    variant: Variant,
    seed: u64,
    data: &Data,
    checkpoint: &Path,
    stop: &AtomicBool,
    on_epoch: impl Fn(usize, &History),
) -> Result<Trained, Failure> {
    let a = &settings.arguments;
    let mut model = network(settings, variant, seed)?;
    let mut optimizer = Sgd::new().with_momentum(a.momentum);
    let batches = Batches::new(data.train.len(), a.batch, Key::new(seed).fold_str("batches"))?;
    let names = (0..model.depth()).map(|i| model.layer(i).weight.path().to_string()).collect();
    let mut history = History::new(names);
    let mut interrupted = false;
    let this_run = settings.of_one_run(variant, seed, data);
    if a.resume && checkpoint.exists() {
        history = restore(&this_run, checkpoint, history, &mut model, &mut optimizer)?;
        let (most, found) = (a.epochs, history.metrics.len());
        if found > most {
            let message = format!("{}: expected at most {most} epochs, found {found}", checkpoint.display());
            return Err(Failure::input(message));
        }
    }
    model.move_to(&settings.device)?;

    let mut step = history.metrics.len() * batches.per_epoch();
    let (first, steps) = (step, a.epochs * batches.per_epoch() - step);
    let profile = Profile::after_warm_up(if a.profile { steps as u64 } else { 0 });
    let tape = beside(&model, Tape::new()).with_seed(seed).with_profile(&profile);
    // A profile tells the parts of a step that is recorded, and what is drawn at random is drawn anew.
    let records = a.record || a.profile || variant == Variant::DropPath;
    let mut by = Differentiation { tape, replays: (!records).then(BTreeMap::new) };
    for epoch in history.metrics.len()..a.epochs {
        if history.divergence.is_some() {
            break;
        }
        let mut losses = 0.0;
        let mut norm_sums = vec![0.0; history.layers.len()];
        let mut steps = 0;
        for batch in batches.of(&data.train, epoch as u64)? {
            let batch = batch?;
            let _step = profile.step((step - first) as u64);
            let (value, mut gradients) = by.differentiate(&model, &batch, step as u64)?;
            let all_norms = profile.span("gradient norms", || gradient_norms(&model, &gradients))?;
            if !value.is_finite() || all_norms.iter().any(|(_, norm)| !norm.is_finite()) {
                let cause = first_non_finite(&model, &batch, seed, step);
                history.divergence = Some(Divergence { epoch, step, cause });
                break;
            }
            let norms: Vec<f64> = history
                .layers
                .iter()
                .map(|name| all_norms.iter().find(|(path, _)| path == name).map_or(0.0, |(_, norm)| *norm))
                .collect();
            norm_sums.iter_mut().zip(&norms).for_each(|(sum, norm)| *sum += norm);
            if step == 0 || a.every_step {
                history.step_norms.push(norms);
            }

            if let Some(limit) = settings.clip {
                profile.span("clipping", || clip_norm(&model, &mut gradients, limit))?;
            }
            profile.span("optimiser", || optimizer.step(&mut model, &gradients, a.lr))?;
            losses += value;
            steps += 1;
            step += 1;
        }
        if history.divergence.is_none() {
            let mean = |sum: f64| sum / steps as f64;
            history.gradient_norms.push(norm_sums.into_iter().map(mean).collect());
            let (validation_loss, validation_accuracy) = evaluate(&model, &data.validation)?;
            if !validation_loss.is_finite() {
                let all = Batch {
                    features: data.validation.features().clone(),
                    labels: data.validation.labels().clone(),
                };
                history.divergence = Some(Divergence {
                    epoch,
                    step: step - 1,
                    cause: first_non_finite(&model, &all, seed, step),
                });
            }
            history.metrics.push(Metrics { train_loss: mean(losses), validation_loss, validation_accuracy });
        }
        on_epoch(epoch, &history);
        let last = epoch + 1 == a.epochs || history.divergence.is_some();
        interrupted = stop.load(Ordering::Relaxed) && !last;
        if last || interrupted || epoch % 10 == 9 {
            save(&this_run, checkpoint, &history, &model, &optimizer)?;
        }
        if interrupted {
            break;
        }
    }
    let formula = a.norm.formula(variant);
    Ok(Trained { variant, formula, model, history, interrupted, profile })
}

/// A tape that computes where the model's weights are.
fn beside(model: &Mlp, tape: Tape) -> Tape {
    tape.with_device(model.layer(0).weight.value().device().clone())
}

/// How the loss of a batch is differentiated: on a tape that is written at every step, or by a replay.
struct Differentiation {
    tape: Tape,
    /// By the size of the batch.
    replays: Option<BTreeMap<usize, Replay>>,
}

impl Differentiation {
    /// The loss and its gradients. Nothing refers to the weights any more: they can be updated in place.
    fn differentiate(&mut self, model: &Mlp, batch: &Batch, step: u64) -> Result<(f64, Gradients), Failure> {
        let Differentiation { tape, replays } = self;
        let Some(replays) = replays else {
            tape.clear(step);
            let loss = loss(tape, model, batch);
            let (value, gradients) = (loss.item()?, tape.backward(loss)?);
            tape.clear(step);
            return Ok((value, gradients));
        };
        let replay = match replays.entry(batch.labels.elements()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                tape.clear(step);
                let inputs = [&batch.features, &batch.labels].map(|x| tape.constant_here(x));
                let replay = tape.replay(&inputs, loss_of(model, inputs), &[])?;
                tape.clear(step);
                new.insert(replay)
            }
        };
        let (features, labels) = (batch.features.to(tape.device())?, batch.labels.to(tape.device())?);
        let run = replay.run(&[&features, &labels], |give| model.visit(&mut |p| give(p.id(), p.value())))?;
        Ok((run.loss.item()?, run.gradients))
    }
}

/// The mean cross-entropy of a batch.
fn loss<'t>(tape: &'t Tape, model: &Mlp, batch: &Batch) -> Var<'t> {
    loss_of(model, [&batch.features, &batch.labels].map(|x| tape.constant_here(x)))
}

fn loss_of<'t>(model: &Mlp, [features, labels]: [Var<'t>; 2]) -> Var<'t> {
    let logits = model.forward(features);
    features.tape().scope("loss", || cross_entropy(logits, labels, Reduction::Mean))
}

/// Repeats a step that went wrong in anomaly mode, which stops at the first operation whose result is not finite.
fn first_non_finite(model: &Mlp, batch: &Batch, seed: u64, step: usize) -> String {
    let mut tape = beside(model, Tape::new()).with_seed(seed).with_anomaly_detection(true);
    tape.clear(step as u64);
    match tape.backward(loss(&tape, model, batch)) {
        Err(error) => error.to_string(),
        Ok(_) => "every value is finite, but the square of a gradient's norm is not".into(),
    }
}

/// Mean cross-entropy and accuracy over a data set.
pub fn evaluate(model: &Mlp, data: &Dataset) -> Result<(f64, f64), Failure> {
    let tape = beside(model, Tape::inference());
    let labels = tape.constant_here(data.labels());
    let logits = model.forward(tape.constant_here(data.features()));
    let loss = cross_entropy(logits, labels, Reduction::Mean).item()?;
    let accuracy = logits.argmax(-1).equal(labels).cast(DType::F64).mean(&[]).item()?;
    Ok((loss, accuracy))
}

/// The probability of the second class at each point (`[N, 2]`, in the data's own coordinates).
pub fn probabilities(model: &Mlp, scaler: &StandardScaler, points: &Tensor) -> Result<Vec<f64>, Failure> {
    // So many at once that a layer's values stay in a cache.
    const AT_ONCE: usize = 500;
    let points = scaler.transform(points)?;
    let mut all = Vec::with_capacity(points.shape()[0]);
    for first in (0..points.shape()[0]).step_by(AT_ONCE) {
        let some = points.slice(0, first, points.shape()[0].min(first + AT_ONCE), 1);
        let tape = beside(model, Tape::inference());
        let logits = model.forward(tape.constant_here(&some));
        all.extend(logits.softmax(-1).select(-1, 1).value()?.to_f64_vec()?);
    }
    Ok(all)
}

/// What the tape holds for one step's derivative, against what the derivative rules then really read.
pub fn memory_line(model: &Mlp, data: &Data, batch: usize) -> Result<String, Failure> {
    let batches = Batches::new(data.train.len(), batch, Key::new(0))?;
    let first = batches.of(&data.train, 0)?.next().expect("there is at least one batch")?;
    let tape = beside(model, Tape::new());
    let audit = tape.audit_reads(loss(&tape, model, &first))?;
    let (kept, read) = (tape.memory().needed, audit.read_bytes);
    let agree = audit.declared == audit.read && kept == read;
    Ok(format!(
        "{:>4} nodes, {:>9} kept for the derivative, {:>9} read {}",
        tape.len(),
        format_bytes(kept),
        format_bytes(read),
        if agree { "✓" } else { "✗" },
    ))
}

fn save(
    settings: &Value,
    path: &Path,
    history: &History,
    model: &Mlp,
    optimizer: &Sgd,
) -> Result<(), Failure> {
    let table = |rows: &[Vec<f64>]| {
        Tensor::from_vec(rows.concat(), [rows.len(), rows.first().map_or(history.layers.len(), Vec::len)])
    };
    let metrics: Vec<Vec<f64>> = history
        .metrics
        .iter()
        .map(|m| vec![m.train_loss, m.validation_loss, m.validation_accuracy])
        .collect();
    let mut checkpoint = Checkpoint::of(model, optimizer)
        .with("settings", settings)
        .with_tensor("metrics", table(&metrics))
        .with_tensor("gradient_norms", table(&history.gradient_norms))
        .with_tensor("step_norms", table(&history.step_norms));
    if let Some(Divergence { epoch, step, cause }) = &history.divergence {
        checkpoint =
            checkpoint.with("diverged_epoch", epoch).with("diverged_step", step).with("cause", cause);
    }
    Ok(checkpoint.save(path)?)
}

fn restore(
    settings: &Value,
    path: &Path,
    mut history: History,
    model: &mut Mlp,
    optimizer: &mut Sgd,
) -> Result<History, Failure> {
    let checkpoint = Checkpoint::load(path)?;
    let theirs: Value = checkpoint.get("settings")?;
    let names = |settings: &Value| settings.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    let (ours, others): (BTreeSet<String>, BTreeSet<String>) = (names(settings), names(&theirs));
    let differing: Vec<String> = ours
        .union(&others)
        .filter(|name| settings[name] != theirs[name])
        .map(|name| format!("{name} {}, found {}", settings[name], theirs[name]))
        .collect();
    if !differing.is_empty() {
        let differing = differing.join("; expected ");
        return Err(Failure::input(format!("{}: expected {differing}", path.display())));
    }
    checkpoint.restore(model, optimizer)?;
    let rows = |name: &str| -> Result<Vec<Vec<f64>>, Failure> {
        let table = checkpoint.tensor(name)?;
        if table.shape().len() != 2 || table.dtype() != DType::F64 {
            return Err(Failure::input(format!(
                "{}: expected {name} as a table of f64, found {}",
                path.display(),
                table.meta()
            )));
        }
        Ok(table.to_vec::<f64>()?.chunks(table.shape()[1].max(1)).map(<[f64]>::to_vec).collect())
    };
    let metric = |row: Vec<f64>| match row[..] {
        [train_loss, validation_loss, validation_accuracy] => {
            Ok(Metrics { train_loss, validation_loss, validation_accuracy })
        }
        _ => Err(Failure::input(format!(
            "{}: expected 3 metrics an epoch, found {}",
            path.display(),
            row.len()
        ))),
    };
    history.metrics = rows("metrics")?.into_iter().map(metric).collect::<Result<_, Failure>>()?;
    history.gradient_norms = rows("gradient_norms")?;
    history.step_norms = rows("step_norms")?;
    if let Ok(cause) = checkpoint.get::<String>("cause") {
        let (epoch, step) = (checkpoint.get("diverged_epoch")?, checkpoint.get("diverged_step")?);
        history.divergence = Some(Divergence { epoch, step, cause });
    }
    Ok(history)
}
