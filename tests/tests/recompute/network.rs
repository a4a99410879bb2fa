//! A random network: a list of pieces, each a function of the state `[batch, width]` to the next.
//!
//! Any piece can stand anywhere, so that a smaller network is one with a piece left out.

use limpid_autograd::{ParamId, Tape, Var, concat, einsum, stack, where_};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::residual::{Connection, Normed, Residual, Variant, VariantConfig};
use limpid_nn::{Activation, BatchNorm1d, Dropout, Init, LayerNorm, Linear, Module};
use limpid_nn::{Parameter, Parameters, RmsNorm};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    pub seed: u64,
    pub precision: Precision,
    pub batch: usize,
    pub width: usize,
    pub input: Input,
    pub training: bool,
    /// Whether fused operations are recorded as their expansions.
    pub expanded: bool,
    pub pieces: Vec<Piece>,
    pub loss: Loss,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Precision {
    F64,
    F32,
    Bf16,
}

impl Precision {
    pub fn dtype(self) -> DType {
        match self {
            Precision::F64 => DType::F64,
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Input {
    Variable,
    Constant,
    /// A variable whose elements are not in row-major order.
    Strided,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Loss {
    Sum,
    CrossEntropy,
    SquaredError,
    LogSumExp,
    /// There are results before and after the one that is differentiated.
    OneOfSeveral,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Piece {
    /// One of the functions of [`map`].
    Map(usize),
    Linear(usize),
    /// The same layer at every place.
    Shared,
    SharedNorm,
    Frozen,
    LayerNorm,
    RmsNorm,
    BatchNorm,
    Dropout,
    Noise,
    /// Residual blocks, with what makes and unites their streams.
    Blocks {
        variant: usize,
        blocks: usize,
        streams: usize,
        branch: Branch,
    },
    /// The state so many pieces ago, added.
    Skip(usize),
    /// The network's input, added.
    Input,
    Square,
    Attention,
    Transposed,
    /// A reshape that has to copy.
    Turned,
    Halves,
    /// With nothing beside it.
    Empty,
    EveryOther,
    Flipped,
    Padded,
    Stacked,
    Broadcast,
    Gather,
    Scatter,
    IndexSelect,
    Einsum,
    BatchedMatmul,
    Softmax(usize),
    SumOfAll,
    Variance,
    Product,
    Maximum,
    Cumsum,
    Sorted,
    Where,
    Triangle,
    Cast,
    Detached,
    WithoutGradients,
    Constant,
    /// Something computed that nothing uses.
    Unused,
    /// Something noted for after the run.
    Update(u64),
    /// A gradient inside the program.
    Gradient,
    /// A tangent inside the program.
    Tangent,
    Named(usize),
    Scope(usize, Vec<Piece>),
    /// The same pieces, with the same weights in the same scope, again and again.
    Repeat(usize, Vec<Piece>),
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Branch {
    Linear,
    Dropout,
    BatchNorm,
}

/// The names that pieces give.
pub const NAMES: [&str; 3] = ["state.0", "state.1", "hidden"];
/// The scopes that pieces open.
pub const SCOPES: [&str; 3] = ["outer", "inner", "deep"];

const MAPS: usize = 12;

/// Functions that are smooth, or not, and whose rules read their operand, their result, or neither.
fn map(which: usize, x: Var<'_>) -> Var<'_> {
    match which % MAPS {
        0 => x.tanh(),
        1 => x.sin(),
        2 => x.sigmoid(),
        3 => x.tanh().exp(),
        4 => x.gelu(),
        5 => x.silu(),
        6 => x.relu(),
        7 => (x * x + 1.0).sqrt(),
        8 => x.softplus().log1p(),
        9 => -x * 0.5,
        10 => x.abs().clamp(0.25, 2.0),
        _ => (x.elu(1.0) / 2.0).tanh() - x.cos(),
    }
}

/// What a network is made of.
pub struct Model {
    network: Network,
    layers: Vec<Layer>,
    shared: Linear,
    shared_norm: BatchNorm1d,
}

enum Layer {
    Piece(Piece),
    Module(Box<dyn Module>),
    Blocks(Blocks),
    Scope(&'static str, Vec<Layer>),
    Repeat(usize, Vec<Layer>),
}

/// Residual blocks as a variant wires them.
pub struct Blocks {
    pub enter: Option<Box<dyn Module>>,
    pub blocks: Vec<Residual<Box<dyn Connection>, Normed<Branched>>>,
    pub steps: usize,
    pub leave: Option<Box<dyn Module>>,
}

pub struct Branched {
    linear: Linear,
    dropout: Option<Dropout>,
    norm: Option<BatchNorm1d>,
}

impl Module for Branched {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let y = self.linear.forward(x);
        let y = self.dropout.map_or(y, |dropout| dropout.forward(y));
        self.norm.as_ref().map_or(y, |norm| norm.forward(y))
    }
}

impl Parameters for Branched {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.linear.visit(f);
        self.norm.iter().for_each(|norm| norm.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.linear.visit_mut(f);
        self.norm.iter_mut().for_each(|norm| norm.visit_mut(f));
    }
}

impl Blocks {
    pub fn new(
        init: &Init,
        width: usize,
        variant: Variant,
        blocks: usize,
        streams: usize,
        branch: Branch,
    ) -> Blocks {
        let config = VariantConfig { streams, drop: 0.5, ..VariantConfig::default() };
        let wiring =
            variant.wiring(width, blocks, &config, |i| init.enter(i)).expect("these streams are allowed");
        let block = |(i, connection)| {
            let init = init.enter(i).enter("branch");
            let branch = Branched {
                linear: Linear::new(&init, width, width, Activation::Tanh),
                dropout: (branch == Branch::Dropout).then(|| Dropout::new(0.3)),
                norm: (branch == Branch::BatchNorm).then(|| BatchNorm1d::new(&init.enter("norm"), width)),
            };
            Residual { connection, branch: Normed::new(&init, width, wiring.placement, branch) }
        };
        Blocks {
            blocks: (1..).zip(wiring.connections).map(block).collect(),
            enter: wiring.enter,
            steps: wiring.steps,
            leave: wiring.leave,
        }
    }

    /// The states before the first block, and after each.
    pub fn states<'t>(&self, x: Var<'t>) -> Vec<Var<'t>> {
        let mut states = vec![self.enter.as_ref().map_or(x, |enter| enter.forward(x))];
        for step in 0..self.steps {
            for (i, block) in self.blocks.iter().enumerate() {
                let state = states[states.len() - 1];
                states.push(x.tape().scope(format_args!("block.{}", step + i), || block.forward(state)));
            }
        }
        states
    }

    pub fn leave<'t>(&self, state: Var<'t>) -> Var<'t> {
        self.leave.as_ref().map_or(state, |leave| leave.forward(state))
    }
}

impl Parameters for Blocks {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.enter.iter().for_each(|module| module.visit(f));
        self.blocks.iter().for_each(|block| block.visit(f));
        self.leave.iter().for_each(|module| module.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.enter.iter_mut().for_each(|module| module.visit_mut(f));
        self.blocks.iter_mut().for_each(|block| block.visit_mut(f));
        self.leave.iter_mut().for_each(|module| module.visit_mut(f));
    }
}

impl Parameters for Layer {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        match self {
            Layer::Piece(_) => {}
            Layer::Module(module) => module.visit(f),
            Layer::Blocks(blocks) => blocks.visit(f),
            Layer::Scope(_, layers) | Layer::Repeat(_, layers) => {
                layers.iter().for_each(|layer| layer.visit(f))
            }
        }
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        match self {
            Layer::Piece(_) => {}
            Layer::Module(module) => module.visit_mut(f),
            Layer::Blocks(blocks) => blocks.visit_mut(f),
            Layer::Scope(_, layers) | Layer::Repeat(_, layers) => {
                layers.iter_mut().for_each(|layer| layer.visit_mut(f));
            }
        }
    }
}

impl Parameters for Model {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.shared.visit(f);
        self.shared_norm.visit(f);
        self.layers.iter().for_each(|layer| layer.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.shared.visit_mut(f);
        self.shared_norm.visit_mut(f);
        self.layers.iter_mut().for_each(|layer| layer.visit_mut(f));
    }
}

impl Layer {
    fn new(piece: &Piece, init: &Init, width: usize) -> Layer {
        let all = |pieces: &[Piece]| -> Vec<Layer> {
            pieces.iter().enumerate().map(|(i, piece)| Layer::new(piece, &init.enter(i), width)).collect()
        };
        let linear = |activation| Linear::new(init, width, width, activation);
        match piece {
            Piece::Linear(act) => {
                Layer::Module(Box::new(linear(Activation::ALL[act % Activation::ALL.len()])))
            }
            Piece::Frozen => {
                let mut linear = linear(Activation::Sigmoid);
                linear.weight.set_frozen(true);
                Layer::Module(Box::new(linear))
            }
            Piece::LayerNorm => Layer::Module(Box::new(LayerNorm::new(init, width))),
            Piece::RmsNorm => Layer::Module(Box::new(RmsNorm::new(init, width))),
            Piece::BatchNorm => Layer::Module(Box::new(BatchNorm1d::new(init, width))),
            Piece::Dropout => Layer::Module(Box::new(Dropout::new(0.4))),
            Piece::Blocks { variant, blocks, streams, branch } => {
                let variant = Variant::ALL[variant % Variant::ALL.len()];
                Layer::Blocks(Blocks::new(init, width, variant, *blocks, *streams, *branch))
            }
            Piece::Scope(name, pieces) => Layer::Scope(SCOPES[name % SCOPES.len()], all(pieces)),
            Piece::Repeat(times, pieces) => Layer::Repeat(*times, all(pieces)),
            piece => Layer::Piece(piece.clone()),
        }
    }
}

/// A network on a tape.
pub struct Recorded<'t> {
    pub input: Var<'t>,
    /// What comes out of the pieces.
    pub output: Var<'t>,
    pub loss: Var<'t>,
}

/// Where a network has got to.
struct Going<'t, 'm> {
    model: &'m Model,
    input: Var<'t>,
    states: Vec<Var<'t>>,
}

impl Network {
    pub fn model(&self) -> Model {
        let init = Init::new(self.seed).with_dtype(self.precision.dtype());
        let layer = |(i, piece)| Layer::new(piece, &init.enter("pieces").enter(i), self.width);
        Model {
            network: self.clone(),
            layers: self.pieces.iter().enumerate().map(layer).collect(),
            shared: Linear::new(&init.enter("shared"), self.width, self.width, Activation::Sigmoid),
            shared_norm: BatchNorm1d::new(&init.enter("shared_norm"), self.width),
        }
    }

