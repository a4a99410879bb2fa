//! A ladder of symmetric Taylor remainders: does a function change as its derivative says?
//!
//! `R(h) = |φ(x + hv) − φ(x − hv) − 2h⟨g, v⟩|` falls with the third power of h if g is the gradient, and with the first
//! if it is not. Going down by halves there is no step size to choose and no tolerance for the error of a difference:
//! a right gradient ends in the rounding of φ, and a wrong one keeps its slope of 1.

use crate::error::Result;

/// Rungs at most: from h₀ to h₀·2⁻⁴⁰.
const RUNGS: i32 = 41;
/// Fewer say nothing.
const FEWEST: usize = 4;
/// How many rungs with slope 1 are enough to stop at.
const MANY: usize = 16;
/// A remainder below this many rounding floors is rounding.
const FLOORS: f64 = 8.0;
/// The largest error of the derivative, relative to its size, that rounding may hide from a check that passes.
const RESOLUTION: f64 = 1e-7;
/// An error of the derivative smaller than this part of Σ|gⱼvⱼ| may be the rounding of the gradient itself.
const ROUNDED: f64 = 1e-10;

/// What the function did over a step.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// φ(x₊) − φ(x₋).
    pub change: f64,
    /// ⟨g, x₊ − x₋⟩, with the points as they were rounded.
    pub predicted: f64,
    /// Σ|gⱼ(x₊ − x₋)ⱼ|.
    pub size: f64,
}

/// A step that could be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rung {
    pub h: f64,
    pub remainder: f64,
    floor: f64,
    change: f64,
    predicted: f64,
    size: f64,
}

impl Rung {
    fn is_floor(&self) -> bool {
        self.remainder <= FLOORS * self.floor
    }

