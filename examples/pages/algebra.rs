//! `docs/algebra.md`: what a, b and A are, variant by variant, read off networks as they start.

use std::fmt::Write as _;

use limpid::autograd::{Degree, Grading};
use limpid::nn::residual::{
    Coefficient, Coefficients, Connection, Gated, Placement, Residual, Variant, VariantConfig,
};
use limpid::nn::{Activation, Fan, Init, Initializer, Linear, Module};
use limpid::report::scale::number;
use limpid::report::{Axis, HeatMap, HeatPanel};
use limpid::tensor::rng::Key;
use limpid::{DType, Tape, Tensor, Var};

use crate::stack::Stack;
use crate::{Outcome, Page, normal};

const BLOCKS: usize = 20;
const CHANNELS: usize = 16;
const SAMPLES: usize = 64;

pub fn page() -> Outcome<Page> {
    let (mut coefficients, mut edges, mut shares) = (String::new(), String::new(), Vec::new());
    writeln!(coefficients, "{:<13}{:<20}{:<21}{:<20}norm", "variant", "a", "b", "A")?;
    writeln!(
        edges,
        "{:<13}{:<33}{:>3}{:>4}{:>4}{:>7}{:>10}",
        "variant", "formula", "↷", "⑂", "∿", "fits", "numbers"
    )?;
    for variant in Variant::ALL {
        let stack = stack(variant)?;
        let tape = Tape::new();
        let (states, _) = stack.run(tape.constant(&normal(&[SAMPLES, CHANNELS], 1.0, Key::new(2))?));
        // What the last block sees. (One block that is gone through many times sees it last of all.)
        let state = states[BLOCKS - 1].value()?;
        let block = &stack.blocks[stack.blocks.len() - 1];

        let tape = Tape::new();
        let x = tape.variable(&state);
        let Coefficients { read, write, mix } = block.connection.coefficients(x);
        let connection = &*block.connection;
        let [a, b] = [read, write].map(|c| described(connection, x, c));
        let norm = match stack.placement {
            Placement::None => "–",
            Placement::Pre => "pre",
            Placement::Peri => "peri",
        };
        let name = variant.name();
        writeln!(
            coefficients,
            "{name:<13}{:<20}{:<21}{:<20}{norm}",
            a?,
            b?,
            described_mix(connection, x, mix)?
        )?;

        let tape = Tape::new();
        block.forward(tape.variable(&state));
        let program = tape.program().to_string();
        let [skip, branch, control] = ['↷', '⑂', '∿'].map(|mark| program.matches(mark).count());
        let fits = if variant.is_algebraic() { "yes" } else { "no" };
        let learned = connection.weight_count();
        let formula = variant.formula();
        writeln!(edges, "{name:<13}{formula:<33}{skip:>3}{branch:>4}{control:>4}{fits:>7}{learned:>10}")?;

        shares.extend(by_branches(variant)?);
    }
    let columns: Vec<String> = (0..=BLOCKS).map(|k| k.to_string()).collect();
    let map = HeatMap::new(
        "How many branches a gradient crosses on its way back",
        "branches crossed, of 20",
        "variant",
        Axis::log("part of the gradient"),
    )
    .subtitle(
        "Twenty blocks as they start. Plain leaves one way, through all branches; the others leave a choice.",
    )
    .note("‖cₖ‖/Σ‖cᵢ‖ for the coefficients of the path-length spectrum; what is below 10⁻⁶ is taken as 0.");
    let halves = Variant::ALL.chunks(Variant::ALL.len() / 2).zip(shares.chunks(shares.len() / 2));
    let panel = |(variants, shares): (&[Variant], &[f64])| {
        let rows: Vec<String> = variants.iter().map(|variant| variant.name().to_string()).collect();
        HeatPanel::new("", &rows, &columns, shares.to_vec())
    };
    let svg = halves.map(panel).fold(map, HeatMap::panel).to_svg();
    Ok(Page {
        file: "algebra.md",
        printed: vec![("routes", routes()?), ("coefficients", coefficients), ("edges", edges)],
        figures: vec![("branches_crossed.svg", svg)],
    })
}

/// The three terms of one gradient, at the input of a gated block.
fn routes() -> Outcome<String> {
    let init = Init::new(0).with_dtype(DType::F64);
    let block = Residual {
        connection: Gated::new(&init.enter("gate"), 3),
        branch: Linear::new(&init.enter("branch"), 3, 3, Activation::Tanh),
    };
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [1, 3]));
    let (_, ledger) = tape.backward_with_ledger(block.forward(x).sum(&[]))?;
    let at_x = ledger.fan_in(x).ok_or("a block without a fan-in")?;
    Ok(at_x.routes.iter().map(|(route, part)| format!("{route:<8} {part}\n")).collect())
}

