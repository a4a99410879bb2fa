//! The bytes behind tensors: 64-byte-aligned host blocks, recycled through a pool, or memory of a device.

use std::alloc::{self, Layout as AllocLayout};
use std::any::Any;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{self, Ordering};

use bytemuck::Pod;

use crate::{DType, Device, Shape, Tensor};

/// Alignment of host memory: one cache line, one AVX-512 register.
const ALIGN: usize = 64;
/// Bytes of a huge page. Memory is asked for in these: a page of 4 KiB is too small a step through megabytes, be they one tensor
/// or many. Looking up where each lies takes longer than reading it.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a slab that smaller blocks are cut from: what does not fit the rest of one is a fourth of it at most.
const SLAB: usize = 4 * HUGE_PAGE;

/// What a [`Tensor`] refers to: memory, and the device it belongs to.
pub struct Storage {
    memory: Memory,
    device: Device,
}

enum Memory {
    Host(Block),
    Device { handle: Box<dyn Any + Send + Sync>, bytes: usize },
}

impl Storage {
    /// The device that owns the memory.
    #[inline]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of bytes in use.
    #[inline]
    pub fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Host(block) => block.len,
            Memory::Device { bytes, .. } => *bytes,
        }
    }

    /// The bytes, if they lie in host memory.
    #[inline]
    pub fn host(&self) -> Option<&[u8]> {
        match &self.memory {
            Memory::Host(block) => Some(block.as_slice()),
            Memory::Device { .. } => None,
        }
    }

    /// A device's own handle on its memory, if it is of type `T`.
    pub fn handle<T: Any>(&self) -> Option<&T> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device { handle, .. } => handle.downcast_ref(),
        }
    }
}

/// A shared reference to a [`Storage`]. When the last one goes, a host block returns to the pool of the
/// thread that dropped it, `Arc` and all.
#[derive(Clone)]
pub struct StorageRef(ManuallyDrop<Arc<Storage>>);

impl StorageRef {
    /// Takes over memory that belongs to a device other than the CPU.
    pub fn from_device(handle: Box<dyn Any + Send + Sync>, bytes: usize, device: Device) -> StorageRef {
        StorageRef::new(Arc::new(Storage { memory: Memory::Device { handle, bytes }, device }))
    }

    #[inline]
    fn new(arc: Arc<Storage>) -> StorageRef {
        StorageRef(ManuallyDrop::new(arc))
    }

    /// A number that is equal for two tensors exactly when they share memory (while both live).
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Whether nothing else refers to the memory.
    #[inline]
    pub(crate) fn is_unique(&mut self) -> bool {
        only(&mut self.0).is_some()
    }

    /// The host bytes for writing, if this is the only reference to them.
    #[inline]
    pub(crate) fn host_mut(&mut self) -> Option<&mut [u8]> {
        match only(&mut self.0).map(|storage| &mut storage.memory) {
            Some(Memory::Host(block)) => Some(block.as_mut_slice()),
            _ => None,
        }
    }
}

impl Deref for StorageRef {
    type Target = Storage;
    #[inline]
    fn deref(&self) -> &Storage {
        &self.0
    }
}

impl Drop for StorageRef {
    fn drop(&mut self) {
        // SAFETY: the field is not used again; this is the only place that takes it out.
        let mut arc = unsafe { ManuallyDrop::take(&mut self.0) };
        if let Some(Storage { memory: Memory::Host(_), .. }) = only(&mut arc) {
            // While a thread shuts down its pool may be gone; the block is then simply freed.
            let _ = POOL.try_with(|pool| pool.borrow_mut().give(arc));
        }
    }
}

/// A host block that nobody else refers to yet: where a kernel writes its result.
///
/// ```
/// use limpid_tensor::{HostBuffer, Layout, DType};
/// let mut buffer = HostBuffer::new(3 * 4);
/// buffer.as_mut::<f32>().copy_from_slice(&[1.0, 2.0, 3.0]);
/// let t = buffer.into_tensor([3], DType::F32);
/// assert_eq!(t.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0]);
/// ```
pub struct HostBuffer(StorageRef);