    /// A tape for it.
    pub fn tape(&self) -> Tape {
        self.as_tape(Tape::new())
    }

    pub fn as_tape(&self, tape: Tape) -> Tape {
        tape.with_seed(self.seed).with_training(self.training).with_fused_expanded(self.expanded)
    }

    pub fn values(&self, of: &str, shape: &[usize]) -> Tensor {
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        Tensor::random(normal, shape, self.precision.dtype(), Key::new(self.seed).fold_str(of)).unwrap()
    }

    pub fn input_value(&self) -> Tensor {
        match self.input {
            Input::Strided => self.values("input", &[self.width, self.batch]).transpose(0, 1),
            _ => self.values("input", &[self.batch, self.width]),
        }
    }

    /// Visits every piece.
    pub fn each(&self, look: &mut dyn FnMut(&Piece)) {
        fn visit(pieces: &[Piece], look: &mut dyn FnMut(&Piece)) {
            for piece in pieces {
                look(piece);
                if let Piece::Scope(_, inside) | Piece::Repeat(_, inside) = piece {
                    visit(inside, look);
                }
            }
        }
        visit(&self.pieces, look);
    }
}

impl Model {
    /// Records the network on a tape.
    pub fn record<'t>(&self, tape: &'t Tape) -> Recorded<'t> {
        let Network { input, batch, width, loss, .. } = self.network;
        let value = self.network.input_value();
        let input = if input == Input::Constant { tape.constant(&value) } else { tape.variable(&value) };
        let mut going = Going { model: self, input, states: vec![input] };
        let output = going.through(&self.layers, input);
        let loss = match loss {
            Loss::Sum => output.tanh().sum(&[]),
            Loss::CrossEntropy => {
                let labels: Vec<i64> = (0..batch).map(|i| (i * 2 % width) as i64).collect();
                cross_entropy(output, tape.constant(&Tensor::from_vec(labels, [batch])), Reduction::Mean)
            }
            Loss::SquaredError => {
                let error = output.tanh() - tape.constant(&self.network.values("target", &[batch, width]));
                (error * error).mean(&[])
            }
            Loss::LogSumExp => output.tanh().logsumexp(&[]),
            Loss::OneOfSeveral => {
                let first = output.tanh();
                let accuracy = first.argmax(1).cast(DType::F32).mean(&[]);
                let loss = (first * first).sum(&[]);
                let _ = (accuracy, loss * 2.0, tape.scalar(3.0, DType::F32).exp());
                loss
            }
        };
        Recorded { input, output, loss }
    }
}

