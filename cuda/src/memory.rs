//! Which address is free? A caching allocator over segments that the driver hands out.
//!
//! Memory is given back to the cache and not to the driver: asking the driver takes longer than most kernels, and may wait
//! for all of them. A block that was given back may be handed out again at once, although kernels that use it have not run
//! yet: whatever uses it next is queued behind them in the same stream.
//!
//! Blocks are cut from segments, best fit first, lower address first, and join their free neighbours when they come back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Blocks are multiples of this many bytes, and begin at multiples of it.
const GRAIN: usize = 512;

/// Segments are multiples of this many bytes.
const SEGMENT: usize = 2 << 20;

/// The smallest segment that holds several blocks: small tensors share it.
const SHARED_SEGMENT: usize = 16 << 20;

/// Whether blocks of so many bytes share a segment.
fn is_small(bytes: usize) -> bool {
    bytes < SHARED_SEGMENT / 4
}

/// Where segments come from.
pub(crate) trait Source {
    /// A new segment; `None` if there is no memory.
    fn allocate(&mut self, bytes: usize) -> Option<u64>;
    /// Takes a segment back, unless something goes wrong. Nothing that runs may use it.
    fn free(&mut self, address: u64) -> bool;
}

/// The blocks of a device.
#[derive(Default)]
pub(crate) struct Pool {
    /// Every block, free or not, by address. The blocks of a segment lie one behind the other.
    blocks: BTreeMap<u64, Block>,
    /// The free ones by size, then address.
    free: BTreeSet<(usize, u64)>,
    /// Bytes of segments.
    reserved: usize,
    /// Bytes of blocks that are in use.
    used: usize,
    /// The most `used` has been.
    most_used: usize,
    /// Segments that were asked from the source.
    segments_made: usize,
}

#[derive(Clone, Copy)]
struct Block {
    bytes: usize,
    /// The address of the segment it was cut from.
    segment: u64,
    free: bool,
}

/// What a pool holds, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolMemory {
    /// Taken from the driver.
    pub reserved: usize,
    /// Of these, in use, rounded up to whole blocks of 512.
    pub used: usize,
    /// The most that was in use at any time.
    pub most_used: usize,
    /// The largest piece that is free.
    pub largest_free: usize,
    /// How often the driver was asked.
    pub segments_made: usize,
}

impl PoolMemory {
    /// The part of the free memory that does not lie in the largest free piece: 0 if all of it could be had at once.
    pub fn fragmentation(&self) -> f64 {
        let free = self.reserved - self.used;
        if free == 0 { 0.0 } else { 1.0 - self.largest_free as f64 / free as f64 }
    }
}

impl Pool {
    /// The address of a block of at least `bytes` bytes (at least one). `None` if there is no memory.
    pub(crate) fn allocate(&mut self, bytes: usize, source: &mut dyn Source) -> Option<u64> {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        let fit = self.free.range((bytes, 0)..).next().copied();
        // A small block in a large segment would keep all of it from going back.
        let suits = |&(size, _): &(usize, u64)| !is_small(bytes) || size <= SHARED_SEGMENT;
        let found = fit.filter(suits).or_else(|| self.new_segment(bytes, source)).or(fit);
        let (size, address) = found?;
        Some(self.cut(size, address, bytes))
    }

    /// Marks the first `bytes` bytes of a free block as used.
    fn cut(&mut self, size: usize, address: u64, bytes: usize) -> u64 {
        self.free.remove(&(size, address));
        let block = self.blocks.get_mut(&address).expect("a free block is a block");
        (block.bytes, block.free) = (bytes, false);
        let rest = Block { bytes: size - bytes, ..*block };
        if rest.bytes > 0 {
            self.insert_free(address + bytes as u64, rest.bytes, rest.segment);
        }
        self.used += bytes;
        self.most_used = self.most_used.max(self.used);
        address
    }

    fn insert_free(&mut self, address: u64, bytes: usize, segment: u64) {
        self.blocks.insert(address, Block { bytes, segment, free: true });
        self.free.insert((bytes, address));
    }

