//! Cross-entropy of logits against labels.

use limpid_autograd::Tape;
use limpid_tensor::{DType, Tensor};

use crate::check::{check, layouts, normal};
use crate::{agrees, panic_message, to_vec, zeros};

fn labels(labels: &[i64]) -> Tensor {
    Tensor::from_slice(labels, [labels.len()])
}

/// One row, one column, more rows than classes and the reverse.
fn cases() -> [(Tensor, Tensor); 5] {
    [
        (normal(&[1, 4], 1), labels(&[2])),
        (normal(&[3, 1], 2), labels(&[0, 0, 0])),
        (normal(&[1, 1], 3), labels(&[0])),
        (normal(&[5, 3], 4), labels(&[2, 0, 1, 1, 0])),
        (normal(&[2, 6], 5), labels(&[5, 0])),
    ]
}

#[test]
fn derivatives() {
    for (x, labels) in cases() {
        check(&format!("cross_entropy {}", x.shape()), |x| x[0].cross_entropy(x[1]), &[x, labels]);
    }
    let strided = labels(&[2, 9, 0, 9, 1]).slice(0, 0, 5, 2).flip(0);
    for x in layouts(&normal(&[3, 4], 1)) {
        check("cross_entropy", |x| x[0].cross_entropy(x[1]), &[x, strided.clone()]);
    }
}

#[test]
fn fused_is_expanded() {
    for (x, labels) in cases() {
        agrees(&format!("cross_entropy {}", x.shape()), |x| x[0].cross_entropy(x[1]), &[x, labels]);
    }
}

#[test]
fn extreme_and_masked_logits() {
    for expanded in [false, true] {
        let tape = Tape::new().with_fused_expanded(expanded);
        let none = f64::NEG_INFINITY;
        let rows = vec![1e4, -1e4, -1e4, 1e4, -1e4, -1e4, 0.0, 0.0, none];
        let x = tape.variable(&Tensor::from_vec(rows, [3, 3]));
        let loss = x.cross_entropy(tape.constant(&labels(&[0, 1, 1])));
        assert_eq!(to_vec(loss), [0.0, 2e4, std::f64::consts::LN_2]);
        let gradient = tape.grad(loss.sum(&[]), &[x]).unwrap()[0];
        assert_eq!(to_vec(gradient), [0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.5, -0.5, 0.0]);
        let second = tape.grad((gradient * gradient).sum(&[]), &[x]).unwrap()[0];
        // ½ and −½ move apart: 2(½·p₀(1 − p₀) + ½·p₀p₁).
        assert_eq!(to_vec(second), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, -0.5, 0.0]);
    }
}

#[test]
fn a_label_outside_the_classes_is_an_error() {
    for expanded in [false, true] {
        let tape = Tape::new().with_fused_expanded(expanded);
        let x = tape.variable(&normal(&[2, 3], 1));
        let loss = x.cross_entropy(tape.constant(&labels(&[1, 3]))).sum(&[]);
        let message = tape.backward(loss).err().unwrap().to_string();
        assert!(message.contains('3'), "{message}");
        assert!(loss.value().is_err());
    }
}

#[test]
fn wrong_operands_panic() {
    let shapes = |x: &'static [usize], rows: usize| {
        panic_message(move |tape| {
            zeros(tape, x).cross_entropy(tape.constant(&Tensor::zeros([rows], DType::I64)))
        })
    };
    assert_eq!(
        shapes(&[2, 3], 3),
        "cross_entropy: expected logits [N, C] and labels [N], found [2, 3] and [3]"
    );
    assert_eq!(shapes(&[2], 2), "cross_entropy: expected logits [N, C] and labels [N], found [2] and [2]");
    assert_eq!(
        shapes(&[2, 0], 2),
        "cross_entropy: expected logits [N, C] and labels [N], found [2, 0] and [2]"
    );
    let dtype = panic_message(|tape| zeros(tape, &[2, 3]).cross_entropy(zeros(tape, &[2])));
    assert_eq!(dtype, "cross_entropy: logits must be floats and labels i64, found f64 and f64");
}
