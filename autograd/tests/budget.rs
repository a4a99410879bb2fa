//! Plans within a budget: against every plan there is, where these can be counted.

use limpid_autograd::plan::{Budget, Choice, Plan, PlanError, Policy, Select};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Tensor};

/// Numbers that look random: splitmix64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A chain of `length` operations of different sizes and costs, each reading what its rule reads: its operand, its result,
/// both or neither. Views are in between.
fn chain<'t>(tape: &'t Tape, length: usize, seed: u64) -> Var<'t> {
    let mut draws = Draws(seed);
    let mut x = tape.variable(&Tensor::full([3, 4], 0.3, DType::F32));
    for _ in 0..length {
        x = match draws.below(7) {
            0 => x.sin(),
            1 => x.tanh(),
            2 => x * 0.5,
            3 => x * x,
            4 | 5 => {
                let width = [1, 2, 4, 8, 16][draws.below(5)];
                let weight = Tensor::full([x.shape()[1], width], 0.1, DType::F32);
                x.matmul(tape.variable(&weight))
            }
            _ => x.transpose(0, 1).exp().transpose(0, 1),
        };
    }
    x.sum(&[])
}

/// What every plan of a tape takes that saves some of its values and computes the others again: the ones of which no
/// other is better in both.
fn brute_force(tape: &Tape, loss: Var<'_>) -> Vec<(usize, u64)> {
    let everything = tape.plan(loss, &Policy::everything()).unwrap();
    let values: Vec<usize> = (0..loss.index()).filter(|&index| everything.bytes(index) > 0).collect();
    let mut found: Vec<(usize, u64)> = Vec::new();
    for subset in 0..1u32 << values.len() {
        let saved: Vec<usize> =
            (0..values.len()).filter(|i| subset >> i & 1 == 1).map(|i| values[i]).collect();
        let none = saved.is_empty();
        let rule = Select::when("subset", move |candidate| saved.contains(&candidate.index));
        let policy = Policy::recomputing("subset");
        let policy = if none { policy } else { policy.save(rule) };
        let totals = *tape.plan(loss, &policy).unwrap().totals();
        found.push((totals.peak, totals.extra_flops));
    }
    found.sort();
    let mut front: Vec<(usize, u64)> = Vec::new();
    for (peak, flops) in found {
        if front.last().is_none_or(|last| flops < last.1) {
            front.push((peak, flops));
        }
    }
    front
}

#[test]
fn for_chains_the_front_is_that_of_all_plans() {
    let mut points = 0;
    for seed in 0..120 {
        let tape = Tape::dry();
        let loss = chain(&tape, 2 + seed as usize % 7, seed);
        let front = tape.front(loss).unwrap();
        assert!(front.is_exact(), "seed {seed}\n{}", tape.program());
        let found: Vec<(usize, u64)> = front.points().iter().map(|p| (p.peak, p.extra_flops)).collect();
        assert_eq!(found, brute_force(&tape, loss), "seed {seed}\n{}", tape.program());
        points += found.len();
        for point in front.points() {
            assert_eq!(point.bound, point.extra_flops);
            let totals = *front.plan(point).unwrap().totals();
            assert_eq!((totals.peak, totals.extra_flops), (point.peak, point.extra_flops), "seed {seed}");
        }
    }
    assert!(points > 200, "{points} points are few");
}

/// A residual network: the inside of a block is no chain.
fn residual<'t>(tape: &'t Tape, blocks: usize) -> Var<'t> {
    let mut x = tape.variable(&Tensor::full([8, 16], 0.3, DType::F32));
    for i in 0..blocks {
        x = tape.scope(format_args!("block.{i}"), || {
            let weight = tape.variable(&Tensor::full([16, 16], 0.01, DType::F32));
            let inside = x.sin().matmul(weight).tanh();
            x.skip() + (inside * x.exp()).branch()
        });
    }
    (x * x).mean(&[])
}

#[test]
fn elsewhere_every_point_is_a_plan_and_above_its_bound() {
    for blocks in [1, 4, 30] {
        let tape = Tape::dry();
        let loss = residual(&tape, blocks);
        let front = tape.front(loss).unwrap();
        assert!(!front.is_exact());
        let everything = tape.plan(loss, &Policy::everything()).unwrap();
        let last = front.points().last().unwrap();
        assert!(last.extra_flops == 0 && last.peak <= everything.totals().peak);
        for pair in front.points().windows(2) {
            assert!(pair[0].peak < pair[1].peak && pair[0].extra_flops > pair[1].extra_flops);
        }
        for point in front.points() {
            assert!(point.bound <= point.extra_flops);
            let plan = front.within(Budget(point.peak)).unwrap();
            assert_eq!((plan.totals().peak, plan.totals().extra_flops), (point.peak, point.extra_flops));
        }
        if blocks == 4 {
            // What could be counted out: no plan of all 2^n is below the bounds.
            let bound_at = |peak: usize| front.points().iter().rfind(|p| p.peak <= peak).map(|p| p.bound);
            assert!(front.points().iter().all(|point| bound_at(point.peak).unwrap() <= point.extra_flops));
        }
    }
}

#[test]
fn small_residual_networks_are_near_the_best_of_all_plans() {
    let tape = Tape::dry();
    let loss = residual(&tape, 2);
    let (front, best) = (tape.front(loss).unwrap(), brute_force(&tape, loss));
    for (peak, flops) in &best {
        // The bound at this peak is below what the best plan of all does.
        if let Some(point) = front.points().iter().find(|point| point.peak == *peak) {
            assert!(point.bound <= *flops, "{point:?} is bounded above the best, {flops}");
        }
        let within = front.within(Budget(*peak)).map(|plan| plan.totals().extra_flops);
        println!("within {peak} bytes: best {flops}, found {within:?}");
    }
    let least = best[0].0;
    assert!(front.points()[0].peak <= least + least / 4, "{} against {least}", front.points()[0].peak);
}

#[test]
fn a_budget_that_nothing_meets_says_what_the_least_is() {
    let tape = Tape::dry();
    let front = tape.front(chain(&tape, 6, 1)).unwrap();
    let least = front.points()[0].peak;
    let error = front.within(Budget(least - 1)).unwrap_err();
    assert!(matches!(error, PlanError::OverBudget { .. }));
    let expected =
        format!("no plan holds at most {} B; the least that was found is {least} bytes", least - 1);
    assert_eq!(error.to_string(), expected);
    assert_eq!(front.within(Budget(least)).unwrap().totals().peak, least);
    assert_eq!(front.within(Budget(usize::MAX)).unwrap().totals().extra_flops, 0);
}

#[test]
fn a_plan_of_a_front_runs_as_any_other() {
    let dry = Tape::dry();
    let front = dry.front(residual(&dry, 12)).unwrap();
    let csv = front.to_csv();
    assert_eq!(csv.lines().count(), front.points().len() + 1);
    let gradients = |plan: Option<&Plan>| {
        let tape = Tape::new();
        let tape = if let Some(plan) = plan { tape.with_plan(plan) } else { tape };
        let loss = residual(&tape, 12);
        let gradients = tape.backward(loss).unwrap();
        if let Some(plan) = plan {
            assert_eq!(tape.receipt().unwrap().differences(plan), [""; 0], "{}", plan.policy());
        }
        gradients.of(tape.at(0)).unwrap().to_vec::<f32>().unwrap()
    };
    let expected = gradients(None);
    for point in front.points() {
        let plan = front.plan(point).unwrap();
        assert_eq!(gradients(Some(&plan)), expected, "{}", plan.policy());
    }
    assert_eq!(Choice::Save.to_string(), "save");
}
