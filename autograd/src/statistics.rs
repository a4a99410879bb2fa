//! What is a tensor like, in six numbers?

use std::fmt;

use limpid_tensor::Tensor;

/// The elements of a tensor, summed up in f64.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Statistics {
    /// How many elements there are.
    pub elements: usize,
    /// How many of them are NaN or infinite. The other numbers leave these out.
    pub non_finite: usize,
    /// The least; +∞ if there is none.
    pub min: f64,
    /// The greatest; −∞ if there is none.
    pub max: f64,
    /// The mean; NaN if there is none.
    pub mean: f64,
    /// The square root of the sum of squares.
    pub norm: f64,
}

impl Statistics {
    /// Of a tensor of any dtype.
    ///
    /// ```
    /// use limpid_autograd::Statistics;
    /// use limpid_tensor::Tensor;
    /// let s = Statistics::of(&Tensor::from_vec(vec![3.0f32, f32::NAN, -4.0], [3]))?;
    /// assert_eq!((s.min, s.max, s.mean, s.norm, s.non_finite), (-4.0, 3.0, -0.5, 5.0, 1));
    /// # Ok::<(), limpid_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// If its device cannot hand it out.
    pub fn of(x: &Tensor) -> limpid_tensor::Result<Statistics> {
        let values = x.to_f64_vec()?;
        let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        Ok(Statistics {
            elements: values.len(),
            non_finite: values.len() - finite.len(),
            min: finite.iter().copied().fold(f64::INFINITY, f64::min),
            max: finite.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean: finite.iter().sum::<f64>() / finite.len() as f64,
            norm: crate::part::norm(&finite),
        })
    }
}

/// `[-4.000e0, 3.000e0] mean -5.000e-1 norm 5.000e0, 1 of 3 not finite`
impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.elements - self.non_finite {
            0 if self.elements == 0 => return write!(f, "empty"),
            0 => {}
            _ => write!(
                f,
                "[{:.3e}, {:.3e}] mean {:.3e} norm {:.3e}",
                self.min, self.max, self.mean, self.norm
            )?,
        }
        match self.non_finite {
            0 => Ok(()),
            n if n == self.elements => write!(f, "no element is finite"),
            n => write!(f, ", {n} of {} not finite", self.elements),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_nothing_finite() {
        let text = |values: Vec<f64>| {
            let n = values.len();
            Statistics::of(&Tensor::from_vec(values, [n])).unwrap().to_string()
        };
        assert_eq!(text(vec![]), "empty");
        assert_eq!(text(vec![f64::NAN]), "no element is finite");
        assert_eq!(
            text(vec![1.0, f64::INFINITY]),
            "[1.000e0, 1.000e0] mean 1.000e0 norm 1.000e0, 1 of 2 not finite"
        );
    }
}
