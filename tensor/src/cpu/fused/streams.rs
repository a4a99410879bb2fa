//! Connections between the n streams of a state X `[.., n, C]`: what coefficients are computed from, reading, writing, and
//! their derivatives. A token is a position of the leading axes; v = vec(X) are its nC numbers.
//!
//! Every kernel goes over the tokens once, so that what one of them takes (16 KiB for n = 4, C = 1024) is in the cache while
//! it is used again. Elements are computed by themselves, in vectors of any width. A sum over channels is made of
//! [`PLACES`] sums, of every PLACES-th channel each, which are added in a fixed order at the end; one over tokens of those of
//! blocks, added in order. Both are the same for any number of threads and any vector width.

use smallvec::smallvec;

use super::{PARALLEL_ELEMENTS, Real, row_major, sum};
use crate::cpu::threads;
use crate::cpu::vector::{Kernel, Vector, for_vectors};
use crate::primitive::Handed;
use crate::{HostBuffer, Result, Results, Shape, Tensor};

/// Sums that the products of two rows are dealt out to.
const PLACES: usize = 16;
/// Tokens whose share in φ̄ is summed before it is added to that of others.
const BLOCK: usize = 128;
/// Rows of a matrix product that are computed together.
const TOGETHER: usize = 8;

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

/// Runs a kernel for groups of `together` tokens (the last may be smaller). The results have `width` elements for each token;
/// `work` is the number of elements handled for one.
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
            let (before, after) = result.split_at_mut(half * width);
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
                let (group, others) = std::mem::take(result).split_at_mut(count * *width);
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

/// `f::<V>(.., at)` for the channels in vectors, `f::<T>(.., at)` for those that are left.
macro_rules! channels {
    ($channels:expr, $at:ident => $f:ident::<$t:ident, $v:ident>($($argument:expr),*)) => {
        let whole = $channels - $channels % $v::WIDTH;
        for $at in (0..whole).step_by($v::WIDTH) {
            $f::<$t, $v>($($argument),*);
        }
        for $at in whole..$channels {
            $f::<$t, $t>($($argument),*);
        }
    };
}

/// R×P vectors of a matrix product: row r of the first factor holds `a(r, s)`, row s of the second the vectors `b(s, p)`. Each
/// element is the sum over s in order, whatever R and P are.
#[inline(always)]
fn tile<T: Real, V: Vector<T>, const R: usize, const P: usize>(
    inner: usize,
    a: impl Fn(usize, usize) -> T,
    b: impl Fn(usize, usize) -> V,
) -> [[V; P]; R] {
    let mut sums = [[V::all(T::ZERO); P]; R];
    for s in 0..inner {
        let row: [V; P] = std::array::from_fn(|p| b(s, p));
        for r in 0..R {
            let by = V::all(a(r, s));
            for p in 0..P {
                sums[r][p] = sums[r][p] + by * row[p];
            }
        }
    }
    sums
}

// ── Reading and writing ─────────────────────────────────────────────────────────────────────────────────────────────

/// Σⱼ aⱼ·(stream j), at some channels.
#[inline(always)]
fn weighted<T: Real, V: Vector<T>>(a: &[T], streams: &[T], channels: usize, at: usize) -> V {
    let mut sum = V::all(T::ZERO);
    for (j, &a) in a.iter().enumerate() {
        sum = sum + V::all(a) * V::load(row(streams, j, channels), at);
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
        let sum = weighted::<T, V>(row(mix, i, n), x, channels, at) + V::all(b) * branch;
        sum.store(row_mut(y, i, channels), at);
    }
}

