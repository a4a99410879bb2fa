//! Every module: the input and the weights it is tried with.

use limpid::autograd::check::case::draw::Drawn;
use limpid::autograd::check::case::{Case, Draw, Looks, Values};
use limpid::autograd::ops::sinkhorn::Sinkhorn;
use limpid::nn::residual::{
    Connection, Gated, Identity, Interpolated, Plain, Residual, Scaled, Variant, VariantConfig,
};
use limpid::tensor::Stop;
use limpid::nn::{
    Activation, BatchNorm1d, Dropout, Init, LayerNorm, Linear, Mlp, MlpConfig, Module, Parameter, RmsNorm,
    Sequential, forward_with,
};
use limpid::{DType, Var};

use crate::subject::{Group, Subject};

/// Makes a module for inputs of so many channels, and with some number from which it chooses what it likes.
trait Build: Fn(&Init, usize, usize) -> Box<dyn Module> + Clone + 'static {}
impl<F: Fn(&Init, usize, usize) -> Box<dyn Module> + Clone + 'static> Build for F {}

/// Inputs `[rows, channels]` and weights for what `build` makes, all of them drawn.
fn cases(build: impl Build) -> Drawn<Case> {
    Drawn::new(move |draw: &mut Draw| {
        // A batch of one, or a row of one channel, leaves a norm nothing to differentiate.
        let (rows, channels, choice) = (3 + draw.below(2), 3 + draw.below(2), draw.below(1 << 10));
        let module = build(&init(DType::F64), channels, choice);
        let mut shapes = vec![vec![rows, channels]];
        shapes.extend(weights(&*module).map(|p| p.value().shape().to_vec()));
        let operands = draw.operands(shapes, &Looks::from(Values::Interior).dense());
        let mut case = draw.case(operands);
        case.choices[0] = choice as u16;
        case
    })
}

fn init(dtype: DType) -> Init {
    Init::new(0).with_dtype(dtype)
}

fn weights(module: &dyn Module) -> impl Iterator<Item = &Parameter> {
    module.parameters().into_iter().filter(|p| p.is_trainable())
}

fn module(name: &'static str, build: impl Build) -> Subject {
    Subject::new(name, Group::Module, cases(build.clone()), move |x, case| {
        let module = build(&init(x[0].dtype()), x[0].shape()[1], case.choices[0].into());
        forward_with(&*module, x[0], &x[1..])
    })
}

fn block(name: &'static str, build: fn(&Init, usize) -> Box<dyn Connection>) -> Subject {
    let cases = move |draw: &mut Draw| {
        let (rows, channels) = (1 + draw.below(3), 1 + draw.below(3));
        let block = residual(build, channels, DType::F64);
        let mut shapes = vec![vec![rows, channels]];
        shapes.extend(weights(&block).map(|p| p.value().shape().to_vec()));
        let operands = draw.operands(shapes, &Looks::from(Values::Interior).dense());
        draw.case(operands)
    };
    Subject::new(name, Group::Module, Drawn::new(cases), move |x: &[Var<'_>], _| {
        forward_with(&residual(build, x[0].shape()[1], x[0].dtype()), x[0], &x[1..])
    })
}

fn residual(
    build: fn(&Init, usize) -> Box<dyn Connection>,
    channels: usize,
    dtype: DType,
) -> Residual<Box<dyn Connection>, Linear> {
    let branch = Linear::new(&init(dtype).enter("branch"), channels, channels, Activation::Tanh);
    Residual { connection: build(&init(dtype).enter("connection"), channels), branch }
}

/// A network with one block of this kind, two streams and three steps of Sinkhorn–Knopp.
fn network(variant: Variant) -> Subject {
    module(variant.name(), move |init, channels, _| {
        let shape = MlpConfig { inputs: channels, width: 3, outputs: 2, depth: 3, ..MlpConfig::default() };
        let config = MlpConfig { activation: Activation::Tanh, ..shape };
        let sinkhorn = Sinkhorn { stop: Stop::Steps(3), ..Sinkhorn::default() };
        let settings = VariantConfig { streams: 2, sinkhorn, ..VariantConfig::default() };
        Box::new(Mlp::of_variant(init, config, variant, &settings).expect("two streams suit every variant"))
    })
}

/// Every module, the simplest connections as a block, and every connection in a network.
pub fn modules() -> Vec<Subject> {
    let mut all = vec![
        module("Linear", |init, channels, choice| {
            // Where relu is flat for every row nothing can be seen of the weights; it is in the table of operations.
            let curved = [&Activation::ALL[..1], &Activation::ALL[2..]].concat();
            Box::new(Linear::new(init, channels, 1 + choice % 4, curved[choice / 4 % 9]))
        }),
        module("Linear (no bias)", |init, channels, choice| {
            Box::new(Linear::new(init, channels, 1 + choice % 4, Activation::Tanh).without_bias())
        }),
        module("LayerNorm", |init, channels, _| Box::new(LayerNorm::new(init, channels))),
        module("RmsNorm", |init, channels, _| Box::new(RmsNorm::new(init, channels))),
        module("BatchNorm1d", |init, channels, _| Box::new(BatchNorm1d::new(init, channels))),
        module("Dropout", |init, channels, _| {
            let tail = Linear::new(&init.enter(1), channels, 2, Activation::Tanh);
            Box::new(Sequential::new(vec![Box::new(Dropout::new(0.3)), Box::new(tail)]))
        }),
        module("Activation", |init, channels, choice| {
            // Scaled, so that not all of what relu gets is negative.
            let norm = LayerNorm::new(init, channels);
            Box::new(Sequential::new(vec![Box::new(norm), Box::new(Activation::ALL[choice % 10])]))
        }),
        module("Sequential", |init, channels, _| {
            let linear = |i, inputs, outputs| Linear::new(&init.enter(i), inputs, outputs, Activation::Silu);
            let norm = LayerNorm::new(&init.enter(1), 3);
            Box::new(Sequential::new(vec![
                Box::new(linear(0, channels, 3)),
                Box::new(norm),
                Box::new(linear(2, 3, 2)),
            ]))
        }),
        block("Residual<Plain>", |_, _| Box::new(Plain)),
        block("Residual<Identity>", |_, _| Box::new(Identity)),
        block("Residual<Scaled>", |_, _| Box::new(Scaled::new(0.7))),
        block("Residual<Gated>", |init, channels| Box::new(Gated::new(init, channels))),
        block("Residual<Interpolated>", |init, _| Box::new(Interpolated::new(init))),
    ];
    all.extend(Variant::ALL.into_iter().map(network));
    all
}
