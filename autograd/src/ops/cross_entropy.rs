//! Cross-entropy of logits against class labels, and its derivative.

use limpid_tensor::{DType, Fused, Inferred, Meta, Result, Tensor};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::ops::fused;
use crate::ops::softmax::row_sum;
use crate::var::Var;

/// `y = −ln softmax(x)[label]` per row: logits x `[N, C]`, labels i64 `[N]` → losses `[N]`.
///
/// `x̄ = ȳ·(softmax(x) − onehot(label))`; the labels are constants.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CrossEntropy;

/// The vjp of [`CrossEntropy`]: logits x, labels and ȳ → x̄.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CrossEntropyBackward;

/// `softmax(x) − onehot(label)`: the gradient of each row's loss.
fn gradient<'t>(x: Var<'t>, labels: Var<'t>) -> Var<'t> {
    let label = labels.unsqueeze(1);
    x.softmax(1).scatter_add(1, label, x.fill(-1.0).expand(label.shape()))
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (logits, labels) = (x[0], x[1]);
        if !logits.dtype.is_float() || labels.dtype != DType::I64 {
            return Err(format!(
                "logits must be floats and labels i64, found {} and {}",
                logits.dtype, labels.dtype
            ));
        }
        match (&logits.shape[..], &labels.shape[..]) {
            (&[n, classes], &[rows]) if n == rows && classes > 0 => Ok(Meta::new([n], logits.dtype)),
            _ => Err(format!(
                "expected logits [N, C] and labels [N], found {} and {}",
                logits.shape, labels.shape
            )),
        }
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::CrossEntropy, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g().tape().record(CrossEntropyBackward, &[at.x(0), at.x(1), at.g()]))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| row_sum(dx * gradient(at.x(0), at.x(1))).squeeze(1))
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(-x[0].log_softmax(1).gather(1, x[1].unsqueeze(1)).squeeze(1))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        4 * x[0].shape.elements() as u64
    }
}

impl Op for CrossEntropyBackward {
    fn name(&self) -> &'static str {
        "cross_entropy_backward"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let losses = CrossEntropy.infer(x)?;
        if *x[2] != losses {
            return Err(format!("expected the cotangent {losses} of the losses, found {}", x[2]));
        }
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::CrossEntropyBackward, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1, 2])
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(x[2].unsqueeze(1) * gradient(x[0], x[1]))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        6 * x[0].shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// `−ln softmax(x)[label]` for each row: logits `[N, C]`, labels i64 `[N]` → losses `[N]`. Labels are constants. A
    /// label outside `0..C` is an error of the tape, which `backward` and `value` return.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let logits = tape.variable(&Tensor::zeros([1, 4], DType::F64));
    /// let labels = tape.constant(&Tensor::from_vec(vec![2i64], [1]));
    /// let loss = logits.cross_entropy(labels).sum(&[]);
    /// assert_eq!(loss.item().unwrap(), 4f64.ln());
    /// let gradients = tape.backward(loss).unwrap();
    /// assert_eq!(gradients.of(logits).unwrap().to_vec::<f64>().unwrap(), [0.25, 0.25, -0.75, 0.25]);
    /// ```
    ///
    /// # Panics
    /// If the shapes or dtypes are not these, or there are no classes.
    #[track_caller]
    pub fn cross_entropy(self, labels: Var<'t>) -> Var<'t> {
        self.tape().record(CrossEntropy, &[self, labels])
    }
}
