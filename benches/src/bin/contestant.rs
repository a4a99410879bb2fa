//! Limpid's side of the comparison with other frameworks: does what `benches/peers/run.py` asks for, one line at a time.
//!
//! `prepare NAME` is answered by `ok` or `skip WHY`, `check` by the sum of the results' mean squares after one run, `time SECONDS` by the
//! seconds that one run takes. Started as `contestant replay` it takes part in steps of training alone, whose tape it writes once. As
//! `contestant peak` it does as many operations as the matrix products of a workload have, in registers, and has no result.

use std::io::{BufRead, Write};
use std::time::Duration;

use limpid_autograd::Tape;
use limpid_autograd::ops::sinkhorn::Sinkhorn;
use limpid_bench::networks::{Connected, Training};
use limpid_bench::numbers::spread;
use limpid_bench::tape::Chain;
use limpid_bench::{Failure, clock, compute};
use limpid_nn::residual::Variant;
use limpid_tensor::{Fused, HostMemory, Map, Tensor, set_threads};

type Workload = Box<dyn FnMut() -> Result<Vec<Tensor>, Failure>>;

fn main() -> Result<(), Failure> {
    set_threads(1)?;
    let prepare = match std::env::args().nth(1).as_deref() {
        None => workload,
        Some("replay") => replay,
        Some("peak") => peak,
        Some(other) => return Err(format!("expected replay, peak or nothing, found {other}").into()),
    };
    let mut prepared: Option<(Workload, Option<usize>)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match (line.split_once(' ').unwrap_or((&line, "")), &mut prepared) {
            (("prepare", name), prepared) => {
                *prepared = None;
                HostMemory::release_pool();
                *prepared = prepare(name)?.map(|work| (work, None));
                let is_there = prepared.is_some();
                if is_there { "ok".into() } else { format!("skip limpid has no {name}") }
            }
            (("check", _), Some((run, _))) => match &run()?[..] {
                [] => "none".into(),
                results => check(results)?.to_string(),
            },
            (("time", seconds), Some((run, count))) => {
                let sample = Duration::try_from_secs_f64(seconds.parse()?)?;
                let mut run = || drop(run().expect("the first run went well"));
                let count = *count.get_or_insert_with(|| clock::repetitions(sample, &mut run));
                clock::seconds_each(count, &mut run).to_string()
            }
            _ => return Err(format!("expected prepare, check or time, found {line:?}").into()),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The sum of the mean squares of some tensors.
fn check(results: &[Tensor]) -> Result<f64, Failure> {
    let mean_square = |x: &Tensor| -> Result<f64, Failure> {
        let values = x.to_f64_vec()?;
        Ok(values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64)
    };
    results.iter().map(mean_square).sum()
}

/// The network of two moons, and nothing else that there is to replay.
fn replay(name: &str) -> Result<Option<Workload>, Failure> {
    let Some(mut training) = training(name)? else { return Ok(None) };
    Ok(Some(Box::new(move || Ok(training.replayed_step()?.map(Tensor::scalar).into()))))
}

/// As many operations as the matrix products have.
fn peak(name: &str) -> Result<Option<Workload>, Failure> {
    let sizes = name.split('-').skip(1).map_while(|size| size.parse().ok()).collect::<Vec<usize>>();
    let operations = match (name.split('-').next(), &sizes[..]) {
        (Some("step"), &[width, batch]) => 6 * batch * (18 * width * width + 4 * width),
        (Some("matmul"), &[m, k, n]) => 2 * m * k * n,
        _ => return Ok(None),
    };
    Ok(Some(Box::new(move || {
        compute(operations);
        Ok(Vec::new())
    })))
}

fn training(name: &str) -> Result<Option<Training>, Failure> {
    let Some((width, batch)) = name.strip_prefix("step-").and_then(|sizes| sizes.split_once('-')) else {
        return Ok(None);
    };
    Ok(Some(Training::new(Variant::Residual, 20, width.parse()?, batch.parse()?)?))
}

fn workload(name: &str) -> Result<Option<Workload>, Failure> {
    if let Some(mut training) = training(name)? {
        return Ok(Some(Box::new(move || Ok(training.step()?.map(Tensor::scalar).into()))));
    }
    let parts: Vec<&str> = name.split('-').collect();
    let number = |text: &str| text.parse::<usize>().map_err(|e| format!("{name}: {e}"));
    Ok(Some(match parts[..] {
        ["deep", depth, width, batch] => {
            let mut training = Training::new(Variant::Mhc, number(depth)?, number(width)?, number(batch)?)?;
            Box::new(move || Ok(training.step()?.map(Tensor::scalar).into()))
        }
        ["sinkhorn", matrices] => {
            let (logits, cotangent) = sinkhorn_operands(number(matrices)?);
            let mut tape = Tape::new();
            Box::new(move || {
                tape.clear(0);
                let x = tape.variable(&logits);
                let p = x.sinkhorn(&Sinkhorn::default());
                let value = p.value()?;
                let gradients = tape.backward_from(p, &cotangent)?;
                Ok(vec![value, gradients.of(x).expect("the result depends on the logits").clone()])
            })
        }
        ["mhc", tokens, channels] => {
            let mut connected = Connected::new(number(tokens)?, number(channels)?);
            Box::new(move || Ok(connected.differentiate()?.into()))
        }
        ["tape", "record"] => {
            let mut chain = Chain::new();
            Box::new(move || Ok(vec![Tensor::scalar(chain.record()?)]))
        }
        ["tape", "differentiate"] => {
            let mut chain = Chain::new();
            Box::new(move || Ok(vec![chain.differentiate()?]))
        }
        ["matmul", m, k, n, turned] => {
            let (m, k, n) = (number(m)?, number(k)?, number(n)?);
            let operand = |rows, columns, turned, label| match turned {
                b't' => spread(&[columns, rows], -1.0, 1.0, label).transpose(0, 1),
                _ => spread(&[rows, columns], -1.0, 1.0, label),
            };
            let turned = turned.as_bytes();
            let (a, b) = (operand(m, k, turned[0], 0), operand(k, n, turned[1], 1));
            Box::new(move || Ok(vec![a.matmul(&b)?]))
        }
        ["softmax", rows, columns] => {
            let x = spread(&[number(rows)?, number(columns)?], -2.0, 2.0, 0);
            Box::new(move || Ok(vec![fused(Fused::Softmax, &[&x])?]))
        }
        ["layernorm", rows, columns] => {
            let (rows, columns) = (number(rows)?, number(columns)?);
            let x = spread(&[rows, columns], -2.0, 2.0, 0);
            let (gamma, beta) = (spread(&[columns], 0.5, 1.5, 1), spread(&[columns], -0.5, 0.5, 2));
            Box::new(move || Ok(vec![fused(Fused::LayerNorm { eps: 1e-5 }, &[&x, &gamma, &beta])?]))
        }
        [function, count] => {
            let f = match function {
                "exp" => Map::Exp,
                "tanh" => Map::Tanh,
                "sigmoid" => Map::Sigmoid,
                "erf" => Map::Erf,
                "log" => Map::Log,
                _ => return Ok(None),
            };
            let x = spread(&[number(count)?], 0.1, 1.1, 0);
            Box::new(move || Ok(vec![Tensor::map(f, &[&x])?]))
        }
        _ => return Ok(None),
    }))
}

/// Logits, and the cotangent of what becomes of them.
fn sinkhorn_operands(matrices: usize) -> (Tensor, Tensor) {
    let shape = [matrices, 4, 4];
    (spread(&shape, -2.0, 2.0, 0), spread(&shape, -1.0, 1.0, 1))
}

fn fused(f: Fused, x: &[&Tensor]) -> Result<Tensor, Failure> {
    Ok(Tensor::fused(f, x).expect("the processor's backend has every fused kernel")?)
}
