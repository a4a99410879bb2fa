//! Elements chosen by index along an axis, and elements added by index: `index.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Layout, Result, Shape, Tensor};
use smallvec::SmallVec;

use crate::device::{Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::ops::copy::{self, per_unit, walk};
use crate::ops::sort;
use crate::walk::{Divisor, MAX_WALK, Walk, merged};

pub(crate) static INDEX: Family = Family { name: "index.cu", text: include_str!("../../kernels/index.cu") };

const THREADS: u32 = 256;

/// Units that a thread of `gather` takes at once.
const ITEMS: usize = 4;

/// Columns that keep a card busy, each added up by one thread.
const MANY_COLUMNS: usize = 1 << 16;

/// Elements of a column that are added up sooner than they are sorted.
const SHORT_COLUMN: usize = 32;

/// `y[.., i, ..] = x[.., index[.., i, ..], ..]` along `axis`.
pub(crate) fn gather(cuda: &'static Cuda, x: &Tensor, axis: usize, index: &Tensor) -> Result<Tensor> {
    let shape = index.shape().clone();
    let mut y = cuda.empty(&shape, x.dtype())?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let chosen = x.layout().strides()[axis];
    let (places, whole) = (without_axis(x.layout(), axis, &shape), Layout::contiguous(&shape));
    let mut axes = merged([index.layout(), &places, &whole]);
    let joined = match axes.split_last_mut() {
        Some(((n, [0, 1, 1]), outer)) => {
            let size = x.dtype().size();
            let outer_strides = outer.iter().map(|(_, strides)| strides[1]).chain([chosen]);
            let multiples = outer_strides.map(isize::unsigned_abs).chain([address_of(x) as usize / size, *n]);
            let joined = per_unit(size, multiples);
            *n /= joined;
            outer.iter_mut().for_each(|(_, strides)| strides[1] /= joined as isize);
            joined
        }
        _ => 1,
    };
    let operands: SmallVec<[(usize, [isize; 2]); 6]> =
        axes.iter().filter(|(n, _)| *n != 1).map(|&(n, [i, x, _])| (n, [i, x])).collect();
    let Some(walk) = walk(&operands) else {
        return match in_order(cuda, [x, index])? {
            Some([x, index]) => gather(cuda, &x, axis, &index),
            None => Err(too_large(cuda, "gather", &shape)),
        };
    };
    let n = y.elements() / joined;
    let mut arguments = Arguments::default();
    arguments.output(&mut y).input(x).input(index).value(n as i64).value(x.shape()[axis] as i64);
    arguments.value((chosen / joined as isize) as i64).value(joined as i64).value(walk);
    cuda.checked_index(&mut arguments, &format!("gather along axis {axis}"), x.shape()[axis])?;
    let grid = Grid::covering(n.div_ceil(ITEMS), THREADS, cuda.most_blocks());
    cuda.launch(&INDEX, &format!("gather_{}", joined * x.dtype().size()), grid, &mut arguments)?;
    Ok(y)
}

/// A copy of `base` with `src[.., i, ..]` added at `index[.., i, ..]` along `axis`, in order of `i`.
pub(crate) fn scatter_add(
    cuda: &'static Cuda,
    base: &Tensor,
    axis: usize,
    index: &Tensor,
    src: &Tensor,
) -> Result<Tensor> {
    let (dtype, n) = (base.dtype(), index.elements());
    if n == 0 {
        return copy::contiguous(cuda, base);
    }
    let length = index.shape()[axis];
    if length > SHORT_COLUMN && n / length < MANY_COLUMNS {
        let mut y = copy::contiguous(cuda, base)?;
        add_runs(cuda, &mut y, axis, index, src)?;
        return Ok(y);
    }
    // bf16 is added up in f32, and rounded once.
    if dtype == DType::BF16 {
        let mut sums = copy::cast(cuda, base, DType::F32)?;
        add_columns(cuda, &mut sums, axis, index, src)?;
        return copy::cast(cuda, &sums, dtype);
    }
    let mut y = copy::contiguous(cuda, base)?;
    add_columns(cuda, &mut y, axis, index, src)?;
    Ok(y)
}

/// Adds every column by a thread of its own. The sums are of the wide type of `src`.
fn add_columns(
    cuda: &'static Cuda,
    sums: &mut Tensor,
    axis: usize,
    index: &Tensor,
    src: &Tensor,
) -> Result<()> {
    let Some(columns) = Columns::new([sums.layout(), index.layout(), src.layout()], axis) else {
        return match in_order(cuda, [index, src])? {
            Some([index, src]) => add_columns(cuda, sums, axis, &index, &src),
            None => Err(too_large(cuda, "scatter_add", index.shape())),
        };
    };
    let count = index.elements() / index.shape()[axis];
    let mut arguments = Arguments::default();
    arguments.output(sums).input(index).input(src).value(count as i64).value(columns);
    check(cuda, &mut arguments, axis, sums)?;
    let grid = Grid::covering(count, THREADS, cuda.most_blocks());
    cuda.launch(&INDEX, &format!("scatter_columns_{}", src.dtype()), grid, &mut arguments)
}

/// Sorts every column, and adds the elements of each destination by a thread of its own.
fn add_runs(cuda: &'static Cuda, y: &mut Tensor, axis: usize, index: &Tensor, src: &Tensor) -> Result<()> {
    // An index that does not vary along an axis is sorted once for all of it.
    let distinct = (0..index.shape().len())
        .filter(|&a| a != axis && index.layout().strides()[a] == 0)
        .fold(index.clone(), |index, a| index.slice(a, 0, 1, 1));
    let order = sort::argsort(cuda, &distinct, axis, false)?.expand(index.shape());
    let Some(columns) = Columns::new([y.layout(), index.layout(), src.layout(), order.layout()], axis) else {
        return match in_order(cuda, [index, src])? {
            Some([index, src]) => add_runs(cuda, y, axis, &index, &src),
            None => Err(too_large(cuda, "scatter_add", index.shape())),
        };
    };
    let n = index.elements();
    let mut arguments = Arguments::default();
    arguments.output(y).input(index).input(src).input(&order).value(n as i64).value(columns);
    check(cuda, &mut arguments, axis, y)?;
    let grid = Grid::covering(n, THREADS, cuda.most_blocks());
    cuda.launch(&INDEX, &format!("scatter_runs_{}", src.dtype()), grid, &mut arguments)
}

/// The columns of a scatter; `Columns` of `index.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Columns<const N: usize> {
    walk: Walk<N>,
    stride: [i64; N],
    size: i64,
    length: Divisor,
    inner: Divisor,
}

