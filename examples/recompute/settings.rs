//! What a person can ask for on the command line, checked before anything runs.

use std::path::PathBuf;

use clap::Parser;
use limpid::DType;
use limpid::autograd::plan::{Budget, Every};
use limpid::nn::Activation;
use serde_json::{Value, json};

use crate::network::Sizes;

/// Keeps, drops and computes again: one network under six plans, side by side.
///
/// The network is a deep stack of mHC blocks. Without arguments it takes under a minute on one core.
#[derive(Parser, Debug, Clone)]
#[command(name = "recompute", version, max_term_width = 80, after_help = EXAMPLES)]
pub struct Arguments {
    /// L, residual blocks
    #[arg(long, default_value_t = 60, value_name = "L", help_heading = "Network")]
    pub depth: usize,
    /// n, streams
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Network")]
    pub streams: usize,
    /// C, channels of a stream
    #[arg(long, default_value_t = 64, value_name = "C", help_heading = "Network")]
    pub width: usize,
    /// Tokens in the batch
    #[arg(long, default_value_t = 256, value_name = "T", help_heading = "Network")]
    pub tokens: usize,
    /// f32 or f64
    #[arg(long, default_value = "f32", help_heading = "Network")]
    pub dtype: String,

    /// Save the streams before every k-th block in the plan `connections`, instead of the spacing of mHC's formula
    #[arg(long, value_name = "K", help_heading = "Plans")]
    pub every: Option<usize>,
    /// Also the plan that repeats the fewest operations with a peak of at most so many bytes (12MiB, 800KiB, 1000000)
    #[arg(long, value_name = "BYTES", help_heading = "Plans")]
    pub budget: Option<String>,
    /// Print one plan, a line per value, and run nothing
    #[arg(long, value_name = "NAME", conflicts_with = "diff", help_heading = "Plans")]
    pub plan: Option<String>,
    /// Print where two plans part, and run nothing
    #[arg(long, num_args = 2, value_names = ["A", "B"], help_heading = "Plans")]
    pub diff: Option<Vec<String>>,

    /// Timed rounds; in each, every plan runs without hashes and with them
    #[arg(long, default_value_t = 9, value_name = "N", help_heading = "Measurement")]
    pub rounds: usize,
    /// Threads for large operations; the gradients are the same for any number
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Measurement")]
    pub threads: usize,

    /// Where to write the figure and the plans
    #[arg(long, default_value = "out/recompute", value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Also find out where the time goes, in three more passes under each plan, with hashes. Tables, profile.json, and
    /// trace.json for ui.perfetto.dev or chrome://tracing
    #[arg(long, help_heading = "Output")]
    pub profile: bool,
    /// Print nothing but errors
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Plans: everything, norms-activations, connections, blocks-root,
blocks-balanced, nothing

Examples:
  recompute --depth 200                     deeper
  recompute --every 4                       the state before every 4th block
  recompute --budget 8MiB                   the best within 8 MiB
  recompute --plan blocks-root              what becomes of every value
  recompute --diff everything connections   the values of which two plans differ";

/// A block of this width has some ten million weights.
const MAX_WIDTH: usize = 1024;
/// A network of this depth takes half a minute to plan.
const MAX_DEPTH: usize = 10_000;
const MAX_STREAMS: usize = 64;
const MAX_TOKENS: usize = 1 << 20;
/// More would only be started and never used.
const MAX_THREADS: usize = 64;

/// The arguments in their final form.
pub struct Settings {
    pub arguments: Arguments,
    pub sizes: Sizes,
    /// The spacing of the streams saved in the plan `connections`.
    pub every: Every,
    pub budget: Option<Budget>,
}

/// A number of bytes as a person writes it.
fn bytes(text: &str) -> Option<usize> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1), ("", 1)];
    let (number, unit) = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * f64::from(unit)) as usize)
}

impl Settings {
    /// Reads the command line. Help goes to the terminal; anything wrong is one line.
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
        Settings::check(arguments)
    }

    fn check(arguments: Arguments) -> Result<Settings, String> {
        let a = &arguments;
        for (name, found, most) in [
            ("depth", a.depth, MAX_DEPTH),
            ("streams", a.streams, MAX_STREAMS),
            ("width", a.width, MAX_WIDTH),
            ("tokens", a.tokens, MAX_TOKENS),
            ("every", a.every.unwrap_or(1), MAX_DEPTH),
            ("rounds", a.rounds, 1000),
            ("threads", a.threads, MAX_THREADS),
        ] {
            if found < 1 {
                return Err(format!("--{name}: expected at least 1, found {found}"));
            }
            if found > most {
                return Err(format!("--{name}: expected at most {most}, found {found}"));
            }
        }
        let dtype = match a.dtype.as_str() {
            "f32" => DType::F32,
            "f64" => DType::F64,
            other => return Err(format!("--dtype: expected f32 or f64, found {other:?}")),
        };
        let sizes = Sizes {
            depth: a.depth,
            streams: a.streams,
            width: a.width,
            tokens: a.tokens,
            dtype,
            activation: Activation::Silu,
        };
        let every = a.every.map_or(Every::Balanced, Every::Nth);
        let budget = a.budget.as_ref().map(|text| {
            let expected = || format!("--budget: expected a number of bytes such as 12MiB, found {text:?}");
            bytes(text).map(Budget).ok_or_else(expected)
        });
        let budget = budget.transpose()?;
        Ok(Settings { sizes, every, budget, arguments })
    }

    /// The network in a line.
    pub fn network(&self) -> String {
        let Sizes { depth, streams, width, tokens, dtype, .. } = self.sizes;
        format!("{depth} mHC blocks, {streams} streams of {width} channels, {tokens} tokens, {dtype}")
    }

    /// Everything that changes a number in the results.
    pub fn to_json(&self) -> Value {
        let a = &self.arguments;
        json!({
            "depth": a.depth, "streams": a.streams, "width": a.width, "tokens": a.tokens, "dtype": a.dtype,
            "every": a.every, "budget": self.budget.map(|budget| budget.0), "rounds": a.rounds, "threads": a.threads,
        })
    }

    /// The command that gives these results again.
    pub fn command(&self) -> String {
        let a = &self.arguments;
        let d = Arguments::parse_from(["recompute"]);
        let options = [
            ("depth", a.depth.to_string(), d.depth.to_string()),
            ("streams", a.streams.to_string(), d.streams.to_string()),
            ("width", a.width.to_string(), d.width.to_string()),
            ("tokens", a.tokens.to_string(), d.tokens.to_string()),
            ("dtype", a.dtype.clone(), d.dtype),
            ("every", a.every.map_or(String::new(), |k| k.to_string()), String::new()),
            ("budget", a.budget.clone().unwrap_or_default(), String::new()),
            ("rounds", a.rounds.to_string(), d.rounds.to_string()),
            ("threads", a.threads.to_string(), d.threads.to_string()),
        ];
        let given = options.iter().filter(|(_, value, default)| value != default);
        let given: String = given.map(|(name, value, _)| format!(" --{name} {value}")).collect();
        let command = "cargo run --release --example recompute";
        if given.is_empty() { command.into() } else { format!("{command} --{given}") }
    }
}
