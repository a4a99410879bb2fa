//! Programs and uses at the edge of what a plan is for.

use std::cell::RefCell;
use std::rc::Rc;

use limpid_autograd::plan::{Every, Fate, Plan, Policy, Select, Step, Totals, Verify};
use limpid_autograd::{Cotangents, Error, Grading, Needs, Op, Pullback, Pushforward, Tape, Var};
use limpid_tensor::{DType, HostMemory, Inferred, Map, Meta, Result, Tensor};

use crate::bits::Bits;

fn ones(shape: &[usize]) -> Tensor {
    Tensor::full(shape, 0.5, DType::F64)
}

fn plan(program: impl for<'t> Fn(&'t Tape) -> Var<'t>, policy: &Policy) -> Plan {
    let dry = Tape::dry();
    dry.plan(program(&dry), policy).unwrap()
}

/// A chain of functions that read their operand, their result, both, and neither.
fn chain(tape: &Tape) -> Var<'_> {
    chain_of(tape, 12)
}

fn chain_of(tape: &Tape, length: usize) -> Var<'_> {
    let x = tape.variable(&ones(&[8]));
    let step = |x: Var<'_>, i| match i % 4 {
        0 => x.tanh().index(),
        1 => x.sin().index(),
        2 => (x * 0.5).index(),
        _ => (x * x.sigmoid()).index(),
    };
    (0..length).fold(x, |x, i| tape.at(step(x, i))).sum(&[])
}

fn gradient(tape: &Tape, loss: Var<'_>) -> Bits {
    Bits::of(tape.backward(loss).unwrap().of(tape.at(0)).unwrap())
}

fn unplanned(program: impl for<'t> Fn(&'t Tape) -> Var<'t>) -> Bits {
    let tape = Tape::new();
    gradient(&tape, program(&tape))
}

#[track_caller]
fn as_planned(tape: &Tape, plan: &Plan) {
    assert_eq!(tape.receipt().expect("it was followed").differences(plan), Vec::<String>::new());
}

#[test]
#[should_panic(expected = "plan: an inference tape keeps no program to differentiate")]
fn an_inference_tape_has_no_plan() {
    let tape = Tape::inference();
    let _ = tape.plan(chain(&tape), &Policy::nothing());
}

#[test]
#[should_panic(expected = "with_plan: an inference tape keeps no program to differentiate")]
fn and_follows_none() {
    let _ = Tape::inference().with_plan(&plan(chain, &Policy::nothing()));
}

#[test]
fn a_policy_without_rules() {
    let [saving, everything] = [Policy::saving("empty"), Policy::everything()].map(|p| plan(chain, &p));
    assert_eq!(saving.moments(), everything.moments());
    assert_eq!((saving.policy(), saving.totals().recomputed), ("empty", 0));
    let [recomputing, nothing] = [Policy::recomputing("empty"), Policy::nothing()].map(|p| plan(chain, &p));
    assert_eq!(recomputing.moments(), nothing.moments());
    assert_eq!(nothing.totals().held, 8, "the loss alone");
    for plan in [saving, recomputing] {
        let tape = Tape::new().with_plan(&plan);
        assert_eq!(gradient(&tape, chain(&tape)), unplanned(chain));
        as_planned(&tape, &plan);
    }
}

#[test]
fn everything_holds_what_a_tape_without_a_plan_holds() {
    let program = |tape: &Tape| {
        let x = tape.variable(&ones(&[8]));
        let loss = tape.scope("a", || tape.scope("b", || (x * 2.0).tanh() + 1.0).exp()).sum(&[]);
        loss.index()
    };
    let dry = Tape::dry();
    let plan = dry.plan(dry.at(program(&dry)), &Policy::everything()).unwrap();
    let tape = Tape::new();
    program(&tape);
    let memory = tape.memory();
    assert_eq!(plan.totals().held, memory.needed + memory.other);
}

