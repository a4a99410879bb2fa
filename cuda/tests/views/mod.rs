//! One tensor in several places: what a kernel for contiguous, aligned rows must not take for granted.

use limpid_tensor::{Device, Layout, Tensor};

/// The same numbers contiguous, with the axes the other way round in memory, behind one element of something else, with
/// gaps, and backwards.
pub fn views(x: &Tensor) -> Vec<Tensor> {
    let last = x.shape().len() - 1;
    let turned: Vec<usize> = (0..=last).rev().collect();
    let size = x.shape()[last];
    let contiguous = |x: Tensor| x.contiguous().expect("the CPU copies");
    vec![
        x.clone(),
        contiguous(x.permute(&turned)).permute(&turned),
        part_of(x, size + 1, 1),
        part_of(x, 2 * size, 2),
        contiguous(x.flip(last)).flip(last),
    ]
}

/// As every `step`-th element, from the second on, of `wide` along the last axis of a larger tensor.
fn part_of(x: &Tensor, wide: usize, step: usize) -> Tensor {
    let last = x.shape().len() - 1;
    let larger = x.shape().with(last, wide);
    let place = Layout::contiguous(larger.clone()).slice(last, 1, wide, step);
    let all = Tensor::assemble(&Device::cpu(), larger, x.dtype(), &[(place, x)]).expect("the CPU copies");
    all.slice(last, 1, wide, step)
}
