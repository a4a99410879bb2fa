//! How deep can it be? Networks of 5 to 200 layers on two moons, joined in different ways.
//!
//! ```text
//! cargo run --release --example depth_sweep
//! ```
//!
//! Read `run.rs` for what is measured; the rest is arguments, tables, files and figures.

mod figures;
mod files;
mod run;
mod settings;
mod spread;
mod table;

use std::process::ExitCode;

use limpid::tensor::set_threads;

use run::{Data, Run};
use settings::Settings;
use spread::Group;

fn main() -> ExitCode {
    let fail = |message: String, code| {
        let line: Vec<&str> = message.lines().map(str::trim).collect();
        eprintln!("depth_sweep: {}", line.join("; "));
        ExitCode::from(code)
    };
    let settings = match Settings::from_command_line() {
        Ok(settings) => settings,
        Err(message) => return fail(message, 2),
    };
    match sweep(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.to_string(), 1),
    }
}

fn sweep(settings: &Settings) -> Result<(), Box<dyn std::error::Error>> {
    let a = &settings.arguments;
    if a.threads > 0 {
        set_threads(a.threads)?;
    }
    let data = Data::new(a.samples)?;
    let say = |text: &str| {
        if !a.quiet {
            println!("{text}");
        }
    };
    say(&settings.description());
    say("");
    say(&table::training_header());
    let mut runs: Vec<Run> = Vec::new();
    for &depth in &a.depths {
        for &variant in &settings.variants {
            let first = runs.len();
            for seed in settings.seeds() {
                runs.push(run::run(settings, &data, depth, variant, seed)?);
            }
            say(&table::training_row(&Group::new(&runs[first..])));
        }
    }
    let groups: Vec<Group> = runs.chunks(settings.seeds().count()).map(Group::new).collect();
    say(&table::composite(settings, &groups));
    if a.profile {
        let deepest = runs.iter().filter(|run| a.depths.last() == Some(&run.depth) && run.seed == a.seed);
        deepest.for_each(|run| say(&format!("{}, {} layers: {}", run.variant, run.depth, run.profile)));
    }
    files::write(settings, &runs, &groups)?;
    say(&format!("Written to {0}; open {0}/report.html in a browser.", a.out.display()));
    Ok(())
}