#[test]
fn a_loss_that_is_a_leaf() {
    let leaf: for<'t> fn(&'t Tape) -> Var<'t> = |tape| tape.variable(&ones(&[]));
    for policy in [Policy::everything(), Policy::nothing()] {
        let plan = plan(leaf, &policy);
        assert_eq!((plan.len(), plan.fate(0)), (1, Fate::Leaf));
        assert_eq!(plan.moments().iter().map(|m| m.step).collect::<Vec<_>>(), [Step::Rule(0)]);
        assert_eq!(plan.totals(), &Totals { peak: 8, peak_activations: 8, ..Totals::default() });
        let tape = Tape::new().with_plan(&plan);
        let loss = leaf(&tape);
        assert_eq!(tape.backward(loss).unwrap().of(loss).unwrap().item().unwrap(), 1.0);
        as_planned(&tape, &plan);
    }
}

#[test]
fn a_loss_that_depends_on_no_variable() {
    let constant: for<'t> fn(&'t Tape) -> Var<'t> = |tape| tape.constant(&ones(&[4])).sin().sum(&[]);
    let plan = plan(constant, &Policy::nothing());
    assert_eq!((plan.totals().computed, plan.totals().recomputed), (3, 0), "{:?}", plan.moments());
    assert_eq!(plan.fate(1), Fate::Free, "nothing is computed again for a gradient that is not there");
    let tape = Tape::new().with_plan(&plan);
    let loss = constant(&tape);
    assert!(tape.backward(loss).unwrap().of(tape.at(0)).is_none());
    as_planned(&tape, &plan);
    assert_eq!(loss.item().unwrap(), 4.0 * 0.5f64.sin());
}

#[test]
fn a_program_of_one_operation() {
    let one: for<'t> fn(&'t Tape) -> Var<'t> = |tape| tape.variable(&ones(&[])).exp();
    for policy in [Policy::everything(), Policy::nothing()] {
        let plan = plan(one, &policy);
        assert_eq!((plan.totals().computed, plan.totals().recomputed), (1, 0), "a result stays");
        let tape = Tape::new().with_plan(&plan);
        assert_eq!(gradient(&tape, one(&tape)), unplanned(one));
        as_planned(&tape, &plan);
    }
}

#[test]
fn a_hundred_thousand_operations() {
    let program: for<'t> fn(&'t Tape) -> Var<'t> = |tape| chain_of(tape, 100_000);
    let policy = Policy::blocks(Every::Root);
    let plan = plan(program, &policy);
    let (totals, nodes) = (plan.totals(), plan.len() as f64);
    let everything = self::plan(program, &Policy::everything());
    assert!(nodes > 100_000.0 && totals.recomputed > 100_000 && totals.recomputed <= totals.computed);
    let values = totals.peak as f64 / 64.0;
    assert!(values < 5.0 * nodes.sqrt(), "{values} values of {nodes} are held");
    assert!(everything.totals().peak as f64 / 64.0 > nodes / 2.0);
    let tape = Tape::new().with_plan(&plan);
    assert_eq!(gradient(&tape, program(&tape)), unplanned(program));
    as_planned(&tape, &plan);
}

#[test]
fn one_plan_on_two_tapes_at_once() {
    let plan = plan(chain, &Policy::blocks(3));
    let expected = unplanned(chain);
    let (a, b) = (Tape::new().with_plan(&plan), Tape::new().with_plan(&plan));
    let (mut x, mut y) = (a.variable(&ones(&[8])), b.variable(&ones(&[8])));
    let mut kept = Vec::new();
    for i in 0..12 {
        let step = |x: Var<'_>| match i % 4 {
            0 => x.tanh().index(),
            1 => x.sin().index(),
            2 => (x * 0.5).index(),
            _ => (x * x.sigmoid()).index(),
        };
        x = a.at(step(x));
        // What others hold is not theirs.
        kept.push(ones(&[100 + i]));
        y = b.at(step(y));
        if i % 3 == 0 {
            kept.clear();
        }
    }
    let (x, y) = (x.sum(&[]), y.sum(&[]));
    assert_eq!(gradient(&b, y), expected);
    drop(kept);
    assert_eq!(gradient(&a, x), expected);
    as_planned(&a, &plan);
    as_planned(&b, &plan);
}

