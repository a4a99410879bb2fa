//! LayerNorm and RmsNorm over the last axis, and their derivatives: `norm.cu`.

use limpid_tensor::{DType, Result, Results, Shape, Tensor};
use smallvec::smallvec;

use super::rows::{Matrix, Rows, assert_cotangent, slab};
use crate::device::Cuda;
use crate::launch::{Arguments, Grid};
use crate::module::Family;

pub(crate) static NORM: Family = Family { name: "norm.cu", text: include_str!("../../kernels/norm.cu") };

/// `(x − mean)/√(var + eps)·gain + bias`: x `[.., C]`, gain and bias `[C]`.
///
/// # Panics
/// If gain or bias have another shape.
pub(crate) fn layer_norm(
    cuda: &'static Cuda,
    x: &Tensor,
    gain: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    each_row(cuda, "layer_norm", x, &[gain, bias], eps)
}

/// `x/√(mean(x²) + eps)·gain`: x `[.., C]`, gain `[C]`.
///
/// # Panics
/// If gain has another shape.
pub(crate) fn rms_norm(cuda: &'static Cuda, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    each_row(cuda, "rms_norm", x, &[gain], eps)
}

fn each_row(
    cuda: &'static Cuda,
    function: &str,
    x: &Tensor,
    per_column: &[&Tensor],
    eps: f64,
) -> Result<Tensor> {
    let mut y = cuda.empty(x.shape(), x.dtype())?;
    let per_column = columns_of(function, x, per_column)?;
    let x = Matrix::new(x)?;
    let rows = Rows::new(&[&x], &per_column.iter().collect::<Vec<_>>());
    let (kernel, grid) = rows.kernel(function, y.dtype());
    let mut arguments = Arguments::default();
    arguments.output(&mut y);
    x.add_to(&mut arguments);
    for operand in &per_column {
        arguments.input(operand);
    }
    arguments.value(eps).value(rows);
    cuda.launch(&NORM, &kernel, grid, &mut arguments)?;
    Ok(y)
}

/// Operands with an element for each column, side by side.
fn columns_of(function: &str, x: &Tensor, operands: &[&Tensor]) -> Result<Vec<Tensor>> {
    let columns = &x.shape()[x.shape().len() - 1..];
    let side_by_side = |operand: &&Tensor| {
        assert!(
            operand.shape()[..] == *columns && operand.dtype() == x.dtype(),
            "{function}: expected {} of shape {columns:?}, found {}",
            x.dtype(),
            operand.meta()
        );
        operand.contiguous()
    };
    operands.iter().map(side_by_side).collect()
}

/// The cotangents of x, gain and bias, from that of the result: g `[.., C]`.
///
/// # Panics
/// If g or gain has another shape.
pub(crate) fn layer_norm_backward(
    cuda: &'static Cuda,
    x: &Tensor,
    gain: &Tensor,
    g: &Tensor,
    eps: f64,
) -> Result<Results> {
    backward(cuda, "layer_norm_backward", 2, x, gain, g, eps)
}

/// The cotangents of x and gain, from that of the result: g `[.., C]`.
///
/// # Panics
/// If g or gain has another shape.
pub(crate) fn rms_norm_backward(
    cuda: &'static Cuda,
    x: &Tensor,
    gain: &Tensor,
    g: &Tensor,
    eps: f64,
) -> Result<Results> {
    backward(cuda, "rms_norm_backward", 1, x, gain, g, eps)
}

/// With x̂ the normalised row, r its scale and `ĝ = g∘gain`: `x̄ = r·(ĝ − mean(ĝ) − x̂·mean(ĝ∘x̂))`, of which an RmsNorm
/// has no `mean(ĝ)`; then as many sums over rows as there are per column: of `g∘x̂` for gain, of g for bias.
fn backward(
    cuda: &'static Cuda,
    function: &str,
    per_column: usize,
    x: &Tensor,
    gain: &Tensor,
    g: &Tensor,
    eps: f64,
) -> Result<Results> {
    assert_cotangent(function, g, &x.meta());
    let dtype = x.dtype();
    let mut dx = cuda.empty(x.shape(), dtype)?;
    let gain = columns_of(function, x, &[gain])?.remove(0);
    let (x, g) = (Matrix::new(x)?, Matrix::new(g)?);
    let rows = Rows::new(&[&x, &g], &[&gain]);
    let (count, columns) = (rows.count as usize, rows.columns as usize);
    let statistics = cuda.scratch(count * 2 * size_of::<f64>())?;
    let (kernel, grid) = rows.kernel(function, dtype);
    let mut arguments = Arguments::default();
    arguments.output(&mut dx).scratch(&statistics);
    x.add_to(&mut arguments);
    arguments.input(&gain);
    g.add_to(&mut arguments);
    arguments.value(eps).value(rows);
    cuda.launch(&NORM, &kernel, grid, &mut arguments)?;

    let slab = slab(count, 64);
    let slabs = count.div_ceil(slab);
    let mut sums = Vec::new();
    for _ in 0..per_column {
        sums.push(cuda.empty(Shape::from([slabs, columns]), DType::F64)?);
    }
    let tiles = columns.div_ceil(32 * 16 / dtype.size());
    let mut arguments = Arguments::default();
    arguments.output(&mut sums[0]).optional(sums.get(1)).scratch(&statistics);
    x.add_to(&mut arguments);
    g.add_to(&mut arguments);
    arguments.value(slab as i64).value(rows);
    let grid = Grid { blocks: [tiles as u32, slabs as u32, 1], threads: 256, shared: 0 };
    cuda.launch(&NORM, &format!("norm_columns_{dtype}"), grid, &mut arguments)?;

    let mut cotangents: Results = smallvec![dx];
    for sums in &sums {
        let mut cotangent = cuda.empty([columns], dtype)?;
        let mut arguments = Arguments::default();
        arguments.output(&mut cotangent).input(sums).value(slabs as i64).value(columns as i64);
        let grid = Grid::new(columns.div_ceil(32), 256);
        cuda.launch(&NORM, &format!("norm_slabs_{dtype}"), grid, &mut arguments)?;
        cotangents.push(cotangent);
    }
    Ok(cotangents)
}

