//! Visiting the elements of any layout in row-major order, a run or a block at a time.
//!
//! A kernel never sees strides. Its result is contiguous, so position `p` of the result is element `p` of each
//! operand in row-major order, and a [`Reader`] hands those elements over as slices: the tensor's own memory
//! where that is contiguous, else a block on the stack into which they were packed. So each operation is one
//! loop over slices, and everything there is to know about strides is in this file.

use bytemuck::Pod;
use smallvec::SmallVec;

use crate::{Layout, Tensor};

/// The largest number of elements packed at once: 1 to 2 KiB, well inside the first-level cache.
pub(super) const BLOCK: usize = 256;

/// The storage of a CPU tensor as elements; bool as bytes 0 and 1.
pub(super) fn data<T: Pod>(x: &Tensor) -> &[T] {
    bytemuck::cast_slice(x.storage().host().expect("a tensor of the CPU lies in host memory"))
}

/// The storage from a contiguous tensor's first element to its last; `None` if it is not contiguous.
pub(super) fn contiguous_data<T: Pod>(x: &Tensor) -> Option<&[T]> {
    let layout = x.layout();
    if layout.shape().elements() == 0 {
        return Some(&[]);
    }
    layout.is_contiguous().then(|| &data(x)[layout.offset()..][..layout.shape().elements()])
}

/// `len` elements of a storage: `offset`, `offset + stride`, …
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub offset: usize,
    pub stride: isize,
    pub len: usize,
}

impl Run {
    fn at(self, i: usize) -> usize {
        self.offset.wrapping_add_signed(self.stride * i as isize)
    }

    /// Copies the run out of a storage.
    pub fn read<T: Copy>(self, data: &[T], out: &mut [T]) {
        match self.stride {
            1 => out.copy_from_slice(&data[self.offset..self.offset + self.len]),
            0 => out.fill(data[self.offset]),
            _ => (0..self.len).zip(out).for_each(|(i, out)| *out = data[self.at(i)]),
        }
    }

    /// Copies values to the run's places in a storage.
    pub fn write<T: Copy>(self, values: &[T], data: &mut [T]) {
        match self.stride {
            1 => data[self.offset..self.offset + self.len].copy_from_slice(values),
            _ => (0..self.len).zip(values).for_each(|(i, &value)| data[self.at(i)] = value),
        }
    }
}

/// A place in the row-major order of a layout. Neighbouring axes that one stride walks are joined into one; the
/// last of the joined axes is walked in runs, the others by an odometer that turns once a run.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// The joined axes but the last: size, stride, and how far along each the cursor is.
    outer: SmallVec<[(usize, isize, usize); 6]>,
    /// The last joined axis: size, stride, and how far along it the cursor is.
    inner: (usize, isize, usize),
    /// Where the first element lies, and where the cursor is.
    first: isize,
    offset: isize,
}

impl Cursor {
    /// A cursor on element number `position` of the row-major order.
    pub fn new(layout: &Layout, position: usize) -> Cursor {
        let mut axes = layout.merged();
        let (size, stride) = axes.pop().unwrap_or((1, 1));
        let size = if layout.shape().elements() == 0 { 0 } else { size };
        let mut cursor = Cursor {
            outer: axes.iter().map(|&(n, s)| (n, s, 0)).collect(),
            inner: (size, stride, 0),
            first: layout.offset() as isize,
            offset: layout.offset() as isize,
        };
        if position > 0 {
            cursor.seek(position);
        }
        cursor
    }

    /// Moves to element number `position`.
    pub fn seek(&mut self, position: usize) {
        let (size, stride, along) = &mut self.inner;
        let mut rest = position / *size;
        *along = position % *size;
        self.offset = self.first + *stride * *along as isize;
        for (n, s, i) in self.outer.iter_mut().rev() {
            *i = rest % *n;
            rest /= *n;
            self.offset += *s * *i as isize;
        }
    }

    /// Whether all elements are one run.
    pub fn is_one_run(&self) -> bool {
        self.outer.is_empty()
    }

    /// The stride inside runs.
    pub fn stride(&self) -> isize {
        self.inner.1
    }

    /// Steps over the rest of the current run, or `most` elements of it, and returns what was stepped over.
    /// After the last element the walk starts again from the first; a layout without elements has empty runs.
    pub fn next_run(&mut self, most: usize) -> Run {
        let (size, stride, along) = self.inner;
        let len = most.min(size - along);
        let run = Run { offset: self.offset as usize, stride, len };
        self.inner.2 += len;
        self.offset += stride * len as isize;
        if self.inner.2 == size {
            self.offset -= stride * size as isize;
            self.inner.2 = 0;
            for (n, s, i) in self.outer.iter_mut().rev() {
                *i += 1;
                self.offset += *s;
                if *i < *n {
                    break;
                }
                self.offset -= *s * *n as isize;
                *i = 0;
            }
        }
        run
    }
}

/// Reads elements in row-major order as slices.
pub(super) struct Reader<'a, T> {
    data: &'a [T],
    cursor: Cursor,
    block: [T; BLOCK],
    /// Every element is the same one, and `block` is full of it.
    uniform: bool,
}

