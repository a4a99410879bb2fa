//! The property: under every plan the same bits, and the memory that the plan says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use limpid_autograd::Tape;
use limpid_autograd::plan::{Fate, Plan, PlanError, Policy, Step, Verify};
use limpid_nn::commit_updates;
use limpid_nn::optim::{Group, Groups, Optimizer, Sgd};
use limpid_nn::residual::Variant;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use serde::{Deserialize, Serialize};

use crate::bits::{self, Bits, Listed};
use crate::network::{Input, Model, Network, Piece, Precision, networks, piece_names};
use crate::policy::{Catalogue, Drawn, policies};

/// Cases that once failed, one to a line.
const REGRESSIONS: &str = include_str!("regressions.txt");

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    network: Network,
    policy: Drawn,
    /// 0: not at all; 1: whole copies; else by hashes.
    verify: usize,
}

impl Case {
    fn verify(&self) -> Verify {
        match self.verify {
            0 => Verify::Off,
            1 => Verify::Full,
            _ => Verify::Hash,
        }
    }
}

/// What is left of a run.
struct Outcome {
    loss: Bits,
    gradients: Listed,
    updates: Vec<(usize, Bits)>,
}

fn run(model: &Model, tape: &Tape) -> Result<Outcome, String> {
    let recorded = model.record(tape);
    let loss = recorded.loss.value().map_err(|e| e.to_string())?;
    let gradients = tape.backward(recorded.loss).map_err(|e| e.to_string())?;
    let mut listed = bits::gradients(model, &gradients);
    listed.push(("input".into(), gradients.of(recorded.input).map(Bits::of)));
    let updates = tape.take_updates().into_iter().map(|(_, value)| Bits::of(&value)).enumerate().collect();
    Ok(Outcome { loss: Bits::of(&loss), gradients: listed, updates })
}

/// What a policy was refused for.
#[derive(Default)]
struct Refused {
    selects_nothing: bool,
    repeats_an_effect: bool,
}

/// The plan of the policy that was drawn. One that would repeat an effect saves effects first, and in place of one with a rule
/// that selects nothing there is one without rules.
fn plan(network: &Network, model: &Model, drawn: &Drawn) -> Result<(Plan, Refused), String> {
    // A dry tape takes its leaves to be contiguous.
    let tape = network.as_tape(if network.input == Input::Strided { Tape::new() } else { Tape::dry() });
    let loss = model.record(&tape).loss;
    let catalogue = Catalogue::of(&tape);
    let mut refused = Refused::default();
    let mut plan = tape.plan(loss, &drawn.policy(&catalogue));
    if let Err(PlanError::Effect { site, .. }) = &plan {
        refused.repeats_an_effect = true;
        let spared = drawn.sparing_effects(&catalogue).filter(|_| site.op == "update");
        plan = tape.plan(loss, &spared.ok_or_else(|| format!("{drawn:?} selects no effect"))?);
    }
    if let Err(PlanError::SelectsNothing { .. }) = &plan {
        refused.selects_nothing = true;
        plan = tape.plan(loss, &Policy::nothing());
    }
    plan.map(|plan| (plan, refused)).map_err(|e| e.to_string())
}

/// What must hold of any plan by itself.
fn consistent(plan: &Plan) -> Result<(), String> {
    let mut present = BTreeSet::new();
    for (at, moment) in plan.moments().iter().enumerate() {
        let id = moment.step.node();
        let legal = match moment.step {
            Step::Compute(_) | Step::Recompute(_) => present.insert(id),
            Step::Drop(_) => present.remove(&id),
            Step::Rule(_) => true,
        };
        if !legal {
            return Err(format!("step {at}, {:?}, of a value that is there or is not", moment.step));
        }
        if moment.peak < moment.held.min(at.checked_sub(1).map_or(0, |before| plan.moments()[before].held)) {
            return Err(format!("step {at}: the peak is below what is held"));
        }
    }
    for index in 0..plan.len() {
        let again = plan.moments().iter().filter(|m| m.step == Step::Recompute(index as u32)).count();
        if again != plan.recomputations(index) || (plan.fate(index) == Fate::Recompute) != (again > 0) {
            return Err(format!("%{index} comes back {again} times, and its fate is {:?}", plan.fate(index)));
        }
    }
    Ok(())
}

