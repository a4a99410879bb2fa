//! By how much does a part of the program stretch what passes it, sample by sample?

use std::fmt;

use limpid_tensor::Tensor;

use crate::backward::Paths;
use crate::cotangent::Cotangent;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::part::norm;
use crate::tape::Tape;
use crate::var::Var;

/// Up to this many rows a Jacobian is computed whole.
const WHOLE: usize = 128;

/// Power iteration ends when two rounds differ by less than this, relative to the value.
const SETTLED: f64 = 1e-4;

/// Power iteration ends after this many rounds at the latest.
const ROUNDS: usize = 500;

/// The singular values of the Jacobian of every sample: from [`Tape::jacobian_spectrum`].
#[derive(Clone, PartialEq, Debug)]
pub struct JacobianSpectrum {
    /// By sample, the largest first. Power iteration finds only the largest.
    pub samples: Vec<Vec<f64>>,
    /// Where these numbers come from.
    pub method: Method,
}

/// How singular values were found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Method {
    /// From the whole Jacobian, computed by as many vector–Jacobian products.
    Exact {
        /// The number of rows.
        vjps: usize,
    },
    /// By power iteration with `JᵀJ`, on every sample at once.
    PowerIteration {
        /// One Jacobian–vector and one vector–Jacobian product each.
        rounds: usize,
        /// The largest `‖JᵀJv − σ²v‖/σ²` over the samples, with the unit vector v reached: a squared singular value lies
        /// within this, relative to σ². (It need not be the largest one, if the start was almost orthogonal to it.)
        residual: f64,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Exact { vjps } => write!(f, "exact, {vjps} vector–Jacobian products"),
            Method::PowerIteration { rounds, residual } => {
                write!(f, "power iteration, {rounds} rounds, residual {residual:.1e}")
            }
        }
    }
}

