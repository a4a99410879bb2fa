//! Matrix products: squares, those of a small network's layer, and many small ones.

use limpid_tensor::{Activation, DType, Fused, Tensor};

use super::fused;
use crate::Case;
use crate::case::normal;

const GROUP: &str = "matmul";

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> =
        [64, 128, 256, 512, 1024].map(|n| product([n, n, n], [false; 2], DType::F32)).into();
    cases.push(product([512; 3], [false; 2], DType::F64));
    cases.push(product([512; 3], [false; 2], DType::BF16));
    // A layer of the two-moons network: x·Wᵀ forward, g·W by x, gᵀ·x by W.
    for (shape, turned) in [
        ([128, 64, 64], [false, true]),
        ([128, 64, 64], [false, false]),
        ([64, 128, 64], [true, false]),
        ([512, 1024, 1024], [false, true]),
        ([512, 1024, 1024], [false, false]),
        ([1024, 512, 1024], [true, false]),
    ] {
        cases.push(product(shape, turned, DType::F32));
    }
    // The mix of four streams, and the projection of all of them.
    let [tokens, n, channels] = [4096, 4, 256];
    cases.push(
        Case::new(
            GROUP,
            format!("{tokens} of {n}×{n}·{n}×{channels} f32"),
            move || {
                Ok(vec![
                    normal(&[tokens, n, n], DType::F32, 0)?,
                    normal(&[tokens, n, channels], DType::F32, 1)?,
                ])
            },
            |x| x[0].matmul(&x[1]),
        )
        .with_flops(2.0 * (tokens * n * n * channels) as f64),
    );
    cases.push(product([tokens, n * channels, n * n + 2 * n], [false; 2], DType::F32));
    for activation in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid] {
        for [rows, inputs, outputs] in [[128, 64, 64], [512, 1024, 1024]] {
            let operands = move || {
                let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
                (0..).zip(shapes).map(|(label, shape)| normal(shape, DType::F32, label)).collect()
            };
            let name = format!("{activation:?}").to_lowercase();
            cases.push(
                Case::new("linear", format!("{name} f32 {rows}×{inputs}→{outputs}"), operands, move |x| {
                    fused(Fused::Linear(activation), x)
                })
                .with_flops(2.0 * (rows * inputs * outputs) as f64),
            );
        }
    }
    cases
}

/// m×k·k×n, where operands may lie transposed in memory.
fn product([m, k, n]: [usize; 3], turned: [bool; 2], dtype: DType) -> Case {
    let marks = turned.map(|turned| if turned { "ᵀ" } else { "" });
    let operand =
        move |rows: usize, columns: usize, turned: bool, label: u64| -> limpid_tensor::Result<Tensor> {
            if turned {
                return Ok(normal(&[columns, rows], dtype, label)?.transpose(0, 1));
            }
            normal(&[rows, columns], dtype, label)
        };
    Case::new(
        GROUP,
        format!("{m}×{k}{}·{k}×{n}{} {dtype}", marks[0], marks[1]),
        move || Ok(vec![operand(m, k, turned[0], 0)?, operand(k, n, turned[1], 1)?]),
        |x| x[0].matmul(&x[1]),
    )
    .with_flops(2.0 * (m * k * n) as f64)
    .in_dtype(dtype)
}
