//! Matrix products: `matmul.cu`, `matmul_tensor_core.cu` and `matmul_wgmma.cu`.

mod kernel;
mod problem;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{Activation, DType, Layout, Result, Shape, Tensor, infer_matmul};

use self::kernel::{Kernel, wants_tensor_cores};
pub(crate) use self::kernel::{MATMUL, TENSOR_CORE, WGMMA};
use self::problem::{Factor, Parts, Problem};
use super::copy;
use crate::device::{Buffer, Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::walk::Divisor;

static TF32_ALLOWED: AtomicBool = AtomicBool::new(false);

impl Cuda {
    /// Whether products of f32 may round their factors to 10 bits of fraction (tf32), on all devices. Tensor cores then
    /// multiply them, several times as fast. They may not unless this has been called; sums stay f32.
    pub fn allow_tf32(allowed: bool) {
        TF32_ALLOWED.store(allowed, Ordering::Relaxed);
    }
}

/// `[.., m, k] · [.., k, n]` → `[.., m, n]`, the leading axes broadcast. f32 and f64 accumulate in their own type, bf16 in
/// float, rounded once. An empty sum is 0.
pub(crate) fn matmul(cuda: &'static Cuda, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = infer_matmul(&a.meta(), &b.meta()).unwrap_or_else(|message| panic!("{message}")).shape;
    product(cuda, a, b, y, Finish::NONE)
}

/// `act(x·wᵀ + b) + r`: x `[.., in]`, w `[out, in]`, b `[out]`, r `[.., out]` → `[.., out]`. If r is not contiguous, it is
/// copied first.
pub(crate) fn linear(
    cuda: &'static Cuda,
    act: Activation,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    r: Option<&Tensor>,
) -> Result<Tensor> {
    let y = x.shape().with(x.shape().len() - 1, w.shape()[0]);
    if let Some(r) = r {
        assert!(*r.shape() == y, "linear: the residual must be {y}, found {}", r.shape());
    }
    let r = r.map(|r| r.contiguous()).transpose()?;
    let finish = Finish::new(cuda, act, b, r.as_ref())?;
    if x.shape().len() == 1 {
        let row =
            product(cuda, &x.reshape([1, x.shape()[0]])?, &w.transpose(0, 1), [1, y[0]].into(), finish)?;
        return row.reshape(y);
    }
    product(cuda, x, &w.transpose(0, 1), y, finish)
}

/// Whether a card has the kernel of products of that name.
pub fn has_product(cuda: &Cuda, kernel: &str) -> bool {
    Kernel::called(kernel).is_some_and(|kernel| kernel.runs_on(cuda.properties()))
}

/// The product of two matrices by the kernel of that name, whatever kernel their shapes would choose.
///
/// # Errors
/// If it is not a kernel for factors that lie like these, or not one of this card.
///
/// # Panics
/// If the factors are not on a card, or their shapes do not agree.
pub fn product_by(kernel: &str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    finished_by(kernel, a, b, Finish::NONE)
}

/// `act(x·wᵀ + b) + r` of matrices by the kernel of products of that name: x `[rows, in]`, w `[out, in]`, b `[out]`, r
/// `[rows, out]`, which is contiguous.
///
/// # Errors
/// As [`product_by`].
///
/// # Panics
/// As [`product_by`], or if r has another shape or order.
pub fn linear_add_by(
    kernel: &str,
    act: Activation,
    [r, x, w]: [&Tensor; 3],
    b: Option<&Tensor>,
) -> Result<Tensor> {
    let cuda = Cuda::of(x.device()).expect("the factors are on a card");
    assert!(r.layout().is_contiguous() && r.shape()[..] == [x.shape()[0], w.shape()[0]], "{}", r.meta());
    finished_by(kernel, x, &w.transpose(0, 1), Finish::new(cuda, act, b, Some(r))?)
}

fn finished_by(kernel: &str, a: &Tensor, b: &Tensor, finish: Finish) -> Result<Tensor> {
    let cuda = Cuda::of(a.device()).expect("the factors are on a card");
    let y = infer_matmul(&a.meta(), &b.meta()).unwrap_or_else(|message| panic!("{message}")).shape;
    let (p, dtype) = (Problem::new(a, b, &y[..y.len() - 2]), a.dtype());
    let suits = |found: &Kernel| {
        let reads = match found {
            Kernel::TensorCores(_) | Kernel::Wgmma => {
                [&p.a, &p.b].into_iter().all(|x| tensor_cores_read(x, dtype))
            }
            _ => true,
        };
        reads && found.name(&p, dtype) == kernel && found.runs_on(cuda.properties())
    };
    let Some(found) = Kernel::called(kernel).filter(suits) else {
        let (a, b) = (a.meta(), b.meta());
        return Err(
            cuda.error(format!("{kernel} does not multiply {a} and {b} as they lie, or not on this card"))
        );
    };
    let mut y = cuda.empty(&y, dtype)?;
    queue(cuda, found, &p, &mut y, finish)?;
    Ok(y)
}

/// What is done to a finished sum; `Finish` of `matmul.cuh`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct Finish {
    bias: u64,
    bias_step: i64,
    residual: u64,
    activation: u32,
    vector: u32,
}

