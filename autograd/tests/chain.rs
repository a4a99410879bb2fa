//! States that a plan brings back one after the other come back in one call, and nothing else is different.

use limpid_autograd::ops::streams::StreamWrite;
use limpid_autograd::plan::{Moment, Plan, Policy, Select, Step};
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Tape, Var};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Inferred, Meta, Result, Tensor};

const BLOCKS: usize = 5;
const TOKENS: usize = 6;
const STREAMS: usize = 2;
const CHANNELS: usize = 7;

/// A write of streams of which nobody says that several can be computed in one call.
#[derive(Debug)]
struct ByItself;

impl Op for ByItself {
    fn name(&self) -> &'static str {
        "stream_write"
    }
    fn infer(&self, x: &[&Meta]) -> Inferred {
        StreamWrite.infer(x)
    }
    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        StreamWrite.forward(x)
    }
    fn needs(&self, tracked: &[bool]) -> Needs {
        StreamWrite.needs(tracked)
    }
    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        StreamWrite.vjp(at)
    }
    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        StreamWrite.expand(x)
    }
    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        StreamWrite.flops(x, y)
    }
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let draw = Distribution::Normal { mean: 0.0, std: 0.5 };
    Tensor::random(draw, shape, DType::F32, Key::new(seed)).unwrap()
}

/// Blocks of a program: what is read, a tanh, and the write, alone or as it is; and what is differentiated by.
fn program(tape: &Tape, alone: bool) -> (Var<'_>, Vec<Var<'_>>) {
    let mut x = tape.variable(&normal(&[TOKENS, STREAMS, CHANNELS], 1));
    let mut leaves = vec![x];
    for block in 0..BLOCKS as u64 {
        let [a, b] = [2, 3].map(|i| tape.variable(&normal(&[TOKENS, STREAMS], 10 * block + i)));
        let mix = tape.variable(&normal(&[TOKENS, STREAMS, STREAMS], 10 * block + 4));
        let f = x.stream_read(a).tanh();
        x = if alone { tape.record(ByItself, &[x, f, mix, b]) } else { x.stream_write(f, mix, b) };
        leaves.extend([a, b, mix]);
    }
    ((x * x).sum(&[]), leaves)
}

fn planned(policy: &Policy, alone: bool) -> Plan {
    let dry = Tape::dry();
    dry.plan(program(&dry, alone).0, policy).unwrap()
}

/// The gradients of a run on such a tape, whose counts must be those of its plan.
fn gradients(tape: Tape, plan: Option<&Plan>, alone: bool) -> Vec<Vec<f32>> {
    let tape = plan.iter().fold(tape, |tape, plan| tape.with_plan(plan));
    let (loss, leaves) = program(&tape, alone);
    let gradients = tape.backward(loss).unwrap();
    if let Some(plan) = plan {
        assert_eq!(tape.receipt().unwrap().differences(plan), [""; 0]);
    }
    leaves.iter().map(|&v| gradients.of(v).unwrap().to_vec::<f32>().unwrap()).collect()
}

fn steps(plan: &Plan) -> Vec<Step> {
    plan.moments().iter().map(|moment| moment.step).collect()
}

#[test]
fn states_of_which_all_else_is_held_come_back_in_one_call() {
    let policy = Policy::saving("states").recompute(Select::op("stream_write"));
    let [chained, alone] = [false, true].map(|alone| planned(&policy, alone));
    assert_eq!(steps(&chained), steps(&alone));
    assert_eq!(chained.totals(), alone.totals(), "the peak is what it was");
    let returning = |moment: &Moment| matches!(moment.step, Step::Recompute(_));
    let first = alone.moments().iter().position(returning).unwrap();
    let end = first + alone.moments()[first..].iter().position(|moment| !returning(moment)).unwrap();
    assert_eq!(end - first, BLOCKS, "all of them, one after the other");
    for (at, (a, b)) in chained.moments().iter().zip(alone.moments()).enumerate() {
        if (first..end).contains(&at) {
            // The first step brings all of them back; the others find them there.
            let all = alone.moments()[end - 1].held;
            assert_eq!((a.held, a.peak), (all, all), "step {at}");
        } else {
            assert_eq!(a, b, "step {at}");
        }
    }
    let expected = gradients(Tape::new(), None, false);
    assert!(expected.iter().flatten().any(|&g| g != 0.0));
    assert_eq!(gradients(Tape::new(), Some(&chained), false), expected);
    assert_eq!(gradients(Tape::new(), Some(&alone), true), expected);
}

#[test]
fn states_between_which_something_else_comes_back_do_not() {
    for policy in [Policy::nothing(), Policy::nothing().together()] {
        let [chained, alone] = [false, true].map(|alone| planned(&policy, alone));
        assert_eq!(chained.moments(), alone.moments(), "{}", policy.name());
        assert_eq!(gradients(Tape::new(), Some(&chained), false), gradients(Tape::new(), None, false));
    }
}

/// A value that somebody has asked for is there already: what is missing of the chain comes back by itself.
#[test]
fn a_state_that_is_there_already_is_not_computed_again() {
    let policy = Policy::saving("states").recompute(Select::op("stream_write"));
    let plan = planned(&policy, false);
    let tape = Tape::new().with_plan(&plan);
    let (loss, leaves) = program(&tape, false);
    let states: Vec<usize> = (0..tape.len()).filter(|&i| tape.at(i).site().op == "stream_write").collect();
    // A new operation on a state that was dropped keeps it.
    tape.without_gradients(|| tape.at(states[1]).sum(&[]));
    let gradients_of_run = tape.backward(loss).unwrap();
    let found: Vec<Vec<f32>> =
        leaves.iter().map(|&v| gradients_of_run.of(v).unwrap().to_vec::<f32>().unwrap()).collect();
    assert_eq!(found, gradients(Tape::new(), None, false));
}
