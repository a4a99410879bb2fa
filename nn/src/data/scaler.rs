//! Features brought to mean 0 and standard deviation 1.

use limpid_tensor::{DType, Map, Tensor};

use crate::{Error, Result};

/// `z = (x − mean)/std`, feature by feature, with the statistics of the training part.
///
/// The statistics are those of the population, `std = √(Σ(x − mean)²/N)`, as in scikit-learn's `StandardScaler`,
/// computed in two passes and kept in f64. A feature that is constant, up to rounding, has `std = 1`.
///
/// ```
/// use limpid_nn::data::StandardScaler;
/// use limpid_tensor::Tensor;
/// # fn main() -> limpid_nn::Result<()> {
/// let x = Tensor::from_vec(vec![1.0f64, 7.0, 3.0, 7.0], [2, 2]);
/// let scaler = StandardScaler::fit(&x)?;
/// let z = scaler.transform(&x)?;
/// assert_eq!(z.to_vec::<f64>()?, [-1.0, 0.0, 1.0, 0.0]);
/// assert_eq!(scaler.inverse(&z)?.to_vec::<f64>()?, [1.0, 7.0, 3.0, 7.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StandardScaler {
    mean: Tensor,
    std: Tensor,
}

impl StandardScaler {
    /// Mean and standard deviation of each column of `features` (float, `[N, D]`).
    ///
    /// # Errors
    /// If there are no samples.
    ///
    /// # Panics
    /// If `features` is not a float tensor of rank 2.
    #[track_caller]
    pub fn fit(features: &Tensor) -> Result<StandardScaler> {
        let shape = features.shape();
        assert!(shape.len() == 2, "StandardScaler: expected features [N, D], found {shape}");
        assert!(features.dtype().is_float(), "StandardScaler: features are {}", features.dtype());
        let [samples, width] = [shape[0], shape[1]];
        if samples == 0 {
            return Err(Error::argument("features", "at least one sample to take statistics of", "none"));
        }
        let values = features.to_f64_vec()?;
        let average = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            let sum = |column| values.iter().skip(column).step_by(width).map(|&x| f(column, x)).sum::<f64>();
            (0..width).map(|column| sum(column) / samples as f64).collect()
        };
        let mean = average(&|_, x| x);
        let variance = average(&|column, x| (x - mean[column]).powi(2));
        let deviation = |(&variance, &mean): (&f64, &f64)| {
            if is_rounding(variance, mean, samples) { 1.0 } else { variance.sqrt() }
        };
        let std: Vec<f64> = variance.iter().zip(&mean).map(deviation).collect();
        Ok(StandardScaler { mean: Tensor::from_vec(mean, [width]), std: Tensor::from_vec(std, [width]) })
    }

    /// The mean of each feature, `[D]`, f64.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The standard deviation of each feature, `[D]`, f64.
    pub fn std(&self) -> &Tensor {
        &self.std
    }

    /// `(x − mean)/std`, in f64 and then rounded to the dtype of `x`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If `x` is not a float tensor `[.., D]`.
    #[track_caller]
    pub fn transform(&self, x: &Tensor) -> Result<Tensor> {
        let wide = self.widen("transform", x)?;
        let centred = Tensor::map(Map::Sub, &[&wide, &self.mean.to(x.device())?])?;
        Ok(Tensor::map(Map::Div, &[&centred, &self.std.to(x.device())?])?.cast(x.dtype())?)
    }

    /// `z·std + mean`, in f64 and then rounded to the dtype of `z`: undoes [`transform`](Self::transform).
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If `z` is not a float tensor `[.., D]`.
    #[track_caller]
    pub fn inverse(&self, z: &Tensor) -> Result<Tensor> {
        let wide = self.widen("inverse", z)?;
        let scaled = Tensor::map(Map::Mul, &[&wide, &self.std.to(z.device())?])?;
        Ok(Tensor::map(Map::Add, &[&scaled, &self.mean.to(z.device())?])?.cast(z.dtype())?)
    }

    /// The statistics by name, to be saved beside the weights they belong to.
    pub fn to_tensors(&self) -> [(&'static str, Tensor); 2] {
        [("mean", self.mean.clone()), ("std", self.std.clone())]
    }

    /// A scaler from the statistics that [`to_tensors`](Self::to_tensors) gave, found by name.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use limpid_nn::data::StandardScaler;
    /// use limpid_tensor::Tensor;
    /// # fn main() -> limpid_nn::Result<()> {
    /// let scaler = StandardScaler::fit(&Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3, 1]))?;
    /// let saved: BTreeMap<&str, Tensor> = scaler.to_tensors().into();
    /// let restored = StandardScaler::from_tensors(|name| saved.get(name).cloned())?;
    /// assert_eq!(restored.mean().to_vec::<f64>()?, [2.0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If one is missing, is not a float tensor `[D]` of the same size as the other, or holds a value that is not
    /// finite or a standard deviation that is not positive.
    pub fn from_tensors(find: impl Fn(&str) -> Option<Tensor>) -> Result<StandardScaler> {
        let statistic = |name: &'static str, argument: &'static str| -> Result<Tensor> {
            let error = |found: String| Error::argument(argument, "a float tensor [D]", found);
            let tensor = find(name).ok_or_else(|| error("none".into()))?;
            if tensor.shape().len() != 1 || !tensor.dtype().is_float() {
                return Err(error(format!("{} {}", tensor.dtype(), tensor.shape())));
            }
            Ok(tensor.cast(DType::F64)?)
        };
        let mean = statistic("mean", "scaler mean")?;
        let std = statistic("std", "scaler std")?;
        if mean.shape() != std.shape() {
            let expected = format!("the shape of the mean, {}", mean.shape());
            return Err(Error::argument("scaler std", expected, std.shape()));
        }
        if let Some(value) = mean.to_vec::<f64>()?.into_iter().find(|v| !v.is_finite()) {
            return Err(Error::argument("scaler mean", "finite numbers", value));
        }
        if let Some(value) = std.to_vec::<f64>()?.into_iter().find(|v| !(v.is_finite() && *v > 0.0)) {
            return Err(Error::argument("scaler std", "finite positive numbers", value));
        }
        Ok(StandardScaler { mean, std })
    }

    /// `x` in f64, if its last axis is the features'.
    #[track_caller]
    fn widen(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (shape, width) = (x.shape(), self.mean.elements());
        assert!(shape.last() == Some(&width), "{name}: expected [.., {width}], found {shape}");
        assert!(x.dtype().is_float(), "{name}: features must be floats, found {}", x.dtype());
        Ok(x.cast(DType::F64)?)
    }
}

