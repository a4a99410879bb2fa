//! Random tensors: `random.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::rng::{Distribution, Key, normal_cdf};
use limpid_tensor::{DType, Result, Shape, Tensor};

use crate::device::Cuda;
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::ops::sort;

pub(crate) static RANDOM: Family =
    Family { name: "random.cu", text: include_str!("../../kernels/random.cu") };

const THREADS: u32 = 256;

/// Random values: element `i` is a function of the distribution, the key and `i` alone.
pub(crate) fn random(
    cuda: &'static Cuda,
    what: Distribution,
    shape: &Shape,
    dtype: DType,
    key: Key,
) -> Result<Tensor> {
    match what {
        Distribution::Uniform { low, high } => {
            let largest = if low < high { largest_below(high, dtype) } else { high };
            fill(cuda, "uniform", shape, dtype, key, Some([low, high - low, largest]))
        }
        Distribution::Normal { mean, std } => fill(cuda, "normal", shape, dtype, key, Some([mean, std])),
        Distribution::TruncatedNormal { mean, std, low, high } => {
            match Truncated::new(mean, std, low, high) {
                Some(truncated) => fill(cuda, "truncated_normal", shape, dtype, key, Some(truncated)),
                None => {
                    let only = mean.clamp(low, high);
                    random(cuda, Distribution::Uniform { low: only, high: only }, shape, dtype, key)
                }
            }
        }
        Distribution::Bernoulli { p } => fill(cuda, "bernoulli", shape, dtype, key, Some(p)),
        Distribution::Permutation => {
            let keys = fill(cuda, "sort_keys", shape, dtype, key, None::<f64>)?;
            sort::argsort(cuda, &keys, 0, false)
        }
        _ => Err(cuda.error(format!("{} is not a distribution that this device draws from", what.name()))),
    }
}

/// Draws every element by the kernel of this name, which takes these parameters.
fn fill<P: Pod>(
    cuda: &'static Cuda,
    kernel: &str,
    shape: &Shape,
    dtype: DType,
    key: Key,
    parameters: Option<P>,
) -> Result<Tensor> {
    let mut y = cuda.empty(shape, dtype)?;
    let n = y.elements();
    let mut arguments = Arguments::default();
    arguments.output(&mut y).value(n as i64).value([key.seed, key.stream]);
    let mut name = kernel.to_string();
    if let Some(parameters) = parameters {
        arguments.value(parameters);
        name += &format!("_{dtype}");
    }
    let grid = match n {
        0 => Grid::new(0, THREADS),
        n => Grid::covering(n.div_ceil(2), THREADS, cuda.most_blocks()),
    };
    cuda.launch(&RANDOM, &name, grid, &mut arguments)?;
    Ok(y)
}

/// A Gaussian between two bounds; `Truncated` of `random.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Truncated {
    mean: f64,
    std: f64,
    low: f64,
    high: f64,
    /// Its distribution function at one bound, and how much more it is at the other.
    start: f64,
    width: f64,
    mirrored: i64,
}

impl Truncated {
    /// `None` where all that is left is the point nearest to the mean.
    fn new(mean: f64, std: f64, low: f64, high: f64) -> Option<Truncated> {
        let (a, b) = ((low - mean) / std, (high - mean) / std);
        // Φ has no resolution near 1: an interval above the mean is taken from the lower tail, mirrored.
        let mirrored = a > 0.0;
        let (p, q) = if mirrored { (normal_cdf(-b), normal_cdf(-a)) } else { (normal_cdf(a), normal_cdf(b)) };
        // Without a spread a and b are infinite or NaN; far in a tail Φ underflows.
        if std == 0.0 || q - p < 1e-300 {
            return None;
        }
        Some(Truncated { mean, std, low, high, start: p, width: q - p, mirrored: i64::from(mirrored) })
    }
}

/// The largest number below `high` that a float dtype can hold.
fn largest_below(high: f64, dtype: DType) -> f64 {
    let nearest = high as f32;
    let below = if f64::from(nearest) < high { nearest } else { nearest.next_down() };
    match dtype {
        DType::F32 => f64::from(below),
        // A bf16 is the upper half of an f32. To cut off the lower half rounds towards zero, which is up for a negative
        // number: one more in its upper half is the next one down.
        DType::BF16 => {
            let cut = below.to_bits() & 0xFFFF_0000;
            let up = below.is_sign_negative() && cut != below.to_bits();
            f64::from(f32::from_bits(cut + if up { 0x1_0000 } else { 0 }))
        }
        _ => high.next_down(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_below_another() {
        for (high, f32, bf16) in [
            (1.0, 1.0 - 2f64.powi(-24), 1.0 - 2f64.powi(-8)),
            (0.0, -2f64.powi(-149), -2f64.powi(-133)),
            (-1.0, -1.0 - 2f64.powi(-23), -1.0 - 2f64.powi(-7)),
            (257.0, 257.0 - 2f64.powi(-15), 256.0),
            (-257.0, -257.0 - 2f64.powi(-15), -258.0),
            (1e-46, 0.0, 0.0),
            (1e300, f64::from(f32::MAX), 255.0 * 2f64.powi(120)),
        ] {
            assert_eq!(largest_below(high, DType::F32), f32, "{high}");
            assert_eq!(largest_below(high, DType::BF16), bf16, "{high}");
            assert_eq!(largest_below(high, DType::F64), high.next_down());
        }
    }
}
