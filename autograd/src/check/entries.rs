//! Entry by entry: the whole Jacobian where it is small, else the entries of a gradient, against differences with error
//! bars.

use std::collections::BTreeSet;

use limpid_tensor::rng::Key;

use super::differences::Estimate;
use super::point::{Problem, Value, sum};
use super::report::{Tier, TierOutcome, number};
use super::steps;
use super::taylor::within;
use crate::error::Result;

/// The largest Jacobian that is computed whole, in entries.
const WHOLE: usize = 4096;
/// An analytic entry farther than this many bars from the numeric one is wrong.
const BARS: f64 = 10.0;
/// An error smaller than this part of the largest entry may be rounding inside the function, which no bar knows of.
const ROUNDED: f64 = 1e-11;

/// Derivatives by the elements of one input, by rule and by differences.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub input: usize,
    /// `Some` if rows are outputs; `None` if there is one row, contracted with a random cotangent.
    pub outputs: Option<usize>,
    /// (output, element, by rule, by differences), row by row.
    pub entries: Vec<Entry>,
    /// Which of them are wrong.
    pub wrong: Vec<usize>,
}

/// One derivative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub output: usize,
    pub element: usize,
    pub analytic: f64,
    pub numeric: Estimate,
}

impl Comparison {
    /// The entry that is farthest off in terms of its bar's worth of doubt and its size.
    pub fn worst(&self) -> Option<Entry> {
        let off = |&i: &usize| (self.entries[i].analytic - self.entries[i].numeric.value).abs();
        self.wrong.iter().copied().max_by(|a, b| off(a).total_cmp(&off(b))).map(|i| self.entries[i])
    }
}

/// What the comparison of whole Jacobians gave.
pub(super) struct Jacobian {
    pub outcome: TierOutcome,
    /// The first that is wrong.
    pub failed: Option<Comparison>,
    /// Input, and the rows of the Jacobian by it, by rule.
    pub by_rule: Vec<(usize, Vec<Vec<f64>>)>,
}

/// `largest` is the size of the largest entry beside it.
fn is_wrong(entry: &Entry, largest: f64) -> bool {
    let off = (entry.analytic - entry.numeric.value).abs();
    off.is_nan() || off > BARS * entry.numeric.bar && off > ROUNDED * largest
}

