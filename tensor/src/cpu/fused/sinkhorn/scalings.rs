//! Sinkhorn–Knopp by scalings u and v of K, and its derivative.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::super::vector::{Vector, WIDEST, transpose};
use super::super::Real;
use super::logarithms::Logarithms;
use super::{End, Several, Wanted};
use crate::DType;

/// Most groups that go step by step together, so that the divisions of one are hidden by the products of another.
const GROUPS: usize = 4;
/// Of so many rows at a time, the scalings of 20 steps stay in the first-level cache.
const ROWS: usize = 16;
/// Most matrices at a time.
const ROOM: usize = GROUPS * WIDEST;

/// The n of n×n matrices, and where lists of n numbers and such matrices are kept.
pub(super) trait Size: Copy {
    type List<V: Copy>: AsRef<[V]> + AsMut<[V]> + Clone;
    type Matrix<V: Copy>: AsRef<[V]> + AsMut<[V]>;
    fn n(self) -> usize;
    /// `count` times `v`.
    fn list<V: Copy>(self, v: V, count: usize) -> Self::List<V>;
    /// The same, of a matrix's elements.
    fn matrix<V: Copy>(self, v: V, count: usize) -> Self::Matrix<V>;
}

/// A size N that is known when loops over rows and columns are compiled: they become straight lines. M is N².
#[derive(Clone, Copy)]
pub(super) struct Known<const N: usize, const M: usize>;

/// Any other.
#[derive(Clone, Copy)]
pub(super) struct Any(pub(super) usize);

impl<const N: usize, const M: usize> Size for Known<N, M> {
    type List<V: Copy> = [V; N];
    type Matrix<V: Copy> = [V; M];
    #[inline(always)]
    fn n(self) -> usize {
        const { assert!(M == N * N, "the number of elements is not the square of the size") }
        N
    }
    fn list<V: Copy>(self, v: V, count: usize) -> [V; N] {
        assert_eq!(count, N);
        [v; N]
    }
    fn matrix<V: Copy>(self, v: V, count: usize) -> [V; M] {
        assert_eq!(count, M);
        [v; M]
    }
}

impl Size for Any {
    type List<V: Copy> = Vec<V>;
    type Matrix<V: Copy> = Vec<V>;
    #[inline(always)]
    fn n(self) -> usize {
        self.0
    }
    fn list<V: Copy>(self, v: V, count: usize) -> Vec<V> {
        vec![v; count]
    }
    fn matrix<V: Copy>(self, v: V, count: usize) -> Vec<V> {
        vec![v; count]
    }
}

/// Matrices in groups that go step by step together.
pub(super) struct Scalings<T, V: Copy, S: Size, const ALONE: bool> {
    size: S,
    groups: Vec<Group<V, S>>,
    /// Whether the scalings of all steps are kept, for a gradient.
    keep: bool,
    /// Which matrices go on.
    running: [bool; ROOM],
    /// Which have left the range in which nothing that matters underflows.
    pub(super) lost: [bool; ROOM],
    /// How many steps each has made.
    steps: [usize; ROOM],
    /// The fewest that one has made that is there, and the most.
    shortest: usize,
    longest: usize,
    numbers: PhantomData<T>,
}

/// As many matrices as a vector has numbers, each in a lane of its own; or, alone, one matrix whose rows are in vectors.
///
/// Either way a matrix is n rows of [`columns`](Scalings::columns) vectors, and a list of n numbers is one such row:
/// number j of matrix l is at `j·LANES + l`. Between rows, a list gives one number for all columns:
/// [`entry`](Scalings::entry).
struct Group<V: Copy, S: Size> {
    k: Both<V, S>,
    /// The logits, the matrix, or what has come together of the gradient, without its factor K.
    d: S::Matrix<V>,
    /// u₀, u₁, … if they are kept, else those of even and of odd steps in turn.
    u: Vec<S::List<V>>,
    /// v₁, v₂, …, in the same way.
    v: Vec<S::List<V>>,
    /// The products with the transpose of K in the last step.
    sums: S::List<V>,
    /// The sums of all uᵢ and 1/uᵢ there have been. They bound them, and a NaN stays in them.
    reach: S::List<V>,
    /// The cotangent of P times K.
    gk: Both<V, S>,
    /// r and v̄ after the last step of each matrix; see [`Scalings::pull`].
    last_r: S::List<V>,
    last_v_bar: S::List<V>,
    r: S::List<V>,
    v_bar: S::List<V>,
    s: S::List<V>,
}

