//! Sorting and top-k, against the standard library's sort.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::Tape;
use limpid_tensor::{DType, Shape, Tensor};

/// The indices that sort a row: NaN last, equal elements in order.
fn order(row: &[f64], descending: bool) -> Vec<i64> {
    let mut order: Vec<i64> = (0..row.len() as i64).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (row[a as usize], row[b as usize]);
        match (a.is_nan(), b.is_nan()) {
            (false, false) if descending => b.partial_cmp(&a).unwrap(),
            (false, false) => a.partial_cmp(&b).unwrap(),
            (a, b) => a.cmp(&b),
        }
    });
    order
}

fn bits(x: &Tensor) -> Vec<u64> {
    x.to_f64_vec().unwrap().into_iter().map(f64::to_bits).collect()
}

/// Rows along an axis, one after another.
fn rows(x: &Tensor, axis: usize) -> Vec<f64> {
    let last: Vec<usize> = (0..x.shape().len()).filter(|&a| a != axis).chain([axis]).collect();
    x.permute(&last).to_f64_vec().unwrap()
}

#[test]
fn sorts_along_every_axis_of_every_layout() {
    let shapes: [Shape; 7] = [
        [6].into(),
        [1].into(),
        [0].into(),
        [3, 5].into(),
        [2, 0].into(),
        [2, 1, 4].into(),
        [2, 3, 1, 2].into(),
    ];
    for shape in shapes {
        for (axis, descending) in (0..shape.len()).flat_map(|a| [(a, false), (a, true)]) {
            let n = shape[axis];
            for x in layouts(&normal(&shape, 1)) {
                let tape = Tape::new();
                let (values, indices) = tape.constant(&x).sort(axis as isize, descending);
                let (values, indices) = (values.value().unwrap(), indices.value().unwrap());
                assert_eq!((indices.shape(), indices.dtype()), (&shape, DType::I64));
                let (from, values, indices) = (rows(&x, axis), rows(&values, axis), rows(&indices, axis));
                for row in 0..shape.elements().checked_div(n).unwrap_or(0) {
                    let at = row * n..(row + 1) * n;
                    let expected = order(&from[at.clone()], descending);
                    let sorted: Vec<f64> = expected.iter().map(|&i| from[at.start + i as usize]).collect();
                    assert!(indices[at.clone()].iter().zip(&expected).all(|(&a, &b)| a == b as f64));
                    assert_eq!(values[at], sorted, "{shape} axis {axis}");
                }
            }
        }
    }
}

#[test]
fn equal_elements_keep_their_order_and_nan_comes_last() {
    let x = [2.0, f64::NAN, -0.0, f64::NEG_INFINITY, 2.0, 0.0, f64::NAN, f64::INFINITY, -1.0];
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for (descending, expected) in
            [(false, [3, 8, 2, 5, 0, 4, 7, 1, 6]), (true, [7, 0, 4, 2, 5, 8, 3, 1, 6])]
        {
            assert_eq!(order(&x, descending), expected);
            let tape = Tape::new();
            let leaf = Tensor::from_f64(&x, [9], dtype);
            let (values, indices) = tape.constant(&leaf).sort(0, descending);
            assert_eq!(indices.value().unwrap().to_vec::<i64>().unwrap(), expected, "{dtype}");
            let chosen: Vec<f64> = expected.iter().map(|&i| x[i as usize]).collect();
            assert_eq!(bits(&values.value().unwrap()), bits(&Tensor::from_f64(&chosen, [9], dtype)));
        }
    }
}

#[test]
fn integers_and_booleans_sort() {
    let tape = Tape::new();
    let x = tape.constant(&Tensor::from_vec(vec![i64::MAX, -1, i64::MAX - 1], [3]));
    assert_eq!(x.argsort(0, true).value().unwrap().to_vec::<i64>().unwrap(), [0, 2, 1]);
    let x = tape.constant(&Tensor::from_vec(vec![true, false, true], [3]));
    assert_eq!(x.argsort(0, false).value().unwrap().to_vec::<i64>().unwrap(), [1, 0, 2]);
}

#[test]
fn topk_is_the_front_of_the_sorted_row() {
    for x in layouts(&normal(&[3, 5], 1)) {
        for (k, axis, largest) in [(0, 1, true), (1, 1, false), (3, -1, true), (5, 1, true), (2, 0, false)] {
            let tape = Tape::new();
            let x = tape.constant(&x);
            let (values, indices) = x.topk(k, axis, largest);
            let (sorted, order) = x.sort(axis, largest);
            let front = |v: limpid_autograd::Var<'_>| bits(&v.slice(axis, 0, k, 1).value().unwrap());
            assert_eq!(bits(&values.value().unwrap()), front(sorted));
            assert_eq!(bits(&indices.value().unwrap()), front(order));
        }
    }
    let tape = Tape::new();
    let x = tape.constant(&Tensor::from_vec(vec![f64::NAN, 1.0, 2.0], [3]));
    assert_eq!(x.topk(2, 0, true).1.value().unwrap().to_vec::<i64>().unwrap(), [2, 1]);
    assert_eq!(x.topk(2, 0, false).1.value().unwrap().to_vec::<i64>().unwrap(), [1, 2]);
}

#[test]
fn derivatives() {
    for shape in [Shape::from([5]), [2, 3].into(), [2, 0].into(), [2, 1, 3].into(), [2, 1, 2, 3].into()] {
        for x in layouts(&normal(&shape, 4)) {
            for axis in 0..shape.len() as isize {
                check("sort", |v| v[0].sort(axis, false).0, std::slice::from_ref(&x));
                check("sort of a square", |v| (v[0] * v[0]).sort(axis, true).0, std::slice::from_ref(&x));
                let k = shape[axis as usize].min(2);
                check("topk", |v| v[0].topk(k, axis, true).0.tanh(), std::slice::from_ref(&x));
            }
        }
    }
}

#[test]
fn no_gradient_passes_indices() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[4], 1));
    let (values, indices) = x.sort(0, false);
    assert!(values.is_tracked());
    assert!(!indices.is_tracked());
    assert!(!indices.cast(DType::F64).is_tracked());
}

#[test]
#[should_panic(expected = "topk: k = 4 is more than the 3 elements along axis -1 of [2, 3]")]
fn topk_of_too_many_is_refused() {
    let tape = Tape::new();
    tape.variable(&normal(&[2, 3], 1)).topk(4, -1, true);
}
