//! Triangles, against loops.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::Tape;
use limpid_tensor::{DType, Shape, Tensor};

#[test]
fn triangles_of_every_diagonal_and_layout() {
    let shapes: [Shape; 7] = [
        [3, 3].into(),
        [2, 4].into(),
        [4, 2].into(),
        [1, 1].into(),
        [0, 3].into(),
        [3, 0].into(),
        [2, 1, 3, 2].into(),
    ];
    for shape in shapes {
        let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        for x in layouts(&normal(&shape, 1)) {
            let values = x.to_vec::<f64>().unwrap();
            for diagonal in -5..=5 {
                let tape = Tape::new();
                let x = tape.constant(&x);
                let keep = |stays: fn(isize, isize) -> bool| -> Vec<f64> {
                    let offset = |i: usize| (i % columns) as isize - (i / columns % rows) as isize;
                    let at = |(i, &v): (usize, &f64)| if stays(offset(i), diagonal) { v } else { 0.0 };
                    values.iter().enumerate().map(at).collect()
                };
                let (lower, upper) = (x.tril(diagonal).value().unwrap(), x.triu(diagonal).value().unwrap());
                assert_eq!(
                    lower.to_vec::<f64>().unwrap(),
                    keep(|offset, d| offset <= d),
                    "{shape} {diagonal}"
                );
                assert_eq!(
                    upper.to_vec::<f64>().unwrap(),
                    keep(|offset, d| offset >= d),
                    "{shape} {diagonal}"
                );
            }
        }
    }
}

#[test]
fn what_is_left_out_is_zero_whatever_it_was() {
    let tape = Tape::new();
    let x = tape.variable(&Tensor::from_vec(vec![1.0, f64::NAN, f64::INFINITY, 2.0], [2, 2]));
    assert_eq!(x.tril(-1).triu(0).value().unwrap().to_vec::<f64>().unwrap(), [0.0; 4]);
    let gradients = tape.backward(x.tril(-1).triu(0).sum(&[])).unwrap();
    assert_eq!(gradients.of(x).unwrap().to_vec::<f64>().unwrap(), [0.0; 4]);
}

#[test]
fn every_dtype_has_triangles() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool] {
        let tape = Tape::new();
        let y = tape.constant(&Tensor::ones([2, 2], dtype)).tril(0);
        assert_eq!(y.dtype(), dtype);
        assert_eq!(y.value().unwrap().to_f64_vec().unwrap(), [1.0, 0.0, 1.0, 1.0]);
    }
}

#[test]
fn derivatives() {
    for shape in [Shape::from([3, 3]), [2, 4].into(), [1, 1].into(), [0, 2].into(), [2, 3, 2].into()] {
        for x in layouts(&normal(&shape, 1)) {
            for diagonal in [-1, 0, 1] {
                check("tril", |v| v[0].tril(diagonal), std::slice::from_ref(&x));
                check("triu of a square", |v| (v[0] * v[0]).triu(diagonal), std::slice::from_ref(&x));
            }
        }
    }
}

#[test]
#[should_panic(expected = "triu: a triangle needs two axes, found [3]")]
fn a_vector_has_no_triangle() {
    let tape = Tape::new();
    tape.variable(&normal(&[3], 1)).triu(0);
}
