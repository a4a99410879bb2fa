//! Derivatives from differences, each with an error bar.

/// A derivative by differences, and how far off it may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The derivative.
    pub value: f64,
    /// What the disagreement between orders of extrapolation and rounding leave open.
    pub bar: f64,
}

/// Extrapolates difference quotients at steps halved each time to step 0, by Richardson's rule; of the whole table the
/// entry with the smallest error bar is taken (C. J. F. Ridders, "Accurate computation of F′(x) and F′(x)F″(x)",
/// Advances in Engineering Software 4, 1982). The error of a quotient has powers `power, 2·power, …` of the step: 2 for
/// central differences, 1 for one-sided ones. `rounding` is that of the function.
pub(super) fn extrapolate(quotients: &[(f64, f64)], power: i32, rounding: f64) -> Estimate {
    let mut best = Estimate { value: f64::NAN, bar: f64::INFINITY };
    let mut above: Vec<f64> = Vec::new();
    for (row, &(h, quotient)) in quotients.iter().enumerate() {
        let mut current = vec![quotient];
        for m in 1..=row {
            let factor = 2f64.powi(power * m as i32);
            let value = (factor * current[m - 1] - above[m - 1]) / (factor - 1.0);
            let spread = (value - current[m - 1]).abs().max((value - above[m - 1]).abs());
            let bar = spread + 4.0 * rounding / h + 1e-14 * value.abs();
            if bar < best.bar {
                best = Estimate { value, bar };
            }
            current.push(value);
        }
        above = current;
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
            let rounding = f64::EPSILON * f(0.0).abs();
            let steps = || (0..7).map(|k| 2f64.powi(-5 - k));
            let central: Vec<_> = steps().map(|h| (h, (f(h) - f(-h)) / (2.0 * h))).collect();
            let forward: Vec<_> = steps().map(|h| (h, (f(h) - f(0.0)) / h)).collect();
            let (central, forward) = (extrapolate(&central, 2, rounding), extrapolate(&forward, 1, rounding));
            assert!((central.value - slope).abs() <= central.bar && central.bar < 1e-9, "{central:?}");
            assert!((forward.value - slope).abs() <= 3.0 * forward.bar && forward.bar < 1e-5, "{forward:?}");
        }
    }
}
