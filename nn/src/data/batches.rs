//! In which order samples are seen, and how many at a time.

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

use super::Dataset;
use crate::{Error, Result};

/// Shuffled mini-batches: every epoch is a permutation of the samples, a function of the key and the epoch's number
/// alone, cut into runs of the batch size. The last batch is shorter if the samples do not divide evenly.
///
/// ```
/// use limpid_nn::data::Batches;
/// use limpid_tensor::rng::Key;
/// # fn main() -> limpid_nn::Result<()> {
/// let batches = Batches::new(10, 4, Key::new(0))?;
/// let sizes: Vec<usize> = batches.indices(0)?.map(|indices| indices.elements()).collect();
/// assert_eq!(sizes, [4, 4, 2]);
/// assert_eq!(batches.drop_last()?.per_epoch(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Batches {
    samples: usize,
    size: usize,
    drop_last: bool,
    key: Key,
}

/// Some samples of a data set.
#[derive(Clone)]
pub struct Batch {
    /// `[B, D]`.
    pub features: Tensor,
    /// `[B]`, i64.
    pub labels: Tensor,
}

impl Batches {
    /// Batches of `size` out of `samples`. A size beyond the samples makes one batch of all of them.
    ///
    /// # Errors
    /// If either is 0.
    pub fn new(samples: usize, size: usize, key: Key) -> Result<Batches> {
        for (name, value) in [("samples", samples), ("batch size", size)] {
            if value == 0 {
                return Err(Error::argument(name, "at least 1", value));
            }
        }
        Ok(Batches { samples, size, drop_last: false, key })
    }

    /// The same with the last batch left out if it is short. Which samples that leaves out differs by epoch.
    ///
    /// # Errors
    /// If no batch would be left.
    pub fn drop_last(self) -> Result<Batches> {
        if self.size > self.samples {
            let expected = format!("at most {}, all samples, to leave out a short batch", self.samples);
            return Err(Error::argument("batch size", expected, self.size));
        }
        Ok(Batches { drop_last: true, ..self })
    }