impl<'a, T: Pod> Reader<'a, T> {
    /// A reader of a storage through a layout, from element number `position` on.
    pub fn new(data: &'a [T], layout: &Layout, position: usize) -> Reader<'a, T> {
        let cursor = Cursor::new(layout, position);
        let uniform = cursor.is_one_run() && cursor.stride() == 0 && layout.shape().elements() > 0;
        let fill = if uniform { data[layout.offset()] } else { T::zeroed() };
        Reader { data, cursor, block: [fill; BLOCK], uniform }
    }

    /// A reader of a tensor's elements from number `position` on.
    pub fn of(x: &'a Tensor, position: usize) -> Reader<'a, T> {
        Reader::new(data(x), x.layout(), position)
    }

    /// How many elements may be asked for at once.
    pub fn most(&self) -> usize {
        if self.cursor.is_one_run() && self.cursor.stride() == 1 { usize::MAX } else { BLOCK }
    }

    /// Moves to element number `position`.
    pub fn seek(&mut self, position: usize) {
        self.cursor.seek(position);
    }

    /// The next `n` elements, at most [`most`](Reader::most) of them.
    pub fn next(&mut self, n: usize) -> &[T] {
        if self.uniform || n == 0 {
            return &self.block[..n];
        }
        let run = self.cursor.next_run(n);
        if run.len == n && run.stride == 1 {
            return &self.data[run.offset..run.offset + n];
        }
        let block = &mut self.block[..n];
        run.read(self.data, &mut block[..run.len]);
        let mut done = run.len;
        while done < n {
            let run = self.cursor.next_run(n - done);
            run.read(self.data, &mut block[done..done + run.len]);
            done += run.len;
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(layout: &Layout) -> Vec<(usize, isize, usize)> {
        let mut cursor = Cursor::new(layout, 0);
        let (mut seen, mut runs) = (0, Vec::new());
        while seen < layout.shape().elements() {
            let run = cursor.next_run(usize::MAX);
            seen += run.len;
            runs.push((run.offset, run.stride, run.len));
        }
        runs
    }

    #[test]
    fn neighbouring_axes_join_where_one_stride_walks_both() {
        let c = Layout::contiguous([2, 3, 4]);
        assert_eq!(runs(&c), [(0, 1, 24)]);
        assert_eq!(runs(&c.permute(&[2, 0, 1])), [(0, 4, 6), (1, 4, 6), (2, 4, 6), (3, 4, 6)]);
        assert_eq!(runs(&c.slice(0, 1, 2, 1)), [(12, 1, 12)]);
        assert_eq!(runs(&c.slice(1, 1, 3, 1)), [(4, 1, 8), (16, 1, 8)]);
        assert_eq!(runs(&c.slice(2, 0, 4, 2)), [(0, 2, 12)]);
        assert_eq!(runs(&c.flip(0).flip(1).flip(2)), [(23, -1, 24)]);
        assert_eq!(runs(&c.flip(0)), [(12, 1, 12), (0, 1, 12)]);
    }

    #[test]
    fn broadcast_axes_join_each_other() {
        let row = Layout::contiguous([3]).broadcast(&[2, 2, 3].into()).unwrap();
        assert_eq!(runs(&row), [(0, 1, 3); 4]);
        let column = Layout::contiguous([2, 1, 1]).broadcast(&[2, 3, 4].into()).unwrap();
        assert_eq!(runs(&column), [(0, 0, 12), (1, 0, 12)]);
        let scalar = Layout::contiguous([]).broadcast(&[2, 3].into()).unwrap();
        assert_eq!(runs(&scalar), [(0, 0, 6)]);
    }

    #[test]
    fn scalars_are_one_run_and_nothing_is_none() {
        assert_eq!(runs(&Layout::contiguous([])), [(0, 1, 1)]);
        assert_eq!(runs(&Layout::contiguous([1, 1])), [(0, 1, 1)]);
        for shape in [[0, 3], [3, 0]] {
            assert_eq!(runs(&Layout::contiguous(shape)), []);
            assert_eq!(Cursor::new(&Layout::contiguous(shape), 0).next_run(5).len, 0);
        }
    }

    fn views() -> Vec<Layout> {
        let c = Layout::contiguous([3, 4, 5]);
        vec![
            c.clone(),
            c.permute(&[2, 1, 0]),
            c.permute(&[1, 0, 2]).flip(2),
            c.slice(1, 1, 4, 2).flip(0),
            c.slice(2, 2, 3, 1).broadcast(&[3, 4, 7].into()).unwrap(),
            c.slice(0, 2, 3, 1).slice(2, 1, 2, 1),
            Layout::contiguous([]).broadcast(&[2, 300].into()).unwrap(),
        ]
    }

    #[test]
    fn a_reader_agrees_with_the_index_formula_from_any_start_in_any_blocks() {
        let data: Vec<u32> = (0..60).collect();
        for layout in views() {
            let shape = layout.shape();
            let expected: Vec<u32> = (0..shape.elements())
                .map(|position| {
                    let (mut rest, mut at) = (position, layout.offset() as isize);
                    for axis in (0..shape.len()).rev() {
                        at += layout.strides()[axis] * (rest % shape[axis]) as isize;
                        rest /= shape[axis];
                    }
                    data[at as usize]
                })
                .collect();
            for start in 0..expected.len().min(70) {
                for step in [1, 2, 7, 64] {
                    let mut reader = Reader::new(&data, &layout, start);
                    for chunk in expected[start..].chunks(step) {
                        assert_eq!(reader.next(chunk.len()), chunk, "{layout:?} from {start} by {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn writing_a_run_is_reading_it_back() {
        for run in [
            Run { offset: 3, stride: 1, len: 4 },
            Run { offset: 1, stride: 2, len: 4 },
            Run { offset: 9, stride: -3, len: 4 },
        ] {
            let mut data = [0; 10];
            run.write(&[1, 2, 3, 4], &mut data);
            let mut back = [0; 4];
            run.read(&data, &mut back);
            assert_eq!(back, [1, 2, 3, 4]);
            assert_eq!(data.iter().sum::<i32>(), 10);
        }
    }
}
