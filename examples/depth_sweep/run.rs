//! One network: trained on two moons, and measured before and after.

use limpid::autograd::{Matrix, Profile, Tape};
use limpid::nn::data::{Batch, Batches, Dataset, StandardScaler, two_moons};
use limpid::nn::losses::{Reduction, cross_entropy};
use limpid::nn::optim::{Optimizer, Sgd};
use limpid::nn::residual::{Expand, Variant};
use limpid::nn::{Error, Init, Mlp, MlpConfig, Schedule, clip_norm, gradient_norms};
use limpid::tensor::rng::Key;
use limpid::{DType, Module, Parameters, Tensor, Var};

use crate::settings::{CLIP, MAP_SAMPLES, MOMENTUM, NOISE, Settings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The same points for every run, standardised by the mean and deviation of the training part.
pub struct Data {
    train: Dataset,
    validation: Dataset,
}

impl Data {
    pub fn new(samples: usize) -> Result<Data> {
        let key = Key::new(0).fold_str("data");
        let (train, validation) =
            two_moons(samples, NOISE, DType::F32, key)?.split(0.7, key.fold_str("split"))?;
        let scaler = StandardScaler::fit(train.features())?;
        Ok(Data {
            train: train.with_features(scaler.transform(train.features())?),
            validation: validation.with_features(scaler.transform(validation.features())?),
        })
    }
}

/// What was measured of one network.
pub struct Run {
    pub variant: Variant,
    pub depth: usize,
    pub seed: u64,
    /// Before the first step.
    pub before: Gradient,
    /// What training came to; `None` if a loss or a gradient was not finite.
    pub trained: Option<Trained>,
    /// The epoch in which training stopped making sense, if it did.
    pub diverged: Option<usize>,
    /// The composite map before training, its mixing perturbed; of connections whose mixing is between streams.
    pub perturbed: Option<Gain>,
    /// Where the time of some steps went, if that was asked for.
    pub profile: Profile,
}

/// A network after training.
pub struct Trained {
    /// Of the validation part.
    pub accuracy: f64,
    pub gradient: Gradient,
    /// The composite map as it was learned.
    pub gain: Option<Gain>,
}

/// The norm of the gradient of two layers' weights, by the loss of the first batch; `None` without hidden blocks.
#[derive(Clone, Copy)]
pub struct Gradient {
    /// The second layer, which is the first hidden block.
    pub second: Option<f64>,
    /// The last hidden block.
    pub last: Option<f64>,
}

/// What the product of all mixes does to the streams, in the worst of the first samples.
#[derive(Clone, Copy)]
pub struct Gain {
    /// The largest absolute row sum: how a signal can grow on its way forward.
    pub forward: f64,
    /// The largest absolute column sum: how a gradient can grow on its way back.
    pub backward: f64,
    /// The second singular value: 0 where all streams have become one. `None` with a single stream.
    pub second: Option<f64>,
}

pub fn run(settings: &Settings, data: &Data, depth: usize, variant: Variant, seed: u64) -> Result<Run> {
    let a = &settings.arguments;
    let config = MlpConfig { width: a.width, depth, ..MlpConfig::default() };
    let mut model = Mlp::of_variant(&Init::new(seed), config, variant, &settings.of_variants)?;
    let batches = Batches::new(data.train.len(), a.batch, Key::new(seed).fold_str("batches"))?;
    let first = batches.of(&data.train, 0)?.next().expect("there is at least one batch")?;
    let few = first.features.slice(0, 0, MAP_SAMPLES.min(first.features.shape()[0]), 1);
    let mixes = mixes_streams(variant) && config.blocks() > 0;

    let before = gradient(&model, &first, seed)?;
    let mut perturbed = None;
    if mixes {
        let mut model = Mlp::of_variant(&Init::new(seed), config, variant, &settings.of_variants)?;
        perturb(&mut model, variant, a.perturbation, Key::new(seed).fold_str("perturbation"))?;
        perturbed = Some(composite(&model, &few, a.streams)?);
    }
    let steps = if a.profile && seed == a.seed { a.epochs * batches.per_epoch() } else { 0 };
    let profile = Profile::after_warm_up(steps as u64);
    let diverged = train(settings, data, &batches, &mut model, seed, &profile)?;
    let mut trained = None;
    if diverged.is_none() {
        trained = Some(Trained {
            accuracy: accuracy(&model, &data.validation)?,
            gradient: gradient(&model, &first, seed)?,
            gain: mixes.then(|| composite(&model, &few, a.streams)).transpose()?,
        });
    }
    Ok(Run { variant, depth, seed, before, trained, diverged, perturbed, profile })
}

/// Whether a network of this variant is a product of mixes between n streams, and nothing else, on the paths that cross
/// no branch.
fn mixes_streams(variant: Variant) -> bool {
    variant.has_streams() && variant.is_algebraic()
}

/// The mean cross-entropy of a batch.
fn loss<'t>(tape: &'t Tape, model: &Mlp, batch: &Batch) -> Var<'t> {
    let logits = model.forward(tape.constant(&batch.features));
    cross_entropy(logits, tape.constant(&batch.labels), Reduction::Mean)
}

