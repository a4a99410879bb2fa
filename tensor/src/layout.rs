//! Where each element of a tensor lies in its storage: shape, strides, offset, and the views made of them.
//!
//! Every view (transpose, slice, broadcast, flip, reshape where strides allow) is arithmetic on this struct;
//! no element moves.

use smallvec::SmallVec;

use crate::Shape;
use crate::shape::copied;

/// Signed steps, in elements, between neighbours along each axis. 0 repeats one element (a broadcast axis);
/// a negative step walks backwards (a flipped axis).
pub type Strides = SmallVec<[isize; 4]>;

/// A step of 0 along each axis.
fn zeros(axes: usize) -> Strides {
    if axes <= 4 { Strides::from_buf_and_len([0; 4], axes) } else { Strides::from_elem(0, axes) }
}

/// The map from an index `[i, j, …]` to an element: `offset + i·strides[0] + j·strides[1] + …`.
#[derive(PartialEq, Eq, Debug)]
pub struct Layout {
    shape: Shape,
    strides: Strides,
    offset: usize,
}

impl Clone for Layout {
    #[inline]
    fn clone(&self) -> Layout {
        Layout { shape: self.shape.clone(), strides: copied(&self.strides), offset: self.offset }
    }
}

impl Layout {
    /// Row-major order from the start of the storage.
    ///
    /// ```
    /// use limpid_tensor::Layout;
    /// assert_eq!(Layout::contiguous([2, 3, 4]).strides(), &[12, 4, 1]);
    /// ```
    #[inline]
    pub fn contiguous(shape: impl Into<Shape>) -> Layout {
        Layout::row_major(shape.into())
    }

    #[inline]
    fn row_major(shape: Shape) -> Layout {
        let mut strides = zeros(shape.len());
        let mut step = 1;
        for axis in (0..shape.len()).rev() {
            strides[axis] = step as isize;
            step *= shape[axis].max(1);
        }
        Layout { shape, strides, offset: 0 }
    }

    /// Any steps at all, from `offset` elements behind the start of the storage.
    ///
    /// # Panics
    /// If there is not one step for each axis, or an element would lie before the start.
    #[track_caller]
    pub fn strided(shape: impl Into<Shape>, strides: &[isize], offset: usize) -> Layout {
        let shape = shape.into();
        let axes = shape.len();
        assert!(
            axes == strides.len(),
            "strided: {} steps for the {axes} axes of shape {shape}",
            strides.len()
        );
        let back =
            |(&n, &s): (&usize, &isize)| if s < 0 { s.unsigned_abs() * n.saturating_sub(1) } else { 0 };
        let reach: usize = shape.iter().zip(strides).map(back).sum();
        let begins = shape.elements() == 0 || reach <= offset;
        assert!(begins, "strided: steps {strides:?} from {offset} reach before the start of the storage");
        Layout { shape, strides: Strides::from_slice(strides), offset }
    }

