//! Draws on a tape, and dropout.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::{Tape, Var};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

const GAUSSIAN: Distribution = Distribution::Normal { mean: 0.0, std: 1.0 };

fn values(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to_f64_vec().unwrap()
}

#[test]
fn a_draw_is_that_of_the_next_key() {
    let draws = [
        (GAUSSIAN, DType::F64),
        (Distribution::Uniform { low: -1.0, high: 2.0 }, DType::F32),
        (Distribution::TruncatedNormal { mean: 0.0, std: 1.0, low: -2.0, high: 2.0 }, DType::BF16),
        (Distribution::Bernoulli { p: 0.25 }, DType::Bool),
        (Distribution::Permutation, DType::I64),
    ];
    let (tape, other) = (Tape::new().with_seed(5), Tape::new().with_seed(5));
    for (distribution, dtype) in draws {
        let x = tape.random(distribution, [20], dtype);
        let expected = Tensor::random(distribution, [20], dtype, other.next_key()).unwrap();
        assert_eq!(x.meta(), expected.meta());
        assert_eq!(values(x), expected.to_f64_vec().unwrap());
        assert!(!x.is_tracked());
    }
}

#[test]
fn operations_elsewhere_change_no_draw() {
    let draw = |extra: bool| {
        let tape = Tape::new();
        if extra {
            tape.scope("elsewhere", || tape.random(GAUSSIAN, [3], DType::F64));
        }
        let x = tape.scope("here", || tape.random(GAUSSIAN, [3], DType::F64));
        values(x)
    };
    assert_eq!(draw(false), draw(true));
}

#[test]
fn seed_step_and_ordinal_change_every_draw() {
    let draw = |seed: u64, step: u64| {
        let mut tape = Tape::new().with_seed(seed);
        tape.clear(step);
        [tape.random(GAUSSIAN, [3], DType::F64), tape.random(GAUSSIAN, [3], DType::F64)].map(values)
    };
    let [a, b] = draw(1, 0);
    let others = [b, draw(2, 0)[0].clone(), draw(1, 1)[0].clone()];
    assert!(others.iter().flatten().all(|x| !a.contains(x)));
    assert_eq!(draw(1, 0)[0], a);
}

#[test]
fn a_draw_that_was_dropped_is_drawn_again() {
    let tape = Tape::new();
    let mut drawn = None;
    let y = tape.scope("block", || {
        let x = tape.random(GAUSSIAN, [4], DType::F64);
        drawn = Some((x, values(x)));
        x + 1.0
    });
    let (x, before) = drawn.unwrap();
    assert_eq!(tape.memory().dropped_values, 1);
    assert_eq!(values(x), before);
    assert_eq!(tape.memory().recomputed_on_request, 1);
    assert_eq!(values(y), before.iter().map(|v| v + 1.0).collect::<Vec<f64>>());
}

#[test]
fn draws_are_printed_with_their_parameters() {
    let tape = Tape::new();
    tape.random(Distribution::Bernoulli { p: 0.25 }, [4], DType::Bool);
    let program = tape.program().to_string();
    assert!(program.contains("bernoulli") && program.contains("p=0.25"), "{program}");
}

#[test]
#[should_panic(expected = "bernoulli: 1.5 is not a probability")]
fn a_draw_that_makes_no_sense_is_refused() {
    Tape::new().random(Distribution::Bernoulli { p: 1.5 }, [2], DType::Bool);
}

#[test]
fn dropout_zeroes_or_scales() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for (p, scale) in [(0.5, 2.0), (0.75, 4.0)] {
            let tape = Tape::new();
            let n = 4000;
            let x = tape.variable(&normal(&[n], 1).cast(dtype).unwrap());
            let y = x.dropout(p);
            assert_eq!(y.meta(), x.meta());
            let mut dropped = 0;
            for (x, y) in values(x).into_iter().zip(values(y)) {
                assert!(y == 0.0 || y == scale * x);
                dropped += usize::from(y == 0.0);
            }
            // Five standard deviations.
            let spread = 5.0 * (n as f64 * p * (1.0 - p)).sqrt();
            assert!((dropped as f64 - n as f64 * p).abs() < spread, "{dropped} of {n} at {p}");
        }
    }
}

#[test]
fn dropout_drops_what_its_key_says() {
    let tape = Tape::new().with_seed(9);
    let x = tape.variable(&Tensor::ones([50], DType::F64));
    let y = values(x.dropout(0.2));
    let key: Key = Tape::new().with_seed(9).next_key();
    let expected: Vec<f64> = (0..50).map(|i| if key.uniform(i) < 0.8 { 1.0 / 0.8 } else { 0.0 }).collect();
    assert_eq!(y, expected);
}

#[test]
fn dropout_is_the_identity_where_nothing_is_dropped() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[4], 1));
    assert_eq!(x.dropout(0.0).index(), x.index());
    for tape in [Tape::new().with_training(false), Tape::inference()] {
        let x = tape.constant(&normal(&[4], 1));
        assert_eq!(x.dropout(0.9).index(), x.index());
        assert_eq!(tape.next_key(), Tape::new().next_key(), "nothing was drawn");
    }
}

#[test]
fn dropout_of_everything_is_zero_and_so_is_its_gradient() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![1.0, -2.0, f64::INFINITY], [3]));
    let y = x.dropout(1.0);
    assert_eq!(values(y), [0.0; 3]);
    let gradients = tape.backward(y.sum(&[])).unwrap();
    assert_eq!(gradients.of(x).unwrap().to_vec::<f64>().unwrap(), [0.0; 3]);
}

#[test]
fn dropout_gives_the_gradient_the_same_mask() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([3, 100], DType::F64));
    let y = tape.scope("block", || (x * 1.0).dropout(0.5));
    let gradients = tape.backward(y.sum(&[])).unwrap();
    assert_eq!(gradients.of(x).unwrap().to_vec::<f64>().unwrap(), values(y));
}

#[test]
fn derivatives() {
    for x in layouts(&normal(&[2, 3, 4], 1)).into_iter().chain([normal(&[0], 1), normal(&[1], 1)]) {
        for p in [0.0, 0.3, 1.0] {
            check("dropout", |v| v[0].dropout(p), std::slice::from_ref(&x));
            check("dropout of a square", |v| (v[0] * v[0]).dropout(p).tanh(), std::slice::from_ref(&x));
        }
    }
}

#[test]
#[should_panic(expected = "dropout: -0.1 is not a probability")]
fn a_negative_probability_is_refused() {
    let tape = Tape::new();
    tape.variable(&normal(&[2], 1)).dropout(-0.1);
}

#[test]
#[should_panic(expected = "dropout: NaN is not a probability")]
fn nan_is_no_probability_even_in_evaluation() {
    let tape = Tape::inference();
    tape.constant(&normal(&[2], 1)).dropout(f64::NAN);
}
