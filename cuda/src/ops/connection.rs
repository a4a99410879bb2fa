//! Connections between streams: `connection.cu`.
//!
//! Operands may have any layout; those that are not contiguous are copied first. X and what has its channels are of one dtype,
//! coefficients, φ and sums f32 where that is bf16.

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Handed, Layout, Result, Results, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

use super::copy;
use crate::device::{Buffer, Cuda, address_of};
use crate::launch::{Arguments, Grid};
use crate::module::Family;
use crate::walk::{Divisor, MAX_WALK};

pub(crate) static CONNECTION: Family =
    Family { name: "connection.cu", text: include_str!("../../kernels/connection.cu") };

/// Tokens that a block of `stream` goes through; `PASSED` of `connection.cu`.
const PASSED: usize = 128;
/// The most tensors that the columns of φ come in; `MOST_PHI` of `connection.cu`.
const MOST_PHI: usize = 4;
/// Blocks that are enough for a card, in splitting sums: a constant, so that the same operands give the same bits.
const ENOUGH_BLOCKS: usize = 512;
/// The fewest numbers and tokens that are a part of their own. A part of numbers begins at whole runs.
const SMALLEST_PART: [usize; 2] = [1024, 256];

/// `Streams` of `connection.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Streams {
    tokens: i64,
    channels: i64,
    packs: Divisor,
    n: u32,
    vector: u32,
    padding: u32,
}

/// `Projection` of `connection.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Projection {
    tokens: i64,
    k: i64,
    m: u32,
    parts: u32,
    part: i64,
    vector: u32,
    vector_phi: u32,
}

/// `Columns` of `connection.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Columns {
    at: [u64; MOST_PHI],
    first: [u32; MOST_PHI],
    width: [u32; MOST_PHI],
}

impl Columns {
    /// Of tensors `[k, mᵢ]` with m columns together.
    fn new(x: &[Tensor], m: usize) -> Columns {
        let mut columns = Columns { first: [m as u32; MOST_PHI], ..Columns::zeroed() };
        let mut from = 0;
        for (i, x) in x.iter().enumerate() {
            (columns.at[i], columns.first[i], columns.width[i]) = (address_of(x), from, x.shape()[1] as u32);
            from += columns.width[i];
        }
        columns
    }
}

/// The sizes of streams X `[.., n, C]`, and their dtype. A token is a position of the leading axes.
#[derive(Clone)]
struct Sizes {
    lead: Shape,
    tokens: usize,
    n: usize,
    channels: usize,
    dtype: DType,
}

/// Whether runs of `elements` of rows of `row` elements begin at multiples of their size in all tensors.
fn aligned(elements: usize, row: usize, x: &[&Tensor]) -> bool {
    let whole = |x: &&Tensor| address_of(x).is_multiple_of((elements * x.dtype().size()) as u64);
    row.is_multiple_of(elements) && x.iter().all(whole)
}

/// Into how many parts, and how large, a sum over `size` is split, where `blocks` would compute it as one.
fn split(size: usize, blocks: usize, smallest: usize) -> (usize, usize) {
    let parts = ENOUGH_BLOCKS.div_ceil(blocks.max(1)).min(size.div_ceil(smallest)).max(1);
    let part = size.div_ceil(parts).max(1).next_multiple_of(smallest);
    (size.div_ceil(part).max(1), part)
}

/// The grid, or none where there are no items.
fn some(items: usize, grid: Grid) -> Grid {
    if items == 0 { Grid::new(0, grid.threads) } else { grid }
}

/// How many columns of φ a block of `project` or `phi_backward` has.
fn columns_of_block(m: usize) -> usize {
    match m {
        0..=8 => 8,
        9..=24 => 24,
        _ => 40,
    }
}

impl Sizes {
    /// Of X.
    ///
    /// # Panics
    /// If it has no two axes.
    fn of(x: &Tensor) -> Sizes {
        let [lead @ .., n, channels] = &x.shape()[..] else {
            panic!("streams: expected [.., n, C], found {}", x.meta())
        };
        Sizes::new(lead, *n, *channels, x.dtype())
    }

    fn new(lead: &[usize], n: usize, channels: usize, dtype: DType) -> Sizes {
        Sizes { lead: lead.into(), tokens: lead.iter().product(), n, channels, dtype }
    }

