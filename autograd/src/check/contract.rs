//! What every rule owes, whatever it computes: finite and repeatable values, linearity in the cotangent, reads as
//! declared, and the same gradient whoever else asks for one.

use limpid_tensor::Tensor;

use super::point::{Problem, Value, size};
use super::report::{Tier, TierOutcome};
use crate::error::Result;

/// Sums of the same products in another order differ by less.
const ROUNDING: f64 = 1e-12;
/// A gradient computed alone and with others is the same sum in the same order.
const SAME: f64 = 1e-14;

pub(super) fn contract(problem: &Problem<'_>, base: &Value) -> Result<TierOutcome> {
    let mut outcome = TierOutcome::new(Tier::Contract);
    if let Some(i) = base.y.iter().position(|y| !y.is_finite()) {
        outcome.fault(None, format!("the value is {} at element {i}", base.y[i]));
        return Ok(outcome);
    }
    let outputs = base.y.len();
    let all = problem.variables;
    let (u, w) = (problem.cotangent(0, outputs), problem.cotangent(1, outputs));
    let together = problem.pull(None, &u, all)?;

    let again = problem.value(&problem.base())?;
    let same_bits = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    if again.y.len() != outputs || !same_bits(&again.y, &base.y) {
        outcome.fault(None, "computed twice, the value differs: the function is not deterministic".into());
        return Ok(outcome);
    }
    if problem.pull(None, &u, all)?.iter().zip(&together).any(|(a, b)| !same_bits(a, b)) {
        outcome.fault(
            None,
            "computed twice, the gradient differs: a rule is not deterministic, as one that draws anew"
                .into(),
        );
        return Ok(outcome);
    }
    for (&i, gradient) in all.iter().zip(&together) {
        if let Some(j) = gradient.iter().position(|g| !g.is_finite()) {
            outcome.fault(Some(i), format!("the gradient is {} at element {j}", gradient[j]));
        }
    }
    if !outcome.findings.is_empty() {
        return Ok(outcome);
    }

    let zero = problem.pull(None, &vec![0.0; outputs], all)?;
    let other = problem.pull(None, &w, all)?;
    let mixed: Vec<f64> = u.iter().zip(&w).map(|(u, w)| 0.75 * u - 1.5 * w).collect();
    let mixed = problem.pull(None, &mixed, all)?;
    let rounding = 64.0 * f64::EPSILON * (size(&u, &base.y) + size(&w, &base.y));
    let mut worst: f64 = 0.0;
    for (k, &i) in all.iter().enumerate() {
        if let Some(j) = zero[k].iter().position(|&g| g != 0.0) {
            outcome.fault(
                Some(i),
                format!("a cotangent of 0 gives a gradient of {} at element {j}", zero[k][j]),
            );
        }
        let (a, b) = (&together[k], &other[k]);
        let scale = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max(0.75 * a.abs() + 1.5 * b.abs()));
        let limit = ROUNDING * scale + rounding / problem.scale(i);
        for j in 0..a.len() {
            let off = (mixed[k][j] - (0.75 * a[j] - 1.5 * b[j])).abs();
            worst = worst.max(if off == 0.0 { 0.0 } else { off / scale });
            if off.is_nan() || off > limit {
                let what = "the vjp is not linear in its cotangent";
                outcome
                    .fault(Some(i), format!("{what}: off by {off:.1e} at element {j} (scale {scale:.1e})"));
                break;
            }
        }
        let alone = &problem.pull(None, &u, &[i])?[0];
        let scale = a.iter().fold(0.0f64, |m, a| m.max(a.abs()));
        let differs = |j: &usize| (alone[*j] - a[*j]).is_nan() || (alone[*j] - a[*j]).abs() > SAME * scale;
        if let Some(j) = (0..a.len()).find(differs) {
            let what = "the gradient is another when no other input wants one";
            outcome.fault(Some(i), format!("{what}: {:e} against {:e} at element {j}", alone[j], a[j]));
        }
    }
    outcome.measured.push(("linear to", worst));
    reads(problem, &u, all, &mut outcome)?;
    for i in all.iter().filter(|_| all.len() > 1) {
        reads(problem, &u, std::slice::from_ref(i), &mut outcome)?;
    }
    Ok(outcome)
}

/// Rules read what they declare and declare what they read: what is not declared is dropped when memory is short.
fn reads(problem: &Problem<'_>, u: &[f64], tracked: &[usize], outcome: &mut TierOutcome) -> Result<()> {
    let tape = problem.tape();
    let y = (problem.f)(&problem.place(&tape, None, tracked));
    if !y.is_tracked() {
        return Ok(());
    }
    let audit = tape.audit_reads((y * tape.constant_here(&Tensor::from_slice(u, y.shape()))).sum(&[]))?;
    let describe = |(op, read): &(usize, usize)| {
        let which = match tape.nodes.borrow()[*op].inputs.iter().position(|o| o.id as usize == *read) {
            Some(operand) => format!("operand {operand}"),
            None => "its result".into(),
        };
        (tape.site(*op as u32).to_string(), which)
    };
    for pair in audit.read.difference(&audit.declared) {
        let (op, which) = describe(pair);
        outcome.fault(
            None,
            format!(
                "{op}: with inputs {tracked:?} tracked, the vjp reads {which} without declaring it in needs()"
            ),
        );
    }
    for pair in audit.declared.difference(&audit.read) {
        let (op, which) = describe(pair);
        outcome.fault(
            None,
            format!(
                "{op}: with inputs {tracked:?} tracked, needs() declares {which}, which the vjp does not read"
            ),
        );
    }
    Ok(())
}
