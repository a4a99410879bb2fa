//! The cases that are timed on a card, each once on the emulator: all of them run, and their record says so.

#![cfg(has_gxx)]
#![allow(dead_code, reason = "what only the program needs is not used here")]

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

use std::collections::BTreeSet;

use limpid_cuda::{Cuda, emulated};

use case::Sizes;
use clock::Clock;
use report::Report;

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn every_case_runs_and_is_recorded() {
    emulated::install(Default::default()).unwrap();
    let cuda = Cuda::new(0).unwrap();
    let (sizes, clock) = (Sizes::tiny(), Clock::of_emulator(cuda));
    let mut report = Report::new(cuda, true);
    report.rows = cases::all(&sizes).iter().map(|case| case.measure(cuda, &clock, &sizes)).collect();
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
    assert!(of("sinkhorn f32, 40 of 4×4, 20 steps")["microseconds"].as_f64().unwrap() > 0.0);
}
