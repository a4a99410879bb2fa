//! Sinkhorn–Knopp: the columns of `exp(H)`, then its rows, divided by their sums, again and again.
//!
//! Every iterate is `diag(u)·K·diag(v)` with one K, so a step is two products of a matrix and a vector:
//! `v = 1/(Kᵀu)`, `u = 1/(Kv)`. There are two ways to carry it out.
//!
//! - **Scalings.** `K = exp(H − column maxima)` (the first step divides the maxima out again) has no entry above 1, and u
//!   and v are multiplied as they are. Matrices of up to 16×16 go side by side, one in each lane of the vectors.
//!   What underflows in K is less than 10⁻³⁸ (f32) or 10⁻³⁰⁸ (f64), and can be left out as long as every uᵢ stays within
//!   10⁻¹²..10¹² or 10⁻¹²⁰..10¹²⁰: then every vⱼ does too, because the entry 1 of a column bounds its sum.
//! - **Logarithms.** A matrix whose u leaves that range (or has a NaN) is computed again with `f = ln u`, `g = ln v` and
//!   log-sum-exp, in f64. Nothing overflows there, and no column is lost, whatever the logits are; it takes an
//!   exponential for every entry and half step. It is the reference that the scalings are tested against.
//!
//! Which way a matrix takes, how many steps, and in which order its sums are added up depends on its own logits alone:
//! not on its neighbours, its lane, or the number of threads.

use super::super::math::Float;
use super::super::threads;
use super::super::vector::{Kernel, Vector, for_vectors};
use super::{Real, row_major};
use crate::{DType, Error, HostBuffer, Result, Stop, Tensor};

/// Matrices side by side. What 20 steps of 4×4 keep for so many fits the first-level cache, in f32.
const LANES: usize = 32;
/// Fewer than so many are computed one by one.
const FEW: usize = 4;
/// The largest matrix of which so many still fit the second-level cache.
const LARGEST_SIDE_BY_SIDE: usize = 16;
/// The most steps whose scalings are kept for so many.
const LONGEST_SIDE_BY_SIDE: usize = 1000;
/// Products in one thread's task: some tens of microseconds.
const TASK: usize = 1 << 17;

/// `Fused::Sinkhorn`.
pub(super) fn sinkhorn<T: Real>(x: &Tensor, stop: Stop) -> Result<Tensor> {
    kernel::<T>(x, stop, Wanted::Matrix)
}

/// `Fused::SinkhornBackward`.
pub(super) fn backward<T: Real>(x: &Tensor, g: &Tensor, stop: Stop) -> Result<Tensor> {
    assert_eq!(x.shape(), g.shape(), "sinkhorn_backward: the cotangent must have the logits' shape");
    let g = g.contiguous()?;
    kernel::<T>(x, stop, Wanted::Gradient(row_major::<T>(&g)))
}

/// `Fused::SinkhornSteps`.
pub(super) fn steps<T: Real>(x: &Tensor, stop: Stop) -> Result<Tensor> {
    kernel::<T>(x, stop, Wanted::Steps)?.cast(DType::I64)
}

/// What is asked of an iteration.
#[derive(Clone, Copy)]
enum Wanted<'a, T> {
    /// The matrix it ends at.
    Matrix,
    /// The cotangent of the logits, given that of the matrix.
    Gradient(&'a [T]),
    /// How many steps it took.
    Steps,
}

impl<'a, T> Wanted<'a, T> {
    /// The same for some of the matrices; `elements` are theirs.
    fn of(self, elements: std::ops::Range<usize>) -> Wanted<'a, T> {
        match self {
            Wanted::Gradient(g) => Wanted::Gradient(&g[elements]),
            other => other,
        }
    }
}

/// When to stop, resolved for the matrices at hand.
#[derive(Clone, Copy)]
struct End {
    at_most: usize,
    error: Option<f64>,
}

