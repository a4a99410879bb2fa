//! What a check found, and the message a person needs.

use std::collections::BTreeSet;
use std::fmt;

use super::explain::Explanation;

/// The kinds of evidence, in the order in which they are gathered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// Finite, deterministic, linear in the cotangent, reads as declared.
    Contract,
    /// ⟨J·v, u⟩ = ⟨v, Jᵀ·u⟩.
    Adjoint,
    /// Symmetric Taylor remainders fall with the third power of the step.
    Taylor,
    /// Every entry of a small Jacobian, against differences with error bars.
    Jacobian,
    /// The second derivative.
    Curvature,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Tier::Contract => "contract",
            Tier::Adjoint => "adjoint",
            Tier::Taylor => "taylor",
            Tier::Jacobian => "jacobian",
            Tier::Curvature => "second order",
        })
    }
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// Which evidence shows it.
    pub tier: Tier,
    /// The position of the input it is about, if it is about one.
    pub input: Option<usize>,
    /// What is wrong, with numbers.
    pub what: String,
    /// Whether it is only that nothing could have been seen.
    pub powerless: bool,
}

/// A number to some significant digits, with an exponent only where it would have many zeros.
pub(super) fn number(x: f64, digits: usize) -> String {
    // As it will be rounded: 0.0999999 to two digits is 0.10.
    let rounded: f64 = format!("{x:.*e}", digits - 1).parse().unwrap_or(x);
    let exponent = rounded.abs().log10().floor();
    match x {
        0.0 => "0".into(),
        _ if (-4.0..6.0).contains(&exponent) => {
            let decimals = (digits as f64 - 1.0 - exponent).max(0.0) as usize;
            format!("{x:.decimals$}")
        }
        _ => format!("{x:.*e}", digits - 1),
    }
}

/// What one kind of evidence says.
#[derive(Clone, PartialEq, Debug)]
pub struct TierOutcome {
    /// Which evidence.
    pub tier: Tier,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be decided, and why.
    pub doubts: Vec<String>,
    /// What a reader should know besides.
    pub notes: BTreeSet<String>,
    /// Numbers by name: `slope`, `adjoint to`, `entries`, …
    pub measured: Vec<(&'static str, f64)>,
}

impl TierOutcome {
    pub(super) fn new(tier: Tier) -> TierOutcome {
        let (findings, doubts) = (Vec::new(), Vec::new());
        TierOutcome { tier, findings, doubts, notes: BTreeSet::new(), measured: Vec::new() }
    }

    pub(super) fn fault(&mut self, input: Option<usize>, what: String) {
        self.findings.push(Finding { tier: self.tier, input, what, powerless: false });
    }

    pub(super) fn powerless(&mut self, input: Option<usize>, what: &str) {
        self.findings.push(Finding { tier: self.tier, input, what: what.into(), powerless: true });
    }

    /// A number it measured.
    pub fn measured(&self, name: &str) -> Option<f64> {
        self.measured.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

/// The answer. A check that could not have failed is a failure.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// Every kind of evidence says that the derivative is right.
    Pass,
    /// It is wrong, or nothing could have shown that it is.
    Fail(Vec<Finding>),
    /// It could not be decided, for this reason.
    Inconclusive(String),
}

/// What [`check`](super::check()) found. Displayed, it is the message a person needs.
#[derive(Clone, Debug)]
pub struct Report {
    /// The answer.
    pub verdict: Verdict,
    /// The evidence, tier by tier.
    pub tiers: Vec<TierOutcome>,
    pub(super) inputs: Vec<String>,
    pub(super) explanation: Option<Explanation>,
}

impl Report {
    /// The check did not come to its end.
    pub(super) fn of_panic(message: &str) -> Report {
        let mut outcome = TierOutcome::new(Tier::Contract);
        outcome.fault(None, format!("panicked: {message}"));
        let verdict = Verdict::Fail(outcome.findings.clone());
        Report { verdict, tiers: vec![outcome], inputs: Vec::new(), explanation: None }
    }

    /// Whether the derivative is right.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }

    /// For tests.
    ///
    /// # Panics
    /// Unless the verdict is [`Verdict::Pass`], with the whole report.
    #[track_caller]
    pub fn expect_pass(&self) {
        assert!(self.passed(), "{self}");
    }

    /// The evidence of one kind; `None` if it was not gathered.
    pub fn tier(&self, tier: Tier) -> Option<&TierOutcome> {
        self.tiers.iter().find(|outcome| outcome.tier == tier)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guilty = self.explanation.as_ref().filter(|e| !e.culprits.is_empty());
        let of = guilty.map_or(String::new(), |e| format!(" {}", e.culprits.join("; ")));
        let reason = match &self.verdict {
            Verdict::Inconclusive(reason) => reason.as_str(),
            _ => "",
        };
        match &self.verdict {
            Verdict::Pass => writeln!(f, "PASS")?,
            Verdict::Fail(_) => writeln!(f, "FAIL{of}")?,
            Verdict::Inconclusive(_) => writeln!(f, "INCONCLUSIVE {reason}")?,
        }
        for input in &self.inputs {
            writeln!(f, "  {input}")?;
        }
        if let Verdict::Fail(findings) = &self.verdict {
            for finding in findings {
                let input = finding.input.map_or(String::new(), |i| format!(" x{i}:"));
                writeln!(f, "  {}:{input} {}", finding.tier, finding.what)?;
            }
        }
        for outcome in &self.tiers {
            let numbers: Vec<String> = outcome
                .measured
                .iter()
                .map(|(name, value)| match *name {
                    "slope" => format!("slope {value:.2}"),
                    "entries" => format!("{value} entries"),
                    "adjoint to" | "linear to" | "symmetric to" if *value == 0.0 => format!("{name} 0"),
                    name => format!("{name} {value:.1e}"),
                })
                .collect();
            // What is wrong has been said, with its numbers.
            if !numbers.is_empty() && outcome.findings.is_empty() {
                writeln!(f, "  {:12}  {}", outcome.tier, numbers.join(", "))?;
            }
            // One doubt of a kind is enough, and the verdict's reason has been said.
            let other = outcome.doubts.first().filter(|doubt| format!("{}: {doubt}", outcome.tier) != reason);
            if let Some(doubt) = other {
                writeln!(f, "  {:12}  {doubt}", outcome.tier)?;
            }
            for note in &outcome.notes {
                writeln!(f, "  {:12}  {note}", outcome.tier)?;
            }
        }
        match &self.explanation {
            Some(explanation) => write!(f, "{explanation}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_as_many_digits_as_asked_for() {
        let cases = [
            (0.0, "0"),
            (0.0999999, "0.10"),
            (-1234.5, "-1234"),
            (12.0, "12"),
            (1.5e-7, "1.5e-7"),
            (2.5e6, "2.5e6"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (x, expected) in cases {
            assert_eq!(number(x, 2), expected);
        }
    }
}
