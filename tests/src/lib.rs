//! What the test suites share: cases that can be written down, an oracle that can be believed, and the comparison
//! between the two.
//!
//! A [`case::Case`] is a small description (shapes, layouts, dtypes, kinds of values, seeds) from which tensors are
//! made. Random cases are drawn and shrunk as descriptions, and one that fails prints as a line for
//! `regressions.txt`, which every later run replays first. [`naive`] computes the same things as the kernels by loops
//! over indices, and shares no code with them.

pub mod array;
pub mod case;
pub mod emulated;
pub mod judge;
pub mod naive;
pub mod program;
pub mod property;
