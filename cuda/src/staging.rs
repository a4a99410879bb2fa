//! Copies between host and device, by way of page-locked memory that the device reads and writes on its own.

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use cudarc::driver::{result, sys};
use limpid_tensor::Result;

use crate::device::Cuda;
use crate::memory::size;

/// Bytes of one piece. While the device copies one, the host fills or reads the other.
const PIECE: usize = 4 << 20;

/// Host memory that the device can copy to and from by itself.
pub(crate) struct PageLocked {
    cuda: &'static Cuda,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory alone, as a Vec<u8> does, and the driver's functions may be called by any thread.
unsafe impl Send for PageLocked {}

impl PageLocked {
    /// So many zeros.
    pub(crate) fn new(cuda: &'static Cuda, len: usize) -> Result<PageLocked> {
        let _in_use = cuda.bind()?;
        // SAFETY: nothing to hold: the driver answers with an error if there is no memory.
        let memory = unsafe { result::malloc_host(len, 0) };
        let memory =
            cuda.check(format_args!("asking for {} of page-locked memory", size(len)), memory)?.cast::<u8>();
        let start =
            NonNull::new(memory).ok_or_else(|| cuda.error("the driver gave no page-locked memory"))?;
        // SAFETY: the driver gave this many bytes, to us alone.
        unsafe { start.write_bytes(0, len) };
        cuda.page_locked.fetch_add(len, Ordering::Relaxed);
        Ok(PageLocked { cuda, start, len })
    }

    /// Queues a copy from the device into the first `len` bytes.
    ///
    /// # Safety
    /// The bytes must not be read or written before the stream has been waited for, and `from` must have `len` bytes.
    pub(crate) unsafe fn fetch(&mut self, from: u64, len: usize) -> Result<()> {
        let cuda = self.cuda;
        let _in_use = cuda.bind()?;
        let to = self[..len].as_mut_ptr().cast::<c_void>();
        // SAFETY: the slice has `len` bytes; the rest is the caller's promise.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, len, cuda.stream) }.result();
        cuda.check("downloading", copied)
    }
}

impl Deref for PageLocked {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` has `len` initialised bytes, which self owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PageLocked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        self.cuda.page_locked.fetch_sub(self.len, Ordering::Relaxed);
        if let Ok(_in_use) = self.cuda.bind() {
            // SAFETY: the memory is the driver's and not used again; who drops it has waited for copies that use it. There is
            // nothing to do if it cannot be freed.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}

/// Two pieces of page-locked memory, made when they are first needed.
#[derive(Default)]
pub(crate) struct Staging {
    pieces: [Option<Piece>; 2],
}

struct Piece {
    memory: PageLocked,
    /// Recorded behind the last copy that uses the memory.
    done: sys::CUevent,
}

// SAFETY: events belong to no thread, and pieces are only used behind the device's lock.
unsafe impl Send for Piece {}

impl Staging {
    fn piece(&mut self, cuda: &'static Cuda, number: usize) -> Result<&mut Piece> {
        let slot = &mut self.pieces[number % 2];
        if slot.is_none() {
            let memory = PageLocked::new(cuda, PIECE)?;
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let done = cuda.check("making an event", result::event::create(flags))?;
            *slot = Some(Piece { memory, done });
        }
        Ok(slot.as_mut().expect("it was just made"))
    }
}

impl Piece {
    fn wait(&self, cuda: &Cuda) -> Result<()> {
        // SAFETY: the event is alive.
        cuda.check("waiting for a copy", unsafe { result::event::synchronize(self.done) })
    }

    /// Marks the end of the copy that was just queued.
    fn queued(&self, cuda: &Cuda) -> Result<()> {
        // SAFETY: event and stream are alive.
        cuda.check("queueing a copy", unsafe { result::event::record(self.done, cuda.stream) })
    }
}

impl Cuda {
    /// Queues a copy to the device. The bytes may be changed as soon as this returns.
    pub(crate) fn copy_from_host(&'static self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let _in_use = self.bind()?;
        if self.is_capturing() {
            return self.capture_copy(to, bytes);
        }
        let mut staging = self.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (i, chunk) in bytes.chunks(PIECE).enumerate() {
            let piece = staging.piece(self, i)?;
            piece.wait(self)?;
            piece.memory[..chunk.len()].copy_from_slice(chunk);
            let place = to + (i * PIECE) as u64;
            // SAFETY: the destination has room for all bytes, and the piece is not touched before its event.
            let copied =
                unsafe { result::memcpy_htod_async(place, &piece.memory[..chunk.len()], self.stream) };
            self.check("uploading", copied)?;
            piece.queued(self)?;
        }
        Ok(())
    }

    /// Makes a copy part of the graph that is being captured, which keeps the bytes.
    fn capture_copy(&'static self, to: u64, bytes: &[u8]) -> Result<()> {
        let mut constant = PageLocked::new(self, bytes.len())?;
        constant.copy_from_slice(bytes);
        // SAFETY: the destination has room for all bytes, which stay where they are as long as the graph.
        let copied = unsafe { result::memcpy_htod_async(to, &constant, self.stream) };
        self.check("uploading", copied)?;
        if let Some(capture) = &mut self.memory().capture {
            capture.constants.push(constant);
        }
        Ok(())
    }

    /// Copies from the device, behind everything that was queued, and waits for it.
    pub(crate) fn copy_to_host(&'static self, bytes: &mut [u8], from: u64) -> Result<()> {
        let _in_use = self.bind()?;
        if self.is_capturing() {
            return Err(self.error("an element is read while a graph is captured, whose kernels do not run"));
        }
        let mut staging = self.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut before: Option<(usize, &mut [u8])> = None;
        for (i, chunk) in bytes.chunks_mut(PIECE).enumerate() {
            let piece = staging.piece(self, i)?;
            piece.wait(self)?;
            // SAFETY: the piece is read only after its event; the source has as many bytes as the destination.
            unsafe { piece.memory.fetch(from + (i * PIECE) as u64, chunk.len()) }?;
            piece.queued(self)?;
            if let Some((i, chunk)) = before.replace((i, chunk)) {
                staging.land(self, i, chunk)?;
            }
        }
        before.map_or(Ok(()), |(i, chunk)| staging.land(self, i, chunk))
    }

    /// Queues setting every byte.
    pub(crate) fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        let _in_use = self.bind()?;
        // SAFETY: the address has as many bytes.
        self.check("filling memory", unsafe { result::memset_d8_async(address, value, bytes, self.stream) })
    }

    /// Queues a copy within the device.
    pub(crate) fn copy_within(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let _in_use = self.bind()?;
        // SAFETY: both addresses have as many bytes.
        self.check("copying", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
    }
}

impl Staging {
    /// Waits for a piece that was fetched, and takes its bytes.
    fn land(&mut self, cuda: &'static Cuda, number: usize, into: &mut [u8]) -> Result<()> {
        let piece = self.piece(cuda, number)?;
        piece.wait(cuda)?;
        into.copy_from_slice(&piece.memory[..into.len()]);
        Ok(())
    }
}
