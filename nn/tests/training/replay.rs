//! Steps that are run again without being recorded, beside steps that are.

use limpid_autograd::{Replay, Replayed, Tape, Var};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Optimizer, Sgd};
use limpid_nn::residual::{Variant, VariantConfig};
use limpid_nn::{
    BatchNorm1d, Dropout, Init, LayerNorm, Linear, Mlp, MlpConfig, Module, Parameters, RmsNorm, clip_norm,
};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::mlp::random;

fn batch(rows: usize, dtype: DType, seed: u64) -> (Tensor, Tensor) {
    let labels = Tensor::from_vec((0..rows as i64).map(|i| (i + seed as i64) % 2).collect(), [rows]);
    (random([rows, 2], dtype, Key::new(seed)), labels)
}

/// Logits and the loss.
fn forward<'t>(model: &dyn Module, x: Var<'t>, labels: Var<'t>) -> [Var<'t>; 2] {
    let logits = model.forward(x);
    [logits, cross_entropy(logits, labels, Reduction::Mean)]
}

fn replay_of(model: &dyn Module, (x, labels): &(Tensor, Tensor)) -> limpid_autograd::Result<Replay> {
    let tape = Tape::new();
    let (x, labels) = (tape.constant(x), tape.constant(labels));
    let [logits, loss] = forward(model, x, labels);
    tape.replay(&[x, labels], loss, &[logits])
}

fn run(replay: &mut Replay, inputs: &[&Tensor], model: &dyn Parameters) -> Replayed {
    replay.run(inputs, |give| model.visit(&mut |p| give(p.id(), p.value()))).unwrap()
}

fn bytes(x: &Tensor) -> Vec<u8> {
    x.contiguous().unwrap().storage().host().unwrap()[..x.meta().bytes()].to_vec()
}

/// Trains a model twice, the second time by a replay of its first step.
fn assert_same_training(name: &str, model: impl Fn() -> Mlp, dtype: DType) {
    let (mut recorded, mut replayed) = (model(), model());
    let [mut by_tape, mut by_replay] = [(); 2].map(|()| Sgd::new().with_momentum(0.9));
    let mut replay = replay_of(&replayed, &batch(19, dtype, 0)).unwrap();
    for step in 1..4 {
        let (x, labels) = batch(19, dtype, step);
        let tape = Tape::new();
        let [logits, loss] = forward(&recorded, tape.constant(&x), tape.constant(&labels));
        let mut expected = tape.backward(loss).unwrap();
        let mut found = run(&mut replay, &[&x, &labels], &replayed);
        assert_eq!(bytes(&found.loss), bytes(&loss.value().unwrap()), "{name}, step {step}");
        assert_eq!(bytes(&found.others[0]), bytes(&logits.value().unwrap()), "{name}, step {step}");
        for (a, b) in recorded.parameters().into_iter().zip(replayed.parameters()) {
            let of = |g: Option<&Tensor>| g.map(bytes);
            let (expected, found) = (expected.of_parameter(a.id()), found.gradients.of_parameter(b.id()));
            assert_eq!(of(found), of(expected), "{name}, step {step}: {}", a.path());
        }
        assert_eq!(found.gradients.unreached(), expected.unreached(), "{name}");
        let places = |model: &Mlp| -> Vec<usize> {
            model.parameters().iter().map(|p| p.value().storage().id()).collect()
        };
        let before = places(&replayed);
        clip_norm(&recorded, &mut expected, 1.0).unwrap();
        clip_norm(&replayed, &mut found.gradients, 1.0).unwrap();
        by_tape.step(&mut recorded, &expected, 0.1).unwrap();
        by_replay.step(&mut replayed, &found.gradients, 0.1).unwrap();
        assert_eq!(places(&replayed), before, "{name}: the replay holds no weights");
    }
}

#[test]
fn a_replayed_step_of_every_variant_has_the_bits_of_a_recorded_one() {
    for variant in Variant::ALL {
        for dtype in [DType::F32, DType::F64] {
            let config = MlpConfig { width: 12, depth: 6, ..MlpConfig::default() };
            let settings = VariantConfig { drop: 0.0, ..VariantConfig::default() };
            let init = Init::new(4).with_dtype(dtype);
            let model = || Mlp::of_variant(&init, config, variant, &settings).unwrap();
            assert_same_training(&format!("{variant} {dtype}"), model, dtype);
        }
    }
}

