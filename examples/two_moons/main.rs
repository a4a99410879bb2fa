//! The 20-layer two-moons experiment: what a residual connection does to a gradient on its way down.
//!
//! ```text
//! cargo run --release --example two_moons
//! ```
//!
//! Read `training.rs` for the experiment itself; the rest is arguments, files and figures.

mod figures;
mod files;
mod history;
mod norm;
mod settings;
mod table;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use limpid::nn::data::{Dataset, two_moons};
use limpid::tensor::rng::Key;
use limpid::{DType, tensor};

use settings::Settings;
use training::{Data, Trained};

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

fn main() -> ExitCode {
    match Settings::from_command_line().map_err(Failure::input).and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            let message: Vec<&str> = message.lines().map(str::trim).collect();
            eprintln!("two_moons: {}", message.join("; "));
            ExitCode::from(code)
        }
    }
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let a = &settings.arguments;
    if a.threads > 0 {
        tensor::set_threads(a.threads)?;
    }
    let key = Key::new(a.data_seed).fold_str("data");
    let raw = match &a.data {
        Some(path) => own_points(path)?,
        None => two_moons(a.samples, a.noise, DType::F32, key)?,
    };
    let data = Data::new(raw, key)?;
    files::prepare(&a.out)?;

    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: do not even finish the epoch
        }
    })
    .map_err(|e| Failure::input(format!("Ctrl-C cannot be caught: {e}")))?;

    let say = |line: &str| {
        if !a.quiet {
            println!("{line}");
        }
    };
    say(&format!(
        "{} points, {} to train on; {} layers of width {}; {}",
        data.raw.len(),
        data.train.len(),
        a.depth,
        a.width,
        settings.clip.map_or("no clipping".into(), |clip| format!("gradient norm clipped at {clip}")),
    ));
    let width = settings.name_width();
    for &variant in &settings.variants {
        let model = norm::network(settings, variant, a.seed)?;
        say(&format!("  {variant:<width$} {}", training::memory_line(&model, &data, a.batch)?));
    }
    say("");

    let mut all: Vec<(u64, Vec<Trained>)> = Vec::new();
    for seed in a.seed..a.seed + a.seeds {
        let out = if a.seeds == 1 { a.out.clone() } else { a.out.join(format!("seed-{seed}")) };
        files::prepare(&out)?;
        let runs = train_all(settings, seed, &data, &out, &stop)?;
        if let Some(run) = runs.iter().find(|run| run.interrupted) {
            return Err(Failure {
                message: format!(
                    "interrupted: {} after epoch {}; the same command with --resume goes on from there",
                    run.variant,
                    run.history.metrics.len() - 1
                ),
                code: 130,
            });
        }
        files::write(&out, settings, seed, &data, &runs)?;
        all.push((seed, runs));
    }
    if a.seeds > 1 {
        files::write_seeds(&a.out, &all)?;
    }
    say(&table::closing(settings.name_width(), &all));
    if a.profile {
        for run in all.iter().flat_map(|(_, runs)| runs) {
            say(&format!("{}: {}", run.variant, run.profile));
        }
    }
    say(&format!(
        "Written to {}; open {} in a browser.",
        a.out.display(),
        report_path(a.seeds, a.seed, &a.out).display()
    ));
    Ok(())
}

fn report_path(seeds: u64, first: u64, out: &Path) -> PathBuf {
    match seeds {
        1 => out.join("report.html"),
        _ => out.join(format!("seed-{first}")).join("report.html"),
    }
}

/// Points from a file: two coordinates and two classes.
fn own_points(path: &Path) -> Result<Dataset, Failure> {
    let data = Dataset::read_csv(path, DType::F32)?;
    let found = (data.features().shape()[1], data.classes());
    if found != (2, 2) {
        return Err(Failure::input(format!(
            "{}: expected 2 features and 2 classes, found {} and {}",
            path.display(),
            found.0,
            found.1
        )));
    }
    Ok(data)
}

fn train_all(
    settings: &Settings,
    seed: u64,
    data: &Data,
    out: &Path,
    stop: &AtomicBool,
) -> Result<Vec<Trained>, Failure> {
    let a = &settings.arguments;
    let width = settings.name_width();
    let template = format!("{{prefix:{width}}} {{bar:30}} {{pos:>4}}/{{len}} epochs  {{msg}}");
    let mut runs = Vec::new();
    for &variant in &settings.variants {
        let bar = if a.quiet { ProgressBar::hidden() } else { ProgressBar::new(a.epochs as u64) };
        let style = ProgressStyle::with_template(&template);
        bar.set_style(style.map_err(|e| Failure::input(e.to_string()))?.progress_chars("━━ "));
        bar.set_prefix(variant.name());
        let checkpoint = files::checkpoint(out, variant.name());
        let run = training::train(settings, variant, seed, data, &checkpoint, stop, |epoch, history| {
            bar.set_position(epoch as u64 + 1);
            if let Some(metrics) = history.last() {
                bar.set_message(format!(
                    "loss {:.4}  accuracy {:.3}",
                    metrics.train_loss, metrics.validation_accuracy
                ));
            }
        })?;
        bar.abandon();
        let interrupted = run.interrupted;
        runs.push(run);
        if interrupted {
            break;
        }
    }
    Ok(runs)
}