/// What the presets promise of any program.
fn keeps_little(case: &Case, model: &Model, plan: &Plan) -> Result<(), String> {
    let held = plan.totals().held;
    match case.policy {
        // A tape without a plan keeps what rules may read, one with a plan what rules that run will.
        Drawn::Everything => {
            let tape = case.network.tape();
            tape.scope("all", || model.record(&tape).loss);
            let memory = tape.memory();
            if held > memory.needed + memory.other || plan.totals().recomputed > 0 {
                return Err(format!("{held} bytes are held, {memory:?} without a plan"));
            }
        }
        // The result, what happens once, and views of leaves, which take nothing.
        Drawn::Nothing => {
            let mut present = BTreeSet::new();
            for moment in &plan.moments()[..plan.backward_begins()] {
                match moment.step {
                    Step::Drop(_) => present.remove(&moment.step.node()),
                    _ => present.insert(moment.step.node()),
                };
            }
            let others: Vec<String> = present
                .into_iter()
                .filter(|&index| index + 1 != plan.len() && plan.bytes(index) > 0)
                .map(|index| plan.site(index).to_string())
                .collect();
            if !others.is_empty() {
                return Err(format!("{held} bytes are held, for {}", others.join(", ")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Compares a run under a plan with one without.
fn same(expected: &Outcome, found: &Outcome) -> Result<(), String> {
    if expected.loss != found.loss {
        return Err(format!("the loss is {:?}, expected {:?}", found.loss, expected.loss));
    }
    if expected.updates != found.updates {
        return Err("updates differ".into());
    }
    bits::compare("gradient", &expected.gradients, &found.gradients)
}

fn kept_its_word(tape: &Tape, plan: &Plan, verify: Verify) -> Result<(), String> {
    let receipt = tape.receipt().ok_or("the plan was not followed to its end")?;
    let differences = receipt.differences(plan);
    if !differences.is_empty() {
        return Err(differences.join("\n"));
    }
    if receipt.measured != *plan.totals() {
        return Err(format!("measured {:?}, planned {:?}", receipt.measured, plan.totals()));
    }
    let compared = if verify == Verify::Off { 0 } else { plan.totals().recomputed };
    if receipt.verified.values != compared {
        return Err(format!("{} values compared, expected {compared}", receipt.verified.values));
    }
    Ok(())
}

/// What the cases were.
#[derive(Default)]
struct Tally {
    cases: usize,
    recomputing: usize,
    nodes: usize,
    recomputed: usize,
    selecting_nothing: usize,
    repeating_effects: usize,
    seen: BTreeSet<String>,
}

impl Tally {
    fn note(&mut self, case: &Case, plan: &Plan, refused: &Refused) {
        self.cases += 1;
        self.nodes += plan.len();
        self.recomputed += plan.totals().recomputed;
        self.recomputing += usize::from(plan.totals().recomputed > 0);
        self.selecting_nothing += usize::from(refused.selects_nothing);
        self.repeating_effects += usize::from(refused.repeats_an_effect);
        case.network.each(&mut |piece| {
            let name = format!("{piece:?}");
            self.seen.insert(name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().into());
            if let Piece::Blocks { variant, .. } = piece {
                self.seen.insert(Variant::ALL[*variant].name().into());
            }
        });
    }
}

fn check(case: &Case, tally: &RefCell<Tally>) -> Result<(), String> {
    let model = case.network.model();
    let (plan, refused) = plan(&case.network, &model, &case.policy)?;
    consistent(&plan)?;
    keeps_little(case, &model, &plan)?;
    let expected = run(&model, &case.network.tape())?;
    let tape = case.network.tape().with_plan(&plan).with_verification(case.verify());
    let found = run(&model, &tape)?;
    same(&expected, &found)?;
    kept_its_word(&tape, &plan, case.verify())?;
    tally.borrow_mut().note(case, &plan, &refused);
    Ok(())
}

/// Runs `property` over the cases that once failed, and random ones.
fn for_cases(
    name: &str,
    number: u32,
    precisions: &[Precision],
    property: impl Fn(&Case) -> Result<(), String>,
) {
    for line in REGRESSIONS.lines() {
        let case: Case =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("regressions.txt: {e}: {line}"));
        if precisions.contains(&case.network.precision)
            && let Err(message) = property(&case)
        {
            panic!("{name}, a regression: {message}\n{line}");
        }
    }
    let cases = (networks(precisions.to_vec()), policies(), 0..8usize)
        .prop_map(|(network, policy, verify)| Case { network, policy, verify });
    let seed = name.bytes().fold(0, |h, b| h * 131 % 1_000_000_007 + u64::from(b));
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    config.cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(number);
    let tested = |case| property(&case).map_err(TestCaseError::fail);
    match TestRunner::new(config).run(&cases, tested) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{name}: {reason}\nadd to regressions.txt:\n{}", serde_json::to_string(&case).unwrap())
        }
        Err(TestError::Abort(reason)) => panic!("{name}: gave up: {reason}"),
    }
}

fn gradients_are_the_same_bits(name: &str, number: u32, precisions: &[Precision]) {
    let tally = RefCell::new(Tally::default());
    for_cases(name, number, precisions, |case| check(case, &tally));
    let t = tally.into_inner();
    println!(
        "{name}: {} cases, {} recompute; {} nodes, {} computed again; {} policies selected nothing, {} effects",
        t.cases, t.recomputing, t.nodes, t.recomputed, t.selecting_nothing, t.repeating_effects
    );
    // A plan that recomputes nothing proves nothing, nor does a policy that was refused.
    assert!(t.recomputing * 3 > t.cases * 2, "{} of {} plans recompute something", t.recomputing, t.cases);
    assert!(
        t.selecting_nothing * 3 < t.cases,
        "{} of {} policies select nothing",
        t.selecting_nothing,
        t.cases
    );
    for variant in Variant::ALL {
        assert!(t.seen.contains(variant.name()), "no network had {variant}");
    }
    for name in piece_names() {
        assert!(t.seen.contains(&name), "no network had a {name}");
    }
}

#[test]
fn in_f64() {
    gradients_are_the_same_bits("in f64", 1200, &[Precision::F64]);
}

#[test]
fn in_f32() {
    gradients_are_the_same_bits("in f32", 800, &[Precision::F32]);
}

#[test]
fn in_bf16() {
    gradients_are_the_same_bits("in bf16", 400, &[Precision::Bf16]);
}

#[test]
fn over_steps_of_training() {
    let trained = Cell::new(0);
    for_cases("training", 200, &[Precision::F64, Precision::F32], |case| {
        let (plan, _) = plan(&case.network, &case.network.model(), &case.policy)?;
        let mut runs = [case.network.tape(), case.network.tape().with_plan(&plan)].map(|tape| {
            let groups = Groups::new(Group::default()).allow_missing_gradients();
            (tape, case.network.model(), Sgd::new().with_momentum(0.5).with_groups(groups))
        });
        let mut own_updates = false;
        case.network.each(&mut |piece| own_updates |= matches!(piece, Piece::Update(_)));
        for step in 0..3 {
            let mut outcomes = Vec::new();
            for (tape, model, optimizer) in &mut runs {
                tape.clear(step);
                let recorded = model.record(tape);
                let gradients = tape.backward(recorded.loss).map_err(|e| e.to_string())?;
                let loss = recorded.loss.value().map_err(|e| e.to_string())?;
                outcomes.push((Bits::of(&loss), bits::gradients(model, &gradients)));
                if !own_updates {
                    commit_updates(tape, model);
                }
                optimizer.step(model, &gradients, 0.05).map_err(|e| e.to_string())?;
            }
            if outcomes[0].0 != outcomes[1].0 {
                return Err(format!(
                    "the loss of step {step} is {:?}, expected {:?}",
                    outcomes[1].0, outcomes[0].0
                ));
            }
            bits::compare(&format!("gradient of step {step}"), &outcomes[0].1, &outcomes[1].1)?;
            kept_its_word(&runs[1].0, &plan, Verify::Hash).map_err(|e| format!("step {step}: {e}"))?;
        }
        trained.set(trained.get() + 1);
        Ok(())
    });
    println!("{} cases were trained", trained.get());
    assert!(trained.get() >= 1);
}
