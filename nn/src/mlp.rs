//! A deep multilayer perceptron whose hidden layers are joined by a residual connection of choice.

use limpid_autograd::Var;
use limpid_tensor::DType;

use crate::activation::Activation;
use crate::error::Result;
use crate::init::{Init, Initializer};
use crate::linear::Linear;
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;
use crate::precision::Mixed;
use crate::residual::{Connection, Normed, Residual, Variant, VariantConfig, Wiring};

/// The sizes of an [`Mlp`] and how its layers are made. The default is the two-moons network: 20 linear layers,
/// 2 → 64, 18 times 64 → 64, 64 → 2.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MlpConfig {
    /// The size of the last axis it takes.
    pub inputs: usize,
    /// The size of every hidden layer, and of the stream.
    pub width: usize,
    /// The size of the last axis it gives.
    pub outputs: usize,
    /// The number of linear layers, at least 2: the first, `depth − 2` hidden blocks, and the last.
    pub depth: usize,
    /// Of every layer but the last.
    pub activation: Activation,
    /// How weights are drawn, with biases 0. `None`: weights and biases as [`Linear::new`] draws them.
    pub initial: Option<Initializer>,
    /// What the branches of hidden blocks compute in, as [`Mixed`] says; the first layer, the stream and the last layer stay
    /// in the parameters' dtype. `None`: all of the network does.
    pub branch_dtype: Option<DType>,
}

impl Default for MlpConfig {
    fn default() -> MlpConfig {
        MlpConfig {
            inputs: 2,
            width: 64,
            outputs: 2,
            depth: 20,
            activation: Activation::Relu,
            initial: None,
            branch_dtype: None,
        }
    }
}

impl MlpConfig {
    /// The number of hidden blocks, each joined by a connection.
    pub fn blocks(&self) -> usize {
        self.depth - 2
    }

    #[track_caller]
    fn expect_two_layers(&self) {
        let depth = self.depth;
        assert!(depth >= 2, "mlp: the depth counts the first and the last layer, found {depth}");
    }
}

/// A hidden block of an [`Mlp`]: a linear layer with its norms, in the dtype that is set for it, and its connection.
pub type HiddenBlock = Residual<Box<dyn Connection>, Mixed<Normed<Linear>>>;

/// `x [.., inputs] → [.., outputs]` through a stream of `width` channels:
///
/// ```text
/// x₁     = act(W₀x₀ + b₀)                      no connection: the widths differ
/// xᵢ₊₁   = A·xᵢ + b·act(Wᵢ(a·xᵢ) + bᵢ)         i = 1 … depth − 2
/// logits = W·x + b                             the last layer
/// ```
///
/// If the connections have n streams, x₁ becomes n streams after the first layer, and they one value before the last.
///
/// Layer i is called `layers.{i}`: its parameters `layers.{i}.weight` `[out, in]` and `layers.{i}.bias`, its
/// connection's beside them (`layers.{i}.gate.weight`), and its scope on the tape. What makes streams is of the first
/// layer, what unites them of the last.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::Scaled;
/// use limpid_nn::{Init, Mlp, MlpConfig, Module, Parameters};
/// use limpid_tensor::{DType, Tensor};
/// let config = MlpConfig::default();
/// let alpha = 1.0 / (config.blocks() as f64).sqrt();
/// let model = Mlp::new(&Init::new(0), config, |_| Box::new(Scaled::new(alpha)));
/// assert_eq!(model.weight_count(), (2 * 64 + 64) + 18 * (64 * 64 + 64) + (64 * 2 + 2));
/// let tape = Tape::new();
/// let logits = model.forward(tape.constant(&Tensor::zeros([128, 2], DType::F32)));
/// assert_eq!(logits.shape().to_string(), "[128, 2]");
/// ```
pub struct Mlp {
    first: Linear,
    enter: Option<Box<dyn Module>>,
    blocks: Vec<HiddenBlock>,
    steps: usize,
    leave: Option<Box<dyn Module>>,
    last: Linear,
}

impl Mlp {
    /// A network whose hidden blocks are joined by what `connect` makes for each: it is given the block's place, for
    /// the connection's own parameters.
    ///
    /// # Panics
    /// If `depth` is less than 2, or `branch_dtype` is not a float.
    #[track_caller]
    pub fn new(init: &Init, config: MlpConfig, connect: impl Fn(&Init) -> Box<dyn Connection>) -> Mlp {
        config.expect_two_layers();
        let place = |i: usize| init.enter("layers").enter(i);
        let connections = (1..config.depth - 1).map(|i| connect(&place(i))).collect();
        Mlp::with_wiring(init, config, Wiring::new(connections))
    }

