//! A CUDA backend for [`limpid_tensor`]: hand-written kernels behind the same [`Backend`](limpid_tensor::Backend) trait.
//!
//! The crate builds and tests with no card, no driver and no toolkit. The driver is opened when a device is asked for, and
//! everything that can be missing is an error that says what:
//!
//! ```
//! use limpid_cuda::Cuda;
//! match Cuda::new(0) {
//!     Ok(cuda) => println!("{cuda:?}: {:?}", cuda.properties()),
//!     Err(error) => println!("{error}"), // cuda: no CUDA driver was found (…)
//! }
//! ```
//!
//! A reader's order: `kernels/prelude.cuh` says what kernels are made of, `kernels/map.cu` is the plainest of them,
//! `src/ops/map.rs` launches it, `src/launch.rs` and `src/module.rs` say how, `src/device.rs` and `src/memory.rs` where.

mod backend;
#[doc(hidden)]
pub mod by_name;
mod device;
pub mod emulated;
mod fault;
mod graph;
mod launch;
mod library;
mod memory;
mod module;
mod ops;
mod peer;
mod resources;
mod staging;
mod turn;
mod walk;

pub use device::{Cuda, Properties};
pub use graph::Graph;
pub use memory::{MemoryReport, PoolMemory};
pub use module::{Cubin, Family, HEADERS, OPTIONS};
pub use ops::families;
pub use resources::{ARCHITECTURES, Resources, Said};
