//! The derivative checker: right rules pass, wrong ones are caught with the message that says what is wrong.

use limpid_autograd::check::{Check, Report, Tier, Verdict};
use limpid_autograd::ops::elementwise::where_;
use limpid_autograd::ops::movement::concat;
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Tape, Var, check};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Activation, DType, Inferred, Map, Meta, Tensor};

#[path = "checker/page.rs"]
mod page;
#[path = "checker/probabilities.rs"]
mod probabilities;
#[path = "checker/specimens/mod.rs"]
mod specimens;
#[path = "checker/usual_ways.rs"]
mod usual_ways;

fn uniform(shape: &[usize], low: f64, high: f64, seed: u64) -> Tensor {
    Tensor::random(Distribution::Uniform { low, high }, shape, DType::F64, Key::new(seed)).unwrap()
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std: 1.0 }, shape, DType::F64, Key::new(seed)).unwrap()
}

fn positive(shape: &[usize], seed: u64) -> Tensor {
    uniform(shape, 0.3, 2.0, seed)
}

fn ints(values: &[i64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape)
}

type Function = for<'t> fn(&[Var<'t>]) -> Var<'t>;

#[test]
fn right_rules_pass() {
    let x = || normal(&[2, 3, 4], 1);
    let m = || normal(&[3, 5], 2);
    let table: Vec<(&str, Function, Vec<Tensor>)> = vec![
        ("neg", |x| -x[0], vec![x()]),
        ("abs", |x| x[0].abs(), vec![x()]),
        ("exp", |x| x[0].exp(), vec![x()]),
        ("expm1", |x| x[0].expm1(), vec![x()]),
        ("log", |x| x[0].log(), vec![positive(&[7], 3)]),
        ("log1p", |x| x[0].log1p(), vec![positive(&[7], 3)]),
        ("sqrt", |x| x[0].sqrt(), vec![positive(&[7], 3)]),
        ("rsqrt", |x| x[0].rsqrt(), vec![positive(&[7], 3)]),
        ("recip", |x| x[0].recip(), vec![positive(&[7], 3)]),
        ("sin", |x| x[0].sin(), vec![x()]),
        ("cos", |x| x[0].cos(), vec![x()]),
        ("tanh", |x| x[0].tanh(), vec![x()]),
        ("sigmoid", |x| x[0].sigmoid(), vec![x()]),
        ("erf", |x| x[0].erf(), vec![x()]),
        ("softplus", |x| x[0].softplus(), vec![x()]),
        ("relu", |x| x[0].relu(), vec![x()]),
        ("leaky_relu", |x| x[0].leaky_relu(0.1), vec![x()]),
        ("elu", |x| x[0].elu(1.3), vec![x()]),
        ("gelu", |x| x[0].gelu(), vec![x()]),
        ("silu", |x| x[0].silu(), vec![x()]),
        ("powf", |x| x[0].powf(2.5), vec![positive(&[7], 3)]),
        ("clamp", |x| x[0].clamp(-0.5, 0.7), vec![x()]),
        ("add", |x| x[0] + x[1], vec![x(), normal(&[3, 1], 4)]),
        ("sub", |x| x[0] - x[1], vec![normal(&[4], 4), x()]),
        ("mul", |x| x[0] * x[1], vec![x(), normal(&[3, 1], 4)]),
        ("div", |x| x[0] / x[1], vec![x(), positive(&[3, 1], 4)]),
        ("pow", |x| x[0].pow(x[1]), vec![positive(&[2, 3], 3), normal(&[3], 4)]),
        ("maximum", |x| x[0].maximum(x[1]), vec![x(), normal(&[3, 1], 4)]),
        ("minimum", |x| x[0].minimum(x[1]), vec![x(), normal(&[3, 1], 4)]),
        ("where", |x| where_(x[0].gt(x[1]), x[0] * x[0], x[1]), vec![x(), normal(&[4], 5)]),
        ("sum", |x| x[0].sum(&[0, 2]), vec![x()]),
        ("mean", |x| x[0].mean(&[1]), vec![x()]),
        ("prod", |x| x[0].prod(&[1]), vec![x()]),
        ("max", |x| x[0].max(&[2]), vec![x()]),
        ("min", |x| x[0].min(&[0]), vec![x()]),
        ("logsumexp", |x| x[0].logsumexp(&[1]), vec![x()]),
        ("var", |x| x[0].var(&[2], 1), vec![x()]),
        ("cumsum", |x| x[0].cumsum(1), vec![x()]),
        ("sort", |x| x[0].sort(2, true).0, vec![x()]),
        ("topk", |x| x[0].topk(2, 1, true).0, vec![x()]),
        ("matmul", |x| x[0].matmul(x[1]), vec![normal(&[2, 4, 3], 1), m()]),
        (
            "linear",
            |x| x[0].linear(x[1], Some(x[2]), Activation::Tanh),
            vec![normal(&[4, 5], 1), m(), normal(&[3], 6)],
        ),
        ("linear relu", |x| x[0].linear(x[1], None, Activation::Relu), vec![normal(&[4, 5], 1), m()]),
        ("softmax", |x| x[0].softmax(1), vec![x()]),
        ("log_softmax", |x| x[0].log_softmax(-1), vec![x()]),
        ("cross_entropy", |x| x[0].cross_entropy(x[1]), vec![m(), ints(&[4, 0, 2], &[3])]),
        ("layer_norm", |x| x[0].layer_norm(x[1], x[2], 1e-5), vec![x(), positive(&[4], 3), normal(&[4], 6)]),
        ("rms_norm", |x| x[0].rms_norm(x[1], 1e-6), vec![x(), positive(&[4], 3)]),
        ("gather", |x| x[0].gather(1, x[1]), vec![m(), ints(&[4, 0, 0, 2, 1, 1], &[3, 2])]),
        (
            "scatter_add",
            |x| x[0].scatter_add(1, x[1], x[2]),
            vec![m(), ints(&[4, 0, 0, 2, 1, 1], &[3, 2]), normal(&[3, 2], 7)],
        ),
        ("permute", |x| x[0].permute(&[2, 0, 1]), vec![x()]),
        ("slice", |x| x[0].slice(2, 1, 4, 2), vec![x()]),
        ("flip", |x| x[0].flip(1), vec![x()]),
        ("expand", |x| x[0].expand([5, 3, 2]), vec![normal(&[3, 1], 1)]),
        ("concat", |x| concat(&[x[0], x[1]], 0), vec![m(), normal(&[2, 5], 7)]),
        ("dropout", |x| x[0].dropout(0.4) * x[0], vec![x()]),
        ("tril", |x| x[0].tril(0), vec![x()]),
        ("scalar", |x| x[0] * x[0], vec![normal(&[], 1)]),
        ("a scope", |x| x[0].tape().scope("block", || (x[0] + 1.0).tanh() * x[0]), vec![x()]),
        ("unused elements", |x| x[0].select(1, 2).sin(), vec![x()]),
    ];
    for (name, f, inputs) in table {
        for inputs in [inputs.clone(), inputs.iter().map(transposed_in_memory).collect()] {
            let report = check(f, &inputs);
            assert!(report.passed(), "{name}: {report}");
        }
    }
}