#[test]
fn a_second_backward_pass_computes_again_what_it_needs() {
    for policy in [Policy::nothing(), Policy::blocks(3), Policy::everything()] {
        let plan = plan(chain, &policy);
        let tape = Tape::new().with_plan(&plan);
        let loss = chain(&tape);
        let first = gradient(&tape, loss);
        assert_eq!(tape.receipt().unwrap().unplanned, 0);
        let second = gradient(&tape, loss);
        assert_eq!((&first, &second), (&unplanned(chain), &first));
        let receipt = tape.receipt().unwrap();
        assert!(receipt.unplanned > 0, "{}", plan.policy());
        assert_eq!(receipt.measured, *plan.totals(), "the first pass was as planned");
        assert_eq!(
            receipt.differences(&plan),
            [format!("values computed again outside the plan: planned 0, measured {}", receipt.unplanned)]
        );
    }
}

#[test]
fn values_asked_for_before_and_after() {
    let reference = Tape::new();
    chain(&reference);
    let expected: Vec<Bits> =
        (0..reference.len()).map(|i| Bits::of(&reference.at(i).value().unwrap())).collect();
    for policy in [Policy::nothing(), Policy::blocks(2)] {
        let plan = plan(chain, &policy);
        let tape = Tape::new().with_plan(&plan);
        let loss = chain(&tape);
        let ask =
            || (0..plan.len()).for_each(|i| assert_eq!(Bits::of(&tape.at(i).value().unwrap()), expected[i]));
        ask();
        let gradient = gradient(&tape, loss);
        assert_eq!(gradient, unplanned(chain));
        ask();
        let receipt = tape.receipt().unwrap();
        assert!(receipt.unplanned > 0);
        // A value that was only looked at is gone again before the next step.
        assert_eq!(receipt.measured, *plan.totals());
    }
}

#[test]
fn a_value_that_somebody_holds_is_in_the_receipt() {
    let plan = plan(chain, &Policy::nothing());
    let tape = Tape::new().with_plan(&plan);
    let held = Rc::new(RefCell::new(Vec::new()));
    let holding = held.clone();
    tape.on_forward("tanh", move |_, value| holding.borrow_mut().push(value.clone()));
    let loss = chain(&tape);
    assert_eq!(gradient(&tape, loss), unplanned(chain));
    let differences = tape.receipt().unwrap().differences(&plan);
    assert!(differences.iter().any(|line| line.starts_with("after step ")), "{differences:?}");
    assert_eq!(held.borrow().len(), 3);
}

#[test]
fn another_result_is_differentiated_first() {
    // The state that a plan keeps to compute others from is read by no rule.
    let program = |tape: &Tape| -> (usize, usize) {
        let x = tape.variable(&ones(&[8]));
        let (mut x, mut side) = (x, x);
        for i in 0..6 {
            side = (x * 3.0).named("state");
            x = (side + f64::from(i)).tanh().exp() * 0.1;
        }
        let (other, loss) = (side.sum(&[]), x.sum(&[]));
        (other.index(), loss.index())
    };
    let policy = Policy::recomputing("states").save(Select::name("state").every(2));
    let dry = Tape::dry();
    let plan = dry.plan(dry.at(program(&dry).1), &policy).unwrap();
    let (tape, reference) = (Tape::new().with_plan(&plan), Tape::new());
    let at = program(&tape);
    assert_eq!(program(&reference), at);
    assert_eq!(gradient(&tape, tape.at(at.0)), gradient(&reference, reference.at(at.0)));
    assert!(tape.receipt().is_none(), "that was not the planned pass");
    assert_eq!(gradient(&tape, tape.at(at.1)), gradient(&reference, reference.at(at.1)));
    assert!(tape.receipt().is_some());
}

