//! Mixed precision: branches in bf16 between a stream, weights, coefficients and sums of gradients in f32.

use limpid_autograd::plan::{Every, Policy};
use limpid_autograd::{Degree, Gradients, Grading, Tape, Var};
use limpid_nn::data::{Batches, two_moons};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Adam, Group, Groups, Optimizer, Sgd};
use limpid_nn::residual::{Expand, Identity, Normed, Placement, Residual, Variant, VariantConfig};
use limpid_nn::{
    Activation, BatchNorm1d, Checkpoint, Init, Linear, LoadRules, Mixed, Mlp, MlpConfig, Module, Parameter,
    Parameters, Sequential, clip_norm, commit_updates, forward_with, state_dict,
};
use limpid_tensor::rng::Key;
use limpid_tensor::{Activation as Fused, DType, Tensor, bf16};

const WIDTH: usize = 8;

fn numbers(shape: &[usize], seed: f64) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..count).map(|i| (i as f64 * 0.73 + seed).sin() * 1.3).collect();
    Tensor::from_f64(&values, shape, DType::F32)
}

fn network(variant: Variant, depth: usize, branch_dtype: Option<DType>) -> Mlp {
    let config =
        MlpConfig { width: WIDTH, depth, activation: Activation::Tanh, branch_dtype, ..MlpConfig::default() };
    Mlp::of_variant(&Init::new(5), config, variant, &VariantConfig::default()).unwrap()
}

fn loss<'t>(tape: &'t Tape, model: &Mlp) -> Var<'t> {
    let logits = model.forward(tape.constant(&numbers(&[16, 2], 0.0)));
    let labels = Tensor::from_vec((0..16).map(|i| i * 5 % 2).collect::<Vec<i64>>(), [16]);
    cross_entropy(logits, tape.constant(&labels), Reduction::Mean)
}

fn gradients(model: &Mlp) -> Gradients {
    let tape = Tape::new();
    tape.backward(loss(&tape, model)).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    match x.dtype() {
        DType::BF16 => x.to_vec::<bf16>().unwrap().into_iter().map(|v| v.to_bits().into()).collect(),
        _ => x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect(),
    }
}

fn bits_of(gradients: &Gradients, model: &dyn Parameters) -> Vec<Vec<u32>> {
    model.parameters().into_iter().map(|p| bits(gradients.of_parameter(p.id()).unwrap())).collect()
}

/// A parameter's value as a branch in bf16 reads it.
fn read(p: &Parameter) -> Tensor {
    let tape = Tape::new();
    tape.in_precision(DType::BF16, || p.on(&tape)).value().unwrap()
}

/// A block as [`Mixed`] makes it, with the casts written out.
fn by_hand<'t>(block: &Residual<Identity, Normed<Linear>>, x: Var<'t>) -> Var<'t> {
    let narrow = |p: &Parameter| p.on(x.tape()).cast(DType::BF16);
    let Normed { before, branch, .. } = &block.branch;
    let norm = before.as_ref().unwrap();
    let normed = x.cast(DType::BF16).rms_norm(narrow(&norm.weight), norm.eps);
    let output = normed.linear(narrow(&branch.weight), branch.bias.as_ref().map(narrow), Fused::Tanh);
    x + output.cast(DType::F32)
}

