//! A model's tensors by name, and how those of another program find their places in it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use limpid_tensor::io::safetensors;
use limpid_tensor::{Meta, Tensor};

use crate::module::matches;
use crate::pattern::Template;
use crate::{Error, Parameter, Parameters, Result};
use limpid_autograd::glob::nearest;

/// Every parameter's path and value, buffers among them, in order of visit. No element is copied.
///
/// # Panics
/// If two parameters have one path.
#[track_caller]
pub fn state_dict(model: &dyn Parameters) -> Vec<(String, Tensor)> {
    by_path(model).into_iter().map(|p| (p.path().to_owned(), p.value().clone())).collect()
}

/// Writes a model's tensors, and text beside them, to a safetensors file, [atomically].
///
/// # Errors
/// If the file cannot be written or a device cannot be read.
///
/// # Panics
/// If two parameters have one path.
///
/// [atomically]: limpid_tensor::io::write_atomically
#[track_caller]
pub fn save_weights(
    path: impl AsRef<Path>,
    model: &dyn Parameters,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    Ok(safetensors::save(path, state_dict(model), metadata)?)
}

/// The parameters in order of visit.
#[track_caller]
fn by_path(model: &dyn Parameters) -> Vec<&Parameter> {
    let parameters = model.parameters();
    let mut seen = BTreeMap::new();
    for p in &parameters {
        if let Some(other) = seen.insert(p.path(), p) {
            panic!("two parameters have one path: {other:?} and {p:?}");
        }
    }
    parameters
}

/// How named tensors become a model's parameters. Made strict; each exception is asked for.
///
/// A name is first freed of the prefix, then renamed by the first rule that matches it; what it has become is looked up
/// among the model's paths. A rule that applies to nothing is an error.
///
/// ```
/// use std::collections::BTreeMap;
/// use limpid_nn::{LoadRules, Parameter, Parameters, Role};
/// use limpid_tensor::{DType, Tensor};
///
/// struct Layer(Parameter);
/// impl Parameters for Layer {
///     fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
///         f(&self.0)
///     }
///     fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
///         f(&mut self.0)
///     }
/// }
///
/// let mut model = Layer(Parameter::new("layers.0.weight", Tensor::zeros([2, 3], DType::F32), Role::Weight));
/// let foreign = BTreeMap::from([("module.net.0.w".to_string(), Tensor::ones([3, 2], DType::F64))]);
/// let rules = LoadRules::new()
///     .strip_prefix("module.")
///     .rename("net.{}.w", "layers.{}.weight")
///     .transpose("*.weight")
///     .allow_cast();
/// let report = rules.load(&mut model, &foreign)?;
/// assert_eq!(report.loaded, ["layers.0.weight"]);
/// assert_eq!(model.0.value().to_vec::<f32>()?, [1.0; 6]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadRules {
    prefix: Option<String>,
    renames: Vec<(String, String)>,
    transposed: Vec<String>,
    lenient: bool,
    cast: bool,
}

impl LoadRules {
    /// Names, shapes and dtypes must agree exactly.
    pub fn new() -> LoadRules {
        LoadRules::default()
    }

    /// Drops a prefix from the names that have it.
    pub fn strip_prefix(mut self, prefix: impl Into<String>) -> LoadRules {
        self.prefix = Some(prefix.into());
        self
    }

    /// Renames `from` to `to`. A `{}` in `from` stands for one or more characters other than dots, and is put where
    /// the `{}` of the same position in `to` is.
    ///
    /// # Panics
    /// If the two differ in the number of `{}`.
    #[track_caller]
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> LoadRules {
        let (from, to) = (from.into(), to.into());
        let holes = [&from, &to].map(|text| Template::new(text).holes());
        assert!(holes[0] == holes[1], "rename: {from} has {} {{}}, {to} has {}", holes[0], holes[1]);
        self.renames.push((from, to));
        self
    }

    /// Exchanges the last two axes of the tensors for parameters whose path matches a pattern, in which `*` stands for
    /// any run of characters: some programs keep a linear layer's weight as `[in, out]`.
    pub fn transpose(mut self, pattern: impl Into<String>) -> LoadRules {
        self.transposed.push(pattern.into());
        self
    }

    /// Converts a float tensor of another float dtype, rounding to nearest.
    pub fn allow_cast(mut self) -> LoadRules {
        self.cast = true;
        self
    }

