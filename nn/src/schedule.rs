//! The learning rate as a function of the step.

use std::f64::consts::PI;

/// The learning rate as a pure function of the step, counted from 0: nothing to carry along or to save.
///
/// ```
/// use limpid_nn::Schedule;
/// let schedule = Schedule::Cosine { peak: 0.1, floor: 0.001, steps: 900 }.with_warm_up(100);
/// assert_eq!(schedule.at(49), 0.05);
/// assert_eq!(schedule.at(100), 0.1);
/// assert_eq!(schedule.at(1000), 0.001);
/// ```
#[derive(Clone, PartialEq, Debug)]
pub enum Schedule {
    /// `η(t) = η`.
    Constant(f64),
    /// `η(t) = floor + (peak − floor)·(1 + cos(π·t/T))/2` for t < T, then `floor` (Loshchilov and Hutter, 2017,
    /// equation 5, without restarts).
    Cosine {
        /// η(0).
        peak: f64,
        /// η(T) and after.
        floor: f64,
        /// T.
        steps: u64,
    },
    /// `η(t) = initial·factor^⌊t/every⌋`; with `every` 0 it is `initial` throughout.
    StepDecay {
        /// η(0).
        initial: f64,
        /// From one stair to the next.
        factor: f64,
        /// The width of a stair.
        every: u64,
    },
    /// `η(t) = then(0)·(t + 1)/W` for t < W, and `then(t − W)` from there. No step is wasted on a rate of 0, and the
    /// last step of the ramp has the full rate.
    WarmUp {
        /// W.
        steps: u64,
        /// What follows.
        then: Box<Schedule>,
    },
}

impl Schedule {
    /// The same schedule, after a linear ramp of `steps` steps.
    pub fn with_warm_up(self, steps: u64) -> Schedule {
        Schedule::WarmUp { steps, then: Box::new(self) }
    }

    /// The learning rate of step `t`.
    pub fn at(&self, t: u64) -> f64 {
        match *self {
            Schedule::Constant(rate) => rate,
            Schedule::Cosine { floor, steps, .. } if t >= steps => floor,
            Schedule::Cosine { peak, floor, steps } => {
                floor + (peak - floor) * (1.0 + libm::cos(PI * (t as f64 / steps as f64))) / 2.0
            }
            Schedule::StepDecay { initial, factor, every } => {
                initial * libm::pow(factor, t.checked_div(every).unwrap_or(0) as f64)
            }
            Schedule::WarmUp { steps, ref then } if t < steps => then.at(0) * ((t + 1) as f64 / steps as f64),
            Schedule::WarmUp { steps, ref then } => then.at(t - steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_falls_from_peak_to_floor_along_its_formula() {
        let schedule = Schedule::Cosine { peak: 1.0, floor: 0.2, steps: 6 };
        let expected = [
            1.0,
            0.2 + 0.4 * (1.0 + 3f64.sqrt() / 2.0),
            0.8,
            0.6,
            0.4,
            0.2 + 0.4 * (1.0 - 3f64.sqrt() / 2.0),
        ];
        for (t, expected) in expected.into_iter().enumerate() {
            assert!((schedule.at(t as u64) - expected).abs() < 1e-15, "step {t}");
        }
        for t in [6, 7, u64::MAX] {
            assert_eq!(schedule.at(t), 0.2);
        }
        assert_eq!(Schedule::Cosine { peak: 1.0, floor: 0.2, steps: 0 }.at(0), 0.2);
    }

    #[test]
    fn stairs() {
        let schedule = Schedule::StepDecay { initial: 0.8, factor: 0.5, every: 3 };
        let rates: Vec<f64> = (0..8).map(|t| schedule.at(t)).collect();
        assert_eq!(rates, [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]);
        assert_eq!(Schedule::StepDecay { initial: 0.8, factor: 0.5, every: 0 }.at(100), 0.8);
    }

    #[test]
    fn a_ramp_leads_to_the_start_of_what_follows() {
        let then = Schedule::StepDecay { initial: 2.0, factor: 0.1, every: 2 };
        let schedule = then.clone().with_warm_up(4);
        let rates: Vec<f64> = (0..6).map(|t| schedule.at(t)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(schedule.at(6), then.at(2));
        assert_eq!(Schedule::Constant(3.0).with_warm_up(0).at(0), 3.0);
        assert_eq!(schedule.clone().with_warm_up(2).at(0), 0.25);
    }
}
