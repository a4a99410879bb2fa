//! The eigenvalues of a real square matrix, by their size.
//!
//! Householder reflections bring the matrix to Hessenberg form (zero below the first subdiagonal); QR steps in complex
//! arithmetic, shifted by the eigenvalue of the last 2×2 block that is nearer to its last element (Wilkinson), then drive
//! the subdiagonal to zero from below; what is left on the diagonal are the eigenvalues. G. Golub and C. Van Loan, *Matrix
//! Computations*, 4th ed., §7.4.2 and §7.5; the exceptional shift is that of EISPACK's `comqr`.

use std::ops::{Add, Mul, Sub};

/// The moduli of the eigenvalues of the n×n matrix `values`, unordered; `None` where the iteration does not end.
pub(super) fn moduli(n: usize, values: &[f64]) -> Option<Vec<f64>> {
    let mut real: Vec<Vec<f64>> = values.chunks(n.max(1)).map(<[f64]>::to_vec).collect();
    hessenberg(&mut real);
    let complex = |row: Vec<f64>| row.into_iter().map(|re| Complex { re, im: 0.0 }).collect();
    let mut h: Vec<Vec<Complex>> = real.into_iter().map(complex).collect();
    // Rows and columns `end..` are done. About two steps an eigenvalue are usual.
    let (mut end, mut steps) = (n, 0);
    while end > 1 {
        let start = (1..end).rev().find(|&k| negligible(&h, k)).unwrap_or(0);
        if start == end - 1 {
            (end, steps) = (end - 1, 0);
            continue;
        }
        if steps == 100 {
            return None;
        }
        steps += 1;
        let shift =
            if steps % 10 == 0 { exceptional_shift(&h, start, end) } else { wilkinson_shift(&h, end) };
        qr_step(&mut h, start, end, shift);
    }
    Some((0..n).map(|i| h[i][i].modulus()).collect())
}

/// Similarity by one reflection a column, `I − 2vvᵀ/⟨v,v⟩` with v₁ = x₁ + sign(x₁)‖x‖, x what stands below the diagonal.
fn hessenberg(a: &mut [Vec<f64>]) {
    let n = a.len();
    for column in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = (column + 1..n).map(|i| a[i][column]).collect();
        let norm = v.iter().fold(0.0, |norm: f64, x| norm.hypot(*x));
        // A column that is already reduced stays as it is, to the bit.
        if v[1..].iter().all(|&x| x == 0.0) {
            continue;
        }
        v[0] += norm.copysign(v[0]);
        let length = v.iter().fold(0.0, |norm: f64, x| norm.hypot(*x));
        v.iter_mut().for_each(|x| *x /= length);
        for j in 0..n {
            let twice = 2.0 * (0..v.len()).map(|i| v[i] * a[column + 1 + i][j]).sum::<f64>();
            (0..v.len()).for_each(|i| a[column + 1 + i][j] -= twice * v[i]);
        }
        for row in a.iter_mut() {
            let twice = 2.0 * (0..v.len()).map(|i| v[i] * row[column + 1 + i]).sum::<f64>();
            (0..v.len()).for_each(|i| row[column + 1 + i] -= twice * v[i]);
        }
        // Zero but for rounding.
        (column + 2..n).for_each(|i| a[i][column] = 0.0);
    }
}

/// Whether `h[k, k−1]` is lost beside its neighbours on the diagonal.
fn negligible(h: &[Vec<Complex>], k: usize) -> bool {
    let beside = h[k - 1][k - 1].modulus() + h[k][k].modulus();
    h[k][k - 1].modulus() <= (f64::EPSILON * beside).max(f64::MIN_POSITIVE)
}

/// The eigenvalue of the last 2×2 block `[a b; c d]` that is nearer to d: `d − bc/(δ ± √(δ² + bc))`, δ = (a − d)/2, with
/// the sign that makes the denominator larger.
fn wilkinson_shift(h: &[Vec<Complex>], end: usize) -> Complex {
    let (a, b) = (h[end - 2][end - 2], h[end - 2][end - 1]);
    let (c, d) = (h[end - 1][end - 2], h[end - 1][end - 1]);
    let (half, product) = ((a - d) * 0.5, b * c);
    let root = (half * half + product).sqrt();
    let (plus, minus) = (half + root, half - root);
    let denominator = if plus.modulus() >= minus.modulus() { plus } else { minus };
    if denominator.modulus() == 0.0 { d } else { d - product * denominator.inverse() }
}