fn transposed_in_memory(x: &Tensor) -> Tensor {
    let reversed: Vec<usize> = (0..x.shape().len()).rev().collect();
    x.permute(&reversed).contiguous().unwrap().permute(&reversed)
}

fn findings(report: &Report) -> String {
    match &report.verdict {
        Verdict::Fail(_) => report.to_string(),
        _ => panic!("it should fail: {report}"),
    }
}

#[test]
fn the_numbers_that_a_pass_rests_on() {
    let report = check(|x| (x[0] * x[1]).tanh(), &[normal(&[4, 3], 1), normal(&[3], 2)]);
    report.expect_pass();
    println!("{report}");
    let number = |tier, name| report.tier(tier).unwrap().measured(name).unwrap();
    assert!((number(Tier::Taylor, "slope") - 3.0).abs() < 0.2, "{report}");
    assert!((number(Tier::Curvature, "slope") - 3.0).abs() < 0.2, "{report}");
    assert!(number(Tier::Adjoint, "adjoint to") < 1e-14, "{report}");
    assert!(number(Tier::Taylor, "error below") < 1e-9, "{report}");
    assert_eq!(number(Tier::Jacobian, "entries"), 12.0 * (12.0 + 3.0));
}

/// Difference quotients at the two longest steps agree, on a slope of 1.0002 where it is 1: rules that are right are not
/// called wrong.
#[test]
fn differences_that_agree_by_luck_are_not_believed() {
    let lucky: Function = |x| {
        let square = x[0] * x[0];
        x[0] + x[0] * square - x[0] * square * square * (0.8 * 32.0 * 32.0)
    };
    check(lucky, &[Tensor::zeros([1], DType::F64)]).expect_pass();
}

#[test]
fn a_sum_over_a_softmax_has_no_power() {
    let message = findings(&check(|x| x[0].softmax(1).sum(&[]), &[normal(&[3, 5], 1)]));
    assert!(message.contains("no power"), "{message}");
    check(|x| x[0].softmax(1), &[normal(&[3, 5], 1)]).expect_pass();
}

