//! A handle on a value of a tape.

use std::fmt;

use limpid_tensor::{DType, Meta, Shape, Tensor};

use crate::error::{Result, Site};
use crate::tape::Tape;

/// What a gradient crosses when it flows back along an edge of the tape.
///
/// A residual connection marks the operands of the operations that join its branches, and every tool that
/// follows gradients reads the marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
// As large as what it lies beside: odd bytes behind it would be copied apart, which stalls where they were just written.
#[repr(u32)]
pub enum Edge {
    /// Inside a branch, or outside any connection.
    #[default]
    Interior,
    /// The identity path of a residual connection.
    Skip,
    /// The write of a branch into the stream: exactly one per branch.
    Branch,
    /// A coefficient computed from the stream: a gate, a mixing matrix.
    Control,
}

/// A value on a [`Tape`]: a copyable handle, so that mathematics reads as mathematics.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_tensor::Tensor;
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(2.0f64));
/// let y = (x * x) * (x * x);
/// let first = tape.grad(y, &[x])?[0];
/// let second = tape.grad(first, &[x])?[0];
/// assert_eq!((y.item()?, first.item()?, second.item()?), (16.0, 32.0, 48.0));
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Var<'t> {
    pub(crate) tape: &'t Tape,
    pub(crate) id: u32,
    pub(crate) epoch: u32,
    pub(crate) edge: Edge,
}

impl<'t> Var<'t> {
    /// The tape this value is on.
    pub fn tape(self) -> &'t Tape {
        self.tape
    }

    /// Its position on the tape.
    pub fn index(self) -> usize {
        self.id as usize
    }

    /// Shape and dtype.
    #[track_caller]
    pub fn meta(self) -> Meta {
        self.tape.meta(self)
    }

    /// Size along each axis.
    #[track_caller]
    pub fn shape(self) -> Shape {
        self.tape.with_node(self, |node| node.meta.shape.clone())
    }

    /// Element type.
    #[track_caller]
    pub fn dtype(self) -> DType {
        self.tape.with_node(self, |node| node.meta.dtype)
    }

    /// Whether a gradient can flow through it.
    #[track_caller]
    pub fn is_tracked(self) -> bool {
        self.tape.is_tracked(self)
    }

    /// What recorded it: the operation or the leaf's name, the scope, the source line.
    #[track_caller]
    pub fn site(self) -> Site {
        drop(self.meta());
        self.tape.site(self.id)
    }

    /// The value; computed again from its operands if the tape has dropped it.
    ///
    /// # Errors
    /// If the tape is dry, or something failed before this value was computed.
    #[track_caller]
    pub fn value(self) -> Result<Tensor> {
        self.tape.value(self)
    }

    /// The value of a one-element result as f64.
    ///
    /// # Errors
    /// As [`value`](Var::value).
    ///
    /// # Panics
    /// If there is more than one element.
    #[track_caller]
    pub fn item(self) -> Result<f64> {
        let value = self.value()?;
        assert_eq!(value.elements(), 1, "item: shape {} does not hold exactly one element", value.shape());
        value.item().map_err(|e| self.tape.backend_error(self, e))
    }

    /// The same value under a name, by which prints call it and a [policy](crate::plan::Select::name) finds it.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::scalar(1.0f64));
    /// let h = x.exp().named("h");
    /// let y = h * h;
    /// assert!(tape.program().to_string().contains("mul(h, h)"), "{}", tape.program());
    /// ```
    #[track_caller]
    pub fn named(self, name: &str) -> Var<'t> {
        drop(self.meta());
        self.tape.nodes.borrow_mut()[self.id as usize].name = Some(name.into());
        self
    }

    /// The same value, marked as the skip path of the operation that uses this handle next.
    pub fn skip(self) -> Var<'t> {
        Var { edge: Edge::Skip, ..self }
    }

    /// The same value, marked as a branch's write into the operation that uses this handle next.
    pub fn branch(self) -> Var<'t> {
        Var { edge: Edge::Branch, ..self }
    }

    /// The same value, marked as a coefficient of the operation that uses this handle next.
    pub fn control(self) -> Var<'t> {
        Var { edge: Edge::Control, ..self }
    }
}

impl fmt::Debug for Var<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.id)
    }
}

/// What a scope hands out: handles that stay valid when it closes.
pub trait Outputs<'t> {
    /// Visits every handle.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>));
}

impl<'t> Outputs<'t> for Var<'t> {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        f(self)
    }
}

impl<'t> Outputs<'t> for () {
    fn visit(&mut self, _: &mut dyn FnMut(&mut Var<'t>)) {}
}

impl<'t, T: Outputs<'t>> Outputs<'t> for Option<T> {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.iter_mut().for_each(|o| o.visit(f))
    }
}

impl<'t, T: Outputs<'t>, E> Outputs<'t> for std::result::Result<T, E> {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.iter_mut().for_each(|o| o.visit(f))
    }
}

impl<'t, T: Outputs<'t>> Outputs<'t> for Vec<T> {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.iter_mut().for_each(|o| o.visit(f))
    }
}

impl<'t, T: Outputs<'t>, const N: usize> Outputs<'t> for [T; N] {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.iter_mut().for_each(|o| o.visit(f))
    }
}

impl<'t, A: Outputs<'t>, B: Outputs<'t>> Outputs<'t> for (A, B) {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.0.visit(f);
        self.1.visit(f);
    }
}

impl<'t, A: Outputs<'t>, B: Outputs<'t>, C: Outputs<'t>> Outputs<'t> for (A, B, C) {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        self.0.visit(f);
        self.1.visit(f);
        self.2.visit(f);
    }
}

/// A number that was read inside the scope.
impl<'t> Outputs<'t> for f64 {
    fn visit(&mut self, _: &mut dyn FnMut(&mut Var<'t>)) {}
}

/// A value that was taken off the tape inside the scope.
impl<'t> Outputs<'t> for Tensor {
    fn visit(&mut self, _: &mut dyn FnMut(&mut Var<'t>)) {}
}
