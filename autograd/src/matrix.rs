//! What does a small dense matrix do to lengths, once and again and again?

use std::fmt;

mod eigenvalues;

/// A small dense matrix in f64, row-major: a Jacobian, a composite map.
#[derive(Clone, PartialEq, Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// From its elements, row by row.
    ///
    /// # Panics
    /// If there are not `rows·columns` of them.
    #[track_caller]
    pub fn new(rows: usize, columns: usize, values: Vec<f64>) -> Matrix {
        assert_eq!(
            values.len(),
            rows * columns,
            "matrix: {rows}×{columns} needs {} elements",
            rows * columns
        );
        Matrix { rows, columns, values }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The element in row `i` and column `j`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn at(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.rows && j < self.columns, "matrix: no [{i}, {j}] in {}×{}", self.rows, self.columns);
        self.values[i * self.columns + j]
    }

    /// The elements, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The largest absolute row sum: by how much the largest element of `Mx` can exceed that of x. Of a composite map, the
    /// forward Amax gain (mHC, arXiv 2512.24880, Fig. 3).
    ///
    /// A gain of 1 does not say that a map keeps streams apart: the mean of n streams has it too. See
    /// [`singular_values`](Matrix::singular_values).
    pub fn row_gain(&self) -> f64 {
        let sum = |i: usize| (0..self.columns).map(|j| self.at(i, j).abs()).sum::<f64>();
        (0..self.rows).map(sum).fold(0.0, largest)
    }

    /// The largest absolute column sum, which bounds how a gradient grows on its way back through `Mᵀ`: the backward Amax
    /// gain.
    pub fn column_gain(&self) -> f64 {
        let sum = |j: usize| (0..self.rows).map(|i| self.at(i, j).abs()).sum::<f64>();
        (0..self.columns).map(sum).fold(0.0, largest)
    }

    /// The singular values, the largest first: the factors by which the matrix stretches `min(rows, columns)` orthogonal
    /// directions. If the second is 0, everything has collapsed to one direction.
    ///
    /// One-sided Jacobi: columns are rotated in pairs until all are orthogonal; their norms are the singular values, small
    /// ones accurate relative to themselves as far as the matrix determines them (J. Demmel and K. Veselić, *Jacobi's
    /// method is more accurate than QR*, 1992). All NaN if an element is not finite.
    ///
    /// ```
    /// use limpid_autograd::Matrix;
    /// let mean = Matrix::new(2, 2, vec![0.5; 4]);
    /// assert_eq!((mean.row_gain(), mean.column_gain()), (1.0, 1.0)); // and yet
    /// assert!(mean.singular_values()[1] < 1e-16);
    /// ```
    pub fn singular_values(&self) -> Vec<f64> {
        let (long, short) = (self.rows.max(self.columns), self.rows.min(self.columns));
        let scale = self.values.iter().fold(0.0, |most, v| largest(most, v.abs()));
        if !scale.is_finite() {
            return vec![f64::NAN; short];
        }
        if scale == 0.0 {
            return vec![0.0; short];
        }
        // The short side's vectors, each contiguous: the columns, or the rows of a wide matrix.
        let element =
            |k: usize, i: usize| if self.rows >= self.columns { self.at(i, k) } else { self.at(k, i) };
        let mut vectors: Vec<Vec<f64>> =
            (0..short).map(|k| (0..long).map(|i| element(k, i) / scale).collect()).collect();
        // Convergence is quadratic: about 10 rounds at most in practice; each only lessens what is not orthogonal.
        for _ in 0..60 {
            let mut rotated = false;
            for p in 0..short {
                for q in p + 1..short {
                    let (before, after) = vectors.split_at_mut(q);
                    rotated |= orthogonalise(&mut before[p], &mut after[0]);
                }
            }
            if !rotated {
                break;
            }
        }
        let mut values: Vec<f64> = vectors.iter().map(|v| scale * dot(v, v).sqrt()).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    /// The moduli |λ| of all eigenvalues of a square matrix, the largest first, a pair of conjugates twice: by what factors
    /// it stretches when it is applied again and again. Of a composite map with rows that sum to 1 the first is at least 1
    /// (the mean survives); the second says what becomes of the differences between streams.
    ///
    /// Hessenberg form, then shifted QR (the file `matrix/eigenvalues.rs`). Exact for a matrix that differs from this one by
    /// rounding of its largest elements: an eigenvalue that sits k times in one Jordan block is found to about ε^(1/k). All
    /// NaN if an element is not finite, or if 100 steps do not separate an eigenvalue.
    ///
    /// # Panics
    /// If the matrix is not square.
    ///
    /// ```
    /// use limpid_autograd::Matrix;
    /// let shear = Matrix::new(2, 2, vec![1.0, 100.0, 0.0, 1.0]);
    /// assert_eq!(shear.eigenvalue_moduli(), [1.0, 1.0]); // and yet
    /// assert!(shear.singular_values()[0] > 100.0);
    /// ```
    #[track_caller]
    pub fn eigenvalue_moduli(&self) -> Vec<f64> {
        let n = self.rows;
        assert_eq!(n, self.columns, "eigenvalue_moduli: a {n}×{} matrix is not square", self.columns);
        let scale = self.values.iter().fold(0.0, |most, v| largest(most, v.abs()));
        if !scale.is_finite() {
            return vec![f64::NAN; n];
        }
        if scale == 0.0 {
            return vec![0.0; n];
        }
        let scaled: Vec<f64> = self.values.iter().map(|v| v / scale).collect();
        let Some(mut moduli) = eigenvalues::moduli(n, &scaled) else { return vec![f64::NAN; n] };
        moduli.iter_mut().for_each(|v| *v *= scale);
        moduli.sort_by(|a, b| b.total_cmp(a));
        moduli
    }
}

