//! Choosing and adding by index, and the indices that sort.

use bytemuck::Pod;
use half::bf16;
use smallvec::SmallVec;

use super::copy::with_bits;
use super::reduce::is_nan;
use super::simd::widest;
use super::stored::Stored;
use super::walk::{BLOCK, Cursor, Reader, Run, data};
use crate::{DType, Error, HostBuffer, Layout, Result, Shape, Tensor};

/// `y[.., i, ..] = x[.., index[.., i, ..], ..]` along `axis`.
pub(super) fn gather(x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
    fn read<T: Pod>(x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
        let rows = Rows::new("gather", x.layout(), axis, index);
        let (mut row, len) = (Cursor::new(&rows.row, 0), rows.row.shape().elements());
        let mut buffer = HostBuffer::new(index.elements() * size_of::<T>());
        let (data, out, mut at) = (data::<T>(x), buffer.as_mut::<T>(), 0);
        rows.visit(|start| {
            let shift = start - rows.row.offset() as isize;
            let end = at + len;
            while at < end {
                let run = row.next_run(end - at);
                let run = Run { offset: run.offset.wrapping_add_signed(shift), ..run };
                run.read(data, &mut out[at..at + run.len]);
                at += run.len;
            }
        })?;
        Ok(buffer.into_tensor(index.shape(), x.dtype()))
    }
    with_bits!(x.dtype(), T => read::<T>(x, axis, index))
}

/// A copy of `base` with `src[.., i, ..]` added at `index[.., i, ..]` along `axis`, in order of `i`. bf16
/// accumulates in f32 and is rounded once; i64 wraps around; for bool, adding is the logical or.
pub(super) fn scatter_add(base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
    match base.dtype() {
        DType::F32 => scatter_with(base, axis, index, src, |sum: f32, v: f32| sum + v),
        DType::F64 => scatter_with(base, axis, index, src, |sum: f64, v: f64| sum + v),
        DType::I64 => scatter_with(base, axis, index, src, i64::wrapping_add),
        DType::Bool => scatter_with(base, axis, index, src, |sum: u8, v: u8| sum | v),
        DType::BF16 => {
            let wide = base.cast(DType::F32)?;
            scatter_with(&wide, axis, index, src, |sum: f32, v: bf16| sum + v.load())?.cast(DType::BF16)
        }
    }
}

/// A copy of `base` (elements `A`) into which elements `S` of `src` are combined.
fn scatter_with<A: Pod, S: Pod>(
    base: &Tensor,
    axis: usize,
    index: &Tensor,
    src: &Tensor,
    combine: impl Fn(A, S) -> A,
) -> Result<Tensor> {
    let mut buffer = HostBuffer::new(base.elements() * size_of::<A>());
    let sums = buffer.as_mut::<A>();
    let mut from = Reader::<A>::of(base, 0);
    sums.chunks_mut(BLOCK).for_each(|sums| sums.copy_from_slice(from.next(sums.len())));

    let rows = Rows::new("scatter_add", &Layout::contiguous(base.shape()), axis, index);
    let len = rows.row.shape().elements();
    let mut from = Reader::<S>::of(src, 0);
    rows.visit(|start| {
        // The result is contiguous, so a row of it is one slice.
        for sums in sums[start as usize..][..len].chunks_mut(BLOCK) {
            let values = from.next(sums.len());
            widest(
                #[inline(always)]
                || sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum = combine(*sum, v)),
            );
        }
    })?;
    Ok(buffer.into_tensor(base.shape(), base.dtype()))
}

/// The rows of a target that an index names along an axis. A row spans the last axes, as many as the index does
/// not vary along: whole rows for a table looked up by row number, single elements if the index varies to the end.
struct Rows {
    op: &'static str,
    axis: usize,
    /// Size and stride of the target along the axis.
    n: usize,
    stride: isize,
    /// One index per row, the axes of the row having size 1.
    index: Tensor,
    /// Where each row would start if its index were 0.
    starts: Layout,
    /// The row of the target that starts at its first element.
    row: Layout,
}

