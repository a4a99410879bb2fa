//! Whether a number is right: exactly, or within a bound that the operation's roundings account for.

use limpid_tensor::{DType, Tensor};

use crate::array::Array;

/// Bits of the significand, the implicit one included.
fn precision(dtype: DType) -> i32 {
    match dtype {
        DType::F64 => 53,
        DType::F32 => 24,
        DType::BF16 => 8,
        other => panic!("{other} has no precision"),
    }
}

/// The exponent of the smallest normal number.
fn lowest_exponent(dtype: DType) -> i32 {
    if dtype == DType::F64 { -1022 } else { -126 }
}

/// The largest finite number.
pub fn largest(dtype: DType) -> f64 {
    let top = if dtype == DType::F64 { 1023 } else { 127 };
    (2.0 - 2f64.powi(1 - precision(dtype))) * 2f64.powi(top)
}

/// Half the distance from 1 to the next larger number: the relative error of one rounding.
pub fn unit(dtype: DType) -> f64 {
    2f64.powi(-precision(dtype))
}

/// The distance between neighbouring numbers of a dtype around `v`.
pub fn spacing(v: f64, dtype: DType) -> f64 {
    let biased = (v.to_bits() >> 52 & 0x7FF) as i32;
    let exponent = (biased - 1023).clamp(lowest_exponent(dtype), 1023);
    // In two factors: the smallest distance of f64 is itself subnormal.
    2f64.powi(exponent) * 2f64.powi(1 - precision(dtype))
}

/// The nearest number of a float dtype, ties to even, by scaling and rounding to a whole number.
pub fn round(v: f64, dtype: DType) -> f64 {
    if dtype == DType::F64 || !v.is_finite() {
        return v;
    }
    let unit = spacing(v, dtype);
    let rounded = (v / unit).round_ties_even() * unit;
    if rounded.abs() > largest(dtype) { v.signum() * f64::INFINITY } else { rounded }
}

/// What the backend's arithmetic makes of an exact result: bf16 is computed in f32 and rounded once more.
pub fn stored(v: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => round(round(v, DType::F32), DType::BF16),
        _ => round(v, dtype),
    }
}

/// The precision sums and products are accumulated in.
pub fn accumulator(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

/// An expected value, and how far from it an answer may be besides its own rounding.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Near {
    /// The exact result.
    pub value: f64,
    /// The largest error that the roundings on the way can make; ∞ where the order of operations decides.
    pub error: f64,
}

impl Near {
    /// A sum of terms in any order (N. J. Higham, "Accuracy and Stability of Numerical Algorithms", §4.2): off by at
    /// most `n·u·Σ|x|`, and as much again for the oracle's own sum.
    pub fn sum(terms: &[f64], dtype: DType) -> Near {
        let accumulator = accumulator(dtype);
        let value: f64 = terms.iter().sum();
        if terms.iter().any(|v| v.is_nan()) {
            return Near { value: f64::NAN, error: 0.0 };
        }
        let magnitude: f64 = terms.iter().filter(|v| v.is_finite()).map(|v| v.abs()).sum();
        if magnitude >= largest(accumulator) * 0.999 {
            // The order decides whether a partial sum is infinite.
            return Near { value, error: f64::INFINITY };
        }
        let roundings = terms.len() as f64 * (unit(accumulator) + unit(DType::F64));
        Near { value, error: if value.is_finite() { roundings * magnitude } else { 0.0 } }
    }

    /// As [`sum`](Near::sum), of products that are rounded too, or not.
    pub fn sum_of_products(factors: &[(f64, f64)], dtype: DType) -> Near {
        let accumulator = accumulator(dtype);
        let terms: Vec<f64> = factors.iter().map(|(a, b)| a * b).collect();
        let overflows = |&(a, b): &(f64, f64)| {
            a.is_finite() && b.is_finite() && (a * b).abs() >= largest(accumulator) * 0.999
        };
        let Near { value, error } = Near::sum(&terms, dtype);
        if factors.iter().any(overflows) && !terms.iter().any(|v| v.is_nan()) {
            return Near { value, error: f64::INFINITY };
        }
        // A product may be subnormal.
        Near { value, error: 2.0 * error + factors.len() as f64 * spacing(0.0, accumulator) }
    }
}

/// Whether two are equal, or both NaN.
pub fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// Whether `found` is `expected` up to its error and `ulps` distances between neighbouring numbers.
pub fn is_near(found: f64, expected: Near, ulps: f64, dtype: DType) -> bool {
    let rounded = stored(expected.value, dtype);
    if same(found, rounded) || expected.error == f64::INFINITY {
        return true;
    }
    let beyond = largest(dtype);
    let limit = expected.error + ulps * spacing(expected.value.clamp(-beyond, beyond), dtype);
    if found.is_infinite() || rounded.is_infinite() {
        // Both sides of the border to infinity, if the limit spans it.
        return limit > 0.0
            && (found.clamp(-beyond, beyond) - expected.value.clamp(-beyond, beyond)).abs() <= limit;
    }
    (found - expected.value).abs() <= limit
}

