//! What a person can ask for on the command line, checked before anything runs.

use std::path::PathBuf;

use clap::Parser;
use limpid::DType;
use limpid::autograd::ops::sinkhorn::Sinkhorn;
use limpid::nn::Init;
use limpid::nn::residual::{Variant, VariantConfig};
use limpid::tensor::Stop;
use serde_json::{Value, json};

/// Audits a network on two moons: where its gradient comes from, layer by layer, before and after training.
///
/// Name one variant for tables in the terminal, or --all to compare every one. Numbers, figures, tapes and report.html
/// are written to the output folder.
#[derive(Parser, Debug, Clone)]
#[command(name = "audit", version, max_term_width = 80, after_help = EXAMPLES)]
pub struct Arguments {
    /// How the layers are joined: plain, residual, mhc, …; several are separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAME", help_heading = "Network")]
    pub variant: Vec<String>,
    /// Every variant, side by side
    #[arg(long, conflicts_with = "variant", help_heading = "Network")]
    pub all: bool,
    /// Linear layers, first and last included (at least 2)
    #[arg(long, default_value_t = 20, value_name = "N", help_heading = "Network")]
    pub depth: usize,
    /// Features of every hidden layer
    #[arg(long, default_value_t = 64, value_name = "N", help_heading = "Network")]
    pub width: usize,
    /// Streams of those variants that have a choice
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Network")]
    pub streams: usize,
    /// Steps of Sinkhorn–Knopp that make the mixing matrices of mhc
    #[arg(long, default_value_t = 20, value_name = "N", help_heading = "Network")]
    pub sinkhorn_iters: usize,
    /// f32 or f64
    #[arg(long, default_value = "f32", help_heading = "Network")]
    pub dtype: String,

    /// Passes over the training data; 0 audits the network as it starts
    #[arg(long, default_value_t = 20, value_name = "N", help_heading = "Training")]
    pub epochs: usize,
    /// Seed of initialisation and batch order
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// Where to write
    #[arg(long, default_value = "out/audit", value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Also find out where the time goes, in ten steps of each training: the eleventh to the twentieth, or of fewer than
    /// twenty the second half. Tables, profile.json, and trace.json for ui.perfetto.dev or chrome://tracing
    #[arg(long, help_heading = "Output")]
    pub profile: bool,
    /// Print nothing but errors
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  audit --variant mhc --depth 20      one network, its tables in the terminal
  audit --variant mhc --epochs 0      as it starts, before any training
  audit --variant plain,residual,hc   these three side by side
  audit --all                         all variants in one report.html";

/// The recipe of the two-moons experiment that is stable for most variants.
pub const BATCH: usize = 128;
pub const RATE: f64 = 0.1;
pub const MOMENTUM: f64 = 0.9;
pub const CLIP: f64 = 1.0;

/// A layer of this width has millions of weights, and every sample a Jacobian as large.
const MAX_WIDTH: usize = 1 << 11;
/// Taking a gradient apart by paths costs the square of the depth.
const MAX_DEPTH: usize = 1 << 10;
const MAX_STREAMS: usize = 64;
const MAX_STEPS: usize = 100_000;

/// One run's arguments in their final form.
pub struct Settings {
    pub arguments: Arguments,
    pub variants: Vec<Variant>,
    pub config: VariantConfig,
    pub dtype: DType,
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
        let within = |name: &str, found: usize, least: usize, most: usize| match found {
            _ if found < least => Err(format!("--{name}: expected at least {least}, found {found}")),
            _ if found > most => Err(format!("--{name}: expected at most {most}, found {found}")),
            _ => Ok(()),
        };
        within("depth", a.depth, 2, MAX_DEPTH)?;
        within("width", a.width, 1, MAX_WIDTH)?;
        within("streams", a.streams, 1, MAX_STREAMS)?;
        within("sinkhorn-iters", a.sinkhorn_iters, 1, MAX_STEPS)?;
        let dtype = match a.dtype.as_str() {
            "f32" => DType::F32,
            "f64" => DType::F64,
            other => return Err(format!("--dtype: expected f32 or f64, found {other:?}")),
        };
        let mut variants = Vec::new();
        for name in &a.variant {
            let variant = name.parse::<Variant>().map_err(|error| format!("--{error}"))?;
            if variants.contains(&variant) {
                return Err(format!("--variant: {name} is named twice"));
            }
            variants.push(variant);
        }
        if a.all {
            variants = Variant::ALL.to_vec();
        }
        if variants.is_empty() {
            return Err("expected --variant NAME or --all; --help explains both".into());
        }
        let sinkhorn = Sinkhorn { stop: Stop::Steps(a.sinkhorn_iters), ..Sinkhorn::default() };
        let config = VariantConfig { streams: a.streams, sinkhorn, ..VariantConfig::default() };
        for variant in &variants {
            // A network without blocks: what it needs tells whether the settings suit the variant, before one is trained.
            variant.wiring(1, 0, &config, |_| Init::new(0)).map_err(|error| format!("--{error}"))?;
        }
        Ok(Settings { variants, config, dtype, arguments })
    }

    /// Everything that changes a number in the results.
    pub fn to_json(&self) -> Value {
        let a = &self.arguments;
        let names: Vec<&str> = self.variants.iter().map(|variant| variant.name()).collect();
        json!({
            "variants": names, "depth": a.depth, "width": a.width, "streams": a.streams,
            "sinkhorn_iters": a.sinkhorn_iters, "dtype": a.dtype, "epochs": a.epochs, "seed": a.seed,
            "batch": BATCH, "lr": RATE, "momentum": MOMENTUM, "clip": CLIP,
            "samples": 1000, "noise": 0.2, "data_seed": 0,
        })
    }

    /// The command that gives these results again.
    pub fn command(&self) -> String {
        let a = &self.arguments;
        let mut command = "cargo run --release --example audit --".to_string();
        let mut add = |name: &str, value: String, default: &str| {
            if value != default {
                command += &format!(" --{name} {value}");
            }
        };
        add("variant", a.variant.join(","), "");
        add("depth", a.depth.to_string(), "20");
        add("width", a.width.to_string(), "64");
        add("streams", a.streams.to_string(), "4");
        add("sinkhorn-iters", a.sinkhorn_iters.to_string(), "20");
        add("dtype", a.dtype.clone(), "f32");
        add("epochs", a.epochs.to_string(), "20");
        add("seed", a.seed.to_string(), "0");
        if a.all {
            command += " --all";
        }
        command
    }
}