    /// Of coefficients, sums and products.
    fn wide(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// The numbers of a token.
    fn k(&self) -> usize {
        self.n * self.channels
    }

    /// An operand with axes of its own for each token, contiguous.
    ///
    /// # Panics
    /// If it has not as many elements for each token, or another dtype.
    fn operand(&self, what: &str, x: &Tensor, own: &[usize], dtype: DType) -> Result<Tensor> {
        let width: usize = own.iter().product();
        assert!(
            x.elements() == self.tokens * width && x.dtype() == dtype,
            "streams: {what} must be {dtype} and have {width} elements for each of {} tokens, found {}",
            self.tokens,
            x.meta()
        );
        x.contiguous()
    }

    /// X, or what is of its shape.
    fn state(&self, what: &str, x: &Tensor) -> Result<Tensor> {
        self.operand(what, x, &[self.n, self.channels], self.dtype)
    }

    /// What a branch reads or returns, `[.., C]`.
    fn branch(&self, what: &str, x: &Tensor) -> Result<Tensor> {
        self.operand(what, x, &[self.channels], self.dtype)
    }

    /// a or b, `[.., n]`.
    fn vector(&self, what: &str, x: &Tensor) -> Result<Tensor> {
        self.operand(what, x, &[self.n], self.wide())
    }

    /// A, `[.., n, n]`.
    fn matrix(&self, what: &str, x: &Tensor) -> Result<Tensor> {
        self.operand(what, x, &[self.n, self.n], self.wide())
    }

    /// A result with axes of its own for each token.
    fn empty(&self, cuda: &'static Cuda, own: &[usize], dtype: DType) -> Result<Tensor> {
        cuda.empty(self.lead.iter().chain(own).copied().collect::<Shape>(), dtype)
    }

    /// How the streams of these tensors lie.
    fn streams(&self, cuda: &Cuda, x: &[&Tensor]) -> Result<Streams> {
        let pack = 16 / self.dtype.size();
        let packs = self.channels.div_ceil(pack).max(1);
        if self.tokens * packs > MAX_WALK {
            let message = format!(
                "streams of {} tokens and {} channels are more than 2³¹ packs",
                self.tokens, self.channels
            );
            return Err(cuda.error(message));
        }
        Ok(Streams {
            tokens: self.tokens as i64,
            channels: self.channels as i64,
            packs: Divisor::new(packs),
            n: self.n as u32,
            vector: u32::from(aligned(pack, self.channels, x)),
            padding: 0,
        })
    }

    /// The kernel of this name for so many streams.
    fn kernel(&self, name: &str) -> String {
        match self.n {
            2 | 4 | 8 => format!("connection_{name}_{}_{}", self.n, self.dtype),
            _ => format!("connection_{name}_any_{}", self.dtype),
        }
    }

    /// A grid with a thread for each pack of a stream.
    fn by_packs(&self, cuda: &Cuda) -> Grid {
        let packs = self.channels.div_ceil(16 / self.dtype.size()) * self.tokens;
        some(packs, Grid::covering(packs, 256, cuda.most_blocks()))
    }

    /// A grid with a warp for each token.
    fn by_tokens(&self, cuda: &Cuda) -> Grid {
        some(self.tokens, Grid::covering(32 * self.tokens, 128, cuda.most_blocks()))
    }

    fn projection(&self, m: usize) -> Projection {
        Projection {
            tokens: self.tokens as i64,
            k: self.k() as i64,
            m: m as u32,
            parts: 1,
            ..Zeroable::zeroed()
        }
    }
}

/// `a·X`: X `[.., n, C]`, a `[.., n]` → `[.., C]`.
pub(crate) fn read(cuda: &'static Cuda, x: &Tensor, a: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(x);
    let (x, a) = (x.contiguous()?, sizes.vector("a", a)?);
    let mut y = sizes.empty(cuda, &[sizes.channels], sizes.dtype)?;
    let streams = sizes.streams(cuda, &[&x, &y])?;
    let mut arguments = Arguments::default();
    arguments.output(&mut y).input(&x).input(&a).value(streams);
    cuda.launch(&CONNECTION, &sizes.kernel("read"), sizes.by_packs(cuda), &mut arguments)?;
    Ok(y)
}

/// `A·X + bᵀ ⊗ F`: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → as X.
pub(crate) fn write(cuda: &'static Cuda, x: &Tensor, f: &Tensor, mix: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(x);
    let (x, f) = (x.contiguous()?, sizes.branch("F", f)?);
    let (mix, b) = (sizes.matrix("A", mix)?, sizes.vector("b", b)?);
    let mut y = cuda.empty(x.shape(), sizes.dtype)?;
    let streams = sizes.streams(cuda, &[&x, &f, &y])?;
    let mut arguments = Arguments::default();
    arguments.output(&mut y).input(&x).input(&f).input(&mix).input(&b).value(streams);
    cuda.launch(&CONNECTION, &sizes.kernel("write"), sizes.by_packs(cuda), &mut arguments)?;
    Ok(y)
}

/// The cotangents of F, A and b, from that of what [`write`] gave: X and G `[.., n, C]`, F `[.., C]`, b `[.., n]` → `[.., C]`,
/// `[.., n, n]`, `[.., n]`.
pub(crate) fn write_backward(
    cuda: &'static Cuda,
    x: &Tensor,
    f: &Tensor,
    b: &Tensor,
    g: &Tensor,
) -> Result<Results> {
    let sizes = Sizes::of(x);
    let (x, g) = (x.contiguous()?, sizes.state("G", g)?);
    let (f, b) = (sizes.branch("F", f)?, sizes.vector("b", b)?);
    let mut df = sizes.empty(cuda, &[sizes.channels], sizes.dtype)?;
    let mut dmix = sizes.empty(cuda, &[sizes.n, sizes.n], sizes.wide())?;
    let mut db = sizes.empty(cuda, &[sizes.n], sizes.wide())?;
    let streams = sizes.streams(cuda, &[&g, &x, &f, &df])?;
    let mut arguments = Arguments::default();
    arguments.output(&mut df).output(&mut dmix).output(&mut db);
    arguments.input(&g).input(&x).input(&f).input(&b).value(streams);
    cuda.launch(&CONNECTION, &sizes.kernel("write_backward"), sizes.by_tokens(cuda), &mut arguments)?;
    Ok(smallvec![df, dmix, db])
}

/// The cotangent of a, from that of what [`read`] gave: X `[.., n, C]`, H `[.., C]` → `[.., n]`.
pub(crate) fn read_backward(cuda: &'static Cuda, x: &Tensor, h: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(x);
    let (x, h) = (x.contiguous()?, sizes.branch("H", h)?);
    let mut da = sizes.empty(cuda, &[sizes.n], sizes.wide())?;
    let streams = sizes.streams(cuda, &[&h, &x])?;
    let mut arguments = Arguments::default();
    arguments.output(&mut da).input(&h).input(&x).value(streams);
    cuda.launch(&CONNECTION, &sizes.kernel("read_backward"), sizes.by_tokens(cuda), &mut arguments)?;
    Ok(da)
}

/// What a stream's cotangent has from a write and from a read.
struct Shares {
    /// G and A.
    written: Option<[Tensor; 2]>,
    /// H and a.
    read: Option<[Tensor; 2]>,
}

impl Shares {
    /// Of operands in this order.
    fn new(sizes: &Sizes, x: &[&Tensor], handed: Handed) -> Result<Shares> {
        let (written, read) = x.split_at(if handed.written { 2 } else { 0 });
        let of_write = |x: &[&Tensor]| Ok([sizes.state("G", x[0])?, sizes.matrix("A", x[1])?]);
        let of_read = |x: &[&Tensor]| Ok([sizes.branch("H", x[0])?, sizes.vector("a", x[1])?]);
        Ok(Shares {
            written: handed.written.then(|| of_write(written)).transpose()?,
            read: handed.read.then(|| of_read(read)).transpose()?,
        })
    }

