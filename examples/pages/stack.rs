//! Which network do the pages look at? Blocks of one width, joined by a variant, and nothing else.

use limpid::Var;
use limpid::nn::residual::{Connection, Normed, Placement, Residual, Variant, VariantConfig, Wiring};
use limpid::nn::{Activation, Init, Initializer, Linear, Module};
use limpid::{DType, nn};

pub type Block = Residual<Box<dyn Connection>, Normed<Linear>>;

/// ```text
/// embedding → streams, if the variant has them → blocks → one value
/// ```
///
/// in f64, with `relu(W·x)` as the branch of every block.
pub struct Stack {
    pub enter: Option<Box<dyn Module>>,
    pub blocks: Vec<Block>,
    pub steps: usize,
    pub placement: Placement,
    pub leave: Option<Box<dyn Module>>,
}

impl Stack {
    pub fn new(
        variant: Variant,
        blocks: usize,
        channels: usize,
        weights: Initializer,
        config: &VariantConfig,
    ) -> nn::Result<Stack> {
        let init = Init::new(1).with_dtype(DType::F64);
        let wiring = variant.wiring(channels, blocks, config, |i| init.enter(i))?;
        let Wiring { enter, connections, steps, placement, gain, leave } = wiring;
        let block = |(i, connection): (usize, Box<dyn Connection>)| {
            let weights = weights.times(gain);
            let branch = Linear::with_initial(
                &init.enter(i),
                channels,
                channels,
                Activation::Relu,
                weights,
                Initializer::ZEROS,
            );
            Residual { connection, branch: Normed::new(&init.enter(i), channels, placement, branch) }
        };
        let blocks = (1..).zip(connections).map(block).collect();
        Ok(Stack { enter, blocks, steps, placement, leave })
    }

    /// The state in front of every block and behind the last, and what leaves.
    pub fn run<'t>(&self, x: Var<'t>) -> (Vec<Var<'t>>, Var<'t>) {
        let mut states = vec![self.enter.as_ref().map_or(x, |enter| enter.forward(x))];
        for block in (0..self.steps).flat_map(|_| &self.blocks) {
            states.push(block.forward(states[states.len() - 1]));
        }
        let last = states[states.len() - 1];
        let y = self.leave.as_ref().map_or(last, |leave| leave.forward(last));
        (states, y)
    }
}
