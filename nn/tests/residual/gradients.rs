//! First and second derivatives of every block, by its state and all of its weights.
//!
//! A fixed number of draws; `LIMPID_CHECK_SEEDS=20` for more.

use std::ops::RangeInclusive;

use limpid_autograd::check::Check;
use limpid_nn::{Module, forward_with};
use limpid_tensor::Tensor;

use crate::blocks::{Case, one_stream, with_streams};

const CHANNELS: usize = 3;

/// The seeds of a sweep that has so many by itself.
fn seeds(usual: u64) -> RangeInclusive<u64> {
    match std::env::var("LIMPID_CHECK_SEEDS") {
        Ok(text) => 1..=text.parse().expect("LIMPID_CHECK_SEEDS is a number"),
        Err(_) => 1..=usual,
    }
}

fn expect_right(module: &dyn Module, state: Tensor, seed: u64, what: &str) {
    let mut at = vec![state];
    let trainable = module.parameters().into_iter().filter(|p| p.is_trainable());
    at.extend(trainable.map(|p| p.value().clone()));
    let report = Check::new().seed(seed).run(|x| forward_with(module, x[0], &x[1..]), &at);
    assert!(report.passed(), "{what}\n{report}");
}

fn expect_block_right(case: Case, std: f64, seed: u64, samples: usize) {
    let what = format!("{}, streams {:?}, std {std}, seed {seed}", case.name, case.streams);
    let state = case.state(&[samples], CHANNELS, seed);
    let block = case.block(CHANNELS, std, seed);
    expect_right(&block, state, seed, &what);
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
fn with_streams_of_learned_coefficients() {
    for seed in seeds(2) {
        for (n, std) in [(1, 1.0), (2, 0.1), (4, 1.0), (8, 0.3)] {
            for case in with_streams(n, CHANNELS, 20).into_iter().filter(|case| case.name != "mhc") {
                expect_block_right(case, std, seed, 2);
            }
        }
    }
}

/// For each number of steps and each deviation of the logits.
fn sinkhorn_sweep(n: usize, usual_seeds: u64) {
    for seed in seeds(usual_seeds) {
        for steps in [1, 3, 20] {
            for std in [0.1, 1.0, 3.0] {
                let case =
                    with_streams(n, CHANNELS, steps).into_iter().find(|case| case.name == "mhc").unwrap();
                expect_block_right(case, std, seed, 1);
            }
        }
    }
}

#[test]
fn one_and_two_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(1, 1);
    sinkhorn_sweep(2, 1);
}

#[test]
fn four_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(4, 1);
}

#[test]
fn eight_streams_mixed_by_sinkhorn() {
    sinkhorn_sweep(8, 1);
}
