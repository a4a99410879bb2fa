//! Steps away from a point: what the function is there, how much of that is rounding, and one-sided derivatives where
//! a step would cross a kink.

use super::differences::{Estimate, Quotient, extrapolate};
use super::point::{Point, Problem, Value, crossing};
use crate::error::Result;

/// The first step, in units of an input's scale.
pub(super) const FIRST: f64 = 1.0 / 32.0;
/// Steps this many halvings down are the shortest.
const SHORTEST: i32 = 40;
/// The steps at which rounding is measured, in the same units.
const SAMPLED: f64 = 1.0 / (1 << 24) as f64;
/// One-sided derivatives that differ by a smaller part are not taken for a kink.
const KINK: f64 = 1e-4;
/// Difference quotients that are extrapolated.
const LEVELS: usize = 7;

/// Two steps on the same branch, or why not.
pub(super) enum Pair {
    Taken {
        plus: Value,
        minus: Value,
        forth: Point,
        back: Point,
    },
    /// At this node and element another branch begins.
    Crosses(usize, usize),
    /// The function is not finite there, or the step is so short that rounding changes its direction.
    Unusable,
}

/// The point x + h·v, where `v` has an entry for each input that moves.
pub(super) fn moved(base: &Point, v: &[Option<Vec<f64>>], h: f64) -> Point {
    let step = |(x, v): (&Vec<f64>, &Option<Vec<f64>>)| match v {
        Some(v) => x.iter().zip(v).map(|(x, v)| x + h * v).collect(),
        None => x.clone(),
    };
    base.iter().zip(v).map(step).collect()
}

/// The points x ± h·v, equally far from x: where rounding makes one step longer than the other, a second derivative adds a
/// part of the first power to their difference, which looks like an error of the gradient where that is tiny.
///
/// `None` if rounding changes a step by more than a thousandth: two equal elements that are to move apart may then not.
fn symmetric(base: &Point, v: &[Option<Vec<f64>>], h: f64) -> Option<[Point; 2]> {
    let step = |(x, v): (&f64, &f64)| {
        // The farther point is representable, and what it is away by can be gone back.
        let far = x.abs() + (h * v).abs();
        (far - x.abs()).copysign(h * v)
    };
    let exact = |(x, v): (&Vec<f64>, &Option<Vec<f64>>)| Some(x.iter().zip(v.as_ref()?).map(step).collect());
    let steps: Vec<Option<Vec<f64>>> = base.iter().zip(v).map(exact).collect();
    let changed = |(step, v): (&f64, &f64)| (step - h * v).abs() > 1e-3 * (h * v).abs();
    let mut moves = steps.iter().flatten().flatten().zip(v.iter().flatten().flatten());
    (!moves.any(changed)).then(|| [moved(base, &steps, 1.0), moved(base, &steps, -1.0)])
}

/// x₊ − x₋, as the points were rounded.
pub(super) fn distance(forth: &[f64], back: &[f64]) -> Vec<f64> {
    forth.iter().zip(back).map(|(a, b)| a - b).collect()
}

/// The steps ±h·v from the point.
pub(super) fn pair(problem: &Problem<'_>, base: &Value, v: &[Option<Vec<f64>>], h: f64) -> Result<Pair> {
    let point = problem.base();
    let Some([forth, back]) = symmetric(&point, v, h) else { return Ok(Pair::Unusable) };
    let (plus, minus) = (problem.value(&forth)?, problem.value(&back)?);
    if let Some((node, element)) =
        crossing(&base.branches, &plus.branches).or_else(|| crossing(&base.branches, &minus.branches))
    {
        return Ok(Pair::Crosses(node, element));
    }
    let finite = plus.y.iter().chain(&minus.y).all(|y| y.is_finite()) && plus.y.len() == base.y.len();
    Ok(if finite { Pair::Taken { plus, minus, forth, back } } else { Pair::Unusable })
}

/// Only input `i` moves.
pub(super) fn along(problem: &Problem<'_>, i: usize, v: Vec<f64>) -> Vec<Option<Vec<f64>>> {
    let mut direction = vec![None; problem.inputs.len()];
    direction[i] = Some(v);
    direction
}

/// The rounding of some function values: half a unit in the last place, or what third differences over steps too short
/// for the function to bend show, if that is more (R. W. Hamming, *Numerical Methods for Scientists and Engineers*).
pub(super) fn rounding(samples: &[Vec<f64>], base: &[f64]) -> Vec<f64> {
    let one = |i: usize| {
        let mut thirds: Vec<f64> =
            samples.windows(4).map(|w| ((w[3][i] - w[0][i]) - 3.0 * (w[2][i] - w[1][i])).abs()).collect();
        thirds.sort_by(f64::total_cmp);
        // Coefficients 1, 3, 3, 1: the standard deviation of a third difference is √20 that of a value.
        let shown = thirds.get(thirds.len() / 2).map_or(0.0, |t| t / 20f64.sqrt());
        shown.max(0.5 * f64::EPSILON * base[i].abs())
    };
    (0..base.len()).map(one).collect()
}

