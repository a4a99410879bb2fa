//! `act(x·Wᵀ + b)`, and `r + x·Wᵀ + b`.

use limpid_autograd::{
    Op, Tape,
    ops::linear::{Linear, LinearAdd},
};
use limpid_tensor::{Activation, DType, Meta, Tensor};

use crate::check::{check, layouts, normal};
use crate::{agrees, panic_message, to_vec, zeros};

const ACTIVATIONS: [Activation; 4] =
    [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];

/// x `[.., in]` and `out`: one row, one column in, one column out, a vector, leading axes.
const SHAPES: [(&[usize], usize); 6] =
    [(&[1, 3], 2), (&[4, 1], 3), (&[3, 4], 1), (&[1, 1], 1), (&[5], 2), (&[2, 3, 4], 3)];

#[test]
fn derivatives() {
    for act in ACTIVATIONS {
        for (shape, out) in SHAPES {
            let (x, w, b) = (normal(shape, 1), normal(&[out, shape[shape.len() - 1]], 2), normal(&[out], 3));
            let name = format!("{act:?} {shape:?} → {out}");
            check(&name, |x| x[0].linear(x[1], Some(x[2]), act), &[x.clone(), w.clone(), b]);
            check(&name, |x| x[0].linear(x[1], None, act), &[x, w]);
        }
    }
}

/// r, x, w and b.
fn added(shape: &[usize], out: usize, seed: u64) -> [Tensor; 4] {
    let last = shape.len() - 1;
    let r: Vec<usize> = shape[..last].iter().copied().chain([out]).collect();
    [
        normal(&r, seed),
        normal(shape, seed + 1),
        normal(&[out, shape[last]], seed + 2),
        normal(&[out], seed + 3),
    ]
}

#[test]
fn derivatives_of_what_is_added() {
    for (shape, out) in SHAPES {
        let operands = added(shape, out, 1);
        let name = format!("added, {shape:?} → {out}");
        check(&name, |x| x[0].linear_add(x[1], x[2], Some(x[3])), &operands);
        check(&name, |x| x[0].linear_add(x[1], x[2], None), &operands[..3]);
    }
    // r, x and w are one: three cotangents meet in one node.
    check("x + x·xᵀ", |x| x[0].linear_add(x[0], x[0], None), &[normal(&[3, 3], 1)]);
}

#[test]
fn what_is_added_has_the_bits_of_a_sum() {
    for dtype in [DType::F32, DType::F64] {
        for (shape, out) in SHAPES {
            let tape = Tape::new();
            let [r, x, w, b] = added(shape, out, 7).map(|x| tape.variable(&x.cast(dtype).unwrap()));
            for b in [None, Some(b)] {
                let (y, sum) = (r.linear_add(x, w, b), r + x.linear(w, b, Activation::Identity));
                let bits = |y: limpid_autograd::Var<'_>| to_vec(y.cast(DType::F64));
                assert_eq!(bits(y), bits(sum), "{dtype} {shape:?} → {out}");
                // A square, so that the cotangent is not the same everywhere.
                let gradients = |y: limpid_autograd::Var<'_>| {
                    let gradients = tape.backward((y * y).sum(&[])).unwrap();
                    [Some(r), Some(x), Some(w), b]
                        .map(|v| v.map(|v| gradients.of(v).unwrap().to_f64_vec().unwrap()))
                };
                let (of_y, of_sum) =
                    (gradients(r.linear_add(x, w, b)), gradients(r + x.linear(w, b, Activation::Identity)));
                assert_eq!(of_y, of_sum, "{dtype} {shape:?} → {out}");
            }
        }
    }
}

#[test]
fn derivatives_in_every_layout() {
    let b = normal(&[2], 3);
    for x in layouts(&normal(&[2, 3, 4], 1)) {
        for w in layouts(&normal(&[2, 4], 2)) {
            check("linear", |x| x[0].linear(x[1], Some(x[2]), Activation::Tanh), &[x.clone(), w, b.clone()]);
        }
    }
}

#[test]
fn one_operand_twice() {
    // Both cotangents meet in one node.
    check("x·xᵀ", |x| x[0].linear(x[0], None, Activation::Sigmoid), &[normal(&[3, 3], 1)]);
}

#[test]
fn fused_is_expanded() {
    for act in ACTIVATIONS {
        for (shape, out) in SHAPES {
            let (x, w, b) = (normal(shape, 4), normal(&[out, shape[shape.len() - 1]], 5), normal(&[out], 6));
            let name = format!("{act:?} {shape:?} → {out}");
            agrees(&name, |x| x[0].linear(x[1], Some(x[2]), act), &[x.clone(), w.clone(), b]);
            agrees(&name, |x| x[0].linear(x[1], None, act), &[x, w]);
        }
    }
    for (shape, out) in SHAPES {
        let (operands, name) = (added(shape, out, 4), format!("added, {shape:?} → {out}"));
        agrees(&name, |x| x[0].linear_add(x[1], x[2], Some(x[3])), &operands);
        agrees(&name, |x| x[0].linear_add(x[1], x[2], None), &operands[..3]);
    }
}

