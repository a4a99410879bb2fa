//! First and second derivatives of every block, by its state and all of its weights.
//!
//! A fixed number of draws; `LIMPID_CHECK_SEEDS=20` for more.

use std::ops::RangeInclusive;

use limpid_autograd::check::{Check, Verdict};
use limpid_nn::residual::{AttnRes, Euler, Expand, Normed, Placement, Reduce, ResiDualRead, SigmoidRead};
use limpid_nn::{Activation, Initializer, Linear, Module, forward_with};
use limpid_tensor::Tensor;
use limpid_tensor::rng::Key;

use crate::blocks::{Case, init, normal, one_stream, with_streams};

const CHANNELS: usize = 3;

/// The seeds of a sweep that has so many by itself.
fn seeds(usual: u64) -> RangeInclusive<u64> {
    match std::env::var("LIMPID_CHECK_SEEDS") {
        Ok(text) => 1..=text.parse().expect("LIMPID_CHECK_SEEDS is a number"),
        Err(_) => 1..=usual,
    }
}

/// Panics if a derivative is wrong; whether it is known to be right.
fn expect_not_wrong(module: &dyn Module, state: Tensor, seed: u64, what: &str) -> bool {
    let mut at = vec![state];
    let trainable = module.parameters().into_iter().filter(|p| p.is_trainable());
    at.extend(trainable.map(|p| p.value().clone()));
    let report = Check::new().seed(seed).run(|x| forward_with(module, x[0], &x[1..]), &at);
    assert!(!matches!(report.verdict, Verdict::Fail(_)), "{what}\n{report}");
    report.passed()
}

fn expect_right(module: &dyn Module, state: Tensor, seed: u64, what: &str) {
    assert!(expect_not_wrong(module, state, seed, what), "{what}: inconclusive");
}

fn expect_block_not_wrong(case: Case, channels: usize, std: f64, seed: u64, samples: usize) -> bool {
    let what = format!("{}, streams {:?}, std {std}, seed {seed}", case.name, case.streams);
    let state = case.state(&[samples], channels, seed);
    let block = case.block(channels, std, seed);
    expect_not_wrong(&block, state, seed, &what)
}

fn expect_block_right(case: Case, std: f64, seed: u64, samples: usize) {
    let name = case.name;
    assert!(expect_block_not_wrong(case, CHANNELS, std, seed, samples), "{name}: inconclusive");
}

#[test]
fn with_one_stream() {
    for seed in seeds(3) {
        for case in one_stream(CHANNELS) {
            expect_block_right(case, 1.0, seed, 3);
        }
    }
}

#[test]
fn what_surrounds_the_blocks() {
    let (init, n) = (init().enter("around"), 3);
    let linear = |i: usize| Linear::new(&init.enter(i), CHANNELS, CHANNELS, Activation::Tanh);
    let mut read = SigmoidRead::new(&init, CHANNELS, n);
    read.read.phi.set_value(normal(&[n * CHANNELS, n], 0.5, Key::new(1)));
    read.read.alpha.set_value(Tensor::scalar(1.3f64));
    let query = Initializer::Normal { std: 1.0 };
    let from_one: Vec<(&str, Box<dyn Module>)> = vec![
        ("pre-norm", Box::new(Normed::new(&init, CHANNELS, Placement::Pre, linear(0)))),
        ("peri-norm", Box::new(Normed::new(&init, CHANNELS, Placement::Peri, linear(0)))),
        ("euler", Box::new(Euler::new(linear(0), 4, 1.5))),
        ("copies", Box::new(Expand::copies(n))),
        ("scaled copies", Box::new(Expand::scaled_per_stream(&init, n, 0.3))),
        ("copies scaled per channel", Box::new(Expand::scaled_per_channel(&init, n, CHANNELS, 0.3))),
    ];
    let from_many: Vec<(&str, Box<dyn Module>, usize)> = vec![
        ("sum", Box::new(Reduce::Sum), n),
        ("mean", Box::new(Reduce::Mean), n),
        ("sigmoid read", Box::new(read), n),
        ("attention", Box::new(AttnRes::with_initial(&init, CHANNELS, query)), n),
        ("resi-dual", Box::new(ResiDualRead::new(&init, CHANNELS)), 2),
    ];
    for seed in seeds(2) {
        let state = |shape: &[usize]| normal(shape, 1.0, Key::new(seed));
        for (what, module) in &from_one {
            expect_right(module, state(&[2, CHANNELS]), seed, what);
        }
        for (what, module, n) in &from_many {
            expect_right(module, state(&[2, *n, CHANNELS]), seed, what);
        }
    }
}

#[test]
fn with_streams_of_learned_coefficients() {
    for seed in seeds(2) {
        for (n, std) in [(1, 1.0), (2, 0.1), (4, 1.0), (8, 0.3)] {
            for case in with_streams(n, CHANNELS, 20).into_iter().filter(|case| case.name != "mhc") {
                expect_block_right(case, std, seed, 2);
            }
        }
    }
}

/// For each number of steps and each deviation of the logits. Where a logit hardly matters (sharp or nearly equal ones,
/// few channels) rounding can hide what is wrong with its gradient, and the check says so; it may not say so often.
fn sinkhorn_sweep(n: usize, channels: usize) {
    let (mut tried, mut right) = (0, 0);
    for seed in seeds(1) {
        for steps in [1, 3, 20] {
            for std in [0.1, 1.0, 3.0] {
                let mhc = |case: &Case| case.name == "mhc";
                let case = with_streams(n, channels, steps).into_iter().find(mhc).unwrap();
                tried += 1;
                right += usize::from(expect_block_not_wrong(case, channels, std, seed, 1));
            }
        }
    }
    assert!(4 * right >= 3 * tried, "{n} streams: {right} of {tried} checks are conclusive");
}

#[test]
fn one_and_two_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(1, 3);
    sinkhorn_sweep(2, 3);
}

#[test]
fn four_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(4, 3);
}

#[test]
fn eight_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(8, 3);
}