#[test]
fn it_is_the_network_with_casts_by_hand_to_any_order() {
    let init = Init::new(2);
    let linear = Linear::new(&init, WIDTH, WIDTH, Activation::Tanh);
    let block = Residual { connection: Identity, branch: Normed::new(&init, WIDTH, Placement::Pre, linear) };
    let mixed = Residual { connection: Identity, branch: Mixed::new(DType::BF16, block.branch.clone()) };
    let x = numbers(&[5, WIDTH], 0.4);
    // The block is used three times, so that the gradients of its weights are sums.
    fn thrice<'t>(x: Var<'t>, block: impl Fn(Var<'t>) -> Var<'t>) -> Var<'t> {
        (0..3).fold(x, |x, _| block(x))
    }
    fn first<'t>(tape: &'t Tape, x: Var<'t>, y: Var<'t>, model: &dyn Parameters) -> Vec<Vec<u32>> {
        let loss = (y * y).mean(&[]);
        let gradients = tape.backward(loss).unwrap();
        let mut all = bits_of(&gradients, model);
        all.extend([bits(&loss.value().unwrap()), bits(gradients.of(x).unwrap())]);
        all
    }
    let (a, b) = (Tape::new(), Tape::new());
    let (xa, xb) = (a.variable(&x), b.variable(&x));
    assert_eq!(
        first(&a, xa, thrice(xa, |x| mixed.forward(x)), &mixed),
        first(&b, xb, thrice(xb, |x| by_hand(&block, x)), &block)
    );
    fn second<'t>(tape: &'t Tape, x: Var<'t>, y: Var<'t>, model: &dyn Parameters) -> Vec<Vec<u32>> {
        let gradient = tape.grad((y * y).mean(&[]), &[x]).unwrap()[0];
        bits_of(&tape.backward((gradient * gradient).sum(&[])).unwrap(), model)
    }
    let (a, b) = (Tape::new(), Tape::new());
    let (xa, xb) = (a.variable(&x), b.variable(&x));
    assert_eq!(
        second(&a, xa, thrice(xa, |x| mixed.forward(x)), &mixed),
        second(&b, xb, thrice(xb, |x| by_hand(&block, x)), &block)
    );
}

#[test]
fn of_every_variant_only_branches_are_narrow() {
    for variant in Variant::ALL {
        let depth = 5;
        let (model, wide) = (network(variant, depth, Some(DType::BF16)), network(variant, depth, None));
        let tape = Tape::new();
        let loss = loss(&tape, &model);
        let program = tape.program().to_string();
        assert_eq!(program.matches('⑂').count(), depth - 2, "{variant}:\n{program}");
        assert_eq!(program.matches("bf16[16, 8] = linear(").count(), depth - 2, "{variant}:\n{program}");
        for line in program.lines().filter(|line| line.contains(": bf16[")) {
            assert!(line.contains("/branch "), "{variant}: {line}");
        }
        // No weight is cast on the tape: each is there in bf16.
        let casts: Vec<&str> = program.lines().filter(|line| line.contains("= cast(layers.")).collect();
        assert!(casts.len() >= 2 * (depth - 2), "{variant}:\n{program}");
        assert!(casts.iter().all(|line| line.contains(", %")), "{variant}:\n{program}");

        let narrow = tape.backward(loss).unwrap();
        assert!(narrow.unreached().is_empty(), "{variant}");
        let exact = gradients(&wide);
        for (p, other) in model.parameters().into_iter().zip(wide.parameters()) {
            assert_eq!((p.meta(), p.path()), (other.meta(), other.path()));
            let (found, expected) =
                (narrow.of_parameter(p.id()).unwrap(), exact.of_parameter(other.id()).unwrap());
            assert_eq!(found.meta(), p.meta(), "{variant}: {p:?}");
            let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
            let size = expected.iter().fold(5e-3f64, |most, v| most.max(v.abs()));
            let off = found.iter().zip(&expected).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
            // A few roundings of 2⁻⁹ in a row; gradients of logits are small differences.
            assert!(off < 0.1 * size, "{variant}: {p:?} is off by {off:e} of {size:e}");
        }
    }
}