/// A matrix and its transpose, so that products with either go along rows.
struct Both<V: Copy, S: Size> {
    rows: S::Matrix<V>,
    turned: S::Matrix<V>,
}

/// The iteration.
impl<T: Real, V: Vector<T>, S: Size, const ALONE: bool> Scalings<T, V, S, ALONE> {
    /// Matrices in a group.
    const LANES: usize = if ALONE { 1 } else { V::WIDTH };

    /// Room for as many of `matrices` as are worth computing at a time.
    pub(super) fn new(size: S, matrices: usize) -> Self {
        let row = Self::columns(size.n());
        let most = if ALONE { 1 } else { (ROWS / size.n()).clamp(1, GROUPS) };
        let zero = V::all(T::ZERO);
        let list = || size.list(zero, row);
        // Of whole squares of numbers, as they are transposed.
        let matrix = || size.matrix(zero, row * row * V::WIDTH / Self::LANES);
        let both = || Both { rows: matrix(), turned: matrix() };
        let group = || Group {
            k: both(),
            d: matrix(),
            u: vec![list(); 2],
            v: vec![list(); 2],
            sums: list(),
            reach: list(),
            gk: both(),
            last_r: list(),
            last_v_bar: list(),
            r: list(),
            v_bar: list(),
            s: list(),
        };
        Scalings {
            size,
            groups: (0..matrices.div_ceil(Self::LANES).min(most)).map(|_| group()).collect(),
            keep: false,
            running: [false; ROOM],
            lost: [false; ROOM],
            steps: [0; ROOM],
            shortest: 0,
            longest: 0,
            numbers: PhantomData,
        }
    }

    /// How many matrices there is room for.
    pub(super) fn room(&self) -> usize {
        self.groups.len() * Self::LANES
    }

    /// Everything for so many matrices or fewer.
    #[inline(always)]
    pub(super) fn run(&mut self, logarithms: &mut Logarithms, some: Several<'_, T>) {
        let Several { n, logits, wanted, end, width, out } = some;
        let (size, count) = (n * n, out.len() / width);
        self.begin(logits, matches!(wanted, Wanted::Gradient(_)));
        self.iterate(end);
        match wanted {
            Wanted::Matrix => self.product(out),
            Wanted::Gradient(g) => self.pull(g, out),
            Wanted::Steps => {
                for m in 0..count {
                    out[m] = T::of(self.steps[m] as f64);
                }
            }
        }
        for m in 0..count {
            if self.lost[m] {
                let elements = m * size..(m + 1) * size;
                let wanted = wanted.of(elements.clone());
                logarithms.run(&logits[elements], wanted, end, &mut out[m * width..(m + 1) * width]);
            }
        }
    }

    /// K and u₀. There may be fewer matrices than lanes; the others have ended before they began.
    #[inline(always)]
    pub(super) fn begin(&mut self, logits: &[T], keep: bool) {
        let n = self.size.n();
        let row = Self::columns(n);
        for p in 0..self.groups_of(logits) {
            let group = &mut self.groups[p];
            Self::spread(n, &logits[Self::elements(n, p, logits.len())], group.d.as_mut());
            let (h, k) = (&group.d.as_ref()[..n * row], &mut group.k.rows.as_mut()[..n * row]);
            for c in 0..row {
                let mut largest = h[c];
                for i in 1..n {
                    largest = largest.larger(h[i * row + c]);
                }
                for i in 0..n {
                    k[i * row + c] = h[i * row + c] - largest;
                }
            }
            let k = V::numbers_mut(k);
            for at in 0..k.len() {
                k[at] = k[at].exp();
            }
            Self::turn(n, &mut group.k);
            Self::fill(group.u[0].as_mut(), T::ONE);
            Self::fill(group.reach.as_mut(), T::ZERO);
        }
        self.keep = keep;
        for m in 0..self.room() {
            self.running[m] = m < logits.len() / (n * n);
            self.lost[m] = false;
            self.steps[m] = 0;
        }
    }

    #[inline(always)]
    pub(super) fn iterate(&mut self, end: End) {
        for t in 0..end.at_most {
            self.step(t);
            if let Some(error) = end.error
                && t > 0
                && !self.judge(t, error)
            {
                break;
            }
        }
        self.finish(end.at_most);
    }

    /// Where the scalings of step t are.
    #[inline(always)]
    fn place(&self, t: usize) -> usize {
        if self.keep { t } else { t % 2 }
    }

