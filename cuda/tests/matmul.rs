//! Matrix products as the backend is asked for them: batches, broadcast factors, odd sizes, activations, and one answer
//! whatever the order in which threads run.

#[cfg(has_gxx)]
mod emulated;

#[cfg(has_gxx)]
mod products {
    use super::emulated::{assert_same_bits, device, findings, is_card, place, stand_in};
    use limpid_tensor::DType::{self, *};
    use limpid_tensor::{Activation, Device, Fused, Map, Shape, Tensor};

    const FLOATS: [DType; 3] = [F32, F64, BF16];

    /// Whole numbers in −4..=4, whose products and sums are exact in any order.
    fn whole(shape: &[usize], dtype: DType) -> Tensor {
        let shape = Shape::from(shape);
        let values: Vec<f64> = (0..shape.elements()).map(|i| (i * 7919 % 1009 % 9) as f64 - 4.0).collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    /// Numbers whose sums round.
    fn fractions(shape: &[usize], dtype: DType) -> Tensor {
        let shape = Shape::from(shape);
        let values: Vec<f64> =
            (0..shape.elements()).map(|i| (i as f64 * 0.618_033_988_75).fract() - 0.5).collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    #[track_caller]
    fn multiplies(a: &Tensor, b: &Tensor) {
        let what = format!("{} {:?} · {:?}", a.dtype(), a.layout(), b.layout());
        assert_same_bits(device().backend().matmul(&place(a), &place(b)), a.matmul(b), &what);
    }

    #[test]
    fn batches_and_broadcast_factors() {
        for dtype in FLOATS {
            let shapes: [(&[usize], &[usize]); 7] = [
                (&[3, 20, 24], &[3, 24, 40]),
                (&[3, 20, 24], &[24, 40]),
                (&[20, 24], &[3, 24, 40]),
                (&[2, 3, 20, 24], &[3, 24, 40]),
                (&[2, 1, 20, 24], &[1, 3, 24, 40]),
                (&[2, 3, 1, 24], &[24, 40]),
                (&[70, 4, 4], &[70, 4, 9]),
            ];
            for (a, b) in shapes {
                multiplies(&whole(a, dtype), &whole(b, dtype));
            }
            let x = whole(&[20, 5, 3, 24], dtype).permute(&[1, 2, 0, 3]);
            multiplies(&x, &whole(&[5, 1, 40, 24], dtype).transpose(-1, -2));
            multiplies(&x.flip(0), &x.transpose(-1, -2).flip(1));
            multiplies(&x.flip(2), &x.slice(0, 1, 2, 1).transpose(-1, -2).flip(2));
        }
    }

    #[test]
    fn nothing_and_sums_of_nothing() {
        for dtype in FLOATS {
            for [m, k, n] in [[0, 3, 4], [3, 0, 4], [3, 4, 0], [0, 0, 0], [1, 0, 1], [70, 0, 80]] {
                multiplies(&whole(&[m, k], dtype), &whole(&[k, n], dtype));
                multiplies(&whole(&[2, m, k], dtype).flip(0), &whole(&[k, n], dtype).flip(1));
            }
        }
    }

    #[test]
    fn tensor_cores_read_a_copy_of_what_they_cannot_read() {
        // Odd rows, a factor that begins anywhere, steps of two, and a broadcast one that is copied once.
        multiplies(&whole(&[65, 67], BF16), &whole(&[67, 69], BF16));
        multiplies(&whole(&[67, 65], BF16).transpose(0, 1), &whole(&[69, 67], BF16).transpose(0, 1));
        multiplies(&whole(&[80, 73], BF16).slice(1, 1, 65, 1), &whole(&[128, 72], BF16).slice(0, 0, 128, 2));
        let one = whole(&[1, 64, 66], BF16).expand([3, 64, 66]);
        multiplies(&one, &whole(&[3, 66, 64], BF16));
        multiplies(&one, &whole(&[66, 64], BF16));
    }

    #[test]
    fn large_products_of_bf16_run_on_four_warps() {
        // 256 tiles of 128×256, most of them mere edges.
        multiplies(&whole(&[256, 65, 32], BF16), &whole(&[256, 32, 136], BF16));
    }

    #[test]
    fn floats_are_as_exact_as_their_type() {
        for (dtype, rounding) in [(F32, 2f64.powi(-24)), (F64, 2f64.powi(-53))] {
            let (m, n, k) = (40, 50, 300);
            let (a, b) = (fractions(&[m, k], dtype), fractions(&[k, n], dtype));
            let y = place(&a).matmul(&place(&b)).unwrap().to(&Device::cpu()).unwrap().to_f64_vec().unwrap();
            let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
            for i in 0..m {
                for j in 0..n {
                    let terms = || (0..k).map(|p| a[i * k + p] * b[p * n + j]);
                    let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    assert!(
                        (y[i * n + j] - sum).abs() <= (k + 1) as f64 * rounding * size,
                        "{dtype} {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn linear_adds_a_bias_and_a_residual_and_activates() {
        let activations = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];
        // A row, few rows, a batch, a long sum in parts, and enough for tensor cores.
        let shapes: [(&[usize], usize); 5] =
            [(&[9], 3), (&[2, 100], 5), (&[3, 10, 20], 33), (&[9, 1100], 10), (&[40, 72], 64)];
        for dtype in FLOATS {
            for (x, out) in shapes {
                let inner = x[x.len() - 1];
                let [x, w] = [fractions(x, dtype), fractions(&[out, inner], dtype)];
                let bias = fractions(&[2 * out], dtype).slice(0, 0, 2 * out, 2).flip(0);
                for act in activations {
                    for operands in [vec![&x, &w], vec![&x, &w, &bias]] {
                        assert_near(Fused::Linear(act), &operands);
                    }
                }
                // Contiguous, beginning where no pack does, and turned.
                let y = x.shape().with(x.shape().len() - 1, out);
                let anywhere = fractions(&[y.elements() + 1], dtype).slice(0, 1, y.elements() + 1, 1);
                let residuals =
                    [fractions(&y, dtype), anywhere.reshape(&y).unwrap(), fractions(&y, dtype).flip(0)];
                for (act, r) in activations.into_iter().zip(residuals.iter().cycle()) {
                    for operands in [vec![r, &x, &w], vec![r, &x, &w, &bias]] {
                        assert_near(Fused::LinearAdd(act), &operands);
                    }
                }
            }
        }
    }

    /// In f32 and f64, where nothing is rounded in between; in bf16 a sum and its residual are rounded together.
    #[test]
    fn a_residual_in_the_epilogue_has_the_bits_of_an_addition() {
        for dtype in [F32, F64] {
            for [m, k, n] in [[2, 5, 3], [2, 100, 4], [40, 50, 70], [9, 1100, 10], [33, 24, 36]] {
                let [x, w, r] = [[m, k], [n, k], [m, n]].map(|shape| place(&fractions(&shape, dtype)));
                let fused =
                    |f, x: &[&Tensor]| Tensor::fused(f, x).expect("there is a kernel").expect("it runs");
                for act in [Activation::Identity, Activation::Tanh] {
                    let layer = fused(Fused::Linear(act), &[&x, &w]);
                    let sum = Tensor::map(Map::Add, &[&r, &layer]).unwrap();
                    let added = fused(Fused::LinearAdd(act), &[&r, &x, &w]);
                    let [added, sum] = [added, sum].map(|y| y.to_f64_vec().unwrap());
                    assert!(added == sum, "{act:?} {dtype} {m}×{k}×{n}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "linear: the residual must be [2, 3], found [2, 1]")]
    fn a_residual_does_not_broadcast() {
        let [x, w, r] = [[2, 4], [3, 4], [2, 1]].map(|shape| place(&whole(&shape, F32)));
        let _ = Tensor::fused(Fused::LinearAdd(Activation::Relu), &[&r, &x, &w]);
    }

    /// Against the CPU, up to the roundings of sums of at most 1100 terms below ¼.
    fn assert_near(f: Fused, operands: &[&Tensor]) {
        let placed: Vec<Tensor> = operands.iter().map(|x| place(x)).collect();
        let fused = |x: &[&Tensor]| Tensor::fused(f, x).expect("there is a kernel").expect("it runs");
        let found = fused(&placed.iter().collect::<Vec<_>>()).to(&Device::cpu()).unwrap();
        let expected = fused(operands);
        assert_eq!(found.meta(), expected.meta());
        let relative = match found.dtype() {
            F64 => 1e-13,
            F32 => 1e-5,
            _ => 1.0 / 64.0,
        };
        let [found, expected] = [found, expected].map(|y| y.to_f64_vec().unwrap());
        for (found, expected) in found.iter().zip(&expected) {
            let near = (found - expected).abs() <= relative * (expected.abs() + 0.1);
            assert!(near, "{f:?} of {:?}: {found}, the CPU says {expected}", operands[0].meta());
        }
        let mistakes = findings();
        assert!(mistakes.is_empty(), "{f:?}: {}", mistakes[0]);
    }

    #[test]
    fn threads_in_any_order_give_the_same_bits() {
        // A tile of each kind, a dot, a direct sum, a sum in parts, and both kinds of tensor core.
        let shapes = [[40, 50, 70], [1, 9, 300], [9, 9, 20], [20, 9, 1500], [64, 72, 80]];
        for dtype in FLOATS {
            for [m, n, k] in shapes {
                let [a, b] = [place(&fractions(&[m, k], dtype)), place(&fractions(&[k, n], dtype))];
                let once = |seed: u64| {
                    if !is_card() {
                        stand_in().set_seed(seed);
                    }
                    a.matmul(&b).and_then(|y| y.to_f64_vec()).unwrap()
                };
                let first = once(1);
                for seed in 2..6 {
                    assert!(once(seed) == first, "{dtype} {m}×{k}×{n}, seed {seed}");
                }
            }
        }
    }
}

#[cfg(not(has_gxx))]
#[test]
#[ignore = "g++ is not installed, which compiles kernels for this processor"]
fn products() {
    panic!("g++ is not installed");
}
