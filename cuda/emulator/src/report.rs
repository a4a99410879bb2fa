//! What a launch tells: what is wrong, what memory traffic it made, what one warp did.

use std::fmt;

/// What running a kernel has shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong with the kernel, each place once, in the order of discovery. Empty for a `Fast` build, unless
    /// the launch came to a standstill.
    pub findings: Vec<Finding>,
    /// The memory traffic of each source line, if [`Options::traffic`](crate::Options::traffic) asked for it.
    pub traffic: Vec<Traffic>,
    /// What of global memory it takes, however often; counted with [`Report::traffic`].
    pub memory: MemoryTraffic,
    /// What the watched warp did, if [`Options::watch`](crate::Options::watch) named one.
    pub events: Vec<Event>,
    /// How many loads, stores and atomics were checked.
    pub accesses: u64,
    /// How often the processor went from one thread to another.
    pub switches: u64,
    /// Whether the launch was given up, at a fault that a card answers with an error or with a hang. The rest of
    /// the grid did not run.
    pub stopped: bool,
    /// The global allocations that were used: where each starts, whether it was read, whether it was written.
    /// `Checked` builds only.
    pub touched: Vec<(u64, bool, bool)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Report { findings, accesses, .. } = self;
        let end = if self.stopped { ", given up" } else { "" };
        write!(f, "{} findings in {accesses} accesses{end}", findings.len())?;
        findings.iter().try_for_each(|finding| write!(f, "\n{finding}"))?;
        self.traffic.iter().try_for_each(|traffic| write!(f, "\n{traffic}"))
    }
}

/// Something wrong, with the place that shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What sort of mistake it is.
    pub kind: Kind,
    /// One sentence that names the thread, the block, the array and the offset.
    pub message: String,
    /// Where it was seen.
    pub at: Place,
    /// The other place, for a mistake that needs two: the earlier access of a race, the other barrier.
    pub other: Option<Place>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}\n    at {}", self.kind, self.message, self.at)?;
        match &self.other {
            Some(other) => write!(f, "\n    and {other}"),
            None => Ok(()),
        }
    }
}

/// The sorts of mistakes that are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Two threads use the same bytes, one of them writes, and nothing orders them.
    Race,
    /// An access that begins or ends just outside an array.
    OutOfBounds,
    /// An access to an address that belongs to no array, such as null.
    WildAccess,
    /// A read of bytes that nobody has written.
    Uninitialised,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// Threads of a block that wait for each other at different barriers.
    DivergentBarrier,
    /// Threads of a warp that meet in different collective operations, or with different masks.
    DivergentCollective,
    /// A collective operation called by a lane that its mask leaves out, or reading from a lane that takes no part.
    MissingLane,
    /// Threads that wait for each other and can never go on.
    Deadlock,
    /// A product of four warps used out of its order: sums set or operands written without a fence before it, either
    /// touched before it was waited for, or never waited for.
    Unordered,
    /// More of something than a card has: threads in a block, shared memory, the bound given with the kernel.
    Limit,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Kind::Race => "race",
            Kind::OutOfBounds => "out of bounds",
            Kind::WildAccess => "wild access",
            Kind::Uninitialised => "uninitialised read",
            Kind::Misaligned => "misaligned access",
            Kind::DivergentBarrier => "divergent barrier",
            Kind::DivergentCollective => "divergent collective",
            Kind::MissingLane => "missing lane",
            Kind::Deadlock => "deadlock",
            Kind::Unordered => "unordered asynchronous operation",
            Kind::Limit => "limit of a card",
        })
    }
}

/// A place in the source of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named when the source was compiled. `?` where it is not known: builds other than
    /// `Checked` carry no line numbers.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The function, without its parameters.
    pub function: String,
    /// The place that the function was called from, where the compiler has put its code in line.
    pub caller: Option<Box<Place>>,
}

impl Place {
    /// The outermost place: a line of the kernel itself, if the compiler has put everything between in line.
    pub fn outermost(&self) -> &Place {
        let mut place = self;
        while let Some(caller) = &place.caller {
            place = caller;
        }
        place
    }

    /// Whether this place or one that called it is in that line of that file.
    pub fn is_in(&self, file: &str, line: u32) -> bool {
        let mut place = Some(self);
        while let Some(p) = place {
            if p.file == file && p.line == line {
                return true;
            }
            place = p.caller.as_deref();
        }
        false
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{} in {}", self.file, self.line, self.function)?;
        match &self.caller {
            Some(caller) => write!(f, ", called at {caller}"),
            None => Ok(()),
        }
    }
}

/// The memory traffic of one load or store of the source, summed over all warps.
///
/// A warp makes one request for its 32 lanes. From global memory it costs as many transactions as it touches
/// sectors of 32 bytes; 32 neighbouring floats are 4. From shared memory it costs as many passes as the busiest of
/// the 32 banks must serve different words; without a bank conflict that is 1. What a product of four warps reads is no
/// request of a warp, and not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The load or store.
    pub place: Place,
    /// Whether it goes to shared memory, else to global memory.
    pub shared: bool,
    /// Whether it is a store or an atomic, else a load.
    pub write: bool,
    /// How many requests warps made.
    pub requests: u64,
    /// The sectors of all requests, or their passes over the banks.
    pub cost: u64,
    /// The bytes that the lanes asked for.
    pub bytes: u64,
}

impl Traffic {
    /// The cost that the same bytes would have had in the best order, for one request on the average.
    pub fn ideal(&self) -> f64 {
        let bytes_at_once = if self.shared { 128.0 } else { 32.0 };
        (self.bytes as f64 / self.requests.max(1) as f64 / bytes_at_once).max(1.0)
    }

    /// The cost of one request on the average.
    pub fn per_request(&self) -> f64 {
        self.cost as f64 / self.requests.max(1) as f64
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let memory = if self.shared { "shared" } else { "global" };
        let direction = if self.write { "stores" } else { "loads" };
        let unit = if self.shared { "passes" } else { "sectors" };
        write!(
            f,
            "{memory} {direction}: {} requests, {} bytes, {:.1} {unit} each (best {:.1}) at {}",
            self.requests,
            self.bytes,
            self.per_request(),
            self.ideal(),
            self.place
        )
    }
}

/// The bytes of the different sectors of global memory that a launch touches: what it moves where the caches forget nothing
/// before it has ended, and what its operands and results take if it leaves no sector half used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryTraffic {
    /// Of the sectors that are read.
    pub read: u64,
    /// Of the sectors that are written.
    pub written: u64,
}

/// One warp of a launch, to be watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Warp {
    /// The block's number: x + gridDim.x·(y + gridDim.y·z).
    pub block: u32,
    /// The warp's number in its block.
    pub warp: u32,
}

/// One thing that a lane of the watched warp did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The lane, 0 to 31.
    pub lane: u32,
    /// What it did, such as `reads 4 bytes at offset 128 of shared tile`.
    pub what: String,
    /// Where.
    pub place: Place,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "lane {:2} {} at {}", self.lane, self.what, self.place)
    }
}