impl Rows {
    fn new(op: &'static str, target: &Layout, axis: usize, index: &Tensor) -> Rows {
        let (n, stride, rank) = (target.shape()[axis], target.strides()[axis], index.shape().len());
        let varies = |a: usize| index.layout().strides()[a] != 0 && index.shape()[a] != 1;
        let row_axes = (axis + 1..rank).rev().take_while(|&a| !varies(a)).last().unwrap_or(rank)..rank;
        // Without elements in target or index there are no rows to place, and no first element to start from.
        let empty = index.elements() == 0 || target.shape().elements() == 0;
        let first = |layout: &Layout, axes: std::ops::Range<usize>| {
            axes.fold(layout.clone(), |layout, a| if empty { layout } else { layout.slice(a, 0, 1, 1) })
        };
        let lead = first(index.layout(), row_axes.clone());
        let starts = first(&first(target, axis..axis + 1), row_axes.clone());
        let starts = if empty { Layout::contiguous(lead.shape()) } else { starts };
        Rows {
            op,
            axis,
            n,
            stride,
            starts: starts.broadcast(lead.shape()).expect("an index agrees with its target but for the axis"),
            index: row_axes.clone().fold(index.clone(), |x, a| if empty { x } else { x.slice(a, 0, 1, 1) }),
            row: first(target, 0..row_axes.start),
        }
    }

    /// Calls `row` with the place in storage where each row starts, in order.
    fn visit(&self, mut row: impl FnMut(isize)) -> Result<()> {
        let (mut starts, mut indices) = (Cursor::new(&self.starts, 0), Reader::<i64>::of(&self.index, 0));
        for position in 0..self.index.elements() {
            let (start, index) = (starts.next_run(1).offset, indices.next(1)[0]);
            match usize::try_from(index) {
                Ok(i) if i < self.n => row(start as isize + i as isize * self.stride),
                _ => return Err(self.out_of_range(index, position)),
            }
        }
        Ok(())
    }

    fn out_of_range(&self, index: i64, position: usize) -> Error {
        let mut at: SmallVec<[usize; 6]> = SmallVec::new();
        let mut rest = position;
        for &n in self.index.shape().iter().rev() {
            at.insert(0, rest % n);
            rest /= n;
        }
        let at = Shape::from(&at[..]);
        Error::Device {
            device: "cpu".into(),
            message: format!(
                "{}: index {index} at {at} is outside axis {} of size {}",
                self.op, self.axis, self.n
            ),
        }
    }
}

/// The indices that sort along an axis. Equal elements keep their order; NaN sorts last either way.
pub(super) fn argsort(x: &Tensor, axis: usize, descending: bool) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F32 => argsort_by::<f32>(x, axis, descending),
        DType::F64 => argsort_by::<f64>(x, axis, descending),
        // Widened, bf16 and bool compare as numbers.
        DType::BF16 | DType::Bool => argsort_by::<f32>(&x.cast(DType::F32)?, axis, descending),
        DType::I64 => argsort_by::<i64>(x, axis, descending),
    })
}

