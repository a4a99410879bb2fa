//! Random tensors: each element from its own bits, so neither order nor number of threads can matter.

use half::bf16;

use super::threads;
use crate::rng::{Distribution, Key, inverse_normal_cdf, normal_cdf, open_unit, unit};
use crate::{DType, Element, HostBuffer, Result, Shape, Tensor};

/// Elements per piece of work: below this, waking a thread costs more than it saves.
const CHUNK: usize = 1 << 14;

pub(super) fn random(what: Distribution, shape: &Shape, dtype: DType, key: Key) -> Result<Tensor> {
    Ok(with_element!(dtype, T => draw::<T>(what, shape, key)))
}

fn draw<T: Element>(what: Distribution, shape: &Shape, key: Key) -> Tensor {
    match what {
        Distribution::Uniform { low, high } => {
            let largest = if low < high { largest_below(high, T::DTYPE) } else { high };
            fill::<T>(shape, key, |bits| (low + (high - low) * unit(bits)).min(largest))
        }
        Distribution::Normal { mean, std } => {
            fill::<T>(shape, key, |bits| mean + std * inverse_normal_cdf(open_unit(bits)))
        }
        Distribution::TruncatedNormal { mean, std, low, high } => {
            let (a, b) = ((low - mean) / std, (high - mean) / std);
            // Φ has no resolution near 1: an interval above the mean is taken from the lower tail, mirrored.
            let mirrored = a > 0.0;
            let (p, q) =
                if mirrored { (normal_cdf(-b), normal_cdf(-a)) } else { (normal_cdf(a), normal_cdf(b)) };
            // Without a spread a and b are infinite or NaN; far in a tail Φ underflows.
            if std == 0.0 || q - p < 1e-300 {
                return fill::<T>(shape, key, |_| mean.clamp(low, high));
            }
            fill::<T>(shape, key, |bits| {
                let u = open_unit(bits);
                let z = if mirrored {
                    -inverse_normal_cdf(p + (1.0 - u) * (q - p))
                } else {
                    inverse_normal_cdf(p + u * (q - p))
                };
                (mean + std * z).clamp(low, high)
            })
        }
        Distribution::Bernoulli { p } => fill::<T>(shape, key, |bits| f64::from(u8::from(unit(bits) < p))),
        Distribution::Permutation => {
            let order: Vec<i64> = key.permutation(shape.elements()).into_iter().map(|i| i as i64).collect();
            Tensor::from_slice(&order, shape)
        }
    }
}

/// A tensor of `value(bits)`, rounded to `T`, for the bits of each element.
fn fill<T: Element>(shape: &Shape, key: Key, value: impl Fn(u64) -> f64 + Sync) -> Tensor {
    const { assert!(CHUNK.is_multiple_of(2), "a chunk holds whole blocks of two elements") }
    let size = T::DTYPE.size();
    let write = |chunk: usize, bytes: &mut [u8]| {
        for (block, pair) in bytes.chunks_mut(2 * size).enumerate() {
            let bits = key.pair((chunk * CHUNK / 2 + block) as u64);
            for (element, bits) in pair.chunks_exact_mut(size).zip(bits) {
                element.copy_from_slice(T::to_bytes(&[T::from_f64(value(bits))]));
            }
        }
    };
    let mut buffer = HostBuffer::new(shape.elements() * size);
    let bytes = buffer.as_mut::<u8>();
    if shape.elements() > CHUNK {
        threads::chunks(bytes, CHUNK * size, write);
    } else {
        write(0, bytes);
    }
    buffer.into_tensor(shape, T::DTYPE)
}

