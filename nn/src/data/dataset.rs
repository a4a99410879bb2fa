//! What a labelled data set is.

use std::collections::BTreeSet;
use std::fmt;

use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Tensor};

use super::csv::{Label, is_number};
use super::stratified_split;
use crate::{Error, Result};

/// Samples with one class each: features `[N, D]` of a float dtype and labels `[N]` of i64 in `0..classes`.
///
/// ```
/// use limpid_nn::data::Dataset;
/// use limpid_tensor::Tensor;
/// # fn main() -> limpid_nn::Result<()> {
/// let features = Tensor::from_vec(vec![5.1f32, 3.5, 6.2, 2.9, 4.9, 3.0], [3, 2]);
/// let labels = Tensor::from_vec(vec![0i64, 1, 0], [3]);
/// let flowers = Dataset::new(features, labels, &["length", "width"], &["setosa", "versicolor"])?;
/// assert_eq!((flowers.len(), flowers.classes()), (3, 2));
/// assert_eq!(flowers.class_names()[1], "versicolor");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Dataset {
    features: Tensor,
    labels: Tensor,
    feature_names: Vec<String>,
    class_names: Vec<String>,
}

impl Dataset {
    /// A data set from features `[N, D]`, labels `[N]`, a name for each of the D features and one for each class.
    ///
    /// Names are such as a CSV file could hold: not empty, without spaces around them; a feature's is no number, a
    /// class's is either no number or a whole one such as `0`.
    ///
    /// # Errors
    /// If the labels cannot be read from their device.
    ///
    /// # Panics
    /// If shapes or dtypes are others than these, the names are not as many as they should be or not such, two
    /// classes have the same name, or a label is outside `0..classes`.
    #[track_caller]
    pub fn new(
        features: Tensor,
        labels: Tensor,
        feature_names: &[impl AsRef<str>],
        class_names: &[impl AsRef<str>],
    ) -> Result<Dataset> {
        let (shape, labels_shape) = (features.shape(), labels.shape());
        assert!(
            shape.len() == 2 && **labels_shape == [shape[0]],
            "Dataset: expected features [N, D] and labels [N], found {shape} and {labels_shape}"
        );
        assert!(features.dtype().is_float(), "Dataset: features must be floats, found {}", features.dtype());
        assert!(labels.dtype() == DType::I64, "Dataset: labels must be i64, found {}", labels.dtype());
        assert!(
            feature_names.len() == shape[1],
            "Dataset: {} names for the {} features of {shape}",
            feature_names.len(),
            shape[1]
        );
        let feature_names: Vec<String> = feature_names.iter().map(|n| n.as_ref().to_owned()).collect();
        for name in &feature_names {
            let is_name = !name.is_empty() && name.trim() == name && !is_number(name);
            assert!(is_name, "Dataset: {name:?} cannot be the name of a feature");
        }
        let class_names: Vec<String> = class_names.iter().map(|n| n.as_ref().to_owned()).collect();
        for name in &class_names {
            let is_label = Label::parse(name).is_ok_and(|label| label.to_string() == *name);
            assert!(is_label, "Dataset: {name:?} cannot be the name of a class");
        }
        let distinct = class_names.iter().collect::<BTreeSet<_>>().len();
        assert!(distinct == class_names.len(), "Dataset: two classes have the same name in {class_names:?}");
        let classes = class_names.len() as i64;
        for label in labels.to_vec::<i64>()? {
            assert!((0..classes).contains(&label), "Dataset: label {label} is outside 0..{classes}");
        }
        Ok(Dataset { features, labels, feature_names, class_names })
    }

    /// The features, `[N, D]`.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// The class of each sample, `[N]`, i64.
    pub fn labels(&self) -> &Tensor {
        &self.labels
    }

    /// The name of each feature.
    pub fn feature_names(&self) -> &[String] {
        &self.feature_names
    }

    /// The name of each class: `class_names()[k]` is what label `k` stands for.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The number of classes. A subset may lack samples of some.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.labels.elements()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples at these indices (i64, `[M]`), in their order.
    ///
    /// ```
    /// use limpid_nn::data::two_moons;
    /// use limpid_tensor::{DType, Tensor, rng::Key};
    /// let moons = two_moons(100, 0.1, DType::F32, Key::new(1)).unwrap();
    /// let first_and_last = moons.select(&Tensor::from_vec(vec![0i64, 99], [2])).unwrap();
    /// assert_eq!((first_and_last.len(), first_and_last.classes()), (2, 2));
    /// ```
    ///
    /// # Errors
    /// If an index is negative or beyond the last sample.
    ///
    /// # Panics
    /// If `indices` is not an i64 tensor of rank 1.
    #[track_caller]
    pub fn select(&self, indices: &Tensor) -> Result<Dataset> {
        assert!(indices.shape().len() == 1, "select: expected indices [M], found {}", indices.shape());
        let (features, labels) = self.gather(indices)?;
        Ok(Dataset { features, labels, ..self.clone() })
    }

    /// Features and labels of the samples at these indices.
    pub(super) fn gather(&self, indices: &Tensor) -> Result<(Tensor, Tensor)> {
        let indices = indices.to(self.labels.device())?;
        let (samples, width) = (indices.elements(), self.features.shape()[1]);
        let features = self.features.gather(0, &indices.reshape([samples, 1])?.expand([samples, width]))?;
        Ok((features, self.labels.gather(0, &indices)?))
    }

