//! An array that is always contiguous and is only ever read at one index after another.

/// Elements in row-major order under a shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Array<T> {
    /// Size along each axis.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Vec<T>,
}

impl<T: Copy> Array<T> {
    /// The array whose element at each index is `f` of the index.
    pub fn from_fn(shape: &[usize], mut f: impl FnMut(&[usize]) -> T) -> Array<T> {
        let n: usize = shape.iter().product();
        let mut data = Vec::with_capacity(n);
        let mut index = vec![0; shape.len()];
        for _ in 0..n {
            data.push(f(&index));
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Array { shape: shape.to_vec(), data }
    }

    /// An array of these elements.
    pub fn new(shape: &[usize], data: Vec<T>) -> Array<T> {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Array { shape: shape.to_vec(), data }
    }

    /// The element at an index.
    pub fn at(&self, index: &[usize]) -> T {
        assert_eq!(index.len(), self.shape.len());
        let mut position = 0;
        for (&i, &n) in index.iter().zip(&self.shape) {
            assert!(i < n, "index {index:?} is outside shape {:?}", self.shape);
            position = position * n + i;
        }
        self.data[position]
    }

    /// `f` of every element.
    pub fn map<R>(&self, f: impl FnMut(T) -> R) -> Array<R> {
        Array { shape: self.shape.clone(), data: self.data.iter().copied().map(f).collect() }
    }

    /// Axis `i` of the result is axis `order[i]`.
    pub fn permute(&self, order: &[usize]) -> Array<T> {
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        let mut from = vec![0; order.len()];
        Array::from_fn(&shape, |index| {
            order.iter().zip(index).for_each(|(&axis, &i)| from[axis] = i);
            self.at(&from)
        })
    }

    /// Every `step`-th element of `start..end` along an axis.
    pub fn slice(&self, axis: usize, start: usize, end: usize, step: usize) -> Array<T> {
        let size = (start..end).step_by(step).count();
        Array::from_fn(&with(&self.shape, axis, size), |index| {
            self.at(&with(index, axis, start + index[axis] * step))
        })
    }

    /// An axis in reverse.
    pub fn flip(&self, axis: usize) -> Array<T> {
        Array::from_fn(&self.shape, |index| self.at(&with(index, axis, self.shape[axis] - 1 - index[axis])))
    }

    /// Axes of size 1 repeated, and leading axes added, to reach `shape`.
    pub fn expand(&self, shape: &[usize]) -> Array<T> {
        let missing = shape.len() - self.shape.len();
        Array::from_fn(shape, |index| {
            let from: Vec<usize> =
                index[missing..].iter().zip(&self.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect();
            self.at(&from)
        })
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Array<T> {
        Array::new(shape, self.data.clone())
    }
}

/// The same list with one entry replaced.
pub fn with(list: &[usize], at: usize, value: usize) -> Vec<usize> {
    let mut list = list.to_vec();
    list[at] = value;
    list
}

/// The shape two or more shapes broadcast to.
///
/// # Panics
/// If they do not.
pub fn broadcast(shapes: &[&[usize]]) -> Vec<usize> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    (0..rank)
        .map(|axis| {
            let sizes: Vec<usize> = shapes
                .iter()
                .filter_map(|s| (axis + s.len()).checked_sub(rank).map(|i| s[i]))
                .filter(|&n| n != 1)
                .collect();
            assert!(sizes.windows(2).all(|w| w[0] == w[1]), "{shapes:?} do not broadcast");
            sizes.first().copied().unwrap_or(1)
        })
        .collect()
}
