//! Sinkhorn–Knopp: its derivatives against differences and against each other, its error against measured tables, and
//! what holds of it exactly.

mod check;

use check::normal;
use limpid_autograd::check::{Check, Verdict};
use limpid_autograd::ops::sinkhorn::{FixedPoint, Gradient, Order, Potentials, Sinkhorn, marginal_error};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{DType, Map, Stop, Tensor};

const ORDERS: [Order; 2] = [Order::ColumnsFirst, Order::RowsFirst];
const GRADIENTS: [Gradient; 3] = [Gradient::Unrolled, Gradient::OnTape, Gradient::Implicit];

/// Normal logits with a standard deviation.
fn logits(shape: &[usize], std: f64, seed: u64) -> Tensor {
    Tensor::map(Map::Affine { mul: std, add: 0.0 }, &[&normal(shape, seed)]).unwrap()
}

fn steps(steps: usize) -> Sinkhorn {
    Sinkhorn { stop: Stop::Steps(steps), ..Sinkhorn::default() }
}

fn converged(gradient: Gradient) -> Sinkhorn {
    Sinkhorn { stop: Stop::Converged, gradient, ..Sinkhorn::default() }
}

fn to_vec(x: Var<'_>) -> Vec<f64> {
    x.value().unwrap().to_f64_vec().unwrap()
}

fn matrix(h: &Tensor, how: &Sinkhorn) -> Tensor {
    Tape::inference().constant(h).sinkhorn(how).value().unwrap()
}

/// The gradient of ⟨P, g⟩ by the logits.
fn pulled(h: &Tensor, g: &Tensor, how: &Sinkhorn) -> Tensor {
    let tape = Tape::new();
    let h = tape.variable(h);
    let loss = (h.sinkhorn(how) * tape.constant(g)).sum(&[]);
    tape.backward(loss).unwrap().of(h).unwrap().clone()
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |m: f64, v| if v.is_nan() { v } else { m.max(v.abs()) })
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = largest(found.iter().zip(expected).map(|(a, b)| a - b));
    let scale = largest(expected.iter().copied()).max(1.0);
    assert!(off <= tolerance * scale, "{what}: off by {off:e} at a scale of {scale:e}");
}

/// Runs the public checker; a 1×1 matrix is 1 whatever its logit is, which leaves nothing to see.
#[track_caller]
fn passes(what: &str, n: usize, f: impl for<'t> Fn(&[Var<'t>]) -> Var<'t>, inputs: &[Tensor]) {
    let report = Check::new().probes(2).run(f, inputs);
    let powerless = match &report.verdict {
        Verdict::Fail(findings) => findings.iter().all(|finding| finding.powerless),
        _ => false,
    };
    assert!(report.passed() && n > 1 || powerless && n == 1, "{what}: {report}");
}

#[test]
fn derivatives_of_a_number_of_steps() {
    for n in [1, 2, 3, 4, 8] {
        for t in [1, 3, 20] {
            for (i, std) in [0.1, 1.0, 3.0].into_iter().enumerate() {
                for order in ORDERS {
                    for gradient in [Gradient::Unrolled, Gradient::OnTape] {
                        let how = Sinkhorn { order, gradient, ..steps(t) };
                        let h = logits(&[n, n], std, (n * 10 + i) as u64);
                        passes(&format!("{n}×{n}, std {std}, {how:?}"), n, |x| x[0].sinkhorn(&how), &[h]);
                    }
                }
            }
        }
    }
}

#[test]
fn derivatives_at_convergence() {
    for n in [1, 2, 3, 4, 8] {
        for (i, std) in [0.1, 1.0, 3.0].into_iter().enumerate() {
            for order in ORDERS {
                let how = Sinkhorn { order, ..converged(Gradient::Implicit) };
                let h = logits(&[n, n], std, (n * 10 + i) as u64);
                passes(&format!("{n}×{n}, std {std}, {how:?}"), n, |x| x[0].sinkhorn(&how), &[h]);
            }
        }
    }
}

