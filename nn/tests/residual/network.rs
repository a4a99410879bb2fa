//! The catalogue, and the networks made of it.

use limpid_autograd::Tape;
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Optimizer, Sgd};
use limpid_nn::residual::{
    Connection, Gated, Identity, Plain, Scaled, Variant, VariantConfig, deep_norm_gain,
};
use limpid_nn::{Activation, Init, Mlp, MlpConfig, Module, Parameters, clip_norm};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{normal, values};

fn config(depth: usize) -> MlpConfig {
    MlpConfig { width: 8, depth, activation: Activation::Tanh, ..MlpConfig::default() }
}

fn model(variant: Variant, depth: usize) -> Mlp {
    let init = Init::new(5).with_dtype(DType::F64);
    Mlp::of_variant(&init, config(depth), variant, &VariantConfig::default()).unwrap()
}

fn points() -> (Tensor, Tensor) {
    let x = normal(&[16, 2], 1.0, Key::new(2));
    let labels = x.to_vec::<f64>().unwrap().chunks(2).map(|p| i64::from(p[0] * p[1] > 0.0)).collect();
    (x, Tensor::from_vec(labels, [16]))
}

#[test]
fn names_go_there_and_back() {
    for variant in Variant::ALL {
        assert_eq!(variant.to_string().parse::<Variant>().unwrap(), variant);
        assert_eq!(Variant::ALL.iter().filter(|other| other.name() == variant.name()).count(), 1);
        assert_eq!(Variant::ALL.iter().filter(|other| other.formula() == variant.formula()).count(), 1);
    }
    let error = "Residual".parse::<Variant>().unwrap_err().to_string();
    assert!(error.starts_with("variant: expected one of plain, residual, scaled"), "{error}");
    assert!(error.ends_with("identity-hc, found Residual"), "{error}");
}

#[test]
fn streams_are_between_an_entrance_and_an_exit() {
    let place = |i: usize| Init::new(0).enter(i);
    for variant in Variant::ALL {
        let wiring = variant.wiring(8, 5, &VariantConfig::default(), place).unwrap();
        assert_eq!(wiring.enter.is_some(), variant.has_streams(), "{variant}");
        assert_eq!(wiring.leave.is_some(), variant.has_streams(), "{variant}");
        assert_eq!(wiring.steps * wiring.connections.len(), 5, "{variant}");
    }
}

#[test]
fn settings_that_cannot_be_are_errors() {
    let place = |i: usize| Init::new(0).enter(i);
    let error = |variant: Variant, config| match variant.wiring(8, 5, &config, place) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{variant} takes {config:?}"),
    };
    let with = |streams| VariantConfig { streams, ..VariantConfig::default() };
    assert_eq!(error(Variant::Mhc, with(0)), "streams: expected at least 1, found 0");
    assert_eq!(error(Variant::MhcLite, with(5)), "streams: expected at most 4 for mhc-lite, found 5");
    let drop = VariantConfig { drop: 1.5, ..VariantConfig::default() };
    assert_eq!(error(Variant::DropPath, drop), "drop: expected a probability, found 1.5");
}

#[test]
fn every_network_learns_at_every_depth() {
    let (x, labels) = points();
    for variant in Variant::ALL {
        for depth in [2, 3, 6] {
            let mut model = model(variant, depth);
            let mut optimizer = Sgd::new().with_momentum(0.9);
            let mut losses = Vec::new();
            for step in 0..15 {
                let tape = Tape::new();
                let labels = tape.constant(&labels);
                let loss = cross_entropy(model.forward(tape.constant(&x)), labels, Reduction::Mean);
                losses.push(loss.item().unwrap());
                let mut gradients = tape.backward(loss).unwrap();
                assert!(gradients.unreached().is_empty(), "{variant} at depth {depth}");
                if step == 0 {
                    let program = tape.program().to_string();
                    assert_eq!(program.matches('⑂').count(), depth - 2, "{variant} at depth {depth}");
                }
                clip_norm(&model, &mut gradients, 1.0).unwrap();
                optimizer.step(&mut model, &gradients, 0.05).unwrap();
            }
            let (first, last) = (losses[0], losses[14]);
            assert!(last.is_finite() && last < first, "{variant} at depth {depth}: {first} → {last}");
        }
    }
}

#[test]
fn a_catalogued_network_is_the_one_its_connection_makes() {
    type Connect = fn(&Init) -> Box<dyn Connection>;
    let connections: [(Variant, Connect); 4] = [
        (Variant::Plain, |_| Box::new(Plain)),
        (Variant::Residual, |_| Box::new(Identity)),
        (Variant::Scaled, |_| Box::new(Scaled::one_over_sqrt_2())),
        (Variant::Gated, |init| Box::new(Gated::new(init, 8))),
    ];
    let (x, _) = points();
    for (variant, connect) in connections {
        let by_hand = Mlp::new(&Init::new(5).with_dtype(DType::F64), config(6), connect);
        let named = model(variant, 6);
        let paths = |model: &Mlp| -> Vec<String> {
            model.parameters().iter().map(|p| p.path().to_string()).collect()
        };
        assert_eq!(paths(&named), paths(&by_hand));
        let tape = Tape::new();
        let x = tape.constant(&x);
        assert_eq!(values(named.forward(x)), values(by_hand.forward(x)), "{variant}");
    }
}

#[test]
fn hyper_connections_begin_as_the_pre_norm_network() {
    let (x, _) = points();
    let tape = Tape::new();
    let x = tape.constant(&x);
    let expected = model(Variant::PreNorm, 6).forward(x);
    for variant in [Variant::Hc, Variant::HcDynamic] {
        let off = (model(variant, 6).forward(x) - expected).abs().max(&[]).item().unwrap();
        assert!(off < 1e-15, "{variant}: {off:e}");
    }
}

#[test]
fn deep_norm_starts_with_smaller_branches_and_euler_with_one() {
    let weight = |model: &Mlp, i| model.layer(i).weight.value().to_vec::<f64>().unwrap();
    let (residual, deep) = (model(Variant::Residual, 6), model(Variant::DeepNorm, 6));
    for i in 0..6 {
        let gain = if (1..5).contains(&i) { deep_norm_gain(4) } else { 1.0 };
        for (scaled, plain) in weight(&deep, i).into_iter().zip(weight(&residual, i)) {
            assert!((scaled - gain * plain).abs() < 1e-16);
        }
    }
    let euler = model(Variant::Euler, 6);
    assert_eq!((euler.depth(), euler.steps(), euler.blocks().len()), (3, 4, 1));
    assert_eq!(euler.layer(2).weight.path(), "layers.5.weight");
    let tape = Tape::new();
    euler.forward(tape.constant(&points().0));
    let program = tape.program().to_string();
    assert!(program.contains("step.3/layers.1/branch") && program.contains("layers.5"), "{program}");
}

#[test]
fn every_network_gives_the_same_values_in_inference() {
    let (x, _) = points();
    for variant in Variant::ALL {
        let model = model(variant, 5);
        let on = |tape: Tape| values(model.forward(tape.constant(&x)));
        assert_eq!(on(Tape::new().with_training(false)), on(Tape::inference()), "{variant}");
    }
}
