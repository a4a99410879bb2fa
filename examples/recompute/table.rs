//! The table in the terminal, in 80 columns.

use std::fmt::Write;

use limpid::autograd::format_bytes;
use limpid::autograd::plan::Plan;

use crate::measure::{Measured, Measurement};
use crate::policies;

const EXPLANATION: &str = "
k       the state of the streams is saved before every k-th block
held    bytes held when the backward pass begins
peak    the most held at any time, and that in % of the first plan's
again   operations computed again, in % of those of the forward pass
time    a forward and a backward pass, as a ratio to the first plan's
hashed  the same, with every value that comes back compared by its hash
bits    same: loss and every gradient have the bits they have in the first plan
plan    same: the run took what was planned, byte for byte, step by step
";

pub fn table(plans: &[Plan], measurement: &Measurement, rounds: usize) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<17} {:>3} {:>9} {:>9} {:>5} {:>7} {:>5} {:>6} {:>5} {:>4}",
        "policy", "k", "held", "peak", "%", "again", "time", "hashed", "bits", "plan"
    );
    let _ = writeln!(text, "{}", "─".repeat(80));
    let all = plans[0].totals().peak as f64;
    for (plan, row) in plans.iter().zip(&measurement.rows) {
        let totals = plan.totals();
        let same = |same: bool| if same { "same" } else { "NO" };
        let _ = writeln!(
            text,
            "{:<17} {:>3} {:>9} {:>9} {:>5.1} {:>7} {:>5.2} {:>6.2} {:>5} {:>4}",
            plan.policy(),
            policies::spacing(plan).map_or("–".into(), |k| k.to_string()),
            format_bytes(totals.held),
            format_bytes(totals.peak),
            100.0 * totals.peak as f64 / all,
            format!("{:.1} %", 100.0 * totals.extra_flops as f64 / totals.flops as f64),
            row.time,
            row.hashed,
            same(row.differs.is_none()),
            same(row.unplanned.is_empty()),
        );
    }
    let plural = if rounds == 1 { "" } else { "s" };
    text + EXPLANATION + &format!("Times are medians of {rounds} round{plural}.\n")
}

/// What is not as it has to be, a sentence each.
pub fn failures(plans: &[Plan], rows: &[Measured]) -> Vec<String> {
    let of = |(plan, row): (&Plan, &Measured)| {
        let name = plan.policy().to_string();
        let differs =
            row.differs.iter().map(|what| format!("{what} has other bits than under the first plan"));
        let sentences: Vec<String> = differs.chain(row.unplanned.iter().cloned()).collect();
        sentences.into_iter().map(move |sentence| format!("{name}: {sentence}"))
    };
    plans.iter().zip(rows).flat_map(of).collect()
}
