//! Elements that an operation cannot take, such as an index outside its axis, which only the kernel sees.
//!
//! A kernel that looks for them writes down where it found the first. To wait for each such kernel would empty the queue, so
//! the error is raised when the thread that queued it, or captured the graph that it is part of, next reads results.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, Weak};
use std::thread::{self, ThreadId};

use limpid_tensor::Result;

use crate::device::{Buffer, Cuda};
use crate::graph::Keeper;
use crate::launch::Arguments;
use crate::staging::PageLocked;

/// Launches that are remembered, besides those in graphs.
const REMEMBERED: u64 = 64;

/// The numbers of launches in graphs begin here.
const CAPTURED: u64 = 1 << 23;

/// The word while nothing is wrong. Else the number of the launch, times 2⁴⁰, plus the position of the wrong element: the
/// smallest such word is the first fault, whatever the order in which threads find theirs.
const NONE: u64 = u64::MAX;

/// What is to be said of an element that a launch could not take, by its position.
type Sentence = Box<dyn Fn(u64) -> String + Send>;

thread_local! {
    /// Lives as long as the thread.
    static ALIVE: Arc<()> = Arc::default();
}

/// Where the kernels of one thread write, and what they were doing.
pub(crate) struct Faults {
    thread: Weak<()>,
    word: Buffer,
    /// Where the word is read.
    read: PageLocked,
    launches: u64,
    /// Of the last launches.
    recent: Vec<Sentence>,
    /// Of launches in graphs, which may be replayed as long as the graph lives.
    captured: Vec<(Weak<Keeper>, Sentence)>,
}

impl Faults {
    /// Of this thread, in memory that holds anything.
    fn new(cuda: &'static Cuda, word: Buffer, mut read: PageLocked) -> Result<Faults> {
        cuda.fill(word.address, 0xFF, 8)?;
        read.copy_from_slice(&NONE.to_le_bytes());
        let thread = ALIVE.with(Arc::downgrade);
        Ok(Faults { thread, word, read, launches: 0, recent: Vec::new(), captured: Vec::new() })
    }

    /// Whether the thread has ended, and no graph of it is left that might write the word.
    fn are_nobodys(&self) -> bool {
        self.thread.strong_count() == 0 && self.captured.iter().all(|(graph, _)| graph.strong_count() == 0)
    }

    /// Remembers a launch, and gives it its number.
    fn remember(&mut self, graph: Option<Weak<Keeper>>, sentence: Sentence) -> u64 {
        if let Some(graph) = graph {
            let is_gone = |(graph, _): &(Weak<Keeper>, Sentence)| graph.strong_count() == 0;
            let slot = self.captured.iter().position(is_gone).unwrap_or(self.captured.len());
            self.captured.splice(slot..self.captured.len().min(slot + 1), [(graph, sentence)]);
            return CAPTURED + slot as u64;
        }
        let launch = self.launches % CAPTURED;
        self.launches += 1;
        match self.recent.get_mut((launch % REMEMBERED) as usize) {
            Some(slot) => *slot = sentence,
            None => self.recent.push(sentence),
        }
        launch
    }

    /// The sentence about a fault.
    fn message(&self, word: u64) -> String {
        let (launch, position) = (word >> 40, word & ((1 << 40) - 1));
        let sentence = match launch.checked_sub(CAPTURED) {
            Some(slot) => self.captured.get(slot as usize).map(|(_, sentence)| sentence),
            None if launch + REMEMBERED >= self.launches => self.recent.get((launch % REMEMBERED) as usize),
            None => None,
        };
        match sentence {
            Some(sentence) => sentence(position),
            None => format!("an earlier operation could not take element {position} of an operand"),
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
        let what = what.to_string();
        self.checked(arguments, move |position| {
            format!("{what}: the index at element {position} is outside 0..{size}")
        })
    }

    /// Adds the parameters `Fault fault` of a kernel that notes the position of what it cannot take; `sentence` says of a
    /// position what was wrong there.
    pub(crate) fn checked(
        &'static self,
        arguments: &mut Arguments,
        sentence: impl Fn(u64) -> String + Send + 'static,
    ) -> Result<()> {
        self.prepare_faults()?;
        let graph = self.captured_graph();
        let mut faults = self.lock_faults();
        let faults = faults.get_mut(&thread::current().id()).expect("they were just made");
        let launch = faults.remember(graph, Box::new(sentence));
        arguments.value([faults.word.address, launch << 40]);
        Ok(())
    }

    /// Makes sure that this thread's kernels have a word to write.
    pub(crate) fn prepare_faults(&'static self) -> Result<()> {
        // Before the lock: a thread that captures takes it too.
        let _in_use = self.bind()?;
        let mut faults = self.lock_faults();
        let me = thread::current().id();
        if !faults.contains_key(&me) {
            let free = faults.iter().find(|(_, faults)| faults.are_nobodys()).map(|(&thread, _)| thread);
            let of_thread = match free.and_then(|thread| faults.remove(&thread)) {
                // What its kernels wrote comes before in the stream.
                Some(Faults { word, read, .. }) => Faults::new(self, word, read)?,
                None => Faults::new(self, self.scratch(8)?, PageLocked::new(self, 8)?)?,
            };
            faults.insert(me, of_thread);
        }
        Ok(())
    }

    fn lock_faults(&self) -> MutexGuard<'_, HashMap<ThreadId, Faults>> {
        self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether kernels that look for faults were queued by this thread since it last learned that there was none.
    pub(crate) fn may_raise(&self) -> bool {
        let faults = self.lock_faults();
        let of_thread = faults.get(&thread::current().id());
        of_thread.is_some_and(|faults| faults.launches > 0 || !faults.captured.is_empty())
    }

    /// Queues reading the word, for [`raise_fault`](Cuda::raise_fault) to look at once the stream has been waited for.
    pub(crate) fn read_fault(&self) -> Result<()> {
        let _in_use = self.bind()?;
        let mut faults = self.lock_faults();
        let Some(faults) = faults.get_mut(&thread::current().id()) else { return Ok(()) };
        // SAFETY: the word has eight bytes, and is looked at in `raise_fault` only.
        unsafe { faults.read.fetch(faults.word.address, 8) }
    }

    /// The error that a kernel has written down, once.
    pub(crate) fn raise_fault(&self) -> Result<()> {
        let _in_use = self.bind()?;
        let mut faults = self.lock_faults();
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
