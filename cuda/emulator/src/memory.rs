//! The global memory of a card: allocations that a kernel can reach by their addresses.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;

use crate::shadow::Shadow;

/// An allocation starts at a multiple of this, as on a card.
const ALIGNMENT: usize = 256;
/// Bytes before and behind an allocation that belong to nobody, so that an access just outside is told from one into
/// another allocation.
pub(crate) const RED_ZONE: usize = 256;
/// What fresh memory is filled with: NaN in every float type.
pub(crate) const POISON: u8 = 0xff;

/// The global memory of a card. An address is that of memory of this process, and so differs from run to run.
///
/// ```
/// let mut memory = limpid_emulator::Memory::new(1 << 20);
/// let x = memory.allocate(16, "x").unwrap();
/// assert!(memory.write(x, &[1; 16]));
/// let mut two = [0; 2];
/// assert!(memory.read(x + 14, &mut two));
/// assert_eq!(two, [1, 1]);
/// assert!(!memory.read(x + 15, &mut two), "one byte of the two is outside");
/// ```
pub struct Memory {
    /// By address.
    pub(crate) allocations: Vec<Allocation>,
    capacity: usize,
    used: usize,
    allocated: u64,
    /// The first span of time that no checked launch has used.
    pub(crate) next_span: u32,
}

/// One live allocation.
pub(crate) struct Allocation {
    pub start: usize,
    pub bytes: usize,
    /// What reports call it.
    pub name: String,
    pub shadow: Shadow,
    base: *mut u8,
    layout: Layout,
}

// SAFETY: an allocation owns what `base` points to, and is used through `&Memory` and `&mut Memory` alone.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Memory {
    /// An empty memory of `capacity` bytes.
    pub fn new(capacity: usize) -> Memory {
        Memory { allocations: Vec::new(), capacity, used: 0, allocated: 0, next_span: 1 }
    }

    /// The address of `bytes` fresh bytes, which reports call by `label`. They are filled with NaN and count as never
    /// written. `None`: that is more than what is left of the capacity, or of this machine's own memory.
    pub fn allocate(&mut self, bytes: usize, label: &str) -> Option<u64> {
        if bytes > self.capacity - self.used {
            return None;
        }
        let allocation = Allocation::new(bytes, label, self.allocated)?;
        let start = allocation.start;
        self.used += bytes;
        self.allocated += 1;
        let position = self.allocations.partition_point(|other| other.start < start);
        self.allocations.insert(position, allocation);
        Some(start as u64)
    }

    /// Frees an allocation, given its first address. `false`: none starts there.
    pub fn free(&mut self, address: u64) -> bool {
        match self.allocations.binary_search_by_key(&(address as usize), |allocation| allocation.start) {
            Ok(position) => {
                self.used -= self.allocations.remove(position).bytes;
                true
            }
            Err(_) => false,
        }
    }

    /// Writes bytes at an address. `false`: they are not inside one live allocation.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some((allocation, offset)) = self.inside(address, bytes.len()) else { return false };
        let allocation = &mut self.allocations[allocation];
        // SAFETY: `inside` found the range in a live allocation, which a slice from elsewhere cannot overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), allocation.at(offset), bytes.len()) };
        allocation.shadow.written.insert(offset..offset + bytes.len());
        true
    }

    /// Reads bytes at an address. `false`: they are not inside one live allocation.
    pub fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some((allocation, offset)) = self.inside(address, into.len()) else { return false };
        // SAFETY: as in `write`.
        unsafe {
            ptr::copy_nonoverlapping(self.allocations[allocation].at(offset), into.as_mut_ptr(), into.len())
        };
        true
    }

    /// Sets `bytes` bytes to a value. `false`: they are not inside one live allocation.
    pub fn fill(&mut self, address: u64, value: u8, bytes: usize) -> bool {
        let Some((allocation, offset)) = self.inside(address, bytes) else { return false };
        let allocation = &mut self.allocations[allocation];
        // SAFETY: as in `write`.
        unsafe { ptr::write_bytes(allocation.at(offset), value, bytes) };
        allocation.shadow.written.insert(offset..offset + bytes);
        true
    }

    /// Copies bytes from one address to another; bytes that were never written stay so. `false`: one of the ranges is
    /// not inside one live allocation.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> bool {
        let (Some((target, to)), Some((source, from))) = (self.inside(to, bytes), self.inside(from, bytes))
        else {
            return false;
        };
        // SAFETY: both ranges are in live allocations; `copy` allows them to overlap.
        unsafe { ptr::copy(self.allocations[source].at(from), self.allocations[target].at(to), bytes) };
        if self.allocations[source].shadow.counts_as_written(from..from + bytes) {
            self.allocations[target].shadow.written.insert(to..to + bytes);
        } else {
            let written = self.allocations[source].shadow.written.clone();
            let known = &mut self.allocations[target].shadow.written;
            for i in 0..bytes {
                match written.has(from + i) {
                    true => known.insert(to + i..to + i + 1),
                    false => known.remove(to + i..to + i + 1),
                }
            }
        }
        true
    }

    /// The start and the size in bytes of the allocation that an address is in.
    pub fn allocation_of(&self, address: u64) -> Option<(u64, usize)> {
        let (allocation, _) = self.inside(address, 1)?;
        Some((self.allocations[allocation].start as u64, self.allocations[allocation].bytes))
    }

    /// The bytes of all live allocations.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The bytes that can be allocated in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// After code ran that tells nothing of its stores: whatever is live may have been written.
    pub(crate) fn count_as_written(&mut self) {
        for allocation in &mut self.allocations {
            allocation.shadow.unobserved = true;
        }
    }

    /// Before stamps of time start again.
    pub(crate) fn forget_uses(&mut self) {
        self.allocations.iter_mut().for_each(|allocation| allocation.shadow.forget_uses());
    }

    /// The allocation that a range lies in, and its offset there.
    fn inside(&self, address: u64, bytes: usize) -> Option<(usize, usize)> {
        let after = self.allocations.partition_point(|allocation| allocation.start as u64 <= address);
        let position = after.checked_sub(1)?;
        let allocation = &self.allocations[position];
        let offset = address as usize - allocation.start;
        (offset <= allocation.bytes && bytes <= allocation.bytes - offset).then_some((position, offset))
    }
}

impl Allocation {
    fn new(bytes: usize, label: &str, serial: u64) -> Option<Allocation> {
        let layout = layout(bytes)?;
        // SAFETY: the layout's size is not zero: it has two red zones.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return None;
        }
        // SAFETY: the block has so many bytes.
        unsafe { ptr::write_bytes(base, POISON, layout.size()) };
        Some(Allocation {
            start: base as usize + RED_ZONE,
            bytes,
            name: if label.is_empty() { format!("allocation {serial}") } else { format!("`{label}`") },
            shadow: Shadow::new(bytes),
            base,
            layout,
        })
    }

    /// The address of a byte of the allocation.
    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: callers pass an offset inside the allocation, which follows the first red zone.
        unsafe { self.base.add(RED_ZONE + offset) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc` with this layout.
        unsafe { dealloc(self.base, self.layout) };
    }
}

/// That of an allocation between its red zones; `None`: more than the address space has.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * RED_ZONE)?, ALIGNMENT).ok()
}
