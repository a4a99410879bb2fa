//! Whether a check notices a mutant, and whether there is anything to notice.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use limpid_tensor::Tensor;

use super::curvature::{Curved, direction};
use super::mutate::{Mutant, Mutation};
use super::point::Problem;
use super::report::{Report, Tier, Verdict};
use super::{Check, Function, variables};
use crate::error::Result;
use crate::var::Var;

/// Derivatives that agree to this part of their largest entry are the same.
const SAME: f64 = 1e-11;

/// What became of a mutant.
#[derive(Clone, PartialEq, Debug)]
pub enum Fate {
    /// The check failed, by these tiers.
    Killed(BTreeSet<Tier>),
    /// The mutated rule panicked, with this message.
    Panicked(String),
    /// The check did not fail; why it was inconclusive, if it was.
    Survived(Option<String>),
    /// The rule did not run, or its program has no such place: it was no mutant of this function.
    NotMet,
}

impl Check {
    /// Every mutant of the derivative rules that `f` uses at `inputs`, in both directions.
    ///
    /// ```
    /// use limpid_autograd::check::{Check, Fate};
    /// use limpid_tensor::Tensor;
    /// let x = [Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3])];
    /// let check = Check::new();
    /// let mutants = check.mutants(|x| x[0].tanh(), &x)?;
    /// let dropped = mutants.iter().find(|m| m.to_string() == "tanh vjp: affine(mul(y, y)): dropped term 0").unwrap();
    /// assert!(matches!(check.fate(dropped, |x| x[0].tanh(), &x), Fate::Killed(_)));
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `f` cannot be computed or differentiated there.
    ///
    /// # Panics
    /// As [`run`](Check::run).
    #[track_caller]
    pub fn mutants(
        &self,
        f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        inputs: &[Tensor],
    ) -> Result<Vec<Mutant>> {
        let variables = variables(inputs);
        let list = Rc::new(Mutation::List(RefCell::default()));
        let problem =
            Problem { f: &f, inputs, variables: &variables, seed: self.seed, mutation: Some(&list) };
        // A rule may be another program where fewer operands want something.
        let alone = variables.iter().map(std::slice::from_ref);
        for moved in [&variables[..]].into_iter().chain(alone) {
            let tape = problem.tape();
            let x = problem.place(&tape, None, moved);
            let y = f(&x);
            // Cotangents and tangents that are tracked: a rule that takes them as constants is a mutant.
            let cotangent =
                tape.variable(&Tensor::from_vec(problem.cotangent(0, y.shape().elements()), y.shape()));
            tape.vjp(y, cotangent, &moved.iter().map(|&i| x[i]).collect::<Vec<_>>())?;
            let tangent = |i: usize| tape.variable(&Tensor::from_vec(problem.direction(i, 0), x[i].shape()));
            tape.jvp(y, &moved.iter().map(|&i| (x[i], tangent(i))).collect::<Vec<_>>())?;
        }
        let Mutation::List(found) = &*list else { return Ok(Vec::new()) };
        Ok(found.take())
    }

    /// [`run`](Check::run), with one mutated rule.
    ///
    /// # Panics
    /// As `run`, and if the mutated rule panics.
    #[track_caller]
    pub fn run_mutated(
        &self,
        mutant: &Mutant,
        f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        inputs: &[Tensor],
    ) -> Report {
        self.examine(&f, inputs, Some(&Rc::new(Mutation::of(mutant))))
    }

    /// Whether the check notices a mutant.
    ///
    /// # Panics
    /// As [`run`](Check::run).
    #[track_caller]
    pub fn fate(
        &self,
        mutant: &Mutant,
        f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        inputs: &[Tensor],
    ) -> Fate {
        self.fate_of(mutant, &f, inputs)
    }

    #[track_caller]
    pub(super) fn fate_of(&self, mutant: &Mutant, f: Function<'_>, inputs: &[Tensor]) -> Fate {
        variables(inputs);
        let mutation = Rc::new(Mutation::of(mutant));
        // The tapes that a panic leaves behind are dropped with it.
        let report =
            catch_unwind(AssertUnwindSafe(|| self.explain(false).examine(f, inputs, Some(&mutation))));
        match report {
            Err(panic) => Fate::Panicked(message(&*panic)),
            Ok(_) if !mutation.was_met() => Fate::NotMet,
            Ok(report) => match report.verdict {
                Verdict::Pass => Fate::Survived(None),
                Verdict::Inconclusive(why) => Fate::Survived(Some(why)),
                Verdict::Fail(findings) => Fate::Killed(findings.iter().map(|f| f.tier).collect()),
            },
        }
    }