#[test]
fn sizes_of_zero() {
    for expanded in [false, true] {
        let tape = Tape::new().with_fused_expanded(expanded);
        for (rows, columns, out) in [(0, 3, 2), (2, 0, 3), (2, 3, 0)] {
            let (x, w) = (zeros(&tape, &[rows, columns]), zeros(&tape, &[out, columns]));
            let b = tape.variable(&Tensor::ones([out], DType::F64));
            let y = x.linear(w, Some(b), Activation::Relu);
            assert_eq!(to_vec(y), vec![1.0; rows * out]);
            let gradients = tape.backward(y.sum(&[])).unwrap();
            assert_eq!(gradients.of(x).unwrap().to_f64_vec().unwrap(), vec![0.0; rows * columns]);
            assert_eq!(gradients.of(w).unwrap().to_f64_vec().unwrap(), vec![0.0; out * columns]);
            assert_eq!(gradients.of(b).unwrap().to_f64_vec().unwrap(), vec![rows as f64; out]);
        }
    }
}

#[test]
fn the_kink_of_relu_passes_nothing() {
    let tape = Tape::new();
    let (x, w) = (zeros(&tape, &[1, 1]), tape.variable(&Tensor::ones([1, 1], DType::F64)));
    let g = tape.grad(x.linear(w, None, Activation::Relu).sum(&[]), &[x]).unwrap()[0];
    assert_eq!(to_vec(g), [0.0]);
}

/// What a rule does not read is dropped when the scope closes: here the product is all that there is to drop.
#[test]
fn a_constant_input_keeps_no_weight() {
    let tape = Tape::new();
    let (x, w) = (tape.constant(&normal(&[4, 3], 1)), tape.variable(&normal(&[2, 3], 2)));
    tape.scope("layer", || (x * 2.0).linear(w * 3.0, None, Activation::Identity).sum(&[]));
    assert_eq!(tape.memory().needed, 4 * 3 * 8, "x·2 is read for W̄; neither w·3 nor the product is read");
}

#[test]
fn flops_are_those_of_the_expansion() {
    let meta = |shape: &[usize]| Meta::new(shape, DType::F32);
    let (x, w, b, y) = (meta(&[2, 5, 3]), meta(&[4, 3]), meta(&[4]), meta(&[2, 5, 4]));
    let flops = |activation, x: &[&Meta]| Linear { activation }.flops(x, &y);
    assert_eq!(flops(Activation::Identity, &[&x, &w]), 2 * 10 * 4 * 3);
    assert_eq!(flops(Activation::Identity, &[&x, &w, &b]), 2 * 10 * 4 * 3 + 40);
    assert_eq!(flops(Activation::Relu, &[&x, &w, &b]), 2 * 10 * 4 * 3 + 80);
    assert_eq!(LinearAdd.flops(&[&y, &x, &w], &y), 2 * 10 * 4 * 3 + 40);
    assert_eq!(LinearAdd.flops(&[&y, &x, &w, &b], &y), 2 * 10 * 4 * 3 + 80);
}

#[test]
fn wrong_operands_panic() {
    let linear = |x: &'static [usize], w: &'static [usize], b: Option<&'static [usize]>| {
        panic_message(move |tape| {
            zeros(tape, x).linear(zeros(tape, w), b.map(|b| zeros(tape, b)), Activation::Relu)
        })
    };
    assert_eq!(
        linear(&[2, 3], &[4, 5], None),
        "linear: the last axis of [2, 3] must have the size `in` of the weight [4, 5]"
    );
    assert_eq!(
        linear(&[], &[4, 5], None),
        "linear: the last axis of [] must have the size `in` of the weight [4, 5]"
    );
    assert_eq!(linear(&[2, 3], &[3], None), "linear: the weight must be [out, in], found [3]");
    assert_eq!(
        linear(&[2, 3], &[4, 3], Some(&[3])),
        "linear: the bias for weight [4, 3] must be [4], found [3]"
    );
    let added = panic_message(|tape| {
        zeros(tape, &[2, 1]).linear_add(zeros(tape, &[2, 3]), zeros(tape, &[4, 3]), None)
    });
    assert_eq!(added, "linear_add: the product is f64[2, 4], what it is added to f64[2, 1]");
    let mixed = panic_message(|tape| {
        let w = tape.variable(&Tensor::zeros([4, 3], DType::F32));
        zeros(tape, &[2, 3]).linear(w, None, Activation::Relu)
    });
    assert_eq!(mixed, "linear: operands must have one dtype, found f64 and f32");
}
