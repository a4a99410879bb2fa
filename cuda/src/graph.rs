//! A step that is recorded once and queued again as a whole: one call of the driver instead of hundreds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::{self, ThreadId};

use cudarc::driver::{result, sys};
use limpid_tensor::{Error, Result, Tensor};

use crate::device::{Cuda, SharedPool, address_of};
use crate::staging::PageLocked;

/// Where memory comes from while a graph is captured.
pub(crate) struct Capture {
    /// What lives as long as the graph.
    keeper: Weak<Keeper>,
    /// Blocks of this pool are used again inside the graph, and by nothing outside.
    pub(crate) pool: Arc<SharedPool>,
    /// What was copied from the host: every replay copies it again.
    pub(crate) constants: Vec<PageLocked>,
}

/// Where a block comes from, and goes back to.
#[derive(Clone)]
pub(crate) enum Home {
    Pool(Arc<SharedPool>),
    /// The driver itself, by way of the device's stream.
    Driver(&'static Cuda),
}

/// A block that nothing refers to any more. It goes back when the last graph that may use it is gone.
pub(crate) struct Parked {
    pub(crate) home: Home,
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

impl Drop for Parked {
    fn drop(&mut self) {
        match &self.home {
            Home::Pool(pool) => pool.lock().give_back(self.address),
            Home::Driver(cuda) => {
                if cuda.bind().is_ok() {
                    // SAFETY: the driver gave the block by this stream, and what uses it is queued in it already. There is
                    // nothing to do if it cannot be freed.
                    let _ = unsafe { result::free_async(self.address, cuda.stream) };
                }
            }
        }
    }
}

/// The blocks that a graph may use, of those that nothing else refers to.
#[derive(Default)]
pub(crate) struct Keeper(Mutex<Vec<Arc<Parked>>>);

impl Keeper {
    pub(crate) fn keep(&self, block: Arc<Parked>) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(block);
    }

