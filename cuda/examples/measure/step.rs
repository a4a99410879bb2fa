//! A training step of the two-moons experiment: forward pass, loss, backward pass and update, for a batch of 128 points.
//! Nothing is read in between, so that it can be captured. Steps one by one are bound by the host that queues them.

use limpid_autograd::Tape;
use limpid_cuda::Cuda;
use limpid_nn::data::two_moons;
use limpid_nn::losses::{Reduction, cross_entropy};
use limpid_nn::optim::{Optimizer, Sgd};
use limpid_nn::residual::{Variant, VariantConfig};
use limpid_nn::{Init, Mlp, MlpConfig, Module, Parameters};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Device, Tensor};

use crate::clock::{Clock, Time};
use crate::report::{Goal, Rate, Row};

type Failure = Box<dyn std::error::Error>;

/// Rows of a batch.
const BATCH: usize = 128;

/// The step of each network of so many layers, one by one and as a graph, where the name is wanted.
pub fn rows(cuda: &'static Cuda, clock: &Clock, layers: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for variant in [Variant::Residual, Variant::Mhc] {
        for (how, captured) in [("one by one", false), ("as a graph", true)] {
            let name = format!("step of {layers} layers, {variant}, {how}");
            if !is_wanted(&name) {
                continue;
            }
            let time = time(cuda, clock, (variant, layers), captured);
            let measured = time.map(|time| (time, Rate::None)).map_err(|error| error.to_string());
            rows.push(Row { name, is_reference: false, goal: Goal::None, measured, library: None });
        }
    }
    rows
}

fn time(
    cuda: &'static Cuda,
    clock: &Clock,
    network: (Variant, usize),
    captured: bool,
) -> Result<Time, Failure> {
    let mut training = Training::new(network, &cuda.device())?;
    training.step()?;
    if !captured {
        return clock.time(|| training.step());
    }
    let (mut graph, ()) = cuda.capture(|| training.step())?;
    clock.time(|| graph.replay().map_err(Failure::from))
}

/// A network that learns one batch.
struct Training {
    model: Mlp,
    optimizer: Sgd,
    tape: Tape,
    features: Tensor,
    labels: Tensor,
}

impl Training {
    fn new((variant, depth): (Variant, usize), on: &Device) -> Result<Training, Failure> {
        let config = MlpConfig { depth, ..MlpConfig::default() };
        let mut model = Mlp::of_variant(&Init::new(0), config, variant, &VariantConfig::default())?;
        model.move_to(on)?;
        let data = two_moons(BATCH, 0.2, DType::F32, Key::new(0))?;
        Ok(Training {
            model,
            optimizer: Sgd::new().with_momentum(0.9),
            tape: Tape::new().with_device(on.clone()),
            features: data.features().to(on)?,
            labels: data.labels().to(on)?,
        })
    }

    fn step(&mut self) -> Result<(), Failure> {
        self.tape.clear(0);
        let logits = self.model.forward(self.tape.constant(&self.features));
        let loss = cross_entropy(logits, self.tape.constant(&self.labels), Reduction::Mean);
        let gradients = self.tape.backward(loss)?;
        self.tape.clear(0);
        self.optimizer.step(&mut self.model, &gradients, 0.1)?;
        Ok(())
    }
}
