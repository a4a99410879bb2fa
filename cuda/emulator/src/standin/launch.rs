//! Launching kernels.

use std::sync::Arc;

use super::block::Home;
use super::clock::Handle;
use super::device::{MOST_BLOCK, MOST_GRID, MOST_THREADS, SHARED, SHARED_ASKED};
use super::driver::Driver;
use super::mistake::Mistake;
use super::queue::{Action, Operation};
use super::status::{Answer, Status};
use crate::{Kernel, Kind, Options, Report, Shape, launch};

/// In a checked kernel a thread is suspended at one in so many accesses.
const PREEMPTION: u32 = 64;

/// A kernel that the host has a handle for.
#[derive(Clone)]
pub(super) struct Function {
    pub module: Handle,
    pub kernel: Kernel,
    /// Whether the kernel tells what it uses.
    pub is_checked: bool,
    /// Dynamic shared memory that a launch may ask for.
    pub most_shared: usize,
}

/// A launch as it was queued.
pub(super) struct Launch {
    function: Function,
    shape: Shape,
    arguments: Vec<Vec<u8>>,
}

/// A launch that has been done, as an observer sees it.
pub struct Launched<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// The grid.
    pub shape: Shape,
    /// What the emulator saw.
    pub report: &'a Report,
}

/// Told of every launch.
pub(super) type Observer = Box<dyn Fn(&Launched) + Send>;

impl Driver {
    pub(super) fn function(&mut self, handle: Handle) -> Answer<&mut Function> {
        self.functions.get_mut(&handle).ok_or(Status::INVALID_HANDLE)
    }

    /// Queues a launch; `arguments` are the bytes of each parameter, as they are now.
    pub(super) fn launch(
        &mut self,
        function: Handle,
        shape: Shape,
        stream: Handle,
        arguments: Vec<Vec<u8>>,
    ) -> Answer {
        let function = self.function(function)?.clone();
        check_shape(&function, shape)?;
        let name = format!("kernel {}", function.kernel.name());
        self.submit(stream, &name, Action::Launch(Arc::new(Launch { function, shape, arguments })))
    }

    pub(super) fn run_kernel(&mut self, device: usize, queued: &Launch, operation: &Operation) -> Answer {
        let Launch { function: Function { kernel, is_checked, .. }, shape, arguments } = queued;
        if !is_checked {
            self.note_arguments(arguments, operation)?;
        }
        let options = Options {
            seed: self.random.next(),
            preempt: if *is_checked { PREEMPTION } else { 0 },
            traffic: self.counts_traffic,
            watch: self.watched,
        };
        let report = launch(&mut self.devices[device].memory, kernel, *shape, arguments, options);
        for finding in &report.findings {
            self.report(Mistake::Kernel { kernel: kernel.name().to_string(), finding: finding.clone() });
        }
        for &(start, read, write) in &report.touched {
            self.note_allocation(start, read, write, operation)?;
        }
        let launched = Launched { kernel: kernel.name(), shape: *shape, report: &report };
        self.observers.iter().for_each(|observer| observer(&launched));
        if report.stopped { Err(fault(&report)) } else { Ok(()) }
    }

    /// Notes that a kernel used an allocation: it does not say which of its bytes.
    fn note_allocation(&mut self, start: u64, read: bool, write: bool, operation: &Operation) -> Answer {
        let Some(bytes) = self.blocks.at(start).map(|block| block.bytes) else { return Ok(()) };
        let uses = read || write;
        if uses { self.note_use(operation, (start..start + bytes as u64, write)) } else { Ok(()) }
    }

    /// Notes, for a kernel that does not tell what it uses, that it reads the allocations that its arguments point to. What
    /// it writes is not known: counting it would call two kernels that share an operand a race.
    fn note_arguments(&mut self, arguments: &[Vec<u8>], operation: &Operation) -> Answer {
        for argument in arguments {
            let Ok(address) = <[u8; 8]>::try_from(argument.as_slice()).map(u64::from_ne_bytes) else {
                continue;
            };
            let block = self.blocks.at(address).filter(|block| matches!(block.home, Home::Device(_)));
            if let Some(start) = block.map(|block| block.start) {
                self.note_allocation(start, true, false, operation)?;
            }
        }
        Ok(())
    }
}

fn check_shape(function: &Function, shape: Shape) -> Answer {
    let fits = |sizes: [u32; 3], most: [u32; 3]| {
        sizes.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size))
    };
    let threads = shape.block.iter().map(|&size| u64::from(size)).product::<u64>();
    if !fits(shape.grid, MOST_GRID) || !fits(shape.block, MOST_BLOCK) || threads > u64::from(MOST_THREADS) {
        return Err(Status::INVALID_VALUE);
    }
    if threads > u64::from(function.kernel.most_threads()) {
        return Err(Status::LAUNCH_OUT_OF_RESOURCES);
    }
    if shape.dynamic_shared > function.most_shared.max(SHARED) || shape.dynamic_shared > SHARED_ASKED {
        return Err(Status::INVALID_VALUE);
    }
    Ok(())
}

/// What a card answers to the mistake that stopped a kernel.
fn fault(report: &Report) -> Status {
    match report.findings.last().map(|finding| finding.kind) {
        Some(Kind::Misaligned) => Status::MISALIGNED_ADDRESS,
        Some(Kind::Deadlock | Kind::DivergentBarrier | Kind::DivergentCollective) => Status::LAUNCH_TIMEOUT,
        Some(Kind::Limit) => Status::LAUNCH_FAILED,
        _ => Status::ILLEGAL_ADDRESS,
    }
}
