//! A device that computes nothing: its tensors have a shape, a layout and a size, and no elements.
//!
//! A program that runs on one allocates and frees what it would elsewhere, view for view and byte for byte, in no time:
//! how a plan knows what a run will hold.

use std::fmt;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Weak};

use crate::primitive::{Fused, Map, Meta, Reduce, infer_matmul};
use crate::rng::{Distribution, Key};
use crate::storage::StorageRef;
use crate::{Backend, DType, Device, Error, Layout, Result, Results, Shape, Tensor, Usage};

/// Stands in for another device, with its fused kernels.
struct Phantom {
    of: Device,
    meter: Arc<Meter>,
    this: Weak<Phantom>,
}

#[derive(Default)]
struct Meter {
    live: AtomicIsize,
    peak: AtomicIsize,
}

/// Memory that is counted and not there.
struct Held {
    bytes: isize,
    meter: Arc<Meter>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Device {
    /// A device of its own that stands in for `of`: it has the same kernels, computes nothing, and
    /// [counts](Backend::usage) the bytes that tensors would take. To read an element is an error.
    ///
    /// ```
    /// use limpid_tensor::{DType, Device, Map, Tensor};
    /// let phantom = Device::phantom(&Device::cpu());
    /// let x = Tensor::zeros([1000, 1000], DType::F32).to(&phantom)?;
    /// let y = Tensor::map(Map::Exp, &[&x.transpose(0, 1)])?;
    /// assert_eq!(phantom.backend().usage().unwrap().live, 8_000_000);
    /// assert_eq!(y.to_vec::<f32>().unwrap_err().to_string(), "phantom of cpu: its tensors have no elements to read");
    /// # Ok::<(), limpid_tensor::Error>(())
    /// ```
    pub fn phantom(of: &Device) -> Device {
        let (of, meter) = (of.clone(), Arc::default());
        Device::new(Arc::new_cyclic(|this| Phantom { of, meter, this: this.clone() }))
    }
}

impl Phantom {
    fn tensor(&self, meta: Meta) -> Tensor {
        let bytes = meta.bytes() as isize;
        let live = self.meter.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.meter.peak.fetch_max(live, Ordering::Relaxed);
        let device = Device::new(self.this.upgrade().expect("a device outlives the call of its method"));
        let handle = Box::new(Held { bytes, meter: self.meter.clone() });
        let storage = StorageRef::from_device(handle, bytes as usize, device);
        Tensor::from_storage(storage, Layout::contiguous(meta.shape), meta.dtype)
    }

    fn of_shape(&self, shape: &Shape, dtype: DType) -> Result<Tensor> {
        Ok(self.tensor(Meta { shape: shape.clone(), dtype }))
    }

    fn inferred(&self, meta: std::result::Result<Meta, String>) -> Result<Tensor> {
        meta.map(|meta| self.tensor(meta)).map_err(|message| Error::Device { device: self.name(), message })
    }
}

impl fmt::Debug for Phantom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Backend for Phantom {
    fn name(&self) -> String {
        format!("phantom of {}", self.of)
    }

    fn upload(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.tensor(x.meta()))
    }

    fn download(&self, _x: &Tensor) -> Result<Tensor> {
        let message = "its tensors have no elements to read".into();
        Err(Error::Device { device: self.name(), message })
    }

    fn map(&self, f: Map, x: &[&Tensor]) -> Result<Tensor> {
        let metas: Vec<Meta> = x.iter().map(|x| x.meta()).collect();
        self.inferred(f.infer(&metas.iter().collect::<Vec<_>>()))
    }

    fn reduce(&self, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        self.inferred(f.infer(&x.meta(), axes))
    }

    fn cumsum(&self, x: &Tensor, _axis: usize) -> Result<Tensor> {
        Ok(self.tensor(x.meta()))
    }

    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.inferred(infer_matmul(&a.meta(), &b.meta()))
    }

    fn contiguous(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.tensor(x.meta()))
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        self.of_shape(x.shape(), dtype)
    }

    fn assemble(&self, shape: &Shape, dtype: DType, _parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
        self.of_shape(shape, dtype)
    }

    fn gather(&self, x: &Tensor, _axis: usize, index: &Tensor) -> Result<Tensor> {
        self.of_shape(index.shape(), x.dtype())
    }

    fn scatter_add(&self, base: &Tensor, _axis: usize, _index: &Tensor, _src: &Tensor) -> Result<Tensor> {
        Ok(self.tensor(base.meta()))
    }

    fn argsort(&self, x: &Tensor, _axis: usize, _descending: bool) -> Result<Tensor> {
        self.of_shape(x.shape(), DType::I64)
    }

    fn random(&self, _what: Distribution, shape: &Shape, dtype: DType, _key: Key) -> Result<Tensor> {
        self.of_shape(shape, dtype)
    }

    fn add_in_place(&self, _sum: &mut Tensor, _x: &Tensor) -> Result<()> {
        Ok(())
    }

    fn adds_in_place(&self) -> bool {
        self.of.backend().adds_in_place()
    }

    fn fused(&self, f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
        let metas: Vec<Meta> = x.iter().map(|x| x.meta()).collect();
        let results = f.results(&metas.iter().collect::<Vec<_>>());
        let made = || Ok(results.into_iter().map(|meta| self.tensor(meta)).collect());
        self.of.backend().has_fused(f, x[0].dtype()).then(made)
    }

    fn has_fused(&self, f: Fused, dtype: DType) -> bool {
        self.of.backend().has_fused(f, dtype)
    }

    fn stands_for(&self) -> Option<&Device> {
        Some(&self.of)
    }

    fn usage(&self) -> Option<Usage> {
        let [live, peak] = [&self.meter.live, &self.meter.peak].map(|count| count.load(Ordering::Relaxed));
        Some(Usage { live, peak, scratch: 0 })
    }

    fn set_peak(&self, bytes: isize) {
        self.meter.peak.store(bytes, Ordering::Relaxed);
    }
}
