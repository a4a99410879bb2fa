//! Which kernel multiplies: by shapes and layouts alone, so that the same product is the same bits on every card of a kind.

use limpid_tensor::DType;

use super::problem::{Parts, Problem};
use crate::device::Properties;
use crate::module::Family;

pub(crate) static MATMUL: Family =
    Family { name: "matmul.cu", text: include_str!("../../../kernels/matmul.cu") };
pub(crate) static TENSOR_CORE: Family =
    Family { name: "matmul_tensor_core.cu", text: include_str!("../../../kernels/matmul_tensor_core.cu") };
pub(crate) static WGMMA: Family =
    Family { name: "matmul_wgmma.cu", text: include_str!("../../../kernels/matmul_wgmma.cu") };

/// A kernel, with the tile of the result that a block makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kernel {
    /// A thread for each element.
    Direct,
    /// A warp for each element.
    Dot,
    /// Tiles in the arithmetic of the dtype.
    Tiles(Tile),
    /// Tiles on tensor cores, by products of a warp: bf16, and f32 as tf32.
    TensorCores(Tile),
    /// Tiles of 128×256 of bf16 on the tensor cores of sm_90a, by products of four warps.
    Wgmma,
}

/// Rows and columns of the result that a block makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tile {
    T32x32,
    T64x64,
    T128x128,
    T128x256,
}

impl Tile {
    pub(super) fn rows(self) -> usize {
        match self {
            Tile::T32x32 => 32,
            Tile::T64x64 => 64,
            Tile::T128x128 | Tile::T128x256 => 128,
        }
    }

    pub(super) fn columns(self) -> usize {
        match self {
            Tile::T128x256 => 256,
            square => square.rows(),
        }
    }

    fn count(self, p: &Problem) -> usize {
        p.batches() * p.m.div_ceil(self.rows()) * p.n.div_ceil(self.columns())
    }

    /// Whether more than half of a tile is used in both directions, and there are enough of them for a large card.
    fn suits(self, p: &Problem, enough: usize) -> bool {
        2 * p.m > self.rows() && 2 * p.n > self.columns() && self.count(p) >= enough
    }

    /// Bytes of a stage on tensor cores: rows of 128 bytes.
    fn stage(self) -> usize {
        128 * (self.rows() + self.columns())
    }

    fn name(self) -> String {
        format!("{}x{}", self.rows(), self.columns())
    }
}

/// Which axes of the factors are contiguous, as the kernels' names say it.
fn contiguous_axes(p: &Problem) -> &'static str {
    match (p.a.along_terms, p.b.along_terms) {
        (true, true) => "kk",
        (true, false) => "kn",
        (false, true) => "mk",
        (false, false) => "mn",
    }
}

/// The fewest rows, columns and terms for which tensor cores are faster than the arithmetic of the dtype.
const LEAST_FOR_TENSOR_CORES: usize = 16;

/// The fewest rows, columns and terms for which it pays to copy a factor so that tensor cores can read it.
const LEAST_FOR_A_COPY: usize = 64;

/// Whether tensor cores would be used if they could read the factors.
pub(super) fn wants_tensor_cores(p: &Problem, copies: bool) -> bool {
    let least = if copies { LEAST_FOR_A_COPY } else { LEAST_FOR_TENSOR_CORES };
    p.m.min(p.n).min(p.k) >= least
}

impl Kernel {
    /// Every kernel.
    const ALL: [Kernel; 9] = [
        Kernel::Direct,
        Kernel::Dot,
        Kernel::Tiles(Tile::T32x32),
        Kernel::Tiles(Tile::T64x64),
        Kernel::Tiles(Tile::T128x128),
        Kernel::TensorCores(Tile::T64x64),
        Kernel::TensorCores(Tile::T128x128),
        Kernel::TensorCores(Tile::T128x256),
        Kernel::Wgmma,
    ];

    /// The kernel that is so called for some factors and some dtype.
    pub(super) fn called(name: &str) -> Option<Kernel> {
        let is_called =
            |kernel: &Kernel| name.strip_prefix(&kernel.stem()).is_some_and(|rest| rest.starts_with('_'));
        Kernel::ALL.into_iter().find(is_called)
    }

    /// Whether a card has the instructions, and a block the shared memory.
    pub(super) fn runs_on(self, card: Properties) -> bool {
        let has_instructions = match self {
            Kernel::TensorCores(_) => card.capability >= (8, 0),
            Kernel::Wgmma => card.capability == (9, 0),
            _ => true,
        };
        has_instructions && self.shared() <= card.shared_per_block
    }

