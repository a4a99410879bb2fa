//! What is ordered before what.
//!
//! Time within a launch is cut into *spans*. A warp begins a new span at every barrier of its block and at every
//! `__syncwarp`; spans are numbered as they begin, and only one warp is in a span. A use of memory is stamped with the
//! span and the lane. Whether an earlier use is ordered before a thread's next step then needs its stamp alone:
//!
//! - its span began before this launch, or before the last barrier of this block: it is;
//! - it is of another block of this launch: it is not, unless that block has handed it over;
//! - it is of another warp of this block, after the last barrier: it is not;
//! - it is of the same warp: it is if it is the thread's own, or if a `__syncwarp` of both lanes came between. Each lane
//!   keeps, for every other lane, the first span that it does not know to be finished (a vector clock).

use std::array;
use std::ops::Range;

use crate::handover::{Handovers, Past};

/// The last use of a byte: span, atomicity, lane. 0: none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(pub u32);

/// A lane's number that stands for several lanes of the warp.
const SEVERAL: u32 = 32;
const ATOMIC: u32 = 1 << 6;
const SPAN_SHIFT: u32 = 7;
/// Stamps start again at half of the spans that they can tell apart.
const LATE: u32 = 1 << (31 - SPAN_SHIFT);
/// The owner of a span that stands for several warps.
const NO_WARP: u32 = u32::MAX;

impl Stamp {
    pub fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }

    pub fn span(self) -> u32 {
        self.0 >> SPAN_SHIFT
    }

    fn lane(self) -> u32 {
        self.0 & (ATOMIC - 1)
    }

    /// The lanes that it may stand for.
    pub fn lanes(self) -> Range<usize> {
        match self.lane() {
            SEVERAL => 0..32,
            lane => lane as usize..lane as usize + 1,
        }
    }
}

/// How an earlier use stands to a thread's next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Before,
    Unordered,
    OtherBlock,
}

/// Whose use a stamp is, as far as it tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum User {
    Thread(u32),
    SeveralThreads,
    OtherBlock,
}

/// The time of the block that runs.
pub(crate) struct Clock {
    /// The next span's number.
    next: u32,
    /// The first spans of this launch, of this block, and since its last barrier.
    launch: u32,
    block: u32,
    epoch: u32,
    /// The warps of the spans of this block.
    owners: Vec<u32>,
    warps: Vec<WarpClock>,
    /// Of each thread, its last fence for products: which spans are before it of the thread's own, and which of all threads.
    /// None: 0.
    product_fences: Vec<[u32; 2]>,
    handovers: Handovers,
}

/// The time of a warp: of each lane the span that it is in, and for each other lane the first span that is not known to
/// be finished.
#[derive(Clone)]
struct WarpClock {
    span: [u32; 32],
    known: Box<[[u32; 32]; 32]>,
}

impl Clock {
    /// The time at the start of a launch, whose spans begin at `first` ≥ 1.
    pub fn new(first: u32) -> Clock {
        Clock {
            next: first,
            launch: first,
            block: first,
            epoch: first,
            owners: Vec::new(),
            warps: Vec::new(),
            product_fences: Vec::new(),
            handovers: Handovers::default(),
        }
    }

    /// Whether the spans will run out before long.
    pub fn is_late(&self) -> bool {
        self.next > LATE
    }

    /// The first span that nobody has used yet.
    pub fn next_span(&self) -> u32 {
        self.next
    }

    /// A block of so many warps begins.
    pub fn begin_block(&mut self, warps: usize) {
        self.warps.resize(warps, WarpClock { span: [0; 32], known: Box::new([[0; 32]; 32]) });
        self.product_fences = vec![[0; 2]; warps * 32];
        self.block = self.next;
        self.owners.clear();
        self.handovers.begin_block();
        self.pass_barrier();
    }

    /// A thread calls `__threadfence`.
    pub fn fence(&mut self, thread: u32) {
        let (warp, lane) = (thread as usize / 32, thread as usize % 32);
        let warp_spans = (self.epoch..self.next).filter(|&span| self.owner(span) == Some(warp as u32));
        let mut known = self.warps[warp].known[lane];
        known[lane] = self.warps[warp].span[lane] + 1;
        let past = Past { block: self.block, epoch: self.epoch, warp_spans: warp_spans.collect(), known };
        self.handovers.fence(thread, past);
    }

