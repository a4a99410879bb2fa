//! A device: its context, the stream that everything is queued in, and its memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::ThreadId;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use limpid_tensor::{DType, Device, Error, HostBuffer, Layout, Result, Shape, StorageRef, Tensor, Usage};

use crate::backend::CudaBackend;
use crate::emulated;
use crate::fault::Faults;
use crate::graph::{Capture, Home, Keeper, Parked, Rest};
use crate::library;
use crate::memory::{Exhausted, MemoryReport, Pool, Source, size};
use crate::module::Modules;
use crate::staging::Staging;
use crate::turn::{InUse, Turn};

/// A CUDA device. There is one for each ordinal, and it lives as long as the process.
pub struct Cuda {
    ordinal: usize,
    name: String,
    pub(crate) context: sys::CUcontext,
    pub(crate) stream: sys::CUstream,
    properties: Properties,
    pub(crate) modules: Mutex<Modules>,
    pool: Arc<SharedPool>,
    memory: Mutex<Memory>,
    pub(crate) staging: Mutex<Staging>,
    /// Bytes of the host's memory that the device copies to and from by itself.
    pub(crate) page_locked: AtomicUsize,
    /// By the thread that queues.
    pub(crate) faults: Mutex<HashMap<ThreadId, Faults>>,
    pub(crate) turn: Turn,
    /// What is to be freed when the capture has ended.
    pub(crate) rests: Mutex<Vec<Rest>>,
    /// The devices to whose memory a way was looked for.
    pub(crate) reached: Mutex<Vec<usize>>,
    handle: OnceLock<Device>,
}

// SAFETY: contexts and streams of the driver may be used by any thread; the rest is behind locks.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// What a device can hold and do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Properties {
    /// Compute capability, e.g. (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// The most bytes of shared memory that a block may ask for.
    pub shared_per_block: usize,
}

/// What tensors and kernels hold.
#[derive(Default)]
pub(crate) struct Memory {
    /// Bytes of tensors, and the most since the mark was set.
    usage: Usage,
    /// Bytes that kernels have taken for themselves.
    scratch: usize,
    /// Of both, bytes in the pools of graphs.
    tensors_inside: usize,
    scratch_inside: usize,
    /// While a graph is being captured: where its memory comes from.
    pub(crate) capture: Option<Capture>,
    /// Blocks that were handed out so far.
    pub(crate) births: u64,
    /// Of every graph, how many blocks there had been when it was captured, and where it keeps those.
    pub(crate) graphs: Vec<(u64, Weak<Keeper>)>,
    /// The pools of graphs, which live as long as tensors from them.
    pub(crate) graph_pools: Vec<Weak<SharedPool>>,
}

/// A pool that lives as long as anything cut from it.
pub(crate) struct SharedPool {
    pool: Mutex<Pool>,
    /// Whose memory it is; none of the device's own pool, which is never dropped.
    cuda: Option<&'static Cuda>,
}

impl SharedPool {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for SharedPool {
    fn drop(&mut self) {
        if let Some(cuda) = self.cuda {
            let pool = std::mem::take(&mut *self.lock());
            cuda.leave(Rest::Pool(pool));
        }
    }
}

/// The driver as a source of segments. The context must be current, and what used a segment that goes back must be done.
#[derive(Default)]
pub(crate) struct Driver {
    /// What went wrong besides that there is no memory.
    error: Option<DriverError>,
}

impl Source for Driver {
    fn allocate(&mut self, bytes: usize) -> Option<u64> {
        // SAFETY: the context is current; there is nothing else to hold.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Some(address),
            Err(error) => {
                self.error = (error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY).then_some(error);
                None
            }
        }
    }

    fn free(&mut self, address: u64) -> bool {
        // SAFETY: the address is one of `allocate`, nothing refers to it any more, and what used it is done.
        unsafe { result::free_sync(address) }.is_ok()
    }
}

