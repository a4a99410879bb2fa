//! `docs/sinkhorn.md`: how far twenty steps go, and whose gradient is which.

use std::fmt::Write as _;

use limpid::autograd::check::{Check, Tier};
use limpid::autograd::ops::sinkhorn::{Gradient, Sinkhorn};
use limpid::report::{Axis, LineChart, Panel, Series};
use limpid::tensor::Stop;
use limpid::tensor::rng::Key;
use limpid::{Tape, Tensor};

use crate::{Outcome, Page, median_and_p99, normal};

const N: usize = 4;
const STDS: [f64; 5] = [0.5, 1.0, 2.0, 3.0, 5.0];
/// Below, there is nothing but rounding.
const ROUNDING: f64 = 1e-13;

pub fn page() -> Outcome<Page> {
    Ok(Page {
        file: "sinkhorn.md",
        printed: vec![
            ("columns", columns()?),
            ("gradients", gradients()?),
            ("verdicts", verdicts()?),
            ("sum", sum()?),
        ],
        figures: vec![("sinkhorn_steps.svg", figure()?)],
    })
}

fn logits(matrices: usize, std: f64) -> Outcome<Tensor> {
    Ok(normal(&[matrices, N, N], std, Key::new(7))?)
}

fn steps(steps: usize) -> Sinkhorn {
    Sinkhorn { stop: Stop::Steps(steps), ..Sinkhorn::default() }
}

/// The largest |column sum − 1| of each matrix, median and 99th percentile.
fn column_error(logits: &Tensor, how: &Sinkhorn) -> Outcome<(f64, f64)> {
    let tape = Tape::inference();
    let sums = tape.constant(logits).sinkhorn(how).sum(&[-2]);
    let off = (sums - 1.0).abs().max(&[-1]).value()?.to_f64_vec()?;
    Ok(median_and_p99(off))
}

/// One digit of it, unless it is rounding.
fn shown(value: f64, rounding: f64) -> String {
    if value < rounding { format!("< {rounding:.0e}") } else { format!("{value:.0e}") }
}

fn columns() -> Outcome<String> {
    let mut text = String::new();
    writeln!(text, "{:<14}{:>18}{:>18}{:>18}", "std of logits", "5 steps", "20 steps", "100 steps")?;
    for std in STDS {
        write!(text, "{std:<14}")?;
        for t in [5, 20, 100] {
            let (median, p99) = column_error(&logits(20_000, std)?, &steps(t))?;
            write!(text, "{:>18}", format!("{} / {}", shown(median, ROUNDING), shown(p99, ROUNDING)))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn figure() -> Outcome<String> {
    let mut panels = [Panel::new("median"), Panel::new("99th percentile")];
    for (i, std) in STDS.into_iter().enumerate() {
        let logits = logits(2000, std)?;
        let mut lines = [Vec::new(), Vec::new()];
        for t in (1..=10).chain((12..=40).step_by(2)).chain((45..=100).step_by(5)) {
            let (median, p99) = column_error(&logits, &steps(t))?;
            for (line, error) in lines.iter_mut().zip([median, p99]) {
                // A line ends where it reaches rounding.
                if line.last().is_none_or(|&(_, last)| last > ROUNDING) {
                    line.push((t as f64, error.max(ROUNDING)));
                }
            }
        }
        let place = i as f64 / (STDS.len() - 1) as f64;
        let named = |line| Series::new(&format!("{std}"), line).sequential(place);
        let [median, p99] = lines.map(named);
        let [left, right] = panels;
        panels = [left.series(median), right.series(p99)];
    }
    let chart = LineChart::new(
        "Twenty steps are enough for flat logits, and not for sharp ones",
        Axis::linear("steps"),
        Axis::log("largest |column sum − 1|"),
    )
    .subtitle("2000 random 4×4 matrices each, by the standard deviation of their logits. mHC takes 20 steps.")
    .key("std of logits")
    .note("Lines end where nothing but rounding is left.");
    Ok(panels.into_iter().fold(chart, LineChart::panel).to_svg())
}

/// The gradient of ⟨P, g⟩ by the logits, matrix after matrix.
fn pulled(logits: &Tensor, g: &Tensor, how: &Sinkhorn) -> Outcome<Vec<f64>> {
    let tape = Tape::new();
    let x = tape.variable(logits);
    let gradients = tape.backward((x.sinkhorn(how) * tape.constant(g)).sum(&[]))?;
    Ok(gradients.of(x).ok_or("no gradient")?.to_f64_vec()?)
}

fn gradients() -> Outcome<String> {
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut text = String::new();
    writeln!(text, "{:<16}{:>20}{:>20}", "std of logits", "median", "99th percentile")?;
    for std in STDS {
        let (logits, g) = (logits(2000, std)?, normal(&[2000, N, N], 1.0, Key::new(13))?);
        let unrolled = pulled(&logits, &g, &steps(20))?;
        let implicit = pulled(&logits, &g, &Sinkhorn { gradient: Gradient::Implicit, ..steps(20) })?;
        let off = |(a, b): (&[f64], &[f64])| {
            norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>()) / norm(b)
        };
        let (median, p99) =
            median_and_p99(implicit.chunks(N * N).zip(unrolled.chunks(N * N)).map(off).collect());
        writeln!(text, "{std:<16}{:>20}{:>20}", shown(median, 1e-12), shown(p99, 1e-12))?;
    }
    Ok(text)
}

/// What the gradient checker says of each, where 20 steps have not converged.
fn verdicts() -> Outcome<String> {
    let logits = normal(&[N, N], 3.0, Key::new(2))?;
    let mut text = String::new();
    writeln!(text, "{:<14}{:<12}{:<8}{:>8}{:>20}", "steps", "gradient", "check", "slope", "column error")?;
    for (name, stop) in [("20", Stop::Steps(20)), ("to the limit", Stop::Converged)] {
        for (gradient, by) in [(Gradient::Unrolled, "unrolled"), (Gradient::Implicit, "implicit")] {
            // The limit takes hundreds of steps here, each of which the unrolled form goes back through.
            let how = Sinkhorn { stop, gradient, ..Sinkhorn::default() };
            let report = Check::new()
                .seed(0)
                .second_order(false)
                .run(|x| x[0].sinkhorn(&how), std::slice::from_ref(&logits));
            let verdict = if report.passed() { "PASS" } else { "FAIL" };
            let slope = report.tier(Tier::Taylor).and_then(|tier| tier.measured("slope"));
            let slope = slope.map_or("–".into(), |slope| format!("{slope:.2}"));
            let (off, _) = column_error(&logits.reshape([1, N, N])?, &how)?;
            writeln!(text, "{name:<14}{by:<12}{verdict:<8}{slope:>8}{:>20}", shown(off, ROUNDING))?;
        }
    }
    Ok(text)
}

/// The derivative of the sum of all elements, which is a constant.
fn sum() -> Outcome<String> {
    let logits = logits(1, 1.0)?;
    let ones = Tensor::ones([1, N, N], limpid::DType::F64);
    let largest = pulled(&logits, &ones, &steps(20))?.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    Ok(format!("largest element of the gradient of sum(P): {}\n", shown(largest, ROUNDING)))
}