#[cfg(test)]
mod tests {
    use limpid_tensor::Device;

    use super::super::rows::tests::{Emulated, assert_near, numbers, shapes, sum};
    use super::*;

    const EPS: f64 = 1e-5;
    const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

    /// x̂ and the scale of a row, by definition.
    fn normalised(row: &[f64], centred: bool) -> (Vec<f64>, f64) {
        let n = row.len() as f64;
        let mean = if centred { sum(row.iter().copied()) / n } else { 0.0 };
        let square = sum(row.iter().map(|v| (v - mean).powi(2))) / n;
        let scale = 1.0 / (square + EPS).sqrt();
        (row.iter().map(|v| (v - mean) * scale).collect(), scale)
    }

    /// The operands x, gain, bias and g: on the CPU in f64, and on the device.
    fn operands(
        emulated: &Emulated,
        [count, columns]: [usize; 2],
        dtype: DType,
    ) -> ([Vec<f64>; 4], [Tensor; 4]) {
        let x = [
            numbers([count, columns], dtype, 1),
            numbers([columns], dtype, 2),
            numbers([columns], dtype, 3),
            numbers([count, columns], dtype, 4),
        ];
        (x.each_ref().map(|x| x.to_f64_vec().unwrap()), x.each_ref().map(|x| emulated.place(x)))
    }

