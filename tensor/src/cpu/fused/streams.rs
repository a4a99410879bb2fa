//! Connections between the n streams of a state X `[.., n, C]`: what coefficients are computed from, reading, writing, and
//! their derivatives. A token is a position of the leading axes; v = vec(X) are its nC numbers.
//!
//! Every kernel goes over the tokens once, and over the channels of one in runs of [`WIDTH`], so that what one token takes
//! (16 KiB for n = 4, C = 1024) is in the cache while it is used again. Sums over channels have one place in a run each,
//! and the places are added in a fixed order at the end; sums over tokens are those of blocks, added in order. Both are the
//! same for any number of threads and any vector width.

use smallvec::smallvec;

use super::{PARALLEL_ELEMENTS, Real, row_major, sum};
use crate::cpu::simd::widest;
use crate::cpu::threads;
use crate::primitive::Handed;
use crate::{HostBuffer, Result, Results, Shape, Tensor};

/// Channels that are computed together.
const WIDTH: usize = 16;
/// Tokens whose share in φ̄ is summed before it is added to that of others.
const BLOCK: usize = 128;
/// Rows of a matrix product that are computed together.
const TOGETHER: usize = 8;

type Run<T> = [T; WIDTH];

/// The channels from `at` on; beyond the last, zeros.
#[inline(always)]
fn load<T: Real>(row: &[T], at: usize) -> Run<T> {
    let mut run = [T::ZERO; WIDTH];
    match row.get(at..at + WIDTH) {
        Some(whole) => run.copy_from_slice(whole),
        None => run[..row.len() - at].copy_from_slice(&row[at..]),
    }
    run
}

#[inline(always)]
fn store<T: Real>(row: &mut [T], at: usize, run: &Run<T>) {
    match row.get_mut(at..at + WIDTH) {
        Some(whole) => whole.copy_from_slice(run),
        None => {
            let left = row.len() - at;
            row[at..].copy_from_slice(&run[..left]);
        }
    }
}

/// sum + by·x.
#[inline(always)]
fn add<T: Real>(sum: &mut Run<T>, by: T, x: &Run<T>) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum = *sum + by * x;
    }
}

/// The sum of a run, by halves.
#[inline(always)]
fn total<T: Real>(mut run: Run<T>) -> T {
    let mut half = WIDTH / 2;
    while half > 0 {
        for k in 0..half {
            run[k] = run[k] + run[k + half];
        }
        half /= 2;
    }
    run[0]
}

/// R×P runs of a matrix product: row r of the first factor holds `a(r, s)`, row s of the second the runs `b(s, p)`. Each
/// element is the sum over s in order, whatever R and P are.
#[inline(always)]
fn tile<T: Real, const R: usize, const P: usize>(
    inner: usize,
    a: impl Fn(usize, usize) -> T,
    b: impl Fn(usize, usize) -> Run<T>,
) -> [[Run<T>; P]; R] {
    let mut sums = [[[T::ZERO; WIDTH]; P]; R];
    for s in 0..inner {
        let mut runs = [[T::ZERO; WIDTH]; P];
        for (p, run) in runs.iter_mut().enumerate() {
            *run = b(s, p);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let by = a(r, s);
            for (sum, run) in sums.iter_mut().zip(&runs) {
                add(sum, by, run);
            }
        }
    }
    sums
}

/// The sizes of a state, and the rows of its tensors by token.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    n: usize,
    channels: usize,
}

impl Sizes {
    /// Of X `[.., n, C]`.
    fn of(x: &Tensor) -> Sizes {
        let [lead @ .., n, channels] = &x.shape()[..] else {
            panic!("streams: expected [.., n, C], found {}", x.shape())
        };
        Sizes { tokens: lead.iter().product(), n: *n, channels: *channels }
    }

    /// Numbers of a token.
    fn numbers(self) -> usize {
        self.n * self.channels
    }

    /// The `width` elements that a tensor has of each token, made contiguous in `copy`.
    fn rows<'a, T: Real>(self, what: &str, copy: &'a Tensor, width: usize) -> Rows<'a, T> {
        let found = copy.elements();
        assert!(
            found == self.tokens * width,
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
        &self.all[token * self.width..][..self.width]
    }
}

