//! Rows for kernels over the last axis: where they lie, and what kind of team takes one (`Row` of `prelude.cuh`).

use bytemuck::{Pod, Zeroable};
use limpid_tensor::{DType, Meta, Result, Tensor};

use crate::device::address_of;
use crate::launch::{Arguments, Grid};

/// Bytes of a pack.
const PACK: usize = 16;

/// The rows of a tensor, each with its elements side by side.
pub(crate) struct Matrix {
    x: Tensor,
    count: usize,
    columns: usize,
    /// Elements from a row to the next.
    stride: i64,
}

impl Matrix {
    /// The rows along the last axis, copied if their elements are not side by side or one stride does not lead from each to
    /// the next.
    pub(crate) fn new(x: &Tensor) -> Result<Matrix> {
        let (&columns, leading) = x.shape().split_last().expect("rows are those of a tensor with an axis");
        let count = leading.iter().product();
        let beside = |x: &Tensor| columns <= 1 || x.layout().strides()[1] == 1;
        let view = x.layout().reshape(&[count, columns].into());
        let view = view.map(|layout| Tensor::from_storage(x.storage().clone(), layout, x.dtype()));
        let x = match view.filter(beside) {
            Some(view) => view,
            None => x.contiguous()?.reshape([count, columns])?,
        };
        let stride = x.layout().strides()[0] as i64;
        Ok(Matrix { x, count, columns, stride })
    }

    /// Adds the parameters `const T* x, i64 stride` of a kernel.
    pub(crate) fn add_to(&self, arguments: &mut Arguments) {
        arguments.input(&self.x).value(self.stride);
    }
}

/// A cotangent has the shape and dtype of what it is the cotangent of.
pub(crate) fn assert_cotangent(function: &str, g: &Tensor, expected: &Meta) {
    assert!(g.meta() == *expected, "{function}: expected a cotangent {expected}, found {}", g.meta());
}

/// The rows of a slab, if sums over rows are made of the sums of slabs (`columns.cuh`): few enough for blocks to be many, and
/// at least so many for slabs to be few. A function of the shape alone.
pub(crate) fn slab(rows: usize, at_least: usize) -> usize {
    rows.div_ceil(256).max(at_least)
}

/// `Rows` of `prelude.cuh`.
#[derive(Clone, Copy, Pod, Zeroable, PartialEq, Debug)]
#[repr(C)]
pub(crate) struct Rows {
    pub count: i64,
    pub columns: i64,
    vector: u32,
    padding: u32,
}

impl Rows {
    /// The rows of matrices of one shape, with operands that have an element for each column.
    pub(crate) fn new(matrices: &[&Matrix], per_column: &[&Tensor]) -> Rows {
        let &Matrix { ref x, count, columns, .. } = matrices[0];
        let size = x.dtype().size();
        let whole = |bytes: u64| bytes.is_multiple_of(PACK as u64);
        // The result's rows follow each other, so they begin at packs if a row is made of whole ones.
        let vector = whole((columns * size) as u64)
            && matrices
                .iter()
                .all(|m| whole(address_of(&m.x)) && whole((m.stride * size as i64).unsigned_abs()))
            && per_column.iter().all(|x| whole(address_of(x)));
        Rows { count: count as i64, columns: columns as i64, vector: u32::from(vector), padding: 0 }
    }

    /// The kernel of this name for rows of this size, and its grid.
    pub(crate) fn kernel(&self, function: &str, dtype: DType) -> (String, Grid) {
        let packs = (self.columns as usize).div_ceil(PACK / dtype.size());
        let (kind, threads, together) = match packs {
            0..=4 => ("four", 128, 32),
            5..=32 => ("warp", 128, 4),
            33..=128 => ("long_warp", 128, 4),
            129..=2048 => ("block", packs.div_ceil(4).next_power_of_two().max(128), 1),
            _ => ("stream", 512, 1),
        };
        let grid = Grid::new((self.count as usize).div_ceil(together), threads as u32);
        (format!("{function}_{dtype}_{kind}"), grid)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

    use limpid_tensor::{Device, Shape};

    use super::*;
    use crate::device::Cuda;
    use crate::emulated::{Config, StandIn, install, keep_apart};

    /// The emulated device, for one test at a time, so that what the checker finds is that test's.
    pub(crate) struct Emulated {
        pub cuda: &'static Cuda,
        stand_in: &'static StandIn,
        _alone: MutexGuard<'static, ()>,
    }

    impl Emulated {
        pub(crate) fn device() -> Emulated {
            static STAND_IN: OnceLock<&'static StandIn> = OnceLock::new();
            static ALONE: Mutex<()> = Mutex::new(());
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let stand_in = STAND_IN.get_or_init(|| {
                keep_apart(true);
                install(Config { check: true, devices: 2, ..Config::default() })
                    .expect("g++ compiles kernels")
            });
            stand_in.set_seed(0);
            Emulated { cuda: Cuda::new(0).expect("there are two devices"), stand_in, _alone: alone }
        }

        /// Blocks and threads go on in another order.
        pub(crate) fn shuffle(&self, seed: u64) {
            self.stand_in.set_seed(seed);
        }

        pub(crate) fn place(&self, x: &Tensor) -> Tensor {
            x.to(&self.cuda.device()).expect("the emulator has memory for a test")
        }

        /// The same tensor one element behind the start of its storage, where nothing is aligned.
        pub(crate) fn place_unaligned(&self, x: &Tensor) -> Tensor {
            let mut values = vec![0.0];
            values.extend(x.to_f64_vec().expect("it is on the CPU"));
            let all = self.place(&Tensor::from_f64(&values, [values.len()], x.dtype()));
            all.slice(0, 1, values.len(), 1).reshape(x.shape()).expect("a view of what is contiguous")
        }

        /// What the checker has found since it was last asked.
        pub(crate) fn findings(&self) -> Vec<String> {
            self.stand_in.take_findings().iter().map(ToString::to_string).collect()
        }

        /// The elements, in f64, of what was computed without a finding of the checker.
        #[track_caller]
        pub(crate) fn read(&self, y: Result<Tensor>) -> Vec<f64> {
            let y = y.and_then(|y| y.to(&Device::cpu())).unwrap_or_else(|error| panic!("{error}"));
            let findings = self.findings();
            assert!(findings.is_empty(), "the checker found:\n{}", findings.join("\n"));
            y.to_f64_vec().expect("it is on the CPU")
        }
    }

    /// Numbers in −4..4 without a pattern, on the CPU.
    pub(crate) fn numbers(shape: impl Into<Shape>, dtype: DType, seed: usize) -> Tensor {
        let shape = shape.into();
        let value =
            |i: usize| ((i * 7919 + seed * 104_729 + 1) as f64 * 0.618_033_988_749).fract() * 8.0 - 4.0;
        Tensor::from_f64(&(0..shape.elements()).map(value).collect::<Vec<f64>>(), shape, dtype)
    }

    /// Up to `roundings` of the type that is computed in, relative to the larger of 1 and the expected value, and the one
    /// rounding of a bf16.
    #[track_caller]
    pub(crate) fn assert_near(found: &[f64], expected: &[f64], dtype: DType, roundings: f64, what: &str) {
        let (computed, stored) = match dtype {
            DType::F64 => (f64::EPSILON, 0.0),
            DType::F32 => (f64::from(f32::EPSILON), 0.0),
            _ => (f64::from(f32::EPSILON), 1.0 / 256.0),
        };
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (&y, &e)) in found.iter().zip(expected).enumerate() {
            let tolerance = roundings * computed * e.abs().max(1.0) + stored * e.abs();
            assert!((y - e).abs() <= tolerance || y == e, "{what}: element {i} is {y}, expected {e}");
        }
    }

