//! Cases as text, as tensors, as `proptest` strategies; and the properties that run them.

use limpid_autograd::check::case::draw::{broadcastable, factors, one, shapes};
use limpid_autograd::check::case::{Case, Draw, Drawn, Values};
use limpid_autograd::check::{Property, Verdict};
use limpid_tensor::DType;
use limpid_tensor::rng::Key;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

fn drawn(cases: &Drawn<Case>, n: u64) -> Vec<Case> {
    (0..n).map(|i| cases.draw(&mut Draw::random(Key::new(i)))).collect()
}

/// The same cases every time, and no file written.
fn config() -> Config {
    Config { failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Config::default() }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn a_case_reads_back(case in broadcastable(3, shapes(0..=4), Values::Normal(2.5))) {
        prop_assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
    }

    #[test]
    fn a_strategy_gives_cases(case in factors(Values::Positive)) {
        let x = case.tensors();
        let (a, b) = (x[0].shape(), x[1].shape());
        prop_assert_eq!(a[a.len() - 1], b[b.len() - 2]);
        prop_assert!(x[0].to_f64_vec().unwrap().iter().all(|&v| v > 0.0));
    }
}

#[test]
fn what_is_no_case_says_why() {
    let table = [
        ("f64[2 interior 0", "a dtype and shape such as f64[2,3]"),
        ("f63[2] interior 0", "f32, f64, bf16, i64 or bool"),
        ("f64[x] interior 0", "sizes in the brackets"),
        ("f64[2] internal 0", "a kind of values such as interior"),
        ("f64[2] interior", "a seed"),
        ("f64[2] interior 1 rotate(2)", "permute(n)"),
        ("f64[2] interior 1 slice(0,1,1,0)", "permute(n)"),
        ("f64[2] interior 1 | 70000", "a choice, a number below 65536"),
    ];
    for (text, expected) in table {
        let error = text.parse::<Case>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn every_layout_and_every_kind_of_shape_is_drawn() {
    let cases = drawn(&one(shapes(0..=4), Values::Interior), 400);
    let layouts: Vec<_> = cases.iter().map(|case| case.tensors()[0].layout().clone()).collect();
    let some = |what: &str, found: &dyn Fn(&limpid_tensor::Layout) -> bool| {
        assert!(layouts.iter().filter(|l| found(l)).count() >= 10, "{what}");
    };
    some("contiguous", &|l| l.is_contiguous() && l.offset() == 0);
    some("offset", &|l| l.offset() > 0);
    some("negative strides", &|l| l.strides().iter().any(|&s| s < 0));
    some("repeated", &|l| l.shape().iter().zip(l.strides()).any(|(&n, &s)| n > 1 && s == 0));
    some("permuted", &|l| l.strides().windows(2).any(|s| s[0] > 0 && s[0] < s[1]));
    some("scalars", &|l| l.shape().is_empty());
    some("rank 4", &|l| l.shape().len() == 4);
    some("square", &|l| l.shape().windows(2).last().is_some_and(|s| s[0] == s[1] && s[0] > 1));
    assert!(cases.iter().all(|case| case.tensors()[0].elements() > 0));
}

#[test]
fn rows_of_a_simplex_sum_to_one_in_any_layout() {
    for case in drawn(&one(shapes(1..=3), Values::Simplex), 100) {
        let x = &case.tensors()[0];
        let row = *x.shape().last().unwrap();
        for row in x.to_f64_vec().unwrap().chunks(row) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-15 && row.iter().all(|&v| v > 0.0), "{case}");
        }
    }
}

#[test]
fn floats_of_another_dtype_are_the_same_rounded() {
    let case: Case = "f64[3] interior 5 flip(0); i64[2] below(3) 1 | 0".parse().unwrap();
    let (wide, narrow) = (case.tensors(), case.clone().with_floats(DType::F32).tensors());
    let rounded: Vec<f64> = wide[0].to_f64_vec().unwrap().iter().map(|&v| f64::from(v as f32)).collect();
    assert_eq!(narrow[0].to_f64_vec().unwrap(), rounded);
    assert_eq!(narrow[1].dtype(), DType::I64);
}

#[test]
fn proptest_shrinks_the_case_and_not_the_tensor() {
    let strategy = one(shapes(0..=4), Values::Interior);
    let found = TestRunner::new(config()).run(&strategy, |case| {
        let large = case.tensors()[0].elements() >= 4;
        if large { Err(TestCaseError::fail("four elements")) } else { Ok(()) }
    });
    match found {
        // Contiguous, the first seed, no choices, and no size that could be smaller on its own.
        Err(TestError::Fail(_, case)) => assert_eq!(case.to_string(), "f64[2,3] interior 0 | 0 0 0 0 0 0"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_has_been_simplified_too_far_is_made_complicated_again() {
    let strategy = one(shapes(2..=2), Values::Interior);
    let mut tree = strategy.new_tree(&mut TestRunner::new(config())).unwrap();
    let first = tree.current();
    assert!(tree.simplify());
    while tree.complicate() {}
    assert_eq!(tree.current(), first);
}

#[test]
fn a_property_shrinks_to_the_smallest_case_that_fails() {
    // Wrong where an axis is broadcast: the gradient of the second operand lacks a sum.
    let pairs = broadcastable(2, shapes(0..=3), Values::Interior);
    let wrong = Property::new("wrong where broadcast", pairs, |x, _| {
        let broadcast = x[0].shape() != x[1].shape();
        if broadcast { x[0] * x[1] + (x[1].detach() * 0.1).tanh() } else { x[0] * x[1] }
    });
    let survey = wrong.run(40, 0);
    let failure = survey.failed.first().expect("some are broadcast");
    assert!(matches!(failure.report.verdict, Verdict::Fail(_)));
    let elements = |case: &Case| case.tensors().iter().map(|x| x.elements()).sum::<usize>();
    assert!(
        elements(&failure.shrunk) <= 3 && failure.shrunk.operands.iter().all(|o| o.views.is_empty()),
        "{survey}"
    );
    let text = survey.to_string();
    let line = text.lines().find_map(|l| l.trim().strip_prefix("wrong where broadcast: f64")).unwrap();
    assert_eq!(format!("f64{line}").parse::<Case>().unwrap(), failure.shrunk);
    assert!(std::panic::catch_unwind(|| survey.expect_pass()).is_err());
}

#[test]
fn a_panic_is_a_failure_whose_case_is_made_small() {
    let panics = Property::new("panics", one(shapes(0..=3), Values::Interior), |x, _| {
        assert!(x[0].shape().len() < 2, "no matrices here");
        x[0].sin()
    });
    let survey = panics.run(30, 0);
    assert_eq!(survey.passed + survey.failed.len(), 30);
    let failure = survey.failed.first().expect("some are matrices");
    assert_eq!(failure.shrunk.operands[0].shape, [1, 1], "{survey}");
    assert!(survey.to_string().contains("panicked: no matrices here"), "{survey}");
}

#[test]
fn regressions_come_first() {
    let table = "another: f64[1] interior 0 |\ntwo: f64[2] interior 4 | 3\n";
    let two = Property::new("two", one(shapes(0..=2), Values::Interior), |x, case| {
        x[0] * (1.0 + case.choose(0, 4) as f64)
    });
    let survey = two.with_regressions(table).run(3, 1);
    assert_eq!((survey.cases, survey.passed), (4, 4));
}