/// Compares shape, dtype, and each element with `matches`.
fn each<T: Copy + std::fmt::Debug>(
    found: &Tensor,
    dtype: DType,
    expected: &Array<T>,
    matches: impl Fn(f64, T) -> bool,
) -> Result<(), String> {
    if found.shape()[..] != expected.shape[..] || found.dtype() != dtype {
        let (found, shape) = (found.meta(), &expected.shape);
        return Err(format!("the result is {found}, expected {dtype}{shape:?}"));
    }
    let values = found.to_f64_vec().map_err(|e| e.to_string())?;
    for (i, (&f, &e)) in values.iter().zip(&expected.data).enumerate() {
        if !matches(f, e) {
            return Err(format!("element {i} of {} is {f:e}, expected {e:?}", found.meta()));
        }
    }
    Ok(())
}

/// Compares a float result with exact values, up to `ulps` and each value's own error; 0 and 0 ask for the bits (of a
/// number; any NaN will do).
pub fn near(found: &Tensor, dtype: DType, expected: &Array<Near>, ulps: f64) -> Result<(), String> {
    each(found, dtype, expected, |f, e| is_near(f, e, ulps, dtype))
}

/// Compares a float result with the rounded exact values.
pub fn exact(found: &Tensor, dtype: DType, expected: &Array<f64>) -> Result<(), String> {
    each(found, dtype, expected, |f, e| same(f, stored(e, dtype)))
}

/// Compares an i64 result.
pub fn ints(found: &Tensor, expected: &Array<i64>) -> Result<(), String> {
    if found.dtype() == DType::I64 && found.to_vec::<i64>().map_err(|e| e.to_string())? == expected.data {
        return each(found, DType::I64, expected, |_, _| true);
    }
    each(found, DType::I64, expected, |f, e| f == e as f64)?;
    Err(format!("large integers of {} differ, expected {expected:?}", found.meta()))
}

/// Compares a bool result.
pub fn bools(found: &Tensor, expected: &Array<bool>) -> Result<(), String> {
    each(found, DType::Bool, expected, |f, e| f == f64::from(u8::from(e)))
}

#[cfg(test)]
mod tests {
    use limpid_tensor::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_the_hardware() {
        for i in 0..200_000u64 {
            let bits = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            // Over and a little beyond the range of f32.
            let v = f64::from_bits(bits & !(0x7FF << 52) | (1023 - 155 + bits % 290) << 52);
            assert!(same(round(v, DType::F32), f64::from(v as f32)), "{v:e}");
            let narrow = v as f32;
            let expected = bf16::from_f32(narrow).to_f64();
            assert!(same(round(f64::from(narrow), DType::BF16), expected), "{narrow:e}");
        }
    }

    #[test]
    fn spacing_is_the_distance_to_the_next_number() {
        for v in [1.0f64, 1.5, 2.0, 1e300, f64::MAX, f64::MIN_POSITIVE, 5e-324, 0.0] {
            let next = f64::from_bits(v.to_bits() + 1);
            if next.is_finite() {
                assert_eq!(spacing(v, DType::F64), next - v);
            }
        }
        for v in [1.0f32, 3.0, 1e-40, f32::MIN_POSITIVE, 0.0] {
            assert_eq!(
                spacing(f64::from(v), DType::F32),
                f64::from(f32::from_bits(v.to_bits() + 1)) - f64::from(v)
            );
        }
        assert_eq!(largest(DType::F32), f64::from(f32::MAX));
        assert_eq!(largest(DType::BF16), bf16::MAX.to_f64());
        assert_eq!(largest(DType::F64), f64::MAX);
    }

    #[test]
    fn an_error_beyond_the_bound_is_seen() {
        let expected = Near { value: 1.0, error: 0.0 };
        let next = 1.0 + f64::from(f32::EPSILON);
        assert!(is_near(next, expected, 1.0, DType::F32) && !is_near(next, expected, 0.9, DType::F32));
        assert!(!is_near(f64::NAN, expected, 9.0, DType::F32));
        assert!(!is_near(f64::INFINITY, expected, 9.0, DType::F32));
        let infinite = Near { value: f64::INFINITY, error: 0.0 };
        assert!(is_near(f64::INFINITY, infinite, 0.0, DType::F32));
        assert!(!is_near(f64::NEG_INFINITY, infinite, 2.0, DType::F32));
        assert!(!is_near(1e38, infinite, 2.0, DType::F32) && !is_near(f64::NAN, infinite, 2.0, DType::F32));
    }
}
