//! From numbers to places on an axis, and back to round numbers a person reads.

/// A range of numbers laid out over 0..=1, evenly or by powers of ten.
///
/// ```
/// use limpid::report::scale::Scale;
/// let scale = Scale::log([3e-7, 0.02]).rounded();
/// assert_eq!(scale.position(1e-7), Some(0.0));
/// assert_eq!(scale.position(0.0), None); // no logarithm
/// let labels: Vec<String> = scale.ticks(6).into_iter().map(|tick| tick.label).collect();
/// assert_eq!(labels, ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The ends, as numbers on a linear scale and as exponents of ten on a logarithmic one: the smallest
    /// subnormal's decade, 10⁻³²⁴, is not itself a number.
    low: f64,
    high: f64,
    log: bool,
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where, from 0 to 1.
    pub position: f64,
    /// What is written there.
    pub label: String,
}

/// Beyond this, the difference of two numbers may overflow.
const LARGEST: f64 = 1e300;

impl Scale {
    /// The evenly divided scale from the least to the greatest finite value; 0 to 1 if there is none, and some
    /// room on both sides if all are equal.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Scale {
        let finite = values.into_iter().filter(|v| v.is_finite()).map(|v| v.clamp(-LARGEST, LARGEST));
        let Some((low, high)) = extent(finite) else { return Scale { low: 0.0, high: 1.0, log: false } };
        // Closer than this, rounding shows in the ticks.
        let room = 1e-9 * low.abs().max(high.abs());
        let (low, high) = match high - low <= room {
            true if high == 0.0 => (-1.0, 1.0),
            true => (low - 0.1 * low.abs(), high + 0.1 * high.abs()),
            false => (low, high),
        };
        Scale { low, high, log: false }
    }

    /// The scale by powers of ten from the least to the greatest positive finite value; 0.1 to 1 if there is none,
    /// and half a decade on both sides if all are equal.
    pub fn log(values: impl IntoIterator<Item = f64>) -> Scale {
        let exponents = values.into_iter().filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
        let Some((low, high)) = extent(exponents) else { return Scale { low: -1.0, high: 0.0, log: true } };
        let (low, high) = if high - low <= 1e-9 { (low - 0.5, high + 0.5) } else { (low, high) };
        Scale { low, high, log: true }
    }

    /// Whether the scale is by powers of ten.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// The scale with its ends moved outwards to round numbers: decades, or 1, 2, 5 times one for a range
    /// of less than two; steps of 1, 2, 5 on a linear scale.
    pub fn rounded(self) -> Scale {
        let Scale { low, high, log } = self;
        let (low, high) = match log {
            true if high - low < 2.0 => (mantissa_below(low), -mantissa_above(-high)),
            true => ((low + 1e-9).floor(), (high - 1e-9).ceil()),
            false => {
                let step = round_step((high - low) / 5.0);
                ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step)
            }
        };
        Scale { low, high, log }
    }

    /// Where a value stands: 0 at the low end, 1 at the high end, beyond them outside. `None` for what has no
    /// place: NaN, infinities, and on a logarithmic scale zero and below.
    pub fn position(&self, value: f64) -> Option<f64> {
        let place = if self.log { value.log10() } else { value };
        let position = (place - self.low) / (self.high - self.low);
        (value.is_finite() && position.is_finite()).then_some(position)
    }

    /// Round numbers inside the scale, about `count` of them and never more than twice as many, each with its label.
    pub fn ticks(&self, count: usize) -> Vec<Tick> {
        let count = count.max(1) as f64;
        let span = self.high - self.low;
        if !self.log {
            return self.linear_ticks(self.low, self.high, round_step(span / count));
        }
        // Less than a decade's three round numbers: the range is nearly even, and so are its ticks.
        if span < 0.6 {
            let (low, high) = (10f64.powf(self.low), 10f64.powf(self.high));
            return self.linear_ticks(low, high, round_step((high - low) / count.min(4.0)));
        }
        let within = |e: &f64| (self.low - 1e-9..=self.high + 1e-9).contains(e);
        let tick = |e: f64, label: String| Tick { position: (e - self.low) / span, label };
        if span < 2.0 && count >= 3.0 {
            let decades = self.low.floor() as i32..=self.high.ceil() as i32;
            return decades
                .flat_map(|e| [1, 2, 5].map(|m| (f64::from(e) + f64::from(m).log10(), m, e)))
                .filter(|(place, ..)| within(place))
                .map(|(place, m, e)| tick(place, mantissa_and_exponent(m, e)))
                .collect();
        }
        let stride =
            [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|s| span / s <= count).unwrap_or(100.0);
        let first = (self.low / stride - 1e-9).ceil() as i32;
        let exponents: Vec<f64> =
            (first..).map(|i| f64::from(i) * stride).take_while(|e| *e <= self.high + 1e-9).collect();
        let plain = exponents.iter().all(|e| (-3.0..=3.0).contains(e));
        let label = |e: f64| if plain { number(10f64.powi(e as i32)) } else { power_of_ten(e as i32) };
        exponents.iter().map(|&e| tick(e, label(e))).collect()
    }

    fn linear_ticks(&self, low: f64, high: f64, step: f64) -> Vec<Tick> {
        let first = (low / step - 1e-9).ceil();
        let steps = (high / step + 1e-9).floor() - first;
        let values: Vec<f64> = (0..=steps.max(0.0) as u32).map(|i| (first + f64::from(i)) * step).collect();
        let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let finest = step.log10().floor() as i32;
        let label = |v: f64| match largest {
            // One power of ten for the whole axis, and as many decimals as the step has.
            _ if v == 0.0 => "0".into(),
            m if m >= 1e5 || finest < -4 => {
                let exponent = m.log10().floor() as i32;
                let decimals = (exponent - finest).max(0) as usize;
                let mantissa = v / 10f64.powi(exponent);
                format!("{mantissa:.decimals$}×{}", ten_to_the(exponent)).replace('-', "−")
            }
            _ => format!("{v:.*}", (-finest).max(0) as usize).replace('-', "−"),
        };
        values
            .into_iter()
            .filter_map(|v| Some(Tick { position: self.position(v)?, label: label(v) }))
            .collect()
    }
}

