//! Runs a grid.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{Context, Index};
use crate::callbacks::{RUNTIME, hold_meeting};
use crate::check::Check;
use crate::clock::Clock;
use crate::execution::{Execution, WARP, WARPGROUP, erase};
use crate::fibers::{Fibers, Step};
use crate::report::{Event, Finding, Kind, MemoryTraffic, Place, Report, Traffic, Warp};
use crate::schedule::Schedule;
use crate::shared::{self, SharedMemory};
use crate::traffic::Counter;
use crate::{Kernel, Memory, Program};

/// The most threads that a block has on any card.
const MOST_THREADS: u64 = 1024;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
}

/// How a launch is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What the order of blocks and threads is drawn from; 0: they run in their order. The same seed gives the same
    /// order and the same findings.
    pub seed: u64,
    /// A thread gives way at one in so many accesses, drawn from the seed; 0: never. `Checked` builds only.
    pub preempt: u32,
    /// Whether to count memory traffic. `Checked` builds only.
    pub traffic: bool,
    /// A warp whose every step is written down. `Checked` builds only.
    pub watch: Option<Warp>,
}

/// Runs a kernel on a grid. `arguments` are the bytes of each parameter; a pointer is an address in `memory`.
///
/// A mistake that a card answers with an error, or never, ends the launch, not the process, if the build is `Checked`.
/// A `Fast` build looks at no access: a wild one does there what it does in any program.
///
/// # Panics
/// If the arguments are not as many as the kernel's parameters, or not of their sizes.
pub fn launch(
    memory: &mut Memory,
    kernel: &Kernel,
    shape: Shape,
    arguments: &[Vec<u8>],
    options: Options,
) -> Report {
    let sizes: Vec<usize> = arguments.iter().map(Vec::len).collect();
    assert_eq!(
        sizes,
        kernel.parameter_sizes(),
        "{}: sizes of the arguments and of the parameters",
        kernel.name()
    );
    if let Some(message) = broken_limit(kernel, &shape) {
        let at = Place { file: "?".to_string(), line: 0, function: kernel.name().to_string(), caller: None };
        let finding = Finding { kind: Kind::Limit, message, at, other: None };
        return Report { findings: vec![finding], stopped: true, ..Report::default() };
    }
    let program = &*kernel.program;
    let _running = program.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let check = program.is_checked().then(|| {
        let clock = Clock::new(memory.next_span);
        Check::new(clock, memory, program.image().start)
    });
    if check.is_none() {
        memory.count_as_written();
    }
    let mut arguments = Arguments::new(arguments);
    let mut execution = Execution::new(
        memory,
        SharedMemory::new(shape.dynamic_shared),
        Schedule::new(options.seed),
        check,
        options,
        contexts(&shape),
        program.image(),
    );
    let switches = run_grid(&mut execution, kernel, &shape, &mut arguments);
    report(execution, program, switches)
}

/// The sentence that says what no card, or not this kernel, would run.
fn broken_limit(kernel: &Kernel, shape: &Shape) -> Option<String> {
    let threads = shape.block.iter().map(|&n| u64::from(n)).product::<u64>();
    let most = MOST_THREADS.min(u64::from(kernel.most_threads()));
    let name = kernel.name();
    if threads == 0 || shape.grid.contains(&0) {
        return Some(format!(
            "{name} is launched with a grid of {:?} blocks of {:?} threads.",
            shape.grid, shape.block
        ));
    }
    if threads > most {
        return Some(format!(
            "{name} is launched with {threads} threads in a block, and takes at most {most}."
        ));
    }
    (shape.dynamic_shared > shared::MOST).then(|| {
        let (bytes, most) = (shape.dynamic_shared, shared::MOST);
        format!("{name} is launched with {bytes} bytes of dynamic shared memory, and a card has {most}.")
    })
}

/// The contexts of a block's threads, x fastest.
fn contexts(shape: &Shape) -> Vec<Context> {
    let [width, height, depth] = shape.block;
    (0..width * height * depth)
        .map(|number| Context {
            thread: Index { x: number % width, y: number / width % height, z: number / width / height },
            block: Index::default(),
            block_size: shape.block.into(),
            grid_size: shape.grid.into(),
            lane: number % WARP,
            number,
            ticket: 0,
            execution: std::ptr::null_mut(),
            yielder: std::ptr::null(),
            stack: 0,
            stack_size: 0,
        })
        .collect()
}

/// The arguments of a launch, where a kernel can copy them from.
struct Arguments {
    /// Keeps what `addresses` point to; 16-byte aligned, as any parameter may have to be.
    _values: Vec<Box<[u128]>>,
    addresses: Vec<*mut c_void>,
}