    /// How large an error of the derivative its rounding hides, relative to the derivative: here, or as it is on the
    /// scale of the longest step.
    fn resolution(&self, longest: &Rung) -> f64 {
        let secant = longest.change.abs() * self.h / longest.h;
        FLOORS * self.floor / self.size.max(self.change.abs()).max(secant)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Outcome {
    /// Down to rounding; what rounding still hides, relative to the derivative.
    Agrees { resolution: f64 },
    /// Slope 1 to the end.
    Disagrees,
    /// Neither the function nor its derivative moves: nothing could have failed.
    Blind,
    /// Rounding hides too much.
    Noisy { resolution: f64 },
    /// Neither slope.
    Rough,
    /// Fewer than four steps could be taken.
    TooFew,
}

pub(super) struct Ladder {
    pub rungs: Vec<Rung>,
    pub outcome: Outcome,
}

impl Ladder {
    /// Goes down from h₀; `step` takes a step of ±h, or says that it leads elsewhere (another branch, not finite).
    /// `noise` is the rounding of φ.
    pub fn climb(h0: f64, noise: f64, mut step: impl FnMut(f64) -> Result<Option<Step>>) -> Result<Ladder> {
        let mut rungs: Vec<Rung> = Vec::new();
        for k in 0..RUNGS {
            let h = h0 * 2f64.powi(-k);
            let Some(Step { change, predicted, size }) = step(h)? else { continue };
            let floor = noise + FLOORS * f64::EPSILON * size;
            rungs.push(Rung { h, remainder: (change - predicted).abs(), floor, change, predicted, size });
            if let Some(outcome) = judge(&rungs, h0) {
                return Ok(Ladder { rungs, outcome });
            }
        }
        let outcome = match last_run(&rungs) {
            _ if rungs.len() < FEWEST => Outcome::TooFew,
            run if is_wrong(run) => Outcome::Disagrees,
            [] => Outcome::Noisy { resolution: rungs[0].resolution(&rungs[0]) },
            _ => Outcome::Rough,
        };
        Ok(Ladder { rungs, outcome })
    }

    /// The median slope over the rungs above rounding: 3 if right, 1 if wrong. `None` if there are not two.
    pub fn slope(&self) -> Option<f64> {
        let mut slopes: Vec<f64> = slopes(last_run(&self.rungs)).collect();
        slopes.sort_by(f64::total_cmp);
        slopes.get(slopes.len() / 2).copied()
    }
}

/// The rungs above rounding before rounding takes over.
fn last_run(rungs: &[Rung]) -> &[Rung] {
    let end = rungs.iter().rposition(|r| !r.is_floor()).map_or(0, |i| i + 1);
    let start = rungs[..end].iter().rposition(Rung::is_floor).map_or(0, |i| i + 1);
    &rungs[start..end]
}

fn slopes(rungs: &[Rung]) -> impl Iterator<Item = f64> {
    rungs.windows(2).map(|w| (w[0].remainder / w[1].remainder).log2() / (w[0].h / w[1].h).log2())
}

fn has_slope_one(rungs: &[Rung]) -> bool {
    slopes(rungs).all(|slope| (0.6..1.5).contains(&slope))
}

/// Whether the rungs before rounding end with slope 1, and with more than the gradient's own rounding.
fn is_wrong(run: &[Rung]) -> bool {
    let Some(last) = run.last().filter(|_| run.len() >= FEWEST) else { return false };
    has_slope_one(&run[run.len() - FEWEST..]) && last.remainder > ROUNDED * last.size.max(last.change.abs())
}

/// What can be said before the end of the ladder.
fn judge(rungs: &[Rung], h0: f64) -> Option<Outcome> {
    let n = rungs.len();
    if n < FEWEST {
        return None;
    }
    if rungs[n - 2].is_floor() && rungs[n - 1].is_floor() {
        let still = |r: &Rung| r.change.abs().max(r.predicted.abs()) <= FLOORS * r.floor;
        if is_wrong(last_run(rungs)) {
            return Some(Outcome::Disagrees);
        }
        let first = rungs.iter().rposition(|r| !r.is_floor()).map_or(0, |i| i + 1);
        let resolution = rungs[first].resolution(&rungs[0]);
        if resolution <= RESOLUTION {
            return Some(Outcome::Agrees { resolution });
        }
        let wide = rungs[0].h >= h0 * 2f64.powi(-16);
        return Some(match rungs.iter().all(still) && wide {
            true => Outcome::Blind,
            false => Outcome::Noisy { resolution },
        });
    }
    let tail = &rungs[n.saturating_sub(MANY)..];
    (tail.len() == MANY && tail.iter().all(|r| !r.is_floor()) && has_slope_one(tail) && is_wrong(tail))
        .then_some(Outcome::Disagrees)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(phi: impl Fn(f64) -> f64, slope: f64) -> Outcome {
        let noise = f64::EPSILON * phi(0.0).abs();
        Ladder::climb(1.0 / 32.0, noise, |h| {
            Ok(Some(Step {
                change: phi(h) - phi(-h),
                predicted: 2.0 * h * slope,
                size: (2.0 * h * slope).abs(),
            }))
        })
        .unwrap()
        .outcome
    }

    #[test]
    fn every_outcome_has_its_function() {
        assert!(
            matches!(of(|x| (x + 1.0).exp(), 1f64.exp()), Outcome::Agrees { resolution } if resolution < 1e-9)
        );
        assert!(matches!(of(|x| 3.0 * x + 1.0, 3.0), Outcome::Agrees { resolution } if resolution < 1e-12));
        for error in [-2.0, 1e-3, -1e-3, 1e-6, 1e-8] {
            assert_eq!(of(|x| (x + 1.0).exp(), 1f64.exp() * (1.0 + error)), Outcome::Disagrees, "{error}");
        }
        assert_eq!(of(|_| 1.0, 0.0), Outcome::Blind);
        assert!(matches!(of(|x| 1e12 + x, 1.0), Outcome::Noisy { .. } | Outcome::Rough | Outcome::Blind));
        // A kink at 1e-3 that nobody declared is passed on the way down.
        assert!(matches!(of(|x| 1.0 + (x + 1e-3).max(0.0), 1.0), Outcome::Agrees { .. }));
    }
}