    /// A sum whose error does not grow with the number of terms (Neumaier 1974).
    pub(crate) fn sum(terms: impl IntoIterator<Item = f64>) -> f64 {
        let (mut sum, mut lost) = (0.0f64, 0.0);
        for term in terms {
            let next = sum + term;
            lost += if sum.abs() >= term.abs() { (sum - next) + term } else { (term - next) + sum };
            sum = next;
        }
        sum + lost
    }

    /// Rows for every kind of team, with and without whole packs.
    pub(crate) fn shapes(dtype: DType) -> [[usize; 2]; 11] {
        let pack = PACK / dtype.size();
        let [short, row, long, block] = [3 * pack, 20 * pack, 100 * pack, 300 * pack];
        let stream = 2048 * pack + 3;
        let odd = [[0, 3], [3, 0], [5, 1], [33, short - 1], [5, row + 1], [2, long + 1], [2, 5 * block + 1]];
        let [a, b, c, d, e, f, g] = odd;
        [a, b, c, d, e, f, g, [3, short], [2, long], [2, block], [1, stream]]
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn a_view_is_copied_only_if_it_must_be() {
        let emulated = Emulated::device();
        let x = emulated.place(&numbers([4, 6, 8], DType::F32, 1));
        let stride = |x: &Tensor| {
            let rows = Matrix::new(x).unwrap();
            (
                rows.x.storage().handle::<crate::device::Buffer>().unwrap().address,
                rows.count,
                rows.columns,
                rows.stride,
            )
        };
        let address = address_of(&x);
        assert_eq!(stride(&x), (address, 24, 8, 8));
        assert_eq!(stride(&x.slice(2, 1, 4, 1)), (address, 24, 3, 8));
        assert_eq!(stride(&x.slice(0, 1, 2, 1).slice(1, 0, 6, 2)), (address, 3, 8, 16));
        assert_eq!(stride(&x.slice(1, 0, 1, 1).slice(0, 0, 1, 1).expand([5, 1, 8])), (address, 5, 8, 0));
        for copied in [x.transpose(1, 2), x.slice(2, 0, 8, 2), x.flip(2)] {
            let (copy, _, columns, between) = stride(&copied);
            assert!(copy != address && between == columns as i64);
        }
    }

    #[test]
    fn the_team_is_as_large_as_the_row() {
        let kernel = |count, columns, dtype| {
            let (name, grid) = Rows { count, columns, ..Rows::zeroed() }.kernel("f", dtype);
            (name, grid.blocks[0], grid.threads)
        };
        assert_eq!(kernel(33, 16, DType::F32), ("f_f32_four".into(), 2, 128));
        assert_eq!(kernel(9, 33, DType::BF16), ("f_bf16_warp".into(), 3, 128));
        assert_eq!(kernel(9, 256, DType::F64), ("f_f64_long_warp".into(), 3, 128));
        assert_eq!(kernel(9, 768, DType::F32), ("f_f32_block".into(), 9, 128));
        assert_eq!(kernel(9, 4096, DType::F32), ("f_f32_block".into(), 9, 256));
        assert_eq!(kernel(9, 16_384, DType::BF16), ("f_bf16_block".into(), 9, 512));
        assert_eq!(kernel(9, 8193, DType::F32), ("f_f32_stream".into(), 9, 512));
        assert_eq!(kernel(0, 5, DType::F32).1, 0);
    }
}
