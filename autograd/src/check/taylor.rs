//! Does the function change as its gradient says? A ladder of symmetric Taylor remainders along random signs, for each
//! input.

use super::ladder::{Ladder, Outcome, Step};
use super::point::{Problem, Value, dot, size, sum};
use super::report::{Tier, TierOutcome, number};
use super::steps::{self, FIRST, Pair};
use super::{Check, differences::Estimate};
use crate::error::Result;

/// A function whose rounding is a larger part of its value is not known well enough to be called constant.
const NOISE: f64 = 1e-6;

/// What the ladders say, and whether the point is at a kink, so that nothing of second order can be asked there.
pub(super) struct Taylor {
    pub outcome: TierOutcome,
    pub at_kink: bool,
    /// The first input whose gradient is wrong, and the cotangent that showed it.
    pub wrong: Option<(usize, Vec<f64>)>,
}

pub(super) fn taylor(problem: &Problem<'_>, base: &Value, check: &Check) -> Result<Taylor> {
    let mut tier = Taylor { outcome: TierOutcome::new(Tier::Taylor), at_kink: false, wrong: None };
    let (mut resolution, mut slopes): (f64, Vec<f64>) = (0.0, Vec::new());
    for (k, &i) in problem.variables.iter().enumerate() {
        if problem.inputs[i].elements() == 0 {
            continue;
        }
        let scale = problem.scale(i);
        let noise = steps::noise(problem, base, &steps::along(problem, i, problem.direction(i, 0)), scale)?;
        let mut blind = 0;
        for probe in 0..check.probes {
            let u = problem.cotangent(probe, base.y.len());
            let gradient = problem.pull(None, &u, problem.variables)?.swap_remove(k);
            let v = steps::along(problem, i, problem.direction(i, probe));
            let mut crossed = None;
            let ladder = Ladder::climb(scale * FIRST, size(&u, &noise), |h| {
                Ok(match steps::pair(problem, base, &v, h)? {
                    Pair::Taken { plus, minus, forth, back } => {
                        let change = sum((0..u.len()).map(|o| u[o] * (plus.y[o] - minus.y[o])));
                        let dx = steps::distance(&forth[i], &back[i]);
                        Some(Step { change, predicted: dot(&gradient, &dx), size: size(&gradient, &dx) })
                    }
                    Pair::Crosses(node, element) => {
                        crossed = Some((node, element, h));
                        None
                    }
                    Pair::Unusable => None,
                })
            })?;
            let kink = |(node, element, h): (usize, usize, f64)| {
                format!(
                    "a kink of {} at element {element} is within {h:.1e} of input {i}",
                    problem.site(node)
                )
            };
            match (ladder.outcome, crossed) {
                (Outcome::Agrees { resolution: r }, _) => {
                    resolution = resolution.max(r);
                    slopes.extend(ladder.slope());
                }
                (Outcome::Blind, _) => blind += 1,
                (Outcome::Disagrees, _) => {
                    if let Some(sides) = steps::one_sided(problem, base, &v, scale, &noise)? {
                        let [below, above] = interval(&sides, &u);
                        let analytic = dot(&gradient, v[i].as_deref().unwrap_or_default());
                        if steps::is_kink(below, above) && within(analytic, below, above) {
                            tier.at_kink = true;
                            let (below, above) = (number(below.value, 6), number(above.value, 6));
                            tier.outcome.doubts.push(format!(
                                "input {i} is at a kink that no operation declares: along random signs the derivative is \
                                 {below} from below and {above} from above, and the gradient's {} is between; declare \
                                 the pieces in Op::branches, or check at another point",
                                number(analytic, 6)
                            ));
                            break;
                        }
                    }
                    let slope = ladder.slope().unwrap_or(1.0);
                    slopes.push(slope);
                    let last = ladder.rungs.iter().rev().find(|r| r.remainder > 0.0);
                    let rest = last.map_or(0.0, |r| r.remainder / (2.0 * r.h));
                    tier.outcome.fault(
                        Some(i),
                        format!(
                            "symmetric Taylor remainders fall with slope {slope:.2} (right: 3): along random signs the \
                             gradient is off by {}",
                            number(rest, 2)
                        ),
                    );
                    tier.wrong.get_or_insert((i, u));
                    break;
                }
                (_, Some(at)) if ladder.rungs.is_empty() => {
                    tier.at_kink = true;
                    if !check.kinks {
                        tier.outcome.doubts.push(kink(at));
                        break;
                    }
                    let Some(sides) = steps::one_sided(problem, base, &v, scale, &noise)? else {
                        tier.outcome.doubts.push(kink(at));
                        break;
                    };
                    let [below, above] = interval(&sides, &u);
                    let analytic = dot(&gradient, v[i].as_deref().unwrap_or_default());
                    if !within(analytic, below, above) {
                        let sides = [below.value, above.value].map(|side| number(side, 6));
                        tier.outcome.fault(
                            Some(i),
                            format!(
                                "{}, and the derivative {} is outside the one-sided ones, {} and {}",
                                kink(at),
                                number(analytic, 6),
                                sides[0],
                                sides[1]
                            ),
                        );
                        break;
                    }
                    if below.bar.max(above.bar) > 1e-4 * below.value.abs().max(above.value.abs()).max(1e-300)
                    {
                        tier.outcome
                            .doubts
                            .push(format!("{}, and one-sided differences are too rough", kink(at)));
                        break;
                    }
                    tier.outcome.notes.insert(format!("{}: between the one-sided derivatives", kink(at)));
                }
                (Outcome::Noisy { resolution }, None) => {
                    let what = format!(
                        "rounding hides errors of input {i}'s gradient up to {resolution:.0e} of it (right: below 1e-7): \
                             the function loses digits at this point"
                    );
                    tier.outcome.doubts.push(what);
                    break;
                }
                (_, Some(at)) => {
                    tier.outcome.doubts.push(kink(at));
                    break;
                }
                (Outcome::TooFew, None) => {
                    let what = format!("fewer than 4 steps along input {i} lead to finite values");
                    tier.outcome.doubts.push(what);
                    break;
                }
                (Outcome::Rough, None) => {
                    let what =
                        format!("remainders along input {i} fall with neither slope: a kink, or noise");
                    tier.outcome.doubts.push(what);
                    break;
                }
            }
        }
        // Of a function that is mostly rounding it cannot be said that it does not move.
        let u = problem.cotangent(0, base.y.len());
        let noisy = size(&u, &noise) > NOISE * size(&u, &base.y);
        if blind == check.probes && noisy {
            let what = "rounding is more than a millionth of the function's value, and hides all that input";
            tier.outcome.doubts.push(format!("{what} {i} does"));
        } else if blind == check.probes {
            tier.outcome.powerless(
                Some(i),
                "no power: neither the function nor its gradient moves along any probe, so that no error could show",
            );
        }
    }
    slopes.sort_by(f64::total_cmp);
    if let Some(&slope) = slopes.get(slopes.len() / 2) {
        tier.outcome.measured.push(("slope", slope));
    }
    if resolution > 0.0 {
        tier.outcome.measured.push(("error below", resolution));
    }
    Ok(tier)
}

/// The least and the greatest Σuᵢ·Dᵢ with every Dᵢ between output i's derivatives from below and from above: the weights
/// differ in sign, so the sums of either side alone need not enclose it.
fn interval([below, above]: &[Vec<Estimate>; 2], u: &[f64]) -> [Estimate; 2] {
    let bar = sum(below.iter().zip(above).zip(u).map(|((b, a), u)| b.bar.max(a.bar) * u.abs()));
    let end = |pick: fn(f64, f64) -> f64| {
        let ends = below.iter().zip(above).zip(u).map(|((b, a), u)| pick(b.value * u, a.value * u));
        Estimate { value: sum(ends), bar }
    };
    [end(f64::min), end(f64::max)]
}

/// Whether a derivative lies between the one-sided ones, as far as their bars can tell.
pub(super) fn within(analytic: f64, below: Estimate, above: Estimate) -> bool {
    let bar = 10.0 * below.bar.max(above.bar);
    analytic >= below.value.min(above.value) - bar && analytic <= below.value.max(above.value) + bar
}
