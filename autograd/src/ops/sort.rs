//! Sorting: the order is a constant, and values follow it as by [`gather`](Var::gather).

use limpid_tensor::{DType, Inferred, Meta, Result, Tensor};

use crate::op::{Derivative, Needs, Op};
use crate::var::Var;

/// The indices (i64) that sort along an axis. They change only where two elements are equal, so no gradient passes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ArgSort {
    /// The axis.
    pub axis: usize,
    /// Whether the largest comes first.
    pub descending: bool,
}

impl Op for ArgSort {
    fn name(&self) -> &'static str {
        "argsort"
    }

    fn attributes(&self) -> String {
        format!("axis={}{}", self.axis, if self.descending { " descending" } else { "" })
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(Meta { shape: x[0].shape.clone(), dtype: DType::I64 })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].argsort(self.axis as isize, self.descending)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn derivative(&self) -> Derivative {
        Derivative::Stops
    }

    /// The order.
    fn branches(&self, _x: &[&Tensor], y: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(y.clone()))
    }

    /// Comparisons: n·⌈log₂ n⌉ for each row of n.
    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        let n = x[0].shape[self.axis].max(1);
        x[0].shape.elements() as u64 * u64::from(n.next_power_of_two().ilog2())
    }
}

impl<'t> Var<'t> {
    /// The indices (i64) that sort along an axis, which may count from the end. Equal elements keep their order, and
    /// NaN comes last, whichever way is sorted.
    #[track_caller]
    pub fn argsort(self, axis: isize, descending: bool) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.tape().record(ArgSort { axis, descending }, &[self])
    }

    /// The elements in order along an axis, and the indices (i64) they came from, as of [`argsort`](Var::argsort).
    /// Each element's gradient goes back to where it came from.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![0.5f64, f64::NAN, -2.0, 4.0], [4]));
    /// let (values, indices) = x.sort(0, true);
    /// assert_eq!(indices.value()?.to_vec::<i64>()?, [3, 0, 2, 1]);
    /// assert_eq!(values.value()?.to_vec::<f64>()?[..3], [4.0, 0.5, -2.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn sort(self, axis: isize, descending: bool) -> (Var<'t>, Var<'t>) {
        let indices = self.argsort(axis, descending);
        (self.gather(axis, indices), indices)
    }

    /// The `k` largest (or smallest) elements along an axis, in order from the most extreme, and their indices (i64).
    /// Of equal elements the first comes first; NaN is taken only when nothing else is left.
    ///
    /// # Panics
    /// If there are fewer than `k` elements along the axis.
    #[track_caller]
    pub fn topk(self, k: usize, axis: isize, largest: bool) -> (Var<'t>, Var<'t>) {
        let shape = self.shape();
        let n = shape[shape.axis(axis)];
        assert!(k <= n, "topk: k = {k} is more than the {n} elements along axis {axis} of {shape}");
        let indices = self.argsort(axis, largest).slice(axis, 0, k, 1);
        (self.gather(axis, indices), indices)
    }
}