fn kernel<T: Real>(x: &Tensor, stop: Stop, wanted: Wanted<'_, T>) -> Result<Tensor> {
    let rank = x.shape().len();
    assert!(
        rank >= 2 && x.shape()[rank - 1] == x.shape()[rank - 2] && x.shape()[rank - 1] > 0,
        "sinkhorn: expected square matrices in the last two axes, found shape {}",
        x.shape()
    );
    let n = x.shape()[rank - 1];
    let x = x.contiguous()?;
    let logits = row_major::<T>(&x);
    expect_support(logits, n)?;
    let shape = match wanted {
        Wanted::Steps => x.shape().with_ones(&[rank - 2, rank - 1]),
        _ => x.shape().clone(),
    };
    let width = if matches!(wanted, Wanted::Steps) { 1 } else { n * n };
    let mut out = HostBuffer::new(shape.elements() * size_of::<T>());
    let all = out.as_mut::<T>();
    if !all.is_empty() {
        let end = End { at_most: stop.at_most(), error: stop.error(n, T::DTYPE) };
        let task = |first: usize, out: &mut [T]| {
            let elements = first * n * n..(first + out.len() / width) * n * n;
            let logits = &logits[elements.clone()];
            for_vectors(Several { n, logits, wanted: wanted.of(elements), end, width, out });
        };
        // An iteration that waits for a tolerance is taken to last as long as the usual one.
        let work = n * n * 2 * end.at_most.min(20);
        let per_task = TASK.div_ceil(work).next_multiple_of(LANES);
        if all.len() / width < 2 * per_task {
            task(0, all);
        } else {
            threads::chunks(all, per_task * width, |i, out| task(i * per_task, out));
        }
    }
    Ok(out.into_tensor(shape, T::DTYPE))
}

/// A row or a column of nothing but −∞ cannot be scaled to sum to 1.
fn expect_support<T: Real>(logits: &[T], n: usize) -> Result<()> {
    let masked = |v: T| v == T::of(f64::NEG_INFINITY);
    if !logits.iter().any(|&v| masked(v)) {
        return Ok(());
    }
    for (m, h) in logits.chunks_exact(n * n).enumerate() {
        let row = |i: usize| (0..n).all(|j| masked(h[i * n + j]));
        let column = |j: usize| (0..n).all(|i| masked(h[i * n + j]));
        if (0..n).any(|i| row(i) || column(i)) {
            let message = format!(
                "sinkhorn: matrix {m} has a row or a column that is −∞ throughout and cannot sum to 1"
            );
            return Err(Error::Device { device: "cpu".into(), message });
        }
    }
    Ok(())
}

/// Some matrices, by one thread: groups of [`LANES`], and what is left in one more, or one by one if it is little.
struct Several<'a, T> {
    n: usize,
    logits: &'a [T],
    wanted: Wanted<'a, T>,
    end: End,
    /// Elements of the result for each matrix.
    width: usize,
    out: &'a mut [T],
}

impl<T: Real> Kernel<T> for Several<'_, T> {
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        // The scalings of a long iteration are kept for one matrix at a time: 100,000 steps of many would be gigabytes.
        let kept = if matches!(self.wanted, Wanted::Gradient(_)) { self.end.at_most } else { 0 };
        let side_by_side = self.n <= LARGEST_SIDE_BY_SIDE && kept <= LONGEST_SIDE_BY_SIDE;
        let matrices = self.out.len() / self.width;
        let rest = matrices % LANES;
        let alone = if !side_by_side {
            matrices
        } else if rest < FEW {
            rest
        } else {
            0
        };
        let (grouped, single) = self.out.split_at_mut((matrices - alone) * self.width);
        let mut logarithms = Logarithms::new(self.n);
        let mut first = 0;
        let mut next = |out: &mut [T]| {
            let count = out.len() / self.width;
            let elements = first * self.n * self.n..(first + count) * self.n * self.n;
            first += count;
            (&self.logits[elements.clone()], self.wanted.of(elements))
        };
        if !grouped.is_empty() {
            let mut scalings = Scalings::<T, LANES>::new(self.n);
            for out in grouped.chunks_mut(LANES * self.width) {
                let (logits, wanted) = next(out);
                // Where n is known, the loops over rows and columns become straight lines.
                match self.n {
                    4 => scalings.run::<V>(4, &mut logarithms, logits, wanted, self.end, out),
                    n => scalings.run::<V>(n, &mut logarithms, logits, wanted, self.end, out),
                }
            }
        }
        let mut scalings = Scalings::<T, 1>::new(self.n);
        for out in single.chunks_exact_mut(self.width) {
            let (logits, wanted) = next(out);
            scalings.run::<T>(self.n, &mut logarithms, logits, wanted, self.end, out);
        }
    }
}

