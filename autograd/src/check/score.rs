//! What a check is worth: the mutants of every rule it runs, and how many of them it kills.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use limpid_tensor::Tensor;

use super::Check;
use super::fate::Fate;
use super::mutate::Mutant;
use super::report::{Report, Tier};
use crate::var::Var;

impl Check {
    /// Lists the mutants of `f` at `inputs` and checks each. Small inputs are enough, and wanted: every mutant is a whole
    /// check.
    ///
    /// ```
    /// use limpid_autograd::check::Check;
    /// use limpid_tensor::Tensor;
    /// let x = [Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3])];
    /// let score = Check::new().score(|x| x[0].tanh(), &x)?;
    /// assert_eq!((score.killed(), score.survivors().count()), (score.mutants(), 0));
    /// println!("{score}");
    /// # Ok::<(), Box<limpid_autograd::check::Report>>(())
    /// ```
    ///
    /// # Errors
    /// The report, if the right rules do not pass: what fails anyway kills nothing.
    ///
    /// # Panics
    /// As [`run`](Check::run).
    #[track_caller]
    pub fn score(
        &self,
        f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>,
        inputs: &[Tensor],
    ) -> std::result::Result<Score, Box<Report>> {
        let right = self.examine(&f, inputs, None);
        let Ok(mutants) = self.mutants(&f, inputs) else { return Err(Box::new(right)) };
        if !right.passed() {
            return Err(Box::new(right));
        }
        let mut score = Score::default();
        for mutant in &mutants {
            let fate = self.fate_of(mutant, &f, inputs);
            let survived = matches!(fate, Fate::Survived(_));
            let equivalent = survived && self.is_equivalent(mutant, &f, inputs);
            score.count(mutant, &fate, equivalent);
        }
        Ok(score)
    }
}

/// What a check is worth: what became of the mutants of some functions, by name.
///
/// A mutant that survives where it changes a derivative is a survivor, even if other inputs kill it: the check should
/// have noticed there. One that survives only where it changes nothing, and is killed nowhere, is equivalent at the
/// points tried.
#[derive(Clone, Default, Debug)]
pub struct Score {
    mutants: BTreeMap<String, Outcomes>,
}

/// What became of one mutant over several inputs.
#[derive(Clone, Default, Debug)]
struct Outcomes {
    kind: &'static str,
    killed_by: BTreeSet<Tier>,
    panicked: bool,
    /// Why the check was inconclusive where the mutant survived though it changes a derivative.
    survived: Option<String>,
}

impl Outcomes {
    fn killed(&self) -> bool {
        self.survived.is_none() && (self.panicked || !self.killed_by.is_empty())
    }
}

impl Score {
    /// Notes what became of a mutant; `equivalent` says whether it changes nothing where it survived. One that was not
    /// met is not counted.
    pub fn count(&mut self, mutant: &Mutant, fate: &Fate, equivalent: bool) {
        if *fate == Fate::NotMet {
            return;
        }
        let outcomes = self.mutants.entry(mutant.to_string()).or_default();
        outcomes.kind = mutant.edit().kind();
        match fate {
            Fate::Killed(by) => outcomes.killed_by.extend(by),
            Fate::Panicked(_) => outcomes.panicked = true,
            Fate::Survived(doubt) if !equivalent => {
                outcomes.survived = Some(doubt.clone().unwrap_or_else(|| "passed".into()));
            }
            Fate::Survived(_) | Fate::NotMet => {}
        }
    }

    /// Adds what became of mutants of other functions, or at other inputs.
    pub fn merge(&mut self, other: &Score) {
        for (name, theirs) in &other.mutants {
            let ours = self.mutants.entry(name.clone()).or_default();
            ours.kind = theirs.kind;
            ours.killed_by.extend(&theirs.killed_by);
            ours.panicked |= theirs.panicked;
            ours.survived = ours.survived.take().or_else(|| theirs.survived.clone());
        }
    }

    /// How many mutants there were.
    pub fn mutants(&self) -> usize {
        self.mutants.len()
    }

    /// How many of them were killed, and survived nowhere.
    pub fn killed(&self) -> usize {
        self.mutants.values().filter(|m| m.killed()).count()
    }

    /// How many a tier killed, and how many of those nothing else did.
    pub fn killed_by(&self, tier: Tier) -> (usize, usize) {
        let by = self.mutants.values().filter(|m| m.killed() && m.killed_by.contains(&tier));
        let alone = by.clone().filter(|m| m.killed_by.len() == 1 && !m.panicked);
        (by.count(), alone.count())
    }

    /// How many of each kind of mistake were killed, and which tiers saw them, to be displayed.
    pub fn totals(&self) -> impl fmt::Display + '_ {
        Totals(self)
    }

    /// Those that survived where they change a derivative: what the check misses. Each with `passed`, or with the reason
    /// for which the check was inconclusive.
    pub fn survivors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.mutants.iter().filter_map(|(name, m)| Some((name.as_str(), m.survived.as_deref()?)))
    }

    /// Those that change nothing at the points tried.
    pub fn equivalent(&self) -> impl Iterator<Item = &str> {
        let changes_nothing = |m: &Outcomes| m.survived.is_none() && !m.killed();
        self.mutants.iter().filter(move |(_, m)| changes_nothing(m)).map(|(name, _)| name.as_str())
    }
}

/// The counts of a [`Score`], without names.
struct Totals<'a>(&'a Score);

impl fmt::Display for Totals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = self.0;
        let (survivors, equivalent) = (score.survivors().count(), score.equivalent().count());
        writeln!(
            f,
            "{} mutants: {} killed, {survivors} survived, {equivalent} change nothing at these points",
            score.mutants(),
            score.killed()
        )?;
        let mut kinds: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for m in score.mutants.values() {
            let [all, killed] = kinds.entry(m.kind).or_default();
            *all += 1;
            *killed += usize::from(m.killed());
        }
        writeln!(f, "  {:14} {:>7} {:>7}", "mistake", "mutants", "killed")?;
        for (kind, [all, killed]) in kinds {
            writeln!(f, "  {kind:14} {all:>7} {killed:>7}")?;
        }
        writeln!(f, "  {:14} {:>7} {:>7}", "seen by", "mutants", "alone")?;
        for tier in [Tier::Contract, Tier::Adjoint, Tier::Taylor, Tier::Jacobian, Tier::Curvature] {
            let (killed, alone) = score.killed_by(tier);
            writeln!(f, "  {tier:14} {killed:>7} {alone:>7}")?;
        }
        let panicked = score.mutants.values().filter(|m| m.panicked).count();
        if panicked > 0 {
            writeln!(f, "  {:14} {panicked:>7}", "a panic")?;
        }
        Ok(())
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.totals())?;
        let (survivors, equivalent) = (self.survivors().count(), self.equivalent().count());
        if survivors > 0 {
            writeln!(f, "survived:")?;
            self.survivors().try_for_each(|(name, why)| writeln!(f, "  {name} ({why})"))?;
        }
        if equivalent > 0 {
            writeln!(f, "nothing changed by:")?;
            self.equivalent().try_for_each(|name| writeln!(f, "  {name}"))?;
        }
        Ok(())
    }
}
