//! Sinkhorn–Knopp against the CPU's, and what holds of it exactly: for matrices of a thread, of several lanes, of a block,
//! and of the logarithms.

mod emulated;

use emulated::{device, findings, place};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Device, Fused, Reduce, Stop, Tensor};

const TOLERANCE: Stop = Stop::Tolerance { error: 1e-4, at_most: 30 };

/// Normal logits with a standard deviation.
fn logits(shape: &[usize], std: f64, dtype: DType, seed: u64) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std }, shape, dtype, Key::new(seed)).unwrap()
}

/// The result, and nothing found by the checker.
#[track_caller]
fn run(f: Fused, x: &[&Tensor]) -> Tensor {
    let placed: Vec<Tensor> = x.iter().map(|x| place(x)).collect();
    let found = Tensor::fused(f, &placed.iter().collect::<Vec<_>>()).expect("there is a kernel").unwrap();
    let found = found.to(x[0].device()).unwrap();
    let mistakes = findings();
    assert!(mistakes.is_empty(), "{f:?} of {}: the checker found\n{}", x[0].meta(), mistakes.join("\n"));
    found
}

fn on_cpu(f: Fused, x: &[&Tensor]) -> Tensor {
    Tensor::fused(f, x).expect("there is a kernel").unwrap()
}

/// How far apart two tensors are, relative to the larger of 1 and the largest that is expected.
#[track_caller]
fn assert_near(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.meta(), expected.meta(), "{what}");
    let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}: element {i} is {a}, expected {b}, scale {scale}"
        );
    }
}

fn largest_sum(x: &Tensor, axis: isize) -> f64 {
    let sums = x.cast(DType::F64).unwrap().reduce(Reduce::Sum, &[axis]).unwrap();
    sums.to_f64_vec().unwrap().iter().fold(0.0, |largest: f64, v| largest.max(v.abs()))
}

