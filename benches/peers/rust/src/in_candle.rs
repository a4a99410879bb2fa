//! candle.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{loss, ops};

use crate::Workload;
use crate::numbers::{layers, number, spread};

fn tensor(shape: &[usize], low: f64, high: f64, label: u32) -> Result<Tensor> {
    Tensor::from_vec(spread(shape.iter().product(), low, high, label), shape, &Device::Cpu)
}

fn values(results: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    results.iter().map(|x| x.flatten_all()?.to_vec1()).collect()
}

/// A workload that makes tensors.
fn made(mut run: impl FnMut() -> Result<Vec<Tensor>> + 'static) -> Option<Workload> {
    Some(Box::new(move |wanted| {
        let results = run().expect("the first run went well");
        if wanted { values(&results).expect("results can be read") } else { Vec::new() }
    }))
}

pub fn workload(parts: &[&str]) -> Result<Option<Workload>> {
    Ok(match *parts {
        ["step", width, batch] => step(number(width), number(batch))?,
        ["sinkhorn", matrices] => {
            let shape = [number(matrices), 4, 4];
            let x = Var::from_tensor(&tensor(&shape, -2.0, 2.0, 0)?)?;
            let cotangent = tensor(&shape, -1.0, 1.0, 1)?;
            made(move || {
                let p = normalised(&x)?;
                let gradients = (&p * &cotangent)?.sum_all()?.backward()?;
                Ok(vec![p, gradients.get(&x).expect("the result depends on the logits").clone()])
            })
        }
        ["mhc", tokens, channels] => mhc(number(tokens), number(channels))?,
        ["tape", what] => {
            let x = Var::from_tensor(&Tensor::new(1e-4f32, &Device::Cpu)?)?;
            let differentiate = what == "differentiate";
            made(move || {
                let mut h = x.as_tensor().clone();
                for _ in 0..10_000 {
                    h = (&h + x.as_tensor())?;
                }
                if !differentiate {
                    return Ok(vec![h]);
                }
                let gradients = h.backward()?;
                Ok(vec![gradients.get(&x).expect("the chain depends on x").clone()])
            })
        }
        ["matmul", m, k, n, turned] => {
            let [m, k, n] = [m, k, n].map(number);
            let operand = |rows, columns, turned, label| match turned {
                b't' => tensor(&[columns, rows], -1.0, 1.0, label)?.t(),
                _ => tensor(&[rows, columns], -1.0, 1.0, label),
            };
            let turned = turned.as_bytes();
            let (a, b) = (operand(m, k, turned[0], 0)?, operand(k, n, turned[1], 1)?);
            made(move || Ok(vec![a.matmul(&b)?]))
        }
        ["softmax", rows, columns] => {
            let x = tensor(&[number(rows), number(columns)], -2.0, 2.0, 0)?;
            made(move || Ok(vec![ops::softmax_last_dim(&x)?]))
        }
        ["layernorm", rows, columns] => {
            let columns = number(columns);
            let x = tensor(&[number(rows), columns], -2.0, 2.0, 0)?;
            let (gamma, beta) = (tensor(&[columns], 0.5, 1.5, 1)?, tensor(&[columns], -0.5, 0.5, 2)?);
            made(move || Ok(vec![ops::layer_norm(&x, &gamma, &beta, 1e-5)?]))
        }
        [function, count] => {
            let f: fn(&Tensor) -> Result<Tensor> = match function {
                "exp" => Tensor::exp,
                "log" => Tensor::log,
                "tanh" => Tensor::tanh,
                "erf" => Tensor::erf,
                "sigmoid" => ops::sigmoid,
                _ => return Ok(None),
            };
            let x = tensor(&[number(count)], 0.1, 1.1, 0)?;
            made(move || Ok(vec![f(&x)?]))
        }
        _ => None,
    })
}

