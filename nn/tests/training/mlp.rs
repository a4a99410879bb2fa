//! A small model for the tests of optimisers and checkpoints: two layers, and a buffer that every step changes.

use limpid_autograd::{Gradients, Tape, Var};
use limpid_nn::{Parameter, Parameters, Role};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Shape, Tensor};

pub struct Mlp(pub Vec<Parameter>);

impl Parameters for Mlp {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.0.iter().for_each(f)
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.0.iter_mut().for_each(f)
    }
}

pub fn random(shape: impl Into<Shape>, dtype: DType, key: Key) -> Tensor {
    Tensor::random(Distribution::Normal { mean: 0.0, std: 1.0 }, shape, dtype, key).unwrap()
}

impl Mlp {
    /// `layers.0.{weight [2, 8], bias [8]}`, `layers.1.{weight [8, 1], bias [1]}` and the buffer `norm.mean []`.
    pub fn new(dtype: DType, seed: u64) -> Mlp {
        let weight = |path: &str, shape: &[usize]| {
            Parameter::new(path, random(shape, dtype, Key::new(seed).fold_str(path)), Role::Weight)
        };
        Mlp(vec![
            weight("layers.0.weight", &[2, 8]),
            weight("layers.0.bias", &[8]),
            weight("layers.1.weight", &[8, 1]),
            weight("layers.1.bias", &[1]),
            Parameter::new("norm.mean", Tensor::zeros([], dtype), Role::Buffer),
        ])
    }

    pub fn get(&self, path: &str) -> &Parameter {
        self.0.iter().find(|p| p.path() == path).unwrap()
    }

    pub fn forward<'t>(&self, x: Var<'t>, tape: &'t Tape) -> Var<'t> {
        let p = |i: usize| self.0[i].on(tape);
        let hidden = (x.matmul(p(0)) + p(1)).tanh();
        hidden.matmul(p(2)) + p(3) + p(4)
    }

    /// The gradients of `Σ (f(x) − x₀·x₁)²`.
    pub fn gradients(&self, x: &Tensor) -> Gradients {
        let tape = Tape::new();
        let x = tape.constant(x);
        let target = x.slice(-1, 0, 1, 1) * x.slice(-1, 1, 2, 1);
        let error = self.forward(x, &tape) - target;
        tape.backward((error * error).sum(&[])).unwrap()
    }

    /// Every element of every parameter, buffers among them, as bits.
    pub fn bits(&self) -> Vec<u64> {
        self.0.iter().flat_map(|p| p.value().to_f64_vec().unwrap()).map(f64::to_bits).collect()
    }
}
