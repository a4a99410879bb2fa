//! Tensors, a tape you can read, and gradients followed along every edge.
//!
//! Running a model writes a **tape**: a straight-line program over tensors. Everything else is a function of it:
//! differentiate it, differentiate it again, print it, account for every byte it holds.
//!
//! ```
//! use limpid::{Tape, Tensor};
//!
//! let tape = Tape::new();
//! let x = tape.variable(&Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3]));
//! let y = tape.scope("energy", || (x.tanh() * x).sum(&[]));
//!
//! let gradients = tape.backward(y)?;
//! assert_eq!(gradients.of(x).unwrap().shape().to_string(), "[3]");
//! println!("{}", tape.program()); // a line per node: type, operation, bytes, scope, source line
//! println!("{}", tape.backward_program(y)?); // the derivative, as the program its rules write
//! # Ok::<(), limpid::autograd::Error>(())
//! ```
//!
//! Is a derivative right? [`check`](check()) says so, or what is wrong with it, where, and how to see it again:
//!
//! ```
//! use limpid::{Tensor, check};
//!
//! let x = Tensor::from_vec(vec![0.5f64, -1.0, 2.0], [3]);
//! check(|x| x[0].tanh() * x[0], &[x]).expect_pass();
//! ```
//!
//! | crate | question it answers |
//! |---|---|
//! | [`tensor`] | what is a value, where does it lie, who computes it? |
//! | [`autograd`] | what was computed, and what is its derivative? |
//! | [`nn`] | what is a model, how are its layers joined, how does it learn? |
//! | [`report`] | what does a person see? |
//! | `cuda`, with the feature of that name | how does a card compute it? |

mod device;
pub mod report;

pub use device::device;
#[cfg(feature = "cuda")]
pub use limpid_cuda as cuda;

pub use limpid_autograd as autograd;
pub use limpid_nn as nn;
pub use limpid_tensor as tensor;

pub use autograd::{Gradients, Op, Tape, Var, check, concat, einsum, stack, where_};
pub use nn::{Module, Parameters};
pub use tensor::{DType, Device, Shape, Tensor};

/// The README's example is compiled and run with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The pages in docs/, likewise.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../docs/checking.md")]
    struct Checking;
    #[doc = include_str!("../docs/one-plus.md")]
    struct OnePlus;
    #[doc = include_str!("../docs/algebra.md")]
    struct Algebra;
    #[doc = include_str!("../docs/gain.md")]
    struct Gain;
    #[doc = include_str!("../docs/sinkhorn.md")]
    struct Sinkhorn;
    #[doc = include_str!("../docs/symmetry.md")]
    struct Symmetry;
    #[doc = include_str!("../docs/recomputation.md")]
    struct Recomputation;
}
