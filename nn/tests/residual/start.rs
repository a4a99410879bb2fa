//! Where connections start, and what they are there.

use std::collections::BTreeMap;

use limpid_autograd::ops::sinkhorn::{Sinkhorn, marginal_error};
use limpid_autograd::{Gradients, Tape, Var};
use limpid_nn::residual::{
    AttnRes, Coefficient, Connection, Delta, DropPath, DynamicHyperConnection, Euler, Expand, GateStart,
    HyperConnection, Identity, LayerScale, Mhc, MhcLite, MixStart, Normed, Placement, PostNorm, ReZero,
    Reduce, ResiDual, ResiDualRead, Residual, Scaled, SigmoidRead, Start, Variant, VariantConfig,
    deep_norm_gain,
};
use limpid_nn::{Activation, Init, Linear, Mlp, MlpConfig, Module, Parameter, Parameters};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use crate::blocks::{init, normal, values};

const CHANNELS: usize = 6;

fn state(shape: &[usize]) -> Tensor {
    normal(shape, 1.0, Key::new(7))
}

fn branch() -> Normed<Linear> {
    let init = init().enter("branch");
    Normed::new(&init, CHANNELS, Placement::Pre, Linear::new(&init, CHANNELS, CHANNELS, Activation::Relu))
}

fn streams(c: Coefficient<'_>) -> Var<'_> {
    match c {
        Coefficient::Streams(v) => v,
        other => panic!("{other:?} is not between streams"),
    }
}

/// The result of a block, and the gradients of a loss by its input and its branch's weights.
fn run<C: Connection>(connection: C, x: &Tensor) -> (Vec<f64>, Vec<Vec<f64>>) {
    let block = Residual { connection, branch: branch() };
    let tape = Tape::new();
    let x = tape.variable(x);
    let y = block.forward(x);
    let gradients = tape.backward((y * y * y).sum(&[])).unwrap();
    let of = |gradient: Option<&Tensor>| gradient.unwrap().to_vec::<f64>().unwrap();
    let weights = block.branch.parameters().into_iter().map(|p| of(gradients.of_parameter(p.id())));
    let by: Vec<Vec<f64>> = [of(gradients.of(x))].into_iter().chain(weights).collect();
    (values(y), by)
}

#[test]
fn with_one_stream_hyper_connections_begin_as_the_pre_norm_residual() {
    let (x, init) = (state(&[4, CHANNELS]), init().enter("connection"));
    let expected = run(Identity, &x);
    let one = x.reshape([4, 1, CHANNELS]).unwrap();
    for layer in [0, 1, 5] {
        assert_eq!(run(HyperConnection::new(&init, 1, layer), &one), expected);
        assert_eq!(run(DynamicHyperConnection::new(&init, CHANNELS, 1, layer), &one), expected);
    }
}

/// Twenty layers, in both dtypes: the logits, and the gradients of all weights that the two have in common.
#[test]
fn with_one_stream_a_network_of_them_begins_as_the_pre_norm_network() {
    let settings = VariantConfig { streams: 1, ..VariantConfig::default() };
    for (dtype, seed) in [(DType::F64, 1), (DType::F64, 2), (DType::F32, 3)] {
        let init = Init::new(seed).with_dtype(dtype);
        let config = MlpConfig { width: 16, activation: Activation::Gelu, ..MlpConfig::default() };
        let run = |variant| {
            let model = Mlp::of_variant(&init, config, variant, &settings).unwrap();
            let tape = Tape::new();
            let logits =
                model.forward(tape.constant(&normal(&[8, 2], 1.0, Key::new(seed)).cast(dtype).unwrap()));
            let gradients = tape.backward((logits * logits * logits).sum(&[])).unwrap();
            let of = |p: &Parameter| gradients.of_parameter(p.id()).unwrap().to_f64_vec().unwrap();
            let by_path: BTreeMap<String, Vec<f64>> =
                model.parameters().into_iter().map(|p| (p.path().to_string(), of(p))).collect();
            (logits.value().unwrap().to_f64_vec().unwrap(), by_path)
        };
        let (expected, shared) = run(Variant::PreNorm);
        assert!(shared.values().flatten().any(|g| *g != 0.0));
        for variant in [Variant::Hc, Variant::HcDynamic] {
            let (logits, gradients) = run(variant);
            assert_eq!(logits, expected, "{variant}, {dtype}");
            for (path, gradient) in &shared {
                assert_eq!(gradients[path], *gradient, "{variant}, {dtype}: {path}");
            }
        }
    }
}

#[test]
fn dynamic_hyper_connections_begin_as_static_ones() {
    let init = init().enter("connection");
    for n in [1, 2, 4, 8] {
        let x = state(&[3, n, CHANNELS]);
        let expected = run(HyperConnection::new(&init, n, 1), &x);
        assert_eq!(run(DynamicHyperConnection::new(&init, CHANNELS, n, 1), &x), expected, "{n} streams");
    }
}

#[test]
fn each_of_n_streams_begins_as_the_pre_norm_residual() {
    let (x, init) = (state(&[4, CHANNELS]), init());
    let tape = Tape::new();
    let x = tape.variable(&x);
    let (mut single, mut copies) = (x, Expand::copies(4).forward(x));
    for layer in 0..6 {
        let hyper = DynamicHyperConnection::new(&init.enter(layer), CHANNELS, 4, layer);
        copies = Residual { connection: hyper, branch: branch() }.forward(copies);
        single = Residual { connection: Identity, branch: branch() }.forward(single);
        for stream in 0..4 {
            assert_eq!(values(copies.select(-2, stream)), values(single), "layer {layer}");
        }
    }
}

#[test]
fn mixes_are_doubly_stochastic() {
    let init = init().enter("connection");
    for n in [1, 2, 3, 4] {
        let start = Start { mix: MixStart::IdentityLogits, alpha: 1.0, ..Start::default() };
        let mixes: [(Box<dyn Connection>, f64); 2] = [
            // Rows are normalised last; 20 steps at these logits bring columns to rounding as well.
            (Box::new(Mhc::new(&init, CHANNELS, n, 0, start)), 1e-13),
            (Box::new(MhcLite::new(&init, CHANNELS, n, 0, start)), 1e-15),
        ];
        for (connection, columns) in mixes {
            let tape = Tape::new();
            let mix = streams(connection.coefficients(tape.constant(&state(&[5, n, CHANNELS]))).mix);
            assert_eq!(mix.shape()[..], [5, n, n]);
            let off = marginal_error(&mix.value().unwrap()).unwrap();
            assert!(off.rows < 1e-15 && off.columns <= columns, "{n} streams: {off:?}");
            assert!(values(mix).into_iter().all(|p| p > 0.0));
        }
    }
}

/// A and its logits' share of a gradient of A, for n = 4 and φ = 0.
fn first_mix(mix: MixStart, temperature: f64) -> (Vec<f64>, f64) {
    let start = Start { mix, phi: limpid_nn::Initializer::ZEROS, ..Start::default() };
    let sinkhorn = Sinkhorn { temperature, ..Sinkhorn::default() };
    let mhc = Mhc { sinkhorn, ..Mhc::new(&init(), CHANNELS, 4, 0, start) };
    let tape = Tape::new();
    let a = streams(mhc.coefficients(tape.constant(&state(&[1, 4, CHANNELS]))).mix);
    let g = state(&[1, 4, 4]);
    let gradients = tape.backward((a * tape.constant(&g)).sum(&[])).unwrap();
    let norm = |t: &Tensor| t.to_vec::<f64>().unwrap().iter().map(|v| v * v).sum::<f64>().sqrt();
    (values(a), norm(gradients.of_parameter(mhc.res.bias.id()).unwrap()) / norm(&g))
}

#[test]
fn where_a_mix_starts() {
    let (uniform, share) = first_mix(MixStart::Uniform, 1.0);
    assert!(uniform.iter().all(|&p| p == 0.25) && (0.1..0.25).contains(&share), "{share}");

    // e/(e + 3) on the diagonal, 1/(e + 3) off it; what streams differ by shrinks by the difference of the two.
    let (identity, share) = first_mix(MixStart::IdentityLogits, 1.0);
    let e = 1f64.exp();
    assert!((identity[0] - e / (e + 3.0)).abs() < 1e-15 && (identity[1] - 1.0 / (e + 3.0)).abs() < 1e-15);
    assert!((identity[0] - identity[1] - 0.3005).abs() < 1e-4 && share > 0.1);

    let (near, share) = first_mix(MixStart::NearIdentity, 1.0);
    assert!((near[0] - 0.999).abs() < 1e-4 && (near[1] - 3.35e-4).abs() < 1e-6, "{near:?}");
    assert!((3e-4..1e-3).contains(&share), "{share}");

    // At temperature 0.05 the logits off the diagonal are −160: they never learn.
    let (frozen, share) = first_mix(MixStart::NearIdentity, 0.05);
    assert!(frozen[0] == 1.0 && frozen[1] < 1e-69 && share < 1e-60, "{share}");
}

#[test]
fn gates_cycle_with_the_layer() {
    let start = Start { phi: limpid_nn::Initializer::ZEROS, ..Start::default() };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for layer in 0..6 {
        let tape = Tape::new();
        let by = Mhc::new(&init(), CHANNELS, 4, layer, start)
            .coefficients(tape.constant(&state(&[1, 4, CHANNELS])));
        for (stream, (a, b)) in
            values(streams(by.read)).into_iter().zip(values(streams(by.write))).enumerate()
        {
            let expected = sigmoid(if stream == layer % 4 { 1.0 } else { -1.0 });
            assert!((a - expected).abs() < 1e-15 && (b - 2.0 * expected).abs() < 1e-15);
        }
        let equal = Mhc::new(&init(), CHANNELS, 4, layer, Start { gates: GateStart::Equal, ..start });
        let by = equal.coefficients(tape.constant(&state(&[1, 4, CHANNELS])));
        assert_eq!((values(streams(by.read)), values(streams(by.write))), (vec![0.5; 4], vec![1.0; 4]));
    }
}

#[test]
fn rezero_is_the_identity_and_learns_alpha_first() {
    let x = state(&[4, CHANNELS]);
    let block = Residual { connection: ReZero::new(&init()), branch: branch() };
    let tape = Tape::new();
    let y = block.forward(tape.constant(&x));
    assert_eq!(values(y), x.to_vec::<f64>().unwrap());
    let gradients = tape.backward((y * y).sum(&[])).unwrap();
    assert!(gradients.of_parameter(block.connection.alpha.id()).unwrap().item().unwrap() != 0.0);
    let weight = gradients.of_parameter(block.branch.branch.weight.id()).unwrap();
    assert!(weight.to_vec::<f64>().unwrap().iter().all(|&g| g == 0.0));
}

#[test]
fn published_numbers() {
    let initial = [1, 18, 19, 24, 25, 100].map(LayerScale::initial);
    assert_eq!(initial, [0.1, 0.1, 1e-5, 1e-5, 1e-6, 1e-6]);
    let scale = LayerScale::new(&init(), 3, 24).scale;
    assert_eq!((scale.path(), scale.value().to_vec::<f64>().unwrap()), ("scale", vec![1e-5; 3]));
    // CompleteP's α = 1 is an exponent.
    assert_eq!(Scaled::complete_p(20, 1.0).alpha(), 0.05);
    assert_eq!(Scaled::complete_p(20, 0.0).alpha(), 1.0);
    assert!((Scaled::complete_p(16, 0.5).alpha() - 0.25).abs() < 1e-16);
    assert_eq!(Scaled::one_over_sqrt_2().alpha(), 0.5f64.sqrt());
    assert_eq!(Scaled::euler(4, 2.0).alpha(), 0.5);
    // N = 8: α = 16^¼ = 2, β = 64^−¼ = 1/√8.
    assert_eq!(PostNorm::deep_norm(&init(), 3, 8).alpha, 2.0);
    assert!((deep_norm_gain(8) - 8f64.powf(-0.5)).abs() < 1e-16);
}

#[test]
fn paths_of_dropped_branches() {
    let (samples, p) = (4000, 0.3);
    let ones = Tensor::ones([samples, 2, 3], DType::F64);
    let block = Residual { connection: DropPath::new(p), branch: Activation::Identity };
    let through = |tape: &Tape| values(block.forward(tape.constant(&ones)));
    let y = through(&Tape::new().with_seed(3));
    let kept = 1.0 + 1.0 / (1.0 - p);
    let mut dropped = 0;
    for sample in y.chunks(6) {
        assert!(sample.iter().all(|&v| v == sample[0]), "one draw for each sample");
        assert!(sample[0] == 1.0 || sample[0] == kept, "{}", sample[0]);
        dropped += usize::from(sample[0] == 1.0);
    }
    // Five standard deviations of a binomial count.
    let (expected, spread) = (samples as f64 * p, (samples as f64 * p * (1.0 - p)).sqrt());
    assert!((dropped as f64 - expected).abs() < 5.0 * spread, "{dropped}");

    assert_eq!(y, through(&Tape::new().with_seed(3)));
    assert_ne!(y, through(&Tape::new().with_seed(4)));
    assert!(through(&Tape::inference()).iter().all(|&v| v == 2.0), "evaluation scales nothing");
    assert!(through(&Tape::new().with_training(false)).iter().all(|&v| v == 2.0));

    let at = |p| {
        let tape = Tape::new();
        let block = Residual { connection: DropPath::new(p), branch: Activation::Identity };
        values(block.forward(tape.constant(&ones)))[0]
    };
    assert_eq!((at(0.0), at(1.0)), (2.0, 1.0));
    for (block, rate) in [(1, 0.05), (2, 0.1), (3, 0.15), (4, 0.2)] {
        assert!((DropPath::linear(block, 4, 0.2).p() - rate).abs() < 1e-16);
    }
}

#[test]
fn euler_converges_with_order_one_and_shares_its_weights() {
    // dx/dt = −x/2 + 1/4 from 2 to t = 1: x = ½ + (2 − ½)·e^(−½).
    let exact = 0.5 + 1.5 * (-0.5f64).exp();
    let mut branch = Linear::new(&init(), 1, 1, Activation::Identity);
    branch.weight.set_value(Tensor::from_vec(vec![-0.5f64], [1, 1]));
    branch.bias.as_mut().unwrap().set_value(Tensor::from_vec(vec![0.25f64], [1]));
    let error = |steps| {
        let flow = Euler::new(branch.clone(), steps, 1.0);
        let tape = Tape::new();
        let y = flow.forward(tape.constant(&Tensor::from_vec(vec![2.0f64], [1])));
        assert_eq!(tape.program().to_string().matches("= weight ").count(), 1);
        (y.item().unwrap() - exact).abs()
    };
    let ratio = error(64) / error(128);
    assert!((ratio - 2.0).abs() < 0.02, "{ratio}");
}

#[test]
fn delta_is_the_identity_a_projection_or_a_reflection() {
    let x = Tensor::from_vec(vec![1.0f64, 2.0, -2.0], [1, 3]);
    // β = 2σ(bias) with the weights of β at 0; k = F(x)/|F(x)| = x/3.
    for (bias, along) in [(-800.0, 1.0), (0.0, 0.0), (800.0, -1.0)] {
        let mut delta = Delta::with_bias(&init(), 3, bias);
        delta.eps = 0.0;
        delta.beta.weight.set_value(Tensor::zeros([1, 3], DType::F64));
        delta.value.weight.set_value(Tensor::zeros([1, 3], DType::F64));
        delta.value.bias.as_mut().unwrap().set_value(Tensor::zeros([1], DType::F64));
        let tape = Tape::new();
        let y = Residual { connection: delta, branch: Activation::Identity }.forward(tape.constant(&x));
        for (y, x) in values(y).into_iter().zip([1.0, 2.0, -2.0]) {
            assert!((y - along * x).abs() < 1e-15, "β of bias {bias}: {y} for {x}");
        }
    }
    // No direction, nothing to do.
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![-1.0f64, -2.0], [1, 2]));
    let y = Residual { connection: Delta::new(&init(), 2), branch: Activation::Relu }.forward(x);
    assert_eq!(values(y), [-1.0, -2.0]);
    let gradient = tape.backward(y.sum(&[])).unwrap();
    assert!(gradient.of(x).unwrap().to_vec::<f64>().unwrap().iter().all(|g| g.is_finite()));
}