impl<T: Real> OverTokens<T, 1> for Write<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, token: usize, _: usize, [y]: [&mut [T]; 1]) {
        let operands = [&self.x, &self.f, &self.mix, &self.b].map(|rows| rows.of(token));
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
            for (sum, x) in vectors.iter_mut().zip(x) {
                *sum = *sum + g * V::load(x, at);
            }
        }
        for (vector, sums) in vectors.into_iter().zip(&mut sums) {
            vector.store(sums, place);
        }
    }
    for (sums, x) in sums.iter_mut().zip(x) {
        for ((sum, &g), &x) in sums.iter_mut().zip(&g[whole..]).zip(&x[whole..]) {
            *sum = *sum + g * x;
        }
    }
    sums.map(total)
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
        let [x, f, b, g] = [&self.x, &self.f, &self.b, &self.g].map(|rows| rows.of(token));
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
                sum = sum + V::all(mix[j * self.n + i]) * V::load(row(g, j, self.channels), at);
            }
        }
        if let Some([h, a]) = &self.read {
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

// ── Projection ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Σmᵢ of φᵢ `[nC, mᵢ]`.
fn columns_of(phi: &[&Tensor]) -> usize {
    phi.iter().map(|phi| phi.shape().last().copied().unwrap_or(0)).sum()
}

/// φ₁, φ₂, … as one matrix: element `[k, j]`, with j counted through all of them, goes to `place(k, j)` of `size`. What is
/// left is 0.
fn packed<T: Real>(
    numbers: usize,
    phi: &[&Tensor],
    size: usize,
    place: impl Fn(usize, usize) -> usize,
) -> Result<Vec<T>> {
    let mut packed = vec![T::ZERO; size];
    let mut from = 0;
    for phi in phi {
        let &[_, width] = &phi.shape()[..] else {
            panic!("streams: φ must be [{numbers}, m], found {}", phi.shape())
        };
        assert!(phi.shape()[0] == numbers, "streams: φ must be [{numbers}, m], found {}", phi.shape());
        let phi = phi.contiguous()?;
        for (k, row) in row_major::<T>(&phi).chunks_exact(width.max(1)).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                packed[place(k, from + j)] = value;
            }
        }
        from += width;
    }
    Ok(packed)
}

struct Project<'a, T> {
    x: Rows<'a, T>,
    /// `[nC, padded]`.
    phi: &'a [T],
    padded: usize,
    eps: f64,
}

impl<T: Real> Project<'_, T> {
    /// R tokens.
    #[inline(always)]
    fn rows<V: Vector<T>, const R: usize>(&self, first: usize, y: &mut [T]) {
        let (numbers, width, padded) = (self.x.width, y.len() / R, self.padded);
        let m = width - 1;
        let v: [&[T]; R] = std::array::from_fn(|r| self.x.of(first + r));
        for (r, y) in y.chunks_exact_mut(width).enumerate() {
            y[m] = T::of((sum(v[r], |v| v.wide() * v.wide()) / numbers as f64 + self.eps).sqrt());
        }
        let mut from = 0;
        while from < m {
            // Two vectors of columns at a time.
            let mut products = [[T::ZERO; 2 * PLACES]; R];
            let together = (2 * V::WIDTH).min(padded - from);
            let columns = |s: usize, p: usize| V::load(row(self.phi, s, padded), from + p * V::WIDTH);
            if together == 2 * V::WIDTH {
                let sums = tile::<T, V, R, 2>(numbers, |r, s| v[r][s], columns);
                for (products, [one, two]) in products.iter_mut().zip(sums) {
                    one.store(products, 0);
                    two.store(products, V::WIDTH);
                }
            } else {
                let sums = tile::<T, V, R, 1>(numbers, |r, s| v[r][s], columns);
                for (products, [one]) in products.iter_mut().zip(sums) {
                    one.store(products, 0);
                }
            }
            for (y, products) in y.chunks_exact_mut(width).zip(&products) {
                let r = y[m];
                let columns = &mut y[from..m.min(from + together)];
                columns.iter_mut().zip(products).for_each(|(y, &product)| *y = product / r);
            }
            from += together;
        }
    }
}

impl<T: Real> OverTokens<T, 1> for Project<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, first: usize, count: usize, [y]: [&mut [T]; 1]) {
        if count == TOGETHER {
            return self.rows::<V, TOGETHER>(first, y);
        }
        let width = y.len() / count;
        for (r, y) in y.chunks_exact_mut(width).enumerate() {
            self.rows::<V, 1>(first + r, y);
        }
    }
}