#[test]
fn derivatives_to_a_tolerance_at_a_temperature() {
    let stop = Stop::Tolerance { error: 1e-3, at_most: 50 };
    for gradient in [Gradient::Unrolled, Gradient::OnTape] {
        let how = Sinkhorn { stop, temperature: 0.5, gradient, ..Sinkhorn::default() };
        let h = logits(&[3, 1, 4, 4], 1.0, 5);
        passes(&format!("{how:?}"), 4, |x| x[0].sinkhorn(&how), &[h]);
    }
}

#[test]
fn derivatives_of_the_potentials() {
    let weights = |n: usize, seed| {
        let positive = normal(&[2, n, n], seed);
        Tensor::map(Map::Exp, &[&positive]).unwrap()
    };
    for n in [2, 3, 5] {
        // exp: the derivative by R is one along positive matrices.
        let inputs = [weights(n, 1), normal(&[2, n, n], 2)];
        passes(&format!("potentials {n}×{n}"), n, |x| x[0].tape().record(Potentials, x), &inputs);
    }
}

/// Value, first derivative, and the derivative of that, by everything, of `⟨P, g⟩`.
fn orders(h: &Tensor, how: &Sinkhorn) -> [Vec<f64>; 4] {
    let tape = Tape::new();
    let (x, g) = (tape.variable(h), tape.variable(&normal(h.shape(), 91)));
    let p = x.sinkhorn(how);
    let first = tape.vjp(p, g, &[x]).unwrap()[0].unwrap();
    let direction = tape.constant(&normal(h.shape(), 92));
    let second = tape.grad((first * direction).sum(&[]), &[x, g]).unwrap();
    [p, first, second[0], second[1]].map(to_vec)
}

#[test]
fn fused_is_what_it_is_on_the_tape() {
    for stop in [1, 3, 20].map(Stop::Steps).into_iter().chain([Stop::Tolerance { error: 1e-4, at_most: 30 }])
    {
        for (shape, std) in [
            (&[3, 3][..], 0.1),
            (&[70, 4, 4], 1.0),
            (&[70, 4, 4], 3.0),
            (&[2, 3, 8, 8], 3.0),
            (&[1, 40, 40], 1.0),
        ] {
            for order in ORDERS {
                let how = Sinkhorn { stop, order, temperature: 1.5, ..Sinkhorn::default() };
                let h = logits(shape, std, 3);
                let [fused, tape] = [Gradient::Unrolled, Gradient::OnTape]
                    .map(|gradient| orders(&h, &Sinkhorn { gradient, ..how }));
                for (what, (fused, tape)) in
                    ["value", "first", "second", "second by g"].iter().zip(fused.iter().zip(&tape))
                {
                    assert_near(fused, tape, 1e-12, &format!("{what}, {shape:?}, std {std}, {how:?}"));
                }
            }
        }
    }
}

/// Per matrix of a batch, the median and the 99th percentile.
fn median_and_p99(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[values.len() * 99 / 100]]
}

/// The largest |column sum − 1| of each 4×4 matrix.
fn column_errors(p: &Tensor) -> Vec<f64> {
    let column = |p: &[f64], j: usize| (p[j] + p[4 + j] + p[8 + j] + p[12 + j] - 1.0).abs();
    let values = p.to_f64_vec().unwrap();
    values.chunks_exact(16).map(|p| (0..4).map(|j| column(p, j)).fold(0.0, f64::max)).collect()
}