#[test]
fn attention_begins_as_the_mean_of_all_that_was_written() {
    let x = state(&[3, 5, CHANNELS]);
    let tape = Tape::new();
    let x = tape.constant(&x);
    let read = AttnRes::new(&init(), CHANNELS);
    let off = (read.forward(x) - x.mean(&[-2])).abs().max(&[]).item().unwrap();
    assert!(off < 1e-15, "{off}");
    let y = Residual { connection: read, branch: Activation::Identity }.forward(x);
    assert_eq!(y.shape()[..], [3, 6, CHANNELS]);
    assert_eq!(values(y.slice(-2, 0, 5, 1)), values(x));
    // A large query picks the row that points its way.
    let mut read = AttnRes::new(&init(), 2);
    read.query.set_value(Tensor::from_vec(vec![1000.0f64, 0.0], [2]));
    let rows = tape.constant(&Tensor::from_vec(vec![0.0f64, 9.0, 5.0, 1.0, -7.0, 0.0], [3, 2]));
    assert_eq!(values(read.forward(rows)), [5.0, 1.0]);
}

#[test]
fn residual_dual_by_hand() {
    // x = (1, 3), F(x) = x: the first stream is the norm of (2, 6), which is (−1, 1), the second (2, 6) itself.
    let tape = Tape::new();
    let x = tape.constant(&Tensor::from_vec(vec![1.0f64, 3.0], [1, 2]));
    let mut connection = ResiDual::new(&init(), 2);
    connection.norm.eps = 0.0;
    let y = Residual { connection, branch: Activation::Identity }.forward(Expand::copies(2).forward(x));
    assert_eq!(values(y), [-1.0, 1.0, 2.0, 6.0]);
    let mut read = ResiDualRead::new(&init(), 2);
    read.norm.eps = 0.0;
    assert_eq!(values(read.forward(y)), [-2.0, 2.0]);
}

