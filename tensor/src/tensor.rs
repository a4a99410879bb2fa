//! The tensor itself: an immutable value made of storage, layout and dtype.

use smallvec::SmallVec;

use crate::primitive::{self, Fused, Inferred, Map, Meta, Reduce};
use crate::rng::{Distribution, Key};
use crate::storage::StorageRef;
use crate::{DType, Device, Element, HostBuffer, Layout, Result, Results, Shape};

/// An n-dimensional array: shared storage, a [`Layout`] that says which element is where, and a [`DType`].
///
/// A tensor never changes. Cloning, transposing, slicing and broadcasting copy no element.
///
/// ```
/// use limpid_tensor::Tensor;
/// # fn main() -> limpid_tensor::Result<()> {
/// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
/// let y = x.transpose(0, 1).slice(0, 1, 3, 1);
/// assert_eq!(y.shape().to_string(), "[2, 2]");
/// assert_eq!(y.to_vec::<f32>()?, [2.0, 5.0, 3.0, 6.0]);
/// assert_eq!(y.storage().id(), x.storage().id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tensor {
    storage: StorageRef,
    layout: Layout,
    dtype: DType,
}

/// Making tensors, on the CPU; [`Tensor::to`] takes them elsewhere.
impl Tensor {
    /// A tensor of these elements in row-major order.
    ///
    /// # Panics
    /// If their number is not the shape's.
    #[track_caller]
    pub fn from_slice<T: Element>(values: &[T], shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(values.len(), shape.elements(), "from_slice: {} elements for shape {shape}", values.len());
        let bytes = T::to_bytes(values);
        let mut buffer = HostBuffer::new(bytes.len());
        buffer.as_mut::<u8>().copy_from_slice(bytes);
        buffer.into_tensor(shape, T::DTYPE)
    }

    /// As [`from_slice`](Tensor::from_slice), from a vector.
    #[track_caller]
    pub fn from_vec<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_slice(&values, shape)
    }

    /// A tensor of the given dtype from f64 values, each rounded to the nearest element.
    #[track_caller]
    pub fn from_f64(values: &[f64], shape: impl Into<Shape>, dtype: DType) -> Tensor {
        fn convert<T: Element>(values: &[f64], shape: Shape) -> Tensor {
            Tensor::from_slice(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>(), shape)
        }
        with_element!(dtype, T => convert::<T>(values, shape.into()))
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_slice(&[value], [])
    }

    /// Every element the same.
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType) -> Tensor {
        fn fill<T: Element>(shape: Shape, value: f64) -> Tensor {
            let mut buffer = HostBuffer::new(shape.elements() * T::DTYPE.size());
            let value = [T::from_f64(value)];
            let pattern = T::to_bytes(&value);
            for element in buffer.as_mut::<u8>().chunks_exact_mut(pattern.len()) {
                element.copy_from_slice(pattern);
            }
            buffer.into_tensor(shape, T::DTYPE)
        }
        with_element!(dtype, T => fill::<T>(shape.into(), value))
    }

    /// Every element 0 (or `false`).
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        let mut buffer = HostBuffer::new(shape.elements() * dtype.size());
        buffer.as_mut::<u8>().fill(0);
        buffer.into_tensor(shape, dtype)
    }

    /// Every element 1 (or `true`).
    pub fn ones(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        Tensor::full(shape, 1.0, dtype)
    }

    /// The identity matrix of size n.
    pub fn eye(n: usize, dtype: DType) -> Tensor {
        let values: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
        Tensor::from_f64(&values, [n, n], dtype)
    }

    /// `start, start + step, …` up to but not including `end`.
    ///
    /// ```
    /// use limpid_tensor::{DType, Tensor};
    /// assert_eq!(Tensor::arange(0.0, 5.0, 2.0, DType::I64).to_vec::<i64>().unwrap(), [0, 2, 4]);
    /// ```
    ///
    /// # Panics
    /// If `step` is 0.
    #[track_caller]
    pub fn arange(start: f64, end: f64, step: f64, dtype: DType) -> Tensor {
        assert!(step != 0.0, "arange: step is 0");
        let n = ((end - start) / step).ceil().max(0.0) as usize;
        let values: Vec<f64> = (0..n).map(|i| start + i as f64 * step).collect();
        Tensor::from_f64(&values, [n], dtype)
    }

    /// `n` values from `start` to `end`, both included, evenly spaced.
    pub fn linspace(start: f64, end: f64, n: usize, dtype: DType) -> Tensor {
        let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
        let at = |i: usize| if i + 1 == n && n > 1 { end } else { start + i as f64 * step };
        Tensor::from_f64(&(0..n).map(at).collect::<Vec<_>>(), [n], dtype)
    }

    /// Rows of the identity: `labels` (i64, any shape) → `[.., classes]` with a 1 at each label.
    ///
    /// # Panics
    /// If a label is outside `0..classes`, or `labels` is not a host tensor of i64.
    #[track_caller]
    pub fn one_hot(labels: &Tensor, classes: usize, dtype: DType) -> Tensor {
        let labels_i64 = labels.to_vec::<i64>().expect("one_hot reads its labels on the host");
        let mut values = vec![0.0; labels_i64.len() * classes];
        for (row, &label) in labels_i64.iter().enumerate() {
            assert!((0..classes as i64).contains(&label), "one_hot: label {label} is outside 0..{classes}");
            values[row * classes + label as usize] = 1.0;
        }
        let shape: Shape = labels.shape().iter().copied().chain([classes]).collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    /// Random values; see [`Distribution`]. The same key gives the same values, on every device.
    ///
    /// # Panics
    /// If the distribution's parameters make no sense, or it is not defined for the dtype or the shape.
    #[track_caller]
    pub fn random(what: Distribution, shape: impl Into<Shape>, dtype: DType, key: Key) -> Result<Tensor> {
        let shape = shape.into();
        checked(what.infer(&shape, dtype));
        Device::cpu().backend().random(what, &shape, dtype, key)
    }

    /// A view of storage.
    ///
    /// # Panics
    /// If the layout reaches beyond the storage.
    #[track_caller]
    pub fn from_storage(storage: StorageRef, layout: Layout, dtype: DType) -> Tensor {
        let end = layout.span().map_or(0, |span| span.end);
        assert!(end * dtype.size() <= storage.bytes(), "layout reaches beyond its storage");
        Tensor { storage, layout, dtype }
    }

    /// The whole of a storage, which has exactly the bytes of `shape`, in row-major order.
    pub(crate) fn filling(storage: StorageRef, shape: Shape, dtype: DType) -> Tensor {
        Tensor { storage, layout: Layout::contiguous(shape), dtype }
    }
}

