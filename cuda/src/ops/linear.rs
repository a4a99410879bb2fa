//! Where the derivative of a linear layer begins: `linear.cu`. The layer itself is a product (`matmul.rs`).

use limpid_tensor::{Activation, Result, Results, Tensor};
use smallvec::smallvec;

use super::rows::{Matrix, Rows, assert_cotangent, slab};
use crate::device::Cuda;
use crate::launch::{Arguments, Grid};
use crate::module::Family;

pub(crate) static LINEAR: Family =
    Family { name: "linear.cu", text: include_str!("../../kernels/linear.cu") };

/// Rows that one slab may have: so small a batch takes one launch, and in bf16 the sums of larger ones are a fiftieth of what is
/// moved.
const SLAB: usize = 128;

/// From the result y of a layer and its cotangent g, both `[.., C]`: `g∘act′`, `[.., C]`, and `Σ_rows g∘act′`, `[C]`.
///
/// # Panics
/// If g has another shape.
pub(crate) fn backward(cuda: &'static Cuda, act: Activation, y: &Tensor, g: &Tensor) -> Result<Results> {
    assert_cotangent("linear_backward", g, &y.meta());
    let name = match act {
        Activation::Identity => "identity",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh",
        Activation::Sigmoid => "sigmoid",
        other => return Err(cuda.error(format!("linear_backward has no kernel for {other:?}"))),
    };
    let dtype = y.dtype();
    let mut dz = cuda.empty(y.shape(), dtype)?;
    let (y, g) = (Matrix::new(y)?, Matrix::new(g)?);
    let rows = Rows::new(&[&y, &g], &[]);
    let (count, columns) = (rows.count as usize, rows.columns as usize);
    let mut db = cuda.empty([columns], dtype)?;
    let slab = slab(count, SLAB);
    let slabs = count.div_ceil(slab).max(1);
    let of_slabs = if slabs > 1 { Some(cuda.scratch(slabs * columns * size_of::<f64>())?) } else { None };

    let packs = columns.div_ceil(16 / dtype.size());
    let (kind, lanes) = if packs <= 4 { ("four", 4) } else { ("warp", 32) };
    let mut arguments = Arguments::default();
    arguments.output(&mut dz).output(&mut db).value(of_slabs.as_ref().map_or(0, |sums| sums.address));
    y.add_to(&mut arguments);
    g.add_to(&mut arguments);
    arguments.value(slab as i64).value(rows);
    let grid = Grid { blocks: [packs.div_ceil(lanes) as u32, slabs as u32, 1], threads: 256, shared: 0 };
    cuda.launch(&LINEAR, &format!("linear_backward_{name}_{dtype}_{kind}"), grid, &mut arguments)?;

    if let Some(sums) = &of_slabs {
        let mut arguments = Arguments::default();
        arguments.output(&mut db).scratch(sums).value(slabs as i64).value(columns as i64);
        let grid = Grid::new(columns.div_ceil(32), 256);
        cuda.launch(&LINEAR, &format!("linear_slabs_{dtype}"), grid, &mut arguments)?;
    }
    Ok(smallvec![dz, db])
}

#[cfg(test)]
mod tests {
    use limpid_tensor::{DType, Device, Fused};

    use super::super::rows::tests::{Emulated, assert_near, numbers, shapes, sum};
    use super::*;

    const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
    const ACTIVATIONS: [Activation; 4] =
        [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];

    /// Every kind of row; one slab and several, with and without a whole one at the end.
    fn all_shapes(dtype: DType) -> impl Iterator<Item = [usize; 2]> {
        let pack = 16 / dtype.size();
        let few =
            [[127, 3], [128, 4 * pack], [129, 4 * pack + 1], [300, 2 * pack], [513, 1], [290, 37 * pack]];
        shapes(dtype).into_iter().chain(few)
    }

    /// What the device and the CPU make of a layer's result and its cotangent.
    fn backward(device: &Device, act: Activation, y: &Tensor, g: &Tensor) -> Vec<Tensor> {
        let [y, g] = [y, g].map(|x| x.to(device).unwrap());
        let results = Tensor::fused_all(Fused::LinearBackward(act), &[&y, &g]);
        results.expect("both have this kernel").unwrap().into_vec()
    }

