//! Connections between the n streams of a state X `[.., n, C]`: reading, writing and their derivatives, and, in
//! [`project`], what coefficients are computed from. A token is a position of the leading axes; v = vec(X) are its nC numbers.
//!
//! Every kernel goes over the tokens once, so that what one of them takes (16 KiB for n = 4, C = 1024) is in the cache while
//! it is used again. Elements are computed by themselves, in vectors of any width. A sum over channels is made of
//! [`PLACES`] sums, of every PLACES-th channel each, which are added in a fixed order at the end; one over tokens of those of
//! blocks, added in order. Both are the same for any number of threads and any vector width.

/// `f::<V>(.., at)` for the channels in vectors, `f::<T>(.., at)` for those that are left.
macro_rules! channels {
    ($channels:expr, $at:ident => $f:ident::<$t:ident, $v:ident $(, $r:ident)?>($($argument:expr),*)) => {
        let whole = $channels - $channels % $v::WIDTH;
        for $at in (0..whole).step_by($v::WIDTH) {
            $f::<$t, $v $(, $r)?>($($argument),*);
        }
        for $at in whole..$channels {
            $f::<$t, $t $(, $r)?>($($argument),*);
        }
    };
}

mod project;
#[cfg(test)]
mod tests;

use smallvec::smallvec;

pub(super) use self::project::{project, project_backward};
use super::{PARALLEL_ELEMENTS, Real, row_major};
use crate::cpu::past_caches::LINE;
use crate::cpu::threads;
use crate::cpu::vector::{Kernel, Vector, for_vectors, prefetch};
use crate::primitive::Handed;
use crate::{HostBuffer, Result, Results, Shape, Tensor};

/// Sums that the products of two rows are dealt out to.
const PLACES: usize = 16;

/// From how many bytes on operands are asked for ahead of time.
const FAR: usize = 4 << 20;

// ── Tokens and threads ──────────────────────────────────────────────────────────────────────────────────────────────

/// The sizes of a state.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    n: usize,
    channels: usize,
}

impl Sizes {
    /// Of X `[.., n, C]`.
    fn of(x: &Shape) -> Sizes {
        let [lead @ .., n, channels] = &x[..] else { panic!("streams: expected [.., n, C], found {x}") };
        Sizes { tokens: lead.iter().product(), n: *n, channels: *channels }
    }

    /// Numbers of a token.
    fn numbers(self) -> usize {
        self.n * self.channels
    }

    /// The `width` elements that a tensor has of each token, made contiguous in `copy`.
    fn rows<'a, T: Real>(self, what: &str, copy: &'a Tensor, width: usize) -> Rows<'a, T> {
        assert!(
            copy.elements() == self.tokens * width,
            "streams: {what} has {width} elements for each of {} tokens, found {}",
            self.tokens,
            copy.shape()
        );
        Rows { all: row_major(copy), width }
    }
}

/// What a tensor holds of each token.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    all: &'a [T],
    width: usize,
}

impl<'a, T> Rows<'a, T> {
    #[inline(always)]
    fn of(&self, token: usize) -> &'a [T] {
        row(self.all, token, self.width)
    }

    /// Asks for what is held of the next token, if all of it is more than the nearer caches hold: its streams are rows of a page or
    /// less, too short for the processor to see where they lead.
    #[inline(always)]
    fn fetch_ahead(&self, token: usize) {
        if size_of_val(self.all) >= FAR {
            let next = (token + 1) * self.width;
            for at in (next..next + self.width).step_by(LINE / size_of::<T>()) {
                prefetch::<2, _>(self.all, at);
            }
        }
    }
}

#[inline(always)]
fn row<T>(rows: &[T], i: usize, width: usize) -> &[T] {
    &rows[i * width..][..width]
}

#[inline(always)]
fn row_mut<T>(rows: &mut [T], i: usize, width: usize) -> &mut [T] {
    &mut rows[i * width..][..width]
}

