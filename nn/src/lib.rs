//! What a network is fed with, made of and trained by.

pub mod data;
mod error;
mod module;
mod parameter;

pub use error::{Column, Error, Place, Result};
pub use module::{Module, Parameters};
pub use parameter::{Parameter, Role};
