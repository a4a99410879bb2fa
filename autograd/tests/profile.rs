//! What a profile notes: every operation, every rule and every value that came back, each once, in times that add up.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use limpid_autograd::plan::Policy;
use limpid_autograd::{Lane, Profile, Row, Tape, Var};
use limpid_tensor::{DType, Tensor};
use serde_json::Value;

/// Two layers and a loss: tanh(x·w) twice, each in a scope, then the sum.
fn network<'t>(tape: &'t Tape, x: &Tensor, w: Var<'t>) -> Var<'t> {
    let mut y = tape.constant(x);
    for layer in 0..2 {
        y = tape.scope(format_args!("layers.{layer}"), || tape.scope("branch", || y.matmul(w).tanh()));
    }
    tape.scope("loss", || y.sum(&[]))
}

fn operands() -> (Tensor, Tensor) {
    let x = Tensor::full([4, 8], 0.5, DType::F32);
    (x, Tensor::full([8, 8], 0.25, DType::F32))
}

/// One step of the network on a tape of its own.
fn profiled() -> Profile {
    let (x, w) = operands();
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let w = tape.variable(&w);
    let _step = profile.step(0);
    tape.backward(network(&tape, &x, w)).unwrap();
    drop(_step);
    profile
}

fn row(rows: &[Row], name: &str) -> Row {
    let found = rows.iter().find(|row| row.name == name);
    found
        .unwrap_or_else(|| panic!("no {name} among {:?}", rows.iter().map(|r| &r.name).collect::<Vec<_>>()))
        .clone()
}

