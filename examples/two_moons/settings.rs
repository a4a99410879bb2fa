//! What a person can ask for on the command line, checked before anything runs.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use limpid::autograd::ops::sinkhorn::Sinkhorn;
use limpid::nn::residual::{Variant, VariantConfig};
use limpid::nn::{Activation, Fan, Init, Initializer};
use limpid::tensor::Stop;
use limpid::{DType, Device};
use serde_json::{Map, Value, json};

use crate::norm::Norm;
use crate::training::Data;

/// What is compared if nobody says otherwise.
const DEFAULT_VARIANTS: &str = "plain,residual,scaled,gated";

/// Trains a 20-layer network on two moons, once per residual variant, and writes down every layer's gradient norm.
///
/// Without arguments: plain, residual, scaled and gated, 100 epochs each, a few seconds in all. The closing table and
/// report.html in the output folder show what a skip connection does to a gradient.
#[derive(Parser, Debug, Clone)]
#[command(name = "two_moons", version, max_term_width = 80, after_help = EXAMPLES)]
pub struct Arguments {
    /// Learning-rate recipe: `stable` clips the global gradient norm at 1, `article` does not clip
    #[arg(long, value_enum, default_value_t = Recipe::Stable, help_heading = "Training")]
    pub recipe: Recipe,
    /// Clip the global gradient norm at this value (0: never); overrides the recipe
    #[arg(long, allow_negative_numbers = true, value_name = "NORM", help_heading = "Training")]
    pub clip: Option<f64>,
    /// Passes over the training data
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "Training")]
    pub epochs: usize,
    /// Samples per step
    #[arg(long, default_value_t = 128, value_name = "N", help_heading = "Training")]
    pub batch: usize,
    /// Learning rate
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.1, help_heading = "Training")]
    pub lr: f64,
    /// Momentum of stochastic gradient descent
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.9, help_heading = "Training")]
    pub momentum: f64,
    /// Seed of initialisation and batch order
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub seed: u64,
    /// Repeat with this many seeds, from --seed on, and show the spread
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Training")]
    pub seeds: u64,

    /// Connections to compare, comma-separated, or `all`: plain, residual, scaled, complete-p, rezero, layerscale, gated,
    /// interpolated, droppath, euler, pre-norm, peri-norm, post-norm, deepnorm, resi-dual, delta, attnres, hc, hc-dynamic,
    /// mhc, mhc-lite, identity-hc
    #[arg(
        long,
        value_delimiter = ',',
        default_value = DEFAULT_VARIANTS,
        value_name = "LIST",
        help_heading = "Network"
    )]
    pub variants: Vec<String>,
    /// Streams of hc, hc-dynamic, mhc, mhc-lite (4 at most) and identity-hc
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Network")]
    pub streams: usize,
    /// Steps of Sinkhorn–Knopp in mhc
    #[arg(long, default_value_t = 20, value_name = "T", help_heading = "Network")]
    pub sinkhorn_iters: usize,
    /// Norms to add to a branch: `pre` (in front) or `peri` (in front and behind) with plain, residual, scaled,
    /// complete-p, rezero, layerscale, gated, interpolated and droppath; `post` (behind the addition) with residual. `none`
    /// leaves each variant as it is; those not named have their norms where they belong
    #[arg(
        long,
        value_enum,
        default_value_t = Norm::None,
        hide_possible_values = true,
        value_name = "none|pre|peri|post",
        help_heading = "Network"
    )]
    pub norm: Norm,
    /// What the branches of the hidden blocks compute in: f32, or bf16 between a stream and weights in f32
    #[arg(long, default_value = "f32", value_name = "f32|bf16", help_heading = "Network")]
    pub branch_dtype: String,
    /// Linear layers, first and last included (at least 2)
    #[arg(long, default_value_t = 20, value_name = "N", help_heading = "Network")]
    pub depth: usize,
    /// Features of every hidden layer
    #[arg(long, default_value_t = 64, value_name = "N", help_heading = "Network")]
    pub width: usize,
    /// relu, leaky_relu, elu, gelu, gelu_tanh, silu, tanh, sigmoid, softplus or identity
    #[arg(long, default_value = "relu", help_heading = "Network")]
    pub activation: String,
    /// Weight initialisation: default (uniform ±1/√fan_in), he, xavier, orthogonal or truncated-normal
    #[arg(long, default_value = "default", help_heading = "Network")]
    pub init: String,

    /// Points to draw, half of them on each moon
    #[arg(long, default_value_t = 1000, value_name = "N", help_heading = "Data")]
    pub samples: usize,
    /// Standard deviation of the noise around the moons
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.2, help_heading = "Data")]
    pub noise: f64,
    /// Seed of the points and of the 70/30 split
    #[arg(long, default_value_t = 0, value_name = "SEED", help_heading = "Data")]
    pub data_seed: u64,
    /// Points of your own instead: columns x,y,label, with or without a header
    #[arg(long, value_name = "FILE.csv", help_heading = "Data")]
    pub data: Option<PathBuf>,

    /// Where to write
    #[arg(long, default_value = "out/two_moons", value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Also write every step's gradient norms, not only each epoch's mean
    #[arg(long, help_heading = "Output")]
    pub every_step: bool,
    /// Also find out where the time goes, in ten steps of each variant: the eleventh to the twentieth, or of fewer than
    /// twenty the second half. Tables, profile.json, and trace.json for ui.perfetto.dev or chrome://tracing
    #[arg(long, help_heading = "Output")]
    pub profile: bool,
    /// Write the tape anew at every step, as --profile and droppath do anyway. Otherwise it is written once for each size of a
    /// batch, and replayed: the same numbers, sooner
    #[arg(long, help_heading = "Output")]
    pub record: bool,
    /// Go on from the checkpoints in the output folder
    #[arg(long, help_heading = "Output")]
    pub resume: bool,
    /// Threads for large operations; the results are the same for any number
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true, help_heading = "Output")]
    pub threads: usize,
    /// Where to compute: cpu, or, built with `--features cuda`: cuda, cuda:N, or emulator (the kernels of a card, run by this
    /// processor: a hundred times slower)
    #[arg(long, default_value = "cpu", help_heading = "Output")]
    pub device: String,
    /// Print nothing but errors
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  two_moons --recipe article             the popular recipe: see which variants diverge
  two_moons --init he --variants plain   depth alone does not make gradients vanish
  two_moons --seeds 5                    is it luck? five seeds and their spread
  two_moons --variants all               every way to join the layers
  two_moons --data mine.csv              your own points";

