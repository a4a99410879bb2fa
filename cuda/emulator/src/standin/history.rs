//! Who used an allocation, and whether that was in order.

use std::ops::Range;

use super::clock::{Clock, Mark};

/// One use of some bytes by an operation.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub mark: Mark,
    /// The operation, as a message names it.
    pub who: String,
    /// The addresses. A kernel's are those of the whole allocation: which bytes it used is not known.
    pub range: Range<u64>,
    pub write: bool,
}

impl Access {
    fn conflicts(&self, other: &Access) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.write || other.write)
    }

    /// Whether what comes after this access, in order, need not be compared with an earlier one any more.
    fn supersedes(&self, earlier: &Access) -> bool {
        let covers = self.range.start <= earlier.range.start && earlier.range.end <= self.range.end;
        covers && (self.write || !earlier.write)
    }
}

/// The accesses to one allocation that a later one may still collide with.
#[derive(Default)]
pub(super) struct History(Vec<Access>);

impl History {
    /// Notes an access by an operation of the given clock. The earlier ones that it collides with: the bytes overlap,
    /// one of the two writes, and nothing orders them.
    pub(super) fn note(&mut self, access: Access, clock: &Clock) -> Vec<Access> {
        let unordered = self.0.iter().filter(|earlier| !clock.has(earlier.mark) && access.conflicts(earlier));
        let collisions = unordered.cloned().collect();
        self.0.retain(|earlier| !(clock.has(earlier.mark) && access.supersedes(earlier)));
        self.0.push(access);
        collisions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(stream: usize, number: u64, range: Range<u64>, write: bool) -> Access {
        Access { mark: Mark { stream, number }, who: format!("{stream}.{number}"), range, write }
    }

    fn after(marks: &[(usize, u64)]) -> Clock {
        let mut clock = Clock::default();
        marks.iter().for_each(|&(stream, number)| clock.advance(Mark { stream, number }));
        clock
    }

    #[test]
    fn unordered_write_and_read_collide() {
        let mut history = History::default();
        assert!(history.note(access(1, 1, 0..8, true), &after(&[(1, 1)])).is_empty());
        let collisions = history.note(access(2, 1, 4..6, false), &after(&[(2, 1)]));
        assert_eq!(collisions.iter().map(|a| a.who.as_str()).collect::<Vec<_>>(), ["1.1"]);
        assert!(history.note(access(3, 1, 8..9, true), &after(&[(3, 1)])).is_empty(), "other bytes");
    }

    #[test]
    fn reads_do_not_collide_but_a_write_collides_with_each() {
        let mut history = History::default();
        assert!(history.note(access(1, 1, 0..8, false), &after(&[(1, 1)])).is_empty());
        assert!(history.note(access(2, 1, 0..8, false), &after(&[(2, 1)])).is_empty());
        assert_eq!(history.note(access(1, 2, 0..8, true), &after(&[(1, 2)])).len(), 1);
        assert_eq!(history.note(access(3, 1, 0..8, true), &after(&[(1, 2), (2, 1), (3, 1)])).len(), 0);
        assert_eq!(history.0.len(), 1, "what is ordered before a write that covers it is forgotten");
    }
}
