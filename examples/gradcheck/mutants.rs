//! What the check is worth: mutants of every rule that a subject uses, and the reasons of those that change nothing.

use std::collections::{BTreeMap, BTreeSet};

use limpid::autograd::check::case::Case;
use limpid::autograd::check::{Check, Fate, Property, Score};

use crate::quiet::quietly;
use crate::subject::Subject;

/// Mistakes that are none: operation, the start of the place, the edit, and why nothing changes. `*` is any.
const EXCLUSIONS: [(&str, &str, &str, &str); 28] = [
    ("sign", "*", "*", NO_SLOPE),
    ("*", "operand 0 of sign(", "detached", NO_SLOPE),
    ("*", "sum(", "left out", NOTHING_MOVES),
    ("*", "place(", "left out", NOTHING_MOVES),
    ("*", "slice(", "left out", NOTHING_MOVES),
    ("affine", "affine(", "left out", "a number is only added: the slope is 1"),
    ("gelu_tanh", "clamp(", "left out", FLAT),
    ("concat", "concat(expand(0), dx1, expand(0))", "swapped 0 and 2", "zeros are exchanged for zeros"),
    ("concat", "x̄0", "swapped 0 and 2", "both belong to one value, and are added up"),
    ("max", "cast(eq(x0, y))", "sign", RATIO),
    ("max", "cast(eq(x0, y))", "×1.01", RATIO),
    ("min", "cast(eq(x0, y))", "sign", RATIO),
    ("min", "cast(eq(x0, y))", "×1.01", RATIO),
    (
        "pow",
        "1",
        "×1.01",
        "it takes the place of a base or an exponent only where the result is multiplied by 0",
    ),
    ("pow", "operand 0 of eq(", "detached", "truth has no derivative"),
    ("pow", "operand 1 of eq(", "detached", "truth has no derivative"),
    ("layer_norm", "operand 1 of layer_norm_gain_backward(", "*", UNREAD),
    ("layer_norm", "operand 0 of layer_norm_bias_backward(", "*", UNREAD),
    ("layer_norm", "operand 1 of layer_norm_bias_backward(", "*", UNREAD),
    ("layer_norm", "layer_norm_bias_backward(", "swapped 0 and 1", UNREAD),
    ("layer_norm", "layer_norm_backward(", "swapped 1 and 2", PRODUCT),
    ("rms_norm", "rms_norm_backward(", "swapped 1 and 2", PRODUCT),
    (
        "stream_read",
        "matmul(",
        "swapped 0 and 1",
        "it fits only where there is one stream of one channel: two numbers",
    ),
    ("layer_norm", "1", "*", UNREAD),
    ("layer_norm", "expand(1)", "*", UNREAD),
    ("rms_norm", "operand 1 of rms_norm_gain_backward(", "*", UNREAD),
    ("rms_norm", "1", "*", UNREAD),
    ("rms_norm", "expand(1)", "*", UNREAD),
];
const NO_SLOPE: &str =
    "the derivative of sign is 0 and so is any multiple of it; its result is as good as a constant";
const NOTHING_MOVES: &str =
    "it fits only where the result has the operand's shape, and then it is the identity";
const FLAT: &str = "where the bound takes effect the tanh is ±1 to the last bit; it is against overflow";
const UNREAD: &str =
    "one kernel has all cotangents of a norm as results, and this one does not depend on that operand";
const PRODUCT: &str = "it fits only a single row, and what is read of the two is their product";
const RATIO: &str = "each of k equal extremes gets a hit divided by the sum of hits: a factor cancels";

/// Why a mutant changes nothing, if that is known.
pub fn reason(mutant: &str) -> Option<&'static str> {
    let (rule, rest) = mutant.split_once(": ")?;
    let (place, edit) = rest.rsplit_once(": ")?;
    let operation = rule.split(' ').next()?;
    let fits = |(o, p, e, _): &&(&str, &str, &str, &'static str)| {
        (*o == "*" || *o == operation) && (*p == "*" || place.starts_with(p)) && (*e == "*" || *e == edit)
    };
    EXCLUSIONS.iter().find(fits).map(|(.., why)| *why)
}

