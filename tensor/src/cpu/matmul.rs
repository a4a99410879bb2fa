//! Matrix products: any strides, batches, and a choice of threads that does not change a bit.

use bytemuck::Pod;
use gemm_common::Parallelism;
use smallvec::SmallVec;

use super::threads;
use super::walk::data;
use crate::primitive::infer_matmul;
use crate::{DType, Element, HostBuffer, Result, Shape, Tensor};

/// Below this many floating-point operations waking a second thread costs more than it saves.
const PARALLEL_FLOPS: usize = 4_000_000;

/// `[.., m, k] · [.., k, n]` → `[.., m, n]`, the leading axes broadcast. f32 and f64 accumulate in their own
/// type; bf16 is multiplied in f32 and rounded once. An empty sum (k = 0) is 0.
///
/// The bits depend on shapes and strides (a row multiplied alone may differ from the same row of a larger
/// product), never on the number of threads.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match a.dtype() {
        DType::F32 => Ok(product::<f32>(a, b, Threads::choose)),
        DType::F64 => Ok(product::<f64>(a, b, Threads::choose)),
        DType::BF16 => {
            let wide = matmul(&a.cast(DType::F32)?, &b.cast(DType::F32)?)?;
            wide.cast(DType::BF16)
        }
        DType::I64 | DType::Bool => panic!("matmul is not defined for {}", a.dtype()),
    }
}

/// The product, with the threads that `choose` picks for it.
fn product<T: Factor>(a: &Tensor, b: &Tensor, choose: impl Fn(&Plan) -> Threads) -> Tensor {
    // The strides below are only right for shapes that agree; memory safety rests on them, so shapes are checked
    // here again.
    let meta = infer_matmul(&a.meta(), &b.meta()).unwrap_or_else(|message| panic!("{message}"));
    let mut out = HostBuffer::new(meta.bytes());
    let plan = Plan::new(a, b, &meta.shape);
    plan.run::<T>(data(a), data(b), out.as_mut(), choose(&plan));
    out.into_tensor(meta.shape, meta.dtype)
}

/// Who does the work.
#[derive(Clone, Copy, Debug)]
enum Threads {
    /// The calling thread.
    One,
    /// All threads share each product of the batch in turn.
    Within,
    /// Each product of the batch is one thread's.
    Across,
}

impl Threads {
    fn choose(plan: &Plan) -> Threads {
        let each = 2 * plan.m * plan.n * plan.k;
        let batches = plan.batches();
        if each.saturating_mul(batches) < PARALLEL_FLOPS {
            Threads::One
        } else if each < PARALLEL_FLOPS || batches >= 4 * rayon::current_num_threads() {
            Threads::Across
        } else {
            Threads::Within
        }
    }
}

/// Steps between neighbours down a column and along a row of a matrix.
#[derive(Clone, Copy)]
struct Steps {
    row: isize,
    column: isize,
}

/// An axis of the batch: its size, and the steps of both operands along it (0 where one is broadcast).
struct BatchAxis {
    size: usize,
    a: isize,
    b: isize,
}

/// A batched product: sizes, steps, and where the matrices of each batch begin.
struct Plan {
    m: usize,
    k: usize,
    n: usize,
    a: Steps,
    b: Steps,
    a_start: isize,
    b_start: isize,
    batch: SmallVec<[BatchAxis; 4]>,
}

impl Plan {
    fn new(a: &Tensor, b: &Tensor, out: &Shape) -> Plan {
        let lead = out.len() - 2;
        let (m, n, k) = (out[lead], out[lead + 1], a.shape()[a.shape().len() - 1]);
        let sizes = |rows: usize, columns: usize| -> Shape {
            out[..lead].iter().copied().chain([rows, columns]).collect()
        };
        let broadcast = "infer_matmul has checked that the leading axes broadcast";
        let a = a.layout().broadcast(&sizes(m, k)).expect(broadcast);
        let b = b.layout().broadcast(&sizes(k, n)).expect(broadcast);
        let (sa, sb) = (a.strides(), b.strides());
        let mut plan = Plan {
            m,
            k,
            n,
            a: Steps { row: sa[lead], column: sa[lead + 1] },
            b: Steps { row: sb[lead], column: sb[lead + 1] },
            a_start: a.offset() as isize,
            b_start: b.offset() as isize,
            batch: (0..lead)
                .map(|axis| BatchAxis { size: out[axis], a: sa[axis], b: sb[axis] })
                .filter(|axis| axis.size != 1)
                .collect(),
        };
        plan.fold_batch_into_rows();
        plan.settle_unused_steps();
        plan
    }

