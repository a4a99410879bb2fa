//! The state of a launch: its threads, where they wait, and what the checks know.

use std::ffi::c_void;
use std::ops::Range;

use crate::abi::{Context, Index};
use crate::check::{Access, Check, Target, name_of_thread};
use crate::clock::Clock;
use crate::deferred::{Instruction, Queue, Uses};
use crate::findings::{Findings, Wait, thread_ranges};
use crate::meeting::{Arrival, Meetings};
use crate::memory::Memory;
use crate::report::{Kind, Warp};
use crate::schedule::Schedule;
use crate::shared::SharedMemory;
use crate::traffic::{Counter, Site};

/// A thread, the lanes of a warp, and the threads of a group of four warps.
pub(crate) const THREAD: u32 = 1;
pub(crate) const WARP: u32 = 32;
pub(crate) const WARPGROUP: u32 = 128;
/// A watched warp tells no more than this.
const MOST_EVENTS: usize = 100_000;

/// What a thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Ready,
    AtBarrier,
    AtMeeting,
    Ended,
}

/// A barrier of the block.
#[derive(Default)]
struct Barrier {
    waiting: u32,
    votes: i32,
    /// The votes of the last barrier that was passed.
    result: i32,
}

/// The state of a launch, of which one block runs at a time.
pub(crate) struct Execution<'m> {
    pub memory: &'m mut Memory,
    pub shared: SharedMemory,
    pub schedule: Schedule,
    pub findings: Findings,
    /// The checks, of a checked build.
    pub check: Option<Check>,
    pub traffic: Option<Counter>,
    watch: Option<Warp>,
    pub events: Vec<(u32, String, usize)>,
    preempt: u32,
    pub accesses: u64,
    /// Whether the launch is given up.
    pub stopped: bool,

    /// Of each thread of the block.
    pub contexts: Vec<Context>,
    states: Vec<State>,
    waits_at: Vec<usize>,
    copies: Vec<Queue>,
    /// Of each warp: the lanes that have not ended.
    alive: Vec<u32>,
    alive_threads: u32,
    barrier: Barrier,
    warps: Vec<Meetings>,
    warpgroups: Vec<Meetings>,
    products: Vec<Queue>,
    /// How many products are under way in the block.
    products_under_way: usize,
    block_number: u32,
    /// The addresses of the library itself.
    image: Range<usize>,
}

