//! Running a property: the cases that once failed, then random ones.

use limpid_autograd::check::case::Case;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

/// Cases that once failed, one to a line, behind the name of their property.
pub const REGRESSIONS: &str = include_str!("../regressions.txt");

/// The regressions in the table, by the property they belong to.
///
/// # Panics
/// If a line cannot be read.
pub fn regressions() -> Vec<(String, Case)> {
    let parse = |(i, line): (usize, &str)| {
        let (property, case) = line.split_once(": ").unwrap_or((line, ""));
        let case = case.parse().unwrap_or_else(|e| panic!("regressions.txt, line {}: {e}", i + 1));
        (property.into(), case)
    };
    REGRESSIONS.lines().enumerate().map(parse).collect()
}

/// How many random cases: `PROPTEST_CASES` from the environment, else `default`.
fn number_of_cases(default: u32) -> u32 {
    match std::env::var("PROPTEST_CASES") {
        Ok(n) => n.parse().unwrap_or_else(|_| panic!("PROPTEST_CASES is {n:?}, expected a number")),
        Err(_) => default,
    }
}

/// Checks a property with the regressions of its name and with random cases. The same cases come every time;
/// `PROPTEST_CASES` asks for more, `PROPTEST_RNG_SEED` for others.
///
/// # Panics
/// If a case fails, with the line for the table of regressions that says which.
pub fn check(
    name: &str,
    default_cases: u32,
    cases: impl Strategy<Value = Case>,
    property: impl Fn(&Case) -> Result<(), String>,
) {
    for (_, case) in regressions().iter().filter(|(of, _)| of == name) {
        if let Err(message) = property(case) {
            panic!("{name}, a regression: {message}\n{name}: {case}");
        }
    }
    let mut config =
        Config { cases: number_of_cases(default_cases), failure_persistence: None, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(name.bytes().fold(0, |h, b| h * 131 % 1_000_000_007 + u64::from(b)));
    }
    let result = TestRunner::new(config).run(&cases, |case| property(&case).map_err(TestCaseError::fail));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{name}: {reason}\nadd to tests/regressions.txt:\n{name}: {case}")
        }
        Err(TestError::Abort(reason)) => panic!("{name}: gave up: {reason}"),
    }
}
