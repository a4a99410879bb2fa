//! `docs/symmetry.md`: streams that begin as copies, and what tells them apart.

use std::fmt::Write as _;

use limpid::nn::residual::{
    Expand, GateStart, Mhc, MixStart, Normed, Placement, Projection, Reduce, Residual, Start,
};
use limpid::nn::{Activation, Init, Initializer, Linear, Module, Parameter, Parameters};
use limpid::report::{Axis, HeatMap, HeatPanel};
use limpid::tensor::rng::Key;
use limpid::{DType, Tape, Tensor};

use crate::{Outcome, Page, normal};

const CHANNELS: usize = 8;
const STREAMS: usize = 4;
const LAYERS: usize = 4;
/// What rounding leaves of 0.
const ROUNDING: f64 = 1e-13;

/// What tells streams apart from the start on, if anything does.
#[derive(Clone, Copy, PartialEq)]
enum Breaker {
    Nothing,
    Epsilon,
    CycledGates,
    RandomPhi,
    ScaledPerStream,
    ScaledPerChannel,
}

impl Breaker {
    const ALL: [Breaker; 6] = [
        Breaker::Nothing,
        Breaker::Epsilon,
        Breaker::CycledGates,
        Breaker::RandomPhi,
        Breaker::ScaledPerStream,
        Breaker::ScaledPerChannel,
    ];

    fn name(self) -> &'static str {
        match self {
            Breaker::Nothing => "nothing",
            Breaker::Epsilon => "ε = 10⁻⁶ in the norm",
            Breaker::CycledGates => "gates cycled by layer",
            Breaker::RandomPhi => "random φ",
            Breaker::ScaledPerStream => "a scale for each copy",
            Breaker::ScaledPerChannel => "a scale per channel",
        }
    }
}

struct Network {
    enter: Expand,
    blocks: Vec<Residual<Mhc, Normed<Linear>>>,
}

fn network(breaker: Breaker, eps: f64) -> Network {
    let init = Init::new(1).with_dtype(DType::F64);
    let start = Start {
        gates: if breaker == Breaker::CycledGates { GateStart::Cycled } else { GateStart::Equal },
        phi: match breaker {
            Breaker::RandomPhi => Initializer::Normal { std: 0.5 },
            _ => Initializer::ZEROS,
        },
        mix: MixStart::IdentityLogits,
        alpha: 0.5,
    };
    let enter = match breaker {
        Breaker::ScaledPerStream => Expand::scaled_per_stream(&init.enter("enter"), STREAMS, 0.3),
        Breaker::ScaledPerChannel => Expand::scaled_per_channel(&init.enter("enter"), STREAMS, CHANNELS, 0.3),
        _ => Expand::copies(STREAMS),
    };
    let block = |layer: usize| {
        let init = init.enter(layer);
        let linear = Linear::new(&init, CHANNELS, CHANNELS, Activation::Tanh);
        let mut branch = Normed::new(&init, CHANNELS, Placement::Pre, linear);
        branch.before.iter_mut().for_each(|norm| norm.eps = eps);
        Residual { connection: Mhc::new(&init, CHANNELS, STREAMS, layer, start), branch }
    };
    Network { enter, blocks: (0..LAYERS).map(block).collect() }
}

fn length(gradient: &Tensor) -> Outcome<f64> {
    Ok(gradient.to_f64_vec()?.iter().map(|g| g * g).sum::<f64>().sqrt())
}

/// For each layer how long the gradients of the mix's logits and of the read's are, relative to that of the branch's
/// weights; 0 where there is nothing but rounding.
fn parts(network: &Network) -> Outcome<[Vec<f64>; 2]> {
    let tape = Tape::new();
    let x = network.enter.forward(tape.constant(&normal(&[6, CHANNELS], 1.0, Key::new(4))?));
    let y = network.blocks.iter().fold(x, |x, block| block.forward(x));
    // A loss that looks at every stream in its own way.
    let looks = normal(&y.shape()[..], 1.0, Key::new(9))?;
    let gradients = tape.backward((y.tanh() * tape.constant(&looks)).sum(&[]))?;
    let of = |parameter: &Parameter| -> Outcome<f64> {
        length(gradients.of_parameter(parameter.id()).ok_or("a parameter that the loss does not reach")?)
    };
    let part = |logits: &Projection, whole: f64| -> Outcome<f64> {
        let part = of(&logits.bias)?.max(of(&logits.phi)?).max(of(&logits.alpha)?) / whole;
        Ok(if part < ROUNDING { 0.0 } else { part })
    };
    let mut parts = [Vec::new(), Vec::new()];
    for block in &network.blocks {
        let whole = of(&block.branch.branch.weight)?;
        parts[0].push(part(&block.connection.res, whole)?);
        parts[1].push(part(&block.connection.gates.pre, whole)?);
    }
    Ok(parts)
}

