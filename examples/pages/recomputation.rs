//! `docs/recomputation.md`: what is kept for a backward pass, what comes back, and what is held meanwhile.

use std::cell::Cell;
use std::fmt::Write as _;

use limpid::autograd::plan::{Every, Front, Moment, Plan, Policy, Select, Step};
use limpid::autograd::{Cotangents, Error, Needs, Op, Pullback, Pushforward, format_bytes};
use limpid::nn::Activation;
use limpid::report::{bytes_and_operations, memory_over_time};
use limpid::tensor::{Inferred, Map, Meta};
use limpid::{DType, Tape, Tensor, Var, tensor};

// The network and the plans of the example `recompute`, as it has them by default.
#[path = "../recompute/network.rs"]
mod network;
#[path = "../recompute/policies.rs"]
mod policies;

use network::{Network, Sizes, Text};

use crate::{Outcome, Page};

pub fn page() -> Outcome<Page> {
    let small = small()?;
    let (plans, front) = plans()?;
    let drawn = ["everything", "connections", "blocks-root", "nothing"];
    let drawn: Vec<(&str, &Plan)> =
        plans.iter().map(|plan| (plan.policy(), plan)).filter(|(name, _)| drawn.contains(name)).collect();
    let figure = memory_over_time(&drawn)
        .subtitle("60 mHC blocks, forward and backward, under four plans. Each line is as long as its plan takes steps.");
    let of_front = bytes_and_operations(&front)
        .subtitle("60 mHC blocks. The best plans that were found, and a bound that no plan is below.");
    Ok(Page {
        file: "recomputation.md",
        printed: vec![
            ("plan", small.to_string()),
            ("steps", steps(&small)?),
            ("plans", table(&plans)?),
            ("formula", formula()?),
            ("budget", budget(&front)?),
            ("drift", drift()?),
        ],
        figures: vec![
            ("memory_over_the_tape.svg", figure.to_svg()),
            ("bytes_and_operations.svg", of_front.to_svg()),
        ],
    })
}

/// The program and the policy that the page begins with.
fn small() -> Outcome<Plan> {
    let dry = Tape::dry();
    let x = dry.variable(&Tensor::ones([256], DType::F32));
    let loss = (((x + 1.0).sin().exp().tanh()) * 3.0).sum(&[]);
    Ok(dry.plan(loss, &Policy::recomputing("keep the sine").save(Select::op("sin")))?)
}

/// Every step of a plan and what is held after it, the backward pass right of the forward pass.
fn steps(plan: &Plan) -> Outcome<String> {
    let line = |moment: &Moment| {
        let what = match moment.step {
            Step::Compute(_) => "compute",
            Step::Recompute(_) => "recompute",
            Step::Rule(_) => "rule of",
            Step::Drop(_) => "drop",
        };
        let node = moment.step.node();
        let held = format_bytes(moment.held);
        format!("{what:<10}{:<12}{held:>9}", format!("%{node} {}", plan.site(node).op))
    };
    let (forward, backward) = plan.moments().split_at(plan.backward_begins());
    let mut text = String::new();
    let heading = |pass: &str| format!("{pass:<22}{:>9}", "held");
    writeln!(text, "{}     {}", heading("forward"), heading("backward"))?;
    for i in 0..forward.len().max(backward.len()) {
        let [left, right] = [forward, backward].map(|pass| pass.get(i).map_or(String::new(), line));
        writeln!(text, "{}", format!("{left:<31}     {right}").trim_end())?;
    }
    Ok(text)
}

/// The plans of the example, and the best there are of its network.
fn plans() -> Outcome<(Vec<Plan>, Front)> {
    let (dtype, activation) = (DType::F32, Activation::Silu);
    let sizes = Sizes { depth: 60, streams: 4, width: 64, tokens: 256, dtype, activation };
    let (network, text) = (Network::new(&sizes), Text::random(sizes.tokens)?);
    let tape = Tape::dry();
    let loss = network.loss(&tape, &text);
    Ok((policies::plans(&tape, loss, &policies::policies(Every::Balanced))?, tape.front(loss)?))
}

