//! Forward against reverse mode: ⟨J·v, u⟩ = ⟨v, Jᵀ·u⟩.
//!
//! To rounding, without differences. It complements them: it does not see an error that both rules share.

use super::point::{Problem, Value, dot, size};
use super::report::{Tier, TierOutcome, number};
use crate::error::{Error, Result};

const ROUNDING: f64 = 1e-12;

pub(super) fn adjoint(problem: &Problem<'_>, base: &Value, probes: usize) -> Result<TierOutcome> {
    let mut outcome = TierOutcome::new(Tier::Adjoint);
    let mut worst: f64 = 0.0;
    for probe in 0..probes {
        let u = problem.cotangent(probe, base.y.len());
        let gradients = problem.pull(None, &u, problem.variables)?;
        // Each input alone, then all together.
        let alone = problem.variables.iter().map(std::slice::from_ref);
        for moved in alone.chain((problem.variables.len() > 1).then_some(problem.variables)) {
            let v: Vec<Option<Vec<f64>>> = (0..problem.inputs.len())
                .map(|i| moved.contains(&i).then(|| problem.direction(i, probe)))
                .collect();
            let tangent = match problem.push(&v) {
                // The rest of the evidence can still be had.
                Err(Error::NoJvp { site }) => {
                    let what = "has neither jvp nor expand: forward mode and second order cannot be checked, nor used";
                    outcome.fault(None, format!("{site} {what}"));
                    return Ok(outcome);
                }
                tangent => tangent?,
            };
            let forward = dot(&tangent, &u);
            let (mut backward, mut scale) = (0.0, size(&tangent, &u));
            let mut shortest = 1.0f64;
            for (&i, gradient) in problem.variables.iter().zip(&gradients) {
                if let Some(v) = &v[i] {
                    backward += dot(gradient, v);
                    scale += size(gradient, v);
                    shortest = shortest.min(problem.scale(i));
                }
            }
            let off = (forward - backward).abs();
            worst = worst.max(if off == 0.0 { 0.0 } else { off / scale });
            let rounding = 64.0 * f64::EPSILON * size(&u, &base.y) / shortest;
            if off.is_nan() || off > ROUNDING * scale + rounding {
                let input = (moved.len() == 1).then_some(moved[0]);
                let apart = off / forward.abs().max(backward.abs());
                let (forward, backward) = (number(forward, 12), number(backward, 12));
                let what = format!(
                    "jvp and vjp differ: ⟨J·v, u⟩ = {forward} and ⟨v, Jᵀ·u⟩ = {backward}, {} apart (right: 1e-12)",
                    number(apart, 2)
                );
                outcome.fault(input, what);
                return Ok(outcome);
            }
        }
    }
    outcome.measured.push(("adjoint to", worst));
    Ok(outcome)
}
