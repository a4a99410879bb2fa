//! What the check is worth: mutants of every rule that a subject uses, and the reasons of those that change nothing.

use std::cell::Cell;
use std::collections::BTreeSet;

use limpid::autograd::check::case::Case;
use limpid::autograd::check::{Check, Fate, Mutant, Property, Score};

use crate::subject::{Rules, Subject};

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
    let mut score = Score::default();
    let mut killed = BTreeSet::new();
    let beside = subject.kinks.iter().chain(subject.convention.iter().map(|c| &c.property));
    for property in [&subject.smooth].into_iter().chain(beside) {
        let small = |case: &Case| case.tensors().iter().map(|x| x.elements()).sum::<usize>() <= SMALL;
        let drawn = (0..).map(|i| property.case(seed, i)).filter(small).take(cases);
        for case in drawn {
            if property.at(&case).passed() {
                at(property, &case, subject.rules, &mut score, &mut killed);
            }
        }
    }
    score
}

fn at(property: &Property, case: &Case, rules: Rules, score: &mut Score, killed: &mut BTreeSet<String>) {
    let (check, inputs) = (Check::new().explain(false), case.tensors());
    let wanted = |mutant: &Mutant| match rules {
        Rules::All => true,
        Rules::Of(ops) => ops.contains(&mutant.op()),
    };
    let mutants = check.mutants(|x| property.apply(x, case), &inputs).unwrap_or_default();
    for mutant in mutants.iter().filter(|mutant| wanted(mutant)) {
        if killed.contains(&mutant.to_string()) {
            continue;
        }
        MUTATING.set(true);
        let fate = check.fate(mutant, |x| property.apply(x, case), &inputs);
        let survived = matches!(fate, Fate::Survived(_));
        let equivalent = survived && check.is_equivalent(mutant, |x| property.apply(x, case), &inputs);
        MUTATING.set(false);
        score.count(mutant, &fate, equivalent);
        if matches!(fate, Fate::Killed(_) | Fate::Panicked(_)) {
            killed.insert(mutant.to_string());
        }
    }
}
