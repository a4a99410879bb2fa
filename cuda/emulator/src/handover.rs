//! How blocks of one launch hand results to each other: `__threadfence`, then an atomic update, then the same in a block
//! that comes later.
//!
//! A fence takes down what is ordered before the thread that calls it; its next atomic updates of global memory leave
//! that at their addresses; whoever updates such an address atomically takes over all that lies there. What a block took
//! over at one address it does not pass on at another.

use std::collections::HashMap;

use crate::clock::Stamp;

/// What is ordered before a thread: the spans of its block up to the last barrier, and some since.
#[derive(Clone)]
pub(crate) struct Past {
    /// The first span of the block, and the first after the last barrier.
    pub block: u32,
    pub epoch: u32,
    /// The spans of the thread's warp since the barrier, and of each lane the first that is not known to be finished.
    pub warp_spans: Vec<u32>,
    pub known: [u32; 32],
}

impl Past {
    fn covers(&self, stamp: Stamp) -> bool {
        let span = stamp.span();
        (self.block..self.epoch).contains(&span)
            || self.warp_spans.contains(&span) && stamp.lanes().all(|lane| span < self.known[lane])
    }
}

/// What the blocks of a launch have left for each other.
#[derive(Default)]
pub(crate) struct Handovers {
    /// Of each thread of the block that runs, what its last fence took down.
    fenced: HashMap<u32, Past>,
    /// By address, in the order of time, and so of spans.
    left: HashMap<usize, Vec<Past>>,
    /// The addresses whose pasts the block that runs has taken over.
    taken: Vec<usize>,
}

impl Handovers {
    pub fn begin_block(&mut self) {
        self.fenced.clear();
        self.taken.clear();
    }

    pub fn fence(&mut self, thread: u32, past: Past) {
        self.fenced.insert(thread, past);
    }

    /// A thread updates global memory atomically.
    pub fn update(&mut self, thread: u32, address: usize) {
        if self.left.contains_key(&address) && !self.taken.contains(&address) {
            self.taken.push(address);
        }
        if let Some(past) = self.fenced.get(&thread) {
            self.left.entry(address).or_default().push(past.clone());
        }
    }

    /// Whether a use by another block was handed to this one.
    pub fn cover(&self, stamp: Stamp) -> bool {
        self.taken.iter().any(|address| {
            let pasts = &self.left[address];
            let after = pasts.partition_point(|past| past.block <= stamp.span());
            let Some(block) = pasts[..after].last().map(|past| past.block) else { return false };
            pasts[..after].iter().rev().take_while(|past| past.block == block).any(|past| past.covers(stamp))
        })
    }
}