#[test]
fn ledger_and_spectrum_find_one_branch_for_each_block() {
    for variant in [Variant::Residual, Variant::Gated, Variant::Mhc, Variant::AttnRes] {
        let model = network(variant, 4, Some(DType::BF16));
        let tape = Tape::new();
        let loss = loss(&tape, &model);
        let (booked, _) = tape.backward_with_ledger(loss).unwrap();
        assert_eq!(bits_of(&booked, &model), bits_of(&gradients(&model), &model), "{variant}");

        let tape = Tape::new();
        let x = tape.variable(&numbers(&[3, WIDTH], 0.2));
        let state = match variant {
            Variant::Mhc => Expand::copies(4).forward(x),
            Variant::AttnRes => Expand::copies(1).forward(x),
            _ => x,
        };
        let y = model.blocks().iter().fold(state, |x, block| block.forward(x));
        let spectrum = tape.spectrum((y * y).sum(&[]), &[x], Grading::BRANCHES).unwrap();
        let degrees: Vec<Degree> = spectrum[0].terms.iter().map(|term| term.branches).collect();
        assert_eq!(degrees, [0, 1, 2].map(Degree::Exactly), "{variant}");
    }
}

#[test]
fn an_optimiser_writes_the_copy_that_the_next_step_reads() {
    let decay = || Groups::new(Group { weight_decay: 0.1, ..Group::default() });
    let optimizers: [Box<dyn Optimizer>; 6] = [
        Box::new(Sgd::new().with_groups(decay())),
        Box::new(Sgd::new().with_momentum(0.9)),
        Box::new(Sgd::new().with_momentum(0.9).with_nesterov(true).with_max_norm(0.5)),
        Box::new(Adam::new().with_groups(decay())),
        Box::new(Adam::adamw()),
        Box::new(Adam::adamw().with_max_norm(0.1)),
    ];
    for (i, mut optimizer) in optimizers.into_iter().enumerate() {
        // More elements than are rounded at a time.
        let config =
            MlpConfig { width: 70, depth: 4, branch_dtype: Some(DType::BF16), ..MlpConfig::default() };
        let mut model =
            Mlp::of_variant(&Init::new(1), config, Variant::PreNorm, &VariantConfig::default()).unwrap();
        for _ in 0..4 {
            let gradients = gradients(&model);
            let before: Vec<Vec<u32>> = model.parameters().iter().map(|p| bits(&read(p))).collect();
            optimizer.step(&mut model, &gradients, 0.05).unwrap();
            for (p, before) in model.parameters().into_iter().zip(before) {
                let found = bits(&read(p));
                assert_eq!(found, bits(&p.value().cast(DType::BF16).unwrap()), "optimiser {i}: {p:?}");
                assert_eq!(p.value().dtype(), DType::F32);
                // The weights of norms lie around 1, where a step is less than half a unit of bf16.
                assert!(found != before || p.path().contains("norm"), "optimiser {i}: {p:?} has moved");
            }
        }
    }
}

#[test]
fn what_is_read_is_never_an_earlier_value() {
    let mut layer = Linear::new(&Init::new(0), 3, 3, Activation::Identity);
    let expect_fresh = |layer: &Linear, what: &str| {
        for p in layer.parameters() {
            assert_eq!(bits(&read(p)), bits(&p.value().cast(DType::BF16).unwrap()), "{what}");
        }
    };
    expect_fresh(&layer, "at first");
    layer.weight.set_value(numbers(&[3, 3], 1.0));
    expect_fresh(&layer, "set_value");
    layer.weight.value_mut().as_mut_slice::<f32>().unwrap().fill(0.3);
    expect_fresh(&layer, "value_mut");
    let other = Linear::new(&Init::new(9), 3, 3, Activation::Identity);
    LoadRules::new().load(&mut layer, &state_dict(&other).into_iter().collect()).unwrap();
    expect_fresh(&layer, "loading");
    let mut copy = layer.clone();
    copy.weight.value_mut();
    copy.weight.set_value(numbers(&[3, 3], 2.0));
    expect_fresh(&layer, "a clone changes");
    expect_fresh(&copy, "and is another");
    layer.cast(DType::F64).unwrap();
    expect_fresh(&layer, "cast");

    // A tape keeps the value it has, in every dtype.
    let mut layer = Linear::new(&Init::new(0), 3, 3, Activation::Identity);
    let tape = Tape::new();
    let wide = layer.weight.on(&tape);
    read(&layer.weight);
    layer.weight.set_value(numbers(&[3, 3], 3.0));
    let narrow = tape.in_precision(DType::BF16, || layer.weight.on(&tape));
    assert_eq!(bits(&narrow.value().unwrap()), bits(&wide.cast(DType::BF16).value().unwrap()));
}

