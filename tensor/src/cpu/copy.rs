//! Moving elements without computing: row-major copies, parts into a whole; and changing their dtype.

use bytemuck::Pod;
use half::bf16;

use super::map::elementwise1;
use super::threads;
use super::turn::Turned;
use super::walk::{Cursor, Reader, data};
use crate::{DType, Element, HostBuffer, Layout, Result, Shape, Tensor};

/// Runs an expression with `$t` standing for an unsigned integer of a dtype's size: copying looks at no value.
macro_rules! with_bits {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $t = u8;
                $body
            }
            2 => {
                type $t = u16;
                $body
            }
            4 => {
                type $t = u32;
                $body
            }
            _ => {
                type $t = u64;
                $body
            }
        }
    };
}
pub(super) use with_bits;

/// The elements in row-major order.
pub(super) fn contiguous(x: &Tensor) -> Result<Tensor> {
    fn copy<T: Pod + Default + Send + Sync>(x: &Tensor) -> Tensor {
        let mut buffer = HostBuffer::new(x.elements() * size_of::<T>());
        match Turned::of(x.layout()) {
            Some(turned) => turned.copy(data(x), buffer.as_mut::<T>()),
            None => {
                threads::pieces(buffer.as_mut::<T>(), |start, out| {
                    read_into(data(x), x.layout(), start, out)
                });
            }
        }
        buffer.into_tensor(x.shape(), x.dtype())
    }
    Ok(with_bits!(x.dtype(), T => copy::<T>(x)))
}

/// Fills `out` with the elements of a layout from number `position` on.
fn read_into<T: Copy>(data: &[T], layout: &Layout, position: usize, mut out: &mut [T]) {
    let mut cursor = Cursor::new(layout, position);
    while !out.is_empty() {
        let run = cursor.next_run(out.len());
        let (now, later) = out.split_at_mut(run.len);
        run.read(data, now);
        out = later;
    }
}

/// Zeros with each part written where its layout says.
pub(super) fn assemble(shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
    fn write<T: Pod>(out: &mut [T], place: &Layout, part: &Tensor) {
        let (mut to, mut from) = (Cursor::new(place, 0), Reader::<T>::of(part, 0));
        let (most, mut left) = (from.most(), part.elements());
        while left > 0 {
            let run = to.next_run(most.min(left));
            run.write(from.next(run.len), out);
            left -= run.len;
        }
    }
    let mut buffer = HostBuffer::new(shape.elements() * dtype.size());
    let covered: usize = parts.iter().map(|(_, part)| part.elements()).sum();
    // Parts do not overlap, so as many elements as the result has leave no gap to be zeroed.
    if covered < shape.elements() {
        buffer.as_mut::<u8>().fill(0);
    }
    with_bits!(dtype, T => parts.iter().for_each(|(place, part)| write::<T>(buffer.as_mut(), place, part)));
    Ok(buffer.into_tensor(shape, dtype))
}

/// Another dtype: rounding to nearest even, truncating to integers (saturating, NaN to 0), non-zero to `true`.
pub(super) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    use DType::*;
    let to = dtype;
    Ok(match (x.dtype(), to) {
        (from, to) if from == to => contiguous(x)?,
        (F32, F64) => elementwise1(x, to, |v: f32| f64::from(v)),
        (F32, BF16) => elementwise1(x, to, round_to_bf16),
        (F32, I64) => elementwise1(x, to, |v: f32| v as i64),
        (F32, Bool) => elementwise1(x, to, |v: f32| u8::from(v != 0.0)),
        (F64, F32) => elementwise1(x, to, |v: f64| v as f32),
        (F64, BF16) => elementwise1(x, to, <bf16 as Element>::from_f64),
        (F64, I64) => elementwise1(x, to, |v: f64| v as i64),
        (F64, Bool) => elementwise1(x, to, |v: f64| u8::from(v != 0.0)),
        (BF16, F32) => elementwise1(x, to, widen_bf16),
        (BF16, F64) => elementwise1(x, to, |v: bf16| f64::from(widen_bf16(v))),
        (BF16, I64) => elementwise1(x, to, |v: bf16| widen_bf16(v) as i64),
        (BF16, Bool) => elementwise1(x, to, |v: bf16| u8::from(widen_bf16(v) != 0.0)),
        (I64, F32) => elementwise1(x, to, |v: i64| v as f32),
        (I64, F64) => elementwise1(x, to, |v: i64| v as f64),
        (I64, BF16) => elementwise1(x, to, |v: i64| <bf16 as Element>::from_f64(round_to_odd(v))),
        (I64, Bool) => elementwise1(x, to, |v: i64| u8::from(v != 0)),
        (Bool, F32) => elementwise1(x, to, |v: u8| f32::from(v)),
        (Bool, F64) => elementwise1(x, to, |v: u8| f64::from(v)),
        (Bool, BF16) => elementwise1(x, to, |v: u8| bf16::from_bits(u16::from(v) * bf16::ONE.to_bits())),
        (Bool, I64) => elementwise1(x, to, |v: u8| i64::from(v)),
        (F32, F32) | (F64, F64) | (BF16, BF16) | (I64, I64) | (Bool, Bool) => unreachable!("matched above"),
    })
}

/// Exact: a bf16 is the upper half of an f32.
#[inline(always)]
pub(super) fn widen_bf16(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

/// The nearest bf16, ties to even, as [`Tensor::cast`] rounds; without a branch so that loops over it vectorise. NaN stays
/// NaN.
///
/// ```
/// use limpid_tensor::{bf16, round_to_bf16};
/// assert_eq!(round_to_bf16(1.0 + 1.0 / 256.0), bf16::ONE); // a tie, to even
/// ```
#[inline(always)]
pub fn round_to_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    // A NaN whose payload lies in the lower half must not become infinite: set a bit that stays.
    let nan = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if v.is_nan() { nan } else { rounded })
}