    /// A thread updates global memory atomically: it takes over what other blocks have left there.
    pub fn update(&mut self, thread: u32, address: usize) {
        self.handovers.update(thread, address);
    }

    /// All threads of the block have met.
    pub fn pass_barrier(&mut self) {
        self.epoch = self.next;
        self.begin_span(NO_WARP);
        for warp in 0..self.warps.len() {
            let span = self.begin_span(warp as u32);
            self.warps[warp].span = [span; 32];
        }
    }

    /// The lanes of `mask` have met.
    pub fn pass_warp_barrier(&mut self, warp: usize, mask: u32) {
        let span = self.begin_span(warp as u32);
        let clock = &mut self.warps[warp];
        let met: Vec<usize> = (0..32).filter(|lane| mask >> lane & 1 != 0).collect();
        let mut known: [u32; 32] =
            array::from_fn(|other| met.iter().map(|&lane| clock.known[lane][other]).max().unwrap_or(0));
        for &lane in &met {
            known[lane] = span;
            clock.span[lane] = span;
        }
        for &lane in &met {
            clock.known[lane] = known;
        }
    }

    /// A thread makes what it has written to shared memory, and what others had before the last barrier, visible to
    /// products of four warps.
    pub fn fence_for_products(&mut self, thread: u32) {
        let (warp, lane) = (thread as usize / 32, thread as usize % 32);
        let span = self.begin_span(warp as u32);
        self.warps[warp].span[lane] = span;
        self.product_fences[thread as usize] = [span, self.epoch];
    }

    /// Whether products of a group of threads see an earlier write of this block, or of none: who wrote has made a fence
    /// since, or each thread of the group, behind the barrier that orders the two.
    pub fn is_seen_by_products(&self, write: Stamp, mut group: Range<u32>) -> bool {
        let span = write.span();
        let Some(owner) = self.owner(span) else { return true };
        let fence = |thread: u32| self.product_fences[thread as usize];
        let mut writers = match owner {
            NO_WARP => 0..self.product_fences.len() as u32,
            warp => warp * 32 + write.lanes().start as u32..warp * 32 + write.lanes().end as u32,
        };
        writers.all(|thread| span < fence(thread)[0]) || group.all(|thread| span < fence(thread)[1])
    }

    /// The warp of a span of this block.
    fn owner(&self, span: u32) -> Option<u32> {
        self.owners.get(span.checked_sub(self.block)? as usize).copied()
    }

    fn begin_span(&mut self, warp: u32) -> u32 {
        self.owners.push(warp);
        self.next += 1;
        self.next - 1
    }

    /// The stamp of a use by a thread of this block.
    pub fn stamp(&self, thread: u32, atomic: bool) -> Stamp {
        let span = self.warps[thread as usize / 32].span[thread as usize % 32];
        Stamp(span << SPAN_SHIFT | if atomic { ATOMIC } else { 0 } | (thread % 32))
    }

    /// The stamp that stands for an earlier use and one of this thread's, of the same sort, that nothing orders.
    pub fn several(&self, old: Stamp, mine: Stamp) -> Stamp {
        let span = match self.owner(old.span()) == self.owner(mine.span()) {
            true => old.span().max(mine.span()),
            false => self.epoch,
        };
        Stamp(span << SPAN_SHIFT | (mine.0 & ATOMIC) | SEVERAL)
    }

    /// How an earlier use stands to the next step of a thread.
    pub fn order(&self, stamp: Stamp, thread: u32) -> Order {
        let span = stamp.span();
        if span >= self.epoch {
            self.order_in_epoch(stamp, thread)
        } else if span < self.launch || span >= self.block || self.handovers.cover(stamp) {
            Order::Before
        } else {
            Order::OtherBlock
        }
    }

    fn order_in_epoch(&self, stamp: Stamp, thread: u32) -> Order {
        let (warp, lane) = (thread as usize / 32, thread % 32);
        if self.owner(stamp.span()) != Some(warp as u32) {
            return Order::Unordered;
        }
        let known = &self.warps[warp].known[lane as usize];
        let before = stamp.lanes().all(|other| other == lane as usize || stamp.span() < known[other]);
        if before { Order::Before } else { Order::Unordered }
    }

