//! What was aimed at before anything was measured, and whether it was reached.

use serde_json::{Value, json};

use crate::report::{Goal, Report, Row};

/// Bytes from which on a transfer is long enough that starting and ending it do not count.
const LONG: f64 = 64e6;

/// An aim, and how the rows that it is about stand to it.
pub struct Target {
    pub sentence: &'static str,
    /// How far each measured row is: 1 has just reached it, above is better.
    reached: Vec<(String, f64)>,
    /// Rows that it is about and that were not measured.
    missing: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Pass,
    Fail,
    NotMeasured,
}

impl Verdict {
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::NotMeasured => "not measured",
        }
    }
}

/// What a row with this goal has reached, as a part of it. `None` if it was not measured.
type Reached = fn(&Row, copy: Option<f64>) -> Option<f64>;

/// What is said of an aim, which goals are it, and how far a row with such a goal is.
type Aim = (&'static str, fn(&Goal) -> bool, Reached);

/// Every aim. What an emulator takes measures nothing.
pub fn all(report: &Report) -> Vec<Target> {
    let of_copy: Reached = |row, copy| match row.goal {
        Goal::Bandwidth { times } => Some(times * row.bandwidth()? / copy? / 0.85),
        _ => None,
    };
    let of_library: Reached = |row, _| Some(row.of_library()? / 0.7);
    let within: Reached = |row, _| match row.goal {
        Goal::Within(most) => Some(most / row.microseconds()?),
        _ => None,
    };
    let passes: Reached = |row, copy| match row.goal {
        Goal::Passes { bytes } => Some(1.3 * (bytes / copy? * 1e6) / row.microseconds()?),
        _ => None,
    };
    let is_long = |row: &Row| row.bytes().is_none_or(|bytes| bytes >= LONG);
    let targets: [Aim; 4] = [
        (
            "what memory bounds has 85 % of the copy's bandwidth in what it moves, at 64 MB and more",
            |goal| matches!(goal, Goal::Bandwidth { .. }),
            of_copy,
        ),
        (
            "the product of bf16 matrices has 70 % of the library's speed, at 4096 to 8192",
            |goal| *goal == Goal::Library,
            of_library,
        ),
        (
            "Sinkhorn of 32,768 matrices of 4×4 takes at most 30 µs",
            |goal| matches!(goal, Goal::Within(_)),
            within,
        ),
        (
            "a connection of mHC, n = 4, C = 4096, takes 1.3 times what 18C elements take at most",
            |goal| matches!(goal, Goal::Passes { .. }),
            passes,
        ),
    ];
    targets
        .into_iter()
        .map(|(sentence, is_of, reached)| {
            let mut target = Target { sentence, reached: Vec::new(), missing: 0 };
            for row in report.rows.iter().filter(|row| is_of(&row.goal) && is_long(row)) {
                match reached(row, report.copy()).filter(|_| !report.is_emulated) {
                    Some(part) => target.reached.push((row.name.clone(), part)),
                    None => target.missing += 1,
                }
            }
            target
        })
        .collect()
}

impl Target {
    pub fn verdict(&self) -> Verdict {
        match () {
            () if self.reached.iter().any(|(_, part)| *part < 1.0) => Verdict::Fail,
            () if self.reached.is_empty() || self.missing > 0 => Verdict::NotMeasured,
            () => Verdict::Pass,
        }
    }

    /// Rows that missed it, the farthest off first, with how far they are.
    pub fn missed(&self) -> Vec<(&str, f64)> {
        let mut missed: Vec<(&str, f64)> = self
            .reached
            .iter()
            .filter(|(_, part)| *part < 1.0)
            .map(|(name, part)| (&**name, *part))
            .collect();
        missed.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        missed
    }

    /// How many rows it is about.
    pub fn rows(&self) -> usize {
        self.reached.len() + self.missing
    }

    pub fn to_json(&self) -> Value {
        let missed = self.missed().into_iter().map(|(name, part)| json!({ "name": name, "reached": part }));
        json!({
            "target": self.sentence, "verdict": self.verdict().words(), "rows": self.rows(),
            "not_measured": self.missing, "missed": missed.collect::<Vec<_>>(),
        })
    }
}