/// An integer as an f64 whose last bit tells whether it is inexact, so that rounding it again rounds once.
#[inline(always)]
fn round_to_odd(v: i64) -> f64 {
    if v.unsigned_abs() >> 53 == 0 {
        v as f64
    } else {
        ((v >> 11) | i64::from(v & 0x7FF != 0)) as f64 * 2048.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{ALL, naive, rounded, same, values, views};
    use super::*;

    const SHAPES: [&[usize]; 6] = [&[], &[1], &[7], &[3, 4], &[0, 5], &[2, 3, 5]];

    #[test]
    fn contiguous_keeps_the_elements() {
        for dtype in ALL {
            for sizes in SHAPES {
                for x in views(sizes, dtype) {
                    let y = contiguous(&x).unwrap();
                    assert!(y.layout().is_contiguous() && y.layout().offset() == 0);
                    assert_eq!(naive(&y), naive(&x), "{dtype} {:?}", x.layout());
                }
            }
        }
    }

    #[test]
    fn a_large_transposed_copy_is_right_in_every_chunk() {
        let (m, n) = (700, 601);
        let x = Tensor::arange(0.0, (m * n) as f64, 1.0, DType::I64).reshape([m, n]).unwrap();
        let y = contiguous(&x.transpose(0, 1)).unwrap();
        let y = y.as_slice::<i64>().unwrap();
        assert!((0..m * n).all(|p| y[p] == (p % m * n + p / m) as i64));
    }

    #[test]
    fn cast_agrees_with_one_rounding_of_the_exact_value() {
        for from in ALL {
            for to in ALL {
                for x in views(&[3, 4], from) {
                    let y = cast(&x, to).unwrap();
                    assert_eq!(y.dtype(), to);
                    let expected: Vec<f64> = naive(&x).iter().map(|&v| rounded(v, to)).collect();
                    assert_eq!(naive(&y), expected, "{from} to {to}");
                }
            }
        }
    }

    #[test]
    fn cast_at_the_edges() {
        let edges = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e300, -0.0, 0.5, -1.9, 5e-324];
        let x = Tensor::from_vec(edges.to_vec(), [9]);
        assert_eq!(
            cast(&x, DType::I64).unwrap().to_vec::<i64>().unwrap(),
            [0, i64::MAX, i64::MIN, i64::MAX, i64::MIN, 0, 0, -1, 0]
        );
        assert_eq!(
            cast(&x, DType::Bool).unwrap().to_vec::<bool>().unwrap(),
            [true, true, true, true, true, false, true, true, true]
        );
    }

    #[test]
    fn rounding_f32_to_bf16_is_half_even_and_keeps_nan() {
        // Every upper half with every kind of lower half: below, at and above the tie, and the extremes.
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let v = f32::from_bits(u32::from(upper) << 16 | lower);
                let (found, expected) = (round_to_bf16(v), bf16::from_f32(v));
                assert!(same(found.to_f64(), expected.to_f64()), "{v:e}: {found:e}, expected {expected:e}");
                if !v.is_nan() {
                    assert_eq!(found.to_bits(), expected.to_bits());
                }
            }
        }
    }

    #[test]
    fn large_integers_round_to_bf16_once() {
        // 2^62 + 2^54 lies half way between two bf16 values; one more must round up, one less down.
        let tie = (1i64 << 62) + (1 << 54);
        let x = Tensor::from_vec(vec![tie - 1, tie, tie + 1, -tie - 1, i64::MIN], [5]);
        let y = cast(&x, DType::BF16).unwrap().to_f64_vec().unwrap();
        let (low, high) = (2f64.powi(62), 2f64.powi(62) + 2f64.powi(55));
        assert_eq!(y, [low, low, high, -high, -(2f64.powi(63))]);
    }

    #[test]
    fn assemble_writes_parts_into_zeros() {
        for dtype in ALL {
            for part in views(&[2, 3], dtype) {
                let whole = Layout::contiguous([4, 7]);
                let place = whole.slice(0, 1, 4, 2).slice(1, 1, 7, 2).flip(1);
                let y = assemble(&[4, 7].into(), dtype, &[(place, &part)]).unwrap();
                let (part, y) = (naive(&part), naive(&y));
                let mut expected = vec![0.0; 28];
                for i in 0..2 {
                    for j in 0..3 {
                        expected[(1 + 2 * i) * 7 + 1 + 2 * (2 - j)] = part[i * 3 + j];
                    }
                }
                assert_eq!(y, expected, "{dtype}");
            }
        }
    }

    #[test]
    fn assemble_concatenates_and_takes_empty_parts() {
        let a = Tensor::from_f64(&values(600, DType::F32), [2, 300], DType::F32);
        let b = Tensor::from_f64(&values(1000, DType::F32), [500, 2], DType::F32).transpose(0, 1);
        let nothing = Tensor::zeros([2, 0], DType::F32);
        let whole = Layout::contiguous([2, 800]);
        let parts = [
            (whole.slice(1, 0, 300, 1), &a),
            (whole.slice(1, 300, 300, 1), &nothing),
            (whole.slice(1, 300, 800, 1), &b),
        ];
        let y = naive(&assemble(&[2, 800].into(), DType::F32, &parts).unwrap());
        let (a, b) = (naive(&a), naive(&b));
        let expected = [&a[..300], &b[..500], &a[300..], &b[500..]].concat();
        assert_eq!(y, expected);
        let zeros = assemble(&[3].into(), DType::I64, &[]).unwrap();
        assert_eq!(zeros.to_vec::<i64>().unwrap(), [0, 0, 0]);
    }
}