/// Elements beyond which a case is not used: every mutant is a whole check.
const SMALL: usize = 40;
/// Where there is a reason why a mutant changes nothing, so many cases at which that is so are enough.
const ENOUGH: usize = 6;
/// Further cases for a mutant that changed nothing although there is no reason.
const FURTHER: usize = 400;
/// Cases to choose from.
const DRAWN: u64 = 2000;

fn is_small(case: &Case) -> bool {
    case.tensors().iter().map(|x| x.elements()).sum::<usize>() <= SMALL
}

fn is_square(case: &Case) -> bool {
    let square = |shape: &[usize]| matches!(shape, [.., m, n] if m == n && *n > 1);
    case.operands.iter().any(|operand| square(&operand.shape))
}

/// Every mutant of the subject's rules at so many small cases; one that has been killed is not tried again.
pub fn score(subject: &Subject, seed: u64, cases: usize) -> Score {
    let mut found = Found::default();
    let Some(operation) = subject.operation() else { return found.score };
    // What is only there for ties is killed at ties, and the rest elsewhere; near kinks a check takes longest.
    let ties = subject.convention.iter().map(|convention| (&convention.property, cases.div_ceil(4)));
    let kinks = subject.kinks.iter().map(|property| (property, cases.div_ceil(3)));
    let properties: Vec<(&Property, usize)> = ties.chain([(&subject.smooth, cases)]).chain(kinks).collect();
    let drawn = |property: &'_ Property| -> Vec<Case> {
        (0..DRAWN).map(|i| property.case(seed, i)).filter(is_small).collect()
    };
    for &(property, cases) in &properties {
        // Square matrices are where a transposition fits, other shapes where a missing sum does.
        let (square, other): (Vec<Case>, Vec<Case>) = drawn(property).into_iter().partition(is_square);
        let drawn = square.iter().take(cases / 2).chain(other.iter().take(cases.div_ceil(2)));
        drawn.for_each(|case| found.at(property, case, operation, |_| true));
    }
    // What changed nothing so far, and should, gets more chances.
    for &(property, _) in &properties {
        for case in drawn(property).into_iter().take(FURTHER) {
            let pending = found.unexplained();
            if pending.is_empty() {
                return found.score;
            }
            found.at(property, &case, operation, |name| pending.contains(name));
        }
    }
    found.score
}

/// What became of mutants so far.
#[derive(Default)]
struct Found {
    score: Score,
    killed: BTreeSet<String>,
    /// At how many cases one changed nothing.
    unchanged: BTreeMap<String, usize>,
}

impl Found {
    /// The mutants that changed nothing, and nobody says why.
    fn unexplained(&self) -> BTreeSet<String> {
        self.score.equivalent().filter(|name| reason(name).is_none()).map(String::from).collect()
    }

    fn at(&mut self, property: &Property, case: &Case, operation: &str, wanted: impl Fn(&str) -> bool) {
        let (check, inputs) = (Check::new().explain(false), case.tensors());
        let mut mutants = check.mutants(|x| property.apply(x, case), &inputs).unwrap_or_default();
        let settled = |name: &str| {
            let unchanged = self.unchanged.get(name).copied().unwrap_or(0);
            self.killed.contains(name) || unchanged >= ENOUGH && reason(name).is_some()
        };
        mutants.retain(|mutant| {
            let name = mutant.to_string();
            mutant.op() == operation && wanted(&name) && !settled(&name)
        });
        // What fails or cannot be decided with the right rules says nothing of wrong ones.
        if mutants.is_empty() || !quietly(|| property.at(case)).passed() {
            return;
        }
        for mutant in &mutants {
            let fate = quietly(|| check.fate(mutant, |x| property.apply(x, case), &inputs));
            let survived = matches!(fate, Fate::Survived(_));
            let equivalent =
                survived && quietly(|| check.is_equivalent(mutant, |x| property.apply(x, case), &inputs));
            self.score.count(mutant, &fate, equivalent);
            if equivalent {
                *self.unchanged.entry(mutant.to_string()).or_default() += 1;
            }
            if matches!(fate, Fate::Killed(_) | Fate::Panicked(_)) {
                self.killed.insert(mutant.to_string());
            }
        }
    }
}
