//! Gathers and scatters that small shapes do not reach: rows in units, long columns. They have the CPU's bits.

mod emulated;

use emulated::{assert_same_bits, device, place};
use limpid_tensor::DType::{self, *};
use limpid_tensor::Tensor;
use limpid_tensor::rng::{Distribution, Key};

const ALL: [DType; 5] = [F32, F64, BF16, I64, Bool];

fn numbers(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let what = match dtype {
        Bool => Distribution::Bernoulli { p: 0.1 },
        _ => Distribution::Normal { mean: 0.0, std: 1e4 },
    };
    let drawn = if dtype == I64 { F64 } else { dtype };
    Tensor::random(what, shape, drawn, Key::new(seed)).and_then(|x| x.cast(dtype)).expect("the CPU draws")
}

/// Indices below n, small ones more often: many of some destinations, none of others.
fn indices(shape: &[usize], n: usize) -> Tensor {
    let key = Key::new(3);
    let count = shape.iter().product();
    Tensor::from_vec((0..count).map(|i| (key.uniform(i as u64).powi(2) * n as f64) as i64).collect(), shape)
}

#[track_caller]
fn gathers(x: &Tensor, axis: usize, index: &Tensor) {
    let what = format!("gather of {} {:?} along {axis} by {:?}", x.dtype(), x.layout(), index.layout());
    let found = device().backend().gather(&place(x), axis, &place(index));
    assert_same_bits(found, x.gather(axis as isize, index), &what);
}

#[track_caller]
fn scatters(base: &Tensor, axis: usize, index: &Tensor, src: &Tensor) {
    let what =
        format!("scatter_add of {} {:?} along {axis} by {:?}", base.dtype(), src.layout(), index.layout());
    let found = device().backend().scatter_add(&place(base), axis, &place(index), &place(src));
    assert_same_bits(found, base.scatter_add(axis as isize, index, src), &what);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn rows_of_a_table() {
    for dtype in ALL {
        for width in [1, 3, 8, 24, 33] {
            let index = indices(&[50, 1], 40).expand([50, width]);
            gathers(&numbers(&[40, width], dtype, 1), 0, &index);
            gathers(&numbers(&[40, width + 8], dtype, 1).slice(1, 4, 4 + width, 1).flip(0), 0, &index);
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn elements_along_any_axis_of_any_view() {
    for dtype in ALL {
        let x = numbers(&[5, 9, 8], dtype, 1);
        gathers(&x, 1, &indices(&[5, 20, 8], 9));
        gathers(&x.flip(1), 1, &indices(&[5, 20, 1], 9).expand([5, 20, 8]));
        gathers(&x.permute(&[2, 0, 1]), 2, &indices(&[1, 1, 30], 9).expand([8, 5, 30]).flip(2));
        gathers(&x.slice(2, 1, 7, 2), 2, &indices(&[5, 9, 4], 3));
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn long_columns_are_added_in_order() {
    for dtype in ALL {
        // Rows of a table; a vector; a column for each position.
        let rows = indices(&[300, 1], 20);
        scatters(&numbers(&[20, 5], dtype, 1), 0, &rows.expand([300, 5]), &numbers(&[300, 5], dtype, 2));
        scatters(&numbers(&[20], dtype, 1), 0, &indices(&[700], 20), &numbers(&[700], dtype, 2));
        scatters(
            &numbers(&[3, 9, 4], dtype, 1),
            1,
            &indices(&[3, 60, 4], 9),
            &numbers(&[3, 60, 4], dtype, 2),
        );
        let turned = numbers(&[40, 60], dtype, 2).transpose(0, 1).flip(0);
        scatters(
            &numbers(&[9, 40], dtype, 1).flip(1),
            0,
            &indices(&[1, 60], 9).expand([40, 60]).transpose(0, 1),
            &turned,
        );
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn short_columns_are_added_in_order() {
    for dtype in ALL {
        scatters(&numbers(&[20, 70], dtype, 1), 0, &indices(&[31, 70], 20), &numbers(&[31, 70], dtype, 2));
        let broadcast = numbers(&[1, 70], dtype, 2).expand([9, 70]);
        scatters(&numbers(&[4, 70], dtype, 1).flip(0), 0, &indices(&[9, 1], 4).expand([9, 70]), &broadcast);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn nothing_to_choose_or_add() {
    for (rows, n) in [(0, 0), (3, 0), (0, 3)] {
        let x = numbers(&[rows, 5], F32, 1);
        gathers(&x, 0, &Tensor::zeros([0, 5], I64));
        scatters(&x, 0, &Tensor::zeros([0, 5], I64), &Tensor::zeros([0, 5], F32));
        gathers(&Tensor::zeros([3, 0], F32), 0, &Tensor::zeros([n, 0], I64));
    }
}
