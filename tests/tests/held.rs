//! What a tape holds for the backward pass against what PyTorch holds: `golden/held.json`, written by `golden/held.py`.
//!
//! Both sides take the same points through the same networks, in f32 and in training mode, to a mean cross-entropy. That
//! the networks are the same is tested first: the same parameters in the same order, and the same logits with the same
//! numbers in them.
//!
//! What is counted, each storage once however many values share it:
//!
//! - in PyTorch, eager and on the CPU, everything that autograd saves, by a hook on it;
//! - on the tape, once the outermost scope has closed, results of operations that a derivative rule will read
//!   ([`Memory::needed`]), and besides, what is held for no rule ([`Memory::other`]): the loss.
//!
//! Neither side counts parameters, the points and the labels, and PyTorch's count leaves out the loss and the logits as
//! the caller has them. Where the two agree to the byte, the 4 bytes of the loss stand against 4 that PyTorch keeps for
//! the mean, the sum of the samples' weights.
//!
//! The backward pass then reads all that the tape holds for it, and computes no dropped value again. Within a rule there
//! is something to compute again on either side: the gates of GELU and SiLU on both, here also the statistics of a norm
//! and, unless it is recorded step by step, Sinkhorn's iteration. That one is more than half of what PyTorch holds for
//! mHC, so mHC is compared three times: as it is, with Sinkhorn recorded step by step here too, and with Sinkhorn under a
//! checkpoint in PyTorch too.
//!
//! `cargo test -p limpid-tests --test held -- --nocapture` prints the figures.

use limpid_autograd::ops::sinkhorn::{Gradient, Sinkhorn};
use limpid_autograd::{Memory, Tape, Var};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::residual::{Identity, Residual, Variant, VariantConfig};
use limpid_nn::{
    Activation, Dropout, Init, LayerNorm, Linear, Mlp, MlpConfig, Module, Parameters, Sequential,
};
use limpid_tensor::{DType, Stop, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    sizes: Sizes,
    networks: Vec<Held>,
}

#[derive(Deserialize)]
struct Sizes {
    batch: usize,
    width: usize,
    depth: usize,
    streams: usize,
    steps: usize,
    drop: f64,
}

/// What PyTorch holds for a network.
#[derive(Deserialize)]
struct Held {
    name: String,
    parameters: Vec<Vec<usize>>,
    /// Of the first points, in evaluation mode.
    logits: Vec<f64>,
    bytes: usize,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/held.json")).unwrap()
}

/// Numbers in ±√(6/m), m being the largest axis: `drawn` of `held.py`.
fn drawn(place: u64, shape: &[usize]) -> Tensor {
    let number = |index: u64| {
        let z = ((place << 32) + index).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let bound = (6.0 / shape.iter().copied().max().unwrap_or(1) as f64).sqrt();
    let count: usize = shape.iter().product();
    let numbers: Vec<f64> = (0..count as u64).map(|index| bound * number(index)).collect();
    Tensor::from_f64(&numbers, shape, DType::F32)
}

/// The network of a name in the file, its parameters drawn.
fn network(name: &str, sizes: &Sizes, gradient: Gradient) -> Box<dyn Module> {
    let mut network: Box<dyn Module> = match name {
        "plain" => of_variant(Variant::Plain, sizes, gradient),
        "residual" => of_variant(Variant::Residual, sizes, gradient),
        "gated" => of_variant(Variant::Gated, sizes, gradient),
        "hc-dynamic" => of_variant(Variant::HcDynamic, sizes, gradient),
        "mhc" | "mhc, checkpointed" => of_variant(Variant::Mhc, sizes, gradient),
        other => match other.strip_prefix("pre-norm, ") {
            Some(activation) => pre_norm(activation.parse().unwrap(), sizes),
            None => panic!("the file has a network that is not known here: {other}"),
        },
    };
    for (place, parameter) in (1..).zip(network.parameters_mut()) {
        let value = drawn(place, &parameter.meta().shape);
        parameter.set_value(value);
    }
    network
}

fn of_variant(variant: Variant, sizes: &Sizes, gradient: Gradient) -> Box<dyn Module> {
    let config = MlpConfig { width: sizes.width, depth: sizes.depth, ..MlpConfig::default() };
    let sinkhorn = Sinkhorn { stop: Stop::Steps(sizes.steps), gradient, ..Sinkhorn::default() };
    let settings = VariantConfig { streams: sizes.streams, sinkhorn, ..VariantConfig::default() };
    Box::new(Mlp::of_variant(&Init::new(0), config, variant, &settings).unwrap())
}

/// `x + dropout(act(W·norm(x) + b))` in each block.
fn pre_norm(activation: Activation, sizes: &Sizes) -> Box<dyn Module> {
    let (init, width) = (Init::new(0), sizes.width);
    let block = |i: usize| -> Box<dyn Module> {
        let init = init.enter(i);
        let branch = Sequential::new(vec![
            Box::new(LayerNorm::new(&init.enter("norm"), width)),
            Box::new(Linear::new(&init, width, width, activation)),
            Box::new(Dropout::new(sizes.drop)),
        ]);
        Box::new(Residual { connection: Identity, branch })
    };
    let last = sizes.depth - 1;
    let mut modules: Vec<Box<dyn Module>> =
        vec![Box::new(Linear::new(&init.enter(0), 2, width, Activation::Relu))];
    modules.extend((1..last).map(block));
    modules.push(Box::new(Linear::new(&init.enter(last), width, 2, Activation::Identity)));
    Box::new(Sequential::new(modules))
}

fn points(sizes: &Sizes) -> Tensor {
    drawn(0, &[sizes.batch, 2])
}

fn loss<'t>(tape: &'t Tape, network: &dyn Module, sizes: &Sizes) -> Var<'t> {
    let labels = Tensor::from_vec((0..sizes.batch as i64).map(|i| i % 2).collect(), [sizes.batch]);
    tape.scope("network", || {
        let logits = network.forward(tape.constant(&points(sizes)));
        cross_entropy(logits, tape.constant(&labels), Reduction::Mean)
    })
}

