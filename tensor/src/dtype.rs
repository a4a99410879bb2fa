//! What one element of a tensor is: its type, its size, and the Rust type that stands for it.

use std::fmt;

use half::bf16;

/// The element type of a [`Tensor`](crate::Tensor).
///
/// There is no implicit promotion between them: mixing two is an error, and
/// [`Tensor::cast`](crate::Tensor::cast) is how one becomes another.
// A word, as much as it takes beside the sizes and steps of a tensor anyway: tensors are then moved in words. Of a byte and seven
// that mean nothing the moves are pieces, and a processor waits for what it has just stored in other ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u64)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 64-bit IEEE float, in which gradients are checked.
    F64,
    /// 16-bit brain float: a storage type. Arithmetic on it is done in f32 and rounded once.
    BF16,
    /// 64-bit signed integer, for indices and labels.
    I64,
    /// One byte holding 0 or 1, for masks and the results of comparisons.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
            DType::BF16 => 2,
            DType::Bool => 1,
        }
    }

    /// Whether values of this type can carry a gradient.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::BF16)
    }

    /// The name used in messages and printed tapes: `f32`, `f64`, `bf16`, `i64`, `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that a tensor can hold: `f32`, `f64`, `bf16`, `i64` or `bool`.
///
/// Sealed in spirit: every kernel enumerates [`DType`], so an implementation elsewhere would never be reached.
pub trait Element: Copy + Send + Sync + PartialEq + fmt::Debug + 'static {
    /// The dtype this Rust type stands for.
    const DTYPE: DType;
    /// Reads aligned bytes as elements.
    ///
    /// # Panics
    /// If the length is not a whole number of elements, or a `bool` byte is neither 0 nor 1.
    fn from_bytes(bytes: &[u8]) -> &[Self];
    /// Reads elements as bytes.
    fn to_bytes(values: &[Self]) -> &[u8];
    /// The value as an f64: exact for every dtype but large i64.
    fn to_f64(self) -> f64;
    /// The nearest value of this type (integers truncate towards zero; any non-zero number is `true`).
    fn from_f64(value: f64) -> Self;
}

macro_rules! pod_element {
    ($t:ty, $dtype:ident, $to:expr, $from:expr) => {
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            fn from_bytes(bytes: &[u8]) -> &[Self] {
                bytemuck::cast_slice(bytes)
            }
            fn to_bytes(values: &[Self]) -> &[u8] {
                bytemuck::cast_slice(values)
            }
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    };
}

pod_element!(f32, F32, |v: f32| v as f64, |v: f64| v as f32);
pod_element!(f64, F64, |v| v, |v| v);
pod_element!(bf16, BF16, |v: bf16| v.to_f64(), round_to_bf16);
pod_element!(i64, I64, |v: i64| v as f64, |v: f64| v as i64);

/// The nearest bf16, ties to even. [`bf16::from_f64`] looks only at the upper half of the bits, so it takes a value
/// just above a tie for the tie itself; here a bit of the upper half that cannot decide anything else tells of the
/// lower one.
fn round_to_bf16(v: f64) -> bf16 {
    let bits = v.to_bits();
    let lower = bits & 0xFFFF_FFFF;
    bf16::from_f64(f64::from_bits((bits ^ lower) | (u64::from(lower != 0) << 32)))
}

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn from_bytes(bytes: &[u8]) -> &[Self] {
        bytemuck::checked::cast_slice(bytes)
    }
    fn to_bytes(values: &[Self]) -> &[u8] {
        bytemuck::cast_slice(values)
    }
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self))
    }
    fn from_f64(value: f64) -> Self {
        value != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_becomes_the_nearest_bf16_also_next_to_a_tie() {
        // Subnormal, smallest normal and ordinary values.
        for bits in (0..0x140u16).chain(0x3F00..0x4080) {
            let (low, high) = (bf16::from_bits(bits).to_f64(), bf16::from_bits(bits + 1).to_f64());
            let tie = (low + high) / 2.0;
            let even = bits + bits % 2;
            for (v, expected) in
                [(tie.next_down(), bits), (tie, even), (tie.next_up(), bits + 1), (low, bits)]
            {
                assert_eq!(<bf16 as Element>::from_f64(v).to_bits(), expected, "{v:e}");
                assert_eq!(<bf16 as Element>::from_f64(-v).to_bits(), expected | 0x8000, "{:e}", -v);
            }
        }
        assert!(<bf16 as Element>::from_f64(f64::NAN).is_nan());
        assert_eq!(<bf16 as Element>::from_f64(f64::INFINITY), bf16::INFINITY);
    }
}
