//! Sinkhorn–Knopp: its derivatives against differences and against each other, its error against measured tables, and
//! what holds of it exactly.

mod check;

use check::normal;
use limpid_autograd::check::{Check, Verdict};
use limpid_autograd::ops::sinkhorn::{FixedPoint, Gradient, Order, Potentials, Sinkhorn, marginal_error};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Map, Stop, Tensor};

const ORDERS: [Order; 2] = [Order::ColumnsFirst, Order::RowsFirst];
const GRADIENTS: [Gradient; 3] = [Gradient::Unrolled, Gradient::OnTape, Gradient::Implicit];

/// Normal logits with a standard deviation.
fn logits(shape: &[usize], std: f64, seed: u64) -> Tensor {
    Tensor::map(Map::Affine { mul: std, add: 0.0 }, &[&normal(shape, seed)]).unwrap()
}

fn steps(steps: usize) -> Sinkhorn {
    Sinkhorn { stop: Stop::Steps(steps), ..Sinkhorn::default() }
}

fn converged(gradient: Gradient) -> Sinkhorn {
    Sinkhorn { stop: Stop::Converged, gradient, ..Sinkhorn::default() }
}

fn to_vec(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to_f64_vec().unwrap()
}

fn matrix(h: &Tensor, how: &Sinkhorn) -> Tensor {
    Tape::inference().constant(h).sinkhorn(how).value().unwrap()
}

/// The gradient of ⟨P, g⟩ by the logits.
fn pulled(h: &Tensor, g: &Tensor, how: &Sinkhorn) -> Tensor {
    let tape = Tape::new();
    let h = tape.variable(h);
    let loss = (h.sinkhorn(how) * tape.constant(g)).sum(&[]);
    tape.backward(loss).unwrap().of(h).unwrap().clone()
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |m: f64, v| if v.is_nan() { v } else { m.max(v.abs()) })
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = largest(found.iter().zip(expected).map(|(a, b)| a - b));
    let scale = largest(expected.iter().copied()).max(1.0);
    assert!(off <= tolerance * scale, "{what}: off by {off:e} at a scale of {scale:e}");
}

/// Runs the public checker; a 1×1 matrix is 1 whatever its logit is, which leaves nothing to see.
#[track_caller]
fn passes(what: &str, n: usize, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) {
    let report = Check::new().probes(2).run(f, inputs);
    let powerless = match &report.verdict {
        Verdict::Fail(findings) => findings.iter().all(|finding| finding.powerless),
        _ => false,
    };
    assert!(report.passed() && n > 1 || powerless && n == 1, "{what}: {report}");
}

#[test]
fn derivatives_of_a_number_of_steps() {
    for n in [1, 2, 3, 4, 8] {
        for t in [1, 3, 20] {
            for (i, std) in [0.1, 1.0, 3.0].into_iter().enumerate() {
                for order in ORDERS {
                    for gradient in [Gradient::Unrolled, Gradient::OnTape] {
                        let how = Sinkhorn { order, gradient, ..steps(t) };
                        let h = logits(&[n, n], std, (n * 10 + i) as u64);
                        passes(&format!("{n}×{n}, std {std}, {how:?}"), n, |x| x[0].sinkhorn(&how), &[h]);
                    }
                }
            }
        }
    }
}

#[test]
fn derivatives_at_convergence() {
    for n in [1, 2, 3, 4, 8] {
        for (i, std) in [0.1, 1.0, 3.0].into_iter().enumerate() {
            for order in ORDERS {
                let how = Sinkhorn { order, ..converged(Gradient::Implicit) };
                let h = logits(&[n, n], std, (n * 10 + i) as u64);
                passes(&format!("{n}×{n}, std {std}, {how:?}"), n, |x| x[0].sinkhorn(&how), &[h]);
            }
        }
    }
}

#[test]
fn derivatives_to_a_tolerance_at_a_temperature() {
    let stop = Stop::Tolerance { error: 1e-3, at_most: 50 };
    for gradient in [Gradient::Unrolled, Gradient::OnTape] {
        let how = Sinkhorn { stop, temperature: 0.5, gradient, ..Sinkhorn::default() };
        let h = logits(&[3, 1, 4, 4], 1.0, 5);
        passes(&format!("{how:?}"), 4, |x| x[0].sinkhorn(&how), &[h]);
    }
}

#[test]
fn derivatives_of_the_potentials() {
    let weights = |n: usize, seed| {
        let positive = normal(&[2, n, n], seed);
        Tensor::map(Map::Exp, &[&positive]).unwrap()
    };
    for n in [2, 3, 5] {
        // exp: the derivative by R is one along positive matrices.
        let inputs = [weights(n, 1), normal(&[2, n, n], 2)];
        passes(&format!("potentials {n}×{n}"), n, |x| x[0].tape().record(Potentials, x), &inputs);
    }
}