/// v·φ and r of each token, side by side: `(v·φ₁ … v·φₖ)/r, r` with r = √(mean(v²) + ε). X `[.., n, C]`, φ `[nC, mᵢ]`
/// → `[.., Σmᵢ + 1]`.
pub(super) fn project<T: Real>(x: &Tensor, phi: &[&Tensor], eps: f64) -> Result<Tensor> {
    let sizes = Sizes::of(x.shape());
    let (tokens, numbers, m) = (sizes.tokens, sizes.numbers(), columns_of(phi));
    let x = x.contiguous()?;
    // A row of φ takes whole vectors, of any width.
    let padded = m.next_multiple_of(PLACES);
    let phi = packed::<T>(numbers, phi, numbers * padded, |k, j| k * padded + j)?;
    let lead = &x.shape()[..x.shape().len() - 2];
    let shape: Shape = lead.iter().copied().chain([m + 1]).collect();
    let kernel = Project { x: sizes.rows::<T>("X", &x, numbers), phi: &phi, padded, eps };
    Ok(result(shape, |y| for_tokens(tokens, TOGETHER, numbers, [(y, m + 1)], &kernel)))
}

struct ProjectBackward<'a, T> {
    v: Rows<'a, T>,
    /// `[m, nC]`.
    phi: &'a [T],
    q: Rows<'a, T>,
    /// Of v, for each token.
    scale: &'a [T],
    shares: Shares<'a, T>,
}

/// R tokens of X̄, in stream i, at some channels.
#[inline(always)]
fn stream_at<T: Real, V: Vector<T>, const R: usize>(
    dx: &mut [T],
    of: &ProjectBackward<'_, T>,
    first: usize,
    i: usize,
    at: usize,
) {
    let (numbers, m, channels) = (of.v.width, of.q.width, of.shares.channels);
    let q: [&[T]; R] = std::array::from_fn(|r| of.q.of(first + r));
    let at_v = i * channels + at;
    let sums = tile::<T, V, R, 1>(m, |r, s| q[r][s], |s, _| V::load(row(of.phi, s, numbers), at_v));
    for (r, [product]) in sums.into_iter().enumerate() {
        let token = first + r;
        let own = product + V::all(of.scale[token]) * V::load(of.v.of(token), at_v);
        (of.shares.at::<V>(token, i, at) + own).store(row_mut(dx, r, numbers), at_v);
    }
}

#[inline(always)]
fn streams_at<T: Real, V: Vector<T>>(
    dx: &mut [T],
    of: &ProjectBackward<'_, T>,
    tokens: [usize; 2],
    i: usize,
    at: usize,
) {
    let [first, count] = tokens;
    if count == TOGETHER {
        return stream_at::<T, V, TOGETHER>(dx, of, first, i, at);
    }
    for r in 0..count {
        stream_at::<T, V, 1>(row_mut(dx, r, of.v.width), of, first + r, i, at);
    }
}

impl<T: Real> OverTokens<T, 1> for ProjectBackward<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, first: usize, count: usize, [dx]: [&mut [T]; 1]) {
        for i in 0..self.shares.n {
            channels!(self.shares.channels, at => streams_at::<T, V>(dx, self, [first, count], i, at));
        }
    }
}

