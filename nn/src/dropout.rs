//! Dropout.

use limpid_autograd::Var;

use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// While training, zeroes each element with probability `p` and divides the others by `1 − p`; in evaluation, nothing.
/// See [`Var::dropout`].
///
/// The mask is a function of the tape's seed and step, the scope and the ordinal of the draw in it. N. Srivastava et
/// al., JMLR 15 (2014).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// A layer that drops each element with probability `p`.
    ///
    /// # Panics
    /// If `p` is outside `0..=1`.
    #[track_caller]
    pub fn new(p: f64) -> Dropout {
        assert!((0.0..=1.0).contains(&p), "dropout: {p} is not a probability");
        Dropout { p }
    }
}

impl Parameters for Dropout {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

/// Any shape, any float dtype.
impl Module for Dropout {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        x.dropout(self.p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_autograd::Tape;
    use limpid_tensor::{DType, Tensor};

    #[test]
    fn it_drops_while_training_and_keeps_the_mean() {
        let ones = Tensor::ones([100, 100], DType::F64);
        let layer = Dropout::new(0.25);
        let tape = Tape::new();
        let y = layer.forward(tape.constant(&ones)).value().unwrap().to_vec::<f64>().unwrap();
        assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64;
        // Five standard deviations of a binomial count.
        assert!((dropped - 2500.0).abs() < 5.0 * (10_000.0f64 * 0.25 * 0.75).sqrt(), "{dropped}");
        let evaluation = Tape::inference();
        let y = layer.forward(evaluation.constant(&ones)).value().unwrap().to_vec::<f64>().unwrap();
        assert_eq!(y, ones.to_vec::<f64>().unwrap());
    }
}
