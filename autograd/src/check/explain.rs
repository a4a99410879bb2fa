//! After a failure: which operation is to blame, where and how far off, what its rule says, and how to see it again.
//!
//! Every operation on the tape is checked by itself at the operands it had. A rule that is wrong there is wrong whatever
//! surrounds it.

use std::collections::BTreeSet;
use std::fmt;

use limpid_tensor::{DType, Shape, Tensor};

use super::entries::Comparison;
use super::point::Problem;
use super::report::{Tier, number};
use super::{Check, Evidence, diagnosis, reproduce};
use crate::error::{Error, Result};
use crate::op::Derivative;
use crate::shared::{SharedOp, SharedTensor};
use crate::var::Var;

/// The answer to "where, and why?".
#[derive(Clone, Debug, Default)]
pub(super) struct Explanation {
    /// The operations whose own check fails, by name, scope and source line.
    pub culprits: Vec<String>,
    /// What each of them does wrong, the worst entry, how many, and what it looks like.
    details: Vec<String>,
    /// The rule of the first, as it was recorded.
    rule: Option<String>,
    snippet: String,
}

impl Explanation {
    /// What is left to say where looking for the culprit failed.
    pub(super) fn failed(error: &Error) -> Explanation {
        let details = vec![format!("which operation is to blame could not be found out: {error}")];
        Explanation { details, ..Explanation::default() }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for detail in &self.details {
            writeln!(f, "  {detail}")?;
        }
        if let Some(rule) = &self.rule {
            writeln!(f, "  the rule, as recorded (ȳ is the cotangent of the result y):")?;
            let lines: Vec<&str> = rule.lines().collect();
            let left_out = if lines.len() > RULE + 1 { RULE / 2..lines.len() - RULE / 2 } else { 0..0 };
            for (i, line) in lines.iter().enumerate() {
                match left_out.contains(&i) {
                    false => writeln!(f, "    {line}")?,
                    true if i == left_out.start => writeln!(f, "    ⋮ {} lines more", left_out.len())?,
                    true => {}
                }
            }
        }
        if self.snippet.is_empty() {
            return Ok(());
        }
        writeln!(f, "  to see it again:")?;
        self.snippet.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// An operation as it stands on the tape.
struct Recorded {
    op: SharedOp,
    site: String,
    operands: Vec<Tensor>,
    tracked: Vec<usize>,
    /// How the operands are called in the whole program.
    labels: Vec<String>,
}

/// How a tensor lies in memory, in a few words.
pub(super) fn describe(name: &str, x: &Tensor) -> String {
    let layout = x.layout();
    let place = match layout.is_contiguous() {
        true => "contiguous".into(),
        false => format!("strides {:?}, offset {}", layout.strides(), layout.offset()),
    };
    format!("{name}: {}, {place}", x.meta())
}

/// A rule of more lines is shown by its first and last.
const RULE: usize = 32;

/// How many operations of a tape are looked at.
const CANDIDATES: usize = 400;

pub(super) fn explain(check: &Check, problem: &Problem<'_>, evidence: &Evidence) -> Result<Explanation> {
    let mut explanation = Explanation::default();
    let candidates = recorded(problem)?;
    let operations = candidates.len();
    // What costs seconds and could not change the answer is left out of the search.
    let local = Check { kinks: true, ..*check };
    let mut first: Option<(Recorded, Evidence)> = None;
    let mut seen = BTreeSet::new();
    for candidate in candidates.into_iter().take(CANDIDATES) {
        let function = function(candidate.op.clone());
        let alone = Problem {
            f: &function,
            inputs: &candidate.operands,
            variables: &candidate.tracked,
            seed: problem.seed,
            mutation: problem.mutation,
        };
        let found = local.evidence(&alone)?;
        if found.findings().any(|finding| !finding.powerless) {
            if seen.insert(candidate.site.clone()) {
                explanation.culprits.push(candidate.site.clone());
            }
            if first.is_none() {
                first = Some((candidate, found));
            }
        }
        if explanation.culprits.len() == 3 {
            break;
        }
    }
    let name = match &first {
        Some((culprit, _)) => culprit.op.name(),
        None => "the_function",
    };
    let (operands, call): (Vec<Tensor>, String) = match &first {
        Some((culprit, _)) => {
            (culprit.operands.clone(), format!("x[0].tape().record({:?}, x)", &*culprit.op))
        }
        None => (problem.inputs.to_vec(), "/* the function */".into()),
    };
    explanation.snippet = reproduce::snippet(name, &call, &operands, problem.seed);

    // What is said of the program is then said of the operation.
    let is_whole = first.as_ref().is_none_or(|(culprit, _)| {
        operations == 1 && culprit.labels.iter().enumerate().all(|(i, label)| *label == format!("x{i}"))
    });
    let indent = if is_whole { "" } else { "  " };
    let (blamed, found, output) = match &first {
        Some((culprit, found)) => {
            if !is_whole {
                explanation.details.extend(by_itself(culprit, found, evidence));
            }
            explanation.rule = rule(problem, culprit)?;
            (&operands, found, &found.output)
        }
        None => {
            let which = match operations {
                0..=CANDIDATES => "no operation fails by itself".into(),
                _ => format!("none of the first {CANDIDATES} of {operations} operations fails by itself"),
            };
            explanation.details.push(format!("{which}: look at what joins them, such as a detach"));
            (&operands, evidence, &evidence.output)
        }
    };
    if let Some(comparison) = &found.comparison {
        let looks = diagnosis::diagnose(comparison, blamed, output);
        let looks = looks.into_iter().chain(swapped(comparison, found, blamed));
        let lines = entries(comparison, blamed, output).into_iter();
        let lines = lines.chain(looks.map(|what| format!("looks like: {what}")));
        explanation.details.extend(lines.map(|line| format!("{indent}{line}")));
    }
    if problem.inputs.iter().any(|x| !x.layout().is_contiguous()) {
        let twins = problem.inputs.iter().map(Tensor::contiguous).collect::<limpid_tensor::Result<Vec<_>>>();
        if let Ok(twins) = twins {
            let twin = Problem { inputs: &twins, ..*problem };
            // A rule that is wrong at first order is not asked about the second, here neither.
            let second_order = evidence.findings().any(|finding| finding.tier == Tier::Curvature);
            let local = Check { second_order, ..local };
            if local.evidence(&twin)?.findings().next().is_none() {
                let what = "only with this layout: contiguous copies of the inputs pass";
                explanation.details.push(what.into());
            }
        }
    }
    Ok(explanation)
}

/// An operation as a function that can be checked.
fn function(op: SharedOp) -> impl for<'t> Fn(&[Var<'t>]) -> Var<'t> {
    move |x| x[0].tape().record_shared(op.clone(), x)
}

