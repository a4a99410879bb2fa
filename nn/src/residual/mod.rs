//! Residual connections: one algebra, one file per variant.
//!
//! A block joins a branch F to a stream X by
//!
//! ```text
//! x'  =  A·X  +  bᵀ ⊗ F(a·X)          read a, mix A, write b
//! ```
//!
//! and a [`Connection`] is a choice of the coefficients a, b and A: constants, learned, or computed from X.
//!
//! With one stream X is `[.., C]` and the coefficients are numbers, or numbers per channel or sample:
//!
//! | variant | a | b | A |
//! |---|---|---|---|
//! | [`Plain`] | 1 | 1 | 0 |
//! | [`Identity`] | 1 | 1 | 1 |
//! | [`Scaled`], and [`Euler`], which takes its steps with one F | 1 | α | 1 |
//! | [`ReZero`] | 1 | learned, from 0 | 1 |
//! | [`LayerScale`] | 1 | learned per channel | 1 |
//! | [`Gated`] | 1 | g = σ(Wx + c) | 1 − g |
//! | [`Interpolated`] | 1 | g = σ(s) | 1 − g |
//! | [`DropPath`] | 1 | m/(1 − p), m drawn per sample | 1 |
//!
//! With n streams X is `[.., n, C]`, a and b are `[.., n]`, and A is `[.., n, n]`. It multiplies from the left, in code,
//! checkpoints and reports: row i of A says what stream i becomes of. The branch sees and returns `[.., C]`.
//!
//! | variant | a | b | A |
//! |---|---|---|---|
//! | [`HyperConnection`] | learned | learned | learned |
//! | [`DynamicHyperConnection`] | a₀ + s·tanh(norm(X)·W) | likewise | likewise |
//! | [`Mhc`] | σ(·) | 2σ(·) | Sinkhorn(·) |
//! | [`MhcLite`] | σ(·) | 2σ(·) | a mean of permutations |
//! | [`IdentityHc`] | σ(·) | 2σ(·) | 1 |
//!
//! [`Expand`] makes streams of an embedding; [`Reduce`] and [`SigmoidRead`] make one value of them again.
//!
//! Four are not of this form. Each is still a `Connection`, with a write of its own, so that [`Residual`] stays the
//! only place that knows how a block is wired: [`PostNorm`] (and DeepNorm, which is one) and [`ResiDual`] normalise
//! the stream after the write; [`AttnRes`] writes by appending, so that its state grows by a row with every block;
//! [`Delta`] mixes channels, by a matrix that its branch chooses. Where norms of the branch go is [`Normed`]'s
//! business, in what it computes [`Mixed`](crate::Mixed)'s.
//!
//! Backpropagation through a block has three kinds of edges, and the operations that join it are marked with them:
//!
//! ```text
//! x̄  =  Aᵀ·x̄'                      skip
//!     + aᵀ·J_Fᵀ·(b·x̄')             branch: the edge by which F's result enters its write, one per block
//!     + (∂a, ∂b, ∂A / ∂X)ᵀ·…       control: the edges by which coefficients enter
//! ```
//!
//! A path from the loss to x thus crosses as many branch edges as branches, whatever the variant, and a path through
//! a coefficient crosses a control edge instead. What crosses neither is the composite map of the network: the product
//! of the A's where there is nothing but the algebra, and of the Jacobians of what else happens to the stream where
//! there is more.
//!
//! [`Variant`] lists them all by name. [`FusedResidual`] is [`Identity`]'s block with its addition in the branch's last product.

mod attn_res;
mod delta;
mod drop_path;
mod euler;
mod fused;
mod gated;
mod hyper;
mod identity;
mod identity_hc;
mod layer_scale;
mod mhc;
mod mhc_lite;
mod normed;
mod plain;
mod post_norm;
mod projection;
mod resi_dual;
mod rezero;
mod scaled;
mod streams;
mod variant;

