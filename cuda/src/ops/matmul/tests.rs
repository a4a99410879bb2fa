//! Every kernel at every layout, around the edges of its tiles, whatever shape would make it the chosen one.

use super::kernel::Tile;
use super::*;
use crate::device::Properties;
use crate::ops::rows::tests::Emulated;

const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

const PLAIN: [Kernel; 5] = [
    Kernel::Direct,
    Kernel::Dot,
    Kernel::Tiles(Tile::T32x32),
    Kernel::Tiles(Tile::T64x64),
    Kernel::Tiles(Tile::T128x128),
];

/// Those that multiply bf16, with the tile of each.
const TENSOR_CORES: [(Kernel, Tile); 4] = [
    (Kernel::TensorCores(Tile::T64x64), Tile::T64x64),
    (Kernel::TensorCores(Tile::T128x128), Tile::T128x128),
    (Kernel::TensorCores(Tile::T128x256), Tile::T128x256),
    (Kernel::Wgmma, Tile::T128x256),
];

/// A matrix of the emulated device with the values that it has on the CPU.
struct Matrix {
    placed: Tensor,
    values: Vec<f64>,
    rows: usize,
    columns: usize,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug)]
enum Lies {
    /// Rows at multiples of 16 bytes.
    Aligned,
    /// Every second element of rows that begin anywhere, from the last row to the first.
    Scattered,
}

impl Matrix {
    fn new(
        emulated: &Emulated,
        [rows, columns]: [usize; 2],
        dtype: DType,
        transposed: bool,
        lies: Lies,
        value: impl Fn(usize) -> f64,
    ) -> Matrix {
        let [outer, inner] = if transposed { [columns, rows] } else { [rows, columns] };
        let width = inner.next_multiple_of(8) + 8;
        let width = if matches!(lies, Lies::Scattered) { 2 * width + 3 } else { width };
        let stored: Vec<f64> = (0..outer * width).map(value).collect();
        let whole = Tensor::from_f64(&stored, [outer, width], dtype);
        let view = |x: &Tensor| {
            let x = match lies {
                Lies::Aligned => x.slice(1, 0, inner, 1),
                Lies::Scattered => x.slice(1, 1, 1 + 2 * inner, 2).flip(0),
            };
            if transposed { x.transpose(0, 1) } else { x }
        };
        let values = view(&whole).contiguous().unwrap().to_f64_vec().unwrap();
        Matrix { placed: view(&emulated.place(&whole)), values, rows, columns }
    }
}

/// Whole numbers in −4..=4: every product, and every sum of a million of them, is exact.
fn whole(i: usize) -> f64 {
    ((i * 7919) % 1009 % 9) as f64 - 4.0
}

/// Numbers whose sums round.
fn fraction(i: usize) -> f64 {
    (i as f64 * 0.618_033_988_75).fract() - 0.5
}

/// The definition, rounded to the dtype.
fn definition(a: &Matrix, b: &Matrix, dtype: DType) -> Vec<f64> {
    let (k, n) = (a.columns, b.columns);
    let sum = |i: usize, j: usize| (0..k).map(|p| a.values[i * k + p] * b.values[p * n + j]).sum();
    let sums: Vec<f64> =
        (0..a.rows).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| sum(i, j)).collect();
    Tensor::from_f64(&sums, [sums.len()], dtype).to_f64_vec().unwrap()
}

/// What a kernel makes of two matrices.
fn run(emulated: &Emulated, kernel: Kernel, a: &Matrix, b: &Matrix) -> Vec<f64> {
    let p = Problem::new(&a.placed, &b.placed, &[]);
    let mut y = emulated.cuda.empty([p.m, p.n], a.placed.dtype()).unwrap();
    let done = queue(emulated.cuda, kernel, &p, &mut y, Finish::NONE);
    emulated.read(done.map(|()| y))
}

