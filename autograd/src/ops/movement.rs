//! Moving elements without computing: reshape, permute, expand, slice, flip, and putting parts together.
//!
//! Each is linear and reads no value: its derivative is the movement back.

use limpid_tensor::{Inferred, Layout, Meta, Result, Shape, Tensor};
use smallvec::SmallVec;

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::var::Var;

/// A movement of elements. All but [`Place`](Movement::Place) are views.
#[derive(Clone, PartialEq, Debug)]
pub enum Movement {
    /// Another shape for the same elements in row-major order.
    Reshape(Shape),
    /// Axis `i` of the result is axis `order[i]`.
    Permute(SmallVec<[usize; 6]>),
    /// Repeats axes of size 1, and adds leading axes.
    Expand(Shape),
    /// Every `step`-th element of `start..end` along an axis.
    Slice {
        /// The axis.
        axis: usize,
        /// The first element.
        start: usize,
        /// One past the last.
        end: usize,
        /// The distance between two.
        step: usize,
    },
    /// The reverse of a slice: zeros of `size` along the axis, with the operand at `start, start + step, …`.
    Place {
        /// The axis.
        axis: usize,
        /// Where the operand's first element goes.
        start: usize,
        /// The distance between two.
        step: usize,
        /// The size of the result along the axis.
        size: usize,
    },
    /// An axis in reverse.
    Flip(usize),
}

impl Movement {
    /// The movement that carries a cotangent back to an operand of shape `x`.
    fn back<'t>(&self, g: Var<'t>, x: &Shape) -> Var<'t> {
        match *self {
            Movement::Reshape(_) => g.reshape(x),
            Movement::Permute(ref order) => {
                let mut inverse: SmallVec<[usize; 6]> = order.clone();
                for (to, &from) in order.iter().enumerate() {
                    inverse[from] = to;
                }
                g.permute(&inverse)
            }
            Movement::Expand(_) => g.sum_to(x),
            Movement::Slice { axis, start, step, .. } => {
                g.tape().record(Movement::Place { axis, start, step, size: x[axis] }, &[g])
            }
            Movement::Place { axis, start, step, .. } => {
                let end = start + x[axis].saturating_sub(1) * step + usize::from(x[axis] > 0);
                g.tape().record(Movement::Slice { axis, start, end, step }, &[g])
            }
            Movement::Flip(axis) => g.tape().record(Movement::Flip(axis), &[g]),
        }
    }

    fn result_shape(&self, x: &Shape) -> Result<Shape, String> {
        let layout = Layout::contiguous(x);
        match self {
            Movement::Reshape(shape) if shape.elements() != x.elements() => Err(format!(
                "reshape: {x} has {} elements and {shape} has {}",
                x.elements(),
                shape.elements()
            )),
            Movement::Reshape(shape) => Ok(shape.clone()),
            Movement::Permute(order) => {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if !sorted.iter().copied().eq(0..x.len()) {
                    return Err(format!(
                        "permute: {:?} is not a permutation of the axes of {x}",
                        order.as_slice()
                    ));
                }
                Ok(layout.permute(order).shape().clone())
            }
            Movement::Expand(shape) => match layout.broadcast(shape) {
                Some(_) => Ok(shape.clone()),
                None => Err(format!("expand: {x} does not broadcast to {shape}")),
            },
            &Movement::Slice { axis, start, end, step } => {
                if start > end || end > x[axis] || step == 0 {
                    return Err(format!("slice: {start}..{end} step {step} does not fit axis {axis} of {x}"));
                }
                Ok(x.with(axis, (end - start).div_ceil(step)))
            }
            &Movement::Place { axis, start, step, size } => {
                let end = start + x[axis].saturating_sub(1) * step + usize::from(x[axis] > 0);
                if step == 0 || end > size {
                    return Err(format!(
                        "place: {x} at {start} step {step} does not fit size {size} along axis {axis}"
                    ));
                }
                Ok(x.with(axis, size))
            }
            Movement::Flip(_) => Ok(x.clone()),
        }
    }
}

