//! What a network is fed with, made of and trained by.

pub mod data;
mod error;

pub use error::{Column, Error, Place, Result};