impl Tape {
    /// The Jacobian of `y` by `x` for each sample, all at once: one vector–Jacobian product per row, however many
    /// samples. The first `batch_axes` axes of both number the samples, the rest make up a sample's vector.
    /// [`Paths::Direct`] leaves out what crosses a branch or a control edge.
    ///
    /// ```
    /// use limpid_autograd::{Paths, Tape};
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0], [2, 2]));
    /// let y = x * x.flip(1); // (ab, ba) for each sample (a, b)
    /// let jacobians = tape.sample_jacobians(y, x, 1, Paths::All)?;
    /// assert_eq!(jacobians[0].values(), [2.0, 1.0, 2.0, 1.0]);
    /// assert_eq!(jacobians[1].values(), [4.0, 3.0, 4.0, 3.0]);
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before.
    ///
    /// # Panics
    /// If the first `batch_axes` axes differ, or if a sample of `y` depends on another sample of `x`, as behind a batch
    /// normalisation in training: there is no Jacobian per sample then. (One more product, with random signs by sample,
    /// finds that out.)
    #[track_caller]
    pub fn sample_jacobians<'t>(
        &'t self,
        y: Var<'t>,
        x: Var<'t>,
        batch_axes: usize,
        paths: Paths,
    ) -> Result<Vec<Matrix>> {
        let Samples { count, rows, columns } = self.samples("sample_jacobians", y, x, batch_axes);
        let mut jacobians: Vec<Vec<f64>> = vec![Vec::with_capacity(rows * columns); count];
        for row in 0..rows {
            let back = self.pull_numbers(y, x, paths, |i| if i % rows == row { 1.0 } else { 0.0 })?;
            for (jacobian, back) in jacobians.iter_mut().zip(back.chunks(columns.max(1))) {
                jacobian.extend_from_slice(back);
            }
        }
        if count > 1 && rows > 0 {
            self.expect_independent(y, x, &jacobians, paths)?;
        }
        Ok(jacobians.into_iter().map(|values| Matrix::new(rows, columns, values)).collect())
    }

    /// The singular values of the Jacobian of `y` by `x` for each sample, where the first `batch_axes` axes of both number
    /// the samples. Of a branch, with its input and output: by how much it can stretch a change of the stream.
    ///
    /// Exact up to 128 elements a sample of `y`, from the [whole Jacobians](Tape::sample_jacobians). Above that power
    /// iteration finds the largest; the result says which it was.
    ///
    /// ```
    /// use limpid_autograd::{Method, Tape};
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![0.0f64, 0.0, 0.0], [3, 1]));
    /// let spectrum = tape.jacobian_spectrum(x.tanh() * -2.0, x, 1)?;
    /// assert_eq!(spectrum.samples, [[2.0], [2.0], [2.0]]);
    /// assert_eq!(spectrum.method, Method::Exact { vjps: 1 });
    /// # Ok::<(), limpid_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the tape is dry or something failed, now or before. Power iteration also needs forward mode, see
    /// [`jvp`](Tape::jvp).
    ///
    /// # Panics
    /// As [`sample_jacobians`](Tape::sample_jacobians); power iteration cannot tell whether samples are independent.
    #[track_caller]
    pub fn jacobian_spectrum<'t>(
        &'t self,
        y: Var<'t>,
        x: Var<'t>,
        batch_axes: usize,
    ) -> Result<JacobianSpectrum> {
        let Samples { count, rows, columns } = self.samples("jacobian_spectrum", y, x, batch_axes);
        if rows <= WHOLE {
            let jacobians = self.sample_jacobians(y, x, batch_axes, Paths::All)?;
            let samples = jacobians.iter().map(Matrix::singular_values).collect();
            return Ok(JacobianSpectrum { samples, method: Method::Exact { vjps: rows } });
        }
        self.power_iteration(y, x, count, columns)
    }

    /// The largest singular value of each sample's Jacobian.
    #[track_caller]
    fn power_iteration<'t>(
        &'t self,
        y: Var<'t>,
        x: Var<'t>,
        count: usize,
        columns: usize,
    ) -> Result<JacobianSpectrum> {
        let _unseen = self.hooks.suspend();
        let (shape, dtype) = (self.meta(x).shape, self.meta(x).dtype);
        let key = limpid_tensor::rng::Key::new(0).fold_str("power iteration");
        let mut v: Vec<f64> = (0..(count * columns) as u64).map(|i| key.normal(i)).collect();
        let mut squares = vec![0.0; count];
        let mut method = Method::PowerIteration { rounds: 0, residual: 0.0 };
        for rounds in 1..=ROUNDS {
            let mut growth: f64 = 0.0;
            for v in v.chunks_mut(columns.max(1)) {
                let length = norm(v);
                v.iter_mut().for_each(|v| *v /= if length > 0.0 { length } else { 1.0 });
            }
            let stretched = self.pushed_value(y, x, &Tensor::from_f64(&v, &shape, dtype))?;
            let back = match self.carry(y, Cotangent::of(stretched), &[x], Paths::All)?.swap_remove(0) {
                Some(back) => self.numbers(x.id, &back)?,
                None => vec![0.0; v.len()],
            };
            let mut residual: f64 = 0.0;
            for (s, (v, back)) in v.chunks(columns.max(1)).zip(back.chunks(columns.max(1))).enumerate() {
                let square: f64 = v.iter().zip(back).map(|(v, b)| v * b).sum();
                let off: Vec<f64> = v.iter().zip(back).map(|(v, b)| b - square * v).collect();
                if square > 0.0 {
                    residual = residual.max(norm(&off) / square);
                    growth = growth.max((square - squares[s]).abs() / square);
                }
                squares[s] = square;
            }
            v = back;
            method = Method::PowerIteration { rounds, residual };
            if growth < SETTLED {
                break;
            }
        }
        let samples = squares.iter().map(|square| vec![square.max(0.0).sqrt()]).collect();
        Ok(JacobianSpectrum { samples, method })
    }

    /// `∂y/∂x·dx` as a value; what forward mode records is dropped again.
    #[track_caller]
    fn pushed_value<'t>(&'t self, y: Var<'t>, x: Var<'t>, dx: &Tensor) -> Result<Tensor> {
        let mark = self.len();
        let value = {
            let _constant = self.record_aside();
            self.jvp(y, &[(x, self.constant(dx))]).and_then(|dy| dy.value())
        };
        self.truncate(mark);
        value
    }

    /// `gᵀ·∂y/∂x` in f64, g by element.
    pub(crate) fn pull_numbers<'t>(
        &'t self,
        y: Var<'t>,
        x: Var<'t>,
        paths: Paths,
        g: impl Fn(usize) -> f64,
    ) -> Result<Vec<f64>> {
        let _unseen = self.hooks.suspend();
        let meta = self.meta(y);
        let g: Vec<f64> = (0..meta.shape.elements()).map(g).collect();
        let g = Tensor::from_f64(&g, &meta.shape, meta.dtype).to(self.device());
        let g = g.map_err(|e| self.backend_error(y, e))?;
        match self.carry(y, Cotangent::of(g), &[x], paths)?.swap_remove(0) {
            Some(cotangent) => self.numbers(x.id, &cotangent),
            None => Ok(vec![0.0; self.meta(x).shape.elements()]),
        }
    }

    /// Panics if the first rows of the samples' Jacobians, with a random sign each, are not what comes back when that is
    /// handed in. Without a dependence between samples the two agree in every bit, as rules commute with a change of sign.
    #[track_caller]
    fn expect_independent<'t>(
        &'t self,
        y: Var<'t>,
        x: Var<'t>,
        jacobians: &[Vec<f64>],
        paths: Paths,
    ) -> Result<()> {
        let (rows, columns) = (
            self.meta(y).shape.elements() / jacobians.len(),
            self.meta(x).shape.elements() / jacobians.len(),
        );
        let key = limpid_tensor::rng::Key::new(0).fold_str("independent samples");
        let sign = |sample: usize| if key.bits(sample as u64) & 1 == 1 || sample == 0 { 1.0 } else { -1.0 };
        let signed = |i: usize| if i.is_multiple_of(rows) { sign(i / rows) } else { 0.0 };
        let back = self.pull_numbers(y, x, paths, signed)?;
        for (s, (jacobian, back)) in jacobians.iter().zip(back.chunks(columns.max(1))).enumerate() {
            let same = jacobian[..columns].iter().zip(back).all(|(j, b)| sign(s) * j == *b || j.is_nan());
            assert!(
                same,
                "sample_jacobians: in {y:?} by {x:?}, sample {s} depends on other samples; there is no Jacobian per sample"
            );
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn samples(&self, what: &str, y: Var<'_>, x: Var<'_>, batch_axes: usize) -> Samples {
        let (y, x) = (self.meta(y).shape, self.meta(x).shape);
        let same = y.len() >= batch_axes && x.len() >= batch_axes && y[..batch_axes] == x[..batch_axes];
        assert!(
            same,
            "{what}: the first {batch_axes} axes must number the samples of both, found {y} and {x}"
        );
        let elements = |sizes: &[usize]| sizes.iter().product::<usize>();
        Samples {
            count: elements(&y[..batch_axes]),
            rows: elements(&y[batch_axes..]),
            columns: elements(&x[batch_axes..]),
        }
    }
}

/// How many samples, and a sample's Jacobian.
pub(crate) struct Samples {
    pub count: usize,
    pub rows: usize,
    pub columns: usize,
}