impl HostBuffer {
    /// A block of at least `bytes` bytes with unspecified contents (in debug builds every float in it is NaN).
    #[allow(clippy::new_without_default)]
    pub fn new(bytes: usize) -> HostBuffer {
        let arc = POOL
            .try_with(|pool| pool.borrow_mut().take(bytes))
            .unwrap_or_else(|_| storage(Block::alone(bytes)));
        let mut buffer = HostBuffer(StorageRef::new(arc));
        if cfg!(debug_assertions) {
            buffer.as_mut::<u8>().fill(0xFF);
        }
        buffer
    }

    /// The block as elements of type `T`, for writing.
    #[allow(clippy::should_implement_trait)]
    pub fn as_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.0.host_mut().expect("a HostBuffer is the only reference to its block"))
    }

    /// Makes the block a contiguous tensor.
    ///
    /// # Panics
    /// If the block is not exactly as large as the tensor.
    pub fn into_tensor(self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        self.into_row_major(shape.into(), dtype)
    }

    #[inline]
    fn into_row_major(self, shape: Shape, dtype: DType) -> Tensor {
        let bytes = shape.elements() * dtype.size();
        assert_eq!(self.0.bytes(), bytes, "buffer and tensor differ in size");
        Tensor::filling(self.0, shape, dtype)
    }
}

/// Host memory as this thread's pool sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Bytes held by tensors made on this thread, less those dropped on it.
    pub live: isize,
    /// The largest value `live` has had since [`reset_peak`](HostMemory::reset_peak), between kernels.
    pub peak: isize,
    /// The most that a kernel took on top of its operands and its result while it ran, since then.
    pub scratch: usize,
    /// Bytes waiting in the pool to be used again.
    pub pooled: usize,
    /// Blocks that had to be asked from the operating system.
    pub fresh_blocks: usize,
}

impl HostMemory {
    /// The figures of the calling thread now.
    pub fn current() -> HostMemory {
        POOL.with(|pool| pool.borrow().memory)
    }

    /// Starts measuring the peak and the scratch memory anew, from what is live now.
    pub fn reset_peak() {
        POOL.with(|pool| {
            let memory = &mut pool.borrow_mut().memory;
            (memory.peak, memory.scratch) = (memory.live, 0);
        });
    }

    /// Returns every pooled block of the calling thread: to the operating system once no block is in use that shares its
    /// pages, which small ones do.
    pub fn release_pool() {
        POOL.with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.free.clear();
            pool.slab = None;
            pool.memory.pooled = 0;
        });
    }

    /// Sets the mark from which [`peak`](HostMemory::peak) rises: for a measurement inside another.
    pub(crate) fn set_peak(bytes: isize) {
        POOL.with(|pool| {
            let memory = &mut pool.borrow_mut().memory;
            (memory.peak, memory.scratch) = (bytes, 0);
        });
    }

    /// Runs a kernel. What it allocates beyond its result counts as scratch and not towards the peak.
    #[inline]
    pub(crate) fn in_kernel<R>(run: impl FnOnce() -> R) -> R {
        let _kernel = Kernel::begin();
        run()
    }
}

/// A kernel that is running on this thread. One that calls others is one.
struct Kernel {
    /// The peak before it began, if it is the outermost.
    peak_before: Option<isize>,
}

impl Kernel {
    fn begin() -> Kernel {
        let begun = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let outermost = !std::mem::replace(&mut pool.in_kernel, true);
            let live = pool.memory.live;
            outermost.then(|| std::mem::replace(&mut pool.memory.peak, live))
        });
        Kernel { peak_before: begun.ok().flatten() }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let Some(peak_before) = self.peak_before else { return };
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.in_kernel = false;
            let memory = &mut pool.memory;
            memory.scratch = memory.scratch.max(memory.peak.abs_diff(memory.live));
            memory.peak = peak_before.max(memory.live);
        });
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Free blocks by [size class](class_of). One per thread: no lock, and one thread's measurements are not another's.
#[derive(Default)]
struct Pool {
    free: Vec<Vec<Arc<Storage>>>,
    /// Where the next block is cut from, and how much of that is cut.
    slab: Option<(Arc<Slab>, usize)>,
    memory: HostMemory,
    in_kernel: bool,
}