/// A kernel with K results. `run` and what it calls must be marked `#[inline(always)]` (see [`for_vectors`]).
trait OverTokens<T, const K: usize>: Sync {
    /// Computes what the results hold of `count` tokens from `first` on.
    fn run<V: Vector<T>>(&self, first: usize, count: usize, results: [&mut [T]; K]);
}

/// Runs a kernel for groups of `together` tokens. Each result has `width` elements for a group; the last group may be smaller
/// and have fewer. `work` is the number of elements handled for one token.
fn for_tokens<T: Real, const K: usize>(
    tokens: usize,
    together: usize,
    work: usize,
    results: [(&mut [T], usize); K],
    kernel: &impl OverTokens<T, K>,
) {
    let least = (PARALLEL_ELEMENTS / 2).div_ceil(work.max(1)).next_multiple_of(together);
    Groups { first: 0, tokens, together, results, kernel }.split(least);
}

/// Tokens of one task.
struct Groups<'a, T, const K: usize, O> {
    first: usize,
    tokens: usize,
    together: usize,
    results: [(&'a mut [T], usize); K],
    kernel: &'a O,
}

impl<T: Real, const K: usize, O: OverTokens<T, K>> Groups<'_, T, K, O> {
    /// Halves them, until there are fewer than twice the `least` that are worth a thread.
    fn split(self, least: usize) {
        if self.tokens < 2 * least {
            return for_vectors(self);
        }
        let Groups { first, tokens, together, results, kernel } = self;
        let half = (tokens / 2).next_multiple_of(together);
        let mut behind = Vec::with_capacity(K);
        let results = results.map(|(result, width)| {
            let (before, after) = result.split_at_mut(half / together * width);
            behind.push((after, width));
            (before, width)
        });
        let before = Groups { first, tokens: half, together, results, kernel };
        let results = behind.try_into().unwrap_or_else(|_| unreachable!("one of each result"));
        let behind = Groups { first: first + half, tokens: tokens - half, together, results, kernel };
        threads::join(|| before.split(least), || behind.split(least));
    }
}

impl<T: Real, const K: usize, O: OverTokens<T, K>> Kernel<T> for Groups<'_, T, K, O> {
    #[inline(always)]
    fn run<V: Vector<T>>(mut self) {
        let mut done = 0;
        while done < self.tokens {
            let count = self.together.min(self.tokens - done);
            let group = std::array::from_fn(|k| {
                let (result, width) = &mut self.results[k];
                let all = std::mem::take(result);
                let (group, others) = all.split_at_mut(all.len().min(*width));
                *result = others;
                group
            });
            self.kernel.run::<V>(self.first + done, count, group);
            done += count;
        }
    }
}

fn result<T: Real>(shape: Shape, fill: impl FnOnce(&mut [T])) -> Tensor {
    let mut out = HostBuffer::new(shape.elements() * size_of::<T>());
    fill(out.as_mut());
    out.into_tensor(&shape, T::DTYPE)
}

// ── Reading and writing ─────────────────────────────────────────────────────────────────────────────────────────────

/// Σⱼ aⱼ·(stream j), at some channels.
#[inline(always)]
fn weighted<T: Real, V: Vector<T>>(a: &[T], streams: &[T], channels: usize, at: usize) -> V {
    let mut sum = V::all(T::ZERO);
    for (j, &a) in a.iter().enumerate() {
        sum = V::all(a).mul_add(V::load(row(streams, j, channels), at), sum);
    }
    sum
}

#[inline(always)]
fn read_at<T: Real, V: Vector<T>>(y: &mut [T], a: &[T], x: &[T], at: usize) {
    weighted::<T, V>(a, x, y.len(), at).store(y, at);
}

struct Read<'a, T> {
    x: Rows<'a, T>,
    a: Rows<'a, T>,
}