#[test]
fn what_is_recorded_behind_the_loss_is_not_in_the_plan() {
    let plan = plan(chain, &Policy::blocks(3));
    let tape = Tape::new().with_plan(&plan);
    let loss = chain(&tape);
    let metric = (loss * 2.0).exp();
    assert_eq!(gradient(&tape, loss), unplanned(chain));
    as_planned(&tape, &plan);
    assert_eq!(metric.item().unwrap(), (loss.item().unwrap() * 2.0).exp());
}

#[test]
fn the_peak_is_what_somebody_else_measures() {
    let x = ones(&[1000]);
    let program = |tape: &Tape| {
        let chain = |x: Var<'_>| (x * x.sigmoid()).sin().tanh().exp().index();
        let y = (0..20).fold(tape.variable(&x), |x, _| tape.at(chain(x)));
        y.sum(&[]).index()
    };
    for policy in [Policy::everything(), Policy::nothing(), Policy::blocks(4), Policy::blocks(4).together()] {
        let dry = Tape::dry();
        let plan = dry.plan(dry.at(program(&dry)), &policy).unwrap();
        for verify in [Verify::Off, Verify::Hash, Verify::Full] {
            let before = HostMemory::current().live;
            HostMemory::reset_peak();
            let tape = Tape::new().with_plan(&plan).with_verification(verify);
            let loss = tape.at(program(&tape));
            assert_eq!(HostMemory::current().live - before, plan.totals().held as isize);
            let gradients = tape.backward(loss).unwrap();
            assert_eq!(HostMemory::current().peak - before, plan.totals().peak as isize, "{}", plan.policy());
            let last = plan.moments().last().unwrap();
            assert_eq!(HostMemory::current().live - before, last.held as isize);
            drop(gradients);
            assert_eq!(HostMemory::current().live - before, (last.held - last.gradients) as isize);
        }
    }
}

#[test]
fn a_step_that_went_astray_does_not_spoil_the_next() {
    let plan = plan(chain, &Policy::blocks(3));
    let mut tape = Tape::new().with_plan(&plan);
    for step in 0..6 {
        tape.clear(step);
        if step % 2 == 0 {
            let loss = chain(&tape);
            assert_eq!(gradient(&tape, loss), unplanned(chain));
            as_planned(&tape, &plan);
        } else {
            let loss = chain_of(&tape, 11);
            assert!(matches!(tape.backward(loss), Err(Error::OffPlan { .. })));
            assert!(tape.receipt().is_none());
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found_as_ever() {
    let program: for<'t> fn(&'t Tape) -> Var<'t> = |tape| {
        let x = tape.variable(&ones(&[8]));
        tape.scope("layer", || ((x.sin() - x.sin()).log().exp() * x.tanh()).sum(&[]))
    };
    let plan = plan(program, &Policy::nothing());
    let found = |tape: Tape| {
        let tape = tape.with_anomaly_detection(true);
        let loss = program(&tape);
        tape.backward(loss).unwrap_err().to_string()
    };
    let expected = found(Tape::new());
    assert!(expected.starts_with("log in layer at "), "{expected}");
    assert_eq!(found(Tape::new().with_plan(&plan)), expected);
    // One that arises on the way back: the derivative of a root at 0.
    let program: for<'t> fn(&'t Tape) -> Var<'t> = |tape| {
        let x = tape.variable(&ones(&[8]));
        tape.scope("layer", || ((x.sin() - x.sin()).sqrt().tanh() * x.exp()).sum(&[]))
    };
    let plan = self::plan(program, &Policy::nothing());
    let found = |tape: Tape| {
        let tape = tape.with_anomaly_detection(true);
        let loss = program(&tape);
        tape.backward(loss).unwrap_err().to_string()
    };
    assert_eq!(found(Tape::new().with_plan(&plan)), found(Tape::new()));
}

/// eˣ of a matrix, stored with its axes the other way round: a result that is no view and not in row-major order.
#[derive(Debug)]
struct Columns;

