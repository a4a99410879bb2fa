//! Optimisers against PyTorch's, and what they promise about memory, missing gradients and frozen weights.

use limpid_autograd::{Gradients, Tape};
use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_nn::residual::{Mhc, Start};
use limpid_nn::{Error, Init, Parameter, Parameters, Role, clip_norm};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Rate, Tensor};
use serde_json::Value;

use crate::mlp::{Mlp, random};

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The optimiser of a golden case, from PyTorch's options.
fn golden_optimizer(case: &Value) -> Box<dyn Optimizer> {
    let options = &case["options"];
    let number = |name: &str| options[name].as_f64();
    let decayed = |weight_decay: f64| Groups::new(Group { weight_decay, ..Group::default() });
    match case["optimizer"].as_str().unwrap() {
        "sgd" => Box::new(
            Sgd::new()
                .with_momentum(number("momentum").unwrap_or(0.0))
                .with_nesterov(options["nesterov"].as_bool().unwrap_or(false))
                .with_groups(decayed(number("weight_decay").unwrap_or(0.0))),
        ),
        name => {
            let mut adam = if name == "adamw" { Adam::adamw() } else { Adam::new() };
            if let Some(weight_decay) = number("weight_decay") {
                adam = adam.with_groups(decayed(weight_decay));
            }
            if options["betas"].is_array() {
                let betas = numbers(&options["betas"]);
                adam = adam.with_betas(betas[0], betas[1]);
            }
            Box::new(adam.with_eps(number("eps").unwrap_or(1e-8)))
        }
    }
}

fn two_parameters(weight: &[f64], bias: &[f64], dtype: DType) -> Mlp {
    Mlp(vec![
        Parameter::new("weight", Tensor::from_f64(weight, [2, 3], dtype), Role::Weight),
        Parameter::new("bias", Tensor::from_f64(bias, [2], dtype), Role::Weight),
    ])
}

