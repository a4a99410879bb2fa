//! Gather, scatter-add and index_select, against loops.

mod check;

use check::{check, layouts, normal};
use limpid_autograd::{Error, Tape};
use limpid_tensor::rng::Key;
use limpid_tensor::{DType, Layout, Shape, Tensor};

/// Shapes of ranks 1 to 4, with sizes 0 and 1.
fn shapes() -> Vec<Shape> {
    vec![
        [5].into(),
        [1].into(),
        [0].into(),
        [3, 4].into(),
        [1, 3].into(),
        [2, 0].into(),
        [2, 3, 2].into(),
        [2, 1, 3, 2].into(),
    ]
}

/// Indices below `size`, with repetitions.
fn indices(shape: &Shape, size: usize) -> Tensor {
    let key = Key::new(3).fold(shape.elements() as u64);
    let values: Vec<i64> = (0..shape.elements()).map(|i| (key.bits(i as u64) % size as u64) as i64).collect();
    Tensor::from_vec(values, shape)
}

/// For each position of an index tensor: its row-major position, and that of the element of x that it names.
fn pairs(x: &Shape, axis: usize, index: &Tensor) -> Vec<(usize, usize)> {
    let chosen = index.to_vec::<i64>().unwrap();
    let strides = Layout::contiguous(x);
    let mut pairs = Vec::new();
    for (position, &i) in chosen.iter().enumerate() {
        let (mut rest, mut at) = (position, 0);
        for a in (0..x.len()).rev() {
            let coordinate = if a == axis { i as usize } else { rest % index.shape()[a] };
            at += coordinate * strides.strides()[a] as usize;
            rest /= index.shape()[a];
        }
        pairs.push((position, at));
    }
    pairs
}

/// Every shape, axis and number of chosen elements for which there is something to choose from.
fn cases() -> Vec<(Tensor, usize, Tensor)> {
    let mut cases = Vec::new();
    for shape in shapes() {
        for axis in 0..shape.len() {
            for n in [0, 1, shape[axis] + 2] {
                if shape[axis] > 0 || n == 0 {
                    let index = indices(&shape.with(axis, n), shape[axis].max(1));
                    cases.push((normal(&shape, 1), axis, index));
                }
            }
        }
    }
    cases
}

#[test]
fn gather_chooses_what_the_index_names() {
    for (x, axis, index) in cases() {
        let values = x.to_vec::<f64>().unwrap();
        let expected: Vec<f64> = pairs(x.shape(), axis, &index).iter().map(|&(_, at)| values[at]).collect();
        for (x, index) in layouts(&x).iter().flat_map(|x| layouts(&index).into_iter().map(move |i| (x, i))) {
            let tape = Tape::new();
            let y = tape.constant(x).gather(axis as isize, tape.constant(&index));
            assert_eq!(y.shape(), *index.shape());
            assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), expected, "{} axis {axis}", x.shape());
        }
    }
}

#[test]
fn scatter_add_adds_in_order_where_the_index_says() {
    for (base, axis, index) in cases() {
        let src = normal(index.shape(), 2);
        let mut expected = base.to_vec::<f64>().unwrap();
        let values = src.to_vec::<f64>().unwrap();
        for (position, at) in pairs(base.shape(), axis, &index) {
            expected[at] += values[position];
        }
        for ((base, index), src) in layouts(&base).iter().zip(layouts(&index)).zip(layouts(&src).iter().rev())
        {
            let tape = Tape::new();
            let (x, index) = (tape.constant(base), tape.constant(&index));
            let y = x.scatter_add(axis as isize, index, tape.constant(src));
            assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), expected, "{} axis {axis}", base.shape());
            assert_eq!(x.value().unwrap().to_vec::<f64>().unwrap(), base.to_vec::<f64>().unwrap());
        }
    }
}