#[test]
fn a_branch_in_bf16_is_rounded_from_the_weights_that_are_given() {
    let config = MlpConfig { width: 12, depth: 6, branch_dtype: Some(DType::BF16), ..MlpConfig::default() };
    for variant in [Variant::Residual, Variant::Mhc] {
        let model = || Mlp::of_variant(&Init::new(4), config, variant, &VariantConfig::default()).unwrap();
        assert_same_training(&format!("{variant} in bf16"), model, DType::F32);
    }
}

/// A norm and a linear layer.
struct Normed<N>(N, Linear);

impl<N: Parameters> Parameters for Normed<N> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a limpid_nn::Parameter)) {
        self.0.visit(f);
        self.1.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut limpid_nn::Parameter)) {
        self.0.visit_mut(f);
        self.1.visit_mut(f);
    }
}

impl<N: Module> Module for Normed<N> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        self.1.forward(self.0.forward(x))
    }
}

fn linear() -> Linear {
    Linear::new(&Init::new(1).with_dtype(DType::F64), 2, 2, limpid_nn::Activation::Relu)
}

#[test]
fn kernels_with_several_results_give_all_of_them_in_every_run() {
    let init = Init::new(0).with_dtype(DType::F64);
    let models: [Box<dyn Module>; 2] = [
        Box::new(Normed(LayerNorm::new(&init, 2), linear())),
        Box::new(Normed(RmsNorm::new(&init, 2), linear())),
    ];
    for model in models {
        let mut replay = replay_of(&*model, &batch(7, DType::F64, 1)).unwrap();
        for seed in 2..5 {
            let (x, labels) = batch(7, DType::F64, seed);
            let tape = Tape::new();
            let [_, loss] = forward(&*model, tape.constant(&x), tape.constant(&labels));
            let expected = tape.backward(loss).unwrap();
            let found = run(&mut replay, &[&x, &labels], &*model);
            for p in model.parameters() {
                let [found, expected] =
                    [&found.gradients, &expected].map(|g| bytes(g.of_parameter(p.id()).unwrap()));
                assert_eq!(found, expected, "{}", p.path());
            }
        }
    }
}

#[test]
fn what_draws_or_changes_something_is_refused() {
    let message = |model: &dyn Module| replay_of(model, &batch(7, DType::F64, 1)).unwrap_err().to_string();
    let drawn = message(&Normed(Dropout::new(0.5), linear()));
    assert!(drawn.contains(": it cannot be replayed: it would draw the same numbers every time"), "{drawn}");
    let changed = message(&Normed(BatchNorm1d::new(&Init::new(0).with_dtype(DType::F64), 2), linear()));
    assert!(changed.contains(": it cannot be replayed: it changes something outside the tape"), "{changed}");
    let tape = Tape::dry();
    let x = tape.variable(&Tensor::ones([3], DType::F64));
    let scale = tape.constant(&Tensor::ones([3], DType::F64));
    let error = tape.replay(&[x], (x * scale).sum(&[]), &[]).unwrap_err().to_string();
    assert!(error.contains("a dry tape has no values"), "{error}");
}

#[test]
#[should_panic(expected = "replay: bias was f64[2], found f64[3]")]
fn a_parameter_of_another_shape_panics() {
    let model = linear();
    let batch = batch(7, DType::F64, 1);
    let mut replay = replay_of(&model, &batch).unwrap();
    let wrong = Tensor::ones([3], DType::F64);
    let id = model.bias.as_ref().unwrap().id();
    let _ = replay.run(&[&batch.0, &batch.1], |give| give(id, &wrong));
}

#[test]
#[should_panic(expected = "replay: no value was given for weight")]
fn a_missing_parameter_panics() {
    let batch = batch(7, DType::F64, 1);
    let mut replay = replay_of(&linear(), &batch).unwrap();
    let _ = replay.run(&[&batch.0, &batch.1], |_| {});
}

#[test]
#[should_panic(expected = "replay: 2 inputs were named, found 1")]
fn a_missing_input_panics() {
    let model = linear();
    let batch = batch(7, DType::F64, 1);
    run(&mut replay_of(&model, &batch).unwrap(), &[&batch.0], &model);
}

#[test]
#[should_panic(expected = "is the result of an operation")]
fn an_input_that_is_computed_panics() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::ones([3], DType::F64));
    let _ = tape.replay(&[x * 2.0], x.sum(&[]), &[]);
}
