//! Kernels that an operation launches for large operands alone, asked for whatever the shapes: so that demonstrations, checks
//! and measurements run every kernel there is.

pub use crate::ops::matmul::{has_product, linear_add_by, product_by};
pub use crate::ops::reduce::reduce_in_turns;
