//! Matrix products.

use limpid_tensor::{Inferred, Meta, Result, Tensor, infer_matmul};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::var::Var;

/// `Y = A·B` over the last two axes, the leading ones broadcast: `Ā = Ȳ·Bᵀ`, `B̄ = Aᵀ·Ȳ`, each summed over the axes
/// along which it was broadcast.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_matmul(x[0], x[1])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        x[0].matmul(x[1])
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        Needs::inputs(&[1]).when(tracked[0]).or(Needs::inputs(&[0]).when(tracked[1]))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| {
            let product = match i {
                0 => at.g().matmul(at.x(1).transpose(-2, -1)),
                _ => at.x(0).transpose(-2, -1).matmul(at.g()),
            };
            product.sum_to(&at.x(i).shape())
        })
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| if i == 0 { dx.matmul(at.x(1)) } else { at.x(0).matmul(dx) })
    }

    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        2 * (y.shape.elements() * x[0].shape[x[0].shape.len() - 1]) as u64
    }
}

impl<'t> Var<'t> {
    /// The matrix product over the last two axes, the leading ones broadcast: `[.., m, k]·[.., k, n]`. An operand of
    /// one axis is a row on the left and a column on the right, and that axis is gone from the result.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let a = tape.variable(&Tensor::ones([5, 2, 3], DType::F64));
    /// let v = tape.variable(&Tensor::ones([3], DType::F64));
    /// assert_eq!(a.matmul(v).shape().to_string(), "[5, 2]");
    /// ```
    #[track_caller]
    pub fn matmul(self, other: Var<'t>) -> Var<'t> {
        let (row, column) = (self.shape().len() == 1, other.shape().len() == 1);
        let a = if row { self.unsqueeze(0) } else { self };
        let b = if column { other.unsqueeze(1) } else { other };
        let mut y = a.tape().record(MatMul, &[a, b]);
        if row {
            y = y.squeeze(-2);
        }
        if column {
            y = y.squeeze(-1);
        }
        y
    }
}