    /// A network whose hidden blocks are joined by a connection of the catalogue.
    ///
    /// ```
    /// use limpid_nn::residual::{Variant, VariantConfig};
    /// use limpid_nn::{Init, Mlp, MlpConfig, Parameters};
    /// let config = MlpConfig { depth: 3, ..MlpConfig::default() };
    /// let model = Mlp::of_variant(&Init::new(0), config, Variant::IdentityHc, &VariantConfig::default())?;
    /// let paths: Vec<&str> = model.parameters().iter().map(|p| p.path()).collect();
    /// assert!(paths.contains(&"layers.1.pre.phi") && paths.contains(&"layers.2.read.phi"));
    /// # Ok::<(), limpid_nn::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Variant::wiring`].
    ///
    /// # Panics
    /// If `depth` is less than 2, or `branch_dtype` is not a float.
    #[track_caller]
    pub fn of_variant(
        init: &Init,
        config: MlpConfig,
        variant: Variant,
        settings: &VariantConfig,
    ) -> Result<Mlp> {
        config.expect_two_layers();
        let place = |i: usize| init.enter("layers").enter(i);
        let wiring = variant.wiring(config.width, config.blocks(), settings, place)?;
        Ok(Mlp::with_wiring(init, config, wiring))
    }

    /// A network with this around its branches: as many hidden blocks as there are connections. If there are fewer than
    /// the depth says, layers in between are those of other steps and have no number.
    #[track_caller]
    fn with_wiring(init: &Init, config: MlpConfig, wiring: Wiring) -> Mlp {
        let place = |i: usize| init.enter("layers").enter(i);
        let MlpConfig { inputs, width, outputs, depth, activation, initial, branch_dtype } = config;
        let linear = |i: usize, inputs: usize, outputs, activation, gain| {
            let bias = match initial {
                None => Initializer::Uniform { bound: 1.0 / (inputs as f64).sqrt() },
                Some(_) => Initializer::ZEROS,
            };
            let weight = initial.unwrap_or(Initializer::LINEAR).times(gain);
            Linear::with_initial(&place(i), inputs, outputs, activation, weight, bias)
        };
        let Wiring { enter, connections, steps, placement, gain, leave } = wiring;
        let block = |(i, connection): (usize, Box<dyn Connection>)| {
            let branch = linear(i, width, width, activation, gain);
            let branch = Normed::new(&place(i), width, placement, branch);
            Residual { connection, branch: Mixed::of(branch_dtype, branch) }
        };
        Mlp {
            first: linear(0, inputs, width, activation, 1.0),
            enter,
            blocks: (1..).zip(connections).map(block).collect(),
            steps,
            leave,
            last: linear(depth - 1, width, outputs, Activation::Identity, 1.0),
        }
    }

    /// The number of linear layers that have weights of their own.
    pub fn depth(&self) -> usize {
        self.blocks.len() + 2
    }

    /// The linear layer at position `i` among those that have weights of their own; it is called `layers.{i}`, unless it is
    /// the last one and blocks are gone through more than once.
    ///
    /// # Panics
    /// If `i` is not less than the depth.
    #[track_caller]
    pub fn layer(&self, i: usize) -> &Linear {
        match i.checked_sub(1) {
            None => &self.first,
            Some(block) if block == self.blocks.len() => &self.last,
            Some(block) => &self.blocks[block].branch.module.branch,
        }
    }

    /// The hidden blocks: `layers.1` and those that follow it, without the last layer.
    pub fn blocks(&self) -> &[HiddenBlock] {
        &self.blocks
    }

    /// How often the hidden blocks are gone through.
    pub fn steps(&self) -> usize {
        self.steps
    }
}

impl Parameters for Mlp {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.first.visit(f);
        self.enter.iter().for_each(|module| module.visit(f));
        self.blocks.iter().for_each(|block| block.visit(f));
        self.leave.iter().for_each(|module| module.visit(f));
        self.last.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.first.visit_mut(f);
        self.enter.iter_mut().for_each(|module| module.visit_mut(f));
        self.blocks.iter_mut().for_each(|block| block.visit_mut(f));
        self.leave.iter_mut().for_each(|module| module.visit_mut(f));
        self.last.visit_mut(f);
    }
}

/// `forward` in the scope of layer `i`.
#[track_caller]
fn layer<'t>(i: usize, x: Var<'t>, forward: impl FnOnce(Var<'t>) -> Var<'t>) -> Var<'t> {
    x.tape().scope(format_args!("layers.{i}"), || forward(x))
}

