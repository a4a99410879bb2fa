//! Which samples are trained on and which are held back.

use std::collections::BTreeMap;

use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{DType, Tensor};

use crate::{Error, Result};

/// Splits samples into a training and a validation part with the proportions of the classes kept: the indices
/// (i64, in random order) of each.
///
/// Of N samples, `T = round(train_fraction·N)` are for training. Class c with `n_c` samples is due `q = n_c·T/N` of
/// them and gets `⌊q⌋`; what is left of T goes, one each, to the classes with the largest remainders `q − ⌊q⌋` (the
/// lower label first if they are equal). That is the rule of scikit-learn's stratified split, but for its `T`,
/// which is rounded down, and its ties, which are drawn. Then every class keeps at least one sample on either
/// side, which may move the total by one for each class that would have had none.
///
/// Each index is in exactly one part. Labels (i64, `[N]`) may be any integers.
///
/// ```
/// use limpid_nn::data::stratified_split;
/// use limpid_tensor::{Tensor, rng::Key};
/// let labels = Tensor::from_vec(vec![0i64, 0, 0, 0, 0, 0, 1, 1, 1, 1], [10]);
/// let (train, validation) = stratified_split(&labels, 0.5, Key::new(3)).unwrap();
/// let ones = labels.gather(0, &train).unwrap().to_vec::<i64>().unwrap().iter().sum::<i64>();
/// assert_eq!((train.elements(), validation.elements(), ones), (5, 5, 2));
/// ```
///
/// # Errors
/// If `train_fraction` is not between 0 and 1, or a class has fewer than 2 samples.
///
/// # Panics
/// If `labels` is not an i64 tensor of rank 1.
#[track_caller]
pub fn stratified_split(labels: &Tensor, train_fraction: f64, key: Key) -> Result<(Tensor, Tensor)> {
    assert!(labels.shape().len() == 1, "stratified_split: expected labels [N], found {}", labels.shape());
    if !(train_fraction > 0.0 && train_fraction < 1.0) {
        return Err(Error::argument("train fraction", "a number between 0 and 1", train_fraction));
    }
    let labels = labels.to_vec::<i64>()?;
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for &label in &labels {
        *counts.entry(label).or_default() += 1;
    }
    if let Some((class, &samples)) = counts.iter().find(|&(_, &n)| n < 2) {
        return Err(Error::TooFewSamples { class: class.to_string(), samples });
    }
    let mut open = training_quota(&counts, labels.len(), train_fraction);
    let order = Tensor::random(Distribution::Permutation, [labels.len()], DType::I64, key)?;
    let (train, validation): (Vec<i64>, Vec<i64>) = order.to_vec::<i64>()?.into_iter().partition(|&i| {
        let open = open.entry(labels[i as usize]).or_default();
        let take = *open > 0;
        *open -= usize::from(take);
        take
    });
    let (trained, held) = (train.len(), validation.len());
    Ok((Tensor::from_vec(train, [trained]), Tensor::from_vec(validation, [held])))
}