    /// The size along each axis.
    #[inline]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The step along each axis, in elements.
    #[inline]
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Where index `[0, 0, …]` lies, in elements from the start of the storage.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the elements lie in row-major order without gaps (from `offset` on). Axes of size 1 may have
    /// any stride; a tensor without elements is always contiguous.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        let (mut step, mut in_order) = (1isize, true);
        let (shape, strides) = (&self.shape[..], &self.strides[..]);
        for axis in (0..shape.len()).rev() {
            in_order &= shape[axis] == 1 || strides[axis] == step;
            step *= shape[axis] as isize;
        }
        in_order || step == 0
    }

    /// The range of storage elements that the view can touch, `None` if it has no elements.
    pub fn span(&self) -> Option<std::ops::Range<usize>> {
        if self.shape.elements() == 0 {
            return None;
        }
        let (mut low, mut high) = (self.offset as isize, self.offset as isize);
        for (&n, &s) in self.shape.iter().zip(&self.strides) {
            let reach = s * (n as isize - 1);
            if reach < 0 { low += reach } else { high += reach }
        }
        Some(low as usize..high as usize + 1)
    }

    /// Reorders the axes: axis `i` of the result is axis `order[i]` of this layout.
    ///
    /// # Panics
    /// If `order` is not a permutation of `0..rank`.
    #[track_caller]
    pub fn permute(&self, order: &[usize]) -> Layout {
        let rank = self.shape.len();
        let each_once = |axis: usize| order.iter().filter(|&&a| a == axis).count() == 1;
        let valid = order.len() == rank && (0..rank).all(each_once);
        assert!(valid, "permute: {order:?} is not a permutation of the axes of shape {}", self.shape);
        let mut strides = copied(&self.strides);
        for (axis, &from) in order.iter().enumerate() {
            strides[axis] = self.strides[from];
        }
        Layout { shape: self.shape.permuted(order), strides, offset: self.offset }
    }

    /// Every `step`-th element of `start..end` along `axis`.
    ///
    /// # Panics
    /// If the range lies outside the axis or `step` is 0.
    #[track_caller]
    pub fn slice(&self, axis: usize, start: usize, end: usize, step: usize) -> Layout {
        let n = self.shape[axis];
        assert!(
            start <= end && end <= n && step > 0,
            "slice: {start}..{end} step {step} does not fit axis {axis} of shape {}",
            self.shape
        );
        let mut out = self.clone();
        let size = (end - start).div_ceil(step);
        out.shape = out.shape.with(axis, size);
        // A view without elements stays where it is: its storage may be empty, and no offset lies in that.
        if out.shape.elements() > 0 {
            out.offset = (self.offset as isize + self.strides[axis] * start as isize) as usize;
        }
        out.strides[axis] *= step as isize;
        out
    }

    /// Walks `axis` from its last element to its first.
    pub fn flip(&self, axis: usize) -> Layout {
        let mut out = self.clone();
        let last = self.shape[axis].saturating_sub(1) as isize;
        if self.shape.elements() > 0 {
            out.offset = (self.offset as isize + self.strides[axis] * last) as usize;
        }
        out.strides[axis] = -self.strides[axis];
        out
    }

    /// Repeats axes of size 1, and adds leading axes, to reach `shape`. `None` if the shapes do not agree.
    pub fn broadcast(&self, shape: &Shape) -> Option<Layout> {
        let missing = shape.len().checked_sub(self.shape.len())?;
        let mut strides = zeros(shape.len());
        for (axis, (&n, &s)) in self.shape.iter().zip(&self.strides).enumerate() {
            match shape[axis + missing] {
                target if target == n => strides[axis + missing] = s,
                _ if n == 1 => {}
                _ => return None,
            }
        }
        Some(Layout { shape: shape.clone(), strides, offset: self.offset })
    }

    /// The same elements under another shape, without moving any. `None` where the strides do not allow it
    /// and a copy is needed.
    ///
    /// # Panics
    /// If the two shapes do not have the same number of elements.
    #[track_caller]
    pub fn reshape(&self, shape: &Shape) -> Option<Layout> {
        assert_eq!(
            self.shape.elements(),
            shape.elements(),
            "reshape: {} and {shape} do not have the same number of elements",
            self.shape
        );
        if self.is_contiguous() {
            return Some(Layout { offset: self.offset, ..Layout::contiguous(shape) });
        }
        // Axes of the source that can be walked with one stride are merged; each merged run must then be cut
        // exactly by a run of target axes.
        let runs = self.merged();
        let mut strides = zeros(shape.len());
        let mut axis = shape.len();
        for &(size, stride) in runs.iter().rev() {
            let (mut rest, mut step) = (size, stride);
            while rest > 1 {
                axis = axis.checked_sub(1)?;
                let n = shape[axis];
                if rest % n != 0 {
                    return None;
                }
                strides[axis] = step;
                step *= n as isize;
                rest /= n;
            }
        }
        Some(Layout { shape: shape.clone(), strides, offset: self.offset })
    }

    /// Neighbouring axes joined wherever one stride walks both; axes of size 1 left out.
    pub(crate) fn merged(&self) -> SmallVec<[(usize, isize); 6]> {
        let mut runs: SmallVec<[(usize, isize); 6]> = SmallVec::new();
        for (&n, &s) in self.shape.iter().zip(&self.strides).filter(|&(&n, _)| n != 1) {
            match runs.last_mut() {
                Some((size, stride)) if *stride == s * n as isize => (*size, *stride) = (*size * n, s),
                _ => runs.push((n, s)),
            }
        }
        runs
    }

    /// Inserts an axis of size 1.
    #[track_caller]
    pub fn unsqueeze(&self, axis: usize) -> Layout {
        assert!(axis <= self.shape.len(), "unsqueeze: axis {axis} is out of range for shape {}", self.shape);
        let mut out = self.clone();
        let mut sizes: SmallVec<[usize; 6]> = self.shape.iter().copied().collect();
        sizes.insert(axis, 1);
        out.shape = sizes.into_iter().collect();
        out.strides.insert(axis, 0);
        out
    }
}
