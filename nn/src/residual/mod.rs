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
//! | variant | a | b | A |
//! |---|---|---|---|
//! | [`Plain`] | 1 | 1 | 0 |
//! | [`Identity`] | 1 | 1 | 1 |
//! | [`Scaled`] | 1 | α | 1 |
//! | [`Gated`] | 1 | g = σ(Wx + c) | 1 − g |
//! | [`Interpolated`] | 1 | g = σ(s) | 1 − g |
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
//! a coefficient crosses a control edge instead.

mod gated;
mod identity;
mod plain;
mod scaled;

pub use gated::{Gated, Interpolated};
pub use identity::Identity;
pub use plain::Plain;
pub use scaled::Scaled;

use limpid_autograd::{Cotangents, Needs, Op, Outputs, Pullback, Pushforward, Var};
use limpid_tensor::{Inferred, Meta, Tensor};

use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// One of a, b and A.
#[derive(Clone, Copy, Debug)]
pub enum Coefficient<'t> {
    /// The same number for every sample and channel; 0 and 1 cost nothing.
    Constant(f64),
    /// Learned or computed from the stream. With one stream its shape broadcasts to the stream's: `[]`, `[C]`,
    /// `[N, 1]`, `[N, C]`.
    Value(Var<'t>),
}

impl<'t> Coefficient<'t> {
    /// The coefficient times `x`, keeping the mark that `x` carries. Times 1 it is `x` itself.
    #[track_caller]
    pub fn times(self, x: Var<'t>) -> Var<'t> {
        match self {
            Coefficient::Constant(1.0) => x,
            Coefficient::Constant(c) => x * c,
            Coefficient::Value(c) => c.control() * x,
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
            if let Coefficient::Value(var) = coefficient {
                f(var);
            }
        }
    }
}

/// A way to join a branch to a stream: `x' = A·X + bᵀ ⊗ F(a·X)`.
///
/// A variant with one stream (the state is the plain `[.., C]` value) says what its coefficients are, and the three
/// products below follow. One with n streams (the state is `[.., n, C]`) writes the products too, with a `[.., n]`,
/// b `[.., n]` and A `[.., n, n]`; its branch sees `[.., C]` as every other.
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
    #[track_caller]
    fn read<'t>(&self, x: Var<'t>, a: Coefficient<'t>) -> Var<'t> {
        a.times(x)
    }

    /// `A·X`: what goes on without crossing the branch, by a skip edge. `None` if A is 0.
    #[track_caller]
    fn mix<'t>(&self, x: Var<'t>, mix: Coefficient<'t>) -> Option<Var<'t>> {
        match mix {
            Coefficient::Constant(0.0) => None,
            _ => Some(mix.times(x.skip())),
        }
    }

    /// `mixed + bᵀ ⊗ output`, with one branch edge: the one by which `output` enters. It is a node of its own even
    /// where there is nothing to compute, so that the edge exists.
    ///
    /// # Panics
    /// If the two differ in shape or dtype. (Broadcasting a branch over its stream is never meant.)
    #[track_caller]
    fn write<'t>(&self, mixed: Option<Var<'t>>, output: Var<'t>, b: Coefficient<'t>) -> Var<'t> {
        if let Some(mixed) = mixed {
            let (stream, branch) = (mixed.meta(), output.meta());
            assert!(stream == branch, "write: the branch must keep the stream's {stream}, found {branch}");
        }
        match (mixed, b) {
            (None, Coefficient::Constant(1.0)) => output.tape().record(Write, &[output.branch()]),
            (None, b) => b.times(output.branch()),
            (Some(mixed), b) => mixed + b.times(output.branch()),
        }
    }
}

impl<C: Connection + ?Sized> Connection for Box<C> {
    fn coefficients<'t>(&self, x: Var<'t>) -> Coefficients<'t> {
        (**self).coefficients(x)
    }

    fn read<'t>(&self, x: Var<'t>, a: Coefficient<'t>) -> Var<'t> {
        (**self).read(x, a)
    }

    fn mix<'t>(&self, x: Var<'t>, mix: Coefficient<'t>) -> Option<Var<'t>> {
        (**self).mix(x, mix)
    }

    fn write<'t>(&self, mixed: Option<Var<'t>>, output: Var<'t>, b: Coefficient<'t>) -> Var<'t> {
        (**self).write(mixed, output, b)
    }
}

/// A block: a branch joined to its stream. The only place that knows how a block is wired.
///
/// Its parts record in scopes of their own: `coefficients`, `read`, `branch`, `mix` and `write`.
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
        let mixed = tape.scope("mix", || self.connection.mix(x, by.mix));
        tape.scope("write", || self.connection.write(mixed, output, by.write))
    }
}

