//! The check of the check: every mistake that can be made in a rule by one edit is noticed.

use limpid_autograd::check::{Check, Edit, Fate, Score, Tier};
use limpid_autograd::ops::elementwise::where_;
use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Var};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Activation, DType, Fused, Inferred, Map, Meta, Result, Tensor};

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

fn mask(values: &[u8], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.iter().map(|&v| v == 1).collect(), shape)
}

/// A 3×3 matrix with zeros where neither its transpose nor its reverse has them all.
fn with_zeros() -> Tensor {
    Tensor::from_vec(vec![0.0, 0.0, 1.5, 0.5, 0.7, 1.1, 0.4, 0.9, 1.3], [3, 3])
}

/// Functions, each at inputs of distinct sizes, and at square ones, where more mistakes fit.
fn table() -> Vec<(&'static str, Function, Vec<Vec<Tensor>>)> {
    let (wide, square) = (|seed| normal(&[2, 3], seed), |seed| normal(&[3, 3], seed));
    let row = |seed| normal(&[3], seed);
    let index = || ints(&[2, 0, 0, 2, 1, 1, 0, 1, 2], &[3, 3]);
    vec![
        ("tanh", |x| x[0].tanh(), vec![vec![wide(1)], vec![square(1)]]),
        (
            "mul",
            |x| x[0] * x[1],
            vec![vec![wide(1), row(2)], vec![square(1), square(2)], vec![square(1), normal(&[3, 1], 2)]],
        ),
        ("sub", |x| x[0] - x[1], vec![vec![wide(1), row(2)], vec![square(1), square(2)]]),
        (
            "div",
            |x| x[0] / x[1],
            vec![vec![wide(1), positive(&[3], 2)], vec![square(1), positive(&[3, 3], 2)]],
        ),
        (
            "matmul",
            |x| x[0].matmul(x[1]),
            vec![
                vec![wide(1), normal(&[3, 4], 2)],
                vec![square(1), square(2)],
                vec![normal(&[2, 3, 3], 1), square(2)],
            ],
        ),
        ("softmax", |x| x[0].softmax(1), vec![vec![wide(1)], vec![square(1)]]),
        ("log_softmax", |x| x[0].log_softmax(1), vec![vec![wide(1)], vec![square(1)]]),
        (
            "layer_norm",
            |x| x[0].layer_norm(x[1], x[2], 1e-3),
            vec![
                vec![normal(&[2, 4], 1), positive(&[4], 2), normal(&[4], 3)],
                vec![normal(&[4, 4], 1), positive(&[4], 2), normal(&[4], 3)],
            ],
        ),
        (
            "linear",
            |x| x[0].linear(x[1], Some(x[2]), Activation::Tanh),
            vec![vec![wide(1), normal(&[4, 3], 2), normal(&[4], 3)], vec![square(1), square(2), row(3)]],
        ),
        (
            "linear_add",
            |x| x[0].linear_add(x[1], x[2], Some(x[3])),
            vec![
                vec![normal(&[2, 4], 4), wide(1), normal(&[4, 3], 2), normal(&[4], 3)],
                vec![square(4), square(1), square(2), row(3)],
            ],
        ),
        (
            "gather",
            |x| x[0].gather(1, x[1]),
            vec![vec![normal(&[3, 5], 1), ints(&[4, 0, 0, 2, 1, 1], &[3, 2])], vec![square(1), index()]],
        ),
        (
            "scatter_add",
            |x| x[0].scatter_add(1, x[1], x[2]),
            vec![
                vec![normal(&[3, 5], 1), ints(&[4, 0, 0, 2, 1, 1], &[3, 2]), normal(&[3, 2], 2)],
                vec![square(1), index(), square(2)],
            ],
        ),
        ("cumsum", |x| x[0].cumsum(1), vec![vec![wide(1)], vec![square(1)]]),
        ("logsumexp", |x| x[0].logsumexp(&[1]), vec![vec![wide(1)], vec![square(1)]]),
        ("prod", |x| x[0].prod(&[1]), vec![vec![normal(&[2, 5], 1)], vec![square(1)]]),
        (
            "where",
            |x| where_(x[0], x[1], x[2]),
            vec![
                vec![mask(&[1, 0, 0, 1, 1, 0], &[2, 3]), wide(1), row(2)],
                vec![mask(&[1, 0, 0, 1, 1, 0, 1, 1, 0], &[3, 3]), square(1), square(2)],
            ],
        ),
        ("max", |x| x[0].max(&[1]), vec![vec![wide(1)], vec![square(1)]]),
        (
            "pow",
            |x| x[0].pow(x[1]),
            vec![vec![positive(&[2, 3], 1), row(2)], vec![positive(&[3, 3], 1), square(2)]],
        ),
        // Where the rule of pow has cases of its own: 0 to a constant power, and 0 as a constant.
        (
            "pow at 0",
            |x| {
                let powers = Tensor::from_vec(vec![2.0, 0.0, 0.0, 3.0, 1.0, 2.5, 2.0, 0.5, -1.0], [3, 3]);
                x[0].pow(x[0].tape().constant(&powers))
            },
            vec![vec![with_zeros()]],
        ),
        ("pow of 0", |x| x[0].tape().constant(&with_zeros()).pow(x[0]), vec![vec![positive(&[3, 3], 1)]]),
        (
            "maximum",
            |x| x[0].maximum(x[1]),
            vec![
                vec![wide(1), normal(&[3], 4)],
                vec![square(1), square(3)],
                // Ties.
                vec![
                    with_zeros(),
                    Tensor::from_vec(vec![0.0, 0.0, 0.8, 0.6, 0.2, 2.1, 0.7, 0.1, 1.9], [3, 3]),
                ],
            ],
        ),
        ("square", |x| x[0].tape().record(Square, x), vec![vec![wide(1)], vec![square(1)]]),
    ]
}