#[test]
fn columns_after_twenty_steps_are_as_far_off_as_measured() {
    // Standard deviation of the logits, median and 99th percentile of the largest column error.
    for (std, expected) in
        [(1.0, [4e-13, 1.5e-6]), (2.0, [9e-7, 1.2e-2]), (3.0, [2.4e-4, 3.3e-2]), (5.0, [9e-3, 5e-2])]
    {
        let p = matrix(&logits(&[20_000, 4, 4], std, 7), &steps(20));
        let found = median_and_p99(column_errors(&p));
        println!("std {std}: column error, median and p99 {found:?}, expected {expected:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(*found < 3.0 * expected && *found > expected / 3.0, "std {std}: {found:e}, {expected:e}");
        }
        let error = marginal_error(&p).unwrap();
        assert!(error.rows < 1e-15 * 4.0, "std {std}: {error:?}");
        assert_near(&[error.columns], &[largest(column_errors(&p))], 1e-15, "marginal_error");
    }
}

/// The relative difference of the implicit and the unrolled gradient, for each 4×4 matrix.
fn implicit_off(how: &Sinkhorn, h: &Tensor) -> Vec<f64> {
    let g = normal(h.shape(), 13);
    let [implicit, unrolled] = [Gradient::Implicit, Gradient::Unrolled]
        .map(|gradient| pulled(h, &g, &Sinkhorn { gradient, ..*how }).to_vec::<f64>().unwrap());
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let off =
        |(a, b): (&[f64], &[f64])| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b);
    implicit.chunks_exact(16).zip(unrolled.chunks_exact(16)).map(off).collect()
}

#[test]
fn implicit_is_unrolled_at_convergence_and_as_far_off_as_measured_before() {
    for (std, median) in [(1.0, 4e-12), (3.0, 1.5e-3), (5.0, 6e-2)] {
        let h = logits(&[2000, 4, 4], std, 11);
        let [found, _] = median_and_p99(implicit_off(&steps(20), &h));
        println!("std {std}: implicit against 20 steps, median {found:.1e}, expected {median:.1e}");
        assert!(found < 4.0 * median && found > median / 4.0, "std {std}: {found:e}, expected {median:e}");
    }
    for order in ORDERS {
        for std in [0.1, 1.0, 2.0, 3.0] {
            let how = Sinkhorn { order, ..converged(Gradient::Implicit) };
            let off = largest(implicit_off(&how, &logits(&[200, 4, 4], std, 12)));
            println!("std {std}, {order:?}: implicit against unrolled at convergence, largest {off:.1e}");
            assert!(off < 1e-10, "std {std}, {order:?}: {off:e}");
        }
    }
}

#[test]
fn the_gradient_has_no_sum_along_what_is_normalised_first() {
    for std in [0.1, 1.0, 3.0] {
        for how in [steps(1), steps(3), steps(20)] {
            for order in ORDERS {
                let h = logits(&[50, 4, 4], std, 17);
                let gradient = pulled(&h, &normal(&[50, 4, 4], 18), &Sinkhorn { order, ..how });
                let axis = if order == Order::ColumnsFirst { -2 } else { -1 };
                let along = |axis| gradient.reduce(limpid_tensor::Reduce::Sum, &[axis]).unwrap();
                let sums = largest(along(axis).to_vec::<f64>().unwrap());
                assert!(sums < 1e-15, "std {std}, {order:?}, {:?}: {sums:e}", how.stop);
                // After one step the other axis still has a sum: the test can fail.
                if how == steps(1) && std == 3.0 {
                    assert!(largest(along(-3 - axis).to_vec::<f64>().unwrap()) > 1e-3);
                }
            }
        }
    }
    let implicit =
        pulled(&logits(&[50, 4, 4], 1.0, 17), &normal(&[50, 4, 4], 18), &converged(Gradient::Implicit));
    for axis in [-1, -2] {
        let sums = implicit.reduce(limpid_tensor::Reduce::Sum, &[axis]).unwrap().to_vec::<f64>().unwrap();
        assert!(largest(sums) < 1e-14);
    }
}

#[test]
fn the_sum_of_everything_has_no_gradient() {
    for gradient in GRADIENTS {
        for std in [0.1, 1.0, 3.0] {
            let how = Sinkhorn { gradient, ..Sinkhorn::default() };
            let h = logits(&[5, 4, 4], std, 19);
            let g = pulled(&h, &Tensor::ones([5, 4, 4], DType::F64), &how).to_vec::<f64>().unwrap();
            assert!(largest(g.iter().copied()) < 2e-15, "{gradient:?}, std {std}: {g:?}");
        }
    }
}

