//! Random values, and dropout.

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Device, Inferred, Meta, Result, Shape, Tensor};

use crate::op::{Derivative, Needs, Op, Purity};
use crate::ops::elementwise::where_;
use crate::tape::Tape;
use crate::var::Var;

/// Random values. The operation carries its key, so that computing it again draws the same numbers: a mask need not
/// be kept for the backward pass.
#[derive(Clone, PartialEq, Debug)]
pub struct Random {
    /// What they look like.
    pub distribution: Distribution,
    /// Their shape and dtype.
    pub meta: Meta,
    /// Which they are.
    pub key: Key,
    /// Where they are drawn.
    pub device: Device,
}

impl Op for Random {
    fn name(&self) -> &'static str {
        self.distribution.name()
    }

    fn attributes(&self) -> String {
        match self.distribution {
            Distribution::Uniform { low, high } => format!("{low}..{high}"),
            Distribution::Normal { mean, std } => format!("mean={mean} std={std}"),
            Distribution::TruncatedNormal { mean, std, low, high } => {
                format!("mean={mean} std={std} in {low}..={high}")
            }
            Distribution::Bernoulli { p } => format!("p={p}"),
            _ => String::new(),
        }
    }

    fn infer(&self, _x: &[&Meta]) -> Inferred {
        self.distribution.infer(&self.meta.shape, self.meta.dtype)
    }

    fn forward(&self, _x: &[&Tensor]) -> Result<Tensor> {
        self.device.backend().random(self.distribution, &self.meta.shape, self.meta.dtype, self.key)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn purity(&self) -> Purity {
        Purity::Rng
    }

    fn derivative(&self) -> Derivative {
        Derivative::Stops
    }
}

impl Tape {
    /// Random values under the [next key](Tape::next_key), drawn on the tape's device. See [`Distribution`].
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, rng::Distribution};
    /// let draw = |seed| {
    ///     let tape = Tape::new().with_seed(seed);
    ///     let x = tape.random(Distribution::Normal { mean: 0.0, std: 1.0 }, [3], DType::F64);
    ///     x.value().unwrap().to_vec::<f64>().unwrap()
    /// };
    /// assert_eq!(draw(1), draw(1));
    /// assert_ne!(draw(1), draw(2));
    /// ```
    ///
    /// # Panics
    /// If the distribution's parameters make no sense, or it is not defined for the dtype or the shape.
    #[track_caller]
    pub fn random(&self, distribution: Distribution, shape: impl Into<Shape>, dtype: DType) -> Var<'_> {
        let meta = Meta::new(shape, dtype);
        let (key, device) = (self.next_key(), self.device().clone());
        self.record(Random { distribution, meta, key, device }, &[])
    }
}

impl<'t> Var<'t> {
    /// On a tape in training mode: each element is 0 with probability `p`, else divided by 1 − `p`, so that its
    /// expectation stays; the gradient takes the same mask. In evaluation mode, or if `p` is 0: this value itself, and
    /// nothing is drawn. If `p` is 1, zeros.
    ///
    /// N. Srivastava et al., *Dropout: a simple way to prevent neural networks from overfitting* (JMLR 15, 2014),
    /// scaled in training instead of in evaluation.
    ///
    /// # Panics
    /// If `p` is outside `0..=1`.
    #[track_caller]
    pub fn dropout(self, p: f64) -> Var<'t> {
        assert!((0.0..=1.0).contains(&p), "dropout: {p} is not a probability");
        if p == 0.0 || !self.tape().is_training() {
            return self;
        }
        // Where nothing is kept the scale does not matter, as long as 0 times it is 0 in the derivative.
        let scale = if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
        let kept = self.tape().random(Distribution::Bernoulli { p: 1.0 - p }, self.shape(), DType::Bool);
        where_(kept, self * scale, self.fill(0.0))
    }
}