/// Memory of a device. It goes back to the device's cache when it is dropped.
pub(crate) struct Buffer {
    cuda: &'static Cuda,
    home: Home,
    pub(crate) address: u64,
    /// How many blocks had been handed out before.
    birth: u64,
    /// Bytes as [`Usage`] counts them; scratch memory of a kernel counts apart.
    bytes: usize,
    is_scratch: bool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let inside = if self.is_inside_graph() { self.bytes } else { 0 };
        let mut memory = self.cuda.memory();
        if self.is_scratch {
            memory.scratch -= self.bytes;
            memory.scratch_inside -= inside;
        } else {
            memory.usage.live -= self.bytes as isize;
            memory.tensors_inside -= inside;
        }
        // A graph that was captured since it was handed out may use it for as long as it lives.
        memory.graphs.retain(|(_, keeper)| keeper.strong_count() > 0);
        let block = Parked { home: self.home.clone(), address: self.address, bytes: self.bytes };
        if !memory.graphs.is_empty() {
            let block = Arc::new(block);
            for (born, keeper) in &memory.graphs {
                if self.birth < *born
                    && let Some(keeper) = keeper.upgrade()
                {
                    keeper.keep(block.clone());
                }
            }
        }
    }
}

impl Buffer {
    fn is_inside_graph(&self) -> bool {
        matches!(&self.home, Home::Pool(pool) if !Arc::ptr_eq(pool, &self.cuda.pool))
    }
}

