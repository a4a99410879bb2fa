//! `A·x + b·F(a·x)`, element by element from the coefficients.

use limpid_autograd::{Tape, Var};
use limpid_nn::Module;
use limpid_nn::residual::{Coefficient, Connection};
use limpid_tensor::Tensor;

use crate::blocks::{Case, one_stream, values, with_streams};

const SAMPLES: usize = 3;
const CHANNELS: usize = 5;

/// Coefficients as the formula reads them: `a[sample][j][channel]`, `b[sample][i][channel]`, `mix[sample][i][j][channel]`.
struct Dense {
    a: Vec<f64>,
    b: Vec<f64>,
    mix: Vec<f64>,
}

/// A coefficient for every sample and channel: between streams of this shape, `[n]` or `[n, n]`.
fn dense(c: Coefficient<'_>, shape: &[usize]) -> Vec<f64> {
    let pairs: usize = shape.iter().product();
    let at = |value: &dyn Fn(usize, usize, usize) -> f64| {
        let index = |k: usize| value(k / (pairs * CHANNELS), k / CHANNELS % pairs, k % CHANNELS);
        (0..SAMPLES * pairs * CHANNELS).map(index).collect()
    };
    match c {
        Coefficient::Constant(c) => {
            let on = |pair: usize| shape.len() == 1 || pair / shape[0] == pair % shape[0];
            at(&|_, pair, _| if on(pair) { c } else { 0.0 })
        }
        Coefficient::Value(v) => {
            let v = values(v.expand([SAMPLES, CHANNELS]));
            at(&|sample, _, channel| v[sample * CHANNELS + channel])
        }
        Coefficient::Streams(v) => {
            let shape: Vec<usize> = [SAMPLES].iter().chain(shape).copied().collect();
            let v = values(v.expand(&shape[..]));
            at(&|sample, pair, _| v[sample * pairs + pair])
        }
    }
}

fn layer_norm(row: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let scaled = row.iter().map(|x| (x - mean) / (var + 1e-5).sqrt());
    scaled.zip(weight.iter().zip(bias)).map(|(x, (w, b))| x * w + b).collect()
}

fn weight(connection: &dyn Connection, name: &str) -> Vec<f64> {
    let parameters = connection.parameters();
    parameters.iter().find(|p| p.path().ends_with(name)).unwrap().value().to_vec().unwrap()
}