impl Finish {
    const NONE: Finish = Finish { bias: 0, bias_step: 0, residual: 0, activation: 0, vector: 0 };

    /// b `[columns]`, and r of the result's shape, contiguous.
    fn new(cuda: &Cuda, act: Activation, b: Option<&Tensor>, r: Option<&Tensor>) -> Result<Finish> {
        let activation = match act {
            Activation::Identity => 0,
            Activation::Relu => 1,
            Activation::Tanh => 2,
            Activation::Sigmoid => 3,
            other => return Err(cuda.error(format!("linear has no kernel for {other:?}"))),
        };
        let residual = r.map_or(0, address_of);
        Ok(Finish {
            bias: b.map_or(0, address_of),
            bias_step: b.map_or(0, |b| b.layout().strides()[0] as i64),
            residual,
            activation,
            vector: u32::from(residual.is_multiple_of(16)),
        })
    }
}

/// The product of shape `y`, finished.
fn product(cuda: &'static Cuda, a: &Tensor, b: &Tensor, y: Shape, finish: Finish) -> Result<Tensor> {
    let mut out = cuda.empty(&y, a.dtype())?;
    if out.elements() > 0 {
        let lead = &y[..y.len() - 2];
        match for_tensor_cores(cuda, a, b, lead)? {
            Some((p, _factors)) => {
                let kernel = Kernel::tensor_cores(&p, a.dtype(), cuda.properties());
                queue(cuda, kernel, &p, &mut out, finish)?;
            }
            None => {
                let p = Problem::new(a, b, lead);
                queue(cuda, Kernel::plain(&p), &p, &mut out, finish)?;
            }
        }
    }
    Ok(out)
}

/// Whether tensor cores can read a factor: they get it 16 bytes at a time, which must be neighbours and lie at a multiple of
/// 16; floats must be neighbours along the sum.
fn tensor_cores_read(x: &Factor, dtype: DType) -> bool {
    x.dense && x.alignment == 16 && (x.along_terms || dtype == DType::BF16)
}

