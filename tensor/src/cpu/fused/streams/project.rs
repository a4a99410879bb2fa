//! What the coefficients of a connection are computed from, v·φ and the root mean square of v, and its derivative together
//! with the other shares in the state's cotangent.
//!
//! φ is read by whole vectors of v: it is packed in panels of [`PLACES`] of its rows, in which one column follows another, so
//! that what goes with a vector of v lies together. So do the sums for φ̄.

use smallvec::smallvec;

use super::super::super::fold::sum_of_squares;
use super::super::{Real, row_major};
use super::{OverTokens, PLACES, Rows, Shares, Sizes, contiguous, for_tokens, result, row_mut, total};
use crate::cpu::simd::widest;
use crate::cpu::vector::{Vector, prefetch};
use crate::primitive::Handed;
use crate::{HostBuffer, Result, Results, Shape, Tensor};

/// Tokens that are projected together: φ is read once for them.
const PROJECTED: usize = 4;
/// Columns of φ that they are multiplied by at once: twelve sums, which keep two units busy and fit sixteen registers.
const COLUMNS: usize = 3;
/// Tokens whose cotangents are computed together.
const TOGETHER: usize = 8;
/// Tokens whose share in φ̄ is summed before it is added to that of others.
const BLOCK: usize = 128;

/// φ₁, φ₂, …, side by side, m columns in all, in panels.
struct Panels<'a, T> {
    all: &'a [T],
    m: usize,
}

impl<T: Real> Panels<'_, T> {
    /// The numbers in the panels of φ `[rows, m]`.
    fn size(rows: usize, m: usize) -> usize {
        rows.next_multiple_of(PLACES) * m
    }

    /// Where a row of a column stands.
    #[inline(always)]
    fn place(m: usize, row: usize, column: usize) -> usize {
        (row / PLACES * m + column) * PLACES + row % PLACES
    }

    /// A column's numbers from a row on, and [`PLACES`] farther those of the next column; nothing if there is no column.
    #[inline(always)]
    fn from(&self, row: usize, column: usize) -> &[T] {
        self.all.get(Self::place(self.m, row, column)..).unwrap_or_default()
    }

    /// Packs them. What a panel has beyond the last row is 0.
    fn pack(rows: usize, phi: &[&Tensor], m: usize) -> Result<HostBuffer> {
        let mut packed = HostBuffer::new(Self::size(rows, m) * size_of::<T>());
        let all = packed.as_mut::<T>();
        all.fill(T::ZERO);
        let mut from = 0;
        for phi in phi {
            let &[found, width] = &phi.shape()[..] else {
                panic!("streams: φ must be [{rows}, m], found {}", phi.shape())
            };
            assert!(found == rows, "streams: φ must be [{rows}, m], found {}", phi.shape());
            let phi = phi.contiguous()?;
            for (k, row) in row_major::<T>(&phi).chunks_exact(width.max(1)).enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    all[Self::place(m, k, from + j)] = value;
                }
            }
            from += width;
        }
        Ok(packed)
    }

    /// Some columns, from number `from` on, as a matrix.
    fn unpack(&self, rows: usize, from: usize, width: usize) -> Tensor {
        result(Shape::from([rows, width]), |phi: &mut [T]| {
            for (k, row) in phi.chunks_exact_mut(width.max(1)).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = self.all[Self::place(self.m, k, from + j)];
                }
            }
        })
    }
}

/// Σmᵢ of φᵢ `[nC, mᵢ]`.
fn columns_of(phi: &[&Tensor]) -> usize {
    phi.iter().map(|phi| phi.shape().last().copied().unwrap_or(0)).sum()
}

struct Project<'a, T> {
    x: Rows<'a, T>,
    phi: Panels<'a, T>,
    eps: f64,
}