/// By how much streams differ after twenty steps of gradient descent on a loss that sees their mean.
fn apart_after_training(breaker: Breaker) -> Outcome<f64> {
    let mut network = network(breaker, 1e-6);
    let mut difference = 0.0;
    for step in 0..=20 {
        let tape = Tape::new();
        let x = network.enter.forward(tape.constant(&normal(&[6, CHANNELS], 1.0, Key::new(4))?));
        let y = network.blocks.iter().fold(x, |x, block| block.forward(x));
        let first = y.slice(-2, 0, 1, 1);
        difference = (y - first).abs().max(&[]).item()? / y.abs().max(&[]).item()?;
        if step == 20 {
            break;
        }
        let error = Reduce::Mean.forward(y) - tape.constant(&normal(&[6, CHANNELS], 1.0, Key::new(5))?);
        let gradients = tape.backward((error * error).mean(&[]))?;
        for parameter in network.blocks.iter_mut().flat_map(|block| block.parameters_mut()) {
            let Some(gradient) = gradients.of_parameter(parameter.id()) else { continue };
            let (value, shape) = (parameter.value().to_f64_vec()?, parameter.value().shape().to_vec());
            let moved: Vec<f64> =
                value.iter().zip(gradient.to_f64_vec()?).map(|(v, g)| v - 0.1 * g).collect();
            parameter.set_value(Tensor::from_vec(moved, &shape[..]));
        }
    }
    Ok(difference)
}

pub fn page() -> Outcome<Page> {
    let mut text = String::new();
    let shown = |parts: &[f64]| -> String {
        let cell = |&part: &f64| if part == 0.0 { format!("{:>6}", "0") } else { format!("{part:>6.0e}") };
        parts.iter().map(cell).collect()
    };
    writeln!(
        text,
        "{:<25}{:>24}   {:>24}",
        "what tells streams apart", "mix, layers 1 to 4", "read, layers 1 to 4"
    )?;
    let (mut mixes, mut reads) = (Vec::new(), Vec::new());
    for breaker in Breaker::ALL {
        let eps = if breaker == Breaker::Epsilon { 1e-6 } else { 0.0 };
        let [mix, read] = parts(&network(breaker, eps))?;
        writeln!(text, "{:<25}{}   {}", breaker.name(), shown(&mix), shown(&read))?;
        mixes.extend(mix);
        reads.extend(read);
    }
    let mut training = String::new();
    for breaker in [Breaker::Nothing, Breaker::CycledGates, Breaker::RandomPhi] {
        let apart = apart_after_training(breaker)?;
        let apart = if apart < ROUNDING { "0".into() } else { format!("{apart:.1e}") };
        writeln!(training, "{:<26}{apart}", breaker.name())?;
    }
    let rows: Vec<String> = Breaker::ALL.map(|breaker| breaker.name().to_string()).into();
    let columns: Vec<String> = (1..=LAYERS).map(|layer| layer.to_string()).collect();
    let svg = HeatMap::new(
        "Copies get no gradient by which they could come apart",
        "layer",
        "what tells streams apart",
        Axis::log("‖∂L/∂logits‖ / ‖∂L/∂W‖"),
    )
    .subtitle(
        "Four streams that enter as copies, at the first step, by what is done about it. Empty cells are 0.",
    )
    .panel(HeatPanel::new("logits of the mix A", &rows, &columns, mixes))
    .panel(HeatPanel::new("logits of the read a", &rows, &columns, reads))
    .to_svg();
    Ok(Page {
        file: "symmetry.md",
        printed: vec![("first step", text), ("twenty steps", training)],
        figures: vec![("symmetry.svg", svg)],
    })
}
