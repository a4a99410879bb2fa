//! A derivative that is to hold wherever it is looked at: random cases, the failing one made small and kept.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use limpid_tensor::rng::Key;

use super::case::draw::Shrink;
use super::case::{Case, Draw, Drawn};
use super::{Check, Report, Verdict};
use crate::var::Var;

/// A function of operands and of what a case chooses.
type CaseFunction = dyn for<'t> Fn(&[Var<'t>], &Case) -> Var<'t>;

/// A function with the cases its derivatives are to hold at.
///
/// ```
/// use limpid_autograd::check::Property;
/// use limpid_autograd::check::case::{Values, draw::{broadcastable, shapes}};
///
/// let pairs = broadcastable(2, shapes(0..=3), Values::Positive);
/// Property::new("hypotenuse", pairs, |x, _| (x[0] * x[0] + x[1] * x[1]).sqrt()).run(20, 0).expect_pass();
/// ```
///
/// In a test by `proptest`, with the feature of that name, ask one case at a time:
///
/// ```no_run
/// # use limpid_autograd::check::{check, case::Case};
/// # let case: Case = "f64[2] interior 0".parse().unwrap();
/// // proptest! { #[test] fn hypotenuse(case in broadcastable(2, shapes(0..=3), Values::Positive)) {
/// check(|x| (x[0] * x[0] + x[1] * x[1]).sqrt(), &case.tensors()).expect_pass();
/// // }}
/// ```
#[derive(Clone)]
pub struct Property {
    name: String,
    cases: Drawn<Case>,
    function: Rc<CaseFunction>,
    check: Check,
    regressions: Vec<Case>,
}

/// A case whose check fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// As it was drawn.
    pub drawn: Case,
    /// After shrinking.
    pub shrunk: Case,
    /// What is wrong with the shrunk one.
    pub report: Report,
}

/// What random cases showed.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// What was checked.
    pub name: String,
    /// How many cases.
    pub cases: usize,
    /// How many of them passed.
    pub passed: usize,
    /// Those that could not be decided, and why.
    pub inconclusive: Vec<(Case, String)>,
    /// Those that failed; only the first is shrunk and explained.
    pub failed: Vec<Failure>,
}

/// Shrinking stops after so many checks.
const SHRINKS: usize = 400;

impl Property {
    /// `function` at `cases`. It may ask the case for choices (axes, flags), and for nothing else that changes.
    pub fn new(
        name: impl Into<String>,
        cases: Drawn<Case>,
        function: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t> + 'static,
    ) -> Property {
        let (function, check) = (Rc::new(function), Check::new());
        Property { name: name.into(), cases, function, check, regressions: Vec::new() }
    }

    /// With other settings of the [`Check`] that is made at every case.
    pub fn with_check(self, check: Check) -> Property {
        Property { check, ..self }
    }

    /// The same function at other cases; `where_` is added to the name.
    pub fn with_cases(self, where_: &str, cases: Drawn<Case>) -> Property {
        Property { name: format!("{} {where_}", self.name), cases, ..self }
    }