    /// Whether a mutant changes nothing at these inputs, so that no check could notice it: random vector–Jacobian and
    /// Jacobian–vector products, by each input alone and by all, and, where the check asks for second order, products with
    /// the Hessian computed in three ways are the same to 1e-11 of their largest entry.
    ///
    /// # Panics
    /// As [`run`](Check::run).
    #[track_caller]
    pub fn is_equivalent(
        &self,
        mutant: &Mutant,
        f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        inputs: &[Tensor],
    ) -> bool {
        let (f, variables): (Function<'_>, _) = (&f, variables(inputs));
        let plain = Problem { f, inputs, variables: &variables, seed: self.seed, mutation: None };
        let mutation = Rc::new(Mutation::of(mutant));
        let changed = Problem { mutation: Some(&mutation), ..plain };
        let mutated = catch_unwind(AssertUnwindSafe(|| derivatives(&changed, self.second_order)));
        match (derivatives(&plain, self.second_order), mutated) {
            (Ok(plain), Ok(Ok(mutated))) => plain.iter().zip(&mutated).all(|(a, b)| same(a, b)),
            _ => false,
        }
    }
}

impl Mutation {
    fn of(mutant: &Mutant) -> Mutation {
        Mutation::Apply { mutant: mutant.clone(), met: Cell::new(false) }
    }

    fn was_met(&self) -> bool {
        matches!(self, Mutation::Apply { met, .. } if met.get())
    }
}

/// Derivatives of first and, if wanted, second order, in random directions.
fn derivatives(problem: &Problem<'_>, second_order: bool) -> Result<Vec<Vec<f64>>> {
    let base = problem.value(&problem.base())?;
    let mut found = Vec::new();
    for probe in 0..2 {
        let u = problem.cotangent(probe, base.y.len());
        let alone = problem.variables.iter().map(std::slice::from_ref);
        for moved in alone.clone().chain([problem.variables]) {
            found.extend(problem.pull(None, &u, moved)?);
            let v: Vec<Option<Vec<f64>>> = (0..problem.inputs.len())
                .map(|i| moved.contains(&i).then(|| problem.direction(i, probe)))
                .collect();
            found.push(problem.push(&v)?);
        }
        for moved in alone.chain([problem.variables]).filter(|_| second_order) {
            let moving = Problem { variables: moved, ..*problem };
            found.extend(Curved::new(&moving, &base, probe)?.products(&direction(&moving, 2 + probe))?);
        }
    }
    Ok(found)
}

fn same(a: &[f64], b: &[f64]) -> bool {
    let largest = a.iter().chain(b).fold(0.0f64, |m, x| m.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME * largest)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_tensor::rng::{Distribution, Key};
    use limpid_tensor::{Activation, DType};

    fn normal(shape: &[usize], seed: u64) -> Tensor {
        let distribution = Distribution::Normal { mean: 0.0, std: 1.0 };
        Tensor::random(distribution, shape, DType::F64, Key::new(seed)).unwrap()
    }

    #[test]
    fn a_rule_recorded_again_as_it_was_changes_no_bit() {
        let inputs = [normal(&[3, 4], 1), normal(&[5, 4], 2), normal(&[5], 3)];
        let f: Function<'_> = &|x| {
            let y = x[0].linear(x[1], Some(x[2]), Activation::Tanh);
            (y.softmax(1) * x[2]).prod(&[0]).layer_norm(x[2], x[2], 1e-3)
        };
        let variables = [0, 1, 2];
        let plain = Problem { f, inputs: &inputs, variables: &variables, seed: 0, mutation: None };
        let bits =
            |found: Vec<Vec<f64>>| -> Vec<u64> { found.concat().into_iter().map(f64::to_bits).collect() };
        let right = bits(derivatives(&plain, true).unwrap());
        let mutants = Check::new().mutants(f, &inputs).unwrap();
        let ops: BTreeSet<&str> = mutants.iter().map(Mutant::op).collect();
        assert!(
            ["linear", "softmax", "mul", "prod", "layer_norm"].iter().all(|op| ops.contains(op)),
            "{ops:?}"
        );
        for op in ops {
            let mutant = mutants.iter().find(|mutant| mutant.op() == op).unwrap();
            let differs_by = |mutant: &Mutant| {
                let mutation = Rc::new(Mutation::of(mutant));
                let found = derivatives(&Problem { mutation: Some(&mutation), ..plain }, true).unwrap();
                assert!(mutation.was_met(), "{mutant}");
                bits(found) != right
            };
            assert!(!differs_by(&mutant.control()), "{op}");
            assert!(differs_by(mutant), "{mutant}");
        }
    }
}
