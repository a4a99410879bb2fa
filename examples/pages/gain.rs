//! `docs/gain.md`: products of mixing matrices whose gain is 1, and what becomes of the streams.

use std::fmt::Write as _;

use limpid::autograd::Matrix;
use limpid::autograd::ops::sinkhorn::Sinkhorn;
use limpid::nn::residual::{MixStart, Start, Variant, VariantConfig};
use limpid::nn::{Fan, Initializer};
use limpid::report::{Axis, LineChart, Panel, Series};
use limpid::tensor::rng::Key;
use limpid::{Tape, Tensor};

use crate::stack::Stack;
use crate::{Outcome, Page, normal};

const STREAMS: usize = 4;
const LAYERS: usize = 60;
const CHANNELS: usize = 64;

pub fn page() -> Outcome<Page> {
    let kinds = kinds()?;
    let mut layers = String::new();
    writeln!(layers, "{}", heading("matrices"))?;
    for m in [1, 2, 5, 10, 20, 60] {
        writeln!(layers, "{m:<28} {}", row(&kinds[0].products[m - 1]))?;
    }
    let mut all = String::new();
    writeln!(all, "{}", heading("60 matrices"))?;
    for kind in &kinds {
        writeln!(all, "{:<28} {}", kind.name, row(&kind.products[LAYERS - 1]))?;
    }
    Ok(Page {
        file: "gain.md",
        printed: vec![("layers", layers), ("kinds", all), ("networks", networks()?)],
        figures: vec![("gain_and_streams.svg", figure(&kinds))],
    })
}

fn heading(first: &str) -> String {
    format!("{first:<29}{:>8}{:>13}{:>10}{:>10}{:>9}", "row gain", "column gain", "σ₂", "|λ₂|", "cosine")
}

fn row(product: &Product) -> String {
    let Product { rows, columns, differences, kept, cosine } = product;
    format!("{rows:>8.3}{columns:>13.3}{differences:>10.1e}{kept:>10.1e}{cosine:>9.4}")
}

/// What is known of a product of matrices.
struct Product {
    rows: f64,
    columns: f64,
    /// The most that a difference between streams is stretched by: σ₂, if rows and columns sum to 1.
    differences: f64,
    /// What is left of it on the average, when the product is applied again and again: |λ₂|.
    kept: f64,
    /// The mean cosine between two of four random streams behind it.
    cosine: f64,
}

/// Matrices of one kind, and their products: of the first, of the first two, ….
struct Kind {
    name: &'static str,
    products: Vec<Product>,
}

fn kinds() -> Outcome<Vec<Kind>> {
    let drawn = |std| normal(&[LAYERS, STREAMS, STREAMS], std, Key::new(7));
    let identity = identity();
    let around = |diagonal: f64, off: f64| {
        let logit = |i: usize| if identity[i % identity.len()] == 1.0 { diagonal } else { off };
        Tensor::from_vec(
            (0..LAYERS * identity.len()).map(logit).collect::<Vec<f64>>(),
            [LAYERS, STREAMS, STREAMS],
        )
    };
    let perturbed: Vec<f64> =
        drawn(0.2)?.to_f64_vec()?.iter().enumerate().map(|(i, v)| v + identity[i % identity.len()]).collect();
    Ok(vec![
        kind("Sinkhorn, logits of std 1", &sinkhorn(&drawn(1.0)?)?)?,
        kind("Sinkhorn, logits of std 3", &sinkhorn(&drawn(3.0)?)?)?,
        kind("Sinkhorn of 1 and 0", &sinkhorn(&around(1.0, 0.0))?)?,
        kind("Sinkhorn of 0 and −8", &sinkhorn(&around(0.0, -8.0))?)?,
        kind("identity", &identity.repeat(LAYERS))?,
        kind("identity + noise of std 0.2", &perturbed)?,
    ])
}

fn identity() -> Vec<f64> {
    (0..STREAMS * STREAMS).map(|i| if i / STREAMS == i % STREAMS { 1.0 } else { 0.0 }).collect()
}

fn sinkhorn(logits: &Tensor) -> Outcome<Vec<f64>> {
    Ok(Tape::inference().constant(logits).sinkhorn(&Sinkhorn::default()).value()?.to_f64_vec()?)
}

/// `a·b`, where b has as many columns as it takes.
fn times(a: &[f64], b: &[f64]) -> Vec<f64> {
    let n = a.len().isqrt();
    let columns = b.len() / n;
    let element = |k: usize| (0..n).map(|j| a[k / columns * n + j] * b[j * columns + k % columns]).sum();
    (0..n * columns).map(element).collect()
}