#[test]
fn permuted_logits_give_the_permuted_matrix_and_gradient() {
    let (h, g) = (logits(&[3, 5, 5], 2.0, 23), normal(&[3, 5, 5], 24));
    // Rows in reverse, columns rotated: both are views, and no permutation of a symmetric kind.
    let permuted = |x: &Tensor| {
        let rotated = [x.slice(2, 2, 5, 1), x.slice(2, 0, 2, 1)];
        let tape = Tape::inference();
        let parts = rotated.each_ref().map(|part| tape.constant(part));
        limpid_autograd::concat(&parts, 2).flip(1).value().unwrap()
    };
    for gradient in GRADIENTS {
        for order in ORDERS {
            let how = Sinkhorn { gradient, order, ..Sinkhorn::default() };
            let vec = |x: Tensor| x.to_vec::<f64>().unwrap();
            let what = format!("{gradient:?}, {order:?}");
            assert_near(&vec(matrix(&permuted(&h), &how)), &vec(permuted(&matrix(&h, &how))), 1e-14, &what);
            let found = pulled(&permuted(&h), &permuted(&g), &how);
            // Away from convergence the implicit gradient is no one's derivative, but still equivariant.
            assert_near(&vec(found), &vec(permuted(&pulled(&h, &g, &how))), 1e-13, &what);
        }
    }
}

#[test]
fn a_matrix_does_not_see_its_neighbours() {
    // Enough for groups of every kind, and some that leave for the logarithms.
    for (count, n, dtype) in
        [(131, 4, DType::F64), (131, 4, DType::F32), (80, 7, DType::F32), (3, 40, DType::F32)]
    {
        let h = logits(&[count, n, n], 2.0, 29).cast(dtype).unwrap();
        let wild = logits(&[1, n, n], 1e4, 30).cast(dtype).unwrap();
        let tape = Tape::inference();
        let h = limpid_autograd::concat(&[tape.constant(&wild), tape.constant(&h)], 0).value().unwrap();
        let g = normal(&[count + 1, n, n], 31).cast(dtype).unwrap();
        for stop in [Stop::Steps(20), Stop::Tolerance { error: 1e-5, at_most: 60 }] {
            for gradient in GRADIENTS {
                let how = Sinkhorn { stop, gradient, ..Sinkhorn::default() };
                let bits =
                    |x: &Tensor| x.to_f64_vec().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let (p, pulled_all) = (matrix(&h, &how), pulled(&h, &g, &how));
                let steps = how.steps(&h).unwrap().to_vec::<i64>().unwrap();
                for i in (0..=count).step_by(7).chain([count - 1, count]) {
                    let alone = h.slice(0, i, i + 1, 1);
                    let what = format!("{dtype} {n}×{n} number {i}, {how:?}");
                    assert_eq!(bits(&matrix(&alone, &how)), bits(&p.slice(0, i, i + 1, 1)), "{what}");
                    let gradient = pulled(&alone, &g.slice(0, i, i + 1, 1), &how);
                    assert_eq!(bits(&gradient), bits(&pulled_all.slice(0, i, i + 1, 1)), "{what}");
                    assert_eq!(how.steps(&alone).unwrap().to_vec::<i64>().unwrap(), steps[i..=i], "{what}");
                }
            }
        }
    }
}

