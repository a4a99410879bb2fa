//! Kinds of values, each a region where a derivative has something of its own to get wrong.

use limpid_tensor::DType;
use limpid_tensor::bf16;
use limpid_tensor::rng::{Key, unit};

use super::Operand;

/// A kind of values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Values {
    /// Of either sign, 0.3 < |x| < 1.7, and (up to 1024 of them) apart from each other, from 1, and from those of
    /// operands with another `seed % 4`. i64: −50..=50.
    Interior,
    /// As interior, without the sign.
    Positive,
    /// Of either sign, 15 < |x| < 40: where sigmoids are flat and exponentials steep.
    Saturated,
    /// −2, −1, −0, 0, 1, 2, most of them more than once.
    Ties,
    /// −1, 0 or 1, missed by 10⁻¹ to 10⁻¹².
    NearKink,
    /// Of either sign, up to a few thousandths of the largest finite number. i64: of any size.
    Huge,
    /// Of either sign, near the smallest normal number and below.
    Tiny,
    /// Interior with NaN, ±∞, ±0, and the largest finite numbers sprinkled in. i64: with the extremes.
    Special,
    /// Interior with NaN sprinkled in.
    Nan,
    /// Normal with this standard deviation, such as the logits of a softmax or of Sinkhorn–Knopp.
    Normal(f64),
    /// Positive, each row along the last axis summing to 1.
    Simplex,
    /// `0..n`: an index into an axis of this size.
    Below(usize),
}

/// Rows of `row` numbers scaled to sum to 1.
pub(super) fn simplex(mut numbers: Vec<f64>, row: usize) -> Vec<f64> {
    for row in numbers.chunks_mut(row.max(1)) {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    numbers
}

impl Operand {
    /// The first `n` numbers of a float operand as they lie in memory, before the views, not yet rounded to its dtype.
    ///
    /// # Panics
    /// If the values are indices.
    pub fn numbers(&self, n: usize) -> Vec<f64> {
        let key = Key::new(self.seed);
        let [start, stride] = key.pair(u64::MAX);
        // Odd strides visit every residue modulo 1024 before one comes again.
        let lattice = |i: usize| {
            let place = (start.wrapping_add((stride | 1).wrapping_mul(i as u64)) % 1024) as f64;
            // Off the lattice a little, so that no sum is 0 by accident; less than half way to the next.
            let between = ((self.seed % 4) as f64 + 0.3 + 0.4 * unit(key.fold(1).bits(i as u64))) / 4.0;
            0.3 + 1.4 * (place + between) / 1024.0
        };
        let (largest, smallest): (f64, f64) = match self.dtype {
            DType::F64 => (f64::MAX, f64::MIN_POSITIVE),
            DType::F32 => (f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE)),
            _ => (bf16::MAX.to_f64(), bf16::MIN_POSITIVE.to_f64()),
        };
        let number = |i: usize| {
            let [bits, more] = key.pair(i as u64);
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            let bits = bits >> 1;
            match self.values {
                Values::Interior => sign * lattice(i),
                Values::Positive | Values::Simplex => lattice(i),
                Values::Saturated => sign * (15.0 + 25.0 * unit(more)),
                Values::Ties => [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0][bits as usize % 6],
                Values::NearKink => (bits % 3) as f64 - 1.0 + sign * 10f64.powf(-1.0 - 11.0 * unit(more)),
                Values::Huge => sign * largest * 2f64.powf(-9.0 - 20.0 * unit(more)),
                Values::Tiny => sign * smallest * 2f64.powf(8.0 - 30.0 * unit(more)),
                Values::Special => match bits & 15 {
                    0 => f64::NAN,
                    1 => f64::INFINITY,
                    2 => f64::NEG_INFINITY,
                    3 => sign * 0.0,
                    4 => sign * largest,
                    5 => sign,
                    _ => sign * lattice(i),
                },
                Values::Nan if bits & 7 == 0 => f64::NAN,
                Values::Nan => sign * lattice(i),
                Values::Normal(std) => std * key.normal(i as u64),
                Values::Below(_) => panic!("{:?} are indices, not floats", self.values),
            }
        };
        (0..n).map(number).collect()
    }

    /// As [`numbers`](Operand::numbers), of an i64 operand.
    pub fn ints(&self, n: usize) -> Vec<i64> {
        let key = Key::new(self.seed);
        let int = |i: usize| {
            let [bits, more] = key.pair(i as u64);
            let below = |n: u64| (bits >> 8) % n;
            match self.values {
                Values::Ties => below(5) as i64 - 2,
                Values::Tiny => below(3) as i64 - 1,
                Values::Positive => below(50) as i64 + 1,
                Values::Huge => bits as i64 >> (more % 60),
                Values::Special if bits & 7 == 0 => i64::MIN,
                Values::Special if bits & 7 == 1 => i64::MAX,
                Values::Below(n) => below(n as u64) as i64,
                _ => below(101) as i64 - 50,
            }
        };
        (0..n).map(int).collect()
    }

    /// As [`numbers`](Operand::numbers), of a bool operand.
    pub fn bits(&self, n: usize) -> Vec<bool> {
        self.ints(n).into_iter().map(|v| v & 1 == 1).collect()
    }
}