/// The operations that a gradient passes, with f64 operands.
fn recorded(problem: &Problem<'_>) -> Result<Vec<Recorded>> {
    let tape = problem.tape();
    (problem.f)(&problem.place(&tape, None, problem.variables));
    let mut found = Vec::new();
    for id in 0..tape.len() {
        let (op, inputs, tracked) = {
            let nodes = tape.nodes.borrow();
            let node = &nodes[id];
            let Some(op) = node.op.clone() else { continue };
            let tracked: Vec<usize> =
                (0..node.inputs.len()).filter(|&i| nodes[node.inputs[i].id as usize].tracked).collect();
            (op, node.inputs.clone(), tracked)
        };
        if tracked.is_empty() || op.derivative() != Derivative::Exists {
            continue;
        }
        let operands: Vec<Tensor> =
            tape.operands(id as u32)?.into_iter().map(SharedTensor::into_inner).collect();
        if operands.iter().any(|x| x.dtype().is_float() && x.dtype() != DType::F64) {
            continue;
        }
        let labels = inputs.iter().map(|operand| tape.label(operand.id)).collect();
        found.push(Recorded { op, site: tape.site(id as u32).to_string(), operands, tracked, labels });
    }
    Ok(found)
}

/// What is wrong with an operation where it stands: its operands, under the names that all that follows uses, and what
/// its own check found first, if the program's did not find its like.
fn by_itself(culprit: &Recorded, found: &Evidence, whole: &Evidence) -> Vec<String> {
    let name = culprit.op.name();
    let operands: Vec<String> = (0..culprit.operands.len()).map(|i| format!("x{i}")).collect();
    let mut lines = vec![format!("{name} by itself, y = {name}({}), where", operands.join(", "))];
    for (i, x) in culprit.operands.iter().enumerate() {
        lines.push(describe(&format!("  x{i} = {} of the program", culprit.labels[i]), x));
    }
    let input = |i: Option<usize>| i.map_or(String::new(), |i| format!("x{i}: "));
    let first = found.findings().next().filter(|f| whole.findings().all(|known| known.tier != f.tier));
    lines.extend(first.map(|f| format!("  {}: {}{}", f.tier, input(f.input), f.what)));
    lines
}