/// A shift away from every symmetry: steps on an orthogonal matrix with shift 0, such as a cyclic permutation's, stand still.
fn exceptional_shift(h: &[Vec<Complex>], start: usize, end: usize) -> Complex {
    let subdiagonal = (start.max(end.saturating_sub(3)) + 1..end).map(|k| h[k][k - 1].modulus());
    Complex { re: subdiagonal.sum(), im: 0.0 }
}

/// `H ← Qᴴ·H·Q` on the rows and columns `start..end`, with `H − shift = Q·R`, Q a product of rotations of neighbours.
fn qr_step(h: &mut [Vec<Complex>], start: usize, end: usize, shift: Complex) {
    (start..end).for_each(|i| h[i][i] = h[i][i] - shift);
    let mut rotations = Vec::with_capacity(end - start - 1);
    for k in start..end - 1 {
        // [c̄ s̄; −s c] takes (x, y) to (r, 0).
        let (x, y) = (h[k][k], h[k + 1][k]);
        let r = x.modulus().hypot(y.modulus());
        let (c, s) = if r == 0.0 { (Complex::ONE, Complex::ZERO) } else { (x * (1.0 / r), y * (1.0 / r)) };
        for j in k..end {
            let (x, y) = (h[k][j], h[k + 1][j]);
            (h[k][j], h[k + 1][j]) = (c.conjugate() * x + s.conjugate() * y, c * y - s * x);
        }
        rotations.push((c, s));
    }
    for (k, (c, s)) in (start..).zip(rotations) {
        for row in &mut h[start..end.min(k + 2)] {
            let (x, y) = (row[k], row[k + 1]);
            (row[k], row[k + 1]) = (x * c + y * s, y * c.conjugate() - x * s.conjugate());
        }
    }
    (start..end).for_each(|i| h[i][i] = h[i][i] + shift);
}

#[derive(Clone, Copy)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    const ZERO: Complex = Complex { re: 0.0, im: 0.0 };
    const ONE: Complex = Complex { re: 1.0, im: 0.0 };

    fn modulus(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn conjugate(self) -> Complex {
        Complex { re: self.re, im: -self.im }
    }

    /// 1/z, by way of z/|z|: the square of a modulus can underflow.
    fn inverse(self) -> Complex {
        let modulus = self.modulus();
        self.conjugate() * (1.0 / modulus) * (1.0 / modulus)
    }

    /// The root with a real part that is not negative.
    fn sqrt(self) -> Complex {
        let larger = ((self.modulus() + self.re.abs()) / 2.0).sqrt();
        let smaller = if larger == 0.0 { 0.0 } else { self.im.abs() / (2.0 * larger) };
        let (re, im) = if self.re >= 0.0 { (larger, smaller) } else { (smaller, larger) };
        Complex { re, im: im.copysign(self.im) }
    }
}