fn step(width: usize, batch: usize) -> Result<Option<Workload>> {
    let device = &Device::Cpu;
    let mut parameters = Vec::new();
    for layer in layers(width) {
        parameters.push(Var::from_vec(layer.weight, (layer.outputs, layer.inputs), device)?);
        parameters.push(Var::from_vec(layer.bias, layer.outputs, device)?);
    }
    let features = tensor(&[batch, 2], -2.0, 2.0, 2000)?;
    let labels = Tensor::from_vec((0..batch as u32).map(|i| i % 2).collect::<Vec<_>>(), batch, device)?;
    let mut velocity: Vec<Option<Tensor>> = vec![None; parameters.len()];
    Ok(made(move || {
        let linear = |x: &Tensor, layer: usize| -> Result<Tensor> {
            let (weight, bias) = (&parameters[2 * layer], &parameters[2 * layer + 1]);
            x.matmul(&weight.t()?)?.broadcast_add(bias)
        };
        let last = parameters.len() / 2 - 1;
        let mut x = linear(&features, 0)?.relu()?;
        for layer in 1..last {
            x = (&x + linear(&x, layer)?.relu()?)?;
        }
        let loss = loss::cross_entropy(&linear(&x, last)?, &labels)?;
        let gradients = loss.backward()?;
        let gradient = |p: &Var| gradients.get(p).expect("every parameter is used");
        let mut squares = Vec::new();
        for p in &parameters {
            squares.push(f64::from(gradient(p).sqr()?.sum_all()?.to_scalar::<f32>()?));
        }
        let total = squares.iter().sum::<f64>().sqrt();
        let scale = (1.0 / total).min(1.0);
        for (p, velocity) in parameters.iter().zip(&mut velocity) {
            let scaled = (gradient(p) * scale)?;
            let next = match velocity {
                Some(v) => ((&*v * 0.9)? + scaled)?,
                None => scaled,
            };
            p.set(&(p.as_tensor() - (&next * 1e-4)?)?)?;
            *velocity = Some(next);
        }
        Ok(vec![loss.detach(), Tensor::new(total as f32, &Device::Cpu)?])
    }))
}

fn normalised(logits: &Tensor) -> Result<Tensor> {
    let most = logits.detach().max_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
    let mut p = logits.broadcast_sub(&most)?.exp()?;
    for _ in 0..20 {
        p = p.broadcast_div(&p.sum_keepdim(D::Minus2)?)?;
        p = p.broadcast_div(&p.sum_keepdim(D::Minus1)?)?;
    }
    Ok(p)
}

fn mhc(tokens: usize, channels: usize) -> Result<Option<Workload>> {
    const N: usize = 4;
    let shape = [tokens, N, channels];
    let x = Var::from_tensor(&tensor(&shape, -1.0, 1.0, 10)?)?;
    let cotangent = tensor(&shape, -1.0, 1.0, 11)?;
    let part = |label: u32, width| tensor(&[N * channels, width], -0.035, 0.035, label);
    let phi = Var::from_tensor(&Tensor::cat(&[part(1, N)?, part(2, N)?, part(3, N * N)?], 1)?)?;
    let alpha = Var::ones(3, DType::F32, &Device::Cpu)?;
    let bias = Var::zeros(2 * N + N * N, DType::F32, &Device::Cpu)?;
    Ok(made(move || {
        let v = x.reshape((tokens, N * channels))?;
        let r = (v.sqr()?.mean_keepdim(1)? + 1e-6)?.sqrt()?;
        let h = v.matmul(&phi)?.broadcast_div(&r)?;
        let logits = |i: usize, from: usize, width: usize| -> Result<Tensor> {
            let scaled = h.narrow(1, from, width)?.broadcast_mul(&alpha.narrow(0, i, 1)?)?;
            scaled.broadcast_add(&bias.narrow(0, from, width)?)
        };
        let (a, b) = (ops::sigmoid(&logits(0, 0, N)?)?, (ops::sigmoid(&logits(1, N, N)?)? * 2.0)?);
        let mix = normalised(&logits(2, 2 * N, N * N)?.reshape((tokens, N, N))?)?;
        let read = a.unsqueeze(1)?.matmul(&x)?;
        let y = (mix.matmul(&x)? + b.unsqueeze(2)?.broadcast_mul(&read)?)?;
        let gradients = (&y * &cotangent)?.sum_all()?.backward()?;
        Ok(vec![y.detach(), gradients.get(&x).expect("the state is read").clone()])
    }))
}