    /// Another function at the same cases.
    pub fn with_function(
        self,
        function: impl for<'t> Fn(&[Var<'t>], &Case) -> Var<'t> + 'static,
    ) -> Property {
        Property { function: Rc::new(function), ..self }
    }

    /// Checks these cases first: those of the lines `name: case` in a table that are of this name.
    ///
    /// # Panics
    /// If a line of this name cannot be read.
    #[track_caller]
    pub fn with_regressions(mut self, table: &str) -> Property {
        let mine =
            table.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| *name == self.name);
        for (name, case) in mine {
            match case.parse() {
                Ok(case) => self.regressions.push(case),
                Err(error) => panic!("the table of regressions, {name}: {error}"),
            }
        }
        self
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `i`-th random case of a seed.
    pub fn case(&self, seed: u64, i: u64) -> Case {
        self.cases.draw(&mut self.source(seed, i))
    }

    fn source(&self, seed: u64, i: u64) -> Draw {
        Draw::random(Key::new(seed).fold_str(&self.name).fold(i))
    }

    /// The function at operands that stand for the case's.
    pub fn apply<'t>(&self, x: &[Var<'t>], case: &Case) -> Var<'t> {
        (self.function)(x, case)
    }

    /// The check at one case.
    pub fn at(&self, case: &Case) -> Report {
        self.report(case, self.check)
    }

    /// A panic is a failure like another, so that its case is made small as well.
    fn report(&self, case: &Case, check: Check) -> Report {
        let run = || check.run(|x| self.apply(x, case), &case.tensors());
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Report::of_panic(message.unwrap_or("with something that is no message"))
        })
    }

    /// The regressions and `cases` random cases of a seed: the same every time.
    pub fn run(&self, cases: usize, seed: u64) -> Survey {
        self.run_each(cases, seed, &mut |_, _| ())
    }

    /// As [`run`](Property::run), showing every case and its report to `each`. A case that panics is a failure, and is shrunk
    /// as any other; the standard library's panic hook prints what it always prints.
    pub fn run_each(&self, cases: usize, seed: u64, each: &mut dyn FnMut(&Case, &Report)) -> Survey {
        let mut survey = Survey { name: self.name.clone(), ..Survey::default() };
        for case in &self.regressions {
            self.survey(&mut survey, case.clone(), None, each);
        }
        for i in 0..cases as u64 {
            let mut draw = self.source(seed, i);
            let case = self.cases.draw(&mut draw);
            self.survey(&mut survey, case, Some(draw), each);
        }
        survey
    }

    fn survey(
        &self,
        survey: &mut Survey,
        case: Case,
        draw: Option<Draw>,
        each: &mut dyn FnMut(&Case, &Report),
    ) {
        survey.cases += 1;
        let report = self.report(&case, self.check.explain(false));
        each(&case, &report);
        match report.verdict {
            Verdict::Pass => survey.passed += 1,
            Verdict::Inconclusive(reason) => survey.inconclusive.push((case, reason)),
            Verdict::Fail(findings) => {
                // What is wrong must not shrink to where nothing can be seen.
                let powerless = findings.iter().all(|finding| finding.powerless);
                let shrunk = match draw.filter(|_| survey.failed.is_empty()) {
                    Some(draw) => self.shrink(draw.drawn(), powerless),
                    None => case.clone(),
                };
                let report = self.report(&shrunk, self.check.explain(survey.failed.is_empty()));
                survey.failed.push(Failure { drawn: case, shrunk, report });
            }
        }
    }

    fn shrink(&self, failing: Vec<u32>, powerless: bool) -> Case {
        let mut shrink = Shrink::new(failing);
        for _ in 0..SHRINKS {
            let Some(numbers) = shrink.next() else { break };
            let mut draw = Draw::of(numbers);
            let case = self.cases.draw(&mut draw);
            let fails = match self.report(&case, self.check.explain(false)).verdict {
                Verdict::Fail(findings) => powerless || findings.iter().any(|finding| !finding.powerless),
                _ => false,
            };
            if fails {
                shrink.keep(draw.drawn());
            }
        }
        self.cases.draw(&mut Draw::of(shrink.best().to_vec()))
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Property({})", self.name)
    }
}

impl Survey {
    /// Whether no case failed, and no more than one in a hundred could not be decided.
    pub fn passed(&self) -> bool {
        self.failed.is_empty() && self.inconclusive.len() * 100 <= self.cases
    }

    /// For tests.
    ///
    /// # Panics
    /// Unless it [`passed`](Survey::passed), with the first failure and the line for the table of regressions.
    #[track_caller]
    pub fn expect_pass(&self) {
        assert!(self.passed(), "{self}");
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, undecided) = (self.failed.len(), self.inconclusive.len());
        write!(f, "{}: {} of {} cases pass, {failed} fail", self.name, self.passed, self.cases)?;
        writeln!(f, ", {undecided} inconclusive")?;
        if let Some(first) = self.failed.first() {
            writeln!(f, "  drawn:  {}", first.drawn)?;
            writeln!(f, "  shrunk: {}", first.shrunk)?;
            write!(f, "{}", first.report)?;
            writeln!(f, "  to keep it, a line for the table of regressions:")?;
            writeln!(f, "    {}: {}", self.name, first.shrunk)?;
        }
        for (case, reason) in self.inconclusive.iter().take(3) {
            writeln!(f, "  inconclusive: {case}\n    {reason}")?;
        }
        Ok(())
    }
}