impl Pool {
    fn take(&mut self, bytes: usize) -> Arc<Storage> {
        self.memory.live += bytes as isize;
        self.memory.peak = self.memory.peak.max(self.memory.live);
        match self.free.get_mut(class_of(bytes)).and_then(Vec::pop) {
            Some(mut arc) => {
                let Some(Storage { memory: Memory::Host(block), .. }) = only(&mut arc) else {
                    unreachable!("the pool holds host blocks that nobody else refers to")
                };
                block.len = bytes;
                self.memory.pooled -= block.capacity;
                arc
            }
            None => {
                self.memory.fresh_blocks += 1;
                storage(self.fresh(bytes))
            }
        }
    }

    fn fresh(&mut self, bytes: usize) -> Block {
        let capacity = capacity_for(bytes);
        if capacity >= HUGE_PAGE {
            return Block::alone(bytes);
        }
        if self.slab.as_ref().is_none_or(|(slab, used)| slab.size - used < capacity) {
            self.slab = Some((Slab::new(SLAB), 0));
        }
        let (slab, used) = self.slab.as_mut().expect("made above");
        let at = std::mem::replace(used, *used + capacity);
        // SAFETY: what is cut is counted as used, and there is room for it.
        unsafe { Block::cut(slab.clone(), at, bytes, capacity) }
    }

    fn give(&mut self, arc: Arc<Storage>) {
        if let Memory::Host(block) = &arc.memory {
            self.memory.live -= block.len as isize;
            self.memory.pooled += block.capacity;
            let class = class_of(block.capacity);
            if class >= self.free.len() {
                self.free.resize_with(class + 1, Vec::new);
            }
            self.free[class].push(arc);
        }
    }
}

/// What `Arc::get_mut` gives, without the locked instruction that keeps weak references away meanwhile: there are none.
#[inline]
fn only(arc: &mut Arc<Storage>) -> Option<&mut Storage> {
    if Arc::strong_count(arc) > 1 {
        return None;
    }
    // What was done through other references, before the last of them went, is done.
    atomic::fence(Ordering::Acquire);
    // SAFETY: nobody makes a `Weak` of a storage's Arc, so the one reference is all there is to it, and it is borrowed mutably.
    Some(unsafe { &mut *Arc::as_ptr(arc).cast_mut() })
}

fn storage(block: Block) -> Arc<Storage> {
    Arc::new(Storage { memory: Memory::Host(block), device: Device::cpu() })
}

/// Sizes share a free list in steps of an eighth of their power of two, so a block is at most 1/8 too large.
fn capacity_for(bytes: usize) -> usize {
    let (step, steps) = steps_of(bytes);
    steps << step
}

/// The number of the size class: eight for each power of two from 8·[`ALIGN`] on.
fn class_of(bytes: usize) -> usize {
    let (step, steps) = steps_of(bytes);
    steps + 8 * (step - ALIGN.trailing_zeros() as usize)
}

/// The binary logarithm of the step at a size, and how many steps cover it.
fn steps_of(bytes: usize) -> (usize, usize) {
    let step = (bytes.next_power_of_two() / 8).max(ALIGN).trailing_zeros() as usize;
    (step, ((bytes.max(1) - 1) >> step) + 1)
}

/// Memory from the system, of which [`Block`]s are cut. It goes back when the last of them does.
struct Slab {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a Slab owns its memory alone, and touches it only to give it back.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// So many bytes, at least one, all zero.
    fn new(size: usize) -> Arc<Slab> {
        let layout = Slab::layout(size);
        let start = if size >= HUGE_PAGE { pages::map(layout) } else { Slab::allocate(layout) };
        Arc::new(Slab { start, size })
    }