fn time_in(row: &Row, lane: Lane) -> Duration {
    row.by_lane[lane as usize]
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_operation_and_every_rule_is_there_as_often_as_it_ran() {
    let profile = profiled();
    let by_op = profile.by_op();
    for (name, calls) in [("matmul", 2), ("tanh", 2), ("sum", 1), ("∂matmul", 2), ("∂tanh", 2), ("∂sum", 1)]
    {
        assert_eq!(row(&by_op, name).calls, calls, "{name}");
    }
    // 2·4·8·8 a product; the rule of the first layer's wants the weight's gradient alone, that of the second both.
    assert_eq!(row(&by_op, "matmul").flops, 2 * 2 * 4 * 8 * 8);
    assert_eq!(row(&by_op, "matmul").bytes, 2 * 4 * (4 * 8 + 8 * 8 + 4 * 8));
    assert_eq!(row(&by_op, "∂matmul/matmul").calls, 3);
    assert_eq!(row(&by_op, "∂matmul/matmul").flops, 3 * 2 * 4 * 8 * 8);
    // The gradient of the weight has two addends.
    assert_eq!(row(&by_op, "sum of cotangents").calls, 1);
    // Whatever ran forward is in the forward lane, and what a rule did in the other.
    for row in by_op.iter().filter(|row| row.time > Duration::ZERO) {
        let backward = row.name.starts_with('∂') || row.name == "sum of cotangents";
        let lane = if backward { Lane::Backward } else { Lane::Forward };
        assert_eq!(time_in(row, lane), row.time, "{}", row.name);
    }
}

#[test]
fn a_rule_counts_where_its_operation_was_recorded() {
    let by_scope = profiled().by_scope();
    let mut names: Vec<&str> = by_scope.iter().map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    // Outside of scopes is the parameter, and with it the sum of its gradient.
    assert_eq!(names, ["", "layers.0/branch", "layers.1/branch", "loss"]);
    let branch = row(&by_scope, "layers.1/branch");
    assert!(
        time_in(&branch, Lane::Forward) > Duration::ZERO && time_in(&branch, Lane::Backward) > Duration::ZERO
    );
}

#[test]
fn times_add_up_to_what_went_by() {
    let profile = profiled();
    let sum = |rows: &[Row]| rows.iter().map(|row| row.time).sum::<Duration>();
    let all = profile.wall() - profile.between();
    assert!(profile.between() > Duration::ZERO && all > Duration::ZERO);
    for rows in [profile.by_op(), profile.by_scope(), profile.by_lane()] {
        assert_eq!(sum(&rows), all);
        assert!(rows.is_sorted_by(|a, b| a.time >= b.time));
        for row in &rows {
            assert_eq!(row.by_lane.iter().sum::<Duration>(), row.time);
            assert!((row.share - row.time.as_secs_f64() / profile.wall().as_secs_f64()).abs() < 1e-9);
        }
    }
}

#[test]
fn values_that_come_back_are_in_a_lane_of_their_own() {
    let (x, w) = operands();
    let dry = Tape::dry();
    let plan = dry.plan(network(&dry, &x, dry.variable(&w)), &Policy::nothing()).unwrap();
    let profile = Profile::new();
    let tape = Tape::new().with_plan(&plan).with_profile(&profile);
    let w = tape.variable(&w);
    {
        let _step = profile.step(0);
        tape.backward(network(&tape, &x, w)).unwrap();
    }
    let receipt = tape.receipt().unwrap();
    let again = row(&profile.by_lane(), "recompute");
    assert!(again.calls > 0);
    assert_eq!((again.calls, again.flops), (receipt.measured.recomputed, receipt.measured.extra_flops));
    // Each is hashed when it is dropped for the first time, and when it comes back.
    assert!(row(&profile.by_op(), "hash").calls >= 2 * again.calls);
    let tanh = row(&profile.by_op(), "tanh");
    assert_eq!(time_in(&tanh, Lane::Forward) + time_in(&tanh, Lane::Recompute), tanh.time);
    assert!(time_in(&tanh, Lane::Recompute) > Duration::ZERO);
}

#[test]
fn a_value_that_is_asked_for_comes_back_in_that_lane_too() {
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let x = tape.variable(&Tensor::scalar(0.5f64));
    let mut shifted = x;
    tape.scope("block", || {
        shifted = x + 1.0;
        shifted.tanh()
    });
    let _step = profile.step(0);
    shifted.value().unwrap();
    drop(_step);
    let again = row(&profile.by_op(), "affine");
    assert_eq!((again.calls, time_in(&again, Lane::Recompute)), (1, again.time));
}

#[test]
fn spans_are_the_programs_own_and_what_lies_in_them_is_not() {
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let x = tape.variable(&Tensor::scalar(0.5f64));
    let pause = Duration::from_millis(3);
    let _step = profile.step(7);
    profile.span("outer", || {
        profile.span("inner", || std::thread::sleep(pause));
        x.exp()
    });
    drop(_step);
    let by_op = profile.by_op();
    let (outer, inner, exp) = (row(&by_op, "outer"), row(&by_op, "inner"), row(&by_op, "exp"));
    assert_eq!(inner, by_op[0]);
    assert!(inner.time >= pause && outer.time < inner.time);
    assert_eq!(time_in(&inner, Lane::Other), inner.time);
    assert_eq!(time_in(&exp, Lane::Forward), exp.time);
}

#[test]
fn rules_of_forward_mode_are_named_and_are_no_backward_pass() {
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let x = tape.variable(&Tensor::scalar(0.5f64));
    let y = x.tanh();
    let _step = profile.step(0);
    tape.jvp(y, &[(x, tape.scalar(1.0, DType::F64))]).unwrap();
    drop(_step);
    let by_op = profile.by_op();
    assert_eq!(row(&by_op, "dtanh").calls, 1);
    assert!(by_op.iter().all(|row| row.name.starts_with("dtanh") && time_in(row, Lane::Other) == row.time));
}

#[test]
fn nothing_is_noted_outside_the_steps_that_are_wanted_and_no_bit_changes() {
    let (x, w) = operands();
    let gradient = |tape: &Tape| {
        let w = tape.variable(&w);
        let gradients = tape.backward(network(tape, &x, w)).unwrap();
        gradients.of(w).unwrap().to_f64_vec().unwrap()
    };
    let profile = Profile::of_steps(1..3);
    let mut tape = Tape::new().with_profile(&profile);
    let plain = gradient(&Tape::new());
    for step in 0..5 {
        tape.clear(step);
        let _step = profile.step(step);
        assert_eq!(gradient(&tape), plain);
    }
    tape.clear(5);
    gradient(&tape);
    assert_eq!(row(&profile.by_op(), "tanh").calls, 2 * 2);
    let steps = json(&profile.to_json())["steps"].clone();
    let numbers: Vec<u64> =
        steps.as_array().unwrap().iter().map(|step| step["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(Profile::of_steps(0..0).to_string(), "no step was profiled\n");
}

#[test]
fn ten_steps_once_it_is_warm() {
    let wanted = |steps: u64| {
        let profile = Profile::after_warm_up(steps);
        (0..steps).for_each(|step| drop(profile.step(step)));
        let steps = json(&profile.to_json())["steps"].clone();
        let numbers = steps.as_array().unwrap().iter().map(|step| step["number"].as_u64().unwrap());
        (numbers.clone().min(), numbers.max())
    };
    assert_eq!(wanted(100), (Some(10), Some(19)));
    assert_eq!(wanted(9), (Some(4), Some(8)));
    assert_eq!(wanted(1), (Some(0), Some(0)));
    assert_eq!(wanted(0), (None, None));
}

#[test]
fn a_step_ends_before_the_next_begins() {
    let profile = Profile::new();
    let _first = profile.step(0);
    let message =
        *catch_unwind(AssertUnwindSafe(|| drop(profile.step(1)))).unwrap_err().downcast::<String>().unwrap();
    assert_eq!(message, "step 1: the step before it is still under way");
}

/// Events by thread, each as (name, begin, end) in nanoseconds.
fn threads(trace: &Value, process: u64) -> BTreeMap<String, Vec<(String, u64, u64)>> {
    let events = trace["traceEvents"].as_array().unwrap();
    let of_process = || events.iter().filter(|event| event["pid"] == process);
    let nanoseconds = |time: &Value| (time.as_f64().unwrap() * 1e3).round() as u64;
    let mut threads = BTreeMap::new();
    for thread in of_process().filter(|event| event["name"] == "thread_name") {
        let own = of_process().filter(|event| event["ph"] == "X" && event["tid"] == thread["tid"]);
        let own = own.map(|event| {
            let begun = nanoseconds(&event["ts"]);
            (event["name"].as_str().unwrap().to_string(), begun, begun + nanoseconds(&event["dur"]))
        });
        threads.insert(thread["args"]["name"].as_str().unwrap().to_string(), own.collect());
    }
    threads
}

#[test]
fn a_trace_has_a_thread_for_each_lane_and_its_events_lie_inside_each_other() {
    let profile = profiled();
    let threads = threads(&json(&profile.trace_json()), 1);
    assert_eq!(threads.keys().collect::<Vec<_>>(), ["backward", "forward", "other", "recompute"]);
    for events in threads.values() {
        let mut open: Vec<u64> = Vec::new();
        for (name, begun, end) in events {
            open.retain(|around| around > begun);
            assert!(open.iter().all(|around| around >= end), "{name} lies half inside another event");
            open.push(*end);
        }
    }
    let names = |thread: &str| threads[thread].iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>();
    let block = |layer| [layer, "branch", "matmul", "tanh"];
    assert_eq!(
        names("forward"),
        [&block("layers.0")[..], &block("layers.1"), &["loss", "sum", "reshape"]].concat()
    );
    assert_eq!(names("backward")[..2], ["backward", "∂reshape"]);
    assert_eq!(names("other"), ["step 0"]);
    // A scope is around what it records, and the pass around every rule.
    let (scope, inside) = (&threads["forward"][0], &threads["forward"][3]);
    assert!(scope.1 <= inside.1 && inside.2 <= scope.2);
    let pass = &threads["backward"][0];
    assert!(threads["backward"].iter().all(|event| pass.1 <= event.1 && event.2 <= pass.2));
}

#[test]
fn a_panic_ends_what_was_under_way() {
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let x = tape.variable(&Tensor::full([2], 1.0, DType::F32));
    let _step = profile.step(0);
    let failed = catch_unwind(AssertUnwindSafe(|| tape.scope("block", || x.reshape([3]))));
    assert!(failed.is_err());
    tape.scope("after", || x.exp());
    drop(_step);
    let trace = json(&profile.trace_json());
    let forward = &threads(&trace, 1)["forward"];
    let (block, after) = (&forward[0], &forward[1]);
    assert_eq!((block.0.as_str(), after.0.as_str()), ("block", "after"));
    assert!(block.2 <= after.1);
}

#[test]
fn tables_fit_80_columns_and_json_says_the_same() {
    let profile = Profile::new();
    let tape = Tape::new().with_profile(&profile);
    let x = tape.variable(&Tensor::full([4], 0.5, DType::F32));
    {
        let _step = profile.step(0);
        for i in 0..30 {
            tape.scope(
                format_args!("a_rather_long_name_of_a_network_that_someone_made/kind_{i}/layers.{i}"),
                || x.exp(),
            );
            profile.span(
                &format!("a phase of the program that has a long name, of thirty such, number {i}"),
                || (),
            );
        }
    }
    let text = profile.to_string();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(text.starts_with("step 0: "), "{text}");
    assert!(text.contains("\n16 more ") && text.contains("/layers.*"), "{text}");
    let profile_json = json(&profile.to_json());
    assert_eq!(profile_json["operations"].as_array().unwrap().len(), 31);
    assert_eq!(profile_json["scopes"].as_array().unwrap().len(), 31);
    let nanoseconds =
        |rows: &Value| rows.as_array().unwrap().iter().map(|row| row["ns"].as_u64().unwrap()).sum::<u64>();
    for rows in ["lanes", "operations", "scopes"] {
        let sum = nanoseconds(&profile_json[rows]) + profile_json["between_ns"].as_u64().unwrap();
        assert_eq!(Some(sum), profile_json["wall_ns"].as_u64(), "{rows}");
    }
}

#[test]
fn several_profiles_are_written_together() {
    let folder = std::env::temp_dir().join(format!("limpid-{}-profiles", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (one, two) = (profiled(), profiled());
    Profile::write(&[("one", &one), ("the \"other\"", &two)], &folder).unwrap();
    let read = |name: &str| json(&std::fs::read_to_string(folder.join(name)).unwrap());
    let (profiles, trace) = (read("profile.json"), read("trace.json"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(profiles["one"], json(&one.to_json()));
    assert_eq!(profiles["the \"other\""]["wall_ns"], two.wall().as_nanos() as u64);
    assert_eq!(threads(&trace, 2)["forward"].len(), threads(&trace, 1)["forward"].len());
}
