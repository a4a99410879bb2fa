//! Mixes at the ends of what logits can be.

use limpid_autograd::Tape;
use limpid_nn::Module;
use limpid_nn::residual::{Coefficient, Connection, Expand, Mhc, Residual, Start};
use limpid_nn::{Activation, Linear};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{init, normal, values};

const CHANNELS: usize = 3;

fn block(bias: &[f64], n: usize) -> Residual<Mhc, Linear> {
    let mut mhc = Mhc::new(&init(), CHANNELS, n, 0, Start::default());
    mhc.res.bias.set_value(Tensor::from_f64(bias, [n, n], DType::F64));
    Residual {
        connection: mhc,
        branch: Linear::new(&init().enter("branch"), CHANNELS, CHANNELS, Activation::Tanh),
    }
}

/// What the block makes of a state, its mix, and all gradients.
fn run(block: &Residual<Mhc, Linear>, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[2, n, CHANNELS], 1.0, Key::new(3)));
    let Coefficient::Streams(mix) = block.connection.coefficients(x).mix else { panic!("it has streams") };
    let y = block.forward(x);
    let gradients = tape.backward((y * y).sum(&[])).unwrap();
    let weights = limpid_nn::Parameters::parameters(block);
    let by_weight =
        weights.iter().flat_map(|p| gradients.of_parameter(p.id()).unwrap().to_vec::<f64>().unwrap());
    let all = gradients.of(x).unwrap().to_vec::<f64>().unwrap().into_iter().chain(by_weight).collect();
    (values(y), values(mix), all)
}

fn expect_finite(numbers: &[f64], what: &str) {
    assert!(numbers.iter().all(|v| v.is_finite()), "{what}: {numbers:?}");
}

#[test]
fn logits_of_ten_thousand_are_finite_there_and_back() {
    for n in [2, 4, 8] {
        for seed in 0..5 {
            let signs = normal(&[n, n], 1.0, Key::new(seed)).to_vec::<f64>().unwrap();
            let bias: Vec<f64> = signs.iter().map(|s| 1e4 * s.signum()).collect();
            let (y, mix, gradients) = run(&block(&bias, n), n);
            for (numbers, what) in [(&y, "state"), (&mix, "mix"), (&gradients, "gradients")] {
                expect_finite(numbers, &format!("{n} streams, seed {seed}, {what}"));
            }
            for row in mix.chunks(n) {
                // In logarithms of 10⁴, which round at 10⁻¹².
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-11, "{row:?}");
            }
        }
    }
}

#[test]
fn a_masked_logit_is_a_road_that_does_not_exist() {
    // No stream gives to the one before it.
    for n in [2, 4, 8] {
        let masked = |k: usize| k % n == (k / n + 1) % n;
        let bias: Vec<f64> =
            (0..n * n).map(|k| if masked(k) { f64::NEG_INFINITY } else { 0.3 * k as f64 }).collect();
        let (y, mix, gradients) = run(&block(&bias, n), n);
        expect_finite(&y, "state");
        expect_finite(&gradients, "gradients");
        for (k, p) in mix.iter().enumerate() {
            assert_eq!(*p == 0.0, masked(k % (n * n)), "{n} streams, element {k}: {p}");
        }
    }
}

#[test]
fn a_stream_that_nobody_feeds_is_an_error_that_says_so() {
    let n = 3;
    let bias: Vec<f64> = (0..9).map(|k| if k / n == 1 { f64::NEG_INFINITY } else { 0.0 }).collect();
    let tape = Tape::new();
    let x = Expand::copies(n).forward(tape.constant(&normal(&[2, CHANNELS], 1.0, Key::new(3))));
    let error = block(&bias, n).forward(x).value().unwrap_err().to_string();
    assert!(error.contains("has a row or a column that is −∞ throughout and cannot sum to 1"), "{error}");
}
