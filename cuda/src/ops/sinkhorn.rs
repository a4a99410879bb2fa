//! Sinkhorn–Knopp: `sinkhorn.cu`.
//!
//! A matrix with a row or a column of nothing but −∞ cannot be scaled; its result has NaNs, and the kernel writes it down.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Result, Stop, Tensor};

use super::copy;
use crate::device::{Buffer, Cuda};
use crate::launch::{Arguments, Grid};
use crate::module::Family;

pub(crate) static SINKHORN: Family =
    Family { name: "sinkhorn.cu", text: include_str!("../../kernels/sinkhorn.cu") };

/// The largest matrix whose scalings a block carries; beyond it there are the logarithms alone.
const LARGEST_OF_A_BLOCK: usize = 256;
/// The most steps that are all kept for the gradient.
const KEPT_WHOLE: usize = 64;
/// Shared memory of a block that vectors may take. Beyond it too few blocks would run side by side.
const SHARED_FOR_VECTORS: usize = 48 << 10;
/// Scratch memory of all blocks together. Where they want more, there are fewer blocks, which take turns.
const SCRATCH: usize = 256 << 20;
/// Threads of a block that computes with logarithms, and how many matrices it looks after.
const LOGARITHMS: (u32, usize) = (128, 32);

/// What is to be done; `Task` of `sinkhorn.cu`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct Task {
    matrices: i64,
    scratch: i64,
    area: i64,
    error: f64,
    n: u32,
    at_most: u32,
    waits: u32,
    segment: u32,
    area_shared: u32,
    kept_shared: u32,
}

/// What is asked of an iteration.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// The matrix it ends at.
    Matrix,
    /// The cotangent of the logits, given that of the matrix.
    Gradient(&'a Tensor),
    /// How many steps it took.
    Steps,
}

/// `Fused::Sinkhorn`.
pub(crate) fn sinkhorn(cuda: &'static Cuda, x: &Tensor, stop: Stop) -> Result<Tensor> {
    run(cuda, x, stop, Wanted::Matrix)
}

/// `Fused::SinkhornBackward`.
pub(crate) fn backward(cuda: &'static Cuda, x: &Tensor, g: &Tensor, stop: Stop) -> Result<Tensor> {
    run(cuda, x, stop, Wanted::Gradient(g))
}

/// `Fused::SinkhornSteps`.
pub(crate) fn steps(cuda: &'static Cuda, x: &Tensor, stop: Stop) -> Result<Tensor> {
    run(cuda, x, stop, Wanted::Steps)
}

fn run(cuda: &'static Cuda, x: &Tensor, stop: Stop, wanted: Wanted<'_>) -> Result<Tensor> {
    let rank = x.shape().len();
    assert!(
        rank >= 2 && x.shape()[rank - 1] == x.shape()[rank - 2] && x.shape()[rank - 1] > 0,
        "sinkhorn: expected square matrices in the last two axes, found shape {}",
        x.shape()
    );
    if x.dtype() == DType::BF16 {
        let wide = copy::cast(cuda, x, DType::F32)?;
        return match wanted {
            Wanted::Matrix => copy::cast(cuda, &run(cuda, &wide, stop, wanted)?, DType::BF16),
            Wanted::Gradient(g) => {
                let g = copy::cast(cuda, g, DType::F32)?;
                copy::cast(cuda, &run(cuda, &wide, stop, Wanted::Gradient(&g))?, DType::BF16)
            }
            Wanted::Steps => run(cuda, &wide, stop, wanted),
        };
    }
    let (x, g) = match wanted {
        Wanted::Gradient(g) => (x.contiguous()?, Some(g.contiguous()?)),
        _ => (x.contiguous()?, None),
    };
    let y = match wanted {
        Wanted::Steps => cuda.empty(x.shape().with_ones(&[rank - 2, rank - 1]), DType::I64)?,
        _ => cuda.empty(x.shape(), x.dtype())?,
    };
    if x.elements() == 0 {
        return Ok(y);
    }
    let mut iteration = Iteration::new(cuda, &x, g.as_ref(), stop, y)?;
    let marked = iteration.scalings()?;
    iteration.logarithms(marked)?;
    Ok(iteration.y)
}

/// The launches for contiguous logits.
struct Iteration<'a> {
    cuda: &'static Cuda,
    x: &'a Tensor,
    g: Option<&'a Tensor>,
    y: Tensor,
    matrices: usize,
    n: usize,
    /// Steps, their error, and L: see `sinkhorn.cu`.
    task: Task,
    /// How many vectors each matrix keeps.
    vectors: usize,
}

