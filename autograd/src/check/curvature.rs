//! Second order: does the gradient change as the Hessian says, is the Hessian symmetric, and do both ways to multiply by
//! it agree?
//!
//! The function is followed by a smooth curved one, so that a function whose own second derivative is 0 shows what its
//! rules do when they are differentiated.

use limpid_tensor::Tensor;

use super::ladder::{Ladder, Outcome, Step};
use super::point::{Point, Problem, Value, crossing, dot, numbers, size};
use super::report::{Tier, TierOutcome, number};
use super::steps::{self, FIRST};
use crate::error::Result;
use crate::tape::Tape;
use crate::var::Var;

const ROUNDING: f64 = 1e-11;

pub(super) struct Curved<'a> {
    problem: Problem<'a>,
    u: Vec<f64>,
    c: f64,
}

impl<'a> Curved<'a> {
    pub fn new(problem: &Problem<'a>, base: &Value, probe: usize) -> Result<Curved<'a>> {
        // On the scale of what the function is and of how it changes, which is more where terms cancel.
        let change = problem.push(&direction(problem, 0))?;
        let largest = base.y.iter().chain(&change).fold(0.0f64, |m, y| m.max(y.abs()));
        let c = if largest == 0.0 { 1.0 } else { largest };
        Ok(Curved { problem: *problem, u: problem.cotangent(probe, base.y.len()), c })
    }

    fn gradient(&self, point: &Point) -> Result<Vec<f64>> {
        let tape = self.problem.tape();
        let x = self.problem.place(&tape, Some(point), self.problem.variables);
        let loss = self.problem.curved(&x, &self.u, self.c);
        let xs: Vec<Var> = self.problem.variables.iter().map(|&i| x[i]).collect();
        join(tape.grad(loss, &xs)?)
    }

    /// The curved function on a tape, and each input with its part of v.
    fn record<'t>(&self, tape: &'t Tape, v: &[Option<Vec<f64>>]) -> (Var<'t>, Vec<(Var<'t>, Var<'t>)>) {
        let x = self.problem.place(tape, None, self.problem.variables);
        let vector = |i: usize| {
            let v = v[i].as_deref().unwrap_or_default();
            tape.constant_here(&Tensor::from_slice(v, self.problem.inputs[i].shape()))
        };
        let pairs = self.problem.variables.iter().map(|&i| (x[i], vector(i))).collect();
        (self.problem.curved(&x, &self.u, self.c), pairs)
    }

    /// H·v by forward mode over the gradient.
    fn product(&self, v: &[Option<Vec<f64>>]) -> Result<Vec<f64>> {
        let tape = self.problem.tape();
        let (loss, pairs) = self.record(&tape, v);
        join(tape.hvp(loss, &pairs)?)
    }

    /// H·v: forward over reverse, reverse over reverse, reverse over forward.
    pub fn products(&self, v: &[Option<Vec<f64>>]) -> Result<[Vec<f64>; 3]> {
        let tape = self.problem.tape();
        let (loss, pairs) = self.record(&tape, v);
        let xs: Vec<Var> = pairs.iter().map(|(x, _)| *x).collect();
        let forward = join(tape.hvp(loss, &pairs)?)?;
        let gradients = tape.grad(loss, &xs)?;
        let gradient = join(gradients.clone())?;
        let along =
            gradients.into_iter().zip(&pairs).map(|(g, (_, v))| (g * *v).sum(&[])).reduce(|a, b| a + b);
        let Some(along) = along else { return Ok([Vec::new(), Vec::new(), Vec::new()]) };
        let reverse = join(tape.grad(along, &xs)?)?;

        // Tangents that are v here and change with x, so that a rule that takes its tangent as a constant shows: the
        // gradient of ⟨∇, v + (x − x₀)∘v/s⟩ at x₀ is Hv + ∇∘v/s.
        let (mut moving, mut slopes) = (Vec::new(), Vec::new());
        for (&(x, vector), &i) in pairs.iter().zip(self.problem.variables) {
            let slope = 1.0 / self.problem.scale(i);
            moving.push((x, vector + (x - tape.constant(&x.value()?)) * vector * slope));
            slopes.extend(v[i].iter().flatten().map(|v| v * slope));
        }
        let tangent = tape.jvp(loss, &moving)?;
        let over_tangent = join(tape.grad(tangent, &xs)?)?;
        let product = |(j, entry): (usize, f64)| entry - gradient[j] * slopes[j];
        Ok([forward, reverse, over_tangent.into_iter().enumerate().map(product).collect()])
    }

    fn rounding(&self, base: &Value) -> f64 {
        64.0 * f64::EPSILON * (size(&self.u, &base.y) + self.c)
    }

    /// Where the products with v differ by more than rounding.
    fn disagreement(&self, base: &Value, v: &[Option<Vec<f64>>], products: &[Vec<f64>; 3]) -> Option<String> {
        let (v, [hv, by_reverse, over_tangent]) = (flat(&self.problem, v), products);
        let largest = hv.iter().zip(&v).fold(0.0f64, |m, (h, v)| m.max((h * v).abs()));
        let others =
            [("reverse mode over the gradient", by_reverse), ("reverse mode over the tangent", over_tangent)];
        others.into_iter().find_map(|(way, other)| {
            let differs = |j: &usize| {
                let off = (hv[*j] - other[*j]).abs() * v[*j].abs();
                off.is_nan() || off > ROUNDING * largest + self.rounding(base)
            };
            let j = (0..hv.len()).find(differs)?;
            Some(format!(
                "the Hessian times a vector is another by forward mode over the gradient and by {way}: {} and {} at \
                 element {j}",
                number(hv[j], 12),
                number(other[j], 12)
            ))
        })
    }
}

