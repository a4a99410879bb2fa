//! Training on the CUDA backend: the same kernels, streams and graphs as on a card, run by this processor.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, RwLock};

use limpid_autograd::plan::{Every, Policy};
use limpid_autograd::{Gradients, Tape, Var};
use limpid_cuda::emulated::{Config, keep_apart};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_nn::residual::{Mhc, Residual, Start, Variant, VariantConfig};
use limpid_nn::{
    Activation, Checkpoint, Init, Mlp, MlpConfig, Module, Parameter, Parameters, Role, Schedule, clip_norm,
    global_norm, gradient_norms,
};
use limpid_tensor::{DType, Descent, Device, Pace, Rate, Tensor, WeightStep, bf16};
use limpid_tests::emulated::{assert_silent, calls, device, place};

/// Held for writing by a test that counts bytes or calls, which are the whole device's.
static ALONE: RwLock<()> = RwLock::new(());

type Failure = Box<dyn std::error::Error>;
type Outcome = Result<(), Failure>;

/// A network of the two-moons experiment on a device.
fn network(variant: Variant, depth: usize, width: usize, on: &Device) -> Mlp {
    network_of(MlpConfig { depth, width, ..MlpConfig::default() }, variant, on)
}

/// The same with branches in bf16.
fn mixed(variant: Variant, depth: usize, width: usize, on: &Device) -> Mlp {
    let branch_dtype = Some(DType::BF16);
    network_of(MlpConfig { depth, width, branch_dtype, ..MlpConfig::default() }, variant, on)
}

fn network_of(config: MlpConfig, variant: Variant, on: &Device) -> Mlp {
    let mut model = Mlp::of_variant(&Init::new(3), config, variant, &VariantConfig::default()).unwrap();
    model.move_to(on).unwrap();
    model
}

/// Points and their classes, on a device.
fn batch(rows: usize, on: &Device) -> (Tensor, Tensor) {
    let point = |i: usize| (i as f64 * 0.37).sin() * 2.0;
    let features = Tensor::from_f64(&(0..2 * rows).map(point).collect::<Vec<_>>(), [rows, 2], DType::F32);
    let labels = Tensor::from_vec((0..rows as i64).map(|i| i * 7 % 2).collect::<Vec<i64>>(), [rows]);
    (features.to(on).unwrap(), labels.to(on).unwrap())
}

fn loss<'t>(tape: &'t Tape, model: &Mlp, (features, labels): &(Tensor, Tensor)) -> Var<'t> {
    let logits = model.forward(tape.constant(features));
    cross_entropy(logits, tape.constant(labels), Reduction::Mean)
}

/// The gradients of a model's loss, with the tape gone.
fn gradients(model: &Mlp, data: &(Tensor, Tensor), on: &Device) -> Gradients {
    let tape = Tape::new().with_device(on.clone());
    tape.backward(loss(&tape, model, data)).unwrap()
}

/// A first step of plain descent.
fn plain_step(weight: Tensor, gradient: Tensor) -> WeightStep {
    let (memory, steps) = (Default::default(), place(&Tensor::scalar(0i64)));
    WeightStep { weight, gradient, memory, steps, copy: None, rate_scale: 1.0, weight_decay: 0.0 }
}

/// Makes plain steps with rate 1 on the emulated device.
fn descend(steps: &mut [WeightStep]) -> limpid_tensor::Result<()> {
    let rule = Descent::Momentum { momentum: 0.0, nesterov: false };
    let mut steps: Vec<&mut WeightStep> = steps.iter_mut().collect();
    let pace = Pace { rate: Rate::Number(1.0), clip: None };
    device().0.device().backend().descend(rule, pace, &mut steps).expect("the device has a kernel for it")
}

/// What an optimiser remembers, with its numbers.
fn state(optimizer: &dyn Optimizer, model: &Mlp) -> Vec<(String, Vec<f64>)> {
    let numbers = |x: &Tensor| x.cast(DType::F64).and_then(|x| x.to_f64_vec()).unwrap();
    optimizer.state(model).iter().map(|(name, x)| (name.clone(), numbers(x))).collect()
}

/// A model of one weight.
struct Weight(Parameter);

impl Parameters for Weight {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.0)
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.0)
    }
}

/// Every weight in the order of the model.
fn weights(model: &Mlp) -> Vec<Tensor> {
    model.parameters().iter().map(|p| p.value().to(&Device::cpu()).unwrap()).collect()
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    let of = |x: &Tensor| x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    tensors.iter().map(of).collect()
}