impl<'a> Iteration<'a> {
    fn new(
        cuda: &'static Cuda,
        x: &'a Tensor,
        g: Option<&'a Tensor>,
        stop: Stop,
        y: Tensor,
    ) -> Result<Iteration<'a>> {
        let n = x.shape()[x.shape().len() - 1];
        let matrices = x.elements() / (n * n);
        let at_most = stop.at_most();
        if at_most > 1 << 30 || n > 1 << 15 {
            let message =
                format!("sinkhorn: {at_most} steps of {n}×{n} matrices are more than kernels count");
            return Err(cuda.error(message));
        }
        let error = stop.error(n, x.dtype());
        let segment = segment(at_most);
        let task = Task {
            matrices: matrices as i64,
            error: error.unwrap_or_default(),
            n: n as u32,
            at_most: at_most as u32,
            waits: u32::from(error.is_some()),
            segment: segment as u32,
            ..Task::zeroed()
        };
        // One step's without a gradient. With it, a segment's, and a checkpoint for each segment.
        let vectors = if g.is_some() { 2 * segment + at_most.div_ceil(segment).max(1) } else { 0 };
        Ok(Iteration { cuda, x, g, y, matrices, n, task, vectors })
    }

    /// Which matrices the logarithms must do.
    fn scalings(&mut self) -> Result<Buffer> {
        let marked = self.cuda.scratch(self.matrices)?;
        if self.n > LARGEST_OF_A_BLOCK {
            self.cuda.fill(marked.address, 1, self.matrices)?;
            return Ok(marked);
        }
        let Team { name, threads, owned, together } = Team::of(self.n, self.x.dtype());
        let size = self.x.dtype().size();
        let kept = self.vectors * owned * threads;
        let area = match name {
            "block" => (1 + usize::from(self.g.is_some())) * self.n * (self.n | 1) + 3 * self.n,
            _ => 0,
        };
        let area_shared = area > 0 && area * size <= self.cuda.properties().shared_per_block;
        let kept_shared = area == 0 && kept * size <= SHARED_FOR_VECTORS;
        let shared = if area_shared { area } else { 0 } + if kept_shared { kept } else { 0 };
        let scratch = area + kept - shared;
        let task = Task {
            scratch: scratch as i64,
            area: area as i64,
            area_shared: u32::from(area_shared),
            kept_shared: u32::from(kept_shared),
            ..self.task
        };
        let blocks = self.matrices.div_ceil(together).min(turns(scratch * size));
        let grid = Grid { shared: shared * size, ..Grid::new(blocks, threads as u32) };
        let scratch = self.cuda.scratch(blocks * scratch * size)?;
        self.launch(name, grid, marked.address, &scratch, task)?;
        Ok(marked)
    }

    fn logarithms(&mut self, marked: Buffer) -> Result<()> {
        let (threads, together) = LOGARITHMS;
        // The next g, and the last step's g and f at least.
        let vectors = self.n * (1 + self.vectors.max(2));
        let scratch = vectors + if self.g.is_some() { self.n * self.n } else { 0 };
        // Without a gradient nothing but the last step is of use.
        let segment = if self.g.is_some() { self.task.segment } else { 1 };
        let task = Task { scratch: scratch as i64, area: vectors as i64, segment, ..self.task };
        let blocks = self.matrices.div_ceil(together).min(turns(scratch * 8));
        let scratch = self.cuda.scratch(blocks * scratch * 8)?;
        self.launch("logarithms", Grid::new(blocks, threads), marked.address, &scratch, task)
    }

    fn launch(&mut self, team: &str, grid: Grid, marked: u64, scratch: &Buffer, task: Task) -> Result<()> {
        let backward = if self.g.is_some() { "backward_" } else { "" };
        let kernel = format!("sinkhorn_{backward}{team}_{}", self.x.dtype());
        let mut arguments = Arguments::default();
        if self.y.dtype() == DType::I64 {
            arguments.value(0u64).output(&mut self.y);
        } else {
            arguments.output(&mut self.y).value(0u64);
        }
        arguments.input(self.x).optional(self.g).value(marked).scratch(scratch).value(task);
        if team == "logarithms" {
            self.cuda.checked(&mut arguments, |m| {
                format!(
                    "sinkhorn: matrix {m} has a row or a column that is −∞ throughout and cannot sum to 1"
                )
            })?;
        }
        self.cuda.launch(&SINKHORN, &kernel, grid, &mut arguments)
    }
}

/// L, after which a step is made again for the gradient. 2L vectors and one for each of the T/L segments are kept, which is
/// least where L = √(T/2).
fn segment(at_most: usize) -> usize {
    ((at_most as f64 / 2.0).sqrt().ceil() as usize).max(KEPT_WHOLE).min(at_most.max(1))
}

/// How many blocks may have so many bytes each.
fn turns(bytes: usize) -> usize {
    (SCRATCH / bytes.max(1)).clamp(1, 1 << 30)
}

/// Who has a matrix, as `sinkhorn.cu` tells it.
struct Team {
    name: &'static str,
    /// Of a block.
    threads: usize,
    /// Rows and columns of a thread.
    owned: usize,
    /// Matrices of a block.
    together: usize,
}

impl Team {
    fn of(n: usize, dtype: DType) -> Team {
        let alone = |name| Team { name, threads: 32, owned: n, together: 32 };
        let lanes = |name, lanes: usize| Team { name, threads: 32, owned: 1, together: 32 / lanes };
        match n {
            1 => alone("alone_1"),
            2 => alone("alone_2"),
            3 => alone("alone_3"),
            4 => alone("alone_4"),
            5..=8 => lanes("lanes_8", 8),
            9..=16 => lanes("lanes_16", 16),
            17..=32 if dtype == DType::F32 => lanes("lanes_32", 32),
            _ => Team { name: "block", threads: LARGEST_OF_A_BLOCK, owned: 1, together: 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_steps_are_kept_whole_and_many_in_segments() {
        for (steps, expected) in [(0, 1), (1, 1), (20, 20), (64, 64), (65, 64), (2000, 64), (100_000, 224)] {
            assert_eq!(segment(steps), expected, "{steps}");
        }
    }

    #[test]
    fn the_struct_is_laid_out_as_in_c() {
        assert_eq!(size_of::<Task>(), 56);
    }
}