/// `x' = output`: the write of a branch where nothing goes past it. No element is copied.
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

    fn branch() -> Linear {
        Linear::new(&init().enter("f"), 3, 3, Activation::Tanh)
    }

    fn variants() -> Vec<(&'static str, Box<dyn Connection>)> {
        let init = init().enter("connection");
        vec![
            ("plain", Box::new(Plain)),
            ("identity", Box::new(Identity)),
            ("scaled", Box::new(Scaled::new(0.25))),
            ("gated", Box::new(Gated::new(&init, 3))),
            ("interpolated", Box::new(Interpolated::new(&init))),
        ]
    }

    fn input() -> Tensor {
        Tensor::from_vec(vec![0.5f64, -1.0, 2.0, 1.5, 0.25, -0.75], [2, 3])
    }

    fn values(v: Var<'_>) -> Vec<f64> {
        v.value().unwrap().to_vec().unwrap()
    }

    /// `A·x + b·F(a·x)` from a connection's coefficients, element by element.
    #[test]
    fn every_variant_is_the_algebra_of_its_coefficients() {
        for (name, connection) in variants() {
            let block = Residual { connection, branch: branch() };
            let tape = Tape::new();
            let x = tape.variable(&input());
            let by = block.connection.coefficients(x);
            let full = |c: Coefficient| match c {
                Coefficient::Constant(c) => vec![c; 6],
                Coefficient::Value(v) => values(v.expand([2, 3])),
            };
            let (a, b, mix) = (full(by.read), full(by.write), full(by.mix));
            assert_eq!(a, [1.0; 6], "{name} reads the stream as it is");
            let (x_, f) = (values(x), values(block.branch.forward(x)));
            let y = values(block.forward(x));
            for i in 0..6 {
                let expected = mix[i] * x_[i] + b[i] * f[i];
                assert!((y[i] - expected).abs() < 1e-15, "{name}: {} is not {expected}", y[i]);
            }
        }
    }

    #[test]
    fn a_block_has_one_branch_edge_and_the_edges_its_formula_has() {
        // (variant, skip edges, control edges)
        let expected = [("plain", 0, 0), ("identity", 1, 0), ("scaled", 1, 0), ("gated", 1, 2)];
        for (name, connection) in variants() {
            let block = Residual { connection, branch: branch() };
            let tape = Tape::new();
            block.forward(tape.variable(&input()));
            let program = tape.program().to_string();
            assert_eq!(program.matches('⑂').count(), 1, "{name}:\n{program}");
            let edges = (program.matches('↷').count(), program.matches('∿').count());
            let wanted = expected.iter().find(|(n, ..)| *n == name).map_or((1, 2), |&(_, s, c)| (s, c));
            assert_eq!(edges, wanted, "{name}:\n{program}");
        }
    }

    #[test]
    fn gradients_reach_every_parameter_and_agree_with_differences() {
        for (name, connection) in variants() {
            let mut block = Residual { connection, branch: branch() };
            let loss_of = |block: &Residual<Box<dyn Connection>, Linear>| {
                let tape = Tape::new();
                let y = block.forward(tape.variable(&input()));
                let loss = (y * y * y).sum(&[]);
                (loss.item().unwrap(), tape.backward(loss).unwrap())
            };
            let (_, gradients) = loss_of(&block);
            assert!(gradients.unreached().is_empty(), "{name}: {:?}", gradients.unreached());
            let count = block.parameters().len();
            for p in 0..count {
                let (id, value) = (block.parameters()[p].id(), block.parameters()[p].value().clone());
                let gradient = gradients.of_parameter(id).unwrap().to_vec::<f64>().unwrap();
                let elements = value.to_vec::<f64>().unwrap();
                for i in 0..elements.len() {
                    let h = 1e-5;
                    let mut at = |shift: f64| {
                        let mut moved = elements.clone();
                        moved[i] += shift;
                        block.parameters_mut()[p].set_value(Tensor::from_vec(moved, value.shape()));
                        loss_of(&block).0
                    };
                    let difference = (at(h) - at(-h)) / (2.0 * h);
                    block.parameters_mut()[p].set_value(value.clone());
                    // The difference's own error: h²·f''' and rounding of the loss over h, both about 1e-9 here.
                    assert!((difference - gradient[i]).abs() < 1e-8, "{name}: parameter {p}, element {i}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "write: the branch must keep the stream's f64[2, 3], found f64[2, 1]")]
    fn a_branch_does_not_broadcast_over_its_stream() {
        let branch = Linear::new(&init(), 3, 1, Activation::Relu);
        let tape = Tape::new();
        Residual { connection: Identity, branch }.forward(tape.variable(&input()));
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
