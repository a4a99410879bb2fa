//! What a network is fed with, made of and trained by.

mod accumulate;
mod checkpoint;
mod clip;
pub mod data;
mod error;
mod module;
pub mod optim;
mod parameter;
mod pattern;
mod schedule;
mod state_dict;

pub use accumulate::Accumulator;
pub use checkpoint::Checkpoint;
pub use clip::{clip_norm, clip_value, global_norm, gradient_norms};
pub use error::{Column, Error, Place, Result};
pub use module::{Module, Parameters};
pub use parameter::{Parameter, Role};
pub use schedule::Schedule;
pub use state_dict::{LoadReport, LoadRules, Mismatch, save_weights, state_dict};
