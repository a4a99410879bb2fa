//! Is this derivative right?
//!
//! [`check`](check()) answers for any function of tensors, in f64, and says what it rests on:
//!
//! ```
//! use limpid_autograd::check;
//! use limpid_tensor::Tensor;
//!
//! let a = Tensor::from_vec(vec![0.3f64, -1.2, 0.8, 0.5, 2.0, -0.7], [2, 3]);
//! let b = Tensor::from_vec(vec![1.1f64, 0.4, -0.9], [3]);
//! let report = check(|x| (x[0] * x[1]).tanh(), &[a, b]);
//! report.expect_pass();
//! println!("{report}");
//! ```
//!
//! The evidence comes in [tiers](Tier): what every rule owes; forward against reverse mode; a ladder of symmetric Taylor
//! remainders, which fall with slope 3 if the gradient is right and 1 if it is wrong; every entry of a small Jacobian
//! against differences that know their error; and the second derivative. No tolerance for an error depends on the number of
//! elements, and allowances for rounding are relative to a Euclidean norm. There are three [verdicts](Verdict): a check that
//! could not have failed is a failure, and one that cannot decide says why, naming the operation and the element whose kink
//! is in the way.
//!
//! A check is worth what it would have caught: [`Check::score`] makes [mutants](Mutant) of every derivative rule that a
//! function uses, and counts those it kills.
//!
//! A reader's order: `ladder.rs` is the idea, `taylor.rs` its use, `point.rs` what is evaluated; `explain.rs` is what
//! happens after a failure, `mutate.rs`, `fate.rs` and `score.rs` are the check of the check.

mod adjoint;
pub mod case;
mod contract;
mod curvature;
mod diagnosis;
mod differences;
mod edits;
mod entries;
mod explain;
mod fate;
mod ladder;
pub(crate) mod mutate;
mod point;
mod property;
mod report;
mod reproduce;
mod score;
mod steps;
mod taylor;

use std::rc::Rc;

use limpid_tensor::{DType, Shape, Tensor};

use crate::error::Result;
use crate::var::Var;
use entries::Comparison;
use explain::Explanation;
use mutate::Mutation;
use point::Problem;

pub use fate::Fate;
pub use mutate::{Edit, Mutant};
pub use property::{Failure, Property, Survey};
pub use report::{Finding, Report, Tier, TierOutcome, Verdict};
pub use score::Score;

/// A function that can be checked.
type Function<'a> = &'a dyn for<'t> Fn(&[Var<'t>]) -> Var<'t>;

/// Checks the first and second derivatives of `f` by its float inputs, which must be f64; inputs of other dtypes are
/// constants. The result of `f` may have any shape. `f` is called on fresh tapes in training mode, all of one seed.
///
/// # Panics
/// If a float input is not f64, or there is none.
#[track_caller]
pub fn check(f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) -> Report {
    Check::new().run(f, inputs)
}

/// A [`check`](check()) with other settings.
///
/// ```
/// use limpid_autograd::check::{Check, Verdict};
/// use limpid_tensor::Tensor;
/// let at_the_kink = Tensor::from_vec(vec![-1.0f64, 0.0, 2.0], [3]);
/// // relu′(0) = 0 lies between the one-sided derivatives 0 and 1.
/// Check::new().seed(7).probes(5).run(|x| x[0].relu(), &[at_the_kink.clone()]).expect_pass();
/// let report = Check::new().kinks(false).run(|x| x[0].relu(), &[at_the_kink]);
/// assert!(matches!(report.verdict, Verdict::Inconclusive(reason) if reason.contains("relu") && reason.contains("element 1")));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Check {
    probes: usize,
    seed: u64,
    second_order: bool,
    kinks: bool,
    explain: bool,
}

impl Default for Check {
    fn default() -> Self {
        Check::new()
    }
}

/// What the tiers found about one function.
struct Evidence {
    tiers: Vec<TierOutcome>,
    /// The first input whose entries are wrong.
    comparison: Option<Comparison>,
    /// Input, and the rows of its Jacobian by rule.
    rows: Vec<(usize, Vec<Vec<f64>>)>,
    output: Shape,
}

impl Evidence {
    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.tiers.iter().flat_map(|tier| &tier.findings)
    }

    fn verdict(&self) -> Verdict {
        let findings: Vec<Finding> = self.findings().cloned().collect();
        if !findings.is_empty() {
            return Verdict::Fail(findings);
        }
        let mut doubts = self.tiers.iter().flat_map(|tier| tier.doubts.iter().map(move |d| (tier.tier, d)));
        match doubts.next() {
            Some((tier, reason)) => Verdict::Inconclusive(format!("{tier}: {reason}")),
            None => Verdict::Pass,
        }
    }
}

