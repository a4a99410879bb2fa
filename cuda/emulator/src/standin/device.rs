//! A device that is this processor.

use std::ffi::c_int;

use super::clock::Handle;
use super::status::{Answer, Status};
use crate::Memory;

pub(super) const WARP: c_int = 32;
pub(super) const MOST_THREADS: u32 = 1024;
pub(super) const MOST_BLOCK: [u32; 3] = [1024, 1024, 64];
pub(super) const MOST_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Shared memory of a block: what it may have, and what it may have if the kernel's attribute asks for it.
pub(super) const SHARED: usize = 48 << 10;
pub(super) const SHARED_ASKED: usize = 227 << 10;
/// Shared memory of a multiprocessor, of which each block takes a little for itself.
pub(super) const SHARED_MULTIPROCESSOR: usize = 228 << 10;
pub(super) const SHARED_RESERVED: usize = 1 << 10;
pub(super) const THREADS_MULTIPROCESSOR: u32 = 2048;
pub(super) const BLOCKS_MULTIPROCESSOR: u32 = 32;
/// So few that grids stay small, so many that a kernel must share its work.
const MULTIPROCESSORS: c_int = 4;
/// Numbers of attributes, from 1; those without a line below are 0.
const ATTRIBUTES: c_int = 150;

/// One device and its primary context.
pub(super) struct Device {
    pub memory: Memory,
    /// Bytes that may be allocated.
    pub limit: usize,
    /// How many times the context is retained.
    pub retained: usize,
    /// What a kernel did that the context does not recover from: from then on, every call answers this.
    pub fault: Option<Status>,
    /// The stream that has no handle.
    pub default_stream: Handle,
}

impl Device {
    pub(super) fn new(limit: usize, default_stream: Handle) -> Device {
        // The limit may change, the memory's own cannot.
        Device { memory: Memory::new(usize::MAX), limit, retained: 0, fault: None, default_stream }
    }

    pub(super) fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        let fits = self.memory.used().checked_add(bytes).is_some_and(|used| used <= self.limit);
        fits.then(|| self.memory.allocate(bytes, "")).flatten().ok_or(Status::OUT_OF_MEMORY)
    }

    pub(super) fn check(&self) -> Answer {
        self.fault.map_or(Ok(()), Err)
    }

    /// The device's property of a number, such as an H200 has it, but for the multiprocessors.
    pub(super) fn attribute(number: c_int) -> Answer<c_int> {
        Ok(match number {
            1 => MOST_THREADS as c_int,
            axis @ 2..=4 => MOST_BLOCK[axis as usize - 2] as c_int,
            axis @ 5..=7 => MOST_GRID[axis as usize - 5] as c_int,
            8 => SHARED as c_int,
            9 => 64 << 10, // constant memory
            10 => WARP,
            11 => c_int::MAX,    // pitch
            12 | 82 => 64 << 10, // registers of a block, of a multiprocessor
            13 => 1_980_000,     // clock, kHz
            14 => 512,           // alignment of textures
            15 | 31 | 41 => 1,   // copies beside kernels, kernels beside kernels, one address space
            78 | 115 => 1,       // priorities of streams, memory pools
            16 => MULTIPROCESSORS,
            36 => 3_201_000, // clock of the memory, kHz
            37 => 6144,      // bits of its bus
            38 => 60 << 20,  // second-level cache
            39 => THREADS_MULTIPROCESSOR as c_int,
            40 => 3, // copy engines
            75 => 9, // compute capability 9.0
            81 => SHARED_MULTIPROCESSOR as c_int,
            97 => SHARED_ASKED as c_int,
            106 => BLOCKS_MULTIPROCESSOR as c_int,
            111 => SHARED_RESERVED as c_int,
            other if (1..=ATTRIBUTES).contains(&other) => 0,
            _ => return Err(Status::INVALID_VALUE),
        })
    }
}
