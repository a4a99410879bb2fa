//! What a network is fed with, made of and trained by.
//!
//! A reader's order: [`Parameter`] is what learns, [`Parameters`] and [`Module`] what a model is, [`Init`] where it
//! starts; then [`Linear`], [`residual`], which is all of the connections, and [`Mlp`], which puts them together.

mod accumulate;
mod activation;
mod checkpoint;
mod clip;
pub mod data;
mod dropout;
mod error;
mod init;
mod linear;
pub mod losses;
mod mlp;
mod module;
mod norm;
mod parameter;
pub mod residual;
mod sequential;
mod summary;

pub use activation::Activation;
pub use dropout::Dropout;
pub mod optim;
mod pattern;
mod schedule;
mod state_dict;
pub use accumulate::Accumulator;
pub use checkpoint::Checkpoint;
pub use clip::{clip_norm, clip_value, global_norm, gradient_norms};
pub use error::{Column, Error, Place, Result};
pub use init::{Fan, Init, Initializer};
pub use linear::Linear;
pub use mlp::{Mlp, MlpConfig};
pub use module::{Module, Parameters};
pub use norm::{BatchNorm1d, LayerNorm, RmsNorm, commit_updates};
pub use parameter::{Parameter, Role};
pub use schedule::Schedule;
pub use sequential::Sequential;
pub use state_dict::{LoadReport, LoadRules, Mismatch, save_weights, state_dict};
pub use summary::Summary;