    /// Where one right-hand matrix serves a whole axis of the batch and the left-hand rows follow each other
    /// across it, the axis is more rows of the same product: one large product instead of many small ones.
    fn fold_batch_into_rows(&mut self) {
        while let Some(axis) = self.batch.last()
            && axis.b == 0
            && (self.m == 1 || axis.a == self.a.row * self.m as isize)
        {
            if self.m == 1 {
                self.a.row = axis.a;
            }
            self.m *= axis.size;
            self.batch.pop();
        }
    }

    /// The step along an axis of size 1 is never taken, but the library looks at it to choose its kernel. Views leave
    /// different numbers there for the same matrix; the number of a contiguous one makes them give the same bits.
    fn settle_unused_steps(&mut self) {
        if self.k == 1 {
            (self.a.column, self.b.row) = (1, self.n as isize);
        }
        if self.m == 1 {
            self.a.row = self.k as isize;
        }
        if self.n == 1 {
            self.b.column = 1;
        }
    }

    fn batches(&self) -> usize {
        self.batch.iter().map(|axis| axis.size).product()
    }

    /// Where the matrices of batch `i` (counted in row-major order) begin.
    fn starts(&self, mut i: usize) -> (isize, isize) {
        let (mut a, mut b) = (self.a_start, self.b_start);
        for axis in self.batch.iter().rev() {
            let along = (i % axis.size) as isize;
            a += along * axis.a;
            b += along * axis.b;
            i /= axis.size;
        }
        (a, b)
    }

    fn run<T: Factor>(&self, a: &[T], b: &[T], out: &mut [T], threads: Threads) {
        let size = self.m * self.n;
        if out.is_empty() {
            return;
        }
        match threads {
            Threads::One => {
                let matrices = out.chunks_exact_mut(size).enumerate();
                matrices.for_each(|(i, out)| self.multiply(a, b, i, out, Parallelism::None));
            }
            Threads::Within => {
                let matrices = out.chunks_exact_mut(size).enumerate();
                matrices.for_each(|(i, out)| self.multiply(a, b, i, out, Parallelism::Rayon(0)));
            }
            Threads::Across => {
                let flops = 2 * size * self.k.max(1);
                let each = PARALLEL_FLOPS.div_ceil(4 * flops);
                threads::chunks(out, each * size, |task, out| {
                    let matrices = out.chunks_exact_mut(size).enumerate();
                    matrices
                        .for_each(|(i, out)| self.multiply(a, b, task * each + i, out, Parallelism::None));
                });
            }
        }
    }

