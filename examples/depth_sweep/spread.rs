//! What several seeds have in common: the median, and how far they are apart.

use limpid::nn::residual::Variant;

use crate::run::{Gain, Run, Trained};

/// The smallest, the median and the largest of some numbers.
#[derive(Clone, Copy)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// `None` if there are no numbers.
    fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&low, &high) = (values.first()?, values.last()?);
        let half = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[half - 1] + values[half]) / 2.0,
            _ => values[half],
        };
        Some(Spread { low, median, high })
    }
}

/// The runs of one network with different seeds.
pub struct Group<'a>(&'a [Run]);

impl Group<'_> {
    /// # Panics
    /// If there is no run.
    pub fn new(runs: &[Run]) -> Group<'_> {
        assert!(!runs.is_empty(), "a group has at least one run");
        Group(runs)
    }

    pub fn variant(&self) -> Variant {
        self.0[0].variant
    }

    pub fn depth(&self) -> usize {
        self.0[0].depth
    }

    pub fn runs(&self) -> usize {
        self.0.len()
    }

    pub fn diverged(&self) -> usize {
        self.0.iter().filter(|run| run.diverged.is_some()).count()
    }

    /// Over all runs.
    pub fn before(&self, of: fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(of))
    }

    /// Over the runs that did not diverge.
    pub fn after(&self, of: fn(&Trained) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|run| of(run.trained.as_ref()?)))
    }

    pub fn accuracy(&self) -> Option<Spread> {
        self.after(|trained| Some(trained.accuracy))
    }

    /// A number of the composite map, its mixing perturbed and before training.
    pub fn perturbed(&self, of: fn(&Gain) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|run| of(run.perturbed.as_ref()?)))
    }

    /// The same as it was learned.
    pub fn learned(&self, of: fn(&Gain) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|run| of(run.trained.as_ref()?.gain.as_ref()?)))
    }
}
