//! What trains: a step of the two-moons experiment, a block of every variant, and one connection by itself.

use limpid_autograd::{Gradients, Replay, Replayed, Tape, Var};
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Optimizer, Sgd};
use limpid_nn::residual::{Mhc, Residual, Start, Variant, VariantConfig};
use limpid_nn::{Activation, Init, Mlp, MlpConfig, Module, Parameters, gradient_norms};
use limpid_tensor::{DType, Tensor};

use crate::Failure;
use crate::numbers::spread;

/// A network that learns one batch, as the two-moons experiment does: SGD with momentum 0.9, the norm of every gradient
/// written down at each step, and the global norm limited to 1, here by the optimiser.
pub struct Training {
    model: Mlp,
    optimizer: Sgd,
    tape: Tape,
    replay: Option<Replay>,
    features: Tensor,
    labels: Tensor,
    /// The loss and the norms of the last step.
    written_down: (f64, Vec<f64>),
}

impl Training {
    /// `depth` linear layers of this width with ReLU, joined by this variant, and a batch of so many points. The weights
    /// of the linear layers are [`spread`] over ±1/√in, labelled by layer.
    ///
    /// # Errors
    /// If the variant does not go with this size.
    pub fn new(variant: Variant, depth: usize, width: usize, batch: usize) -> Result<Training, Failure> {
        let config = MlpConfig { depth, width, ..MlpConfig::default() };
        let mut model = Mlp::of_variant(&Init::new(0), config, variant, &VariantConfig::default())?;
        model.visit_mut(&mut |p| {
            let parts: Vec<&str> = p.path().split('.').collect();
            let (layer, label) = match parts[..] {
                ["layers", layer, "weight"] => (layer, 0),
                ["layers", layer, "bias"] => (layer, 1000),
                _ => return,
            };
            let layer: u32 = layer.parse().expect("layers are numbered");
            let inputs = if layer == 0 { config.inputs } else { width };
            let bound = 1.0 / (inputs as f64).sqrt();
            let value = spread(&p.meta().shape, -bound, bound, layer + label);
            p.set_value(value);
        });
        Ok(Training {
            model,
            optimizer: Sgd::new().with_momentum(0.9).with_max_norm(1.0),
            tape: Tape::new(),
            replay: None,
            features: spread(&[batch, 2], -2.0, 2.0, 2000),
            labels: Tensor::from_vec((0..batch as i64).map(|i| i % 2).collect(), [batch]),
            written_down: (0.0, Vec::new()),
        })
    }

    /// Forward pass, loss, backward pass, norms, clipping and update. Returns the loss and the global norm.
    ///
    /// # Errors
    /// If something could not be computed, or is not finite.
    pub fn step(&mut self) -> Result<[f64; 2], Failure> {
        self.tape.clear(0);
        let [_, _, loss] = self.record();
        let value = loss.item()?;
        let gradients = self.tape.backward(loss)?;
        self.tape.clear(0);
        self.learn(value, gradients)
    }

    /// The same step, of which the tape is written once and then replayed.
    ///
    /// # Errors
    /// If something could not be computed, or is not finite.
    pub fn replayed_step(&mut self) -> Result<[f64; 2], Failure> {
        if self.replay.is_none() {
            self.tape.clear(0);
            let [features, labels, loss] = self.record();
            self.replay = Some(self.tape.replay(&[features, labels], loss, &[])?);
            self.tape.clear(0);
        }
        let replay = self.replay.as_mut().expect("made above");
        let model = &self.model;
        let Replayed { loss, gradients, .. } = replay
            .run(&[&self.features, &self.labels], |give| model.visit(&mut |p| give(p.id(), p.value())))?;
        self.learn(loss.item()?, gradients)
    }

    /// Features, labels and the loss.
    fn record(&self) -> [Var<'_>; 3] {
        let (features, labels) = (self.tape.constant(&self.features), self.tape.constant(&self.labels));
        let logits = self.model.forward(features);
        [features, labels, self.tape.scope("loss", || cross_entropy(logits, labels, Reduction::Mean))]
    }

    fn learn(&mut self, value: f64, gradients: Gradients) -> Result<[f64; 2], Failure> {
        let norms = gradient_norms(&self.model, &gradients)?.into_iter().map(|(_, norm)| norm).collect();
        self.optimizer.step(&mut self.model, &gradients, 1e-4)?;
        self.written_down = (value, norms);
        Ok([value, self.optimizer.norm().expect("it limits the norm").item()?])
    }
}

/// One block of a variant: the network of three layers without its optimiser.
pub struct Block {
    model: Mlp,
    tape: Tape,
    x: Tensor,
}

impl Block {
    /// A block of 64 channels, between its first and its last layer, and a batch of 128 points.
    ///
    /// # Errors
    /// If the variant does not go with this size.
    pub fn new(variant: Variant) -> Result<Block, Failure> {
        let config = MlpConfig { depth: 3, ..MlpConfig::default() };
        let model = Mlp::of_variant(&Init::new(0), config, variant, &VariantConfig::default())?;
        Ok(Block { model, tape: Tape::new(), x: spread(&[128, 2], -2.0, 2.0, 0) })
    }

    /// Forward and backward.
    ///
    /// # Errors
    /// If something could not be computed.
    pub fn differentiate(&mut self) -> Result<(), Failure> {
        self.tape.clear(0);
        let y = self.model.forward(self.tape.constant(&self.x));
        self.tape.backward((y * y).sum(&[]))?;
        Ok(())
    }
}

/// The mHC connection around a branch that does nothing: read, Sinkhorn, mix and write alone.
pub struct Connected {
    block: Residual<Mhc, Activation>,
    tape: Tape,
    x: Tensor,
    cotangent: Tensor,
}

impl Connected {
    /// `tokens` states of four streams of `channels` channels. α is 1, biases are 0, and φ is [`spread`] over ±0.035.
    pub fn new(tokens: usize, channels: usize) -> Connected {
        const STREAMS: usize = 4;
        let mut mhc = Mhc::new(&Init::new(0), channels, STREAMS, 0, Start::default());
        let mut label = 0;
        mhc.visit_mut(&mut |p| {
            let shape = p.meta().shape;
            let value = match p.path().rsplit('.').next() {
                Some("phi") => {
                    label += 1;
                    spread(&shape, -0.035, 0.035, label)
                }
                Some("alpha") => Tensor::ones(shape, DType::F32),
                _ => Tensor::zeros(shape, DType::F32),
            };
            p.set_value(value);
        });
        let shape = [tokens, STREAMS, channels];
        Connected {
            block: Residual { connection: mhc, branch: Activation::Identity },
            tape: Tape::new(),
            x: spread(&shape, -1.0, 1.0, 10),
            cotangent: spread(&shape, -1.0, 1.0, 11),
        }
    }

    /// Forward and backward: the new state, and the gradient by the old.
    ///
    /// # Errors
    /// If something could not be computed.
    pub fn differentiate(&mut self) -> Result<[Tensor; 2], Failure> {
        self.tape.clear(0);
        let x = self.tape.variable(&self.x);
        let y = self.block.forward(x);
        let result = y.value()?;
        let gradients = self.tape.backward_from(y, &self.cotangent)?;
        Ok([result, gradients.of(x).expect("the state is read").clone()])
    }
}
