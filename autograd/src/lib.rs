//! A tape that is a program: run a model to write it, then differentiate it, print it, account for it.
//!
//! ```
//! use limpid_autograd::Tape;
//! use limpid_tensor::Tensor;
//!
//! let tape = Tape::new();
//! let x = tape.variable(&Tensor::from_vec(vec![0.5f64, -1.0], [2]));
//! let y = (x * x).sum(&[]);
//! let gradients = tape.backward(y)?;
//! assert_eq!(gradients.of(x).unwrap().to_vec::<f64>()?, [1.0, -2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A reader's order: [`Tape`] is what is recorded, [`Var`] a handle on a value, [`Op`] what an operation has to say of
//! itself; then `backward.rs`, which is all of reverse mode, and the operations in `ops/`, each with its derivative
//! beside its function. [`mod@check`] is how a derivative is proved.
//!
//! To follow a gradient: [`Tape::backward_with_ledger`] keeps what each gradient was added up from,
//! [`Tape::spectrum`] tells paths apart by the branches they cross, [`Tape::stream_map`] and [`Tape::jacobian_spectrum`] are
//! what the stream and the branches do to it. To read a tape: [`Tape::program`], [`diff()`], [`Tape::on_forward`]. Where
//! the time goes: [`Profile`].

mod backward;
pub mod check;
mod composite;
mod cotangent;
mod diff;
mod dot;
mod effects;
mod error;
mod forward;
pub mod glob;
mod hooks;
mod jacobian;
mod jacobian_spectrum;
mod json;
mod ledger;
mod matrix;
mod memory;
mod op;
pub mod ops;
mod part;
pub mod plan;
mod print;
mod profile;
mod recycled;
mod replay;
mod route;
mod rule;
mod scope;
mod shared;
mod spectrum;
mod statistics;
mod tape;
mod value;
mod var;

pub use backward::{Gradients, Paths};
pub use check::check;
pub use composite::StreamMap;
pub use diff::{Difference, TapeDiff, diff};
pub use effects::Update;
pub use error::{Error, Result, Site};
pub use jacobian_spectrum::{JacobianSpectrum, Method};
pub use ledger::{Addend, FanIn, Ledger};
pub use matrix::Matrix;
pub use memory::{Memory, ReadAudit};
pub use op::{Cotangents, Derivative, Needs, Op, Pullback, Purity, Pushforward};
pub use ops::einsum::einsum;
pub use ops::elementwise::where_;
pub use ops::movement::{concat, stack};
pub use part::Part;
pub use print::{Program, format_bytes};
pub use profile::{Lane, Profile, Row};
pub use replay::{Replay, Replayed};
pub use route::Route;
pub use spectrum::{Degree, Grading, Spectrum, Term};
pub use statistics::Statistics;
pub use tape::{ParamId, Tape};
pub use var::{Edge, Outputs, Var};
