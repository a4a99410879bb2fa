//! What is timed, and what the machine allows: shared by the benchmarks, the table of bounds and the comparison with other
//! frameworks.
//!
//! A [`Case`] is a kernel with its operands and with the bytes and operations that it cannot do without; [`cases`] lists
//! them. [`networks`] has what trains, [`tape`] what only records. [`Machine`] is what one thread of this processor does
//! at most, and [`clock`] how times are taken.

mod case;
pub mod cases;
pub mod clock;
mod machine;
pub mod networks;
pub mod numbers;
pub mod tape;

pub use case::{Case, Prepared, Work};
pub use machine::{Bound, Limit, Machine, Transfer, compute};

/// What can go wrong where things are timed.
pub type Failure = Box<dyn std::error::Error>;
