//! A run that was stopped and resumed has the same bits as one that was not; a file that does not fit is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_nn::{Checkpoint, Error, Parameter, Parameters, Role, Schedule};
use limpid_tensor::io::safetensors;
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::mlp::{Mlp, random};

/// A file of one test, removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("limpid-{}-{name}.safetensors", std::process::id())))
    }
    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn momentum() -> Box<dyn Optimizer> {
    let decayed =
        Groups::new(Group { weight_decay: 0.01, ..Group::default() }).with("*.bias", Group::default());
    Box::new(Sgd::new().with_momentum(0.9).with_groups(decayed))
}

fn adamw() -> Box<dyn Optimizer> {
    Box::new(Adam::adamw())
}

/// Trains for some steps on data that is drawn from the seed and the step.
fn train(model: &mut Mlp, optimizer: &mut dyn Optimizer, seed: u64, steps: std::ops::Range<u64>) {
    let schedule = Schedule::Cosine { peak: 0.02, floor: 0.001, steps: 10 }.with_warm_up(2);
    for step in steps {
        let dtype = model.0[0].value().dtype();
        let x = random([16, 2], dtype, Key::new(seed).fold(step));
        let gradients = model.gradients(&x);
        optimizer.step(model, &gradients, schedule.at(step)).unwrap();
        let mean = model.0[4].value().item().unwrap() * 0.9 + 0.1 * (step as f64).sin();
        model.0[4].set_value(Tensor::full([], mean, dtype));
    }
}

