//! Sinkhorn–Knopp by log-sum-exp: for every matrix, one at a time, and the reference of the scalings.

use super::super::super::math::Float;
use super::super::Real;
use super::{End, Wanted};

/// One matrix as `exp(Hᵢⱼ + fᵢ + gⱼ)`, in f64.
pub(super) struct Logarithms {
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
    pub(super) fn new(n: usize) -> Self {
        Logarithms { n, h: vec![0.0; n * n], f: vec![0.0; n], g: vec![0.0; n], steps: 0, history: Vec::new() }
    }

    /// Everything for one matrix.
    #[cold]
    #[inline(never)]
    pub(super) fn run<T: Real>(&mut self, logits: &[T], wanted: Wanted<'_, T>, end: End, out: &mut [T]) {
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