#[test]
fn trajectories_are_those_of_pytorch() {
    let golden: Value = serde_json::from_str(include_str!("../golden/optim.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 13);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        for case in cases {
            let mut model = two_parameters(&numbers(&golden["weight"]), &numbers(&golden["bias"]), dtype);
            let mut optimizer = golden_optimizer(case);
            for (step, rate) in numbers(&golden["rates"]).into_iter().enumerate() {
                let mut gradients = Gradients::default();
                for p in model.parameters() {
                    let gradient = numbers(&golden["gradients"][step][p.path()]);
                    gradients.set_parameter(p.id(), Tensor::from_f64(&gradient, p.value().shape(), dtype));
                }
                optimizer.step(&mut model, &gradients, rate).unwrap();
                for p in model.parameters() {
                    let expected = numbers(&case["steps"][step][p.path()]);
                    for (i, (found, expected)) in
                        p.value().to_f64_vec().unwrap().iter().zip(expected).enumerate()
                    {
                        let error = (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
                        let place = || {
                            format!(
                                "{} {}: {} [{i}], step {step}, {dtype}",
                                case["optimizer"],
                                case["options"],
                                p.path()
                            )
                        };
                        assert!(error <= tolerance, "{}: {found} against {expected}", place());
                    }
                }
            }
        }
    }
}

fn optimizers() -> [(&'static str, Box<dyn Optimizer>); 3] {
    [
        ("sgd", Box::new(Sgd::new())),
        ("momentum", Box::new(Sgd::new().with_momentum(0.9).with_nesterov(true))),
        ("adamw", Box::new(Adam::adamw())),
    ]
}

#[test]
fn updates_are_in_place_when_nothing_else_refers_to_a_weight() {
    for (name, mut optimizer) in optimizers() {
        let mut model = Mlp::new(DType::F32, 1);
        let x = random([5, 2], DType::F32, Key::new(2));
        let gradients = model.gradients(&x);
        optimizer.step(&mut model, &gradients, 0.01).unwrap();
        let storages = |model: &Mlp, optimizer: &dyn Optimizer| -> Vec<usize> {
            let state = optimizer.state(model).into_iter().filter(|(name, _)| !name.ends_with(".step"));
            let weights = model.0.iter().map(|p| p.value().storage().id());
            weights.chain(state.map(|(_, x)| x.storage().id())).collect()
        };
        let before = storages(&model, &*optimizer);
        optimizer.step(&mut model, &gradients, 0.01).unwrap();
        assert_eq!(storages(&model, &*optimizer), before, "{name}");
    }
}

#[test]
fn a_tensor_that_something_else_refers_to_is_left_as_it_is() {
    for (name, mut optimizer) in optimizers() {
        let mut shared = Mlp::new(DType::F64, 1);
        let mut alone = Mlp::new(DType::F64, 1);
        let gradients = shared.gradients(&random([5, 2], DType::F64, Key::new(2)));
        let mut same = Gradients::default();
        for (p, q) in shared.0.iter().zip(&alone.0) {
            if let Some(gradient) = gradients.of_parameter(p.id()) {
                same.set_parameter(q.id(), gradient.clone());
            }
        }
        let held: Vec<Tensor> = shared.0.iter().map(|p| p.value().clone()).collect();
        let bits = shared.bits();
        optimizer.step(&mut shared, &gradients, 0.01).unwrap();
        let held_bits: Vec<u64> =
            held.iter().flat_map(|x| x.to_f64_vec().unwrap()).map(f64::to_bits).collect();
        assert_eq!(held_bits, bits, "{name}");
        assert_ne!(shared.bits(), bits, "{name}");

        // The memory is held too: the second step must not change what was taken after the first.
        let state = optimizer.state(&shared);
        let values = || -> Vec<Vec<f64>> { state.iter().map(|(_, x)| x.to_f64_vec().unwrap()).collect() };
        let before = values();
        optimizer.step(&mut shared, &gradients, 0.01).unwrap();
        assert_eq!(values(), before, "{name}");

        let (_, mut fresh) = optimizers().into_iter().find(|(other, _)| *other == name).unwrap();
        fresh.step(&mut alone, &same, 0.01).unwrap();
        fresh.step(&mut alone, &same, 0.01).unwrap();
        assert_eq!(alone.bits(), shared.bits(), "{name}: in place and by copy");
    }
}

#[test]
fn gradients_and_weights_may_be_views() {
    let gradient = Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]).transpose(0, 1);
    let value = Tensor::from_vec((0..12).map(f64::from).collect(), [4, 3]).slice(0, 1, 4, 2);
    let mut model = Mlp(vec![Parameter::new("w", value, Role::Weight)]);
    let mut gradients = Gradients::default();
    gradients.set_parameter(model.0[0].id(), gradient);
    Sgd::new().step(&mut model, &gradients, 1.0).unwrap();
    assert_eq!(model.0[0].value().to_vec::<f64>().unwrap(), [2.0, 1.0, 0.0, 7.0, 6.0, 5.0]);
}

#[test]
fn weights_without_a_gradient_are_named_unless_allowed() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    model.0.push(Parameter::new("head", Tensor::scalar(1.0f64), Role::Weight));
    let mut gradients = Gradients::default();
    gradients.set_parameter(model.0[1].id(), Tensor::ones([2], DType::F64));

    let error = Sgd::new().step(&mut model, &gradients, 0.5).unwrap_err();
    assert!(matches!(&error, Error::MissingGradients { paths } if paths == &["weight", "head"]), "{error}");
    assert!(error.to_string().contains("found none for weight, head;"), "{error}");
    assert_eq!(model.get("bias").value().to_f64_vec().unwrap(), [1.0, 1.0], "nothing has been changed");

    let partial = Groups::default().allow_missing_gradients();
    Sgd::new().with_groups(partial).step(&mut model, &gradients, 0.5).unwrap();
    assert_eq!(model.get("bias").value().to_f64_vec().unwrap(), [0.5, 0.5]);
    assert_eq!(model.get("weight").value().to_f64_vec().unwrap(), [1.0; 6]);

    model.set_frozen("weight", true).unwrap();
    model.set_frozen("head", true).unwrap();
    Sgd::new().step(&mut model, &gradients, 0.5).unwrap();
    assert_eq!(model.get("bias").value().to_f64_vec().unwrap(), [0.0, 0.0]);
}

