//! burn, on the backend that it recommends for processors.

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::activation::{relu, sigmoid, softmax};
use burn::tensor::module::layer_norm;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::Workload;
use crate::numbers::{Layer, layers, number, spread};

fn tensor<const D: usize>(shape: [usize; D], low: f64, high: f64, label: u32, on: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(spread(shape.iter().product(), low, high, label), shape), on)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().to_vec().expect("everything is f32")
}

pub fn workload(parts: &[&str]) -> Option<Workload> {
    let on = &Device::flex();
    let tracked = &Device::flex().autodiff();
    Some(match *parts {
        ["step", width, batch] => step(number(width), number(batch)),
        ["sinkhorn", matrices] => {
            let shape = [number(matrices), 4, 4];
            let x = tensor(shape, -2.0, 2.0, 0, tracked).require_grad();
            let cotangent = tensor(shape, -1.0, 1.0, 1, tracked);
            Box::new(move |wanted| {
                let p = normalised(x.clone());
                let gradients = (p.clone() * cotangent.clone()).sum().backward();
                let gradient = x.grad(&gradients).expect("the result depends on the logits");
                if wanted { vec![values(p.inner()), values(gradient)] } else { Vec::new() }
            })
        }
        ["mhc", tokens, channels] => mhc(number(tokens), number(channels)),
        ["tape", what] => {
            let x: Tensor<1> = Tensor::from_data([1e-4f32], tracked).require_grad();
            let differentiate = what == "differentiate";
            Box::new(move |wanted| {
                let mut h = x.clone();
                for _ in 0..10_000 {
                    h = h + x.clone();
                }
                if !differentiate {
                    return if wanted { vec![values(h.inner())] } else { Vec::new() };
                }
                let gradient = x.grad(&h.backward()).expect("the chain depends on x");
                if wanted { vec![values(gradient)] } else { Vec::new() }
            })
        }
        ["matmul", m, k, n, turned] => {
            let [m, k, n] = [m, k, n].map(number);
            let operand = |rows, columns, turned, label| match turned {
                b't' => tensor([columns, rows], -1.0, 1.0, label, on).transpose(),
                _ => tensor([rows, columns], -1.0, 1.0, label, on),
            };
            let turned = turned.as_bytes();
            let (a, b) = (operand(m, k, turned[0], 0), operand(k, n, turned[1], 1));
            made(move || a.clone().matmul(b.clone()))
        }
        ["softmax", rows, columns] => {
            let x = tensor([number(rows), number(columns)], -2.0, 2.0, 0, on);
            made(move || softmax(x.clone(), 1))
        }
        ["layernorm", rows, columns] => {
            let columns = number(columns);
            let x = tensor([number(rows), columns], -2.0, 2.0, 0, on);
            let (gamma, beta) = (tensor([columns], 0.5, 1.5, 1, on), tensor([columns], -0.5, 0.5, 2, on));
            made(move || layer_norm(x.clone(), gamma.clone(), Some(beta.clone()), 1e-5))
        }
        [function, count] => {
            let f: fn(Tensor<1>) -> Tensor<1> = match function {
                "exp" => Tensor::exp,
                "log" => Tensor::log,
                "tanh" => Tensor::tanh,
                "erf" => Tensor::erf,
                "sigmoid" => sigmoid,
                _ => return None,
            };
            let x = tensor([number(count)], 0.1, 1.1, 0, on);
            made(move || f(x.clone()))
        }
        _ => return None,
    })
}

/// A workload that makes one tensor.
fn made<const D: usize>(run: impl Fn() -> Tensor<D> + 'static) -> Workload {
    Box::new(move |wanted| {
        let result = run();
        if wanted { vec![values(result)] } else { Vec::new() }
    })
}

/// A parameter, outside the graph, and what momentum remembers of it.
struct Parameter<const D: usize> {
    value: Tensor<D>,
    velocity: Option<Tensor<D>>,
}

impl<const D: usize> Parameter<D> {
    fn new(values: Vec<f32>, shape: [usize; D]) -> Parameter<D> {
        let value = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        Parameter { value, velocity: None }
    }

    fn leaf(&self) -> Tensor<D> {
        self.value.clone().autodiff().require_grad()
    }

    fn descend(&mut self, gradient: Tensor<D>, scale: f64) {
        let scaled = gradient.mul_scalar(scale);
        let velocity = match self.velocity.take() {
            Some(v) => v.mul_scalar(0.9) + scaled,
            None => scaled,
        };
        self.value = self.value.clone() - velocity.clone().mul_scalar(1e-4);
        self.velocity = Some(velocity);
    }
}

fn square<const D: usize>(gradient: &Tensor<D>) -> f64 {
    f64::from(gradient.clone().square().sum().into_scalar::<f32>())
}