impl Add for Complex {
    type Output = Complex;
    fn add(self, other: Complex) -> Complex {
        Complex { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Complex;
    fn sub(self, other: Complex) -> Complex {
        Complex { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Mul for Complex {
    type Output = Complex;
    fn mul(self, other: Complex) -> Complex {
        let (re, im) = (self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re);
        Complex { re, im }
    }
}

impl Mul<f64> for Complex {
    type Output = Complex;
    fn mul(self, factor: f64) -> Complex {
        Complex { re: self.re * factor, im: self.im * factor }
    }
}

#[cfg(test)]
mod tests {
    use crate::Matrix;
    use limpid_tensor::rng::Key;

    fn near(found: &[f64], expected: &[f64], within: f64) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= within * expected[0].abs(), "{found:?} for {expected:?}");
        }
    }

    fn moduli(n: usize, values: &[f64]) -> Vec<f64> {
        Matrix::new(n, n, values.to_vec()).eigenvalue_moduli()
    }

    fn random(n: usize, seed: u64) -> Vec<f64> {
        let key = Key::new(seed);
        (0..n as u64).map(|i| key.normal(i)).collect()
    }

    fn product(n: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
        (0..n * n).map(|ij| (0..n).map(|k| a[ij / n * n + k] * b[k * n + ij % n]).sum()).collect()
    }

    fn transposed(n: usize, a: &[f64]) -> Vec<f64> {
        (0..n * n).map(|ij| a[ij % n * n + ij / n]).collect()
    }

    /// A product of n random Householder reflections.
    fn orthogonal(n: usize, seed: u64) -> Vec<f64> {
        let identity: Vec<f64> = (0..n * n).map(|ij| f64::from(u8::from(ij / n == ij % n))).collect();
        (0..n as u64).fold(identity.clone(), |q, k| {
            let v = random(n, seed + 1000 * (k + 1));
            let length: f64 = v.iter().map(|x| x * x).sum();
            let reflection: Vec<f64> =
                (0..n * n).map(|ij| identity[ij] - 2.0 * v[ij / n] * v[ij % n] / length).collect();
            product(n, &q, &reflection)
        })
    }

    #[test]
    fn known_spectra() {
        assert_eq!(moduli(0, &[]), [0.0; 0]);
        assert_eq!(moduli(1, &[-3.0]), [3.0]);
        assert_eq!(moduli(4, &[0.0; 16]), [0.0; 4]);
        // A rotation by any angle, stretched by 5: 3 ± 4i.
        near(&moduli(2, &[3.0, -4.0, 4.0, 3.0]), &[5.0, 5.0], 1e-15);
        // Triangular: the diagonal, however large what stands above it.
        near(&moduli(3, &[1.0, 1e8, 3.0, 0.0, -4.0, 1e5, 0.0, 0.0, 2.0]), &[4.0, 2.0, 1.0], 1e-15);
        // A uniform mix keeps the mean and nothing else.
        near(&moduli(4, &[0.25; 16]), &[1.0, 0.0, 0.0, 0.0], 1e-15);
        // [1 4; 2 3]: 5 and −1.
        near(&moduli(2, &[1.0, 4.0, 2.0, 3.0]), &[5.0, 1.0], 1e-15);
        // Cyclic permutations: the n-th roots of 1, on which steps without a shift stand still.
        for n in [2, 3, 4, 8, 16] {
            let cyclic: Vec<f64> =
                (0..n * n).map(|ij| f64::from(u8::from(ij % n == (ij / n + 1) % n))).collect();
            near(&moduli(n, &cyclic), &vec![1.0; n], 1e-14);
            near(&moduli(n, &transposed(n, &cyclic)), &vec![1.0; n], 1e-14);
        }
    }

    /// A k-fold eigenvalue of one Jordan block moves by about u^(1/k): nobody can find it more exactly.
    #[test]
    fn defective_matrices() {
        for (n, eigenvalue) in [(2, 0.0), (3, 0.0), (5, 0.0), (2, 1.0), (3, 1.0), (4, -0.5)] {
            let element = |ij: usize| match (ij % n).wrapping_sub(ij / n) {
                0 => eigenvalue,
                1 => 1.0,
                _ => 0.0,
            };
            let block: Vec<f64> = (0..n * n).map(element).collect();
            assert_eq!(moduli(n, &block), vec![f64::abs(eigenvalue); n], "already triangular");
            let q = orthogonal(n, 7);
            let turned = product(n, &product(n, &q, &block), &transposed(n, &q));
            let slack = 10.0 * f64::EPSILON.powf(1.0 / n as f64);
            for found in moduli(n, &turned) {
                assert!((found - eigenvalue.abs()).abs() < slack, "{n}: {found} for {eigenvalue}");
            }
        }
    }

    #[test]
    fn companion_matrices_have_the_roots() {
        // xⁿ + c₁xⁿ⁻¹ + … from its roots, real or (a ± bi given as its quadratic).
        let with = |p: &[f64], q: &[f64]| -> Vec<f64> {
            let mut product = vec![0.0; p.len() + q.len() - 1];
            for (i, a) in p.iter().enumerate() {
                q.iter().enumerate().for_each(|(j, b)| product[i + j] += a * b);
            }
            product
        };
        let cases: [(&[&[f64]], &[f64], f64); 4] = [
            (&[&[1.0, -3.0], &[1.0, 2.0], &[1.0, -1.0]], &[3.0, 2.0, 1.0], 1e-14),
            // 1 ± 2i and 3, ±i
            (
                &[&[1.0, -2.0, 5.0], &[1.0, -3.0], &[1.0, 0.0, 1.0]],
                &[3.0, 5f64.sqrt(), 5f64.sqrt(), 1.0, 1.0],
                1e-14,
            ),
            // roots 1 … 6: condition numbers about 1e3
            (
                &[&[1.0, -1.0], &[1.0, -2.0], &[1.0, -3.0], &[1.0, -4.0], &[1.0, -5.0], &[1.0, -6.0]],
                &[6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
                1e-10,
            ),
            // x⁷ = 2: all on one circle
            (&[&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0]], &[1.104_089_513_673_812_3; 7], 1e-14),
        ];
        for (factors, roots, within) in cases {
            let polynomial = factors.iter().fold(vec![1.0], |p, q| with(&p, q));
            let n = polynomial.len() - 1;
            let mut companion = vec![0.0; n * n];
            (0..n).for_each(|j| companion[j] = -polynomial[j + 1]);
            (1..n).for_each(|i| companion[i * n + i - 1] = 1.0);
            near(&moduli(n, &companion), roots, within);
            near(&moduli(n, &transposed(n, &companion)), roots, within);
        }
    }

    /// Block diagonal (real eigenvalues and pairs), random above, turned by a random orthogonal Q; and the same matrix 1e150
    /// times as large and as small.
    #[test]
    fn orthogonal_similarity_keeps_the_spectrum() {
        for n in [2, 3, 4, 5, 8, 16, 33] {
            for seed in 0..5 {
                let draw = random(n * n + n, 31 * seed + n as u64);
                let mut triangular: Vec<f64> =
                    (0..n * n).map(|ij| if ij % n > ij / n { draw[ij] / n as f64 } else { 0.0 }).collect();
                let mut expected = Vec::new();
                let mut i = 0;
                while i < n {
                    // Well apart, so that none is ill conditioned.
                    let size = 1.0 + i as f64;
                    if i + 1 < n && (i as u64 + seed).is_multiple_of(3) {
                        let angle = draw[n * n + i];
                        let (re, im) = (size * angle.cos(), size * angle.sin());
                        (triangular[i * n + i], triangular[i * n + i + 1]) = (re, -im);
                        (triangular[(i + 1) * n + i], triangular[(i + 1) * n + i + 1]) = (im, re);
                        expected.extend([size, size]);
                        i += 2;
                    } else {
                        triangular[i * n + i] = size * draw[n * n + i].signum();
                        expected.push(size);
                        i += 1;
                    }
                }
                expected.sort_by(|a, b| b.total_cmp(a));
                let q = orthogonal(n, seed);
                let turned = product(n, &product(n, &q, &triangular), &transposed(n, &q));
                for scale in [1.0, 1e150, 1e-150, 1e-305] {
                    let scaled: Vec<f64> = turned.iter().map(|v| v * scale).collect();
                    let found: Vec<f64> = moduli(n, &scaled).iter().map(|v| v / scale).collect();
                    near(&found, &expected, 1e-11);
                }
            }
        }
    }

    /// |det| is the product of the moduli and of the singular values; and no modulus exceeds the largest of those.
    #[test]
    fn determinant_agrees_with_the_singular_values() {
        for n in [1, 2, 3, 7, 16, 64] {
            let values = random(n * n, 5 + n as u64);
            let moduli = moduli(n, &values);
            let sigma = Matrix::new(n, n, values).singular_values();
            let log = |v: &[f64]| v.iter().map(|v| v.ln()).sum::<f64>();
            assert!((log(&moduli) - log(&sigma)).abs() < 1e-11 * n as f64);
            assert!(moduli[0] <= sigma[0] * (1.0 + 1e-12));
            assert!(moduli.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn a_product_of_doubly_stochastic_matrices_keeps_the_mean_and_forgets_the_rest() {
        for n in [2, 4, 8] {
            let mut composite: Option<Vec<f64>> = None;
            let mut second = Vec::new();
            for layer in 0..20 {
                // A mixture of permutations (Birkhoff): i → i, i + 1, i + 2 mod n.
                let draw = random(3, 100 * n as u64 + layer);
                let total: f64 = draw.iter().map(|v| v.exp()).sum();
                let mut mix = vec![0.0; n * n];
                for (k, v) in draw.iter().enumerate() {
                    (0..n).for_each(|i| mix[i * n + (i + k) % n] += v.exp() / total);
                }
                composite = Some(composite.map_or(mix.clone(), |before| product(n, &mix, &before)));
                let moduli = moduli(n, composite.as_deref().unwrap_or_default());
                assert!((moduli[0] - 1.0).abs() < 1e-13, "{moduli:?}");
                second.push(moduli[1]);
            }
            assert!(second[0] < 1.0 && second[19] < 0.1, "{second:?}");
        }
    }

    #[test]
    fn not_a_number_in_not_a_number_out() {
        for bad in [f64::NAN, f64::INFINITY] {
            let found = moduli(2, &[1.0, bad, 0.0, 1.0]);
            assert!(found.len() == 2 && found.iter().all(|v| v.is_nan()), "{found:?}");
        }
    }

    #[test]
    #[should_panic(expected = "eigenvalue_moduli: a 2×3 matrix is not square")]
    fn a_matrix_that_is_not_square_is_refused() {
        Matrix::new(2, 3, vec![0.0; 6]).eigenvalue_moduli();
    }
}