#[test]
fn a_module_of_its_weights_reads_those_it_is_given() {
    let layer = Linear::new(&Init::new(0), 3, 3, Activation::Tanh);
    let mixed = Mixed::new(DType::BF16, layer.clone());
    let run = |given: &[Tensor]| {
        let tape = Tape::new();
        let x = tape.constant(&numbers(&[2, 3], 0.1));
        let weights: Vec<Var> = given.iter().map(|w| tape.variable(w)).collect();
        let y = forward_with(&mixed, x, &weights);
        let gradients = tape.backward(y.sum(&[])).unwrap();
        let of = |w: &Var| bits(gradients.of(*w).unwrap());
        (bits(&y.value().unwrap()), weights.iter().map(of).collect::<Vec<_>>())
    };
    let own: Vec<Tensor> = layer.parameters().iter().map(|p| p.value().clone()).collect();
    let tape = Tape::new();
    let y = mixed.forward(tape.constant(&numbers(&[2, 3], 0.1)));
    let gradients = tape.backward(y.sum(&[])).unwrap();
    assert_eq!(run(&own), (bits(&y.value().unwrap()), bits_of(&gradients, &mixed)));

    let others = [numbers(&[3, 3], 5.0), numbers(&[3], 6.0)];
    let mut changed = layer;
    changed.weight.set_value(others[0].clone());
    changed.bias.as_mut().unwrap().set_value(others[1].clone());
    let tape = Tape::new();
    let expected = Mixed::new(DType::BF16, changed).forward(tape.constant(&numbers(&[2, 3], 0.1)));
    assert_eq!(run(&others).0, bits(&expected.value().unwrap()));
}

#[test]
fn frozen_weights_are_read_so_and_get_no_gradient() {
    let mut model = network(Variant::Residual, 4, Some(DType::BF16));
    let expected = gradients(&model);
    model.set_frozen("layers.1.*", true).unwrap();
    let found = gradients(&model);
    for p in model.parameters() {
        let gradient = found.of_parameter(p.id());
        assert_eq!(gradient.is_none(), p.path().starts_with("layers.1."));
        assert!(gradient.is_none_or(|g| bits(g) == bits(expected.of_parameter(p.id()).unwrap())), "{p:?}");
    }
}

#[test]
fn every_plan_gives_the_same_bits_and_takes_what_was_planned() {
    for variant in [Variant::Residual, Variant::Gated, Variant::Euler, Variant::AttnRes, Variant::Mhc] {
        let mut model = network(variant, 6, Some(DType::BF16));
        for policy in
            [Policy::everything(), Policy::blocks(Every::Root), Policy::connections(2), Policy::nothing()]
        {
            let what = format!("{variant}, {policy:?}");
            let dry = Tape::dry();
            let plan = dry.plan(loss(&dry, &model), &policy).unwrap();
            let mut tape = Tape::new().with_plan(&plan);
            // Copies are made in the first step, changed in place, and made again where they were dropped.
            for step in 0..3 {
                tape.clear(step);
                let found = tape.backward(loss(&tape, &model)).unwrap();
                assert_eq!(tape.receipt().unwrap().differences(&plan), [""; 0], "{what}, step {step}");
                tape.clear(step);
                assert_eq!(
                    bits_of(&found, &model),
                    bits_of(&gradients(&model), &model),
                    "{what}, step {step}"
                );
                Sgd::new().step(&mut model, &found, 0.1).unwrap();
                if step == 1 {
                    model.parameters_mut().into_iter().for_each(|p| p.set_value(p.value().clone()));
                }
            }
        }
    }
}