/// Rotates two vectors in their plane so that they become orthogonal; whether there was anything to do.
fn orthogonalise(a: &mut [f64], b: &mut [f64]) -> bool {
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    // The products are themselves rounded, by about √n units.
    if ab.abs() <= f64::EPSILON * (a.len() as f64).sqrt() * (aa.sqrt() * bb.sqrt()) {
        return false;
    }
    // The smaller root t = tan of t² + 2ζt − 1 = 0 with ζ = (bb − aa)/2ab.
    let zeta = (bb - aa) / (2.0 * ab);
    let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = c * t;
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The larger of two, NaN if one is.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Row by row, with four digits.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in self.values.chunks(self.columns.max(1)) {
            let row: Vec<String> = row.iter().map(|v| format!("{v:>10.3e}")).collect();
            writeln!(f, "{}", row.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f64> {
        let key = limpid_tensor::rng::Key::new(seed);
        (0..n as u64).map(|i| key.normal(i)).collect()
    }

    #[test]
    fn known_singular_values() {
        // [[3, 0], [4, 5]] has σ² = 45 and 5.
        let values = Matrix::new(2, 2, vec![3.0, 0.0, 4.0, 5.0]).singular_values();
        assert!((values[0] - 45f64.sqrt()).abs() < 1e-14 && (values[1] - 5f64.sqrt()).abs() < 1e-14);
        assert_eq!(Matrix::new(2, 3, vec![0.0; 6]).singular_values(), [0.0, 0.0]);
        assert_eq!(Matrix::new(1, 3, vec![2.0, -3.0, 6.0]).singular_values(), [7.0]);
        assert_eq!(Matrix::new(0, 3, vec![]).singular_values(), [0.0; 0]);
        assert!(Matrix::new(1, 1, vec![f64::NAN]).singular_values()[0].is_nan());
        assert!(Matrix::new(1, 2, vec![f64::NAN, 1.0]).row_gain().is_nan());
    }

    #[test]
    fn norm_determinant_and_transpose_agree() {
        for (rows, columns) in [(7, 7), (9, 4), (4, 9), (40, 40)] {
            let values = random(rows * columns, 3);
            let transposed = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
            let frobenius = dot(&values, &values);
            let sigma = Matrix::new(rows, columns, values).singular_values();
            let of_transposed = Matrix::new(columns, rows, transposed).singular_values();
            assert!((dot(&sigma, &sigma) / frobenius - 1.0).abs() < 1e-13);
            for (a, b) in sigma.iter().zip(&of_transposed) {
                assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
            }
            assert!(sigma.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn a_rotated_diagonal_keeps_its_stretches() {
        // D·H with a Householder reflection H = I − 2vvᵀ, v = (1, 2, 2)/3.
        let (d, v) = ([10.0, 1.0, 1e-9], [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]);
        let element = |i: usize, j: usize| d[i] * (f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j]);
        let values = (0..9).map(|k| element(k / 3, k % 3)).collect();
        for (found, expected) in Matrix::new(3, 3, values).singular_values().iter().zip(d) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn gains_and_print() {
        let m = Matrix::new(2, 2, vec![1.0, -2.0, 0.5, 0.25]);
        assert_eq!((m.row_gain(), m.column_gain()), (3.0, 2.25));
        assert_eq!(m.to_string().lines().count(), 2);
    }
}
