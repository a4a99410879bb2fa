//! The table in the terminal, in 92 columns.

use limpid_cuda::Cuda;

use crate::clock::Clock;
use crate::operations::{Compared, Found};
use crate::report::{Rate, Report, Row};
use crate::targets::Target;

pub fn device(cuda: &Cuda, is_emulated: bool) -> String {
    let properties = cuda.properties();
    let (major, minor) = properties.capability;
    let gib = properties.memory as f64 / (1u64 << 30) as f64;
    let what =
        if is_emulated { "EMULATED: these times are this processor's and measure nothing\n" } else { "" };
    format!(
        "{what}{}, capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB",
        cuda.model(),
        properties.multiprocessors
    )
}

/// How many operations are right, and each that is not.
pub fn operations(all: &[Compared]) -> String {
    let wrong: Vec<&Compared> = all.iter().filter(|one| !one.is_right()).collect();
    let mut text = format!("{} operations compared with the CPU: {} wrong", all.len(), wrong.len());
    for one in wrong {
        let why = match &one.found {
            Err(message) => message.clone(),
            Ok(Found { same_bits: false, .. }) => "other bits the second time".into(),
            Ok(Found { distance, .. }) => {
                format!("{:.1} roundings off, allowed {}", distance.roundings, distance.allowed)
            }
        };
        text += &format!("\n  WRONG {}: {why}", one.name);
    }
    text
}

pub fn heading() -> String {
    let line = "─".repeat(92);
    format!("\n{:<47} {:>10} {:>6} {:>14} {:>11}\n{line}", "", "µs", "±", "rate", "% copy/lib.")
}

/// A row, beside the bytes a second of the copy and the time of the library.
pub fn row(row: &Row, copy: Option<f64>) -> String {
    let (time, rate) = match &row.measured {
        Ok(measured) => measured,
        Err(message) => return format!("{:<47} FAILED: {message}", row.name),
    };
    let rate = match rate {
        Rate::Bytes(bytes) => format!("{:.1} GB/s", bytes / time.microseconds / 1e3),
        Rate::Operations(operations) => format!("{:.1} TFLOP/s", operations / time.microseconds / 1e6),
        Rate::None => String::new(),
    };
    let percent = |part: Option<f64>| part.map(|part| format!("{:.0}", 100.0 * part)).unwrap_or_default();
    let of_copy = row.bandwidth().zip(copy).map(|(of_this, of_copy)| of_this / of_copy);
    let line = format!(
        "{:<47} {:>10.2} {:>5.1}% {rate:>14} {:>5} {:>5}",
        row.name,
        time.microseconds,
        100.0 * time.spread,
        percent(of_copy),
        percent(row.of_library()),
    );
    line.trim_end().to_string()
}

/// A row of an emulator: that it ran, and nothing that could be taken for a card's.
pub fn emulated_row(row: &Row) -> String {
    match &row.measured {
        Ok((time, _)) => {
            format!("{:<47} ran, in {:.1} ms of this processor", row.name, time.microseconds / 1e3)
        }
        Err(message) => format!("{:<47} FAILED: {message}", row.name),
    }
}

/// The aims, and how many rows stand to each.
pub fn targets(all: &[Target]) -> String {
    let mut text = String::from("\nWhat was aimed at:");
    for target in all {
        let verdict = target.verdict().words();
        text += &format!("\n  {verdict:<12}  {} ({} rows)", target.sentence, target.rows());
        for (name, part) in target.missed() {
            text += &format!("\n{:16}{name}: {:.0} % of the way", "", 100.0 * part);
        }
    }
    text
}

pub fn legend(clock: &Clock, report: &Report) -> String {
    let library = match &report.library {
        Some(by) => {
            format!("lib.: the time of {by}, the faster of eager and compiled, as a part of the time here.")
        }
        None => "lib.: no library was asked.".to_string(),
    };
    let samples = format!(
        "Medians of {} samples of {} ms or more; ±: half of what lies between the shortest and the longest.",
        clock.samples,
        clock.shortest.as_millis()
    );
    format!(
        "\nGB/s: each element of the operands read once, each of the results written once, whatever a kernel moves.\n\
         copy: the rate as a part of that of the first row, a copy by the driver.\n{library}\n{samples}"
    )
}