    fn chunks(x: &[f64], columns: usize) -> std::slice::Chunks<'_, f64> {
        x.chunks(columns.max(1))
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn every_kind_of_row_gives_the_definition() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for [count, columns] in shapes(dtype) {
                let ([values, gains, biases, _], [x, gain, bias, _]) =
                    operands(&emulated, [count, columns], dtype);
                let expected = |centred: bool| {
                    let of_row = |row: &[f64]| {
                        let row = normalised(row, centred).0.into_iter().zip(&gains).zip(&biases);
                        row.map(|((v, g), b)| if centred { v * g + b } else { v * g }).collect::<Vec<f64>>()
                    };
                    chunks(&values, columns).flat_map(of_row).collect::<Vec<f64>>()
                };
                let what = format!("{dtype} [{count}, {columns}]");
                let y = layer_norm(emulated.cuda, &x, &gain, &bias, EPS);
                assert_near(&emulated.read(y), &expected(true), dtype, 16.0, &what);
                let y = rms_norm(emulated.cuda, &x, &gain, EPS);
                assert_near(&emulated.read(y), &expected(false), dtype, 16.0, &what);
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn cotangents_are_those_of_the_formulas() {
        let emulated = Emulated::device();
        // More rows than a slab has, more slabs than lines.
        let all =
            |dtype| shapes(dtype).into_iter().chain([[150, 5], [600, 3]]).map(move |shape| (shape, dtype));
        for ([count, columns], dtype) in FLOATS.into_iter().flat_map(all) {
            let ([values, gains, _, g_values], [x, gain, _, g]) =
                operands(&emulated, [count, columns], dtype);
            for (centred, found) in [
                (true, layer_norm_backward(emulated.cuda, &x, &gain, &g, EPS)),
                (false, rms_norm_backward(emulated.cuda, &x, &gain, &g, EPS)),
            ] {
                let (mut dx, mut of_gain, mut of_bias) = (Vec::new(), vec![0.0; columns], vec![0.0; columns]);
                for (row, g) in chunks(&values, columns).zip(chunks(&g_values, columns)) {
                    let (x, scale) = normalised(row, centred);
                    let weighed: Vec<f64> = g.iter().zip(&gains).map(|(g, gain)| g * gain).collect();
                    let mean = |v: f64| v / columns as f64;
                    let level = if centred { mean(sum(weighed.iter().copied())) } else { 0.0 };
                    let along = mean(sum(weighed.iter().zip(&x).map(|(w, x)| w * x)));
                    dx.extend(weighed.iter().zip(&x).map(|(w, x)| scale * (w - level - x * along)));
                    for i in 0..row.len() {
                        of_gain[i] += g[i] * x[i];
                        of_bias[i] += g[i];
                    }
                }
                let expected = if centred { vec![dx, of_gain, of_bias] } else { vec![dx, of_gain] };
                let found = found.unwrap();
                assert_eq!(found.len(), expected.len());
                // The scale of a row of one element is that of eps, which magnifies what is rounded.
                let roundings = if columns == 1 { 4000.0 } else { 64.0 };
                for (found, expected) in found.into_iter().zip(&expected) {
                    let what = format!("centred {centred}, {dtype} [{count}, {columns}] {}", found.shape());
                    assert_near(&emulated.read(Ok(found)), expected, dtype, roundings, &what);
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_large_mean_does_not_drown_the_spread() {
        let emulated = Emulated::device();
        for columns in [7, 100, 1000, 9000] {
            // Neighbouring f32 values near 2²⁰: E[x²] − mean² in f32 would be noise, and so would a mean rounded to f32.
            let row: Vec<f64> = (0..columns).map(|i| 1_048_576.0 + (i % 7) as f64 * 0.125).collect();
            let x = emulated.place(&Tensor::from_f64(&row, [1, columns], DType::F32));
            let [one, zero] = [1.0, 0.0].map(|v| emulated.place(&Tensor::full([columns], v, DType::F32)));
            let y = emulated.read(layer_norm(emulated.cuda, &x, &one, &zero, EPS));
            assert_near(&y, &normalised(&row, true).0, DType::F32, 4.0, "a large mean");
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn huge_rows_do_not_overflow_and_constant_rows_are_their_bias() {
        let emulated = Emulated::device();
        let row = [1e38, -1e38, 3e38, -3e38];
        let [one, zero] = [1.0, 0.0].map(|v| emulated.place(&Tensor::full([4], v, DType::F32)));
        for dtype in [DType::F32, DType::BF16] {
            let x = Tensor::from_f64(&row, [1, 4], dtype);
            let expected = normalised(&x.to_f64_vec().unwrap(), true).0;
            let [one, zero] = [&one, &zero].map(|x| x.cast(dtype).unwrap());
            let y = emulated.read(layer_norm(emulated.cuda, &emulated.place(&x), &one, &zero, EPS));
            assert_near(&y, &expected, dtype, 2.0, "huge");
        }
        let x = emulated.place(&Tensor::full([2, 4], 3.25, DType::F32));
        let bias = numbers([4], DType::F32, 2);
        let y = emulated.read(layer_norm(emulated.cuda, &x, &one, &emulated.place(&bias), EPS));
        assert_eq!(y, bias.to_f64_vec().unwrap().repeat(2));
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn the_same_rows_have_the_same_bits_wherever_they_lie_and_whoever_is_first() {
        let emulated = Emulated::device();
        for dtype in FLOATS {
            for shape in shapes(dtype).into_iter().chain([[150, 5]]) {
                let all = |[x, gain, bias, g]: &[Tensor; 4]| {
                    let mut results = layer_norm_backward(emulated.cuda, x, gain, g, EPS).unwrap();
                    results.push(layer_norm(emulated.cuda, x, gain, bias, EPS).unwrap());
                    results.into_iter().map(|y| emulated.read(Ok(y))).collect::<Vec<_>>()
                };
                let (_, aligned) = operands(&emulated, shape, dtype);
                let expected = all(&aligned);
                let unaligned = aligned.map(|x| emulated.place_unaligned(&x.to(&Device::cpu()).unwrap()));
                for seed in [1, 2] {
                    emulated.shuffle(seed);
                    assert_eq!(all(&unaligned), expected, "{dtype} {shape:?}");
                }
            }
        }
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn gain_and_bias_may_have_any_layout() {
        let emulated = Emulated::device();
        let wide = emulated.place(&numbers([10], DType::F32, 7));
        let (gain, bias) = (wide.slice(0, 0, 10, 2).flip(0), wide.slice(0, 5, 10, 1));
        let x = emulated.place(&numbers([3, 5], DType::F32, 1));
        let strided = emulated.read(layer_norm(emulated.cuda, &x, &gain, &bias, EPS));
        let [gain, bias] = [gain, bias].map(|x| x.contiguous().unwrap());
        assert_eq!(strided, emulated.read(layer_norm(emulated.cuda, &x, &gain, &bias, EPS)));
    }
}
