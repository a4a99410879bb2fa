//! Every kernel of the processor's backend, at sizes that a cache holds and at sizes that it does not.

mod copies;
mod draws;
mod indexed;
mod maps;
mod optimisers;
mod products;
mod reductions;
mod rows;
mod sinkhorn;

use limpid_tensor::{Fused, Result, Tensor};

use crate::Case;

/// Elements (f32) of an operand that the second level of cache holds together with two more.
const SMALL: usize = 1 << 14;
/// Elements of one that no cache holds: 64 MB in f32.
const LARGE: usize = 1 << 24;

/// All of them, group by group.
pub fn all() -> Vec<Case> {
    let groups = [
        copies::cases(),
        maps::cases(),
        reductions::cases(),
        rows::cases(),
        indexed::cases(),
        products::cases(),
        sinkhorn::cases(),
        optimisers::cases(),
        draws::cases(),
    ];
    groups.into_iter().flatten().collect()
}

fn fused(f: Fused, x: &[Tensor]) -> Result<Tensor> {
    let operands: Vec<&Tensor> = x.iter().collect();
    Tensor::fused(f, &operands).expect("the processor's backend has every fused kernel")
}
