//! How fast the kernels are on the card of this machine: beside a copy of its memory, after they were found right.
//!
//! ```text
//! cargo run --release -p limpid-cuda --example measure                 on a card
//! cargo run --release -p limpid-cuda --example measure -- --emulate    the same program on this processor
//! ```
//!
//! `cuda/measure` puts the program and its compiled kernels into one folder, for a machine that has no Rust.

mod breadth;
mod case;
mod cases;
mod clock;
mod keep;
mod operations;
mod peer;
mod report;
mod step;
mod table;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use limpid_cuda::{Cuda, emulated};

use case::Sizes;
use clock::Clock;
use report::{Report, Row};
use targets::Target;

#[derive(Parser, Debug)]
#[command(version, about = "How fast the CUDA backend's kernels are, beside a copy of the card's memory")]
struct Arguments {
    /// Run on this processor, on small tensors (needs g++): to see that everything runs, not how fast
    #[arg(long)]
    emulate: bool,
    /// Bytes of the largest operand of each case that memory bounds
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
    /// Samples of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Only cases whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Do not compare operations with the CPU first
    #[arg(long)]
    unchecked: bool,
    /// Also time the same work with PyTorch, by this script (needs python3 with PyTorch)
    #[arg(long, value_name = "peer.py")]
    peer: Option<PathBuf>,
    /// Also write what is said as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Instead of all that, compile every kernel for every architecture into a folder that LIMPID_CUDA_CACHE may name
    #[arg(long, value_name = "FOLDER", exclusive = true)]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.keep {
        Some(folder) => keep::keep(folder),
        None => measure(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("measure: {message}");
            ExitCode::from(2)
        }
    }
}

/// `false` if an operation is wrong or a case failed.
fn measure(arguments: &Arguments) -> Result<bool, String> {
    if arguments.emulate {
        emulated::install(Default::default()).map_err(|error| error.to_string())?;
    }
    let cuda = Cuda::new(0).map_err(|error| format!("{error}; --emulate needs no card"))?;
    let (sizes, clock) = match arguments.emulate {
        true => (Sizes::tiny(), Clock::of_emulator(cuda)),
        false => (Sizes::of_card(arguments.mib << 20), Clock::of_card(cuda, arguments.samples)),
    };
    println!("{}", table::device(cuda, arguments.emulate));
    let mut report = Report::new(cuda, arguments.emulate);
    if !arguments.unchecked {
        report.operations = operations::compare(cuda)?;
        println!("{}", table::operations(&report.operations));
    }
    let line = |row: &Row, copy: Option<f64>| match arguments.emulate {
        true => table::emulated_row(row),
        false => table::row(row, copy),
    };
    // The table comes at the end, when all of its columns are known.
    let mut show = |row: Row| {
        eprintln!("{}", line(&row, report.copy()));
        report.rows.push(row);
    };
    let cases = cases::all(&sizes).into_iter().chain(breadth::all(&sizes));
    for case in cases.filter(|case| case.is_reference || case.name.contains(&arguments.only)) {
        show(case.measure(cuda, &clock, &sizes));
    }
    for row in step::rows(cuda, &clock, sizes.layers, |name| name.contains(&arguments.only)) {
        show(row);
    }
    if let Some(script) = &arguments.peer
        && let Err(message) = peer::ask(script, &mut report)
    {
        println!("PyTorch does not stand beside limpid: {message}");
    }
    if arguments.emulate {
        report.rows.iter().for_each(|row| println!("{}", line(row, None)));
    } else {
        println!("{}", table::heading());
        report.rows.iter().for_each(|row| println!("{}", line(row, report.copy())));
        println!("{}", table::legend(&clock, &report));
    }
    let mut json = report.to_json();
    // Of some cases alone nothing follows.
    if arguments.only.is_empty() {
        let targets = targets::all(&report);
        println!("{}", table::targets(&targets));
        json["targets"] = targets.iter().map(Target::to_json).collect();
    }
    if let Some(path) = &arguments.json {
        let text = format!("{json:#}\n");
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report.is_right())
}
