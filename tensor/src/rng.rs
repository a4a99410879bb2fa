//! Random numbers as a pure function of a key: Philox 4×32-10.

/// Which stream of random numbers: a seed, and what has been folded into it since (step, scope, ordinal).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The user's seed: Philox's 64-bit key.
    pub seed: u64,
    /// The upper half of Philox's 128-bit counter; the lower half counts blocks of four numbers.
    pub stream: u64,
}

impl Key {
    /// The first stream of a seed.
    pub fn new(seed: u64) -> Key {
        Key { seed, stream: 0 }
    }

    /// A stream derived from this one and a number: the step, the ordinal of a draw.
    pub fn fold(self, data: u64) -> Key {
        // SplitMix64's finaliser, a bijection that spreads every input bit over the stream number.
        let mut z = (self.stream ^ data).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Key { seed: self.seed, stream: z ^ (z >> 31) }
    }

    /// A stream derived from this one and a name: a scope path, a parameter's path.
    pub fn fold_str(self, name: &str) -> Key {
        name.bytes().fold(self.fold(name.len() as u64), |key, byte| key.fold(u64::from(byte)))
    }
}

/// What random values look like.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Distribution {
    /// Evenly spread over `low..high` (floats).
    Uniform {
        /// The smallest value that can occur.
        low: f64,
        /// Just above the largest value that can occur.
        high: f64,
    },
    /// A Gaussian (floats).
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },
    /// A Gaussian confined to `low..=high` by inverting its distribution function (floats).
    TruncatedNormal {
        /// The mean before truncation.
        mean: f64,
        /// The standard deviation before truncation.
        std: f64,
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// 1 with probability `p`, else 0 (any dtype; `true`/`false` for bool).
    Bernoulli {
        /// The probability of a 1.
        p: f64,
    },
    /// Each of `0..n` once, in random order; the shape must be `[n]` (i64).
    Permutation,
}
