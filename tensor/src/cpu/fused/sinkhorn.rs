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
use super::super::simd::widest;
use super::super::threads;
use super::{Real, row_major};
use crate::{DType, Error, HostBuffer, Result, Stop, Tensor};

/// Matrices side by side. A loop over so many stays a loop, which the compiler makes vectors of; one over a register's
/// width it unrolls into single numbers first, at a third of the speed.
const LANES: usize = 64;
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
            several(n, &logits[elements.clone()], wanted.of(elements), end, width, out);
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

/// Some matrices, by one thread: groups of [`LANES`], what is left one by one.
fn several<T: Real>(n: usize, logits: &[T], wanted: Wanted<'_, T>, end: End, width: usize, out: &mut [T]) {
    widest(
        #[inline(always)]
        || {
            // The scalings of a long iteration are kept for one matrix at a time: 100,000 steps of 64 would be gigabytes.
            let kept = if matches!(wanted, Wanted::Gradient(_)) { end.at_most } else { 0 };
            let side_by_side = n <= LARGEST_SIDE_BY_SIDE && kept <= LONGEST_SIDE_BY_SIDE;
            let grouped = if side_by_side { out.len() / width / LANES * LANES } else { 0 };
            let (groups, alone) = out.split_at_mut(grouped * width);
            let (mut scalings, mut logarithms) = (Scalings::<T, LANES>::new(n), Logarithms::new(n));
            for (i, out) in groups.chunks_exact_mut(LANES * width).enumerate() {
                let elements = i * LANES * n * n..(i + 1) * LANES * n * n;
                let wanted = wanted.of(elements.clone());
                scalings.run(&mut logarithms, &logits[elements], wanted, end, out);
            }
            let mut scalings = Scalings::<T, 1>::new(n);
            for (i, out) in alone.chunks_exact_mut(width).enumerate() {
                let elements = (grouped + i) * n * n..(grouped + i + 1) * n * n;
                let wanted = wanted.of(elements.clone());
                scalings.run(&mut logarithms, &logits[elements], wanted, end, out);
            }
        },
    );
}

/// One number of each of L matrices.
type Lanes<T, const L: usize> = [T; L];

/// L matrices side by side, as `diag(u)·K·diag(v)`.
struct Scalings<T, const L: usize> {
    n: usize,
    /// K, row by row.
    k: Vec<Lanes<T, L>>,
    u: Vec<Lanes<T, L>>,
    v: Vec<Lanes<T, L>>,
    /// Products with the transpose of K; anything else with an entry for each column.
    sums: Vec<Lanes<T, L>>,
    /// The smallest and the largest uᵢ there has been.
    extremes: [Lanes<T, L>; 2],
    /// How many steps each matrix has made.
    steps: [usize; L],
    /// u₀, v₁, u₁, v₂, u₂, …, if a gradient is wanted.
    history: Vec<Lanes<T, L>>,
    /// What has come together of the gradient, without its factor K.
    d: Vec<Lanes<T, L>>,
}

/// s + a·b.
#[inline(always)]
fn add_product<T: Real, const L: usize>(s: &mut Lanes<T, L>, a: &Lanes<T, L>, b: &Lanes<T, L>) {
    for l in 0..L {
        s[l] = s[l] + a[l] * b[l];
    }
}

/// Kᵀ·u.
#[inline(always)]
fn transposed_times<T: Real, const L: usize>(k: &[Lanes<T, L>], u: &[Lanes<T, L>], out: &mut [Lanes<T, L>]) {
    out.fill([T::ZERO; L]);
    for (row, u) in k.chunks_exact(out.len()).zip(u) {
        for (sum, k) in out.iter_mut().zip(row) {
            add_product(sum, k, u);
        }
    }
}

/// A row of K, times v.
#[inline(always)]
fn row_times<T: Real, const L: usize>(row: &[Lanes<T, L>], v: &[Lanes<T, L>]) -> Lanes<T, L> {
    let mut sum = [T::ZERO; L];
    for (k, v) in row.iter().zip(v) {
        add_product(&mut sum, k, v);
    }
    sum
}

impl<T: Real, const L: usize> Scalings<T, L> {
    fn new(n: usize) -> Self {
        let (vector, matrix) = (|| vec![[T::ZERO; L]; n], || vec![[T::ZERO; L]; n * n]);
        Scalings {
            n,
            k: matrix(),
            u: vector(),
            v: vector(),
            sums: vector(),
            extremes: [[T::ONE; L]; 2],
            steps: [0; L],
            history: Vec::new(),
            d: matrix(),
        }
    }

