//! Fused operations: against differences, against their expansions, and against what they are on paper.

mod activation;
#[path = "../check/mod.rs"]
mod check;
mod cross_entropy;
mod linear;
mod norm;
mod primitives;
mod sinkhorn;
mod softmax;
mod streams;

use check::normal;
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Device, Tensor};

/// The value of a program, its vjp with a random cotangent, and the derivative of that vjp in a random direction by
/// every float operand and by the cotangent; and how many nodes the program has.
struct Orders {
    value: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    nodes: usize,
}

impl Orders {
    /// With float operands in `dtype`, on a tape.
    fn of(tape: &Tape, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor], dtype: DType) -> Orders {
        let here = |x: &Tensor| x.to(tape.device()).unwrap();
        let x: Vec<Var> = inputs
            .iter()
            .map(|x| match x.dtype().is_float() {
                true => tape.variable(&here(&x.cast(dtype).unwrap())),
                false => tape.constant(&here(x)),
            })
            .collect();
        let mut sources: Vec<Var> = x.iter().copied().filter(|x| x.dtype().is_float()).collect();
        let start = tape.len();
        let y = f(&x);
        let nodes = tape.len() - start;
        let g = tape.variable(&here(&normal(&y.shape(), 100).cast(dtype).unwrap()));
        let first: Vec<Var> = tape.vjp(y, g, &sources).unwrap().into_iter().map(Option::unwrap).collect();
        let mut scalar = tape.scalar(0.0, dtype);
        for (i, &c) in first.iter().enumerate() {
            let v = normal(&c.shape(), 101 + i as u64).cast(dtype).unwrap();
            scalar = scalar + (c * tape.constant(&here(&v))).sum(&[]);
        }
        sources.push(g);
        let second = tape.grad(scalar, &sources).unwrap();
        let all = |vars: &[Var]| vars.iter().flat_map(|v| v.value().unwrap().to_f64_vec().unwrap()).collect();
        Orders { value: all(&[y]), first: all(&first), second: all(&second), nodes }
    }

    /// Each number within `tolerance`, relative to the larger of 1 and the largest of its kind.
    #[track_caller]
    fn assert_near(&self, expected: &Orders, tolerance: f64, what: &str) {
        let kinds = [
            ("value", &self.value, &expected.value),
            ("first derivative", &self.first, &expected.first),
            ("second derivative", &self.second, &expected.second),
        ];
        for (kind, found, expected) in kinds {
            assert_eq!(found.len(), expected.len(), "{what}: {kind}");
            let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!((a - b).abs() <= tolerance * scale, "{what}: {kind} {i} is {a}, expected {b}");
            }
        }
    }
}

/// That an operation in one pass, its expansion, the same on a device that has no fused kernel, and both in narrower
/// dtypes agree in value and in first and second derivative.
#[track_caller]
fn agrees(name: &str, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) {
    let expanded = || Tape::new().with_fused_expanded(true);
    let fused = Orders::of(&Tape::new(), &f, inputs, DType::F64);
    let reference = Orders::of(&expanded(), &f, inputs, DType::F64);
    assert!(reference.nodes > fused.nodes, "{name}: its expansion is not longer than it is");
    fused.assert_near(&reference, 1e-12, &format!("{name}, fused against expanded"));

    let elsewhere = Orders::of(&Tape::new().with_device(primitives::device()), &f, inputs, DType::F64);
    assert_eq!(elsewhere.nodes, fused.nodes, "{name} where there is no kernel");
    elsewhere.assert_near(&reference, 1e-12, &format!("{name} where there is no kernel"));

    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 5e-2)] {
        for tape in [Tape::new(), expanded()] {
            let narrow = Orders::of(&tape, &f, inputs, dtype);
            narrow.assert_near(&reference, tolerance, &format!("{name}, {dtype} against f64"));
        }
    }
}

/// The message with which recording fails.
fn panic_message(f: impl for<'t> FnOnce(&'t Tape) -> Var<'t> + std::panic::UnwindSafe) -> String {
    let caught = std::panic::catch_unwind(|| f(&Tape::new()).index()).expect_err("it should have panicked");
    *caught.downcast::<String>().expect("a formatted message")
}

/// Zeros on a tape.
fn zeros<'t>(tape: &'t Tape, shape: &[usize]) -> Var<'t> {
    tape.variable(&Tensor::zeros(shape, DType::F64))
}

fn to_vec(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to(&Device::cpu()).unwrap().to_f64_vec().unwrap()
}

#[test]
#[should_panic(expected = "add in block: operands are on different devices, primitives and cpu")]
fn mixing_devices_names_both() {
    let tape = Tape::new();
    let there = tape.variable(&Tensor::ones([2], DType::F64).to(&primitives::device()).unwrap());
    let here = tape.variable(&Tensor::ones([2], DType::F64));
    tape.scope("block", || there + here);
}