    /// vₜ₊₁ = 1/(Kᵀuₜ) and uₜ₊₁ = 1/(Kvₜ₊₁).
    #[inline(always)]
    fn step(&mut self, t: usize) {
        let (n, here, next) = (self.size.n(), self.place(t), self.place(t + 1));
        for group in &mut self.groups {
            if group.u.len() <= next {
                let zeros = group.sums.clone();
                group.u.resize(2 * next, zeros.clone());
                group.v.resize(2 * next, zeros);
            }
            let (v, sums) = (group.v[here].as_mut(), group.sums.as_mut());
            Self::products(
                n,
                group.k.rows.as_ref(),
                group.u[here].as_ref(),
                #[inline(always)]
                |c, sum| {
                    sums[c] = sum;
                    v[c] = V::all(T::ONE) / sum;
                },
            );
        }
        for group in &mut self.groups {
            let (u, reach) = (group.u[next].as_mut(), group.reach.as_mut());
            Self::products(
                n,
                group.k.turned.as_ref(),
                group.v[here].as_ref(),
                #[inline(always)]
                |c, sum| {
                    u[c] = V::all(T::ONE) / sum;
                    reach[c] = reach[c] + (u[c] + sum);
                },
            );
        }
    }

    /// After step t: matrices end at the step before if their columns summed to 1 within `error` after it. Says whether
    /// any goes on.
    #[inline(always)]
    fn judge(&mut self, t: usize, error: f64) -> bool {
        let (before, here, next) = (self.place(t - 1), self.place(t), self.place(t + 1));
        let mut goes_on = false;
        for (p, group) in self.groups.iter_mut().enumerate() {
            let within_range = Self::within_range(self.size.n(), group);
            let worst = Self::worst_column(self.size.n(), group, before);
            for l in 0..Self::LANES {
                let m = p * Self::LANES + l;
                if self.running[m] {
                    self.lost[m] = !within_range[l];
                    // NaN stops.
                    self.running[m] = within_range[l] && worst[l].wide() > error;
                    self.steps[m] = t;
                }
                goes_on |= self.running[m];
                for j in 0..if self.running[m] { 0 } else { self.size.n() } {
                    let at = j * Self::LANES + l;
                    let u = V::numbers(group.u[here].as_ref())[at];
                    V::numbers_mut(group.u[next].as_mut())[at] = u;
                    let v = V::numbers(group.v[before].as_ref())[at];
                    V::numbers_mut(group.v[here].as_mut())[at] = v;
                }
            }
        }
        goes_on
    }

    /// The largest |column sum − 1| after the step whose v is at `before`; the sums, without their factor v, are those of
    /// the step after.
    #[inline(always)]
    fn worst_column(n: usize, group: &Group<V, S>, before: usize) -> [T; WIDEST] {
        let (v, sums) = (V::numbers(group.v[before].as_ref()), V::numbers(group.sums.as_ref()));
        let mut worst = [T::ZERO; WIDEST];
        for j in 0..n {
            let (v, sums) = (&v[j * Self::LANES..][..Self::LANES], &sums[j * Self::LANES..][..Self::LANES]);
            for l in 0..Self::LANES {
                worst[l] = worst[l].maximum((v[l] * sums[l] - T::ONE).abs());
            }
        }
        worst
    }

    /// What is known when no further step is made.
    #[inline(always)]
    fn finish(&mut self, at_most: usize) {
        (self.shortest, self.longest) = (at_most, 0);
        for (p, group) in self.groups.iter().enumerate() {
            let within_range = Self::within_range(self.size.n(), group);
            let matrices = p * Self::LANES..(p + 1) * Self::LANES;
            let (running, lost) = (&self.running[matrices.clone()], &mut self.lost[matrices.clone()]);
            let steps = &mut self.steps[matrices];
            for l in 0..Self::LANES {
                lost[l] |= running[l] & !within_range[l];
                steps[l] = if running[l] { at_most } else { steps[l] };
                self.longest = self.longest.max(steps[l]);
                self.shortest = self.shortest.min(if steps[l] > 0 { steps[l] } else { at_most });
            }
        }
    }

