//! Strides for a kernel: how the elements of several operands are walked together.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::Layout;
use smallvec::SmallVec;

/// The most axes that a kernel walks; `MAX_RANK` of `prelude.cuh`.
pub(crate) const MAX_RANK: usize = 8;

/// Elements that a kernel counts in 32 bits.
pub(crate) const MAX_WALK: usize = 1 << 31;

/// A divisor with what makes a division a multiplication; `Divisor` of `prelude.cuh`.
///
/// For n < 2³¹ and 1 ≤ d < 2³¹: with s = ⌈log₂ d⌉ and m = ⌊2³²·(2ˢ − d)/d⌋ + 1, ⌊n/d⌋ = (⌊n·m/2³²⌋ + n) ≫ s (Granlund and
/// Montgomery, *Division by invariant integers using multiplication*, 1994).
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub(crate) struct Divisor {
    d: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    pub(crate) fn new(d: usize) -> Divisor {
        let d = u32::try_from(d)
            .ok()
            .filter(|d| (1..=1 << 31).contains(d))
            .expect("axes of a walk have 1..2³¹ elements");
        let shift = d.next_power_of_two().trailing_zeros();
        let multiplier = ((1u64 << 32) * ((1u64 << shift) - u64::from(d)) / u64::from(d) + 1) as u32;
        Divisor { d, multiplier, shift }
    }
}

/// A walk through N operands of one shape; `Walk` of `prelude.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Walk<const N: usize> {
    rank: u32,
    /// From the last axis to the first.
    size: [Divisor; MAX_RANK],
    /// What C puts before a field that is aligned to 8 bytes.
    padding: u32,
    stride: [[i64; MAX_RANK]; N],
}

// SAFETY: all fields are plain numbers, and the padding is a field: 4 + 8·12 + 4 bytes before the strides.
unsafe impl<const N: usize> Zeroable for Walk<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Pod for Walk<N> {}

impl<const N: usize> Walk<N> {
    /// The walk through layouts of one shape. Axes that one stride walks in every operand become one. `None` if more than
    /// [`MAX_RANK`] are left, or there are more than [`MAX_WALK`] elements.
    pub(crate) fn new(layouts: [&Layout; N]) -> Option<Walk<N>> {
        let axes = merged(layouts);
        let elements = layouts.first().map_or(1, |layout| layout.shape().elements());
        if axes.len() > MAX_RANK || elements > MAX_WALK {
            return None;
        }
        let mut walk = Walk { rank: axes.len() as u32, ..Walk::zeroed() };
        for (i, (size, strides)) in axes.iter().rev().enumerate() {
            walk.size[i] = Divisor::new(*size);
            for (operand, &stride) in walk.stride.iter_mut().zip(strides) {
                operand[i] = stride as i64;
            }
        }
        Some(walk)
    }
}

/// The axes of layouts of one shape, without those of size 1, neighbours joined where one stride walks both in all of them.
pub(crate) fn merged<const N: usize>(layouts: [&Layout; N]) -> SmallVec<[(usize, [isize; N]); 6]> {
    let mut axes: SmallVec<[(usize, [isize; N]); 6]> = SmallVec::new();
    let Some(first) = layouts.first() else { return axes };
    if first.shape().elements() == 0 {
        return axes;
    }
    for (axis, &size) in first.shape().iter().enumerate().filter(|&(_, &size)| size != 1) {
        let strides = layouts.map(|layout| layout.strides()[axis]);
        match axes.last_mut() {
            Some((outer, last)) if (0..N).all(|k| last[k] == strides[k] * size as isize) => {
                (*outer, *last) = (*outer * size, strides);
            }
            _ => axes.push((size, strides)),
        }
    }
    axes
}

/// Some of a layout's axes, in the order given. Walks count from the first element, so its place is not kept.
pub(crate) fn only(layout: &Layout, axes: &[usize]) -> Layout {
    let sizes: SmallVec<[usize; 6]> = axes.iter().map(|&axis| layout.shape()[axis]).collect();
    let strides: SmallVec<[isize; 6]> = axes.iter().map(|&axis| layout.strides()[axis]).collect();
    let back = sizes.iter().zip(&strides).filter(|&(_, &stride)| stride < 0);
    let reach = back.map(|(&size, &stride)| stride.unsigned_abs() * size.saturating_sub(1)).sum();
    Layout::strided(&sizes[..], &strides, reach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_tensor::{DType, Tensor};

    #[test]
    fn a_multiplication_divides() {
        let quotient = |d: Divisor, n: u32| {
            let high = ((u64::from(n) * u64::from(d.multiplier)) >> 32) as u32;
            (high + n) >> d.shift
        };
        let edges = [1, 2, 3, 5, 6, 7, 10, 64, 641, 65_535, 65_537, 1_000_003, (1 << 30) + 1, (1 << 31) - 1];
        for d in (1..2000).chain(edges) {
            let near =
                (0..40u64).flat_map(|k| [k * d as u64, (k * d as u64).wrapping_sub(1), k * d as u64 + 1]);
            let spread = (0..2000u64).map(|k| k * 1_073_741);
            for n in near.chain(spread).chain([(1 << 31) - 1]).filter(|&n| n < 1 << 31) {
                assert_eq!(quotient(Divisor::new(d), n as u32), (n / d as u64) as u32, "{n}/{d}");
            }
        }
    }

    #[test]
    fn axes_join_where_all_operands_allow_it() {
        let x = Tensor::zeros([4, 3, 5], DType::F32);
        let bias = Tensor::zeros([5], DType::F32).expand([4, 3, 5]);
        let rows = merged([x.layout(), bias.layout()]);
        assert_eq!(rows.to_vec(), vec![(12, [5, 0]), (5, [1, 1])]);
        assert_eq!(merged([x.layout()]).to_vec(), vec![(60, [1])]);
        assert_eq!(merged([Tensor::zeros([], DType::F32).layout()]).len(), 0);
    }

    #[test]
    fn too_many_axes_are_no_walk() {
        // Every second element of nine axes of two.
        let sparse = (0..9).fold(Tensor::zeros([4; 9], DType::Bool), |t, axis| t.slice(axis, 0, 4, 2));
        assert!(Walk::new([sparse.layout()]).is_none());
    }

    #[test]
    fn the_struct_is_laid_out_as_in_c() {
        assert_eq!(size_of::<Walk<1>>(), 104 + 64);
        assert_eq!(size_of::<Walk<3>>(), 104 + 3 * 64);
        assert_eq!(std::mem::offset_of!(Walk<2>, stride), 104);
    }
}
