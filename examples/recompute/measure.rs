//! What does a run under each plan take, and are its gradients the same bits?

use std::time::Instant;

use limpid::autograd::Profile;
use limpid::autograd::plan::{Plan, Receipt, Verify};
use limpid::{Parameters, Tape};

use crate::network::{Network, Text};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What was found of one plan.
pub struct Measured {
    /// The time of a forward and a backward pass, as a ratio to the first plan's: the median over the rounds.
    pub time: f64,
    /// The same with every value that comes back compared by hash.
    pub hashed: f64,
    /// The loss or the gradient that first had other bits than under the first plan, in any of the runs.
    pub differs: Option<String>,
    /// What a run took otherwise than planned, in any of the runs.
    pub unplanned: Vec<String>,
    /// Of the run with hashes.
    pub receipt: Receipt,
}

/// All of them, and how many seconds the first takes.
pub struct Measurement {
    pub rows: Vec<Measured>,
    pub seconds: f64,
}

/// One forward and backward pass.
struct Run {
    seconds: f64,
    /// The loss and every gradient.
    bits: Vec<(String, Vec<u64>)>,
    receipt: Receipt,
}

/// Runs every plan in turn, without hashes and with, as many rounds as asked for after one that is not timed: what slows
/// the machine down for a while slows all of them.
pub fn measure(network: &Network, text: &Text, plans: &[Plan], rounds: usize) -> Outcome<Measurement> {
    let ways = || plans.iter().flat_map(|plan| [(plan, Verify::Off), (plan, Verify::Hash)]);
    let unprofiled = Profile::of_steps(0..0);
    let run = |plan: &Plan, how| run(network, text, plan, how, &unprofiled, 0);
    let first: Vec<Run> = ways().map(|(plan, how)| run(plan, how)).collect::<Outcome<_>>()?;
    let reference = &first[0].bits;
    let mut rows: Vec<Measured> = (plans.iter().zip(first.chunks(2)))
        .map(|(plan, runs)| {
            let receipt = runs[1].receipt.clone();
            let mut row = Measured { time: 0.0, hashed: 0.0, differs: None, unplanned: Vec::new(), receipt };
            runs.iter().for_each(|run| judge(&mut row, run, reference, plan));
            row
        })
        .collect();
    // The times of every way, round by round.
    let mut times = vec![Vec::with_capacity(rounds); first.len()];
    for _ in 0..rounds {
        for (way, (plan, how)) in ways().enumerate() {
            let run = run(plan, how)?;
            judge(&mut rows[way / 2], &run, reference, plan);
            times[way].push(run.seconds);
        }
    }
    let to_first =
        |way: usize| median(times[way].iter().zip(&times[0]).map(|(time, first)| time / first).collect());
    for (i, row) in rows.iter_mut().enumerate() {
        (row.time, row.hashed) = (to_first(2 * i), to_first(2 * i + 1));
    }
    Ok(Measurement { rows, seconds: median(times[0].clone()) })
}

/// Of each plan, where the time of three passes goes.
pub fn profiles(network: &Network, text: &Text, plans: &[Plan]) -> Outcome<Vec<Profile>> {
    let profiled = |plan| {
        let profile = Profile::new();
        for pass in 0..3 {
            run(network, text, plan, Verify::Hash, &profile, pass)?;
        }
        Ok(profile)
    };
    plans.iter().map(profiled).collect()
}

fn run(
    network: &Network,
    text: &Text,
    plan: &Plan,
    how: Verify,
    profile: &Profile,
    step: u64,
) -> Outcome<Run> {
    let tape = Tape::new().with_plan(plan).with_verification(how).with_profile(profile);
    let step = profile.step(step);
    let begun = Instant::now();
    let loss = network.loss(&tape, text);
    let gradients = tape.backward(loss)?;
    let seconds = begun.elapsed().as_secs_f64();
    drop(step);
    let exact = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    let mut bits = vec![("the loss".to_string(), exact(loss.value()?.to_f64_vec()?))];
    for parameter in network.parameters() {
        let gradient = gradients.of_parameter(parameter.id());
        let gradient = gradient.ok_or_else(|| format!("no gradient reached {}", parameter.path()))?;
        bits.push((format!("the gradient of {}", parameter.path()), exact(gradient.to_f64_vec()?)));
    }
    let receipt = tape.receipt().ok_or("the backward pass did not follow its plan")?;
    Ok(Run { seconds, bits, receipt })
}

/// Keeps the first that is wrong.
fn judge(row: &mut Measured, run: &Run, reference: &[(String, Vec<u64>)], plan: &Plan) {
    if row.differs.is_none() {
        let differing = run.bits.iter().zip(reference).find(|(here, there)| here != there);
        row.differs = differing.map(|((name, _), _)| name.clone());
    }
    if row.unplanned.is_empty() {
        row.unplanned = run.receipt.differences(plan);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] }
}