fn all_ones(model: &Mlp) -> Gradients {
    let mut gradients = Gradients::default();
    for p in model.parameters() {
        gradients.set_parameter(p.id(), Tensor::ones(p.value().shape(), p.value().dtype()));
    }
    gradients
}

#[test]
fn frozen_weights_and_buffers_stay_even_if_they_have_gradients() {
    for (name, mut optimizer) in optimizers() {
        let mut model = Mlp::new(DType::F32, 3);
        model.set_frozen("layers.0.*", true).unwrap();
        let before: Vec<Vec<f64>> = model.0.iter().map(|p| p.value().to_f64_vec().unwrap()).collect();
        let gradients = all_ones(&model);
        optimizer.step(&mut model, &gradients, 0.1).unwrap();
        let changed: Vec<&str> = model
            .0
            .iter()
            .zip(before)
            .filter(|(p, before)| p.value().to_f64_vec().unwrap() != *before)
            .map(|(p, _)| p.path())
            .collect();
        assert_eq!(changed, ["layers.1.weight", "layers.1.bias"], "{name}");
    }
}

#[test]
fn a_weight_that_thaws_late_starts_its_own_count() {
    // With g = 1 throughout, every bias-corrected step of Adam is η·1/(1 + ε), whatever t is.
    let mut model = two_parameters(&[0.0; 6], &[0.0; 2], DType::F64);
    model.set_frozen("bias", true).unwrap();
    let (mut adam, gradients) = (Adam::new(), all_ones(&model));
    for _ in 0..7 {
        adam.step(&mut model, &gradients, 0.5).unwrap();
    }
    model.set_frozen("bias", false).unwrap();
    adam.step(&mut model, &gradients, 0.5).unwrap();
    for (path, steps) in [("weight", 8.0), ("bias", 1.0)] {
        let expected = -0.5 * steps / (1.0 + 1e-8);
        let found = model.get(path).value().to_f64_vec().unwrap()[0];
        assert!((found - expected).abs() < 1e-12, "{path}: {found} against {expected}");
    }
    let counts: Vec<_> = adam.state(&model).into_iter().filter(|(name, _)| name.ends_with(".step")).collect();
    assert_eq!(counts.iter().map(|(_, x)| x.item().unwrap()).collect::<Vec<_>>(), [8.0, 1.0]);
}

#[test]
fn groups_set_decay_and_rate() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let mut gradients = Gradients::default();
    for p in model.parameters() {
        gradients.set_parameter(p.id(), Tensor::zeros(p.value().shape(), DType::F64));
    }
    let decayed = Group { weight_decay: 0.5, rate_scale: 1.0 };
    let groups = Groups::new(decayed).with("bias", Group { weight_decay: 0.25, rate_scale: 0.5 });
    Sgd::new().with_groups(groups.clone()).step(&mut model, &gradients, 0.5).unwrap();
    assert_eq!(model.get("weight").value().to_f64_vec().unwrap(), [0.75; 6]); // 1 − 0.5·0.5
    assert_eq!(model.get("bias").value().to_f64_vec().unwrap(), [0.9375; 2]); // 1 − 0.25·0.25
    Adam::adamw().with_groups(groups).step(&mut model, &gradients, 0.5).unwrap();
    assert_eq!(model.get("weight").value().to_f64_vec().unwrap(), [0.5625; 6]);
    assert_eq!(model.get("bias").value().to_f64_vec().unwrap(), [0.87890625; 2]);
}