pub use attn_res::AttnRes;
pub use delta::Delta;
pub use drop_path::DropPath;
pub use euler::Euler;
pub use fused::FusedResidual;
pub use gated::{Gated, Interpolated};
pub use hyper::{DynamicHyperConnection, HyperConnection};
pub use identity::Identity;
pub use identity_hc::IdentityHc;
pub use layer_scale::LayerScale;
pub use mhc::Mhc;
pub use mhc_lite::MhcLite;
pub use normed::{Normed, Placement};
pub use plain::Plain;
pub use post_norm::{PostNorm, deep_norm_gain};
pub use projection::{GateStart, Gates, MixStart, Projection, Start};
pub use resi_dual::{ResiDual, ResiDualRead};
pub use rezero::ReZero;
pub use scaled::Scaled;
pub use streams::{Expand, Reduce, SigmoidRead};
pub use variant::{Variant, VariantConfig, Wiring};

use limpid_autograd::{Cotangents, Needs, Op, Outputs, Pullback, Pushforward, Var};
use limpid_tensor::{Inferred, Meta, Tensor};

use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// One of a, b and A.
#[derive(Clone, Copy, Debug)]
pub enum Coefficient<'t> {
    /// The same number for every sample and channel; 0 and 1 cost nothing.
    Constant(f64),
    /// Learned or computed from the stream, for each element by itself. Its shape broadcasts to the stream's: `[]`,
    /// `[C]`, `[N, 1]`, `[N, C]`.
    Value(Var<'t>),
    /// Between the n streams of a state `[.., n, C]`: a and b `[.., n]`, A `[.., n, n]`. If its dtype is wider than the
    /// stream's, products are taken in the wider one.
    Streams(Var<'t>),
}

impl<'t> Coefficient<'t> {
    /// The coefficient times `x`, keeping the mark that `x` carries. Times 1 it is `x` itself.
    ///
    /// # Panics
    /// If it is between streams: what its product is depends on whether it reads, mixes or writes.
    #[track_caller]
    pub fn times(self, x: Var<'t>) -> Var<'t> {
        match self {
            Coefficient::Constant(1.0) => x,
            Coefficient::Constant(c) => x * c,
            Coefficient::Value(c) => c.control() * x,
            Coefficient::Streams(c) => panic!("times: a coefficient between streams, {}", c.meta()),
        }
    }
}

/// The coefficients of one use of a connection. Whatever they are computed from is computed once, and the composite
/// map of a network is read off them.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients<'t> {
    /// a: how the branch reads the stream.
    pub read: Coefficient<'t>,
    /// A: how the stream goes on.
    pub mix: Coefficient<'t>,
    /// b: how the stream takes the branch's result.
    pub write: Coefficient<'t>,
}

impl<'t> Outputs<'t> for Coefficients<'t> {
    fn visit(&mut self, f: &mut dyn FnMut(&mut Var<'t>)) {
        for coefficient in [&mut self.read, &mut self.mix, &mut self.write] {
            if let Coefficient::Value(var) | Coefficient::Streams(var) = coefficient {
                f(var);
            }
        }
    }
}

/// A way to join a branch to a stream: `x' = A·X + bᵀ ⊗ F(a·X)`.
///
/// A variant says what its coefficients are, and the two products below follow, with one stream (the state is the
/// plain `[.., C]` value) and with n (the state is `[.., n, C]`; the branch sees `[.., C]` as every other). One that is
/// not of this form has a product of its own in place of one of them.
///
/// ```
/// use limpid_autograd::{Tape, Var};
/// use limpid_nn::residual::{Coefficient, Coefficients, Connection, Residual};
/// use limpid_nn::{Activation, Module, Parameter, Parameters};
/// use limpid_tensor::Tensor;
///
/// /// x' = −x + F(x).
/// struct Reflected;
///
/// impl Parameters for Reflected {
///     fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
///     fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
/// }
///
/// impl Connection for Reflected {
///     fn coefficients<'t>(&self, _: Var<'t>) -> Coefficients<'t> {
///         let [read, mix, write] = [1.0, -1.0, 1.0].map(Coefficient::Constant);
///         Coefficients { read, mix, write }
///     }
/// }
///
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(-2.0f64));
/// let block = Residual { connection: Reflected, branch: Activation::Relu };
/// assert_eq!(block.forward(x).item()?, 2.0);
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
pub trait Connection: Parameters {
    /// a, b and A for the stream `x`.
    #[track_caller]
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t>;