/// The variants of these names, or every one if the only name is `all`.
fn variants(names: &[String]) -> Result<Vec<Variant>, String> {
    if names == ["all"] {
        return Ok(Variant::ALL.to_vec());
    }
    if names.iter().any(|name| name == "all") {
        return Err("--variants: all stands for every variant, expected no other name beside it".into());
    }
    let mut variants = Vec::new();
    for name in names {
        let variant: Variant = name.parse().map_err(|e| format!("--variants: {e}"))?;
        if variants.contains(&variant) {
            return Err(format!("--variants: {name} is named twice"));
        }
        variants.push(variant);
    }
    Ok(variants)
}

/// How the weights start; their biases are 0, but for the default.
fn initializer(name: &str, activation: Activation) -> Result<Option<Initializer>, String> {
    let gain = activation.gain();
    match name {
        "default" => Ok(None),
        "he" => Ok(Some(Initializer::KaimingNormal { fan: Fan::In, gain })),
        "xavier" => Ok(Some(Initializer::XavierUniform { gain })),
        "orthogonal" => Ok(Some(Initializer::Orthogonal { gain })),
        "truncated-normal" => Ok(Some(Initializer::TruncatedNormal { std: 0.02, bound: 0.04 })),
        _ => Err(format!(
            "--init: expected default, he, xavier, orthogonal or truncated-normal, found {name:?}"
        )),
    }
}

/// What branches compute in, where that is not f32.
fn branch_dtype(name: &str) -> Result<Option<DType>, String> {
    match name {
        "f32" => Ok(None),
        "bf16" => Ok(Some(DType::BF16)),
        _ => Err(format!("--branch-dtype: expected f32 or bf16, found {name:?}")),
    }
}

/// How the step size is kept in bounds.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipe {
    /// The global gradient norm is clipped at 1.
    Stable,
    /// No clipping, as a popular write-up of this experiment does it.
    Article,
}

/// More would only be started and never used.
const MAX_THREADS: usize = 64;
/// A layer of this width has a billion weights.
const MAX_WIDTH: usize = 1 << 15;
/// A network of this depth takes minutes a step.
const MAX_DEPTH: usize = 1 << 17;
/// A mix of this many streams has as many numbers as a layer of the default width.
const MAX_STREAMS: usize = 64;
/// Sinkhorn–Knopp that is not done by then will not be.
const MAX_SINKHORN: usize = 1000;