    /// Loads what fits, and leaves parameters that are missing or do not fit as they are.
    pub fn lenient(mut self) -> LoadRules {
        self.lenient = true;
        self
    }

    /// Loads tensors into a model.
    ///
    /// # Errors
    /// [`Error::Load`] with the report if not everything fits, unless [`lenient`](LoadRules::lenient);
    /// [`Error::Argument`] if a rule applies to nothing, or two tensors become one. The model is unchanged then.
    ///
    /// # Panics
    /// If two parameters have one path.
    #[track_caller]
    pub fn load(&self, model: &mut dyn Parameters, tensors: &BTreeMap<String, Tensor>) -> Result<LoadReport> {
        let loading = self.plan(model, tensors)?;
        self.finish(model, loading, "state dict")
    }

    /// Loads a safetensors file into a model.
    ///
    /// # Errors
    /// As [`load`](LoadRules::load), with the file's path, and if it cannot be read.
    #[track_caller]
    pub fn load_file(&self, model: &mut dyn Parameters, path: impl AsRef<Path>) -> Result<LoadReport> {
        let path = path.as_ref();
        let loading = self.plan(model, &safetensors::load(path)?.tensors)?;
        self.finish(model, loading, &path.display().to_string())
    }

    fn finish(&self, model: &mut dyn Parameters, loading: Loading, source: &str) -> Result<LoadReport> {
        if !self.lenient && !loading.report.is_complete() {
            return Err(Error::Load { origin: source.into(), report: Box::new(loading.report) });
        }
        Ok(loading.place(model))
    }

    /// Finds a value for every parameter, and changes nothing.
    #[track_caller]
    pub(crate) fn plan(&self, model: &dyn Parameters, tensors: &BTreeMap<String, Tensor>) -> Result<Loading> {
        let renamed = self.renamed(tensors)?;
        let parameters = by_path(model);
        let mut unused: Vec<&String> = self.transposed.iter().collect();
        let mut loading = Loading::default();
        for p in &parameters {
            unused.retain(|pattern| !matches(pattern, p.path()));
            let transposed = self.transposed.iter().any(|pattern| matches(pattern, p.path()));
            let prepared = match renamed.get(p.path()) {
                Some(tensor) => Some(self.prepared(tensor, p, transposed)?),
                None => None,
            };
            let candidates = prepared.map(|tensor| (p.path().to_owned(), tensor)).into_iter().collect();
            if let Some(tensor) = loading.report.take(&candidates, p.path().to_owned(), p.meta()) {
                loading.values.insert(p.path().to_owned(), tensor.to(p.value().device())?);
            }
        }
        if let Some(pattern) = unused.first() {
            let near = nearest(pattern, parameters.iter().map(|p| p.path())).join(", ");
            let expected = format!("a pattern that matches a parameter, such as {near}");
            return Err(Error::argument("transpose", expected, pattern));
        }
        loading.report.reject_others(&renamed);
        Ok(loading)
    }

    /// The tensors under the model's names.
    fn renamed(&self, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let rules: Vec<_> =
            self.renames.iter().map(|(from, to)| (Template::new(from), Template::new(to))).collect();
        let (mut used, mut stripped) = (vec![false; rules.len()], self.prefix.is_none());
        let mut sources: BTreeMap<String, &str> = BTreeMap::new();
        let mut renamed = BTreeMap::new();
        for (name, tensor) in tensors {
            let bare = self.prefix.as_deref().and_then(|prefix| name.strip_prefix(prefix));
            stripped |= bare.is_some();
            let bare = bare.unwrap_or(name);
            let rule = rules
                .iter()
                .enumerate()
                .find_map(|(i, (from, to))| Some((i, to.filled(&from.captures(bare)?))));
            let target = match rule {
                Some((i, target)) => {
                    used[i] = true;
                    target
                }
                None => bare.to_owned(),
            };
            if let Some(other) = sources.insert(target.clone(), name) {
                return Err(Error::argument(
                    "rename",
                    "one tensor for each name",
                    format!("{other} and {name} for {target}"),
                ));
            }
            renamed.insert(target, tensor.clone());
        }
        let near = |pattern: &str| nearest(pattern, tensors.keys().map(String::as_str)).join(", ");
        if let (Some(prefix), false) = (&self.prefix, stripped) {
            let expected = format!("a prefix of a name, such as {}", near(&format!("{prefix}*")));
            return Err(Error::argument("strip_prefix", expected, prefix));
        }
        if let Some(i) = used.iter().position(|used| !used) {
            let from = &self.renames[i].0;
            let expected = format!("a pattern that takes a name, such as {}", near(&from.replace("{}", "*")));
            return Err(Error::argument("rename", expected, from));
        }
        Ok(renamed)
    }