impl<'t> Going<'t, '_> {
    fn through(&mut self, layers: &[Layer], x: Var<'t>) -> Var<'t> {
        layers.iter().fold(x, |x, layer| {
            let y = self.layer(layer, x);
            self.states.push(y);
            y
        })
    }

    fn layer(&mut self, layer: &Layer, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        match layer {
            Layer::Module(module) => module.forward(x),
            Layer::Blocks(blocks) => {
                let states = blocks.states(x);
                blocks.leave(states[states.len() - 1])
            }
            Layer::Scope(name, layers) => tape.scope(name, || self.through(layers, x)),
            Layer::Repeat(times, layers) => {
                (0..*times).fold(x, |x, _| tape.scope("repeated", || self.through(layers, x)).tanh())
            }
            Layer::Piece(piece) => self.piece(piece, x),
        }
    }

    fn piece(&self, piece: &Piece, x: Var<'t>) -> Var<'t> {
        let (tape, dtype, shape) = (x.tape(), x.dtype(), x.shape());
        let (batch, width) = (shape[0], shape[1]);
        let index = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values: Vec<i64> = (0..count).map(|i| ((i * i + i / 2) % width) as i64).collect();
            tape.constant(&Tensor::from_vec(values, shape))
        };
        match *piece {
            Piece::Map(which) => map(which, x),
            Piece::Shared => self.model.shared.forward(x),
            Piece::SharedNorm => self.model.shared_norm.forward(x),
            Piece::Noise => x + tape.random(Distribution::Normal { mean: 0.0, std: 0.1 }, shape, dtype),
            Piece::Skip(back) => {
                let earlier = self.states[self.states.len() - 1 - back % self.states.len()];
                (x.branch() + earlier.skip()).tanh()
            }
            Piece::Input => x * 0.5 + self.input.sin(),
            Piece::Square => (x * x).tanh(),
            Piece::Attention => x.matmul(x.transpose(0, 1)).softmax(-1).matmul(x),
            Piece::Transposed => x.transpose(0, 1).tanh().transpose(0, 1),
            Piece::Turned => x.transpose(0, 1).reshape([batch, width]) + x,
            Piece::Halves => concat(&[x.slice(1, width / 2, width, 1), x.slice(1, 0, width / 2, 1).sin()], 1),
            Piece::Empty => concat(&[x, x.slice(1, 0, 0, 1).sin()], 1),
            Piece::EveryOther => concat(&[x.slice(1, 1, width, 2) * 2.0, x.slice(1, 0, width, 2)], 1).tanh(),
            Piece::Flipped => x.flip(1) - x.flip(0).select(0, 0),
            Piece::Padded => x.pad(1, 1, 0, 0.5).slice(1, 0, width, 1) * x,
            Piece::Stacked => stack(&[x, x.cos(), x], 1).mean(&[1]),
            Piece::Broadcast => x * x.mean(&[1]).unsqueeze(1).expand([batch, width]) + x.select(0, 0),
            Piece::Gather => x.gather(1, index(&[batch, width])),
            Piece::Scatter => (x * 0.5).scatter_add(1, index(&[batch, width]), x.sin()),
            Piece::IndexSelect => x.index_select(1, index(&[width])),
            Piece::Einsum => {
                let outer = einsum("bi,bj->bij", &[x.tanh(), x.sigmoid()]);
                einsum("bij,bj->bi", &[outer, x]).tanh()
            }
            Piece::BatchedMatmul => {
                let outer = x.unsqueeze(2).matmul(x.tanh().unsqueeze(1));
                outer.matmul(x.sin().unsqueeze(2)).squeeze(2).tanh()
            }
            Piece::Softmax(axis) => match axis % 3 {
                0 => x.softmax(1),
                1 => x.log_softmax(1) * 0.5,
                _ => x.softmax(0),
            },
            Piece::SumOfAll => {
                let cube = x.unsqueeze(2) * x.tanh().unsqueeze(1);
                x + cube.sum(&[0, 2]).tanh() + cube.mean(&[0, 1, 2])
            }
            Piece::Variance => x - x.var(&[0], 0) + x.logsumexp(&[0, 1]) * 0.1,
            Piece::Product => x * 0.5 + x.tanh().prod(&[1]).unsqueeze(1),
            Piece::Maximum => x - x.max(&[1]).unsqueeze(1) + x.min(&[0]),
            Piece::Cumsum => x.cumsum(1).tanh(),
            Piece::Sorted => x.sort(1, true).0 + x,
            Piece::Where => where_(x.gt(x.fill(0.0)), x.sin(), x * 0.25),
            Piece::Triangle => x.tril(0) + x.triu(1).sin(),
            Piece::Cast => {
                let other = if dtype == DType::F32 { DType::F64 } else { DType::F32 };
                x.cast(other).tanh().cast(dtype)
            }
            Piece::Detached => x * x.detach().sigmoid(),
            Piece::WithoutGradients => x + tape.without_gradients(|| (x.sin() * 2.0).tanh()),
            Piece::Constant => {
                x * tape.constant(&Tensor::linspace(0.5, 1.5, width, dtype)) + tape.scalar(0.25, dtype)
            }
            Piece::Unused => {
                let _ = x.tanh().exp().sum(&[1]);
                x
            }
            Piece::Update(id) => {
                tape.update_later(ParamId(u64::MAX - id), x.mean(&[0]));
                x
            }
            Piece::Gradient => {
                let energy = (x.sin() * x).sum(&[]);
                x + tape.grad(energy, &[x]).expect("it can be differentiated")[0] * 0.25
            }
            Piece::Tangent => {
                let tangent = tape.jvp(x.tanh() * x, &[(x, x.cos())]).expect("it can be differentiated");
                x + tangent * 0.25
            }
            Piece::Named(name) => x.sin().named(NAMES[name % NAMES.len()]),
            _ => unreachable!("{piece:?} is a layer"),
        }
    }
}

