//! Choosing elements by index, and adding at an index: each is the derivative of the other.
//!
//! An index is a constant of dtype i64. One that is negative or beyond its axis is found when the operation runs, and
//! is the tape's failure then: the message names the element.

use limpid_tensor::{Inferred, Meta, Result, Tensor, infer_gather};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::var::Var;

/// `y[.., i, ..] = x[.., index[.., i, ..], ..]` along an axis. Operands: x, index. An element of x that was chosen
/// several times takes the sum of those cotangents: `x̄ = scatter_add(0, index, ȳ)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gather {
    /// The axis along which elements are chosen.
    pub axis: usize,
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn attributes(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_gather(x[0], self.axis, x[1])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].gather(self.axis as isize, x[1])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[1])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let by_x = at.wants(0).then(|| zeros_like(at.x(0)).scatter_add(self.axis as isize, at.x(1), at.g()));
        [by_x, None].into_iter().collect()
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.dx(0).map(|dx| dx.gather(self.axis as isize, at.x(1)))
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// A copy of `base` with `src[.., i, ..]` added at `index[.., i, ..]` along an axis. Operands: base, index, src.
/// `base̅ = ȳ`, and each source element takes the cotangent of where it went: `src̅ = gather(ȳ, index)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScatterAdd {
    /// The axis along which the index says where to add.
    pub axis: usize,
}

impl Op for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn attributes(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let (base, index, src) = (x[0], x[1], x[2]);
        infer_gather(base, self.axis, index)
            .map_err(|message| message.replacen("gather", "scatter_add", 1))?;
        if index.shape != src.shape {
            return Err(format!(
                "scatter_add: index {} and source {} differ in shape",
                index.shape, src.shape
            ));
        }
        if base.dtype != src.dtype {
            return Err(format!("scatter_add: base is {} and source is {}", base.dtype, src.dtype));
        }
        Ok(base.clone())
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].scatter_add(self.axis as isize, x[1], x[2])
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        Needs::inputs(&[1]).when(tracked[2])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let by_base = at.wants(0).then(|| at.g());
        let by_src = at.wants(2).then(|| at.g().gather(self.axis as isize, at.x(1)));
        [by_base, None, by_src].into_iter().collect()
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let Some(dsrc) = at.dx(2) else { return at.dx(0) };
        let dbase = at.dx(0).unwrap_or_else(|| zeros_like(at.x(0)));
        Some(dbase.scatter_add(self.axis as isize, at.x(1), dsrc))
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        x[2].shape.elements() as u64
    }
}

fn zeros_like(x: Var<'_>) -> Var<'_> {
    x.fill(0.0).expand(x.shape())
}

impl<'t> Var<'t> {
    /// Elements chosen along an axis, which may count from the end: `y[.., i, ..] = x[.., index[.., i, ..], ..]`.
    /// The index (i64) has this value's rank and, but for the axis, its shape; the result has the index's shape.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0], [2, 2]));
    /// let label = tape.constant(&Tensor::from_vec(vec![1i64, 0], [2, 1]));
    /// assert_eq!(x.gather(1, label).value()?.to_vec::<f64>()?, [2.0, 3.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the index is not i64, or differs from this value's shape on another axis.
    #[track_caller]
    pub fn gather(self, axis: isize, index: Var<'t>) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.tape().record(Gather { axis }, &[self, index])
    }

    /// A copy with `src[.., i, ..]` added at `index[.., i, ..]` along an axis, which may count from the end. The index
    /// (i64) and `src` have one shape: this value's, but for the axis. Where an index occurs more than once everything
    /// is added, in order of `i`.
    ///
    /// # Panics
    /// If shapes or dtypes do not fit.
    #[track_caller]
    pub fn scatter_add(self, axis: isize, index: Var<'t>, src: Var<'t>) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.tape().record(ScatterAdd { axis }, &[self, index, src])
    }

    /// The slices at the given positions along an axis, which may count from the end. The index (i64) has one axis;
    /// it is repeated over the others as a view.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let table = tape.variable(&Tensor::eye(3, DType::F64));
    /// let tokens = tape.constant(&Tensor::from_vec(vec![2i64, 0, 2, 2], [4]));
    /// assert_eq!(table.index_select(0, tokens).shape().to_string(), "[4, 3]");
    /// ```
    ///
    /// # Panics
    /// If the index is not i64 with one axis.
    #[track_caller]
    pub fn index_select(self, axis: isize, index: Var<'t>) -> Var<'t> {
        let (shape, positions) = (self.shape(), index.shape());
        let axis = shape.axis(axis);
        assert_eq!(positions.len(), 1, "index_select: the index must have one axis, found {positions}");
        let all_but_axis: Vec<usize> = (0..shape.len()).filter(|&a| a != axis).collect();
        let chosen = shape.with(axis, positions[0]);
        self.gather(axis as isize, index.reshape(chosen.with_ones(&all_but_axis)).expand(chosen))
    }
}