#[test]
fn the_tolerance_is_kept_and_steps_are_counted() {
    let h = logits(&[200, 4, 4], 1.0, 37);
    for order in ORDERS {
        let how = |at_most| Sinkhorn { stop: Stop::Tolerance { error: 1e-6, at_most }, order, ..steps(1) };
        let counts = how(1000).steps(&h).unwrap();
        assert_eq!(counts.shape()[..], [200]);
        let counts = counts.to_vec::<i64>().unwrap();
        assert!(counts.iter().min() < counts.iter().max(), "each for itself");
        let p = matrix(&h, &how(1000));
        let error = marginal_error(&p).unwrap();
        let (exact, within) = match order {
            Order::ColumnsFirst => (error.rows, error.columns),
            Order::RowsFirst => (error.columns, error.rows),
        };
        assert!(exact < 1e-15 * 4.0 && within <= 1e-6 && within > 1e-8, "{error:?}");
        for i in [0, 50, 199] {
            // So many steps give the same, and one fewer is not yet within the tolerance.
            let alone = h.slice(0, i, i + 1, 1);
            let fixed = |t| matrix(&alone, &Sinkhorn { order, ..steps(t) });
            let t = counts[i] as usize;
            assert_eq!(fixed(t).to_vec::<f64>().unwrap(), p.slice(0, i, i + 1, 1).to_vec::<f64>().unwrap());
            let before = marginal_error(&fixed(t - 1)).unwrap();
            assert!(before.rows.max(before.columns) > 1e-6);
        }
        assert_eq!(how(2).steps(&h).unwrap().to_vec::<i64>().unwrap(), [2; 200]);
    }
    assert_eq!(steps(7).steps(&h).unwrap().to_vec::<i64>().unwrap(), [7; 200]);
    for dtype in [DType::F32, DType::F64] {
        let error = marginal_error(&matrix(&h.cast(dtype).unwrap(), &converged(Gradient::Unrolled))).unwrap();
        let rounding = if dtype == DType::F32 { 1e-7 } else { 2.3e-16 };
        assert!(error.rows.max(error.columns) < 12.0 * rounding, "{dtype}: {error:?}");
    }
}

#[test]
fn huge_logits_are_finite_and_right() {
    for dtype in [DType::F32, DType::F64] {
        for gradient in GRADIENTS {
            let how = Sinkhorn { gradient, ..Sinkhorn::default() };
            // One permutation is 10⁴ better than every other: it is what is left.
            let h = [1e4, -1e4, 0.0, -1e4, 0.0, 1e4, 0.0, 1e4, -1e4];
            let h = Tensor::from_f64(&h, [3, 3], dtype);
            let p = matrix(&h, &how).to_f64_vec().unwrap();
            assert_near(
                &p,
                &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
                1e-6,
                &format!("{dtype}, {how:?}"),
            );
            let g = pulled(&h, &normal(&[3, 3], 41).cast(dtype).unwrap(), &how).to_f64_vec().unwrap();
            assert!(largest(g) < 1e-6);
            // Subtracting one maximum would leave nothing of the second column, and nothing of the second row.
            let far = Tensor::from_f64(&[1e4, 0.0, 0.0, -2e4], [2, 2], dtype);
            let p = matrix(&far, &how).to_f64_vec().unwrap();
            assert!(p.iter().all(|p| (0.0..=1.0 + 1e-6).contains(p)), "{p:?}");
            let h = logits(&[30, 4, 4], 1e4, 43).cast(dtype).unwrap();
            let g = pulled(&h, &normal(&[30, 4, 4], 44).cast(dtype).unwrap(), &how).to_f64_vec().unwrap();
            assert!(g.iter().all(|g| g.is_finite()));
            let error = marginal_error(&matrix(&h, &how)).unwrap();
            assert!(error.rows < 1e-6 && error.columns.is_finite(), "{error:?}");
        }
    }
}

