//! A step that is recorded once and queued again as a whole: one call of the driver instead of hundreds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use cudarc::driver::{result, sys};
use limpid_tensor::{Error, Result, Tensor};

use crate::device::{Cuda, Driver, SharedPool, address_of};
use crate::memory::Pool;
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
            Home::Driver(cuda) => cuda.leave(Rest::Block(self.address)),
        }
    }
}

/// What nothing refers to any more, and only the driver can free. In the middle of a capture it cannot: to wait for the stream
/// breaks the capture.
pub(crate) enum Rest {
    Graph(Body),
    /// The memory of what happens inside a graph.
    Pool(Pool),
    /// A block that the driver gave by way of the stream.
    Block(u64),
}

impl Cuda {
    /// Frees a rest: at once, or when the capture that is under way has ended.
    pub(crate) fn leave(&'static self, rest: Rest) {
        self.lock_rests().push(rest);
        self.sweep();
    }

    /// Frees all rests, unless a graph is being captured. Who captures does it at the end.
    fn sweep(&'static self) {
        // Nobody is waited for: who drops a tensor may hold any lock.
        while let Some(_in_use) = self.turn.try_enter() {
            let Some(rest) = self.lock_rests().pop() else { return };
            self.free(rest);
        }
    }

    /// Must be called while this thread is at it. There is nothing to do if something cannot be freed: an error here is one of
    /// work queued earlier, which the next call reports too.
    fn free(&self, rest: Rest) {
        // SAFETY: context and stream live as long as the process.
        let wait = || unsafe { result::stream::synchronize(self.stream) };
        // SAFETY: as above.
        if unsafe { result::ctx::set_current(self.context) }.is_err() {
            return;
        }
        match rest {
            Rest::Graph(body) => {
                // SAFETY: the graph is not used again, and no replay is under way after the wait.
                let _ = wait().and_then(|()| unsafe { result::graph::exec_destroy(body.executable) });
            }
            Rest::Pool(mut pool) => {
                if wait().is_ok() {
                    pool.release(&mut Driver::default());
                }
            }
            Rest::Block(address) => {
                // SAFETY: the driver gave the block by this stream, and what uses it is queued in it already.
                let _ = unsafe { result::free_async(address, self.stream) };
            }
        }
    }

    fn lock_rests(&self) -> MutexGuard<'_, Vec<Rest>> {
        self.rests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
    operations: usize,
    /// There until it is dropped.
    body: Option<Body>,
}

/// A graph, as the driver knows it, and what it uses.
pub(crate) struct Body {
    executable: sys::CUgraphExec,
    /// What it copies from the host.
    _constants: Vec<PageLocked>,
    /// The memory of what happens inside.
    _pool: Arc<SharedPool>,
    /// Older memory that it may use.
    _keeper: Arc<Keeper>,
}

// SAFETY: an executable graph belongs to no thread; it is launched through `&mut Graph`, one at a time.
unsafe impl Send for Body {}

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
        if self.is_capturing() {
            return Err(self.error("a graph is captured inside another").into());
        }
        let _turn = Taken::by(self);
        self.prepare_faults()?;
        self.synchronize()?;
        let open = Open::begin(self)?;
        let returned = step()?;
        Ok((open.end()?, returned))
    }

    /// Whether this thread captures a graph: what it queues does not run.
    pub(crate) fn is_capturing(&self) -> bool {
        self.turn.is_mine() && self.memory().capture.is_some()
    }

    /// What lives as long as the graph that this thread captures, if it does.
    pub(crate) fn captured_graph(&self) -> Option<Weak<Keeper>> {
        if !self.turn.is_mine() {
            return None;
        }
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
        let _in_use = self.cuda.bind()?;
        let executable = self.body.as_ref().expect("it is there until it is dropped").executable;
        // SAFETY: graph and stream are alive; everything the graph uses is kept by it.
        self.cuda.check("replaying a graph", unsafe { result::graph::launch(executable, self.cuda.stream) })
    }

    /// How many kernels and copies it has.
    pub fn operations(&self) -> usize {
        self.operations
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.cuda.leave(Rest::Graph(body));
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
        let body = Body { executable, _constants: constants, _pool: pool, _keeper: keeper };
        let graph = Graph { cuda, operations, body: Some(body) };
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

/// The device is this thread's alone, until this is dropped.
struct Taken(&'static Cuda);

impl Taken {
    fn by(cuda: &'static Cuda) -> Taken {
        cuda.turn.take();
        Taken(cuda)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.turn.end();
        self.0.sweep();
    }
}