#[test]
fn streams_come_and_go() {
    let tape = Tape::new();
    let x = state(&[3, CHANNELS]);
    let x = tape.variable(&x);
    let copies = Expand::copies(4).forward(x);
    assert_eq!(copies.shape()[..], [3, 4, CHANNELS]);
    assert!((0..4).all(|stream| values(copies.select(-2, stream)) == values(x)));
    let close = |a: Var<'_>, b: Var<'_>| (a - b).abs().max(&[]).item().unwrap() < 1e-14;
    assert!(close(Reduce::Sum.forward(copies), x * 4.0) && close(Reduce::Mean.forward(copies), x));
    for n in [2, 4, 7] {
        let streams = tape.constant(&state(&[3, n, CHANNELS]));
        let read = SigmoidRead::new(&init(), CHANNELS, n);
        assert!(close(read.forward(streams), Reduce::Mean.forward(streams)), "{n}");
    }
    for (scaled, numbers) in [
        (Expand::scaled_per_stream(&init(), 4, 0.1), 1),
        (Expand::scaled_per_channel(&init(), 4, CHANNELS, 0.1), CHANNELS),
    ] {
        let scale = scaled.scale.as_ref().unwrap().value().to_vec::<f64>().unwrap();
        assert_eq!((scale.len(), scaled.streams()), (4 * numbers, 4));
        let (found, x) = (values(scaled.forward(x)), values(x));
        for (i, found) in found.iter().enumerate() {
            let (sample, stream, channel) = (i / (4 * CHANNELS), i / CHANNELS % 4, i % CHANNELS);
            let expected =
                x[sample * CHANNELS + channel] * (1.0 + scale[stream * numbers + channel % numbers]);
            assert!((found - expected).abs() < 1e-15);
        }
    }
}