/// What [`project`] hands back, together with the other shares in X̄, in one pass. With y = (p, r) what it gave and
/// ȳ = (p̄, r̄):
///
/// ```text
/// q = p̄/r     X̄ = φ·q + v·(r̄ − ⟨p̄, p⟩/r)/(nC·r) + Aᵀ·G + aᵀ ⊗ H     φ̄ = Σ v ⊗ q over tokens
/// ```
///
/// Operands: X, φ₁ … φₖ, y, ȳ, and what [`cotangent`] takes. Results: X̄, φ̄₁ … φ̄ₖ. The shares in X̄ are added in the order
/// in which they arrive if each is computed by itself, with the same bits: the write's, the read's, its own.
pub(super) fn project_backward<T: Real>(x: &[&Tensor], handed: Handed) -> Result<Results> {
    let (own, others) = x.split_at(x.len().saturating_sub(handed.operands()));
    let [x, phi @ .., y, dy] = own else {
        panic!("project_backward needs X, φ, y and ȳ, found {}", x.len())
    };
    let sizes = Sizes::of(x.shape());
    let (tokens, numbers, m, others) = (sizes.tokens, sizes.numbers(), columns_of(phi), contiguous(others)?);
    let (x, y, dy) = (x.contiguous()?, y.contiguous()?, dy.contiguous()?);
    let widths: Vec<usize> = phi.iter().map(|phi| columns_of(&[phi])).collect();
    let phi = packed::<T>(numbers, phi, m * numbers, |k, j| j * numbers + k)?;
    let v = sizes.rows::<T>("X", &x, numbers);
    let (y, dy) = (sizes.rows::<T>("y", &y, m + 1), sizes.rows::<T>("ȳ", &dy, m + 1));

    let mut q = vec![T::ZERO; tokens * m];
    let mut scale = vec![T::ZERO; tokens];
    for token in 0..tokens {
        let (y, dy) = (y.of(token), dy.of(token));
        let r = y[m];
        let mut along = T::ZERO;
        for j in 0..m {
            q[token * m + j] = dy[j] / r;
            along = along + dy[j] * y[j];
        }
        scale[token] = (dy[m] - along / r) / (T::of(numbers as f64) * r);
    }
    let (q, shares) = (Rows { all: &q[..], width: m }, Shares::new(sizes, &others, handed));
    let kernel = ProjectBackward { v, phi: &phi, q, scale: &scale, shares };
    let dx = |dx: &mut [T]| for_tokens(tokens, TOGETHER, 2 * numbers, [(dx, numbers)], &kernel);
    let mut results: Results = smallvec![result(x.shape().clone(), dx)];

    let sums = outer_products(v, q, tokens);
    let mut from = 0;
    for width in widths {
        results.push(result(Shape::from([numbers, width]), |dphi: &mut [T]| {
            for (k, row) in dphi.chunks_exact_mut(width.max(1)).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = sums[(from + j) * numbers + k];
                }
            }
        }));
        from += width;
    }
    Ok(results)
}

struct OuterProducts<'a, T> {
    v: Rows<'a, T>,
    q: Rows<'a, T>,
    tokens: usize,
}

/// Rows of φ̄ᵀ, of the tokens of a block, at some numbers of v.
#[inline(always)]
fn outer_at<T: Real, V: Vector<T>>(part: &mut [T], of: &OuterProducts<'_, T>, block: usize, at: usize) {
    let (begin, numbers, m) = (block * BLOCK, of.v.width, of.q.width);
    let inner = BLOCK.min(of.tokens - begin);
    let v = |s: usize, _: usize| V::load(of.v.of(begin + s), at);
    let mut j = 0;
    while j + TOGETHER <= m {
        let sums = tile::<T, V, TOGETHER, 1>(inner, |r, s| of.q.of(begin + s)[j + r], v);
        for (r, [sum]) in sums.into_iter().enumerate() {
            sum.store(row_mut(part, j + r, numbers), at);
        }
        j += TOGETHER;
    }
    while j < m {
        let [[sum]] = tile::<T, V, 1, 1>(inner, |_, s| of.q.of(begin + s)[j], v);
        sum.store(row_mut(part, j, numbers), at);
        j += 1;
    }
}

impl<T: Real> OverTokens<T, 1> for OuterProducts<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, block: usize, _: usize, [part]: [&mut [T]; 1]) {
        channels!(self.v.width, at => outer_at::<T, V>(part, self, block, at));
    }
}

