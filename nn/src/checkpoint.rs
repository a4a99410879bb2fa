//! The state of a training run in one file, so that it can go on as if it had never stopped.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use limpid_tensor::Tensor;
use limpid_tensor::io::safetensors;

use crate::optim::Optimizer;
use crate::state_dict::{LoadReport, LoadRules, state_dict};
use crate::{Error, Parameters, Result};

const MODEL: &str = "model.";
const OPTIM: &str = "optim.";
const EXTRA: &str = "extra.";
const FORMAT: &str = "format";
const VERSION: &str = "limpid checkpoint 1";

/// The state of a training run: a model's weights and buffers, what its optimiser remembers, and whatever else the
/// caller adds, tensors (a history of losses) and scalars (step, epoch, seed).
///
/// In the file, a safetensors file, their names are `model.PATH`, `optim.PATH.…` and `extra.NAME`; the scalars are
/// metadata. Random draws need no more than the seed and the step, since they are a function of them.
///
/// ```
/// use limpid_nn::optim::{Optimizer, Sgd};
/// use limpid_nn::{Checkpoint, Parameters};
/// # fn run(model: &mut dyn Parameters) -> limpid_nn::Result<()> {
/// let mut optimizer = Sgd::new().with_momentum(0.9);
/// // … some steps later
/// Checkpoint::of(model, &optimizer).with("step", 500u64).with("best_loss", 0.25f64).save("run.safetensors")?;
///
/// // … in another process, into a model made in the same way
/// let checkpoint = Checkpoint::load("run.safetensors")?;
/// checkpoint.restore(model, &mut optimizer)?;
/// let step: u64 = checkpoint.get("step")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file, for messages.
    source: String,
    tensors: BTreeMap<String, Tensor>,
    scalars: BTreeMap<String, String>,
}

impl Checkpoint {
    /// The present state. No element is copied; steps made while the checkpoint lives leave it unchanged.
    ///
    /// # Panics
    /// If two parameters have one path.
    #[track_caller]
    pub fn of(model: &dyn Parameters, optimizer: &dyn Optimizer) -> Checkpoint {
        let model_state = state_dict(model).into_iter().map(|(name, x)| (format!("{MODEL}{name}"), x));
        let optimizer_state =
            optimizer.state(model).into_iter().map(|(name, x)| (format!("{OPTIM}{name}"), x));
        Checkpoint {
            source: "checkpoint in memory".into(),
            tensors: model_state.chain(optimizer_state).collect(),
            scalars: BTreeMap::new(),
        }
    }

    /// Adds a scalar, as the text it prints as; numbers come back exactly.
    ///
    /// # Panics
    /// If the name is `format`, which says what the file is.
    #[track_caller]
    pub fn with(mut self, name: impl Into<String>, value: impl Display) -> Checkpoint {
        let name = name.into();
        assert!(name != FORMAT, "a checkpoint's scalar cannot be called {FORMAT}: it says what the file is");
        self.scalars.insert(name, value.to_string());
        self
    }

    /// Adds a tensor.
    pub fn with_tensor(mut self, name: impl Display, value: Tensor) -> Checkpoint {
        self.tensors.insert(format!("{EXTRA}{name}"), value);
        self
    }

    /// Writes the file, [atomically](limpid_tensor::io::write_atomically).
    ///
    /// # Errors
    /// If it cannot be written, or a device cannot be read.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut metadata = self.scalars.clone();
        metadata.insert(FORMAT.into(), VERSION.into());
        let tensors = self.tensors.iter().map(|(name, x)| (name.as_str(), x.clone()));
        Ok(safetensors::save(path, tensors, &metadata)?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is no checkpoint.
    pub fn load(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let safetensors::Loaded { tensors, metadata: mut scalars } = safetensors::load(path)?;
        match scalars.remove(FORMAT) {
            Some(version) if version == VERSION => {
                Ok(Checkpoint { source: path.display().to_string(), tensors, scalars })
            }
            found => {
                let expected = format!("metadata with {FORMAT} = {VERSION:?}");
                let found = found.map_or("none".into(), |version| format!("{version:?}"));
                Err(limpid_tensor::Error::format(path, expected, found).into())
            }
        }
    }

    /// A scalar.
    ///
    /// # Errors
    /// If there is none of that name, or it is no `T`.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T> {
        let error = |expected: String, found: &str| {
            limpid_tensor::Error::format(&self.source, expected, found.to_owned())
        };
        let Some(text) = self.scalars.get(name) else {
            let names: Vec<&str> = self.scalars.keys().map(String::as_str).collect();
            let found = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(error(format!("a scalar {name}"), &found).into());
        };
        let expected = || format!("{name} as {}", std::any::type_name::<T>());
        Ok(text.parse().map_err(|_| error(expected(), &format!("{text:?}")))?)
    }

    /// A tensor that was added by name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(&format!("{EXTRA}{name}")).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.keys().filter_map(|name| name.strip_prefix(EXTRA)).collect();
            let found = if names.is_empty() { "none".into() } else { names.join(", ") };
            limpid_tensor::Error::format(&self.source, format!("an added tensor {name}"), found).into()
        })
    }

    /// Puts a model and its optimiser into the state of the checkpoint.
    ///
    /// # Errors
    /// [`Error::Load`] if a tensor is missing, unexpected, or of another shape or dtype. Every such tensor of the model
    /// is listed; if there is none, every such tensor of the optimiser. Also if the optimiser's groups do not fit the
    /// model, or a device fails. Nothing has been changed then.
    ///
    /// # Panics
    /// If two parameters have one path.
    #[track_caller]
    pub fn restore(&self, model: &mut dyn Parameters, optimizer: &mut dyn Optimizer) -> Result<()> {
        let (mut model_state, mut optimizer_state) = (BTreeMap::new(), BTreeMap::new());
        let mut report = LoadReport::default();
        for (name, tensor) in &self.tensors {
            if let Some(path) = name.strip_prefix(MODEL) {
                model_state.insert(path.to_owned(), tensor.clone());
            } else if let Some(path) = name.strip_prefix(OPTIM) {
                optimizer_state.insert(path.to_owned(), tensor.clone());
            } else if !name.starts_with(EXTRA) {
                report.unexpected.push(name.clone());
            }
        }
        let loading = LoadRules::new().plan(model, &model_state)?;
        report.absorb(MODEL, loading.report.clone());
        if report.is_complete() {
            match optimizer.load_state(model, &optimizer_state) {
                Err(Error::Load { report: other, .. }) => report.absorb(OPTIM, *other),
                loaded => loaded?,
            }
        }
        if !report.is_complete() {
            return Err(Error::Load { origin: self.source.clone(), report: Box::new(report) });
        }
        loading.place(model);
        Ok(())
    }
}