fn largest(entries: &[f64]) -> f64 {
    entries.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// The full Jacobian by every input for which it is small.
pub(super) fn jacobian(problem: &Problem<'_>, base: &Value) -> Result<Jacobian> {
    let mut outcome = TierOutcome::new(Tier::Jacobian);
    let outputs = base.y.len();
    let (mut compared, mut widest, mut failed, mut by_rule) = (0usize, 0.0f64, None, Vec::new());
    for &i in problem.variables {
        let n = problem.inputs[i].elements();
        if n * outputs == 0 || n * outputs > WHOLE {
            continue;
        }
        let rows = problem.pull_all((0..outputs).map(|o| unit(outputs, o)), i)?;
        let scale = problem.scale(i);
        let noise = steps::noise(problem, base, &steps::along(problem, i, problem.direction(i, 0)), scale)?;
        let mut comparison =
            Comparison { input: i, outputs: Some(outputs), entries: Vec::new(), wrong: Vec::new() };
        let size = rows.iter().map(|row| largest(row)).fold(0.0, f64::max);
        let mut undeclared = None;
        for element in 0..n {
            let v = steps::along(problem, i, unit(n, element));
            if let Some(column) = steps::central(problem, base, &v, scale, &noise)? {
                let mut sides = None;
                for (output, numeric) in column.into_iter().enumerate() {
                    let entry = Entry { output, element, analytic: rows[output][element], numeric };
                    widest = widest.max(entry.numeric.bar);
                    if is_wrong(&entry, size) {
                        if sides.is_none() {
                            sides = Some(steps::one_sided(problem, base, &v, scale, &noise)?);
                        }
                        if let Some(Some([below, above])) = &sides
                            && steps::is_kink(below[output], above[output])
                            && within(entry.analytic, below[output], above[output])
                        {
                            undeclared.get_or_insert(element);
                            continue;
                        }
                        comparison.wrong.push(comparison.entries.len());
                    }
                    comparison.entries.push(entry);
                }
            } else if let Some([below, above]) = steps::one_sided(problem, base, &v, scale, &noise)? {
                for output in 0..outputs {
                    let analytic = rows[output][element];
                    if !within(analytic, below[output], above[output]) {
                        let what = format!(
                            "at a kink, the derivative of output {output} by element {element} is {}, outside the \
                             one-sided ones, {} and {}",
                            number(analytic, 6),
                            number(below[output].value, 6),
                            number(above[output].value, 6)
                        );
                        outcome.fault(Some(i), what);
                    }
                }
            }
        }
        if let Some(element) = undeclared {
            let what = format!("element {element} of input {i} is at a kink that no operation declares");
            outcome.doubts.push(format!("{what}: see Op::branches"));
        }
        compared += comparison.entries.len();
        by_rule.push((i, rows));
        if !comparison.wrong.is_empty() {
            outcome.fault(
                Some(i),
                format!(
                    "{} of {} entries of the Jacobian are wrong",
                    comparison.wrong.len(),
                    comparison.entries.len()
                ),
            );
            failed.get_or_insert(comparison);
        }
    }
    if compared == 0 {
        outcome.notes.insert(format!("no Jacobian of at most {WHOLE} entries away from kinks"));
    } else {
        outcome.measured.push(("entries", compared as f64));
        outcome.measured.push(("widest bar", widest));
    }
    Ok(Jacobian { outcome, failed, by_rule })
}

/// Entries of the gradient `Jᵀ·u` by input `i`, where there are too many for a Jacobian: all of a small input; else a
/// random sample, and if that is right the one that halving the direction leads to.
pub(super) fn gradient(problem: &Problem<'_>, base: &Value, i: usize, u: &[f64]) -> Result<Comparison> {
    let n = problem.inputs[i].elements();
    let analytic = problem.pull(None, u, &[i])?.swap_remove(0);
    let scale = problem.scale(i);
    let noise = steps::noise(problem, base, &steps::along(problem, i, problem.direction(i, 0)), scale)?;
    let derivative = |v: Vec<f64>| -> Result<Option<Estimate>> {
        let found = steps::central(problem, base, &steps::along(problem, i, v), scale, &noise)?;
        Ok(found.map(|d| Estimate {
            value: sum(d.iter().zip(u).map(|(d, u)| d.value * u)),
            bar: sum(d.iter().zip(u).map(|(d, u)| (d.bar * u).powi(2))).sqrt(),
        }))
    };
    let small = n <= 256 && n * base.y.len() <= 1 << 18;
    let key = Key::new(problem.seed).fold_str("sample");
    let sample = || (0..24).map(|k| (key.bits(k) % n as u64) as usize).collect::<BTreeSet<usize>>();
    let elements = if small { (0..n).collect() } else { sample() };
    let mut comparison = Comparison { input: i, outputs: None, entries: Vec::new(), wrong: Vec::new() };
    let compare = |comparison: &mut Comparison, element: usize| -> Result<()> {
        if let Some(numeric) = derivative(unit(n, element))? {
            let entry = Entry { output: 0, element, analytic: analytic[element], numeric };
            comparison.wrong.extend(is_wrong(&entry, largest(&analytic)).then_some(comparison.entries.len()));
            comparison.entries.push(entry);
        }
        Ok(())
    };
    for element in elements {
        compare(&mut comparison, element)?;
    }
    if small || !comparison.wrong.is_empty() {
        return Ok(comparison);
    }
    let signs = problem.direction(i, 0);
    let off = |range: std::ops::Range<usize>| -> Result<f64> {
        let part = |j: usize| if range.contains(&j) { signs[j] } else { 0.0 };
        let found = derivative((0..n).map(part).collect())?;
        let expected = sum(range.map(|j| analytic[j] * signs[j]));
        Ok(found.map_or(0.0, |d| (d.value - expected).abs()))
    };
    let (mut low, mut high) = (0, n);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if off(low..middle)? >= off(middle..high)? { high = middle } else { low = middle }
    }
    compare(&mut comparison, low)?;
    Ok(comparison)
}

fn unit(n: usize, i: usize) -> Vec<f64> {
    let mut unit = vec![0.0; n];
    unit[i] = 1.0;
    unit
}
