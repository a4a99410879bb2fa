//! What every differentiable function must satisfy, checked in f64.

// Every test file compiles its own copy and uses its own part of it.
#![allow(dead_code)]

use limpid_autograd::check::Verdict;
use limpid_autograd::{Tape, Var};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

/// The step of central differences: truncation h²·f‴/6 and rounding ε·f/h are both about 1e-11 here.
const STEP: f64 = 1e-5;
/// How far a derivative may be from its central difference, relative to the larger of 1 and its size.
const DIFFERENCE: f64 = 1e-7;
/// How far two sums of the same products in different order may be apart, relative to the larger of 1 and their size.
const ROUNDING: f64 = 1e-12;

/// Standard normal values, a function of the seed.
pub fn normal(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std: 1.0 }, shape, DType::F64, Key::new(seed)).unwrap()
}

/// The same values behind other layouts: in place, transposed in memory, every second of a longer row, reversed.
pub fn layouts(x: &Tensor) -> Vec<Tensor> {
    let rank = x.shape().len();
    if rank == 0 {
        return vec![x.clone()];
    }
    let reversed: Vec<usize> = (0..rank).rev().collect();
    let permuted = x.permute(&reversed).contiguous().unwrap().permute(&reversed);
    let flipped = x.flip(0).contiguous().unwrap().flip(0);
    let last = rank - 1;
    let n = x.shape()[last];
    let place =
        limpid_tensor::Layout::contiguous(x.shape().with(last, 2 * n + 1)).slice(last, 1, 2 * n + 1, 2);
    let wide =
        Tensor::assemble(x.device(), x.shape().with(last, 2 * n + 1), x.dtype(), &[(place, x)]).unwrap();
    vec![x.clone(), permuted, flipped, wide.slice(last, 1, 2 * n + 1, 2)]
}

/// Checks the derivatives of `f` at `inputs` (those of a float dtype, which must be f64; others are constants):
///
/// - the vjp of a random cotangent against central differences, kept on the tape and dropped as it goes, for all
///   inputs at once and for each alone;
/// - the jvp against the vjp: `⟨g, J·v⟩ = ⟨Jᵀ·g, v⟩`, with tangents on all inputs and on each alone;
/// - the second order: the gradient of `⟨Jᵀ·g, v⟩` by the inputs against central differences, and by `g` against
///   `J·v`;
/// - that rules read exactly what they declare.
///
/// `f` must be smooth on the scale of the step around `inputs`.
#[track_caller]
pub fn check(name: &str, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) {
    let check = Check { name, f, inputs };
    let floats: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype().is_float()).collect();
    let key = Key::new(0).fold_str(name);
    let draw = |i: usize, x: &[usize]| {
        Tensor::random(Distribution::Uniform { low: -1.0, high: 1.0 }, x, DType::F64, key.fold(i as u64))
            .unwrap()
    };
    let y_shape = {
        let tape = Tape::new();
        (check.f)(&check.place(&tape, inputs, &[])).shape()
    };
    let g = draw(inputs.len(), &y_shape);
    let v: Vec<Tensor> = inputs.iter().enumerate().map(|(i, x)| draw(i, x.shape())).collect();

    let first = check.vjp(inputs, &g, &floats);
    check.against_differences("vjp", &floats, &first, |x| check.inner(x, &g));
    check.partial_tracking(&g, &floats, &first);
    check.adjoint(&g, &v, &floats, &first);
    check.second_order(&g, &v, &floats);
    // The public check agrees; that some of these cases have nothing to differentiate is no matter here.
    let report = limpid_autograd::check(&check.f, inputs);
    let nothing_to_see = match &report.verdict {
        Verdict::Fail(findings) => findings.iter().all(|finding| finding.powerless),
        _ => false,
    };
    assert!(report.passed() || nothing_to_see, "{name}: {report}");
}

struct Check<'a, F> {
    name: &'a str,
    f: F,
    inputs: &'a [Tensor],
}