    /// Everything for L matrices, which lie one after the other.
    #[inline(always)]
    fn run(
        &mut self,
        logarithms: &mut Logarithms,
        logits: &[T],
        wanted: Wanted<'_, T>,
        end: End,
        out: &mut [T],
    ) {
        self.load(logits);
        self.iterate(end, matches!(wanted, Wanted::Gradient(_)));
        match wanted {
            Wanted::Matrix => self.store(out),
            Wanted::Gradient(g) => self.pull(g, out),
            Wanted::Steps => out.iter_mut().zip(self.steps).for_each(|(out, t)| *out = T::of(t as f64)),
        }
        let size = self.n * self.n;
        let width = out.len() / L;
        for l in (0..L).filter(|&l| !self.trusted(l)) {
            let elements = l * size..(l + 1) * size;
            let wanted = wanted.of(elements.clone());
            logarithms.run(&logits[elements], wanted, end, &mut out[l * width..(l + 1) * width]);
        }
    }

    #[inline(always)]
    fn load(&mut self, logits: &[T]) {
        let n = self.n;
        for (l, matrix) in logits.chunks_exact(n * n).enumerate() {
            self.k.iter_mut().zip(matrix).for_each(|(k, &h)| k[l] = h);
        }
        let largest = &mut self.sums;
        largest.fill([T::of(f64::NEG_INFINITY); L]);
        for row in self.k.chunks_exact(n) {
            for (largest, h) in largest.iter_mut().zip(row) {
                for l in 0..L {
                    largest[l] = if h[l] > largest[l] { h[l] } else { largest[l] };
                }
            }
        }
        for row in self.k.chunks_exact_mut(n) {
            for (k, largest) in row.iter_mut().zip(&*largest) {
                for l in 0..L {
                    k[l] = (k[l] - largest[l]).exp();
                }
            }
        }
    }

    #[inline(always)]
    fn iterate(&mut self, end: End, keep: bool) {
        self.u.fill([T::ONE; L]);
        self.v.fill([T::ZERO; L]);
        self.steps = [0; L];
        self.extremes = [[T::ONE; L]; 2];
        self.history.clear();
        if keep {
            self.history.extend_from_slice(&self.u);
        }
        let mut running = [true; L];
        for step in 0..end.at_most {
            transposed_times(&self.k, &self.u, &mut self.sums);
            if let Some(error) = end.error
                && step > 0
            {
                let worst = self.worst_column();
                for l in 0..L {
                    // NaN stops.
                    running[l] = running[l] && self.trusted(l) && worst[l].wide() > error;
                }
                if !running.contains(&true) {
                    break;
                }
            }
            for (v, sum) in self.v.iter_mut().zip(&self.sums) {
                for l in 0..L {
                    v[l] = if running[l] { T::ONE / sum[l] } else { v[l] };
                }
            }
            let [mut low, mut high] = self.extremes;
            for (row, u) in self.k.chunks_exact(self.n).zip(&mut self.u) {
                let sum = row_times(row, &self.v);
                for l in 0..L {
                    u[l] = if running[l] { T::ONE / sum[l] } else { u[l] };
                    low[l] = if u[l] < low[l] { u[l] } else { low[l] };
                    high[l] = if u[l] > high[l] { u[l] } else { high[l] };
                }
            }
            self.extremes = [low, high];
            for l in 0..L {
                self.steps[l] += usize::from(running[l]);
            }
            if keep {
                self.history.extend_from_slice(&self.v);
                self.history.extend_from_slice(&self.u);
            }
        }
    }

    /// The largest |column sum − 1|; the sums, without their factor v, are those of u.
    #[inline(always)]
    fn worst_column(&self) -> Lanes<T, L> {
        let mut worst = [T::ZERO; L];
        for (v, sum) in self.v.iter().zip(&self.sums) {
            for l in 0..L {
                worst[l] = worst[l].maximum((v[l] * sum[l] - T::ONE).abs());
            }
        }
        worst
    }

    /// Whether a matrix has stayed where nothing that matters underflows. A NaN in u stays there.
    #[inline(always)]
    fn trusted(&self, l: usize) -> bool {
        let bound = if T::DTYPE == DType::F32 { 1e12 } else { 1e120 };
        let [low, high] = [self.extremes[0][l].wide(), self.extremes[1][l].wide()];
        low >= 1.0 / bound && high <= bound && !self.u.iter().any(|u| u[l].is_nan())
    }

