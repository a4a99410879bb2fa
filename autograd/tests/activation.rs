//! Activations made of other operations, and gated linear units.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

type Unary = for<'t> fn(Var<'t>) -> Var<'t>;

const POINTWISE: [(&str, Unary); 3] =
    [("gelu", |x| x.gelu()), ("gelu_tanh", |x| x.gelu_tanh()), ("silu", |x| x.silu())];

/// Each with the function its gate goes through.
const GATED: [(&str, Unary, Unary); 4] = [
    ("glu", |x| x.glu(), |x| x.sigmoid()),
    ("swiglu", |x| x.swiglu(), |x| x.silu()),
    ("geglu", |x| x.geglu(), |x| x.gelu()),
    ("reglu", |x| x.reglu(), |x| x.relu()),
];

fn to_vec(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to_f64_vec().unwrap()
}

#[test]
fn derivatives() {
    for (name, f) in POINTWISE {
        for x in layouts(&normal(&[2, 3, 4], 1)) {
            check(name, |x| f(x[0]), &[x]);
        }
        check(name, |x| f(x[0]), &[normal(&[], 2)]);
    }
    for (name, f, _) in GATED {
        for x in layouts(&normal(&[2, 3, 4], 3)) {
            check(name, |x| f(x[0]), &[x]);
        }
        check(name, |x| f(x[0]), &[normal(&[2], 4)]);
    }
}

/// To 16 digits, from mpmath with 50.
#[test]
fn values_and_slopes() {
    let at = [-3.0, -0.5, 0.0, 1.0, 2.5];
    let expected: [(&str, [f64; 5], [f64; 5]); 3] = [
        (
            "gelu",
            [-0.0040496940948902835, -0.15426876936299344, 0.0, 0.8413447460685429, 2.4844758366855597],
            [-0.011945647204183927, 0.13250487534383715, 0.5, 1.0833154705876864, 1.037611085908145],
        ),
        (
            "gelu_tanh",
            [-0.003637392081773019, -0.15428599017485609, 0.0, 0.8411919906082767, 2.484915733910001],
            [-0.011584166630969726, 0.1326300964653577, 0.5, 1.0829640838457826, 1.037951576212666],
        ),
        (
            "silu",
            [-0.14227761953270035, -0.18877033439907273, 0.0, 0.7310585786300049, 2.310354549946891],
            [-0.08810410601516962, 0.2600388126973482, 0.5, 0.9276705118714867, 1.0994011113415267],
        ),
    ];
    for ((name, f), (golden, values, slopes)) in POINTWISE.into_iter().zip(expected) {
        assert_eq!(name, golden);
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_slice(&at, [5]));
        let y = f(x);
        let slope = tape.grad(y.sum(&[]), &[x]).unwrap()[0];
        for (found, expected) in to_vec(y).iter().chain(&to_vec(slope)).zip(values.iter().chain(&slopes)) {
            assert!((found - expected).abs() < 1e-15, "{name}: {found}, expected {expected}");
        }
    }
}

/// With a positive α the derivative of elu is a function of the result; with a negative one the result is positive on both
/// sides, and the operand is read as well.
#[test]
fn the_sides_of_elu() {
    for (alpha, held) in [(1.5, 40), (0.0, 40), (-0.5, 80)] {
        let tape = Tape::new();
        let x = tape.variable(&Tensor::from_slice(&[-2.0f64, -1e-300, 0.0, 1e-300, 3.0], [5]));
        let y = tape.scope("block", || (x * 1.0).elu(alpha));
        assert_eq!(tape.memory().needed, held, "{alpha}");
        let slope = to_vec(tape.grad(y.sum(&[]), &[x]).unwrap()[0]);
        let expected = [alpha * (-2f64).exp(), alpha, alpha, 1.0, 1.0];
        let off = slope.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-15, "{alpha}: {slope:?}, expected {expected:?}");
        let read = tape.audit_reads(y.sum(&[])).unwrap();
        assert_eq!((read.declared == read.read, read.read_bytes), (true, held), "{alpha}");
    }
}

#[test]
fn far_from_zero() {
    for (name, f) in POINTWISE {
        for dtype in [DType::F32, DType::F64] {
            let tape = Tape::new();
            let x = tape.variable(&Tensor::from_f64(&[-1e4, -100.0, 100.0, 1e4], [4], dtype));
            let y = f(x);
            let slope = tape.grad(y.sum(&[]), &[x]).unwrap()[0];
            let second = tape.grad(slope.sum(&[]), &[x]).unwrap()[0];
            let near = |found: Vec<f64>, expected: [f64; 4]| {
                let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-30, "{name} {dtype}: {found:?}, expected {expected:?}");
            };
            near(to_vec(y), [0.0, 0.0, 100.0, 1e4]);
            near(to_vec(slope), [0.0, 0.0, 1.0, 1.0]);
            near(to_vec(second), [0.0; 4]);
        }
    }
}

#[test]
fn f32_is_close_to_f64() {
    for f in POINTWISE.map(|(_, f)| f).into_iter().chain(GATED.map(|(_, f, _)| f)) {
        let of = |dtype| {
            let tape = Tape::new();
            let x = tape.variable(&normal(&[50, 8], 5).cast(dtype).unwrap());
            let y = f(x);
            let slope = tape.grad(y.sum(&[]), &[x]).unwrap()[0];
            let second = tape.grad((slope * slope).sum(&[]), &[x]).unwrap()[0];
            [y, slope, second].map(to_vec).concat()
        };
        for (narrow, wide) in of(DType::F32).iter().zip(of(DType::F64)) {
            assert!((narrow - wide).abs() <= 4e-6 * wide.abs().max(1.0), "{narrow}, expected {wide}");
        }
    }
}

#[test]
fn the_approximation_of_gelu_is_as_good_as_documented() {
    let tape = Tape::new();
    let x = tape.constant(&Tensor::linspace(-8.0, 8.0, 16_001, DType::F64));
    let worst = (x.gelu() - x.gelu_tanh()).abs().max(&[]).item().unwrap();
    assert!((4.7e-4..4.8e-4).contains(&worst), "{worst}");
}

#[test]
fn the_second_half_is_the_gate() {
    for (name, f, gate) in GATED {
        let tape = Tape::new();
        let x = tape.variable(&normal(&[3, 2, 8], 6));
        let expected = x.slice(2, 0, 4, 1) * gate(x.slice(2, 4, 8, 1));
        assert_eq!(f(x).shape().to_string(), "[3, 2, 4]");
        assert_eq!(to_vec(f(x)), to_vec(expected), "{name}");
    }
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![2.0f64, 0.0], [2]));
    assert_eq!(to_vec(x.glu()), [1.0], "2·σ(0)");
}

#[test]
fn an_odd_axis_panics() {
    for (name, f, _) in GATED {
        for (shape, written) in [(&[2, 3][..], "[2, 3]"), (&[], "[]")] {
            let caught = std::panic::catch_unwind(|| {
                f(Tape::new().constant(&Tensor::zeros(shape, DType::F64)));
            });
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(
                message,
                format!("{name}: the last axis must have two halves of one size, found shape {written}")
            );
        }
    }
}