/// Pieces that have no choices.
const FLAT: [Piece; 40] = [
    Piece::Shared,
    Piece::SharedNorm,
    Piece::Frozen,
    Piece::LayerNorm,
    Piece::RmsNorm,
    Piece::BatchNorm,
    Piece::Dropout,
    Piece::Noise,
    Piece::Input,
    Piece::Square,
    Piece::Attention,
    Piece::Transposed,
    Piece::Turned,
    Piece::Halves,
    Piece::Empty,
    Piece::EveryOther,
    Piece::Flipped,
    Piece::Padded,
    Piece::Stacked,
    Piece::Broadcast,
    Piece::Gather,
    Piece::Scatter,
    Piece::IndexSelect,
    Piece::Einsum,
    Piece::BatchedMatmul,
    Piece::SumOfAll,
    Piece::Variance,
    Piece::Product,
    Piece::Maximum,
    Piece::Cumsum,
    Piece::Sorted,
    Piece::Where,
    Piece::Triangle,
    Piece::Cast,
    Piece::Detached,
    Piece::WithoutGradients,
    Piece::Constant,
    Piece::Unused,
    Piece::Gradient,
    Piece::Tangent,
];

/// What pieces are called that a network may have.
pub fn piece_names() -> Vec<String> {
    let others = ["Map", "Linear", "Softmax", "Update", "Named", "Skip", "Blocks", "Scope", "Repeat"];
    FLAT.iter().map(|piece| format!("{piece:?}")).chain(others.map(String::from)).collect()
}