fn argsort_by<T: Pod + PartialOrd>(x: &Tensor, axis: usize, descending: bool) -> Tensor {
    let n = x.shape()[axis];
    let order: SmallVec<[usize; 6]> = (0..x.shape().len()).filter(|&a| a != axis).chain([axis]).collect();
    let view = x.permute(&order);
    let places = Layout::contiguous(x.shape()).permute(&order);
    let mut buffer = HostBuffer::new(x.elements() * size_of::<i64>());
    let out = buffer.as_mut::<i64>();
    if !out.is_empty() {
        let (mut reader, mut place) = (Reader::<T>::of(&view, 0), Cursor::new(&places, 0));
        let mut row: SmallVec<[(T, i64); 64]> = SmallVec::new();
        for _ in 0..x.elements() / n {
            row.clear();
            for start in (0..n).step_by(BLOCK) {
                let block = reader.next(BLOCK.min(n - start));
                row.extend(block.iter().zip(start as i64..).map(|(&v, i)| (v, i)));
            }
            // The index decides between equal elements, so no two compare equal and any sort is stable.
            row.sort_unstable_by(|a, b| {
                let by_value = match a.0.partial_cmp(&b.0) {
                    Some(ordering) if descending => ordering.reverse(),
                    Some(ordering) => ordering,
                    None => is_nan(a.0).cmp(&is_nan(b.0)),
                };
                by_value.then(a.1.cmp(&b.1))
            });
            for &(_, i) in &row {
                place.next_run(1).write(&[i], out);
            }
        }
    }
    buffer.into_tensor(x.shape(), DType::I64)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{ALL, naive, values, views};
    use super::*;

    /// Row-major position to index and back.
    fn index_of(mut position: usize, sizes: &[usize]) -> Vec<usize> {
        let mut at = vec![0; sizes.len()];
        for axis in (0..sizes.len()).rev() {
            at[axis] = position % sizes[axis];
            position /= sizes[axis];
        }
        at
    }

    fn position_of(at: &[usize], sizes: &[usize]) -> usize {
        at.iter().zip(sizes).fold(0, |p, (&i, &n)| p * n + i)
    }

    /// Indices `0..n` in every layout of these sizes.
    fn indices(sizes: &[usize], n: usize) -> Vec<Tensor> {
        let count = |sizes: &[usize]| sizes.iter().product::<usize>();
        let make = |sizes: &[usize]| {
            let v: Vec<i64> = (0..count(sizes)).map(|i| ((i * 7 + 3) % n) as i64).collect();
            Tensor::from_vec(v, sizes)
        };
        let mut all = vec![make(sizes)];
        for axis in 0..sizes.len() {
            all.push(make(sizes).flip(axis));
            all.push(make(&Shape::from(sizes).with(axis, 1)).expand(sizes));
        }
        let last_axes_one: Vec<usize> =
            std::iter::once(sizes[0]).chain(sizes[1..].iter().map(|_| 1)).collect();
        all.push(make(&last_axes_one).expand(sizes));
        all
    }

    #[test]
    fn gather_agrees_with_its_definition() {
        let sizes = [3, 4, 5];
        for dtype in ALL {
            for axis in 0..3 {
                let index_sizes: Vec<usize> = Shape::from(sizes).with(axis, 6).to_vec();
                for index in indices(&index_sizes, sizes[axis]) {
                    for x in views(&sizes, dtype) {
                        let (v, ids) = (naive(&x), naive(&index));
                        let expected: Vec<f64> = (0..index.elements())
                            .map(|p| {
                                let mut at = index_of(p, &index_sizes);
                                at[axis] = ids[p] as usize;
                                v[position_of(&at, &sizes)]
                            })
                            .collect();
                        assert_eq!(naive(&gather(&x, axis, &index).unwrap()), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn scatter_add_agrees_with_its_definition() {
        let sizes = [3, 4, 5];
        for dtype in ALL {
            for axis in 0..3 {
                let index_sizes: Vec<usize> = Shape::from(sizes).with(axis, 6).to_vec();
                let sources = views(&index_sizes, dtype);
                for index in indices(&index_sizes, sizes[axis]) {
                    for (base, src) in views(&sizes, dtype).iter().zip(&sources) {
                        let (mut expected, ids, v) = (naive(base), naive(&index), naive(src));
                        for p in 0..index.elements() {
                            let mut at = index_of(p, &index_sizes);
                            at[axis] = ids[p] as usize;
                            let sum = &mut expected[position_of(&at, &sizes)];
                            *sum += v[p];
                            if dtype == DType::Bool {
                                *sum = sum.min(1.0);
                            }
                        }
                        // Sums of few multiples of 1/8 below 50 are exact, but for the last rounding to bf16.
                        let expected: Vec<f64> =
                            expected.iter().map(|&v| super::super::fixture::rounded(v, dtype)).collect();
                        assert_eq!(naive(&scatter_add(base, axis, &index, src).unwrap()), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_is_rounded_after_the_last_addition() {
        // 256 + 1 rounds back to 256 in bf16; 256 + 8·1 does not.
        let base = Tensor::full([1], 256.0, DType::BF16);
        let (index, src) = (Tensor::zeros([8], DType::I64), Tensor::ones([8], DType::BF16));
        assert_eq!(naive(&scatter_add(&base, 0, &index, &src).unwrap()), [264.0]);
    }

    #[test]
    fn an_index_outside_the_axis_is_an_error_that_says_where() {
        let x = Tensor::zeros([2, 3], DType::F32);
        let index = Tensor::from_vec(vec![0i64, 1, 2, 0, -1, 3], [2, 3]);
        let message = gather(&x, 1, &index).err().unwrap().to_string();
        assert_eq!(message, "cpu: gather: index -1 at [1, 1] is outside axis 1 of size 3");
        let src = Tensor::zeros([4, 3], DType::F32);
        let index = Tensor::from_vec(vec![0i64, 1, 2, 0], [4, 1]).expand([4, 3]);
        let message = scatter_add(&x, 0, &index, &src).err().unwrap().to_string();
        assert_eq!(message, "cpu: scatter_add: index 2 at [2, 0] is outside axis 0 of size 2");
        let nothing = Tensor::zeros([0, 3], DType::F32);
        let message = gather(&nothing, 0, &index).err().unwrap().to_string();
        assert_eq!(message, "cpu: gather: index 0 at [0, 0] is outside axis 0 of size 0");
    }

    #[test]
    fn nothing_is_gathered_from_anything() {
        let index = Tensor::zeros([0, 3], DType::I64);
        for n in [0, 2] {
            let x = Tensor::ones([n, 3], DType::F32);
            assert_eq!(gather(&x, 0, &index).unwrap().shape()[..], [0, 3]);
            let same = scatter_add(&x, 0, &index, &Tensor::zeros([0, 3], DType::F32)).unwrap();
            assert_eq!(naive(&same), vec![1.0; 3 * n]);
        }
        let no_columns = Tensor::zeros([4, 0], DType::F32);
        let y = gather(&no_columns, 0, &Tensor::zeros([2, 0], DType::I64)).unwrap();
        assert_eq!(y.shape()[..], [2, 0]);
    }

    #[test]
    fn argsort_is_stable_and_puts_nan_last() {
        let x = Tensor::from_vec(vec![2.0f32, f32::NAN, -0.0, 2.0, 0.0, f32::NAN, -1.0], [7]);
        assert_eq!(argsort(&x, 0, false).unwrap().to_vec::<i64>().unwrap(), [6, 2, 4, 0, 3, 1, 5]);
        assert_eq!(argsort(&x, 0, true).unwrap().to_vec::<i64>().unwrap(), [0, 3, 2, 4, 6, 1, 5]);
    }

    #[test]
    fn argsort_sorts_along_every_axis_of_every_layout() {
        for dtype in ALL {
            for x in views(&[3, 4, 2], dtype) {
                for axis in 0..3 {
                    for descending in [false, true] {
                        let order = argsort(&x, axis, descending).unwrap();
                        let to_last: Vec<usize> = (0..3).filter(|&a| a != axis).chain([axis]).collect();
                        let (rows, order) = (naive(&x.permute(&to_last)), naive(&order.permute(&to_last)));
                        let n = x.shape()[axis];
                        for (row, order) in rows.chunks(n).zip(order.chunks(n)) {
                            let mut expected: Vec<usize> = (0..n).collect();
                            expected.sort_by(|&a, &b| {
                                let ordering = row[a].total_cmp(&row[b]);
                                if descending { ordering.reverse() } else { ordering }
                            });
                            assert!(order.iter().zip(expected).all(|(&found, e)| found as usize == e));
                        }
                    }
                }
            }
        }
        let empty = argsort(&Tensor::zeros([2, 0], DType::F32), 1, false).unwrap();
        assert_eq!(empty.shape()[..], [2, 0]);
        let long = Tensor::from_f64(&values(700, DType::I64), [700], DType::I64);
        let order = argsort(&long, 0, false).unwrap();
        let sorted = naive(&gather(&long, 0, &order).unwrap());
        assert!(sorted.is_sorted());
    }
}