    /// z̄, by definition.
    fn definition(act: Activation, y: f64, g: f64) -> f64 {
        match act {
            Activation::Relu if y == 0.0 => 0.0,
            Activation::Relu => g * y.signum(),
            Activation::Tanh => g * (1.0 - y * y),
            Activation::Sigmoid => g * y * (1.0 - y),
            _ => g,
        }
    }

    /// Half the distance of neighbouring numbers, relative to them.
    fn unit(dtype: DType) -> f64 {
        match dtype {
            DType::F64 => f64::EPSILON / 2.0,
            DType::F32 => f64::from(f32::EPSILON) / 2.0,
            _ => 1.0 / 256.0,
        }
    }

    /// What an activation could have given: also 0, on which relu's derivative depends.
    fn of_activation(act: Activation, shape: [usize; 2], dtype: DType) -> Tensor {
        let of = |v: f64| match act {
            Activation::Relu => v.max(0.0),
            Activation::Tanh => v.tanh(),
            Activation::Sigmoid => 1.0 / (1.0 + (-v).exp()),
            _ => v,
        };
        let values = numbers(shape, dtype, 1).to_f64_vec().unwrap();
        Tensor::from_f64(&values.into_iter().map(of).collect::<Vec<_>>(), shape, dtype)
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn cotangents_are_those_of_the_formulas() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for act in ACTIVATIONS {
                for [count, columns] in all_shapes(dtype) {
                    let what = format!("{act:?} {dtype} [{count}, {columns}]");
                    let y = of_activation(act, [count, columns], dtype);
                    let g = numbers([count, columns], dtype, 2);
                    let found = backward(&emulated.cuda.device(), act, &y, &g);
                    let [dz, db] = &found[..] else { panic!("{what}: {} results", found.len()) };
                    assert_eq!((&dz.shape()[..], &db.shape()[..]), (&[count, columns][..], &[columns][..]));
                    let (dz, db) = (emulated.read(Ok(dz.clone())), emulated.read(Ok(db.clone())));

                    let pairs = y.to_f64_vec().unwrap().into_iter().zip(g.to_f64_vec().unwrap());
                    let expected: Vec<f64> = pairs.map(|(y, g)| definition(act, y, g)).collect();
                    assert_near(&dz, &expected, dtype, 4.0, &what);
                    let on_cpu = backward(&Device::cpu(), act, &y, &g);
                    assert_eq!(dz, on_cpu[0].to_f64_vec().unwrap(), "{what}: as on the CPU, to the bit");

                    // b̄ is the sum of what was not rounded yet, which the CPU makes of f32.
                    let wide = if dtype == DType::BF16 { DType::F32 } else { dtype };
                    let [y, g] = [&y, &g].map(|x| x.cast(wide).unwrap());
                    let terms = backward(&Device::cpu(), act, &y, &g)[0].to_f64_vec().unwrap();
                    for (c, found) in db.iter().enumerate() {
                        let column = || terms.iter().skip(c).step_by(columns);
                        let expected = sum(column().copied());
                        let size: f64 = column().map(|v| v.abs()).sum();
                        let error = (count as f64 + 8.0) * f64::EPSILON * size + unit(dtype) * expected.abs();
                        // To float first, in bf16.
                        let error =
                            if dtype == DType::BF16 { error * (1.0 + unit(DType::F32)) } else { error };
                        assert!((found - expected).abs() <= error, "{what}, b̄ {c}: {found}, not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn more_rows_than_slabs_of_the_least_size() {
        let emulated = Emulated::device();
        let shape = [40_000, 1];
        let (y, g) = (numbers(shape, DType::F32, 1), numbers(shape, DType::F32, 2));
        let found = backward(&emulated.cuda.device(), Activation::Relu, &y, &g).remove(1);
        let terms = backward(&Device::cpu(), Activation::Relu, &y, &g)[0].to_f64_vec().unwrap();
        let expected = sum(terms) as f32;
        assert_eq!(emulated.read(Ok(found)), [f64::from(expected)], "the nearest float");
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn what_is_not_a_number_stays_visible() {
        let emulated = Emulated::device();
        let inf = f64::INFINITY;
        let y = [f64::NAN, 0.0, 2.0, 0.0, 0.5, -0.0, 3.0, 1.0];
        let g = [1.0, f64::NAN, inf, inf, -2.0, 5.0, -inf, 0.25];
        for dtype in FLOATS {
            let [y, g] = [&y, &g].map(|x| Tensor::from_f64(x, [2, 4], dtype));
            for act in ACTIVATIONS {
                let found = backward(&emulated.cuda.device(), act, &y, &g);
                let expected = backward(&Device::cpu(), act, &y, &g);
                for (found, expected) in found.into_iter().zip(&expected) {
                    let (found, expected) = (emulated.read(Ok(found)), expected.to_f64_vec().unwrap());
                    for (a, b) in found.iter().zip(&expected) {
                        assert!(
                            a == b || (a.is_nan() && b.is_nan()),
                            "{act:?} {dtype}: {found:?}, {expected:?}"
                        );
                    }
                }
            }
            let relu = backward(&emulated.cuda.device(), Activation::Relu, &y, &g);
            let dz = emulated.read(Ok(relu[0].clone()));
            assert!(dz[0].is_nan() && dz[1].is_nan() && dz[3].is_nan() && dz[5] == 0.0, "{dz:?}");
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_same_rows_have_the_same_bits_wherever_they_lie_and_whoever_is_first() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for shape in all_shapes(dtype) {
                let (y, g) = (numbers(shape, dtype, 1), numbers(shape, dtype, 2));
                let all = |y: &Tensor, g: &Tensor| {
                    let results = super::backward(emulated.cuda, Activation::Tanh, y, g).unwrap();
                    results.into_iter().map(|x| emulated.read(Ok(x))).collect::<Vec<_>>()
                };
                let expected = all(&emulated.place(&y), &emulated.place(&g));
                for seed in [1, 2] {
                    emulated.shuffle(seed);
                    let places = [Emulated::place, Emulated::place_unaligned];
                    for [of_y, of_g] in [[0, 0], [0, 1], [1, 1]] {
                        let (y, g) = (places[of_y](&emulated, &y), places[of_g](&emulated, &g));
                        assert_eq!(all(&y, &g), expected, "{dtype} {shape:?}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn both_may_have_any_layout() {
        let emulated = Emulated::device();
        let of = |y: &Tensor, g: &Tensor| {
            let results = super::backward(emulated.cuda, Activation::Sigmoid, y, g).unwrap();
            results.into_iter().map(|x| emulated.read(Ok(x))).collect::<Vec<_>>()
        };
        for dtype in FLOATS {
            let place = |shape: &[usize], seed| emulated.place(&numbers(shape, dtype, seed));
            let wide = place(&[140, 4, 32], 1);
            for x in [
                // With a row's stride, aligned and not.
                wide.slice(2, 8, 24, 1),
                wide.slice(2, 1, 17, 1),
                wide.slice(0, 0, 140, 7).slice(2, 0, 16, 1).expand([20, 4, 16]),
                // One row for all, and what is copied.
                place(&[1, 1, 16], 2).expand([140, 4, 16]),
                place(&[140, 4, 1], 3).expand([140, 4, 16]),
                place(&[1, 1, 1], 4).expand([140, 4, 16]),
                place(&[140, 16, 4], 5).transpose(1, 2),
                wide.slice(2, 0, 32, 2).flip(1),
                wide.flip(2).slice(2, 3, 19, 1),
            ] {
                let other = place(x.shape(), 9);
                let copy = x.contiguous().unwrap();
                assert_eq!(of(&x, &other), of(&copy, &other), "{dtype} y {:?}", x.layout());
                assert_eq!(of(&other, &x), of(&other, &copy), "{dtype} g {:?}", x.layout());
            }
            // A vector is one row.
            let row = place(&[37], 6);
            let found = super::backward(emulated.cuda, Activation::Identity, &row, &row).unwrap();
            let values = emulated.read(Ok(row));
            for x in found {
                assert_eq!(x.shape()[..], [37]);
                assert_eq!(emulated.read(Ok(x)), values);
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_cotangent_of_another_shape_panics() {
        let emulated = Emulated::device();
        let [y, g] = [[2, 3], [2, 4]].map(|shape| emulated.place(&numbers(shape, DType::F32, 1)));
        let call = || super::backward(emulated.cuda, Activation::Relu, &y, &g).map(drop);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert_eq!(message, "linear_backward: expected a cotangent f32[2, 3], found f32[2, 4]");
    }
}