/// Stream j of the streams of a token.
#[inline(always)]
fn stream<T>(streams: &[T], j: usize, channels: usize) -> &[T] {
    &streams[j * channels..][..channels]
}

/// Calls `f` with groups of `together` tokens (the last may be smaller): the first of them, their number, and what the
/// results hold of them, `width` elements each. `work` is the number of elements handled per token. `f` and what it calls
/// must be marked `#[inline(always)]` (see [`widest`]).
fn for_tokens<T: Real, const K: usize>(
    tokens: usize,
    together: usize,
    work: usize,
    results: [(&mut [T], usize); K],
    f: impl Fn(usize, usize, [&mut [T]; K]) + Sync,
) {
    let least = (PARALLEL_ELEMENTS / 2).div_ceil(work.max(1)).next_multiple_of(together);
    split(0, tokens, [together, least], results, &f);
}

/// [`for_tokens`] for `tokens` of them, halved until there are fewer than twice the least that are worth a thread.
fn split<T: Real, const K: usize>(
    first: usize,
    tokens: usize,
    [together, least]: [usize; 2],
    results: [(&mut [T], usize); K],
    f: &(impl Fn(usize, usize, [&mut [T]; K]) + Sync),
) {
    if tokens < 2 * least {
        return widest(
            #[inline(always)]
            || {
                let mut rest = results;
                let mut done = 0;
                while done < tokens {
                    let count = together.min(tokens - done);
                    let group = std::array::from_fn(|k| {
                        let (result, width) = &mut rest[k];
                        let (group, others) = std::mem::take(result).split_at_mut(count * *width);
                        *result = others;
                        group
                    });
                    f(first + done, count, group);
                    done += count;
                }
            },
        );
    }
    let half = (tokens / 2).next_multiple_of(together);
    let mut behind = Vec::with_capacity(K);
    let before = results.map(|(result, width)| {
        let (before, after) = result.split_at_mut(half * width);
        behind.push((after, width));
        (before, width)
    });
    let behind: [(&mut [T], usize); K] = behind.try_into().unwrap_or_else(|_| unreachable!("one of each"));
    threads::join(
        || split(first, half, [together, least], before, f),
        || split(first + half, tokens - half, [together, least], behind, f),
    );
}

fn result<T: Real>(shape: Shape, fill: impl FnOnce(&mut [T])) -> Tensor {
    let mut out = HostBuffer::new(shape.elements() * size_of::<T>());
    fill(out.as_mut());
    out.into_tensor(&shape, T::DTYPE)
}

// ── Reading and writing ─────────────────────────────────────────────────────────────────────────────────────────────

/// Σⱼ aⱼ·(stream j), for a run of channels.
#[inline(always)]
fn weighted<T: Real>(a: &[T], streams: &[T], channels: usize, at: usize) -> Run<T> {
    let mut sum = [T::ZERO; WIDTH];
    for (j, &a) in a.iter().enumerate() {
        add(&mut sum, a, &load(stream(streams, j, channels), at));
    }
    sum
}

/// `a·X`: X `[.., n, C]`, a `[.., n]` → `[.., C]`.
pub(super) fn read<T: Real>(x: &Tensor, a: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x);
    let (x, a) = (x.contiguous()?, a.contiguous()?);
    let shape = x.shape().without(&[x.shape().len() - 2]);
    let (x, a) = (sizes.rows::<T>("X", &x, n * channels), sizes.rows::<T>("a", &a, n));
    Ok(result(shape, |y| {
        for_tokens(
            tokens,
            1,
            n * channels,
            [(y, channels)],
            #[inline(always)]
            |token, _, [y]| {
                for at in (0..channels).step_by(WIDTH) {
                    store(y, at, &weighted(a.of(token), x.of(token), channels, at));
                }
            },
        );
    }))
}

#[inline(always)]
fn stream_mut<T>(streams: &mut [T], j: usize, channels: usize) -> &mut [T] {
    &mut streams[j * channels..][..channels]
}

