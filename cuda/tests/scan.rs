//! Running sums that small shapes do not reach: lines that a block adds up, and several blocks. Whole numbers, whose sums
//! are exact in any order, have the CPU's bits.

mod emulated;
mod views;

use emulated::{assert_same_bits, device, place};
use limpid_tensor::DType::{self, *};
use limpid_tensor::rng::Key;
use limpid_tensor::{Device, Tensor};
use views::views;

const NUMBERS: [DType; 4] = [F32, F64, BF16, I64];

#[track_caller]
fn agrees(x: &Tensor, axis: usize) {
    let what = format!("cumsum of {} {:?} along {axis}", x.dtype(), x.layout());
    let found = device().backend().cumsum(&place(x), axis);
    assert_same_bits(found, Device::cpu().backend().cumsum(x, axis), &what);
}

#[track_caller]
fn all_views_agree(dtypes: &[DType], shape: &[usize], axis: usize) {
    let key = Key::new(5);
    let values: Vec<f64> =
        (0..shape.iter().product::<usize>()).map(|i| (key.uniform(i as u64) * 17.0).floor() - 8.0).collect();
    for &dtype in dtypes {
        views(&Tensor::from_f64(&values, shape, dtype)).iter().for_each(|x| agrees(x, axis));
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn lines_of_every_length() {
    for length in [1, 2, 5, 31, 128, 300, 2100] {
        all_views_agree(&NUMBERS, &[3, length], 1);
        all_views_agree(&NUMBERS, &[length, 3], 0);
    }
    all_views_agree(&NUMBERS, &[40, 130], 0);
    all_views_agree(&NUMBERS, &[3, 20, 6, 1], 2);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn lines_in_segments() {
    all_views_agree(&NUMBERS, &[2, 17_000], 1);
    all_views_agree(&[F32, I64], &[40_000, 3], 0);
    all_views_agree(&[F64, BF16], &[1100, 50], 0);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_came_before_an_infinity_is_not_lost() {
    for axis in [0, 1] {
        let mut values = vec![1.0; 9000];
        (values[8500], values[8700]) = (f64::INFINITY, f64::NEG_INFINITY);
        let shape = if axis == 0 { [9000, 1] } else { [1, 9000] };
        agrees(&Tensor::from_f64(&values, shape, F32), axis);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn lines_of_nothing() {
    for axis in 0..3 {
        agrees(&Tensor::zeros([2, 0, 3], F32), axis);
    }
}
