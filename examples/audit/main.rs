//! Audits a network, or one for every residual connection side by side: where its gradient comes from, layer by layer,
//! before and after training.
//!
//! ```text
//! cargo run --release --example audit -- --variant mhc --depth 20
//! cargo run --release --example audit -- --all
//! ```
//!
//! Read `measure.rs` for what is measured and how; `network.rs` trains, the rest is arguments, tables, figures and files.

mod figures;
mod files;
mod measure;
mod network;
mod page;
mod settings;
mod terminal;

use std::process::ExitCode;

use limpid::nn::data::two_moons;
use limpid::nn::residual::Variant;
use limpid::tensor;
use limpid::tensor::rng::Key;

use measure::Audit;
use network::{Data, Network};
use settings::Settings;

/// Why the program ends early: a line for the terminal, and its exit code.
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Something the user gave is not as it has to be.
    pub fn input(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 2 }
    }
}

impl From<limpid::nn::Error> for Failure {
    fn from(error: limpid::nn::Error) -> Failure {
        Failure::input(error.to_string())
    }
}

impl From<tensor::Error> for Failure {
    fn from(error: tensor::Error) -> Failure {
        Failure::input(error.to_string())
    }
}

impl From<limpid::autograd::Error> for Failure {
    fn from(error: limpid::autograd::Error) -> Failure {
        Failure { message: error.to_string(), code: 1 }
    }
}

/// A network, and its audits: before training, and after it if it was trained.
pub struct Run {
    /// As it is now.
    pub network: Network,
    /// In order of time.
    pub audits: Vec<Audit>,
    /// The program of the last audit in every form.
    pub tape: measure::TapeTexts,
}

impl Run {
    /// How its layers are joined.
    pub fn variant(&self) -> Variant {
        self.network.variant
    }

    /// The audit of the network as it is now.
    pub fn last(&self) -> &Audit {
        &self.audits[self.audits.len() - 1]
    }
}

fn main() -> ExitCode {
    match Settings::from_command_line().map_err(Failure::input).and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            let message: Vec<&str> = message.lines().map(str::trim).collect();
            eprintln!("audit: {}", message.join("; "));
            ExitCode::from(code)
        }
    }
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let a = &settings.arguments;
    let key = Key::new(0).fold_str("data");
    let data = Data::new(two_moons(1000, 0.2, settings.dtype, key)?, key)?;
    files::prepare(&a.out)?;
    let say = |line: &str| {
        if !a.quiet {
            println!("{line}");
        }
    };
    let mut runs = Vec::new();
    for &variant in &settings.variants {
        let run = audited(settings, variant, &data)?;
        if settings.variants.len() > 1 {
            say(&terminal::progress(&run));
        }
        runs.push(run);
    }
    let figures = figures::draw(&data, &runs)?;
    files::write(settings, &data, &runs, &figures)?;
    match &runs[..] {
        [run] => say(&terminal::network(settings, run)),
        runs => say(&terminal::comparison(runs)),
    }
    if a.profile {
        runs.iter().for_each(|run| say(&format!("{}: {}", run.variant(), run.network.profile)));
    }
    say(&format!("Written to {}", a.out.display()));
    say(&format!("Open {} in a browser.", a.out.join("report.html").display()));
    Ok(())
}

/// A network of this variant, audited, trained and audited again.
fn audited(settings: &Settings, variant: Variant, data: &Data) -> Result<Run, Failure> {
    let mut network = Network::new(settings, variant, data)?;
    let (before, mut tape) = measure::audit(&network, data, settings.arguments.seed, "before training")?;
    let mut audits = vec![before];
    if settings.arguments.epochs > 0 {
        network.train(settings, data)?;
        let (after, texts) = measure::audit(&network, data, settings.arguments.seed, "after training")?;
        audits.push(after);
        tape = texts;
    }
    Ok(Run { network, audits, tape })
}
