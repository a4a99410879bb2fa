//! Doing what was queued.

use std::ops::Range;
use std::time::Instant;

use super::block::Home;
use super::clock::Handle;
use super::driver::Driver;
use super::history::Access;
use super::mistake::Mistake;
use super::pointer::HostBytes;
use super::queue::{Action, Operation};
use super::status::{Answer, Status};

/// Bytes that an operation uses, and whether it writes them.
pub(super) type Use = (Range<u64>, bool);

impl Driver {
    /// Does an operation; after a fault of the device, nothing.
    pub(super) fn execute(&mut self, stream: Handle, operation: &Operation) {
        let device = self.streams[&stream].device;
        if self.devices[device].fault.is_some() {
            return;
        }
        if let Err(fault) = self.perform(device, operation) {
            self.devices[device].fault = Some(fault);
        }
    }

    fn perform(&mut self, device: usize, operation: &Operation) -> Answer {
        for bytes in uses(&operation.action) {
            self.note_use(operation, bytes)?;
        }
        match &operation.action {
            Action::Nothing | Action::Claim { .. } => Ok(()),
            Action::Write { to, bytes } => self.write(*to, bytes),
            Action::Upload { to, from } => self.write(*to, &from.read()),
            Action::Download { to, from } => {
                let bytes = self.read(*from, to.bytes)?;
                to.write(&bytes);
                Ok(())
            }
            &Action::Copy { to, from, bytes } => self.copy(to, from, bytes),
            &Action::Fill { to, value, bytes } => {
                let home = self.home(to)?;
                done(self.devices[home].memory.fill(to, value, bytes))
            }
            Action::Launch(launch) => self.run_kernel(device, launch, operation),
            &Action::Record { event, recording } => {
                if let Some(event) = self.events.get_mut(&event).filter(|event| event.recordings == recording)
                {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            &Action::Free { start, .. } => {
                let home = self.home(start)?;
                self.blocks.remove(start);
                done(self.devices[home].memory.free(start))
            }
        }
    }

    /// Notes that an operation uses bytes, and says what it collides with.
    pub(super) fn note_use(&mut self, operation: &Operation, (range, write): Use) -> Answer {
        let Some(block) = self.blocks.at(range.start) else {
            let memory =
                self.blocks.freed_at(range.start).unwrap_or_else(|| format!("address {:#x}", range.start));
            self.report(Mistake::UseAfterFree { operation: operation.name.clone(), memory });
            return Err(Status::ILLEGAL_ADDRESS);
        };
        let memory = block.name();
        let access = Access { mark: operation.mark, who: operation.name.clone(), range, write };
        for first in block.history.note(access, &operation.clock) {
            let second = operation.name.clone();
            self.report(Mistake::Race { first: first.who, second, memory: memory.clone() });
        }
        Ok(())
    }

    /// The device that an address lies on. An error if it is not, or no longer, a device's.
    fn home(&mut self, address: u64) -> Answer<usize> {
        match self.blocks.at(address).map(|block| &block.home) {
            Some(&Home::Device(device)) => Ok(device),
            _ => Err(Status::ILLEGAL_ADDRESS),
        }
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Answer {
        let home = self.home(to)?;
        done(self.devices[home].memory.write(to, bytes))
    }

    fn read(&mut self, from: u64, count: usize) -> Answer<Vec<u8>> {
        let home = self.home(from)?;
        let mut bytes = vec![0; count];
        done(self.devices[home].memory.read(from, &mut bytes))?;
        Ok(bytes)
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Answer {
        let (target, source) = (self.home(to)?, self.home(from)?);
        if target == source {
            return done(self.devices[target].memory.copy(to, from, bytes));
        }
        let bytes = self.read(from, bytes)?;
        self.write(to, &bytes)
    }
}

/// Whether the emulator's memory has the bytes.
fn done(inside: bool) -> Answer {
    if inside { Ok(()) } else { Err(Status::ILLEGAL_ADDRESS) }
}

/// The bytes that an action uses, but for a kernel, which tells after it ran. Host memory counts where it is page-locked;
/// other memory is copied before the call returns.
fn uses(action: &Action) -> Vec<Use> {
    let device = |start: u64, bytes: usize, write| (start..start + bytes as u64, write);
    let host = |range: &HostBytes, write| (range.address..range.address + range.bytes as u64, write);
    match action {
        Action::Nothing | Action::Launch(_) | Action::Record { .. } => Vec::new(),
        Action::Write { to, bytes } => vec![device(*to, bytes.len(), true)],
        Action::Upload { to, from } => vec![host(from, false), device(*to, from.bytes, true)],
        Action::Download { to, from } => {
            let read = device(*from, to.bytes, false);
            if to.is_page_locked { vec![read, host(to, true)] } else { vec![read] }
        }
        &Action::Copy { to, from, bytes } => vec![device(from, bytes, false), device(to, bytes, true)],
        &Action::Fill { to, bytes, .. } => vec![device(to, bytes, true)],
        &Action::Claim { start, bytes } | &Action::Free { start, bytes } => vec![device(start, bytes, true)],
    }
}
