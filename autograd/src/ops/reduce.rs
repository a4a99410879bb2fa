//! Sums, products, extremes and running sums along axes.

use limpid_tensor::{DType, Inferred, Map, Meta, Reduce, Result, Tensor};
use smallvec::SmallVec;

use crate::op::{Cotangents, Derivative, Needs, Op, Pullback, Pushforward};
use crate::ops::elementwise::where_;
use crate::ops::movement::concat;
use crate::var::Var;

/// A reduction over some axes, which stay in the shape with size 1. See [`Reduce`].
///
/// - sum: every summand takes the cotangent.
/// - max, min: the elements that equal the extreme share the cotangent evenly.
/// - prod: by its expansion, a tree of products, exact where factors are 0.
/// - argmax: an index; no gradient.
#[derive(Clone, PartialEq, Debug)]
pub struct Reduction {
    kind: Reduce,
    axes: SmallVec<[usize; 6]>,
}

impl Reduction {
    /// What each element's change contributes: 1/k for the k elements that share the extreme, else 0.
    fn share<'t>(&self, x: Var<'t>, y: Var<'t>) -> Var<'t> {
        let hits = x.equal(y).cast(x.dtype());
        hits / hits.reduce_axes(Reduce::Sum, &self.axes)
    }
}

impl Op for Reduction {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn attributes(&self) -> String {
        format!("axes={:?}", self.axes.as_slice())
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        self.kind.infer(x[0], &self.axes)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].device().backend().reduce(self.kind, x[0], &self.axes)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        match self.kind {
            Reduce::Max | Reduce::Min => Needs::inputs(&[0]).or(Needs::OUTPUT),
            Reduce::Prod => Needs::inputs(&[0]),
            _ => Needs::NOTHING,
        }
    }

    fn derivative(&self) -> Derivative {
        if self.kind == Reduce::ArgMax { Derivative::Stops } else { Derivative::Exists }
    }

    /// Which elements are the extreme.
    fn branches(&self, x: &[&Tensor], y: &Tensor) -> Result<Option<Tensor>> {
        match self.kind {
            Reduce::Max | Reduce::Min => Tensor::map(Map::Eq, &[x[0], y]).map(Some),
            Reduce::ArgMax => Ok(Some(y.clone())),
            _ => Ok(None),
        }
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        match self.kind {
            Reduce::Sum => at.each(|i| at.g().expand(at.x(i).shape())),
            Reduce::Max | Reduce::Min => at.each(|i| at.g() * self.share(at.x(i), at.y())),
            _ => at.through(product_tree(at.x(0), &self.axes)),
        }
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let sum = |v: Var<'t>| v.reduce_axes(Reduce::Sum, &self.axes);
        match self.kind {
            Reduce::Sum => at.sum(|_, dx| sum(dx)),
            Reduce::Max | Reduce::Min => at.sum(|i, dx| sum(dx * self.share(at.x(i), at.y()))),
            _ => at.through(product_tree(at.x(0), &self.axes)),
        }
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        x[0].shape.elements() as u64
    }
}

/// The product along axes as products of halves: its derivative needs no division, so factors may be 0.
fn product_tree<'t>(x: Var<'t>, axes: &[usize]) -> Var<'t> {
    let mut y = x;
    for &axis in axes {
        if y.shape()[axis] == 0 {
            y = y.fill(1.0).expand(y.shape().with(axis, 1));
        }
        while y.shape()[axis] > 1 {
            let n = y.shape()[axis];
            let (a, half) = (axis as isize, n / 2);
            let product = y.slice(a, 0, half, 1) * y.slice(a, half, 2 * half, 1);
            y = if n.is_multiple_of(2) { product } else { concat(&[product, y.slice(a, n - 1, n, 1)], a) };
        }
    }
    y
}

/// Running sums along an axis: the cotangent is summed from the other end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CumSum {
    /// The axis.
    pub axis: usize,
}

impl Op for CumSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn attributes(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        if x[0].dtype == DType::Bool {
            return Err("cumsum is not defined for bool; cast first".into());
        }
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].cumsum(self.axis as isize)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let axis = self.axis as isize;
        at.each(|_| at.g().flip(axis).cumsum(axis).flip(axis))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx.cumsum(self.axis as isize))
    }
}

/// `ln Σ eˣ` over axes, which stay with size 1: `x̄ = ȳ·exp(x − y)`, which sums to ȳ.
#[derive(Clone, PartialEq, Debug)]
pub struct LogSumExp {
    axes: SmallVec<[usize; 6]>,
}

