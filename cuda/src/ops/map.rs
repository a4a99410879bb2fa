//! Functions of one, two or three elements, with broadcasting: `map.cu`.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Map, Result, Shape, Tensor};

use crate::device::{Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::ops::copy;
use crate::walk::Walk;

pub(crate) static MAP: Family = Family { name: "map.cu", text: include_str!("../../kernels/map.cu") };

const THREADS: u32 = 256;

/// How operands lie; `Operands` of `map.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Operands<const N: usize> {
    data: [u64; N],
    walk: Walk<N>,
    vector: u32,
    padding: u32,
}

// SAFETY: all fields are plain numbers, and the padding at the end is a field.
unsafe impl<const N: usize> Zeroable for Operands<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Pod for Operands<N> {}

/// Applies a function element by element.
pub(crate) fn map(cuda: &'static Cuda, f: Map, x: &[&Tensor]) -> Result<Tensor> {
    let shape = x[1..].iter().fold(x[0].shape().clone(), |shape, x| {
        shape.broadcast(x.shape()).expect("the operands of a map broadcast together")
    });
    let dtype = match f {
        Map::Eq | Map::Ne | Map::Lt | Map::Le | Map::Gt | Map::Ge => DType::Bool,
        _ => x[x.len() - 1].dtype(),
    };
    let mut y = cuda.empty(&shape, dtype)?;
    match *x {
        [a] => queue(cuda, f, &mut y, [a])?,
        [a, b] => queue(cuda, f, &mut y, [a, b])?,
        [c, a, b] => queue(cuda, f, &mut y, [c, a, b])?,
        _ => unreachable!("a map has one to three operands"),
    }
    Ok(y)
}

/// `sum[i] = sum[i] + x[i]`, both contiguous.
pub(crate) fn add_in_place(cuda: &'static Cuda, sum: &mut Tensor, x: &Tensor) -> Result<()> {
    let before = sum.clone();
    queue(cuda, Map::Add, sum, [&before, x])
}

fn queue<const N: usize>(cuda: &'static Cuda, f: Map, y: &mut Tensor, x: [&Tensor; N]) -> Result<()> {
    let (shape, n) = (y.shape().clone(), y.elements());
    let mut x = x.map(Tensor::clone);
    for x in x.iter_mut().filter(|x| is_turned(x)) {
        *x = copy::contiguous(cuda, x)?;
    }
    let x = x.map(|x| x.expand(&shape));
    let operands = operands(cuda, &x, &shape)?;
    let (name, [p, q]) = kernel(f, x[N - 1].dtype());
    let per_thread = if operands.vector == 1 { 16 / x[N - 1].dtype().size() } else { 1 };
    let mut arguments = Arguments::default();
    arguments.output(y).value(n as i64).value(operands);
    if f != Map::Where {
        arguments.value(p).value(q);
    }
    let grid = Grid::covering(n.div_ceil(per_thread), THREADS, cuda.most_blocks());
    cuda.launch(&MAP, &name, if n == 0 { Grid::new(0, THREADS) } else { grid }, &mut arguments)
}

/// Whether an operand's neighbours are found along another axis than the last, so that a warp would fetch a sector for each
/// of its elements: it is worth a copy, by tiles. A small one is in the cache for whoever comes next.
fn is_turned(x: &Tensor) -> bool {
    const SMALL: usize = 16 << 10;
    let axes = x.shape().iter().zip(x.layout().strides()).filter(|(size, _)| **size > 1);
    let mut steps = axes.map(|(_, step)| step.unsigned_abs()).rev();
    let last = steps.next().unwrap_or(0);
    x.elements() * x.dtype().size() >= SMALL && last > 1 && steps.any(|step| step == 1)
}

fn operands<const N: usize>(cuda: &Cuda, x: &[Tensor; N], shape: &Shape) -> Result<Operands<N>> {
    let data = std::array::from_fn(|k| address_of(&x[k]));
    let vector = x.iter().all(|x| x.layout().is_contiguous()) && data.iter().all(|address| address % 16 == 0);
    let walk = if vector { Some(Walk::zeroed()) } else { Walk::new(std::array::from_fn(|k| x[k].layout())) };
    let walk = walk.ok_or_else(|| {
        cuda.error(format!(
            "operands of shape {shape}, strided, have more than 8 axes or 2³¹ elements to walk"
        ))
    })?;
    Ok(Operands { data, walk, vector: u32::from(vector), padding: 0 })
}

/// The kernel's name and the two numbers that come with the function.
fn kernel(f: Map, dtype: DType) -> (String, [f64; 2]) {
    use Map::*;
    let numbers = match f {
        LeakyRelu(p) | Elu(p) | Powf(p) => [p, 0.0],
        Affine { mul, add } => [mul, add],
        Clamp { low, high } => [low, high],
        _ => [0.0, 0.0],
    };
    let name = match f {
        Where => return (format!("where_{}", dtype.size()), numbers),
        // Products are exact to an ulp, and faster than the general power.
        Powf(1.0) => "identity",
        Powf(2.0) => "square",
        Powf(3.0) => "cube",
        Powf(-1.0) => "recip",
        Not => "logical_not",
        And => "logical_and",
        Or => "logical_or",
        f => f.name(),
    };
    (format!("{name}_{dtype}"), numbers)
}
