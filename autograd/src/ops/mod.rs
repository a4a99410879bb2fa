//! The operations, each with its derivative beside its function. One file per family.

pub mod activation;
pub mod cast;
pub mod cross_entropy;
pub mod einsum;
pub mod elementwise;
pub mod index;
pub mod linear;
pub mod matmul;
pub mod movement;
pub mod norm;
pub mod random;
pub mod reduce;
pub mod sinkhorn;
pub mod softmax;
pub mod sort;
pub mod streams;
mod together;
pub mod triangle;

use limpid_tensor::{Fused, Result, Shape, Tensor};

use crate::op::{Op, forward_by_expansion};
use crate::var::Var;

/// The backend's kernel for an operation, or the operation's expansion where the backend has none.
fn fused(op: &impl Op, kernel: Fused, x: &[&Tensor]) -> Result<Tensor> {
    Tensor::fused(kernel, x).unwrap_or_else(|| forward_by_expansion(op, x))
}

impl<'t> Var<'t> {
    /// Sums over whatever broadcasting added, so that the result has `shape`: the derivative of broadcasting.
    ///
    /// # Panics
    /// If `shape` does not broadcast to this value's shape.
    #[track_caller]
    pub fn sum_to(self, shape: &Shape) -> Var<'t> {
        if self.tape.with_node(self, |node| node.meta.shape == *shape) {
            return self;
        }
        let own = self.shape();
        let axes = shape.broadcast_axes(&own);
        assert_eq!(shape.broadcast(&own).as_ref(), Some(&own), "sum_to: {shape} does not broadcast to {own}");
        self.reduce_axes(limpid_tensor::Reduce::Sum, &axes).reshape(shape)
    }

    /// [`sum_to`](Var::sum_to) the shape of another value.
    #[track_caller]
    #[inline]
    pub(crate) fn sum_to_like(self, x: Var<'t>) -> Var<'t> {
        let alike = {
            let nodes = self.tape.nodes.borrow();
            self.tape.node_of(&nodes, self).meta.shape == self.tape.node_of(&nodes, x).meta.shape
        };
        if alike { self } else { self.sum_to(&x.shape()) }
    }
}