fn stack(variant: Variant) -> Outcome<Stack> {
    let weights = Initializer::KaimingNormal { fan: Fan::In, gain: 1.0 };
    Ok(Stack::new(variant, BLOCKS, CHANNELS, weights, &VariantConfig::default())?)
}

/// The size of each coefficient of the path-length spectrum at the embedding, as parts of their sum.
fn by_branches(variant: Variant) -> Outcome<Vec<f64>> {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[4, CHANNELS], 1.0, Key::new(2))?);
    let (_, y) = stack(variant)?.run(x);
    let looks = tape.constant(&normal(&y.shape()[..], 1.0, Key::new(3))?);
    let spectrum = &tape.spectrum((y * looks).sum(&[]), &[x], Grading::BRANCHES)?[0];
    let norm = |k: usize| spectrum.term(Degree::Exactly(k), Degree::Any).map_or(0.0, |term| term.part.norm);
    let norms: Vec<f64> = (0..=BLOCKS).map(norm).collect();
    let all: f64 = norms.iter().sum();
    Ok(norms.into_iter().map(|norm| if norm < 1e-6 * all { 0.0 } else { norm / all }).collect())
}

/// Where a coefficient's values come from: `x` if from the stream, `p` if they are parameters.
fn source(connection: &dyn Connection, x: Var<'_>, v: Var<'_>) -> Outcome<&'static str> {
    let gradients = x.tape().backward(v.sum(&[]))?;
    let parameters = connection.parameters();
    Ok(match () {
        () if gradients.of(x).is_some() => " x",
        () if parameters.iter().any(|p| gradients.of_parameter(p.id()).is_some()) => " p",
        () => "",
    })
}

/// `0.1`, `0.09…0.15`, `0 or 1.11`.
fn range(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let [first, last] = [low, high].map(two_digits);
    match () {
        () if first == last => first,
        () if values.iter().all(|&v| v == low || v == high) => format!("{first} or {last}"),
        () => format!("{first}…{last}"),
    }
}

fn two_digits(v: f64) -> String {
    let rounded: f64 = format!("{v:.1e}").parse().unwrap_or(v);
    number(rounded)
}

/// The mean over samples, element by element.
fn mean_of_samples(values: &Tensor, elements: usize) -> Outcome<Vec<f64>> {
    let values = values.to_f64_vec()?;
    let samples = (values.len() / elements) as f64;
    Ok((0..elements).map(|i| values.iter().skip(i).step_by(elements).sum::<f64>() / samples).collect())
}

/// a or b.
fn described(connection: &dyn Connection, x: Var<'_>, c: Coefficient<'_>) -> Outcome<String> {
    Ok(match c {
        Coefficient::Constant(c) => number(c),
        Coefficient::Value(v) => {
            let values = v.value()?.to_f64_vec()?;
            let from = source(connection, x, v)?;
            // Of neither the stream nor parameters, and yet not one number: drawn.
            let drawn = from.is_empty() && values.iter().any(|&v| v != values[0]);
            format!("{}{}", range(&values), if drawn { " r" } else { from })
        }
        Coefficient::Streams(v) => {
            let streams = v.shape()[v.shape().len() - 1];
            let means = mean_of_samples(&v.value()?, streams)?;
            let short = |v: &f64| format!("{v:.2}").trim_end_matches('0').trim_end_matches('.').to_string();
            let names: Vec<String> = means.iter().map(short).collect();
            let list = match names.iter().all(|name| *name == names[0]) {
                true if streams > 2 => format!("{streams} × {}", names[0]),
                _ => format!("[{}]", names.join(" ").replace("0.", ".")),
            };
            format!("{list}{}", source(connection, x, v)?)
        }
    })
}

/// A: if it is a matrix, what is on its diagonal and what is off it.
fn described_mix(connection: &dyn Connection, x: Var<'_>, mix: Coefficient<'_>) -> Outcome<String> {
    let Coefficient::Streams(v) = mix else { return described(connection, x, mix) };
    let streams = v.shape()[v.shape().len() - 1];
    let means = mean_of_samples(&v.value()?, streams * streams)?;
    let part = |on: bool| {
        let of = means.iter().enumerate().filter(|(i, _)| (i / streams == i % streams) == on);
        let values: Vec<f64> = of.map(|(_, &v)| v).collect();
        number(values.iter().sum::<f64>() / values.len() as f64)
    };
    Ok(format!("{} \\ {}{}", part(true), part(false), source(connection, x, v)?))
}
