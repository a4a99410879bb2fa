//! Orders of rows that small shapes do not reach: of a whole tile, and of several that are merged.

mod emulated;
mod views;

use emulated::{assert_same_bits, device, place};
use limpid_tensor::DType::{self, *};
use limpid_tensor::rng::Key;
use limpid_tensor::{Device, Tensor};
use views::views;

const ALL: [DType; 5] = [F32, F64, BF16, I64, Bool];

#[track_caller]
fn agrees(x: &Tensor, axis: usize) {
    for descending in [false, true] {
        let order = if descending { "descending" } else { "ascending" };
        let what = format!("argsort of {} {:?} along {axis}, {order}", x.dtype(), x.layout());
        let found = device().backend().argsort(&place(x), axis, descending);
        assert_same_bits(found, Device::cpu().backend().argsort(x, axis, descending), &what);
    }
}

/// Many equal numbers of both signs, zeros of both signs, infinities and NaN.
fn ties(shape: &[usize], dtype: DType) -> Tensor {
    let key = Key::new(11);
    let value = |i: usize| match (key.uniform(i as u64) * 40.0) as u32 {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3 => -0.0,
        4 => 0.0,
        k => (f64::from(k) - 20.0) * 1e3,
    };
    let whole = |v: f64| if v.is_finite() { v } else { 7.0 };
    let values = (0..shape.iter().product()).map(value);
    let values: Vec<f64> = if dtype.is_float() { values.collect() } else { values.map(whole).collect() };
    Tensor::from_f64(&values, shape, dtype)
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn rows_of_every_length() {
    for dtype in ALL {
        for length in [1, 2, 3, 17, 64, 100] {
            agrees(&ties(&[40, length], dtype), 1);
            agrees(&ties(&[length, 7], dtype), 0);
        }
        views(&ties(&[60, 37], dtype)).iter().for_each(|x| agrees(x, 1));
        agrees(&ties(&[2, 2047], dtype), 1);
        agrees(&ties(&[2048], dtype), 0);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn rows_of_several_tiles() {
    for dtype in ALL {
        agrees(&ties(&[2, 2049], dtype), 1);
        agrees(&ties(&[2, 4500, 2], dtype).flip(1), 1);
    }
    agrees(&ties(&[4096], BF16), 0);
    agrees(&ties(&[10_300], F64), 0);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn one_run_before_the_other() {
    let up: Vec<i64> = (0..9000).collect();
    let x = Tensor::from_slice(&up, [9000]);
    agrees(&x, 0);
    agrees(&x.flip(0), 0);
    agrees(&Tensor::zeros([9000], F64), 0);
    agrees(&Tensor::from_slice(&[i64::MIN, i64::MAX, 0, -1, i64::MIN, i64::MAX], [6]), 0);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn orders_of_nothing() {
    agrees(&Tensor::zeros([2, 0, 3], F32), 1);
    agrees(&Tensor::zeros([0, 3], Bool), 1);
}
