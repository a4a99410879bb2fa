//! Indices outside their axis, which only the kernel sees.
//!
//! A kernel that reads indices writes down where it found the first wrong one, and reads nothing there. To wait for each
//! such kernel would empty the queue, so the error is raised when the thread that queued it next reads results.

use std::collections::hash_map::Entry;
use std::thread;

use limpid_tensor::Result;

use crate::device::{Buffer, Cuda};
use crate::launch::Arguments;
use crate::staging::PageLocked;

/// Launches that are remembered by what they did.
const REMEMBERED: u64 = 64;

/// The word while nothing is wrong. Else the number of the launch, times 2⁴⁰, plus the position of the wrong index: the
/// smallest such word is the first fault, whatever the order in which threads find theirs.
const NONE: u64 = u64::MAX;

/// Where the kernels of one thread write, and what they were doing.
pub(crate) struct Faults {
    word: Buffer,
    /// Where the word is read.
    read: PageLocked,
    launches: u64,
    /// The last launches: what was done, and how many elements the axis has.
    recent: Vec<(String, usize)>,
}

impl Faults {
    fn new(cuda: &'static Cuda) -> Result<Faults> {
        let word = cuda.scratch(8)?;
        cuda.fill(word.address, 0xFF, 8)?;
        let mut read = PageLocked::new(cuda, 8)?;
        read.copy_from_slice(&NONE.to_le_bytes());
        Ok(Faults { word, read, launches: 0, recent: Vec::new() })
    }

    /// The sentence about a fault.
    fn message(&self, word: u64) -> String {
        let (launch, position) = (word >> 40, word & ((1 << 40) - 1));
        match self.recent.get((launch % REMEMBERED) as usize) {
            Some((what, size)) if launch + REMEMBERED >= self.launches => {
                format!("{what}: the index at element {position} is outside 0..{size}")
            }
            _ => format!("an earlier operation: the index at element {position} is outside its axis"),
        }
    }
}

impl Cuda {
    /// Adds the parameters `Fault fault` of a kernel that checks indices against an axis of `size` elements; `what` names
    /// the operation in a message.
    pub(crate) fn checked_index(
        &'static self,
        arguments: &mut Arguments,
        what: &str,
        size: usize,
    ) -> Result<()> {
        self.prepare_faults()?;
        let mut faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let faults = faults.get_mut(&thread::current().id()).expect("they were just made");
        let (launch, entry) = (faults.launches, (what.to_string(), size));
        faults.launches += 1;
        match faults.recent.get_mut((launch % REMEMBERED) as usize) {
            Some(slot) => *slot = entry,
            None => faults.recent.push(entry),
        }
        arguments.value([faults.word.address, launch << 40]);
        Ok(())
    }

    /// Makes sure that this thread's kernels have a word to write.
    pub(crate) fn prepare_faults(&'static self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Entry::Vacant(entry) = faults.entry(thread::current().id()) {
            entry.insert(Faults::new(self)?);
        }
        Ok(())
    }

    /// Queues reading the word, for [`raise_fault`](Cuda::raise_fault) to look at once the stream has been waited for.
    pub(crate) fn read_fault(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(faults) = faults.get_mut(&thread::current().id()) else { return Ok(()) };
        // SAFETY: the word has eight bytes, and is looked at in `raise_fault` only.
        unsafe { faults.read.fetch(faults.word.address, 8) }
    }

    /// The error that a kernel has written down, once.
    pub(crate) fn raise_fault(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(faults) = faults.get_mut(&thread::current().id()) else { return Ok(()) };
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&faults.read);
        let word = u64::from_le_bytes(bytes);
        if word == NONE {
            // All launches so far were right.
            (faults.launches, faults.recent) = (0, Vec::new());
            return Ok(());
        }
        faults.read.copy_from_slice(&NONE.to_le_bytes());
        self.fill(faults.word.address, 0xFF, 8)?;
        Err(self.error(faults.message(word)))
    }
}