impl<T: Real> Project<'_, T> {
    /// R tokens.
    #[inline(always)]
    fn tokens<V: Vector<T>, const R: usize>(&self, first: usize, y: &mut [T]) {
        let (numbers, m) = (self.x.width, self.phi.m);
        let mut v = [self.x.of(first); R];
        for r in 0..R {
            v[r] = self.x.of(first + r);
            let mean = sum_of_squares(v[r]) / numbers as f64;
            y[r * (m + 1) + m] = T::of((mean + self.eps).sqrt());
        }
        let mut j = 0;
        while j + COLUMNS <= m {
            self.columns::<V, R, COLUMNS>(v, j, y);
            j += COLUMNS;
        }
        while j < m {
            self.columns::<V, R, 1>(v, j, y);
            j += 1;
        }
    }

    /// Their products with N columns of φ, from column j on.
    #[inline(always)]
    fn columns<V: Vector<T>, const R: usize, const N: usize>(&self, v: [&[T]; R], j: usize, y: &mut [T]) {
        let (numbers, m) = (self.x.width, self.phi.m);
        let mut sums = [[[T::ZERO; PLACES]; N]; R];
        let whole = numbers - numbers % PLACES;
        for place in (0..PLACES).step_by(V::WIDTH) {
            let mut vectors = [[V::all(T::ZERO); N]; R];
            for at in (place..whole).step_by(PLACES) {
                let panel = self.phi.from(at, j);
                let mut phi = [V::all(T::ZERO); N];
                for c in 0..N {
                    phi[c] = V::load(panel, c * PLACES);
                }
                for r in 0..R {
                    let v = V::load(v[r], at);
                    for c in 0..N {
                        vectors[r][c] = v.mul_add(phi[c], vectors[r][c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..N {
                    vectors[r][c].store(&mut sums[r][c], place);
                }
            }
        }
        for r in 0..R {
            let root = y[r * (m + 1) + m];
            for c in 0..N {
                let sums = &mut sums[r][c];
                for at in whole..numbers {
                    let phi = self.phi.all[Panels::<T>::place(m, at, j + c)];
                    sums[at - whole] = v[r][at].mul_add(phi, sums[at - whole]);
                }
                y[r * (m + 1) + j + c] = total(*sums) / root;
            }
        }
    }
}

impl<T: Real> OverTokens<T, 1> for Project<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, first: usize, count: usize, [y]: [&mut [T]; 1]) {
        if count == PROJECTED {
            return self.tokens::<V, PROJECTED>(first, y);
        }
        for r in 0..count {
            self.tokens::<V, 1>(first + r, row_mut(y, r, self.phi.m + 1));
        }
    }
}

/// v·φ and r of each token, side by side: `(v·φ₁ … v·φₖ)/r, r` with r = √(mean(v²) + ε). X `[.., n, C]`, φ `[nC, mᵢ]`
/// → `[.., Σmᵢ + 1]`.
pub(in super::super) fn project<T: Real>(x: &Tensor, phi: &[&Tensor], eps: f64) -> Result<Tensor> {
    let sizes = Sizes::of(x.shape());
    let (tokens, numbers, m) = (sizes.tokens, sizes.numbers(), columns_of(phi));
    let x = x.contiguous()?;
    let mut packed = Panels::<T>::pack(numbers, phi, m)?;
    let lead = &x.shape()[..x.shape().len() - 2];
    let shape: Shape = lead.iter().copied().chain([m + 1]).collect();
    let phi = Panels { all: packed.as_mut(), m };
    let kernel = Project { x: sizes.rows::<T>("X", &x, numbers), phi, eps };
    Ok(result(shape, |y| for_tokens(tokens, PROJECTED, numbers, [(y, PROJECTED * (m + 1))], &kernel)))
}

/// A number of each token for each of m columns, in groups of [`TOGETHER`] tokens: those of a column follow each other.
#[derive(Clone, Copy)]
struct Grouped<'a, T> {
    all: &'a [T],
    m: usize,
}

impl<'a, T> Grouped<'a, T> {
    #[inline(always)]
    fn place(m: usize, token: usize, column: usize) -> usize {
        (token / TOGETHER * m + column) * TOGETHER + token % TOGETHER
    }

    /// Those of R tokens of one group.
    #[inline(always)]
    fn of<const R: usize>(&self, first: usize, column: usize) -> &'a [T] {
        &self.all[Self::place(self.m, first, column)..][..R]
    }
}

struct ProjectBackward<'a, T> {
    v: Rows<'a, T>,
    phi: Panels<'a, T>,
    q: Grouped<'a, T>,
    /// Of v, for each token.
    scale: &'a [T],
    shares: Shares<'a, T>,
}

impl<T: Real> ProjectBackward<'_, T> {
    /// R tokens of a group: what they have in X̄, and what they add to φ̄.
    #[inline(always)]
    fn tokens<V: Vector<T>, const R: usize>(&self, first: usize, dx: &mut [T], dphi: &mut [T]) {
        let (numbers, channels) = (self.v.width, self.shares.channels);
        channels!(numbers, at => product_at::<T, V, R>(dx, self, first, at));
        for r in 0..R {
            let dx = row_mut(dx, r, numbers);
            channels!(channels, at => streams_at::<T, V>(dx, self, first + r, at));
        }
        channels!(numbers, at => outer_at::<T, V, R>(dphi, self, first, at));
    }
}

/// φ·q of R tokens, at some numbers of v.
#[inline(always)]
fn product_at<T: Real, V: Vector<T>, const R: usize>(
    dx: &mut [T],
    of: &ProjectBackward<'_, T>,
    first: usize,
    at: usize,
) {
    let m = of.phi.m;
    let panel = of.phi.from(at, 0);
    // What is read next lies in rows of a page or less, too short for the processor to see where they lead.
    for r in 0..R {
        prefetch::<2, _>(of.v.of(first + r), at);
        if let Some([g, _]) = &of.shares.written {
            prefetch::<2, _>(g.of(first + r), at);
        }
    }
    let mut sums = [V::all(T::ZERO); R];
    for j in 0..m {
        let (phi, q) = (V::load(panel, j * PLACES), of.q.of::<R>(first, j));
        for r in 0..R {
            sums[r] = V::all(q[r]).mul_add(phi, sums[r]);
        }
    }
    for r in 0..R {
        sums[r].store(row_mut(dx, r, of.v.width), at);
    }
}