    /// G and H.
    fn given(&self) -> [Option<&Tensor>; 2] {
        [&self.written, &self.read].map(|share| share.as_ref().map(|share| &share[0]))
    }

    /// A and a.
    fn coefficients(&self) -> [Option<&Tensor>; 2] {
        [&self.written, &self.read].map(|share| share.as_ref().map(|share| &share[1]))
    }
}

/// `Aᵀ·G + aᵀ ⊗ H`: G `[.., n, C]` and A `[.., n, n]` if it was written, H `[.., C]` and a `[.., n]` if it was read
/// → `[.., n, C]`.
pub(crate) fn cotangent(cuda: &'static Cuda, x: &[&Tensor], handed: Handed) -> Result<Tensor> {
    assert!(x.len() == handed.operands() && !x.is_empty(), "{handed:?} does not take {} operands", x.len());
    let sizes = match handed.written {
        true => Sizes::of(x[0]),
        false => match (&x[0].shape()[..], &x[1].shape()[..]) {
            ([lead @ .., channels], [.., n]) => Sizes::new(lead, *n, *channels, x[0].dtype()),
            _ => {
                panic!("streams: expected H [.., C] and a [.., n], found {} and {}", x[0].meta(), x[1].meta())
            }
        },
    };
    let shares = Shares::new(&sizes, x, handed)?;
    let mut dx = sizes.empty(cuda, &[sizes.n, sizes.channels], sizes.dtype)?;
    let [g, h] = shares.given();
    let streams = {
        let operands: SmallVec<[&Tensor; 3]> = [Some(&dx), g, h].into_iter().flatten().collect();
        sizes.streams(cuda, &operands)?
    };
    let [mix, a] = shares.coefficients();
    let mut arguments = Arguments::default();
    arguments.output(&mut dx).optional(g).optional(h).optional(mix).optional(a).value(streams);
    cuda.launch(&CONNECTION, &sizes.kernel("cotangent"), sizes.by_packs(cuda), &mut arguments)?;
    Ok(dx)
}

/// φ₁, …, φₖ, `[nC, mᵢ]`, as kernels take them: contiguous, and side by side in one if there are more than [`MOST_PHI`].
struct Phi {
    /// mᵢ.
    widths: SmallVec<[usize; 4]>,
    /// Σmᵢ.
    m: usize,
    parts: Vec<Tensor>,
}

impl Phi {
    /// # Panics
    /// If they are not of these shapes, or not of the dtype of coefficients.
    fn new(cuda: &'static Cuda, sizes: &Sizes, phi: &[&Tensor]) -> Result<Phi> {
        let (k, dtype) = (sizes.k(), sizes.wide());
        let width = |phi: &&Tensor| match phi.shape()[..] {
            [rows, columns] if rows == k && phi.dtype() == dtype => columns,
            _ => panic!("streams: φ must be {dtype}[{k}, m], found {}", phi.meta()),
        };
        let widths: SmallVec<[usize; 4]> = phi.iter().map(width).collect();
        let m = widths.iter().sum();
        if phi.len() <= MOST_PHI {
            let parts = phi.iter().map(|phi| phi.contiguous()).collect::<Result<_>>()?;
            return Ok(Phi { widths, m, parts });
        }
        let whole = Layout::contiguous([k, m]);
        let mut from = 0;
        let mut parts: Vec<(Layout, &Tensor)> = Vec::new();
        for (&phi, &width) in phi.iter().zip(&widths) {
            parts.push((whole.slice(1, from, from + width, 1), phi));
            from += width;
        }
        Ok(Phi { parts: vec![copy::assemble(cuda, &Shape::from([k, m]), dtype, &parts)?], widths, m })
    }