/// ±10⁴ in any arrangement, some of it masked: values, first and second derivatives are finite, whatever the way to them.
#[test]
fn logits_of_ten_thousand_of_either_sign_are_finite_to_second_order() {
    for n in [2, 3, 4, 8] {
        for seed in 0..5 {
            let signs = normal(&[3, n, n], seed).to_vec::<f64>().unwrap();
            let mut values: Vec<f64> = signs.iter().map(|s| 1e4 * s.signum()).collect();
            for masked in [false, true] {
                if masked {
                    // Off the diagonal, so that a permutation is left.
                    values.iter_mut().enumerate().for_each(|(k, v)| {
                        if k % n == (k / n + 1) % n && n > 2 {
                            *v = f64::NEG_INFINITY;
                        }
                    });
                }
                let h = Tensor::from_vec(values.clone(), [3, n, n]);
                for gradient in GRADIENTS {
                    for order in ORDERS {
                        let how = Sinkhorn { gradient, order, ..Sinkhorn::default() };
                        let what = ["value", "first", "second", "second by g"];
                        for (what, numbers) in what.iter().zip(orders(&h, &how)) {
                            let finite = numbers.iter().all(|v| v.is_finite());
                            assert!(finite, "{what}, {n}×{n}, seed {seed}, masked {masked}, {how:?}");
                        }
                        let error = marginal_error(&matrix(&h, &how)).unwrap();
                        let last = if order == Order::ColumnsFirst { error.rows } else { error.columns };
                        // Logarithms of 10⁴ round at 10⁻¹².
                        assert!(last < 1e-11, "{n}×{n}, seed {seed}, masked {masked}, {how:?}: {error:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_masked_logit_is_zero_and_has_no_gradient() {
    // The mask leaves a 3×3 and a 1×1 block: the result is that of the blocks.
    let block = logits(&[3, 3], 1.0, 47);
    let mut values = vec![f64::NEG_INFINITY; 16];
    for (i, h) in block.to_vec::<f64>().unwrap().into_iter().enumerate() {
        values[i / 3 * 4 + i % 3] = h;
    }
    values[15] = 0.3;
    let masked = Tensor::from_vec(values, [4, 4]);
    let g = normal(&[4, 4], 48);
    for gradient in GRADIENTS {
        for order in ORDERS {
            let stop = if gradient == Gradient::Implicit { Stop::Converged } else { Stop::Steps(20) };
            let how = Sinkhorn { stop, gradient, order, ..Sinkhorn::default() };
            let p = matrix(&masked, &how);
            let inside = |x: &Tensor| x.slice(0, 0, 3, 1).slice(1, 0, 3, 1).to_vec::<f64>().unwrap();
            assert_near(&inside(&p), &matrix(&block, &how).to_vec::<f64>().unwrap(), 1e-14, "block");
            let found = pulled(&masked, &g, &how);
            let expected = pulled(&block, &g.slice(0, 0, 3, 1).slice(1, 0, 3, 1), &how);
            assert_near(&inside(&found), &expected.to_vec::<f64>().unwrap(), 1e-14, "gradient of the block");
            for x in [p, found] {
                let x = x.to_vec::<f64>().unwrap();
                assert!(
                    (0..16).filter(|i| (i / 4 == 3) != (i % 4 == 3)).all(|i| x[i] == 0.0),
                    "{how:?}: {x:?}"
                );
            }
            for second in orders(&masked, &how) {
                assert!(second.iter().all(|v| v.is_finite()), "{how:?}");
            }
        }
    }
}

#[test]
fn a_mask_that_leaves_no_permutation_is_still_finite() {
    // The first two rows have only the first column: their sum cannot be 2 while the column's is 1.
    let x = f64::NEG_INFINITY;
    let h = Tensor::from_vec(vec![0.0, x, x, 1.0, x, x, 0.5, 0.2, -0.3], [3, 3]);
    for how in [steps(20), steps(2000)] {
        let p = matrix(&h, &how);
        let error = marginal_error(&p).unwrap();
        // The scalings grow without end, and their logarithms round at their own size.
        assert!(error.rows < 1e-12 && error.columns > 0.4, "{error:?}");
        assert!(pulled(&h, &normal(&[3, 3], 1), &how).to_vec::<f64>().unwrap().iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_row_or_column_without_a_logit_is_an_error() {
    let x = f64::NEG_INFINITY;
    let row = Tensor::from_vec(vec![0.0, 1.0, 2.0, 3.0, x, x, 0.0, 1.0], [2, 2, 2]);
    let found = |h: &Tensor, how: &Sinkhorn| {
        let tape = Tape::new();
        tape.variable(h).sinkhorn(how).value().unwrap_err().to_string()
    };
    let expected = "sinkhorn: matrix 1 has a row or a column that is −∞ throughout and cannot sum to 1";
    for h in [&row, &row.transpose(1, 2)] {
        let message = found(h, &steps(20));
        assert!(message.contains(expected), "{message}");
    }
    let on_tape = Sinkhorn { gradient: Gradient::OnTape, ..Sinkhorn::default() };
    let p = matrix(&row, &on_tape).to_vec::<f64>().unwrap();
    assert!(p[..4].iter().all(|p| p.is_finite()) && p[4..].iter().any(|p| p.is_nan()), "{p:?}");
}

#[test]
fn what_is_not_a_number_stays_visible() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut values = logits(&[2, 3, 3], 1.0, 53).to_vec::<f64>().unwrap();
        values[4] = bad;
        let h = Tensor::from_vec(values, [2, 3, 3]);
        for stop in [Stop::Steps(20), Stop::Converged] {
            for gradient in GRADIENTS {
                let p =
                    matrix(&h, &Sinkhorn { stop, gradient, ..Sinkhorn::default() }).to_vec::<f64>().unwrap();
                assert!(p[..9].iter().all(|p| p.is_nan()) && p[9..].iter().all(|p| p.is_finite()), "{p:?}");
            }
        }
    }
}

#[test]
fn narrower_dtypes_follow_f64() {
    let (h, g) = (logits(&[40, 4, 4], 1.5, 59), normal(&[40, 4, 4], 60));
    // The same numbers in every dtype: what differs is the arithmetic.
    let rounded = |x: &Tensor, dtype: DType| x.cast(dtype).unwrap().cast(DType::F64).unwrap();
    for (dtype, value, derivative) in [(DType::F32, 2e-6, 4e-6), (DType::BF16, 4e-3, 4e-3)] {
        let (h, g) = (rounded(&h, dtype), rounded(&g, dtype));
        for gradient in GRADIENTS {
            for stop in [Stop::Steps(20), Stop::Converged] {
                let how = Sinkhorn { stop, gradient, ..Sinkhorn::default() };
                if gradient == Gradient::OnTape && stop == Stop::Converged {
                    continue; // thousands of nodes; the fused form is the same
                }
                let narrow = h.cast(dtype).unwrap();
                let p = matrix(&narrow, &how);
                assert_eq!(p.dtype(), dtype);
                let what = format!("{dtype}, {how:?}");
                // f32 stops at an error of 10⁻⁶.
                let derivative = if stop == Stop::Converged { 5.0 * derivative } else { derivative };
                assert_near(&p.to_f64_vec().unwrap(), &matrix(&h, &how).to_f64_vec().unwrap(), value, &what);
                let found = pulled(&narrow, &g.cast(dtype).unwrap(), &how).to_f64_vec().unwrap();
                assert_near(&found, &pulled(&h, &g, &how).to_f64_vec().unwrap(), derivative, &what);
            }
        }
    }
}

#[test]
fn a_tape_that_computes_nothing_records_the_same_shapes() {
    let tape = Tape::dry();
    let h = tape.variable(&Tensor::zeros([2, 3, 3], DType::F32));
    for gradient in GRADIENTS {
        let stop = Stop::Tolerance { error: 1e-3, at_most: 4 };
        let p = h.sinkhorn(&Sinkhorn { stop, gradient, ..Sinkhorn::default() });
        assert_eq!(p.meta(), h.meta(), "{gradient:?}");
    }
}

#[test]
fn every_read_is_declared() {
    for how in [steps(3), converged(Gradient::Implicit)] {
        let tape = Tape::new();
        let h = tape.variable(&logits(&[2, 3, 3], 1.0, 61));
        let p = h.sinkhorn(&how);
        let audit = tape.audit_reads((p * p).sum(&[])).unwrap();
        assert_eq!(audit.declared, audit.read, "{how:?}");
        // Unrolled, the logits are all that the operation keeps; implicit, its result.
        let by_p: Vec<usize> =
            audit.read.iter().filter(|(op, _)| *op == p.index()).map(|&(_, read)| read).collect();
        let expected = if how.gradient == Gradient::Unrolled { h.index() } else { p.index() };
        assert_eq!(by_p, [expected], "{how:?}");
    }
    let tape = Tape::new();
    let [h, g] = [1, 2].map(|seed| tape.variable(&logits(&[3, 3], 1.0, seed)));
    let p = h.sinkhorn(&steps(3));
    let pulled = tape.vjp(p, g, &[h]).unwrap()[0].unwrap();
    let audit = tape.audit_reads((pulled * pulled).sum(&[])).unwrap();
    assert_eq!(audit.declared, audit.read);
}

#[test]
fn the_matrix_given_to_a_fixed_point_is_a_constant() {
    let tape = Tape::new();
    let [h, p] = [1, 2].map(|seed| tape.variable(&logits(&[3, 3], 1.0, seed)));
    let y = tape.record(FixedPoint, &[h, p]);
    assert_eq!(to_vec(y), to_vec(p));
    assert_eq!(to_vec(tape.grad(y.sum(&[]), &[p]).unwrap()[0]), [0.0; 9]);
}

fn panics(f: impl FnOnce()) -> String {
    // What it touched is dropped with it.
    let f = std::panic::AssertUnwindSafe(f);
    let panic = std::panic::catch_unwind(f).expect_err("it should have panicked");
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap()
}

#[test]
fn wrong_operands_and_settings_panic() {
    let message = |h: Tensor, how: Sinkhorn| {
        panics(move || {
            Tape::new().constant(&h).sinkhorn(&how);
        })
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F64);
    for gradient in GRADIENTS {
        let how = Sinkhorn { gradient, ..Sinkhorn::default() };
        let expected = "sinkhorn: expected square matrices in the last two axes, found shape";
        assert_eq!(message(zeros(&[5, 2, 3]), how), format!("{expected} [5, 2, 3]"));
        assert_eq!(message(zeros(&[4]), how), format!("{expected} [4]"));
        assert_eq!(message(zeros(&[2, 0, 0]), how), format!("{expected} [2, 0, 0]"));
    }
    let good = zeros(&[2, 2]);
    assert_eq!(message(good.clone(), steps(0)), "sinkhorn: expected at least one step, found Steps(0)");
    for (temperature, found) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let how = Sinkhorn { temperature, ..Sinkhorn::default() };
        let expected = format!("sinkhorn: the temperature must be positive, found {found}");
        assert_eq!(message(good.clone(), how), expected);
    }
    let stop = Stop::Tolerance { error: -1.0, at_most: 5 };
    let expected = "sinkhorn: the tolerance must not be negative, found -1";
    assert_eq!(message(good.clone(), Sinkhorn { stop, ..Sinkhorn::default() }), expected);
    let integers = Tensor::zeros([2, 2], DType::I64);
    assert_eq!(message(integers, Sinkhorn::default()), "sinkhorn: is not defined for i64");
}

#[test]
fn no_matrices_are_no_work() {
    let tape = Tape::new();
    let h = tape.variable(&Tensor::zeros([0, 4, 4], DType::F32));
    for gradient in [Gradient::Unrolled, Gradient::OnTape] {
        let p = h.sinkhorn(&Sinkhorn { gradient, ..Sinkhorn::default() });
        assert_eq!(p.value().unwrap().shape()[..], [0, 4, 4]);
        assert_eq!(tape.grad(p.sum(&[]), &[h]).unwrap()[0].shape()[..], [0, 4, 4]);
    }
}
