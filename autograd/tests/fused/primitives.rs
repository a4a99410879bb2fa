//! A device that has every primitive and no fused kernel.

use std::sync::{Arc, LazyLock};

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Backend, DType, Device, Layout, Map, Reduce, Result, Shape, StorageRef, Tensor};

/// Computes on the CPU what it is asked for, in memory that the CPU backend cannot see.
#[derive(Debug)]
struct Primitives;

pub fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| Device::new(Arc::new(Primitives)));
    DEVICE.clone()
}

fn put(x: Result<Tensor>) -> Result<Tensor> {
    let x = x?.contiguous()?;
    let (layout, dtype) = (Layout::contiguous(x.shape()), x.dtype());
    let bytes = x.meta().bytes();
    Ok(Tensor::from_storage(StorageRef::from_device(Box::new(x), bytes, device()), layout, dtype))
}

fn get(x: &Tensor) -> Tensor {
    let held = x.storage().handle::<Tensor>().expect("a tensor of this device");
    Tensor::from_storage(held.storage().clone(), x.layout().clone(), x.dtype())
}

fn get_all(x: &[&Tensor]) -> Vec<Tensor> {
    x.iter().map(|x| get(x)).collect()
}

impl Backend for Primitives {
    fn name(&self) -> String {
        "primitives".into()
    }
    fn upload(&self, x: &Tensor) -> Result<Tensor> {
        put(Ok(x.clone()))
    }
    fn download(&self, x: &Tensor) -> Result<Tensor> {
        get(x).contiguous()
    }
    fn map(&self, f: Map, x: &[&Tensor]) -> Result<Tensor> {
        put(Tensor::map(f, &get_all(x).iter().collect::<Vec<_>>()))
    }
    fn reduce(&self, f: Reduce, x: &Tensor, axes: &[usize]) -> Result<Tensor> {
        put(Device::cpu().backend().reduce(f, &get(x), axes))
    }
    fn cumsum(&self, x: &Tensor, axis: usize) -> Result<Tensor> {
        put(get(x).cumsum(axis as isize))
    }
    fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        put(get(a).matmul(&get(b)))
    }
    fn contiguous(&self, x: &Tensor) -> Result<Tensor> {
        put(Ok(get(x)))
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        put(get(x).cast(dtype))
    }
    fn assemble(&self, shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
        let held: Vec<(Layout, Tensor)> = parts.iter().map(|(layout, x)| (layout.clone(), get(x))).collect();
        let parts: Vec<(Layout, &Tensor)> = held.iter().map(|(layout, x)| (layout.clone(), x)).collect();
        put(Tensor::assemble(&Device::cpu(), shape, dtype, &parts))
    }
    fn gather(&self, x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
        put(get(x).gather(axis as isize, &get(index)))
    }
    fn scatter_add(&self, base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        put(get(base).scatter_add(axis as isize, &get(index), &get(src)))
    }
    fn argsort(&self, x: &Tensor, axis: usize, descending: bool) -> Result<Tensor> {
        put(get(x).argsort(axis as isize, descending))
    }
    fn random(&self, what: Distribution, shape: &Shape, dtype: DType, key: Key) -> Result<Tensor> {
        put(Tensor::random(what, shape, dtype, key))
    }
}
