//! The CPU backend.

mod copy;
mod elementary;
#[cfg(test)]
mod fixture;
mod fold;
mod fused;
mod index;
mod map;
mod math;
mod matmul;
mod past_caches;
mod random;
mod reduce;
mod scan;
mod simd;
mod stored;
mod threads;
mod turn;
mod vector;
mod walk;

pub use copy::round_to_bf16;
pub use simd::widest;
pub use threads::set_threads;

use crate::primitive::{Fused, Map, Reduce};
use crate::rng::{Distribution, Key};
use crate::{Backend, DType, HostMemory, Layout, Result, Results, Shape, Tensor, Usage};

/// The processor this program runs on, as a [`Backend`].
#[derive(Debug)]
pub struct Cpu;

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }
    fn upload(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()
    }
    fn download(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()
    }
    fn map(&self, f: Map, x: &[&Tensor]) -> Result<Tensor> {
        HostMemory::in_kernel(|| map::map(f, x))
    }
    fn reduce(&self, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        HostMemory::in_kernel(|| reduce::reduce(f, x, axes))
    }
    fn cumsum(&self, x: &Tensor, axis: usize) -> Result<Tensor> {
        HostMemory::in_kernel(|| scan::cumsum(x, axis))
    }
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        HostMemory::in_kernel(|| matmul::matmul(a, b))
    }
    fn contiguous(&self, x: &Tensor) -> Result<Tensor> {
        HostMemory::in_kernel(|| copy::contiguous(x))
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        HostMemory::in_kernel(|| copy::cast(x, dtype))
    }
    fn assemble(&self, shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
        HostMemory::in_kernel(|| copy::assemble(shape, dtype, parts))
    }
    fn gather(&self, x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
        HostMemory::in_kernel(|| index::gather(x, axis, index))
    }
    fn scatter_add(&self, base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        HostMemory::in_kernel(|| index::scatter_add(base, axis, index, src))
    }
    fn argsort(&self, x: &Tensor, axis: usize, descending: bool) -> Result<Tensor> {
        HostMemory::in_kernel(|| index::argsort(x, axis, descending))
    }
    fn random(&self, what: Distribution, shape: &Shape, dtype: DType, key: Key) -> Result<Tensor> {
        HostMemory::in_kernel(|| random::random(what, shape, dtype, key))
    }
    fn add_in_place(&self, sum: &mut Tensor, x: &Tensor) -> Result<()> {
        map::add_in_place(sum, x);
        Ok(())
    }
    fn adds_in_place(&self) -> bool {
        true
    }
    fn sums_of_squares(&self, x: &[&Tensor]) -> Option<Result<Vec<f64>>> {
        HostMemory::in_kernel(|| Some(x.iter().map(|x| fold::sum_of_all_squares(x)).collect()))
    }
    fn fused(&self, f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
        HostMemory::in_kernel(|| fused::fused(f, x))
    }
    fn has_fused(&self, f: Fused, dtype: DType) -> bool {
        fused::has(f, dtype)
    }
    fn usage(&self) -> Option<Usage> {
        let HostMemory { live, peak, scratch, .. } = HostMemory::current();
        Some(Usage { live, peak, scratch })
    }
    fn set_peak(&self, bytes: isize) {
        HostMemory::set_peak(bytes);
    }
}