/// What the block should make of `x`, from its coefficients and its branch as a function of `[N, C]`.
fn expected(
    case: &Case,
    connection: &dyn Connection,
    x: &[f64],
    by: [Coefficient<'_>; 3],
    branch: &dyn Fn(Vec<f64>) -> Vec<f64>,
) -> Vec<f64> {
    let n = case.streams.unwrap_or(1);
    let [a, b, mix] = by;
    let of = Dense { a: dense(a, &[n]), b: dense(b, &[n]), mix: dense(mix, &[n, n]) };
    let x = |s: usize, i: usize, c: usize| x[(s * n + i) * CHANNELS + c];
    let read = |k: usize| {
        let (s, c) = (k / CHANNELS, k % CHANNELS);
        (0..n).map(|j| of.a[(s * n + j) * CHANNELS + c] * x(s, j, c)).sum()
    };
    let f = branch((0..SAMPLES * CHANNELS).map(read).collect());
    let f = |s: usize, c: usize| f[s * CHANNELS + c];
    let mut y = Vec::new();
    for s in 0..SAMPLES {
        for i in 0..n {
            let mixed = |c: usize| -> f64 {
                (0..n).map(|j| of.mix[((s * n + i) * n + j) * CHANNELS + c] * x(s, j, c)).sum()
            };
            let row = (0..CHANNELS).map(|c| mixed(c) + of.b[(s * n + i) * CHANNELS + c] * f(s, c));
            let row: Vec<f64> = row.collect();
            let normed = match case.name {
                "post-norm" | "deepnorm" => true,
                "resi-dual" => i == 0,
                _ => false,
            };
            y.extend(match normed {
                true => {
                    layer_norm(&row, &weight(connection, "norm.weight"), &weight(connection, "norm.bias"))
                }
                false => row,
            });
        }
    }
    if case.name == "attnres" {
        let entry = |k: usize| (k / (CHANNELS * (n + 1)), k / CHANNELS % (n + 1), k % CHANNELS);
        let rows = (0..SAMPLES * (n + 1) * CHANNELS).map(entry);
        return rows.map(|(s, i, c)| if i < n { x(s, i, c) } else { f(s, c) }).collect();
    }
    y
}

/// `x + β(v − kᵀx)k` with `k = f/√(|f|² + ε)`.
fn delta(x: &[f64], f: &[f64], beta_and_value: &[f64]) -> Vec<f64> {
    let rows = x.chunks(CHANNELS).zip(f.chunks(CHANNELS)).zip(beta_and_value.chunks(2));
    let dot = |u: &[f64], v: &[f64]| u.iter().zip(v).map(|(u, v)| u * v).sum::<f64>();
    rows.flat_map(|((x, f), by)| {
        let size = (dot(f, f) + 1e-6).sqrt();
        let k: Vec<f64> = f.iter().map(|f| f / size).collect();
        let step = by[0] * (by[1] - dot(&k, x));
        x.iter().zip(k).map(|(x, k)| x + step * k).collect::<Vec<f64>>()
    })
    .collect()
}

#[test]
fn every_block_is_the_algebra_of_its_coefficients() {
    let streams = [1, 2, 4].into_iter().flat_map(|n| with_streams(n, CHANNELS, 20));
    for case in one_stream(CHANNELS).into_iter().chain(streams) {
        let input = case.state(&[SAMPLES], CHANNELS, 3);
        let (name, streams) = (case.name, case.streams);
        let block = case.block(CHANNELS, 1.0, 5);
        let tape = Tape::new();
        // As in the block: the scope is part of the key of a random draw.
        let x = tape.variable(&input);
        let by = tape.scope("coefficients", || block.connection.coefficients(x));
        let branch = |u: Vec<f64>| {
            values(block.branch.forward(tape.constant(&Tensor::from_vec(u, [SAMPLES, CHANNELS]))))
        };
        let again = Tape::new();
        let y = block.forward(again.variable(&input));
        let (found, x) = (values(y), values(x));
        let case = Case { name, streams, connection: Box::new(limpid_nn::residual::Plain) };
        let expected = match (name, by.write) {
            ("delta", Coefficient::Value(b)) => delta(&x, &branch(x.clone()), &values(b)),
            _ => expected(&case, &*block.connection, &x, [by.read, by.write, by.mix], &branch),
        };
        assert_eq!(found.len(), expected.len(), "{name}, {streams:?}");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let close = (found - expected).abs() <= 1e-14 * expected.abs().max(1.0);
            assert!(close, "{name}, {streams:?}: element {i} is {found}, not {expected}");
        }
        let rows = streams.map(|n| if name == "attnres" { n + 1 } else { n });
        let shape: Vec<usize> = [SAMPLES].into_iter().chain(rows).chain([CHANNELS]).collect();
        assert_eq!(y.shape()[..], shape, "{name}");
    }
}

#[test]
fn leading_axes_are_samples() {
    // A state [2, 3, .., C] gives what its six samples give; a state without a sample axis what the sample gives.
    let streams = [1, 3].into_iter().flat_map(|n| with_streams(n, CHANNELS, 20));
    for case in one_stream(CHANNELS).into_iter().chain(streams).filter(|case| case.name != "droppath") {
        let (name, state, single) =
            (case.name, case.state(&[2, 3], CHANNELS, 3), case.state(&[], CHANNELS, 4));
        let block = case.block(CHANNELS, 1.0, 5);
        let tape = Tape::new();
        let through = |x: &Tensor, batch: &[usize], own: usize| -> Vec<f64> {
            let shape: Vec<usize> = batch.iter().chain(&x.shape()[own..]).copied().collect();
            let x: Var<'_> = tape.constant(x).reshape(&shape[..]);
            values(block.forward(x))
        };
        for (together, apart, case) in [
            (through(&state, &[2, 3], 2), through(&state, &[6], 2), "two axes"),
            (through(&single, &[], 0), through(&single, &[1], 0), "no axis"),
        ] {
            assert_eq!(together.len(), apart.len());
            let off = together.iter().zip(&apart).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-14, "{name} with {case}: {off}");
        }
    }
}