    fn allocate(layout: AllocLayout) -> NonNull<u8> {
        // SAFETY: the layout has a size.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        NonNull::new(start).unwrap_or_else(|| alloc::handle_alloc_error(layout))
    }

    fn layout(size: usize) -> AllocLayout {
        let align = if size >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
        AllocLayout::from_size_align(size, align).expect("tensor is larger than the address space")
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let layout = Slab::layout(self.size);
        // SAFETY: what `new` made of the same layout, in the same way.
        unsafe {
            if self.size >= HUGE_PAGE {
                pages::unmap(self.start, layout);
            } else {
                alloc::dealloc(self.start.as_ptr(), layout);
            }
        }
    }
}

/// Pages from the system itself: what an allocator has had before lies in small pages, which stay small.
#[cfg(target_os = "linux")]
mod pages {
    use super::*;

    /// Zeros, aligned to [`HUGE_PAGE`].
    pub(super) fn map(layout: AllocLayout) -> NonNull<u8> {
        let size = whole(layout);
        // One more, of which what lies before the first boundary and behind the last goes back.
        let mapped = size + HUGE_PAGE;
        let (access, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the system likes.
        let first = unsafe { libc::mmap(std::ptr::null_mut(), mapped, access, private, -1, 0) };
        if first == libc::MAP_FAILED {
            alloc::handle_alloc_error(layout);
        }
        let before = first.cast::<u8>().align_offset(HUGE_PAGE);
        // What is not a whole huge page stays small: it would take a whole one.
        let huge = layout.size() & !(HUGE_PAGE - 1);
        // SAFETY: all ranges are parts of the mapping, in whole pages. The advice changes nothing that a program could see; a
        // system that has no huge pages keeps the small ones.
        unsafe {
            let start = first.byte_add(before);
            if before > 0 {
                libc::munmap(first, before);
            }
            libc::munmap(start.byte_add(size), HUGE_PAGE - before);
            libc::madvise(start, huge, libc::MADV_HUGEPAGE);
            NonNull::new_unchecked(start.cast())
        }
    }

    /// # Safety
    /// [`map`] gave it for this layout, and nothing refers to it.
    pub(super) unsafe fn unmap(start: NonNull<u8>, layout: AllocLayout) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.as_ptr().cast(), whole(layout)) };
    }

    fn whole(layout: AllocLayout) -> usize {
        layout.pad_to_align().size()
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use super::*;

    pub(super) fn map(layout: AllocLayout) -> NonNull<u8> {
        Slab::allocate(layout)
    }

    /// # Safety
    /// [`map`] gave it for this layout, and nothing refers to it.
    pub(super) unsafe fn unmap(start: NonNull<u8>, layout: AllocLayout) {
        // SAFETY: the caller's promise.
        unsafe { alloc::dealloc(start.as_ptr(), layout) };
    }
}

/// Aligned host memory. `len` bytes are in use, `capacity` are owned.
struct Block {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// Keeps the memory.
    _slab: Arc<Slab>,
}

// SAFETY: a Block owns its part of a slab alone, as a Vec<u8> does its memory.
unsafe impl Send for Block {}
// SAFETY: a shared Block only lets its bytes be read.
unsafe impl Sync for Block {}

impl Block {
    /// A block with a slab of its own.
    fn alone(len: usize) -> Block {
        let capacity = capacity_for(len);
        // SAFETY: nobody else has the slab, which is so large.
        unsafe { Block::cut(Slab::new(capacity), 0, len, capacity) }
    }

