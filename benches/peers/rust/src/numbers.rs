//! The operands that every contestant makes alike.

/// f32s over `low..high` by position: benches/src/numbers.rs of limpid has the formula.
pub fn spread(count: usize, low: f64, high: f64, label: u32) -> Vec<f32> {
    let element = |i: usize| {
        let mut h = (i as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(2_246_822_519u32.wrapping_mul(label.wrapping_add(1)));
        h = (h ^ (h >> 15)).wrapping_mul(2_146_121_005);
        h ^= h >> 13;
        (low + (high - low) * f64::from(h) / 4_294_967_296.0) as f32
    };
    (0..count).map(element).collect()
}

pub fn number(text: &str) -> usize {
    text.parse().expect("the sizes of a workload are numbers")
}

/// What is known of a network's layer: its place, and how much goes in and out.
pub struct Layer {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub inputs: usize,
    pub outputs: usize,
}

/// Layers of the two-moons network; weights are `[out, in]`.
pub fn layers(width: usize) -> Vec<Layer> {
    const DEPTH: usize = 20;
    let layer = |i: usize| {
        let inputs = if i == 0 { 2 } else { width };
        let outputs = if i + 1 == DEPTH { 2 } else { width };
        let bound = 1.0 / (inputs as f64).sqrt();
        let weight = spread(inputs * outputs, -bound, bound, i as u32);
        let bias = spread(outputs, -bound, bound, 1000 + i as u32);
        Layer { weight, bias, inputs, outputs }
    };
    (0..DEPTH).map(layer).collect()
}
