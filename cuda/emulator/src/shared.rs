//! The shared memory of the block that runs.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::CStr;
use std::ptr;

use crate::abi::SharedArray;
use crate::memory::POISON;
use crate::shadow::Shadow;

/// Instructions name shared memory with 18 bits.
pub(crate) const WINDOW: usize = 1 << 18;
/// The swizzles of matrix instructions depend on the address up to this.
const WINDOW_ALIGNMENT: usize = 1024;
/// What a card promises of a kernel's arrays.
const ARRAY_ALIGNMENT: usize = 128;
/// Bytes between arrays that belong to nobody.
const RED_ZONE: usize = 128;
/// The most that a card gives a block in all, and to arrays of fixed size.
pub(crate) const MOST: usize = 227 << 10;
pub(crate) const MOST_STATIC: usize = 48 << 10;

/// The shared memory of the block that runs; its arrays lie where they lay in the blocks before.
pub(crate) struct SharedMemory {
    window: *mut u8,
    arrays: Vec<Placed>,
    dynamic_bytes: usize,
}

/// An array in the window.
pub(crate) struct Placed {
    /// Which array; null for the dynamic part.
    key: *const SharedArray,
    pub start: usize,
    pub bytes: usize,
    pub name: String,
    pub shadow: Shadow,
}

impl SharedMemory {
    /// Shared memory whose dynamic part has so many bytes, at most [`MOST`].
    pub fn new(dynamic_bytes: usize) -> SharedMemory {
        // SAFETY: the size is not zero.
        let window = unsafe { alloc_zeroed(layout()) };
        if window.is_null() {
            handle_alloc_error(layout());
        }
        let mut shared = SharedMemory { window, arrays: Vec::new(), dynamic_bytes };
        // At a multiple of 128 that is none of 1024: a kernel that needs more must see to it.
        shared.place(
            ptr::null(),
            window as usize + ARRAY_ALIGNMENT,
            dynamic_bytes,
            "dynamic shared memory".into(),
        );
        shared
    }

    /// The dynamic part starts anew, with a new block.
    pub fn begin_block(&mut self) {
        self.poison(0);
    }

    /// The address of the dynamic part.
    pub fn dynamic(&self) -> usize {
        self.arrays[0].start
    }

    /// Gives an array its place for the block with that ticket. `Err`: the sentence that says which limit it breaks.
    pub fn enter(&mut self, array: &mut SharedArray, ticket: u64) -> Result<(), String> {
        let key: *const SharedArray = array;
        let position = match self.arrays.iter().position(|placed| placed.key == key) {
            Some(position) => position,
            None => {
                let end = self.arrays.last().map_or(self.window as usize, |last| last.start + last.bytes);
                let start = (end + RED_ZONE).next_multiple_of(ARRAY_ALIGNMENT);
                self.check_limits(start, array.size)?;
                // SAFETY: the name is a string literal of the library.
                let name = unsafe { CStr::from_ptr(array.name) }.to_string_lossy();
                self.place(key, start, array.size, format!("shared `{name}`"));
                self.arrays.len() - 1
            }
        };
        self.poison(position);
        array.ticket = ticket;
        array.address = self.arrays[position].start as *mut _;
        Ok(())
    }

    fn check_limits(&self, start: usize, more: usize) -> Result<(), String> {
        let fixed = self.arrays[1..].iter().map(|placed| placed.bytes).sum::<usize>() + more;
        let all = fixed + self.dynamic_bytes;
        if fixed > MOST_STATIC {
            return Err(format!(
                "the arrays declared SHARED have {fixed} bytes, and a card has {MOST_STATIC} for them"
            ));
        }
        if all > MOST {
            return Err(format!("the block's shared memory has {all} bytes, and a card has {MOST}"));
        }
        if start + more + RED_ZONE > self.window as usize + WINDOW {
            return Err(format!(
                "the block's {} shared arrays are more than the emulator has room for",
                self.arrays.len()
            ));
        }
        Ok(())
    }

    fn place(&mut self, key: *const SharedArray, start: usize, bytes: usize, name: String) {
        self.arrays.push(Placed { key, start, bytes, name, shadow: Shadow::new(bytes) });
    }

    fn poison(&mut self, position: usize) {
        let placed = &mut self.arrays[position];
        placed.shadow.renew();
        // SAFETY: `check_limits` keeps arrays inside the window, and the dynamic part is smaller than it.
        unsafe { ptr::write_bytes(placed.start as *mut u8, POISON, placed.bytes) };
    }

    /// Whether an address is in the window.
    pub fn has(&self, address: usize) -> bool {
        address.wrapping_sub(self.window as usize) < WINDOW
    }

    /// The array that an access is in or next to.
    pub fn near(&mut self, address: usize, size: usize) -> Option<&mut Placed> {
        self.arrays.iter_mut().find(|placed| {
            address + size + RED_ZONE / 2 > placed.start
                && address < placed.start + placed.bytes + RED_ZONE / 2
        })
    }

    /// The 32-bit address that instructions use.
    pub fn offset(&self, address: usize) -> u32 {
        address.wrapping_sub(self.window as usize) as u32
    }

    /// The array at a 32-bit address, and how far behind its start that is.
    pub fn at(&self, offset: usize) -> Option<(&Placed, usize)> {
        let address = self.window as usize + offset;
        let behind = |placed: &Placed| address.wrapping_sub(placed.start);
        let placed = self.arrays.iter().find(|placed| behind(placed) < placed.bytes)?;
        Some((placed, behind(placed)))
    }

    /// The address of a 32-bit one.
    pub fn pointer(&self, offset: u32) -> usize {
        self.window as usize + offset as usize % WINDOW
    }

    /// Before stamps of time start again.
    pub fn forget_uses(&mut self) {
        self.arrays.iter_mut().for_each(|placed| placed.shadow.forget_uses());
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the window came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.window, layout()) };
    }
}

fn layout() -> Layout {
    Layout::from_size_align(WINDOW, WINDOW_ALIGNMENT).expect("a power of two")
}
