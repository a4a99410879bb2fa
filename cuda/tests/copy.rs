//! Copies and casts that small shapes do not reach: tiles, units, aligned packs, many axes. They have the CPU's bits.

mod emulated;

use emulated::{assert_same_bits, device, place};
use limpid_tensor::DType::{self, *};
use limpid_tensor::rng::{Distribution, Key};
use limpid_tensor::{Backend, Device, Layout, Result, Tensor};

const ALL: [DType; 5] = [F32, F64, BF16, I64, Bool];

/// A tensor of different elements.
fn numbers(shape: &[usize], dtype: DType) -> Tensor {
    let what = match dtype {
        Bool => Distribution::Bernoulli { p: 0.5 },
        _ => Distribution::Normal { mean: 0.0, std: 1e4 },
    };
    let drawn = if dtype == I64 { F64 } else { dtype };
    Tensor::random(what, shape, drawn, Key::new(1)).and_then(|x| x.cast(dtype)).expect("the CPU draws")
}

/// Asserts that the device does to a view what the CPU does.
#[track_caller]
fn agrees(x: &Tensor, what: &str, f: impl Fn(&dyn Backend, &Tensor) -> Result<Tensor>) {
    let what = format!("{what} of {} {:?}", x.dtype(), x.layout());
    assert_same_bits(f(device().backend(), &place(x)), f(Device::cpu().backend(), x), &what);
}

fn copies(x: &Tensor) {
    agrees(x, "contiguous", |backend, x| backend.contiguous(x));
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn axes_change_places_tile_by_tile() {
    for dtype in ALL {
        copies(&numbers(&[2, 70, 45], dtype).permute(&[0, 2, 1]));
        copies(&numbers(&[2, 70, 45], dtype).permute(&[2, 1, 0]));
        copies(&numbers(&[130, 16], dtype).transpose(0, 1).flip(0));
        copies(&numbers(&[64, 64], dtype).flip(0).transpose(0, 1).flip(1));
        copies(&numbers(&[20, 3, 50], dtype).permute(&[2, 1, 0]));
        copies(&numbers(&[40, 90], dtype).slice(1, 1, 90, 2).transpose(0, 1));
    }
    // Pairs of f64 that stay together: units of 16 bytes that change places.
    copies(&numbers(&[40, 33, 2], F64).permute(&[1, 0, 2]));
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn rows_in_units_of_every_size() {
    for dtype in ALL {
        let x = numbers(&[6, 48], dtype);
        for (start, end) in [(0, 48), (0, 32), (16, 32), (8, 40), (4, 44), (2, 18), (1, 47), (3, 4)] {
            copies(&x.slice(1, start, end, 1));
            copies(&x.slice(1, start, end, 1).flip(0));
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn as_many_axes_as_there_are() {
    let every_second = (0..9).fold(numbers(&[4; 9], F32), |x, axis| x.slice(axis, 0, 4, 2));
    copies(&every_second);
    agrees(&every_second, "cast", |backend, x| backend.cast(x, BF16));
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn parts_at_odd_places() {
    for dtype in ALL {
        let part = numbers(&[37, 18], dtype);
        let shape = [40, 61];
        let whole = Layout::contiguous(shape);
        let upper = whole.slice(1, 2, 38, 2).slice(0, 1, 38, 1);
        let turned = whole.slice(1, 39, 57, 1).slice(0, 0, 37, 1).flip(0);
        agrees(&part, "assemble", |backend, part| {
            backend.assemble(&shape.into(), dtype, &[(upper.clone(), part), (turned.clone(), &part.flip(1))])
        });
        // The derivative of a transposition: a place whose axes change places.
        let place = Layout::contiguous([18, 37]).permute(&[1, 0]);
        agrees(&part, "assemble", |backend, part| {
            backend.assemble(&[18, 37].into(), dtype, &[(place.clone(), part)])
        });
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn casts_of_everything_that_rounds() {
    let mut edges: Vec<f64> =
        vec![f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 0.5, -1.9, 5e-324, 1e300, -1e300];
    edges.extend([2f64.powi(63), -(2f64.powi(63)), 2f64.powi(63).next_down(), 1e-40, 3.4e38, 1e-45, 3.39e38]);
    for tie in [1.0 + 2f64.powi(-8), 1.0 + 3.0 * 2f64.powi(-8), 2f64.powi(-134), 1.0 + 2f64.powi(-24)] {
        edges.extend([tie.next_down(), tie, tie.next_up(), -tie.next_down(), -tie, -tie.next_up()]);
    }
    let tie = (1i64 << 62) + (1 << 54);
    let integers =
        vec![tie - 1, tie, tie + 1, -tie - 1, -tie, -tie + 1, i64::MIN, i64::MAX, 0, -1, (1 << 53) + 1];
    let floats = Tensor::from_vec(edges.clone(), [edges.len()]);
    let integers = Tensor::from_vec(integers, [11]);
    for from in ALL {
        let x = if from == I64 { integers.clone() } else { floats.cast(from).expect("the CPU casts") };
        for to in ALL {
            agrees(&x, &format!("cast to {to}"), |backend, x| backend.cast(x, to));
            agrees(&x.slice(0, 1, 10, 2), &format!("cast to {to}"), |backend, x| backend.cast(x, to));
        }
    }
    let nan = Tensor::from_vec(vec![f64::NAN, -f64::NAN], [2]);
    for to in [I64, Bool] {
        agrees(&nan, &format!("cast to {to}"), |backend, x| backend.cast(x, to));
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn casts_of_every_layout() {
    for (from, to) in
        [(F32, BF16), (BF16, F32), (F64, F32), (I64, F32), (F32, Bool), (Bool, F64), (BF16, I64)]
    {
        for n in [0, 1, 7, 16, 1000] {
            agrees(&numbers(&[n], from), &format!("cast to {to}"), |backend, x| backend.cast(x, to));
        }
        let x = numbers(&[40, 50], from);
        for view in [
            x.transpose(0, 1),
            x.slice(1, 3, 40, 1),
            x.slice(0, 1, 40, 1),
            x.slice(0, 0, 1, 1).expand([9, 50]),
        ] {
            agrees(&view, &format!("cast to {to}"), |backend, x| backend.cast(x, to));
        }
    }
}