/// Whether a variance is no more than what rounding makes of a constant: the bound of scikit-learn's scaler,
/// `N·ε·variance + (N·ε·mean)²`.
fn is_rounding(variance: f64, mean: f64, samples: usize) -> bool {
    let error = samples as f64 * f64::EPSILON;
    variance <= error * variance + (error * mean).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Column `c` of row `i`: three scales, far from 0.
    fn features(samples: usize) -> Vec<f64> {
        (0..samples)
            .flat_map(|i| {
                let wave = libm::sin(i as f64 * 0.7);
                [1e6 + wave, 1e-3 * wave * wave - 5.0, 40.0 * i as f64]
            })
            .collect()
    }

    #[test]
    fn transformed_features_have_mean_0_and_std_1() {
        for samples in [2, 3, 10, 701] {
            let x = Tensor::from_vec(features(samples), [samples, 3]);
            let z = StandardScaler::fit(&x).unwrap().transform(&x).unwrap();
            let z = StandardScaler::fit(&z).unwrap();
            for (mean, std) in
                z.mean().to_vec::<f64>().unwrap().into_iter().zip(z.std().to_vec::<f64>().unwrap())
            {
                assert!(mean.abs() < 1e-8 && (std - 1.0).abs() < 1e-8, "{samples}: {mean}, {std}");
            }
        }
    }

    #[test]
    fn inverse_undoes_transform() {
        let values = features(50);
        let x = Tensor::from_slice(&values, [50, 3]);
        let scaler = StandardScaler::fit(&x).unwrap();
        let back = scaler.inverse(&scaler.transform(&x).unwrap()).unwrap();
        let mean = scaler.mean().to_vec::<f64>().unwrap();
        for (i, (a, b)) in back.to_vec::<f64>().unwrap().into_iter().zip(values).enumerate() {
            // Half an ulp each for the difference, the quotient, the product and the sum.
            let bound = 2.0 * f64::EPSILON * (b.abs() + mean[i % 3].abs());
            assert!((a - b).abs() <= bound, "{a} for {b}");
        }
    }

    #[test]
    fn statistics_of_the_training_part_apply_to_others() {
        let scaler = StandardScaler::fit(&Tensor::from_vec(vec![1.0f32, 3.0], [2, 1])).unwrap();
        let z = scaler.transform(&Tensor::from_vec(vec![2.0f32, 3.0, 0.0], [3, 1])).unwrap();
        assert_eq!(z.to_vec::<f32>().unwrap(), [0.0, 1.0, -2.0]);
    }

    #[test]
    fn a_constant_column_is_centred_and_not_scaled() {
        // A tenth is no binary fraction: the mean of many is off by rounding, and the variance is not exactly 0.
        for samples in [1, 3, 1000] {
            let x = Tensor::full([samples, 1], 0.1, DType::F64);
            let scaler = StandardScaler::fit(&x).unwrap();
            assert_eq!(scaler.std().to_vec::<f64>().unwrap(), [1.0]);
            let z = scaler.transform(&x).unwrap().to_vec::<f64>().unwrap();
            assert!(z.into_iter().all(|z| z.abs() < 1e-13));
        }
    }

    #[test]
    fn a_saved_scaler_is_the_same_scaler() {
        let x = Tensor::from_vec(features(9), [9, 3]);
        let scaler = StandardScaler::fit(&x).unwrap();
        let saved = scaler.to_tensors();
        let find = |name: &str| saved.iter().find(|(n, _)| *n == name).map(|(_, t)| t.clone());
        let restored = StandardScaler::from_tensors(find).unwrap();
        let transformed = |scaler: &StandardScaler| scaler.transform(&x).unwrap().to_vec::<f64>().unwrap();
        assert_eq!(transformed(&restored), transformed(&scaler));
    }

    #[test]
    fn what_is_no_scaler_is_refused() {
        let error = |mean: Option<Tensor>, std: Option<Tensor>| {
            let find = |name: &str| if name == "mean" { mean.clone() } else { std.clone() };
            StandardScaler::from_tensors(find).err().expect("no scaler").to_string()
        };
        let row = |values: &[f64]| Some(Tensor::from_slice(values, [values.len()]));
        assert_eq!(error(row(&[0.0]), None), "scaler std: expected a float tensor [D], found none");
        assert_eq!(
            error(Some(Tensor::zeros([1, 2], DType::I64)), row(&[1.0])),
            "scaler mean: expected a float tensor [D], found i64 [1, 2]"
        );
        assert_eq!(
            error(row(&[0.0, 0.0]), row(&[1.0])),
            "scaler std: expected the shape of the mean, [2], found [1]"
        );
        assert_eq!(error(row(&[f64::NAN]), row(&[1.0])), "scaler mean: expected finite numbers, found NaN");
        assert_eq!(error(row(&[0.0]), row(&[0.0])), "scaler std: expected finite positive numbers, found 0");
    }

    #[test]
    fn no_samples_have_no_statistics() {
        let error = StandardScaler::fit(&Tensor::zeros([0, 2], DType::F32)).err().unwrap();
        assert_eq!(
            error.to_string(),
            "features: expected at least one sample to take statistics of, found none"
        );
    }

    #[test]
    #[should_panic(expected = "transform: expected [.., 2], found [4, 1]")]
    fn the_width_is_checked_and_not_broadcast() {
        let scaler = StandardScaler::fit(&Tensor::zeros([3, 2], DType::F32)).unwrap();
        let _ = scaler.transform(&Tensor::zeros([4, 1], DType::F32));
    }
}