/// The largest difference, relative to the largest element of its tensor, or to 0.01 where all are smaller.
fn apart(a: &[Tensor], b: &[Tensor]) -> f64 {
    let of = |(a, b): (&Tensor, &Tensor)| {
        let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
        let size = b.iter().fold(0.01f64, |most, v| most.max(v.abs()));
        a.iter().zip(&b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs() / size))
    };
    a.iter().zip(b).map(of).fold(0.0, f64::max)
}

/// A few steps as the experiment makes them: loss, gradients, norms, clipping, update. Losses, norms, and weights at the end.
fn train(
    model: &mut Mlp,
    optimizer: &mut dyn Optimizer,
    on: &Device,
    steps: u64,
) -> (Vec<f64>, Vec<f64>, Vec<Tensor>) {
    let data = batch(32, on);
    let mut tape = Tape::new().with_device(on.clone());
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..steps {
        tape.clear(step);
        let loss = loss(&tape, model, &data);
        losses.push(loss.item().unwrap());
        let mut gradients = tape.backward(loss).unwrap();
        tape.clear(step);
        norms.extend(gradient_norms(model, &gradients).unwrap().into_iter().map(|(_, norm)| norm));
        clip_norm(model, &mut gradients, 1.0).unwrap();
        optimizer.step(model, &gradients, 0.05).unwrap();
    }
    (losses, norms, weights(model))
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn steps_of_the_experiment_agree_with_the_cpu() {
    let _others = ALONE.read().unwrap();
    let (cuda, _) = device();
    for variant in [Variant::Plain, Variant::Residual, Variant::Gated, Variant::HcDynamic, Variant::Mhc] {
        let run = |on: &Device| {
            let mut model = network(variant, 20, 16, on);
            train(&mut model, &mut Sgd::new().with_momentum(0.9), on, 3)
        };
        let (found, expected) = (run(&cuda.device()), run(&Device::cpu()));
        assert_silent();
        for (name, a, b) in [("losses", found.0, expected.0), ("norms", found.1, expected.1)] {
            // What vanishes by symmetry is rounding.
            let least = 1e-4 * b.iter().fold(0.0f64, |most, b| most.max(b.abs()));
            let apart = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(least);
            let off = a.iter().zip(&b).map(apart).fold(0.0, f64::max);
            assert!(off < 2e-4, "{variant}: {name} differ by {off:e}");
        }
        let off = apart(&found.2, &expected.2);
        assert!(off < 1e-4, "{variant}: weights differ by {off:e}");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn optimisers_change_weights_where_they_are() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let rules: [fn() -> Box<dyn Optimizer>; 4] = [
        || Box::new(Sgd::new()),
        || Box::new(Sgd::new().with_momentum(0.9).with_nesterov(true)),
        || Box::new(Adam::new()),
        || Box::new(Adam::adamw()),
    ];
    for rule in rules {
        let run = |on: &Device| {
            let mut model = network(Variant::Residual, 4, 8, on);
            let before: Vec<usize> = model.parameters().iter().map(|p| p.value().storage().id()).collect();
            let (.., after) = train(&mut model, &mut *rule(), on, 4);
            let same: Vec<usize> = model.parameters().iter().map(|p| p.value().storage().id()).collect();
            assert_eq!(before, same, "in place");
            after
        };
        let off = apart(&run(&cuda.device()), &run(&Device::cpu()));
        assert!(off < 1e-4, "weights differ by {off:e}");
    }
    // All weights of the model in one launch.
    let mut model = network(Variant::Residual, 6, 8, &cuda.device());
    let gradients = gradients(&model, &batch(8, &cuda.device()), &cuda.device());
    let step = || Sgd::new().with_momentum(0.9).step(&mut model, &gradients, 0.1).unwrap();
    if let Some(calls) = calls(step) {
        assert_eq!(calls["cuLaunchKernel"], 1);
    }
    // A weight that is a view is copied once, and changed there.
    let view = place(&Tensor::from_vec((0..6).map(|i| i as f32).collect(), [2, 3])).transpose(0, 1);
    let mut steps = [plain_step(view, place(&Tensor::ones([3, 2], DType::F32)))];
    if let Some(calls) = calls(|| descend(&mut steps).unwrap()) {
        assert_eq!(calls["cuLaunchKernel"], 2);
        assert_eq!(calls.get("cuMemcpyDtoDAsync_v2"), None);
    }
    assert_eq!(steps[0].weight.to_vec::<f32>().unwrap(), [-1.0, 2.0, 0.0, 3.0, 1.0, 4.0]);
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_step_that_fails_loses_nothing() {
    let _alone = ALONE.write().unwrap();
    let (cuda, stand_in) = device();
    let on = cuda.device();
    let mut model = network(Variant::Residual, 4, 8, &on);
    let mut optimizer = Sgd::new().with_momentum(0.9);
    let gradients = gradients(&model, &batch(8, &on), &on);
    optimizer.step(&mut model, &gradients, 0.1).unwrap();
    let (before, remembered) = (bits(&weights(&model)), state(&optimizer, &model));

    // The last gradient does not fit its weight.
    let mut wrong = gradients.clone();
    wrong.set_parameter(model.parameters().last().unwrap().id(), place(&Tensor::ones([3, 3], DType::F32)));
    let step = catch_unwind(AssertUnwindSafe(|| optimizer.step(&mut model, &wrong, 0.1)));
    let panic = step.expect_err("a gradient of another shape is a mistake of the caller");
    assert!(panic.downcast_ref::<String>().unwrap().contains("the gradient of"));
    assert_eq!((bits(&weights(&model)), state(&optimizer, &model)), (before.clone(), remembered.clone()));

    // The driver refuses the launch.
    if let Some(stand_in) = stand_in {
        stand_in.fail_next("cuLaunchKernel", 701);
        optimizer.step(&mut model, &gradients, 0.1).expect_err("the launch is refused");
        assert_eq!((bits(&weights(&model)), state(&optimizer, &model)), (before, remembered));
    }
    optimizer.step(&mut model, &gradients, 0.1).unwrap();
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_step_is_made_of_all_weights_or_of_none() {
    let _alone = ALONE.write().unwrap();
    let (cuda, stand_in) = device();
    let Some(stand_in) = stand_in else {
        println!("a card has other memory than this test allows");
        return;
    };
    let on = cuda.device();
    keep_apart(false); // what fails is the pool
    let ones = |elements: usize, dtype| {
        plain_step(place(&Tensor::ones([elements], dtype)), place(&Tensor::ones([elements], dtype)))
    };
    // The table of the second takes two of the allocator's blocks of 512 bytes.
    let mut steps = [ones(4, DType::F32), ones(16 << 13, DType::F64)];
    let blocks = |bytes: usize| on.backend().assemble(&[bytes].into(), DType::Bool, &[]);
    let mut small: Vec<Tensor> = (0..4).map(|_| blocks(512).unwrap()).collect();
    // All other memory is taken, but for two blocks that are no neighbours.
    stand_in.set_memory(0);
    let taken: Vec<Tensor> =
        (9..30).rev().flat_map(|log| std::iter::from_fn(move || blocks(1 << log).ok())).collect();
    small.remove(2);
    small.remove(0);
    let message = descend(&mut steps).unwrap_err().to_string();
    drop(taken);
    stand_in.set_memory(Config::default().memory);
    assert!(message.contains("no memory for 896 B;"), "{message}");
    assert_eq!(steps[0].weight.to_vec::<f32>().unwrap(), [1.0; 4]);
    descend(&mut steps).unwrap();
    assert_eq!(steps[0].weight.to_vec::<f32>().unwrap(), [0.0; 4]);
    keep_apart(true);
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_wrong_index_does_not_pass_for_a_norm() {
    let _others = ALONE.read().unwrap();
    let weight = Parameter::new("w", place(&Tensor::ones([4], DType::F32)), Role::Weight);
    let index = place(&Tensor::from_vec(vec![0i64, 1, 9, 1], [4]));
    let gradient = place(&Tensor::ones([2], DType::F32)).gather(0, &index).unwrap();
    let mut gradients = Gradients::default();
    gradients.set_parameter(weight.id(), gradient);
    let message = global_norm(&Weight(weight), &gradients).unwrap_err().to_string();
    assert!(message.contains("the index at element 2 is outside 0..2"), "{message}");
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_captured_step_is_the_step() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let on = cuda.device();
    let data = batch(16, &on);
    let step = |model: &mut Mlp, optimizer: &mut Sgd, tape: &mut Tape| -> Result<Tensor, Failure> {
        tape.clear(0);
        let loss = loss(tape, model, &data);
        let value = loss.value()?;
        let gradients = tape.backward(loss)?;
        tape.clear(0);
        optimizer.step(model, &gradients, 0.05)?;
        Ok(value)
    };
    let begin = || {
        let tape = Tape::new().with_device(on.clone());
        (network(Variant::Mhc, 5, 8, &on), Sgd::new().with_momentum(0.9), tape)
    };
    let (mut model, mut optimizer, mut tape) = begin();
    let eager: Vec<f64> =
        (0..5).map(|_| step(&mut model, &mut optimizer, &mut tape).unwrap().item().unwrap()).collect();
    let expected = bits(&weights(&model));

    let (mut model, mut optimizer, mut tape) = begin();
    let mut losses = vec![step(&mut model, &mut optimizer, &mut tape).unwrap().item().unwrap()];
    let (mut graph, value) = cuda.capture(|| step(&mut model, &mut optimizer, &mut tape)).unwrap();
    assert!(graph.operations() > 100, "{} operations", graph.operations());
    for _ in 1..5 {
        if let Some(calls) = calls(|| graph.replay().unwrap()) {
            assert_eq!(calls.get("cuLaunchKernel"), None, "one call for all");
        }
        losses.push(value.item().unwrap());
    }
    assert_eq!(losses, eager);
    assert_eq!(bits(&weights(&model)), expected);
    assert_silent();
    drop(graph);

    // What begins, reads an element, or counts steps, has no place in a graph; nothing is left open.
    let (mut model, mut optimizer, mut tape) = begin();
    let first = cuda.capture(|| step(&mut model, &mut optimizer, &mut tape));
    let message = first.err().unwrap().to_string();
    assert!(message.contains("make the optimiser's first step before the capture"), "{message}");
    let after: Vec<f64> =
        (0..5).map(|_| step(&mut model, &mut optimizer, &mut tape).unwrap().item().unwrap()).collect();
    assert_eq!((after, bits(&weights(&model))), (eager, expected), "as if it had not been tried");
    let read = cuda.capture(|| step(&mut model, &mut optimizer, &mut tape)?.item().map_err(Failure::from));
    let message = read.err().unwrap().to_string();
    assert!(message.contains("an element is read while a graph is captured"), "{message}");
    assert_eq!(Tensor::ones([2], DType::F32).to(&on).unwrap().to_vec::<f32>().unwrap(), [1.0, 1.0]);
}

/// A network in training, whose step reads nothing: the whole of it can be captured.
struct Training<O> {
    model: Mlp,
    optimizer: O,
    tape: Tape,
    data: (Tensor, Tensor),
    rate: Tensor,
}

/// Bits of weights, and what an optimiser remembers by name.
#[derive(Clone, PartialEq, Debug)]
struct State {
    weights: Vec<Vec<u32>>,
    remembered: Vec<(String, Vec<f64>)>,
}

impl<O: Optimizer> Training<O> {
    fn new(optimizer: O, on: &Device) -> Training<O> {
        Training::of(network(Variant::Residual, 3, 8, on), optimizer, on)
    }

    fn of(model: Mlp, optimizer: O, on: &Device) -> Training<O> {
        Training {
            model,
            optimizer,
            tape: Tape::new().with_device(on.clone()),
            data: batch(16, on),
            rate: Tensor::scalar(0.0f64).to(on).unwrap(),
        }
    }

    /// The rate of the steps that are queued from now on.
    fn set_rate(&mut self, rate: f64) {
        device().0.overwrite(&mut self.rate, &Tensor::scalar(rate)).unwrap();
    }

    fn gradients(&mut self) -> Result<(Tensor, Gradients), Failure> {
        self.tape.clear(0);
        let loss = loss(&self.tape, &self.model, &self.data);
        let value = loss.value()?;
        let gradients = self.tape.backward(loss)?;
        self.tape.clear(0);
        Ok((value, gradients))
    }

    /// A step, and the loss before it.
    fn step(&mut self) -> Result<Tensor, Failure> {
        let (value, gradients) = self.gradients()?;
        self.optimizer.step_at(&mut self.model, &gradients, Rate::Stored(&self.rate))?;
        Ok(value)
    }

    /// Weights and what is remembered of them.
    fn state(&self) -> State {
        State { weights: bits(&weights(&self.model)), remembered: state(&self.optimizer, &self.model) }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn replays_of_a_captured_step_are_the_next_steps() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let on = cuda.device();
    let decay = |weight_decay| {
        let slow = Group { rate_scale: 0.3, weight_decay };
        Groups::new(Group { weight_decay, ..Group::default() }).with("*.bias", slow)
    };
    let optimizers = [("adam", Adam::new as fn() -> Adam), ("adamw", Adam::adamw)];
    let schedule = Schedule::Cosine { peak: 0.05, floor: 0.001, steps: 8 }.with_warm_up(3);
    for (name, optimizer) in optimizers {
        // The norms are above the first bound and below the last.
        for max_norm in [None, Some(0.01), Some(1e3)] {
            let what = format!("{name}, norms up to {max_norm:?}");
            let begin = || {
                let optimizer = optimizer().with_groups(decay(0.1));
                let optimizer = max_norm.map_or(optimizer.clone(), |most| optimizer.with_max_norm(most));
                Training::new(optimizer, &on)
            };
            let mut eager = begin();
            let mut steps = Vec::new();
            for t in 0..8 {
                eager.set_rate(schedule.at(t));
                let loss = eager.step().unwrap().item().unwrap();
                let norm = eager.optimizer.norm().map(|norm| norm.item().unwrap());
                steps.push((loss, norm, eager.state()));
            }
            let norms = steps.iter().filter_map(|(_, norm, _)| *norm);
            assert!(
                norms.clone().all(|norm| (norm > max_norm.unwrap()) == (max_norm == Some(0.01))),
                "{what}"
            );
            assert_eq!(norms.count(), if max_norm.is_some() { 8 } else { 0 });

            // Two steps, five replays, and a step again.
            let mut training = begin();
            for t in 0..2 {
                training.set_rate(schedule.at(t));
                training.step().unwrap();
            }
            let (mut graph, loss) = cuda.capture(|| training.step()).unwrap();
            assert_eq!(training.state(), steps[1].2, "{what}: nothing runs in a capture");
            for (t, (expected, expected_norm, _)) in steps.iter().enumerate().take(7).skip(2) {
                training.set_rate(schedule.at(t as u64));
                if let Some(calls) = calls(|| graph.replay().unwrap()) {
                    assert_eq!(calls.get("cuStreamSynchronize"), None, "nothing is waited for");
                }
                assert_eq!(loss.item().unwrap(), *expected, "{what}: loss of step {t}");
                let norm = training.optimizer.norm().map(|norm| norm.item().unwrap());
                assert_eq!(norm, *expected_norm, "{what}: norm of step {t}");
            }
            assert_eq!(training.state(), steps[6].2, "{what}");
            let counts = state(&training.optimizer, &training.model);
            assert!(
                counts.iter().filter(|(name, _)| name.ends_with(".step")).all(|(_, count)| *count == [7.0])
            );

            // What a checkpoint holds goes on elsewhere in the same way.
            let resumed = Checkpoint::of(&training.model, &training.optimizer);
            let mut other = begin();
            resumed.restore(&mut other.model, &mut other.optimizer).unwrap();
            drop(resumed);
            for training in [&mut training, &mut other] {
                training.set_rate(schedule.at(7));
                training.step().unwrap();
                assert_eq!(training.state(), steps[7].2, "{what}");
            }
        }
    }
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_replay_with_gradients_that_are_not_finite_changes_nothing() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let mut training = Training::new(Adam::new().with_max_norm(1.0), &cuda.device());
    training.set_rate(0.1);
    training.step().unwrap();
    let (mut graph, loss) = cuda.capture(|| training.step()).unwrap();
    let good = training.data.0.to(&Device::cpu()).unwrap();
    let mut bad = good.to_vec::<f32>().unwrap();
    bad[5] = f32::NAN;
    let bad = Tensor::from_vec(bad, good.shape());
    let before = training.state();
    for _ in 0..2 {
        cuda.overwrite(&mut training.data.0, &bad).unwrap();
        graph.replay().unwrap();
        let message = loss.item().unwrap_err().to_string();
        let first = training.model.parameters().iter().map(|p| p.path().to_owned()).min().unwrap();
        assert_eq!(
            message,
            format!("cuda:0: gradient of {first}: expected a finite norm; the step has changed nothing")
        );
        assert_eq!(training.state(), before);
    }
    cuda.overwrite(&mut training.data.0, &good).unwrap();
    graph.replay().unwrap();
    assert_ne!(training.state(), before);
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_a_graph_could_not_repeat_is_refused() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let refusal = |training: &mut Training<Adam>, step: &mut dyn FnMut(&mut Training<Adam>) -> Outcome| {
        let before = training.state();
        let message = cuda.capture(|| step(training)).err().expect("it is refused").to_string();
        assert_eq!(training.state(), before, "{message}");
        message
    };
    let begin = || Training::new(Adam::new(), &cuda.device());
    let mut step = |training: &mut Training<Adam>| training.step().map(drop);

    let message = refusal(&mut begin(), &mut step);
    assert!(message.contains("make the optimiser's first step before the capture"), "{message}");

    let mut training = begin();
    training.step().unwrap();
    let checkpoint = Checkpoint::of(&training.model, &training.optimizer);
    let message = refusal(&mut training, &mut step);
    assert!(message.contains("drop clones and checkpoints before the step"), "{message}");
    drop(checkpoint);

    let message = refusal(&mut training, &mut |training| {
        let (_, mut gradients) = training.gradients()?;
        clip_norm(&training.model, &mut gradients, 1.0)?;
        Ok(training.optimizer.step(&mut training.model, &gradients, 0.1)?)
    });
    assert!(message.contains("let the optimiser limit the norm of the gradients"), "{message}");
    cuda.capture(|| step(&mut training)).unwrap();
    assert_silent();
}

/// The derivative of a linear layer begins with one kernel, for what was activated and for the bias; with a second, small one if
/// there are many rows.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_derivative_of_a_linear_layer_begins_with_one_pass() {
    let _alone = ALONE.write().unwrap();
    let (cuda, stand_in) = device();
    for (rows, expected) in [
        (128, &["linear_backward_relu_f32_warp"][..]),
        (129, &["linear_backward_relu_f32_warp", "linear_slabs_f32"]),
    ] {
        let run = |on: &Device, ready: &dyn Fn()| {
            let numbers = |shape: [usize; 2], k: f64| {
                let values: Vec<f64> = (0..shape[0] * shape[1]).map(|i| (i as f64 * k).sin()).collect();
                Tensor::from_f64(&values, shape, DType::F32).to(on).unwrap()
            };
            let tape = Tape::new().with_device(on.clone());
            let x = tape.variable(&numbers([rows, 8], 0.7));
            let w = tape.variable(&numbers([20, 8], 0.3));
            let b = tape.variable(&numbers([1, 20], 0.9).reshape([20]).unwrap());
            let y = x.linear(w, Some(b), limpid_tensor::Activation::Relu);
            let g = numbers([rows, 20], 1.1);
            y.value().unwrap();
            ready();
            let gradients = tape.backward_from(y, &g).unwrap();
            [x, w, b].map(|v| gradients.of(v).unwrap().to(&Device::cpu()).unwrap())
        };
        let launches: Arc<Mutex<Vec<String>>> = Arc::default();
        let observe = || {
            let seen = launches.clone();
            if let Some(stand_in) = stand_in {
                stand_in.observe(move |launched| seen.lock().unwrap().push(launched.kernel.to_string()));
            }
        };
        let found = run(&cuda.device(), &observe);
        assert_silent();
        let off = apart(&found, &run(&Device::cpu(), &|| ()));
        assert!(off < 1e-5, "{rows} rows: results differ by {off:e}");
        let Some(stand_in) = stand_in else { continue };
        stand_in.stop_observing();
        let launches = std::mem::take(&mut *launches.lock().unwrap());
        let others: Vec<&String> = launches.iter().filter(|name| !name.starts_with("matmul")).collect();
        assert_eq!(others, expected, "beside the products {launches:?}");
    }
}

/// Three kernels go through the streams of a block forward, and four backward: for the write's cotangents, the read's, X̄ with all
/// of its shares, and φ̄. The others handle sums and coefficients.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_block_of_mhc_goes_through_its_streams_in_few_passes() {
    let _alone = ALONE.write().unwrap();
    let (cuda, stand_in) = device();
    let run = |on: &Device| {
        let connection = Mhc::new(&Init::new(3), 8, 4, 0, Start::default());
        let mut block = Residual { connection, branch: Activation::Tanh };
        block.move_to(on).unwrap();
        let numbers: Vec<f64> = (0..16 * 4 * 8).map(|i| (f64::from(i) * 0.7).sin()).collect();
        let tape = Tape::new().with_device(on.clone());
        let x = tape.variable(&Tensor::from_f64(&numbers, [16, 4, 8], DType::F32).to(on).unwrap());
        let y = block.forward(x);
        let gradients = tape.backward((y * y).mean(&[])).unwrap();
        let of_parameter = |p: &Parameter| gradients.of_parameter(p.id()).unwrap();
        let mut all = vec![y.value().unwrap(), gradients.of(x).unwrap().clone()];
        all.extend(block.parameters().into_iter().map(|p| of_parameter(p).clone()));
        all.iter().map(|x| x.to(&Device::cpu()).unwrap()).collect::<Vec<Tensor>>()
    };
    let launches: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = launches.clone();
    if let Some(stand_in) = stand_in {
        stand_in.observe(move |launched| seen.lock().unwrap().push(launched.kernel.to_string()));
    }
    let found = run(&cuda.device());
    assert_silent();
    let off = apart(&found, &run(&Device::cpu()));
    assert!(off < 1e-4, "results differ by {off:e}");
    let Some(stand_in) = stand_in else { return };
    stand_in.stop_observing();

    let launches = launches.lock().unwrap();
    let of_streams: Vec<&str> = launches.iter().filter_map(|name| name.strip_prefix("connection_")).collect();
    let forward = ["project_24_f32", "normalise_f32", "read_4_f32", "write_4_f32"];
    let backward = [
        "write_backward_4_f32",
        "read_backward_4_f32",
        "scale_f32",
        "stream_4_24_f32",
        "phi_backward_24_f32",
        "sum_f32",
    ];
    assert_eq!(of_streams, [&forward[..], &backward].concat());
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_plan_holds_on_a_device_byte_for_byte() {
    let _alone = ALONE.write().unwrap();
    let (cuda, _) = device();
    let on = cuda.device();
    for model in [network(Variant::Mhc, 8, 8, &on), mixed(Variant::Mhc, 8, 8, &on)] {
        expect_plans_to_hold(&model, &on);
    }
}

fn expect_plans_to_hold(model: &Mlp, on: &Device) {
    let data = batch(16, on);
    let gradients = |tape: &Tape| {
        let gradients = tape.backward(loss(tape, model, &data)).unwrap();
        let of =
            |p: &limpid_nn::Parameter| gradients.of_parameter(p.id()).unwrap().to(&Device::cpu()).unwrap();
        model.parameters().into_iter().map(of).collect::<Vec<Tensor>>()
    };
    let expected = bits(&gradients(&Tape::new().with_device(on.clone())));
    for policy in
        [Policy::everything(), Policy::blocks(Every::Root), Policy::connections(2), Policy::nothing()]
    {
        let dry = Tape::dry().with_device(on.clone());
        let plan = dry.plan(loss(&dry, model, &data), &policy).unwrap();
        let tape = Tape::new().with_device(on.clone()).with_plan(&plan);
        assert_eq!(bits(&gradients(&tape)), expected, "{}", plan.policy());
        let receipt = tape.receipt().unwrap();
        assert_eq!(receipt.differences(&plan), [""; 0], "{}", plan.policy());
    }
    assert_silent();
}

/// A weight as a branch in bf16 reads it.
fn read_narrow(p: &Parameter) -> Tensor {
    let tape = Tape::new().with_device(p.value().device().clone());
    tape.in_precision(DType::BF16, || p.on(&tape)).value().unwrap()
}

fn narrow_bits(x: &Tensor) -> Vec<u16> {
    x.to_vec::<bf16>().unwrap().into_iter().map(bf16::to_bits).collect()
}

/// Makes sure that every weight is read as its cast. What each is read as.
#[track_caller]
fn expect_rounded(model: &Mlp) -> Vec<Vec<u16>> {
    let expect = |p: &Parameter| {
        let found = narrow_bits(&read_narrow(p));
        assert_eq!(found, narrow_bits(&p.value().cast(DType::BF16).unwrap()), "{p:?}");
        found
    };
    model.parameters().into_iter().map(expect).collect()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn steps_in_mixed_precision_agree_with_the_cpu_and_cast_no_weight() {
    let _alone = ALONE.write().unwrap();
    let (cuda, stand_in) = device();
    let optimizers: [fn() -> Box<dyn Optimizer>; 3] =
        [|| Box::new(Sgd::new()), || Box::new(Sgd::new().with_momentum(0.9)), || Box::new(Adam::adamw())];
    for (variant, optimizer) in [Variant::Residual, Variant::Gated, Variant::Mhc].into_iter().zip(optimizers)
    {
        let run = |on: &Device| {
            let mut model = mixed(variant, 5, 16, on);
            let found = train(&mut model, &mut *optimizer(), on, 3);
            expect_rounded(&model);
            found
        };
        let (found, expected) = (run(&cuda.device()), run(&Device::cpu()));
        assert_silent();
        // A product may be rounded to the next bf16, 2⁻⁸ of an element; Adam divides by sizes.
        for (a, b) in found.0.iter().zip(&expected.0) {
            assert!((a - b).abs() < 1e-2 * b, "{variant}: losses {:?} {:?}", found.0, expected.0);
        }
        let off = apart(&found.2, &expected.2);
        assert!(off < 0.2, "{variant}: weights differ by {off:e}");
    }

    let Some(stand_in) = stand_in else { return };
    let on = cuda.device();
    let (mut model, mut optimizer) = (mixed(Variant::Residual, 5, 16, &on), Sgd::new().with_momentum(0.9));
    let casts = |model: &mut Mlp, optimizer: &mut Sgd| {
        let launches: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = launches.clone();
        stand_in.observe(move |launched| seen.lock().unwrap().push(launched.kernel.to_string()));
        train(model, optimizer, &on, 1);
        stand_in.stop_observing();
        let launches = launches.lock().unwrap();
        launches.iter().filter(|kernel| kernel.contains("cast") && kernel.ends_with("bf16")).count()
    };
    let counts = [(); 3].map(|()| casts(&mut model, &mut optimizer));
    // Of each block: what the branch reads, and the cotangent of what it writes. In the first step weight and bias too.
    assert_eq!(counts, [3 * 4, 3 * 2, 3 * 2]);
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_captured_step_in_mixed_precision_is_the_next_step() {
    let _others = ALONE.write().unwrap();
    let (cuda, _) = device();
    let on = cuda.device();
    let begin = || Training::of(mixed(Variant::Residual, 4, 8, &on), Adam::adamw().with_max_norm(0.05), &on);
    let (mut eager, mut steps) = (begin(), Vec::new());
    for _ in 0..6 {
        eager.set_rate(0.05);
        let loss = eager.step().unwrap().item().unwrap();
        steps.push((loss, eager.state(), expect_rounded(&eager.model)));
    }
    let mut training = begin();
    training.set_rate(0.05);
    for _ in 0..2 {
        training.step().unwrap();
    }
    let (mut graph, loss) = cuda.capture(|| training.step()).unwrap();
    for (t, (expected, state, narrow)) in steps.iter().enumerate().take(5).skip(2) {
        graph.replay().unwrap();
        assert_eq!(loss.item().unwrap(), *expected, "loss of step {t}");
        assert_eq!((&training.state(), &expect_rounded(&training.model)), (state, narrow), "step {t}");
    }
    training.step().unwrap();
    assert_eq!((training.state(), expect_rounded(&training.model)), (steps[5].1.clone(), steps[5].2.clone()));

    // A copy made after the capture is not kept: replays would not write it.
    let mut weights = training.model.parameters_mut();
    weights.iter_mut().find(|p| p.path() == "layers.1.weight").unwrap().value_mut();
    for _ in 0..2 {
        graph.replay().unwrap();
        expect_rounded(&training.model);
    }

    // One that is made in a capture is not kept either: it has not been computed.
    let model = mixed(Variant::Residual, 4, 8, &on);
    let data = batch(16, &on);
    let evaluate = || -> limpid_autograd::Result<Tensor> {
        let tape = Tape::inference().with_device(on.clone());
        model.forward(tape.constant(&data.0)).value()
    };
    let (mut graph, captured) = cuda.capture(|| evaluate().map_err(Failure::from)).unwrap();
    expect_rounded(&model);
    let expected = evaluate().unwrap();
    graph.replay().unwrap();
    assert_eq!(bits(&[captured]), bits(&[expected]));

    // What is referred to elsewhere cannot be changed where it is.
    let mut training = begin();
    training.set_rate(0.05);
    training.step().unwrap();
    let held = read_narrow(&training.model.layer(1).weight);
    let message = cuda.capture(|| training.step()).err().expect("it is refused").to_string();
    assert!(message.contains("a graph cannot change a weight"), "{message}");
    drop(held);
    expect_rounded(&training.model);
    assert_silent();
}

/// Two blocks whose branches compute in bf16, between a stream and weights of f32.
fn with_narrow_branches<'t>(tape: &'t Tape, weights: &[Tensor], x: &Tensor) -> (Var<'t>, Vec<Var<'t>>) {
    let weights: Vec<Var> = weights.iter().map(|w| tape.variable(w)).collect();
    let mut x = tape.constant(x);
    for &w in &weights {
        let branch = x.cast(DType::BF16).matmul(w.cast(DType::BF16)).tanh();
        x = x + branch.cast(DType::F32);
    }
    ((x * x).mean(&[]), weights)
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn branches_in_bf16_leave_weights_and_sums_in_f32() {
    let _others = ALONE.read().unwrap();
    let (cuda, _) = device();
    let numbers = |n: usize, k: f64| (0..n).map(|i| (i as f64 * k).sin()).collect::<Vec<f64>>();
    let run = |on: &Device| {
        let of = |shape: [usize; 2], k| {
            Tensor::from_f64(&numbers(shape[0] * shape[1], k), shape, DType::F32).to(on).unwrap()
        };
        let (x, weights) = (of([40, 64], 0.7), [of([64, 64], 0.3), of([64, 64], 0.9)]);
        let tape = Tape::new().with_device(on.clone());
        let (loss, weights) = with_narrow_branches(&tape, &weights, &x);
        let gradients = tape.backward(loss).unwrap();
        let of = |w: &Var| gradients.of(*w).unwrap().to(&Device::cpu()).unwrap();
        let gradients: Vec<Tensor> = weights.iter().map(of).collect();
        assert!(gradients.iter().all(|g| g.dtype() == DType::F32));
        (loss.item().unwrap(), gradients)
    };
    let ((loss, gradients), (expected, theirs)) = (run(&cuda.device()), run(&Device::cpu()));
    assert_silent();
    // A product may be rounded to the next bf16: 2⁻⁸ of an element.
    assert!((loss - expected).abs() < 1e-3 * expected, "{loss} {expected}");
    let off = apart(&gradients, &theirs);
    assert!(off < 1e-2, "gradients differ by {off:e}");
}