#[test]
fn coefficients_of_a_bf16_stream_are_f32() {
    let (n, channels) = (4, 8);
    let make = |dtype| {
        let init = Init::new(1).with_dtype(dtype);
        let mut hyper = DynamicHyperConnection::new(&init, channels, n, 0);
        hyper.mix.set_value(normal(&[channels, n], 0.5, Key::new(1)).cast(dtype).unwrap());
        let start = Start { mix: MixStart::IdentityLogits, alpha: 1.0, ..Start::default() };
        let connections: [Box<dyn Connection>; 3] = [
            Box::new(hyper),
            Box::new(Mhc::new(&init, channels, n, 0, start)),
            Box::new(MhcLite::new(&init, channels, n, 0, start)),
        ];
        connections
    };
    let x = state(&[16, n, channels]);
    for dtype in [DType::BF16, DType::F32] {
        for connection in make(dtype) {
            let tape = Tape::new();
            let x = tape.variable(&x.cast(DType::BF16).unwrap());
            let by = connection.coefficients(x);
            assert!([by.read, by.mix, by.write].map(streams).iter().all(|c| c.dtype() == DType::F32));
            let sums = (streams(by.mix).sum(&[-1]) - 1.0).abs().max(&[]).item().unwrap();
            assert!(sums < 1e-6 || connection.parameters()[0].path() == "read", "{sums}");
            let y = Residual { connection, branch: Activation::Tanh }.forward(x);
            assert_eq!(y.dtype(), DType::BF16);
            let gradients: Gradients = tape.backward((y * y).sum(&[])).unwrap();
            assert!(gradients.unreached().is_empty());
        }
    }
}

#[test]
fn a_column_of_the_dynamic_mix_feeds_one_stream() {
    let mut hyper = DynamicHyperConnection::new(&init(), CHANNELS, 4, 0);
    let only_column_2: Vec<f64> = (0..CHANNELS * 4).map(|i| if i % 4 == 2 { 0.5 } else { 0.0 }).collect();
    hyper.mix.set_value(Tensor::from_vec(only_column_2, [CHANNELS, 4]));
    let tape = Tape::new();
    let mix = values(streams(hyper.coefficients(tape.constant(&state(&[1, 4, CHANNELS]))).mix));
    for (i, value) in mix.into_iter().enumerate() {
        let (row, column) = (i / 4, i % 4);
        let fixed = f64::from(u8::from(row == column));
        assert_eq!(value != fixed, row == 2, "A[{row}, {column}] = {value}");
    }
}
