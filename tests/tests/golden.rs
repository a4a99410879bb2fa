//! Values and gradients that PyTorch computed in f64: `golden/ops.json`, written by `golden/generate.py`, which says
//! where its conventions and ours meet.

use approx::relative_eq;
use limpid_autograd::ops::einsum::einsum;
use limpid_autograd::ops::elementwise::where_;
use limpid_autograd::ops::movement::{concat, stack};
use limpid_autograd::{Tape, Var};
use limpid_tensor::{Activation, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    operands: Vec<Written>,
    results: Vec<Written>,
    cotangents: Vec<Written>,
    gradients: Vec<Written>,
}

#[derive(Deserialize)]
struct Written {
    shape: Vec<usize>,
    dtype: String,
    data: Vec<f64>,
}

impl Written {
    fn tensor(&self) -> Tensor {
        match self.dtype.as_str() {
            "f64" => Tensor::from_slice(&self.data, &self.shape[..]),
            "i64" => Tensor::from_vec(self.data.iter().map(|&v| v as i64).collect(), &self.shape[..]),
            other => panic!("the file has a tensor of {other}"),
        }
    }

    #[track_caller]
    fn assert_is(&self, found: &Tensor, what: &str) {
        assert_eq!(found.shape()[..], self.shape[..], "{what}: shape");
        assert_eq!(found.dtype().name(), self.dtype, "{what}: dtype");
        for (i, (&f, &e)) in found.to_f64_vec().unwrap().iter().zip(&self.data).enumerate() {
            assert!(
                relative_eq!(f, e, epsilon = 1e-12, max_relative = 1e-12),
                "{what}: element {i} is {f:e}, expected {e:e}"
            );
        }
    }
}

fn batch_norm<'t>(x: Var<'t>, mean: Var<'t>, variance: Var<'t>, gain: Var<'t>, bias: Var<'t>) -> Var<'t> {
    (x - mean) * (variance + 1e-5).rsqrt() * gain + bias
}

