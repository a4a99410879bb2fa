//! Gathers what is found while a launch runs, by address, and turns it into a report at the end.

use std::collections::{HashMap, HashSet};

use crate::Program;
use crate::report::{Finding, Kind, Place};

/// What was found so far, each sort of mistake once at each address.
#[derive(Default)]
pub(crate) struct Findings {
    found: Vec<Found>,
    seen: HashSet<(Kind, usize, Option<usize>)>,
}

/// A finding whose places are addresses yet.
struct Found {
    kind: Kind,
    message: String,
    at: usize,
    other: Option<usize>,
    waits: Vec<Wait>,
}

/// Threads that wait, for a report on a standstill.
pub(crate) struct Wait {
    /// Such as `threads 0 to 15`.
    pub threads: String,
    /// Such as `at a barrier`.
    pub what: String,
    pub at: usize,
}

impl Findings {
    /// Notes a mistake; the message is asked for only if it is new.
    pub fn add(&mut self, kind: Kind, at: usize, other: Option<usize>, message: impl FnOnce() -> String) {
        if self.seen.insert((kind, at, other)) {
            self.found.push(Found { kind, message: message(), at, other, waits: Vec::new() });
        }
    }

    /// Notes a standstill.
    pub fn add_standstill(&mut self, message: String, waits: Vec<Wait>) {
        let at = waits.first().map_or(0, |wait| wait.at);
        let other = waits.get(1).map(|wait| wait.at);
        self.found.push(Found { kind: Kind::Deadlock, message, at, other, waits });
    }

    /// The findings with their places, each sort of mistake once at each place.
    pub fn report(self, program: &Program) -> Vec<Finding> {
        let addresses: Vec<usize> = self
            .found
            .iter()
            .flat_map(|f| f.waits.iter().map(|w| w.at).chain([f.at]).chain(f.other))
            .collect();
        if addresses.is_empty() {
            return Vec::new();
        }
        let places = program.places_of(&addresses);
        let mut seen = HashSet::new();
        let findings = self.found.into_iter().map(|found| found.with_places(&places));
        findings.filter(|f| !is_one_place(f) && seen.insert((f.kind, f.at.clone()))).collect()
    }
}

/// Whether two addresses that seemed to be different calls are copies of one, made by the compiler.
fn is_one_place(finding: &Finding) -> bool {
    matches!(finding.kind, Kind::DivergentBarrier | Kind::DivergentCollective)
        && finding.at.line != 0
        && finding.other.as_ref() == Some(&finding.at)
}

impl Found {
    fn with_places(self, places: &HashMap<usize, Place>) -> Finding {
        let mut message = self.message;
        for wait in &self.waits {
            let place = places[&wait.at].outermost();
            message += &format!("; {} wait {} ({}:{})", wait.threads, wait.what, place.file, place.line);
        }
        message.push('.');
        Finding {
            kind: self.kind,
            message,
            at: places[&self.at].clone(),
            other: self.other.map(|address| places[&address].clone()),
        }
    }
}

/// Numbers as ranges: `thread 3`, `threads 0 to 15 and 32`.
pub(crate) fn thread_ranges(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    const SHOWN: usize = 4;
    let mut words: Vec<String> = ranges
        .iter()
        .take(SHOWN)
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") })
        .collect();
    if ranges.len() > SHOWN {
        words.push("more".to_string());
    }
    let noun = if numbers.len() == 1 { "thread" } else { "threads" };
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{noun} {} and {last}", rest.join(", ")),
        Some((last, _)) => format!("{noun} {last}"),
        None => "no thread".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_well() {
        assert_eq!(thread_ranges(&[3]), "thread 3");
        assert_eq!(thread_ranges(&[0, 1, 2, 32]), "threads 0 to 2 and 32");
        assert_eq!(thread_ranges(&[0, 2, 4, 6, 8]), "threads 0, 2, 4, 6 and more");
    }
}