    /// The number of batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        if self.drop_last { self.samples / self.size } else { self.samples.div_ceil(self.size) }
    }

    /// The indices (i64) of each batch of an epoch, in order.
    ///
    /// # Errors
    /// If the device cannot draw the permutation.
    pub fn indices(&self, epoch: u64) -> Result<impl Iterator<Item = Tensor> + use<>> {
        let key = self.key.fold(epoch);
        let order = Tensor::random(Distribution::Permutation, [self.samples], DType::I64, key)?;
        let Batches { samples, size, .. } = *self;
        let cut = move |batch: usize| order.slice(0, batch * size, samples.min((batch + 1) * size), 1);
        Ok((0..self.per_epoch()).map(cut))
    }

    /// Each batch of an epoch, in order, gathered when it is asked for.
    ///
    /// ```
    /// use limpid_nn::data::{Batches, two_moons};
    /// use limpid_tensor::{DType, rng::Key};
    /// # fn main() -> limpid_nn::Result<()> {
    /// let moons = two_moons(100, 0.1, DType::F32, Key::new(1))?;
    /// let batches = Batches::new(moons.len(), 32, Key::new(2))?;
    /// for batch in batches.of(&moons, 0)? {
    ///     let batch = batch?;
    ///     assert_eq!(**batch.features.shape(), [batch.labels.elements(), 2]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the device cannot draw the permutation, or gather a batch.
    ///
    /// # Panics
    /// If the data set has another number of samples than these batches.
    #[track_caller]
    pub fn of<'a>(
        &self,
        data: &'a Dataset,
        epoch: u64,
    ) -> Result<impl Iterator<Item = Result<Batch>> + use<'a>> {
        let (samples, found) = (self.samples, data.len());
        assert!(found == samples, "batches of {samples} samples asked for a data set of {found}");
        let gather = |indices| data.gather(&indices).map(|(features, labels)| Batch { features, labels });
        Ok(self.indices(epoch)?.map(gather))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(batches: &Batches, epoch: u64) -> Vec<Vec<i64>> {
        batches.indices(epoch).unwrap().map(|batch| batch.to_vec().unwrap()).collect()
    }

    #[test]
    fn an_epoch_covers_each_sample_once() {
        for samples in 1..=20 {
            for size in 1..=22 {
                let batches = Batches::new(samples, size, Key::new(5)).unwrap();
                let epoch = indices(&batches, 3);
                assert_eq!(epoch.len(), batches.per_epoch());
                assert!(epoch[..epoch.len() - 1].iter().all(|batch| batch.len() == size));
                let mut seen = epoch.concat();
                seen.sort_unstable();
                assert_eq!(seen, (0..samples as i64).collect::<Vec<_>>());

                let Ok(full) = batches.drop_last() else {
                    assert!(size > samples);
                    continue;
                };
                assert_eq!(full.per_epoch(), samples / size);
                assert_eq!(
                    indices(&full, 3),
                    epoch[..samples / size],
                    "the same batches but for the short one"
                );
            }
        }
    }

    #[test]
    fn the_order_is_a_function_of_key_and_epoch() {
        let batches = Batches::new(100, 32, Key::new(5)).unwrap();
        let first = indices(&batches, 0);
        assert_eq!(first, indices(&batches, 0));
        assert_ne!(first.concat(), (0..100).collect::<Vec<i64>>());
        assert_ne!(first, indices(&batches, 1));
        assert_ne!(first, indices(&Batches::new(100, 32, Key::new(6)).unwrap(), 0));
    }

    #[test]
    fn a_batch_pairs_features_with_their_labels() {
        let features: Vec<f64> = (0..14).map(f64::from).collect();
        let labels: Vec<i64> = (0..7).collect();
        let names: Vec<String> = labels.iter().map(i64::to_string).collect();
        let data = Dataset::new(
            Tensor::from_vec(features, [7, 2]),
            Tensor::from_vec(labels, [7]),
            &["x", "y"],
            &names,
        )
        .unwrap();
        let batches = Batches::new(7, 3, Key::new(0)).unwrap();
        for (batch, indices) in batches.of(&data, 9).unwrap().zip(batches.indices(9).unwrap()) {
            let (batch, indices) = (batch.unwrap(), indices.to_vec::<i64>().unwrap());
            assert_eq!(batch.labels.to_vec::<i64>().unwrap(), indices);
            let rows: Vec<f64> =
                indices.iter().flat_map(|&i| [2.0 * i as f64, 2.0 * i as f64 + 1.0]).collect();
            assert_eq!(batch.features.to_vec::<f64>().unwrap(), rows);
            assert_eq!(**batch.features.shape(), [indices.len(), 2]);
        }
    }

    #[test]
    fn sizes_that_make_no_batch_are_errors() {
        let error = |batches: Result<Batches>| batches.unwrap_err().to_string();
        assert_eq!(error(Batches::new(0, 4, Key::new(0))), "samples: expected at least 1, found 0");
        assert_eq!(error(Batches::new(4, 0, Key::new(0))), "batch size: expected at least 1, found 0");
        assert_eq!(
            error(Batches::new(4, 5, Key::new(0)).unwrap().drop_last()),
            "batch size: expected at most 4, all samples, to leave out a short batch, found 5"
        );
    }

    #[test]
    #[should_panic(expected = "batches of 4 samples asked for a data set of 0")]
    fn batches_belong_to_a_size() {
        let (features, labels) = (Tensor::zeros([0, 1], DType::F32), Tensor::zeros([0], DType::I64));
        let empty = Dataset::new(features, labels, &["x"], &["0", "1"]).unwrap();
        let _ = Batches::new(4, 2, Key::new(0)).unwrap().of(&empty, 0);
    }
}