    /// A tensor as the parameter wants it, as far as the rules allow.
    fn prepared(&self, tensor: &Tensor, p: &Parameter, transposed: bool) -> Result<Tensor> {
        let mut tensor = tensor.clone();
        if transposed && tensor.shape().len() >= 2 {
            tensor = tensor.transpose(-2, -1).contiguous()?;
        }
        let dtype = p.value().dtype();
        if self.cast && dtype.is_float() && tensor.dtype().is_float() {
            tensor = tensor.cast(dtype)?;
        }
        Ok(tensor)
    }
}

/// Values found for a model's parameters, before they are put there.
#[derive(Default)]
pub(crate) struct Loading {
    values: BTreeMap<String, Tensor>,
    pub report: LoadReport,
}

impl Loading {
    /// Puts the values in their places.
    pub fn place(mut self, model: &mut dyn Parameters) -> LoadReport {
        model.visit_mut(&mut |p| {
            if let Some(value) = self.values.remove(p.path()) {
                p.set_value(value);
            }
        });
        self.report
    }
}

/// What became of each name when tensors were loaded. Printed, it is one sentence for each kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    /// Found and of the right shape and dtype, in the order of the model.
    pub loaded: Vec<String>,
    /// Expected and not found.
    pub missing: Vec<String>,
    /// Found and not expected; renamed, where a rule applied.
    pub unexpected: Vec<String>,
    /// Found with another shape or dtype.
    pub mismatched: Vec<Mismatch>,
}

/// A tensor that is not what its name promises.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// The shape and dtype it should have had, such as `f32[64, 2]`.
    pub expected: String,
    /// What it had.
    pub found: String,
}

impl LoadReport {
    /// Whether everything expected was loaded, and nothing else was there.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// The tensor called `name`, if it is there and as expected; the report says what became of it.
    pub(crate) fn take<'a>(
        &mut self,
        tensors: &'a BTreeMap<String, Tensor>,
        name: String,
        expected: Meta,
    ) -> Option<&'a Tensor> {
        match tensors.get(&name) {
            Some(tensor) if tensor.meta() == expected => {
                self.loaded.push(name);
                return Some(tensor);
            }
            Some(tensor) => self.mismatched.push(Mismatch {
                name,
                expected: expected.to_string(),
                found: tensor.meta().to_string(),
            }),
            None => self.missing.push(name),
        }
        None
    }

    /// Lists the tensors that nobody has asked for as unexpected.
    pub(crate) fn reject_others(&mut self, tensors: &BTreeMap<String, Tensor>) {
        let mismatched = self.mismatched.iter().map(|mismatch| &mismatch.name);
        let asked: std::collections::BTreeSet<&String> = self.loaded.iter().chain(mismatched).collect();
        self.unexpected.extend(tensors.keys().filter(|name| !asked.contains(name)).cloned());
    }

    /// Adds another report, whose names get a prefix.
    pub(crate) fn absorb(&mut self, prefix: &str, other: LoadReport) {
        let named = |name: String| format!("{prefix}{name}");
        self.loaded.extend(other.loaded.into_iter().map(named));
        self.missing.extend(other.missing.into_iter().map(named));
        self.unexpected.extend(other.unexpected.into_iter().map(named));
        self.mismatched.extend(other.mismatched.into_iter().map(|m| Mismatch { name: named(m.name), ..m }));
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = |n: usize| if n == 1 { "tensor" } else { "tensors" };
        write!(f, "{} {} loaded", self.loaded.len(), tensors(self.loaded.len()))?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(f, "; {what}: {}", names.join(", "))?;
            }
        }
        for Mismatch { name, expected, found } in &self.mismatched {
            write!(f, "; {name}: expected {expected}, found {found}")?;
        }
        Ok(())
    }
}