/// `A·X + bᵀ ⊗ F`: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → as X.
pub(super) fn write<T: Real>(x: &Tensor, f: &Tensor, mix: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x);
    let (x, f, mix, b) = (x.contiguous()?, f.contiguous()?, mix.contiguous()?, b.contiguous()?);
    let shape = x.shape().clone();
    let (x, f) = (sizes.rows::<T>("X", &x, n * channels), sizes.rows::<T>("F", &f, channels));
    let (mix, b) = (sizes.rows::<T>("A", &mix, n * n), sizes.rows::<T>("b", &b, n));
    Ok(result(shape, |y| {
        for_tokens(
            tokens,
            1,
            n * channels,
            [(y, n * channels)],
            #[inline(always)]
            |token, _, [y]| {
                let (x, f, mix, b) = (x.of(token), f.of(token), mix.of(token), b.of(token));
                for at in (0..channels).step_by(WIDTH) {
                    let branch = load(f, at);
                    for i in 0..n {
                        let mut sum = weighted(&mix[i * n..][..n], x, channels, at);
                        add(&mut sum, b[i], &branch);
                        store(stream_mut(y, i, channels), at, &sum);
                    }
                }
            },
        );
    }))
}

// ── Their derivatives ───────────────────────────────────────────────────────────────────────────────────────────────

/// ⟨g, x(0)⟩, ⟨g, x(1)⟩, …: four at a time, so that g is read once for them.
#[inline(always)]
fn products<'a, T: Real>(out: &mut [T], g: &[T], x: impl Fn(usize) -> &'a [T]) {
    let mut fours = out.chunks_exact_mut(4);
    let mut j = 0;
    for four in &mut fours {
        four.copy_from_slice(&inner::<T, 4>(g, [x(j), x(j + 1), x(j + 2), x(j + 3)]));
        j += 4;
    }
    for (k, one) in fours.into_remainder().iter_mut().enumerate() {
        [*one] = inner(g, [x(j + k)]);
    }
}

#[inline(always)]
fn inner<T: Real, const N: usize>(g: &[T], x: [&[T]; N]) -> [T; N] {
    let mut sums = [[T::ZERO; WIDTH]; N];
    for at in (0..g.len()).step_by(WIDTH) {
        let g = load(g, at);
        for (sum, x) in sums.iter_mut().zip(x) {
            let x = load(x, at);
            for (sum, (&g, &x)) in sum.iter_mut().zip(g.iter().zip(&x)) {
                *sum = *sum + g * x;
            }
        }
    }
    sums.map(total)
}

/// `ā = X·H`, with H the cotangent of what was read: X `[.., n, C]`, H `[.., C]` → `[.., n]`.
pub(super) fn read_backward<T: Real>(x: &Tensor, h: &Tensor) -> Result<Tensor> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x);
    let (x, h) = (x.contiguous()?, h.contiguous()?);
    let shape = x.shape().without(&[x.shape().len() - 1]);
    let (x, h) = (sizes.rows::<T>("X", &x, n * channels), sizes.rows::<T>("H", &h, channels));
    Ok(result(shape, |a| {
        for_tokens(
            tokens,
            1,
            n * channels,
            [(a, n)],
            #[inline(always)]
            |token, _, [a]| products(a, h.of(token), |j| stream(x.of(token), j, channels)),
        );
    }))
}

/// `F̄ = b·G`, `Ā = G·Xᵀ` and `b̄ = G·F`, with G the cotangent of what was written: X and G `[.., n, C]`, F `[.., C]`,
/// b `[.., n]` → `[.., C]`, `[.., n, n]`, `[.., n]`.
pub(super) fn write_backward<T: Real>(x: &Tensor, f: &Tensor, b: &Tensor, g: &Tensor) -> Result<Results> {
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x);
    let (x, f, b, g) = (x.contiguous()?, f.contiguous()?, b.contiguous()?, g.contiguous()?);
    let (of_f, of_b) = (f.shape().clone(), x.shape().without(&[x.shape().len() - 1]));
    let of_mix: Shape = of_b.iter().copied().chain([n]).collect();
    let (x, g) = (sizes.rows::<T>("X", &x, n * channels), sizes.rows::<T>("G", &g, n * channels));
    let (f, b) = (sizes.rows::<T>("F", &f, channels), sizes.rows::<T>("b", &b, n));
    let [mut df, mut dmix, mut db] =
        [channels, n * n, n].map(|width| HostBuffer::new(tokens * width * size_of::<T>()));
    for_tokens(
        tokens,
        1,
        2 * n * channels,
        [(df.as_mut(), channels), (dmix.as_mut(), n * n), (db.as_mut(), n)],
        #[inline(always)]
        |token, _, [df, dmix, db]| {
            let (x, f, b, g) = (x.of(token), f.of(token), b.of(token), g.of(token));
            for at in (0..channels).step_by(WIDTH) {
                store(df, at, &weighted(b, g, channels, at));
            }
            for (i, row) in dmix.chunks_exact_mut(n).enumerate() {
                products(row, stream(g, i, channels), |j| stream(x, j, channels));
            }
            products(db, f, |i| stream(g, i, channels));
        },
    );
    Ok(smallvec![
        df.into_tensor(&of_f, T::DTYPE),
        dmix.into_tensor(&of_mix, T::DTYPE),
        db.into_tensor(&of_b, T::DTYPE)
    ])
}

