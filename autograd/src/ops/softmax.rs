//! Softmax and its logarithm, and their derivatives.

use limpid_tensor::{Fused, Inferred, Meta, Reduce, Result, Tensor};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::ops::fused;
use crate::var::Var;

/// `y = exp(x − max x)/Σ exp(x − max x)` over the last axis: `x̄ = y ∘ (ȳ − Σ ȳ∘y)`.
///
/// An element of −∞ is masked: it is 0, and so is its gradient. A row of nothing but −∞ is NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Softmax;

/// `y = x − max x − ln Σ exp(x − max x)` over the last axis: `x̄ = ȳ − exp(y)·Σ ȳ`.
///
/// An element of −∞ stays −∞. A row of nothing but −∞ is NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LogSoftmax;

/// The vjp of [`Softmax`]: y and ȳ → x̄.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SoftmaxBackward;

/// The vjp of [`LogSoftmax`]: y and ȳ → x̄.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LogSoftmaxBackward;

/// The sum over the last axis, which stays with size 1.
pub(super) fn row_sum(v: Var<'_>) -> Var<'_> {
    v.reduce_axes(Reduce::Sum, &[v.shape().len() - 1])
}

/// The distance to the largest element of the row: no exponential of it overflows. The largest is a constant here,
/// because no function of these distances that softmax makes depends on it.
fn below_largest(x: Var<'_>) -> Var<'_> {
    x - x.detach().reduce_axes(Reduce::Max, &[x.shape().len() - 1])
}

/// What softmax does to metadata: nothing.
fn infer_rows(name: &str, x: &Meta) -> Inferred {
    if !x.dtype.is_float() {
        return Err(format!("{name} is not defined for {}", x.dtype));
    }
    match x.shape.last() {
        None => Err(format!("{name} needs an axis, found shape {}", x.shape)),
        Some(0) => Err(format!("{name} over the last axis of shape {}: there are no elements", x.shape)),
        Some(_) => Ok(x.clone()),
    }
}

/// What their derivatives do to metadata.
fn infer_pair(name: &str, x: &[&Meta]) -> Inferred {
    if x[0] != x[1] {
        return Err(format!("operands must agree in shape and dtype, found {} and {}", x[0], x[1]));
    }
    infer_rows(name, x[0])
}

impl Softmax {
    /// The product of the Jacobian `diag(y) − y·yᵀ`, which is symmetric, and `v`.
    fn times_jacobian<'t>(y: Var<'t>, v: Var<'t>) -> Var<'t> {
        y * (v - row_sum(v * y))
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_rows(self.name(), x[0])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::Softmax, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::OUTPUT
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g().tape().record(SoftmaxBackward, &[at.y(), at.g()]))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| Softmax::times_jacobian(at.y(), dx))
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let e = below_largest(x[0]).exp();
        Some(e / row_sum(e))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        5 * x[0].shape.elements() as u64
    }
}

impl Op for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "softmax_backward"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_pair(self.name(), x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::SoftmaxBackward, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1])
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(Softmax::times_jacobian(x[0], x[1]))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        4 * x[0].shape.elements() as u64
    }
}

impl Op for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_rows(self.name(), x[0])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::LogSoftmax, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::OUTPUT
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g().tape().record(LogSoftmaxBackward, &[at.y(), at.g()]))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx - row_sum(at.y().exp() * dx))
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let below = below_largest(x[0]);
        Some(below - row_sum(below.exp()).log())
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        5 * x[0].shape.elements() as u64
    }
}

impl Op for LogSoftmaxBackward {
    fn name(&self) -> &'static str {
        "log_softmax_backward"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_pair(self.name(), x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::LogSoftmaxBackward, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1])
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(x[1] - x[0].exp() * row_sum(x[1]))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        4 * x[0].shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// `exp(x)/Σ exp(x)` along an axis, which may count from the end; without overflow.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1e4f64, 1e4, f64::NEG_INFINITY], [3]));
    /// assert_eq!(x.softmax(-1).value().unwrap().to_vec::<f64>().unwrap(), [0.5, 0.5, 0.0]);
    /// ```
    ///
    /// # Panics
    /// If the axis is out of range or has no elements, or the dtype is not a float.
    #[track_caller]
    pub fn softmax(self, axis: isize) -> Var<'t> {
        self.along(axis, Softmax)
    }

    /// `x − ln Σ exp(x)` along an axis, which may count from the end; without overflow, and without the loss of
    /// precision that the logarithm of a softmax has.
    ///
    /// # Panics
    /// If the axis is out of range or has no elements, or the dtype is not a float.
    #[track_caller]
    pub fn log_softmax(self, axis: isize) -> Var<'t> {
        self.along(axis, LogSoftmax)
    }

    /// An operation over the last axis, applied along any.
    #[track_caller]
    fn along(self, axis: isize, op: impl Op) -> Var<'t> {
        let shape = self.shape();
        if shape.axis(axis) == shape.len() - 1 {
            return self.tape().record(op, &[self]);
        }
        self.tape().record(op, &[self.transpose(axis, -1)]).transpose(axis, -1)
    }
}
