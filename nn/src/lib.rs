//! What a network is fed with, made of and trained by.
//!
//! A reader's order: [`Parameter`] is what learns, [`Parameters`] and [`Module`] what a model is, [`Init`] where it
//! starts; then [`Linear`], [`residual`], which is all of the connections, and [`Mlp`], which puts them together. How
//! it learns is [`optim`], and how a run is stopped and resumed [`Checkpoint`].

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
pub mod optim;
mod parameter;
mod pattern;
mod precision;
pub mod residual;
mod schedule;
mod sequential;
mod state_dict;
mod summary;

pub use accumulate::Accumulator;
pub use activation::Activation;
pub use checkpoint::Checkpoint;
pub use clip::{clip_norm, clip_value, global_norm, gradient_norms};
pub use dropout::Dropout;
pub use error::{Column, Error, Place, Result};
pub use init::{Fan, Init, Initializer};
pub use linear::Linear;
pub use mlp::{HiddenBlock, Mlp, MlpConfig};
pub use module::{Module, Parameters, forward_with};
pub use norm::{BatchNorm1d, LayerNorm, RmsNorm, commit_updates};
pub use parameter::{Parameter, Role};
pub use precision::Mixed;
pub use schedule::Schedule;
pub use sequential::Sequential;
pub use state_dict::{LoadReport, LoadRules, Mismatch, save_weights, state_dict};
pub use summary::Summary;