#[test]
fn branches_hold_half() {
    let held = |branch_dtype| {
        let config = MlpConfig { depth: 6, branch_dtype, ..MlpConfig::default() };
        let model =
            Mlp::of_variant(&Init::new(1), config, Variant::PreNorm, &VariantConfig::default()).unwrap();
        let tape = Tape::new();
        let loss = loss(&tape, &model);
        let audit = tape.audit_reads(loss).unwrap();
        assert_eq!(audit.declared, audit.read, "{branch_dtype:?}");
        assert_eq!(audit.read_bytes, tape.memory().needed, "{branch_dtype:?}");
        let in_branches = |(scope, _): &(String, usize)| scope.ends_with("/branch");
        let by_scope = tape.memory_by_scope();
        by_scope.into_iter().filter(in_branches).map(|(_, bytes)| bytes).sum::<usize>()
    };
    let (wide, narrow) = (held(None), held(Some(DType::BF16)));
    // A norm's result and the layer's, [16, 64] each; and what the norm reads, which is the stream where that is as wide.
    assert_eq!(wide, 4 * 2 * 16 * 64 * 4);
    assert_eq!(narrow, 4 * 3 * 16 * 64 * 2);
}

#[test]
fn a_batch_norm_keeps_its_statistics() {
    let parts = || -> Vec<Box<dyn Module>> {
        let init = Init::new(3);
        let linear = Linear::new(&init.enter("linear"), WIDTH, WIDTH, Activation::Identity);
        vec![Box::new(linear), Box::new(BatchNorm1d::new(&init.enter("norm"), WIDTH))]
    };
    let mut block =
        Residual { connection: Identity, branch: Mixed::new(DType::BF16, Sequential::new(parts())) };
    let (x, tape) = (numbers(&[6, WIDTH], 0.3), Tape::new());
    let y = block.forward(tape.constant(&x));
    let gradients = tape.backward((y * y).mean(&[])).unwrap();
    assert!(gradients.unreached().is_empty());
    commit_updates(&tape, &mut block);

    // By hand: the layer in bf16, its result's statistics in f32.
    let [linear, norm] = parts().try_into().ok().unwrap();
    let by_hand = Tape::new();
    let narrow = by_hand.in_precision(DType::BF16, || linear.forward(by_hand.constant(&x).cast(DType::BF16)));
    let mut norm = norm;
    norm.forward(narrow.cast(DType::F32));
    commit_updates(&by_hand, &mut norm);
    let found = block.parameters().into_iter().skip(2).map(|p| p.value().clone());
    let expected = norm.parameters().into_iter().map(|p| p.value().clone());
    for (found, expected) in found.zip(expected) {
        assert_eq!(found.meta(), expected.meta());
        assert_eq!(found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    }
    let evaluated = block.forward(Tape::inference().constant(&x)).meta();
    assert_eq!(evaluated, x.meta());
}

#[test]
fn a_checkpoint_has_masters_alone_and_goes_on_to_the_same_bits() {
    let train = |model: &mut Mlp, optimizer: &mut Adam, steps: u64| {
        for _ in 0..steps {
            let gradients = gradients(model);
            optimizer.step(model, &gradients, 0.05).unwrap();
        }
    };
    let begin = |dtype| (network(Variant::Mhc, 4, dtype), Adam::adamw());
    let (mut model, mut optimizer) = begin(Some(DType::BF16));
    train(&mut model, &mut optimizer, 3);
    let metas =
        |model: &Mlp| state_dict(model).iter().map(|(name, x)| (name.clone(), x.meta())).collect::<Vec<_>>();
    assert_eq!(metas(&model), metas(&begin(None).0));

    let file = std::env::temp_dir().join(format!("limpid-{}-precision.safetensors", std::process::id()));
    Checkpoint::of(&model, &optimizer).save(&file).unwrap();
    let (mut resumed, mut other) = begin(Some(DType::BF16));
    gradients(&resumed);
    Checkpoint::load(&file).unwrap().restore(&mut resumed, &mut other).unwrap();
    std::fs::remove_file(&file).unwrap();
    train(&mut model, &mut optimizer, 3);
    train(&mut resumed, &mut other, 3);
    for (a, b) in model.parameters().into_iter().zip(resumed.parameters()) {
        assert_eq!(bits(a.value()), bits(b.value()), "{a:?}");
    }
}

#[test]
fn two_moons_are_learned_as_well() {
    let data = two_moons(600, 0.2, DType::F32, Key::new(4)).unwrap();
    let accuracy = |branch_dtype| {
        let config = MlpConfig { width: 16, depth: 8, branch_dtype, ..MlpConfig::default() };
        let mut model =
            Mlp::of_variant(&Init::new(7), config, Variant::Residual, &VariantConfig::default()).unwrap();
        let mut optimizer = Sgd::new().with_momentum(0.9);
        let batches = Batches::new(data.len(), 100, Key::new(1)).unwrap();
        for epoch in 0..25 {
            for batch in batches.of(&data, epoch).unwrap() {
                let batch = batch.unwrap();
                let tape = Tape::new();
                let logits = model.forward(tape.constant(&batch.features));
                let loss = cross_entropy(logits, tape.constant(&batch.labels), Reduction::Mean);
                let mut gradients = tape.backward(loss).unwrap();
                drop(tape);
                clip_norm(&model, &mut gradients, 1.0).unwrap();
                optimizer.step(&mut model, &gradients, 0.1).unwrap();
            }
        }
        let tape = Tape::inference();
        let logits = model.forward(tape.constant(data.features()));
        let right = logits.argmax(-1).equal(tape.constant(data.labels()));
        right.cast(DType::F64).mean(&[]).item().unwrap()
    };
    let (wide, narrow) = (accuracy(None), accuracy(Some(DType::BF16)));
    assert!(wide > 0.94 && (wide - narrow).abs() < 0.02, "{wide} in f32, {narrow} in bf16");
}

#[test]
fn without_a_dtype_it_is_the_module_itself() {
    let layer = Linear::new(&Init::new(0), 3, 3, Activation::Tanh);
    let program = |module: &dyn Module| {
        let tape = Tape::new();
        module.forward(tape.constant(&numbers(&[2, 3], 0.1)));
        tape.len()
    };
    assert_eq!(program(&Mixed::of(None, layer.clone())), program(&layer));
    assert_eq!(program(&Mixed::new(DType::F32, layer.clone())), program(&layer));
}

#[test]
#[should_panic(expected = "mixed: a branch computes in a float dtype, asked for i64")]
fn integers_are_refused() {
    Mixed::new(DType::I64, Activation::Relu);
}

#[test]
#[should_panic(expected = "mixed: a branch computes in a float dtype, asked for bool")]
fn and_so_they_are_by_a_network() {
    network(Variant::Residual, 3, Some(DType::Bool));
}

#[test]
#[should_panic(expected = "mixed: a branch in f64 needs a stream at least as wide, found f32[2, 3]")]
fn a_branch_is_not_wider_than_its_stream() {
    let tape = Tape::new();
    Mixed::new(DType::F64, Activation::Relu).forward(tape.constant(&numbers(&[2, 3], 0.0)));
}

#[test]
#[should_panic(expected = "mixed: a branch in bf16 needs a stream at least as wide, found i64[2]")]
fn nor_is_it_of_integers() {
    let tape = Tape::new();
    Mixed::new(DType::BF16, Activation::Relu).forward(tape.constant(&Tensor::from_vec(vec![1i64, 2], [2])));
}