/// The peak of the policy `connections` by mHC's formula and as planned, in C elements per token.
fn formula() -> Outcome<String> {
    let (streams, width, tokens) = (4, 256, 128);
    let (dtype, activation) = (DType::F32, Activation::Tanh);
    let (n, c) = (streams as f64, width as f64);
    let mut columns = Vec::new();
    for depth in [24, 60] {
        let sizes = Sizes { depth, streams, width, tokens, dtype, activation };
        let (network, text) = (Network::new(&sizes), Text::random(tokens)?);
        let tape = Tape::dry();
        let loss = network.loss(&tape, &text);
        let mut column = Vec::new();
        for k in 1..=12 {
            let held = |blocks: usize, run: usize| {
                let coefficients = 2.0 * (n * n + 2.0 * n) * blocks as f64 / c;
                let run = n * (run - 1) as f64 + 2.0 * run as f64;
                n * blocks.div_ceil(k) as f64 + run + blocks as f64 + coefficients + n
            };
            let expected = match depth % k {
                0 => held(depth, k),
                rest => held(depth, rest).max(held(depth - rest, k)),
            };
            let plan = tape.plan(loss, &Policy::connections(k))?;
            let planned = plan.totals().peak_activations as f64 / (width * tokens * dtype.size()) as f64;
            column.push((expected, planned));
        }
        columns.push((depth, column));
    }
    let mut text = String::new();
    writeln!(text, "{:>6}{:>24}{:>27}", "", "L = 24", "L = 60")?;
    writeln!(text, "{:>6}{:>12}{:>12}{:>15}{:>12}", "k", "formula", "planned", "formula", "planned")?;
    let least = |column: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        column.iter().map(of).fold(f64::INFINITY, f64::min)
    };
    for k in 1..=12 {
        let mut line = format!("{k:>6}");
        for (_, column) in &columns {
            for (i, of) in [(0, (|at| at.0) as fn(&(f64, f64)) -> f64), (1, |at| at.1)] {
                let value = of(&column[k - 1]);
                let mark = if value == least(column, of) { '*' } else { ' ' };
                line += &format!("{:>1$}{mark}", format!("{value:.1} C"), if i == 0 { 12 } else { 11 });
            }
            line += "  ";
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(text)
}

/// The best plans within some budgets.
fn budget(front: &Front) -> Outcome<String> {
    let mut text = String::new();
    writeln!(text, "{:<18}{:>10}{:>12}{:>18}", "budget", "peak", "again", "no plan below")?;
    for mebibytes in [7, 8, 10, 12, 16, 24, 32] {
        let within = front.points().iter().rfind(|point| point.peak <= mebibytes << 20);
        let point = within.ok_or("no plan is within the budget")?;
        let percent = |flops: u64| format!("{:.1} %", 100.0 * flops as f64 / front.flops() as f64);
        writeln!(
            text,
            "{:<18}{:>10}{:>12}{:>18}",
            format!("{mebibytes} MiB"),
            format_bytes(point.peak),
            percent(point.extra_flops),
            percent(point.bound)
        )?;
    }
    Ok(text)
}

fn table(plans: &[Plan]) -> Outcome<String> {
    let mut text = String::new();
    writeln!(
        text,
        "{:<20}{:>4}{:>12}{:>12}{:>12}{:>10}",
        "policy", "k", "held", "peak", "% of peak", "again"
    )?;
    let all = plans[0].totals().peak as f64;
    for plan in plans {
        let totals = plan.totals();
        writeln!(
            text,
            "{:<20}{:>4}{:>12}{:>12}{:>12.1}{:>8.1} %",
            plan.policy(),
            policies::spacing(plan).map_or("–".into(), |k| k.to_string()),
            format_bytes(totals.held),
            format_bytes(totals.peak),
            100.0 * totals.peak as f64 / all,
            100.0 * totals.extra_flops as f64 / totals.flops as f64,
        )?;
    }
    Ok(text)
}

/// `y = x + c`, and c grows each time it is computed: a random draw without a key would be such an operation.
#[derive(Debug)]
struct Unsteady {
    times: Cell<u32>,
}

impl Op for Unsteady {
    fn name(&self) -> &'static str {
        "unsteady"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> tensor::Result<Tensor> {
        self.times.set(self.times.get() + 1);
        Tensor::map(Map::Affine { mul: 1.0, add: self.times.get().into() }, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g())
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.dx(0)
    }
}

fn program(x: Var<'_>) -> Var<'_> {
    x.tape().record(Unsteady { times: Cell::new(0) }, &[x]).sin().sum(&[])
}

/// What a run says when such an operation is computed again, without the line of the source.
fn drift() -> Outcome<String> {
    let ones = Tensor::ones([5000], DType::F32);
    let dry = Tape::dry();
    let plan = dry.plan(program(dry.variable(&ones)), &Policy::nothing())?;
    let tape = Tape::new().with_plan(&plan);
    let message = match tape.backward(program(tape.variable(&ones))) {
        Ok(_) => return Err("an operation that is never the same was not noticed".into()),
        Err(Error::Drift { site, what }) => {
            format!("{}: computed again, it is not what was dropped:\n{what}", site.op)
        }
        Err(other) => return Err(other.into()),
    };
    Ok(message)
}
