//! Asynchronous instructions: done at the last moment that is allowed, when their group is waited for.
//!
//! A card may do them at any moment from their issue on. The last is the one at which a missing wait shows.

use std::collections::VecDeque;

use crate::abi;

/// An instruction that has been issued.
pub(crate) struct Instruction {
    run: abi::Deferred,
    /// Its operands, copied.
    operands: Box<[u128]>,
}

impl Instruction {
    /// # Safety
    /// `operands` has `size` bytes that may be copied, and `run` may be called with the copy.
    pub unsafe fn new(run: abi::Deferred, operands: *const u8, size: usize) -> Instruction {
        let mut copy = vec![0u128; size.div_ceil(16)].into_boxed_slice();
        // SAFETY: the copy has at least `size` bytes; the caller vouches for the rest.
        unsafe { std::ptr::copy_nonoverlapping(operands, copy.as_mut_ptr().cast(), size) };
        Instruction { run, operands: copy }
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