/// The rounding of every output, seen along v.
pub(super) fn noise(
    problem: &Problem<'_>,
    base: &Value,
    v: &[Option<Vec<f64>>],
    scale: f64,
) -> Result<Vec<f64>> {
    shortest_steps(problem, base, v, scale, -3..=3)
}

/// As [`noise`], from one side only.
fn noise_beside(problem: &Problem<'_>, base: &Value, v: &[Option<Vec<f64>>], scale: f64) -> Result<Vec<f64>> {
    let first = problem.value(&moved(&problem.base(), v, scale * SAMPLED))?;
    let branches = Value { y: base.y.clone(), branches: first.branches };
    shortest_steps(problem, &branches, v, scale, 1..=7)
}

/// The rounding that so many of the shortest steps show, as far as they stay on the branch of `base`.
fn shortest_steps(
    problem: &Problem<'_>,
    base: &Value,
    v: &[Option<Vec<f64>>],
    scale: f64,
    steps: std::ops::RangeInclusive<i32>,
) -> Result<Vec<f64>> {
    let point = problem.base();
    let mut samples = Vec::new();
    // Shorter ones, where a kink is so near that too few of them are left.
    for shorter in [1.0, 2f64.powi(-8), 2f64.powi(-16), 2f64.powi(-24)] {
        samples.clear();
        for k in steps.clone() {
            let h = f64::from(k) * scale * SAMPLED * shorter;
            let value = problem.value(&moved(&point, v, h))?;
            let usable = crossing(&base.branches, &value.branches).is_none() && value.y.len() == base.y.len();
            if usable && value.y.iter().all(|y| y.is_finite()) {
                samples.push(value.y);
            } else {
                samples.clear();
            }
        }
        if samples.len() >= 4 {
            break;
        }
    }
    Ok(rounding(&samples, &base.y))
}

/// Whether one-sided derivatives belong to a kink and not to one smooth piece: farther apart than rounding and
/// truncation account for.
pub(super) fn is_kink(below: Estimate, above: Estimate) -> bool {
    let gap = (below.value - above.value).abs();
    let size = below.value.abs().max(above.value.abs());
    gap > (10.0 * below.bar.max(above.bar)).max(KINK * size)
}

/// The derivative of every output along v by central differences on one branch; `None` if too few steps stay on it.
pub(super) fn central(
    problem: &Problem<'_>,
    base: &Value,
    v: &[Option<Vec<f64>>],
    scale: f64,
    noise: &[f64],
) -> Result<Option<Vec<Estimate>>> {
    let mut quotients: Vec<Vec<Quotient>> = vec![Vec::new(); base.y.len()];
    let mut taken = 0;
    for k in 0..SHORTEST {
        let h = scale * FIRST * 2f64.powi(-k);
        let Pair::Taken { plus, minus, .. } = pair(problem, base, v, h)? else { continue };
        for (i, quotients) in quotients.iter_mut().enumerate() {
            quotients.push(Quotient::new(plus.y[i], minus.y[i], 2.0 * h, noise[i]));
        }
        taken += 1;
        if taken == LEVELS {
            break;
        }
    }
    if taken < 3 {
        return Ok(None);
    }
    Ok(Some(quotients.iter().map(|quotients| extrapolate(quotients, 2)).collect()))
}

/// At a kink: the derivatives of every output along v from below and from above. `None` if the branches on either side
/// do not settle.
pub(super) fn one_sided(
    problem: &Problem<'_>,
    base: &Value,
    v: &[Option<Vec<f64>>],
    scale: f64,
    noise: &[f64],
) -> Result<Option<[Vec<Estimate>; 2]>> {
    let side = |sign: f64| -> Result<Option<Vec<Estimate>>> {
        let point = problem.base();
        // What the function loses here may not show in its value, which is often 0 at a kink, nor was it measured across.
        let near = noise_beside(problem, base, v, sign * scale)?;
        let mut steps = Vec::new();
        // From the shortest up, as long as the branch stays.
        for k in (6..=24).rev().step_by(2) {
            let h = scale * 2f64.powi(-k);
            let value = problem.value(&moved(&point, v, sign * h))?;
            let other = steps
                .first()
                .and_then(|(_, first): &(f64, Value)| crossing(&first.branches, &value.branches));
            if other.is_some() || value.y.len() != base.y.len() || value.y.iter().any(|y| !y.is_finite()) {
                break;
            }
            steps.push((h, value));
        }
        if steps.len() < 3 {
            return Ok(None);
        }
        let one = |i: usize| {
            let noise = noise[i].max(near[i]);
            let quotient = |(h, value): &(f64, Value)| Quotient::new(value.y[i], base.y[i], sign * h, noise);
            let quotients: Vec<Quotient> = steps.iter().rev().map(quotient).collect();
            // Each step is a quarter of the one before, and so is the first error term: as of central differences at
            // halved steps.
            extrapolate(&quotients, 2)
        };
        Ok(Some((0..base.y.len()).map(one).collect()))
    };
    Ok(match (side(-1.0)?, side(1.0)?) {
        (Some(below), Some(above)) => Some([below, above]),
        _ => None,
    })
}