/// A direction in units of each input's scale.
pub(super) fn direction(problem: &Problem<'_>, probe: usize) -> Vec<Option<Vec<f64>>> {
    let signs = |i: usize| {
        let scale = problem.scale(i);
        problem.direction(i, probe).into_iter().map(|s| s * scale).collect()
    };
    (0..problem.inputs.len()).map(|i| problem.variables.contains(&i).then(|| signs(i))).collect()
}

fn join(parts: Vec<Var<'_>>) -> Result<Vec<f64>> {
    Ok(parts.into_iter().map(numbers).collect::<Result<Vec<_>>>()?.concat())
}

fn flat(problem: &Problem<'_>, v: &[Option<Vec<f64>>]) -> Vec<f64> {
    problem.variables.iter().flat_map(|&i| v[i].iter().flatten().copied()).collect()
}

pub(super) fn curvature(
    problem: &Problem<'_>,
    base: &Value,
    probes: usize,
    at_kink: bool,
) -> Result<TierOutcome> {
    let mut outcome = TierOutcome::new(Tier::Curvature);
    let (mut symmetric, mut slope): (f64, Option<f64>) = (0.0, None);
    // A rule may be another program where only one input wants something.
    for &i in problem.variables.iter().filter(|_| problem.variables.len() > 1) {
        let alone = Problem { variables: std::slice::from_ref(&i), ..*problem };
        let curved = Curved::new(&alone, base, 0)?;
        let v = direction(&alone, 0);
        if let Some(what) = curved.disagreement(base, &v, &curved.products(&v)?) {
            outcome.fault(Some(i), what);
            return Ok(outcome);
        }
    }
    for probe in 0..probes {
        let curved = Curved::new(problem, base, probe)?;
        let (v, w) = (direction(problem, 2 * probe), direction(problem, 2 * probe + 1));
        let (fv, fw) = (flat(problem, &v), flat(problem, &w));
        let products = curved.products(&v)?;
        let ([hv, ..], hw) = (&products, curved.product(&w)?);

        let rounding = curved.rounding(base);
        let scale = size(&fw, hv) + size(&fv, &hw);
        let off = (dot(&fw, hv) - dot(&fv, &hw)).abs();
        symmetric = symmetric.max(if off == 0.0 { 0.0 } else { off / scale });
        if off.is_nan() || off > ROUNDING * scale + rounding {
            let what = format!(
                "the Hessian is not symmetric: ⟨w, Hv⟩ = {} and ⟨v, Hw⟩ = {}",
                number(dot(&fw, hv), 12),
                number(dot(&fv, &hw), 12)
            );
            outcome.fault(None, what);
            return Ok(outcome);
        }
        if let Some(what) = curved.disagreement(base, &v, &products) {
            outcome.fault(None, what);
            return Ok(outcome);
        }

        // At a kink the gradient jumps; that the rules agree with each other is all that can be asked. Elsewhere one ladder
        // is enough: a mistake that all products share is in every direction, and any random one shows it.
        if at_kink || probe > 0 {
            continue;
        }
        // ⟨w, ∇⟩ changes along v as ⟨Hw, v⟩ says.
        let point = problem.base();
        let at = |h: f64| -> Result<Option<(Vec<f64>, Point)>> {
            let moved = steps::moved(&point, &v, h);
            if !base.branches.is_empty()
                && crossing(&base.branches, &problem.value(&moved)?.branches).is_some()
            {
                return Ok(None);
            }
            let gradient = curved.gradient(&moved)?;
            Ok(gradient.iter().all(|g| g.is_finite()).then_some((gradient, moved)))
        };
        let here = curved.gradient(&point)?;
        let mut samples = Vec::new();
        for k in -3..=3 {
            samples.extend(at(f64::from(k) * 2f64.powi(-24))?.map(|(gradient, _)| vec![dot(&fw, &gradient)]));
        }
        if samples.len() < 7 {
            samples.clear();
        }
        let noise = steps::rounding(&samples, &[size(&fw, &here)])[0];
        let ladder = Ladder::climb(FIRST, noise, |h| {
            let (Some((plus, forth)), Some((minus, back))) = (at(h)?, at(-h)?) else { return Ok(None) };
            let dx: Vec<f64> =
                problem.variables.iter().flat_map(|&i| steps::distance(&forth[i], &back[i])).collect();
            let change = plus.iter().zip(&minus).zip(&fw).map(|((p, m), w)| w * (p - m));
            Ok(Some(Step {
                change: super::point::sum(change),
                predicted: dot(&hw, &dx),
                size: size(&hw, &dx),
            }))
        })?;
        slope = ladder.slope();
        match ladder.outcome {
            Outcome::Agrees { .. } => {}
            Outcome::Disagrees => {
                let slope = ladder.slope().unwrap_or(1.0);
                let what = "remainders of the gradient fall with slope";
                let why = "the rules, differentiated, are wrong";
                outcome.fault(None, format!("{what} {slope:.2} (right: 3): {why}"));
                return Ok(outcome);
            }
            Outcome::Blind => outcome.doubts.push("neither the gradient nor the Hessian moves".into()),
            Outcome::Noisy { resolution } => {
                outcome.doubts.push(format!("rounding hides errors up to {resolution:.0e}"));
            }
            Outcome::Rough | Outcome::TooFew => {
                outcome.doubts.push("remainders of the gradient fall with neither slope".into());
            }
        }
    }
    outcome.measured.extend(slope.map(|slope| ("slope", slope)));
    outcome.measured.push(("symmetric to", symmetric));
    Ok(outcome)
}
