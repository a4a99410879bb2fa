//! Everything between a file or a generator and a mini-batch.
//!
//! ```
//! use limpid_nn::data::{Batches, StandardScaler, two_moons};
//! use limpid_tensor::{DType, rng::Key};
//! # fn main() -> limpid_nn::Result<()> {
//! let key = Key::new(0);
//! let moons = two_moons(1000, 0.2, DType::F32, key.fold_str("data"))?;
//! let (train, validation) = moons.split(0.7, key.fold_str("split"))?;
//! let scaler = StandardScaler::fit(train.features())?; // never on the validation part
//! let train = train.with_features(scaler.transform(train.features())?);
//! let validation = validation.with_features(scaler.transform(validation.features())?);
//!
//! let batches = Batches::new(train.len(), 128, key.fold_str("order"))?;
//! for epoch in 0..2 {
//!     for batch in batches.of(&train, epoch)? {
//!         let batch = batch?;
//!         assert_eq!(batch.features.shape()[0], batch.labels.shape()[0]);
//!     }
//! }
//! assert_eq!((train.len(), validation.len(), batches.per_epoch()), (700, 300, 6));
//! # Ok(())
//! # }
//! ```
//!
//! Whatever is random here is a function of a [`Key`](limpid_tensor::rng::Key): the same key gives the same
//! points, the same split and the same order of batches.

mod batches;
mod csv;
mod dataset;
mod generate;
mod scaler;
mod split;

pub use batches::{Batch, Batches};
pub use dataset::Dataset;
pub use generate::{circles, spirals, two_moons};
pub use scaler::StandardScaler;
pub use split::stratified_split;
