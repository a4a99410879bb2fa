//! What a tape does besides one backward pass: the same bits on a tape that has dropped nearly everything.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use limpid_autograd::plan::{Plan, PlanError, Policy, Select};
use limpid_autograd::{Grading, Tape, Var};
use limpid_nn::residual::Variant;
use limpid_nn::{Init, Parameters};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use crate::bits::{self, Bits, Listed};
use crate::network::{Blocks, Branch, Model, Network, Precision, Recorded, networks};

/// Something that a tape can be asked: a list of values.
type Ask = for<'t> fn(&Model, &'t Tape, &Recorded<'t>) -> limpid_autograd::Result<Listed>;

const ASKED: [(&str, Ask); 9] = [
    ("backward twice", |model, tape, recorded| {
        let mut listed = bits::gradients(model, &tape.backward(recorded.loss)?);
        listed.extend(bits::gradients(model, &tape.backward(recorded.loss)?));
        Ok(listed)
    }),
    ("second derivatives, reverse over reverse", |model, tape, recorded| {
        let slope = tape.grad(recorded.loss, &[recorded.input])?[0];
        let product = (slope * recorded.input.sin()).sum(&[]);
        let mut listed = vec![value("slope", slope)?];
        listed.extend(bits::gradients(model, &tape.backward(product)?));
        // The planned pass comes last.
        listed.extend(bits::gradients(model, &tape.backward(recorded.loss)?));
        Ok(listed)
    }),
    ("second derivatives, forward over reverse", |_, tape, recorded| {
        let slope = tape.grad(recorded.loss, &[recorded.input])?[0];
        let direction = recorded.input.cos();
        let curvature = tape.jvp(slope, &[(recorded.input, direction)])?;
        let hvp = tape.hvp(recorded.loss, &[(recorded.input, direction)])?[0];
        Ok(vec![value("curvature", curvature)?, value("hvp", hvp)?])
    }),
    ("forward mode", |model, tape, recorded| {
        let tangent = tape.jvp(recorded.output, &[(recorded.input, recorded.input.sin())])?;
        let mut listed = vec![value("tangent", tangent)?];
        listed.extend(bits::gradients(model, &tape.backward(recorded.loss)?));
        Ok(listed)
    }),
    ("with books", |model, tape, recorded| {
        let (gradients, ledger) = tape.backward_with_ledger(recorded.loss)?;
        let mut listed = bits::gradients(model, &gradients);
        listed.extend(ledger.fan_ins.iter().map(|fan_in| (format!("{fan_in:?}"), None)));
        listed.push((ledger.to_string(), None));
        Ok(listed)
    }),
    ("a spectrum", |_, tape, recorded| {
        let grading = Grading::BOTH.branches_up_to(2).controls_up_to(1);
        let spectrum = tape.spectrum(recorded.loss, &[recorded.input], grading)?.remove(0);
        let terms = spectrum.terms.iter();
        Ok(terms.map(|t| (format!("{} {}", t.branches, t.controls), Some(Bits::of(&t.gradient)))).collect())
    }),
    ("the program, with statistics", |_, tape, recorded| {
        let before = statistics(tape);
        tape.backward(recorded.loss)?;
        Ok([before, statistics(tape)].concat())
    }),
    ("every value", |_, tape, recorded| {
        let values = || (0..tape.len()).map(|i| value(&i.to_string(), tape.at(i))).collect();
        let before: limpid_autograd::Result<Listed> = values();
        tape.backward(recorded.loss)?;
        let after: limpid_autograd::Result<Listed> = values();
        Ok([before?, after?].concat())
    }),
    ("gradients as they come by", |_, tape, recorded| {
        let seen = Rc::new(RefCell::new(Listed::new()));
        let log = seen.clone();
        tape.on_backward("**", move |var, gradient| {
            log.borrow_mut().push((var.index().to_string(), Some(Bits::of(gradient))));
        });
        tape.backward(recorded.loss)?;
        Ok(seen.take())
    }),
];

fn value(name: &str, var: Var<'_>) -> limpid_autograd::Result<(String, Option<Bits>)> {
    Ok((name.into(), Some(Bits::of(&var.value()?))))
}