    /// Whether each matrix has stayed where nothing that matters underflows.
    #[inline(always)]
    fn within_range(n: usize, group: &Group<V, S>) -> [bool; WIDEST] {
        let reach = V::numbers(group.reach.as_ref());
        let mut sums = [T::ZERO; WIDEST];
        for i in 0..n {
            let reach = &reach[i * Self::LANES..][..Self::LANES];
            for l in 0..Self::LANES {
                sums[l] = sums[l] + reach[l];
            }
        }
        let most = T::of(if T::DTYPE == DType::F32 { 1e12 } else { 1e120 });
        let mut within = [false; WIDEST];
        for l in 0..Self::LANES {
            within[l] = sums[l] <= most;
        }
        within
    }

    /// Where u and v are at the end.
    #[inline(always)]
    fn last(&self) -> [usize; 2] {
        [self.place(self.longest), self.place(self.longest.saturating_sub(1))]
    }

    /// Pᵢⱼ = uᵢ·Kᵢⱼ·vⱼ.
    #[inline(always)]
    fn product(&mut self, out: &mut [T]) {
        let (n, [u, v]) = (self.size.n(), self.last());
        let row = Self::columns(n);
        for p in 0..self.groups_of(out) {
            let elements = Self::elements(n, p, out.len());
            let (group, out) = (&mut self.groups[p], &mut out[elements]);
            let (u, v) = (group.u[u].as_ref(), group.v[v].as_ref());
            let (p, k) = (&mut group.d.as_mut()[..n * row], &group.k.rows.as_ref()[..n * row]);
            for i in 0..n {
                let u = Self::entry(u, i);
                for c in 0..row {
                    p[i * row + c] = u * k[i * row + c] * v[c];
                }
            }
            Self::collect(n, p, out);
        }
    }
}

/// The cotangent of H, given that of P = diag(u)·K·diag(v), by the chain rule. As u = 1/(K·v) is row by row, a
/// cotangent ū makes −ū∘u² =: −r of the sums K·v, which is −r·vᵀ of K and −Kᵀ·r of v; v = 1/(Kᵀ·u) likewise makes
/// −s of the sums Kᵀ·u, with s = v̄∘v², which is −u·sᵀ of K and −K·s of u. At last `H̄ = K̄∘K`: that K was divided by
/// the exponential of column maxima changes nothing, as P does not depend on them.
impl<T: Real, V: Vector<T>, S: Size, const ALONE: bool> Scalings<T, V, S, ALONE> {
    #[inline(always)]
    fn pull(&mut self, g: &[T], out: &mut [T]) {
        let n = self.size.n();
        self.pull_product(g);
        for t in (0..self.longest).rev() {
            self.pull_step(t);
        }
        for p in 0..self.groups_of(out) {
            let elements = Self::elements(n, p, out.len());
            let (group, out) = (&mut self.groups[p], &mut out[elements]);
            let (d, k) = (group.d.as_mut(), group.k.rows.as_ref());
            for at in 0..n * Self::columns(n) {
                d[at] = d[at] * k[at];
            }
            Self::collect(n, d, out);
        }
    }

    /// What `g`, the cotangent of P, makes of K, u and v at the end.
    #[inline(always)]
    fn pull_product(&mut self, g: &[T]) {
        let (n, [u, v]) = (self.size.n(), self.last());
        let row = Self::columns(n);
        for p in 0..self.groups_of(g) {
            let (group, g) = (&mut self.groups[p], &g[Self::elements(n, p, g.len())]);
            let (u, v) = (&group.u[u].as_ref()[..row], &group.v[v].as_ref()[..row]);
            let (d, k) = (group.d.as_mut(), group.k.rows.as_ref());
            Self::spread(n, g, d);
            let gk = group.gk.rows.as_mut();
            for at in 0..n * row {
                gk[at] = d[at] * k[at];
            }
            Self::turn(n, &mut group.gk);
            let (last_r, last_v_bar) = (group.last_r.as_mut(), group.last_v_bar.as_mut());
            Self::products(
                n,
                group.gk.turned.as_ref(),
                v,
                #[inline(always)]
                |c, u_bar| last_r[c] = (u_bar * u[c]) * u[c],
            );
            Self::products(
                n,
                group.gk.rows.as_ref(),
                u,
                #[inline(always)]
                |c, v_bar| last_v_bar[c] = v_bar,
            );
            for i in 0..n {
                let u = Self::entry(u, i);
                for c in 0..row {
                    d[i * row + c] = d[i * row + c] * (u * v[c]);
                }
            }
            Self::fill(group.r.as_mut(), T::ZERO);
            Self::fill(group.v_bar.as_mut(), T::ZERO);
        }
    }