    /// `a·X`: what the branch sees.
    ///
    /// # Panics
    /// If a coefficient between streams does not fit them.
    #[track_caller]
    fn read<'t>(&self, x: Var<'t>, a: Coefficient<'t>) -> Var<'t> {
        match a {
            Coefficient::Streams(a) => streams::read(a, x),
            a => a.times(x),
        }
    }

    /// `A·X + bᵀ ⊗ output`. X goes on by a skip edge, and `output` enters by the one branch edge of the block. It is a node of
    /// its own even where there is nothing to compute, so that the edge exists.
    ///
    /// # Panics
    /// If X and `output` differ in shape or dtype, but for the axis of the streams (broadcasting a branch over its stream is
    /// never meant), or a coefficient between streams does not fit them.
    #[track_caller]
    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        write(x, output, by)
    }
}

/// The write of the algebra: see [`Connection::write`].
#[track_caller]
fn write<'t>(x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
    match (by.mix, by.write) {
        (Coefficient::Streams(mix), Coefficient::Streams(b)) => streams::mix_and_write(x, mix, output, b),
        (a, b) => add(mix(x, a), output, b),
    }
}

/// `A·X`: what goes on without crossing the branch, by a skip edge. `None` if A is 0.
#[track_caller]
fn mix<'t>(x: Var<'t>, mix: Coefficient<'t>) -> Option<Var<'t>> {
    match mix {
        Coefficient::Constant(0.0) => None,
        Coefficient::Streams(mix) => Some(streams::mix(mix, x.skip())),
        mix => Some(mix.times(x.skip())),
    }
}

/// `mixed + bᵀ ⊗ output`.
#[track_caller]
fn add<'t>(mixed: Option<Var<'t>>, output: Var<'t>, b: Coefficient<'t>) -> Var<'t> {
    if let Coefficient::Streams(b) = b {
        return streams::write(mixed, output, b);
    }
    if let Some(mixed) = mixed {
        expect_kept(mixed.meta(), output.meta());
    }
    match (mixed, b) {
        (None, Coefficient::Constant(1.0)) => entering(output),
        (None, b) => b.times(output.branch()),
        (Some(mixed), b) => mixed + b.times(output.branch()),
    }
}

#[track_caller]
fn expect_kept(stream: Meta, branch: Meta) {
    assert!(stream == branch, "write: the branch must keep the stream's {stream}, found {branch}");
}

/// A branch's result past the one branch edge of its block.
#[track_caller]
fn entering(output: Var<'_>) -> Var<'_> {
    output.tape().record(Write, &[output.branch()])
}

impl<C: Connection + ?Sized> Connection for Box<C> {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        (**self).coefficients(x)
    }

    fn read<'t>(&self, x: Var<'t>, a: Coefficient<'t>) -> Var<'t> {
        (**self).read(x, a)
    }

    fn write<'t>(&self, x: Var<'t>, output: Var<'t>, by: &Coefficients<'t>) -> Var<'t> {
        (**self).write(x, output, by)
    }
}

/// A block: a branch joined to its stream. The only place that knows how a block is wired.
///
/// Its parts record in scopes of their own: `coefficients`, `read`, `branch` and `write`.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::{Residual, Scaled};
/// use limpid_nn::{Activation, Module};
/// use limpid_tensor::Tensor;
/// let block = Residual { connection: Scaled::new(0.5), branch: Activation::Relu };
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::scalar(4.0f64));
/// assert_eq!(block.forward(x).item()?, 6.0);
/// assert!(tape.program().to_string().contains("add(↷%0, %2)"));
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Residual<C, F> {
    /// How the branch is joined to the stream.
    pub connection: C,
    /// F.
    pub branch: F,
}

