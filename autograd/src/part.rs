//! How much of a sum is one of its addends?

use std::fmt;

/// One addend `cᵢ` of a gradient `c = Σcᵢ`, measured against it.
///
/// Norms do not add: three addends of norm 1 may cancel to a gradient of norm 0.1. Signed shares do, to 1 up to rounding
/// relative to `Σ‖cᵢ‖/‖c‖`; one above 1 says that others work against it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Part {
    /// `‖cᵢ‖`, in the Euclidean norm.
    pub norm: f64,
    /// `⟨cᵢ, c⟩ / ‖cᵢ‖‖c‖`; `None` where one of the two is 0.
    pub cosine: Option<f64>,
    /// `⟨cᵢ, c⟩ / ⟨c, c⟩`; `None` where c is 0.
    pub share: Option<f64>,
}

impl Part {
    /// Measures `part` as an addend of `total`. Both are scaled before they are squared, so that gradients of 10⁻²⁰⁰ have
    /// shares too.
    ///
    /// ```
    /// use limpid_autograd::Part;
    /// let part = Part::of(&[3.0, 0.0], &[2.0, 2.0]);
    /// assert_eq!((part.norm, part.share), (3.0, Some(0.75)));
    /// assert_eq!(Part::of(&[1.0], &[0.0]).share, None); // 1 − 1: no share of nothing
    /// ```
    ///
    /// # Panics
    /// If the two differ in length.
    #[track_caller]
    pub fn of(part: &[f64], total: &[f64]) -> Part {
        assert_eq!(part.len(), total.len(), "part: an addend must have as many elements as the sum");
        let (size, of) = (scale(part), scale(total));
        let (p, t) = (part.iter().map(|v| v / size), total.iter().map(|v| v / of));
        let product: f64 = p.zip(t.clone()).map(|(p, t)| p * t).sum();
        let total_square: f64 = t.map(|t| t * t).sum();
        let (norm, total_norm) = (norm(part), total_square.sqrt());
        Part {
            norm,
            cosine: (norm != 0.0 && total_norm != 0.0).then(|| product / (norm / size * total_norm)),
            share: (total_norm != 0.0).then(|| product / total_square * (size / of)),
        }
    }
}

/// The power of two below `max |xᵢ|`: what is divided by it loses nothing, and its squares neither over- nor underflow
/// where it matters. The least positive normal number if all are 0.
fn scale(x: &[f64]) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    let largest = x.iter().fold(0.0, |largest: f64, v| largest.max(v.abs()));
    f64::from_bits(largest.to_bits() & EXPONENT).max(f64::MIN_POSITIVE)
}

/// `‖x‖`, whatever its size. NaN if an element is.
pub(crate) fn norm(x: &[f64]) -> f64 {
    let scale = scale(x);
    if scale.is_infinite() {
        return x.iter().map(|v| v.abs()).sum();
    }
    scale * x.iter().map(|v| v / scale * (v / scale)).sum::<f64>().sqrt()
}

/// `norm 1.23e-2  cosine +0.98  share  71.3 %`.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "norm {:<9.3e} cosine ", self.norm)?;
        match self.cosine {
            Some(cosine) => write!(f, "{cosine:>+6.3}")?,
            None => write!(f, "{:>6}", "–")?,
        }
        write!(f, "  share {}", percent(self.share))
    }
}

/// A share in eight columns; `–` where there is none.
pub(crate) fn percent(share: Option<f64>) -> String {
    match share {
        Some(share) if share.abs() >= 100.0 => format!("{share:>8.1e}"),
        Some(share) => format!("{:>6.1} %", share * 100.0),
        None => format!("{:>8}", "–"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_and_huge_gradients_have_shares() {
        for size in [1e-200, 1.0, 1e200] {
            let total = [2.0 * size, 2.0 * size];
            let part = Part::of(&[3.0 * size, 0.0], &total);
            assert!((part.share.unwrap() - 0.75).abs() < 1e-15);
            assert!((part.cosine.unwrap() - 0.5f64.sqrt()).abs() < 1e-15);
            assert_eq!(part.norm, 3.0 * size);
        }
    }

    #[test]
    fn nothing_and_what_is_not_finite() {
        let part = Part::of(&[0.0, 0.0], &[1.0, 0.0]);
        assert_eq!((part.norm, part.cosine, part.share), (0.0, None, Some(0.0)));
        assert!(Part::of(&[f64::NAN, 1.0], &[1.0, 1.0]).share.unwrap().is_nan());
        assert_eq!(norm(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(norm(&[0.0, f64::NAN]).is_nan());
        assert_eq!(Part::of(&[], &[]).share, None);
    }

    #[test]
    fn it_reads() {
        let text = Part::of(&[3.0, 0.0], &[2.0, 2.0]).to_string();
        assert_eq!(text, "norm 3.000e0   cosine +0.707  share   75.0 %");
        assert!(Part::of(&[1.0], &[0.0]).to_string().ends_with("share        –"));
    }
}