/// Where the blocks are gone through more than once, round k records in the scope `step.{k}`.
impl Module for Mlp {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        let within = |module: &Option<Box<dyn Module>>, name, x| match module {
            Some(module) => tape.scope(name, || module.forward(x)),
            None => x,
        };
        let blocks = |x| (1..).zip(&self.blocks).fold(x, |x, (i, block)| layer(i, x, |x| block.forward(x)));
        let x = layer(0, x, |x| within(&self.enter, "enter", self.first.forward(x)));
        let x = match self.steps {
            1 => blocks(x),
            steps => (0..steps).fold(x, |x, k| tape.scope(format_args!("step.{k}"), || blocks(x))),
        };
        layer(self.steps * self.blocks.len() + 1, x, |x| self.last.forward(within(&self.leave, "leave", x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::{Reduction, cross_entropy};
    use crate::residual::{Gated, Identity, Interpolated, Plain, Scaled};
    use limpid_autograd::Tape;
    use limpid_tensor::Tensor;

    type Connect = fn(&Init) -> Box<dyn Connection>;

    const VARIANTS: [(&str, Connect); 5] = [
        ("plain", |_| Box::new(Plain)),
        ("identity", |_| Box::new(Identity)),
        ("scaled", |_| Box::new(Scaled::new(0.5))),
        ("gated", |init| Box::new(Gated::new(init, 8))),
        ("interpolated", |init| Box::new(Interpolated::new(init))),
    ];

    fn model(depth: usize, connect: Connect) -> Mlp {
        let config = MlpConfig { width: 8, depth, activation: Activation::Tanh, ..MlpConfig::default() };
        Mlp::new(&Init::new(5).with_dtype(DType::F64), config, connect)
    }

    fn points() -> Tensor {
        Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 1.5, 0.25, -0.75], [3, 2])
    }

    #[test]
    fn names_and_shapes() {
        let gated = model(3, VARIANTS[3].1);
        let found: Vec<String> = gated.parameters().iter().map(|p| format!("{p:?}")).collect();
        let expected = [
            "layers.0.weight: f64[8, 2]",
            "layers.0.bias: f64[8]",
            "layers.1.gate.weight: f64[8, 8]",
            "layers.1.gate.bias: f64[8]",
            "layers.1.weight: f64[8, 8]",
            "layers.1.bias: f64[8]",
            "layers.2.weight: f64[2, 8]",
            "layers.2.bias: f64[2]",
        ];
        assert_eq!(found, expected);
        let mut mutable = gated;
        let paths: Vec<String> = mutable.parameters_mut().iter().map(|p| p.path().to_string()).collect();
        assert!(paths.iter().zip(expected).all(|(path, line)| line.starts_with(path)));
        for i in 0..3 {
            assert_eq!(mutable.layer(i).weight.path(), format!("layers.{i}.weight"));
        }
    }

    #[test]
    fn every_parameter_learns_at_every_depth_with_every_connection() {
        for (name, connect) in VARIANTS {
            for depth in [2, 3, 20] {
                let model = model(depth, connect);
                let tape = Tape::new();
                let labels = tape.constant(&Tensor::from_vec(vec![0i64, 1, 1], [3]));
                let loss = cross_entropy(model.forward(tape.constant(&points())), labels, Reduction::Mean);
                let gradients = tape.backward(loss).unwrap();
                assert!(gradients.unreached().is_empty(), "{name} at depth {depth}");
                for parameter in model.parameters() {
                    let gradient = gradients.of_parameter(parameter.id()).unwrap();
                    assert_eq!(gradient.meta(), parameter.meta());
                    let values = gradient.to_vec::<f64>().unwrap();
                    assert!(values.iter().all(|v| v.is_finite()), "{name} at depth {depth}: {parameter:?}");
                    assert!(values.iter().any(|&v| v != 0.0), "{name} at depth {depth}: {parameter:?}");
                }
                assert_eq!(tape.program().to_string().matches('⑂').count(), depth - 2, "{name}");
            }
        }
    }

    #[test]
    fn layers_are_scopes_and_parameters_print_under_their_names() {
        let model = model(3, VARIANTS[1].1);
        let tape = Tape::new();
        model.forward(tape.constant(&points()));
        let program = tape.program().to_string();
        let line = program.lines().find(|line| line.contains("layers.1.weight, ")).unwrap();
        assert!(line.contains("linear(") && line.contains("layers.1/branch"), "{program}");
    }

    #[test]
    fn inference_gives_the_same_values() {
        for (name, connect) in VARIANTS {
            let model = model(4, connect);
            let value = |tape: Tape| {
                model.forward(tape.constant(&points())).value().unwrap().to_vec::<f64>().unwrap()
            };
            assert_eq!(value(Tape::new()), value(Tape::inference()), "{name}");
        }
    }

    #[test]
    fn adding_a_layer_changes_no_other_layers_values() {
        let (short, long) = (model(3, VARIANTS[0].1), model(6, VARIANTS[3].1));
        let value = |model: &Mlp, i| model.layer(i).weight.value().to_vec::<f64>().unwrap();
        for i in 0..2 {
            assert_eq!(value(&short, i), value(&long, i));
        }
        assert_ne!(value(&long, 1), value(&long, 2));
    }

    #[test]
    fn other_initial_values() {
        let config = MlpConfig { initial: Some(Initializer::HE), ..MlpConfig::default() };
        let model = Mlp::new(&Init::new(0), config, |_| Box::new(Plain));
        let weight = model.layer(5).weight.value().to_f64_vec().unwrap();
        let mean_square = weight.iter().map(|w| w * w).sum::<f64>() / weight.len() as f64;
        // Five standard deviations of the mean of 4096 squares of normals.
        assert!((mean_square * 32.0 - 1.0).abs() < 5.0 * (2.0f64 / 4096.0).sqrt(), "{mean_square}");
        let bias = model.layer(5).bias.as_ref().unwrap().value().to_f64_vec().unwrap();
        assert_eq!(bias, [0.0; 64]);
    }

    #[test]
    #[should_panic(expected = "mlp: the depth counts the first and the last layer, found 1")]
    fn a_single_layer_is_no_mlp() {
        model(1, VARIANTS[0].1);
    }
}
