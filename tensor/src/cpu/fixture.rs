//! For this backend's tests: tensors of every layout, and reading them by the index formula alone.

use crate::{DType, Shape, Tensor};

pub(super) const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
pub(super) const ALL: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool];

/// Distinct small values that every dtype holds, of both signs, with a fraction where there is one.
pub(super) fn values(n: usize, dtype: DType) -> Vec<f64> {
    (0..n)
        .map(|i| {
            let v = ((i * 37 + 11) % 101) as f64 - 50.0;
            match dtype {
                DType::Bool => f64::from(v > 0.0),
                DType::I64 => v,
                _ => v / 8.0,
            }
        })
        .collect()
}

/// A tensor of these sizes in each kind of layout.
pub(super) fn views(sizes: &[usize], dtype: DType) -> Vec<Tensor> {
    let make = |sizes: &[usize]| Tensor::from_f64(&values(sizes.iter().product(), dtype), sizes, dtype);
    let reversed: Vec<usize> = sizes.iter().rev().copied().collect();
    let order: Vec<usize> = (0..sizes.len()).rev().collect();
    let mut views = vec![make(sizes), make(&reversed).permute(&order)];
    for axis in 0..sizes.len() {
        let n = sizes[axis];
        let with = |size: usize| make(&Shape::from(sizes).with(axis, size));
        views.push(with(n).flip(axis));
        views.push(with(2 * n + 3).slice(axis, 2, 2 + 2 * n, 2));
        views.push(with(1).expand(sizes));
        views.push(make(&reversed).permute(&order).flip(axis));
    }
    views.push(Tensor::from_f64(&[1.0], [], dtype).expand(sizes));
    views
}

/// The elements in row-major order, each found by the index formula.
pub(super) fn naive(x: &Tensor) -> Vec<f64> {
    let layout = x.layout();
    let bytes = x.storage().host().expect("in host memory");
    (0..x.elements())
        .map(|position| {
            let (mut rest, mut at) = (position, layout.offset() as isize);
            for (&n, &stride) in x.shape().iter().zip(layout.strides()).rev() {
                at += stride * (rest % n) as isize;
                rest /= n;
            }
            let size = x.dtype().size();
            let element = &bytes[at as usize * size..][..size];
            with_element!(x.dtype(), T => crate::Element::to_f64(<T as crate::Element>::from_bytes(element)[0]))
        })
        .collect()
}

/// Equal, or both NaN.
pub(super) fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// What the dtype makes of an exact result.
pub(super) fn rounded(v: f64, dtype: DType) -> f64 {
    with_element!(dtype, T => crate::Element::to_f64(<T as crate::Element>::from_f64(v)))
}

/// Asserts that each element is the exact result up to `ulps` units in the last place of its dtype.
pub(super) fn assert_close(what: &str, found: &Tensor, exact: &[f64], ulps: f64) {
    let unit = match found.dtype() {
        DType::F32 => f64::from(f32::EPSILON),
        DType::F64 => f64::EPSILON,
        DType::BF16 => half::bf16::EPSILON.to_f64(),
        DType::I64 | DType::Bool => 0.0,
    };
    let found_values = naive(found);
    assert_eq!(found_values.len(), exact.len(), "{what}: number of elements");
    for (i, (&f, &e)) in found_values.iter().zip(exact).enumerate() {
        let ok = same(f, e) || (f - e).abs() <= ulps * unit * e.abs().max(f64::from(f32::MIN_POSITIVE));
        assert!(ok, "{what} ({}): element {i} is {f:e}, expected {e:e}", found.dtype());
    }
}
