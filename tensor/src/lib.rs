//! Strided tensors, the [`Backend`] trait a device implements, and the CPU backend.
//!
//! ```
//! use limpid_tensor::{DType, Map, Reduce, Tensor};
//! # fn main() -> limpid_tensor::Result<()> {
//! let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32).reshape([2, 3])?;
//! let mean = Tensor::map(Map::Affine { mul: 1.0 / 3.0, add: 0.0 }, &[&x.reduce(Reduce::Sum, &[1])?])?;
//! assert_eq!(mean.to_vec::<f32>()?, [1.0, 4.0]);
//! # Ok(())
//! # }
//! ```
//!
//! A reader's order: [`Shape`] and [`Layout`] say where an element lies, [`Tensor`] what a value is,
//! [`Map`], [`Reduce`] and their kin what can be computed, [`Backend`] who computes it, and the `cpu` module how.

/// Runs an expression with `$t` standing for the Rust type of a dtype.
macro_rules! with_element {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            $crate::DType::I64 => {
                type $t = i64;
                $body
            }
            $crate::DType::Bool => {
                type $t = bool;
                $body
            }
        }
    };
}

mod backend;
mod cpu;
mod display;
mod dtype;
mod error;
pub mod io;
mod layout;
mod phantom;
mod primitive;
pub mod rng;
mod shape;
mod storage;
mod tensor;

pub use backend::{Backend, Device, Results, Usage};
pub use cpu::{Cpu, round_to_bf16, set_threads, widest};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use half::bf16;
pub use layout::{Layout, Strides};
pub use primitive::{
    Activation, Descent, Fused, Handed, Inferred, Map, Meta, Pace, Rate, Reduce, Stop, WeightStep,
    infer_gather, infer_matmul,
};
pub use shape::Shape;
pub use storage::{HostBuffer, HostMemory, Storage, StorageRef};
pub use tensor::Tensor;
