//! einsum, against the sum written as nested loops.

mod check;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use check::{check, layouts, normal};
use limpid_autograd::Tape;
use limpid_autograd::ops::einsum::einsum;
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

/// Every assignment of values to indices, each adding its product to one element of the output.
fn loops(inputs: &[Vec<char>], output: &[char], operands: &[Tensor]) -> Vec<f64> {
    let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
    for (indices, x) in inputs.iter().zip(operands) {
        sizes.extend(indices.iter().copied().zip(x.shape().iter().copied()));
    }
    let values: Vec<Vec<f64>> = operands.iter().map(|x| x.to_vec().unwrap()).collect();
    let position = |indices: &[char], at: &BTreeMap<char, usize>| {
        indices.iter().fold(0, |position, index| position * sizes[index] + at[index])
    };
    let mut y = vec![0.0; output.iter().map(|index| sizes[index]).product()];
    for assignment in 0..sizes.values().product() {
        let mut rest: usize = assignment;
        let at: BTreeMap<char, usize> =
            sizes.iter().map(|(&index, &n)| (index, (rest % n, rest /= n).0)).collect();
        let factors = inputs.iter().zip(&values).map(|(indices, values)| values[position(indices, &at)]);
        y[position(output, &at)] += factors.product::<f64>();
    }
    y
}

fn split(spec: &str) -> (Vec<Vec<char>>, Vec<char>) {
    let (inputs, output) = spec.split_once("->").unwrap();
    (inputs.split(',').map(|part| part.chars().collect()).collect(), output.chars().collect())
}

fn operands(inputs: &[Vec<char>], size: impl Fn(char) -> usize) -> Vec<Tensor> {
    let shape = |indices: &Vec<char>| -> Vec<usize> { indices.iter().map(|&index| size(index)).collect() };
    inputs.iter().enumerate().map(|(i, indices)| normal(&shape(indices), i as u64 + 1)).collect()
}

fn agrees(spec: &str, operands: &[Tensor]) {
    let (inputs, output) = split(spec);
    let expected = loops(&inputs, &output, operands);
    let tape = Tape::new();
    let x: Vec<_> = operands.iter().map(|x| tape.constant(x)).collect();
    let y = einsum(spec, &x).value().unwrap();
    assert_eq!(y.shape().len(), output.len(), "{spec}");
    let y = y.to_vec::<f64>().unwrap();
    assert_eq!(y.len(), expected.len(), "{spec}");
    for (found, expected) in y.into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{spec}: {found}, {expected}");
    }
}

const SPECS: [&str; 32] = [
    "->",
    "i->i",
    "i->",
    "ij->ji",
    "ij->j",
    "ij->",
    "kji->jik",
    "ii->i",
    "ii->",
    "iij->ji",
    "iij->j",
    "iii->i",
    "ijij->ij",
    "i,i->",
    "i,i->i",
    "i,j->ij",
    "i,j->",
    "ij,j->i",
    "ij,jk->ik",
    "ij,kj->ik",
    "ij,jk->ki",
    "ij,ij->ij",
    "bij,bjk->bik",
    "bij,bkj->ikb",
    "abcd,ce->eabd",
    "abc,cbd->ad",
    "ii,i->i",
    "ij,->ji",
    "ij,jk,kl->il",
    "i,ij,j->",
    "i,i,i->i",
    "ij,jk,ki->",
];

#[test]
fn agrees_with_nested_loops_for_every_layout() {
    for spec in SPECS {
        let (inputs, _) = split(spec);
        let operands = operands(&inputs, |index| 2 + index as usize % 3);
        let views: Vec<Vec<Tensor>> = operands.iter().map(layouts).collect();
        for i in 0..4 {
            // A different layout for each operand.
            agrees(
                spec,
                &views.iter().enumerate().map(|(k, v)| v[(i + k) % v.len()].clone()).collect::<Vec<_>>(),
            );
        }
    }
}

#[test]
fn agrees_with_nested_loops_for_sizes_0_and_1() {
    for spec in SPECS {
        let (inputs, _) = split(spec);
        for (odd, other) in [(0, 2), (1, 3), (0, 0), (1, 1), (0, 1)] {
            agrees(spec, &operands(&inputs, |index| if index as usize % 2 == 1 { odd } else { other }));
        }
    }
}