#[test]
fn an_optimiser_that_limits_the_norm_makes_the_steps_of_clipped_gradients() {
    let x = random([5, 2], DType::F32, Key::new(2));
    for most in [1e-3, 1e6] {
        let (mut model, mut clipped) = (Mlp::new(DType::F32, 1), Mlp::new(DType::F32, 1));
        let (mut optimizer, mut plain) = (Adam::adamw().with_max_norm(most), Adam::adamw());
        for _ in 0..3 {
            let gradients = model.gradients(&x);
            optimizer.step(&mut model, &gradients, 0.1).unwrap();
            let mut gradients = clipped.gradients(&x);
            let norm = clip_norm(&clipped, &mut gradients, most).unwrap();
            plain.step(&mut clipped, &gradients, 0.1).unwrap();
            assert_eq!(optimizer.norm().unwrap().item().unwrap(), norm);
            for (a, b) in model.0.iter().zip(&clipped.0) {
                assert_eq!(a.value().to_vec::<f32>().unwrap(), b.value().to_vec::<f32>().unwrap());
            }
        }
        assert!(plain.norm().is_none());
    }
    // Nothing is changed by gradients that are not finite.
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let mut gradients = all_ones(&model);
    gradients.set_parameter(model.0[1].id(), Tensor::full([2], f64::INFINITY, DType::F64));
    let mut sgd = Sgd::new().with_max_norm(1.0);
    let error = sgd.step(&mut model, &gradients, 0.1).unwrap_err().to_string();
    assert_eq!(error, "gradient of bias: expected a finite norm, found inf");
    assert_eq!(model.get("weight").value().to_f64_vec().unwrap(), [1.0; 6]);
    assert_eq!(sgd.state(&model)[0].1.item().unwrap(), 0.0);
}

#[test]
fn gradients_multiplied_on_the_way_have_the_bits_of_clipped_ones() {
    type OfNorm = fn(Option<f64>) -> Box<dyn Optimizer>;
    // Clipping makes 0 of −0, which a weight of −0 shows.
    let (weight, bias) = ([0.1, -0.2, -0.0, 0.4, 1.5, -0.0], [0.3, -0.7]);
    let gradient = [3.0, -0.0, -0.0, 0.7, -5.0, 1e-3];
    let rules: [OfNorm; 3] = [
        |most| Box::new(most.map_or_else(Sgd::new, |most| Sgd::new().with_max_norm(most))),
        |most| {
            let sgd = Sgd::new().with_momentum(0.9).with_nesterov(true);
            Box::new(most.map_or(sgd.clone(), |most| sgd.with_max_norm(most)))
        },
        |most| Box::new(most.map_or_else(Adam::adamw, |most| Adam::adamw().with_max_norm(most))),
    ];
    for dtype in [DType::F32, DType::F64] {
        for (rule, most) in rules.into_iter().flat_map(|rule| [(rule, 0.3), (rule, 1e6)]) {
            let [mut model, mut clipped] = [0, 1].map(|_| two_parameters(&weight, &bias, dtype));
            let (mut optimizer, mut plain) = (rule(Some(most)), rule(None));
            for _ in 0..3 {
                let gradients = |model: &Mlp| {
                    let mut gradients = all_ones(model);
                    gradients.set_parameter(model.0[0].id(), Tensor::from_f64(&gradient, [2, 3], dtype));
                    gradients
                };
                let of_model = gradients(&model);
                optimizer.step(&mut model, &of_model, 0.1).unwrap();
                let mut of_clipped = gradients(&clipped);
                clip_norm(&clipped, &mut of_clipped, most).unwrap();
                plain.step(&mut clipped, &of_clipped, 0.1).unwrap();
                assert_eq!(model.bits(), clipped.bits(), "{dtype}, norms up to {most}");
            }
        }
    }
}

#[test]
fn a_rate_may_lie_in_a_tensor() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let gradients = all_ones(&model);
    let mut sgd = Sgd::new();
    sgd.step_at(&mut model, &gradients, Rate::Stored(&Tensor::scalar(0.25f64))).unwrap();
    assert_eq!(model.get("weight").value().to_f64_vec().unwrap(), [0.75; 6]);
    let error = sgd.step_at(&mut model, &gradients, Rate::Stored(&Tensor::scalar(-1.0f64))).unwrap_err();
    assert_eq!(error.to_string(), "learning rate: expected a finite number from 0, found -1");
}

#[test]
#[should_panic(expected = "step: the learning rate is no scalar in f64")]
fn a_rate_in_f32_panics() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let gradients = all_ones(&model);
    let _ = Sgd::new().step_at(&mut model, &gradients, Rate::Stored(&Tensor::scalar(0.25f32)));
}

