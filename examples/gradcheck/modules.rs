//! Every module: the input and the weights it is tried with.

use limpid::autograd::check::case::draw::Drawn;
use limpid::autograd::check::case::{Case, Draw, Looks, Values};
use limpid::nn::residual::{
    Connection, Delta, DropPath, DynamicHyperConnection, FusedResidual, Gated, HyperConnection, Identity,
    IdentityHc, Interpolated, LayerScale, Mhc, MhcLite, Plain, PostNorm, ReZero, Residual, Scaled, Start,
    Variant, VariantConfig,
};
use limpid::nn::{
    Activation, BatchNorm1d, Dropout, Init, LayerNorm, Linear, Mlp, MlpConfig, Module, Parameter, RmsNorm,
    Sequential, forward_with,
};
use limpid::tensor::Stop;
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
    .finite_at_extremes()
}

/// What joins a branch to a stream of so many channels.
type Join = fn(&Init, usize) -> Box<dyn Connection>;

/// How many streams a block with streams has.
const STREAMS: usize = 2;

/// A block on a stream `[rows, channels]`, or on several `[rows, streams, channels]`, with its branch's weights and the
/// connection's own.
fn block(name: &'static str, streams: bool, join: Join) -> Subject {
    // Where many weights meet in one sigmoid, smaller ones, or it is flat.
    let values = if streams { Values::Normal(0.4) } else { Values::Interior };
    let cases = move |draw: &mut Draw| {
        // Of three rows DropPath does not drop all. Streams make up for rows.
        let rows = if streams { 1 + draw.below(2) } else { 3 + draw.below(2) };
        let channels = if streams { 3 } else { 3 + draw.below(2) };
        let block = residual(join, channels, DType::F64);
        let mut shapes = vec![if streams { vec![rows, STREAMS, channels] } else { vec![rows, channels] }];
        shapes.extend(weights(&block).map(|p| p.value().shape().to_vec()));
        let operands = draw.operands(shapes, &Looks::from(values).dense());
        draw.case(operands)
    };
    Subject::new(name, Group::Module, Drawn::new(cases), move |x: &[Var<'_>], _| {
        let channels = *x[0].shape().last().expect("a stream has channels");
        forward_with(&residual(join, channels, x[0].dtype()), x[0], &x[1..])
    })
    .finite_at_extremes()
}

fn residual(join: Join, channels: usize, dtype: DType) -> Residual<Box<dyn Connection>, Linear> {
    let branch = Linear::new(&init(dtype).enter("branch"), channels, channels, Activation::Tanh);
    Residual { connection: join(&init(dtype).enter("connection"), channels), branch }
}

/// A network with two blocks of this kind.
fn network(name: &'static str, variant: Variant) -> Subject {
    module(name, move |init, channels, _| {
        let shape = MlpConfig { inputs: channels, width: 3, outputs: 2, depth: 4, ..MlpConfig::default() };
        let config = MlpConfig { activation: Activation::Gelu, ..shape };
        let model = Mlp::of_variant(init, config, variant, &VariantConfig::default());
        Box::new(model.expect("one stream wants no settings"))
    })
}

/// Every module, every connection that joins one branch as a block, and three of them in a network. (AttnRes, whose state
/// grows, and the networks with streams are checked in the tests of the connections.)
pub fn modules() -> Vec<Subject> {
    vec![
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
        // Its variance overflows for huge inputs: the value is 0 then, the derivative none.
        module("BatchNorm1d", |init, channels, _| Box::new(BatchNorm1d::new(init, channels))).smooth_only(),
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
        block("Residual<Plain>", false, |_, _| Box::new(Plain)),
        block("Residual<Identity>", false, |_, _| Box::new(Identity)),
        module("FusedResidual", |init, channels, _| {
            let layer = |i, activation| Linear::new(&init.enter(i), channels, channels, activation);
            Box::new(FusedResidual {
                branch: layer(0, Activation::Tanh),
                last: layer(1, Activation::Identity),
            })
        }),
        block("Residual<Scaled>", false, |_, _| Box::new(Scaled::new(0.7))),
        block("Residual<ReZero>", false, |init, _| Box::new(ReZero::new(init))),
        block("Residual<LayerScale>", false, |init, channels| Box::new(LayerScale::new(init, channels, 4))),
        block("Residual<DropPath>", false, |_, _| Box::new(DropPath::new(0.2))),
        block("Residual<Gated>", false, |init, channels| Box::new(Gated::new(init, channels))),
        block("Residual<Interpolated>", false, |init, _| Box::new(Interpolated::new(init))),
        block("Residual<PostNorm>", false, |init, channels| Box::new(PostNorm::new(init, channels))),
        block("Residual<Delta>", false, |init, channels| Box::new(Delta::new(init, channels))),
        block("Residual<HC>", true, |init, _| Box::new(HyperConnection::new(init, STREAMS, 0))),
        block("Residual<dynamic HC>", true, |init, channels| {
            Box::new(DynamicHyperConnection::new(init, channels, STREAMS, 0))
        }),
        block("Residual<IdentityHc>", true, |init, channels| {
            Box::new(IdentityHc::new(init, channels, STREAMS, 0, Start::default()))
        }),
        block("Residual<MhcLite>", true, |init, channels| {
            Box::new(MhcLite::new(init, channels, STREAMS, 0, Start::default()))
        }),
        block("Residual<Mhc>", true, |init, channels| {
            let mut mhc = Mhc::new(init, channels, STREAMS, 0, Start::default());
            mhc.sinkhorn.stop = Stop::Steps(3);
            Box::new(mhc)
        }),
        network("Mlp (plain)", Variant::Plain),
        network("Mlp (residual)", Variant::Residual),
        network("Mlp (gated)", Variant::Gated),
    ]
}