/// One number of each of L matrices.
type Lanes<T, const L: usize> = [T; L];

/// L matrices side by side, as `diag(u)·K·diag(v)`. The n that its methods take is the size they were made for.
struct Scalings<T, const L: usize> {
    /// K, row by row.
    k: Vec<Lanes<T, L>>,
    /// The logits, the matrix, or what has come together of the gradient, without its factor K.
    d: Vec<Lanes<T, L>>,
    /// u₀, u₁, …: n for each step if a gradient is wanted, else those of even and of odd steps in turn.
    u: Vec<Lanes<T, L>>,
    /// v₁, v₂, …, in the same way.
    v: Vec<Lanes<T, L>>,
    /// Products with the transpose of K.
    sums: Vec<Lanes<T, L>>,
    /// The sum of all uᵢ and 1/uᵢ there have been. It bounds them, and a NaN stays in it.
    reach: Lanes<T, L>,
    /// How many steps each matrix has made.
    steps: [usize; L],
    /// How many the slowest has made.
    longest: usize,
    /// Whether u and v are kept for all steps.
    keep: bool,
}

/// Calls `f` with each column j and Σᵢ Kᵢⱼ·xᵢ.
#[inline(always)]
fn transposed_times<T: Real, V: Vector<T>, const L: usize>(
    n: usize,
    k: &[Lanes<T, L>],
    x: &[Lanes<T, L>],
    lane: usize,
    mut f: impl FnMut(usize, V),
) {
    for j in 0..n {
        let mut sum = V::load(&k[j], lane) * V::load(&x[0], lane);
        for i in 1..n {
            sum = sum + V::load(&k[i * n + j], lane) * V::load(&x[i], lane);
        }
        f(j, sum);
    }
}

/// Calls `f` with each row i and Σⱼ Kᵢⱼ·xⱼ.
#[inline(always)]
fn times<T: Real, V: Vector<T>, const L: usize>(
    n: usize,
    k: &[Lanes<T, L>],
    x: &[Lanes<T, L>],
    lane: usize,
    mut f: impl FnMut(usize, V),
) {
    for i in 0..n {
        let mut sum = V::load(&k[i * n], lane) * V::load(&x[0], lane);
        for j in 1..n {
            sum = sum + V::load(&k[i * n + j], lane) * V::load(&x[j], lane);
        }
        f(i, sum);
    }
}

/// From matrices one after the other to their elements side by side.
#[inline(always)]
fn side_by_side<T: Real, const L: usize>(matrices: &[T], size: usize, elements: &mut [Lanes<T, L>]) {
    for (l, matrix) in matrices.chunks_exact(size).enumerate() {
        for (element, &v) in elements.iter_mut().zip(matrix) {
            element[l] = v;
        }
    }
}

/// The reverse of [`side_by_side`].
#[inline(always)]
fn one_by_one<T: Real, const L: usize>(elements: &[Lanes<T, L>], size: usize, matrices: &mut [T]) {
    for (l, matrix) in matrices.chunks_exact_mut(size).enumerate() {
        for (v, element) in matrix.iter_mut().zip(elements) {
            *v = element[l];
        }
    }
}

/// The first lane of each vector.
#[inline(always)]
fn lanes<T, V: Vector<T>, const L: usize>() -> impl Iterator<Item = usize> {
    const { assert!(L.is_multiple_of(V::WIDTH), "vectors of this width do not fill the lanes") }
    (0..L / V::WIDTH).map(|vector| vector * V::WIDTH)
}

impl<T: Real, const L: usize> Scalings<T, L> {
    fn new(n: usize) -> Self {
        let zeros = |count| vec![[T::ZERO; L]; count];
        Scalings {
            k: zeros(n * n),
            d: zeros(n * n),
            u: Vec::new(),
            v: Vec::new(),
            sums: zeros(n),
            reach: [T::ZERO; L],
            steps: [0; L],
            longest: 0,
            keep: false,
        }
    }