fn bits(x: &Tensor) -> Vec<u64> {
    x.to_f64_vec().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// A thread, lanes and a block for each; more matrices than one block of the grid has, and one alone.
const SHAPES: [&[usize]; 12] = [
    &[3, 1, 1],
    &[33, 2, 2],
    &[3, 3],
    &[2, 20, 3, 3],
    &[70, 4, 4],
    &[9, 5, 5],
    &[5, 8, 8],
    &[1, 9, 9],
    &[3, 16, 16],
    &[2, 20, 20],
    &[1, 32, 32],
    &[2, 40, 40],
];

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn it_is_the_cpus() {
    for shape in SHAPES {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
            let (x, g) = (logits(shape, 1.0, dtype, 1), logits(shape, 1.0, dtype, 2));
            for stop in [Stop::Steps(1), Stop::Steps(20), TOLERANCE] {
                // In f32 the two may stop a step apart.
                if dtype == DType::F32 && stop == TOLERANCE {
                    continue;
                }
                let what = format!("{dtype} {shape:?} {stop:?}");
                let (forward, backward) = (Fused::Sinkhorn(stop), Fused::SinkhornBackward(stop));
                assert_near(&run(forward, &[&x]), &on_cpu(forward, &[&x]), tolerance, &what);
                assert_near(&run(backward, &[&x, &g]), &on_cpu(backward, &[&x, &g]), tolerance, &what);
                let steps = Fused::SinkhornSteps(stop);
                assert_eq!(bits(&run(steps, &[&x])), bits(&on_cpu(steps, &[&x])), "{what}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn more_steps_than_are_kept_are_made_again() {
    // Three segments, the last of them not whole; and matrices that stop in different ones.
    for (shape, std) in [(&[35, 4, 4][..], 3.0), (&[6, 7, 7], 4.0), (&[1, 33, 33], 1.0)] {
        let (x, g) = (logits(shape, std, DType::F64, 3), logits(shape, 1.0, DType::F64, 4));
        for stop in [Stop::Steps(150), Stop::Tolerance { error: 1e-7, at_most: 150 }] {
            let backward = Fused::SinkhornBackward(stop);
            let what = format!("{shape:?} {stop:?}");
            assert_near(&run(backward, &[&x, &g]), &on_cpu(backward, &[&x, &g]), 1e-12, &what);
        }
        let counts = on_cpu(Fused::SinkhornSteps(Stop::Tolerance { error: 1e-7, at_most: 150 }), &[&x]);
        let counts = counts.to_vec::<i64>().unwrap();
        assert!(
            shape[0] == 1 || counts.iter().any(|&t| t <= 64) && counts.iter().any(|&t| t > 64),
            "{counts:?}"
        );
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn it_converges_as_the_cpus() {
    for shape in [&[40, 4, 4][..], &[5, 6, 6], &[1, 34, 34]] {
        let (x, g) = (logits(shape, 1.0, DType::F64, 5), logits(shape, 1.0, DType::F64, 6));
        let (forward, backward) =
            (Fused::Sinkhorn(Stop::Converged), Fused::SinkhornBackward(Stop::Converged));
        let what = format!("{shape:?}");
        let p = run(forward, &[&x]);
        assert_near(&p, &on_cpu(forward, &[&x]), 1e-12, &what);
        assert_near(&run(backward, &[&x, &g]), &on_cpu(backward, &[&x, &g]), 1e-12, &what);
        let columns = p.reduce(Reduce::Sum, &[-2]).unwrap().to_f64_vec().unwrap();
        assert!(columns.iter().all(|sum| (sum - 1.0).abs() < 1e-14), "{what}");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn beyond_a_block_there_are_the_logarithms() {
    let shape = [1, 257, 257];
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
        let (x, g) = (logits(&shape, 1.0, dtype, 7), logits(&shape, 1.0, dtype, 8));
        let (forward, backward) = (Fused::Sinkhorn(Stop::Steps(1)), Fused::SinkhornBackward(Stop::Steps(1)));
        assert_near(&run(forward, &[&x]), &on_cpu(forward, &[&x]), tolerance, "forward");
        assert_near(&run(backward, &[&x, &g]), &on_cpu(backward, &[&x, &g]), tolerance, "backward");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn logits_of_any_size_are_those_of_the_cpu() {
    // Some matrices stay with the scalings, others leave for the logarithms. With logits of 10⁴ the CPU's own are not sharper.
    for (shape, dtype) in [
        (&[12, 4, 4][..], DType::F32),
        (&[12, 3, 3], DType::F64),
        (&[5, 7, 7], DType::F32),
        (&[1, 33, 33], DType::F32),
    ] {
        for size in [10.0, 100.0, 10_000.0] {
            let (x, g) = (logits(shape, size, dtype, 9), logits(shape, 1.0, dtype, 10));
            let what = format!("{dtype} {shape:?}, size {size}");
            let (forward, backward) =
                (Fused::Sinkhorn(Stop::Steps(20)), Fused::SinkhornBackward(Stop::Steps(20)));
            let [value, derivative] = if dtype == DType::F32 { [3e-5, 2e-4] } else { [1e-10, 1e-9] };
            assert_near(&run(forward, &[&x]), &on_cpu(forward, &[&x]), value, &what);
            assert_near(&run(backward, &[&x, &g]), &on_cpu(backward, &[&x, &g]), derivative, &what);
            assert!(largest_sum(&run(backward, &[&x, &g]), -2) < 1e-5, "{what}");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_gradient_has_no_sum_along_columns() {
    for shape in [&[40, 4, 4][..], &[5, 6, 6], &[1, 33, 33]] {
        for std in [0.1, 1.0, 3.0] {
            for stop in [Stop::Steps(1), Stop::Steps(20)] {
                let (x, g) = (logits(shape, std, DType::F64, 11), logits(shape, 1.0, DType::F64, 12));
                let pulled = run(Fused::SinkhornBackward(stop), &[&x, &g]);
                let sum = largest_sum(&pulled, -2);
                assert!(sum < 2e-15, "{shape:?} std {std} {stop:?}: {sum:e}");
                // After one step the rows still have one: the test can fail.
                assert!(stop != Stop::Steps(1) || std < 3.0 || largest_sum(&pulled, -1) > 1e-3);
                let ones = Tensor::ones(shape, DType::F64);
                let nothing = run(Fused::SinkhornBackward(stop), &[&x, &ones]).to_f64_vec().unwrap();
                assert!(nothing.iter().all(|v| v.abs() < 2e-15), "{shape:?} std {std} {stop:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_matrix_does_not_see_its_neighbours() {
    for (count, n, dtype) in
        [(36, 4, DType::F32), (13, 3, DType::F64), (7, 7, DType::F32), (2, 34, DType::F32)]
    {
        // One in three is for the logarithms.
        let values: Vec<f64> = logits(&[count, n, n], 2.0, DType::F64, 13)
            .to_f64_vec()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, v)| if i / (n * n) % 3 == 1 { v * 1e4 } else { *v })
            .collect();
        let (x, g) =
            (Tensor::from_f64(&values, [count, n, n], dtype), logits(&[count, n, n], 1.0, dtype, 14));
        for stop in [Stop::Steps(20), TOLERANCE] {
            let (forward, backward) = (Fused::Sinkhorn(stop), Fused::SinkhornBackward(stop));
            let (p, pulled, steps) =
                (run(forward, &[&x]), run(backward, &[&x, &g]), run(Fused::SinkhornSteps(stop), &[&x]));
            for i in (0..count).step_by(11).chain([1, count - 1]) {
                let one = |x: &Tensor| x.slice(0, i, i + 1, 1).contiguous().unwrap();
                let what = format!("{dtype} {n}×{n} number {i}, {stop:?}");
                assert_eq!(bits(&run(forward, &[&one(&x)])), bits(&one(&p)), "{what}");
                assert_eq!(bits(&run(backward, &[&one(&x), &one(&g)])), bits(&one(&pulled)), "{what}");
                assert_eq!(bits(&run(Fused::SinkhornSteps(stop), &[&one(&x)])), bits(&one(&steps)), "{what}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn so_many_steps_give_what_a_tolerance_gives() {
    for (shape, n) in [(&[40, 4, 4][..], 4), (&[5, 6, 6], 6)] {
        let x = logits(shape, 1.0, DType::F32, 15);
        let (p, counts) =
            (run(Fused::Sinkhorn(TOLERANCE), &[&x]), run(Fused::SinkhornSteps(TOLERANCE), &[&x]));
        let counts = counts.to_vec::<i64>().unwrap();
        assert!(counts.iter().min() < counts.iter().max(), "each for itself");
        for (i, &count) in counts.iter().enumerate().step_by(5) {
            let one = |x: &Tensor| x.slice(0, i, i + 1, 1).contiguous().unwrap();
            let fixed = run(Fused::Sinkhorn(Stop::Steps(count as usize)), &[&one(&x)]);
            assert_eq!(bits(&fixed), bits(&one(&p)), "{n}×{n} number {i}");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_masked_logit_is_zero_and_has_no_gradient() {
    for n in [4, 6, 34] {
        let mut values = logits(&[n, n], 1.0, DType::F64, 16).to_f64_vec().unwrap();
        let masked: Vec<usize> = (0..n * n).filter(|i| i % n == (i / n + 1) % n).collect();
        masked.iter().for_each(|&i| values[i] = f64::NEG_INFINITY);
        for size in [1.0, 1e4] {
            let values: Vec<f64> = values.iter().map(|v| v * size).collect();
            let (x, g) =
                (Tensor::from_f64(&values, [n, n], DType::F64), logits(&[n, n], 1.0, DType::F64, 17));
            for (f, x) in [
                (Fused::Sinkhorn(Stop::Steps(20)), &[&x][..]),
                (Fused::SinkhornBackward(Stop::Steps(20)), &[&x, &g]),
            ] {
                let found = run(f, x);
                assert_near(&found, &on_cpu(f, x), 1e-9, &format!("{n}×{n}, size {size}, {f:?}"));
                let found = found.to_f64_vec().unwrap();
                assert!(masked.iter().all(|&i| found[i] == 0.0), "{n}×{n}, size {size}, {f:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_is_not_a_number_stays_visible_and_stays_where_it_is() {
    for n in [3, 4, 5, 33] {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut values = logits(&[2, n, n], 1.0, DType::F64, 18).to_f64_vec().unwrap();
            values[n + 1] = bad;
            let (x, g) =
                (Tensor::from_f64(&values, [2, n, n], DType::F64), Tensor::ones([2, n, n], DType::F64));
            for stop in [Stop::Steps(3), TOLERANCE] {
                for (f, x) in [(Fused::Sinkhorn(stop), &[&x][..]), (Fused::SinkhornBackward(stop), &[&x, &g])]
                {
                    let found = run(f, x).to_f64_vec().unwrap();
                    let (bad, good) = found.split_at(n * n);
                    assert!(
                        bad.iter().all(|v| v.is_nan()) && good.iter().all(|v| v.is_finite()),
                        "{n}×{n}, {f:?}"
                    );
                }
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_row_or_a_column_without_a_logit_is_the_error_of_the_cpu() {
    let g = |n: usize| Tensor::ones([3, n, n], DType::F32);
    for n in [4, 6, 33, 260] {
        for transposed in [false, true] {
            // In the last two of three matrices.
            let masked = |i: usize| i >= n * n && (if transposed { i % n } else { i / n % n }) == 1;
            let values: Vec<f64> =
                (0..3 * n * n).map(|i| if masked(i) { f64::NEG_INFINITY } else { 0.5 }).collect();
            let x = Tensor::from_f64(&values, [3, n, n], DType::F32);
            let stop = if transposed { Stop::Steps(1) } else { TOLERANCE };
            for (f, operands) in [
                (Fused::Sinkhorn(stop), &[&x][..]),
                (Fused::SinkhornBackward(stop), &[&x, &g(n)]),
                (Fused::SinkhornSteps(stop), &[&x]),
            ] {
                let placed: Vec<Tensor> = operands.iter().map(|x| place(x)).collect();
                let y = Tensor::fused(f, &placed.iter().collect::<Vec<_>>()).unwrap().unwrap();
                let message = y.to(&Device::cpu()).unwrap_err().to_string();
                let expected = Tensor::fused(f, operands).unwrap().unwrap_err().to_string();
                assert_eq!(message.replace("cuda:0", "cpu"), expected, "{n}×{n}, {f:?}");
                assert!(message.contains("matrix 1 "), "{message}");
                // It is told once, and the other matrix is as it should be.
                let y = y.cast(DType::F64).unwrap().to_vec::<f64>().unwrap();
                let (good, bad) = y.split_at(y.len() / 3);
                assert!(good.iter().all(|p| p.is_finite()), "{n}×{n}, {f:?}");
                assert!(f == Fused::SinkhornSteps(stop) || bad.iter().any(|p| p.is_nan()), "{n}×{n}, {f:?}");
            }
        }
    }
    assert_eq!(findings(), [""; 0]);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn views_are_their_copies() {
    for n in [3, 4, 7] {
        let x = logits(&[n, 10, n], 1.0, DType::F32, 19);
        let turned = x.permute(&[1, 2, 0]);
        let packed = turned.contiguous().unwrap();
        for (f, operands) in
            [(Fused::Sinkhorn(Stop::Steps(5)), 1), (Fused::SinkhornBackward(Stop::Steps(5)), 2)]
        {
            let found = run(f, &[&turned, &packed][..operands]);
            assert_eq!(bits(&found), bits(&run(f, &[&packed, &packed][..operands])), "{n}×{n}");
            // Behind one element, where no pack is aligned.
            let mut values = vec![0.0];
            values.extend(packed.to_f64_vec().unwrap());
            let all = Tensor::from_f64(&values, [values.len()], DType::F32);
            let behind = all.slice(0, 1, values.len(), 1).reshape([10, n, n]).unwrap();
            let expected = bits(&run(f, &[&packed, &packed][..operands]));
            assert_eq!(bits(&run(f, &[&behind, &behind][..operands])), expected, "{n}×{n}");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn bf16_is_rounded_once() {
    let x = logits(&[10, 4, 4], 1.0, DType::F32, 20).cast(DType::BF16).unwrap();
    let wide = x.cast(DType::F32).unwrap();
    for (f, operands) in
        [(Fused::Sinkhorn(Stop::Steps(20)), 1), (Fused::SinkhornBackward(Stop::Steps(20)), 2)]
    {
        let found = run(f, &[&x, &x][..operands]);
        let expected = run(f, &[&wide, &wide][..operands]).cast(DType::BF16).unwrap();
        assert_eq!(found.dtype(), DType::BF16);
        assert_eq!(bits(&found), bits(&expected));
    }
    assert_eq!(run(Fused::SinkhornSteps(TOLERANCE), &[&x]).dtype(), DType::I64);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn no_matrices_are_no_work() {
    let x = place(&Tensor::zeros([0, 4, 4], DType::F32));
    assert_eq!(x.device(), &device());
    let found = Tensor::fused(Fused::SinkhornBackward(Stop::Converged), &[&x, &x]).unwrap().unwrap();
    assert_eq!(found.shape()[..], [0, 4, 4]);
}
