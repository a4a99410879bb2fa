//! The operations, each with its derivative beside its function. One file per family.

pub mod cast;
pub mod einsum;
pub mod elementwise;
pub mod index;
pub mod matmul;
pub mod movement;
pub mod random;
pub mod reduce;
pub mod sort;
pub mod triangle;

use limpid_tensor::Shape;

use crate::var::Var;

impl<'t> Var<'t> {
    /// Sums over whatever broadcasting added, so that the result has `shape`: the derivative of broadcasting.
    ///
    /// # Panics
    /// If `shape` does not broadcast to this value's shape.
    #[track_caller]
    pub fn sum_to(self, shape: &Shape) -> Var<'t> {
        let own = self.shape();
        if own == *shape {
            return self;
        }
        let axes = shape.broadcast_axes(&own);
        assert_eq!(shape.broadcast(&own).as_ref(), Some(&own), "sum_to: {shape} does not broadcast to {own}");
        self.reduce_axes(limpid_tensor::Reduce::Sum, &axes).reshape(shape)
    }
}