impl Op for LogSumExp {
    fn name(&self) -> &'static str {
        "logsumexp"
    }

    fn attributes(&self) -> String {
        format!("axes={:?}", self.axes.as_slice())
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        if !x[0].dtype.is_float() {
            return Err(format!("logsumexp is not defined for {}", x[0].dtype));
        }
        Reduce::Max.infer(x[0], &self.axes).map_err(|message| message.replacen("max", "logsumexp", 1))
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0]).or(Needs::OUTPUT)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| at.g() * (at.x(i) - at.y()).exp())
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| (dx * (at.x(i) - at.y()).exp()).reduce_axes(Reduce::Sum, &self.axes))
    }

    /// The largest element is taken out first, so that no exponential overflows. An infinite one is not: ∞ − ∞.
    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let largest = x[0].detach().reduce_axes(Reduce::Max, &self.axes);
        let zero = largest.fill(0.0);
        let shift = where_(largest.abs().equal(largest.fill(f64::INFINITY)), zero, largest);
        Some((x[0] - shift).exp().reduce_axes(Reduce::Sum, &self.axes).log() + shift)
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        4 * x[0].shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// A reduction over axes given as positions, which stay with size 1.
    #[track_caller]
    pub(crate) fn reduce_axes(self, kind: Reduce, axes: &[usize]) -> Var<'t> {
        self.tape().record(Reduction { kind, axes: SmallVec::from_slice(axes) }, &[self])
    }

    /// Reduces, and leaves the axes out of the shape.
    #[track_caller]
    fn reduce(self, kind: Reduce, axes: &[isize]) -> Var<'t> {
        let shape = self.shape();
        let axes = shape.axes(axes);
        self.reduce_axes(kind, &axes).reshape(shape.without(&axes))
    }

    /// Puts reduced axes back with size 1, so that a statistic broadcasts against what it was taken of.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::arange(0.0, 6.0, 1.0, DType::F64).reshape([2, 3]).unwrap());
    /// let centred = x - x.mean(&[1]).keep(&[1], &x.shape());
    /// assert_eq!(centred.value().unwrap().to_vec::<f64>().unwrap(), [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]);
    /// ```
    #[track_caller]
    pub fn keep(self, axes: &[isize], of: &limpid_tensor::Shape) -> Var<'t> {
        self.reshape(of.with_ones(&of.axes(axes)))
    }

    /// The sum over some axes (none given: all), which are gone from the result. Axes may count from the end.
    #[track_caller]
    pub fn sum(self, axes: &[isize]) -> Var<'t> {
        self.reduce(Reduce::Sum, axes)
    }

    /// The mean over some axes (none given: all).
    #[track_caller]
    pub fn mean(self, axes: &[isize]) -> Var<'t> {
        let shape = self.shape();
        let n: usize = shape.axes(axes).iter().map(|&axis| shape[axis]).product();
        self.sum(axes) / n as f64
    }

    /// The product over some axes (none given: all).
    #[track_caller]
    pub fn prod(self, axes: &[isize]) -> Var<'t> {
        let shape = self.shape();
        let resolved = shape.axes(axes);
        if self.dtype().is_float() && resolved.iter().all(|&axis| shape[axis] == 1) {
            // One factor is its own product, and the derivative reads nothing.
            return self.reshape(shape.without(&resolved));
        }
        if self.dtype().is_float() && resolved.iter().any(|&axis| shape[axis] == 0) {
            // So it is with none.
            return self.sum(axes) + 1.0;
        }
        self.reduce(Reduce::Prod, axes)
    }

    /// The largest element over some axes (none given: all); ties share the gradient evenly.
    #[track_caller]
    pub fn max(self, axes: &[isize]) -> Var<'t> {
        self.reduce(Reduce::Max, axes)
    }

    /// The smallest element over some axes (none given: all); ties share the gradient evenly.
    #[track_caller]
    pub fn min(self, axes: &[isize]) -> Var<'t> {
        self.reduce(Reduce::Min, axes)
    }

    /// The index (i64) of the first largest element along an axis.
    #[track_caller]
    pub fn argmax(self, axis: isize) -> Var<'t> {
        self.reduce(Reduce::ArgMax, &[axis])
    }

    /// `ln Σ eˣ` over some axes (none given: all), without overflow.
    #[track_caller]
    pub fn logsumexp(self, axes: &[isize]) -> Var<'t> {
        let shape = self.shape();
        let axes = shape.axes(axes);
        let kept = self.tape().record(LogSumExp { axes: axes.clone() }, &[self]);
        kept.reshape(shape.without(&axes))
    }

    /// The variance over some axes (none given: all), in two passes; divided by n − `correction`.
    #[track_caller]
    pub fn var(self, axes: &[isize], correction: usize) -> Var<'t> {
        let shape = self.shape();
        let n: usize = shape.axes(axes).iter().map(|&axis| shape[axis]).product();
        let centred = self - self.mean(axes).keep(axes, &shape);
        (centred * centred).sum(axes) / (n as f64 - correction as f64)
    }

    /// Running sums along an axis, which may count from the end.
    #[track_caller]
    pub fn cumsum(self, axis: isize) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.tape().record(CumSum { axis }, &[self])
    }
}
