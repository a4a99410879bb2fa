//! Layer norm and RMS norm.

use limpid_autograd::Tape;
use limpid_tensor::{DType, Tensor};

use crate::check::{check, layouts, normal};
use crate::{Orders, agrees, panic_message, to_vec, zeros};

/// One row, one column, one element, a vector, leading axes.
const SHAPES: [&[usize]; 6] = [&[1, 4], &[3, 1], &[1, 1], &[5], &[3, 5], &[2, 3, 4]];

/// x, γ and β.
fn operands(shape: &[usize], seed: u64) -> [Tensor; 3] {
    let columns = [shape[shape.len() - 1]];
    [normal(shape, seed), normal(&columns, seed + 1), normal(&columns, seed + 2)]
}

#[test]
fn derivatives() {
    for shape in SHAPES {
        // A narrow row's derivatives grow as eps^(−3/2): differences would measure themselves.
        let eps = if shape[shape.len() - 1] == 1 { 0.5 } else { 1e-5 };
        let x = operands(shape, 1);
        check(&format!("layer_norm {shape:?}"), |x| x[0].layer_norm(x[1], x[2], eps), &x);
        check(&format!("rms_norm {shape:?}"), |x| x[0].rms_norm(x[1], eps), &x[..2]);
    }
    let [x, gamma, beta] = operands(&[2, 3, 4], 1);
    for (x, gamma) in layouts(&x).into_iter().zip(layouts(&gamma)) {
        check("layer_norm", |x| x[0].layer_norm(x[1], x[2], 0.1), &[x.clone(), gamma.clone(), beta.clone()]);
        check("rms_norm", |x| x[0].rms_norm(x[1], 0.1), &[x, gamma]);
    }
}

#[test]
fn fused_is_expanded() {
    for shape in SHAPES {
        let eps = if shape[shape.len() - 1] == 1 { 0.5 } else { 1e-3 };
        let x = operands(shape, 4);
        agrees(&format!("layer_norm {shape:?}"), |x| x[0].layer_norm(x[1], x[2], eps), &x);
        agrees(&format!("rms_norm {shape:?}"), |x| x[0].rms_norm(x[1], eps), &x[..2]);
    }
}

#[test]
fn values_on_paper() {
    let tape = Tape::new();
    let vector = |v: &[f64]| tape.variable(&Tensor::from_slice(v, [v.len()]));
    let (x, gamma, beta) = (vector(&[1.0, 7.0]), vector(&[2.0, 10.0]), vector(&[0.5, 0.25]));
    assert_eq!(to_vec(x.layer_norm(gamma, beta, 7.0)), [0.5 - 1.5, 0.25 + 7.5]);
    assert_eq!(to_vec(x.rms_norm(gamma, 39.0)), [2.0 / 8.0, 70.0 / 8.0]);
}

/// Layer norm does not see a shift, and neither sees a factor when eps is 0: the gradient has nothing along either.
#[test]
fn gradients_are_orthogonal_to_what_is_not_seen() {
    let tape = Tape::new();
    let [x, gamma, beta] = operands(&[3, 6], 7).map(|x| tape.variable(&x));
    let weights = tape.constant(&normal(&[3, 6], 10));
    let layer = tape.grad((x.layer_norm(gamma, beta, 0.0) * weights).sum(&[]), &[x]).unwrap()[0];
    let rms = tape.grad((x.rms_norm(gamma, 0.0) * weights).sum(&[]), &[x]).unwrap()[0];
    for inner in [layer.sum(&[1]), (layer * x).sum(&[1]), (rms * x).sum(&[1])] {
        assert!(to_vec(inner).iter().all(|v| v.abs() < 1e-14), "{:?}", to_vec(inner));
    }
    assert!(to_vec(rms.sum(&[1])).iter().all(|v| v.abs() > 1e-3), "rms_norm does see a shift");
}

/// The variance is taken about a number of the row: E[x²] − mean² would have no correct digit in f32 here.
#[test]
fn a_large_mean_does_not_drown_the_gradient() {
    let [x, gamma, beta] = operands(&[2, 64], 11);
    let x = Tensor::from_f64(
        &x.to_f64_vec().unwrap().iter().map(|v| (v * 64.0).round() / 64.0 + 1000.0).collect::<Vec<_>>(),
        [2, 64],
        DType::F64,
    );
    let f = |tape: Tape, dtype| {
        Orders::of(
            &tape,
            |x| x[0].layer_norm(x[1], x[2], 1e-5),
            &[x.clone(), gamma.clone(), beta.clone()],
            dtype,
        )
    };
    let exact = f(Tape::new(), DType::F64);
    f(Tape::new(), DType::F32).assert_near(&exact, 1e-4, "f32");
}

#[test]
fn a_constant_row_has_a_finite_gradient() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::full([1, 3], 2.0, DType::F64));
    let (gamma, beta) = (tape.variable(&Tensor::ones([3], DType::F64)), zeros(&tape, &[3]));
    let weights = tape.constant(&Tensor::from_vec(vec![1.0f64, 0.0, 0.0], [3]));
    let y = x.layer_norm(gamma, beta, 0.25);
    assert_eq!(to_vec(y), [0.0; 3]);
    // r = 2 and x̂ = 0: x̄ = 2(ĝ − mean ĝ).
    let gradient = to_vec(tape.grad((y * weights).sum(&[]), &[x]).unwrap()[0]);
    for (found, expected) in gradient.iter().zip([4.0 / 3.0, -2.0 / 3.0, -2.0 / 3.0]) {
        assert!((found - expected).abs() < 1e-15, "{found}, expected {expected}");
    }
}

#[test]
fn wrong_operands_panic() {
    let gain = panic_message(|tape| zeros(tape, &[2, 3]).rms_norm(zeros(tape, &[2]), 0.1));
    assert_eq!(gain, "rms_norm: γ for [2, 3] must be [3], found [2]");
    let bias =
        panic_message(|tape| zeros(tape, &[2, 3]).layer_norm(zeros(tape, &[3]), zeros(tape, &[1, 3]), 0.1));
    assert_eq!(bias, "layer_norm: β for [2, 3] must be [3], found [1, 3]");
    let scalar = panic_message(|tape| zeros(tape, &[]).rms_norm(zeros(tape, &[1]), 0.1));
    assert_eq!(scalar, "rms_norm: needs an axis, found shape []");
    let mixed = panic_message(|tape| {
        let gamma = tape.constant(&Tensor::ones([3], DType::F32));
        zeros(tape, &[2, 3]).rms_norm(gamma, 0.1)
    });
    assert_eq!(mixed, "rms_norm: operands must have one dtype, found f64 and f32");
}
