//! Work for several threads.
//!
//! The functions that meet rayon are not generic, and so are compiled once: instantiated for every kernel, rayon's
//! own code was two fifths of this crate. Which thread does what never changes a bit of a result.

use bytemuck::Pod;
use rayon::prelude::*;

use super::past_caches::Stores;
use crate::{Error, Result};

/// Sets how many threads large operations use, once, before the first of them. Results do not depend on it.
///
/// # Errors
/// If they have already started.
pub fn set_threads(count: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build_global()
        .map_err(|e| Error::Device { device: "cpu".into(), message: format!("{count} threads: {e}") })
}

/// Results of at least this many elements are computed by several threads.
pub(super) const PARALLEL: usize = 1 << 18;
/// Elements of one thread's task.
pub(super) const CHUNK: usize = 1 << 16;

/// Calls `f` with chunks of `size` elements of `out` (the last may be shorter) and their number.
pub(super) fn chunks<T: Pod>(out: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    byte_chunks(bytemuck::cast_slice_mut(out), size * size_of::<T>(), &|i, chunk| {
        f(i, bytemuck::cast_slice_mut(chunk))
    });
}

/// Whether there is one thread alone. Then nothing is handed to it: to wait for it takes longer than many a kernel.
fn is_alone() -> bool {
    rayon::current_num_threads() == 1
}

fn byte_chunks(out: &mut [u8], size: usize, f: &(dyn Fn(usize, &mut [u8]) + Sync)) {
    if is_alone() {
        out.chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// As [`chunks`], of two results side by side: chunks of `size_a` elements of `a` go with chunks of `size_b` of `b`.
pub(super) fn chunks_of_two<A: Pod, B: Pod>(
    a: &mut [A],
    size_a: usize,
    b: &mut [B],
    size_b: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (size_a, size_b) = (size_a * size_of::<A>(), size_b * size_of::<B>());
    let (a, b) = (bytemuck::cast_slice_mut(a), bytemuck::cast_slice_mut(b));
    byte_chunks_of_two(a, size_a, b, size_b, &|i, a, b| {
        f(i, bytemuck::cast_slice_mut(a), bytemuck::cast_slice_mut(b))
    });
}

/// What is done with chunk i of two results.
type WithTwo<'a> = &'a (dyn Fn(usize, &mut [u8], &mut [u8]) + Sync);

fn byte_chunks_of_two(a: &mut [u8], size_a: usize, b: &mut [u8], size_b: usize, f: WithTwo<'_>) {
    if is_alone() {
        let pairs = a.chunks_mut(size_a).zip(b.chunks_mut(size_b));
        pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    } else {
        let pairs = a.par_chunks_mut(size_a).zip(b.par_chunks_mut(size_b));
        pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    }
}

/// Computes two things, on two threads if one is free.
pub(super) fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let (mut a, mut b) = (Some(a), Some(b));
    let (mut left, mut right) = (None, None);
    fork(&mut || left = a.take().map(|a| a()), &mut || right = b.take().map(|b| b()));
    (left.expect("fork calls both"), right.expect("fork calls both"))
}

fn fork(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    if is_alone() {
        a();
        b();
    } else {
        rayon::join(a, b);
    }
}

/// Calls `f` with pieces of `out` and where each starts, on several threads if `out` is large.
pub(super) fn pieces<T: Pod>(out: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    if out.len() < PARALLEL {
        f(0, out);
    } else {
        chunks(out, CHUNK, |i, chunk| f(i * CHUNK, chunk));
    }
}

/// As [`pieces`], for a new result, of which `f` reads nothing and writes everything, in the way that it is told.
pub(super) fn fill<T: Pod>(out: &mut [T], f: impl Fn(usize, &mut [T], Stores) + Sync) {
    let size = size_of_val(out);
    pieces(out, |start, piece| Stores::with(size, piece, |piece, stores| f(start, piece, stores)));
}

/// Calls `f` with the numbers of some tasks that together make a result of `size` elements, on several threads if it is large.
pub(super) fn tasks(count: usize, size: usize, f: impl Fn(usize) + Sync) {
    if size < PARALLEL {
        (0..count).for_each(f);
    } else {
        each(count, &f);
    }
}

fn each(count: usize, f: &(dyn Fn(usize) + Sync)) {
    if is_alone() {
        (0..count).for_each(f);
    } else {
        (0..count).into_par_iter().for_each(f);
    }
}
