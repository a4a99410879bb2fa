//! Who runs next.

use std::collections::VecDeque;

/// Random numbers from a seed (xorshift64*, Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    /// A generator for a seed ≠ 0.
    pub fn new(seed: u64) -> Random {
        // Seeds that are near each other give sequences that are not.
        Random((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (high as usize * bound) >> 32
    }
}

/// The threads that can run, and the order they get: their own, or one drawn from a seed.
pub(crate) struct Schedule {
    random: Option<Random>,
    ready: VecDeque<u32>,
}

impl Schedule {
    /// For seed 0, threads and blocks run in their order.
    pub fn new(seed: u64) -> Schedule {
        Schedule { random: (seed != 0).then(|| Random::new(seed)), ready: VecDeque::new() }
    }

    /// Whether the order is drawn.
    pub fn is_random(&self) -> bool {
        self.random.is_some()
    }

    /// The order in which `blocks` blocks run.
    pub fn block_order(&mut self, blocks: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..blocks).collect();
        if let Some(random) = &mut self.random {
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i + 1));
            }
        }
        order
    }

    /// Nobody is ready.
    pub fn clear(&mut self) {
        self.ready.clear();
    }

    /// A thread can run.
    pub fn push(&mut self, thread: u32) {
        self.ready.push_back(thread);
    }

    /// The thread that runs next.
    pub fn pop(&mut self) -> Option<u32> {
        match &mut self.random {
            Some(random) if !self.ready.is_empty() => {
                let chosen = random.below(self.ready.len());
                self.ready.swap_remove_back(chosen)
            }
            _ => self.ready.pop_front(),
        }
    }

    /// Whether a thread gives way here: at one in `one_in` such questions, never for 0 or a fixed order.
    pub fn gives_way(&mut self, one_in: u32) -> bool {
        match &mut self.random {
            Some(random) if one_in != 0 => random.below(one_in as usize) == 0,
            _ => false,
        }
    }
}
