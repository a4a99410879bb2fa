//! The two tables in the terminal, in 80 columns.

use std::fmt::Write;

use crate::settings::{MAP_SAMPLES, Settings};
use crate::spread::{Group, Spread};

/// A gain or a singular value, with four digits or two.
fn gain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        0.001..10.0 => format!("{value:.3}"),
        10.0..100.0 => format!("{value:.2}"),
        100.0..1000.0 => format!("{value:.1}"),
        large if large > 1.0 => format!("{value:.1e}"),
        _ => format!("{value:.0e}"),
    }
}

/// The median, and in brackets the smallest and the largest.
fn with_range(spread: Option<Spread>, number: fn(f64) -> String) -> String {
    match spread {
        Some(Spread { low, median, high }) => {
            format!("{} ({}–{})", number(median), number(low), number(high))
        }
        None => "–".into(),
    }
}

fn median(spread: Option<Spread>, number: fn(f64) -> String) -> String {
    spread.map_or("–".into(), |spread| number(spread.median))
}

pub fn training_header() -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{:<46}│ {:<15} {:<15}", "", "∇ before", "∇ after training");
    let _ = writeln!(
        text,
        "{:<12} {:>6}  {:<19} lost │  second    last  second    last",
        "variant", "layers", "accuracy"
    );
    let _ = write!(text, "{}┼{}", "─".repeat(46), "─".repeat(33));
    text
}

pub fn training_row(group: &Group) -> String {
    let norm = |value: f64| format!("{value:.1e}");
    let accuracy = match group.accuracy() {
        None => "all diverged".into(),
        accuracy => with_range(accuracy, |value| format!("{value:.3}")),
    };
    format!(
        "{:<12} {:>6}  {accuracy:<19} {:>4} │ {:>7} {:>7} {:>7} {:>7}",
        group.variant(),
        group.depth(),
        format!("{}/{}", group.diverged(), group.runs()),
        median(group.before(|run| run.before.second), norm),
        median(group.before(|run| run.before.last), norm),
        median(group.after(|trained| trained.gradient.second), norm),
        median(group.after(|trained| trained.gradient.last), norm),
    )
}

/// What the composite maps do, of the variants that have one; empty if none has.
pub fn composite(settings: &Settings, groups: &[Group]) -> String {
    let with_map = || groups.iter().filter(|group| group.perturbed(|gain| Some(gain.forward)).is_some());
    if with_map().next().is_none() {
        return String::new();
    }
    let mut text = format!(
        "\nThe product of all mixes from the first block to the last, in the worst of the\n\
         first {MAP_SAMPLES} samples. forward: largest absolute row sum; back: largest column sum;\n\
         σ₂: second singular value. Perturbed: N(0, {}²) added to the mixing.\n\n",
        settings.arguments.perturbation,
    );
    let _ = writeln!(text, "{:<19} │ {:<35} │ after training", "", "perturbed, before training");
    let _ = writeln!(
        text,
        "{:<12} {:>6} │ {:<19} {:>7} {:>7} │ {:>6} {:>6} {:>5}",
        "variant", "layers", "forward", "back", "σ₂", "forw.", "back", "σ₂"
    );
    let _ = writeln!(text, "{}┼{}┼{}", "─".repeat(20), "─".repeat(37), "─".repeat(20));
    for group in with_map() {
        let _ = writeln!(
            text,
            "{:<12} {:>6} │ {:<19} {:>7} {:>7} │ {:>6} {:>6} {:>5}",
            group.variant(),
            group.depth(),
            with_range(group.perturbed(|gain| Some(gain.forward)), gain),
            median(group.perturbed(|gain| Some(gain.backward)), gain),
            median(group.perturbed(|gain| gain.second), gain),
            median(group.learned(|gain| Some(gain.forward)), gain),
            median(group.learned(|gain| Some(gain.backward)), gain),
            median(group.learned(|gain| gain.second), gain),
        );
    }
    text
}
