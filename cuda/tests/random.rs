//! Random tensors have the bits that the CPU gives them.

mod emulated;

use emulated::{assert_same_bits, device};
use limpid_tensor::DType::{self, *};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Device, Shape};

const FLOATS: [DType; 3] = [F32, F64, BF16];

#[track_caller]
fn agrees(what: Distribution, shape: impl Into<Shape>, dtype: DType, key: Key) {
    let shape = shape.into();
    let draw = |device: &Device| device.backend().random(what, &shape, dtype, key);
    assert_same_bits(draw(&device()), draw(&Device::cpu()), &format!("{what:?} of {dtype} {shape}, {key:?}"));
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn every_shape_and_key() {
    let what = Distribution::Uniform { low: -3.0, high: 5.0 };
    for shape in [vec![], vec![0], vec![1], vec![2], vec![3], vec![7, 3], vec![5, 0, 2], vec![3001]] {
        for dtype in FLOATS {
            agrees(what, shape.clone(), dtype, Key::new(7).fold_str("shapes"));
        }
    }
    for key in [Key::new(0), Key { seed: u64::MAX, stream: u64::MAX }, Key { seed: 1 << 32, stream: 1 << 32 }]
    {
        agrees(what, [64], F64, key);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn uniforms_below_every_kind_of_end() {
    for (low, high) in
        [(0.0, 1.0), (-1.0, 0.0), (-2.0, -1.0), (256.0, 257.0), (0.0, 0.1), (0.5, 0.5), (0.0, 1e300)]
    {
        for dtype in FLOATS {
            agrees(Distribution::Uniform { low, high }, [2000], dtype, Key::new(9));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn normals_in_the_middle_and_in_the_tails() {
    // One of 13 million is beyond √(−ln p) = 5: the far tail is left to the truncated ones.
    for dtype in FLOATS {
        agrees(Distribution::Normal { mean: 0.0, std: 1.0 }, [20_000], dtype, Key::new(3));
        agrees(Distribution::Normal { mean: -2.5, std: 1e-3 }, [1000], dtype, Key::new(4));
        agrees(Distribution::Normal { mean: 1.0, std: 0.0 }, [10], dtype, Key::new(5));
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn truncated_normals_between_all_kinds_of_bounds() {
    let infinity = f64::INFINITY;
    for (std, low, high) in [
        (1.0, -2.0, 2.0),
        (0.5, -1.0, infinity),
        (0.5, -infinity, -6.0),
        (0.5, 6.0, 9.0),
        (1.0, 8.0, 8.5),
        // So far out that probabilities are below the smallest normal double.
        (1.0, -infinity, -35.9),
        (1.0, -infinity, infinity),
        // Only one point is left.
        (1.0, 50.0, infinity),
        (1.0, 0.25, 0.25),
        (0.0, 2.0, 3.0),
    ] {
        for dtype in FLOATS {
            let what = Distribution::TruncatedNormal { mean: 1.0, std, low, high };
            agrees(what, [1500], dtype, Key::new(8));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn coins_of_every_dtype() {
    for p in [0.0, 0.3, 1.0] {
        for dtype in [F32, F64, BF16, I64, Bool] {
            agrees(Distribution::Bernoulli { p }, [1001], dtype, Key::new(1).fold(2));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn permutations() {
    for n in [0, 1, 2, 50, 1000] {
        agrees(Distribution::Permutation, [n], I64, Key::new(2));
    }
}