/// One run's arguments in their final form.
#[derive(Clone)]
pub struct Settings {
    pub arguments: Arguments,
    pub variants: Vec<Variant>,
    /// What variants are told beyond the size of the network.
    pub of_variants: VariantConfig,
    pub activation: Activation,
    /// `None`: as a linear layer usually starts.
    pub initial: Option<Initializer>,
    /// `None`: branches compute in what everything else does.
    pub branch_dtype: Option<DType>,
    pub clip: Option<f64>,
    pub device: Device,
}

impl Settings {
    /// Reads the command line. Help goes to the terminal; anything wrong is one line.
    pub fn from_command_line() -> Result<Settings, String> {
        let arguments = Arguments::try_parse().unwrap_or_else(|error| {
            if !error.use_stderr() {
                error.exit(); // --help and --version
            }
            let message = error.to_string();
            let line: Vec<&str> =
                message.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            eprintln!("{}", line.join(" "));
            std::process::exit(2);
        });
        Settings::check(arguments)
    }

    fn check(arguments: Arguments) -> Result<Settings, String> {
        let a = &arguments;
        let at_least = |name: &str, found: usize, least: usize| match found >= least {
            true => Ok(()),
            false => Err(format!("--{name}: expected at least {least}, found {found}")),
        };
        at_least("depth", a.depth, 2)?;
        at_least("width", a.width, 1)?;
        at_least("epochs", a.epochs, 1)?;
        at_least("batch", a.batch, 1)?;
        at_least("seeds", a.seeds as usize, 1)?;
        let at_most = |name: &str, found: u64, most: u64| match found <= most {
            true => Ok(()),
            false => Err(format!("--{name}: expected at most {most}, found {found}")),
        };
        at_most("depth", a.depth as u64, MAX_DEPTH as u64)?;
        at_most("width", a.width as u64, MAX_WIDTH as u64)?;
        at_most("streams", a.streams as u64, MAX_STREAMS as u64)?;
        at_least("sinkhorn-iters", a.sinkhorn_iters, 1)?;
        at_most("sinkhorn-iters", a.sinkhorn_iters as u64, MAX_SINKHORN as u64)?;
        at_most("threads", a.threads as u64, MAX_THREADS as u64)?;
        at_most("seed", a.seed, u64::MAX - a.seeds)?;
        let within = |name: &str, found: f64, fits: bool, expected: &str| match found.is_finite() && fits {
            true => Ok(()),
            false => Err(format!("--{name}: expected {expected}, found {found}")),
        };
        within("lr", a.lr, a.lr > 0.0, "a positive number")?;
        within("momentum", a.momentum, (0.0..1.0).contains(&a.momentum), "a number from 0 to below 1")?;
        within("noise", a.noise, a.noise >= 0.0, "a number of at least 0")?;
        if let Some(clip) = a.clip {
            within("clip", clip, clip >= 0.0, "a number of at least 0")?;
        }
        let stop = Stop::Steps(a.sinkhorn_iters);
        let of_variants = VariantConfig {
            streams: a.streams,
            sinkhorn: Sinkhorn { stop, ..Sinkhorn::default() },
            ..VariantConfig::default()
        };
        let variants = variants(&a.variants)?;
        for variant in &variants {
            // A network without blocks: what it needs tells whether the settings suit the variant.
            variant.wiring(1, 0, &of_variants, |_| Init::new(0)).map_err(|e| format!("--{e}"))?;
            if !a.norm.variants().contains(variant) {
                let names: Vec<&str> = a.norm.variants().iter().map(|v| v.name()).collect();
                let (norm, names) = (a.norm.name(), names.join(", "));
                return Err(format!("--norm {norm}: expected only {names} in --variants, found {variant}"));
            }
        }
        let activation: Activation = a.activation.parse().map_err(|e| format!("--activation: {e}"))?;
        let default_clip = (a.recipe == Recipe::Stable).then_some(1.0);
        Ok(Settings {
            variants,
            of_variants,
            activation,
            initial: initializer(&a.init, activation)?,
            branch_dtype: branch_dtype(&a.branch_dtype)?,
            clip: a.clip.or(default_clip).filter(|&clip| clip > 0.0),
            device: limpid::device(&a.device).map_err(|e| format!("--device: {e}"))?,
            arguments,
        })
    }