impl<'m> Execution<'m> {
    pub fn new(
        memory: &'m mut Memory,
        shared: SharedMemory,
        schedule: Schedule,
        check: Option<Check>,
        options: crate::Options,
        contexts: Vec<Context>,
        image: Range<usize>,
    ) -> Execution<'m> {
        let threads = contexts.len();
        let checked = check.is_some();
        Execution {
            memory,
            shared,
            schedule,
            findings: Findings::default(),
            check,
            traffic: (checked && options.traffic).then(Counter::default),
            watch: options.watch.filter(|_| checked),
            events: Vec::new(),
            preempt: options.preempt,
            accesses: 0,
            stopped: false,
            contexts,
            states: vec![State::Ready; threads],
            waits_at: vec![0; threads],
            copies: (0..threads).map(|_| Queue::default()).collect(),
            alive: vec![0; threads.div_ceil(WARP as usize)],
            alive_threads: 0,
            barrier: Barrier::default(),
            warps: (0..threads.div_ceil(WARP as usize)).map(|_| Meetings::default()).collect(),
            warpgroups: (0..threads.div_ceil(WARPGROUP as usize)).map(|_| Meetings::default()).collect(),
            products: (0..threads.div_ceil(WARPGROUP as usize)).map(|_| Queue::default()).collect(),
            products_under_way: 0,
            block_number: 0,
            image,
        }
    }

    /// A block begins: all its threads are ready.
    pub fn begin_block(&mut self, number: u32, index: Index, ticket: u64) {
        let threads = self.contexts.len() as u32;
        self.block_number = number;
        self.shared.begin_block();
        self.renew_clock();
        if let Some(check) = &mut self.check {
            check.clock.begin_block(self.alive.len());
        }
        self.products_under_way = 0;
        self.barrier = Barrier::default();
        self.alive_threads = threads;
        for (warp, alive) in self.alive.iter_mut().enumerate() {
            let lanes = (threads - warp as u32 * WARP).min(WARP);
            *alive = u32::MAX >> (WARP - lanes);
        }
        self.schedule.clear();
        for thread in 0..threads {
            self.contexts[thread as usize].block = index;
            self.contexts[thread as usize].ticket = ticket;
            self.states[thread as usize] = State::Ready;
            self.schedule.push(thread);
        }
    }

    /// A block has ended, or was given up.
    pub fn end_block(&mut self) {
        self.copies.iter_mut().chain(&mut self.products).for_each(Queue::clear);
        self.warps.iter_mut().chain(&mut self.warpgroups).for_each(Meetings::clear);
        if let Some(traffic) = &mut self.traffic {
            traffic.end_block();
        }
    }

    /// The thread that runs next; none once the launch is given up.
    pub fn next(&mut self) -> Option<u32> {
        if self.stopped { None } else { self.schedule.pop() }
    }

    /// Whether threads are left that nobody will wake.
    pub fn is_at_standstill(&self) -> bool {
        self.alive_threads != 0 && !self.stopped
    }

    fn wake(&mut self, thread: u32) {
        self.states[thread as usize] = State::Ready;
        self.schedule.push(thread);
    }

    fn wait(&mut self, thread: u32, state: State, place: usize) {
        self.states[thread as usize] = state;
        self.waits_at[thread as usize] = place;
    }

    // ── Barriers of the block ──

    /// A thread comes to a barrier. Whether it must wait.
    pub fn arrive_at_barrier(&mut self, thread: u32, vote: i32, place: usize) -> bool {
        self.note_event(thread, place, || "comes to a barrier of the block".to_string());
        self.wait(thread, State::AtBarrier, place);
        self.barrier.waiting += 1;
        self.barrier.votes += vote;
        if self.barrier.waiting < self.alive_threads {
            return true;
        }
        // The last to come goes on at once, unless the order is drawn.
        if !self.schedule.is_random() {
            self.states[thread as usize] = State::Ready;
        }
        self.pass_barrier(place);
        self.schedule.is_random()
    }

    /// The votes of the barrier that was passed last.
    pub fn barrier_votes(&self) -> i32 {
        self.barrier.result
    }

    /// All have come that have not ended.
    fn pass_barrier(&mut self, place: usize) {
        self.barrier = Barrier { waiting: 0, votes: 0, result: self.barrier.votes };
        if let Some(check) = &mut self.check {
            check.clock.pass_barrier();
        }
        for thread in 0..self.states.len() as u32 {
            if self.states[thread as usize] != State::AtBarrier {
                continue;
            }
            let other = self.waits_at[thread as usize];
            if self.check.is_some() && other != place {
                let name = name_of_thread(&self.contexts[thread as usize]);
                self.findings.add(Kind::DivergentBarrier, other.min(place), Some(other.max(place)), || {
                    format!("{name} waits at one barrier while other threads of its block wait at another")
                });
            }
            self.wake(thread);
        }
    }

    // ── Meetings ──

    /// A thread comes to a meeting of its warp or warpgroup. The meeting's position, and whether it is complete.
    pub fn arrive(&mut self, thread: u32, group: u32, mut arrival: Arrival) -> (usize, bool) {
        self.note_event(thread, arrival.place, || {
            let what =
                if arrival.function.is_some() { "a collective operation" } else { "a barrier of its warp" };
            format!("comes to {what}")
        });
        if arrival.mask >> arrival.lane & 1 == 0 {
            let name = name_of_thread(&self.contexts[thread as usize]);
            self.findings.add(Kind::MissingLane, arrival.place, None, || {
                format!(
                    "{name} is lane {}, and calls with the mask {:#x}, which leaves it out",
                    arrival.lane, arrival.mask
                )
            });
            arrival.mask |= 1 << arrival.lane;
        }
        let alive = self.alive_in(thread, group);
        let position = self.meetings(thread, group).arrive(arrival, group as usize);
        let meeting = self.meetings(thread, group).at(position);
        let (mask, function, place) = (meeting.mask, meeting.function, meeting.place);
        let is_same = mask == arrival.mask
            && place == arrival.place
            && function.is_some() == arrival.function.is_some();
        if self.check.is_some() && !is_same {
            self.report_divergence(thread, mask, place, &arrival);
        }
        let complete = self.meetings(thread, group).is_complete(position, alive);
        if !complete {
            self.wait(thread, State::AtMeeting, arrival.place);
        }
        (position, complete)
    }

    fn report_divergence(&mut self, thread: u32, mask: u128, place: usize, arrival: &Arrival) {
        let name = name_of_thread(&self.contexts[thread as usize]);
        let differs = match mask == arrival.mask {
            true => "at another place".to_string(),
            false => format!("with the mask {mask:#x} and not {:#x}", arrival.mask),
        };
        self.findings.add(Kind::DivergentCollective, arrival.place, Some(place), || {
            format!(
                "{name} comes to an operation of its warp while lanes that it names came to one {differs}"
            )
        });
    }

    /// The meetings that a thread takes part in.
    pub fn meetings(&mut self, thread: u32, group: u32) -> &mut Meetings {
        let groups = if group == WARP { &mut self.warps } else { &mut self.warpgroups };
        &mut groups[(thread / group) as usize]
    }

    /// The threads of its group that have not ended.
    pub fn alive_in(&self, thread: u32, group: u32) -> u128 {
        if group == WARP {
            return u128::from(self.alive[(thread / WARP) as usize]);
        }
        let first = thread / group * group / WARP;
        let warps = first..(first + group / WARP).min(self.alive.len() as u32);
        warps
            .map(|warp| u128::from(self.alive[warp as usize]) << ((warp - first) * WARP))
            .fold(0, |a, b| a | b)
    }

    /// Ends a meeting: all lanes that came go on; `thread` does so by itself if it is one of them and still runs.
    pub fn close_meeting(&mut self, thread: u32, group: u32, position: usize) {
        let orders = self.meetings(thread, group).at(position).function.is_none();
        let arrived = self.meetings(thread, group).close(position);
        if let (true, Some(check)) = (orders, &mut self.check) {
            check.clock.pass_warp_barrier((thread / WARP) as usize, arrived as u32);
        }
        let first = thread / group * group;
        let mut rest = arrived;
        while rest != 0 {
            let other = first + rest.trailing_zeros();
            rest &= rest - 1;
            if other != thread {
                self.wake(other);
            }
        }
    }

    /// A thread has ended. What waited for it alone goes on; the meetings that this completes are left to the caller.
    pub fn end_thread(&mut self, thread: u32) {
        self.end_with_products(thread);
        self.states[thread as usize] = State::Ended;
        self.alive[(thread / WARP) as usize] &= !(1 << (thread % WARP));
        self.alive_threads -= 1;
        if self.barrier.waiting != 0 && self.barrier.waiting == self.alive_threads {
            let place = self.states.iter().position(|&state| state == State::AtBarrier);
            self.pass_barrier(place.map_or(0, |waiting| self.waits_at[waiting]));
        }
    }

    // ── Memory ──

    /// Whether an address is in the library or in a context, not in an array of the kernel.
    pub fn is_own(&self, address: usize) -> bool {
        let contexts = self.contexts.as_ptr_range();
        self.image.contains(&address) || (contexts.start as usize..contexts.end as usize).contains(&address)
    }

    /// Whether the thread that accesses memory gives way first.
    pub fn gives_way(&mut self, thread: u32) -> bool {
        let gives_way = self.schedule.gives_way(self.preempt);
        if gives_way {
            self.wake(thread);
        }
        gives_way
    }

    /// Checks an access. Whether the launch must stop.
    pub fn access(&mut self, thread: u32, access: Access) -> bool {
        let is_watched = self.is_watched(thread);
        if access.write {
            self.overwrite(thread, access);
        }
        let Some(check) = &mut self.check else { return false };
        self.accesses += 1;
        let context = &self.contexts[thread as usize];
        let target = check.access(context, access, self.memory, &mut self.shared, &mut self.findings);
        if target == Target::Fault {
            self.stopped = true;
            return true;
        }
        let shared = target == Target::Shared;
        if let Some(traffic) = self.traffic.as_mut().filter(|_| access.requested) {
            let site = Site { place: access.place, shared, write: access.write };
            traffic.add(site, thread, access.address, access.size);
        }
        if is_watched {
            let what = check.describe(access, self.memory, &mut self.shared);
            self.note_event(thread, access.place, || what);
        }
        false
    }

    fn is_watched(&self, thread: u32) -> bool {
        self.watch.is_some_and(|watch| watch == Warp { block: self.block_number, warp: thread / WARP })
    }

    /// Notes what a thread does, if its warp is watched.
    fn note_event(&mut self, thread: u32, place: usize, what: impl FnOnce() -> String) {
        if self.is_watched(thread) && self.events.len() < MOST_EVENTS {
            self.events.push((thread % WARP, what(), place));
        }
    }

    // ── Asynchronous instructions ──

    /// The asynchronous instructions of a thread, or of its warpgroup.
    pub fn queue(&mut self, thread: u32, group: u32) -> &mut Queue {
        match group {
            WARPGROUP => &mut self.products[(thread / WARPGROUP) as usize],
            _ => &mut self.copies[thread as usize],
        }
    }

    /// The oldest group of instructions of a thread or its warpgroup, to be done now, if there are more than `pending`.
    pub fn next_due(&mut self, thread: u32, group: u32, pending: u32) -> Option<Vec<Instruction>> {
        let due = self.queue(thread, group).next_due(pending)?;
        if group == WARPGROUP {
            self.products_under_way -= due.len();
        }
        Some(due)
    }

    /// A warpgroup issues a product, which reads its operands in shared memory by another path than stores take.
    pub fn issue_product(&mut self, thread: u32, instruction: Instruction) {
        if let (Some(check), Some(uses)) = (&self.check, &instruction.uses) {
            let group = thread / WARPGROUP * WARPGROUP;
            check.product(&self.contexts, group..group + WARPGROUP, uses, &self.shared, &mut self.findings);
        }
        self.products_under_way += 1;
        self.queue(thread, WARPGROUP).issue(instruction);
    }

    /// Whether products are under way in the block.
    pub fn has_products(&self) -> bool {
        self.products_under_way > 0
    }

    /// A thread uses memory of its own: the sums of a product under way belong to that.
    pub fn use_sum(&mut self, thread: u32, access: Access) {
        let mut products = self.products[(thread / WARPGROUP) as usize].uses();
        let is_its = |uses: &&Uses| uses.has_sum((thread % WARPGROUP) as usize, access.address);
        if let Some(uses) = products.find(is_its) {
            let name = name_of_thread(&self.contexts[thread as usize]);
            self.findings.add(Kind::Unordered, access.place, Some(uses.place), || {
                format!("{name} {} sums of a product that it has not waited for", access.verb())
            });
        }
    }

    /// A thread writes to memory, perhaps what a product under way reads.
    pub fn overwrite(&mut self, thread: u32, access: Access) {
        if self.products_under_way == 0 || !self.shared.has(access.address) {
            return;
        }
        let Some(check) = &mut self.check else { return };
        let start = self.shared.offset(access.address) as usize;
        let mut products = self.products.iter().flat_map(Queue::uses);
        if let Some(uses) = products.find(|uses| uses.reads(start..start + access.size)) {
            let name = name_of_thread(&self.contexts[thread as usize]);
            let what = check.describe(access, self.memory, &mut self.shared);
            self.findings.add(Kind::Unordered, access.place, Some(uses.place), || {
                format!("{name} {what}, which a product reads that has not been waited for")
            });
        }
    }

    /// A thread ends, and products of its warpgroup may be under way.
    fn end_with_products(&mut self, thread: u32) {
        if self.products_under_way == 0 || self.check.is_none() {
            return;
        }
        if let Some(uses) = self.products[(thread / WARPGROUP) as usize].uses().next() {
            let name = name_of_thread(&self.contexts[thread as usize]);
            self.findings.add(Kind::Unordered, uses.place, None, || {
                format!("{name} multiplies matrices, and ends without waiting for the product")
            });
        }
    }

    /// A thread makes its stores to shared memory visible to products.
    pub fn fence_for_products(&mut self, thread: u32) {
        if let Some(check) = &mut self.check {
            check.clock.fence_for_products(thread);
        }
    }

    /// A thread orders its uses of memory for other blocks to see.
    pub fn fence(&mut self, thread: u32) {
        if let Some(check) = &mut self.check {
            check.clock.fence(thread);
        }
    }

    /// The stamps of time start again, lest they run out.
    fn renew_clock(&mut self) {
        if let Some(check) = &mut self.check
            && check.clock.is_late()
        {
            check.clock = Clock::new(1);
            self.memory.forget_uses();
            self.shared.forget_uses();
        }
    }

    // ── Standstill ──

    /// The system gives no memory for a thread's stack.
    pub fn report_no_stack(&mut self, error: &std::io::Error) {
        self.findings
            .add(Kind::Limit, 0, None, || format!("the system gives no stack for a thread: {error}"));
        self.stopped = true;
    }

    /// Nobody can run: says who waits where.
    pub fn report_standstill(&mut self) {
        let mut groups: Vec<(usize, State, Vec<u32>)> = Vec::new();
        for thread in 0..self.states.len() as u32 {
            let (state, place) = (self.states[thread as usize], self.waits_at[thread as usize]);
            if state == State::Ended {
                continue;
            }
            match groups.iter_mut().find(|(at, what, _)| *at == place && *what == state) {
                Some((_, _, threads)) => threads.push(thread),
                None => groups.push((place, state, vec![thread])),
            }
        }
        let block = self.contexts[0].block;
        let waits = groups.into_iter().map(|(at, state, threads)| Wait {
            threads: thread_ranges(&threads),
            what: match state {
                State::AtBarrier => "at a barrier of the block".to_string(),
                _ => "for lanes that do not come".to_string(),
            },
            at,
        });
        let message = format!("the threads of block {block} wait for each other and none can go on");
        self.findings.add_standstill(message, waits.collect());
        self.stopped = true;
    }
}

/// The pointer that contexts carry.
pub(crate) fn erase(execution: &mut Execution) -> *mut c_void {
    std::ptr::from_mut(execution).cast()
}
