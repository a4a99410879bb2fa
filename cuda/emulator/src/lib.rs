//! Runs CUDA kernels on a processor, one coroutine for each thread, and checks what they do.
//!
//! The text of a `.cu` file is compiled by g++ instead of NVRTC, with a header in front that says what `threadIdx`,
//! `__syncthreads` and the rest are here. A launch runs every thread of every block as a coroutine, in an order drawn
//! from a seed. In a [`Checked`](Build::Checked) build every load and store is looked at: races, accesses out of bounds,
//! reads of what nobody wrote, threads that wait for each other, and more ([`Kind`]), each with the line of the source.
//!
//! ```
//! use limpid_emulator::{Build, CompileError, Kind, Memory, Options, Program, Shape, Source, compile, launch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let text = "
//!     KERNEL(64, reverse, (float* x)) {
//!         SHARED(float, copy, [64]);
//!         copy[threadIdx.x] = x[threadIdx.x];
//!         x[63 - threadIdx.x] = copy[threadIdx.x];
//!     }";
//! let source = Source { name: "reverse.cu", text, headers: &[], defines: &[] };
//! let library = match compile(&source, Build::Checked, &std::env::temp_dir().join("limpid-emulator")) {
//!     Err(CompileError::NoCompiler(reason)) => return Ok(println!("skipped: {reason}")),
//!     library => library?,
//! };
//! let kernel = Program::open(&library)?.kernel("reverse").ok_or("no kernel `reverse`")?;
//!
//! let mut memory = Memory::new(1 << 20);
//! let x = memory.allocate(4 * 64, "x").ok_or("the card is full")?;
//! memory.fill(x, 0, 4 * 64);
//! let shape = Shape { grid: [1, 1, 1], block: [64, 1, 1], dynamic_shared: 0 };
//! let report = launch(&mut memory, &kernel, shape, &[x.to_ne_bytes().to_vec()], Options::default());
//!
//! // A thread writes what another may still have to read: a barrier is missing.
//! assert_eq!(report.findings[0].kind, Kind::Race);
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! # What is as on a card, and what is not
//!
//! Arithmetic of float and double is IEEE's, as on a card; functions such as `exp` are the C library's. Shared and fresh
//! global memory is filled with NaN. Asynchronous copies and products are done at the last moment that is allowed.
//! Blocks run one after another: a block that waits for another to write a flag waits for ever. Stores are seen in the
//! order of the program: a missing fence shows in the checks, never in the numbers.
//!
//! # Reading the source
//!
//! [`compile()`] makes a library, [`Program`] loads it, [`launch()`] runs a kernel on [`Memory`]. Behind them, `execution` is
//! the state of a launch, `fibers` its coroutines, `meeting` what threads wait for, `callbacks` what a kernel calls;
//! `check` judges an access with what `shadow` and `clock` know of earlier ones. `shim/` is the C++ side, `gallery/` a
//! collection of mistakes with what is reported of each.

mod abi;
mod bits;
mod callbacks;
mod check;
mod clock;
mod compile;
mod deferred;
mod execution;
mod fibers;
mod findings;
mod handover;
mod launch;
mod meeting;
mod memory;
mod place;
mod program;
mod report;
mod schedule;
mod shadow;
mod shared;
pub mod standin;
mod traffic;

pub use compile::{Build, CompileError, Source, compile};
pub use launch::{Options, Shape, launch};
pub use memory::Memory;
pub use program::{Kernel, LoadError, Program};
pub use report::{Event, Finding, Kind, MemoryTraffic, Place, Report, Traffic, Warp};
