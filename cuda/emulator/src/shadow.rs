//! What is known of each byte of an array: whether it was written, and who used it last.

use std::ops::Range;

use crate::bits::Bits;
use crate::clock::{Clock, Order, Stamp};

/// What is known of the bytes of one array.
pub(crate) struct Shadow {
    /// Which bytes were ever written.
    pub written: Bits,
    /// Code that tells nothing of its stores had the array: every byte counts as written.
    pub unobserved: bool,
    bytes: usize,
    /// The last uses of each byte. Empty until a checked kernel uses the array.
    uses: Vec<Uses>,
}

/// The last write and the last read of a byte: stamp and place of each. An array, so that the system's zeroed pages
/// are a valid start.
type Uses = [u32; 4];
const WRITE: usize = 0;
const READ: usize = 2;

/// An access as the shadow sees it.
#[derive(Clone, Copy)]
pub(crate) struct Touch {
    /// The thread's number in its block.
    pub thread: u32,
    pub write: bool,
    pub atomic: bool,
    /// The place in the code, as a distance from the start of the library.
    pub place: u32,
    /// Whether blocks share the array.
    pub global: bool,
}

/// An earlier access that nothing orders before this one.
pub(crate) struct Conflict {
    pub write: bool,
    pub atomic: bool,
    pub stamp: Stamp,
    pub place: u32,
    /// The byte of the array.
    pub byte: usize,
}

impl Shadow {
    pub fn new(bytes: usize) -> Shadow {
        Shadow { written: Bits::new(bytes), unobserved: false, bytes, uses: Vec::new() }
    }

    /// Forgets that bytes were written. Uses need no such care: their stamps grow old by themselves.
    pub fn renew(&mut self) {
        self.written.remove(0..self.bytes);
    }

    /// Forgets all uses, before stamps start again.
    pub fn forget_uses(&mut self) {
        self.uses = Vec::new();
    }

    /// Whether the bytes were written.
    pub fn counts_as_written(&self, range: Range<usize>) -> bool {
        self.unobserved || self.written.contains(range)
    }

    /// The last write of a byte and its place, if there was one.
    pub fn last_write(&self, byte: usize) -> Option<(Stamp, u32)> {
        let uses = self.uses.get(byte).filter(|uses| uses[WRITE] != 0)?;
        Some((Stamp(uses[WRITE]), uses[WRITE + 1]))
    }

    /// Notes an access, and returns the first conflict with an earlier one.
    pub fn touch(&mut self, range: Range<usize>, touch: Touch, clock: &Clock) -> Option<Conflict> {
        if self.uses.is_empty() {
            self.uses = vec![[0; 4]; self.bytes];
        }
        // The bytes of a word mostly have one history: then it is judged once.
        let uses = &mut self.uses[range.clone()];
        let first = *uses.first()?;
        if uses.iter().all(|other| *other == first) {
            let conflict = conflict_of(&first, touch, clock).map(|found| found.at(range.start));
            uses.fill(noted(first, touch, clock));
            return conflict;
        }
        let mut conflict = None;
        for (uses, byte) in uses.iter_mut().zip(range) {
            conflict = conflict.or_else(|| conflict_of(uses, touch, clock).map(|found| found.at(byte)));
            *uses = noted(*uses, touch, clock);
        }
        conflict
    }
}

/// An earlier use of a byte.
struct Found {
    write: bool,
    stamp: Stamp,
    place: u32,
}

impl Found {
    fn at(self, byte: usize) -> Conflict {
        let Found { write, stamp, place } = self;
        Conflict { write, atomic: stamp.is_atomic(), stamp, place, byte }
    }
}

/// An earlier use that conflicts: another thread's write, or its read if this is a write.
fn conflict_of(uses: &Uses, touch: Touch, clock: &Clock) -> Option<Found> {
    let conflicts = |stamp: Stamp| {
        !(touch.atomic && stamp.is_atomic())
            && match clock.order(stamp, touch.thread) {
                Order::Before => false,
                Order::OtherBlock => touch.global,
                Order::Unordered => true,
            }
    };
    let slots = if touch.write { &[WRITE, READ][..] } else { &[WRITE] };
    let slot = *slots.iter().find(|&&slot| conflicts(Stamp(uses[slot])))?;
    Some(Found { write: slot == WRITE, stamp: Stamp(uses[slot]), place: uses[slot + 1] })
}

/// The uses with this one. A use by another block of this launch stays: everything that this block does conflicts with
/// it, while this block's own uses are soon ordered. Unordered reads, or atomic updates, count as one of several threads.
fn noted(mut uses: Uses, touch: Touch, clock: &Clock) -> Uses {
    let slot = if touch.write { WRITE } else { READ };
    let old = Stamp(uses[slot]);
    let order = clock.order(old, touch.thread);
    if touch.global && order == Order::OtherBlock {
        return uses;
    }
    let mine = clock.stamp(touch.thread, touch.atomic);
    let joins = !touch.write || touch.atomic && old.is_atomic();
    uses[slot] = match joins && order == Order::Unordered {
        true => clock.several(old, mine).0,
        false => mine.0,
    };
    uses[slot + 1] = touch.place;
    uses
}
