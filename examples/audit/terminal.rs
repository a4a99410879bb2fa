//! What the terminal shows, in 80 columns.

use std::fmt::Write;

use limpid::autograd::format_bytes;

use crate::Run;
use crate::measure::{Audit, Block};
use crate::settings::Settings;

/// A number in seven columns.
fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => value.to_string(),
        0.0 => "0".into(),
        size if (0.01..100.0).contains(&size) => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or("–".into(), short)
}

/// A share in per cent.
fn percent(share: f64) -> String {
    match 100.0 * share {
        share if share.abs() < 1000.0 => format!("{share:.0}%"),
        share => format!("{share:.0e}%"),
    }
}

/// `before → after`, or what there is.
fn change(audits: &[Audit], f: impl Fn(&Audit) -> String) -> String {
    audits.iter().map(f).collect::<Vec<_>>().join(" → ")
}

/// One line as soon as a network is done.
pub fn progress(run: &Run) -> String {
    format!("{:<12} {}", run.variant(), outcome(run))
}

fn outcome(run: &Run) -> String {
    let (loss, accuracy) = run.network.evaluation;
    match &run.network.divergence {
        Some((epoch, step, cause)) => format!("diverged in epoch {epoch}, step {step}\n  {cause}"),
        None => format!("validation loss {loss:.4}, accuracy {accuracy:.3}"),
    }
}

/// The tables of one network.
pub fn network(settings: &Settings, run: &Run) -> String {
    let a = &settings.arguments;
    let mut text = String::new();
    let training = match a.epochs {
        0 => "not trained".to_string(),
        epochs => format!("{epochs} epochs on two moons"),
    };
    let (variant, depth, width) = (run.variant(), a.depth, a.width);
    let _ = writeln!(text, "{variant}: {}", variant.formula());
    let _ = writeln!(text, "{depth} layers of width {width}, {}, {training}", a.dtype);
    let _ = writeln!(text, "{}\n", outcome(run));
    gradients(run, &mut text);
    blocks(run, &mut text);
    streams(run, &mut text);
    spectrum(run.last(), &mut text);
    let last = run.last();
    let saved = last.saved_per_block().map_or(String::new(), |b| format!(", {} a block", format_bytes(b)));
    let _ = writeln!(text, "Kept for the derivative of one batch: {}{saved}", last.held_text());
    text
}

fn gradients(run: &Run, text: &mut String) {
    let _ = writeln!(text, "Gradient norm of each layer's weight, {}", moments(run));
    for (i, name) in run.network.layers.iter().enumerate() {
        let _ = writeln!(text, "  {name:<22} {}", change(&run.audits, |a| short(a.weight_norms[i])));
    }
    let _ = writeln!(text);
}

fn moments(run: &Run) -> String {
    change(&run.audits, |audit| audit.moment.to_string())
}

/// Of each block: who hands the gradient on, and how far the branch stretches.
fn blocks(run: &Run, text: &mut String) {
    let Some(_) = run.last().blocks.first() else { return };
    let _ = writeln!(text, "Share of the gradient at each block's input, and the branch Jacobian's largest");
    let _ = writeln!(text, "singular value (σ₁), {}", moments(run));
    let _ = writeln!(text, "  block             skip         branch       control      other        σ₁");
    for (i, block) in run.last().blocks.iter().enumerate() {
        let share = |k: usize| {
            change(&run.audits, |a| a.blocks[i].shares.map_or("–".into(), |s| percent(s.values()[k])))
        };
        let stretch = change(&run.audits, |a| optional(a.blocks[i].jacobian.first().copied()));
        let shares: Vec<String> = (0..4).map(|k| format!("{:<12}", share(k))).collect();
        let _ = writeln!(text, "  {:<17} {} {stretch}", tail(&block.scope, 17), shares.join(" "));
    }
    let _ = writeln!(text);
}

/// The composite map from the first block's input on.
fn streams(run: &Run, text: &mut String) {
    let Some(first) = run.last().blocks.first() else { return };
    let streams = first.composite.streams;
    let _ = writeln!(text, "From the first block's input to each block's output, without crossing a branch:");
    let _ = writeln!(text, "composite map of {streams} stream(s), {}", run.last().moment);
    let _ =
        writeln!(text, "  block               gain   gain back  σ₂        |λ₂|      cosine    sums off 1 by");
    for Block { scope, composite: c, .. } in &run.last().blocks {
        let _ = writeln!(
            text,
            "  {:<17}   {:<6} {:<10} {:<9} {:<9} {:<9} {}",
            tail(scope, 17),
            short(c.forward_gain),
            short(c.backward_gain),
            optional(c.sigma_2),
            optional(c.lambda_2),
            optional(c.cosine),
            short(c.row_error.max(c.column_error)),
        );
    }
    let spread = run.last().blocks.iter().map(|b| b.composite.spread).fold(0.0, f64::max);
    if spread > 1e-3 {
        let _ = writeln!(
            text,
            "The map differs between channels, by up to {}: these numbers are its mean.",
            short(spread)
        );
    }
    let _ = writeln!(text);
}

/// A bar for each number of branches.
fn spectrum(audit: &Audit, text: &mut String) {
    let _ = writeln!(text, "Share of the gradient at the first block by branches crossed, {}", audit.moment);
    let _ =
        writeln!(text, "(taken apart where the network stands now; shares sum to 1, some may be negative)");
    let largest = audit.spectrum.iter().filter_map(|t| t.share).fold(0.0, |m: f64, s| m.max(s.abs()));
    for term in &audit.spectrum {
        let Some(share) = term.share else { continue };
        if share.abs() < 5e-4 {
            continue;
        }
        let bar = "█".repeat((40.0 * share.abs() / largest).round() as usize);
        let control = if term.through_control { "+ control" } else { "" };
        let _ = writeln!(text, "  {:>3} {control:<9} {:>7} {bar}", term.branches, percent(share));
    }
    let _ = writeln!(text);
}

/// The end of a text that is too long.
fn tail(text: &str, width: usize) -> String {
    let skipped = text.chars().count().saturating_sub(width);
    text.chars().skip(skipped).collect()
}

/// All networks, a line each.
pub fn comparison(runs: &[Run]) -> String {
    let mut text = String::from(
        "\n             accu- gradient norm    mean share, %       composite map       kept\n\
         variant       racy second    last  skip brnch ctrl    gain    σ₂   cos  a block\n",
    );
    let _ = writeln!(text, "{}", "─".repeat(80));
    for run in runs {
        let audit = run.last();
        let depth = audit.weight_norms.len();
        let accuracy = match run.network.divergence {
            Some(_) => "div.".to_string(),
            None => format!("{:.3}", run.network.evaluation.1),
        };
        let shares = audit.mean_shares().map(|s| s.values());
        let share = |k: usize| shares.map_or("–".into(), |s| format!("{:.0}", 100.0 * s[k]));
        let composite = audit.composite();
        let decimals = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.2}"));
        let _ = writeln!(
            text,
            "{:<12} {accuracy:>5} {:>7.0e} {:>7.0e} {:>5} {:>5} {:>4} {:>7} {:>5} {:>5} {:>9}",
            run.variant().name(),
            audit.weight_norms[1.min(depth - 1)],
            audit.weight_norms[depth - 1],
            share(0),
            share(1),
            share(2),
            composite.map_or("–".into(), |c| short(c.forward_gain)),
            decimals(composite.and_then(|c| c.sigma_2)),
            decimals(composite.and_then(|c| c.cosine)),
            audit.saved_per_block().map_or("–".into(), format_bytes),
        );
    }
    text
}