/// Mistakes that are none, in alphabetical order, and why.
const EQUIVALENT: [(&str, &str); 17] = [
    ("layer_norm vjp: 1: sign", INDEPENDENT),
    ("layer_norm vjp: 1: ×1.01", INDEPENDENT),
    ("layer_norm vjp: expand(1): sign", INDEPENDENT),
    ("layer_norm vjp: expand(1): ×1.01", INDEPENDENT),
    ("layer_norm vjp: operand 0 of layer_norm_bias_backward(x0, x1, ȳ): detached", INDEPENDENT),
    ("layer_norm vjp: operand 0 of layer_norm_bias_backward(x0, x1, ȳ): stale value", INDEPENDENT),
    ("layer_norm vjp: operand 0 of layer_norm_bias_backward(x0, x1, ȳ): transposed", INDEPENDENT),
    ("layer_norm vjp: operand 1 of layer_norm_bias_backward(x0, x1, ȳ): detached", INDEPENDENT),
    ("layer_norm vjp: operand 1 of layer_norm_bias_backward(x0, x1, ȳ): stale value", INDEPENDENT),
    ("layer_norm vjp: operand 1 of layer_norm_gain_backward(x0, x1, ȳ): detached", INDEPENDENT),
    ("layer_norm vjp: operand 1 of layer_norm_gain_backward(x0, x1, ȳ): stale value", INDEPENDENT),
    ("max jvp: cast(eq(x0, y)): sign", RATIO),
    ("max jvp: cast(eq(x0, y)): ×1.01", RATIO),
    ("max vjp: cast(eq(x0, y)): sign", RATIO),
    ("max vjp: cast(eq(x0, y)): ×1.01", RATIO),
    ("pow jvp: 1: ×1.01", TIMES_ZERO),
    ("pow vjp: 1: ×1.01", TIMES_ZERO),
];
const INDEPENDENT: &str =
    "the cotangents of gain and bias do not depend on the gain, nor that of the bias on x";
const RATIO: &str = "the share of each of k largest elements is a hit over the sum of hits: a factor cancels";
const TIMES_ZERO: &str =
    "at 0 the exponent and the logarithm's argument are 1 to be finite; 0 times them is 0";

/// y = x²: an operation that is not of this crate.
#[derive(Debug)]
struct Square;

impl Op for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Mul.infer(&[x[0], x[0]])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(Map::Mul, &[x[0], x[0]])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g() * at.x(0) * 2.0)
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx * at.x(0) * 2.0)
    }
}

/// A softmax whose rules are written out, so that there are places in them.
#[derive(Debug)]
struct Softmax;

impl Softmax {
    fn times_jacobian<'t>(y: Var<'t>, v: Var<'t>) -> Var<'t> {
        y * (v - (v * y).sum_to(&v.shape().with(v.shape().len() - 1, 1)))
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::fused(Fused::Softmax, x).expect("the CPU has this kernel")
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::OUTPUT
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| Softmax::times_jacobian(at.y(), at.g()))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| Softmax::times_jacobian(at.y(), dx))
    }
}

#[test]
fn every_mutant_that_changes_a_derivative_is_killed() {
    let mut score = Score::default();
    for (name, f, cases) in table() {
        for inputs in cases {
            let found = Check::new().score(f, &inputs).unwrap_or_else(|report| panic!("{name}: {report}"));
            assert!(found.mutants() > 0, "{name}");
            score.merge(&found);
        }
    }
    println!("{score}");
    assert_eq!(score.survivors().collect::<Vec<_>>(), []);
    let equivalent: Vec<&str> = score.equivalent().collect();
    assert_eq!(equivalent, EQUIVALENT.map(|(name, _why)| name));
    assert_eq!(score.killed() + equivalent.len(), score.mutants());
    let text = score.to_string();
    let longest = text.lines().map(|line| line.chars().count()).max();
    assert!(longest < Some(90), "{longest:?}");
}

