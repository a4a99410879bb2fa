//! The kernels of the CUDA backend: which there are, what they take, and what they do, on a card or on this processor.
//!
//! ```text
//! cargo run --release --example kernels                                  every kernel
//! cargo run --release --example kernels -- --kernel 'softmax*' --check   run some, every access checked
//! ```

mod compile;
mod demos;
mod list;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser, Debug)]
#[command(version, about = "The kernels of the CUDA backend: which there are, what they take, what they do", after_help = EXAMPLES)]
struct Arguments {
    /// Run the operations that launch these kernels; `*` stands for anything. Without --emulate or --check on a card
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Of these operations, only those whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Run on this processor instead of a card (needs g++)
    #[arg(long)]
    emulate: bool,
    /// The same, with every access checked, and the memory traffic of every line counted
    #[arg(long)]
    check: bool,
    /// How many orders of streams, blocks and threads to try
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Leave out operations that have a result of more elements
    #[arg(long, value_name = "ELEMENTS", default_value_t = usize::MAX, hide_default_value = true)]
    up_to: usize,
    /// Show what each lane of one warp does: the block's number and the warp's; implies --check
    #[arg(long, value_name = "BLOCK:WARP", num_args = 0..=1, default_missing_value = "0:0", value_parser = warp)]
    trace: Option<(u32, u32)>,
    /// Compile every kernel for every architecture (needs NVRTC), and say what each takes; spills, lost speed and stacks that are not listed are errors
    #[arg(long)]
    compile: bool,
    /// Where --compile writes its table
    #[arg(long, value_name = "FILE.md", requires = "compile")]
    table: Option<PathBuf>,
    /// Also write what is said as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kernels                                       every kernel, by file
  kernels --kernel sum_rows_f32_f32 --check     one kernel: findings, traffic of each line
  kernels --kernel '*' --check --seeds 20       everything, in twenty orders
  kernels --kernel '*' --check --seeds 100 --up-to 1000
                                                what is small, in a hundred
  kernels --kernel softmax_f32_warp --trace     what the lanes of the first warp do
  kernels --compile                             registers, shared memory, spills";

fn warp(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once(':').and_then(|(block, warp)| Some((block.parse().ok()?, warp.parse().ok()?)));
    parsed.ok_or_else(|| "expected BLOCK:WARP, two numbers".into())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments {
        Arguments { compile: true, .. } => compile::compile(&arguments),
        Arguments { kernel: None, emulate: false, check: false, trace: None, .. } => list::list(&arguments),
        _ => run::run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("kernels: {message}");
            ExitCode::from(2)
        }
    }
}

/// Writes JSON where it was asked for.
fn write_json(path: &Option<PathBuf>, value: &serde_json::Value) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, format!("{value:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((front, rest)) => {
            let Some(tail) = name.strip_prefix(front) else { return false };
            (0..=tail.len()).any(|i| tail.is_char_boundary(i) && fits(&tail[i..], rest))
        }
    }
}
