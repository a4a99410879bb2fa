//! Stochastic depth.

use limpid_autograd::Var;
use limpid_tensor::rng::Distribution;

use super::{Coefficient, Coefficients, Connection};
use crate::module::Parameters;
use crate::parameter::Parameter;

/// `x' = x + m/(1 − p)·F(x)`, where m, for each sample, is 0 with probability p and else 1: a = 1, b = m/(1 − p), A = 1. The
/// first axis of x counts the samples.
///
/// In evaluation b = 1, its expectation. The draw is a function of the tape's seed and step, the scope, and the ordinal
/// of the draw in it.
///
/// G. Huang et al., *Deep Networks with Stochastic Depth*, arXiv 1603.09382, scaled in training instead of in evaluation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DropPath {
    p: f64,
}

impl DropPath {
    /// The connection that drops its branch with probability `p`.
    ///
    /// # Panics
    /// If `p` is outside `0..=1`.
    #[track_caller]
    pub fn new(p: f64) -> DropPath {
        assert!((0.0..=1.0).contains(&p), "drop_path: {p} is not a probability");
        DropPath { p }
    }

    /// That of block `block`, counted from 1, of `blocks`: p grows with depth, to `p_max` in the last one.
    ///
    /// # Panics
    /// If `p_max` is outside `0..=1`, or there is no such block.
    #[track_caller]
    pub fn linear(block: usize, blocks: usize, p_max: f64) -> DropPath {
        assert!((1..=blocks).contains(&block), "drop_path: there is no block {block} among {blocks}");
        DropPath::new(block as f64 / blocks as f64 * p_max)
    }

    /// p.
    pub fn p(&self) -> f64 {
        self.p
    }
}

impl Parameters for DropPath {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

impl Connection for DropPath {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        let (tape, shape) = (x.tape(), x.shape());
        let write = if self.p == 0.0 || !tape.is_training() {
            Coefficient::Constant(1.0)
        } else if self.p == 1.0 {
            Coefficient::Constant(0.0)
        } else {
            assert!(!shape.is_empty(), "drop_path: the first axis counts samples, found shape {shape}");
            let kept = 1.0 - self.p;
            let others: Vec<usize> = (1..shape.len()).collect();
            let mask = tape.random(Distribution::Bernoulli { p: kept }, shape.with_ones(&others), x.dtype());
            Coefficient::Value(mask / kept)
        };
        Coefficients { read: Coefficient::Constant(1.0), mix: Coefficient::Constant(1.0), write }
    }
}