/// The largest number below `high` that a float dtype can hold.
fn largest_below(high: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => {
            let nearest = high as f32;
            f64::from(if f64::from(nearest) < high { nearest } else { nearest.next_down() })
        }
        DType::BF16 => {
            let nearest = <bf16 as Element>::from_f64(high);
            if nearest.to_f64() < high {
                return nearest.to_f64();
            }
            // Floats of one sign are ordered as their bits are.
            let bits = match nearest.to_bits() {
                0x0000 | 0x8000 => 0x8001,
                negative if negative & 0x8000 != 0 => negative + 1,
                positive => positive - 1,
            };
            bf16::from_bits(bits).to_f64()
        }
        _ => high.next_down(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Distribution = Distribution::Uniform { low: 0.0, high: 1.0 };
    const NORMAL: Distribution = Distribution::Normal { mean: 0.0, std: 1.0 };

    fn draw(what: Distribution, n: usize, dtype: DType, key: Key) -> Vec<f64> {
        Tensor::random(what, [n], dtype, key).unwrap().to_f64_vec().unwrap()
    }

    /// The largest distance between the empirical distribution function and `cdf`, times √n: above 2.3 once in
    /// 20 000 draws (Kolmogorov), if the samples do follow it.
    fn kolmogorov(mut samples: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        samples.sort_by(f64::total_cmp);
        let n = samples.len() as f64;
        let gap = |(i, &x): (usize, &f64)| {
            let p = cdf(x);
            (p - i as f64 / n).max((i + 1) as f64 / n - p)
        };
        samples.iter().enumerate().map(gap).fold(0.0, f64::max) * n.sqrt()
    }

    fn mean(x: &[f64]) -> f64 {
        x.iter().sum::<f64>() / x.len() as f64
    }

    #[test]
    fn draws_follow_their_distributions() {
        let n = 100_000;
        for seed in 0..4 {
            let key = Key::new(seed).fold_str("draws");
            let uniform = Distribution::Uniform { low: -3.0, high: 5.0 };
            let x = draw(uniform, n, DType::F64, key);
            assert!(x.iter().all(|x| (-3.0..5.0).contains(x)));
            assert!(kolmogorov(x, |x| (x + 3.0) / 8.0) < 2.3);

            let x = draw(Distribution::Normal { mean: 2.0, std: 3.0 }, n, DType::F64, key);
            let m = mean(&x);
            let variance = mean(&x.iter().map(|x| (x - m).powi(2)).collect::<Vec<_>>());
            // Five standard errors: σ/√n for the mean, σ²·√(2/n) for the variance.
            assert!((m - 2.0).abs() < 5.0 * 3.0 / (n as f64).sqrt(), "mean {m}");
            assert!((variance - 9.0).abs() < 5.0 * 9.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
            assert!(kolmogorov(x, |x| normal_cdf((x - 2.0) / 3.0)) < 2.3);

            let p = 0.1;
            let ones = mean(&draw(Distribution::Bernoulli { p }, n, DType::Bool, key));
            assert!((ones - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{ones}");
        }
    }

    #[test]
    fn truncated_normals_follow_theirs_in_the_middle_and_in_both_tails() {
        for (low, high) in
            [(-2.0, 2.0), (-1.0, f64::INFINITY), (f64::NEG_INFINITY, -6.0), (6.0, 9.0), (7.0, 7.5)]
        {
            let what = Distribution::TruncatedNormal { mean: 1.0, std: 0.5, low, high };
            let x = draw(what, 20_000, DType::F64, Key::new(8));
            assert!(x.iter().all(|x| (low..=high).contains(x)), "{low}..={high}");
            // The distribution function, mirrored where Φ is close to 1.
            let upper = |x: f64| normal_cdf(-(x - 1.0) / 0.5);
            let cdf = |x: f64| (upper(low) - upper(x)) / (upper(low) - upper(high));
            let lower = |x: f64| normal_cdf((x - 1.0) / 0.5);
            let below = |x: f64| (lower(x) - lower(low)) / (lower(high) - lower(low));
            let distance = if low > 1.0 { kolmogorov(x, cdf) } else { kolmogorov(x, below) };
            assert!(distance < 2.3, "{low}..={high}: {distance}");
        }
        for (std, low, high, only) in [
            (1.0, 50.0, f64::INFINITY, 50.0),
            (1.0, f64::NEG_INFINITY, -50.0, -50.0),
            (1.0, 0.25, 0.25, 0.25),
            (0.0, -1.0, 1.0, 0.0),
            (0.0, 0.0, 1.0, 0.0),
            (0.0, 1.0, 2.0, 1.0),
        ] {
            let what = Distribution::TruncatedNormal { mean: 0.0, std, low, high };
            assert_eq!(draw(what, 3, DType::F64, Key::new(8)), [only; 3], "{what:?}");
        }
    }

    #[test]
    fn an_element_depends_on_key_and_index_alone() {
        let key = Key::new(1).fold(2);
        let flat = draw(NORMAL, 3 * CHUNK + 5, DType::F64, key);
        assert!(flat.iter().enumerate().all(|(i, &x)| x == key.normal(i as u64)));
        for shape in [vec![], vec![1], vec![7, 3], vec![CHUNK + 1], vec![5, 0, 2]] {
            let x = Tensor::random(NORMAL, shape, DType::F64, key).unwrap();
            assert_eq!(x.to_vec::<f64>().unwrap(), flat[..x.elements()]);
        }
    }

    #[test]
    fn one_thread_or_many_give_the_same_bits() {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = |threads| pool(threads).install(|| draw(UNIT, 5 * CHUNK + 3, DType::F64, Key::new(4)));
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn a_narrow_draw_is_the_wide_one_rounded() {
        let key = Key::new(6);
        let wide = draw(NORMAL, 1000, DType::F64, key);
        let f32s: Vec<f64> = wide.iter().map(|&x| f64::from(x as f32)).collect();
        let bf16s: Vec<f64> = wide.iter().map(|&x| <bf16 as Element>::from_f64(x).to_f64()).collect();
        assert_eq!(draw(NORMAL, 1000, DType::F32, key), f32s);
        assert_eq!(draw(NORMAL, 1000, DType::BF16, key), bf16s);
        let coin = Distribution::Bernoulli { p: 0.3 };
        assert_eq!(draw(coin, 1000, DType::Bool, key), draw(coin, 1000, DType::F32, key));
    }

    #[test]
    fn uniforms_never_reach_their_upper_end() {
        // 8 significant bits round the top 2⁻⁹ of the unit interval to 1; between 256 and 257 bf16 has nothing.
        for (low, high) in [(0.0, 1.0), (100.0, 101.0), (-1.0, 0.0), (-2.0, -1.0), (256.0, 257.0), (0.0, 0.1)]
        {
            for dtype in [DType::BF16, DType::F32, DType::F64] {
                let x = draw(Distribution::Uniform { low, high }, 20_000, dtype, Key::new(9));
                assert!(x.iter().all(|&x| x < high), "{dtype} {low}..{high}");
            }
        }
        let constant = Distribution::Uniform { low: 0.5, high: 0.5 };
        assert_eq!(draw(constant, 3, DType::F32, Key::new(9)), [0.5; 3]);
    }

    #[test]
    fn bernoulli_is_exact_at_its_ends() {
        assert!(
            draw(Distribution::Bernoulli { p: 0.0 }, 10_000, DType::I64, Key::new(0))
                .iter()
                .all(|&x| x == 0.0)
        );
        assert!(
            draw(Distribution::Bernoulli { p: 1.0 }, 10_000, DType::BF16, Key::new(0))
                .iter()
                .all(|&x| x == 1.0)
        );
    }

    #[test]
    fn streams_and_neighbours_are_uncorrelated() {
        let n = 100_000;
        let key = Key::new(12);
        let x = draw(NORMAL, n, DType::F64, key);
        let correlation =
            |a: &[f64], b: &[f64]| mean(&a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>());
        // The product of two independent standard normals has variance 1: five standard errors.
        let bound = 5.0 / ((n - 2) as f64).sqrt();
        let others = [key.fold(0), key.fold(1), key.fold_str("a"), Key::new(13), Key { stream: 1, ..key }];
        for other in others {
            let c = correlation(&x, &draw(NORMAL, n, DType::F64, other));
            assert!(c.abs() < bound, "{other:?}: {c}");
        }
        for lag in [1, 2] {
            let c = correlation(&x[lag..], &x);
            assert!(c.abs() < bound, "lag {lag}: {c}");
        }
    }

    #[test]
    fn a_permutation_is_a_tensor_of_indices() {
        let key = Key::new(2);
        let x = Tensor::random(Distribution::Permutation, [50], DType::I64, key)
            .unwrap()
            .to_vec::<i64>()
            .unwrap();
        assert!(x.iter().map(|&i| i as usize).eq(key.permutation(50)));
    }

    #[test]
    #[should_panic(expected = "uniform is not defined for i64")]
    fn a_float_distribution_refuses_integers() {
        let _ = Tensor::random(UNIT, [3], DType::I64, Key::new(0));
    }
}
