//! `docs/one-plus.md`: what the 1 in `1 + ∂F/∂x` does, path by path and block by block.

use std::fmt::Write as _;

use limpid::autograd::{Degree, Grading, Route};
use limpid::nn::residual::{Variant, VariantConfig};
use limpid::nn::{Activation, Fan, Initializer};
use limpid::report::{Axis, LineChart, Panel, Series};
use limpid::tensor::rng::Key;
use limpid::{Tape, Tensor};

use crate::stack::Stack;
use crate::{Outcome, Page, normal};

const BLOCKS: usize = 20;
const CHANNELS: usize = 64;
const SAMPLES: usize = 128;

/// What PyTorch's and this library's linear layers draw by default, and what He's initialisation draws.
const DEFAULT: Initializer = Initializer::LINEAR;
const NAMES: [&str; 2] = ["default", "He"];

fn he() -> Initializer {
    Initializer::KaimingNormal { fan: Fan::In, gain: Activation::Relu.gain() }
}

pub fn page() -> Outcome<Page> {
    let (paths, path_figure) = path_lengths()?;
    let (gains, gain_figure) = gains()?;
    Ok(Page {
        file: "one-plus.md",
        printed: vec![("five blocks", five_blocks()?), ("path lengths", paths), ("gains", gains)],
        figures: vec![("path_lengths.svg", path_figure), ("gain_by_block.svg", gain_figure)],
    })
}

/// C(n, k).
fn choose(n: usize, k: usize) -> f64 {
    (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64)
}

/// Five blocks `x + F(x)` with F' = 0.1: the paths by the number of branches they cross.
fn five_blocks() -> Outcome<String> {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::scalar(1.0f64));
    let y = (0..5).fold(x, |x, _| x.skip() + (x * 0.1).branch());
    let spectrum = &tape.spectrum(y, &[x], Grading::BRANCHES)?[0];
    let mut text = String::new();
    writeln!(text, "branches crossed   paths   each passes   together")?;
    for (k, term) in spectrum.terms.iter().enumerate() {
        let gradient = term.gradient.item()?;
        let paths = choose(5, k);
        writeln!(text, "{k:<19}{paths:<8}{:<14.5}{gradient:.5}", gradient / paths)?;
    }
    let all = spectrum.sum()?[0];
    writeln!(
        text,
        "{:<19}{:<22}{all:.5}",
        "all",
        spectrum.terms.iter().enumerate().map(|(k, _)| choose(5, k)).sum::<f64>()
    )?;
    Ok(text)
}

/// The gradient of a network at its input, coefficient by coefficient, and the branches' gains that say what to expect.
struct Measured {
    /// The signed shares of those that cross 0, 1, … branches.
    shares: Vec<f64>,
    /// At each block, how long what comes back through the branch is, relative to what comes by the skip.
    gains: Vec<f64>,
}

fn measured(weights: Initializer) -> Outcome<Measured> {
    let stack = Stack::new(Variant::Residual, BLOCKS, CHANNELS, weights, &VariantConfig::default())?;
    let tape = Tape::new();
    let x = tape.variable(&normal(&[SAMPLES, CHANNELS], 1.0, Key::new(2))?);
    let (states, y) = stack.run(x);
    let loss = (y * tape.constant(&normal(&[SAMPLES, CHANNELS], 1.0, Key::new(3))?)).sum(&[]);
    let spectrum = &tape.spectrum(loss, &[x], Grading::BRANCHES)?[0];
    let share = |k: usize| spectrum.term(Degree::Exactly(k), Degree::Any).and_then(|term| term.part.share);
    let (_, ledger) = tape.backward_with_ledger(loss)?;
    let gain = |state: &limpid::Var<'_>| {
        let fan_in = ledger.fan_in(*state)?;
        Some(fan_in.by(Route::Branch)?.norm / fan_in.by(Route::Skip)?.norm)
    };
    Ok(Measured {
        shares: (0..=BLOCKS).map(|k| share(k).unwrap_or(0.0)).collect(),
        gains: states[..BLOCKS].iter().map(gain).collect::<Option<_>>().ok_or("a block without a fan-in")?,
    })
}

