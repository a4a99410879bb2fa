//! Operands that every contestant makes alike, so that results can be compared: a hash of an element's position.

use limpid_tensor::Tensor;

/// f32s spread evenly over `low..high`: element i is a function of i and `label`.
///
/// h = 2654435761·i + 2246822519·(label + 1) in 32 bits, mixed by `h ^= h >> 15; h *= 2146121005; h ^= h >> 13`.
pub fn spread(shape: &[usize], low: f64, high: f64, label: u32) -> Tensor {
    let count = shape.iter().product();
    let element = |i: usize| {
        let mut h = (i as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(2_246_822_519u32.wrapping_mul(label.wrapping_add(1)));
        h = (h ^ (h >> 15)).wrapping_mul(2_146_121_005);
        h ^= h >> 13;
        (low + (high - low) * f64::from(h) / 4_294_967_296.0) as f32
    };
    Tensor::from_vec((0..count).map(element).collect::<Vec<f32>>(), shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `spread` of benches/peers/contestant.py makes.
    #[test]
    fn every_language_makes_the_same_numbers() {
        let ours = spread(&[2, 2], -1.0, 1.0, 7).to_vec::<f32>().unwrap();
        assert_eq!(ours, [0.460_076_63, 0.543_060_24, 0.308_894_52, -0.382_998_5]);
    }
}