fn kind(name: &'static str, matrices: &[f64]) -> Outcome<Kind> {
    // Three directions in which four streams differ, orthonormal. A matrix whose rows sum to 1 keeps the fourth, in which
    // they are alike, and so products of its restrictions to these are restrictions of products: computed so, the
    // difference that is left is not lost in the rounding of what they have in common.
    const APART: [[f64; STREAMS]; 3] =
        [[0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5], [0.5, -0.5, -0.5, 0.5]];
    let restricted = |a: &[f64]| -> Vec<f64> {
        let entry = |u: &[f64; STREAMS], v: &[f64; STREAMS]| -> f64 {
            times(a, v).iter().zip(u).map(|(av, u)| av * u).sum()
        };
        APART.iter().flat_map(|u| APART.iter().map(move |v| entry(u, v))).collect()
    };
    let streams = normal(&[STREAMS, CHANNELS], 1.0, Key::new(8))?.to_f64_vec()?;
    let (mut product, mut apart, mut products) =
        (identity(), vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], Vec::new());
    for a in matrices.chunks(STREAMS * STREAMS) {
        product = times(a, &product);
        apart = times(&restricted(a), &apart);
        let tape = Tape::inference();
        let state = tape.constant(&Tensor::from_vec(times(&product, &streams), [STREAMS, CHANNELS]));
        let whole = Matrix::new(STREAMS, STREAMS, product.clone());
        let between = Matrix::new(3, 3, apart.clone());
        products.push(Product {
            rows: whole.row_gain(),
            columns: whole.column_gain(),
            differences: between.singular_values()[0],
            kept: between.eigenvalue_moduli()[0],
            cosine: tape.stream_cosines(state)?[0].ok_or("a stream that is 0")?,
        });
    }
    Ok(Kind { name, products })
}

/// Networks as they start: what their streams hand on, found from the tape.
fn networks() -> Outcome<String> {
    let mut text = String::new();
    writeln!(text, "{}", heading("24 blocks, A starts as"))?;
    for (name, mix) in [
        ("0 (uniform)", MixStart::Uniform),
        ("1 and 0 (identity logits)", MixStart::IdentityLogits),
        ("0 and −8 (near identity)", MixStart::NearIdentity),
    ] {
        let config = VariantConfig { start: Start { mix, ..Start::default() }, ..VariantConfig::default() };
        let weights = Initializer::KaimingNormal { fan: Fan::In, gain: 1.0 };
        let stack = Stack::new(Variant::Mhc, 24, CHANNELS, weights, &config)?;
        let tape = Tape::new();
        let (states, _) = stack.run(tape.variable(&normal(&[1, CHANNELS], 1.0, Key::new(2))?));
        let map = &tape.stream_map(states[24], states[0], STREAMS)?.samples[0];
        let cosine = tape.stream_cosines(states[24])?[0].ok_or("a stream that is 0")?;
        // Below, there is nothing but rounding.
        let shown = |v: f64| if v < 1e-10 { "< 1e-10".into() } else { format!("{v:.1e}") };
        let (differences, kept) = (shown(map.singular_values()[1]), shown(map.eigenvalue_moduli()[1]));
        let (rows, columns) = (map.row_gain(), map.column_gain());
        writeln!(text, "{name:<28} {rows:>8.3}{columns:>13.3}{differences:>10}{kept:>10}{cosine:>9.4}")?;
    }
    Ok(text)
}

fn figure(kinds: &[Kind]) -> String {
    let panel = |title: &str, caption: &str, of: fn(&Product) -> f64| {
        let series = |kind: &Kind| {
            let points = kind.products.iter().enumerate().map(|(m, product)| ((m + 1) as f64, of(product)));
            Series::new(kind.name, points)
        };
        kinds.iter().map(series).fold(Panel::new(title).caption(caption), Panel::series)
    };
    LineChart::new(
        "Products of mixing matrices: the gain is 1, and the streams are one",
        Axis::linear("matrices"),
        Axis::log("factor"),
    )
    .subtitle("Left, what is usually plotted; right, what is left of the difference between streams.")
    .key("A")
    .panel(panel("row gain", "the most the largest element can grow: five lines lie at 1", |product| {
        product.rows
    }))
    .panel(panel("σ₂", "the most a difference between streams can grow", |product| product.differences))
    .to_svg()
}