#[test]
fn index_select_is_slices_side_by_side() {
    for shape in shapes() {
        let x = normal(&shape, 1);
        for axis in 0..shape.len() {
            for n in [0, 1, 4] {
                if shape[axis] == 0 && n > 0 {
                    continue;
                }
                let index = indices(&[n].into(), shape[axis].max(1));
                let parts: Vec<Tensor> = index
                    .to_vec::<i64>()
                    .unwrap()
                    .iter()
                    .map(|&i| x.slice(axis, i as usize, i as usize + 1, 1))
                    .collect();
                let whole = Layout::contiguous(shape.with(axis, n));
                let places: Vec<(Layout, &Tensor)> = parts
                    .iter()
                    .enumerate()
                    .map(|(i, part)| (whole.slice(axis, i, i + 1, 1), part))
                    .collect();
                let expected = Tensor::assemble(x.device(), whole.shape(), DType::F64, &places).unwrap();
                for x in layouts(&x) {
                    for index in layouts(&index) {
                        let tape = Tape::new();
                        let y = tape
                            .constant(&x)
                            .index_select(axis as isize - shape.len() as isize, tape.constant(&index));
                        assert_eq!(
                            y.value().unwrap().to_vec::<f64>().unwrap(),
                            expected.to_vec::<f64>().unwrap(),
                            "{shape} axis {axis}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn index_select_repeats_its_index_without_a_copy() {
    let tape = Tape::new();
    let index = Tensor::from_vec(vec![2i64, 0, 2], [3]);
    let y = tape.variable(&normal(&[4, 1000], 1)).index_select(0, tape.constant(&index));
    assert_eq!(y.shape(), Shape::from([3, 1000]));
    let memory = tape.memory();
    assert_eq!(memory.needed, 0, "the index is a view of its leaf");
    assert_eq!(memory.other, 3 * 1000 * 8, "only the result is new");
}

#[test]
fn every_dtype_can_be_chosen_from() {
    let index = Tensor::from_vec(vec![1i64, 1, 0], [3]);
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool] {
        let tape = Tape::new();
        let x = tape.constant(&Tensor::from_f64(&[0.0, 1.0], [2], dtype));
        let index = tape.constant(&index);
        assert_eq!(x.gather(0, index).value().unwrap().to_f64_vec().unwrap(), [1.0, 1.0, 0.0], "{dtype}");
        let sums = tape.constant(&Tensor::zeros([2], dtype)).scatter_add(0, index, x.gather(0, index));
        let expected = if dtype == DType::Bool { [0.0, 1.0] } else { [0.0, 2.0] };
        assert_eq!(sums.value().unwrap().to_f64_vec().unwrap(), expected, "{dtype}");
    }
}

#[test]
fn derivatives() {
    for (x, axis, index) in cases() {
        let axis = axis as isize;
        let src = normal(index.shape(), 2);
        for ((x, index), src) in layouts(&x).into_iter().zip(layouts(&index)).zip(layouts(&src)) {
            check("gather", |v| v[0].gather(axis, v[1]), &[x.clone(), index.clone()]);
            check("gather of a square", |v| (v[0] * v[0]).gather(axis, v[1]), &[x.clone(), index.clone()]);
            check(
                "scatter_add",
                |v| v[0].scatter_add(axis, v[1], v[2]),
                &[x.clone(), index.clone(), src.clone()],
            );
            check(
                "scatter_add, then a product",
                |v| {
                    let y = v[0].scatter_add(axis, v[1], v[2] * v[2]);
                    y * y
                },
                &[x, index, src],
            );
        }
    }
    let table = normal(&[3, 4], 1);
    let tokens = Tensor::from_vec(vec![2i64, 0, 2, 2], [4]);
    check("index_select", |v| v[0].index_select(0, v[1]).tanh(), &[table.clone(), tokens.clone()]);
    check("index_select of the last axis", |v| v[0].index_select(-1, v[1]), &[table.clone(), tokens]);
    let wide = table.slice(0, 0, 1, 1).expand([3, 4]);
    let column = Tensor::from_vec(vec![1i64, 2], [2, 1]).expand([2, 4]);
    check("gather with a stretched index", |v| v[0].gather(0, v[1]), &[wide, column]);
}

#[test]
fn an_index_has_no_cotangent_even_if_asked_for() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[3], 1));
    let index = tape.constant(&Tensor::from_vec(vec![2i64, 2, 0], [3]));
    let g = tape.constant(&Tensor::ones([3], DType::F64));
    for y in [x.gather(0, index), x.scatter_add(0, index, x)] {
        let cotangents = tape.vjp(y, g, &[x, index]).unwrap();
        assert!(cotangents[0].is_some() && cotangents[1].is_none());
    }
}

#[test]
fn an_index_beyond_the_axis_is_an_error_at_the_line_that_used_it() {
    for (i, wrong) in [3i64, -1].into_iter().enumerate() {
        let tape = Tape::new();
        let x = tape.variable(&normal(&[3], 1));
        let index = tape.constant(&Tensor::from_vec(vec![0, wrong], [2]));
        let (y, line) = (x.gather(0, index), line!());
        match y.value() {
            Err(Error::Backend { site, message }) => {
                assert_eq!((site.op.as_str(), site.location.line()), ("gather", line));
                assert!(message.contains(&wrong.to_string()), "{i}: {message}");
            }
            _ => panic!("an index of {wrong} should be an error of the device"),
        }
    }
}

#[test]
#[should_panic(expected = "gather: the index must be i64, found f64")]
fn a_float_index_is_refused() {
    let tape = Tape::new();
    let x = tape.variable(&normal(&[3], 1));
    x.gather(0, x);
}

#[test]
#[should_panic(expected = "gather: along axis 1: index [3, 2] must agree with [2, 3] on every other axis")]
fn an_index_of_another_shape_is_refused() {
    let tape = Tape::new();
    let index = tape.constant(&Tensor::zeros([3, 2], DType::I64));
    tape.variable(&normal(&[2, 3], 1)).gather(-1, index);
}

#[test]
#[should_panic(expected = "scatter_add: index [2] and source [3] differ in shape")]
fn a_source_of_another_shape_is_refused() {
    let tape = Tape::new();
    let (x, index) = (tape.variable(&normal(&[3], 1)), tape.constant(&Tensor::zeros([2], DType::I64)));
    x.scatter_add(0, index, x);
}

#[test]
#[should_panic(expected = "scatter_add: base is f64 and source is f32")]
fn a_source_of_another_dtype_is_refused() {
    let tape = Tape::new();
    let (x, index) = (tape.variable(&normal(&[3], 1)), tape.constant(&Tensor::zeros([3], DType::I64)));
    x.scatter_add(0, index, x.cast(DType::F32));
}

#[test]
#[should_panic(expected = "index_select: the index must have one axis, found [1, 2]")]
fn a_matrix_of_positions_is_refused() {
    let tape = Tape::new();
    let index = tape.constant(&Tensor::zeros([1, 2], DType::I64));
    tape.variable(&normal(&[3], 1)).index_select(0, index);
}