/// What a case of this name computes.
fn compute<'t>(name: &str, x: &[Var<'t>]) -> Vec<Var<'t>> {
    if let Some(spec) = name.strip_prefix("einsum ") {
        return vec![einsum(spec, x)];
    }
    let v = x[0];
    let halves = |(values, indices)| vec![values, indices];
    vec![match name {
        "neg" => -v,
        "abs" => v.abs(),
        "sign" => v.sign(),
        "exp" => v.exp(),
        "expm1" => v.expm1(),
        "log" => v.log(),
        "log1p" => v.log1p(),
        "sqrt" => v.sqrt(),
        "rsqrt" => v.rsqrt(),
        "recip" => v.recip(),
        "sin" => v.sin(),
        "cos" => v.cos(),
        "tanh" => v.tanh(),
        "sigmoid" => v.sigmoid(),
        "erf" => v.erf(),
        "softplus" => v.softplus(),
        "relu" => v.relu(),
        "leaky_relu" => v.leaky_relu(0.1),
        "elu" => v.elu(0.7),
        "powf" => v.powf(2.7),
        "powf_integer" => v.powf(3.0),
        "powf_negative" => v.powf(-1.3),
        "clamp" => v.clamp(-1.0, 1.0),
        "gelu" => v.gelu(),
        "gelu_tanh" => v.gelu_tanh(),
        "silu" => v.silu(),
        "glu" => v.glu(),
        "swiglu" => v.swiglu(),
        "geglu" => v.geglu(),
        "reglu" => v.reglu(),
        "add" => v + x[1],
        "sub" => v - x[1],
        "mul" => v * x[1],
        "div" => v / x[1],
        "pow" => v.pow(x[1]),
        "number_minus_and_over" => (2.5 - v) + 3.0 / v,
        "maximum" => v.maximum(x[1]),
        "minimum" => v.minimum(x[1]),
        "where_positive" => where_(v.gt(v.fill(0.0)), x[1], x[2]),
        "sum" => v.sum(&[0, 2]),
        "mean" => v.mean(&[0, 2]),
        "var" => v.var(&[0, 2], 1),
        "var_of_a_large_mean" => v.var(&[1], 0),
        "prod" | "prod_with_zeros" => v.prod(&[1]),
        "max_with_ties" => v.max(&[1]),
        "min_with_ties" => v.min(&[0, 1]),
        "logsumexp" => v.logsumexp(&[0, 2]),
        "logsumexp_of_large" => v.logsumexp(&[0]),
        "cumsum" => v.cumsum(1),
        "permute" => v.permute(&[2, 0, 1]),
        "expand" => v.expand([3, 2, 4]),
        "slice" => v.slice(1, 1, 8, 3),
        "select" => v.select(1, 2),
        "flip" => v.flip(1),
        "pad" => v.pad(1, 1, 2, 0.5),
        "concat" => concat(x, 1),
        "stack" => stack(x, 1),
        "tril" => v.tril(1),
        "triu" => v.triu(-1),
        "gather" => v.gather(1, x[1]),
        "index_select" => v.index_select(0, x[1]),
        "scatter_add" => v.scatter_add(1, x[1], x[2]),
        "sort" => return halves(v.sort(1, false)),
        "sort_descending_with_ties" => return halves(v.sort(1, true)),
        "topk" => return halves(v.topk(3, 1, true)),
        "topk_smallest" => return halves(v.topk(2, 0, false)),
        "matmul" | "matmul_vectors" | "matmul_matrix_vector" | "matmul_vector_matrix" => v.matmul(x[1]),
        "linear" => v.linear(x[1], Some(x[2]), Activation::Identity),
        "linear_relu" => v.linear(x[1], Some(x[2]), Activation::Relu),
        "linear_tanh" => v.linear(x[1], Some(x[2]), Activation::Tanh),
        "linear_sigmoid" => v.linear(x[1], Some(x[2]), Activation::Sigmoid),
        "softmax" => v.softmax(-1),
        "softmax_of_the_first_axis" => v.softmax(0),
        "log_softmax" => v.log_softmax(-1),
        "cross_entropy" => v.cross_entropy(x[1]),
        "layer_norm" => v.layer_norm(x[1], x[2], 1e-5),
        "rms_norm" => v.rms_norm(x[1], 1e-6),
        "batch_norm_train" => {
            // The statistics of the batch; the running ones move a tenth of the way from 0 and 1 to them.
            let y = batch_norm(v, v.mean(&[0]), v.var(&[0], 0), x[1], x[2]);
            let running = (v.mean(&[0]).detach() * 0.1, v.var(&[0], 1).detach() * 0.1 + 0.9);
            return vec![y, running.0, running.1];
        }
        "batch_norm_evaluate" => batch_norm(v, x[1].detach(), x[2].detach(), x[3], x[4]),
        "attention" => (v.matmul(x[1].transpose(-2, -1)) / 2.0).softmax(-1).matmul(x[2]),
        "mlp" => {
            let layer =
                |h: Var<'t>, i: usize, activation| h.linear(x[2 + 2 * i], Some(x[3 + 2 * i]), activation);
            let h = layer(v, 0, Activation::Tanh);
            let h = layer(h, 1, Activation::Identity).gelu();
            let h = layer(h, 2, Activation::Relu);
            layer(h, 3, Activation::Identity).cross_entropy(x[1]).mean(&[])
        }
        other => panic!("the file has a case {other:?} that is not computed here"),
    }]
}

fn check(tape: &Tape, case: &Case) {
    let place = |written: &Written| {
        let x = written.tensor();
        if x.dtype().is_float() { tape.variable(&x) } else { tape.constant(&x) }
    };
    let x: Vec<Var> = case.operands.iter().map(place).collect();
    let results = compute(&case.name, &x);
    assert_eq!(results.len(), case.results.len(), "{}", case.name);
    for (i, (found, expected)) in results.iter().zip(&case.results).enumerate() {
        expected.assert_is(&found.value().unwrap(), &format!("{}, result {i}", case.name));
    }
    let floats = results.iter().filter(|y| y.dtype().is_float());
    let terms = floats.zip(&case.cotangents).map(|(&y, g)| (y * tape.constant(&g.tensor())).sum(&[]));
    let gradients = tape.backward(terms.reduce(|a, b| a + b).unwrap()).unwrap();
    let wanted: Vec<Var> = x.into_iter().filter(|x| x.dtype().is_float()).collect();
    assert_eq!(wanted.len(), case.gradients.len(), "{}", case.name);
    for (i, (x, expected)) in wanted.iter().zip(&case.gradients).enumerate() {
        // What the results do not depend on, PyTorch's script wrote as zeros.
        let zeros = Tensor::zeros(x.shape(), x.dtype());
        expected.assert_is(gradients.of(*x).unwrap_or(&zeros), &format!("{}, gradient {i}", case.name));
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/ops.json")).unwrap()
}

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let golden = golden();
    assert!(golden.cases.len() > 90, "the file has {} cases", golden.cases.len());
    golden.cases.iter().for_each(|case| check(&Tape::new(), case));
}

#[test]
fn and_so_are_those_of_the_expansions() {
    golden().cases.iter().for_each(|case| check(&Tape::new().with_fused_expanded(true), case));
}