/// What a stream's cotangent has from the write behind it and from the read: `Aᵀ·G + aᵀ ⊗ H`, either of which may be missing.
#[derive(Clone, Copy)]
struct Shares<'a, T> {
    written: Option<[Rows<'a, T>; 2]>,
    read: Option<[Rows<'a, T>; 2]>,
}

impl<'a, T: Real> Shares<'a, T> {
    /// Operands in this order: G and A if it was written, H and a if it was read.
    fn new(sizes: Sizes, x: &'a [Tensor], Handed { written, read }: Handed) -> Shares<'a, T> {
        let Sizes { n, channels, .. } = sizes;
        let behind = if written { 2 } else { 0 };
        Shares {
            written: written.then(|| [sizes.rows("G", &x[0], n * channels), sizes.rows("A", &x[1], n * n)]),
            read: read.then(|| [sizes.rows("H", &x[behind], channels), sizes.rows("a", &x[behind + 1], n)]),
        }
    }

    /// Adds its share to a run of the cotangent of stream i.
    #[inline(always)]
    fn add_to(&self, sum: &mut Run<T>, token: usize, i: usize, at: usize, sizes: Sizes) {
        let Sizes { n, channels, .. } = sizes;
        if let Some([g, mix]) = &self.written {
            let (g, mix) = (g.of(token), mix.of(token));
            for j in 0..n {
                add(sum, mix[j * n + i], &load(stream(g, j, channels), at));
            }
        }
        if let Some([h, a]) = &self.read {
            add(sum, a.of(token)[i], &load(h.of(token), at));
        }
    }
}

fn contiguous(x: &[&Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|x| x.contiguous()).collect()
}

/// `Aᵀ·G + aᵀ ⊗ H`: G `[.., n, C]` and A `[.., n, n]` if it was written, H `[.., C]` and a `[.., n]` if it was read
/// → `[.., n, C]`.
pub(super) fn cotangent<T: Real>(x: &[&Tensor], handed: Handed) -> Result<Tensor> {
    assert!(x.len() == handed.operands() && !x.is_empty(), "{handed:?} does not take {} operands", x.len());
    let x = contiguous(x)?;
    let shape = match handed.written {
        true => x[0].shape().clone(),
        false => {
            let (h, a) = (x[0].shape(), x[1].shape());
            let [n, channels] = [a, h].map(|s| *s.last().expect("a and H have an axis of their own"));
            h[..h.len() - 1].iter().copied().chain([n, channels]).collect()
        }
    };
    let [lead @ .., n, channels] = &shape[..] else { panic!("streams: expected [.., n, C], found {shape}") };
    let sizes @ Sizes { tokens, n, channels } =
        Sizes { tokens: lead.iter().product(), n: *n, channels: *channels };
    let shares = Shares::<T>::new(sizes, &x, handed);
    Ok(result(shape.clone(), |dx| {
        for_tokens(
            tokens,
            1,
            n * channels,
            [(dx, n * channels)],
            #[inline(always)]
            |token, _, [dx]| {
                for at in (0..channels).step_by(WIDTH) {
                    for i in 0..n {
                        let mut sum = [T::ZERO; WIDTH];
                        shares.add_to(&mut sum, token, i, at, sizes);
                        store(stream_mut(dx, i, channels), at, &sum);
                    }
                }
            },
        );
    }))
}

// ── Projection ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// The columns of φ₁, φ₂, … side by side, `[nC, m]`, or, transposed, their rows one below the other, `[m, nC]`.
struct Phi<T> {
    columns: Vec<usize>,
    packed: Vec<T>,
}

impl<T: Real> Phi<T> {
    /// Element `[k, j]` goes to `place(k, j)` of `size`; what is left is 0.
    fn pack(
        numbers: usize,
        phi: &[&Tensor],
        size: usize,
        place: impl Fn(usize, usize) -> usize,
    ) -> Result<Phi<T>> {
        let columns: Vec<usize> = phi
            .iter()
            .map(|phi| match phi.shape()[..] {
                [rows, columns] if rows == numbers => columns,
                _ => panic!("streams: φ must be [{numbers}, m], found {}", phi.shape()),
            })
            .collect();
        let mut packed = vec![T::ZERO; size];
        let mut from = 0;
        for (phi, &width) in phi.iter().zip(&columns) {
            let phi = phi.contiguous()?;
            for (k, row) in row_major::<T>(&phi).chunks_exact(width.max(1)).enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    packed[place(k, from + j)] = value;
                }
            }
            from += width;
        }
        Ok(Phi { columns, packed })
    }
}