    /// The room that the variants' names take in a table.
    pub fn name_width(&self) -> usize {
        self.variants.iter().map(|variant| variant.name().len()).fold(9, usize::max)
    }

    /// What one run's numbers depend on, but for how long it lasts: a checkpoint goes on only under the same.
    pub fn of_one_run(&self, variant: Variant, seed: u64, data: &Data) -> Value {
        let mut all = self.to_json();
        if let Some(all) = all.as_object_mut() {
            for free in ["recipe", "variants", "seeds", "epochs"] {
                all.remove(free);
            }
            all.extend([
                ("variant".to_string(), json!(variant.name())),
                ("seed".to_string(), json!(seed)),
                ("points".to_string(), json!(data.fingerprint)),
            ]);
            for other in ["streams", "sinkhorn_iters"] {
                all.remove(other);
            }
            all.extend(self.concerning(&[variant]));
        }
        all
    }

    /// Everything that changes a number in the results, for run.json, and to compare before resuming.
    pub fn to_json(&self) -> Value {
        let a = &self.arguments;
        let names: Vec<&str> = self.variants.iter().map(|variant| variant.name()).collect();
        let mut all = json!({
            "variants": names, "depth": a.depth, "width": a.width, "activation": a.activation, "init": a.init,
            "recipe": format!("{:?}", a.recipe).to_lowercase(), "epochs": a.epochs, "batch": a.batch, "lr": a.lr, "momentum": a.momentum, "clip": self.clip,
            "seed": a.seed, "seeds": a.seeds, "every_step": a.every_step,
            "data": a.data.as_ref().map(|path| path.display().to_string()),
            "samples": a.samples, "noise": a.noise, "data_seed": a.data_seed,
        });
        all.as_object_mut().into_iter().for_each(|all| all.extend(self.concerning(&self.variants)));
        all
    }

    /// The settings that only some variants read, as far as one of these does.
    fn concerning(&self, variants: &[Variant]) -> Map<String, Value> {
        use Variant::*;
        let a = &self.arguments;
        let any = |readers: &[Variant]| variants.iter().any(|variant| readers.contains(variant));
        let settings = [
            ("streams", json!(a.streams), any(&[Hc, HcDynamic, Mhc, MhcLite, IdentityHc])),
            ("sinkhorn_iters", json!(a.sinkhorn_iters), any(&[Mhc])),
            ("norm", json!(a.norm.name()), a.norm != Norm::None),
            ("branch_dtype", json!(a.branch_dtype), self.branch_dtype.is_some()),
            ("device", json!(a.device), a.device != "cpu"),
        ];
        let read = settings.into_iter().filter(|(_, _, read)| *read);
        read.map(|(name, value, _)| (name.to_string(), value)).collect()
    }

    /// The command that gives these results again.
    pub fn command(&self) -> String {
        let a = &self.arguments;
        let mut command = "cargo run --release --example two_moons --".to_string();
        let mut add = |name: &str, value: String, default: &str| {
            if value != default {
                command += &format!(" --{name} {value}");
            }
        };
        add("variants", a.variants.join(","), DEFAULT_VARIANTS);
        add("streams", a.streams.to_string(), "4");
        add("sinkhorn-iters", a.sinkhorn_iters.to_string(), "20");
        add("norm", a.norm.name().into(), "none");
        add("branch-dtype", a.branch_dtype.clone(), "f32");
        add("recipe", format!("{:?}", a.recipe).to_lowercase(), "stable");
        add("clip", a.clip.map_or(String::new(), |clip| clip.to_string()), "");
        add("depth", a.depth.to_string(), "20");
        add("width", a.width.to_string(), "64");
        add("activation", a.activation.clone(), "relu");
        add("init", a.init.clone(), "default");
        add("epochs", a.epochs.to_string(), "100");
        add("batch", a.batch.to_string(), "128");
        add("lr", a.lr.to_string(), "0.1");
        add("momentum", a.momentum.to_string(), "0.9");
        add("seed", a.seed.to_string(), "0");
        add("seeds", a.seeds.to_string(), "1");
        add("samples", a.samples.to_string(), "1000");
        add("noise", a.noise.to_string(), "0.2");
        add("data-seed", a.data_seed.to_string(), "0");
        add("device", a.device.clone(), "cpu");
        add("data", a.data.as_ref().map_or(String::new(), |path| path.display().to_string()), "");
        command.trim_end_matches(" --").to_string()
    }
}