/// The weights of a binomial distribution: of C(L, k) paths, each worth `p/(1 − p)` of one that crosses a branch less.
fn binomial(p: f64) -> Vec<f64> {
    (0..=BLOCKS).map(|k| choose(BLOCKS, k) * p.powi(k as i32) * (1.0 - p).powi((BLOCKS - k) as i32)).collect()
}

fn mean(shares: &[f64]) -> f64 {
    shares.iter().enumerate().map(|(k, share)| k as f64 * share).sum()
}

fn path_lengths() -> Outcome<(String, String)> {
    let mut text = String::new();
    writeln!(text, "weights   gain g of a branch   branches crossed: measured   20·g²/(1 + g²)")?;
    let mut chart = LineChart::new(
        "Most of the gradient crosses few branches, or half of them",
        Axis::linear("branches crossed, of 20"),
        Axis::linear("share of the gradient"),
    )
    .subtitle("Twenty blocks x + relu(W·x) of width 64 as they start. How many branches: a matter of the branches' gain.");
    for (name, weights) in NAMES.into_iter().zip([DEFAULT, he()]) {
        let Measured { shares, gains } = measured(weights)?;
        let square = gains.iter().map(|g| g * g).sum::<f64>() / gains.len() as f64;
        let expected = binomial(square / (1.0 + square));
        writeln!(text, "{name:<10}{:<21.2}{:<29.1}{:.1}", square.sqrt(), mean(&shares), mean(&expected))?;
        let line = |name: &str, values: Vec<f64>| {
            Series::new(name, values.into_iter().enumerate().map(|(k, v)| (k as f64, v)))
        };
        let panel = Panel::new(&format!("{name} weights"))
            .series(line("measured", shares))
            .series(line("binomial", expected));
        chart = chart.panel(panel);
    }
    Ok((text, chart.note("Binomial: weights C(20, k)·pᵏ·(1 − p)²⁰⁻ᵏ with p = g²/(1 + g²).").to_svg()))
}

/// The norm of the gradient by the state in front of every block and behind the last, divided by that.
fn norms(variant: Variant, weights: Initializer) -> Outcome<Vec<f64>> {
    let stack = Stack::new(variant, BLOCKS, CHANNELS, weights, &VariantConfig::default())?;
    let tape = Tape::new();
    let x = tape.variable(&normal(&[SAMPLES, CHANNELS], 1.0, Key::new(2))?);
    let (states, y) = stack.run(x);
    let loss = (y * tape.constant(&normal(&[SAMPLES, CHANNELS], 1.0, Key::new(3))?)).sum(&[]);
    let (_, ledger) = tape.backward_with_ledger(loss)?;
    let norms: Option<Vec<f64>> = states.iter().map(|state| ledger.norm(state.index())).collect();
    let norms = norms.ok_or("a state that no gradient reaches")?;
    Ok(norms.iter().map(|norm| norm / norms[BLOCKS]).collect())
}

fn gains() -> Outcome<(String, String)> {
    let mut text = String::new();
    writeln!(text, "network    weights   factor a block   after 20 blocks")?;
    let mut chart = LineChart::new(
        "Gains below 1 make gradients vanish, gains above 1 make them grow",
        Axis::linear("block, from the input"),
        Axis::log("gradient norm, last = 1"),
    )
    .subtitle("Read from right to left, as the gradient goes.");
    for (title, variant) in [("plain: x' = h", Variant::Plain), ("residual: x' = x + h", Variant::Residual)] {
        let mut panel = Panel::new(title);
        for (name, weights) in NAMES.into_iter().zip([DEFAULT, he()]) {
            let norms = norms(variant, weights)?;
            let factor = norms[0].powf(1.0 / BLOCKS as f64);
            writeln!(text, "{:<11}{name:<10}{factor:<17.2}{:.1e}", variant.name(), norms[0])?;
            panel =
                panel.series(Series::new(name, norms.into_iter().enumerate().map(|(i, v)| (i as f64, v))));
        }
        chart = chart.panel(panel);
    }
    Ok((text, chart.key("weights").to_svg()))
}
