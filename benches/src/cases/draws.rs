//! Random numbers.

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

use crate::Case;

pub(super) fn cases() -> Vec<Case> {
    const COUNT: usize = 1 << 20;
    [
        Distribution::Uniform { low: 0.0, high: 1.0 },
        Distribution::Normal { mean: 0.0, std: 1.0 },
        Distribution::Bernoulli { p: 0.1 },
        Distribution::Permutation,
    ]
    .map(|what| {
        let dtype = if what == Distribution::Permutation { DType::I64 } else { DType::F32 };
        Case::new(
            "random",
            format!("{} {dtype} {COUNT}", what.name()),
            || Ok(Vec::new()),
            move |_| Tensor::random(what, [COUNT], dtype, Key::new(1)),
        )
    })
    .into()
}