/// What a tensor is.
impl Tensor {
    /// Size along each axis.
    #[inline]
    pub fn shape(&self) -> &Shape {
        self.layout.shape()
    }

    /// Element type.
    #[inline]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape and dtype.
    #[inline]
    pub fn meta(&self) -> Meta {
        Meta { shape: self.shape().clone(), dtype: self.dtype }
    }

    /// The number of elements.
    #[inline]
    pub fn elements(&self) -> usize {
        self.shape().elements()
    }

    /// Where each element lies.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory that holds the elements.
    #[inline]
    pub fn storage(&self) -> &StorageRef {
        &self.storage
    }

    /// The device the memory belongs to.
    #[inline]
    pub fn device(&self) -> &Device {
        self.storage.device()
    }
}

/// Reading elements.
impl Tensor {
    /// The elements in row-major order, copied to the host.
    ///
    /// # Panics
    /// If `T` is not the tensor's dtype.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        assert_eq!(T::DTYPE, self.dtype, "to_vec: asked for {}, the tensor is {}", T::DTYPE, self.dtype);
        let host = self.device().backend().download(self)?;
        Ok(host.as_slice::<T>().expect("downloaded tensors are contiguous").to_vec())
    }

    /// The elements in row-major order as f64, whatever the dtype.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        fn convert<T: Element>(x: &Tensor) -> Result<Vec<f64>> {
            Ok(x.to_vec::<T>()?.into_iter().map(T::to_f64).collect())
        }
        with_element!(self.dtype, T => convert::<T>(self))
    }

    /// The only element of a one-element tensor, as f64.
    ///
    /// # Panics
    /// If there is not exactly one element.
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        fn first<T: Element>(x: &Tensor) -> Option<f64> {
            x.as_slice::<T>().map(|elements| elements[0].to_f64())
        }
        assert_eq!(self.elements(), 1, "item: shape {} does not hold exactly one element", self.shape());
        let host = self.device().backend().download(self)?;
        Ok(with_element!(self.dtype, T => first::<T>(&host)).expect("downloaded tensors are contiguous"))
    }

    /// The elements without a copy, if they are contiguous in host memory.
    ///
    /// # Panics
    /// If `T` is not the tensor's dtype.
    #[track_caller]
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        assert_eq!(T::DTYPE, self.dtype, "as_slice: asked for {}, the tensor is {}", T::DTYPE, self.dtype);
        let bytes = self.storage.host()?;
        if !self.layout.is_contiguous() {
            return None;
        }
        // A view without elements may have its offset anywhere.
        let start = if self.elements() == 0 { 0 } else { self.layout.offset() * self.dtype.size() };
        Some(T::from_bytes(&bytes[start..start + self.elements() * self.dtype.size()]))
    }

    /// The elements for writing in place, if this tensor is alone in referring to its host memory and contiguous
    /// from its start. How an optimiser updates a parameter without an allocation.
    ///
    /// # Panics
    /// If `T` is not the tensor's dtype.
    #[track_caller]
    pub fn as_mut_slice<T: Element + bytemuck::Pod>(&mut self) -> Option<&mut [T]> {
        assert_eq!(
            T::DTYPE,
            self.dtype,
            "as_mut_slice: asked for {}, the tensor is {}",
            T::DTYPE,
            self.dtype
        );
        if !self.layout.is_contiguous() || self.layout.offset() != 0 {
            return None;
        }
        let bytes = self.elements() * self.dtype.size();
        Some(bytemuck::cast_slice_mut(&mut self.storage.host_mut()?[..bytes]))
    }

    /// Whether nothing else refers to the tensor's memory: a device may then write into it.
    pub fn is_alone(&mut self) -> bool {
        self.storage.is_unique()
    }

    /// The tensor in another device's memory.
    pub fn to(&self, device: &Device) -> Result<Tensor> {
        if self.device() == device {
            return Ok(self.clone());
        }
        if let Some(fetched) = device.backend().fetch(self) {
            return fetched;
        }
        let host = self.device().backend().download(self)?;
        if *device == Device::cpu() { Ok(host) } else { device.backend().upload(&host) }
    }
}

