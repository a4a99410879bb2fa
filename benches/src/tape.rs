//! What a tape costs by itself: the chain `h = h + x` with one element, where there is next to nothing to compute.

use limpid_autograd::{Result, Tape, Var};
use limpid_tensor::{DType, Tensor};

/// Nodes of a chain.
pub const NODES: usize = 10_000;

/// A tape that records the same chain again and again.
pub struct Chain {
    tape: Tape,
    x: Tensor,
}

impl Chain {
    /// A chain whose x is one f32.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Chain {
        Chain { tape: Tape::new(), x: Tensor::full([], 1e-4, DType::F32) }
    }

    /// Records the chain.
    ///
    /// # Errors
    /// If something could not be computed.
    pub fn record(&mut self) -> Result<f64> {
        self.tape.clear(0);
        chain(self.tape.variable(&self.x)).item()
    }

    /// Records the chain and differentiates it: h′ is the number of its nodes and one.
    ///
    /// # Errors
    /// If something could not be computed.
    pub fn differentiate(&mut self) -> Result<Tensor> {
        self.tape.clear(0);
        let x = self.tape.variable(&self.x);
        let gradients = self.tape.backward(chain(x))?;
        Ok(gradients.of(x).expect("the chain depends on x").clone())
    }
}

fn chain(x: Var<'_>) -> Var<'_> {
    (0..NODES).fold(x, |h, _| h + x)
}
