//! Plans: whatever is dropped and computed again, gradients are the same bits, and memory is what the plan says after every
//! step.
//!
//! `equal.rs` is the property, over the random networks of `network.rs` and the random policies of `policy.rs`; `faults.rs`
//! are operations that do not repeat themselves, each of which must be caught; `refused.rs` what is no plan and no planned
//! program; `beyond.rs` everything a tape does besides one backward pass; `corners.rs` programs at the edge.

mod beyond;
mod bits;
mod corners;
mod equal;
mod faults;
mod network;
mod policy;
mod refused;