#[test]
fn a_wrong_vjp_is_seen_without_the_jvp() {
    // Each mutant has one rule wrong, so that comparing the two sees all. What if both were wrong alike?
    // (At a tie of a maximum the gradient may be anything between two, and only the comparison sees a mistake.)
    let check = Check::new().second_order(false);
    for (name, f, cases) in table().into_iter().filter(|(name, ..)| *name != "maximum") {
        for inputs in cases {
            let mutants = check.mutants(f, &inputs).unwrap();
            for mutant in mutants.iter().filter(|mutant| mutant.to_string().contains(" vjp: ")) {
                match check.fate(mutant, f, &inputs) {
                    Fate::Killed(by) => {
                        assert!(by.iter().any(|&t| t != Tier::Adjoint), "{name}: {mutant}: {by:?}")
                    }
                    // Right at first order.
                    Fate::Survived(_) => {}
                    fate => panic!("{name}: {mutant}: {fate:?}"),
                }
            }
        }
    }
}

#[test]
fn names_and_fates() {
    let (x, f): (_, Function) = ([normal(&[2, 3], 1)], |x| x[0].tape().record(Softmax, x));
    let check = Check::new();
    let mutants = check.mutants(f, &x).unwrap();
    let named = |name: &str| mutants.iter().find(|mutant| mutant.to_string() == name).expect(name);
    let killed_by = |name: &str| match check.fate(named(name), f, &x) {
        Fate::Killed(by) => by.into_iter().collect::<Vec<_>>(),
        fate => panic!("{name}: {fate:?}"),
    };
    let first_order = [Tier::Adjoint, Tier::Taylor, Tier::Jacobian];
    assert_eq!(killed_by("softmax vjp: mul(ȳ, y): sign"), first_order);
    assert_eq!(killed_by("softmax vjp: sum(mul(ȳ, y)): first for sum"), first_order);
    assert_eq!(killed_by("softmax vjp: sub(ȳ, sum(mul(ȳ, y))): dropped term 1"), first_order);
    assert_eq!(killed_by("softmax vjp: operand 1 of mul(ȳ, y): stale value"), first_order);
    assert_eq!(killed_by("softmax jvp: dy: ×1.01"), [Tier::Adjoint]);
    assert_eq!(killed_by("softmax vjp: operand 1 of mul(ȳ, y): detached"), [Tier::Curvature]);
    assert_eq!(killed_by("softmax jvp: operand 0 of mul(dx0, y): detached"), [Tier::Curvature]);

    let report = check.run_mutated(named("softmax vjp: x̄0: sign"), f, &x);
    assert!(report.to_string().contains("the sign is wrong"), "{report}");

    let control = named("softmax vjp: x̄0: sign").control();
    assert_eq!(control.edit(), Edit::Nothing);
    assert_eq!(check.fate(&control, f, &x), Fate::Survived(None));
    assert!(check.is_equivalent(&control, f, &x));
    assert!(!check.is_equivalent(named("softmax vjp: x̄0: ×1.01"), f, &x));

    // Another function has no such rule.
    assert_eq!(check.fate(named("softmax vjp: x̄0: sign"), |x| x[0].tanh(), &x), Fate::NotMet);
}

#[test]
fn a_rule_that_panics_is_killed() {
    /// Its vjp is made of an operation that panics where there is nothing positive.
    #[derive(Debug)]
    struct Picky;

    impl Op for Picky {
        fn name(&self) -> &'static str {
            "picky"
        }

        fn infer(&self, x: &[&Meta]) -> Inferred {
            Ok(x[0].clone())
        }

        fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
            Ok(x[0].clone())
        }

        fn needs(&self, _tracked: &[bool]) -> Needs {
            Needs::NOTHING
        }

        fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
            at.each(|_| {
                let one = at.g().fill(1.0);
                at.g() * at.g().tape().record(Positive, &[one])
            })
        }

        fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
            at.sum(|_, dx| dx * 1.0)
        }
    }

    #[derive(Debug)]
    struct Positive;

    impl Op for Positive {
        fn name(&self) -> &'static str {
            "positive"
        }

        fn infer(&self, x: &[&Meta]) -> Inferred {
            Ok(x[0].clone())
        }

        fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
            assert!(x[0].item()? > 0.0, "positive: {} is not", x[0].item()?);
            Ok(x[0].clone())
        }

        fn needs(&self, _tracked: &[bool]) -> Needs {
            Needs::NOTHING
        }
    }

    let (x, f): (_, Function) = ([normal(&[2], 1)], |x| x[0].tape().record(Picky, x));
    let mutants = Check::new().mutants(f, &x).unwrap();
    let sign = mutants.iter().find(|mutant| mutant.to_string() == "picky vjp: 1: sign").unwrap();
    assert_eq!(Check::new().fate(sign, f, &x), Fate::Panicked("positive: -1 is not".into()));
}

#[test]
fn what_fails_anyway_has_no_score() {
    let report = Check::new().score(|x| x[0].detach(), &[normal(&[2], 1)]).unwrap_err();
    assert!(report.to_string().contains("no gradient arrives"), "{report}");
}