#[test]
fn agrees_with_nested_loops_for_specs_nobody_thought_of() {
    for case in 0..500 {
        let key = Key::new(11).fold(case);
        let mut draws = 0;
        let mut below = |n: u64| {
            draws += 1;
            key.bits(draws) % n
        };
        let mut letters = |n: u64| -> Vec<char> { (0..n).map(|_| (b'a' + below(5) as u8) as char).collect() };
        let inputs: Vec<Vec<char>> = (0..1 + case % 4).map(|i| letters((case / 4 + i) % 4)).collect();
        let mut output = letters(3);
        output.retain(|index| inputs.iter().flatten().any(|other| other == index));
        output.sort_unstable();
        output.dedup();
        if case % 2 == 0 {
            output.reverse();
        }
        let parts: Vec<String> = inputs.iter().map(|part| part.iter().collect()).collect();
        let spec = format!("{}->{}", parts.join(","), output.iter().collect::<String>());
        agrees(&spec, &operands(&inputs, |index| 1 + index as usize % 3));
    }
}

#[test]
fn without_an_arrow_the_output_is_alphabetical() {
    let tape = Tape::new();
    let operand = |shape: &[usize]| tape.constant(&normal(shape, 1));
    let cases: [(&str, &str, Vec<&[usize]>); 6] = [
        ("ij,jk", "ij,jk->ik", vec![&[2, 3], &[3, 4]]),
        ("ba", "ba->ab", vec![&[2, 3]]),
        ("ii", "ii->", vec![&[3, 3]]),
        ("ij", "ij->ij", vec![&[2, 3]]),
        ("bA", "bA->Ab", vec![&[2, 3]]),
        (" i j , j k -> k i ", "ij,jk->ki", vec![&[2, 3], &[3, 4]]),
    ];
    for (implicit, explicit, shapes) in cases {
        let x: Vec<_> = shapes.iter().map(|shape| operand(shape)).collect();
        let (a, b) = (einsum(implicit, &x).value().unwrap(), einsum(explicit, &x).value().unwrap());
        assert_eq!(a.shape(), b.shape(), "{implicit}");
        assert_eq!(a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap(), "{implicit}");
    }
}

#[test]
fn a_matrix_product_is_one_operation() {
    let tape = Tape::new();
    let x = [tape.constant(&normal(&[5, 2, 3], 1)), tape.constant(&normal(&[5, 3, 4], 2))];
    let before = tape.len();
    einsum("bij,bjk->bik", &x);
    assert_eq!(tape.len(), before + 1);
}

#[test]
fn a_program_that_has_not_run_has_shapes() {
    let tape = Tape::dry();
    let x = [tape.constant(&normal(&[2, 3, 3], 1)), tape.constant(&normal(&[3, 4], 2))];
    assert_eq!(einsum("abb,bc->ca", &x).shape().to_string(), "[4, 2]");
}

#[test]
fn one_operand_of_any_dtype_moves_and_sums() {
    let tape = Tape::new();
    let x = tape.constant(&Tensor::arange(0.0, 6.0, 1.0, DType::I64).reshape([2, 3]).unwrap());
    assert_eq!(einsum("ij->j", &[x]).value().unwrap().to_vec::<i64>().unwrap(), [3, 5, 7]);
    assert_eq!(einsum("ij->ji", &[x]).value().unwrap().to_vec::<i64>().unwrap(), [0, 3, 1, 4, 2, 5]);
}

