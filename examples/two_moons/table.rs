//! The closing table: the point of the experiment at a glance, in 80 columns.

use std::fmt::Write;

use crate::history::History;
use crate::training::Trained;

/// Gradient norms at the first step, layer by layer, on one logarithmic scale for all rows.
fn profile(norms: &[f64], most: usize, low: f64, high: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = norms.len().min(most);
    (0..shown)
        .map(|i| {
            let norm = norms[i * norms.len() / shown.max(1)];
            let t = (norm.log10() - low) / (high - low).max(1e-9);
            BARS[((t * 8.0) as usize).min(7)]
        })
        .collect()
}

/// The smallest, the mean and the largest of some numbers.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (low, values.iter().sum::<f64>() / values.len() as f64, high)
}

/// One row per variant over all seeds, with so much room for their names; then what diverged.
pub fn closing(width: usize, all: &[(u64, Vec<Trained>)]) -> String {
    let first_steps = || all.iter().flat_map(|(_, runs)| runs).map(|run| run.history.first_step());
    let norms: Vec<f64> = first_steps().flatten().copied().filter(|&norm| norm > 0.0).collect();
    let (low, _, high) = spread(&norms);
    let mut text = String::new();
    // What is left of 80 columns, and the words that fit there.
    let room = 29 - width;
    let across = if room >= 18 { "first → last layer" } else { "first → last" };
    let _ =
        writeln!(text, "{:<width$}                        │ gradient norm of the weights, first step", "");
    let _ =
        writeln!(text, "{:<width$} accuracy        loss   │  second   middle     last  {across}", "variant");
    let _ = writeln!(text, "{}┼{}", "─".repeat(width + 24), "─".repeat(55 - width));
    let mut diverged = String::new();
    for i in 0..all[0].1.len() {
        let runs: Vec<(u64, &Trained)> = all.iter().map(|(seed, runs)| (*seed, &runs[i])).collect();
        let finished: Vec<&History> =
            runs.iter().map(|(_, run)| &run.history).filter(|history| history.divergence.is_none()).collect();
        let last = |f: fn(&History) -> Option<f64>| -> Vec<f64> {
            finished.iter().filter_map(|history| f(history)).collect()
        };
        let accuracies = last(|history| Some(history.last()?.validation_accuracy));
        let losses = last(|history| Some(history.last()?.train_loss));
        let accuracy = match (accuracies.as_slice(), runs.len()) {
            ([], _) => "diverged".to_string(),
            ([one], 1) => format!("{one:.3}"),
            (some, all) if some.len() < all => {
                format!("{}/{all} diverged", all - some.len())
            }
            (all, _) => {
                let (low, _, high) = spread(all);
                format!("{low:.3}–{high:.3}")
            }
        };
        let loss = if losses.is_empty() { "–".to_string() } else { format!("{:.4}", spread(&losses).1) };
        let mean_at = |layer: usize| -> f64 {
            let at: Vec<f64> =
                runs.iter().filter_map(|(_, run)| run.history.first_step().get(layer).copied()).collect();
            spread(&at).1
        };
        let depth = runs[0].1.history.layers.len();
        let means: Vec<f64> = (0..depth).map(mean_at).collect();
        let _ = writeln!(
            text,
            "{:<width$} {accuracy:<12}  {loss:>7}  │ {:>7.1e}  {:>7.1e}  {:>7.1e}  {}",
            runs[0].1.variant,
            means[1.min(depth - 1)],
            means[depth / 2],
            means[depth - 1],
            profile(&means, room, low.log10(), high.log10()),
        );
        for (seed, run) in runs {
            if let Some(d) = &run.history.divergence {
                let seed = if all.len() > 1 { format!(" (seed {seed})") } else { String::new() };
                let _ = writeln!(
                    diverged,
                    "{}{seed} diverged in epoch {}, step {}:\n  {}",
                    run.variant, d.epoch, d.step, d.cause
                );
            }
        }
    }
    if !diverged.is_empty() {
        let _ = write!(text, "\n{diverged}");
    }
    text
}