/// The product as tensor cores can read it, and its factors, which must live until it is queued; `None` if others shall multiply.
///
/// Factors that they cannot read are copied once, with rows padded to whole 16 bytes.
fn for_tensor_cores(
    cuda: &'static Cuda,
    a: &Tensor,
    b: &Tensor,
    lead: &[usize],
) -> Result<Option<(Problem, [Tensor; 2])>> {
    let dtype = a.dtype();
    let suited = match dtype {
        DType::BF16 => true,
        DType::F32 => TF32_ALLOWED.load(Ordering::Relaxed),
        _ => false,
    };
    let p = Problem::new(a, b, lead);
    if !suited || cuda.properties().capability < (8, 0) || !wants_tensor_cores(&p, false) {
        return Ok(None);
    }
    let [reads_a, reads_b] = [&p.a, &p.b].map(|x| tensor_cores_read(x, dtype));
    if reads_a && reads_b {
        return Ok(Some((p, [a.clone(), b.clone()])));
    }
    if !wants_tensor_cores(&p, true) {
        return Ok(None);
    }
    let a = if reads_a { a.clone() } else { padded(cuda, a)? };
    let b = if reads_b { b.clone() } else { padded(cuda, &b.transpose(-1, -2))?.transpose(-1, -2) };
    Ok(Some((Problem::new(&a, &b, lead), [a, b])))
}

/// The same matrices, each row at a multiple of 16 bytes. Broadcast axes stay axes of one element.
fn padded(cuda: &'static Cuda, x: &Tensor) -> Result<Tensor> {
    let last = x.shape().len() - 1;
    let x = (0..last - 1)
        .filter(|&axis| x.layout().strides()[axis] == 0)
        .fold(x.clone(), |x, axis| x.slice(axis, 0, 1, 1));
    let columns = x.shape()[last];
    let shape = x.shape().with(last, columns.next_multiple_of(16 / x.dtype().size()));
    let part = Layout::contiguous(shape.clone()).slice(last, 0, columns, 1);
    Ok(copy::assemble(cuda, &shape, x.dtype(), &[(part, &x)])?.slice(last, 0, columns, 1))
}

/// Queues a kernel that makes `y`; where it makes parts of sums, also the one that adds them.
fn queue(cuda: &'static Cuda, kernel: Kernel, p: &Problem, y: &mut Tensor, finish: Finish) -> Result<()> {
    let dtype = y.dtype();
    let parts = kernel.parts(p);
    let blocks = kernel.blocks(p) * parts.splits;
    let argument = p.argument(kernel.read_width(dtype), parts);
    let Some(argument) = argument.filter(|_| blocks <= i32::MAX as usize) else {
        return Err(cuda.error(format!(
            "a product of {} by {} by {}, {} times, has more than 8 axes or 2³¹ elements to count",
            p.m,
            p.k,
            p.n,
            p.batches()
        )));
    };
    let blocks = if kernel == Kernel::Direct { blocks.min(cuda.most_blocks()) } else { blocks };
    let grid = Grid { shared: kernel.shared(), ..Grid::new(blocks, kernel.threads()) };
    let name = kernel.name(p, dtype);
    let mut arguments = Arguments::default();
    if parts.splits == 1 {
        arguments.output(y).value(argument).value(finish);
        if kernel == Kernel::Direct {
            arguments.value(Divisor::new(p.m)).value(Divisor::new(p.n));
        }
        return cuda.launch(kernel.family(), &name, grid, &mut arguments);
    }
    let wide = if dtype == DType::F64 { 8 } else { 4 };
    let sums = cuda.scratch(parts.splits * p.elements() * wide)?;
    arguments.scratch(&sums).value(argument).value(finish);
    cuda.launch(kernel.family(), &name, grid, &mut arguments)?;
    add_parts(cuda, &sums, parts, p, y, finish)
}

/// Adds the parts of each sum in their order, and finishes it.
fn add_parts(
    cuda: &'static Cuda,
    sums: &Buffer,
    parts: Parts,
    p: &Problem,
    y: &mut Tensor,
    finish: Finish,
) -> Result<()> {
    let name = format!("matmul_sum_parts_{}", y.dtype());
    let mut arguments = Arguments::default();
    arguments.output(y).scratch(sums).value(parts.splits as i32).value(p.elements() as i64);
    arguments.value(Divisor::new(p.n)).value(finish);
    let grid = Grid::covering(p.elements(), 256, cuda.most_blocks());
    cuda.launch(&MATMUL, &name, grid, &mut arguments)
}