#[test]
fn resuming_gives_the_bits_of_never_having_stopped() {
    for (name, optimizer) in [("sgd", momentum as fn() -> _), ("adamw", adamw)] {
        for dtype in [DType::F32, DType::F64] {
            let file = Scratch::new(&format!("resume-{name}-{dtype}"));
            let (mut whole, mut whole_optimizer) = (Mlp::new(dtype, 1), optimizer());
            train(&mut whole, &mut *whole_optimizer, 7, 0..10);

            let (mut half, mut half_optimizer) = (Mlp::new(dtype, 1), optimizer());
            train(&mut half, &mut *half_optimizer, 7, 0..5);
            let history = Tensor::from_vec(vec![0.5f64, f64::NAN], [2]);
            Checkpoint::of(&half, &*half_optimizer)
                .with("step", 5)
                .with("seed", 7u64)
                .with("loss", 0.1f64 + 0.2)
                .with_tensor("history", history.clone())
                .save(&file.0)
                .unwrap();
            drop((half, half_optimizer));

            // A model made from another seed: everything must come from the file.
            let (mut resumed, mut resumed_optimizer) = (Mlp::new(dtype, 99), optimizer());
            let checkpoint = Checkpoint::load(&file.0).unwrap();
            checkpoint.restore(&mut resumed, &mut *resumed_optimizer).unwrap();
            assert_eq!(checkpoint.get::<f64>("loss").unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
            let found = checkpoint.tensor("history").unwrap().to_vec::<f64>().unwrap();
            assert!(found[0] == 0.5 && found[1].is_nan());
            let (seed, step) = (checkpoint.get("seed").unwrap(), checkpoint.get("step").unwrap());
            train(&mut resumed, &mut *resumed_optimizer, seed, step..10);

            assert_eq!(resumed.bits(), whole.bits(), "{name} {dtype}");
            let state = |optimizer: &dyn Optimizer, model: &Mlp| -> Vec<(String, Vec<u64>)> {
                let bits = |x: Tensor| x.to_f64_vec().unwrap().into_iter().map(f64::to_bits).collect();
                optimizer.state(model).into_iter().map(|(name, x)| (name, bits(x))).collect()
            };
            assert_eq!(
                state(&*resumed_optimizer, &resumed),
                state(&*whole_optimizer, &whole),
                "{name} {dtype}"
            );
        }
    }
}

#[test]
fn without_the_optimiser_state_the_bits_differ() {
    // The test above can fail: the memory matters, and so does the count of steps.
    let (mut whole, mut optimizer) = (Mlp::new(DType::F64, 1), adamw());
    train(&mut whole, &mut *optimizer, 7, 0..10);
    let (mut half, mut optimizer) = (Mlp::new(DType::F64, 1), adamw());
    train(&mut half, &mut *optimizer, 7, 0..5);
    train(&mut half, &mut *adamw(), 7, 5..10);
    assert_ne!(half.bits(), whole.bits());
}

#[test]
fn a_checkpoint_keeps_the_state_it_was_made_of() {
    let (mut model, mut optimizer) = (Mlp::new(DType::F32, 1), momentum());
    train(&mut model, &mut *optimizer, 7, 0..3);
    let (bits, checkpoint) = (model.bits(), Checkpoint::of(&model, &*optimizer));
    train(&mut model, &mut *optimizer, 7, 3..6);
    let after = model.bits();
    assert_ne!(after, bits);
    checkpoint.restore(&mut model, &mut *optimizer).unwrap();
    assert_eq!(model.bits(), bits);
    train(&mut model, &mut *optimizer, 7, 3..6);
    assert_eq!(model.bits(), after, "going back in memory is resuming too");
}

/// What restoring a file changed in this way says, into a fresh model that must stay as it is.
fn refusal(name: &str, change: impl FnOnce(&mut safetensors::Loaded)) -> String {
    let file = Scratch::new(name);
    let (mut model, mut optimizer) = (Mlp::new(DType::F32, 1), momentum());
    train(&mut model, &mut *optimizer, 7, 0..2);
    Checkpoint::of(&model, &*optimizer).with("step", 2).save(&file.0).unwrap();
    let mut contents = safetensors::load(&file.0).unwrap();
    change(&mut contents);
    safetensors::save(&file.0, contents.tensors, &contents.metadata).unwrap();

    let (mut fresh, mut optimizer) = (Mlp::new(DType::F32, 5), momentum());
    train(&mut fresh, &mut *optimizer, 8, 0..1);
    let velocity = |optimizer: &dyn Optimizer, fresh: &Mlp| optimizer.state(fresh)[1].1.to_f64_vec().unwrap();
    let before = (fresh.bits(), velocity(&*optimizer, &fresh));
    let error = Checkpoint::load(&file.0).unwrap().restore(&mut fresh, &mut *optimizer).unwrap_err();
    assert!(matches!(error, Error::Load { .. }), "{error:?}");
    assert_eq!((fresh.bits(), velocity(&*optimizer, &fresh)), before, "{name}: nothing has been changed");
    error.to_string().replace(&file.text(), "FILE")
}

#[test]
fn tensors_that_do_not_fit_are_all_named() {
    let message = refusal("model", |contents| {
        contents.tensors.remove("model.layers.0.bias");
        contents.tensors.insert("model.extra".into(), Tensor::scalar(1.0f32));
        contents.tensors.insert("stray".into(), Tensor::scalar(1.0f32));
        contents.tensors.insert("model.layers.1.weight".into(), Tensor::zeros([1, 8], DType::F32));
        contents.tensors.insert("model.norm.mean".into(), Tensor::scalar(1.0f64));
    });
    assert_eq!(
        message,
        "FILE: 2 tensors loaded; missing: model.layers.0.bias; unexpected: stray, model.extra; model.layers.1.weight: \
         expected f32[8, 1], found f32[1, 8]; model.norm.mean: expected f32[], found f64[]"
    );
    let message = refusal("optim", |contents| {
        contents.tensors.remove("optim.layers.0.bias.velocity");
        contents.tensors.remove("optim.layers.0.weight.step");
        contents.tensors.insert("optim.layers.1.bias.step".into(), Tensor::scalar(-3i64));
        contents.tensors.insert("optim.layers.1.weight.velocity".into(), Tensor::zeros([8], DType::F32));
    });
    assert_eq!(
        message,
        "FILE: 9 tensors loaded; missing: optim.layers.0.weight.step, optim.layers.0.bias.velocity; unexpected: \
         optim.layers.0.weight.velocity; optim.layers.1.weight.velocity: expected f32[8, 1], found f32[8]; \
         optim.layers.1.bias.step: expected a count, found -3"
    );
}

#[test]
fn another_optimiser_refuses_the_state() {
    let (mut model, mut optimizer) = (Mlp::new(DType::F32, 1), momentum());
    train(&mut model, &mut *optimizer, 7, 0..2);
    let checkpoint = Checkpoint::of(&model, &*optimizer);
    let error = checkpoint.restore(&mut model, &mut *adamw()).unwrap_err().to_string();
    assert!(
        error.contains("missing: optim.layers.0.weight.first_moment, optim.layers.0.weight.second_moment"),
        "{error}"
    );
    assert!(error.contains("unexpected: optim.layers.0.bias.velocity"), "{error}");
}

#[test]
fn an_optimiser_that_has_made_no_step_is_restored_as_such() {
    let (mut model, mut optimizer) = (Mlp::new(DType::F32, 1), adamw());
    let checkpoint = Checkpoint::of(&model, &*optimizer);
    train(&mut model, &mut *optimizer, 7, 0..4);
    let bits = model.bits();
    checkpoint.restore(&mut model, &mut *optimizer).unwrap();
    train(&mut model, &mut *optimizer, 7, 0..4);
    assert_eq!(model.bits(), bits);
}

#[test]
fn foreign_and_truncated_files_are_refused_with_their_path() {
    let file = Scratch::new("foreign");
    let (model, optimizer) = (Mlp::new(DType::F32, 1), adamw());
    let message = || Checkpoint::load(&file.0).unwrap_err().to_string().replace(&file.text(), "FILE");

    assert!(message().starts_with("FILE: No such file"), "{}", message());
    fs::write(&file.0, b"step,loss\n1,0.5\n").unwrap();
    assert!(message().starts_with("FILE: expected a safetensors file, found 16 bytes"), "{}", message());
    limpid_nn::save_weights(&file.0, &model, &BTreeMap::new()).unwrap();
    assert_eq!(message(), "FILE: expected metadata with format = \"limpid checkpoint 1\", found none");
    let metadata = [("format".to_string(), "pt".to_string())].into();
    limpid_nn::save_weights(&file.0, &model, &metadata).unwrap();
    assert_eq!(message(), "FILE: expected metadata with format = \"limpid checkpoint 1\", found \"pt\"");

    Checkpoint::of(&model, &*optimizer).save(&file.0).unwrap();
    let bytes = fs::read(&file.0).unwrap();
    for length in [0, 4, 8, 100, bytes.len() - 1] {
        fs::write(&file.0, &bytes[..length]).unwrap();
        let message = message();
        assert!(
            message.starts_with(&format!("FILE: expected a safetensors file, found {length} bytes")),
            "{message}"
        );
    }
}

#[test]
fn scalars_and_tensors_that_are_not_there_are_named() {
    let (model, optimizer) = (Mlp::new(DType::F32, 1), adamw());
    let empty = Checkpoint::of(&model, &*optimizer);
    assert_eq!(
        empty.get::<u64>("step").unwrap_err().to_string(),
        "checkpoint in memory: expected a scalar step, found none"
    );
    let checkpoint = empty.with("step", 1.5).with("epoch", 3).with_tensor("history", Tensor::scalar(0i64));
    let error = |result: limpid_nn::Result<u64>| result.unwrap_err().to_string();
    assert_eq!(error(checkpoint.get("step")), "checkpoint in memory: expected step as u64, found \"1.5\"");
    assert_eq!(
        error(checkpoint.get("seed")),
        "checkpoint in memory: expected a scalar seed, found epoch, step"
    );
    let error = checkpoint.tensor("histories").unwrap_err().to_string();
    assert_eq!(error, "checkpoint in memory: expected an added tensor histories, found history");
}

#[test]
#[should_panic(expected = "two parameters have one path: w: f32[] and w: f32[2]")]
fn two_parameters_of_one_path_cannot_be_saved() {
    let parameter = |value| Parameter::new("w", value, Role::Weight);
    let model = Mlp(vec![parameter(Tensor::scalar(1.0f32)), parameter(Tensor::zeros([2], DType::F32))]);
    let _ = Checkpoint::of(&model, &Sgd::new());
}

#[test]
fn frozen_weights_are_part_of_a_checkpoint() {
    let mut model = Mlp::new(DType::F32, 1);
    model.set_frozen("layers.0.*", true).unwrap();
    let mut optimizer = momentum();
    train(&mut model, &mut *optimizer, 7, 0..2);
    let (bits, checkpoint) = (model.bits(), Checkpoint::of(&model, &*optimizer));
    let mut other = Mlp::new(DType::F32, 2);
    checkpoint.restore(&mut other, &mut *optimizer).unwrap();
    assert_eq!(other.bits(), bits);
}
