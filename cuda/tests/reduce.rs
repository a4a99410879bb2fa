//! Reductions that small shapes do not reach: rows that a block combines, results in parts, runs that are not aligned.
//! Where sums and products are exact in any order, they have the CPU's bits.

mod emulated;
mod views;

use emulated::{assert_same_bits, device, place};
use limpid_tensor::DType::{self, *};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Device, Reduce, Tensor};
use views::views;

const NUMBERS: [DType; 4] = [F32, F64, BF16, I64];
const ALL: [Reduce; 5] = [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min, Reduce::ArgMax];

/// Whole numbers from −8 to 8, of which any order of adding a million is exact; for products 1, and rarely 2 or −1.
fn numbers(f: Reduce, shape: &[usize], dtype: DType) -> Tensor {
    let key = Key::new(5);
    let value = |i: usize| match f {
        Reduce::Prod if i % 997 == 5 => 2.0,
        Reduce::Prod if i % 331 == 3 => -1.0,
        Reduce::Prod => 1.0,
        _ => (key.uniform(i as u64) * 17.0).floor() - 8.0,
    };
    let values: Vec<f64> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_f64(&values, shape, dtype)
}

#[track_caller]
fn agrees(f: Reduce, x: &Tensor, axes: &[usize]) {
    let what = format!("{} of {} {:?} over {axes:?}", f.name(), x.dtype(), x.layout());
    let found = device().backend().reduce(f, &place(x), axes);
    assert_same_bits(found, Device::cpu().backend().reduce(f, x, axes), &what);
}

#[track_caller]
fn all_views_agree(functions: &[Reduce], dtypes: &[DType], shape: &[usize], axes: &[usize]) {
    for &dtype in dtypes {
        for &f in functions {
            views(&numbers(f, shape, dtype)).iter().for_each(|x| agrees(f, x, axes));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn rows_of_every_length() {
    for length in [1, 7, 33, 300] {
        all_views_agree(&ALL, &NUMBERS, &[3, length], &[1]);
    }
    all_views_agree(&[Reduce::Sum, Reduce::ArgMax], &NUMBERS, &[2, 5003], &[1]);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn columns_of_every_length() {
    for (length, columns) in [(2, 9), (19, 70), (5, 1100), (100, 3)] {
        all_views_agree(&ALL, &NUMBERS, &[length, columns], &[0]);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn results_in_parts() {
    all_views_agree(&[Reduce::Sum, Reduce::ArgMax], &[F32, BF16], &[33_001], &[0]);
    all_views_agree(&[Reduce::Sum, Reduce::ArgMax], &[F64, I64], &[2, 8200], &[1]);
    all_views_agree(&ALL, &[F32, BF16], &[300, 40], &[0]);
    all_views_agree(&[Reduce::Sum, Reduce::ArgMax], &[F64, I64], &[2, 150, 66], &[1]);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn parts_of_parts() {
    let x = numbers(Reduce::Sum, &[128 * 128 + 1, 33], F64);
    agrees(Reduce::Sum, &x, &[0]);
    agrees(Reduce::ArgMax, &x, &[0]);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn axes_apart() {
    for axes in [&[0, 2][..], &[1, 3], &[0, 1, 3], &[0, 2, 3], &[1, 2], &[]] {
        all_views_agree(&[Reduce::Sum, Reduce::Max], &[F32, BF16], &[5, 6, 7, 8], axes);
    }
    let row = numbers(Reduce::Sum, &[40, 1, 12], F32).expand([40, 9, 12]);
    for axes in [&[0][..], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]] {
        agrees(Reduce::Sum, &row, axes);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_nan_in_any_part_is_seen() {
    for dtype in [F32, F64, BF16] {
        for (shape, axis) in [([1, 20_000], 1), ([20_000, 1], 0), ([700, 5], 0)] {
            let mut values = vec![1.0; shape[0] * shape[1]];
            let at = values.len() * 9 / 10;
            (values[at], values[at + 7]) = (f64::NAN, f64::NAN);
            let x = Tensor::from_f64(&values, shape, dtype);
            ALL.iter().for_each(|&f| agrees(f, &x, &[axis]));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn nothing_sums_to_zero_and_multiplies_to_one() {
    for dtype in NUMBERS {
        for (shape, axes) in
            [([2, 0, 3], &[1][..]), ([2, 0, 3], &[0, 1, 2]), ([0, 2, 3], &[1]), ([4, 5, 0], &[2])]
        {
            let x = Tensor::zeros(shape, dtype);
            for x in [x.clone(), x.flip(0)] {
                agrees(Reduce::Sum, &x, axes);
                agrees(Reduce::Prod, &x, axes);
            }
        }
    }
}

/// 0.1 added one after the other a hundred thousand times loses a thousandth in f32.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn sums_of_many_numbers_keep_their_digits() {
    let n = 1 << 17;
    let tenth = Tensor::full([], 0.1, F32);
    let exact = tenth.item().expect("it is on the CPU") * n as f64;
    for (shape, axis) in [([1, n], 1), ([n / 2, 2], 0)] {
        let x = place(&tenth).expand(shape).contiguous().expect("the emulator copies");
        let y = x.reduce(Reduce::Sum, &[axis]).and_then(|y| y.to_f64_vec()).expect("the emulator adds");
        let exact = exact / y.len() as f64;
        for found in y {
            assert!((found - exact).abs() <= 2.0 * exact * f64::from(f32::EPSILON), "{found} is not {exact}");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn bits_do_not_depend_on_where_a_view_lies_or_what_is_beside_it() {
    let what = Distribution::Normal { mean: 0.0, std: 1.0 };
    let x = Tensor::random(what, [41, 3000], F32, Key::new(2)).expect("the CPU draws");
    let sum = |x: &Tensor, axis: isize| {
        let y = place(x).reduce(Reduce::Sum, &[axis]).and_then(|y| y.to(&Device::cpu()));
        y.and_then(|y| y.to_vec::<f32>())
            .expect("the emulator adds")
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    let rows = sum(&x, 1);
    let shifted = views(&x).swap_remove(2);
    assert_eq!(sum(&shifted, 1), rows, "rows that are not aligned");
    assert_eq!(sum(&x.slice(0, 7, 9, 1), 1), rows[7..9], "two rows alone");
    assert_eq!(sum(&shifted, 0), sum(&x, 0), "columns that are not aligned");
}