    /// Everything for up to L matrices, which lie one after the other.
    #[inline(always)]
    fn run<V: Vector<T>>(
        &mut self,
        n: usize,
        logarithms: &mut Logarithms,
        logits: &[T],
        wanted: Wanted<'_, T>,
        end: End,
        out: &mut [T],
    ) {
        let (size, count) = (n * n, logits.len() / (n * n));
        self.keep = matches!(wanted, Wanted::Gradient(_));
        self.load(n, logits);
        self.iterate::<V>(n, count, end);
        match wanted {
            Wanted::Matrix => self.store::<V>(n, out),
            Wanted::Gradient(g) => self.pull::<V>(n, g, out),
            Wanted::Steps => out.iter_mut().zip(self.steps).for_each(|(out, t)| *out = T::of(t as f64)),
        }
        let width = out.len() / count;
        for l in (0..count).filter(|&l| !self.trusted(l)) {
            let elements = l * size..(l + 1) * size;
            let wanted = wanted.of(elements.clone());
            logarithms.run(&logits[elements], wanted, end, &mut out[l * width..(l + 1) * width]);
        }
    }

    #[inline(always)]
    fn load(&mut self, n: usize, logits: &[T]) {
        side_by_side(logits, n * n, &mut self.d);
        let (h, k) = (&self.d[..n * n], &mut self.k[..n * n]);
        for j in 0..n {
            let mut largest = h[j];
            for i in 1..n {
                largest = larger(&largest, &h[i * n + j]);
            }
            for i in 0..n {
                let (k, h) = (&mut k[i * n + j], &h[i * n + j]);
                for l in 0..L {
                    k[l] = (h[l] - largest[l]).exp();
                }
            }
        }
    }

    /// Where the scalings of step t begin.
    #[inline(always)]
    fn place(&self, n: usize, t: usize) -> usize {
        if self.keep { t * n } else { t % 2 * n }
    }

    /// Up to `count` of the matrices are there; the others have ended before they began.
    #[inline(always)]
    fn iterate<V: Vector<T>>(&mut self, n: usize, count: usize, end: End) {
        self.reach = [T::ZERO; L];
        self.steps = [0; L];
        self.longest = 0;
        self.make_room(2 * n);
        self.u[..n].fill([T::ONE; L]);
        let mut running: [bool; L] = std::array::from_fn(|l| l < count);
        for t in 0..end.at_most {
            if self.keep {
                self.make_room((t + 2) * n);
            }
            let before = self.reach;
            self.step::<V>(n, t);
            if let Some(error) = end.error
                && t > 0
            {
                let worst = self.worst_column(n, t - 1);
                for l in 0..L {
                    // NaN stops.
                    running[l] = running[l] && self.trusted(l) && worst[l].wide() > error;
                }
                if !running.contains(&true) {
                    self.reach = before;
                    break;
                }
                for l in (0..L).filter(|&l| !running[l]) {
                    self.reach[l] = before[l];
                    self.stay(n, t, l);
                }
            }
            self.longest += 1;
            for l in 0..L {
                self.steps[l] += usize::from(running[l]);
            }
        }
    }

    #[inline(always)]
    fn make_room(&mut self, count: usize) {
        if self.u.len() < count {
            self.u.resize(count, [T::ZERO; L]);
            self.v.resize(count, [T::ZERO; L]);
        }
    }

    /// From uₜ to vₜ₊₁ and uₜ₊₁.
    #[inline(always)]
    fn step<V: Vector<T>>(&mut self, n: usize, t: usize) {
        let (here, next) = (self.place(n, t), self.place(n, t + 1));
        let (k, sums) = (&self.k[..n * n], &mut self.sums[..n]);
        let (u, v) = (&self.u[here..here + n], &mut self.v[here..here + n]);
        for lane in lanes::<T, V, L>() {
            transposed_times(
                n,
                k,
                u,
                lane,
                #[inline(always)]
                |j, sum: V| {
                    sum.store(&mut sums[j], lane);
                    (V::all(T::ONE) / sum).store(&mut v[j], lane);
                },
            );
        }
        let (u, v) = (&mut self.u[next..next + n], &self.v[here..here + n]);
        for lane in lanes::<T, V, L>() {
            let mut reach = V::load(&self.reach, lane);
            times(
                n,
                k,
                v,
                lane,
                #[inline(always)]
                |i, sum: V| {
                    let inverse = V::all(T::ONE) / sum;
                    inverse.store(&mut u[i], lane);
                    reach = reach + (inverse + sum);
                },
            );
            reach.store(&mut self.reach, lane);
        }
    }