    /// Who made a use.
    pub fn user(&self, stamp: Stamp) -> User {
        match self.owner(stamp.span()) {
            None => User::OtherBlock,
            Some(warp) if warp != NO_WARP && stamp.lane() != SEVERAL => {
                User::Thread(warp * 32 + stamp.lane())
            }
            Some(_) => User::SeveralThreads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_warps() -> Clock {
        let mut clock = Clock::new(1);
        clock.begin_block(2);
        clock
    }

    #[test]
    fn a_thread_is_ordered_after_itself_alone() {
        let clock = two_warps();
        let stamp = clock.stamp(5, false);
        assert_eq!(clock.order(stamp, 5), Order::Before);
        assert_eq!(clock.order(stamp, 6), Order::Unordered);
        assert_eq!(clock.order(stamp, 37), Order::Unordered);
        assert_eq!(clock.user(stamp), User::Thread(5));
    }

    #[test]
    fn a_barrier_orders_the_block_and_not_the_grid() {
        let mut clock = two_warps();
        let stamp = clock.stamp(5, false);
        clock.pass_barrier();
        assert!((0..64).all(|thread| clock.order(stamp, thread) == Order::Before));
        clock.begin_block(2);
        assert_eq!(clock.order(stamp, 5), Order::OtherBlock);
        assert_eq!(clock.order(Stamp(0), 5), Order::Before);
    }

    #[test]
    fn a_warp_barrier_orders_the_lanes_that_take_part() {
        let mut clock = two_warps();
        let [one, nine, other_warp] = [1, 9, 33].map(|thread| clock.stamp(thread, false));
        let lanes_0_to_7 = clock.several(clock.stamp(0, false), one);
        clock.pass_warp_barrier(0, 0xff);
        assert_eq!(clock.order(one, 2), Order::Before);
        assert_eq!(clock.order(one, 9), Order::Unordered);
        assert_eq!(clock.order(nine, 2), Order::Unordered);
        assert_eq!(clock.order(other_warp, 2), Order::Unordered);
        assert_eq!(clock.order(lanes_0_to_7, 2), Order::Unordered, "it could be any lanes of the span");
        // Lane 7 carries what it knows of lane 1 to lane 8.
        clock.pass_warp_barrier(0, 0x180);
        assert_eq!(clock.order(one, 8), Order::Before);
        assert_eq!(clock.order(nine, 8), Order::Unordered);
        clock.pass_warp_barrier(0, u32::MAX);
        assert!([one, nine, lanes_0_to_7].iter().all(|&stamp| clock.order(stamp, 31) == Order::Before));
    }

    #[test]
    fn products_see_what_a_fence_has_followed() {
        let mut clock = Clock::new(1);
        clock.begin_block(8);
        let is_seen = |clock: &Clock, write| clock.is_seen_by_products(write, 0..128);
        let [before, other] = [200, 201].map(|thread| clock.stamp(thread, false));
        clock.fence_for_products(200);
        let after = clock.stamp(200, false);
        assert!(is_seen(&clock, before));
        assert!(!is_seen(&clock, after), "it was written behind the fence");
        assert!(!is_seen(&clock, other), "another thread's fence");
        assert_eq!(clock.order(before, 200), Order::Before);
        (0..128).for_each(|thread| clock.fence_for_products(thread));
        assert!(!is_seen(&clock, after), "who multiplies has made a fence before the barrier");
        clock.pass_barrier();
        assert!(!is_seen(&clock, after), "a barrier is no fence");
        (0..127).for_each(|thread| clock.fence_for_products(thread));
        assert!(!is_seen(&clock, after), "all but one of those that multiply");
        clock.fence_for_products(127);
        assert!(is_seen(&clock, after) && is_seen(&clock, other));
        assert_eq!(clock.user(after), User::Thread(200));
        clock.begin_block(8);
        assert!(is_seen(&clock, after), "of another block");
    }

    #[test]
    fn several_readers_are_told_apart_by_warp() {
        let mut clock = two_warps();
        let warp = clock.several(clock.stamp(0, false), clock.stamp(1, false));
        let block = clock.several(warp, clock.stamp(40, false));
        clock.pass_warp_barrier(0, u32::MAX);
        assert_eq!(clock.order(warp, 3), Order::Before);
        assert_eq!(clock.order(warp, 40), Order::Unordered);
        assert_eq!(clock.order(block, 3), Order::Unordered);
        clock.pass_barrier();
        assert_eq!(clock.order(block, 3), Order::Before);
    }
}
