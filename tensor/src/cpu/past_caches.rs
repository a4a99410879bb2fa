//! Writing results that are too large to be in a cache when somebody reads them.
//!
//! An ordinary store into memory that is in no cache fetches the line first, to overwrite it: a result then moves twice its
//! bytes. A streaming store fetches nothing and leaves the caches to the operands. Those are asked for ahead of time, so that
//! memory works while the processor does.

use bytemuck::Pod;

use super::vector::{Vector, prefetch};

/// From how many bytes on a result is written so: more than what one program among others finds in the caches.
pub(super) const LARGE: usize = 48 << 20;

/// Bytes of a cache line, and how they are aligned.
pub(super) const LINE: usize = 64;

/// How far ahead operands are asked for, in bytes.
pub(super) const AHEAD: usize = 2 << 10;

/// Elements that are computed between two stores: a line of the smallest that are streamed.
pub(super) const GROUP: usize = 16;

/// Whether a group of such elements is whole lines. Smaller ones are not streamed, and a loop over single ones becomes better
/// vectors of them than one over groups.
pub(super) const fn in_lines<R>() -> bool {
    size_of::<[R; GROUP]>().is_multiple_of(LINE) && align_of::<R>() >= align_of::<f32>()
}

/// How the elements of a result are stored: past the caches, or through them.
#[derive(Clone, Copy)]
pub(super) struct Stores {
    past: bool,
}

impl Stores {
    /// Through the caches, as what is read again soon.
    pub const THROUGH: Stores = Stores { past: false };

    /// Calls `f` with a part of a result of `size` bytes and how to store it. What has been stored is there for everybody
    /// when this returns, or panics.
    #[inline(always)]
    pub fn with<R: Pod>(size: usize, part: &mut [R], f: impl FnOnce(&mut [R], Stores)) {
        let stores = Stores { past: size >= LARGE };
        let _fence = stores.past.then_some(Fence);
        f(part, stores);
    }

    /// Whether that is past the caches, as far as lines are whole: what has been stored is then not to be read soon.
    #[inline(always)]
    pub fn are_past(self) -> bool {
        self.past
    }

    /// The whole groups of some elements that are stored, and what is left of them.
    #[inline(always)]
    pub fn groups<R: Pod>(self, out: &mut [R]) -> (Groups<'_, R>, &mut [R]) {
        let past = self.past && in_lines::<R>() && out.as_ptr().addr().is_multiple_of(LINE);
        let (groups, rest) = out.as_chunks_mut();
        (Groups { groups, past }, rest)
    }

    /// Asks for what is read a while after group `i`, if it is in memory.
    #[inline(always)]
    pub fn fetch_ahead<T>(self, x: &[[T; GROUP]], i: usize) {
        if self.past {
            let group = size_of::<[T; GROUP]>();
            for line in (0..group).step_by(LINE) {
                prefetch::<1, _>(x.as_flattened(), (i * group + AHEAD + line) / size_of::<T>());
            }
        }
    }
}

/// Groups of elements that are stored.
pub(super) struct Groups<'a, R> {
    groups: &'a mut [[R; GROUP]],
    /// Past the caches: then the first group begins with a line, and a group is whole lines.
    past: bool,
}

impl<R: Pod> Groups<'_, R> {
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Stores group `i`, by the vectors of this processor.
    #[inline(always)]
    pub fn put<V: Vector<f32>>(&mut self, i: usize, group: [R; GROUP]) {
        let to = &mut self.groups[i];
        if !self.past {
            *to = group;
            return;
        }
        const { assert!(LINE.is_multiple_of(4 * V::WIDTH)) }
        let numbers = size_of::<[R; GROUP]>() / size_of::<f32>();
        let (from, to) = (group.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
        for at in (0..numbers).step_by(V::WIDTH) {
            // SAFETY: both are as many bytes as `numbers` f32 have, which are whole vectors, since a group is whole lines and a
            // line is whole vectors; `to` is aligned to a line. Whoever made these groups' `Stores` fences.
            unsafe { V::read(from.add(at)).stream(to.add(at)) }
        }
    }
}

/// When it is dropped, what was stored past the caches is there for everybody.
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

#[cfg(test)]
mod tests {
    use super::super::simd::tests::at_every_level;
    use super::super::vector::{Kernel, for_vectors};
    use super::*;
    use crate::HostBuffer;

    /// Twice each number.
    struct Double<'a> {
        x: &'a [u32],
        out: &'a mut [u32],
        stores: Stores,
    }

    impl Kernel<f32> for Double<'_> {
        #[inline(always)]
        fn run<V: Vector<f32>>(self) {
            let (mut groups, rest) = self.stores.groups(self.out);
            let (x, x_rest) = self.x.as_chunks();
            for i in 0..groups.len() {
                self.stores.fetch_ahead(x, i);
                groups.put::<V>(i, x[i].map(|v| 2 * v));
            }
            rest.iter_mut().zip(x_rest).for_each(|(out, v)| *out = 2 * v);
        }
    }

    #[test]
    fn every_element_is_stored_once_wherever_a_part_begins_and_ends() {
        let x: Vec<u32> = (0..5000).collect();
        at_every_level(|| {
            for size in [0, LARGE] {
                for len in [0, 1, 15, 16, 17, 255, 256, 257, 4096, 4900] {
                    for shift in [0, 1, 3, 16] {
                        // Begins with a line, so that what is shifted by none or a whole one is streamed.
                        let mut buffer = HostBuffer::new((len + shift + 1) * size_of::<u32>());
                        let out = buffer.as_mut::<u32>();
                        out.fill(u32::MAX);
                        assert!(out.as_ptr().addr().is_multiple_of(LINE));
                        Stores::with(size, &mut out[shift..shift + len], |out, stores| {
                            for_vectors(Double { x: &x[..out.len()], out, stores });
                        });
                        let expected = |i: usize| match i.checked_sub(shift) {
                            Some(i) if i < len => 2 * x[i],
                            _ => u32::MAX,
                        };
                        assert!(
                            (0..out.len()).all(|i| out[i] == expected(i)),
                            "{len} of {size} bytes, shifted by {shift}"
                        );
                    }
                }
            }
        });
    }
}