    /// The largest |column sum − 1| after step t; the sums, without their factor v, are those of u.
    #[inline(always)]
    fn worst_column(&self, n: usize, t: usize) -> Lanes<T, L> {
        let mut worst = [T::ZERO; L];
        for (v, sum) in self.v[self.place(n, t)..][..n].iter().zip(&self.sums) {
            for l in 0..L {
                worst[l] = worst[l].maximum((v[l] * sum[l] - T::ONE).abs());
            }
        }
        worst
    }

    /// Takes back step t of one matrix.
    #[inline(always)]
    fn stay(&mut self, n: usize, t: usize, l: usize) {
        let (before, here, next) = (self.place(n, t - 1), self.place(n, t), self.place(n, t + 1));
        for i in 0..n {
            self.u[next + i][l] = self.u[here + i][l];
            self.v[here + i][l] = self.v[before + i][l];
        }
    }

    /// Whether a matrix has stayed where nothing that matters underflows.
    #[inline(always)]
    fn trusted(&self, l: usize) -> bool {
        self.reach[l].wide() <= if T::DTYPE == DType::F32 { 1e12 } else { 1e120 }
    }

    /// Where u and v are at the end.
    #[inline(always)]
    fn places(&self, n: usize) -> [usize; 2] {
        [self.place(n, self.longest), self.place(n, self.longest.saturating_sub(1))]
    }

    /// uᵢ·Kᵢⱼ·vⱼ.
    #[inline(always)]
    fn store<V: Vector<T>>(&mut self, n: usize, out: &mut [T]) {
        let [u, v] = self.places(n);
        let (k, p) = (&self.k[..n * n], &mut self.d[..n * n]);
        let (u, v) = (&self.u[u..u + n], &self.v[v..v + n]);
        for lane in lanes::<T, V, L>() {
            for i in 0..n {
                let u = V::load(&u[i], lane);
                for j in 0..n {
                    let at = i * n + j;
                    (u * V::load(&k[at], lane) * V::load(&v[j], lane)).store(&mut p[at], lane);
                }
            }
        }
        one_by_one(p, n * n, out);
    }

    /// The cotangent of H, given that of P = diag(u)·K·diag(v), by the chain rule. As u = 1/(K·v) is row by row, a
    /// cotangent ū makes −ū∘u² =: −r of the sums K·v, which is −r·vᵀ of K and −Kᵀ·r of v; v = 1/(Kᵀ·u) likewise makes
    /// −s of the sums Kᵀ·u, with s = v̄∘v², which is −u·sᵀ of K and −K·s of u. At last `H̄ = K̄∘K`: that K was divided by
    /// the exponential of column maxima changes nothing, as P does not depend on them.
    #[inline(always)]
    fn pull<V: Vector<T>>(&mut self, n: usize, g: &[T], out: &mut [T]) {
        side_by_side(g, n * n, &mut self.d);
        let zeros = || vec![[T::ZERO; L]; n];
        let (mut last_r, mut last_v_bar) = (zeros(), zeros());
        let [u, v] = self.places(n);
        let (k, d) = (&self.k[..n * n], &mut self.d[..n * n]);
        let (u, v) = (&self.u[u..u + n], &self.v[v..v + n]);
        for lane in lanes::<T, V, L>() {
            for i in 0..n {
                let u = V::load(&u[i], lane);
                let mut u_bar = V::all(T::ZERO);
                for j in 0..n {
                    let at = i * n + j;
                    let (g, v) = (V::load(&d[at], lane), V::load(&v[j], lane));
                    let gk = g * V::load(&k[at], lane);
                    u_bar = u_bar + gk * v;
                    (V::load(&last_v_bar[j], lane) + gk * u).store(&mut last_v_bar[j], lane);
                    (g * (u * v)).store(&mut d[at], lane);
                }
                ((u_bar * u) * u).store(&mut last_r[i], lane);
            }
        }
        // Nothing flows to a matrix in the steps that it did not make.
        let (mut r, mut v_bar, mut s) = (zeros(), zeros(), zeros());
        for t in (0..self.longest).rev() {
            let ends = self.steps.contains(&(t + 1));
            for l in (0..L).filter(|&l| self.steps[l] == t + 1) {
                for i in 0..n {
                    (r[i][l], v_bar[i][l]) = (last_r[i][l], last_v_bar[i][l]);
                }
            }
            let (u, v) = (&self.u[t * n..][..n], &self.v[t * n..][..n]);
            for lane in lanes::<T, V, L>() {
                transposed_times(
                    n,
                    k,
                    &r,
                    lane,
                    #[inline(always)]
                    |j, sum: V| {
                        let v = V::load(&v[j], lane);
                        (((V::load(&v_bar[j], lane) - sum) * v) * v).store(&mut s[j], lane);
                    },
                );
            }
            if ends {
                v_bar.fill([T::ZERO; L]);
            }
            for lane in lanes::<T, V, L>() {
                times(
                    n,
                    k,
                    &s,
                    lane,
                    #[inline(always)]
                    |i, sum: V| {
                        let (u, of_row) = (V::load(&u[i], lane), V::load(&r[i], lane));
                        for j in 0..n {
                            let (d, v, s) = (&mut d[i * n + j], V::load(&v[j], lane), V::load(&s[j], lane));
                            (V::load(d, lane) - (of_row * v + u * s)).store(d, lane);
                        }
                        (((V::all(T::ZERO) - sum) * u) * u).store(&mut r[i], lane);
                    },
                );
            }
        }
        for lane in lanes::<T, V, L>() {
            for (d, k) in d.iter_mut().zip(k) {
                (V::load(d, lane) * V::load(k, lane)).store(d, lane);
            }
        }
        one_by_one(d, n * n, out);
    }
}