    /// Asks for a segment with room for a block.
    fn new_segment(&mut self, bytes: usize, source: &mut dyn Source) -> Option<(usize, u64)> {
        let alone = bytes.next_multiple_of(SEGMENT);
        let shared = if is_small(bytes) { SHARED_SEGMENT } else { alone };
        let of = |size, source: &mut dyn Source| source.allocate(size).map(|address| (size, address));
        let (size, address) = of(shared, source).or_else(|| of(alone, source))?;
        self.segments_made += 1;
        self.reserved += size;
        self.insert_free(address, size, address);
        Some((size, address))
    }

    /// Takes a block back.
    pub(crate) fn give_back(&mut self, address: u64) {
        let Block { mut bytes, segment, .. } =
            self.blocks.remove(&address).expect("what is given back was taken here");
        self.used -= bytes;
        let mut start = address;
        let before = self.blocks.range(..address).next_back().map(|(&at, &block)| (at, block));
        let after = self.blocks.range(address..).next().map(|(&at, &block)| (at, block));
        for (at, neighbour) in [before, after].into_iter().flatten() {
            if neighbour.free && neighbour.segment == segment {
                self.blocks.remove(&at);
                self.free.remove(&(neighbour.bytes, at));
                bytes += neighbour.bytes;
                start = start.min(at);
            }
        }
        self.insert_free(start, bytes, segment);
    }

    /// Gives every segment of which nothing is used back to the driver.
    pub(crate) fn release(&mut self, source: &mut dyn Source) {
        let whole = |(&address, block): (&u64, &Block)| {
            let next = self.blocks.range(address + 1..).next();
            let alone = block.segment == address && next.is_none_or(|(_, next)| next.segment != address);
            (block.free && alone).then_some((block.bytes, address))
        };
        let unused: Vec<(usize, u64)> = self.blocks.iter().filter_map(whole).collect();
        for (bytes, address) in unused {
            if source.free(address) {
                self.blocks.remove(&address);
                self.free.remove(&(bytes, address));
                self.reserved -= bytes;
            }
        }
    }

    pub(crate) fn memory(&self) -> PoolMemory {
        PoolMemory {
            reserved: self.reserved,
            used: self.used,
            most_used: self.most_used,
            largest_free: self.free.last().map_or(0, |&(bytes, _)| bytes),
            segments_made: self.segments_made,
        }
    }

    /// How many blocks are in use, by size.
    pub(crate) fn used_sizes(&self) -> BTreeMap<usize, usize> {
        let mut sizes = BTreeMap::new();
        for block in self.blocks.values().filter(|block| !block.free) {
            *sizes.entry(block.bytes).or_default() += 1;
        }
        sizes
    }
}

/// Who holds a device's memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryReport {
    /// The device's own pool.
    pub pool: PoolMemory,
    /// Of it, tensors.
    pub tensors: usize,
    /// Of it, what kernels have taken for themselves.
    pub scratch: usize,
    /// Of it, what nothing refers to any more but graphs, which may use it as long as they live.
    pub kept: usize,
    /// Taken from the driver for what happens inside graphs, the tensors that came out of them included.
    pub graphs: usize,
    /// The host's memory that the device copies to and from by itself.
    pub page_locked: usize,
}

impl MemoryReport {
    /// All that was taken from the driver.
    pub fn reserved(&self) -> usize {
        self.pool.reserved + self.graphs
    }
}

