//! What the check is worth: mutants of every rule that a subject uses, and the reasons of those that change nothing.

use std::cell::Cell;
use std::collections::BTreeSet;

use limpid::autograd::check::case::Case;
use limpid::autograd::check::{Check, Fate, Property, Score};

use crate::subject::Subject;

/// Mistakes that are none: part of a mutant's name, and why it changes nothing.
const EXCLUSIONS: [(&str, &str); 0] = [];

/// Why a mutant changes nothing, if that is known.
pub fn reason(mutant: &str) -> Option<&'static str> {
    EXCLUSIONS.iter().find(|(part, _)| mutant.contains(part)).map(|(_, why)| *why)
}

thread_local! {
    static MUTATING: Cell<bool> = const { Cell::new(false) };
}

/// A mutated rule may panic, which is one way to be noticed; nobody wants to read it.
pub fn silence_mutants() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !MUTATING.get() {
            print(panic);
        }
    }));
}

/// Elements beyond which a case is not used: every mutant is a whole check.
const SMALL: usize = 40;

/// Every mutant of the subject's rules at so many small cases; one that has been killed is not tried again.
pub fn score(subject: &Subject, seed: u64, cases: usize) -> Score {
    let mut found = Found::default();
    let Some(operation) = subject.operation() else { return found.score };
    let beside = subject.kinks.iter().chain(subject.convention.iter().map(|c| &c.property));
    for property in [&subject.smooth].into_iter().chain(beside) {
        let small = |case: &Case| case.tensors().iter().map(|x| x.elements()).sum::<usize>() <= SMALL;
        let drawn = (0..).map(|i| property.case(seed, i)).filter(small).take(cases);
        drawn.for_each(|case| found.at(property, &case, operation));
    }
    found.score
}

/// What became of mutants so far.
#[derive(Default)]
struct Found {
    score: Score,
    killed: BTreeSet<String>,
}

impl Found {
    fn at(&mut self, property: &Property, case: &Case, operation: &str) {
        let (check, inputs) = (Check::new().explain(false), case.tensors());
        let mut mutants = check.mutants(|x| property.apply(x, case), &inputs).unwrap_or_default();
        mutants.retain(|m| m.op() == operation && !self.killed.contains(&m.to_string()));
        // What fails or cannot be decided with the right rules says nothing of wrong ones.
        if mutants.is_empty() || !property.at(case).passed() {
            return;
        }
        for mutant in &mutants {
            MUTATING.set(true);
            let fate = check.fate(mutant, |x| property.apply(x, case), &inputs);
            let survived = matches!(fate, Fate::Survived(_));
            let equivalent = survived && check.is_equivalent(mutant, |x| property.apply(x, case), &inputs);
            MUTATING.set(false);
            self.score.count(mutant, &fate, equivalent);
            if matches!(fate, Fate::Killed(_) | Fate::Panicked(_)) {
                self.killed.insert(mutant.to_string());
            }
        }
    }
}