#[track_caller]
fn assert_exact(emulated: &Emulated, kernel: Kernel, dtype: DType, [m, n, k]: [usize; 3], lies: Lies) {
    for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
        let a = Matrix::new(emulated, [m, k], dtype, a_transposed, lies, whole);
        let b = Matrix::new(emulated, [k, n], dtype, b_transposed, lies, |i| whole(i + 5));
        let what = format!("{kernel:?} {dtype} {m}×{k}×{n} {a_transposed} {b_transposed} {lies:?}");
        assert!(run(emulated, kernel, &a, &b) == definition(&a, &b, dtype), "{what}");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn plain_kernels_multiply_whatever_lies_wherever() {
    let emulated = Emulated::device();
    for kernel in PLAIN {
        for dtype in FLOATS {
            for lies in [Lies::Aligned, Lies::Scattered] {
                for shape in [[1, 1, 1], [33, 31, 17], [4, 70, 40]] {
                    assert_exact(&emulated, kernel, dtype, shape, lies);
                }
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tiles_end_where_the_result_does() {
    let emulated = Emulated::device();
    for (kernel, size) in [Tile::T32x32, Tile::T64x64, Tile::T128x128].map(|t| (Kernel::Tiles(t), t.rows())) {
        for shape in [[size, size, 16], [size + 1, size - 1, 15], [size - 3, 2 * size + 2, 33]] {
            assert_exact(&emulated, kernel, DType::F32, shape, Lies::Aligned);
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tensor_cores_multiply_every_layout() {
    let emulated = Emulated::device();
    for (kernel, tile) in TENSOR_CORES {
        let (rows, columns) = (tile.rows(), tile.columns());
        // Fewer stages than are copied ahead, as many, and more; a last stage of one term.
        for shape in [[rows, columns, 64], [rows + 1, columns - 7, 65], [rows - 1, columns + 2, 330]] {
            assert_exact(&emulated, kernel, DType::BF16, shape, Lies::Aligned);
        }
    }
}

/// Around the edges of tiles, in parts of sums, and wherever a residual begins. Of whole numbers, so that all is exact.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn every_kernel_adds_bias_and_residual_to_what_it_has_summed() {
    let emulated = Emulated::device();
    let cases = PLAIN.into_iter().flat_map(|kernel| FLOATS.map(|dtype| (kernel, dtype)));
    let cases = cases.chain(TENSOR_CORES.map(|(kernel, _)| (kernel, DType::BF16)));
    let tf32 = [Tile::T64x64, Tile::T128x128].map(|tile| (Kernel::TensorCores(tile), DType::F32));
    for (kernel, dtype) in cases.chain(tf32) {
        let long = if kernel == Kernel::Dot { 2100 } else { 600 };
        for [m, n, k] in [[2, 4, long], [33, 36, 20], [5, 7, 40]] {
            let a = Matrix::new(&emulated, [m, k], dtype, false, Lies::Aligned, whole);
            let b = Matrix::new(&emulated, [k, n], dtype, true, Lies::Aligned, |i| whole(i + 5));
            let numbers = |count: usize, first: usize| -> Tensor {
                Tensor::from_f64(&(first..first + count).map(whole).collect::<Vec<_>>(), [count], dtype)
            };
            for offset in [0, 1] {
                let (bias, r) = (numbers(2 * n, 3), numbers(m * n + 1, 11));
                let [on_bias, on_r] = [&bias, &r].map(|x| emulated.place(x));
                let bias_of = |x: &Tensor| x.slice(0, 0, 2 * n, 2);
                let r_of = |x: &Tensor| x.slice(0, offset, offset + m * n, 1).reshape([m, n]).unwrap();
                let act = Activation::Relu;
                let finish = Finish::new(emulated.cuda, act, Some(&bias_of(&on_bias)), Some(&r_of(&on_r)));
                let p = Problem::new(&a.placed, &b.placed, &[]);
                let mut y = emulated.cuda.empty([m, n], dtype).unwrap();
                let done = queue(emulated.cuda, kernel, &p, &mut y, finish.unwrap());
                let found = emulated.read(done.map(|()| y));
                let [bias, r] = [bias_of(&bias), r_of(&r)].map(|x| x.to_f64_vec().unwrap());
                let expected: Vec<f64> = (0..m * n)
                    .map(|i| {
                        let (row, column) = (i / n, i % n);
                        let sum: f64 = (0..k).map(|p| a.values[row * k + p] * b.values[p * n + column]).sum();
                        (sum + bias[column]).max(0.0) + r[i]
                    })
                    .collect();
                let expected = Tensor::from_f64(&expected, [m * n], dtype).to_f64_vec().unwrap();
                assert!(found == expected, "{kernel:?} {dtype} {m}×{k}×{n}, offset {offset}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn empty_sums_are_zero() {
    let emulated = Emulated::device();
    let kernels = PLAIN.into_iter().chain(TENSOR_CORES.map(|(kernel, _)| kernel));
    for kernel in kernels {
        assert_exact(&emulated, kernel, DType::BF16, [3, 5, 0], Lies::Aligned);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn long_sums_are_cut_in_parts() {
    let emulated = Emulated::device();
    let cases = [
        (Kernel::Dot, DType::F32, [1, 3, 5000]),
        (Kernel::Dot, DType::F64, [2, 1, 2049]),
        (Kernel::Tiles(Tile::T32x32), DType::F32, [20, 9, 2000]),
        (Kernel::Tiles(Tile::T32x32), DType::BF16, [33, 5, 700]),
        (Kernel::TensorCores(Tile::T64x64), DType::BF16, [66, 17, 1500]),
    ];
    for (kernel, dtype, shape) in cases {
        assert_exact(&emulated, kernel, dtype, shape, Lies::Aligned);
        let [m, n, k] = shape;
        let [a, b] = [[m, k], [k, n]].map(|shape| emulated.cuda.empty(shape, dtype).unwrap());
        let parts = kernel.parts(&Problem::new(&a, &b, &[]));
        assert!(parts.splits > 1 && (parts.splits - 1) * parts.depth < k && k <= parts.splits * parts.depth);
    }
}

/// bf16 has 8 bits, so the last bit of a number is at most 2⁻⁷ of it; sums that differ in their last bit may be rounded to
/// neighbours.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tensor_cores_agree_with_the_arithmetic_of_floats() {
    let emulated = Emulated::device();
    let a = Matrix::new(&emulated, [130, 200], DType::BF16, false, Lies::Aligned, fraction);
    let b = Matrix::new(&emulated, [200, 70], DType::BF16, true, Lies::Aligned, |i| fraction(i + 3));
    let plain = run(&emulated, Kernel::Tiles(Tile::T64x64), &a, &b);
    for (kernel, _) in TENSOR_CORES {
        for (found, expected) in run(&emulated, kernel, &a, &b).into_iter().zip(&plain) {
            assert!(
                (found - expected).abs() <= expected.abs() / 128.0 + 1e-5,
                "{kernel:?}: {found} {expected}"
            );
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_size_of_a_tile_changes_no_bit() {
    let emulated = Emulated::device();
    let a = Matrix::new(&emulated, [70, 130], DType::F32, true, Lies::Scattered, fraction);
    let b = Matrix::new(&emulated, [130, 40], DType::F32, false, Lies::Aligned, |i| fraction(i + 3));
    let small = run(&emulated, Kernel::Tiles(Tile::T32x32), &a, &b);
    for kernel in [Kernel::Direct, Kernel::Tiles(Tile::T64x64), Kernel::Tiles(Tile::T128x128)] {
        assert!(run(&emulated, kernel, &a, &b) == small, "{kernel:?}");
    }
    let [a, b] = [(&a, [70, 130]), (&b, [130, 40])].map(|(_, shape): (&Matrix, [usize; 2])| {
        Matrix::new(&emulated, shape, DType::BF16, false, Lies::Aligned, fraction)
    });
    let small = run(&emulated, Kernel::TensorCores(Tile::T64x64), &a, &b);
    for tile in [Tile::T128x128, Tile::T128x256] {
        assert!(run(&emulated, Kernel::TensorCores(tile), &a, &b) == small, "{tile:?}");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_kernel_is_chosen_by_the_shape() {
    let emulated = Emulated::device();
    let one = emulated.place(&Tensor::ones([1, 1], DType::BF16));
    let problem = |batch: usize, m: usize, n: usize, k: usize| {
        Problem::new(
            &one.expand([batch, m, k]),
            &one.reshape([1, 1, 1]).unwrap().expand([batch, k, n]),
            &[batch],
        )
    };
    let plain = |batch, m, n, k| Kernel::plain(&problem(batch, m, n, k));
    assert_eq!(plain(1, 4096, 4096, 4096), Kernel::Tiles(Tile::T128x128));
    assert_eq!(plain(1, 1024, 1024, 64), Kernel::Tiles(Tile::T64x64));
    assert_eq!(plain(1, 256, 256, 64), Kernel::Tiles(Tile::T32x32));
    assert_eq!(plain(1, 1, 4096, 4096), Kernel::Dot);
    assert_eq!(plain(1, 1 << 20, 4, 4), Kernel::Direct);
    let card = emulated.cuda.properties();
    let older = Properties { capability: (8, 0), ..card };
    let small = Properties { capability: (8, 6), shared_per_block: 99 << 10, ..card };
    let large = problem(1, 4096, 4096, 4096);
    assert_eq!(Kernel::tensor_cores(&large, DType::BF16, card), Kernel::Wgmma);
    assert_eq!(Kernel::tensor_cores(&large, DType::BF16, older), Kernel::TensorCores(Tile::T128x256));
    assert_eq!(Kernel::tensor_cores(&large, DType::BF16, small), Kernel::TensorCores(Tile::T128x128));
    assert_eq!(Kernel::tensor_cores(&large, DType::F32, card), Kernel::TensorCores(Tile::T128x128));
    assert_eq!(
        Kernel::tensor_cores(&problem(1, 512, 512, 512), DType::BF16, card),
        Kernel::TensorCores(Tile::T64x64)
    );
}
