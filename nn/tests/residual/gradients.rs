//! First and second derivatives of what surrounds the blocks, and of whole networks.
//!
//! A fixed number of draws; `LIMPID_CHECK_SEEDS=20` for more. The blocks themselves are checked in `grid.rs`.

use std::ops::RangeInclusive;

use limpid_autograd::check::Check;
use limpid_nn::residual::{
    AttnRes, Euler, Expand, MixStart, Normed, Placement, Reduce, ResiDualRead, SigmoidRead, Start, Variant,
    VariantConfig,
};
use limpid_nn::{Activation, Initializer, Linear, Mlp, MlpConfig, Module, Parameters, forward_with};
use limpid_tensor::Tensor;
use limpid_tensor::rng::Key;

use crate::blocks::{init, normal};

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
fn whole_networks() {
    let activation = Activation::Gelu;
    let config = MlpConfig { inputs: 2, width: 3, depth: 4, activation, ..MlpConfig::default() };
    let start = Start { mix: MixStart::IdentityLogits, alpha: 1.0, ..Start::default() };
    let settings = VariantConfig { streams: 2, start, ..VariantConfig::default() };
    for variant in Variant::ALL {
        let mut model = Mlp::of_variant(&init(), config, variant, &settings).unwrap();
        // Away from where they start, where many gradients are 0 on purpose.
        model.visit_mut(&mut |parameter| {
            let (shape, key) = (parameter.value().shape().to_vec(), Key::new(1).fold_str(parameter.path()));
            let start = parameter.value().to_vec::<f64>().unwrap();
            let moves = normal(&shape, 0.4, key).to_vec::<f64>().unwrap();
            let moved = start.iter().zip(moves).map(|(start, by)| start + by).collect();
            parameter.set_value(Tensor::from_vec(moved, &shape[..]));
        });
        // In the first block streams are still copies, in front of a norm, and there is one row to attend to.
        for pattern in ["layers.1.res.*", "layers.1.pre.*", "layers.1.query"] {
            let _ = model.set_frozen(pattern, true);
        }
        expect_right(&model, normal(&[1, 2], 1.0, Key::new(3)), 1, variant.name());
    }
}
