//! What a person can ask for on the command line, checked before anything runs.

use std::ops::Range;
use std::path::PathBuf;

use clap::Parser;
use limpid::nn::Init;
use limpid::nn::residual::{Variant, VariantConfig};
use serde_json::{Value, json};

/// Trains networks of growing depth on two moons, and measures what reaches their first layers.
///
/// Without arguments it takes a few minutes on one core. For every depth and variant: the accuracy, the gradient before and after training at the second layer and at the last
/// hidden block, and for connections with several streams the composite map from the first block to the last.
#[derive(Parser, Debug, Clone)]
#[command(name = "depth_sweep", version, max_term_width = 80, after_help = EXAMPLES)]
pub struct Arguments {
    /// Numbers of linear layers, first and last included (at least 2)
    #[arg(long, value_delimiter = ',', default_value = "5,10,20,50,100,200", value_name = "LIST")]
    pub depths: Vec<usize>,
    /// Connections to compare: plain, residual, pre-norm, hc, mhc … (two_moons --help lists them)
    #[arg(long, value_delimiter = ',', default_value = "plain,residual,hc,mhc", value_name = "LIST")]
    pub variants: Vec<String>,
    /// Runs of each network, with seeds from --seed on
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub seeds: u64,
    /// The first seed: of initialisation, batch order and perturbation
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Passes over the training data
    #[arg(long, default_value_t = 30, value_name = "N")]
    pub epochs: usize,
    /// Features of every hidden layer
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub width: usize,
    /// Streams of hc, hc-dynamic, mhc, mhc-lite (4 at most) and identity-hc
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub streams: usize,
    /// Standard deviation of what is added to the mixing of streams before its composite map is taken: to the matrix A of
    /// hc and hc-dynamic, to the logits of mhc and mhc-lite
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.1, value_name = "STD")]
    pub perturbation: f64,
    /// Learning rate of the first step; it falls to 0 along a cosine
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.1)]
    pub lr: f64,
    /// Points to draw, half of them on each moon; 70 % are trained on
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub samples: usize,
    /// Samples per step
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub batch: usize,
    /// Where to write
    #[arg(long, default_value = "out/depth_sweep", value_name = "DIR")]
    pub out: PathBuf,
    /// Threads for large operations; the results are the same for any number
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub threads: usize,
    /// Also find out where the time goes, in ten steps of each network with the first seed: the eleventh to the twentieth, or
    /// of fewer than twenty the second half. Tables of the deepest, and of all profile.json, and trace.json for
    /// ui.perfetto.dev or chrome://tracing
    #[arg(long)]
    pub profile: bool,
    /// Print nothing but errors
    #[arg(long)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  depth_sweep --depths 5,20 --epochs 10        a first look, in seconds
  depth_sweep --seeds 5                        a better idea of the spread
  depth_sweep --variants residual,pre-norm,hc  hc against one stream with its norm
  depth_sweep --perturbation 0.3 --epochs 1    a stronger perturbation";

/// The momentum of stochastic gradient descent.
pub const MOMENTUM: f64 = 0.9;
/// What the norm of all gradients together is clipped at.
pub const CLIP: f64 = 1.0;
/// The standard deviation of the noise around the moons.
pub const NOISE: f64 = 0.2;
/// How many samples composite maps are taken of: those of mhc differ a little from sample to sample, those of hc do not.
pub const MAP_SAMPLES: usize = 16;

/// A network of this depth takes a second a step.
const MAX_DEPTH: u64 = 10_000;
/// A layer of this width has a million weights.
const MAX_WIDTH: u64 = 1024;
/// A mix of this many streams has more numbers than a layer of the default width.
const MAX_STREAMS: u64 = 64;
/// More would only be started and never used.
const MAX_THREADS: u64 = 64;

/// The arguments in their final form.
pub struct Settings {
    pub arguments: Arguments,
    pub variants: Vec<Variant>,
    pub of_variants: VariantConfig,
}

impl Settings {
    /// Reads the command line and makes the output folder. Help goes to the terminal; anything wrong is one line.
    pub fn from_command_line() -> Result<Settings, String> {
        let arguments = Arguments::try_parse().map_err(|error| {
            if !error.use_stderr() {
                error.exit(); // --help and --version
            }
            let message = error.to_string();
            let line: Vec<&str> =
                message.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            line.join(" ").trim_start_matches("error: ").to_string()
        })?;
        let settings = Settings::check(arguments)?;
        let out = &settings.arguments.out;
        std::fs::create_dir_all(out).map_err(|e| format!("{}: cannot be written to: {e}", out.display()))?;
        Ok(settings)
    }