/// Σmᵢ of φᵢ `[nC, mᵢ]`.
fn columns_of(phi: &[&Tensor]) -> usize {
    phi.iter().map(|phi| phi.shape().last().copied().unwrap_or(0)).sum()
}

/// v·φ and r of each token, side by side: `(v·φ₁ … v·φₖ)/r, r` with r = √(mean(v²) + ε). X `[.., n, C]`, φ `[nC, mᵢ]`
/// → `[.., Σmᵢ + 1]`.
pub(super) fn project<T: Real>(x: &Tensor, phi: &[&Tensor], eps: f64) -> Result<Tensor> {
    let sizes @ Sizes { tokens, .. } = Sizes::of(x);
    let numbers = sizes.numbers();
    let x = x.contiguous()?;
    let lead = x.shape().len() - 2;
    let m = columns_of(phi);
    // A row of φ takes whole runs.
    let padded = m.next_multiple_of(WIDTH);
    let phi = Phi::<T>::pack(numbers, phi, numbers * padded, |k, j| k * padded + j)?;
    let shape: Shape = x.shape()[..lead].iter().copied().chain([m + 1]).collect();
    let x = sizes.rows::<T>("X", &x, numbers);
    Ok(result(shape, |y| {
        for_tokens(
            tokens,
            TOGETHER,
            numbers,
            [(y, m + 1)],
            #[inline(always)]
            |first, count, [y]| {
                if count == TOGETHER {
                    let v = std::array::from_fn(|r| x.of(first + r));
                    return project_rows::<T, TOGETHER>(y, v, &phi.packed, eps);
                }
                for (r, y) in y.chunks_exact_mut(m + 1).enumerate() {
                    project_rows::<T, 1>(y, [x.of(first + r)], &phi.packed, eps);
                }
            },
        );
    }))
}