impl Op for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Exp.infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Ok(Tensor::map(Map::Exp, &[&x[0].transpose(0, 1)])?.transpose(0, 1))
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::OUTPUT
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g() * at.y())
    }
}

#[test]
fn comparing_takes_no_memory_of_the_tape() {
    let program: for<'t> fn(&'t Tape) -> Var<'t> = |tape| {
        let x = tape.variable(&ones(&[40, 30]));
        (0..3).fold(x, |x, _| tape.record(Columns, &[x.sin()])).sum(&[])
    };
    let plan = plan(program, &Policy::nothing());
    for verify in [Verify::Off, Verify::Hash, Verify::Full] {
        let tape = Tape::new().with_plan(&plan).with_verification(verify);
        assert_eq!(gradient(&tape, program(&tape)), unplanned(program));
        as_planned(&tape, &plan);
    }
}

/// −x, whose gradient passes or does not.
#[derive(Debug)]
struct Gate {
    open: bool,
}

impl Op for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Neg.infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(Map::Neg, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| -at.g()).into_iter().map(|g| g.filter(|_| self.open)).collect()
    }
}

#[test]
fn a_program_with_other_derivatives_is_another_program() {
    let program = |tape: &Tape, open: bool| {
        let x = tape.variable(&ones(&[4]));
        (tape.record(Gate { open }, &[x.sin()]).tanh() + x).sum(&[]).index()
    };
    for planned in [true, false] {
        let dry = Tape::dry();
        let plan = dry.plan(dry.at(program(&dry, planned)), &Policy::nothing()).unwrap();
        let tape = Tape::new().with_plan(&plan);
        let loss = tape.at(program(&tape, !planned));
        let message = tape.backward(loss).unwrap_err().to_string();
        // The sine is differentiated in one of the two, and it is the leaf's turn in the other.
        let expected = match planned {
            true => {
                format!("leaf at {0}:LINE: the plan has another program: %0 is preceded by Rule(1)", file!())
            }
            false => {
                format!("sin at {0}:LINE: the plan has another program: %1 is preceded by Rule(0)", file!())
            }
        };
        let (file, rest) = message.split_once(".rs:").unwrap();
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let found = format!("{file}.rs:LINE{rest}");
        assert!(found.starts_with(&expected), "{message}");
        assert!(tape.receipt().is_none());
    }
}

/// Twice the hyperbolic tangent, known by its expansion alone.
#[derive(Debug)]
struct Expanded;

impl Op for Expanded {
    fn name(&self) -> &'static str {
        "expanded"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Tanh.infer(x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(x[0].tanh() * 2.0)
    }
}

#[test]
fn an_operation_known_by_its_expansion_alone() {
    let program: for<'t> fn(&'t Tape) -> Var<'t> = |tape| {
        let x = tape.variable(&ones(&[4, 5]));
        (0..3).fold(x, |x, _| tape.record(Expanded, &[x * x])).sum(&[])
    };
    for policy in [Policy::nothing(), Policy::blocks(2)] {
        let plan = plan(program, &policy);
        let tape = Tape::new().with_plan(&plan);
        assert_eq!(gradient(&tape, program(&tape)), unplanned(program));
        as_planned(&tape, &plan);
    }
}

