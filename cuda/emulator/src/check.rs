//! Looks at every load, store and atomic of a checked build.

use std::ffi::c_int;
use std::ops::Range;

use crate::abi::{self, Context};
use crate::clock::{Clock, User};
use crate::deferred::{CHUNK, Uses};
use crate::findings::Findings;
use crate::memory::{Allocation, Memory, RED_ZONE};
use crate::report::Kind;
use crate::shadow::{Conflict, Shadow, Touch};
use crate::shared::{Placed, SharedMemory};

/// One load, store or atomic.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub address: usize,
    pub size: usize,
    pub write: bool,
    pub atomic: bool,
    /// Whether the address must be a multiple of the size.
    pub aligned: bool,
    /// Whether it is part of a request of its thread's warp.
    pub requested: bool,
    /// The return address in the library.
    pub place: usize,
}

impl Access {
    pub fn new(address: usize, size: usize, kind: c_int, place: usize) -> Access {
        Access {
            address,
            size,
            write: matches!(kind, abi::WRITE | abi::WRITE_UNALIGNED | abi::ATOMIC),
            atomic: kind == abi::ATOMIC,
            aligned: !matches!(kind, abi::READ_UNALIGNED | abi::WRITE_UNALIGNED),
            requested: kind != abi::READ_OPERAND,
            place,
        }
    }

    fn reads(&self) -> bool {
        !self.write || self.atomic
    }

    /// `reads`, `writes` or `atomically updates`.
    pub fn verb(&self) -> &'static str {
        verb(self.write, self.atomic)
    }
}

fn verb(write: bool, atomic: bool) -> &'static str {
    match (atomic, write) {
        (true, _) => "atomically updates",
        (false, true) => "writes",
        (false, false) => "reads",
    }
}

/// Where an access went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Shared,
    Global,
    /// Nowhere that it may go: the launch must stop.
    Fault,
}

/// What the checks keep in mind while a launch runs.
pub(crate) struct Check {
    pub clock: Clock,
    /// Of each allocation, by its position in memory: whether it was read, and written.
    pub touched: Vec<(bool, bool)>,
    /// The library's start: places are kept as distances from it.
    code: usize,
    /// For each of some addresses of code, the allocation that it last used.
    recent: [u32; 64],
}

/// An array that an access is in or next to, of either memory.
struct Array<'a> {
    start: usize,
    bytes: usize,
    name: &'a str,
    shadow: &'a mut Shadow,
    global: bool,
}

