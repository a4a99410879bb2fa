//! Where the factors of a product lie, and how many rows, columns, terms and matrices there are.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{Layout, Shape, Tensor};
use smallvec::SmallVec;

use crate::device::address_of;
use crate::walk::Walk;

/// `y[i, j] = Σ_p a[i, p]·b[p, j]` for each matrix of a batch.
pub(super) struct Problem {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Factor,
    pub(super) b: Factor,
    /// Where the matrices of a and of b begin, over the axes of the batch.
    batch: [Layout; 2],
}

/// A factor as vectors along the sum: one for each row of the result (a), or for each column (b).
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    address: u64,
    outer_step: isize,
    term_step: isize,
    /// Whether neighbours are closest along the terms.
    pub(super) along_terms: bool,
    /// Whether neighbours along that axis have no gap.
    pub(super) dense: bool,
    /// The largest power of two, at most 16, that divides the address of every vector, in bytes; of every term, if
    /// neighbours are closest along the vectors.
    pub(super) alignment: usize,
}

/// An axis of the batch, and the steps of both factors along it.
#[derive(Clone, Copy)]
struct BatchAxis {
    size: usize,
    a: isize,
    b: isize,
}

impl Problem {
    /// For `[.., m, k]` and `[.., k, n]`, whose leading axes broadcast to `lead`.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub(super) fn new(a: &Tensor, b: &Tensor, lead: &[usize]) -> Problem {
        let (axes_a, axes_b) = (a.shape().len(), b.shape().len());
        let (mut m, k, n) = (a.shape()[axes_a - 2], a.shape()[axes_a - 1], b.shape()[axes_b - 1]);
        let stretched = |x: &Tensor, rows: usize, columns: usize| {
            let shape: Shape = lead.iter().copied().chain([rows, columns]).collect();
            x.layout().broadcast(&shape).expect("the leading axes of the factors broadcast")
        };
        let (la, lb) = (stretched(a, m, k), stretched(b, k, n));
        // Without terms nothing is read, and the steps of a tensor without elements mean nothing.
        let step = |layout: &Layout, axis: usize| if k == 0 { 0 } else { layout.strides()[axis] };
        let mut batch: SmallVec<[BatchAxis; 4]> = (0..lead.len())
            .filter(|&axis| lead[axis] != 1)
            .map(|axis| BatchAxis { size: lead[axis], a: step(&la, axis), b: step(&lb, axis) })
            .collect();
        let mut row = step(&la, lead.len());
        fold_batch_into_rows(&mut batch, &mut m, &mut row);
        let [a_steps, b_steps]: [SmallVec<[isize; 4]>; 2] =
            [batch.iter().map(|axis| axis.a).collect(), batch.iter().map(|axis| axis.b).collect()];
        let size = a.dtype().size();
        let last = lead.len() + 1;
        let factor_a = Factor::new(address_of(a), size, (m, row), (k, step(&la, last)), &a_steps);
        let factor_b =
            Factor::new(address_of(b), size, (n, step(&lb, last)), (k, step(&lb, last - 1)), &b_steps);
        let sizes: Shape = batch.iter().map(|axis| axis.size).collect();
        let batch = [(la, a_steps), (lb, b_steps)]
            .map(|(layout, steps)| Layout::strided(sizes.clone(), &steps, layout.offset()));
        Problem { m, n, k, a: factor_a, b: factor_b, batch }
    }

    /// The number of matrices.
    pub(super) fn batches(&self) -> usize {
        self.batch[0].shape().elements()
    }

    /// The elements of the result.
    pub(super) fn elements(&self) -> usize {
        self.batches() * self.m * self.n
    }

    /// What a kernel is told that reads `bytes` bytes at once, and cuts the sum into parts. `None` if a size does not fit.
    pub(super) fn argument(&self, bytes: usize, parts: Parts) -> Option<MatrixProduct> {
        let int = |size: usize| i32::try_from(size).ok();
        Some(MatrixProduct {
            m: int(self.m)?,
            n: int(self.n)?,
            k: int(self.k)?,
            splits: int(parts.splits)?,
            depth: int(parts.depth)?,
            batches: int(self.batches())?,
            a: self.a.argument(bytes),
            b: self.b.argument(bytes),
            batch: Walk::new([&self.batch[0], &self.batch[1]])?,
        })
    }
}

/// Where one right factor serves a whole axis of the batch and the rows of the left follow each other across it, the axis
/// is more rows of the same product: one large product instead of many small ones.
fn fold_batch_into_rows(batch: &mut SmallVec<[BatchAxis; 4]>, m: &mut usize, row: &mut isize) {
    while let Some(axis) = batch.last()
        && axis.b == 0
        && (*m == 1 || axis.a == *row * *m as isize)
        && *m * axis.size <= i32::MAX as usize
    {
        if *m == 1 {
            *row = axis.a;
        }
        *m *= axis.size;
        batch.pop();
    }
}

impl Factor {
    /// Vectors and terms: how many, and the step between them.
    fn new(
        address: u64,
        size: usize,
        (outers, outer_step): (usize, isize),
        (terms, term_step): (usize, isize),
        batch_steps: &[isize],
    ) -> Factor {
        let along_terms =
            outers == 1 || (terms != 1 && term_step.unsigned_abs() <= outer_step.unsigned_abs());
        let (along, across) = if along_terms { (term_step, outer_step) } else { (outer_step, term_step) };
        let across_is_walked = if along_terms { outers > 1 } else { terms > 1 };
        let steps = batch_steps.iter().copied().chain(across_is_walked.then_some(across));
        let bits = steps.fold(address | 16, |bits, step| bits | (step.unsigned_abs() * size) as u64);
        Factor {
            address,
            outer_step,
            term_step,
            along_terms,
            dense: along == 1,
            alignment: 1 << bits.trailing_zeros(),
        }
    }

    fn argument(&self, bytes: usize) -> FactorArgument {
        FactorArgument {
            data: self.address,
            outer_step: self.outer_step as i64,
            term_step: self.term_step as i64,
            along_terms: u32::from(self.along_terms),
            vector: u32::from(self.dense && self.alignment >= bytes),
        }
    }
}

/// How the sum is cut: into `splits` parts of `depth` terms, the last perhaps shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parts {
    pub(super) splits: usize,
    pub(super) depth: usize,
}

impl Parts {
    /// So many parts that `blocks` blocks for each make enough for a card, none shorter than `shortest` terms.
    pub(super) fn new(k: usize, blocks: usize, shortest: usize) -> Parts {
        /// What keeps the multiprocessors of a large card busy, twice.
        const ENOUGH: usize = 256;
        /// Every kernel reads a multiple of so many terms at once.
        const STAGE: usize = 64;
        let splits = ENOUGH.div_ceil(blocks.max(1)).min(k / shortest).max(1);
        let depth = k.div_ceil(splits).next_multiple_of(STAGE).max(STAGE);
        Parts { splits: k.div_ceil(depth).max(1), depth }
    }
}

/// `Factor` of `matmul.cuh`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
struct FactorArgument {
    data: u64,
    outer_step: i64,
    term_step: i64,
    along_terms: u32,
    vector: u32,
}

/// `MatrixProduct` of `matmul.cuh`.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub(super) struct MatrixProduct {
    m: i32,
    n: i32,
    k: i32,
    splits: i32,
    depth: i32,
    batches: i32,
    a: FactorArgument,
    b: FactorArgument,
    batch: Walk<2>,
}
