//! Fused functions of rows.

use limpid_tensor::{DType, Fused};

use super::{LARGE, fused};
use crate::Case;
use crate::case::{indices, normal};

const GROUP: &str = "rows";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [rows, columns] in [[128, 64], [LARGE / 1024, 1024]] {
        let of_rows = move |parameters: u64| {
            let parameters = (1..=parameters).map(|label| normal(&[columns], DType::F32, label));
            [normal(&[rows, columns], DType::F32, 0)].into_iter().chain(parameters).collect()
        };
        // With the arithmetic instructions of all passes, as for functions of elements. To widen a vector to f64 takes two.
        for (name, f, parameters, instructions) in [
            ("softmax", Fused::Softmax, 0, 24),
            ("log_softmax", Fused::LogSoftmax, 0, 25),
            ("layer_norm", Fused::LayerNorm { eps: 1e-5 }, 2, 15),
            ("rms_norm", Fused::RmsNorm { eps: 1e-5 }, 1, 8),
        ] {
            let case = Case::new(
                GROUP,
                format!("{name} f32 [{rows}, {columns}]"),
                move || of_rows(parameters),
                move |x| fused(f, x),
            );
            cases.push(case.with_instructions(instructions));
        }
        cases.push(Case::new(
            GROUP,
            format!("cross_entropy f32 [{rows}, {columns}]"),
            move || Ok(vec![normal(&[rows, columns], DType::F32, 0)?, indices(&[rows], columns, 1)?]),
            |x| fused(Fused::CrossEntropy, x),
        ));
    }
    cases.push(Case::new(
        GROUP,
        "cross_entropy f32 [128, 2]",
        || Ok(vec![normal(&[128, 2], DType::F32, 0)?, indices(&[128], 2, 1)?]),
        |x| fused(Fused::CrossEntropy, x),
    ));
    cases
}