#[test]
fn arguments_out_of_range_are_errors_that_name_them() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let gradients = all_ones(&model);
    let mut message = |mut optimizer: Box<dyn Optimizer>, rate: f64| {
        optimizer.step(&mut model, &gradients, rate).unwrap_err().to_string()
    };
    for rate in [-0.1, f64::NAN, f64::INFINITY] {
        let expected = format!("learning rate: expected a finite number from 0, found {rate}");
        assert_eq!(message(Box::new(Sgd::new()), rate), expected);
    }
    for (optimizer, expected) in [
        (
            Box::new(Sgd::new().with_momentum(1.0)) as Box<dyn Optimizer>,
            "momentum: expected a number from 0 to below 1, found 1",
        ),
        (
            Box::new(Adam::new().with_betas(-0.5, 0.9)),
            "beta1: expected a number from 0 to below 1, found -0.5",
        ),
        (
            Box::new(Adam::new().with_betas(0.9, f64::NAN)),
            "beta2: expected a number from 0 to below 1, found NaN",
        ),
        (Box::new(Adam::new().with_eps(0.0)), "eps: expected a finite number above 0, found 0"),
        (Box::new(Adam::new().with_max_norm(0.0)), "maximal norm: expected a number above 0, found 0"),
        (Box::new(Sgd::new().with_max_norm(f64::NAN)), "maximal norm: expected a number above 0, found NaN"),
    ] {
        assert_eq!(message(optimizer, 0.1), expected);
    }
    let misspelt = Sgd::new().with_groups(Groups::default().with("biass", Group::default()));
    assert!(
        message(Box::new(misspelt), 0.1)
            .starts_with("parameter group: expected a pattern that matches a weight, such as bias")
    );
}

#[test]
fn bf16_weights_are_refused_by_name() {
    let mut model = Mlp::new(DType::BF16, 0);
    let gradients = all_ones(&model);
    let error = Sgd::new().step(&mut model, &gradients, 0.1).unwrap_err().to_string();
    assert_eq!(error, "dtype of a weight: expected f32 or f64, found layers.0.weight: bf16[2, 8]");
}

#[test]
#[should_panic(expected = "step: the gradient of weight differs from it")]
fn a_gradient_of_another_shape_panics() {
    let mut model = two_parameters(&[1.0; 6], &[1.0; 2], DType::F64);
    let mut gradients = all_ones(&model);
    gradients.set_parameter(model.0[0].id(), Tensor::ones([6], DType::F64));
    let _ = Sgd::new().step(&mut model, &gradients, 0.1);
}

#[test]
#[should_panic(expected = "step: what is remembered of layers.0.weight differs from it")]
fn a_model_cast_under_way_needs_a_new_optimiser() {
    let mut model = Mlp::new(DType::F32, 0);
    let mut adam = Adam::new();
    let gradients = all_ones(&model);
    adam.step(&mut model, &gradients, 0.1).unwrap();
    model.cast(DType::F64).unwrap();
    let gradients = all_ones(&model);
    let _ = adam.step(&mut model, &gradients, 0.1);
}

#[test]
fn coefficients_of_connections_do_not_decay_unless_a_group_names_them() {
    let init = Init::new(0).with_dtype(DType::F64);
    let model = || Mhc::new(&init, 3, 2, 0, Start::default());
    let step = |groups: Groups| {
        let mut mhc = model();
        let tape = Tape::new();
        // A loss that reaches every weight with gradient 0: all that moves one is decay.
        let all = mhc.parameters().into_iter().map(|p| p.on(&tape).sum(&[]));
        let loss = all.reduce(|a, b| a + b).unwrap() * 0.0;
        let gradients = tape.backward(loss).unwrap();
        Sgd::new().with_groups(groups).step(&mut mhc, &gradients, 1.0).unwrap();
        let now =
            mhc.parameters().into_iter().map(|p| (p.path().to_string(), p.value().to_f64_vec().unwrap()));
        let before = model();
        let before = before.parameters().into_iter().map(|p| p.value().to_f64_vec().unwrap());
        let moved = now.zip(before).filter(|((_, now), before)| now != before).map(|((path, _), _)| path);
        moved.collect::<Vec<String>>()
    };
    let decayed = Group { weight_decay: 0.5, ..Group::default() };
    assert_eq!(step(Groups::new(decayed)), ["pre.phi", "post.phi", "res.phi"]);
    assert_eq!(step(Groups::default().with("*.alpha", decayed)), ["pre.alpha", "post.alpha", "res.alpha"]);
}