    /// Batch `i` into `out`, a row-major m×n matrix.
    fn multiply<T: Factor>(&self, a: &[T], b: &[T], i: usize, out: &mut [T], parallelism: Parallelism) {
        let &Plan { m, n, k, a: a_steps, b: b_steps, .. } = self;
        assert_eq!(out.len(), m * n);
        let (a_start, b_start) = self.starts(i);
        let a = Matrix { first: a.as_ptr().wrapping_offset(a_start), steps: a_steps };
        let b = Matrix { first: b.as_ptr().wrapping_offset(b_start), steps: b_steps };
        // The kernels write columns, so what they are asked for is outᵀ = bᵀ·aᵀ. A single column is one already.
        let (rows, columns, left, right) =
            if n == 1 { (m, 1, a, b) } else { (n, m, b.transposed(), a.transposed()) };
        // They go through the sum in the direction in which the left factor's memory ascends.
        let (left, right) = if left.steps.column < 0 && k > 0 {
            (left.transposed().flipped(k).transposed(), right.flipped(k))
        } else {
            (left, right)
        };
        let (zero, one) = (T::from_f64(0.0), T::from_f64(1.0));
        // SAFETY: `out` is exclusively borrowed and, as asserted, exactly the rows×columns column-major matrix
        // described. The kernel reads elements first + i·row + j·column of a and b with i, j inside m×k and k×n, in
        // whichever direction: for each batch these are elements of the operands' layouts, which lie inside their
        // storage (`Tensor::from_storage` checks that) and so inside the slices; `Plan::new` has the shapes from
        // `infer_matmul`. A step of 0 or below is read like any other: vectors are only loaded where the step is 1.
        // `out` is not read (the flag before the factors is false), so what it held before does not matter.
        unsafe {
            T::kernel()(
                rows,
                columns,
                k,
                out.as_mut_ptr(),
                rows as isize,
                1,
                false,
                left.first,
                left.steps.column,
                left.steps.row,
                right.first,
                right.steps.column,
                right.steps.row,
                zero,
                one,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// A strided matrix in memory.
#[derive(Clone, Copy)]
struct Matrix<T> {
    first: *const T,
    steps: Steps,
}

impl<T> Matrix<T> {
    fn transposed(self) -> Matrix<T> {
        let Steps { row, column } = self.steps;
        Matrix { steps: Steps { row: column, column: row }, ..self }
    }

    /// Its `rows` rows from the last to the first.
    fn flipped(self, rows: usize) -> Matrix<T> {
        let Steps { row, column } = self.steps;
        let first = self.first.wrapping_offset((rows as isize - 1) * row);
        Matrix { first, steps: Steps { row: -row, column } }
    }
}

/// What the library calls a product `c = α·c + β·a·b`: sizes m, n, k; c, its column and row steps and whether it is
/// read; a and b with theirs; α, β; three conjugations; threads.
type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// An element type that the library multiplies: its kernel for this processor.
trait Factor: Element + Pod {
    fn kernel() -> Kernel<Self>;
}

impl Factor for f32 {
    fn kernel() -> Kernel<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Factor for f64 {
    fn kernel() -> Kernel<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{naive, rounded, views};
    use super::*;

    /// Whole numbers in −8..=8: every product and every sum of up to 2¹⁸ of them is exact in f32.
    fn whole(shape: impl Into<Shape>, dtype: DType, seed: usize) -> Tensor {
        let shape = shape.into();
        let values: Vec<f64> =
            (0..shape.elements()).map(|i| ((i * 7919 + seed * 104_729) % 1009 % 17) as f64 - 8.0).collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    /// Numbers whose sums round, so that another order of summation shows.
    fn fractions(shape: impl Into<Shape>, dtype: DType, seed: usize) -> Tensor {
        let shape = shape.into();
        let values: Vec<f64> = (0..shape.elements())
            .map(|i| ((i * 7919 + seed) as f64 * 0.618_033_988_75).fract() - 0.5)
            .collect();
        Tensor::from_f64(&values, shape, dtype)
    }

    /// The definition, in f64.
    fn definition(a: &Tensor, b: &Tensor) -> Vec<f64> {
        let out = infer_matmul(&a.meta(), &b.meta()).expect("the test multiplies shapes that agree").shape;
        let lead = out.len() - 2;
        let (m, n, k) = (out[lead], out[lead + 1], a.shape()[a.shape().len() - 1]);
        let expand = |x: &Tensor, rows: usize, columns: usize| {
            naive(&x.expand(out[..lead].iter().copied().chain([rows, columns]).collect::<Shape>()))
        };
        let (a, b) = (expand(a, m, k), expand(b, k, n));
        let mut y = Vec::new();
        for batch in 0..out[..lead].iter().product() {
            for i in 0..m {
                for j in 0..n {
                    let term = |p| a[(batch * m + i) * k + p] * b[(batch * k + p) * n + j];
                    y.push((0..k).map(term).sum());
                }
            }
        }
        y
    }

    #[test]
    fn every_layout_gives_the_definition() {
        let sizes = [
            (1, 1, 1),
            (1, 5, 1),
            (2, 3, 4),
            (1, 40, 33),
            (33, 40, 1),
            (17, 1, 19),
            (5, 2, 7),
            (16, 64, 16),
            (67, 35, 70),
        ];
        for dtype in [DType::F32, DType::F64] {
            for (m, k, n) in sizes {
                for a in views(&[m, k], dtype) {
                    for b in views(&[k, n], dtype) {
                        let y = a.matmul(&b).unwrap();
                        assert_eq!(
                            naive(&y),
                            definition(&a, &b),
                            "{dtype} {:?} · {:?}",
                            a.layout(),
                            b.layout()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_zero() {
        for dtype in [DType::F32, DType::F64] {
            for (m, k, n) in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (1, 0, 1)] {
                let y = whole([m, k], dtype, 1).matmul(&whole([k, n], dtype, 2)).unwrap();
                assert_eq!(y.shape(), &Shape::from([m, n]));
                assert_eq!(naive(&y), vec![0.0; m * n]);
            }
            let none = whole([0, 3, 4], dtype, 1).matmul(&whole([4, 5], dtype, 2)).unwrap();
            assert_eq!(none.shape(), &Shape::from([0, 3, 5]));
            let empty_sums = whole([2, 3, 0], dtype, 1).matmul(&whole([2, 0, 5], dtype, 2)).unwrap();
            assert_eq!(naive(&empty_sums), vec![0.0; 30]);
        }
    }

    #[test]
    fn leading_axes_broadcast() {
        let shapes: [(&[usize], &[usize]); 9] = [
            (&[3, 4, 5], &[3, 5, 6]),
            (&[3, 4, 5], &[5, 6]),
            (&[4, 5], &[3, 5, 6]),
            (&[2, 3, 4, 5], &[5, 6]),
            (&[2, 3, 4, 5], &[3, 5, 6]),
            (&[2, 3, 4, 5], &[2, 1, 5, 6]),
            (&[2, 1, 4, 5], &[1, 3, 5, 6]),
            (&[7, 2, 1, 5], &[5, 6]),
            (&[2, 1, 3, 1, 4, 5], &[3, 2, 5, 1]),
        ];
        for (a, b) in shapes {
            let (a, b) = (whole(a, DType::F64, 1), whole(b, DType::F64, 2));
            let (ra, rb) = (a.shape().len(), b.shape().len());
            let turned = |x: &Tensor, rank: usize| {
                let swapped = whole(x.transpose(-1, -2).shape(), DType::F64, 3).transpose(-1, -2);
                [x.clone(), swapped, x.flip(0), x.flip(rank - 2)]
            };
            for a in turned(&a, ra) {
                for b in turned(&b, rb) {
                    let y = a.matmul(&b).unwrap();
                    assert_eq!(naive(&y), definition(&a, &b), "{} · {}", a.shape(), b.shape());
                }
            }
        }
        // Batch axes in another order than memory's, as attention heads are.
        let heads = whole([2, 4, 3, 5], DType::F32, 1).permute(&[0, 2, 1, 3]);
        let y = heads.matmul(&heads.transpose(-1, -2)).unwrap();
        assert_eq!(naive(&y), definition(&heads, &heads.transpose(-1, -2)));
        // A batch made of one matrix repeated.
        let repeated = whole([4, 5], DType::F32, 1).expand([3, 4, 5]);
        let b = whole([5, 6], DType::F32, 2);
        assert_eq!(naive(&repeated.matmul(&b).unwrap()), definition(&repeated, &b));
    }

    #[test]
    fn a_shared_right_side_is_one_product() {
        let rows = |a: &Tensor, b: &Tensor| {
            let out =
                infer_matmul(&a.meta(), &b.meta()).expect("the test multiplies shapes that agree").shape;
            let plan = Plan::new(a, b, &out);
            (plan.batches(), plan.m)
        };
        let a = whole([2, 3, 4, 5], DType::F32, 1);
        let w = whole([6, 5], DType::F32, 2).transpose(0, 1);
        assert_eq!(rows(&a, &w), (1, 24));
        assert_eq!(rows(&a, &whole([2, 1, 5, 6], DType::F32, 2)), (2, 12));
        assert_eq!(rows(&a, &whole([3, 5, 6], DType::F32, 2)), (6, 4));
        assert_eq!(rows(&a.slice(2, 0, 3, 1), &w), (6, 3), "rows with gaps between batches stay apart");
        assert_eq!(rows(&a.slice(2, 0, 1, 1), &w), (1, 6), "one row per batch leaves no gap");
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let sizes = [
            (1, 300, 200),
            (300, 200, 1),
            (128, 64, 64),
            (33, 1000, 65),
            (200, 513, 129),
            (257, 2, 300),
            (7, 4000, 9),
            (500, 31, 17),
            (16, 16, 2000),
        ];
        let pools = [1, 2, 3, 7].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        fn same<T: Factor>(a: &Tensor, b: &Tensor, pools: &[rayon::ThreadPool]) {
            let bits = |threads| T::to_bytes(data::<T>(&product::<T>(a, b, |_| threads))).to_vec();
            let alone = bits(Threads::One);
            for threads in [Threads::Within, Threads::Across] {
                for pool in pools {
                    assert!(
                        alone == pool.install(|| bits(threads)),
                        "{} {:?} · {:?}, {threads:?} of {} threads",
                        T::DTYPE,
                        a.layout(),
                        b.layout(),
                        pool.current_num_threads()
                    );
                }
            }
        }
        for (m, k, n) in sizes {
            for (batch, shared) in [(1, false), (3, false), (3, true)] {
                for transpose in [(false, false), (true, false), (false, true), (true, true)] {
                    for dtype in [DType::F32, DType::F64] {
                        let matrix = |rows: usize, columns: usize, batch: usize, flip: bool, seed: usize| {
                            if flip {
                                fractions([batch, columns, rows], dtype, seed).transpose(1, 2)
                            } else {
                                fractions([batch, rows, columns], dtype, seed)
                            }
                        };
                        let a = matrix(m, k, batch, transpose.0, 1);
                        let b = matrix(k, n, if shared { 1 } else { batch }, transpose.1, 2);
                        if dtype == DType::F32 {
                            same::<f32>(&a, &b, &pools)
                        } else {
                            same::<f64>(&a, &b, &pools)
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_step_along_an_axis_of_one_does_not_matter() {
        let a = fractions([1, 300], DType::F32, 1);
        let odd = fractions([300, 1], DType::F32, 1).transpose(0, 1);
        let b = fractions([300, 50], DType::F32, 2);
        assert_ne!(a.layout().strides(), odd.layout().strides());
        assert_eq!(naive(&a.matmul(&b).unwrap()), naive(&odd.matmul(&b).unwrap()));
    }

    #[test]
    fn bf16_is_rounded_once() {
        for (m, k, n) in [(1, 1, 1), (3, 0, 2), (4, 300, 5), (2, 1000, 3)] {
            let (a, b) = (whole([2, m, k], DType::BF16, 1), whole([k, n], DType::BF16, 2));
            let exact = definition(&a, &b);
            let rounded: Vec<f64> = exact.iter().map(|&v| rounded(v, DType::BF16)).collect();
            assert_eq!(naive(&a.matmul(&b).unwrap()), rounded);
        }
    }

    #[test]
    #[should_panic(expected = "matmul: [2, 3] times [4, 5]")]
    fn the_backend_itself_refuses_shapes_that_disagree() {
        let (a, b) = (whole([2, 3], DType::F32, 1), whole([4, 5], DType::F32, 2));
        let _ = a.device().backend().matmul(&a, &b);
    }
}
