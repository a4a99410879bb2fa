//! What deep stacks of manifold-constrained hyper-connections hold, measured by the allocator and compared with formulas.

use limpid_autograd::plan::{Every, Plan, Policy, Receipt, Verify};
use limpid_autograd::{Tape, Var};
use limpid_nn::residual::{Expand, Mhc, Normed, Placement, Reduce, Residual, Start};
use limpid_nn::{Activation, Init, Linear, Module};
use limpid_tensor::{DType, Tensor};

const STREAMS: usize = 4;

/// Blocks whose branch is a norm, a linear layer and a tanh.
struct Stack {
    blocks: Vec<Residual<Mhc, Normed<Linear>>>,
    input: Tensor,
}

impl Stack {
    fn new(depth: usize, channels: usize, tokens: usize) -> Stack {
        let block = |layer: usize| {
            let init = Init::new(0).enter(format!("layers.{layer}"));
            let connection = Mhc::new(&init, channels, STREAMS, layer, Start::default());
            let branch = Linear::new(&init, channels, channels, Activation::Tanh);
            Residual { connection, branch: Normed::new(&init, channels, Placement::Pre, branch) }
        };
        let values: Vec<f64> = (0..tokens * channels).map(|i| (i as f64 * 0.37).sin()).collect();
        let input = Tensor::from_f64(&values, [tokens, channels], DType::F32);
        Stack { blocks: (0..depth).map(block).collect(), input }
    }

    fn loss<'t>(&self, tape: &'t Tape) -> Var<'t> {
        let mut x = Expand::copies(STREAMS).forward(tape.variable(&self.input));
        for (i, block) in self.blocks.iter().enumerate() {
            x = tape.scope(format_args!("layers.{i}"), || block.forward(x));
        }
        let y = Reduce::Sum.forward(x);
        (y * y).mean(&[])
    }

    fn plan(&self, policy: &Policy) -> Plan {
        let tape = Tape::dry();
        tape.plan(self.loss(&tape), policy).unwrap()
    }

    fn run(&self, plan: &Plan) -> Receipt {
        let tape = Tape::new().with_plan(plan).with_verification(Verify::Off);
        tape.backward(self.loss(&tape)).unwrap();
        tape.receipt().unwrap()
    }
}

/// The peak of mHC's stack in elements per token, if the state is kept before every k-th of L blocks. While a run of k blocks
/// is back, and with it the first `blocks` of L are still to be differentiated:
///
/// ```text
/// nC⌈blocks/k⌉            the states that are kept
/// n(k − 1)C + 2Ck         of the run that is back: the other states, what their branches read, and its norm
/// C·blocks                the branches' results
/// 2(n² + 2n)·blocks       logits and coefficients
/// nC                      the cotangent of the state; shares in that of the one before are not computed yet
/// ```
///
/// The peak is reached in the last run, where all blocks are left; or in the one before it, if k does not divide L and the
/// last run is shorter. What else a branch saves is not in it; these branches save nothing else. The first two terms are
/// those of arXiv 2512.24880, section 4.3, but for the state at the beginning of the run, which it counts twice.
fn formula(depth: usize, channels: usize, k: usize) -> usize {
    let (n, c) = (STREAMS, channels);
    let held = |blocks: usize, run: usize| {
        n * c * blocks.div_ceil(k)
            + (n * (run - 1) + 2 * run) * c
            + c * blocks
            + 2 * (n * n + 2 * n) * blocks
            + n * c
    };
    match depth % k {
        0 => held(depth, k),
        rest => held(depth, rest).max(held(depth - rest, k)),
    }
}

#[test]
fn connections_hold_what_the_formula_says_and_least_where_it_says() {
    let (channels, tokens) = (256, 128);
    for (depth, expected, of_two_terms) in [(24, 5, 4), (60, 7, 6)] {
        let stack = Stack::new(depth, channels, tokens);
        let mut measured = Vec::new();
        for k in 1..=12 {
            let plan = stack.plan(&Policy::connections(k));
            let receipt = stack.run(&plan);
            assert_eq!(receipt.differences(&plan), [""; 0], "{depth} blocks, one state in {k}");
            let peak = receipt.measured.peak_activations as f64 / (tokens * size_of::<f32>()) as f64;
            let ratio = peak / formula(depth, channels, k) as f64;
            println!(
                "{depth} blocks, one state in {k}: {:.1} C a token, {ratio:.3} of the formula",
                peak / 256.0
            );
            assert!((0.95..1.05).contains(&ratio), "{depth} blocks, one state in {k}: {ratio}");
            measured.push(peak);
        }
        let best =
            |cost: &dyn Fn(usize) -> f64| (1..=12).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap();
        assert_eq!(best(&|k| formula(depth, channels, k) as f64), expected);
        let found = best(&|k| measured[k - 1]);
        println!("{depth} blocks: least at one state in {found}, by the formula at {expected}");
        assert_eq!(found, expected, "{depth} blocks");
        // What the policy finds by itself, from the two terms that depend on k wherever it divides L.
        let (balanced, given) = (
            stack.plan(&Policy::connections(Every::Balanced)),
            stack.plan(&Policy::connections(of_two_terms)),
        );
        assert_eq!(balanced.totals(), given.totals());
    }
}

#[test]
fn two_hundred_layers_in_a_seventh_of_the_bytes() {
    let stack = Stack::new(200, 64, 64);
    let everything = stack.plan(&Policy::everything());
    let all = everything.totals().peak_activations as f64;
    for (policy, at_most) in [
        (Policy::blocks(Every::Balanced), 0.15),
        (Policy::blocks(Every::Root), 0.15),
        (Policy::connections(Every::Balanced), 0.36),
    ] {
        let plan = stack.plan(&policy);
        let receipt = stack.run(&plan);
        assert_eq!(receipt.differences(&plan), [""; 0], "{}", plan.policy());
        let share = receipt.measured.peak_activations as f64 / all;
        println!("{}: {:.1} % of everything", plan.policy(), 100.0 * share);
        assert!(share <= at_most, "{}: {share}", plan.policy());
    }
}

#[test]
fn values_that_come_back_one_by_one_hold_less_than_a_block_together() {
    let stack = Stack::new(24, 64, 32);
    let together = stack.plan(&Policy::connections(4));
    let one_by_one = stack.plan(&Policy::connections(4).one_by_one());
    assert_eq!(together.totals().extra_flops, one_by_one.totals().extra_flops);
    assert!(one_by_one.totals().peak < together.totals().peak);
    let receipt = stack.run(&one_by_one);
    assert_eq!(receipt.differences(&one_by_one), [""; 0]);
}