/// The larger of a and b in every lane; where b is NaN, a.
#[inline(always)]
fn larger<T: Real, const L: usize>(a: &Lanes<T, L>, b: &Lanes<T, L>) -> Lanes<T, L> {
    let mut larger = *a;
    for l in 0..L {
        larger[l] = if b[l] > a[l] { b[l] } else { a[l] };
    }
    larger
}

/// One matrix as `exp(Hᵢⱼ + fᵢ + gⱼ)`, in f64.
struct Logarithms {
    n: usize,
    h: Vec<f64>,
    f: Vec<f64>,
    g: Vec<f64>,
    steps: usize,
    /// f₀, g₁, f₁, g₂, f₂, …, if a gradient is wanted.
    history: Vec<f64>,
}

/// `−ln Σ exp(values)`.
fn minus_log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    -(largest + Float::log(values.map(|v| Float::exp(v - largest)).sum::<f64>()))
}

impl Logarithms {
    fn new(n: usize) -> Self {
        Logarithms { n, h: vec![0.0; n * n], f: vec![0.0; n], g: vec![0.0; n], steps: 0, history: Vec::new() }
    }

    /// Everything for one matrix.
    #[cold]
    #[inline(never)]
    fn run<T: Real>(&mut self, logits: &[T], wanted: Wanted<'_, T>, end: End, out: &mut [T]) {
        self.h.iter_mut().zip(logits).for_each(|(h, x)| *h = x.wide());
        self.iterate(end, matches!(wanted, Wanted::Gradient(_)));
        let found = match wanted {
            Wanted::Matrix => self.matrix(&self.f, &self.g),
            Wanted::Gradient(g) => self.pull(&g.iter().map(|g| g.wide()).collect::<Vec<f64>>()),
            Wanted::Steps => vec![self.steps as f64],
        };
        out.iter_mut().zip(found).for_each(|(out, v)| *out = T::of(v));
    }

