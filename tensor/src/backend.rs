//! The one interface a device implements.

use std::fmt;
use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;

use crate::cpu::Cpu;
use crate::primitive::{Descent, Fused, Map, Pace, Reduce, WeightStep};
use crate::rng::{Distribution, Key};
use crate::{DType, Layout, Result, Shape, Tensor};

/// A device that stores tensors and computes with them.
///
/// The vocabulary is closed and small. Arguments have been checked (shapes agree, dtypes fit, every tensor is on
/// this device) by the [`Tensor`] method of the same name; what is left to fail is the device itself. Every
/// result is a new contiguous tensor on the same device, unless said otherwise.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The device's name in messages: `cpu`, `cuda:0`.
    fn name(&self) -> String;

    /// Copies a contiguous host tensor to this device.
    fn upload(&self, x: &Tensor) -> Result<Tensor>;

    /// Copies a tensor of this device into contiguous host memory.
    fn download(&self, x: &Tensor) -> Result<Tensor>;

    /// Copies a tensor of another device to this one without the host, if the two know a way. `None` makes the caller
    /// go by way of the host.
    fn fetch(&self, x: &Tensor) -> Option<Result<Tensor>> {
        let _ = x;
        None
    }

    /// Applies a function element by element, with broadcasting.
    fn map(&self, f: Map, x: &[&Tensor]) -> Result<Tensor>;

    /// Combines the elements along `axes` (sorted, distinct), which stay in the shape with size 1. The order of
    /// combination is fixed: it does not depend on the number of threads.
    fn reduce(&self, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor>;

    /// Running sums along `axis`: `y[k] = x[0] + … + x[k]`.
    fn cumsum(&self, x: &Tensor, axis: usize) -> Result<Tensor>;

    /// Matrix products over the last two axes, the leading ones broadcast: `[.., m, k] · [.., k, n]`.
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;

    /// The elements in row-major order.
    fn contiguous(&self, x: &Tensor) -> Result<Tensor>;

    /// Converts every element: rounding to nearest even, truncating to integers, non-zero to `true`.
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor>;

    /// Zeros of `shape` with each part written where its layout (a view of the row-major result) says. Parts do
    /// not overlap. Concatenation, padding and the derivatives of slices are all this.
    fn assemble(&self, shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor>;

    /// `y[.., i, ..] = x[.., index[.., i, ..], ..]` along `axis`; `index` has x's rank and, but for `axis`, its
    /// shape.
    ///
    /// # Errors
    /// If an index is negative or beyond the axis. A device that does not wait for its kernels says so when the thread
    /// next reads results.
    fn gather(&self, x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor>;

    /// A copy of `base` with `src[.., i, ..]` added at `index[.., i, ..]` along `axis`, in order of `i`.
    ///
    /// # Errors
    /// If an index is negative or beyond the axis, as for [`gather`](Backend::gather).
    fn scatter_add(&self, base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<Tensor>;

    /// The indices (i64) that sort along `axis`. Equal elements keep their order; NaN sorts last either way.
    fn argsort(&self, x: &Tensor, axis: usize, descending: bool) -> Result<Tensor>;

    /// Random values: element `i` is a function of the distribution, the key and `i` alone.
    fn random(&self, what: Distribution, shape: &Shape, dtype: DType, key: Key) -> Result<Tensor>;

    /// Adds x to a tensor that nothing else refers to, in its own memory: `sum[i] = sum[i] + x[i]`, the bits of
    /// [`Map::Add`]. Both are contiguous, of one shape, and of one dtype that is f32 or f64. Only called where
    /// [`adds_in_place`](Backend::adds_in_place).
    fn add_in_place(&self, sum: &mut Tensor, x: &Tensor) -> Result<()> {
        *sum = self.map(Map::Add, &[sum, x])?;
        Ok(())
    }

    /// Whether [`add_in_place`](Backend::add_in_place) makes no new tensor.
    fn adds_in_place(&self) -> bool {
        false
    }

    /// A fused kernel, if this device has one. `None` makes the caller use the kernel's expansion into
    /// primitives, so a new backend works as soon as its primitives do. The results are as [`Fused::results`] says.
    fn fused(&self, f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
        let _ = (f, x);
        None
    }

    /// Whether [`fused`](Backend::fused) has this kernel for a first operand of this dtype, without running it.
    fn has_fused(&self, f: Fused, dtype: DType) -> bool {
        let _ = (f, dtype);
        false
    }

    /// A step of an optimiser for many weights at once, if this device has a kernel for it. Tensors that nothing else
    /// refers to are changed in their own memory. `None` makes the caller do it on the host.
    fn descend(&self, rule: Descent, pace: Pace, weights: &mut [&mut WeightStep]) -> Option<Result<()>> {
        let _ = (rule, pace, weights);
        None
    }

    /// Σ x² of each of several float tensors, if this device has a kernel for it. `None` makes the caller do it on the
    /// host.
    fn sums_of_squares(&self, x: &[&Tensor]) -> Option<Result<Vec<f64>>> {
        let _ = x;
        None
    }

    /// The norm `√Σg²` of all gradients of a step together, each given with the name of its weight, and what brings it to
    /// at most `most`: f64 `[2]`. `None` where this device has no kernel for it, or none for [`descend`](Backend::descend).
    ///
    /// # Errors
    /// If the norm is not finite, with the name of the first weight whose gradient's norm is not. The scale is 0 then, and
    /// the thread is told when it next reads results.
    fn norm_and_scale(&self, gradients: &[(&str, &Tensor)], most: f64) -> Option<Result<Tensor>> {
        let _ = (gradients, most);
        None
    }

    /// Whether what this thread queues now does not run, but is kept as a graph to be run later.
    fn is_capturing(&self) -> bool {
        false
    }

    /// The device that this one stands in for, if it does: operands of both may then be mixed.
    fn stands_for(&self) -> Option<&Device> {
        None
    }

    /// What the device's allocator counts, if it counts.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Sets the mark from which [`Usage::peak`] rises: to `live` to measure anew, to an earlier peak to go on with that.
    /// [`Usage::scratch`] begins anew.
    fn set_peak(&self, bytes: isize) {
        let _ = bytes;
    }
}

/// What a fused kernel makes.
pub type Results = SmallVec<[Tensor; 3]>;

/// The bytes that a device's tensors take, as its allocator counts them. On the CPU: those of the calling thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes held by tensors made, less those of tensors dropped.
    pub live: isize,
    /// The largest value `live` has had since [`set_peak`](Backend::set_peak).
    pub peak: isize,
    /// The most that a kernel took on top of its operands and its result while it ran. `peak` does not count it: it depends
    /// on the kernel, not on the program.
    pub scratch: usize,
}

/// A handle on a [`Backend`]; two are equal if they are the same device.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

impl Device {
    /// A handle on a backend of your own.
    pub fn new(backend: Arc<dyn Backend>) -> Device {
        Device(backend)
    }

    /// The processor this program runs on.
    pub fn cpu() -> Device {
        static CPU: LazyLock<Device> = LazyLock::new(|| Device(Arc::new(Cpu)));
        CPU.clone()
    }

    /// The backend behind the handle.
    #[inline]
    pub fn backend(&self) -> &dyn Backend {
        &*self.0
    }
}

impl PartialEq for Device {
    #[inline]
    fn eq(&self, other: &Device) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.name())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name())
    }
}