    /// uᵢ·Kᵢⱼ·vⱼ.
    #[inline(always)]
    fn store(&mut self, out: &mut [T]) {
        let n = self.n;
        for (row, u) in self.k.chunks_exact_mut(n).zip(&self.u) {
            for (k, v) in row.iter_mut().zip(&self.v) {
                for l in 0..L {
                    k[l] = u[l] * k[l] * v[l];
                }
            }
        }
        for (l, matrix) in out.chunks_exact_mut(n * n).enumerate() {
            matrix.iter_mut().zip(&self.k).for_each(|(p, k)| *p = k[l]);
        }
    }

    /// The cotangent of H. Where a half step has made `Y = X/s`, it has made `ln Y = ln X − ln s`, and takes from the
    /// cotangent D of `ln Y` its sums along the axis, times Y. As every Y is `diag(u)·K·diag(v)`, the sums before the
    /// step are those after it, less a product of K and a vector; D itself gathers what each step takes from it.
    #[inline(always)]
    fn pull(&mut self, g: &[T], out: &mut [T]) {
        let n = self.n;
        for (l, matrix) in g.chunks_exact(n * n).enumerate() {
            self.d.iter_mut().zip(matrix).for_each(|(d, &g)| d[l] = g);
        }
        // At the end: D = G∘P, with these row and column sums.
        let zeros = || vec![[T::ZERO; L]; n];
        let (mut last_rows, mut last_columns) = (zeros(), zeros());
        let matrix = self.k.chunks_exact(n).zip(self.d.chunks_exact_mut(n));
        for (((k, d), u), row_sum) in matrix.zip(&self.u).zip(&mut last_rows) {
            for (((k, d), v), column_sum) in k.iter().zip(d).zip(&self.v).zip(&mut last_columns) {
                for l in 0..L {
                    d[l] = d[l] * (u[l] * v[l]);
                }
                add_product(row_sum, d, k);
                add_product(column_sum, d, k);
            }
        }
        // Nothing flows to a matrix in the steps that it did not make.
        let (mut rows, mut columns) = (zeros(), zeros());
        let longest = self.steps.iter().copied().max().unwrap_or(0);
        for t in (1..=longest).rev() {
            for l in (0..L).filter(|&l| self.steps[l] == t) {
                rows.iter_mut().zip(&last_rows).for_each(|(row, last)| row[l] = last[l]);
                columns.iter_mut().zip(&last_columns).for_each(|(column, last)| column[l] = last[l]);
            }
            let [before, v, u] = [2 * t - 2, 2 * t - 1, 2 * t].map(|at| &self.history[at * n..(at + 1) * n]);
            // The rows, Y = diag(u)·K·diag(v): from here on, `rows` has the factor u.
            for (row, u) in rows.iter_mut().zip(u) {
                for l in 0..L {
                    row[l] = row[l] * u[l];
                }
            }
            transposed_times(&self.k, &rows, &mut self.sums);
            // The columns, Y = diag(u before)·K·diag(v): from here on, `columns` has the factor v.
            for ((column, sum), v) in columns.iter_mut().zip(&self.sums).zip(v) {
                for l in 0..L {
                    column[l] = (column[l] - sum[l] * v[l]) * v[l];
                }
            }
            let matrix = self.k.chunks_exact(n).zip(self.d.chunks_exact_mut(n));
            for (((k, d), row), before) in matrix.zip(&mut rows).zip(before) {
                for ((d, v), column) in d.iter_mut().zip(v).zip(&columns) {
                    for l in 0..L {
                        d[l] = d[l] - (row[l] * v[l] + before[l] * column[l]);
                    }
                }
                let sum = row_times(k, &columns);
                for l in 0..L {
                    row[l] = -(before[l] * sum[l]);
                }
            }
            columns.fill([T::ZERO; L]);
        }
        for (l, matrix) in out.chunks_exact_mut(n * n).enumerate() {
            matrix.iter_mut().zip(self.d.iter().zip(&self.k)).for_each(|(out, (d, k))| *out = d[l] * k[l]);
        }
    }
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
            scalings.load(&logits);
            scalings.iterate(End { at_most: 20, error: None }, false);
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