    fn iterate(&mut self, end: End, keep: bool) {
        let n = self.n;
        self.f.fill(0.0);
        self.steps = 0;
        self.history.clear();
        if keep {
            self.history.extend_from_slice(&self.f);
        }
        for step in 0..end.at_most {
            let (h, f) = (&self.h, &self.f);
            let g: Vec<f64> =
                (0..n).map(|j| minus_log_sum_exp((0..n).map(|i| h[i * n + j] + f[i]))).collect();
            if let Some(error) = end.error
                && step > 0
            {
                // The logarithm of a column sum is the difference of the old g and the new.
                let worst = self.g.iter().zip(&g).map(|(old, new)| Float::expm1(old - new).abs());
                // NaN stops.
                let goes_on = worst.fold(0.0, Float::maximum) > error;
                if !goes_on {
                    break;
                }
            }
            self.g = g;
            let (h, g) = (&self.h, &self.g);
            self.f = (0..n).map(|i| minus_log_sum_exp((0..n).map(|j| h[i * n + j] + g[j]))).collect();
            self.steps += 1;
            if keep {
                self.history.extend_from_slice(&self.g);
                self.history.extend_from_slice(&self.f);
            }
        }
    }

    /// `exp(Hᵢⱼ + fᵢ + gⱼ)`.
    fn matrix(&self, f: &[f64], g: &[f64]) -> Vec<f64> {
        let n = self.n;
        (0..n * n).map(|at| Float::exp(self.h[at] + f[at / n] + g[at % n])).collect()
    }

    /// The cotangent of H: from that of ln P, G∘P, each half step takes its sums along the axis, times its result.
    fn pull(&self, cotangent: &[f64]) -> Vec<f64> {
        let n = self.n;
        let mut d: Vec<f64> =
            self.matrix(&self.f, &self.g).iter().zip(cotangent).map(|(p, g)| p * g).collect();
        let at = |k: usize| &self.history[k * n..(k + 1) * n];
        for t in (1..=self.steps).rev() {
            let y = self.matrix(at(2 * t), at(2 * t - 1));
            for (d, y) in d.chunks_exact_mut(n).zip(y.chunks_exact(n)) {
                let sum: f64 = d.iter().sum();
                d.iter_mut().zip(y).for_each(|(d, y)| *d -= y * sum);
            }
            let y = self.matrix(at(2 * t - 2), at(2 * t - 1));
            for j in 0..n {
                let sum: f64 = (0..n).map(|i| d[i * n + j]).sum();
                (0..n).for_each(|i| d[i * n + j] -= y[i * n + j] * sum);
            }
        }
        d
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_one_answer, numbers};
    use super::*;
    use crate::Fused;
    use crate::cpu::fixture::{naive, views};

    const STOPS: [Stop; 4] =
        [Stop::Steps(1), Stop::Steps(20), Stop::Tolerance { error: 1e-3, at_most: 40 }, Stop::Converged];

    fn run(f: Fused, x: &[&Tensor]) -> Vec<f64> {
        naive(&Tensor::fused(f, x).unwrap().unwrap())
    }