/// A number as a person writes it: three figures where it is near 1, a power of ten where it is far.
///
/// ```
/// use limpid::report::scale::number;
/// let text = [0.25, 1234.0, 3.14159, 1.2e-8, -4e9, 0.0, f64::NAN, f64::INFINITY].map(number);
/// assert_eq!(text, ["0.25", "1234", "3.14", "1.2×10⁻⁸", "−4×10⁹", "0", "NaN", "∞"]);
/// ```
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN".into()
        } else {
            format!("{value}").replace("inf", "∞").replace('-', "−")
        };
    }
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => s.to_string(),
    };
    let text = match exponent {
        -3..=4 => trim(&format!("{value:.*}", (2 - exponent).max(0) as usize)),
        _ => match trim(mantissa).as_str() {
            "1" => ten_to_the(exponent),
            "-1" => format!("-{}", ten_to_the(exponent)),
            m => format!("{m}×{}", ten_to_the(exponent)),
        },
    };
    if text == "-0" { "0".into() } else { text.replace('-', "−") }
}

/// m·10ᵉ, also where that is beyond the range of numbers.
fn mantissa_and_exponent(mantissa: i32, exponent: i32) -> String {
    match (mantissa, exponent) {
        (m, -3..=4) => number(f64::from(m) * 10f64.powi(exponent)),
        (1, e) => ten_to_the(e),
        (m, e) => format!("{m}×{}", ten_to_the(e)),
    }
}

/// 1, 10, and 10ⁿ otherwise: how a decade is written among others.
fn power_of_ten(exponent: i32) -> String {
    match exponent {
        0 => "1".into(),
        1 => "10".into(),
        e => ten_to_the(e),
    }
}

fn ten_to_the(exponent: i32) -> String {
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // The remaining digits follow each other from U+2070, superscript zero.
        digit => char::from_u32(0x2070 + (u32::from(digit) - u32::from('0'))).unwrap_or(digit),
    };
    format!("10{}", exponent.to_string().chars().map(raised).collect::<String>())
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| {
        Some(range.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v))))
    })
}

/// The least of 1, 2, 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf((step.log10() + 1e-9).floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * decade)
        .find(|s| *s >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * decade)
}

/// The greatest exponent of 1, 2 or 5 times a power of ten that is not above `exponent`.
fn mantissa_below(exponent: f64) -> f64 {
    let decade = (exponent + 1e-9).floor();
    let part = [5f64, 2.0, 1.0].map(f64::log10).into_iter().find(|m| decade + m <= exponent + 1e-9);
    decade + part.unwrap_or(0.0)
}