#[test]
fn derivatives() {
    for spec in SPECS {
        let (inputs, _) = split(spec);
        let operands = operands(&inputs, |index| 2 + index as usize % 2);
        check(spec, |x| einsum(spec, x), &operands);
        let views: Vec<Tensor> = operands.iter().map(|x| layouts(x).pop().unwrap()).collect();
        check(&format!("{spec} of views"), |x| einsum(spec, x), &views);
    }
    let x = normal(&[3, 3], 1);
    check("one value twice", |x| einsum("ij,jk->ki", &[x[0], x[0]]), std::slice::from_ref(&x));
    check("a cubic form", |x| einsum("ij,jk,kk->i", &[x[0], x[0], x[0]]), std::slice::from_ref(&x));
    for n in [0, 1] {
        let x = [normal(&[2, n], 1), normal(&[n, 2], 2)];
        check("inner size 0 and 1", |x| einsum("ij,jk->ik", x), &x);
        check("outer size 0 and 1", |x| einsum("ij,ki->jk", x), &x);
        check("diagonal of size 0 and 1", |x| einsum("ii->i", x), &[normal(&[n, n], 1)]);
    }
}

thread_local! {
    static PANICKED_AT: Cell<u32> = const { Cell::new(0) };
}

/// The message of the panic that `f` ends in, and its line.
fn panic_of(f: impl FnOnce()) -> (String, u32) {
    static NOTE_LINES: Once = Once::new();
    NOTE_LINES.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED_AT.set(panic.location().map_or(0, |location| location.line()));
            before(panic);
        }));
    });
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it should have panicked");
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    (message, PANICKED_AT.get())
}

#[test]
fn a_wrong_spec_is_explained_at_the_callers_line() {
    let matrix: &[usize] = &[2, 3];
    let cases: [(&str, &[&[usize]], &str); 14] = [
        ("...i->i", &[matrix], "an ellipsis is not supported; name every axis"),
        ("ij->i->j", &[matrix], "\"->\" occurs twice"),
        ("i1->i", &[matrix], "'1' in operand 0 is not an index; an index is one of a–z, A–Z"),
        ("ij,k_->i", &[matrix, matrix], "'_' in operand 1 is not an index; an index is one of a–z, A–Z"),
        ("ij->i-", &[matrix], "'-' in the output is not an index; an index is one of a–z, A–Z"),
        ("ij->ii", &[matrix], "the output names index 'i' twice"),
        ("ij->ik", &[matrix], "the output names index 'k', which no operand has"),
        ("ij,jk->ik", &[matrix], "the number of operands is 2 in the spec and 1 in the call"),
        ("", &[], "the number of operands is 1 in the spec and 0 in the call"),
        ("ij,jk->ik", &[matrix, &[3]], "operand 1 is named \"jk\", 2 axes, and has shape [3]"),
        ("->", &[matrix], "operand 0 is named \"\", 0 axes, and has shape [2, 3]"),
        (
            "ij,jk->ik",
            &[matrix, &[4, 5]],
            "index 'j' has size 3 in operand 0 of shape [2, 3] and size 4 in operand 1 of shape [4, 5]",
        ),
        (
            "ii->i",
            &[matrix],
            "index 'i' has size 2 in operand 0 of shape [2, 3] and size 3 in operand 0 of shape [2, 3]",
        ),
        (
            "i,i->i",
            &[&[1], &[3]],
            "index 'i' has size 1 in operand 0 of shape [1] and size 3 in operand 1 of shape [3]",
        ),
    ];
    for (spec, shapes, expected) in cases {
        let tape = Tape::new();
        let x: Vec<_> = shapes.iter().map(|shape| tape.constant(&normal(shape, 1))).collect();
        let line = line!() + 2;
        let (message, at) = panic_of(|| {
            einsum(spec, &x);
        });
        assert_eq!(message, format!("einsum {spec:?}: {expected}"));
        assert_eq!(at, line, "{spec}");
    }
}

#[test]
fn mixed_and_whole_dtypes_are_refused() {
    let tape = Tape::new();
    let x = tape.constant(&normal(&[2], 1));
    let (single, whole) = (x.cast(DType::F32), x.cast(DType::I64));
    let (message, _) = panic_of(|| {
        einsum("i,i->", &[x, single]);
    });
    assert_eq!(message, "einsum \"i,i->\": operand 0 is f64 and operand 1 is f32");
    let (message, _) = panic_of(|| {
        einsum("i,i->", &[whole, whole]);
    });
    assert_eq!(message, "einsum \"i,i->\": products of i64 are not defined");
}