impl Op for Movement {
    fn name(&self) -> &'static str {
        match self {
            Movement::Reshape(_) => "reshape",
            Movement::Permute(_) => "permute",
            Movement::Expand(_) => "expand",
            Movement::Slice { .. } => "slice",
            Movement::Place { .. } => "place",
            Movement::Flip(_) => "flip",
        }
    }

    fn attributes(&self) -> String {
        match self {
            Movement::Reshape(_) | Movement::Expand(_) => String::new(),
            Movement::Permute(order) => format!("order={:?}", order.as_slice()),
            Movement::Slice { axis, start, end, step: 1 } => format!("axis={axis} {start}..{end}"),
            Movement::Slice { axis, start, end, step } => format!("axis={axis} {start}..{end} step {step}"),
            Movement::Place { axis, start, step, .. } => format!("axis={axis} at {start} step {step}"),
            Movement::Flip(axis) => format!("axis={axis}"),
        }
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(Meta { shape: self.result_shape(&x[0].shape)?, dtype: x[0].dtype })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        match self {
            Movement::Reshape(shape) => x[0].reshape(shape),
            Movement::Permute(order) => Ok(x[0].permute(order)),
            Movement::Expand(shape) => Ok(x[0].expand(shape)),
            &Movement::Slice { axis, start, end, step } => Ok(x[0].slice(axis, start, end, step)),
            &Movement::Place { axis, start, step, size } => {
                let shape = x[0].shape().with(axis, size);
                let n = x[0].shape()[axis];
                let end = start + n.saturating_sub(1) * step + usize::from(n > 0);
                let place = Layout::contiguous(&shape).slice(axis, start, end, step);
                Tensor::assemble(x[0].device(), shape, x[0].dtype(), &[(place, x[0])])
            }
            Movement::Flip(axis) => Ok(x[0].flip(*axis)),
        }
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| self.back(at.g(), &at.x(i).shape()))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|_, dx| dx.tape().record(self.clone(), &[dx]))
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// Operands one after another along an axis: each takes its own slice of the cotangent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Concat {
    fn offset_of(self, i: usize, size: impl Fn(usize) -> usize) -> usize {
        (0..i).map(size).sum()
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attributes(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let mut size = 0;
        for m in x {
            if m.dtype != x[0].dtype {
                return Err(format!(
                    "concat: operands must have one dtype, found {} and {}",
                    x[0].dtype, m.dtype
                ));
            }
            if m.shape.len() != x[0].shape.len()
                || m.shape.with(self.axis, 0) != x[0].shape.with(self.axis, 0)
            {
                return Err(format!(
                    "concat along axis {}: {} and {} differ on another axis",
                    self.axis, x[0].shape, m.shape
                ));
            }
            size += m.shape[self.axis];
        }
        Ok(Meta { shape: x[0].shape.with(self.axis, size), dtype: x[0].dtype })
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let size = |i: usize| x[i].shape()[self.axis];
        let shape = x[0].shape().with(self.axis, self.offset_of(x.len(), size));
        let whole = Layout::contiguous(&shape);
        let parts: SmallVec<[(Layout, &Tensor); 4]> = (0..x.len())
            .map(|i| {
                let start = self.offset_of(i, size);
                (whole.slice(self.axis, start, start + size(i), 1), x[i])
            })
            .collect();
        Tensor::assemble(x[0].device(), shape, x[0].dtype(), &parts)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let size = |i: usize| at.x(i).shape()[self.axis];
        at.each(|i| {
            let start = self.offset_of(i, size);
            at.g().slice(self.axis as isize, start, start + size(i), 1)
        })
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let tangents: SmallVec<[Var<'t>; 4]> = (0..at.arity())
            .map(|i| at.dx(i).unwrap_or_else(|| at.x(i).fill(0.0).expand(at.x(i).shape())))
            .collect();
        Some(at.y().tape().record(*self, &tangents))
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

/// Joins values along an existing axis, which may count from the end.
///
/// # Panics
/// If there are none, or they differ on another axis.
#[track_caller]
pub fn concat<'t>(parts: &[Var<'t>], axis: isize) -> Var<'t> {
    assert!(!parts.is_empty(), "concat: there is nothing to join");
    let axis = parts[0].shape().axis(axis);
    parts[0].tape().record(Concat { axis }, parts)
}