/// R tokens of [`project`], from `v` into the rows of `y`.
#[inline(always)]
fn project_rows<T: Real, const R: usize>(y: &mut [T], v: [&[T]; R], phi: &[T], eps: f64) {
    let (numbers, width) = (v[0].len(), y.len() / R);
    let m = width - 1;
    let padded = m.next_multiple_of(WIDTH);
    let root = |v: &[T]| (sum(v, |v| v.wide() * v.wide()) / numbers as f64 + eps).sqrt();
    for r in 0..R {
        y[r * width + m] = T::of(root(v[r]));
    }
    for from in (0..padded).step_by(2 * WIDTH) {
        let mut put = |p: usize, runs: [&Run<T>; R]| {
            let from = from + p * WIDTH;
            for (row, run) in y.chunks_exact_mut(width).zip(runs) {
                let r = row[m];
                let columns = &mut row[from..m.min(from + WIDTH)];
                columns.iter_mut().zip(run).for_each(|(y, &product)| *y = product / r);
            }
        };
        let factor = |r: usize, s: usize| v[r][s];
        let columns = |s: usize, p: usize| load(phi, s * padded + from + p * WIDTH);
        if padded - from == WIDTH {
            let sums = tile::<T, R, 1>(numbers, factor, columns);
            put(0, std::array::from_fn(|r| &sums[r][0]));
        } else {
            let sums = tile::<T, R, 2>(numbers, factor, columns);
            (0..2).for_each(|p| put(p, std::array::from_fn(|r| &sums[r][p])));
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
    let sizes @ Sizes { tokens, n, channels } = Sizes::of(x);
    let (numbers, others) = (sizes.numbers(), contiguous(others)?);
    let shares = Shares::<T>::new(sizes, &others, handed);
    let (x, y, dy) = (x.contiguous()?, y.contiguous()?, dy.contiguous()?);
    let (m, shape) = (columns_of(phi), x.shape().clone());
    let phi = Phi::<T>::pack(numbers, phi, m * numbers, |k, j| j * numbers + k)?;
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

    let dx = result(shape, |dx| {
        for_tokens(
            tokens,
            TOGETHER,
            2 * numbers,
            [(dx, numbers)],
            #[inline(always)]
            |first, count, [dx]| {
                // The run at `at` of stream i of a token, of which φ·q is there.
                let mut finish = |r: usize, i: usize, at: usize, product: &Run<T>| {
                    let (token, mut own, mut sum) = (first + r, *product, [T::ZERO; WIDTH]);
                    add(&mut own, scale[token], &load(stream(v.of(token), i, channels), at));
                    shares.add_to(&mut sum, token, i, at, sizes);
                    sum.iter_mut().zip(own).for_each(|(sum, own)| *sum = *sum + own);
                    store(stream_mut(dx, r * n + i, channels), at, &sum);
                };
                for i in 0..n {
                    for at in (0..channels).step_by(WIDTH) {
                        let row =
                            |s: usize, _: usize| load(stream(&phi.packed[s * numbers..], i, channels), at);
                        if count == TOGETHER {
                            let factor = |r: usize, s: usize| q[(first + r) * m + s];
                            let sums = tile::<T, TOGETHER, 1>(m, factor, row);
                            (0..TOGETHER).for_each(|r| finish(r, i, at, &sums[r][0]));
                        } else {
                            for r in 0..count {
                                let [[sum]] = tile::<T, 1, 1>(m, |_, s| q[(first + r) * m + s], row);
                                finish(r, i, at, &sum);
                            }
                        }
                    }
                }
            },
        );
    });

    let mut results: Results = smallvec![dx];
    let sums = outer_products(&v, &q, m, tokens);
    let mut from = 0;
    for &width in &phi.columns {
        results.push(result(Shape::from([numbers, width]), |dphi| {
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

/// Σ q ⊗ v over tokens: `[m, nC]`.
fn outer_products<T: Real>(v: &Rows<'_, T>, q: &[T], m: usize, tokens: usize) -> Vec<T> {
    let (numbers, size) = (v.width, m * v.width);
    let blocks = tokens.div_ceil(BLOCK);
    let mut parts = vec![T::ZERO; blocks.max(1) * size];
    for_tokens(
        blocks,
        1,
        BLOCK * numbers,
        [(&mut parts[..blocks * size], size)],
        #[inline(always)]
        |block, _, [part]| {
            let begin = block * BLOCK;
            let inner = BLOCK.min(tokens - begin);
            for at in (0..numbers).step_by(WIDTH) {
                let row = |s: usize, _: usize| load(v.of(begin + s), at);
                let mut j = 0;
                while j + TOGETHER <= m {
                    let sums = tile::<T, TOGETHER, 1>(inner, |r, s| q[(begin + s) * m + j + r], row);
                    for (r, [sum]) in sums.iter().enumerate() {
                        store(stream_mut(part, j + r, numbers), at, sum);
                    }
                    j += TOGETHER;
                }
                while j < m {
                    let [[sum]] = tile::<T, 1, 1>(inner, |_, s| q[(begin + s) * m + j], row);
                    store(stream_mut(part, j, numbers), at, &sum);
                    j += 1;
                }
            }
        },
    );
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
