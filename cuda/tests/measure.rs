//! The cases that are timed on a card, each once on the emulator: all of them run, and their record says so.

#![allow(dead_code, reason = "what only the program needs is not used here")]

#[path = "../examples/measure/breadth.rs"]
mod breadth;
#[path = "../examples/measure/case.rs"]
mod case;
#[path = "../examples/measure/cases.rs"]
mod cases;
#[path = "../examples/measure/clock.rs"]
mod clock;
#[path = "../examples/measure/operations.rs"]
mod operations;
#[path = "../examples/measure/report.rs"]
mod report;
#[path = "../examples/measure/step.rs"]
mod step;
#[path = "../examples/measure/table.rs"]
mod table;
#[path = "../examples/measure/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::sync::Once;

use limpid_cuda::{Cuda, emulated};

use case::Sizes;
use clock::{Clock, Time};
use report::{Goal, Library, Rate, Report, Row};
use targets::Verdict;

fn cuda() -> &'static Cuda {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        emulated::install(Default::default()).expect("g++ compiles kernels");
    });
    Cuda::new(0).unwrap()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn every_case_runs_and_is_recorded() {
    let cuda = cuda();
    let (sizes, clock) = (Sizes::tiny(), Clock::of_emulator(cuda));
    let mut report = Report::new(cuda, true);
    let cases = cases::all(&sizes).into_iter().chain(breadth::all(&sizes));
    report.rows = cases.map(|case| case.measure(cuda, &clock, &sizes)).collect();
    // A step of streams takes most of a second here.
    report.rows.extend(step::rows(cuda, &clock, sizes.layers, |name| name.contains("residual")));
    for row in &report.rows {
        let line = table::row(row, report.copy());
        assert!(!line.contains("FAILED") && line.chars().count() <= 92, "{line}");
    }
    assert!(report.is_right());
    let names: BTreeSet<&str> = report.rows.iter().map(|row| &*row.name).collect();
    assert_eq!(names.len(), report.rows.len(), "a name says which case it is");

    let json = report.to_json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows[0]["of_copy"], 1.0);
    let of = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    // By hand: 4096 elements in and out; 64³ multiplications and additions; of 64 layers the 64 + 1 elements of a weight and
    // its bias, changed with two memories of each by a gradient, and both counts of steps.
    assert_eq!(of("exp f32 [32, 128]")["bytes"], 4096.0 * 4.0 * 2.0);
    assert_eq!(of("add f32 [32, 128] and a row")["bytes"], (2.0 * 4096.0 + 128.0) * 4.0);
    assert_eq!(of("gather f32 [128, 32], whole rows")["bytes"], 2.0 * 4096.0 * 4.0 + 128.0 * 8.0);
    assert_eq!(of("adamw f32, 128 weights")["bytes"], 64.0 * (65.0 * 28.0 + 2.0 * 8.0));
    assert_eq!(of("matmul f32 64")["operations"], 2.0 * 64.0f64.powi(3));
    assert_eq!(of("adamw f32, gradients bf16 [4096]")["bytes"], 4096.0 * 26.0 + 8.0);
    assert!(of("sinkhorn f32, 40 of 4×4, 20 steps")["microseconds"].as_f64().unwrap() > 0.0);

    // What an emulator takes reaches nothing and misses nothing.
    let targets = targets::all(&report);
    assert!(targets.iter().all(|target| target.verdict() == Verdict::NotMeasured));
}

/// A row as a card would have measured it.
fn measured(name: &str, goal: Goal, microseconds: f64, rate: Rate, library: Option<f64>) -> Row {
    let time = Time { microseconds, spread: 0.0, repetitions: 1 };
    let library = library.map(|eager| Library { eager: Some(eager), compiled: Some(2.0 * eager) });
    Row { name: name.into(), is_reference: name == "copy", goal, measured: Ok((time, rate)), library }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn aims_are_reached_missed_or_not_measured() {
    let mut report = Report::new(cuda(), false);
    let verdicts = |report: &Report| targets::all(report).iter().map(|t| t.verdict()).collect::<Vec<_>>();
    use Verdict::{Fail, NotMeasured, Pass};
    assert_eq!(verdicts(&report), [NotMeasured; 4]);
    // 4 GB/s.
    let bytes = Rate::Bytes(80e6);
    report.rows.push(measured("copy", Goal::Bandwidth { times: 1.0 }, 20_000.0, bytes, None));
    report.rows.push(measured("sum", Goal::Bandwidth { times: 1.0 }, 23_000.0, bytes, None));
    report.rows.push(measured("short", Goal::Bandwidth { times: 1.0 }, 1e6, Rate::Bytes(63e6), None));
    report.rows.push(measured("product", Goal::Library, 100.0, Rate::Operations(1e9), Some(71.0)));
    report.rows.push(measured("sinkhorn", Goal::Within(30.0), 29.9, Rate::None, None));
    report.rows.push(measured("connection", Goal::Passes { bytes: 40e6 }, 12_900.0, bytes, None));
    assert_eq!(verdicts(&report), [Pass; 4]);

    report.rows[1] = measured("sum", Goal::Bandwidth { times: 1.0 }, 24_000.0, bytes, None);
    report.rows[3] = measured("product", Goal::Library, 100.0, Rate::Operations(1e9), None);
    report.rows[4] = measured("sinkhorn", Goal::Within(30.0), 30.1, Rate::None, None);
    report.rows[5] = measured("connection", Goal::Passes { bytes: 40e6 }, 13_100.0, bytes, None);
    assert_eq!(verdicts(&report), [Fail, NotMeasured, Fail, Fail]);
    let said = table::targets(&targets::all(&report));
    assert!(said.contains("sum: 98 % of the way") && !said.contains("short"), "{said}");
    report.rows[1].measured = Err("refused".into());
    assert_eq!(verdicts(&report)[0], NotMeasured);
    // One that moves half as much again as is counted.
    report.rows[1] = measured("cumsum", Goal::Bandwidth { times: 1.5 }, 35_000.0, bytes, None);
    assert_eq!(verdicts(&report)[0], Pass);
    report.rows[1] = measured("cumsum", Goal::Bandwidth { times: 1.5 }, 36_000.0, bytes, None);
    assert_eq!(verdicts(&report)[0], Fail);
}