    fn check(arguments: Arguments) -> Result<Settings, String> {
        let a = &arguments;
        let within = |name: &str, found: u64, least: u64, most: u64| {
            if found < least {
                return Err(format!("--{name}: expected at least {least}, found {found}"));
            }
            if found > most {
                return Err(format!("--{name}: expected at most {most}, found {found}"));
            }
            Ok(())
        };
        for (i, &depth) in a.depths.iter().enumerate() {
            within("depths", depth as u64, 2, MAX_DEPTH)?;
            if a.depths[..i].last().is_some_and(|&before| before >= depth) {
                let before = a.depths[i - 1];
                return Err(format!("--depths: expected growing numbers, found {depth} after {before}"));
            }
        }
        within("seeds", a.seeds, 1, 1000)?;
        within("seed", a.seed, 0, u64::MAX - a.seeds)?;
        within("epochs", a.epochs as u64, 1, u64::MAX)?;
        within("width", a.width as u64, 1, MAX_WIDTH)?;
        within("streams", a.streams as u64, 1, MAX_STREAMS)?;
        within("batch", a.batch as u64, 1, u64::MAX)?;
        within("threads", a.threads as u64, 0, MAX_THREADS)?;
        let number = |name: &str, found: f64, fits: bool, expected: &str| match found.is_finite() && fits {
            true => Ok(()),
            false => Err(format!("--{name}: expected {expected}, found {found}")),
        };
        number("lr", a.lr, a.lr > 0.0, "a positive number")?;
        number("perturbation", a.perturbation, a.perturbation >= 0.0, "a number of at least 0")?;
        let of_variants = VariantConfig { streams: a.streams, ..VariantConfig::default() };
        let mut variants: Vec<Variant> = Vec::new();
        for name in &a.variants {
            let variant: Variant = name.parse().map_err(|e| format!("--variants: {e}"))?;
            if variants.contains(&variant) {
                return Err(format!("--variants: {name} is named twice"));
            }
            // A network without blocks: what it needs tells whether the settings suit the variant.
            variant.wiring(1, 0, &of_variants, |_| Init::new(0)).map_err(|e| format!("--{e}"))?;
            variants.push(variant);
        }
        Ok(Settings { variants, of_variants, arguments })
    }

    /// The seeds, one run each.
    pub fn seeds(&self) -> Range<u64> {
        self.arguments.seed..self.arguments.seed + self.arguments.seeds
    }

    /// What is about to run, in 80 columns.
    pub fn description(&self) -> String {
        let a = &self.arguments;
        let depths: Vec<String> = a.depths.iter().map(usize::to_string).collect();
        format!(
            "{} points, width {}, {} epochs in batches of {}; seeds {} to {}.\n\
             Learning rate {}, falling to 0 along a cosine; momentum {MOMENTUM};\n\
             gradients clipped at a norm of {CLIP}. Layers: {}.\n\
             ∇: norm of the gradient of a layer's weights, of the second layer and of the\n\
             last hidden one, on the first batch. lost: runs that diverged. Each number is\n\
             the median over the seeds; in brackets, the smallest and the largest.",
            a.samples,
            a.width,
            a.epochs,
            a.batch,
            a.seed,
            a.seed + a.seeds - 1,
            a.lr,
            depths.join(", "),
        )
    }

    /// Everything that changes a number in the results.
    pub fn to_json(&self) -> Value {
        let a = &self.arguments;
        let names: Vec<&str> = self.variants.iter().map(|variant| variant.name()).collect();
        json!({
            "depths": a.depths, "variants": names, "seeds": self.seeds().collect::<Vec<u64>>(),
            "epochs": a.epochs, "width": a.width, "streams": a.streams, "perturbation": a.perturbation,
            "lr": a.lr, "momentum": MOMENTUM, "clip": CLIP, "samples": a.samples, "noise": NOISE, "batch": a.batch,
        })
    }

    /// The command that gives these results again.
    pub fn command(&self) -> String {
        let a = &self.arguments;
        let defaults = Arguments::parse_from(["depth_sweep"]);
        let depths = |a: &Arguments| a.depths.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let options: [(&str, String, String); 11] = [
            ("depths", depths(a), depths(&defaults)),
            ("variants", a.variants.join(","), defaults.variants.join(",")),
            ("seeds", a.seeds.to_string(), defaults.seeds.to_string()),
            ("seed", a.seed.to_string(), defaults.seed.to_string()),
            ("epochs", a.epochs.to_string(), defaults.epochs.to_string()),
            ("width", a.width.to_string(), defaults.width.to_string()),
            ("streams", a.streams.to_string(), defaults.streams.to_string()),
            ("perturbation", a.perturbation.to_string(), defaults.perturbation.to_string()),
            ("lr", a.lr.to_string(), defaults.lr.to_string()),
            ("samples", a.samples.to_string(), defaults.samples.to_string()),
            ("batch", a.batch.to_string(), defaults.batch.to_string()),
        ];
        let given = options.iter().filter(|(_, value, default)| value != default);
        let given: String = given.map(|(name, value, _)| format!(" --{name} {value}")).collect();
        let command = "cargo run --release --example depth_sweep";
        if given.is_empty() { command.into() } else { format!("{command} --{given}") }
    }
}