impl<T: Real> OverTokens<T, 1> for Read<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [y]: [&mut [T]; 1]) {
        self.x.fetch_ahead(token);
        let (x, a) = (self.x.of(token), self.a.of(token));
        channels!(y.len(), at => read_at::<T, V>(y, a, x, at));
    }
}

/// `a·X`: X `[.., n, C]`, a `[.., n]` → `[.., C]`.
pub(super) fn read<T: Real>(x: &Tensor, a: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x.shape());
    let (x, a) = (x.contiguous()?, a.contiguous()?);
    let shape = x.shape().without(&[x.shape().len() - 2]);
    let kernel = Read { x: sizes.rows::<T>("X", &x, n * channels), a: sizes.rows("a", &a, n) };
    Ok(result(shape, |y| for_tokens(tokens, 1, n * channels, [(y, channels)], &kernel)))
}

struct Write<'a, T> {
    x: Rows<'a, T>,
    f: Rows<'a, T>,
    mix: Rows<'a, T>,
    b: Rows<'a, T>,
}

#[inline(always)]
fn write_at<T: Real, V: Vector<T>>(y: &mut [T], [x, f, mix, b]: [&[T]; 4], at: usize) {
    let (n, channels) = (b.len(), f.len());
    let branch = V::load(f, at);
    for (i, &b) in b.iter().enumerate() {
        let sum = V::all(b).mul_add(branch, weighted::<T, V>(row(mix, i, n), x, channels, at));
        sum.store(row_mut(y, i, channels), at);
    }
}

impl<T: Real> OverTokens<T, 1> for Write<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [y]: [&mut [T]; 1]) {
        self.x.fetch_ahead(token);
        let operands = [self.x.of(token), self.f.of(token), self.mix.of(token), self.b.of(token)];
        channels!(self.f.width, at => write_at::<T, V>(y, operands, at));
    }
}

/// `A·X + bᵀ ⊗ F`: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → as X.
pub(super) fn write<T: Real>(x: &Tensor, f: &Tensor, mix: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x.shape());
    let numbers = n * channels;
    let (x, f, mix, b) = (x.contiguous()?, f.contiguous()?, mix.contiguous()?, b.contiguous()?);
    let kernel = Write {
        x: sizes.rows::<T>("X", &x, numbers),
        f: sizes.rows("F", &f, channels),
        mix: sizes.rows("A", &mix, n * n),
        b: sizes.rows("b", &b, n),
    };
    Ok(result(x.shape().clone(), |y| for_tokens(tokens, 1, numbers, [(y, numbers)], &kernel)))
}

// ── Their derivatives ───────────────────────────────────────────────────────────────────────────────────────────────

/// ⟨g, x(0)⟩, ⟨g, x(1)⟩, …: four at a time, so that g is read once for them.
#[inline(always)]
fn products<'a, T: Real, V: Vector<T>>(out: &mut [T], g: &[T], x: impl Fn(usize) -> &'a [T]) {
    let mut fours = out.chunks_exact_mut(4);
    let mut j = 0;
    for four in &mut fours {
        four.copy_from_slice(&inner::<T, V, 4>(g, [x(j), x(j + 1), x(j + 2), x(j + 3)]));
        j += 4;
    }
    for (k, one) in fours.into_remainder().iter_mut().enumerate() {
        [*one] = inner::<T, V, 1>(g, [x(j + k)]);
    }
}

#[inline(always)]
fn inner<T: Real, V: Vector<T>, const N: usize>(g: &[T], x: [&[T]; N]) -> [T; N] {
    let mut sums = [[T::ZERO; PLACES]; N];
    let whole = g.len() - g.len() % PLACES;
    // The places of a run, in as many vectors as that takes.
    for place in (0..PLACES).step_by(V::WIDTH) {
        let mut vectors = [V::all(T::ZERO); N];
        for at in (place..whole).step_by(PLACES) {
            let g = V::load(g, at);
            for k in 0..N {
                vectors[k] = g.mul_add(V::load(x[k], at), vectors[k]);
            }
        }
        for k in 0..N {
            vectors[k].store(&mut sums[k], place);
        }
    }
    let mut totals = [T::ZERO; N];
    for k in 0..N {
        for at in whole..g.len() {
            let sum = &mut sums[k][at - whole];
            *sum = g[at].mul_add(x[k][at], *sum);
        }
        totals[k] = total(sums[k]);
    }
    totals
}