static DEVICES: Mutex<Vec<(usize, &'static Cuda)>> = Mutex::new(Vec::new());

impl Cuda {
    /// How many devices there are.
    ///
    /// # Errors
    /// If there is no driver, or it is too old.
    pub fn count() -> Result<usize> {
        let fail = |message| Error::Device { device: "cuda".into(), message };
        library::driver().map_err(fail)?;
        let count = result::device::get_count().map_err(|error| fail(library::describe(error)))?;
        Ok(count as usize)
    }

    /// The device with this number, counted from 0.
    ///
    /// # Errors
    /// If there is no driver, it is too old, or there is no such device.
    pub fn new(ordinal: usize) -> Result<&'static Cuda> {
        let mut devices = DEVICES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, cuda)) = devices.iter().find(|(number, _)| *number == ordinal) {
            return Ok(cuda);
        }
        let count = Cuda::count()?;
        if ordinal >= count {
            let message = format!("there is no such device; the driver has {count}");
            return Err(Error::Device { device: format!("cuda:{ordinal}"), message });
        }
        let cuda: &'static Cuda = Box::leak(Box::new(Cuda::open(ordinal)?));
        devices.push((ordinal, cuda));
        Ok(cuda)
    }

    fn open(ordinal: usize) -> Result<Cuda> {
        let fail =
            |error| Error::Device { device: format!("cuda:{ordinal}"), message: library::describe(error) };
        let device = result::device::get(ordinal as i32).map_err(fail)?;
        let name = result::device::get_name(device).map_err(fail)?;
        // SAFETY: the device exists, and its context is kept for as long as the process lives.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(fail)?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(fail)?;
        // SAFETY: the device exists.
        let attribute = |what| unsafe { result::device::get_attribute(device, what) }.map_err(fail);
        let properties = Properties {
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            // SAFETY: the device exists.
            memory: unsafe { result::device::total_mem(device) }.map_err(fail)?,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
        };
        // Not the null stream, which cannot be captured.
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?;
        Ok(Cuda {
            ordinal,
            name,
            context,
            stream,
            properties,
            modules: Mutex::default(),
            pool: Arc::new(SharedPool { pool: Mutex::default(), cuda: None }),
            memory: Mutex::default(),
            staging: Mutex::default(),
            page_locked: AtomicUsize::new(0),
            faults: Mutex::default(),
            turn: Turn::default(),
            rests: Mutex::default(),
            reached: Mutex::default(),
            handle: OnceLock::new(),
        })
    }

    /// The handle that tensors carry. Two calls give equal handles.
    pub fn device(&'static self) -> Device {
        self.handle.get_or_init(|| Device::new(Arc::new(CudaBackend(self)))).clone()
    }

    /// The device behind a tensor's handle, if it is a CUDA device.
    pub fn of(device: &Device) -> Option<&'static Cuda> {
        let devices = DEVICES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        devices.iter().map(|&(_, cuda)| cuda).find(|cuda| cuda.handle.get() == Some(device))
    }

    /// The number of this device.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The model, as the driver calls it.
    pub fn model(&self) -> &str {
        &self.name
    }

    /// What this device can hold and do.
    pub fn properties(&self) -> Properties {
        self.properties
    }

    /// Who holds memory, and how much.
    pub fn memory_report(&self) -> MemoryReport {
        self.report_of(&self.memory())
    }

    fn report_of(&self, memory: &Memory) -> MemoryReport {
        let graphs = memory.graph_pools.iter().filter_map(Weak::upgrade);
        MemoryReport {
            pool: self.pool.lock().memory(),
            tensors: (memory.usage.live as usize).saturating_sub(memory.tensors_inside),
            scratch: memory.scratch - memory.scratch_inside,
            kept: Keeper::bytes(memory.graphs.iter().filter_map(|(_, keeper)| keeper.upgrade())),
            graphs: graphs.map(|pool| pool.lock().memory().reserved).sum(),
            page_locked: self.page_locked.load(Ordering::Relaxed),
        }
    }

    /// Gives back to the driver what the allocator keeps for later. Waits for everything that was queued.
    ///
    /// # Errors
    /// As [`synchronize`](Cuda::synchronize).
    pub fn release_cache(&'static self) -> Result<()> {
        let _in_use = self.bind()?;
        self.synchronize()?;
        self.pool.lock().release(&mut Driver::default());
        Ok(())
    }

    /// Waits until everything that was queued has run, and reports what went wrong in it.
    ///
    /// # Errors
    /// If a kernel failed (after an illegal address every later call fails too), or found an index outside its axis.
    pub fn synchronize(&'static self) -> Result<()> {
        let _in_use = self.bind()?;
        if self.is_capturing() {
            return Err(self
                .error("a graph is being captured, whose kernels do not run: there is nothing to wait for"));
        }
        self.read_fault()?;
        // SAFETY: the stream is this device's.
        self.check("waiting for what was queued", unsafe { result::stream::synchronize(self.stream) })?;
        self.raise_fault()
    }

    /// Makes the device's context current in this thread, once no other thread captures a graph; none begins to before what is
    /// returned is dropped. No lock may be held that a thread takes which has bound, unless this one has bound too.
    pub(crate) fn bind(&self) -> Result<InUse<'_>> {
        let in_use = self.turn.enter();
        // SAFETY: the context lives as long as the process.
        self.check("making its context current", unsafe { result::ctx::set_current(self.context) })?;
        Ok(in_use)
    }

    /// A tensor with unspecified elements.
    pub(crate) fn empty(&'static self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.elements() * dtype.size();
        let buffer = self.buffer(bytes, false)?;
        let storage = StorageRef::from_device(Box::new(buffer), bytes, self.device());
        Ok(Tensor::from_storage(storage, Layout::contiguous(shape), dtype))
    }

    /// Memory for a kernel's own use, with unspecified contents. It may be dropped as soon as the kernel is queued.
    pub(crate) fn scratch(&'static self, bytes: usize) -> Result<Buffer> {
        self.buffer(bytes, true)
    }

    fn buffer(&'static self, bytes: usize, is_scratch: bool) -> Result<Buffer> {
        let _in_use = self.bind()?;
        let mut memory = self.memory();
        let (home, address) = match &memory.capture {
            Some(capture) => {
                (Home::Pool(capture.pool.clone()), self.block_of(&memory, &capture.pool, bytes)?)
            }
            None if emulated::keeps_apart() => {
                // SAFETY: the stream is this device's.
                let block = unsafe { result::malloc_async(self.stream, bytes.max(1)) };
                (Home::Driver(self), self.check("asking for memory", block)?)
            }
            None => (Home::Pool(self.pool.clone()), self.block_of(&memory, &self.pool, bytes)?),
        };
        let inside = if memory.capture.is_some() { bytes } else { 0 };
        if is_scratch {
            memory.scratch += bytes;
            memory.scratch_inside += inside;
            memory.usage.scratch = memory.usage.scratch.max(memory.scratch);
        } else {
            memory.usage.live += bytes as isize;
            memory.tensors_inside += inside;
            memory.usage.peak = memory.usage.peak.max(memory.usage.live);
        }
        let birth = memory.births;
        memory.births += 1;
        drop(memory);
        Ok(Buffer { cuda: self, home, address, birth, bytes, is_scratch })
    }

    /// A block of a pool. If there is none, what the device's own pool keeps for later goes back, and it is asked again.
    fn block_of(&self, memory: &Memory, pool: &SharedPool, bytes: usize) -> Result<u64> {
        let mut driver = Driver::default();
        let mut allocated = pool.lock().allocate(bytes, &mut driver);
        if allocated.is_none() && driver.error.is_none() {
            // While a graph is captured nothing runs, and its own pool stays.
            if memory.capture.is_none() {
                // SAFETY: the stream is this device's.
                self.check("making room", unsafe { result::stream::synchronize(self.stream) })?;
            }
            self.pool.lock().release(&mut driver);
            allocated = pool.lock().allocate(bytes, &mut driver);
        }
        allocated.ok_or_else(|| {
            if let Some(error) = driver.error {
                return self.error(format!("asking for {}: {}", size(bytes), library::describe(error)));
            }
            let mut message = self.exhausted(memory, pool, bytes).to_string();
            if let Ok((free, total)) = driver_memory() {
                message += &format!("; of the device's {}, {} are free", size(total), size(free));
            }
            self.error(message)
        })
    }

    /// What holds the memory that is missing, in all pools.
    fn exhausted(&self, memory: &Memory, asked_of: &SharedPool, asked: usize) -> Exhausted {
        let mut sizes = BTreeMap::new();
        let graphs = memory.graph_pools.iter().filter_map(Weak::upgrade);
        for pool in graphs.chain([self.pool.clone()]) {
            for (bytes, count) in pool.lock().used_sizes() {
                *sizes.entry(bytes).or_default() += count;
            }
        }
        let largest_free = asked_of.lock().memory().largest_free;
        Exhausted { asked, largest_free, report: self.report_of(memory), sizes }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.memory().usage
    }

    pub(crate) fn set_peak(&self, bytes: isize) {
        let mut memory = self.memory();
        (memory.usage.peak, memory.usage.scratch) = (bytes, 0);
    }

    /// A contiguous host tensor in this device's memory.
    pub(crate) fn upload(&'static self, x: &Tensor) -> Result<Tensor> {
        let y = self.empty(x.shape(), x.dtype())?;
        let bytes = x.elements() * x.dtype().size();
        if bytes > 0 {
            let host = x.storage().host().expect("what is uploaded lies in host memory");
            let start = x.layout().offset() * x.dtype().size();
            self.copy_from_host(address_of(&y), &host[start..start + bytes])?;
        }
        Ok(y)
    }

    /// The elements in row-major order, in host memory.
    pub(crate) fn download(&'static self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let mut buffer = HostBuffer::new(x.elements() * x.dtype().size());
        if !self.is_capturing() {
            self.read_fault()?;
        }
        if x.elements() == 0 {
            self.synchronize()?;
        } else {
            self.copy_to_host(buffer.as_mut::<u8>(), address_of(&x))?;
        }
        self.raise_fault()?;
        Ok(buffer.into_tensor(x.shape(), x.dtype()))
    }

    /// An error of this device.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Device { device: self.device_name(), message: message.into() }
    }

    pub(crate) fn device_name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    /// The result of a call, with what it was for if it failed.
    pub(crate) fn check<T>(
        &self,
        what: impl std::fmt::Display,
        result: std::result::Result<T, DriverError>,
    ) -> Result<T> {
        result.map_err(|error| self.error(format!("{what}: {}", library::describe(error))))
    }

    /// A pool of its own, for a graph.
    pub(crate) fn new_pool(&'static self) -> Arc<SharedPool> {
        Arc::new(SharedPool { pool: Mutex::default(), cuda: Some(self) })
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Free and total bytes of the current device, as the driver counts them for all processes.
fn driver_memory() -> std::result::Result<(usize, usize), DriverError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both pointers are to sizes.
    unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }.result()?;
    Ok((free, total))
}

/// The memory of a tensor of a CUDA device.
///
/// # Panics
/// If the tensor is not in the memory of a CUDA device.
fn buffer_of(x: &Tensor) -> &Buffer {
    x.storage().handle::<Buffer>().expect("operands of a CUDA device lie in its memory")
}

/// Where a tensor of a CUDA device begins.
///
/// # Panics
/// As [`buffer_of`].
pub(crate) fn address_of(x: &Tensor) -> u64 {
    buffer_of(x).address + (x.layout().offset() * x.dtype().size()) as u64
}

impl Cuda {
    /// The device in whose memory a tensor lies.
    pub(crate) fn holding(x: &Tensor) -> Option<&'static Cuda> {
        x.storage().handle::<Buffer>().map(|buffer| buffer.cuda)
    }

    /// Whether a tensor lies in this device's memory.
    pub(crate) fn holds(&self, x: &Tensor) -> bool {
        Cuda::holding(x).is_some_and(|cuda| std::ptr::eq(cuda, self))
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.device_name(), self.name)
    }
}