    /// Bytes of the blocks of several; a block that more than one keeps counts once.
    pub(crate) fn bytes(keepers: impl Iterator<Item = Arc<Keeper>>) -> usize {
        let mut blocks = BTreeMap::new();
        for keeper in keepers {
            let kept = keeper.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            blocks.extend(kept.iter().map(|block| (block.address, block.bytes)));
        }
        blocks.values().sum()
    }
}

/// Work that was captured, to be queued any number of times.
///
/// Every replay reads and writes the same memory: what the captured tensors were made of. So a tensor that came out of
/// the capture holds, after each replay, that replay's result; and what goes in changes by being
/// [overwritten](Cuda::overwrite), not by being replaced. As long as the graph lives, so does the memory of every tensor that
/// was there when it was captured.
pub struct Graph {
    cuda: &'static Cuda,
    executable: sys::CUgraphExec,
    operations: usize,
    /// What it copies from the host.
    _constants: Vec<PageLocked>,
    /// The memory of what happens inside.
    _pool: Arc<SharedPool>,
    /// Older memory that it may use.
    _keeper: Arc<Keeper>,
}

// SAFETY: an executable graph belongs to no thread; it is launched through `&mut self`, one at a time.
unsafe impl Send for Graph {}

impl Cuda {
    /// Runs `step` without running its kernels, and keeps them as a graph, together with what `step` returns.
    ///
    /// Nothing in `step` may read a device's element: `item`, `to_vec`, `synchronize` and the like are errors there. What it
    /// takes from the host (numbers, keys of random draws) is the same in every replay. Run the step once beforehand, so that
    /// all kernels are compiled. Other threads that begin to use the device meanwhile wait.
    ///
    /// A step of an optimiser becomes the next step in each replay: the weights, what is remembered of them and the count of
    /// steps are changed where they lie. Its learning rate is a constant of the graph where it is a number, and is read in
    /// each replay where it is a [tensor](limpid_tensor::Rate::Stored), to be [overwritten](Cuda::overwrite) in between. What
    /// limits the norm of the gradients must be part of that step too. The optimiser's first step comes before the capture,
    /// and nothing else may refer to a weight or to what is remembered. That holds for steps outside the graph as well, as
    /// long as it is replayed: a step that finds a weight referred to gives it new memory, and the graph keeps the old. A
    /// weight's copy in bf16 is changed with it; a replay reads the copy, and so does not see that the weight alone was
    /// overwritten.
    ///
    /// # Errors
    /// That of `step`, or the driver's, for example where something was read.
    pub fn capture<R, E: From<Error>>(
        &'static self,
        step: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<(Graph, R), E> {
        if self.is_capturing() && self.turn.is_mine() {
            return Err(self.error("a graph is captured inside another").into());
        }
        let _turn = self.turn.take();
        self.prepare_faults()?;
        self.synchronize()?;
        let open = Open::begin(self)?;
        let returned = step()?;
        Ok((open.end()?, returned))
    }

    /// Whether a graph is being captured: what is queued does not run.
    pub(crate) fn is_capturing(&self) -> bool {
        self.memory().capture.is_some()
    }

    /// What lives as long as the graph that is being captured, if one is.
    pub(crate) fn captured_graph(&self) -> Option<Weak<Keeper>> {
        self.memory().capture.as_ref().map(|capture| capture.keeper.clone())
    }

    /// Queues a copy into a tensor's own memory: how a graph's input changes. Whatever shares that memory changes too.
    ///
    /// # Panics
    /// If the two differ in shape or dtype, `to` is not contiguous or not on this device, or `from` does not lie in contiguous
    /// host memory.
    #[track_caller]
    pub fn overwrite(&'static self, to: &mut Tensor, from: &Tensor) -> Result<()> {
        assert_eq!(to.meta(), from.meta(), "overwrite: the two differ");
        assert!(to.layout().is_contiguous(), "overwrite: the destination is not contiguous");
        assert!(
            self.holds(to),
            "overwrite: the destination is on {}, expected {}",
            to.device(),
            self.device()
        );
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
    }
}

/// A capture that has begun. It ends when this is dropped, whatever happens in between.
struct Open {
    cuda: &'static Cuda,
    keeper: Arc<Keeper>,
}

impl Open {
    fn begin(cuda: &'static Cuda) -> Result<Open> {
        // Relaxed: the pool asks the driver for memory while it captures, which touches no stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is this device's, and not the null stream.
        let begun = unsafe { result::stream::begin_capture(cuda.stream, mode) };
        cuda.check("beginning a capture", begun)?;
        let keeper = Arc::new(Keeper::default());
        let mut memory = cuda.memory();
        let (alive, pool) = (Arc::downgrade(&keeper), cuda.new_pool());
        memory.graph_pools.retain(|pool| pool.strong_count() > 0);
        memory.graph_pools.push(Arc::downgrade(&pool));
        memory.capture = Some(Capture { keeper: alive.clone(), pool, constants: Vec::new() });
        let births = memory.births;
        memory.graphs.push((births, alive));
        drop(memory);
        Ok(Open { cuda, keeper })
    }

    /// Ends the capture, and what was captured with it.
    fn close(&self) -> Option<(Result<sys::CUgraph>, Capture)> {
        let capture = self.cuda.memory().capture.take()?;
        // SAFETY: the capture was begun on this stream, by this thread.
        let ended = unsafe { result::stream::end_capture(self.cuda.stream) };
        Some((self.cuda.check("ending a capture", ended), capture))
    }

    fn end(self) -> Result<Graph> {
        let cuda = self.cuda;
        let (captured, Capture { pool, constants, .. }) =
            self.close().expect("it is open until it is dropped");
        let captured = captured?;
        let (mut operations, mut executable) = (0, std::ptr::null_mut());
        // SAFETY: the graph is alive until it is destroyed at the end; with no array of nodes only their number is asked.
        let (counted, made, destroyed) = unsafe {
            let counted = sys::cuGraphGetNodes(captured, std::ptr::null_mut(), &mut operations).result();
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, captured, 0).result();
            (counted, made, result::graph::destroy(captured))
        };
        cuda.check("making a graph", made)?;
        let keeper = self.keeper.clone();
        let graph =
            Graph { cuda, executable, operations, _constants: constants, _pool: pool, _keeper: keeper };
        cuda.check("making a graph", counted.and(destroyed))?;
        Ok(graph)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some((Ok(captured), _)) = self.close() {
            // SAFETY: the graph was just captured, and nothing else has it. There is nothing to do if it stays.
            let _ = unsafe { result::graph::destroy(captured) };
        }
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

    /// Whether it is this thread that captures.
    fn is_mine(&self) -> bool {
        *self.lock() == Some(thread::current().id())
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