impl<'a> Array<'a> {
    fn shared(placed: &'a mut Placed) -> Array<'a> {
        let Placed { start, bytes, name, shadow, .. } = placed;
        Array { start: *start, bytes: *bytes, name, shadow, global: false }
    }

    fn global(allocation: &'a mut Allocation) -> Array<'a> {
        let Allocation { start, bytes, name, shadow, .. } = allocation;
        Array { start: *start, bytes: *bytes, name, shadow, global: true }
    }

    /// `reads 4 bytes at offset 16 of shared `tile``.
    fn describe(&self, access: Access) -> String {
        let offset = access.address.wrapping_sub(self.start) as isize;
        format!("{} {} bytes at offset {offset} of {}", access.verb(), access.size, self.name)
    }
}

impl Check {
    pub fn new(clock: Clock, memory: &Memory, code: usize) -> Check {
        Check { clock, touched: vec![(false, false); memory.allocations.len()], code, recent: [0; 64] }
    }

    /// Checks an access of a thread, and notes it.
    pub fn access(
        &mut self,
        thread: &Context,
        access: Access,
        memory: &mut Memory,
        shared: &mut SharedMemory,
        findings: &mut Findings,
    ) -> Target {
        if shared.has(access.address) {
            if let Some(placed) = shared.near(access.address, access.size) {
                let array = Array::shared(placed);
                return if self.access_array(thread, access, array, findings) {
                    Target::Shared
                } else {
                    Target::Fault
                };
            }
        } else if let Some(position) = self.allocation_near(memory, access) {
            let touched = &mut self.touched[position];
            touched.0 |= access.reads();
            touched.1 |= access.write;
            if access.atomic {
                self.clock.update(thread.number, access.address);
            }
            let array = Array::global(&mut memory.allocations[position]);
            return if self.access_array(thread, access, array, findings) {
                Target::Global
            } else {
                Target::Fault
            };
        }
        findings.add(Kind::WildAccess, access.place, None, || {
            let address = access.address;
            let target =
                if address < 4096 { "null".to_string() } else { "an address in no array".to_string() };
            let offset = if address > 0 && address < 4096 { format!(" + {address}") } else { String::new() };
            format!("{} {} {} bytes at {target}{offset}", name_of_thread(thread), access.verb(), access.size)
        });
        Target::Fault
    }

    /// The position of the allocation that an access is in or next to.
    fn allocation_near(&mut self, memory: &Memory, access: Access) -> Option<usize> {
        let near = |position: usize| {
            memory.allocations.get(position).is_some_and(|allocation| {
                access.address + access.size + RED_ZONE > allocation.start
                    && access.address < allocation.start + allocation.bytes + RED_ZONE
            })
        };
        let recent = &mut self.recent[access.place / 4 % 64];
        if near(*recent as usize) {
            return Some(*recent as usize);
        }
        let after = memory.allocations.partition_point(|allocation| allocation.start <= access.address);
        let position = [after.wrapping_sub(1), after].into_iter().find(|&position| near(position))?;
        *recent = position as u32;
        Some(position)
    }

    /// What an access that is no fault does, for a reader.
    pub fn describe(&mut self, access: Access, memory: &mut Memory, shared: &mut SharedMemory) -> String {
        if let Some(placed) = shared.near(access.address, access.size) {
            return Array::shared(placed).describe(access);
        }
        match self.allocation_near(memory, access) {
            Some(position) => Array::global(&mut memory.allocations[position]).describe(access),
            None => format!("{} {} bytes", access.verb(), access.size),
        }
    }

    /// Whether the launch can go on.
    fn access_array(&self, thread: &Context, access: Access, array: Array, findings: &mut Findings) -> bool {
        let offset = access.address.wrapping_sub(array.start) as isize;
        let description = |array: &Array| format!("{} {}", name_of_thread(thread), array.describe(access));
        let what = || description(&array);
        if offset < 0 || offset as usize + access.size > array.bytes {
            findings.add(Kind::OutOfBounds, access.place, None, || {
                format!("{}, which has {} bytes", what(), array.bytes)
            });
            return false;
        }
        if access.aligned && !access.address.is_multiple_of(access.size) {
            findings.add(Kind::Misaligned, access.place, None, || {
                format!("{}, which is no multiple of {}", what(), access.size)
            });
            return false;
        }
        let range = offset as usize..offset as usize + access.size;
        if access.reads() && !array.shadow.counts_as_written(range.clone()) {
            findings.add(Kind::Uninitialised, access.place, None, || {
                format!("{}, which nobody has written", what())
            });
        }
        if access.write {
            array.shadow.written.insert(range.clone());
        }
        let touch = Touch {
            thread: thread.number,
            write: access.write,
            atomic: access.atomic,
            place: access.place.wrapping_sub(self.code) as u32,
            global: array.global,
        };
        if let Some(conflict) = array.shadow.touch(range, touch, &self.clock) {
            let other = self.code + conflict.place as usize;
            findings.add(Kind::Race, access.place, Some(other), || {
                self.race(&description(&array), thread, &conflict)
            });
        }
        true
    }

    /// Checks that a product of a group of threads sees what was written to its operands.
    pub fn product(
        &self,
        threads: &[Context],
        group: Range<u32>,
        uses: &Uses,
        shared: &SharedMemory,
        findings: &mut Findings,
    ) {
        let mut seen = None;
        let arrays = uses.chunks().filter_map(|chunk| shared.at(chunk));
        for (array, byte) in
            arrays.flat_map(|(array, start)| (start..start + CHUNK).map(move |byte| (array, byte)))
        {
            let write = array.shadow.last_write(byte);
            let Some((stamp, place)) = write.filter(|_| write != seen) else { continue };
            seen = write;
            if self.clock.is_seen_by_products(stamp, group.clone()) {
                continue;
            }
            let place = self.code + place as usize;
            findings.add(Kind::Unordered, uses.place, Some(place), || {
                let who = match self.clock.user(stamp) {
                    User::Thread(number) => name_of_thread(&threads[number as usize]),
                    _ => "another thread".to_string(),
                };
                let multiplies = name_of_thread(&threads[group.start as usize]);
                format!(
                    "{multiplies} and its group multiply what {who} wrote at offset {byte} of {}, and no \
                     fence_async_proxy came between",
                    array.name
                )
            });
        }
    }

    fn race(&self, what: &str, thread: &Context, conflict: &Conflict) -> String {
        let verb = verb(conflict.write, conflict.atomic);
        let (user, order) = match self.clock.user(conflict.stamp) {
            User::Thread(number) if number / 32 == thread.number / 32 => (
                format!("thread {} of its warp", index_of(number, thread)),
                "no barrier of the block or the warp",
            ),
            User::Thread(number) => {
                (format!("thread {} of its block", index_of(number, thread)), "no barrier")
            }
            User::SeveralThreads => ("several threads of its block".to_string(), "no barrier"),
            User::OtherBlock => ("another block".to_string(), "nothing"),
        };
        let verb = if user.starts_with("several") {
            verb.replace("reads", "read").replace("writes", "write")
        } else {
            verb.to_string()
        };
        format!("{what}; {user} {verb} byte {} of it, and {order} orders the two", conflict.byte)
    }
}

/// `thread (1, 0, 0) of block (0, 0, 0)`.
pub(crate) fn name_of_thread(thread: &Context) -> String {
    format!("thread {} of block {}", thread.thread, thread.block)
}

/// The index of the thread with that number, in the block of `thread`.
fn index_of(number: u32, thread: &Context) -> abi::Index {
    let size = thread.block_size;
    abi::Index { x: number % size.x, y: number / size.x % size.y, z: number / size.x / size.y }
}
