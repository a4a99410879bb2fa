//! Asynchronous instructions: done at the last moment that is allowed, when their group is waited for.
//!
//! A card may do them at any moment from their issue on. The last is the one at which a missing wait shows.

use std::collections::VecDeque;
use std::ops::Range;

use crate::abi;
use crate::bits::Bits;
use crate::shared::WINDOW;

/// An instruction that has been issued.
pub(crate) struct Instruction {
    run: abi::Deferred,
    /// Its operands, copied.
    operands: Box<[u128]>,
    /// Of a product.
    pub uses: Option<Uses>,
}

/// What a product of four warps uses until it is waited for, out of the sight of the checks.
pub(crate) struct Uses {
    /// Where the sums of each thread of the group begin, and how many bytes they have.
    sums: Box<[usize]>,
    sum_bytes: usize,
    /// The chunks of shared memory that it reads.
    chunks: Bits,
    /// Where it was issued.
    pub place: usize,
}

/// The bytes of a chunk.
pub(crate) const CHUNK: usize = 16;

impl Uses {
    /// # Safety
    /// The pointers of `uses` are to as many elements as it says, and to the sums of 128 threads.
    pub unsafe fn new(uses: &abi::Uses, place: usize) -> Uses {
        // SAFETY: as the caller says.
        let (sums, chunks) = unsafe {
            (
                std::slice::from_raw_parts(uses.sums, crate::execution::WARPGROUP as usize),
                std::slice::from_raw_parts(uses.chunks, uses.chunk_count),
            )
        };
        let mut set = Bits::new(WINDOW / CHUNK);
        for &offset in chunks {
            let chunk = offset as usize % WINDOW / CHUNK;
            set.insert(chunk..chunk + 1);
        }
        let sums = sums.iter().map(|sums| *sums as usize).collect();
        Uses { sums, sum_bytes: uses.sum_bytes, chunks: set, place }
    }

    /// The 32-bit addresses of the chunks of shared memory that it reads.
    pub fn chunks(&self) -> impl Iterator<Item = usize> {
        (0..WINDOW / CHUNK).filter(|&chunk| self.chunks.has(chunk)).map(|chunk| chunk * CHUNK)
    }

    /// Whether an address is one of the sums of a thread, by its number in the group.
    pub fn has_sum(&self, thread: usize, address: usize) -> bool {
        address.wrapping_sub(self.sums[thread]) < self.sum_bytes
    }

    /// Whether it reads one of these bytes of shared memory, by their 32-bit addresses.
    pub fn reads(&self, bytes: Range<usize>) -> bool {
        let end = bytes.end.min(WINDOW).div_ceil(CHUNK);
        (bytes.start / CHUNK..end).any(|chunk| self.chunks.has(chunk))
    }
}

impl Instruction {
    /// # Safety
    /// `operands` has `size` bytes that may be copied, and `run` may be called with the copy.
    pub unsafe fn new(
        run: abi::Deferred,
        operands: *const u8,
        size: usize,
        uses: Option<Uses>,
    ) -> Instruction {
        let mut copy = vec![0u128; size.div_ceil(16)].into_boxed_slice();
        // SAFETY: the copy has at least `size` bytes; the caller vouches for the rest.
        unsafe { std::ptr::copy_nonoverlapping(operands, copy.as_mut_ptr().cast(), size) };
        Instruction { run, operands: copy, uses }
    }

    /// # Safety
    /// What the operands point to is still there: the threads that issued the instruction have not ended.
    pub unsafe fn run(mut self) {
        // SAFETY: `new` was told that `run` takes these operands.
        unsafe { (self.run)(self.operands.as_mut_ptr().cast()) }
    }
}

/// The instructions of a thread or of a group of warps, in their order.
#[derive(Default)]
pub(crate) struct Queue {
    open: Vec<Instruction>,
    groups: VecDeque<Vec<Instruction>>,
    /// Whether the registers of what is issued next are ordered after their other uses.
    pub fenced: bool,
}

impl Queue {
    pub fn issue(&mut self, instruction: Instruction) {
        self.open.push(instruction);
    }

    /// Closes the group of all that was issued since the last one.
    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// Forgets all, at the end of a block.
    pub fn clear(&mut self) {
        if !self.is_empty() || self.fenced {
            *self = Queue::default();
        }
    }

    /// What is used by what is under way, in the order of issue.
    pub fn uses(&self) -> impl Iterator<Item = &Uses> {
        self.groups.iter().flatten().chain(&self.open).filter_map(|instruction| instruction.uses.as_ref())
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.groups.is_empty()
    }

    /// Takes out the oldest group, if there are more than `pending`. Once all is done, registers may be used again, and
    /// need a new fence.
    pub fn next_due(&mut self, pending: u32) -> Option<Vec<Instruction>> {
        if self.groups.len() <= pending as usize {
            self.fenced &= !self.is_empty();
            return None;
        }
        self.groups.pop_front()
    }
}
