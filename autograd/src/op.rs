//! What an operation is: a function, its derivative in both directions, and what the derivative reads.

use std::any::Any;
use std::fmt;

use limpid_tensor::{Fused, Handed, Inferred, Meta, Tensor};
use smallvec::SmallVec;

use crate::error::Error;
use crate::ops::streams::Term;
use crate::tape::{Operand, Tape};
use crate::var::Var;

/// The cotangents of an operation's operands; `None` where none is wanted or it is zero everywhere.
pub type Cotangents<'t> = SmallVec<[Option<Var<'t>>; 3]>;

/// An operation: one struct, its derivative beside its function.
///
/// An operation outside this crate is written the same way as one inside it. The derivative rules are written
/// with [`Var`]s, so that they are recorded like any other program: they can be printed, and differentiated again.
///
/// ```
/// use limpid_autograd::{Cotangents, Needs, Op, Pullback, Pushforward, Tape, Var};
/// use limpid_tensor::{Inferred, Map, Meta, Result, Tensor};
///
/// /// y = x², with y' = 2x.
/// #[derive(Debug)]
/// struct Square;
///
/// impl Op for Square {
///     fn name(&self) -> &'static str {
///         "square"
///     }
///     fn infer(&self, x: &[&Meta]) -> Inferred {
///         Map::Mul.infer(&[x[0], x[0]])
///     }
///     fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
///         Tensor::map(Map::Mul, &[x[0], x[0]])
///     }
///     fn needs(&self, _tracked: &[bool]) -> Needs {
///         Needs::inputs(&[0])
///     }
///     fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
///         at.each(|_| at.g() * at.x(0) * 2.0)
///     }
///     fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
///         at.sum(|_, dx| dx * at.x(0) * 2.0)
///     }
/// }
///
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(3.0f64));
/// let y = tape.record(Square, &[x]);
/// assert_eq!(tape.grad(y, &[x]).unwrap()[0].item().unwrap(), 6.0);
/// ```
pub trait Op: Any + fmt::Debug {
    /// The name in printed tapes and messages.
    fn name(&self) -> &'static str;

    /// The attributes shown in printed tapes behind the name, such as `axes=[1]`; empty if there are none.
    fn attributes(&self) -> String {
        String::new()
    }

    /// Shape and dtype of the result, without computing it, or the sentence that says what is wrong.
    fn infer(&self, x: &[&Meta]) -> Inferred;

    /// The result. It depends on the operands and on `self` alone, so that it can be computed again.
    ///
    /// An operation that has an [`expand`](Op::expand) may leave this out.
    fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        forward_by_expansion(self, x)
    }

    /// [`forward`](Op::forward) where nobody reads the first operand afterwards, so that the result may take its memory.
    ///
    /// # Errors
    /// As for `forward`.
    fn forward_consuming(&self, first: Tensor, others: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        let mut operands: SmallVec<[&Tensor; 3]> = SmallVec::new();
        operands.push(&first);
        operands.extend_from_slice(others);
        self.forward(&operands)
    }

    /// Which operands' values, and whether the result's, the [`vjp`](Op::vjp) reads when the operands marked in
    /// `tracked` want a cotangent. Everything else may be dropped once the surrounding scope closes.
    fn needs(&self, tracked: &[bool]) -> Needs;

    /// The vector–Jacobian product: from the cotangent of the result to those of the operands.
    ///
    /// An operation that has an [`expand`](Op::expand), or that no gradient passes, may leave this out.
    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let y = self.expand(&at.x).unwrap_or_else(|| panic!("{} has neither vjp nor expand", self.name()));
        at.through(y)
    }

    /// The Jacobian–vector product: from tangents of the operands to that of the result. `None` is zero.
    ///
    /// An operation that has an [`expand`](Op::expand), or that no gradient passes, may leave this out. Another that
    /// does has no forward mode: whoever asks for it gets [`Error::NoJvp`](crate::Error::NoJvp).
    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        match self.expand(&at.x) {
            Some(y) => at.through(y),
            None => at.missing(),
        }
    }

    /// The same function as a program of simpler operations, for fused ones.
    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let _ = x;
        None
    }

    /// Whether the result may be computed a second time.
    fn purity(&self) -> Purity {
        Purity::Pure
    }

    /// For an operation that a device may compute several of in one call, each with the result of the one before as its first
    /// operand: the kernel. Its operands are those of the first operation, then those of each other without its first; its
    /// results are theirs, bit for bit. A [plan](crate::plan) that brings several back one after the other calls it.
    fn chain(&self) -> Option<Fused> {
        None
    }

    /// Whether a gradient passes. [`Derivative::Stops`] makes the result a constant; [`Derivative::Missing`] makes
    /// recording the operation on a path that needs a gradient an error.
    fn derivative(&self) -> Derivative {
        Derivative::Exists
    }

    /// For a function made of smooth pieces: which piece each element is on, as numbers (a mask, a sign, an index, the
    /// side of a bound), so that two points with the same numbers have no kink between them. `None` if it is smooth.
    ///
    /// Differences across a kink say nothing about a derivative on one side of it: [`check`](crate::check()) compares
    /// these numbers, and names the operation and the element where they change.
    ///
    /// # Errors
    /// If the device could not compute them.
    fn branches(&self, x: &[&Tensor], y: &Tensor) -> limpid_tensor::Result<Option<Tensor>> {
        let _ = (x, y);
        Ok(None)
    }

    /// Floating-point operations of one forward computation, for accounting.
    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        let _ = x;
        y.shape.elements() as u64
    }
}