impl Arguments {
    fn new(arguments: &[Vec<u8>]) -> Arguments {
        let mut values: Vec<Box<[u128]>> = Vec::new();
        for argument in arguments {
            let words = argument.chunks(16).map(|chunk| {
                let mut word = [0; 16];
                word[..chunk.len()].copy_from_slice(chunk);
                u128::from_ne_bytes(word)
            });
            values.push(words.collect());
        }
        let addresses = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
        Arguments { _values: values, addresses }
    }
}

/// Runs all blocks, and returns how often the processor changed threads.
fn run_grid(execution: &mut Execution, kernel: &Kernel, shape: &Shape, arguments: &mut Arguments) -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(1);
    let blocks = shape.grid.iter().product::<u32>();
    let order = execution.schedule.block_order(blocks);
    let mut fibers = Fibers::new(execution.contexts.len());
    let mut switches = 0;
    for number in order {
        let [width, height, _] = shape.grid;
        let index = Index { x: number % width, y: number / width % height, z: number / width / height };
        execution.begin_block(number, index, TICKETS.fetch_add(1, Ordering::Relaxed));
        switches += run_block(execution, &mut fibers, kernel, arguments);
        if execution.is_at_standstill() {
            execution.report_standstill();
        }
        fibers.abandon();
        execution.end_block();
        if execution.stopped {
            break;
        }
    }
    switches
}

/// Runs the threads of a block until none can go on.
fn run_block(
    execution: &mut Execution,
    fibers: &mut Fibers,
    kernel: &Kernel,
    arguments: &mut Arguments,
) -> u64 {
    let descriptor = kernel.program.descriptor;
    let arguments = arguments.addresses.as_mut_ptr();
    let pointer = erase(execution);
    execution.contexts.iter_mut().for_each(|context| context.execution = pointer);
    let contexts = execution.contexts.as_mut_ptr();
    let execution: *mut Execution = pointer.cast();
    let mut switches = 0;
    // SAFETY: `descriptor` is the library's, whose lock is held; contexts, execution and arguments outlive the
    // coroutines, which `run_grid` abandons at the latest. No reference to the execution is held while a thread runs.
    unsafe {
        *(*descriptor).runtime = &RUNTIME;
        while let Some(thread) = (*execution).next() {
            let context = contexts.add(thread as usize);
            *(*descriptor).current = context;
            switches += 1;
            match fibers.step(thread as usize, context, kernel.call(), arguments) {
                Ok(Step::Suspended) => {}
                Ok(Step::Ended) => end_thread(execution, context, thread),
                Err(error) => (*execution).report_no_stack(&error),
            }
        }
    }
    switches
}

/// A thread has ended: those that waited for it alone go on.
///
/// # Safety
/// The invariant of the callbacks: nobody holds a reference to the execution.
unsafe fn end_thread(execution: *mut Execution, context: *mut Context, thread: u32) {
    // SAFETY: as the caller says; each reference ends with its statement.
    unsafe {
        (*execution).end_thread(thread);
        for group in [WARP, WARPGROUP] {
            if (*execution).meetings(thread, group).are_over() {
                continue;
            }
            let alive = (*execution).alive_in(thread, group);
            while let Some(position) = (*execution).meetings(thread, group).complete(alive) {
                hold_meeting(context, thread, group, position);
            }
        }
    }
}

fn report(execution: Execution, program: &Program, switches: u64) -> Report {
    let Execution { memory, findings, check, traffic, events, accesses, stopped, .. } = execution;
    let (totals, [read, written]) = traffic.map(Counter::totals).unwrap_or_default();
    let addresses: Vec<usize> =
        totals.iter().map(|(site, _)| site.place).chain(events.iter().map(|(_, _, place)| *place)).collect();
    let places = if addresses.is_empty() { Default::default() } else { program.places_of(&addresses) };
    let traffic = totals.into_iter().map(|(site, total)| Traffic {
        place: places[&site.place].clone(),
        shared: site.shared,
        write: site.write,
        requests: total.requests,
        cost: total.cost,
        bytes: total.bytes,
    });
    let events = events.into_iter().map(|(lane, what, at)| Event { lane, what, place: places[&at].clone() });
    let mut touched = Vec::new();
    if let Some(check) = check {
        memory.next_span = check.clock.next_span();
        let used =
            memory.allocations.iter().zip(check.touched).filter(|(_, (read, written))| *read || *written);
        touched =
            used.map(|(allocation, (read, written))| (allocation.start as u64, read, written)).collect();
    }
    Report {
        findings: findings.report(program),
        traffic: traffic.collect(),
        memory: MemoryTraffic { read, written },
        events: events.collect(),
        accesses,
        switches,
        stopped,
        touched,
    }
}