/// Σ q ⊗ v over tokens: `[m, nC]`.
fn outer_products<T: Real>(v: Rows<'_, T>, q: Rows<'_, T>, tokens: usize) -> Vec<T> {
    let size = q.width * v.width;
    let blocks = tokens.div_ceil(BLOCK);
    let mut parts = vec![T::ZERO; blocks.max(1) * size];
    let kernel = OuterProducts { v, q, tokens };
    for_tokens(blocks, 1, BLOCK * v.width, [(&mut parts[..blocks * size], size)], &kernel);
    if size > 0 {
        let (sums, others) = parts.split_at_mut(size);
        for part in others.chunks_exact(size) {
            sums.iter_mut().zip(part).for_each(|(sum, &part)| *sum = *sum + part);
        }
    }
    parts.truncate(size);
    parts
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;
    use crate::cpu::fixture::naive;
    use crate::cpu::simd::tests::at_every_level;
    use crate::{DType, Fused};

    /// Leading axes, n and C: whole runs and others, groups of tokens and others, more than one block of tokens.
    const SIZES: [(&[usize], usize, usize); 8] = [
        (&[], 2, 3),
        (&[1], 1, 1),
        (&[3, 3], 4, 16),
        (&[17], 4, 20),
        (&[9], 3, 33),
        (&[300], 2, 5),
        (&[0], 4, 8),
        (&[2], 8, 40),
    ];
    const EPS: f64 = 1e-3;

    fn shape(lead: &[usize], own: &[usize]) -> Shape {
        lead.iter().chain(own).copied().collect()
    }

    /// The operands and results of every word, and what the definitions make of the operands in f64.
    struct Case {
        word: Fused,
        x: Vec<Tensor>,
        expected: Vec<Vec<f64>>,
    }

    /// Σ over `terms`, for each of `count`.
    fn sums(count: usize, terms: usize, term: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..count).map(|i| (0..terms).map(|j| term(i, j)).sum()).collect()
    }

    fn cases(lead: &[usize], n: usize, c: usize, dtype: DType) -> Vec<Case> {
        let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
        let tokens: usize = lead.iter().product();
        let state = |seed| numbers(shape(lead, &[n, c]), dtype, seed);
        let one = |seed| numbers(shape(lead, &[c]), dtype, seed);
        // A view whose rows do not follow each other.
        let coefficient = |seed| numbers(shape(lead, &[2 * n]), wide, seed).slice(lead.len(), 0, 2 * n, 2);
        let (x, g, f, h) = (state(1), state(2), one(3), one(4));
        let (a, b, mix) = (coefficient(5), coefficient(6), numbers(shape(lead, &[n, n]), wide, 7));
        let [xs, gs, fs, hs, of_a, of_b, of_mix] = [&x, &g, &f, &h, &a, &b, &mix].map(naive);
        let channel = |at: usize| (at / c, at % c);

        let read = sums(tokens * c, n, |at, i| {
            let (t, k) = channel(at);
            of_a[t * n + i] * xs[(t * n + i) * c + k]
        });
        let read_backward = sums(tokens * n, c, |at, k| xs[at * c + k] * hs[at / n * c + k]);
        let written = sums(tokens * n * c, n + 1, |at, j| {
            let (row, k) = channel(at);
            let t = row / n;
            if j < n { of_mix[row * n + j] * xs[(t * n + j) * c + k] } else { of_b[row] * fs[t * c + k] }
        });
        let of_f = sums(tokens * c, n, |at, i| {
            let (t, k) = channel(at);
            of_b[t * n + i] * gs[(t * n + i) * c + k]
        });
        let dmix = sums(tokens * n * n, c, |at, k| {
            let (row, j) = (at / n, at % n);
            gs[row * c + k] * xs[(row / n * n + j) * c + k]
        });
        let db = sums(tokens * n, c, |row, k| gs[row * c + k] * fs[row / n * c + k]);
        let handed = |written: bool, read: bool| {
            sums(tokens * n * c, n + 1, |at, j| {
                let (row, k) = channel(at);
                let (t, i) = (row / n, row % n);
                match j < n {
                    true if written => of_mix[(t * n + j) * n + i] * gs[(t * n + j) * c + k],
                    false if read => of_a[row] * hs[t * c + k],
                    _ => 0.0,
                }
            })
        };
        let mut cases = vec![
            Case { word: Fused::StreamRead, x: vec![x.clone(), a.clone()], expected: vec![read] },
            Case {
                word: Fused::StreamReadBackward,
                x: vec![x.clone(), h.clone()],
                expected: vec![read_backward],
            },
            Case {
                word: Fused::StreamWrite,
                x: vec![x.clone(), f.clone(), mix.clone(), b.clone()],
                expected: vec![written],
            },
            Case {
                word: Fused::StreamWriteBackward,
                x: vec![x.clone(), f, b, g.clone()],
                expected: vec![of_f, dmix, db],
            },
        ];
        for (is_written, is_read) in [(true, false), (false, true), (true, true), (false, false)] {
            let which = Handed { written: is_written, read: is_read };
            let mut others = Vec::new();
            others.extend(if is_written { vec![g.clone(), mix.clone()] } else { vec![] });
            others.extend(if is_read { vec![h.clone(), a.clone()] } else { vec![] });
            let shares = handed(is_written, is_read);
            if !others.is_empty() {
                let (x, expected) = (others.clone(), vec![shares.clone()]);
                cases.push(Case { word: Fused::StreamCotangent(which), x, expected });
            }
            cases.extend(projections(&x, lead, [n, c], wide, which, &others, &shares));
        }
        cases
    }

    /// What is projected onto one and three φ, and what flows back.
    fn projections(
        x: &Tensor,
        lead: &[usize],
        [n, c]: [usize; 2],
        wide: DType,
        which: Handed,
        others: &[Tensor],
        shares: &[f64],
    ) -> Vec<Case> {
        let (tokens, k) = (lead.iter().product::<usize>(), n * c);
        let xs = naive(x);
        let mut cases = Vec::new();
        for widths in [&[1usize][..], &[n, n, n * n], &[17, 0, 30]] {
            let m: usize = widths.iter().sum();
            // The second is transposed in memory.
            let phi = |(i, &width): (usize, &usize)| match i {
                1 => numbers([width, k], wide, 20).transpose(0, 1),
                _ => numbers([k, width], wide, 20 + i),
            };
            let phi: Vec<Tensor> = widths.iter().enumerate().map(phi).collect();
            let columns: Vec<Vec<f64>> = phi
                .iter()
                .zip(widths)
                .flat_map(|(phi, &width)| {
                    let phi = naive(phi);
                    (0..width).map(move |j| (0..k).map(|s| phi[s * width + j]).collect())
                })
                .collect();
            let v = |t: usize, s: usize| xs[t * k + s];
            let r: Vec<f64> = sums(tokens, k, |t, s| v(t, s) * v(t, s) / k as f64)
                .iter()
                .map(|m| (m + EPS).sqrt())
                .collect();
            let y: Vec<f64> = (0..tokens * (m + 1))
                .map(|at| match (at / (m + 1), at % (m + 1)) {
                    (t, j) if j == m => r[t],
                    (t, j) => (0..k).map(|s| v(t, s) * columns[j][s]).sum::<f64>() / r[t],
                })
                .collect();
            let operands: Vec<Tensor> = [x.clone()].into_iter().chain(phi.clone()).collect();
            if !which.written && !which.read {
                let (word, x) = (Fused::StreamProject { eps: EPS }, operands.clone());
                cases.push(Case { word, x, expected: vec![y.clone()] });
            }
            let dy = numbers(shape(lead, &[m + 1]), wide, 30);
            let dys = naive(&dy);
            let given = Tensor::from_f64(&y, shape(lead, &[m + 1]), wide);
            let q = |t: usize, j: usize| dys[t * (m + 1) + j] / r[t];
            let along = sums(tokens, m, |t, j| dys[t * (m + 1) + j] * y[t * (m + 1) + j]);
            let dx = (0..tokens * k)
                .map(|at| {
                    let (t, s) = (at / k, at % k);
                    let scale = (dys[t * (m + 1) + m] - along[t] / r[t]) / (k as f64 * r[t]);
                    shares[at] + v(t, s) * scale + (0..m).map(|j| columns[j][s] * q(t, j)).sum::<f64>()
                })
                .collect();
            let mut expected = vec![dx];
            let mut from = 0;
            for &width in widths {
                expected.push(sums(k * width, tokens, |at, t| v(t, at / width) * q(t, from + at % width)));
                from += width;
            }
            let x = operands.into_iter().chain([given, dy]).chain(others.iter().cloned()).collect();
            cases.push(Case { word: Fused::StreamProjectBackward(which), x, expected });
        }
        cases
    }

    #[test]
    fn every_word_is_its_definition() {
        for (lead, n, c) in SIZES {
            for dtype in [DType::F64, DType::F32, DType::BF16] {
                for Case { word, x, expected } in cases(lead, n, c, dtype) {
                    let operands: Vec<&Tensor> = x.iter().collect();
                    let metas: Vec<_> = x.iter().map(Tensor::meta).collect();
                    let results = Tensor::fused_all(word, &operands).unwrap().unwrap();
                    let what = format!("{word:?}, {dtype}, {lead:?}, {n} streams of {c}");
                    assert_eq!(results.len(), expected.len(), "{what}");
                    let promised = word.results(&metas.iter().collect::<Vec<_>>());
                    for ((found, expected), promised) in results.iter().zip(&expected).zip(promised) {
                        assert_eq!(found.meta(), promised, "{what}");
                        // Sums cancel: an error counts against the largest of their kind.
                        let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
                        let tolerance = match found.dtype() {
                            DType::F64 => 1e-13,
                            DType::F32 => 2e-5,
                            _ => 1e-2,
                        };
                        for (i, (found, expected)) in naive(found).iter().zip(expected).enumerate() {
                            let near = (found - expected).abs() <= tolerance * scale;
                            assert!(near, "{what}: element {i} is {found}, expected {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        let bits = |word: Fused, x: &[&Tensor]| -> Vec<Vec<u8>> {
            let results = Tensor::fused_all(word, x).unwrap().unwrap();
            results.iter().map(|y| y.storage().host().unwrap().to_vec()).collect()
        };
        for (lead, n, c) in [(300, 4, 70), (7, 3, 21)] {
            for dtype in [DType::F32, DType::F64] {
                for Case { word, x, .. } in cases(&[lead], n, c, dtype) {
                    let x: Vec<&Tensor> = x.iter().collect();
                    let pooled = |threads: usize| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        pool.install(|| bits(word, &x))
                    };
                    let alone = pooled(1);
                    for threads in [2, 3] {
                        assert!(alone == pooled(threads), "{word:?}: {threads} threads");
                    }
                    // Few enough elements are computed by the thread that asks, which is the one a level is forced for.
                    if lead == 7 {
                        for (level, found) in at_every_level(|| bits(word, &x)) {
                            assert!(alone == found, "{word:?}: {level:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "streams: φ must be [6, m], found [5, 2]")]
    fn a_projection_of_another_size_panics() {
        let (x, phi) = (numbers([4, 2, 3], DType::F32, 1), numbers([5, 2], DType::F32, 2));
        let _ = Tensor::fused(Fused::StreamProject { eps: 0.0 }, &[&x, &phi]);
    }

    #[test]
    #[should_panic(expected = "streams: a has 2 elements for each of 4 tokens, found [4, 3]")]
    fn a_coefficient_of_another_size_panics() {
        let (x, a) = (numbers([4, 2, 3], DType::F32, 1), numbers([4, 3], DType::F32, 2));
        let _ = Tensor::fused(Fused::StreamRead, &[&x, &a]);
    }
}
