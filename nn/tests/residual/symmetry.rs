//! Streams that begin as copies: which gradients vanish at first, and what ends it.

use limpid_autograd::Tape;
use limpid_nn::residual::{
    Expand, GateStart, HyperConnection, Mhc, MixStart, Normed, Placement, Projection, Reduce, Residual, Start,
};
use limpid_nn::{Activation, Init, Initializer, Linear, Module, Parameter, Parameters};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{init, normal, values};

const CHANNELS: usize = 8;
const STREAMS: usize = 4;
const LAYERS: usize = 4;

type Block = Residual<Mhc, Normed<Linear>>;

struct Network {
    enter: Expand,
    blocks: Vec<Block>,
}

/// What tells streams apart from the start on, if anything does.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Breaker {
    Nothing,
    CycledGates,
    /// Half of it each.
    CycledReads,
    CycledWrites,
    RandomPhi,
    ScaledPerStream,
    ScaledPerChannel,
}

fn network(breaker: Breaker, eps: f64) -> Network {
    let start = Start {
        gates: if breaker == Breaker::CycledGates { GateStart::Cycled } else { GateStart::Equal },
        phi: if breaker == Breaker::RandomPhi {
            Initializer::Normal { std: 0.5 }
        } else {
            Initializer::ZEROS
        },
        mix: MixStart::IdentityLogits,
        alpha: 0.5,
    };
    let enter = match breaker {
        Breaker::ScaledPerStream => Expand::scaled_per_stream(&init().enter("enter"), STREAMS, 0.3),
        Breaker::ScaledPerChannel => {
            Expand::scaled_per_channel(&init().enter("enter"), STREAMS, CHANNELS, 0.3)
        }
        _ => Expand::copies(STREAMS),
    };
    let block = |layer: usize| {
        let init: Init = init().enter(layer);
        let linear = Linear::new(&init, CHANNELS, CHANNELS, Activation::Tanh);
        let mut branch = Normed::new(&init, CHANNELS, Placement::Pre, linear);
        branch.before.as_mut().unwrap().eps = eps;
        let mut connection = Mhc::new(&init, CHANNELS, STREAMS, layer, start);
        let cycled = Mhc::new(&init, CHANNELS, STREAMS, layer, Start { gates: GateStart::Cycled, ..start });
        match breaker {
            Breaker::CycledReads => connection.gates.pre = cycled.gates.pre,
            Breaker::CycledWrites => connection.gates.post = cycled.gates.post,
            _ => {}
        }
        Residual { connection, branch }
    };
    Network { enter, blocks: (0..LAYERS).map(block).collect() }
}

fn norm(gradient: &Tensor) -> f64 {
    gradient.to_vec::<f64>().unwrap().iter().map(|g| g * g).sum::<f64>().sqrt()
}

/// For each layer the norms of the gradients of the mix's logits and of the read's, by the branch's.
fn shares(network: &Network, inputs: &Tensor) -> Vec<(f64, f64)> {
    let tape = Tape::new();
    let x = network.enter.forward(tape.constant(inputs));
    let y = network.blocks.iter().fold(x, |x, block| block.forward(x));
    // A loss that looks at every stream in its own way.
    let looks = normal(&y.shape()[..], 1.0, Key::new(9));
    let gradients = tape.backward((y.tanh() * tape.constant(&looks)).sum(&[])).unwrap();
    let of = |parameter: &Parameter| norm(gradients.of_parameter(parameter.id()).unwrap());
    let logits = |p: &Projection| of(&p.bias).max(of(&p.phi)).max(of(&p.alpha));
    let share = |block: &Block| {
        let whole = of(&block.branch.branch.weight);
        let Mhc { gates, res, .. } = &block.connection;
        (logits(res) / whole, logits(&gates.pre) / whole)
    };
    network.blocks.iter().map(share).collect()
}

fn inputs() -> Tensor {
    inputs_of(4)
}

fn inputs_of(seed: u64) -> Tensor {
    normal(&[6, CHANNELS], 1.0, Key::new(seed))
}

/// What rounding leaves of 0.
const NOTHING: f64 = 1e-13;
/// What is certainly there.
const SOMETHING: f64 = 1e-6;

#[test]
fn copied_streams_give_neither_mix_nor_read_a_gradient() {
    for seed in 0..10 {
        let shares = shares(&network(Breaker::Nothing, 0.0), &inputs_of(seed));
        for (layer, (mix, read)) in shares.into_iter().enumerate() {
            assert!(mix < NOTHING && read < NOTHING, "seed {seed}, layer {layer}: {mix:e}, {read:e}");
        }
    }
    // With the usual ε the norm does not quite take the size of its operand away.
    let (mix, read) = shares(&network(Breaker::Nothing, 1e-6), &inputs())[0];
    assert!(mix < NOTHING && (1e-9..1e-4).contains(&read), "{mix:e}, {read:e}");
}