/// The result by way of an operation's expansion.
pub(crate) fn forward_by_expansion(op: &(impl Op + ?Sized), x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
    let tape = Tape::inference().with_device(x[0].device().clone());
    let x: SmallVec<[Var<'_>; 3]> = x.iter().map(|x| tape.constant(x)).collect();
    let y = op.expand(&x).unwrap_or_else(|| panic!("{} has neither forward nor expand", op.name()));
    y.value().map_err(|e| limpid_tensor::Error::Device { device: op.name().into(), message: e.to_string() })
}

/// Whether an operation may be computed a second time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purity {
    /// A function of its operands.
    Pure,
    /// A function of its operands and of a random key it carries: computing it again draws the same numbers.
    Rng,
    /// Changes something outside the tape; computed once and never again.
    Effect,
}

/// What becomes of a gradient at an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Derivative {
    /// It passes through the rule.
    Exists,
    /// It stops here on purpose: the result is a constant.
    Stops,
    /// There is no rule, for the given reason.
    Missing(&'static str),
}

/// Which values a derivative rule reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    inputs: u64,
    /// Whether it reads the operation's result.
    pub output: bool,
}

impl Needs {
    /// None: the rule is linear with constant coefficients.
    pub const NOTHING: Needs = Needs { inputs: 0, output: false };
    /// Only the result.
    pub const OUTPUT: Needs = Needs { inputs: 0, output: true };

    /// The operands at these positions.
    ///
    /// # Panics
    /// If one is beyond 63.
    pub fn inputs(positions: &[usize]) -> Needs {
        assert!(positions.iter().all(|&i| i < 64), "needs: positions up to 63, found {positions:?}");
        Needs { inputs: positions.iter().fold(0, |bits, &i| bits | 1 << i), output: false }
    }

    /// Whether the operand at position `i` is read.
    pub fn input(self, i: usize) -> bool {
        i < 64 && self.inputs >> i & 1 == 1
    }

    /// What either reads.
    pub fn or(self, other: Needs) -> Needs {
        Needs { inputs: self.inputs | other.inputs, output: self.output || other.output }
    }

    /// These needs if `condition` holds, else none.
    pub fn when(self, condition: bool) -> Needs {
        if condition { self } else { Needs::NOTHING }
    }
}

/// What a [`vjp`](Op::vjp) rule works with: operands, result, the result's cotangent.
pub struct Pullback<'a, 't> {
    pub(crate) x: SmallVec<[Var<'t>; 3]>,
    pub(crate) y: Var<'t>,
    pub(crate) g: Var<'t>,
    pub(crate) wanted: &'a [bool],
    /// Where the tape ended when the rule began.
    pub(crate) start: usize,
    /// Where shares in the operands' cotangents may be left to be computed later.
    pub(crate) leaves: Option<Leaves<'a>>,
}

/// The operands of an operation, as a sweep sees them.
pub(crate) struct Leaves<'a> {
    pub operands: &'a [Operand],
    /// Whether a sum has been begun at a node. What follows is added to it in the order in which it comes.
    pub begun: &'a dyn Fn(u32) -> bool,
}