    /// The same samples with other features, e.g. standardised ones.
    ///
    /// # Panics
    /// If they differ in shape or are not floats.
    #[track_caller]
    pub fn with_features(&self, features: Tensor) -> Dataset {
        let (old, new) = (self.features.shape(), features.shape());
        assert!(old == new, "with_features: expected shape {old}, found {new}");
        let dtype = features.dtype();
        assert!(dtype.is_float(), "with_features: features must be floats, found {dtype}");
        Dataset { features, ..self.clone() }
    }

    /// Two parts that keep the proportions of the classes: see [`stratified_split`].
    ///
    /// ```
    /// use limpid_nn::data::two_moons;
    /// use limpid_tensor::{DType, rng::Key};
    /// let moons = two_moons(100, 0.1, DType::F32, Key::new(1)).unwrap();
    /// let (train, validation) = moons.split(0.8, Key::new(2)).unwrap();
    /// assert_eq!((train.len(), validation.len()), (80, 20));
    /// ```
    ///
    /// # Errors
    /// As [`stratified_split`], with the class's name.
    pub fn split(&self, train_fraction: f64, key: Key) -> Result<(Dataset, Dataset)> {
        let named = |error| match error {
            Error::TooFewSamples { class, samples } => {
                let name = class.parse::<usize>().ok().and_then(|class| self.class_names.get(class).cloned());
                Error::TooFewSamples { class: name.unwrap_or(class), samples }
            }
            other => other,
        };
        let (train, validation) = stratified_split(&self.labels, train_fraction, key).map_err(named)?;
        Ok((self.select(&train)?, self.select(&validation)?))
    }
}

/// What it holds, not the samples themselves.
impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("samples", &self.len())
            .field("dtype", &self.features.dtype())
            .field("feature_names", &self.feature_names)
            .field("class_names", &self.class_names)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Dataset {
        let features = Tensor::from_vec(vec![0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0], [3, 2]);
        let labels = Tensor::from_vec(vec![0i64, 1, 1], [3]);
        Dataset::new(features, labels, &["x", "y"], &["no", "yes"]).unwrap()
    }

    #[test]
    fn select_takes_rows_in_order_and_may_repeat_them() {
        let part = three().select(&Tensor::from_vec(vec![2i64, 0, 2], [3])).unwrap();
        assert_eq!(part.features().to_vec::<f32>().unwrap(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        assert_eq!(part.labels().to_vec::<i64>().unwrap(), [1, 0, 1]);
        assert_eq!(
            (part.feature_names(), part.class_names()),
            (three().feature_names(), three().class_names())
        );
        let none = three().select(&Tensor::from_vec(Vec::<i64>::new(), [0])).unwrap();
        assert!(none.is_empty() && none.classes() == 2);
        assert!(three().select(&Tensor::from_vec(vec![3i64], [1])).is_err());
    }

    #[test]
    fn other_features_keep_the_labels() {
        let data = three().with_features(Tensor::zeros([3, 2], DType::F64));
        assert_eq!(data.features().dtype(), DType::F64);
        assert_eq!(data.labels().to_vec::<i64>().unwrap(), [0, 1, 1]);
    }

    #[test]
    fn debug_shows_what_it_holds() {
        assert_eq!(
            format!("{:?}", three()),
            r#"Dataset { samples: 3, dtype: F32, feature_names: ["x", "y"], class_names: ["no", "yes"] }"#
        );
    }

    #[test]
    fn a_split_names_the_class_that_is_too_small() {
        assert_eq!(
            three().split(0.5, Key::new(0)).unwrap_err().to_string(),
            "class no: expected at least 2 samples, one for either side of the split, found 1"
        );
    }

    #[test]
    #[should_panic(expected = "expected features [N, D] and labels [N], found [3, 2] and [2]")]
    fn as_many_labels_as_samples() {
        let _ = Dataset::new(
            Tensor::zeros([3, 2], DType::F32),
            Tensor::zeros([2], DType::I64),
            &["x", "y"],
            &["0", "1"],
        );
    }

    #[test]
    #[should_panic(expected = "label 2 is outside 0..2")]
    fn labels_have_a_class() {
        let labels = Tensor::from_vec(vec![0i64, 2], [2]);
        let _ = Dataset::new(Tensor::zeros([2, 1], DType::F32), labels, &["x"], &["0", "1"]);
    }

    #[test]
    fn names_are_such_as_a_file_could_hold() {
        let with = |feature: &str, classes: [&str; 2]| {
            let make = || {
                let (features, labels) = (Tensor::zeros([1, 1], DType::F32), Tensor::zeros([1], DType::I64));
                Dataset::new(features, labels, &[feature], &classes).unwrap()
            };
            std::panic::catch_unwind(make).is_ok()
        };
        assert!(with("x 0", ["10", "9"]) && with("x", ["left", "right"]));
        for feature in ["", " x", "1.5", "nan"] {
            assert!(!with(feature, ["0", "1"]), "{feature:?}");
        }
        for class in ["", "0 ", "-1", "0.5", "1.0", "inf", "0"] {
            assert!(!with("x", ["0", class]), "{class:?}");
        }
    }
}