/// Views: no element is copied.
impl Tensor {
    fn view(&self, layout: Layout) -> Tensor {
        Tensor { storage: self.storage.clone(), layout, dtype: self.dtype }
    }

    /// Axis `i` of the result is axis `order[i]` of this tensor. See [`Layout::permute`].
    #[track_caller]
    pub fn permute(&self, order: &[usize]) -> Tensor {
        self.view(self.layout.permute(order))
    }

    /// Exchanges two axes, which may count from the end.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Tensor {
        let (a, b) = (self.shape().axis(a), self.shape().axis(b));
        let mut order: SmallVec<[usize; 6]> = SmallVec::new();
        for axis in 0..self.shape().len() {
            order.push(axis);
        }
        order.swap(a, b);
        self.permute(&order)
    }

    /// Every `step`-th element of `start..end` along `axis`. See [`Layout::slice`].
    #[track_caller]
    pub fn slice(&self, axis: usize, start: usize, end: usize, step: usize) -> Tensor {
        self.view(self.layout.slice(axis, start, end, step))
    }

    /// The elements along `axis` in reverse.
    pub fn flip(&self, axis: usize) -> Tensor {
        self.view(self.layout.flip(axis))
    }

    /// Repeats axes of size 1, and adds leading axes, to reach `shape`.
    ///
    /// # Panics
    /// If the shapes do not agree.
    #[track_caller]
    pub fn expand(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        match self.layout.broadcast(&shape) {
            Some(layout) => self.view(layout),
            None => panic!("expand: {} does not broadcast to {shape}", self.shape()),
        }
    }

    /// Any view of the storage: index `[i, j, …]` is its element `offset + i·strides[0] + j·strides[1] + …`, whatever the
    /// layout of this tensor.
    ///
    /// ```
    /// use limpid_tensor::Tensor;
    /// let x = Tensor::from_vec(vec![0.0f64, 1.0, 2.0, 3.0, 4.0, 5.0], [6]);
    /// assert_eq!(x.as_strided([2, 2], &[-3, 2], 3).to_vec::<f64>()?, [3.0, 5.0, 0.0, 2.0]);
    /// # Ok::<(), limpid_tensor::Error>(())
    /// ```
    ///
    /// # Panics
    /// If there is not one stride for each axis, or an element would lie outside the storage.
    #[track_caller]
    pub fn as_strided(&self, shape: impl Into<Shape>, strides: &[isize], offset: usize) -> Tensor {
        Tensor::from_storage(self.storage.clone(), Layout::strided(shape, strides, offset), self.dtype)
    }

    /// The same elements under another shape: a view where the strides allow it, else a copy.
    ///
    /// # Panics
    /// If the numbers of elements differ.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        match self.layout.reshape(&shape) {
            Some(layout) => Ok(self.view(layout)),
            None => {
                let copy = self.contiguous()?;
                let layout = copy.layout.reshape(&shape).expect("a contiguous tensor takes any shape");
                Ok(copy.view(layout))
            }
        }
    }
}