/// Why there is no block.
pub(crate) struct Exhausted {
    pub(crate) asked: usize,
    /// The largest piece that is free in the pool that was asked: the device's, or while a graph is captured, its own.
    pub(crate) largest_free: usize,
    pub(crate) report: MemoryReport,
    /// How many blocks are in use, by size, in all pools.
    pub(crate) sizes: BTreeMap<usize, usize>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryReport { tensors, scratch, kept, graphs, page_locked, .. } = self.report;
        write!(
            f,
            "no memory for {}; of {} that this process took, tensors hold {}",
            size(self.asked),
            size(self.report.reserved()),
            size(tensors)
        )?;
        for (what, bytes) in [
            ("scratch memory of kernels", scratch),
            ("what only graphs still use", kept),
            ("the inside of graphs", graphs),
        ] {
            if bytes > 0 {
                write!(f, ", {what} {}", size(bytes))?;
            }
        }
        write!(f, "; the largest free piece has {}", size(self.largest_free))?;
        let mut most: Vec<(usize, usize)> =
            self.sizes.iter().map(|(&bytes, &count)| (count, bytes)).collect();
        most.sort_by_key(|&(count, bytes)| std::cmp::Reverse(count * bytes));
        let most: Vec<String> =
            most.iter().take(3).map(|&(count, bytes)| format!("{count} × {}", size(bytes))).collect();
        if !most.is_empty() {
            write!(f, "; most is held by blocks of {}", most.join(", "))?;
        }
        if page_locked > 0 {
            write!(f, "; of the host's memory {} are page-locked", size(page_locked))
        } else {
            Ok(())
        }
    }
}

