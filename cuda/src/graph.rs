//! A step that is recorded once and queued again as a whole: one call of the driver instead of hundreds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use cudarc::driver::{result, sys};
use limpid_tensor::{Error, Result, Tensor};

use crate::device::{Cuda, SharedPool, address_of};
use crate::staging::PageLocked;

/// Where memory comes from while a graph is captured.
pub(crate) struct Capture {
    /// Blocks of this pool are used again inside the graph, and by nothing outside.
    pub(crate) pool: Arc<SharedPool>,
    /// Older blocks that were dropped in the meantime: the graph may read them.
    pub(crate) kept: Vec<(Arc<SharedPool>, u64)>,
    /// What was copied from the host: every replay copies it again.
    pub(crate) constants: Vec<PageLocked>,
}

/// Work that was captured, to be queued any number of times.
///
/// Every replay reads and writes the same memory: what the captured tensors were made of. So a tensor that came out of
/// the capture holds, after each replay, that replay's result; and what goes in changes by being
/// [overwritten](Cuda::overwrite), not by being replaced.
pub struct Graph {
    cuda: &'static Cuda,
    executable: sys::CUgraphExec,
    operations: usize,
    kept: Vec<(Arc<SharedPool>, u64)>,
    /// What it copies from the host.
    _constants: Vec<PageLocked>,
    /// The memory of what happens inside.
    _pool: Arc<SharedPool>,
}

// SAFETY: an executable graph belongs to no thread; it is launched through `&mut self`, one at a time.
unsafe impl Send for Graph {}

impl Cuda {
    /// Runs `step` without running its kernels, and keeps them as a graph, together with what `step` returns.
    ///
    /// Nothing in `step` may read a device's element: `item`, `to_vec`, `synchronize` and the like are errors there. What it
    /// takes from the host (numbers, learning rates, keys of random draws) is the same in every replay. Run the step once
    /// beforehand, so that all kernels are compiled. Other threads that use the device wait until it is captured.
    ///
    /// # Errors
    /// That of `step`, or the driver's, for example where something was read.
    pub fn capture<R, E: From<Error>>(
        &'static self,
        step: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<(Graph, R), E> {
        let _turn = self.turn.take();
        self.synchronize()?;
        let pool = self.new_pool();
        self.memory().capture = Some(Capture { pool: pool.clone(), kept: Vec::new(), constants: Vec::new() });
        // Relaxed: the pool asks the driver for memory while it captures, which touches no stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is this device's, and not the null stream.
        let begun =
            self.check("beginning a capture", unsafe { result::stream::begin_capture(self.stream, mode) });
        let returned = begun.is_ok().then(step);
        // SAFETY: the capture was begun above. It must end, whatever `step` did.
        let ended = begun.and_then(|()| {
            self.check("ending a capture", unsafe { result::stream::end_capture(self.stream) })
        });
        let Capture { kept, constants, .. } = self.memory().capture.take().expect("it was set above");
        let made = ended.and_then(|captured| self.instantiate(captured));
        let executable = made.as_ref().map_or(std::ptr::null_mut(), |&(executable, _)| executable);
        let operations = made.as_ref().map_or(0, |&(_, operations)| operations);
        // From here on dropping it gives everything back, also where something went wrong.
        let graph = Graph { cuda: self, executable, operations, kept, _constants: constants, _pool: pool };
        let returned = returned.transpose()?;
        made?;
        Ok((graph, returned.expect("a step that was begun has returned")))
    }

    /// Whether a graph is being captured: what is queued does not run.
    pub(crate) fn is_capturing(&self) -> bool {
        self.memory().capture.is_some()
    }

    /// The executable of a captured graph, and how many operations it has. The captured graph is destroyed.
    fn instantiate(&self, captured: sys::CUgraph) -> Result<(sys::CUgraphExec, usize)> {
        let mut operations = 0;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is alive until it is destroyed at the end; with no array of nodes only their number is asked.
        let (counted, made, destroyed) = unsafe {
            let counted = sys::cuGraphGetNodes(captured, std::ptr::null_mut(), &mut operations).result();
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, captured, 0).result();
            (counted, made, result::graph::destroy(captured))
        };
        self.check("making a graph", counted.and(made).and(destroyed))?;
        Ok((executable, operations))
    }

    /// Queues a copy into a tensor's own memory: how a graph's input changes.
    ///
    /// # Panics
    /// If the two differ in shape or dtype, `to` is not contiguous, or `from` does not lie in contiguous host memory.
    #[track_caller]
    pub fn overwrite(&'static self, to: &mut Tensor, from: &Tensor) -> Result<()> {
        assert_eq!(to.meta(), from.meta(), "overwrite: the two differ");
        assert!(to.layout().is_contiguous(), "overwrite: the destination is not contiguous");
        let host = from.storage().host().filter(|_| from.layout().is_contiguous());
        let host = host.expect("overwrite: the source does not lie in contiguous host memory");
        let size = from.dtype().size();
        let start = if from.elements() == 0 { 0 } else { from.layout().offset() * size };
        self.copy_from_host(address_of(to), &host[start..start + from.elements() * size])
    }
}

impl Graph {
    /// Queues the captured work once more.
    pub fn replay(&mut self) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: graph and stream are alive; everything the graph uses is kept by it.
        self.cuda
            .check("replaying a graph", unsafe { result::graph::launch(self.executable, self.cuda.stream) })
    }

    /// How many kernels and copies it has.
    pub fn operations(&self) -> usize {
        self.operations
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.cuda.bind().is_ok() {
            // SAFETY: the graph is not used again, and no replay is under way after the wait. An error here is one of work
            // queued earlier, which the next call reports too.
            let _ = unsafe {
                result::stream::synchronize(self.cuda.stream)
                    .and(result::graph::exec_destroy(self.executable))
            };
        }
        give_back(std::mem::take(&mut self.kept));
    }
}

fn give_back(kept: Vec<(Arc<SharedPool>, u64)>) {
    for (pool, address) in kept {
        pool.lock().give_back(address);
    }
}

/// Whose turn it is to use a device: everybody's, or that of the thread that captures a graph.
#[derive(Default)]
pub(crate) struct Turn {
    /// Looked at by every call; the rest only where somebody captures.
    is_taken: AtomicBool,
    taken_by: Mutex<Option<ThreadId>>,
    ended: Condvar,
}

/// The turn of this thread alone, until it is dropped.
pub(crate) struct Taken<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.taken_by.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self) -> Taken<'_> {
        let mut taken_by = self.lock();
        while taken_by.is_some() {
            taken_by = self.ended.wait(taken_by).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *taken_by = Some(thread::current().id());
        self.is_taken.store(true, Ordering::Release);
        Taken(self)
    }

    /// Waits until no other thread captures.
    pub(crate) fn wait(&self) {
        if !self.is_taken.load(Ordering::Acquire) {
            return;
        }
        let mut taken_by = self.lock();
        while taken_by.is_some_and(|thread| thread != thread::current().id()) {
            taken_by = self.ended.wait(taken_by).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
        *self.0.lock() = None;
        self.0.ended.notify_all();
    }
}