/// Computing. Each method checks its operands and asks the device; a wrong shape, dtype or device panics at the
/// caller's line, and what the device itself cannot do is an error.
impl Tensor {
    /// Applies a function element by element, with broadcasting. See [`Map`].
    ///
    /// ```
    /// use limpid_tensor::{Map, Tensor};
    /// let a = Tensor::from_vec(vec![1.0f64, 2.0], [2, 1]);
    /// let b = Tensor::from_vec(vec![10.0, 20.0, 30.0], [3]);
    /// let sum = Tensor::map(Map::Add, &[&a, &b]).unwrap();
    /// assert_eq!(sum.to_vec::<f64>().unwrap(), [11.0, 21.0, 31.0, 12.0, 22.0, 32.0]);
    /// ```
    #[track_caller]
    pub fn map(f: Map, x: &[&Tensor]) -> Result<Tensor> {
        if !f.takes_alike(x) {
            let metas: SmallVec<[Meta; 3]> = x.iter().map(|t| t.meta()).collect();
            checked(f.infer(&metas.iter().collect::<SmallVec<[&Meta; 3]>>()));
        }
        same_device(f.name(), x).backend().map(f, x)
    }

    /// Becomes `self + x`, both of one shape and dtype: in its own memory where nothing else refers to it, both are
    /// contiguous f32 or f64, and the device can, so that a sum of many terms allocates nothing.
    ///
    /// ```
    /// use limpid_tensor::{DType, Tensor};
    /// let mut sum = Tensor::ones([3], DType::F32);
    /// let memory = sum.storage().id();
    /// sum.add_in_place(&Tensor::arange(0.0, 3.0, 1.0, DType::F32))?;
    /// assert_eq!((sum.to_vec::<f32>()?, sum.storage().id()), (vec![1.0, 2.0, 3.0], memory));
    /// # Ok::<(), limpid_tensor::Error>(())
    /// ```
    ///
    /// # Panics
    /// If shapes or dtypes differ.
    #[track_caller]
    pub fn add_in_place(&mut self, x: &Tensor) -> Result<()> {
        let alike = self.dtype == x.dtype && self.shape() == x.shape();
        assert!(alike, "add_in_place: {} and {} differ", self.meta(), x.meta());
        let other;
        let device = if self.device() == x.device() {
            x.device()
        } else {
            other = same_device("add_in_place", &[self, x]).clone();
            &other
        };
        let fits = matches!(self.dtype, DType::F32 | DType::F64)
            && [&*self, x].iter().all(|t| t.layout.is_contiguous() && t.layout.offset() == 0);
        if !(fits && device.backend().adds_in_place() && self.storage.is_unique()) {
            *self = Tensor::map(Map::Add, &[self, x])?;
            return Ok(());
        }
        device.backend().add_in_place(self, x)
    }

    /// Combines the elements along some axes (none given: all), which stay with size 1. See [`Reduce`].
    #[track_caller]
    pub fn reduce(&self, f: Reduce, axes: &[isize]) -> Result<Tensor> {
        let axes = self.shape().axes(axes);
        checked(f.infer(&self.meta(), &axes));
        self.device().backend().reduce(f, self, &axes)
    }

    /// Running sums along an axis.
    #[track_caller]
    pub fn cumsum(&self, axis: isize) -> Result<Tensor> {
        assert!(self.dtype != DType::Bool, "cumsum is not defined for bool; cast first");
        self.device().backend().cumsum(self, self.shape().axis(axis))
    }