/// The sum of all places, by halves.
#[inline(always)]
fn total<T: Real>(mut places: [T; PLACES]) -> T {
    let mut half = PLACES / 2;
    while half > 0 {
        for k in 0..half {
            places[k] = places[k] + places[k + half];
        }
        half /= 2;
    }
    places[0]
}

struct ReadBackward<'a, T> {
    x: Rows<'a, T>,
    h: Rows<'a, T>,
}

impl<T: Real> OverTokens<T, 1> for ReadBackward<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [a]: [&mut [T]; 1]) {
        self.x.fetch_ahead(token);
        let (x, h) = (self.x.of(token), self.h.of(token));
        products::<T, V>(a, h, |j| row(x, j, h.len()));
    }
}

/// `ā = X·H`, with H the cotangent of what was read: X `[.., n, C]`, H `[.., C]` → `[.., n]`.
pub(super) fn read_backward<T: Real>(x: &Tensor, h: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x.shape());
    let (x, h) = (x.contiguous()?, h.contiguous()?);
    let shape = x.shape().without(&[x.shape().len() - 1]);
    let kernel = ReadBackward { x: sizes.rows::<T>("X", &x, n * channels), h: sizes.rows("H", &h, channels) };
    Ok(result(shape, |a| for_tokens(tokens, 1, n * channels, [(a, n)], &kernel)))
}

struct WriteBackward<'a, T> {
    x: Rows<'a, T>,
    f: Rows<'a, T>,
    b: Rows<'a, T>,
    g: Rows<'a, T>,
}

impl<T: Real> OverTokens<T, 3> for WriteBackward<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [df, dmix, db]: [&mut [T]; 3]) {
        self.x.fetch_ahead(token);
        self.g.fetch_ahead(token);
        let (x, f, b, g) = (self.x.of(token), self.f.of(token), self.b.of(token), self.g.of(token));
        let (n, channels) = (b.len(), f.len());
        channels!(channels, at => read_at::<T, V>(df, b, g, at));
        for i in 0..n {
            products::<T, V>(row_mut(dmix, i, n), row(g, i, channels), |j| row(x, j, channels));
        }
        products::<T, V>(db, f, |i| row(g, i, channels));
    }
}

/// `F̄ = b·G`, `Ā = G·Xᵀ` and `b̄ = G·F`, with G the cotangent of what was written: X and G `[.., n, C]`, F `[.., C]`,
/// b `[.., n]` → `[.., C]`, `[.., n, n]`, `[.., n]`.
pub(super) fn write_backward<T: Real>(x: &Tensor, f: &Tensor, b: &Tensor, g: &Tensor) -> Result<Results> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x.shape());
    let numbers = n * channels;
    let (x, f, b, g) = (x.contiguous()?, f.contiguous()?, b.contiguous()?, g.contiguous()?);
    let of_b = x.shape().without(&[x.shape().len() - 1]);
    let of_mix: Shape = of_b.iter().copied().chain([n]).collect();
    let kernel = WriteBackward {
        x: sizes.rows::<T>("X", &x, numbers),
        f: sizes.rows("F", &f, channels),
        b: sizes.rows("b", &b, n),
        g: sizes.rows("G", &g, numbers),
    };
    let [mut df, mut dmix, mut db] =
        [channels, n * n, n].map(|width| HostBuffer::new(tokens * width * size_of::<T>()));
    let results = [(df.as_mut(), channels), (dmix.as_mut(), n * n), (db.as_mut(), n)];
    for_tokens(tokens, 1, 2 * numbers, results, &kernel);
    Ok(smallvec![
        df.into_tensor(f.shape(), T::DTYPE),
        dmix.into_tensor(&of_mix, T::DTYPE),
        db.into_tensor(&of_b, T::DTYPE)
    ])
}