impl<F: for<'t> Fn(&[Var<'t>]) -> Var<'t>> Check<'_, F> {
    fn place<'t>(&self, tape: &'t Tape, inputs: &[Tensor], variables: &[usize]) -> Vec<Var<'t>> {
        let place = |(i, x)| if variables.contains(&i) { tape.variable(x) } else { tape.constant(x) };
        inputs.iter().enumerate().map(place).collect()
    }

    /// ⟨g, f(x)⟩.
    fn inner(&self, inputs: &[Tensor], g: &Tensor) -> f64 {
        let tape = Tape::inference().with_training(true);
        let y = (self.f)(&self.place(&tape, inputs, &[]));
        dot(&values(y), &g.to_vec().unwrap())
    }

    /// Jᵀ·g for the inputs in `wanted`.
    fn vjp(&self, inputs: &[Tensor], g: &Tensor, wanted: &[usize]) -> Vec<Vec<f64>> {
        let tape = Tape::new();
        let x = self.place(&tape, inputs, wanted);
        let y = (self.f)(&x);
        let sources: Vec<Var> = wanted.iter().map(|&i| x[i]).collect();
        let cotangents = tape.vjp(y, tape.constant(g), &sources).unwrap();
        cotangents
            .into_iter()
            .zip(wanted)
            .map(|(c, &i)| c.map_or_else(|| vec![0.0; inputs[i].elements()], values))
            .collect()
    }

    /// Compares derivatives by every element of every wanted input with central differences of `scalar`.
    #[track_caller]
    fn against_differences(
        &self,
        what: &str,
        wanted: &[usize],
        derivatives: &[Vec<f64>],
        scalar: impl Fn(&[Tensor]) -> f64,
    ) {
        for (&i, derivative) in wanted.iter().zip(derivatives) {
            let at = self.inputs[i].to_vec::<f64>().unwrap();
            assert_eq!(derivative.len(), at.len(), "{}: {what} by input {i} has another size", self.name);
            for element in 0..at.len() {
                let moved = |by: f64| {
                    let mut inputs = self.inputs.to_vec();
                    let mut x = at.clone();
                    x[element] += by;
                    inputs[i] = Tensor::from_vec(x, inputs[i].shape());
                    scalar(&inputs)
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let message = format!("{what} by element {element} of input {i}");
                self.close(&message, derivative[element], difference, DIFFERENCE);
            }
        }
    }

    /// The same vjp comes out of a pass that drops what it records, and when only one input is tracked, which changes
    /// what rules declare to read.
    #[track_caller]
    fn partial_tracking(&self, g: &Tensor, floats: &[usize], expected: &[Vec<f64>]) {
        let alone = floats.iter().map(std::slice::from_ref);
        for tracked in alone.chain([floats]) {
            let tape = Tape::new();
            let x = self.place(&tape, self.inputs, tracked);
            let y = (self.f)(&x);
            let loss = (y * tape.constant(g)).sum(&[]);
            if !loss.is_tracked() {
                continue;
            }
            let audit = tape.audit_reads(loss).unwrap();
            assert_eq!(
                audit.declared, audit.read,
                "{}: with inputs {tracked:?} tracked, rules declare other reads (left) than they do (right), as \
                 (operation, value)",
                self.name
            );
            let tape = Tape::new();
            let x = self.place(&tape, self.inputs, tracked);
            let loss = ((self.f)(&x) * tape.constant(g)).sum(&[]);
            let gradients = tape.backward(loss).unwrap();
            for &i in tracked {
                let expected = &expected[floats.iter().position(|&j| j == i).unwrap()];
                let found = match gradients.of(x[i]) {
                    Some(gradient) => gradient.to_vec::<f64>().unwrap(),
                    None => vec![0.0; expected.len()],
                };
                assert_eq!(&found, expected, "{}: backward with inputs {tracked:?} tracked", self.name);
            }
        }
    }

    /// ⟨g, J·v⟩ = ⟨Jᵀ·g, v⟩.
    #[track_caller]
    fn adjoint(&self, g: &Tensor, v: &[Tensor], floats: &[usize], first: &[Vec<f64>]) {
        let alone = floats.iter().map(std::slice::from_ref);
        for moved in alone.chain([floats]) {
            let tape = Tape::new();
            let x = self.place(&tape, self.inputs, floats);
            let y = (self.f)(&x);
            let pairs: Vec<(Var, Var)> = moved.iter().map(|&i| (x[i], tape.constant(&v[i]))).collect();
            let tangent = tape.jvp(y, &pairs).unwrap();
            assert_eq!(tangent.meta(), y.meta(), "{}: the tangent's shape and dtype", self.name);
            let forward = dot(&g.to_vec().unwrap(), &values(tangent));
            let backward: f64 = floats
                .iter()
                .zip(first)
                .filter(|(i, _)| moved.contains(i))
                .map(|(&i, c)| dot(c, &v[i].to_vec().unwrap()))
                .sum();
            self.close(&format!("jvp against vjp, inputs {moved:?} moved"), forward, backward, ROUNDING);
        }
    }

    /// The gradient of ⟨Jᵀ·g, v⟩ by the inputs, and by g, where it is J·v.
    #[track_caller]
    fn second_order(&self, g: &Tensor, v: &[Tensor], floats: &[usize]) {
        let tape = Tape::new();
        let x = self.place(&tape, self.inputs, floats);
        let y = (self.f)(&x);
        let seed = tape.variable(g);
        let mut sources: Vec<Var> = floats.iter().map(|&i| x[i]).collect();
        let cotangents = tape.vjp(y, seed, &sources).unwrap();
        let products =
            floats.iter().zip(cotangents).filter_map(|(&i, c)| Some((c? * tape.constant(&v[i])).sum(&[])));
        let Some(scalar) = products.reduce(|a, b| a + b) else { return };
        sources.push(seed);
        let mut second: Vec<Vec<f64>> =
            tape.grad(scalar, &sources).unwrap().into_iter().map(values).collect();
        let by_seed = second.pop().unwrap();
        let pairs: Vec<(Var, Var)> = floats.iter().map(|&i| (x[i], tape.constant(&v[i]))).collect();
        let tangent = values(tape.jvp(y, &pairs).unwrap());
        for (element, (&a, &b)) in by_seed.iter().zip(&tangent).enumerate() {
            let message = format!("the vjp by element {element} of its cotangent, against the jvp");
            self.close(&message, a, b, ROUNDING);
        }
        self.against_differences("second order", floats, &second, |x| {
            let first = self.vjp(x, g, floats);
            floats.iter().zip(&first).map(|(&i, c)| dot(c, &v[i].to_vec().unwrap())).sum()
        });
    }

    #[track_caller]
    fn close(&self, what: &str, found: f64, expected: f64, tolerance: f64) {
        let scale = found.abs().max(expected.abs()).max(1.0);
        assert!(
            (found - expected).abs() <= tolerance * scale,
            "{}: {what}: {found:e}, expected {expected:e}",
            self.name
        );
    }
}

fn values(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to_vec().unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
