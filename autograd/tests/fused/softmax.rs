//! Softmax and its logarithm.

use limpid_autograd::ops::movement::concat;
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

use crate::check::{check, layouts, normal};
use crate::{agrees, panic_message, to_vec, zeros};

/// One row, one column, one element, a vector, leading axes; each with the axis.
const CASES: [(&[usize], isize); 8] = [
    (&[1, 4], -1),
    (&[4, 1], -1),
    (&[1, 1], 1),
    (&[5], 0),
    (&[3, 4], 0),
    (&[2, 3, 4], -1),
    (&[2, 3, 4], 1),
    (&[2, 3, 4], -3),
];

#[test]
fn derivatives() {
    for (shape, axis) in CASES {
        let x = normal(shape, 1);
        check(&format!("softmax {shape:?} {axis}"), |x| x[0].softmax(axis), std::slice::from_ref(&x));
        check(&format!("log_softmax {shape:?} {axis}"), |x| x[0].log_softmax(axis), &[x]);
    }
    for x in layouts(&normal(&[2, 3, 4], 1)) {
        check("softmax", |x| x[0].softmax(-2), std::slice::from_ref(&x));
        check("log_softmax", |x| x[0].log_softmax(-1), &[x]);
    }
}

#[test]
fn fused_is_expanded() {
    for (shape, axis) in CASES {
        let x = normal(shape, 2);
        agrees(&format!("softmax {shape:?} {axis}"), |x| x[0].softmax(axis), std::slice::from_ref(&x));
        agrees(&format!("log_softmax {shape:?} {axis}"), |x| x[0].log_softmax(axis), &[x]);
    }
}

#[test]
fn values_on_paper() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.0f64, 2f64.ln(), 5f64.ln(), 0.0, 0.0, 0.0], [2, 3]));
    let expected = [1.0, 2.0, 5.0, 8.0 / 3.0, 8.0 / 3.0, 8.0 / 3.0].map(|v| v / 8.0);
    for ((y, log_y), expected) in to_vec(x.softmax(1)).iter().zip(to_vec(x.log_softmax(1))).zip(expected) {
        assert!((y - expected).abs() < 1e-15 && (log_y - expected.ln()).abs() < 1e-15, "{y} {log_y}");
    }
    let columns = to_vec(x.transpose(0, 1).softmax(0).transpose(0, 1));
    assert_eq!(columns, to_vec(x.softmax(1)), "along another axis");
}

/// Runs on a fused and on an expanded tape.
fn both(f: impl Fn(&Tape)) {
    f(&Tape::new());
    f(&Tape::new().with_fused_expanded(true));
}

fn grad<'t>(y: Var<'t>, x: Var<'t>) -> Var<'t> {
    y.tape().grad(y, &[x]).unwrap()[0]
}

#[test]
fn extreme_logits() {
    both(|tape| {
        let x = tape.variable(&Tensor::from_vec(vec![1e4f64, -1e4, 1e4, -1e4], [4]));
        let weights = tape.constant(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0], [4]));
        let (y, log_y) = (x.softmax(0), x.log_softmax(0));
        assert_eq!(to_vec(y), [0.5, 0.0, 0.5, 0.0]);
        let ln2 = std::f64::consts::LN_2;
        assert_eq!(to_vec(log_y), [-ln2, -2e4 - ln2, -ln2, -2e4 - ln2]);
        // y∘(w − Σ w∘y) with Σ w∘y = 2, and w − y·Σ w.
        let first = grad((y * weights).sum(&[]), x);
        assert_eq!(to_vec(first), [-0.5, 0.0, 0.5, 0.0]);
        assert_eq!(to_vec(grad((log_y * weights).sum(&[]), x)), [-4.0, 2.0, -2.0, 4.0]);
        // x̄₀ = y₀(w₀ − Σ w∘y), by x₀: y₀(1 − y₀)(w₀ − 2) − y₀·y₀(w₀ − 2), where y₀ = ½.
        assert_eq!(to_vec(grad(first.select(0, 0), x)), [0.0; 4]);
    });
}

#[test]
fn a_masked_element_is_as_if_it_were_not_there() {
    both(|tape| {
        let short = tape.variable(&normal(&[2, 3], 3));
        let masked = tape.constant(&Tensor::full([2, 1], f64::NEG_INFINITY, DType::F64));
        let x = tape.variable(&concat(&[short, masked], 1).value().unwrap());
        let weights = tape.constant(&normal(&[2, 4], 4));
        let kept = |v: Var<'_>| to_vec(v.slice(1, 0, 3, 1));
        let orders = |y: Var<'_>, x| {
            let y = y.slice(1, 0, 3, 1);
            let first = grad((y * y * weights.slice(1, 0, 3, 1)).sum(&[]), x);
            [kept(y), kept(first), kept(grad((first * first).sum(&[]), x))]
        };
        for f in [Var::softmax, Var::log_softmax] {
            for (found, expected) in orders(f(x, 1), x).iter().zip(orders(f(short, 1), short)) {
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-14, "{a}, expected {b}");
                }
            }
        }
        let masked_gradient = grad((x.softmax(1) * weights).sum(&[]), x).slice(1, 3, 4, 1);
        assert_eq!(to_vec(masked_gradient), [0.0, 0.0]);
    });
}

#[test]
fn a_shift_along_the_axis_changes_nothing() {
    both(|tape| {
        let x = tape.variable(&normal(&[3, 5], 5));
        let weights = tape.constant(&normal(&[3, 5], 6));
        for y in [x.softmax(1), x.log_softmax(1)] {
            for along_shift in to_vec(grad((y * weights).sum(&[]), x).sum(&[1])) {
                assert!(along_shift.abs() < 1e-15, "{along_shift}");
            }
        }
    });
}

#[test]
fn a_row_that_is_all_masked_is_nan() {
    both(|tape| {
        let x = tape.variable(&Tensor::full([1, 2], f64::NEG_INFINITY, DType::F64));
        assert!(to_vec(x.softmax(1)).iter().chain(&to_vec(x.log_softmax(1))).all(|v| v.is_nan()));
    });
}

#[test]
fn wrong_operands_panic() {
    let empty = panic_message(|tape| zeros(tape, &[3, 0]).softmax(1));
    assert_eq!(empty, "softmax: over the last axis of shape [3, 0]: there are no elements");
    let empty = panic_message(|tape| zeros(tape, &[3, 0]).log_softmax(1));
    assert_eq!(empty, "log_softmax: over the last axis of shape [3, 0]: there are no elements");
    let axis = panic_message(|tape| zeros(tape, &[3, 2]).softmax(2));
    assert_eq!(axis, "axis 2 is out of range for shape [3, 2] of rank 2");
    let integers = panic_message(|tape| tape.constant(&Tensor::from_vec(vec![1i64], [1])).softmax(0));
    assert_eq!(integers, "softmax: is not defined for i64");
}
