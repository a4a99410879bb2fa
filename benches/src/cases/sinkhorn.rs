//! Sinkhorn–Knopp of many small matrices.

use limpid_tensor::{DType, Fused, Stop};

use super::fused;
use crate::Case;
use crate::case::normal;

pub(super) fn cases() -> Vec<Case> {
    const STEPS: usize = 20;
    let stop = Stop::Steps(STEPS);
    let mut cases = Vec::new();
    for (matrices, n) in [(32_768, 4), (1024, 16)] {
        // A half step sums and scales every element, and divides once for each row or column.
        let half = (2 * n * n + n) as f64;
        let forward = (matrices * 2 * STEPS) as f64 * half;
        // Back through a half step: the sum of ḡ∘p, what it subtracts, and the scaling.
        let backward = forward + (matrices * 2 * STEPS) as f64 * (4 * n * n) as f64;
        for (name, f, operands, flops) in [
            ("forward", Fused::Sinkhorn(stop), 1, forward),
            ("backward", Fused::SinkhornBackward(stop), 2, backward),
        ] {
            cases.push(
                Case::new(
                    "sinkhorn",
                    format!("{name} f32, {matrices} of {n}×{n}, {STEPS} steps"),
                    move || (0..operands).map(|label| normal(&[matrices, n, n], DType::F32, label)).collect(),
                    move |x| fused(f, x),
                )
                .with_flops(flops),
            );
        }
    }
    cases
}