/// Bytes for people: `512 B`, `1.5 MiB`.
pub(crate) fn size(bytes: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver with so many bytes, which are addresses and nothing else.
    struct Driver {
        room: usize,
        next: u64,
        segments: BTreeMap<u64, usize>,
    }

    impl Driver {
        fn with(room: usize) -> Driver {
            Driver { room, next: 1 << 40, segments: BTreeMap::new() }
        }
    }

    impl Source for Driver {
        fn allocate(&mut self, bytes: usize) -> Option<u64> {
            let room = self.room.checked_sub(bytes)?;
            let address = self.next;
            (self.room, self.next) = (room, address + bytes as u64 + SEGMENT as u64);
            self.segments.insert(address, bytes);
            Some(address)
        }
        fn free(&mut self, address: u64) -> bool {
            self.room += self.segments.remove(&address).expect("a segment of this driver");
            true
        }
    }

    #[test]
    fn blocks_do_not_overlap_and_everything_comes_back() {
        let (mut pool, mut driver) = (Pool::default(), Driver::with(1 << 30));
        let mut live: Vec<(u64, usize)> = Vec::new();
        let mut state = 1u64;
        for step in 0..4000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let draw = (state >> 33) as usize;
            if draw % 5 < 3 || live.is_empty() {
                let bytes = if draw.is_multiple_of(7) { draw % (5 << 20) } else { draw % 9000 };
                let address = pool.allocate(bytes, &mut driver).unwrap();
                assert_eq!(address % GRAIN as u64, 0);
                let end = address + bytes as u64;
                assert!(live.iter().all(|&(at, n)| end <= at || at + n as u64 <= address), "step {step}");
                assert!(driver.segments.iter().any(|(&at, &n)| at <= address && end <= at + n as u64));
                live.push((address, bytes));
            } else {
                pool.give_back(live.swap_remove(draw % live.len()).0);
            }
            let used: usize = live.iter().map(|&(_, n)| n.max(1).next_multiple_of(GRAIN)).sum();
            assert_eq!(pool.memory().used, used);
        }
        live.into_iter().for_each(|(address, _)| pool.give_back(address));
        assert_eq!(pool.memory().used, 0);
        assert_eq!(pool.free.len(), driver.segments.len(), "free neighbours have joined");
        pool.release(&mut driver);
        assert_eq!((pool.memory().reserved, driver.room, pool.blocks.len()), (0, 1 << 30, 0));
    }

    #[test]
    fn a_block_that_came_back_is_handed_out_again() {
        let (mut pool, mut driver) = (Pool::default(), Driver::with(1 << 30));
        let first = pool.allocate(1000, &mut driver).unwrap();
        pool.give_back(first);
        assert_eq!(pool.allocate(600, &mut driver).unwrap(), first);
        assert_eq!(pool.memory().segments_made, 1);
    }

    #[test]
    fn what_is_cached_can_be_given_up_when_memory_is_exhausted() {
        let (mut pool, mut driver) = (Pool::default(), Driver::with(64 << 20));
        let large = pool.allocate(40 << 20, &mut driver).unwrap();
        pool.give_back(large);
        assert_eq!(pool.memory().reserved, 40 << 20);
        assert_eq!(pool.allocate(60 << 20, &mut driver), None);
        pool.release(&mut driver);
        let larger = pool.allocate(60 << 20, &mut driver).unwrap();
        assert_eq!(pool.memory().reserved, 60 << 20);
        let small = pool.allocate(100, &mut driver).unwrap();
        assert_eq!(pool.allocate(8 << 20, &mut driver), None);
        assert_eq!(pool.used_sizes(), BTreeMap::from([(512, 1), (60 << 20, 1)]));
        pool.give_back(larger);
        pool.give_back(small);
        pool.release(&mut driver);
        assert!(pool.allocate(62 << 20, &mut driver).is_some(), "after a refusal everything goes on");
    }

    #[test]
    fn small_blocks_stay_out_of_large_segments() {
        let (mut pool, mut driver) = (Pool::default(), Driver::with(1 << 30));
        let large = pool.allocate(100 << 20, &mut driver).unwrap();
        pool.give_back(large);
        let small = pool.allocate(8, &mut driver).unwrap();
        pool.release(&mut driver);
        assert_eq!(pool.memory().reserved, SHARED_SEGMENT, "the large one went back");
        pool.give_back(small);
        // Where there is no other memory it will do.
        driver.room = 100 << 20;
        pool.release(&mut driver);
        driver.room = 100 << 20;
        let large = pool.allocate(100 << 20, &mut driver).unwrap();
        pool.give_back(large);
        assert_eq!(pool.allocate(8, &mut driver).unwrap(), large);
    }

    #[test]
    fn a_shortage_is_told_by_kind_and_size() {
        let pool = PoolMemory { reserved: 64 << 20, used: 63 << 20, ..PoolMemory::default() };
        let report = MemoryReport { pool, tensors: 60 << 20, ..MemoryReport::default() };
        let sizes = BTreeMap::from([(20 << 20, 3), (1 << 20, 1), (512, 4), (1024, 1)]);
        let plain = Exhausted { asked: 8 << 20, largest_free: 1 << 20, report, sizes: sizes.clone() };
        assert_eq!(
            plain.to_string(),
            "no memory for 8.0 MiB; of 64.0 MiB that this process took, tensors hold 60.0 MiB; the largest free piece \
             has 1.0 MiB; most is held by blocks of 3 × 20.0 MiB, 1 × 1.0 MiB, 4 × 512 B"
        );
        let more = MemoryReport {
            scratch: 1 << 10,
            kept: 2 << 20,
            graphs: 16 << 20,
            page_locked: 8 << 20,
            ..report
        };
        assert_eq!(
            Exhausted { asked: 8 << 20, largest_free: 1 << 20, report: more, sizes: BTreeMap::new() }
                .to_string(),
            "no memory for 8.0 MiB; of 80.0 MiB that this process took, tensors hold 60.0 MiB, scratch memory of kernels \
             1.0 KiB, what only graphs still use 2.0 MiB, the inside of graphs 16.0 MiB; the largest free piece has \
             1.0 MiB; of the host's memory 8.0 MiB are page-locked"
        );
    }

    #[test]
    fn fragmentation_is_what_cannot_be_had_at_once() {
        let (mut pool, mut driver) = (Pool::default(), Driver::with(1 << 30));
        let blocks: Vec<u64> = (0..16).map(|_| pool.allocate(1 << 20, &mut driver).unwrap()).collect();
        blocks.iter().step_by(2).for_each(|&address| pool.give_back(address));
        assert_eq!(pool.memory().fragmentation(), 1.0 - 1.0 / 8.0);
    }
}
