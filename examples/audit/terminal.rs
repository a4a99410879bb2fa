//! What the terminal shows, in 80 columns.

use std::fmt::Write;

use limpid::autograd::format_bytes;

use crate::Run;
use crate::figures::by_length;
use crate::measure::{Audit, Block, CAP, Composite};
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
        share if share.abs() < 0.5 => "0%".into(),
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
    let _ = writeln!(text, "Signed shares of the gradient at each block's input, and the largest singular");
    let _ = writeln!(text, "value of the branch's Jacobian (σ₁), {}", moments(run));
    let _ = writeln!(text, "  block             skip         branch       control      σ₁");
    for (i, block) in run.last().blocks.iter().enumerate() {
        let share = |k: usize| {
            change(&run.audits, |a| a.blocks[i].shares.map_or("–".into(), |s| percent(s.values()[k])))
        };
        let stretch = change(&run.audits, |a| optional(a.blocks[i].jacobian.first().copied()));
        let shares: Vec<String> = (0..3).map(|k| format!("{:<12}", share(k))).collect();
        let _ = writeln!(text, "  {:<17} {} {stretch}", tail(&block.scope, 17), shares.join(" "));
    }
    let other = run.last().blocks.iter().filter_map(|block| block.shares).map(|s| s.other.abs());
    let other = other.fold(0.0, f64::max);
    if other >= 5e-3 {
        let _ = writeln!(text, "The rest, up to {}, came by no marked edge or by several.", percent(other));
    }
    let _ = writeln!(text);
}

/// The composite map from the first block's input on.
fn streams(run: &Run, text: &mut String) {
    let Some(first) = run.last().blocks.first() else { return };
    let several = first.composite.streams > 1;
    let _ = writeln!(text, "The composite map from the first block's input to each block's output: what");
    let _ = writeln!(text, "gets there without crossing a branch, {}", run.last().moment);
    let header = "  block              gain    back";
    let rest = "       σ₂     |λ₂|   cosine  sums off 1 by";
    let _ = writeln!(text, "{header}{}", if several { rest } else { "" });
    for Block { scope, composite: c, .. } in &run.last().blocks {
        let gains = format!("{:>7} {:>7}", short(c.forward_gain), short(c.backward_gain));
        let _ = write!(text, "  {:<14} {gains}", tail(scope, 14));
        if several {
            let [sigma, lambda, cosine] = [c.sigma_2, c.lambda_2, c.cosine].map(optional);
            let off = short(c.row_error.max(c.column_error));
            let _ = write!(text, " {sigma:>8} {lambda:>8} {cosine:>8}  {off:>13}");
        }
        let _ = writeln!(text);
    }
    let spread = run.last().blocks.iter().map(|b| b.composite.spread).fold(0.0, f64::max);
    if !run.last().blocks.iter().all(|block| block.composite.is_of_streams()) {
        let _ = writeln!(text, "Channels differ in this map, by up to {}: it is their mean.", short(spread));
    }
    let _ = writeln!(text);
}

/// A bar for each number of branches.
fn spectrum(audit: &Audit, text: &mut String) {
    let _ = writeln!(text, "Signed share of the gradient at the first block by branches crossed,");
    let _ = writeln!(text, "{}, at the point where the network stands; the shares sum to 1", audit.moment);
    let _ = writeln!(text, "  branches    share  of it through a coefficient");
    let shares = by_length(audit);
    let largest = shares.iter().fold(0.0, |most: f64, (share, _)| most.max(share.abs()));
    for (k, (all, control)) in
        shares.iter().enumerate().filter(|(_, s)| s.0.abs() >= 5e-4 || s.1.abs() >= 5e-4)
    {
        let k = if k > CAP { format!(">{CAP}") } else { k.to_string() };
        let bar = "█".repeat((30.0 * all.abs() / largest).round() as usize);
        let control = if *control == 0.0 { String::new() } else { percent(*control) };
        let _ = writeln!(text, "  {k:>8}  {:>7} {control:>8}  {bar}", percent(*all));
    }
    let _ = writeln!(text);
}

/// The end of a text that is too long.
fn tail(text: &str, width: usize) -> String {
    let skipped = text.chars().count().saturating_sub(width);
    text.chars().skip(skipped).collect()
}

/// The forward gain; after ≈ if channels differ and it is of their mean.
fn gain(map: &Composite) -> String {
    format!("{}{}", if map.is_of_streams() { "" } else { "≈" }, short(map.forward_gain))
}

/// All networks, a line each.
pub fn comparison(runs: &[Run]) -> String {
    let mut text = String::from(
        "\n             accu- gradient norm   mean share, %     composite map      kept\n\
         variant       racy second   last  skip brnch ctrl    gain    σ₂   cos   a block\n",
    );
    let _ = writeln!(text, "{}", "─".repeat(79));
    for run in runs {
        let audit = run.last();
        let depth = audit.weight_norms.len();
        let accuracy = match run.network.divergence {
            Some(_) => "div.".to_string(),
            None => format!("{:.3}", run.network.evaluation.1),
        };
        let shares = audit.mean_shares().map(|s| s.values());
        let share = |k: usize| shares.map_or("–".into(), |s| percent(s[k]).replace('%', ""));
        let composite = audit.composite();
        let decimals = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.2}"));
        let _ = writeln!(
            text,
            "{:<12} {accuracy:>5} {:>6.0e} {:>6.0e} {:>5} {:>5} {:>4} {:>7} {:>5} {:>5} {:>9}",
            run.variant().name(),
            audit.weight_norms[1.min(depth - 1)],
            audit.weight_norms[depth - 1],
            share(0),
            share(1),
            share(2),
            composite.map_or("–".into(), gain),
            decimals(composite.and_then(|c| c.sigma_2)),
            decimals(composite.and_then(|c| c.cosine)),
            audit.saved_per_block().map_or("–".into(), format_bytes),
        );
    }
    text
}