/// It is the logits that see nothing: the matrix that they make has a gradient, of which each row is a constant, and a
/// matrix that is learned itself is told what to do.
#[test]
fn the_matrix_itself_has_a_gradient() {
    let block = |layer: usize| {
        let init = init().enter(layer);
        let linear = Linear::new(&init, CHANNELS, CHANNELS, Activation::Tanh);
        let branch = Normed::new(&init, CHANNELS, Placement::Pre, linear);
        Residual { connection: HyperConnection::new(&init, STREAMS, layer), branch }
    };
    let blocks: Vec<_> = (0..LAYERS).map(block).collect();
    let tape = Tape::new();
    let x = Expand::copies(STREAMS).forward(tape.constant(&inputs()));
    let y = blocks.iter().fold(x, |x, block| block.forward(x));
    let looks = normal(&y.shape()[..], 1.0, Key::new(9));
    let gradients = tape.backward((y.tanh() * tape.constant(&looks)).sum(&[])).unwrap();
    let of = |parameter: &Parameter| gradients.of_parameter(parameter.id()).unwrap();
    for (layer, Residual { connection, branch }) in blocks.iter().enumerate() {
        let mix = of(&connection.mix);
        assert!(norm(mix) > 0.1 * norm(of(&branch.branch.weight)), "layer {layer}");
        for row in mix.to_vec::<f64>().unwrap().chunks(STREAMS) {
            let apart = row.iter().map(|g| (g - row[0]).abs()).fold(0.0, f64::max);
            assert!(apart <= 1e-13 * norm(mix), "layer {layer}: {row:?}");
        }
    }
}

#[test]
fn of_cycled_gates_it_is_the_write_that_tells_streams_apart() {
    // Copies are read alike whatever the weights, and written alike unless the weights differ.
    for (layer, (mix, read)) in shares(&network(Breaker::CycledReads, 0.0), &inputs()).into_iter().enumerate()
    {
        assert!(mix < NOTHING && read < NOTHING, "layer {layer}: {mix:e}, {read:e}");
    }
    for (layer, (mix, read)) in
        shares(&network(Breaker::CycledWrites, 0.0), &inputs()).into_iter().enumerate().skip(1)
    {
        assert!(mix > SOMETHING && read > SOMETHING, "layer {layer}: {mix:e}, {read:e}");
    }
}

#[test]
fn gates_that_differ_or_a_random_projection_end_it_from_the_second_layer_on() {
    for breaker in [Breaker::CycledGates, Breaker::RandomPhi] {
        let shares = shares(&network(breaker, 0.0), &inputs());
        let (mix, read) = shares[0];
        assert!(mix < NOTHING && read < NOTHING, "{breaker:?}: {mix:e}, {read:e}");
        for (layer, &(mix, read)) in shares.iter().enumerate().skip(1) {
            assert!(mix > SOMETHING && read > SOMETHING, "{breaker:?}, layer {layer}: {mix:e}, {read:e}");
        }
    }
}

#[test]
fn copies_scaled_per_channel_end_it_everywhere() {
    for (layer, (mix, read)) in
        shares(&network(Breaker::ScaledPerChannel, 0.0), &inputs()).into_iter().enumerate()
    {
        assert!(mix > SOMETHING && read > SOMETHING, "layer {layer}: {mix:e}, {read:e}");
    }
}

#[test]
fn copies_scaled_by_one_number_leave_the_first_read_without_a_gradient() {
    let shares = shares(&network(Breaker::ScaledPerStream, 0.0), &inputs());
    let (mix, read) = shares[0];
    assert!(mix > SOMETHING && read < NOTHING, "{mix:e}, {read:e}");
    for (layer, &(mix, read)) in shares.iter().enumerate().skip(1) {
        assert!(mix > SOMETHING && read > SOMETHING, "layer {layer}: {mix:e}, {read:e}");
    }
}

#[test]
fn without_a_difference_streams_stay_copies_for_ever() {
    // Twenty steps of gradient descent, every parameter learning, with a loss that sees the mean of the streams.
    for (breaker, apart) in [(Breaker::Nothing, false), (Breaker::CycledGates, true)] {
        let mut network = network(breaker, 1e-6);
        let difference = |network: &Network, step: bool| {
            let tape = Tape::new();
            let x = network.enter.forward(tape.constant(&inputs()));
            let y = network.blocks.iter().fold(x, |x, block| block.forward(x));
            let first = y.slice(-2, 0, 1, 1);
            let off = values((y - first).abs().max(&[]))[0] / values(y.abs().max(&[]))[0];
            let target = tape.constant(&normal(&[6, CHANNELS], 1.0, Key::new(5)));
            let error = Reduce::Mean.forward(y) - target;
            (off, step.then(|| tape.backward((error * error).mean(&[])).unwrap()))
        };
        for _ in 0..20 {
            let (_, gradients) = difference(&network, true);
            let gradients = gradients.unwrap();
            for block in &mut network.blocks {
                block.visit_mut(&mut |parameter| {
                    let gradient = gradients.of_parameter(parameter.id()).unwrap().to_vec::<f64>().unwrap();
                    let value = parameter.value().to_vec::<f64>().unwrap();
                    let moved: Vec<f64> = value.iter().zip(gradient).map(|(v, g)| v - 0.1 * g).collect();
                    let shape = parameter.value().shape().to_vec();
                    parameter.set_value(Tensor::from_f64(&moved, &shape[..], DType::F64));
                });
            }
        }
        let (off, _) = difference(&network, false);
        assert_eq!(off > 1e-3, apart, "{breaker:?}: {off:e}");
        assert!(apart || off < 1e-13, "{breaker:?}: {off:e}");
    }
}