fn step(width: usize, batch: usize) -> Workload {
    let tracked = Device::flex().autodiff();
    let mut parameters: Vec<(Parameter<2>, Parameter<1>)> = layers(width)
        .into_iter()
        .map(|Layer { weight, bias, inputs, outputs }| {
            // burn's weights are [in, out].
            let mut turned = vec![0.0; weight.len()];
            for (i, &w) in weight.iter().enumerate() {
                turned[i % inputs * outputs + i / inputs] = w;
            }
            (Parameter::new(turned, [inputs, outputs]), Parameter::new(bias, [outputs]))
        })
        .collect();
    let features = tensor([batch, 2], -2.0, 2.0, 2000, &tracked);
    let labels: Vec<i64> = (0..batch as i64).map(|i| i % 2).collect();
    let labels: Tensor<1, Int> = Tensor::from_data(TensorData::new(labels, [batch]), &tracked);
    let cross_entropy = CrossEntropyLossConfig::new().init(&tracked);
    Box::new(move |wanted| {
        let leaves: Vec<_> = parameters.iter().map(|(w, b)| (w.leaf(), b.leaf())).collect();
        let linear = |x: Tensor<2>, layer: usize| {
            let (weight, bias) = leaves[layer].clone();
            burn::tensor::module::linear(x, weight, Some(bias))
        };
        let last = leaves.len() - 1;
        let mut x = relu(linear(features.clone(), 0));
        for layer in 1..last {
            x = x.clone() + relu(linear(x, layer));
        }
        let loss = cross_entropy.forward(linear(x, last), labels.clone());
        let mut gradients = loss.backward();
        let gradients: Vec<(Tensor<2>, Tensor<1>)> = leaves
            .iter()
            .map(|(w, b)| {
                let expected = "every parameter is used";
                (w.grad_remove(&mut gradients).expect(expected), b.grad_remove(&mut gradients).expect(expected))
            })
            .collect();
        let squares: Vec<f64> = gradients.iter().flat_map(|(w, b)| [square(w), square(b)]).collect();
        let total = squares.iter().sum::<f64>().sqrt();
        let scale = (1.0 / total).min(1.0);
        for ((weight, bias), (by_weight, by_bias)) in parameters.iter_mut().zip(gradients) {
            weight.descend(by_weight, scale);
            bias.descend(by_bias, scale);
        }
        let loss = loss.inner().into_scalar::<f32>();
        if wanted { vec![vec![loss], vec![total as f32]] } else { Vec::new() }
    })
}

fn normalised(logits: Tensor<3>) -> Tensor<3> {
    let most = logits.clone().detach().max_dim(2).max_dim(1);
    let mut p = (logits - most).exp();
    for _ in 0..20 {
        p = p.clone() / p.sum_dim(1);
        p = p.clone() / p.sum_dim(2);
    }
    p
}

fn mhc(tokens: usize, channels: usize) -> Workload {
    const N: usize = 4;
    let tracked = Device::flex().autodiff();
    let shape = [tokens, N, channels];
    let x = tensor(shape, -1.0, 1.0, 10, &tracked).require_grad();
    let cotangent = tensor(shape, -1.0, 1.0, 11, &tracked);
    let part = |label: u32, width| tensor([N * channels, width], -0.035, 0.035, label, &tracked);
    let phi = Tensor::cat(vec![part(1, N), part(2, N), part(3, N * N)], 1).detach().require_grad();
    let alpha = Tensor::<1>::ones([3], &tracked).require_grad();
    let bias = Tensor::<1>::zeros([2 * N + N * N], &tracked).require_grad();
    Box::new(move |wanted| {
        let v: Tensor<2> = x.clone().reshape([tokens, N * channels]);
        let r = (v.clone().square().mean_dim(1) + 1e-6).sqrt();
        let h = v.matmul(phi.clone()) / r;
        let logits = |i: usize, from: usize, width: usize| {
            let scale: Tensor<2> = alpha.clone().narrow(0, i, 1).unsqueeze();
            let shift: Tensor<2> = bias.clone().narrow(0, from, width).unsqueeze();
            h.clone().narrow(1, from, width) * scale + shift
        };
        let (a, b) = (sigmoid(logits(0, 0, N)), sigmoid(logits(1, N, N)) * 2.0);
        let mix = normalised(logits(2, 2 * N, N * N).reshape([tokens, N, N]));
        let read = a.unsqueeze_dim::<3>(1).matmul(x.clone());
        let y = mix.matmul(x.clone()) + b.unsqueeze_dim::<3>(2) * read;
        let gradients = (y.clone() * cotangent.clone()).sum().backward();
        let gradient = x.grad(&gradients).expect("the state is read");
        if wanted { vec![values(y.inner()), values(gradient)] } else { Vec::new() }
    })
}