    /// The kernel for products in the arithmetic of the dtype.
    pub(super) fn plain(p: &Problem) -> Kernel {
        let thin = p.m.min(p.n);
        let counts_in_32_bits = p.elements() < 1 << 31;
        if counts_in_32_bits && (p.k <= 8 || (thin <= 8 && p.k <= 64)) {
            Kernel::Direct
        } else if counts_in_32_bits && thin <= 4 {
            Kernel::Dot
        } else {
            let suits = |tile: &Tile| tile.suits(p, 128);
            Kernel::Tiles([Tile::T128x128, Tile::T64x64].into_iter().find(suits).unwrap_or(Tile::T32x32))
        }
    }

    /// The kernel on tensor cores.
    pub(super) fn tensor_cores(p: &Problem, dtype: DType, card: Properties) -> Kernel {
        let large = dtype == DType::BF16 && Tile::T128x256.suits(p, 256);
        let kernels = [Kernel::Wgmma, Kernel::TensorCores(Tile::T128x256)];
        if let Some(kernel) = kernels.into_iter().find(|kernel| large && kernel.runs_on(card)) {
            return kernel;
        }
        let square = if Tile::T128x128.suits(p, 128) { Tile::T128x128 } else { Tile::T64x64 };
        Kernel::TensorCores(square)
    }

    pub(super) fn family(self) -> &'static Family {
        match self {
            Kernel::Direct | Kernel::Dot | Kernel::Tiles(_) => &MATMUL,
            Kernel::TensorCores(_) => &TENSOR_CORE,
            Kernel::Wgmma => &WGMMA,
        }
    }

    pub(super) fn name(self, p: &Problem, dtype: DType) -> String {
        match self {
            Kernel::Direct | Kernel::Dot | Kernel::Tiles(_) => format!("{}_{dtype}", self.stem()),
            Kernel::TensorCores(_) | Kernel::Wgmma => {
                format!("{}_{}_{dtype}", self.stem(), contiguous_axes(p))
            }
        }
    }

    /// What the names begin with.
    fn stem(self) -> String {
        match self {
            Kernel::Direct => "matmul_direct".into(),
            Kernel::Dot => "matmul_dot".into(),
            Kernel::Tiles(tile) => format!("matmul_{}", tile.name()),
            Kernel::TensorCores(tile) => format!("tensor_core_{}", tile.name()),
            Kernel::Wgmma => format!("wgmma_{}", Tile::T128x256.name()),
        }
    }

    /// Bytes that the kernel reads at once where it may.
    pub(super) fn read_width(self, dtype: DType) -> usize {
        match self {
            Kernel::TensorCores(_) | Kernel::Wgmma => 16,
            _ => (4 * dtype.size()).min(16),
        }
    }

    pub(super) fn threads(self) -> u32 {
        match self {
            Kernel::Direct | Kernel::Dot => 256,
            Kernel::Tiles(Tile::T32x32) => 64,
            Kernel::TensorCores(Tile::T64x64 | Tile::T128x128) | Kernel::Tiles(Tile::T64x64) => 128,
            Kernel::Tiles(_) | Kernel::TensorCores(_) | Kernel::Wgmma => 256,
        }
    }

    /// Blocks for each part of the sum.
    pub(super) fn blocks(self, p: &Problem) -> usize {
        match self {
            Kernel::Direct => p.elements().div_ceil(256),
            Kernel::Dot => p.elements().div_ceil(8),
            Kernel::Tiles(tile) | Kernel::TensorCores(tile) => tile.count(p),
            Kernel::Wgmma => Tile::T128x256.count(p),
        }
    }

    /// How the sum is cut where tiles are few.
    pub(super) fn parts(self, p: &Problem) -> Parts {
        match self {
            Kernel::Dot => Parts::new(p.k, self.blocks(p), 1024),
            Kernel::Tiles(Tile::T32x32) | Kernel::TensorCores(Tile::T64x64) => {
                Parts::new(p.k, self.blocks(p), 256)
            }
            _ => Parts { splits: 1, depth: p.k },
        }
    }

    /// Bytes of dynamic shared memory of a block: its stages.
    pub(super) fn shared(self) -> usize {
        match self {
            Kernel::TensorCores(tile) => {
                let stages = if tile == Tile::T128x256 { 4 } else { 3 };
                stages * tile.stage()
            }
            // The stages begin at a multiple of 1 KiB.
            Kernel::Wgmma => 4 * Tile::T128x256.stage() + 1024,
            _ => 0,
        }
    }
}
