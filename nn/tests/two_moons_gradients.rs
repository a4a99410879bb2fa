//! How much of the gradient reaches the first layers of the two-moons network at its first step, for each connection.
//!
//! The orders of magnitude are those of the same networks in an independent framework. They follow from the gain of a
//! layer: with the usual initial values it is 1/√3·1/√2 ≈ 0.41, and 0.41¹⁸ ≈ 1e-7 is what passes 18 plain layers.

use limpid_autograd::Tape;
use limpid_nn::data::{Batches, StandardScaler, two_moons};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::residual::{Connection, Gated, Identity, Plain, Scaled};
use limpid_nn::{Init, Initializer, Mlp, MlpConfig, Module};
use limpid_tensor::{DType, rng::Key};

/// The norms of the weights' gradients in the second, the middle and the last layer, and the loss.
fn first_step(
    seed: u64,
    initial: Option<Initializer>,
    connect: fn(&Init) -> Box<dyn Connection>,
) -> ([f64; 3], f64) {
    let key = Key::new(0);
    let (train, _) = two_moons(1000, 0.2, DType::F32, key).unwrap().split(0.7, key).unwrap();
    let scaler = StandardScaler::fit(train.features()).unwrap();
    let train = train.with_features(scaler.transform(train.features()).unwrap());
    let batch = Batches::new(train.len(), 128, key).unwrap().of(&train, 0).unwrap().next().unwrap().unwrap();

    let config = MlpConfig { initial, ..MlpConfig::default() };
    let model = Mlp::new(&Init::new(seed), config, connect);
    let tape = Tape::new().with_seed(seed);
    let (x, labels) = (tape.constant(&batch.features), tape.constant(&batch.labels));
    let loss = cross_entropy(model.forward(x), labels, Reduction::Mean);
    let gradients = tape.backward(loss).unwrap();
    let norm = |i: usize| {
        let gradient = gradients.of_parameter(model.layer(i).weight.id()).unwrap().to_f64_vec().unwrap();
        gradient.iter().map(|g| g * g).sum::<f64>().sqrt()
    };
    ([norm(1), norm(10), norm(19)], loss.item().unwrap())
}

/// The geometric mean over five seeds of each norm.
fn typical(initial: Option<Initializer>, connect: fn(&Init) -> Box<dyn Connection>) -> [f64; 3] {
    let norms: Vec<[f64; 3]> = (0..5).map(|seed| first_step(seed, initial, connect).0).collect();
    [0, 1, 2].map(|i| (norms.iter().map(|n| n[i].ln()).sum::<f64>() / 5.0).exp())
}

fn is_about(name: &str, found: [f64; 3], expected: [f64; 3]) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f / e).ln().abs() < 3f64.ln(), "{name}: {found:?} is not within a factor 3 of {expected:?}");
    }
}

#[test]
fn plain_layers_lose_the_gradient_by_their_gain_not_by_their_depth() {
    is_about("plain", typical(None, |_| Box::new(Plain)), [6e-8, 3e-6, 2e-2]);
    is_about("plain, He", typical(Some(Initializer::HE), |_| Box::new(Plain)), [1.5, 1.6, 2.3]);
}

#[test]
fn skip_connections_keep_it_and_the_scale_decides_how_it_grows() {
    is_about("residual", typical(None, |_| Box::new(Identity)), [5.0, 10.0, 99.0]);
    is_about("1/√2", typical(None, |_| Box::new(Scaled::new(0.5f64.sqrt()))), [1.3, 2.2, 22.0]);
    is_about("1/L", typical(None, |_| Box::new(Scaled::new(1.0 / 18.0))), [0.03, 0.03, 1.2]);
    is_about("1/√L", typical(None, |_| Box::new(Scaled::new(1.0 / 18f64.sqrt()))), [0.14, 0.17, 2.1]);
}

#[test]
fn a_nearly_closed_gate_passes_most_of_it() {
    let [second, _, last] = typical(None, |init| Box::new(Gated::new(init, 64)));
    assert!(second > 1e-4 && second < last, "{second:.1e} in the second layer, {last:.1e} in the last");
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let connect: fn(&Init) -> Box<dyn Connection> = |init| Box::new(Gated::new(init, 64));
    assert_eq!(first_step(3, None, connect), first_step(3, None, connect));
    assert_ne!(first_step(3, None, connect), first_step(4, None, connect));
}
