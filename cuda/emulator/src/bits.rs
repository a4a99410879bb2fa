//! A set of bytes, one bit for each.

use std::ops::Range;

/// Which bytes of an array are in the set.
#[derive(Clone, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// The empty set among `bytes` bytes. Costs nothing until bits are set: the system gives zeroed pages.
    pub fn new(bytes: usize) -> Bits {
        Bits { words: vec![0; bytes.div_ceil(64)] }
    }

    /// Puts a range into the set.
    pub fn insert(&mut self, range: Range<usize>) {
        for_words(range, |word, mask| self.words[word] |= mask);
    }

    /// Takes a range out of the set.
    pub fn remove(&mut self, range: Range<usize>) {
        for_words(range, |word, mask| self.words[word] &= !mask);
    }

    /// Whether the whole range is in the set.
    pub fn contains(&self, range: Range<usize>) -> bool {
        let mut all = true;
        for_words(range, |word, mask| all &= self.words[word] & mask == mask);
        all
    }

    /// Whether that byte is in the set.
    pub fn has(&self, byte: usize) -> bool {
        self.words[byte / 64] >> (byte % 64) & 1 != 0
    }
}

/// Calls `f` with each word that the range touches and the mask of its bits.
#[inline(always)]
fn for_words(range: Range<usize>, mut f: impl FnMut(usize, u64)) {
    if range.is_empty() {
        return;
    }
    let (first, last) = (range.start / 64, (range.end - 1) / 64);
    let head = u64::MAX << (range.start % 64);
    let tail = u64::MAX >> (63 - (range.end - 1) % 64);
    if first == last {
        return f(first, head & tail);
    }
    f(first, head);
    (first + 1..last).for_each(|word| f(word, u64::MAX));
    f(last, tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_single_bytes() {
        for (start, end) in [(0, 1), (3, 60), (60, 70), (0, 64), (64, 128), (5, 200), (190, 200), (7, 7)] {
            let mut bits = Bits::new(200);
            bits.insert(start..end);
            assert!(bits.contains(start..end));
            (0..200).for_each(|byte| assert_eq!(bits.has(byte), (start..end).contains(&byte)));
            if end > start {
                bits.remove(end - 1..end);
                assert!(!bits.contains(start..end));
                assert!(bits.contains(start..end - 1));
            }
        }
    }
}
