//! What a person reads: tables of 80 columns.

use std::collections::BTreeMap;
use std::fmt::Write;

use limpid::autograd::check::{Score, Tier};

use crate::beyond::Tally;
use crate::measure::Row;
use crate::mutants;
use crate::subject::Group;

const TIERS: [Tier; 5] = [Tier::Contract, Tier::Adjoint, Tier::Taylor, Tier::Jacobian, Tier::Curvature];
const LAYOUTS: [&str; 7] = ["contiguous", "permuted", "sliced", "flipped", "expanded", "offset", "two views"];

/// Every row, then what lies beyond the smooth, the layouts, and the mutants.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for (group, title) in [(Group::Op, "operation"), (Group::Module, "module")] {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.group == group).collect();
        if !rows.is_empty() {
            main_table(&mut text, title, &rows);
        }
    }
    beyond_table(&mut text, rows);
    layout_table(&mut text, rows);
    mutant_table(&mut text, rows);
    text
}

fn main_table(text: &mut String, title: &str, rows: &[&Row]) {
    let _ = writeln!(text, "{:23}│ f64, cases and verdicts │ slopes  │ f32 ulps  │ mutants", "");
    let _ = writeln!(text, "{title:23}│ cases  pass  inc. fail  │ 1st 2nd │ value grad│  killed");
    let _ = writeln!(
        text,
        "{}┼{}┼{}┼{}┼{}",
        "─".repeat(23),
        "─".repeat(25),
        "─".repeat(9),
        "─".repeat(11),
        "─".repeat(8)
    );
    for row in rows {
        let t = &row.smooth;
        let slope = |s: Option<f64>| s.map_or("  –".into(), |s| format!("{s:3.1}"));
        let [first, second] = row.slopes.map(slope);
        let ulps = row.ulps[0];
        let killed = match row.score.mutants() {
            0 => "–".into(),
            all => format!("{}/{all}", row.score.killed()),
        };
        let _ = writeln!(
            text,
            "{:23}│{:>6}{:>6}{:>6}{:>5}  │ {first} {second} │{:>5}{:>6}│{killed:>8}",
            row.name,
            t.cases,
            t.passed,
            t.inconclusive,
            t.failed(),
            ulp(ulps.value),
            ulp(ulps.gradient),
        );
    }
    text.push('\n');
}

fn ulp(x: f64) -> String {
    if x < 99.95 { format!("{x:.1}") } else { format!("{x:.0}") }
}

fn beyond_table(text: &mut String, rows: &[Row]) {
    let special = |row: &&Row| row.kinks.is_some() || row.convention.is_some() || row.extremes.is_some();
    let rows: Vec<&Row> = rows.iter().filter(special).collect();
    if rows.is_empty() {
        return;
    }
    let _ =
        writeln!(text, "{:23}│ at and near kinks  │ ties by formula │ extreme values", "beyond the smooth");
    let _ = writeln!(text, "{:23}│ pass undecided fail│ pass       fail │ pass       fail", "");
    let _ = writeln!(text, "{}┼{}┼{}┼{}", "─".repeat(23), "─".repeat(20), "─".repeat(17), "─".repeat(17));
    let two = |t: &Option<Tally>| match t {
        Some(t) => format!("{:>5} {:>10}", t.passed, t.failed()),
        None => format!("{:>5} {:>10}", "", ""),
    };
    for row in rows {
        let kinks = match &row.kinks {
            Some(t) => format!("{:>5}{:>10}{:>5}", t.passed, t.inconclusive, t.failed()),
            None => " ".repeat(20),
        };
        let _ = writeln!(text, "{:23}│{kinks}│{} │{}", row.name, two(&row.convention), two(&row.extremes));
    }
    text.push('\n');
}

fn layout_table(text: &mut String, rows: &[Row]) {
    let mut cells: BTreeMap<(&str, Tier), [usize; 2]> = BTreeMap::new();
    for (&key, [cases, passed]) in rows.iter().flat_map(|row| &row.tiers) {
        let cell = cells.entry(key).or_default();
        cell[0] += cases;
        cell[1] += passed;
    }
    let _ = write!(text, "{:10}", "f64");
    for tier in TIERS {
        let _ = write!(text, "{:>14}", tier.to_string());
    }
    let _ = writeln!(text, "\n{}", "─".repeat(80));
    for layout in LAYOUTS {
        let _ = write!(text, "{layout:10}");
        for tier in TIERS {
            let [cases, passed] = cells.get(&(layout, tier)).copied().unwrap_or_default();
            let _ = write!(text, "{:>14}", if cases == 0 { "–".into() } else { format!("{passed}/{cases}") });
        }
        text.push('\n');
    }
    text.push('\n');
}

/// The scores of all rows as one.
pub fn score(rows: &[Row]) -> Score {
    let mut all = Score::default();
    rows.iter().for_each(|row| all.merge(&row.score));
    all
}

fn mutant_table(text: &mut String, rows: &[Row]) {
    let score = score(rows);
    if score.mutants() == 0 {
        return;
    }
    let _ = write!(text, "{}", score.totals());
    for (name, why) in survivors(&score) {
        let _ = writeln!(text, "survived: {name} ({why})");
    }
    let mut excluded: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in score.equivalent() {
        if let Some(reason) = mutants::reason(name) {
            excluded.entry(reason).or_default().push(name);
        }
    }
    if !excluded.is_empty() {
        let _ = writeln!(text, "excluded, because they change nothing:");
    }
    for (reason, names) in excluded {
        let _ = writeln!(text, "  {reason}:");
        for name in names {
            let _ = writeln!(text, "    {name}");
        }
    }
}

/// The mutants that were not noticed: those that change a derivative, and those of which nobody says why they do not.
pub fn survivors(score: &Score) -> Vec<(String, String)> {
    let changed = score.survivors().map(|(name, why)| (name.to_string(), why.to_string()));
    let unexplained = score.equivalent().filter(|name| mutants::reason(name).is_none());
    let unexplained = unexplained.map(|name| (name.to_string(), "changes nothing that was tried".into()));
    changed.chain(unexplained).collect()
}