/// The worst entry, and how many are wrong.
fn entries(comparison: &Comparison, inputs: &[Tensor], output: &Shape) -> Option<String> {
    let worst = comparison.worst()?;
    let i = comparison.input;
    let of = match comparison.outputs {
        Some(_) => format!("y{:?}", index(worst.output, output)),
        None => "⟨u, y⟩".into(),
    };
    let off = (worst.analytic - worst.numeric.value).abs();
    let is_zero = worst.numeric.value.abs() <= 10.0 * worst.numeric.bar;
    let part = if is_zero {
        String::new()
    } else {
        format!(", off by {} %", number(100.0 * off / worst.numeric.value.abs(), 2))
    };
    let weights = if comparison.outputs.is_none() { " (u: random weights)" } else { "" };
    Some(format!(
        "worst: ∂{of}/∂x{i}{:?}{weights}: by rule {}, by differences {} ± {}{part}; {} of {} entries are wrong",
        index(worst.element, inputs[i].shape()),
        number(worst.analytic, 11),
        number(worst.numeric.value, 11),
        number(worst.numeric.bar, 1),
        comparison.wrong.len(),
        comparison.entries.len(),
    ))
}

fn index(flat: usize, shape: &Shape) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape.iter().rev().map(|&n| (rest % n, rest /= n).0).collect();
    index.reverse();
    index
}

/// Whether the gradient of one operand is that of another.
fn swapped(comparison: &Comparison, found: &Evidence, inputs: &[Tensor]) -> Option<String> {
    let i = comparison.input;
    let other = found.rows.iter().find(|(j, rows)| {
        *j != i
            && inputs[*j].shape() == inputs[i].shape()
            && comparison.outputs.is_some()
            && comparison.entries.iter().all(|e| {
                let value = rows[e.output][e.element];
                (value - e.numeric.value).abs() <= 10.0 * e.numeric.bar + 1e-9 * value.abs()
            })
    })?;
    Some(format!("operands are swapped: what x{} gets is the gradient of x{i}", other.0))
}

/// The vjp as the program it records.
fn rule(problem: &Problem<'_>, culprit: &Recorded) -> Result<Option<String>> {
    let tape = problem.tape();
    let place = |(i, x): (usize, &Tensor)| {
        tape.leaf(x.clone(), culprit.tracked.contains(&i), Some(format!("x{i}").into()))
    };
    let x: Vec<Var> = culprit.operands.iter().enumerate().map(place).collect();
    let y = tape.record_shared(culprit.op.clone(), &x);
    tape.nodes.borrow_mut()[y.index()].name = Some("y".into());
    let g = tape.leaf(tape.value_like(y, 1.0)?, false, Some("ȳ".into()));
    let mark = tape.len();
    let sources: Vec<Var> = culprit.tracked.iter().map(|&i| x[i]).collect();
    let found = tape.vjp(y, g, &sources)?;
    let mut text = tape.program_from(mark).to_string();
    for (i, cotangent) in culprit.tracked.iter().zip(found) {
        let value = cotangent.map_or("0".into(), |c| tape.label(c.index() as u32));
        text += &format!("x̄{i} = {value}\n");
    }
    Ok(Some(text))
}