/// The same from above, for the negated exponent: 10⁻ˣ is 1, 2 or 5 times a decade.
fn mantissa_above(negated: f64) -> f64 {
    let exponent = -negated;
    let decade = (exponent - 1e-9).floor();
    let part = [1f64, 2.0, 5.0, 10.0].map(f64::log10).into_iter().find(|m| decade + m >= exponent - 1e-9);
    -(decade + part.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, count: usize) -> Vec<String> {
        scale.ticks(count).into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_equally_long() {
        assert_eq!(labels(Scale::linear([0.0, 1.0]), 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Scale::linear([1.0, 20.0]), 5), ["5", "10", "15", "20"]);
        assert_eq!(labels(Scale::linear([-3.0, 7.1]).rounded(), 5), ["−5", "0", "5", "10"].map(String::from));
        assert_eq!(labels(Scale::linear([0.0, 3e-7]), 3), ["0", "1×10⁻⁷", "2×10⁻⁷", "3×10⁻⁷"]);
        assert_eq!(
            labels(Scale::linear([0.0, 2.5e6]), 5),
            ["0", "0.5×10⁶", "1.0×10⁶", "1.5×10⁶", "2.0×10⁶", "2.5×10⁶"]
        );
    }

    #[test]
    fn ticks_lie_inside_in_order_and_are_few() {
        for (low, high) in
            [(0.0, 1.0), (-7.3, 11.9), (1e-300, 1e300), (0.1, 0.11), (1e-9, 1.1e-9), (-1e308, 1e308)]
        {
            for count in 1..12 {
                let scales = [Scale::linear([low, high]), Scale::linear([low, high]).rounded()];
                let logs = [Scale::log([low, high]), Scale::log([low, high]).rounded()];
                for scale in scales.into_iter().chain(logs) {
                    let ticks = scale.ticks(count);
                    assert!(!ticks.is_empty() || count < 3, "{scale:?} has no tick of {count}");
                    assert!(ticks.len() <= 2 * count.max(4), "{} ticks of {count} on {scale:?}", ticks.len());
                    assert!(ticks.windows(2).all(|w| w[0].position < w[1].position), "{scale:?} {ticks:?}");
                    assert!(
                        ticks.iter().all(|t| (-1e-6..=1.0 + 1e-6).contains(&t.position)),
                        "{scale:?} {ticks:?}"
                    );
                    let mut texts: Vec<&String> = ticks.iter().map(|t| &t.label).collect();
                    texts.dedup();
                    assert_eq!(texts.len(), ticks.len(), "one label twice: {ticks:?}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_logarithm_has_no_place() {
        let scale = Scale::log([0.0, -1.0, f64::NAN, f64::INFINITY, 1e-4, 1e2]);
        assert_eq!(scale, Scale::log([1e-4, 1e2]));
        for none in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(scale.position(none), None);
        }
        assert!((scale.position(0.1).unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_smallest_number_has_a_decade() {
        let scale = Scale::log([5e-324, 1.0]).rounded();
        assert!((0.0..0.01).contains(&scale.position(5e-324).unwrap()));
        assert_eq!(labels(scale, 7), ["10⁻³⁰⁰", "10⁻²⁵⁰", "10⁻²⁰⁰", "10⁻¹⁵⁰", "10⁻¹⁰⁰", "10⁻⁵⁰", "1"]);
    }

    #[test]
    fn nothing_and_one_number_still_make_a_scale() {
        for values in [vec![], vec![f64::NAN], vec![0.0, 0.0], vec![3.0; 4], vec![-2.0], vec![1e-320]] {
            for scale in [Scale::linear(values.clone()), Scale::log(values.clone())] {
                for scale in [scale, scale.rounded()] {
                    assert!(scale.high > scale.low, "{values:?}: {scale:?}");
                    for v in values.iter().filter(|v| **v > 0.0) {
                        assert!((0.0..=1.0).contains(&scale.position(*v).unwrap()), "{values:?}: {scale:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn log_ranges_under_two_decades_round_to_one_two_five() {
        let scale = Scale::log([0.3, 4.0]).rounded();
        assert_eq!(labels(scale, 6), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!((scale.position(0.2).unwrap(), scale.position(5.0).unwrap()), (0.0, 1.0));
        assert_eq!(labels(Scale::log([1e-3, 1e3]), 7), ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]);
    }
}