/// What a stream's cotangent has from the write behind it and from the read: `Aᵀ·G + aᵀ ⊗ H`, either of which may be missing.
#[derive(Clone, Copy)]
struct Shares<'a, T> {
    /// G and A.
    written: Option<[Rows<'a, T>; 2]>,
    /// H and a.
    read: Option<[Rows<'a, T>; 2]>,
    n: usize,
    channels: usize,
}

impl<'a, T: Real> Shares<'a, T> {
    /// Operands in this order: G and A if it was written, H and a if it was read.
    fn new(sizes: Sizes, x: &'a [Tensor], Handed { written, read }: Handed) -> Shares<'a, T> {
        let Sizes { n, channels, .. } = sizes;
        let behind = if written { 2 } else { 0 };
        Shares {
            written: written.then(|| [sizes.rows("G", &x[0], n * channels), sizes.rows("A", &x[1], n * n)]),
            read: read.then(|| [sizes.rows("H", &x[behind], channels), sizes.rows("a", &x[behind + 1], n)]),
            n,
            channels,
        }
    }

    /// Their sum in the cotangent of stream i, at some channels.
    #[inline(always)]
    fn at<V: Vector<T>>(&self, token: usize, i: usize, at: usize) -> V {
        let mut sum = V::all(T::ZERO);
        if let Some([g, mix]) = &self.written {
            let (g, mix) = (g.of(token), mix.of(token));
            for j in 0..self.n {
                sum = V::all(mix[j * self.n + i]).mul_add(V::load(row(g, j, self.channels), at), sum);
            }
        }
        if let Some([h, a]) = &self.read {
            // A share of its own, rounded before it is added.
            sum = sum + V::all(a.of(token)[i]) * V::load(h.of(token), at);
        }
        sum
    }
}

fn contiguous(x: &[&Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|x| x.contiguous()).collect()
}

#[inline(always)]
fn shares_at<T: Real, V: Vector<T>>(dx: &mut [T], shares: &Shares<'_, T>, token: usize, at: usize) {
    for i in 0..shares.n {
        shares.at::<V>(token, i, at).store(row_mut(dx, i, shares.channels), at);
    }
}

impl<T: Real> OverTokens<T, 1> for Shares<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [dx]: [&mut [T]; 1]) {
        channels!(self.channels, at => shares_at::<T, V>(dx, self, token, at));
    }
}

/// `Aᵀ·G + aᵀ ⊗ H`: G `[.., n, C]` and A `[.., n, n]` if it was written, H `[.., C]` and a `[.., n]` if it was read
/// → `[.., n, C]`.
pub(super) fn cotangent<T: Real>(x: &[&Tensor], handed: Handed) -> Result<Tensor> {
    assert!(x.len() == handed.operands() && !x.is_empty(), "{handed:?} does not take {} operands", x.len());
    let x = contiguous(x)?;
    let shape: Shape = match handed.written {
        true => x[0].shape().clone(),
        false => {
            let (h, a) = (x[0].shape(), x[1].shape());
            let [n, channels] = [a, h].map(|s| *s.last().expect("a and H have an axis of their own"));
            h[..h.len() - 1].iter().copied().chain([n, channels]).collect()
        }
    };
    let sizes = Sizes::of(&shape);
    let (tokens, numbers) = (sizes.tokens, sizes.numbers());
    let shares = Shares::<T>::new(sizes, &x, handed);
    Ok(result(shape, |dx| for_tokens(tokens, 1, numbers, [(dx, numbers)], &shares)))
}