    /// The `capacity` bytes of a slab from `at` on, a multiple of [`ALIGN`].
    ///
    /// # Safety
    /// The slab has them, and none of them is another block's.
    unsafe fn cut(slab: Arc<Slab>, at: usize, len: usize, capacity: usize) -> Block {
        // SAFETY: the caller's promise.
        let start = unsafe { slab.start.add(at) };
        Block { start, len, capacity, _slab: slab }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` points at `capacity ≥ len` bytes owned by self, which were zero once and are only overwritten, and so
        // always initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    #[inline]
    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_block_is_used_again_and_counted() {
        HostMemory::release_pool();
        let before = HostMemory::current();
        let first = HostBuffer::new(1000).into_tensor([250], DType::F32);
        assert_eq!(HostMemory::current().live, before.live + 1000);
        let id = first.storage().id();
        let view = first.clone();
        drop(first);
        assert_eq!(HostMemory::current().live, before.live + 1000, "a clone still holds it");
        drop(view);
        assert_eq!(HostMemory::current().live, before.live);
        let second = HostBuffer::new(1001);
        assert_eq!(second.0.id(), id, "same size class, same block");
        assert_eq!(HostMemory::current().fresh_blocks, before.fresh_blocks + 1);
    }

    #[test]
    fn what_a_kernel_takes_for_a_moment_is_no_part_of_the_peak() {
        HostMemory::release_pool();
        HostMemory::reset_peak();
        let before = HostMemory::current();
        let result = HostMemory::in_kernel(|| {
            let scratch = HostMemory::in_kernel(|| HostBuffer::new(3000));
            let result = HostBuffer::new(100);
            drop(scratch);
            result
        });
        let after = HostMemory::current();
        assert_eq!((after.live - before.live, after.peak - before.live, after.scratch), (100, 100, 3000));
        drop(result);
        // A kernel that panics has ended too.
        let panicked = std::panic::catch_unwind(|| HostMemory::in_kernel(|| panic!("a mistake")));
        assert!(panicked.is_err());
        drop(HostBuffer::new(5000));
        assert_eq!(HostMemory::current().peak - before.live, 5000);
    }

    #[test]
    fn fresh_contents_are_nan_in_debug_builds() {
        let mut buffer = HostBuffer::new(64);
        if cfg!(debug_assertions) {
            assert!(buffer.as_mut::<f32>().iter().all(|v| v.is_nan()));
            assert!(buffer.as_mut::<f64>().iter().all(|v| v.is_nan()));
        }
    }

    #[test]
    fn blocks_lie_in_slabs_side_by_side_and_keep_them() {
        HostMemory::release_pool();
        let mut blocks: Vec<HostBuffer> = (0..600).map(|i| HostBuffer::new(1 + i * 131)).collect();
        blocks.push(HostBuffer::new(3 * SLAB));
        for (i, block) in blocks.iter_mut().enumerate() {
            block.as_mut::<u8>().fill(i as u8);
        }
        // Of those that are left nothing has been overwritten, nor given back.
        let mut i = 0;
        blocks.retain(|_| (i % 7 == 0, i += 1).0);
        HostMemory::release_pool();
        let others: Vec<HostBuffer> = (0..600).map(|i| HostBuffer::new(1 + i * 131)).collect();
        for (i, block) in blocks.iter_mut().enumerate() {
            let bytes = block.as_mut::<u8>();
            assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
            assert!(bytes.iter().all(|&byte| byte == (7 * i) as u8), "{i}");
        }
        // From one thread to another.
        std::thread::spawn(move || drop((blocks, others))).join().unwrap();
    }

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for bytes in [1, 64, 65, 1000, 4096, 4097, 1 << 20, (1 << 20) + 1] {
            let capacity = capacity_for(bytes);
            assert!(capacity >= bytes && (capacity - bytes) * 8 <= bytes.next_power_of_two().max(8 * ALIGN));
        }
    }

    #[test]
    fn a_size_class_is_a_capacity() {
        let (mut class, mut capacity) = (class_of(1), capacity_for(1));
        for bytes in 0..1 << 16 {
            let (next_class, next_capacity) = (class_of(bytes), capacity_for(bytes));
            assert!(next_class >= class && (next_class == class) == (next_capacity == capacity), "{bytes}");
            assert_eq!(class_of(next_capacity), next_class);
            (class, capacity) = (next_class, next_capacity);
        }
        assert!(class_of(1 << 40) < 300, "as many free lists as there are classes");
    }
}