/// X̄ of one token, which holds φ·q so far, at some channels of each stream.
#[inline(always)]
fn streams_at<T: Real, V: Vector<T>>(dx: &mut [T], of: &ProjectBackward<'_, T>, token: usize, at: usize) {
    let (v, scale) = (of.v.of(token), V::all(of.scale[token]));
    for i in 0..of.shares.n {
        let at_v = i * of.shares.channels + at;
        let own = scale.mul_add(V::load(v, at_v), V::load(dx, at_v));
        (of.shares.at::<V>(token, i, at) + own).store(dx, at_v);
    }
}

/// Adds q ⊗ v of R tokens to φ̄, at some numbers of v.
#[inline(always)]
fn outer_at<T: Real, V: Vector<T>, const R: usize>(
    dphi: &mut [T],
    of: &ProjectBackward<'_, T>,
    first: usize,
    at: usize,
) {
    let m = of.phi.m;
    let panel = dphi.get_mut(Panels::<T>::place(m, at, 0)..).unwrap_or_default();
    let mut v = [V::all(T::ZERO); R];
    for r in 0..R {
        v[r] = V::load(of.v.of(first + r), at);
    }
    for j in 0..m {
        let q = of.q.of::<R>(first, j);
        let mut sum = V::load(panel, j * PLACES);
        for r in 0..R {
            sum = V::all(q[r]).mul_add(v[r], sum);
        }
        sum.store(panel, j * PLACES);
    }
}

impl<T: Real> OverTokens<T, 2> for ProjectBackward<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(&self, begin: usize, count: usize, [dx, dphi]: [&mut [T]; 2]) {
        dphi.fill(T::ZERO);
        let mut done = 0;
        while done < count {
            let dx = &mut dx[done * self.v.width..];
            if done + TOGETHER <= count {
                self.tokens::<V, TOGETHER>(begin + done, dx, dphi);
                done += TOGETHER;
            } else {
                self.tokens::<V, 1>(begin + done, dx, dphi);
                done += 1;
            }
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
/// Operands: X, φ₁ … φₖ, y, ȳ, and what [`cotangent`](super::cotangent) takes. Results: X̄, φ̄₁ … φ̄ₖ. The shares in X̄ are
/// added in the order in which they arrive if each is computed by itself, with the same bits: the write's, the read's, its own.
pub(in super::super) fn project_backward<T: Real>(x: &[&Tensor], handed: Handed) -> Result<Results> {
    let (own, others) = x.split_at(x.len().saturating_sub(handed.operands()));
    let [x, phi @ .., y, dy] = own else {
        panic!("project_backward needs X, φ, y and ȳ, found {}", x.len())
    };
    let sizes = Sizes::of(x.shape());
    let (tokens, numbers, m, others) = (sizes.tokens, sizes.numbers(), columns_of(phi), contiguous(others)?);
    let (x, y, dy) = (x.contiguous()?, y.contiguous()?, dy.contiguous()?);
    let v = sizes.rows::<T>("X", &x, numbers);
    let (y, dy) = (sizes.rows::<T>("y", &y, m + 1), sizes.rows::<T>("ȳ", &dy, m + 1));

    let scratch = |size: usize| HostBuffer::new(size * size_of::<T>());
    let (mut q, mut scale) = (scratch(tokens.next_multiple_of(TOGETHER) * m), scratch(tokens));
    let (q, scale) = (q.as_mut::<T>(), scale.as_mut::<T>());
    for token in 0..tokens {
        let (y, dy) = (y.of(token), dy.of(token));
        let r = y[m];
        let mut along = T::ZERO;
        for j in 0..m {
            q[Grouped::<T>::place(m, token, j)] = dy[j] / r;
            along = along + dy[j] * y[j];
        }
        scale[token] = (dy[m] - along / r) / (T::of(numbers as f64) * r);
    }

    let mut packed = Panels::<T>::pack(numbers, phi, m)?;
    let kernel = ProjectBackward {
        v,
        phi: Panels { all: packed.as_mut(), m },
        q: Grouped { all: q, m },
        scale,
        shares: Shares::new(sizes, &others, handed),
    };
    let size = Panels::<T>::size(numbers, m);
    let mut parts = scratch(tokens.div_ceil(BLOCK) * size);
    let parts = parts.as_mut::<T>();
    let mut results: Results = smallvec![result(x.shape().clone(), |dx| {
        for_tokens(tokens, BLOCK, 3 * numbers, [(dx, BLOCK * numbers), (&mut parts[..], size)], &kernel)
    })];

    let mut dphi = scratch(size);
    let dphi = dphi.as_mut::<T>();
    dphi.fill(T::ZERO);
    for part in parts.chunks_exact(size.max(1)) {
        widest(
            #[inline(always)]
            || (0..size).for_each(|i| dphi[i] = dphi[i] + part[i]),
        );
    }
    let (dphi, mut from) = (Panels { all: dphi, m }, 0);
    for phi in phi {
        let width = columns_of(&[phi]);
        results.push(dphi.unpack(numbers, from, width));
        from += width;
    }
    Ok(results)
}
