//! Writing results that are too large to be in a cache when somebody reads them.
//!
//! An ordinary store into memory that is in no cache fetches the line first, to overwrite it: a result then moves twice its
//! bytes. Here it is computed a block at a time in the first-level cache, and the block is copied by stores that fetch nothing
//! and leave the caches to the operands. Those are asked for ahead of time, so that memory works while the processor does.

use bytemuck::Pod;

/// From how many bytes on a result is written so: more than what one program among others finds in the caches.
pub(super) const LARGE: usize = 48 << 20;

/// Bytes of a block: as many lines as a core fetches side by side.
pub(super) const BLOCK: usize = 1 << 10;

/// Bytes of a cache line, and the alignment of a block.
pub(super) const LINE: usize = 64;

/// What is read for a result: of each element of that one element of this, in order.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    bytes: &'a [u8],
    element: usize,
}

impl<'a> Operand<'a> {
    pub fn new<T: Pod>(values: &'a [T]) -> Operand<'a> {
        Operand { bytes: bytemuck::cast_slice(values), element: size_of::<T>() }
    }

    /// Asks for so many elements from number `start` on, if there are any, without waiting for them.
    #[inline]
    fn fetch(&self, start: usize, count: usize) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (self.bytes, self.element, start, count);
        #[cfg(target_arch = "x86_64")]
        if let Some(ahead) = self.bytes.get(start * self.element..) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            for line in ahead[..ahead.len().min(count * self.element)].chunks(LINE) {
                // SAFETY: every processor of the target has the instruction, which reads nothing that can be seen.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
            }
        }
    }
}

/// Fills `out`, which are the elements of a result from number `first` on, with what `f` makes of blocks: it gets the number of
/// each block's first element, and has to write every one.
pub(super) fn fill<T: Pod>(out: &mut [T], first: usize, read: &[Operand], f: impl Fn(usize, &mut [T])) {
    #[repr(C, align(64))]
    struct Block([u8; BLOCK]);
    let mut block = Block([0; BLOCK]);
    let block: &mut [T] = bytemuck::cast_slice_mut(&mut block.0);
    let size = block.len();
    let _fence = Fence;
    for (number, out) in out.chunks_mut(size).enumerate() {
        let (start, block) = (first + number * size, &mut block[..out.len()]);
        read.iter().for_each(|operand| operand.fetch(start + 2 * size, size));
        f(start, block);
        copy(bytemuck::cast_slice(block), bytemuck::cast_slice_mut(out));
    }
}

/// When it is dropped, by a panic too, what was stored past the caches is there for everybody.
struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every processor of the target has the instruction.
        unsafe {
            std::arch::x86_64::_mm_sfence()
        }
    }
}

/// Copies bytes past the caches. Where the instructions are not known here, through them.
fn copy(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    if to.as_ptr().addr().is_multiple_of(LINE) && from.as_ptr().addr().is_multiple_of(LINE) {
        use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_stream_si128};
        let pieces = from.len() / size_of::<__m128i>();
        let (source, target) = (from.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
        for i in 0..pieces {
            // SAFETY: piece i of 16 bytes lies inside both slices, which are aligned to more, and `to` is borrowed exclusively.
            // `fill` fences before it is left, and until then nobody reads what was stored.
            unsafe { _mm_stream_si128(target.add(i), _mm_load_si128(source.add(i))) }
        }
        let done = pieces * size_of::<__m128i>();
        to[done..].copy_from_slice(&from[done..]);
        return;
    }
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_written_once_wherever_blocks_and_results_begin_and_end() {
        let x: Vec<u32> = (0..5000).collect();
        for len in [0, 1, 3, 4, 15, 16, 17, 255, 256, 257, 4096, 4900] {
            for (first, shift) in [(0, 0), (7, 0), (100, 1), (64, 3), (0, 16)] {
                let mut out = vec![u32::MAX; len + shift + 1];
                fill(&mut out[shift..shift + len], first, &[Operand::new(&x)], |start, out| {
                    (0..out.len()).for_each(|i| out[i] = 2 * x[start + i]);
                });
                let expected = |i: usize| match i.checked_sub(shift) {
                    Some(i) if i < len => 2 * x[first + i],
                    _ => u32::MAX,
                };
                assert!(
                    (0..out.len()).all(|i| out[i] == expected(i)),
                    "{len} from {first}, shifted by {shift}"
                );
            }
        }
    }

    #[test]
    fn what_lies_behind_an_operand_is_not_asked_for() {
        let x = [1u64; 10];
        for (start, count) in [(0, 10), (0, 11), (9, 5), (10, 1), (11, 1), (1000, 1000)] {
            Operand::new(&x).fetch(start, count);
        }
    }
}
