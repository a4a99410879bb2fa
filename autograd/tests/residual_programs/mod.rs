//! Random residual programs: every kind of edge, in every kind of place.
#![allow(dead_code)] // each suite uses a part of this

use limpid_autograd::{Tape, Var};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Shape, Tensor};

pub const BATCH: usize = 3;
pub const CHANNELS: usize = 4;

/// Standard normal numbers in f64.
pub fn normal(shape: impl Into<Shape>, key: Key) -> Tensor {
    let shape = shape.into();
    let values: Vec<f64> = (0..shape.elements() as u64).map(|i| key.normal(i)).collect();
    Tensor::from_f64(&values, shape, DType::F64)
}

/// What a program is made of, and where gradients are wanted.
pub struct Residual<'t> {
    /// The input, the stream behind each block, and last the output.
    pub streams: Vec<Var<'t>>,
    /// Four weights, each used by several blocks.
    pub weights: Vec<Var<'t>>,
    /// A mean over the output's elements of a smooth function.
    pub loss: Var<'t>,
}

impl<'t> Residual<'t> {
    pub fn wanted(&self) -> Vec<Var<'t>> {
        self.streams.iter().chain(&self.weights).copied().collect()
    }
}

/// A program of `depth` blocks, each of a kind drawn by `seed`.
pub fn residual(tape: &Tape, depth: usize, seed: u64) -> Residual<'_> {
    let key = Key::new(seed);
    let x = tape.variable(&normal([BATCH, CHANNELS], key.fold(1)));
    let weights: Vec<Var<'_>> = (0..4)
        .map(|i| {
            tape.variable(&normal([CHANNELS, CHANNELS], key.fold(10 + i))) * (0.5 / (CHANNELS as f64).sqrt())
        })
        .collect();
    let mut streams = vec![x];
    for block in 0..depth {
        let draw = key.fold(100 + block as u64);
        let w = weights[draw.bits(0) as usize % 4];
        let v = weights[draw.bits(1) as usize % 4];
        let x = streams[block];
        let next = tape.scope(format_args!("block{block}"), || match draw.bits(2) % 8 {
            0 => x.skip() + tape.scope("branch", || x.matmul(w).tanh()).branch(),
            1 => x.skip() + tape.scope("branch", || (x.matmul(w) + 0.1).sin()).branch() * 0.7,
            // A value used several times, and the same one twice by one operation.
            2 => {
                let f = tape.scope("branch", || {
                    let h = x.matmul(w);
                    h * h * 0.3 + h.tanh() * x
                });
                x.skip() + f.branch()
            }
            // A gate computed from the stream.
            3 => {
                let g = tape.scope("gate", || (x.matmul(v) - 1.0).sigmoid());
                let f = tape.scope("branch", || x.matmul(w).tanh());
                (1.0 - g).control() * x.skip() + g.control() * f.branch()
            }
            // A detached part.
            4 => x.skip() + tape.scope("branch", || x.detach().matmul(w).tanh() * x).branch(),
            // A block inside a branch.
            5 => {
                let f = tape.scope("branch", || {
                    let h = x.matmul(w);
                    let inner = h.skip() + h.matmul(v).tanh().branch();
                    inner.sigmoid()
                });
                x.skip() + f.branch()
            }
            // No skip path.
            6 => tape.scope("branch", || (x.matmul(w) * 2.0).tanh()).branch() * 1.0,
            // A function of the stream after the addition, and a read by a coefficient.
            _ => {
                let a = tape.scope("read", || (x.mean(&[1]).unsqueeze(1) * 0.5).cos());
                let f = tape.scope("branch", || (a.control() * x).matmul(w).tanh());
                let y = x.skip() + f.branch();
                y / ((y * y).mean(&[1]).unsqueeze(1) + 1.0).sqrt()
            }
        });
        streams.push(next);
    }
    let y = streams[depth];
    let loss = tape.scope("loss", || (y.sin() * y).mean(&[]));
    Residual { streams, weights, loss }
}
