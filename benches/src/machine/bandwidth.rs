//! The most bytes that one thread moves in a second, between registers and each level of memory.

use std::hint::black_box;
use std::time::Duration;

use crate::clock;

/// Bytes a second, of what is read and what is written alike.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Of looking at every element.
    pub read: f64,
    /// Of a copy: by the loop or by the library's, whichever is faster. What a processor reads of a line only in order
    /// to write it does not count.
    pub copy: f64,
    /// Of `a = b + s·c`, likewise.
    pub triad: f64,
}

/// The fastest transfers between buffers that take `bytes` together.
pub(super) fn measure(bytes: usize, samples: usize) -> Transfer {
    let sample = Duration::from_millis(10);
    let rate =
        |bytes: usize, run: &mut dyn FnMut()| bytes as f64 / clock::time(samples, sample, run).shortest;
    let buffers = |count: usize| vec![vec![1f32; bytes / count / size_of::<f32>()]; count];
    let moved = |buffers: &[Vec<f32>]| buffers.iter().map(|b| size_of_val(&b[..])).sum::<usize>();

    let x = &buffers(1)[0];
    let read = rate(size_of_val(&x[..]), &mut || {
        black_box(widest(|| read(black_box(x))));
    });
    let mut pair = buffers(2);
    let count = moved(&pair);
    let [to, from] = &mut pair[..] else { unreachable!("two were made") };
    let by_loop = rate(count, &mut || widest(|| copy(black_box(&mut to[..]), black_box(from))));
    let by_library = rate(count, &mut || black_box(&mut to[..]).copy_from_slice(black_box(from)));
    let mut three = buffers(3);
    let count = moved(&three);
    let [a, b, c] = &mut three[..] else { unreachable!("three were made") };
    let triad = rate(count, &mut || widest(|| triad(black_box(&mut a[..]), black_box(b), black_box(c))));
    Transfer { read, copy: by_loop.max(by_library), triad }
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