    fn columns(&self) -> Columns {
        Columns::new(&self.parts, self.m)
    }

    /// Whether runs of so many columns are aligned, each in one tensor.
    fn aligned(&self, run: usize) -> bool {
        self.parts.iter().all(|part| aligned(run, part.shape()[1], &[part]))
    }
}

/// `v·φ₁/r`, …, `v·φₖ/r` and r, side by side, with v = vec(X) and r = √(mean(v²) + ε): X `[.., n, C]`, φ `[nC, mᵢ]`
/// → `[.., Σmᵢ + 1]`.
pub(crate) fn project(cuda: &'static Cuda, x: &Tensor, phi: &[&Tensor], eps: f64) -> Result<Tensor> {
    let sizes = Sizes::of(x);
    let (x, phi) = (x.contiguous()?, Phi::new(cuda, &sizes, phi)?);
    let (m, wide, size) = (phi.m, sizes.wide(), sizes.wide().size());
    // Tokens of a block's eight warps.
    let few = if wide == DType::F64 { 2 } else { 1 };
    let columns = columns_of_block(m);
    let together = match columns {
        8 => 64 / few,
        24 => 32 / few,
        _ => 16 / few,
    };
    // r is computed where there are no columns too.
    let (along, across) = (sizes.tokens.div_ceil(together), m.div_ceil(columns).max(1));
    let (parts, part) = split(sizes.k(), along * across, SMALLEST_PART[0]);
    let run = 16 / size;
    let projection = Projection {
        parts: parts as u32,
        part: part as i64,
        vector: u32::from(aligned(run, sizes.k(), &[&x])),
        vector_phi: u32::from(phi.aligned(run)),
        ..sizes.projection(m)
    };
    let partial = cuda.scratch(parts * sizes.tokens * (m + 1) * size)?;
    let mut arguments = Arguments::default();
    arguments.scratch(&partial).input(&x).value(phi.columns()).value(projection);
    let grid = Grid { blocks: [along as u32, across as u32, parts as u32], threads: 256, shared: 0 };
    let kernel = format!("connection_project_{columns}_{}", sizes.dtype);
    cuda.launch(&CONNECTION, &kernel, grid, &mut arguments)?;

    let mut y = sizes.empty(cuda, &[m + 1], wide)?;
    let mut arguments = Arguments::default();
    arguments.output(&mut y).scratch(&partial).value(eps).value(projection);
    let grid = some(y.elements(), Grid::covering(y.elements(), 256, cuda.most_blocks()));
    cuda.launch(&CONNECTION, &format!("connection_normalise_{wide}"), grid, &mut arguments)?;
    Ok(y)
}

/// The cotangents of X and φ, from that of what [`project`] gave, and with them the other shares in X̄: X, φ₁ … φₖ, y, ȳ, and
/// what [`cotangent`] takes → X̄, φ̄₁ … φ̄ₖ.
pub(crate) fn project_backward(cuda: &'static Cuda, x: &[&Tensor], handed: Handed) -> Result<Results> {
    let (own, others) = x.split_at(x.len().saturating_sub(handed.operands()));
    let [x, phi @ .., y, dy] = own else {
        panic!("project_backward needs X, φ, y and ȳ, found {} operands", x.len())
    };
    let sizes = Sizes::of(x);
    let shares = Shares::new(&sizes, others, handed)?;
    let (x, phi) = (x.contiguous()?, Phi::new(cuda, &sizes, phi)?);
    let (m, wide) = (phi.m, sizes.wide());
    let [y, dy] = [("y", y), ("ȳ", dy)].map(|(what, y)| sizes.operand(what, y, &[m + 1], wide));
    let (y, dy) = (y?, dy?);

    // p̄/r, and the factor of v.
    let [q, scale] = [m, 1].map(|width| cuda.scratch(sizes.tokens * width * wide.size()));
    let (q, scale) = (q?, scale?);
    let mut arguments = Arguments::default();
    arguments.scratch(&q).scratch(&scale).input(&dy).input(&y).value(sizes.projection(m));
    let grid = some(sizes.tokens, Grid::covering(sizes.tokens, 256, cuda.most_blocks()));
    cuda.launch(&CONNECTION, &format!("connection_scale_{wide}"), grid, &mut arguments)?;

    let mut results: Results = smallvec![stream(cuda, &sizes, &x, &phi, &shares, [&q, &scale])?];
    results.extend(phi_backward(cuda, &sizes, &x, &phi, &q)?);
    Ok(results)
}

/// As `connection.cu` has it.
fn channels_of_thread(wide: DType) -> usize {
    if wide == DType::F64 { 1 } else { 2 }
}

/// X̄ of [`project_backward`].
fn stream(
    cuda: &'static Cuda,
    sizes: &Sizes,
    x: &Tensor,
    phi: &Phi,
    shares: &Shares,
    [q, scale]: [&Buffer; 2],
) -> Result<Tensor> {
    let mut dx = cuda.empty(x.shape(), sizes.dtype)?;
    let of_thread = channels_of_thread(sizes.wide());
    // For how many columns there is a kernel.
    let most = match (sizes.n, phi.m) {
        (2, 0..=8) => Some(8),
        (4, 0..=24) => Some(24),
        (4, 25..=32) => Some(32),
        (8, 0..=80) => Some(80),
        _ => None,
    };
    let (kernel, grid) = match most {
        Some(most) => {
            let across = sizes.channels.div_ceil(32 * of_thread);
            let grid = Grid::new(across * sizes.tokens.div_ceil(PASSED), 32 * sizes.n as u32);
            (format!("connection_stream_{}_{most}_{}", sizes.n, sizes.dtype), grid)
        }
        None => {
            let grid = some(x.elements(), Grid::covering(x.elements(), 256, cuda.most_blocks()));
            (format!("connection_stream_any_{}", sizes.dtype), grid)
        }
    };
    let ([g, h], [mix, a]) = (shares.given(), shares.coefficients());
    let pairs = {
        let operands: SmallVec<[&Tensor; 4]> = [Some(&dx), Some(x), g, h].into_iter().flatten().collect();
        aligned(of_thread, sizes.channels, &operands)
    };
    let mut arguments = Arguments::default();
    arguments.output(&mut dx).optional(g).optional(h).input(x).optional(a).optional(mix);
    arguments.value(phi.columns()).scratch(q).scratch(scale);
    arguments.value(sizes.streams(cuda, &[])?).value(phi.m as u32).value(u32::from(pairs));
    arguments.value(u32::from(phi.aligned(16 / sizes.wide().size())));
    cuda.launch(&CONNECTION, &kernel, grid, &mut arguments)?;
    Ok(dx)
}

/// φ̄₁ … φ̄ₖ of [`project_backward`]: the sum of v ⊗ q over tokens.
fn phi_backward(
    cuda: &'static Cuda,
    sizes: &Sizes,
    x: &Tensor,
    phi: &Phi,
    q: &Buffer,
) -> Result<Vec<Tensor>> {
    let (k, m, wide) = (sizes.k(), phi.m, sizes.wide());
    let columns = columns_of_block(m);
    let of_thread = channels_of_thread(wide);
    let (along, across) = (k.div_ceil(128 * of_thread), m.div_ceil(columns));
    let (parts, part) = split(sizes.tokens, along * across, SMALLEST_PART[1]);
    let run = 16 / wide.size();
    let of_parts = phi.parts.iter().map(|part| cuda.empty(part.shape(), wide));
    let dphi = of_parts.collect::<Result<Vec<Tensor>>>()?;
    let projection = Projection {
        parts: parts as u32,
        part: part as i64,
        vector: u32::from(aligned(of_thread, k, &[x])),
        vector_phi: u32::from(dphi.iter().all(|part| aligned(run, part.shape()[1], &[part]))),
        ..sizes.projection(m)
    };
    let partial = cuda.scratch(parts * k * m * wide.size())?;
    let mut arguments = Arguments::default();
    arguments.scratch(&partial).input(x).scratch(q).value(projection);
    let grid = Grid { blocks: [along as u32, parts as u32, across as u32], threads: 128, shared: 0 };
    let kernel = format!("connection_phi_backward_{columns}_{}", sizes.dtype);
    cuda.launch(&CONNECTION, &kernel, grid, &mut arguments)?;

    let mut arguments = Arguments::default();
    arguments.value(Columns::new(&dphi, m)).scratch(&partial).value(projection);
    let grid = some(k * m, Grid::covering(k * m, 256, cuda.most_blocks()));
    cuda.launch(&CONNECTION, &format!("connection_sum_{wide}"), grid, &mut arguments)?;
    if phi.widths.len() == dphi.len() {
        return Ok(dphi);
    }
    let mut from = 0;
    let own = |&width: &usize| {
        from += width;
        copy::contiguous(cuda, &dphi[0].slice(1, from - width, from, 1))
    };
    phi.widths.iter().map(own).collect()
}

/// The most blocks that one launch computes again; `MOST_BLOCKS` of `connection.cu`.
const MOST_BLOCKS: usize = 8;

/// `Blocks` of `connection.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Blocks {
    f: [u64; MOST_BLOCKS],
    mix: [u64; MOST_BLOCKS],
    write: [u64; MOST_BLOCKS],
    y: [u64; MOST_BLOCKS],
    count: u32,
    padding: u32,
}