impl<'t> Pullback<'_, 't> {
    /// The operand at position `i`.
    pub fn x(&self, i: usize) -> Var<'t> {
        self.x[i]
    }

    /// The number of operands.
    pub fn arity(&self) -> usize {
        self.x.len()
    }

    /// The result.
    pub fn y(&self) -> Var<'t> {
        self.y
    }

    /// The cotangent of the result: the derivative of the final scalar by it.
    pub fn g(&self) -> Var<'t> {
        self.g
    }

    /// Whether a cotangent of operand `i` is asked for.
    pub fn wants(&self, i: usize) -> bool {
        self.wanted[i]
    }

    /// Computes the cotangent of every operand that wants one.
    pub fn each(&self, mut rule: impl FnMut(usize) -> Var<'t>) -> Cotangents<'t> {
        let mut cotangents = Cotangents::new();
        self.wanted.iter().enumerate().for_each(|(i, wanted)| cotangents.push(wanted.then(|| rule(i))));
        cotangents
    }

    /// Leaves the cotangent of operand i as the product it is, for the rule that takes up what others left, or until something
    /// else is to be added. Where that cannot be, computes it. The bits of the sum are the same.
    pub(crate) fn leave(&self, i: usize, term: Term<'t>) -> Option<Var<'t>> {
        match &self.leaves {
            Some(Leaves { operands, begun }) if !begun(operands[i].id) => {
                self.g.tape().leave_term(operands[i].id, term);
                None
            }
            _ => Some(term.value()),
        }
    }

    /// What others have left at operand i, as the operands of [`Fused::StreamCotangent`](limpid_tensor::Fused). The rule
    /// has to add it.
    pub(crate) fn take_terms(&self, i: usize) -> (Handed, SmallVec<[Var<'t>; 4]>) {
        let take = |leaves: &Leaves<'_>| self.g.tape().take_terms(leaves.operands[i].id);
        self.leaves.as_ref().map(take).unwrap_or_default()
    }

    /// The cotangents by way of `y`, an expansion of the operation recorded just now by the rule.
    pub fn through(&self, y: Var<'t>) -> Cotangents<'t> {
        y.tape().pull_through(y, self.g, &self.x, self.wanted, self.start)
    }
}

/// What a [`jvp`](Op::jvp) rule works with: operands, result, the operands' tangents.
pub struct Pushforward<'a, 't> {
    pub(crate) x: SmallVec<[Var<'t>; 3]>,
    pub(crate) y: Var<'t>,
    pub(crate) tangents: &'a [Option<Var<'t>>],
    /// Where the tape ended when the rule began.
    pub(crate) start: usize,
}

impl<'t> Pushforward<'_, 't> {
    /// The operand at position `i`.
    pub fn x(&self, i: usize) -> Var<'t> {
        self.x[i]
    }

    /// The result.
    pub fn y(&self) -> Var<'t> {
        self.y
    }

    /// The number of operands.
    pub fn arity(&self) -> usize {
        self.x.len()
    }

    /// The tangent of operand `i`; `None` is zero.
    pub fn dx(&self, i: usize) -> Option<Var<'t>> {
        self.tangents[i]
    }

    /// Adds up what each operand's tangent contributes to the result's.
    pub fn sum(&self, mut rule: impl FnMut(usize, Var<'t>) -> Var<'t>) -> Option<Var<'t>> {
        (0..self.x.len()).filter_map(|i| self.tangents[i].map(|dx| rule(i, dx))).reduce(|a, b| a + b)
    }

    /// Notes on the tape that there is no rule.
    fn missing(&self) -> Option<Var<'t>> {
        let tape = self.y.tape();
        tape.fail(Error::NoJvp { site: tape.site(self.y.id) });
        None
    }

    /// The tangent by way of `y`, an expansion of the operation recorded just now by the rule.
    pub fn through(&self, y: Var<'t>) -> Option<Var<'t>> {
        y.tape().push_through(y, &self.x, self.tangents, self.start)
    }
}