#[test]
fn what_is_asked_on_the_way_changes_nothing() {
    let program = |tape: &Tape, ask: &dyn Fn(Var<'_>, Var<'_>)| {
        let x = tape.variable(&ones(&[8]));
        let mut y = x;
        for _ in 0..3 {
            y = (y * 1.5).tanh().exp().sin();
            let size = y.logsumexp(&[]);
            ask(size, x);
            y = y * size;
        }
        y.sum(&[]).index()
    };
    let asked = RefCell::new(Vec::new());
    let ask = |size: Var<'_>, x: Var<'_>| {
        let tape = x.tape();
        let gradient = Bits::of(tape.backward(size).unwrap().of(x).unwrap());
        let spectrum = tape.spectrum(size, &[x], Grading::BRANCHES).unwrap();
        let gradients = [gradient, Bits::of(&spectrum[0].terms[0].gradient)];
        // Names of nodes and source lines, not what is held.
        let derivative = tape.backward_program(size).unwrap().replace("dropped", "");
        let statistics = tape.program().with_statistics().to_string();
        let statistics = statistics.lines().filter(|line| line.starts_with("      ")).collect::<String>();
        asked.borrow_mut().push((gradients, size.item().unwrap(), derivative.lines().count(), statistics));
    };
    let reference = Tape::new();
    let expected = gradient(&reference, reference.at(program(&reference, &ask)));
    let answers = asked.take();
    for policy in [Policy::everything(), Policy::nothing(), Policy::blocks(2), Policy::blocks(2).together()] {
        let dry = Tape::dry();
        let plan = dry.plan(dry.at(program(&dry, &|_, _| {})), &policy).unwrap();
        let tape = Tape::new().with_plan(&plan);
        let loss = tape.at(program(&tape, &ask));
        assert_eq!(gradient(&tape, loss), expected);
        assert_eq!(asked.take(), answers, "{}", plan.policy());
        assert_eq!(tape.receipt().expect("the plan was followed").measured, *plan.totals());
    }
}

/// `y = m∘x`, with m a tensor of its own.
#[derive(Debug)]
struct Masked(Tensor);

impl Op for Masked {
    fn name(&self) -> &'static str {
        "masked"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(Map::Mul, &[x[0], &self.0])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g() * at.g().tape().constant(&self.0))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx * dx.tape().constant(&self.0))
    }
}

#[test]
fn an_operation_with_a_tensor_of_its_own_is_planned() {
    let mask = Tensor::from_vec(vec![1.0f64, 0.0, 2.0], [3]);
    let x = Tensor::from_vec(vec![0.5f64, 1.0, -1.0], [3]);
    let run = |tape: &Tape| -> Vec<u64> {
        let x = tape.variable(&x);
        let gradients = tape.backward(masked_again_and_again(x, &mask)).unwrap();
        gradients.of(x).unwrap().to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    };
    let dry = Tape::dry();
    let plan = dry.plan(masked_again_and_again(dry.variable(&x), &mask), &Policy::nothing()).unwrap();
    let tape = Tape::new().with_plan(&plan);
    assert_eq!(run(&tape), run(&Tape::new()));
    assert_eq!(tape.receipt().unwrap().differences(&plan), [""; 0]);
}

fn masked_again_and_again<'t>(x: Var<'t>, mask: &Tensor) -> Var<'t> {
    (0..4).fold(x, |x, _| x.tape().record(Masked(mask.clone()), &[x.exp()])).sum(&[])
}

#[test]
fn a_named_view_stands_for_what_it_shows() {
    let dry = Tape::dry();
    let x = dry.variable(&Tensor::ones([4, 8], DType::F64));
    let h = x.exp();
    let shown = h.transpose(0, 1).named("h");
    let loss = shown.sin().sum(&[]);
    let plan = dry.plan(loss, &Policy::recomputing("all but h").save(Select::name("h"))).unwrap();
    assert_eq!((plan.fate(h.index()), plan.recomputations(h.index())), (Fate::Save, 0));
    let views = Policy::recomputing("views").save(Select::op("permute"));
    let error = dry.plan(loss, &views).unwrap_err().to_string();
    assert!(error.ends_with("what it selects are leaves, or views, which go by what they show"), "{error}");
}

#[test]
#[should_panic(expected = "with_plan: the tape has 1 nodes that the plan does not begin with")]
fn a_plan_is_followed_from_the_first_node_on() {
    let dry = Tape::dry();
    let loss = dry.variable(&Tensor::ones([4], DType::F64)).sum(&[]);
    let plan = dry.plan(loss, &Policy::everything()).unwrap();
    let tape = Tape::new();
    tape.variable(&Tensor::ones([4], DType::F64));
    let _ = tape.with_plan(&plan);
}
