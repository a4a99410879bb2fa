//! The vocabulary of [`Backend`], each word handed to the file that has its kernels.

use std::fmt;

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{
    Backend, DType, Descent, Fused, Layout, Map, Pace, Reduce, Result, Results, Shape, Tensor, Usage,
    WeightStep,
};

use crate::device::Cuda;
use crate::ops::{copy, fused, index, map, matmul, optimizer, random, reduce, scan, sort};

/// A CUDA device as a [`Backend`].
pub(crate) struct CudaBackend(pub(crate) &'static Cuda);

impl fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        self.0.device_name()
    }
    fn upload(&self, x: &Tensor) -> Result<Tensor> {
        self.0.upload(x)
    }
    fn download(&self, x: &Tensor) -> Result<Tensor> {
        self.0.download(x)
    }
    fn fetch(&self, x: &Tensor) -> Option<Result<Tensor>> {
        self.0.fetch(x)
    }
    fn map(&self, f: Map, x: &[&Tensor]) -> Result<Tensor> {
        map::map(self.0, f, x)
    }
    fn reduce(&self, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        reduce::reduce(self.0, f, x, axes)
    }
    fn cumsum(&self, x: &Tensor, axis: usize) -> Result<Tensor> {
        scan::cumsum(self.0, x, axis)
    }
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        matmul::matmul(self.0, a, b)
    }
    fn contiguous(&self, x: &Tensor) -> Result<Tensor> {
        copy::contiguous(self.0, x)
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        copy::cast(self.0, x, dtype)
    }
    fn assemble(&self, shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
        copy::assemble(self.0, shape, dtype, parts)
    }
    fn gather(&self, x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
        index::gather(self.0, x, axis, index)
    }
    fn scatter_add(&self, base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        index::scatter_add(self.0, base, axis, index, src)
    }
    fn argsort(&self, x: &Tensor, axis: usize, descending: bool) -> Result<Tensor> {
        sort::argsort(self.0, x, axis, descending)
    }
    fn random(&self, what: Distribution, shape: &Shape, dtype: DType, key: Key) -> Result<Tensor> {
        random::random(self.0, what, shape, dtype, key)
    }
    fn add_in_place(&self, sum: &mut Tensor, x: &Tensor) -> Result<()> {
        map::add_in_place(self.0, sum, x)
    }
    fn adds_in_place(&self) -> bool {
        true
    }
    fn fused(&self, f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
        fused::fused(self.0, f, x)
    }
    fn has_fused(&self, f: Fused, dtype: DType) -> bool {
        fused::has(f, dtype)
    }
    fn descend(&self, rule: Descent, pace: Pace, weights: &mut [&mut WeightStep]) -> Option<Result<()>> {
        Some(optimizer::descend(self.0, rule, pace, weights))
    }
    fn sums_of_squares(&self, x: &[&Tensor]) -> Option<Result<Vec<f64>>> {
        Some(optimizer::sums_of_squares(self.0, x))
    }
    fn norm_and_scale(&self, gradients: &[(&str, &Tensor)], most: f64) -> Option<Result<Tensor>> {
        Some(optimizer::norm_and_scale(self.0, gradients, most))
    }
    fn is_capturing(&self) -> bool {
        self.0.is_capturing()
    }
    fn usage(&self) -> Option<Usage> {
        Some(self.0.usage())
    }
    fn set_peak(&self, bytes: isize) {
        self.0.set_peak(bytes);
    }
}
