//! Blocks with manifold-constrained hyper-connections against PyTorch: `golden/mhc.json`, written by `golden/mhc.py`, which
//! has the paper's equations in PyTorch's elementary operations and leaves the derivatives to it.

use std::collections::BTreeMap;

use approx::relative_eq;
use limpid_autograd::Tape;
use limpid_autograd::ops::sinkhorn::{Gradient, Sinkhorn};
use limpid_nn::residual::{Mhc, Residual, Start};
use limpid_nn::{Activation, Init, Linear, Module, Parameters};
use limpid_tensor::{DType, Stop, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    steps: usize,
    eps: f64,
    x: Written,
    weights: BTreeMap<String, Written>,
    result: Written,
    cotangent: Written,
    gradient: Written,
    gradients: BTreeMap<String, Written>,
}

#[derive(Deserialize)]
struct Written {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Written {
    fn tensor(&self) -> Tensor {
        Tensor::from_slice(&self.data, &self.shape[..])
    }

    #[track_caller]
    fn assert_is(&self, found: &Tensor, what: &str) {
        assert_eq!(found.shape()[..], self.shape[..], "{what}: shape");
        for (i, (&f, &e)) in found.to_vec::<f64>().unwrap().iter().zip(&self.data).enumerate() {
            assert!(
                relative_eq!(f, e, epsilon = 1e-10, max_relative = 1e-10),
                "{what}: element {i} is {f:e}, expected {e:e}"
            );
        }
    }
}

/// The block of a case, with its weights.
fn block(case: &Case, gradient: Gradient) -> Residual<Mhc, Linear> {
    let [.., streams, channels] = case.x.shape[..] else { panic!("x is [.., n, C]") };
    let init = Init::new(0).with_dtype(DType::F64);
    let mut connection = Mhc::new(&init, channels, streams, 0, Start::default());
    connection.gates.eps = case.eps;
    connection.sinkhorn = Sinkhorn { stop: Stop::Steps(case.steps), gradient, ..Sinkhorn::default() };
    let branch = Linear::new(&init, channels, channels, Activation::Tanh);
    let mut block = Residual { connection, branch };
    let mut set = 0;
    block.visit_mut(&mut |parameter| {
        let value = case.weights[parameter.path()].tensor();
        parameter.set_value(value);
        set += 1;
    });
    assert_eq!(set, case.weights.len());
    block
}

#[test]
fn results_and_gradients_are_pytorchs() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/mhc.json")).unwrap();
    assert!(golden.cases.len() >= 8);
    for (i, case) in golden.cases.iter().enumerate() {
        for gradient in [Gradient::Unrolled, Gradient::OnTape] {
            let block = block(case, gradient);
            let what = |name: &str| format!("case {i}, {gradient:?}: {name}");
            let tape = Tape::new();
            let x = tape.variable(&case.x.tensor());
            let y = block.forward(x);
            case.result.assert_is(&y.value().unwrap(), &what("result"));
            let loss = (y * tape.constant(&case.cotangent.tensor())).sum(&[]);
            let gradients = tape.backward(loss).unwrap();
            case.gradient.assert_is(gradients.of(x).unwrap(), &what("x"));
            for parameter in block.parameters() {
                let found = gradients.of_parameter(parameter.id()).unwrap();
                case.gradients[parameter.path()].assert_is(found, &what(parameter.path()));
            }
        }
    }
}