    /// What the logarithms make of every matrix.
    fn reference(x: &Tensor, stop: Stop, wanted: Wanted<'_, f64>) -> Vec<f64> {
        let n = x.shape()[x.shape().len() - 1];
        let end = End { at_most: stop.at_most(), error: stop.error(n, x.dtype()) };
        let (values, mut logarithms) = (naive(x), Logarithms::new(n));
        let width = if matches!(wanted, Wanted::Steps) { 1 } else { n * n };
        let mut all = Vec::new();
        for (m, h) in values.chunks_exact(n * n).enumerate() {
            let mut out = vec![0.0; width];
            logarithms.run(h, wanted.of(m * n * n..(m + 1) * n * n), end, &mut out);
            all.extend(out);
        }
        all
    }

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= tolerance * b.abs().max(1.0),
                "{what}: element {i} is {a}, expected {b}"
            );
        }
    }

    #[test]
    fn logarithms_give_the_definition() {
        let h = numbers([3, 3], DType::F64, 5);
        let mut m: Vec<f64> = naive(&h).iter().map(|h| h.exp()).collect();
        for _ in 0..20 {
            for j in 0..3 {
                let sum: f64 = (0..3).map(|i| m[i * 3 + j]).sum();
                (0..3).for_each(|i| m[i * 3 + j] /= sum);
            }
            for row in m.chunks_exact_mut(3) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        assert_near(&reference(&h, Stop::Steps(20), Wanted::Matrix), &m, 1e-14, "20 steps");
    }

    #[test]
    fn scalings_are_logarithms() {
        // In f32 the two may stop a step apart, so that a tolerance is kept but the results differ by as much.
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
            for shape in [&[1, 1][..], &[2, 2], &[1, 3, 3], &[135, 4, 4], &[65, 9, 9], &[2, 40, 40]] {
                let (x, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                for stop in STOPS {
                    if dtype == DType::F32 && !matches!(stop, Stop::Steps(_)) {
                        continue;
                    }
                    let what = format!("{dtype} {shape:?} {stop:?}");
                    let found = run(Fused::Sinkhorn(stop), &[&x]);
                    assert_near(&found, &reference(&x, stop, Wanted::Matrix), tolerance, &what);
                    let found = run(Fused::SinkhornBackward(stop), &[&x, &g]);
                    let expected = reference(&x, stop, Wanted::Gradient(&naive(&g)));
                    assert_near(&found, &expected, tolerance, &what);
                    if stop != Stop::Converged {
                        let found = run(Fused::SinkhornSteps(stop), &[&x]);
                        assert_eq!(found, reference(&x, stop, Wanted::Steps), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn scalings_hand_over_where_they_end() {
        // Logits of growing size, in f32: some matrices stay, others go to the logarithms, and none of them is wrong.
        for size in [1.0, 10.0, 30.0, 60.0, 100.0, 1000.0, 10_000.0] {
            let logits: Vec<f64> =
                naive(&numbers([100, 3, 3], DType::F32, 3)).iter().map(|v| v * size).collect();
            let x = Tensor::from_f64(&logits, [100, 3, 3], DType::F32);
            let g = numbers([100, 3, 3], DType::F32, 4);
            let stop = Stop::Steps(20);
            let found = run(Fused::Sinkhorn(stop), &[&x]);
            assert_near(&found, &reference(&x, stop, Wanted::Matrix), 3e-5, &format!("{size}"));
            let found = run(Fused::SinkhornBackward(stop), &[&x, &g]);
            let expected = reference(&x, stop, Wanted::Gradient(&naive(&g)));
            assert_near(&found, &expected, 2e-4, &format!("gradient, {size}"));
        }
        // Both ways are taken.
        let trusted = |size: f32| {
            let logits: Vec<f32> =
                naive(&numbers([3, 3], DType::F32, 3)).iter().map(|v| *v as f32 * size).collect();
            let mut scalings = Scalings::<f32, 1>::new(3);
            scalings.load(3, &logits);
            scalings.iterate::<f32>(3, 1, End { at_most: 20, error: None });
            scalings.trusted(0)
        };
        assert!(trusted(1.0) && !trusted(10_000.0));
    }

    #[test]
    fn every_layout_gives_the_same() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let all = views(&[70, 4, 4], dtype);
            for x in &all {
                let packed = x.contiguous().unwrap();
                for f in [Fused::Sinkhorn(STOPS[1]), Fused::SinkhornSteps(STOPS[2])] {
                    assert_eq!(run(f, &[x]), run(f, &[&packed]), "{dtype} {:?}", x.layout());
                }
                let backward = Fused::SinkhornBackward(STOPS[1]);
                assert_eq!(run(backward, &[x, x]), run(backward, &[&packed, &packed]));
            }
        }
        let counts = Tensor::fused(Fused::SinkhornSteps(STOPS[2]), &[&numbers([5, 4, 4], DType::BF16, 1)]);
        assert_eq!(counts.unwrap().unwrap().dtype(), DType::I64);
    }

    #[test]
    fn threads_and_vector_widths_do_not_change_a_bit() {
        for dtype in [DType::F32, DType::F64] {
            for shape in [&[137, 4, 4][..], &[3000, 4, 4], &[7, 40, 40]] {
                let (x, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                assert_one_answer(Fused::Sinkhorn(Stop::Steps(20)), &[&x]);
                assert_one_answer(Fused::SinkhornBackward(Stop::Steps(20)), &[&x, &g]);
                assert_one_answer(Fused::SinkhornSteps(STOPS[2]), &[&x]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "sinkhorn: expected square matrices in the last two axes, found shape [2, 3]")]
    fn a_matrix_that_is_not_square_panics() {
        let _ = Tensor::fused(Fused::Sinkhorn(Stop::Steps(1)), &[&numbers([2, 3], DType::F32, 1)]);
    }
}