    /// From r to s in step t, what it adds to the cotangent of K, and from s to r of the step before.
    #[inline(always)]
    fn pull_step(&mut self, t: usize) {
        let (n, steps, shortest) = (self.size.n(), &self.steps, self.shortest);
        let row = Self::columns(n);
        for (p, group) in self.groups.iter_mut().enumerate() {
            // Nothing flows to a matrix in the steps that it did not make.
            let ends = |l: usize| steps[p * Self::LANES + l] == t + 1;
            let (r, v_bar) = (group.r.as_mut(), group.v_bar.as_mut());
            let any_ends = t + 1 >= shortest;
            if any_ends {
                let (last_r, last_v_bar) =
                    (V::numbers(group.last_r.as_ref()), V::numbers(group.last_v_bar.as_ref()));
                for j in 0..n {
                    for l in 0..Self::LANES {
                        let at = j * Self::LANES + l;
                        if ends(l) {
                            V::numbers_mut(r)[at] = last_r[at];
                            V::numbers_mut(v_bar)[at] = last_v_bar[at];
                        }
                    }
                }
            }
            let (v, s) = (&group.v[t].as_ref()[..row], group.s.as_mut());
            Self::products(
                n,
                group.k.rows.as_ref(),
                r,
                #[inline(always)]
                |c, sum| s[c] = ((v_bar[c] - sum) * v[c]) * v[c],
            );
            if any_ends {
                Self::fill(v_bar, T::ZERO);
            }
        }
        for group in &mut self.groups {
            let (u, v) = (&group.u[t].as_ref()[..row], &group.v[t].as_ref()[..row]);
            let (r, s) = (&mut group.r.as_mut()[..row], &group.s.as_ref()[..row]);
            Self::subtract_outer(n, &mut group.d.as_mut()[..n * row], [r, v], [u, s]);
            Self::products(
                n,
                group.k.turned.as_ref(),
                s,
                #[inline(always)]
                |c, sum| r[c] = ((V::all(T::ZERO) - sum) * u[c]) * u[c],
            );
        }
    }
}

/// Where numbers are, and products with them.
impl<T: Real, V: Vector<T>, S: Size, const ALONE: bool> Scalings<T, V, S, ALONE> {
    /// Vectors in a row.
    #[inline(always)]
    fn columns(n: usize) -> usize {
        (n * Self::LANES).div_ceil(V::WIDTH)
    }

    /// How many groups some matrices make.
    #[inline(always)]
    fn groups_of(&self, matrices: &[T]) -> usize {
        matrices.len().div_ceil(Self::LANES * self.size.n() * self.size.n())
    }

    /// Where the matrices of group p are among `all` elements of matrices that lie one after the other.
    #[inline(always)]
    fn elements(n: usize, p: usize, all: usize) -> Range<usize> {
        let of_group = Self::LANES * n * n;
        p * of_group..all.min((p + 1) * of_group)
    }

    #[inline(always)]
    fn fill(list: &mut [V], v: T) {
        for at in 0..list.len() {
            list[at] = V::all(v);
        }
    }

    /// xᵢ, for all columns.
    #[inline(always)]
    fn entry(x: &[V], i: usize) -> V {
        if ALONE { V::all(V::numbers(x)[i]) } else { x[i] }
    }

    /// Calls `f` with each vector of columns and Σᵢ mᵢⱼ·xᵢ there, added up from the first row on.
    #[inline(always)]
    fn products(n: usize, m: &[V], x: &[V], mut f: impl FnMut(usize, V)) {
        let mut first = 0;
        while first + 4 <= Self::columns(n) {
            Self::block::<4>(n, m, x, &mut first, &mut f);
        }
        if first + 2 <= Self::columns(n) {
            Self::block::<2>(n, m, x, &mut first, &mut f);
        }
        if first < Self::columns(n) {
            Self::block::<1>(n, m, x, &mut first, &mut f);
        }
    }

    /// B of them at a time, so that no addition waits for the one before.
    #[inline(always)]
    fn block<const B: usize>(n: usize, m: &[V], x: &[V], first: &mut usize, f: &mut impl FnMut(usize, V)) {
        let columns = Self::columns(n);
        let mut sums = [Self::entry(x, 0); B];
        let row = &m[*first..][..B];
        for b in 0..B {
            sums[b] = row[b] * sums[b];
        }
        for i in 1..n {
            let (row, x) = (&m[i * columns + *first..][..B], Self::entry(x, i));
            for b in 0..B {
                sums[b] = sums[b] + row[b] * x;
            }
        }
        for b in 0..B {
            f(*first + b, sums[b]);
        }
        *first += B;
    }