impl Check {
    /// Three probes for each input, seed 0, second order, and the interval test at kinks.
    pub fn new() -> Check {
        Check { probes: 3, seed: 0, second_order: true, kinks: true, explain: true }
    }

    /// How many random directions and cotangents each input is probed with.
    ///
    /// # Panics
    /// If there are none.
    #[track_caller]
    pub fn probes(self, probes: usize) -> Check {
        assert!(probes > 0, "probes: a check needs at least one");
        Check { probes, ..self }
    }

    /// The seed of the probes, and of the tapes that `f` draws on.
    pub fn seed(self, seed: u64) -> Check {
        Check { seed, ..self }
    }

    /// Whether the second derivative is checked.
    pub fn second_order(self, second_order: bool) -> Check {
        Check { second_order, ..self }
    }

    /// Whether a point at a kink may pass: if its derivative lies between the one-sided ones. Else it is inconclusive.
    pub fn kinks(self, kinks: bool) -> Check {
        Check { kinks, ..self }
    }

    /// Whether a failure is traced to the operation and the entry that cause it: for a person, not for counting.
    pub fn explain(self, explain: bool) -> Check {
        Check { explain, ..self }
    }

    /// Checks `f` at `inputs`, as [`check`](check()).
    ///
    /// # Panics
    /// If a float input is not f64, or there is none.
    #[track_caller]
    pub fn run(&self, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) -> Report {
        self.examine(&f, inputs, None)
    }

    #[track_caller]
    fn examine(&self, f: Function<'_>, inputs: &[Tensor], mutation: Option<&Rc<Mutation>>) -> Report {
        let variables = variables(inputs);
        let problem = Problem { f, inputs, variables: &variables, seed: self.seed, mutation };
        let described =
            inputs.iter().enumerate().map(|(i, x)| explain::describe(&format!("x{i}"), x)).collect();
        let evidence = match self.evidence(&problem) {
            Ok(evidence) => evidence,
            Err(error) => {
                let mut outcome = TierOutcome::new(Tier::Contract);
                outcome.fault(None, format!("the program failed: {error}"));
                Evidence {
                    tiers: vec![outcome],
                    comparison: None,
                    rows: Vec::new(),
                    output: Shape::default(),
                }
            }
        };
        let verdict = evidence.verdict();
        let wrong = self.explain && evidence.findings().any(|finding| !finding.powerless);
        let explanation = wrong.then(|| {
            explain::explain(self, &problem, &evidence).unwrap_or_else(|error| Explanation::failed(&error))
        });
        Report { verdict, tiers: evidence.tiers, inputs: described, explanation }
    }

    fn evidence(&self, problem: &Problem<'_>) -> Result<Evidence> {
        let base = problem.value(&problem.base())?;
        let output = {
            let tape = problem.tape();
            (problem.f)(&problem.place(&tape, None, &[])).shape()
        };
        let mut evidence = Evidence { tiers: Vec::new(), comparison: None, rows: Vec::new(), output };
        let mut contract = contract::contract(problem, &base)?;
        // Undeclared reads do not make numbers wrong; what is not finite or repeatable cannot be compared.
        let comparable = contract.measured("linear to").is_some();
        let empty = base.y.is_empty() || problem.variables.iter().all(|&i| problem.inputs[i].elements() == 0);
        if empty {
            contract.powerless(None, "no power: there are no elements to differentiate");
        }
        evidence.tiers.push(contract);
        if !comparable || empty {
            return Ok(evidence);
        }
        evidence.tiers.push(adjoint::adjoint(problem, &base, self.probes)?);
        let taylor = taylor::taylor(problem, &base, self)?;
        evidence.tiers.push(taylor.outcome);
        let jacobian = entries::jacobian(problem, &base)?;
        evidence.tiers.push(jacobian.outcome);
        evidence.rows = jacobian.by_rule;
        evidence.comparison = match (jacobian.failed, taylor.wrong) {
            (Some(comparison), _) => Some(comparison),
            (None, Some((i, u))) if self.explain => Some(entries::gradient(problem, &base, i, &u)?),
            _ => None,
        };
        let right_so_far = evidence.findings().next().is_none();
        if self.second_order && right_so_far {
            evidence.tiers.push(curvature::curvature(problem, &base, self.probes, taylor.at_kink)?);
        }
        Ok(evidence)
    }
}

/// The inputs that derivatives are taken by.
#[track_caller]
fn variables(inputs: &[Tensor]) -> Vec<usize> {
    let variables: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype().is_float()).collect();
    assert!(!variables.is_empty(), "check: there is no float input to differentiate by");
    for &i in &variables {
        let dtype = inputs[i].dtype();
        assert!(dtype == DType::F64, "check: input {i} is {dtype}; derivatives are checked in f64");
    }
    variables
}