impl<C: Parameters, F: Parameters> Parameters for Residual<C, F> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.connection.visit(f);
        self.branch.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.connection.visit_mut(f);
        self.branch.visit_mut(f);
    }
}

impl<C: Connection, F: Module> Module for Residual<C, F> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        let by = tape.scope("coefficients", || self.connection.coefficients(x));
        let input = tape.scope("read", || self.connection.read(x, by.read));
        let output = tape.scope("branch", || self.branch.forward(input));
        tape.scope("write", || self.connection.write(x, output, &by))
    }
}

/// `x' = output`: the write of a branch where nothing is added to it, or where it is used more than once. No element is
/// copied.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Write;

impl Op for Write {
    fn name(&self) -> &'static str {
        "write"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Ok(x[0].clone())
    }

    fn forward(&self, x: &[&Tensor]) -> limpid_tensor::Result<Tensor> {
        Ok(x[0].clone())
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::NOTHING
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|_| at.g())
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.dx(0)
    }

    fn flops(&self, _x: &[&Meta], _y: &Meta) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Init, Linear};
    use limpid_autograd::Tape;
    use limpid_tensor::DType;

    fn init() -> Init {
        Init::new(1).with_dtype(DType::F64)
    }

    fn input() -> Tensor {
        Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 1.5, 0.25, -0.75], [2, 3])
    }

    #[test]
    #[should_panic(expected = "write: the branch must keep the stream's f64[2, 3], found f64[2, 1]")]
    fn a_branch_does_not_broadcast_over_its_stream() {
        let branch = Linear::new(&init(), 3, 1, Activation::Relu);
        let tape = Tape::new();
        Residual { connection: Identity, branch }.forward(tape.variable(&input()));
    }

    #[test]
    #[should_panic(expected = "write: the branch must keep the stream's f64[2, 3], found f64[2, 1]")]
    fn nor_over_the_streams() {
        let branch = Linear::new(&init(), 3, 1, Activation::Relu);
        let tape = Tape::new();
        let streams = Expand::copies(4).forward(tape.variable(&input()));
        Residual { connection: HyperConnection::new(&init(), 4, 0), branch }.forward(streams);
    }

    #[test]
    #[should_panic(expected = "times: a coefficient between streams, f64[2, 3]")]
    fn between_streams_there_is_no_product_by_element() {
        let x = Tape::new();
        let x = x.variable(&input());
        Coefficient::Streams(x).times(x);
    }

    #[test]
    fn worked_numbers() {
        // Three residual blocks whose branches add 2, 1 and −1 take 5 to 7, 8 and 7.
        struct Add(f64);
        impl Parameters for Add {
            fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
            fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
        }
        impl Module for Add {
            fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
                x * 0.0 + self.0
            }
        }
        let tape = Tape::new();
        let mut x = tape.variable(&Tensor::scalar(5.0f64));
        for (f, expected) in [(2.0, 7.0), (1.0, 8.0), (-1.0, 7.0)] {
            x = Residual { connection: Identity, branch: Add(f) }.forward(x);
            assert_eq!(x.item().unwrap(), expected);
        }
        // Five branches of slope 0.1: 1e-5 of the gradient passes without connections, 1.1⁵ with them.
        struct Tenth;
        impl Parameters for Tenth {
            fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
            fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
        }
        impl Module for Tenth {
            fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
                x * 0.1
            }
        }
        fn passed(connection: impl Connection) -> f64 {
            let block = Residual { connection, branch: Tenth };
            let tape = Tape::new();
            let x = tape.variable(&Tensor::scalar(1.0f64));
            let y = (0..5).fold(x, |x, _| block.forward(x));
            tape.backward(y).unwrap().of(x).unwrap().item().unwrap()
        }
        assert!((passed(Plain) - 1e-5).abs() < 1e-19);
        assert!((passed(Identity) - 1.61051).abs() < 1e-14);
    }
}