    /// dᵢⱼ − (aᵢ·bⱼ + xᵢ·yⱼ).
    #[inline(always)]
    fn subtract_outer(n: usize, d: &mut [V], [a, b]: [&[V]; 2], [x, y]: [&[V]; 2]) {
        let mut first = 0;
        while first + 4 <= Self::columns(n) {
            Self::subtract_outer_block::<4>(n, d, [a, b], [x, y], &mut first);
        }
        while first < Self::columns(n) {
            Self::subtract_outer_block::<1>(n, d, [a, b], [x, y], &mut first);
        }
    }

    /// B columns of it, whose b and y are read once.
    #[inline(always)]
    fn subtract_outer_block<const B: usize>(
        n: usize,
        d: &mut [V],
        [a, b]: [&[V]; 2],
        [x, y]: [&[V]; 2],
        first: &mut usize,
    ) {
        let (mut of_b, mut of_y) = ([b[*first]; B], [y[*first]; B]);
        for c in 1..B {
            (of_b[c], of_y[c]) = (b[*first + c], y[*first + c]);
        }
        for i in 0..n {
            let (a, x) = (Self::entry(a, i), Self::entry(x, i));
            let row = &mut d[i * Self::columns(n) + *first..][..B];
            for c in 0..B {
                row[c] = row[c] - (a * of_b[c] + x * of_y[c]);
            }
        }
        *first += B;
    }

    /// From matrices one after the other.
    #[inline(always)]
    fn spread(n: usize, matrices: &[T], to: &mut [V]) {
        let (size, row) = (n * n, Self::columns(n) * V::WIDTH);
        if ALONE {
            let to = V::numbers_mut(to);
            for i in 0..n {
                to[i * row..][..n].copy_from_slice(&matrices[i * n..][..n]);
            }
            return;
        }
        let squares = Self::squares(n, matrices);
        for at in (0..squares).step_by(V::WIDTH) {
            transpose(
                #[inline(always)]
                |l| V::load(matrices, l * size + at),
                #[inline(always)]
                |element, of_all| to[at + element] = of_all,
            );
        }
        let to = V::numbers_mut(to);
        for (l, matrix) in matrices.chunks_exact(size).enumerate() {
            for at in squares..size {
                to[at * V::WIDTH + l] = matrix[at];
            }
        }
    }

    /// The reverse of [`spread`](Scalings::spread).
    #[inline(always)]
    fn collect(n: usize, from: &[V], matrices: &mut [T]) {
        let (size, row) = (n * n, Self::columns(n) * V::WIDTH);
        if ALONE {
            let from = V::numbers(from);
            for i in 0..n {
                matrices[i * n..][..n].copy_from_slice(&from[i * row..][..n]);
            }
            return;
        }
        let squares = Self::squares(n, matrices);
        for at in (0..squares).step_by(V::WIDTH) {
            transpose(
                #[inline(always)]
                |element| from[at + element],
                #[inline(always)]
                |l, of_one: V| of_one.store(matrices, l * size + at),
            );
        }
        let from = V::numbers(from);
        for (l, matrix) in matrices.chunks_exact_mut(size).enumerate() {
            for at in squares..size {
                matrix[at] = from[at * V::WIDTH + l];
            }
        }
    }

    /// How many elements of each of a group's matrices go by whole vectors: none if lanes are left over.
    #[inline(always)]
    fn squares(n: usize, matrices: &[T]) -> usize {
        if matrices.len() < n * n * V::WIDTH { 0 } else { n * n - n * n % V::WIDTH }
    }

    /// Makes the transpose of the rows.
    #[inline(always)]
    fn turn(n: usize, matrix: &mut Both<V, S>) {
        let columns = Self::columns(n);
        let (rows, turned) = (matrix.rows.as_ref(), matrix.turned.as_mut());
        if ALONE {
            for a in 0..columns {
                for b in 0..columns {
                    transpose(
                        #[inline(always)]
                        |i| rows[(a * V::WIDTH + i) * columns + b],
                        #[inline(always)]
                        |j, column| turned[(b * V::WIDTH + j) * columns + a] = column,
                    );
                }
            }
        } else {
            for i in 0..n {
                for j in 0..n {
                    turned[j * n + i] = rows[i * n + j];
                }
            }
        }
    }
}