/// What [`write`] gives behind each of some blocks, which have left F, A and b: in one pass where n is 2, 4 or 8.
///
/// # Panics
/// If shapes or dtypes do not agree.
pub(crate) fn writes(cuda: &'static Cuda, x: &Tensor, left: &[&Tensor]) -> Result<Results> {
    let sizes = Sizes::of(x);
    let (left, rest) = left.as_chunks::<3>();
    assert!(rest.is_empty(), "streams: F, A and b of each block, found {} more", rest.len());
    let mut all = Results::new();
    if !matches!(sizes.n, 2 | 4 | 8) {
        for [f, mix, b] in left {
            all.push(write(cuda, all.last().unwrap_or(x), f, mix, b)?);
        }
        return Ok(all);
    }
    let x = x.contiguous()?;
    let operands = |[f, mix, b]: &[&Tensor; 3]| {
        Ok([sizes.branch("F", f)?, sizes.matrix("A", mix)?, sizes.vector("b", b)?])
    };
    let left = left.iter().map(operands).collect::<Result<Vec<[Tensor; 3]>>>()?;
    for left in left.chunks(MOST_BLOCKS) {
        let from = all.last().unwrap_or(&x).clone();
        let y = left.iter().map(|_| cuda.empty(x.shape(), sizes.dtype)).collect::<Result<Vec<Tensor>>>()?;
        let mut blocks = Blocks { count: left.len() as u32, ..Blocks::zeroed() };
        for (l, ([f, mix, b], y)) in left.iter().zip(&y).enumerate() {
            (blocks.f[l], blocks.mix[l], blocks.write[l]) = (address_of(f), address_of(mix), address_of(b));
            blocks.y[l] = address_of(y);
        }
        let operands: Vec<&Tensor> = left.iter().map(|[f, ..]| f).chain(&y).chain([&from]).collect();
        let streams = sizes.streams(cuda, &operands)?;
        let mut arguments = Arguments::default();
        arguments.input(&from).value(blocks).value(streams);
        cuda.launch(&CONNECTION, &sizes.kernel("recompute"), sizes.by_packs(cuda), &mut arguments)?;
        all.extend(y);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use limpid_tensor::Fused;
    use limpid_tensor::rng::{Distribution, Key};

    use super::*;
    use crate::ops::rows::tests::Emulated;

    /// Leading axes, streams and channels: packs and no packs, one warp's and more, more tokens than a block has, nothing.
    const SIZES: [(&[usize], usize, usize); 12] = [
        (&[3], 1, 5),
        (&[], 2, 8),
        (&[33], 2, 24),
        (&[2], 3, 16),
        (&[1], 4, 7),
        (&[2, 35], 4, 8),
        (&[3], 4, 300),
        (&[2, 1], 4, 512),
        (&[130], 8, 2),
        (&[2], 8, 40),
        (&[0], 4, 8),
        (&[2], 4, 0),
    ];
    const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
    const HANDED: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

    /// Normal numbers on the CPU.
    fn numbers(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        Tensor::random(normal, shape, dtype, Key::new(seed)).unwrap()
    }

    fn wide(dtype: DType) -> DType {
        if dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// An operand: what lies in memory, and what is seen of it.
    struct Operand {
        whole: Tensor,
        view: Box<dyn Fn(&Tensor) -> Tensor>,
    }

    fn whole(whole: Tensor) -> Operand {
        Operand { whole, view: Box::new(Tensor::clone) }
    }

    /// A word with its operands.
    type Case = (Fused, Vec<Operand>);

    /// Every word, for streams of a size.
    fn cases(lead: &[usize], n: usize, c: usize, dtype: DType) -> Vec<Case> {
        let shape = |own: &[usize]| [lead, own].concat();
        let state = |seed| whole(numbers(&shape(&[n, c]), dtype, seed));
        let one = |seed| whole(numbers(&shape(&[c]), dtype, seed));
        // Elements with others between them, and one matrix for all tokens.
        let axis = lead.len();
        let sparse = |seed| Operand {
            whole: numbers(&shape(&[2 * n]), wide(dtype), seed),
            view: Box::new(move |x| x.slice(axis, 0, 2 * n, 2)),
        };
        let matrix = |seed| match seed % 2 {
            0 => whole(numbers(&shape(&[n, n]), wide(dtype), seed)),
            _ => {
                let shape = shape(&[n, n]);
                let view = Box::new(move |x: &Tensor| x.expand(&shape[..]));
                Operand { whole: numbers(&[n, n], wide(dtype), seed), view }
            }
        };
        let shares = |handed: Handed| {
            let written = handed.written.then(|| [state(1), matrix(2)]);
            let read = handed.read.then(|| [one(3), sparse(4)]);
            written.into_iter().chain(read).flatten()
        };
        let mut cases = vec![
            (Fused::StreamRead, vec![state(5), sparse(6)]),
            (Fused::StreamReadBackward, vec![state(5), one(7)]),
            (Fused::StreamWrite, vec![state(5), one(7), matrix(8), sparse(9)]),
            (Fused::StreamWrite, vec![state(5), one(7), matrix(9), sparse(9)]),
            (Fused::StreamWriteBackward, vec![state(5), one(7), sparse(9), state(10)]),
        ];
        let handed = HANDED.map(|(written, read)| Handed { written, read });
        let of_shares = |&handed: &Handed| (Fused::StreamCotangent(handed), shares(handed).collect());
        cases.extend(handed[..3].iter().map(of_shares));

        // As mHC has them; one; for kernels of more columns, with none of them; more than a kernel takes, and none at all.
        let all: [&[usize]; 5] = [&[n, n, n * n], &[1], &[17, 0, 13], &[9, 1, 20, 3, 2], &[]];
        for (number, widths) in all.into_iter().enumerate() {
            let phi = |(i, &width): (usize, &usize)| match i {
                1 => Operand {
                    whole: numbers(&[width, n * c], wide(dtype), 20),
                    view: Box::new(|x| x.transpose(0, 1)),
                },
                _ => whole(numbers(&[n * c, width], wide(dtype), 20 + i as u64)),
            };
            let operands = || [state(5)].into_iter().chain(widths.iter().enumerate().map(phi));
            let project = Fused::StreamProject { eps: 1e-3 };
            cases.push((project, operands().collect()));
            let y = expected(&(project, operands().collect())).remove(0).cast(wide(dtype)).unwrap();
            let dy = numbers(y.shape(), wide(dtype), 30);
            // All shares with the first, else one after the other.
            for &handed in if number == 0 { &handed[..] } else { &handed[number % 4..][..1] } {
                let own = operands().chain([whole(y.clone()), whole(dy.clone())]);
                cases.push((Fused::StreamProjectBackward(handed), own.chain(shares(handed)).collect()));
            }
        }
        cases
    }

    /// What the CPU makes of the same numbers in f64.
    fn expected((word, x): &Case) -> Results {
        let x: Vec<Tensor> = x.iter().map(|x| (x.view)(&x.whole).cast(DType::F64).unwrap()).collect();
        Tensor::fused_all(*word, &x.iter().collect::<Vec<_>>()).unwrap().unwrap()
    }

    /// What the device makes of them.
    fn found((word, x): &Case, place: impl Fn(&Tensor) -> Tensor) -> Results {
        let x: Vec<Tensor> = x.iter().map(|x| (x.view)(&place(&x.whole))).collect();
        let metas: Vec<_> = x.iter().map(Tensor::meta).collect();
        let results = Tensor::fused_all(*word, &x.iter().collect::<Vec<_>>()).unwrap().unwrap();
        let promised = word.results(&metas.iter().collect::<Vec<_>>());
        assert_eq!(results.iter().map(Tensor::meta).collect::<Vec<_>>(), promised.to_vec(), "{word:?}");
        results
    }

    /// Sums cancel: what counts is their size against the addends'.
    #[track_caller]
    fn assert_near(emulated: &Emulated, found: Tensor, expected: &Tensor, what: &str) {
        let tolerance = match found.dtype() {
            DType::F64 => 1e-13,
            DType::F32 => 2e-6,
            _ => 4e-3,
        };
        let (found, expected) = (emulated.read(Ok(found)), expected.to_f64_vec().unwrap());
        assert_eq!(found.len(), expected.len(), "{what}");
        let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let near = (a - b).abs() <= tolerance * scale || (a.is_nan() && b.is_nan());
            assert!(near, "{what}: element {i} is {a}, expected {b}, scale {scale}");
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn every_word_is_the_cpus() {
        let emulated = &Emulated::device();
        for (lead, n, c) in SIZES {
            for dtype in FLOATS {
                for case in cases(lead, n, c, dtype) {
                    let what = format!("{:?}, {dtype} {lead:?}, {n} streams of {c}", case.0);
                    for (i, (found, expected)) in
                        found(&case, |x| emulated.place(x)).into_iter().zip(&expected(&case)).enumerate()
                    {
                        assert_near(emulated, found, expected, &format!("result {i} of {what}"));
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_same_numbers_have_the_same_bits_wherever_they_lie_and_whoever_is_first() {
        let emulated = &Emulated::device();
        let bits = |results: Results| -> Vec<Vec<u64>> {
            let of = |y| emulated.read(Ok(y)).iter().map(|v| v.to_bits()).collect();
            results.into_iter().map(of).collect()
        };
        for (lead, n, c) in [(3, 4, 300), (2, 2, 24), (2, 3, 16)] {
            for dtype in FLOATS {
                for case in cases(&[lead], n, c, dtype) {
                    emulated.shuffle(0);
                    let expected = bits(found(&case, |x| emulated.place(x)));
                    for seed in [1, 2] {
                        emulated.shuffle(seed);
                        let again = bits(found(&case, |x| emulated.place_unaligned(x)));
                        assert_eq!(again, expected, "{:?}, {dtype} [{lead}, {n}, {c}]", case.0);
                    }
                }
            }
        }
    }

    /// A sweep may compute shares one by one and add them, or have a kernel do it.
    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn cotangents_have_the_same_bits_together_and_one_by_one() {
        let emulated = &Emulated::device();
        for (lead, n, c, m) in [(3, 4, 300, 24), (2, 4, 7, 40), (2, 8, 40, 80), (5, 2, 8, 8), (2, 3, 16, 15)]
        {
            for dtype in [DType::F32, DType::F64] {
                let placed = |shape: &[usize], seed| emulated.place(&numbers(shape, dtype, seed));
                let (x, g, f) = (placed(&[lead, n, c], 1), placed(&[lead, n, c], 2), placed(&[lead, c], 3));
                let (mix, a, h) = (placed(&[lead, n, n], 4), placed(&[lead, n], 5), placed(&[lead, c], 6));
                let (phi, y, dy) =
                    (placed(&[n * c, m], 7), placed(&[lead, m + 1], 8), placed(&[lead, m + 1], 9));
                let word = |word, x: &[&Tensor]| Tensor::fused_all(word, x).unwrap().unwrap();
                let handed = |written, read| Handed { written, read };
                let bits = |x: &Tensor| -> Vec<u64> {
                    emulated.read(Ok(x.clone())).iter().map(|v| v.to_bits()).collect()
                };
                let what = format!("{dtype} [{lead}, {n}, {c}]");

                let shares = [&g, &mix, &h, &a];
                let of_write = &word(Fused::StreamCotangent(handed(true, false)), &shares[..2])[0];
                let of_read = &word(Fused::StreamCotangent(handed(false, true)), &shares[2..])[0];
                let mut both = of_write.clone();
                both.add_in_place(of_read).unwrap();
                let found = &word(Fused::StreamCotangent(handed(true, true)), &shares)[0];
                assert_eq!(bits(found), bits(&both), "{what}, cotangent");
                let own = [&x, &phi, &y, &dy];
                let of_project = &word(Fused::StreamProjectBackward(handed(false, false)), &own)[0];
                let mut all = both;
                all.add_in_place(of_project).unwrap();
                let operands: Vec<&Tensor> = own.into_iter().chain(shares).collect();
                let found = &word(Fused::StreamProjectBackward(handed(true, true)), &operands)[0];
                assert_eq!(bits(found), bits(&all), "{what}, X̄");

                let found = word(Fused::StreamWriteBackward, &[&x, &f, &a, &g]);
                let df = &word(Fused::StreamRead, &[&g, &a])[0];
                let db = &word(Fused::StreamReadBackward, &[&g, &f])[0];
                assert_eq!(bits(&found[0]), bits(df), "{what}, F̄");
                assert_eq!(bits(&found[2]), bits(db), "{what}, b̄");
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn sums_are_split_where_there_is_much_to_add() {
        let emulated = &Emulated::device();
        // Two parts of the numbers, and two of the tokens; neither ends with a whole one.
        let (tokens, n, c) = (300, 2, 700);
        let x = || whole(numbers(&[tokens, n, c], DType::F32, 1));
        let phi = || [4, 2, 2].map(|width| whole(numbers(&[n * c, width], DType::F32, width as u64)));
        let project = (Fused::StreamProject { eps: 0.0 }, [x()].into_iter().chain(phi()).collect::<Vec<_>>());
        let y = expected(&project).remove(0).cast(DType::F32).unwrap();
        let dy = numbers(y.shape(), DType::F32, 9);
        let operands = [x()].into_iter().chain(phi()).chain([whole(y), whole(dy)]).collect();
        for case in [project, (Fused::StreamProjectBackward(Handed::default()), operands)] {
            for (found, expected) in found(&case, |x| emulated.place(x)).into_iter().zip(&expected(&case)) {
                assert_near(emulated, found, expected, &format!("{:?}", case.0));
            }
        }
    }

    #[test]
    fn parts_are_whole_and_are_all() {
        for (size, blocks) in [(0, 0), (0, 7), (1, 1), (1024, 1), (1025, 1), (1 << 20, 1), (1 << 20, 4096)] {
            let (parts, part) = split(size, blocks, 1024);
            assert!(part.is_multiple_of(1024) && parts * part >= size && (parts - 1) * part <= size);
            assert!(parts == 1 || parts * blocks <= 2 * ENOUGH_BLOCKS, "{size} {blocks}: {parts}");
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn what_is_computed_again_has_the_bits_of_what_was() {
        let emulated = &Emulated::device();
        for (lead, n, c) in SIZES {
            for dtype in FLOATS {
                let placed =
                    |own: &[usize], dtype, seed| emulated.place(&numbers(&[lead, own].concat(), dtype, seed));
                let x = placed(&[n, c], dtype, 1);
                // More than one launch takes.
                let left: Vec<[Tensor; 3]> = (0..10)
                    .map(|l| {
                        let f = placed(&[c], dtype, 10 + l);
                        [f, placed(&[n, n], wide(dtype), 20 + l), placed(&[n], wide(dtype), 30 + l)]
                    })
                    .collect();
                let mut stream = x.clone();
                let operands: Vec<&Tensor> = [&x].into_iter().chain(left.iter().flatten()).collect();
                let again = Tensor::fused_all(Fused::StreamWrites, &operands).unwrap().unwrap();
                assert_eq!(again.len(), left.len());
                for (l, ([f, mix, b], again)) in left.iter().zip(&again).enumerate() {
                    stream = write(emulated.cuda, &stream, f, mix, b).unwrap();
                    let bits = |x: &Tensor| -> Vec<u64> {
                        emulated.read(Ok(x.clone())).iter().map(|v| v.to_bits()).collect()
                    };
                    assert_eq!(bits(again), bits(&stream), "{dtype} {lead:?} {n} {c}, block {l}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "streams: expected [.., n, C], found f32[3]")]
    fn streams_have_two_axes() {
        Sizes::of(&Tensor::zeros([3], DType::F32));
    }

    #[test]
    #[should_panic(
        expected = "streams: a must be f32 and have 2 elements for each of 4 tokens, found bf16[4, 2]"
    )]
    fn coefficients_are_not_narrow() {
        let sizes = Sizes::of(&Tensor::zeros([4, 2, 3], DType::BF16));
        let _ = sizes.vector("a", &Tensor::zeros([4, 2], DType::BF16));
    }
}
