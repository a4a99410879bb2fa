//! What each operation launches: one file for each file of kernels, of the same name.

pub(crate) mod connection;
pub(crate) mod copy;
pub(crate) mod fused;
pub(crate) mod index;
pub(crate) mod linear;
pub(crate) mod map;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rows;
pub(crate) mod scan;
pub(crate) mod sinkhorn;
pub(crate) mod softmax;
pub(crate) mod sort;

use crate::module::Family;

/// Every file of kernels.
pub fn families() -> Vec<&'static Family> {
    vec![
        &connection::CONNECTION,
        &copy::COPY,
        &index::INDEX,
        &linear::LINEAR,
        &map::MAP,
        &matmul::MATMUL,
        &matmul::TENSOR_CORE,
        &matmul::WGMMA,
        &norm::NORM,
        &optimizer::OPTIMIZER,
        &random::RANDOM,
        &reduce::REDUCE,
        &scan::SCAN,
        &sinkhorn::SINKHORN,
        &softmax::SOFTMAX,
        &sort::SORT,
    ]
}