/// How many samples of each class are for training. In whole numbers, so that equal remainders are equal.
fn training_quota(
    counts: &BTreeMap<i64, usize>,
    samples: usize,
    train_fraction: f64,
) -> BTreeMap<i64, usize> {
    let total = (train_fraction * samples as f64).round() as usize;
    let mut quota: BTreeMap<i64, usize> = counts.iter().map(|(&c, &n)| (c, n * total / samples)).collect();
    let mut by_remainder: Vec<i64> = counts.keys().copied().collect();
    by_remainder.sort_by_key(|c| std::cmp::Reverse(counts[c] * total % samples));
    let left = total - quota.values().sum::<usize>();
    for class in by_remainder.into_iter().take(left) {
        quota.entry(class).and_modify(|n| *n += 1);
    }
    for (class, n) in &mut quota {
        *n = (*n).clamp(1, counts[class] - 1);
    }
    quota
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels 0, 1, … with these counts, interleaved so that the order of the input is not that of the classes.
    fn labels(counts: &[usize]) -> Vec<i64> {
        (0..*counts.iter().max().unwrap())
            .flat_map(|i| (0..counts.len()).filter(move |&c| i < counts[c]).map(|c| c as i64))
            .collect()
    }

    fn split(labels: &[i64], fraction: f64, seed: u64) -> (Vec<i64>, Vec<i64>) {
        let labels = Tensor::from_slice(labels, [labels.len()]);
        let (train, validation) = stratified_split(&labels, fraction, Key::new(seed)).unwrap();
        (train.to_vec().unwrap(), validation.to_vec().unwrap())
    }

    fn counts_of(labels: &[i64], part: &[i64], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        part.iter().for_each(|&i| counts[labels[i as usize] as usize] += 1);
        counts
    }

    #[test]
    fn parts_are_disjoint_complete_and_in_proportion() {
        for a in 2..14 {
            for b in (2..40).step_by(3) {
                for c in [2, 5, 31] {
                    for fraction in [0.01, 0.3, 0.5, 0.7, 0.8, 0.99] {
                        let (counts, total) = ([a, b, c], a + b + c);
                        let labels = labels(&counts);
                        let (train, validation) = split(&labels, fraction, 1);

                        let mut all = [train.clone(), validation.clone()].concat();
                        all.sort_unstable();
                        assert_eq!(all, (0..total as i64).collect::<Vec<_>>());

                        let wanted = (fraction * total as f64).round();
                        for (n, trained) in counts.into_iter().zip(counts_of(&labels, &train, 3)) {
                            assert!(trained >= 1 && trained < n, "{counts:?} {fraction}: {trained} of {n}");
                            let due = (n as f64 * wanted / total as f64).clamp(1.0, n as f64 - 1.0);
                            assert!(
                                (trained as f64 - due).abs() < 1.0,
                                "{counts:?} {fraction}: {trained}, {due}"
                            );
                        }
                        if (0.3..=0.7).contains(&fraction) && a.min(b).min(c) >= 4 {
                            assert_eq!(train.len() as f64, wanted, "no class is at its limit: {counts:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rounding_is_by_largest_remainder_then_lowest_label() {
        // T = 7 of 14: 5·7/14 = 2.5, 5·7/14 = 2.5, 4·7/14 = 2: the one left over goes to class 0.
        let even = labels(&[5, 5, 4]);
        assert_eq!(counts_of(&even, &split(&even, 0.5, 0).0, 3), [3, 2, 2]);
        // T = round(7.7) = 8 of 11: 3·8/11 = 2.18, 8·8/11 = 5.82.
        let uneven = labels(&[3, 8]);
        assert_eq!(counts_of(&uneven, &split(&uneven, 0.7, 0).0, 2), [2, 6]);
        // T = 98 of 100: both of class 0 would be 1.96 → 2, but one has to stay.
        let rare = labels(&[2, 98]);
        assert_eq!(counts_of(&rare, &split(&rare, 0.98, 0).0, 2), [1, 96]);
    }

    #[test]
    fn the_key_decides_which_and_in_which_order() {
        let labels = labels(&[50, 50]);
        assert_eq!(split(&labels, 0.7, 1), split(&labels, 0.7, 1));
        let (train, _) = split(&labels, 0.7, 1);
        let (other, _) = split(&labels, 0.7, 2);
        let sorted = |mut part: Vec<i64>| {
            part.sort_unstable();
            part
        };
        assert_ne!(train, sorted(train.clone()));
        assert_ne!(sorted(train), sorted(other));
    }

    #[test]
    fn labels_may_be_any_integers() {
        let (train, validation) = split(&[-7, 1 << 40, -7, 1 << 40], 0.5, 0);
        assert_eq!((train.len(), validation.len()), (2, 2));
        assert_eq!(train.iter().map(|i| i % 2).sum::<i64>(), 1);
    }

    #[test]
    fn what_cannot_be_split_says_why() {
        let error = |labels: &[i64], fraction: f64| {
            let labels = Tensor::from_slice(labels, [labels.len()]);
            stratified_split(&labels, fraction, Key::new(0)).expect_err("no split").to_string()
        };
        assert_eq!(
            error(&[0, 0, 1], 0.5),
            "class 1: expected at least 2 samples, one for either side of the split, found 1"
        );
        for (fraction, found) in [(0.0, "0"), (1.0, "1"), (-0.5, "-0.5"), (f64::NAN, "NaN")] {
            assert_eq!(
                error(&[0, 0, 1, 1], fraction),
                format!("train fraction: expected a number between 0 and 1, found {found}")
            );
        }
    }
}