fn statistics(tape: &Tape) -> Listed {
    let text = tape.program().with_statistics().to_string();
    // The other lines say also what is held.
    text.lines().filter(|line| line.starts_with("      ")).map(|line| (line.into(), None)).collect()
}

/// A policy that saves one node in so many, whatever it is.
fn one_in(k: usize) -> Policy {
    Policy::recomputing(format!("one in {k}"))
        .save(Select::op("update").or(Select::when("some", move |candidate| candidate.index % k == 0)))
}

/// Plans that keep little. Not every program has bottlenecks.
fn plans(record: impl for<'t> Fn(&'t Tape) -> Var<'t>, settle: impl Fn(Tape) -> Tape) -> Vec<Plan> {
    let tape = settle(Tape::new());
    let loss = record(&tape);
    let policies = [Policy::nothing(), Policy::nothing().together(), Policy::blocks(3), one_in(3)];
    let plans = policies.iter().map(|policy| tape.plan(loss, policy));
    let made = |plan| match plan {
        Ok(plan) => Some(plan),
        Err(PlanError::SelectsNothing { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    plans.filter_map(made).collect()
}

#[test]
fn over_random_networks() {
    let compared = Cell::new(0);
    let property = |network: Network| {
        let model = network.model();
        let plans = plans(|tape| model.record(tape).loss, |tape| network.as_tape(tape));
        for (what, ask) in ASKED {
            let asked = |tape: &Tape| {
                ask(&model, tape, &model.record(tape))
                    .map_err(|e| TestCaseError::fail(format!("{what}: {e}")))
            };
            let expected = asked(&network.tape())?;
            for plan in &plans {
                let found = asked(&network.tape().with_plan(plan))?;
                bits::compare(what, &expected, &found)
                    .map_err(|e| TestCaseError::fail(format!("{}: {e}", plan.policy())))?;
                compared.set(compared.get() + 1);
            }
        }
        Ok(())
    };
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(8);
    }
    config.cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let networks = networks(vec![Precision::F64, Precision::F32]);
    if let Err(error) = TestRunner::new(config).run(&networks, property) {
        panic!("{error}");
    }
    println!("{} comparisons", compared.get());
}

fn normal(of: &str, shape: &[usize]) -> Tensor {
    let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
    Tensor::random(normal, shape, DType::F64, Key::new(9).fold_str(of)).unwrap()
}

fn blocks(variant: Variant) -> Blocks {
    let mut blocks = Blocks::new(&Init::new(4).with_dtype(DType::F64), 4, variant, 3, 2, Branch::Linear);
    // Away from where many of them begin: at coefficients that are 0.
    for (i, parameter) in blocks.parameters_mut().into_iter().enumerate() {
        let moved = parameter.value().to_f64_vec().unwrap();
        let key = Key::new(1).fold(i as u64);
        let moved = moved.iter().enumerate().map(|(j, v)| v + 0.3 * key.normal(j as u64)).collect();
        let shape = parameter.value().shape().clone();
        parameter.set_value(Tensor::from_vec::<f64>(moved, shape));
    }
    blocks
}

#[test]
fn what_streams_and_branches_do() {
    for variant in Variant::ALL {
        let blocks = blocks(variant);
        let record = |tape: &Tape| -> Vec<usize> {
            let states = blocks.states(tape.variable(&normal("x", &[2, 4])));
            let loss = blocks.leave(states[states.len() - 1]).tanh().sum(&[]);
            states.into_iter().chain([loss]).map(Var::index).collect()
        };
        let loss = |tape: &Tape| record(tape).pop().unwrap();
        let asked = |tape: &Tape| {
            let at = record(tape);
            let [first, .., last, loss] = at[..] else { panic!("there are blocks") };
            let (first, last) = (tape.at(first), tape.at(last));
            let mut told = Vec::new();
            let tell = |told: &mut Vec<String>| {
                let shape = first.shape();
                let streams = if shape.len() == 3 { shape[1] } else { 1 };
                if last.shape() == shape {
                    told.push(format!("{:?}", tape.stream_map(last, first, streams).unwrap()));
                }
                told.push(format!("{:?}", tape.jacobian_spectrum(last, first, 1).unwrap()));
                if shape.len() == 3 {
                    told.push(format!("{:?}", tape.stream_cosines(last).unwrap()));
                }
            };
            tell(&mut told);
            let gradients = tape.backward(tape.at(loss)).unwrap();
            told.push(format!("{:?}", bits::gradients(&blocks, &gradients)));
            tell(&mut told);
            told
        };
        let expected = asked(&Tape::new());
        let plans = plans(|tape| tape.at(loss(tape)), |tape| tape);
        assert!(plans.len() >= 3, "{variant}");
        for plan in plans {
            assert!(plan.totals().recomputed > 0);
            assert_eq!(asked(&Tape::new().with_plan(&plan)), expected, "{variant}, {}", plan.policy());
        }
    }
}

/// Derivatives inside a program: the plan covers it all.
fn planned_as_a_whole(further: for<'t> fn(Var<'t>, Var<'t>) -> Var<'t>) {
    for variant in Variant::ALL {
        let blocks = blocks(variant);
        let record = |tape: &Tape| {
            let x = tape.variable(&normal("x", &[2, 4]));
            let states = blocks.states(x);
            let loss = blocks.leave(states[states.len() - 1]).tanh().sum(&[]);
            further(loss, x).index()
        };
        let run = |tape: &Tape| {
            let loss = tape.at(record(tape));
            let gradients = tape.backward(loss).unwrap();
            let mut listed = bits::gradients(&blocks, &gradients);
            listed.push(("x".into(), gradients.of(tape.at(0)).map(Bits::of)));
            listed.push(value("loss", loss).unwrap());
            listed
        };
        let expected = run(&Tape::new());
        let plans = plans(|tape| tape.at(record(tape)), |_| Tape::dry());
        assert!(plans.len() >= 3, "{variant}");
        for plan in plans {
            let tape = Tape::new().with_plan(&plan);
            let of = format!("{variant}, {}", plan.policy());
            bits::compare(&of, &expected, &run(&tape)).unwrap();
            assert_eq!(tape.receipt().unwrap().differences(&plan), Vec::<String>::new(), "{of}");
            assert!(plan.totals().recomputed > 0, "{of}");
        }
    }
}

#[test]
fn a_gradient_penalty() {
    planned_as_a_whole(|loss, x| {
        let slope = x.tape().grad(loss, &[x]).unwrap()[0];
        loss + (slope * slope).sum(&[])
    });
}

#[test]
fn a_gradient_of_a_gradient_in_scopes() {
    planned_as_a_whole(|loss, x| {
        let tape = x.tape();
        tape.scope("outer", || {
            let slope = tape.scope("inner", || tape.grad(loss, &[x]).unwrap()[0]);
            let bend = tape.scope("inner", || tape.grad((slope * slope).sum(&[]), &[x]).unwrap()[0]);
            loss + (bend * slope.sin()).sum(&[])
        })
    });
}

#[test]
fn a_tangent_penalty() {
    planned_as_a_whole(|loss, x| {
        let tape = x.tape();
        let tangent = tape.scope("tangent", || tape.jvp(loss, &[(x, x.cos())]).unwrap());
        loss * 0.5 + tangent * tangent
    });
}

#[test]
fn memory_is_what_the_plan_says() {
    for variant in Variant::ALL {
        let blocks = blocks(variant);
        let record = |tape: &Tape| {
            let states = blocks.states(tape.variable(&normal("x", &[2, 4])));
            blocks.leave(states[states.len() - 1]).tanh().sum(&[]).index()
        };
        for plan in plans(|tape| tape.at(record(tape)), |tape| tape) {
            let tape = Tape::new().with_plan(&plan);
            let loss = tape.at(record(&tape));
            let before = tape.memory();
            assert_eq!(before.needed + before.other, plan.totals().held, "{variant}, {}", plan.policy());
            let by_scope: usize = tape.memory_by_scope().iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(by_scope, plan.totals().held);
            tape.backward(loss).unwrap();
            let after = tape.memory();
            assert_eq!(
                (after.needed + after.other, after.leaves),
                (8, before.leaves),
                "the loss alone stays"
            );
            let drops =
                plan.moments().iter().filter(|m| matches!(m.step, limpid_autograd::plan::Step::Drop(_)));
            assert_eq!(after.dropped_values, drops.count());
            assert_eq!((after.recomputed, after.recomputed_on_request), (0, 0), "these are not the plan's");
        }
    }
}
