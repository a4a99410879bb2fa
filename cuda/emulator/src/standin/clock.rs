//! What happened before what: vector clocks over streams.
//!
//! The n-th operation of a stream is the mark (stream, n). An operation's clock says, for each stream, how many of its
//! operations are certain to be over when this one starts: those before it in its own stream, those that an event it
//! waited for had behind it, and those that the host had waited for when it queued this one. Of two operations neither
//! of which is in the other's clock, either may come first, and a card may run both at once.

use std::collections::BTreeMap;

/// A number by which the host names a thing of the driver's.
pub(super) type Handle = usize;

/// The `number`-th operation of a stream, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub stream: Handle,
    pub number: u64,
}

/// How many operations of each stream are over.
#[derive(Clone, Default, Debug)]
pub(super) struct Clock(BTreeMap<Handle, u64>);

impl Clock {
    /// Adds all that another clock knows to be over.
    pub(super) fn join(&mut self, other: &Clock) {
        for (&stream, &number) in &other.0 {
            self.advance(Mark { stream, number });
        }
    }

    /// Adds an operation, and with it those before it in its stream.
    pub(super) fn advance(&mut self, mark: Mark) {
        let known = self.0.entry(mark.stream).or_default();
        *known = mark.number.max(*known);
    }

    /// Whether an operation is certain to be over.
    pub(super) fn has(&self, mark: Mark) -> bool {
        self.0.get(&mark.stream).is_some_and(|&number| number >= mark.number)
    }
}
