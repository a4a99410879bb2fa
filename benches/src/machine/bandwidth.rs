//! The most bytes that one thread moves in a second, between registers and each level of memory.

use std::hint::black_box;
use std::time::Duration;

use limpid_tensor::HostBuffer;

use crate::clock;

/// Bytes a second, of what is read and what is written alike.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Of looking at every element.
    pub read: f64,
    /// Of a copy: by the loop, by the library's, or past the caches, whichever is fastest. What a processor reads of a line only in
    /// order to write it does not count.
    pub copy: f64,
    /// Of `a = b + s·c`, by the loop or past the caches.
    pub triad: f64,
}

/// The fastest transfers between buffers that take `bytes` together.
pub(super) fn measure(bytes: usize, samples: usize) -> Transfer {
    let sample = Duration::from_millis(10);
    let rate =
        |bytes: usize, run: &mut dyn FnMut()| bytes as f64 / clock::time(samples, sample, run).shortest;
    // Where tensors lie, in whole lines.
    let buffers = |count: usize| -> Vec<HostBuffer> {
        let make = |_| {
            let mut buffer = HostBuffer::new(bytes / count / LINE * LINE);
            buffer.as_mut::<f32>().fill(1.0);
            buffer
        };
        (0..count).map(make).collect()
    };

    let mut one = buffers(1);
    let [x] = numbers(&mut one);
    let read = rate(size_of_val(x), &mut || {
        black_box(widest(|| read(black_box(x))));
    });
    let mut pair = buffers(2);
    let [to, from] = numbers(&mut pair);
    let count = 2 * size_of_val(to);
    let by_loop = rate(count, &mut || widest(|| copy(black_box(&mut *to), black_box(from))));
    let by_library = rate(count, &mut || black_box(&mut *to).copy_from_slice(black_box(from)));
    let past = rate(count, &mut || past_caches(black_box(&mut *to), |i| lines(black_box(from))[i]));
    let copy = by_loop.max(by_library).max(past);
    let mut three = buffers(3);
    let [a, b, c] = numbers(&mut three);
    let count = 3 * size_of_val(a);
    let by_loop = rate(count, &mut || widest(|| triad(black_box(&mut *a), black_box(b), black_box(c))));
    let past = rate(count, &mut || {
        let (b, c) = (lines(black_box(b)), lines(black_box(c)));
        past_caches(black_box(&mut *a), |i| std::array::from_fn(|j| b[i][j] + 0.5 * c[i][j]));
    });
    Transfer { read, copy, triad: by_loop.max(past) }
}

/// Bytes of a line of the caches, and the numbers in it.
const LINE: usize = 64;
const NUMBERS: usize = LINE / size_of::<f32>();

fn numbers<const N: usize>(buffers: &mut [HostBuffer]) -> [&mut [f32]; N] {
    let mut buffers = buffers.iter_mut();
    std::array::from_fn(|_| buffers.next().expect("so many were made").as_mut())
}

fn lines(x: &[f32]) -> &[[f32; NUMBERS]] {
    x.as_chunks().0
}

/// Stores what `line` makes of the number of each line, without fetching what is overwritten.
fn past_caches(to: &mut [f32], line: impl Fn(usize) -> [f32; NUMBERS]) {
    assert!(to.as_ptr().addr().is_multiple_of(LINE));
    for (i, to) in to.as_chunks_mut::<NUMBERS>().0.iter_mut().enumerate() {
        #[cfg(not(target_arch = "x86_64"))]
        (*to = line(i));
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128, _mm_loadu_ps, _mm_stream_ps};
            let line = line(i);
            for at in (0..NUMBERS).step_by(size_of::<__m128>() / size_of::<f32>()) {
                // SAFETY: the four numbers are inside both lines, and the one that is written begins where one of memory does.
                unsafe { _mm_stream_ps(to.as_mut_ptr().add(at), _mm_loadu_ps(line.as_ptr().add(at))) }
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this kind has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

/// Of the bits, which can be taken in any order: nothing waits for an addition.
#[inline(always)]
fn read(x: &[f32]) -> u32 {
    x.iter().fold(0, |bits, v| bits | v.to_bits())
}

#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        // With something to compute: a plain assignment would become a call of the library's copy.
        *to = from.abs();
    }
}

#[inline(always)]
fn triad(a: &mut [f32], b: &[f32], c: &[f32]) {
    for (a, (b, c)) in a.iter_mut().zip(b.iter().zip(c)) {
        *a = b + 0.5 * c;
    }
}

/// Runs `f`, compiled for the widest vectors the processor has.
#[inline(always)]
fn widest<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512vl") {
            // SAFETY: the processor has these instructions.
            return unsafe { avx512(f) };
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(f) };
        }
    }
    f()
}