#[test]
fn an_input_that_nothing_depends_on_has_no_power() {
    let message = findings(&check(|x| x[0] * 2.0 + x[1].sign(), &[normal(&[3], 1), normal(&[3], 2)]));
    assert!(message.contains("x1: no power"), "{message}");
}

#[test]
fn nothing_to_differentiate_has_no_power() {
    let (empty, some) = (Tensor::zeros([2, 0], DType::F64), normal(&[3], 1));
    assert!(findings(&check(|x| x[0].sum(&[1]), &[empty])).contains("no power"));
    assert!(findings(&check(|x| x[0].slice(0, 0, 0, 1), &[some])).contains("no power"));
}

#[test]
fn at_a_kink_the_derivative_lies_between_the_one_sided_ones() {
    let at = Tensor::from_vec(vec![-1.0f64, 0.0, 2.0], [3]);
    let table: [(&str, Function); 4] = [
        ("relu", |x| x[0].relu()),
        ("abs", |x| x[0].abs()),
        ("clamp", |x| x[0].clamp(-1.0, 0.0) + x[0]),
        ("maximum", |x| x[0].maximum(x[0] * 2.0)),
    ];
    for (name, f) in table {
        let report = check(f, std::slice::from_ref(&at));
        assert!(report.passed(), "{name}: {report}");
        assert!(report.to_string().contains("between the one-sided derivatives"), "{report}");
        let strict = Check::new().kinks(false).run(f, std::slice::from_ref(&at));
        assert!(matches!(&strict.verdict, Verdict::Inconclusive(why) if why.contains(name)), "{strict}");
    }
    check(|x| x[0].max(&[0]), &[Tensor::from_vec(vec![1.0f64, 2.0, 2.0], [3])]).expect_pass();
}

#[test]
fn a_kink_too_near_to_step_beside_is_named() {
    let near = Tensor::from_vec(vec![1.0f64, -0.5, 3e-12, 2.0], [4]);
    let report = check(|x| (x[0] * 3.0).relu().exp(), &[near]);
    match &report.verdict {
        Verdict::Inconclusive(why) => assert!(why.contains("relu at ") && why.contains("element 2"), "{why}"),
        other => panic!("{other:?}"),
    }
    // A kink that leaves room is passed on the way down.
    check(|x| x[0].relu().exp(), &[Tensor::from_vec(vec![1.0f64, 1e-5], [2])]).expect_pass();
}

/// max(x, 0) by someone who did not say that it has pieces; `slope` is its derivative at 0.
#[derive(Debug)]
struct Ramp {
    slope: f64,
}

impl Ramp {
    fn derivative<'t>(&self, x: Var<'t>) -> Var<'t> {
        let at_zero = x.equal(x.fill(0.0));
        where_(at_zero, x.fill(self.slope), x.gt(x.fill(0.0)).cast(DType::F64))
    }
}

impl Op for Ramp {
    fn name(&self) -> &'static str {
        "ramp"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        Tensor::map(Map::Relu, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| at.g() * self.derivative(at.x(i)))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| dx * self.derivative(at.x(i)))
    }
}

#[test]
fn at_a_kink_that_nobody_declared_there_is_no_verdict() {
    let at = Tensor::from_vec(vec![-1.0f64, 0.0, 2.0], [3]);
    let ramp =
        |slope: f64| check(|x| x[0].tape().record(Ramp { slope }, x) * x[0].exp(), std::slice::from_ref(&at));
    for slope in [0.0, 0.3, 1.0] {
        let report = ramp(slope);
        match &report.verdict {
            Verdict::Inconclusive(why) => {
                assert!(why.contains("Op::branches"), "{why}");
                assert!(report.to_string().contains("element 1 of input 0 is at a kink"), "{report}");
            }
            other => panic!("{slope}: {other:?}"),
        }
    }
    // A derivative outside the one-sided ones is wrong, kink or not.
    for slope in [-0.1, 1.1] {
        let message = findings(&ramp(slope));
        assert!(message.starts_with("FAIL ramp at "), "{message}");
    }
    check(|x| x[0].tape().record(Ramp { slope: 0.0 }, x), &[normal(&[4], 1)]).expect_pass();
}

#[test]
#[should_panic(expected = "input 1 is f32; derivatives are checked in f64")]
fn narrow_inputs_are_refused() {
    check(|x| x[0], &[normal(&[2], 1), Tensor::zeros([2], DType::F32)]);
}

#[test]
fn an_operation_that_fails_is_a_failure() {
    let message = findings(&check(|x| x[0].gather(0, x[1]), &[normal(&[3], 1), ints(&[7], &[1])]));
    assert!(message.contains("the program failed"), "{message}");
}
