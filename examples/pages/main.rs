//! The numbers and the figures of the pages in `docs/` about gradients: where they come from, and what they cost.
//!
//! ```text
//! cargo run --release --example pages
//! ```
//!
//! Each page has a file here that makes what the page shows. It prints its blocks under the page's name, and writes its
//! figures to `docs/figures` (`--out DIR`: elsewhere). A test runs it and compares both with what the pages hold.

mod algebra;
mod gain;
mod one_plus;
mod recomputation;
mod sinkhorn;
mod stack;
mod symmetry;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use limpid::tensor::io::write_atomically;
use limpid::tensor::rng::{Distribution, Key};
use limpid::{DType, Tensor, tensor};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What a page shows.
struct Page {
    /// Its file in `docs/`.
    file: &'static str,
    /// Blocks by name, in the order of the page.
    printed: Vec<(&'static str, String)>,
    /// SVG texts by file name.
    figures: Vec<(&'static str, String)>,
}

/// Prints the numbers of the pages about gradients, and draws their figures.
#[derive(Parser)]
#[command(name = "pages")]
struct Arguments {
    /// The folder for the figures.
    #[arg(long, value_name = "DIR", default_value = "docs/figures")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let out = &arguments.out;
    std::fs::create_dir_all(out).map_err(|e| format!("{}: cannot be written to: {e}", out.display()))?;
    for page in
        [one_plus::page, algebra::page, gain::page, sinkhorn::page, symmetry::page, recomputation::page]
    {
        let Page { file, printed, figures } = page()?;
        for (name, block) in printed {
            println!("docs/{file}: {name}\n{}\n", block.trim_end());
        }
        for (name, svg) in figures {
            write_atomically(out.join(name), |file| file.write_all(svg.as_bytes()))?;
        }
    }
    Ok(())
}

/// Normal numbers in f64.
fn normal(shape: &[usize], std: f64, key: Key) -> tensor::Result<Tensor> {
    Tensor::random(Distribution::Normal { mean: 0.0, std }, shape, DType::F64, key)
}

fn median_and_p99(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() * 99 / 100])
}
