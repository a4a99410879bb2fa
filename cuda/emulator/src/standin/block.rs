//! Which memory is whose: allocations of devices and page-locked memory, in one address space.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::history::History;
use super::status::{Answer, Status};

/// Freed allocations that are remembered, so that a message can say what an address was.
const REMEMBERED: usize = 1024;
/// Page-locked memory comes in pages.
const PAGE: usize = 4096;

/// Where memory lies.
pub(super) enum Home {
    Device(usize),
    Host {
        /// Freed with the block.
        _memory: PageLocked,
    },
}

/// One allocation.
pub(super) struct Block {
    pub home: Home,
    pub start: u64,
    pub bytes: usize,
    /// Freed by a call; the stream may not have come to it.
    pub freed: bool,
    pub history: History,
    serial: u64,
}

impl Block {
    /// How a message names it.
    pub(super) fn name(&self) -> String {
        let place = match self.home {
            Home::Device(device) => format!("of device {device}"),
            Home::Host { .. } => "of page-locked host memory".to_string(),
        };
        format!("allocation {} ({} bytes {place})", self.serial, self.bytes)
    }

    fn has(&self, address: u64) -> bool {
        self.start <= address && address - self.start < self.bytes as u64
    }
}

/// All memory.
#[derive(Default)]
pub(super) struct Blocks {
    live: BTreeMap<u64, Block>,
    /// The last that were freed: where they were, and their names.
    graves: VecDeque<(Range<u64>, String)>,
    allocations: u64,
}

impl Blocks {
    pub(super) fn insert(&mut self, home: Home, start: u64, bytes: usize) {
        self.allocations += 1;
        let serial = self.allocations;
        self.live
            .insert(start, Block { home, start, bytes, freed: false, history: History::default(), serial });
    }

    /// Forgets a block, which is freed.
    pub(super) fn remove(&mut self, start: u64) {
        if let Some(block) = self.live.remove(&start) {
            if self.graves.len() == REMEMBERED {
                self.graves.pop_front();
            }
            self.graves.push_back((start..start + block.bytes as u64, block.name()));
        }
    }

    /// Forgets all blocks of a device.
    pub(super) fn remove_device(&mut self, device: usize) {
        self.live.retain(|_, block| !matches!(block.home, Home::Device(home) if home == device));
    }

    /// The block that an address lies in, whether or not it is to be freed.
    pub(super) fn at(&mut self, address: u64) -> Option<&mut Block> {
        let (_, block) = self.live.range_mut(..=address).next_back()?;
        block.has(address).then_some(block)
    }

    /// The block that so many bytes lie in, and that is not freed.
    pub(super) fn holding(&mut self, address: u64, bytes: usize) -> Option<&mut Block> {
        let block = self.at(address)?;
        let fits = bytes as u64 <= block.bytes as u64 - (address - block.start);
        (fits && !block.freed).then_some(block)
    }

    /// The device that so many bytes lie on.
    pub(super) fn device_of(&mut self, address: u64, bytes: usize) -> Answer<usize> {
        match self.holding(address, bytes).map(|block| &block.home) {
            Some(&Home::Device(device)) => Ok(device),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// What memory an address was in that has been freed.
    pub(super) fn freed_at(&mut self, address: u64) -> Option<String> {
        if let Some(block) = self.at(address) {
            return block.freed.then(|| block.name());
        }
        self.graves.iter().rev().find(|(range, _)| range.contains(&address)).map(|(_, name)| name.clone())
    }

    /// Names of all blocks that nobody has freed.
    pub(super) fn names(&self) -> Vec<String> {
        self.live.values().filter(|block| !block.freed).map(Block::name).collect()
    }
}

/// Host memory that devices copy to and from on their own.
pub(super) struct PageLocked {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for PageLocked {}

impl PageLocked {
    pub(super) fn new(bytes: usize) -> Answer<PageLocked> {
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Status::OUT_OF_MEMORY)?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() { Err(Status::OUT_OF_MEMORY) } else { Ok(PageLocked { start, layout }) }
    }

    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        // SAFETY: the memory came from `alloc_zeroed` with the same layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
