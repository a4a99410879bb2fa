//! Mixed precision: a branch that computes in another dtype than its stream.

use limpid_autograd::Var;
use limpid_tensor::DType;

use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// A module that computes in a dtype of its own, between an operand and a result in the operand's: `cast(F(cast(x)))`.
///
/// Around the branch of a [`Residual`](crate::residual::Residual) it makes a block in mixed precision. What the branch
/// computes and keeps for its derivative is in bf16; the stream, the coefficients of the connection, the weights and their
/// gradients stay in f32:
///
/// | | dtype |
/// |---|---|
/// | stream, what is read from it, what is written to it | that of the operand |
/// | a, b, A, with their weights | theirs, or f32 where the stream is narrower |
/// | weights of F, and what an optimiser remembers of them | their own |
/// | weights as F reads them, every value and cotangent inside F | `dtype` |
/// | gradients of those weights | each use's is widened to the weight's own, and they add up there |
/// | running statistics | their own, in which a [`BatchNorm1d`](crate::BatchNorm1d) computes |
///
/// A weight is rounded once, not for every tape: see [`Parameter::on`]. With `dtype` `None` it is F, as it is.
///
/// ```
/// use limpid_autograd::Tape;
/// use limpid_nn::residual::{Identity, Residual};
/// use limpid_nn::{Activation, Init, Linear, Mixed, Module};
/// use limpid_tensor::{DType, Tensor};
/// let branch = Linear::new(&Init::new(0), 4, 4, Activation::Tanh);
/// let block = Residual { connection: Identity, branch: Mixed::new(DType::BF16, branch) };
/// let tape = Tape::new();
/// let y = block.forward(tape.constant(&Tensor::ones([3, 4], DType::F32)));
/// assert_eq!(y.meta().to_string(), "f32[3, 4]");
/// assert!(tape.program().to_string().contains("bf16[3, 4] = linear("));
/// let gradients = tape.backward(y.sum(&[]))?;
/// let weight = &block.branch.module.weight;
/// assert_eq!(gradients.of_parameter(weight.id()).unwrap().meta(), weight.meta());
/// # Ok::<(), limpid_autograd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mixed<F> {
    /// What F computes in; `None`: in whatever its operand and its weights are.
    dtype: Option<DType>,
    /// F.
    pub module: F,
}

impl<F> Mixed<F> {
    /// `module`, computed in `dtype`.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    #[track_caller]
    pub fn new(dtype: DType, module: F) -> Mixed<F> {
        Mixed::of(Some(dtype), module)
    }

    /// `module` in a dtype, or as it is.
    ///
    /// # Panics
    /// As [`new`](Mixed::new).
    #[track_caller]
    pub fn of(dtype: Option<DType>, module: F) -> Mixed<F> {
        if let Some(dtype) = dtype {
            assert!(dtype.is_float(), "mixed: a branch computes in a float dtype, asked for {dtype}");
        }
        Mixed { dtype, module }
    }

    /// What the module computes in, if that is a setting.
    pub fn dtype(&self) -> Option<DType> {
        self.dtype
    }
}

impl<F: Parameters> Parameters for Mixed<F> {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.module.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.module.visit_mut(f);
    }
}

/// Any float shape that F takes. It panics where the dtype set is wider than the operand's.
impl<F: Module> Module for Mixed<F> {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let Some(dtype) = self.dtype else { return self.module.forward(x) };
        let stream = x.dtype();
        assert!(
            stream.is_float() && dtype.size() <= stream.size(),
            "mixed: a branch in {dtype} needs a stream at least as wide, found {}",
            x.meta()
        );
        x.tape().in_precision(dtype, || self.module.forward(x.cast(dtype))).cast(stream)
    }
}