/// Trains as long as everything is finite; otherwise the epoch in which it was not.
fn train(
    settings: &Settings,
    data: &Data,
    batches: &Batches,
    model: &mut Mlp,
    seed: u64,
    profile: &Profile,
) -> Result<Option<usize>> {
    let a = &settings.arguments;
    let mut optimizer = Sgd::new().with_momentum(MOMENTUM);
    let mut tape = Tape::new().with_seed(seed).with_profile(profile);
    let steps = (a.epochs * batches.per_epoch()) as u64;
    let rate = Schedule::Cosine { peak: a.lr, floor: 0.0, steps };
    let mut step = 0;
    for epoch in 0..a.epochs {
        for batch in batches.of(&data.train, epoch as u64)? {
            let batch = batch?;
            let _step = profile.step(step);
            tape.clear(step);
            let loss = loss(&tape, model, &batch);
            let finite = loss.item()?.is_finite();
            let mut gradients = tape.backward(loss)?;
            tape.clear(step); // nothing refers to the weights any more: they can be updated in place
            match profile.span("clipping", || clip_norm(model, &mut gradients, CLIP)) {
                Ok(_) if finite => {}
                Ok(_) | Err(Error::NonFiniteGradient { .. }) => return Ok(Some(epoch)),
                Err(error) => return Err(error.into()),
            }
            profile.span("optimiser", || optimizer.step(model, &gradients, rate.at(step)))?;
            step += 1;
        }
    }
    let everything =
        Batch { features: data.validation.features().clone(), labels: data.validation.labels().clone() };
    let finite = loss(&Tape::inference(), model, &everything).item()?.is_finite();
    Ok((!finite).then_some(a.epochs - 1))
}

/// The share of points that are classified correctly.
fn accuracy(model: &Mlp, data: &Dataset) -> Result<f64> {
    let tape = Tape::inference();
    let logits = model.forward(tape.constant(data.features()));
    Ok(logits.argmax(-1).equal(tape.constant(data.labels())).cast(DType::F64).mean(&[]).item()?)
}

fn gradient(model: &Mlp, batch: &Batch, seed: u64) -> Result<Gradient> {
    let tape = Tape::new().with_seed(seed);
    let gradients = tape.backward(loss(&tape, model, batch))?;
    let norms = gradient_norms(model, &gradients)?;
    let of = |block: Option<usize>| {
        let path = model.layer(block?).weight.path();
        norms.iter().find(|(name, _)| *name == path).map(|(_, norm)| *norm)
    };
    let blocks = model.blocks().len();
    Ok(Gradient { second: of((blocks > 0).then_some(1)), last: of((blocks > 0).then_some(blocks)) })
}

/// Adds a normal draw to every number that says how streams are mixed, before it depends on the streams.
fn perturb(model: &mut Mlp, variant: Variant, std: f64, key: Key) -> Result<()> {
    let name = match variant {
        Variant::Hc | Variant::HcDynamic => ".mix",
        Variant::Mhc | Variant::MhcLite => ".res.bias",
        _ => return Ok(()), // there is nothing that mixes
    };
    for parameter in model.parameters_mut() {
        if parameter.path().ends_with(name) && !parameter.path().contains(".dynamic.") {
            let key = key.fold_str(parameter.path());
            let values = parameter.value().to_f64_vec()?;
            let moved: Vec<f64> = (0..).zip(values).map(|(i, v)| v + std * key.normal(i)).collect();
            let meta = parameter.meta();
            parameter.set_value(Tensor::from_f64(&moved, meta.shape, meta.dtype));
        }
    }
    Ok(())
}

/// The map from the streams in front of the first block to those behind the last one, along the paths that cross no
/// branch.
fn composite(model: &Mlp, features: &Tensor, streams: usize) -> Result<Gain> {
    let tape = Tape::new();
    let embedding = model.layer(0).forward(tape.constant(features));
    let first = Expand::copies(streams).forward(embedding);
    let last = model.blocks().iter().fold(first, |x, block| block.forward(x));
    let map = tape.stream_map(last, first, streams)?;
    let over = |f: fn(&Matrix) -> f64| map.samples.iter().map(f);
    let singular = |matrix: &Matrix| matrix.singular_values().get(1).copied();
    Ok(Gain {
        forward: over(Matrix::row_gain).fold(0.0, f64::max),
        backward: over(Matrix::column_gain).fold(0.0, f64::max),
        second: map.samples.iter().filter_map(singular).min_by(f64::total_cmp),
    })
}