    /// Matrix product over the last two axes, the leading ones broadcast.
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        checked(primitive::infer_matmul(&self.meta(), &other.meta()));
        same_device("matmul", &[self, other]).backend().matmul(self, other)
    }

    /// This tensor with its elements in row-major order; itself if they already are.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.layout.is_contiguous() { Ok(self.clone()) } else { self.device().backend().contiguous(self) }
    }

    /// Another dtype; itself if it already has it.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype == dtype { Ok(self.clone()) } else { self.device().backend().cast(self, dtype) }
    }

    /// Zeros with parts written into them. Each layout is a view of the row-major result, of the part's shape.
    ///
    /// # Panics
    /// If a layout and its part differ in shape, or a part in dtype.
    #[track_caller]
    pub fn assemble(
        device: &Device,
        shape: impl Into<Shape>,
        dtype: DType,
        parts: &[(Layout, &Tensor)],
    ) -> Result<Tensor> {
        let shape = shape.into();
        for (layout, part) in parts {
            assert_eq!(layout.shape(), part.shape(), "assemble: place and part differ in shape");
            assert_eq!(dtype, part.dtype, "assemble: result and part differ in dtype");
            let end = layout.span().map_or(0, |span| span.end);
            assert!(end <= shape.elements(), "assemble: a part reaches beyond {shape}");
            same_device("assemble", &[part]);
        }
        device.backend().assemble(&shape, dtype, parts)
    }

    /// Elements chosen along an axis. See [`gather`](crate::Backend::gather).
    #[track_caller]
    pub fn gather(&self, axis: isize, index: &Tensor) -> Result<Tensor> {
        let axis = self.shape().axis(axis);
        checked(primitive::infer_gather(&self.meta(), axis, &index.meta()));
        same_device("gather", &[self, index]).backend().gather(self, axis, index)
    }

    /// A copy with elements of `src` added along an axis. See [`scatter_add`](crate::Backend::scatter_add).
    #[track_caller]
    pub fn scatter_add(&self, axis: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let axis = self.shape().axis(axis);
        checked(primitive::infer_gather(&self.meta(), axis, &index.meta()));
        assert_eq!(index.shape(), src.shape(), "scatter_add: index and source differ in shape");
        assert_eq!(self.dtype, src.dtype, "scatter_add: base and source differ in dtype");
        same_device("scatter_add", &[self, index, src]).backend().scatter_add(self, axis, index, src)
    }

    /// The indices that sort along an axis; stable, NaN last.
    #[track_caller]
    pub fn argsort(&self, axis: isize, descending: bool) -> Result<Tensor> {
        self.device().backend().argsort(self, self.shape().axis(axis), descending)
    }

    /// The result of a fused kernel that has one, if this device has the kernel.
    ///
    /// # Panics
    /// If the kernel has several: see [`fused_all`](Tensor::fused_all).
    #[track_caller]
    pub fn fused(f: Fused, x: &[&Tensor]) -> Option<Result<Tensor>> {
        let only = |mut results: Results| {
            assert_eq!(results.len(), 1, "{f:?} has {} results; take them with fused_all", results.len());
            results.remove(0)
        };
        Some(Tensor::fused_all(f, x)?.map(only))
    }

    /// The results of a fused kernel, if this device has it.
    ///
    /// # Panics
    /// If the operands do not fit, or Sinkhorn's iteration is to make no step.
    #[track_caller]
    pub fn fused_all(f: Fused, x: &[&Tensor]) -> Option<Result<Results>> {
        if let Fused::Sinkhorn(stop) | Fused::SinkhornBackward(stop) | Fused::SinkhornSteps(stop) = f {
            assert!(stop.at_most() > 0, "sinkhorn: expected at least one step, found {stop:?}");
        }
        same_device("fused", x).backend().fused(f, x)
    }
}

#[track_caller]
fn checked(inferred: Inferred) -> Meta {
    inferred.unwrap_or_else(|message| panic!("{message}"))
}

/// The device all operands are on.
#[track_caller]
fn same_device<'a>(name: &str, x: &[&'a Tensor]) -> &'a Device {
    let first = x[0].device();
    if x[1..].iter().all(|t| t.device() == first) {
        return first;
    }
    let stands_in = |device: &&Device| device.backend().stands_for().is_some();
    let device = x.iter().map(|t| t.device()).find(stands_in).unwrap_or(first);
    for other in x.iter().map(|t| t.device()) {
        let fits = other == device || device.backend().stands_for() == Some(other);
        assert!(fits, "{name}: operands are on different devices, {device} and {other}");
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_without_elements_reads_as_an_empty_slice_wherever_its_offset_is() {
        let view = Tensor::zeros([9, 0], DType::F32).slice(0, 2, 5, 1);
        assert_eq!(view.as_slice::<f32>(), Some(&[][..]));
        assert!(view.to_vec::<f32>().unwrap().is_empty());
    }
}