/// Joins values of one shape along a new axis.
///
/// # Panics
/// If there are none, or their shapes differ.
#[track_caller]
pub fn stack<'t>(parts: &[Var<'t>], axis: usize) -> Var<'t> {
    assert!(!parts.is_empty(), "stack: there is nothing to join");
    let parts: SmallVec<[Var<'t>; 4]> = parts.iter().map(|part| part.unsqueeze(axis)).collect();
    concat(&parts, axis as isize)
}

impl<'t> Var<'t> {
    #[track_caller]
    fn movement(self, movement: Movement) -> Var<'t> {
        self.tape().record(movement, &[self])
    }

    /// The same elements under another shape of as many.
    #[track_caller]
    pub fn reshape(self, shape: impl Into<Shape>) -> Var<'t> {
        let shape = shape.into();
        if self.shape() == shape { self } else { self.movement(Movement::Reshape(shape)) }
    }

    /// Joins the axes from `first` on into one.
    #[track_caller]
    pub fn flatten(self, first: usize) -> Var<'t> {
        let shape = self.shape();
        let joined = shape[first..].iter().product();
        self.reshape(shape[..first].iter().copied().chain([joined]).collect::<Shape>())
    }

    /// Inserts an axis of size 1 before `axis`.
    #[track_caller]
    pub fn unsqueeze(self, axis: usize) -> Var<'t> {
        let layout = Layout::contiguous(self.shape()).unsqueeze(axis);
        self.reshape(layout.shape())
    }

    /// Removes an axis of size 1, which may count from the end.
    #[track_caller]
    pub fn squeeze(self, axis: isize) -> Var<'t> {
        let shape = self.shape();
        let axis = shape.axis(axis);
        assert_eq!(shape[axis], 1, "squeeze: axis {axis} of {shape} is not of size 1");
        self.reshape(shape.without(&[axis]))
    }

    /// Axis `i` of the result is axis `order[i]` of this value.
    #[track_caller]
    pub fn permute(self, order: &[usize]) -> Var<'t> {
        self.movement(Movement::Permute(SmallVec::from_slice(order)))
    }

    /// Exchanges two axes, which may count from the end.
    #[track_caller]
    pub fn transpose(self, a: isize, b: isize) -> Var<'t> {
        let shape = self.shape();
        let mut order: SmallVec<[usize; 6]> = (0..shape.len()).collect();
        order.swap(shape.axis(a), shape.axis(b));
        self.permute(&order)
    }

    /// Repeats axes of size 1, and adds leading axes, to reach `shape`.
    #[track_caller]
    pub fn expand(self, shape: impl Into<Shape>) -> Var<'t> {
        let shape = shape.into();
        if self.shape() == shape { self } else { self.movement(Movement::Expand(shape)) }
    }

    /// Every `step`-th element of `start..end` along an axis, which may count from the end.
    #[track_caller]
    pub fn slice(self, axis: isize, start: usize, end: usize, step: usize) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.movement(Movement::Slice { axis, start, end, step })
    }

    /// The element at one position along an axis, which is gone from the result.
    #[track_caller]
    pub fn select(self, axis: isize, position: usize) -> Var<'t> {
        self.slice(axis, position, position + 1, 1).squeeze(axis)
    }

    /// `before` and `after` copies of `value` around an axis, which may count from the end.
    #[track_caller]
    pub fn pad(self, axis: isize, before: usize, after: usize, value: f64) -> Var<'t> {
        let shape = self.shape();
        let axis = shape.axis(axis);
        let border = |size: usize| self.fill(value).expand(shape.with(axis, size));
        concat(&[border(before), self, border(after)], axis as isize)
    }

    /// An axis in reverse; it may count from the end.
    #[track_caller]
    pub fn flip(self, axis: isize) -> Var<'t> {
        let axis = self.shape().axis(axis);
        self.movement(Movement::Flip(axis))
    }
}
