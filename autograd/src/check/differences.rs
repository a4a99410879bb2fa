//! Derivatives from differences, each with an error bar.

/// A derivative by differences, and how far off it may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The derivative.
    pub value: f64,
    /// What the disagreement between orders of extrapolation and rounding leave open.
    pub bar: f64,
}

/// A difference quotient, and how far off the rounding of the function makes it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quotient {
    value: f64,
    rounding: f64,
}

impl Quotient {
    /// Of two values, so far apart in the function's argument, each rounded by `noise` and at least in its last place.
    pub fn new(high: f64, low: f64, distance: f64, noise: f64) -> Quotient {
        let rounding = noise.max(0.5 * f64::EPSILON * high.abs().max(low.abs()));
        Quotient { value: (high - low) / distance, rounding: 2.0 * rounding / distance.abs() }
    }
}

/// Extrapolates difference quotients at steps halved each time to step 0, by Richardson's rule; of the whole table the
/// entry with the smallest error bar is taken (C. J. F. Ridders, "Accurate computation of F′(x) and F′(x)F″(x)",
/// Advances in Engineering Software 4, 1982). The error of a quotient has powers `power, 2·power, …` of the step: 2 for
/// central differences, 1 for one-sided ones.
///
/// An entry's error is judged by how far it is from the two that it is made of. These may agree by luck, where the first
/// powers of the error cancel at one step, and of so many entries the luckiest is taken. So agreement has to be seen
/// coming: in column m it improves by `2^(power·m)` from row to row, and is not believed to be better than that. (In a
/// million random functions with sigmoids, a bar was up to a hundred times too small without this, and at most 7 times
/// with it.)
pub(super) fn extrapolate(quotients: &[Quotient], power: i32) -> Estimate {
    let mut best = Estimate { value: f64::NAN, bar: f64::INFINITY };
    let (mut above, mut spreads_above): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for (row, quotient) in quotients.iter().enumerate() {
        let (mut current, mut spreads) = (vec![quotient.value], vec![f64::INFINITY]);
        // Of those that an entry is made of, which is not always the one at the shortest step: a function that vanishes
        // here is larger, and rounded more coarsely, far off.
        let mut rounding = quotient.rounding;
        for m in 1..=row {
            let factor = 2f64.powi(power * m as i32);
            let value = (factor * current[m - 1] - above[m - 1]) / (factor - 1.0);
            let spread = (value - current[m - 1]).abs().max((value - above[m - 1]).abs());
            let promised = spreads_above.get(m).map_or(f64::INFINITY, |above| above / factor);
            rounding = rounding.max(quotients[row - m].rounding);
            let bar = spread.max(promised) + 4.0 * rounding + 1e-14 * value.abs();
            if bar < best.bar {
                best = Estimate { value, bar };
            }
            current.push(value);
            spreads.push(spread);
        }
        (above, spreads_above) = (current, spreads);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_covers_the_error() {
        for (f, slope) in
            [(f64::exp as fn(f64) -> f64, 1.0), (|x| (x + 0.1).ln(), 10.0), (|x| 1.0 / (1.0 + x), -1.0)]
        {
            let steps = || (0..7).map(|k| 2f64.powi(-5 - k));
            let central: Vec<_> = steps().map(|h| Quotient::new(f(h), f(-h), 2.0 * h, 0.0)).collect();
            let forward: Vec<_> = steps().map(|h| Quotient::new(f(h), f(0.0), h, 0.0)).collect();
            let (central, forward) = (extrapolate(&central, 2), extrapolate(&forward, 1));
            assert!((central.value - slope).abs() <= central.bar && central.bar < 1e-9, "{central:?}");
            assert!((forward.value - slope).abs() <= 3.0 * forward.bar && forward.bar < 1e-5, "{forward:?}");
        }
    }

    #[test]
    fn a_function_that_vanishes_here_is_rounded_as_it_is_there() {
        // ½(x − d)² for a tiny d: its derivative at 0 is −d, of which the steps leave few digits.
        let d = 3.003e-12;
        let f = |x: f64| 0.5 * (x - d) * (x - d);
        let quotient = |k: i32| Quotient::new(f(2f64.powi(-k)), f(-2f64.powi(-k)), 2f64.powi(1 - k), 0.0);
        let found = extrapolate(&(5..12).map(quotient).collect::<Vec<_>>(), 2);
        assert!((found.value + d).abs() <= found.bar && found.bar < 1e-3 * d, "{found:?}");
    }

    #[test]
    fn agreement_by_luck_is_not_believed() {
        // x + x³ − c·x⁵ with c such that the quotients at the first two steps are the same, and wrong.
        let first = 1.0 / 32.0;
        let c = 0.8 / (first * first);
        let f = |x: f64| x + x.powi(3) - c * x.powi(5);
        let quotient = |k: i32| {
            let h = first * 2f64.powi(-k);
            Quotient::new(f(h), f(-h), 2.0 * h, 0.0)
        };
        let quotients: Vec<Quotient> = (0..7).map(quotient).collect();
        assert!((quotients[0].value - quotients[1].value).abs() < 1e-15);
        assert!((quotients[0].value - 1.0).abs() > 1e-4);
        let found = extrapolate(&quotients, 2);
        assert!((found.value - 1.0).abs() <= found.bar && found.bar < 1e-10, "{found:?}");
    }
}