// SAFETY: all fields are plain numbers without gaps: two divisors have 24 bytes, a multiple of 8.
unsafe impl<const N: usize> Zeroable for Columns<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Pod for Columns<N> {}

impl<const N: usize> Columns<N> {
    /// The columns along `axis` of the result (the first layout), the index (the second), and others of the index's shape.
    /// `None` if they cannot be walked.
    fn new(layouts: [&Layout; N], axis: usize) -> Option<Columns<N>> {
        let shape = layouts[1].shape();
        if shape.elements() > MAX_WALK {
            return None;
        }
        let one = shape.with(axis, 1);
        let columns = layouts.map(|layout| without_axis(layout, axis, &one));
        Some(Columns {
            walk: Walk::new(std::array::from_fn(|k| &columns[k]))?,
            stride: layouts.map(|layout| layout.strides()[axis] as i64),
            size: layouts[0].shape()[axis] as i64,
            length: Divisor::new(shape[axis]),
            inner: Divisor::new(shape[axis + 1..].iter().product()),
        })
    }
}

/// Where index 0 along an axis lies, under a shape that has another size there.
fn without_axis(layout: &Layout, axis: usize, shape: &Shape) -> Layout {
    if layout.shape().elements() == 0 {
        // All indices are outside the axis, so nothing is looked for.
        return Layout::contiguous(shape);
    }
    let mut strides: SmallVec<[isize; 6]> = SmallVec::from_slice(layout.strides());
    strides[axis] = 0;
    Layout::strided(shape, &strides, layout.offset())
}

/// Copies in row-major order, which merge to few axes; `None` if the operands are such already.
fn in_order<const N: usize>(cuda: &'static Cuda, x: [&Tensor; N]) -> Result<Option<[Tensor; N]>> {
    if x.iter().all(|x| x.layout().is_contiguous()) {
        return Ok(None);
    }
    let mut copies = x.map(Tensor::clone);
    for copy in &mut copies {
        *copy = copy::contiguous(cuda, copy)?;
    }
    Ok(Some(copies))
}

fn check(cuda: &'static Cuda, arguments: &mut Arguments, axis: usize, base: &Tensor) -> Result<()> {
    cuda.checked_index(arguments, &format!("scatter_add along axis {axis}"), base.shape()[axis])
}

fn too_large(cuda: &Cuda, operation: &str, shape: &Shape) -> limpid_tensor::Error {
    cuda.error(format!("{operation}: an index of shape {shape} has more than 2³¹ elements to walk"))
}