fn piece() -> BoxedStrategy<Piece> {
    let branch = prop::sample::select(vec![Branch::Linear, Branch::Dropout, Branch::BatchNorm]);
    let blocks = (0..Variant::ALL.len(), 1..4usize, 1..4usize, branch)
        .prop_map(|(variant, blocks, streams, branch)| Piece::Blocks { variant, blocks, streams, branch });
    prop_oneof![
        2 => (0..MAPS).prop_map(Piece::Map),
        2 => (0..Activation::ALL.len()).prop_map(Piece::Linear),
        8 => prop::sample::select(FLAT.to_vec()),
        1 => (0..3usize).prop_map(Piece::Softmax),
        1 => (0..2u64).prop_map(Piece::Update),
        1 => (0..NAMES.len()).prop_map(Piece::Named),
        2 => (1..8usize).prop_map(Piece::Skip),
        4 => blocks,
    ]
    .boxed()
}

/// Pieces, some inside scopes inside scopes.
fn pieces(depth: u32) -> BoxedStrategy<Vec<Piece>> {
    if depth == 0 {
        return prop::collection::vec(piece(), 0..4).boxed();
    }
    let inside = || pieces(depth - 1);
    let any = prop_oneof![
        8 => piece(),
        1 => (0..SCOPES.len(), inside()).prop_map(|(name, pieces)| Piece::Scope(name, pieces)),
        1 => (2..4usize, inside()).prop_map(|(times, pieces)| Piece::Repeat(times, pieces)),
    ];
    prop::collection::vec(any, 1..7).boxed()
}

pub fn networks(precisions: Vec<Precision>) -> impl Strategy<Value = Network> {
    let inputs = vec![Input::Variable, Input::Variable, Input::Strided, Input::Constant];
    let losses = vec![Loss::Sum, Loss::CrossEntropy, Loss::SquaredError, Loss::LogSumExp, Loss::OneOfSeveral];
    (
        (0..1000u64, prop::sample::select(precisions), 2..5usize, 3..7usize),
        (prop::sample::select(inputs), prop::bool::weighted(0.9), prop::bool::weighted(0.2)),
        pieces(2),
        prop::sample::select(losses),
    )
        .prop_map(|((seed, precision, batch, width), (input, training, expanded), pieces, loss)| {
            Network { seed, precision, batch, width, input, training, expanded, pieces, loss }
        })
}