/// What the tape holds once the loss is computed. The backward pass reads all of it and recomputes nothing.
#[track_caller]
fn held(name: &str, network: &dyn Module, sizes: &Sizes) -> Memory {
    let tape = Tape::new();
    let loss = loss(&tape, network, sizes);
    let memory = tape.memory();
    let read = tape.audit_reads(loss).unwrap();
    assert_eq!(
        read.read_bytes, memory.needed,
        "{name}: bytes that the backward pass reads, and bytes held for it"
    );
    assert_eq!(tape.memory().recomputed, 0, "{name}: values computed again");
    memory
}

#[test]
fn the_networks_are_pytorchs() {
    let Golden { sizes, networks } = golden();
    for golden in &networks {
        let name = &golden.name;
        let network = network(name, &sizes, Gradient::Unrolled);
        let shapes: Vec<Vec<usize>> = network.parameters().iter().map(|p| p.meta().shape.to_vec()).collect();
        assert_eq!(shapes, golden.parameters, "{name}: shapes of parameters");
        let tape = Tape::inference();
        let logits = network.forward(tape.constant(&points(&sizes))).value().unwrap().to_f64_vec().unwrap();
        let largest = golden.logits.iter().fold(0.0f64, |largest, l| largest.max(l.abs()));
        for (i, (&found, &expected)) in logits.iter().zip(&golden.logits).enumerate() {
            let off = (found - expected).abs() / largest;
            assert!(off < 1e-4, "{name}: logit {i} is {found}, expected {expected}");
        }
    }
}

#[test]
fn a_tape_holds_no_more_than_pytorch() {
    let Golden { sizes, networks } = golden();
    assert!(networks.len() >= 11);
    let row = |name: &str, pytorch: &str, needed: &str, all: &str, ratio: &str| {
        println!("{name:<20} {pytorch:>10} {needed:>10} {all:>16} {ratio:>7}");
    };
    row("bytes held", "PyTorch", "needed", "needed + other", "ratio");
    let mut more = Vec::new();
    for golden in &networks {
        let forms: &[(&str, Gradient)] = match &golden.name[..] {
            "mhc" => &[("", Gradient::Unrolled), (", on tape", Gradient::OnTape)],
            _ => &[("", Gradient::Unrolled)],
        };
        for &(form, gradient) in forms {
            let name = format!("{}{form}", golden.name);
            let network = network(&golden.name, &sizes, gradient);
            let memory = held(&name, &*network, &sizes);
            let all = memory.needed + memory.other;
            let ratio = format!("{:.3}", all as f64 / golden.bytes as f64);
            row(&name, &golden.bytes.to_string(), &memory.needed.to_string(), &all.to_string(), &ratio);
            if all > golden.bytes {
                more.push(name);
            }
        }
    }
    assert!(more.is_empty(), "more than PyTorch: {}", more.join("; "));
}
