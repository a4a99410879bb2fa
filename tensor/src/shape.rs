//! Shapes, and the broadcasting rule between them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use smallvec::{Array, SmallVec};

/// The size of a tensor along each axis; `[]` is a scalar.
///
/// Inline up to rank 4, so that cloning one allocates nothing.
///
/// ```
/// use limpid_tensor::Shape;
/// let s = Shape::from([2, 3]);
/// assert_eq!(s.elements(), 6);
/// assert_eq!(s.to_string(), "[2, 3]");
/// ```
#[derive(Eq, Default)]
pub struct Shape(SmallVec<[usize; 4]>);

impl Clone for Shape {
    #[inline]
    fn clone(&self) -> Shape {
        Shape(copied(&self.0))
    }
}

impl PartialEq for Shape {
    /// Size by size: as slices they would be compared by a call of the C library.
    #[inline]
    fn eq(&self, other: &Shape) -> bool {
        let (a, b) = (&self[..], &other[..]);
        a.len() == b.len() && (0..a.len()).all(|axis| a[axis] == b[axis])
    }
}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// A copy of a short list: of one that is inline as a block of fixed size, which is a few moves.
#[inline]
pub(crate) fn copied<A: Array<Item: Copy>>(list: &SmallVec<A>) -> SmallVec<A> {
    if list.spilled() {
        return SmallVec::from_slice(list);
    }
    // SAFETY: a list that has not spilled owns no memory, and its elements are `Copy`: its bytes are all there is of it.
    unsafe { std::ptr::read(list) }
}

impl Shape {
    /// The number of elements: the product of all sizes, 1 for a scalar.
    #[inline]
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The shape both operands take when they meet: axes are aligned at the right, and a size of 1 stretches.
    /// `None` if two sizes differ and neither is 1.
    ///
    /// ```
    /// use limpid_tensor::Shape;
    /// let (a, b) = (Shape::from([4, 1, 3]), Shape::from([5, 1]));
    /// assert_eq!(a.broadcast(&b), Some(Shape::from([4, 5, 3])));
    /// assert_eq!(a.broadcast(&Shape::from([2])), None);
    /// ```
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        if self == other {
            return Some(self.clone());
        }
        let rank = self.len().max(other.len());
        let size = |s: &Shape, axis: usize| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
        (0..rank)
            .map(|axis| match (size(self, axis), size(other, axis)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect()
    }

    /// The axes along which a tensor of this shape was stretched to become `target`: the missing leading axes
    /// and every size 1 that became something else. Summing over them undoes the broadcast.
    pub fn broadcast_axes(&self, target: &Shape) -> SmallVec<[usize; 6]> {
        let missing = target.len() - self.len();
        (0..target.len())
            .filter(|&axis| axis < missing || (self[axis - missing] == 1 && target[axis] != 1))
            .collect()
    }

    /// The same shape with the given axes set to 1.
    pub fn with_ones(&self, axes: &[usize]) -> Shape {
        self.iter().enumerate().map(|(axis, &n)| if axes.contains(&axis) { 1 } else { n }).collect()
    }

    /// The same shape with the given axes left out.
    pub fn without(&self, axes: &[usize]) -> Shape {
        self.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, &n)| n).collect()
    }

    /// The same shape with the size along `axis` replaced.
    pub fn with(&self, axis: usize, size: usize) -> Shape {
        let mut shape = self.clone();
        shape.0[axis] = size;
        shape
    }

    /// The same sizes in another order: size `i` of the result is size `order[i]` of this one.
    pub(crate) fn permuted(&self, order: &[usize]) -> Shape {
        let mut shape = self.clone();
        for (axis, &from) in order.iter().enumerate() {
            shape.0[axis] = self[from];
        }
        shape
    }

    /// Resolves an axis that may count from the end (−1 is the last).
    ///
    /// # Panics
    /// If the axis is outside `−rank..rank`.
    #[track_caller]
    pub fn axis(&self, axis: isize) -> usize {
        let rank = self.len() as isize;
        let resolved = if axis < 0 { axis + rank } else { axis };
        assert!((0..rank).contains(&resolved), "axis {axis} is out of range for shape {self} of rank {rank}");
        resolved as usize
    }

    /// Resolves several axes, sorted. No axes at all stands for all of them.
    ///
    /// # Panics
    /// If one is out of range or named twice.
    #[track_caller]
    pub fn axes(&self, axes: &[isize]) -> SmallVec<[usize; 6]> {
        if axes.is_empty() {
            return (0..self.len()).collect();
        }
        let mut resolved: SmallVec<[usize; 6]> = axes.iter().map(|&a| self.axis(a)).collect();
        resolved.sort_unstable();
        assert!(resolved.windows(2).all(|w| w[0] != w[1]), "axes {axes:?} name one axis of {self} twice");
        resolved
    }
}

impl Deref for Shape {
    type Target = [usize];
    #[inline]
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(sizes: I) -> Self {
        Shape(sizes.into_iter().collect())
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Shape(SmallVec::from_slice(sizes))
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Shape(SmallVec::from_slice(&sizes))
    }
}

impl From<Vec<usize>> for Shape {
    fn from(sizes: Vec<usize>) -> Self {
        Shape(SmallVec::from_vec(sizes))
    }
}

impl From<&Shape> for Shape {
    #[inline]
    fn from(shape: &Shape) -> Self {
        shape.clone()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.iter().map(usize::to_string).collect();
        f.pad(&format!("[{}]", sizes.join(", ")))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
