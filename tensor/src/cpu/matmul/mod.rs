//! Matrix products: any strides, any batch, and bits that depend on a row and a column alone.
//!
//! An element of the result is one chain of fused multiply-adds, in the order of its terms, from 0 on. So it is the same
//! whatever it is computed beside, however the factors lie, in whatever vectors and by however many threads.

mod blocks;
mod kernel;
mod pack;

use std::ops::Range;

use smallvec::SmallVec;

use self::blocks::Product;
use self::kernel::ROWS;
use super::math::Float;
use super::threads;
use super::vector::Scalar;
use super::walk::{contiguous_data, data};
use crate::primitive::infer_matmul;
use crate::{DType, Element, HostBuffer, Result, Shape, Tensor};

/// Below this many floating-point operations waking a second thread costs more than it saves.
const PARALLEL: usize = 4_000_000;

/// `[.., m, k] · [.., k, n]` → `[.., m, n]`, the leading axes broadcast. f32 and f64 accumulate in their own
/// type; bf16 is multiplied in f32 and rounded once. An empty sum (k = 0) is 0.
///
/// Each element is `fma(a[k−1], b[k−1], … fma(a[1], b[1], fma(a[0], b[0], 0)))`.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match a.dtype() {
        DType::F32 => Ok(product::<f32>(a, b, None, |plan| plan.parts())),
        DType::F64 => Ok(product::<f64>(a, b, None, |plan| plan.parts())),
        DType::BF16 => {
            let wide = matmul(&a.cast(DType::F32)?, &b.cast(DType::F32)?)?;
            wide.cast(DType::BF16)
        }
        DType::I64 | DType::Bool => panic!("matmul is not defined for {}", a.dtype()),
    }
}

/// `a·b + r` for r contiguous and of the product's shape: the bits of a sum of the two, without a pass of its own.
pub(super) fn matmul_add<T: Factor>(a: &Tensor, b: &Tensor, r: &Tensor) -> Tensor {
    product::<T>(a, b, Some(r), |plan| plan.parts())
}

/// The product, and what is added to it if anything is, in as many parts as `choose` says.
fn product<T: Factor>(
    a: &Tensor,
    b: &Tensor,
    added: Option<&Tensor>,
    choose: impl Fn(&Plan) -> usize,
) -> Tensor {
    // The steps below are only right for shapes that agree; memory safety rests on them, so shapes are checked here again.
    let meta = infer_matmul(&a.meta(), &b.meta()).unwrap_or_else(|message| panic!("{message}"));
    let mut out = HostBuffer::new(meta.bytes());
    let plan = Plan::new(a, b, &meta.shape);
    let added = added.map(|r| {
        assert!(r.shape() == &meta.shape, "matmul_add: expected {} to add, found {}", meta.shape, r.shape());
        contiguous_data(r).expect("what is added is contiguous")
    });
    plan.run::<T>(out.as_mut(), added, choose(&plan));
    out.into_tensor(meta.shape, meta.dtype)
}

/// Steps between neighbours down a column and along a row of a matrix.
#[derive(Clone, Copy)]
struct Steps {
    row: isize,
    column: isize,
}

impl Steps {
    /// Those of the transpose.
    #[inline(always)]
    fn turned(self) -> Steps {
        Steps { row: self.column, column: self.row }
    }
}

/// An axis of the batch: its size, and the steps of both operands along it (0 where one is broadcast).
struct BatchAxis {
    size: usize,
    a: isize,
    b: isize,
}

/// One of the two operands: where its first matrix begins, and its steps.
struct Operand<'a> {
    tensor: &'a Tensor,
    start: isize,
    steps: Steps,
}

/// A batched product: sizes, operands, and the axes of the batch.
struct Plan<'a> {
    m: usize,
    k: usize,
    n: usize,
    a: Operand<'a>,
    b: Operand<'a>,
    batch: SmallVec<[BatchAxis; 4]>,
}

impl<'a> Plan<'a> {
    fn new(a: &'a Tensor, b: &'a Tensor, out: &Shape) -> Plan<'a> {
        let lead = out.len() - 2;
        let (m, n, k) = (out[lead], out[lead + 1], a.shape()[a.shape().len() - 1]);
        let operand = |x: &'a Tensor| {
            let (strides, start) = (x.layout().strides(), x.layout().offset() as isize);
            let &[.., row, column] = strides else { unreachable!("infer_matmul demands two axes") };
            Operand { tensor: x, start, steps: Steps { row, column } }
        };
        // Along an axis that x lacks, or has once for all, it stays where it is.
        let step = |x: &Tensor, axis: usize| match (axis + x.shape().len()).checked_sub(out.len()) {
            Some(own) if x.shape()[own] > 1 => x.layout().strides()[own],
            _ => 0,
        };
        let mut batch = SmallVec::new();
        for axis in (0..lead).filter(|&axis| out[axis] != 1) {
            batch.push(BatchAxis { size: out[axis], a: step(a, axis), b: step(b, axis) });
        }
        let mut plan = Plan { m, k, n, a: operand(a), b: operand(b), batch };
        plan.fold_batch_into_rows();
        plan.make_a_column_a_row();
        plan
    }

    /// Where one right-hand matrix serves a whole axis of the batch and the left-hand rows follow each other
    /// across it, the axis is more rows of the same product: one large product instead of many small ones.
    fn fold_batch_into_rows(&mut self) {
        while let Some(axis) = self.batch.last()
            && axis.b == 0
            && (self.m == 1 || axis.a == self.a.steps.row * self.m as isize)
        {
            if self.m == 1 {
                self.a.steps.row = axis.a;
            }
            self.m *= axis.size;
            self.batch.pop();
        }
    }

    /// A result of one column is the single row of the transposed product, bᵀ·aᵀ, and lies in memory as that does.
    fn make_a_column_a_row(&mut self) {
        if self.n == 1 {
            (self.m, self.n) = (1, self.m);
            std::mem::swap(&mut self.a, &mut self.b);
            (self.a.steps, self.b.steps) = (self.a.steps.turned(), self.b.steps.turned());
            for axis in &mut self.batch {
                (axis.a, axis.b) = (axis.b, axis.a);
            }
        }
    }

    fn batches(&self) -> usize {
        self.batch.iter().map(|axis| axis.size).product()
    }

    /// Where the matrices of batch `i` (counted in row-major order) begin.
    fn starts(&self, mut i: usize) -> (isize, isize) {
        let (mut a, mut b) = (self.a.start, self.b.start);
        for axis in self.batch.iter().rev() {
            let along = (i % axis.size) as isize;
            a += along * axis.a;
            b += along * axis.b;
            i /= axis.size;
        }
        (a, b)
    }

    /// How many parts to make of it: as many as are worth a thread, and twice as many as there are threads, which do not
    /// always have the same to do.
    fn parts(&self) -> usize {
        let operations = (2 * self.m * self.n * self.k).saturating_mul(self.batches());
        let threads = rayon::current_num_threads();
        if threads == 1 || operations < PARALLEL { 1 } else { (2 * operations / PARALLEL).min(2 * threads) }
    }

    fn run<T: Factor>(&self, out: &mut [T], added: Option<&[T]>, parts: usize) {
        assert_eq!(out.len(), self.batches() * self.m * self.n);
        assert!(added.is_none_or(|added| added.len() == out.len()));
        if self.k == 0 || out.is_empty() {
            return match added {
                Some(added) => out.iter_mut().zip(added).for_each(|(out, &r)| *out = T::ZERO + r),
                None => out.fill(T::ZERO),
            };
        }
        let whole = Part {
            plan: self,
            out: out.as_mut_ptr(),
            added: added.map_or(std::ptr::null(), <[T]>::as_ptr),
            batches: 0..self.batches(),
            rows: 0..self.m,
            columns: 0..self.n,
        };
        whole.split(parts);
    }
}

/// A part of the result: rows and columns of some matrices of the batch.
struct Part<'a, T> {
    plan: &'a Plan<'a>,
    /// The whole result. Nothing outside the part is touched.
    out: *mut T,
    /// What is added to the whole result, or null.
    added: *const T,
    batches: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
}

// SAFETY: what lies behind the first pointer is touched in this part alone, which no other part shares; behind the second nobody
// writes.
unsafe impl<T: Sync> Send for Part<'_, T> {}

impl<T: Factor> Part<'_, T> {
    /// Computes it in so many parts, on as many threads as are free. The bits do not depend on it.
    fn split(self, parts: usize) {
        let Part { plan, out, added, batches, rows, columns } = self;
        let part = |batches, rows, columns| Part { plan, out, added, batches, rows, columns };
        // Whole tiles, and lines of the cache.
        let (half_rows, half_columns) =
            (rows.len().div_ceil(2).next_multiple_of(ROWS), columns.len().div_ceil(2).next_multiple_of(64));
        let halves = if parts < 2 {
            None
        } else if batches.len() > 1 {
            let middle = batches.start + batches.len() / 2;
            let half = |batches| part(batches, rows.clone(), columns.clone());
            Some([half(batches.start..middle), half(middle..batches.end)])
        } else if rows.len() > columns.len() && half_rows < rows.len() {
            let middle = rows.start + half_rows;
            let half = |rows| part(batches.clone(), rows, columns.clone());
            Some([half(rows.start..middle), half(middle..rows.end)])
        } else if half_columns < columns.len() {
            let middle = columns.start + half_columns;
            let half = |columns| part(batches.clone(), rows.clone(), columns);
            Some([half(columns.start..middle), half(middle..columns.end)])
        } else {
            None
        };
        match halves {
            None => part(batches, rows, columns).compute(),
            Some([first, second]) => {
                threads::join(|| first.split(parts / 2), || second.split(parts - parts / 2));
            }
        }
    }

    fn compute(self) {
        let Part { plan, out, added, batches, rows, columns } = self;
        let first = |operand: &Operand, start| Matrix {
            first: data::<T>(operand.tensor).as_ptr().wrapping_offset(start),
            steps: operand.steps,
        };
        for batch in batches {
            let (a_start, b_start) = plan.starts(batch);
            let (a, b) = (first(&plan.a, a_start), first(&plan.b, b_start));
            let at = (batch * plan.m + rows.start) * plan.n + columns.start;
            let product = Product {
                m: rows.len(),
                k: plan.k,
                n: columns.len(),
                a: a.from(rows.start, 0),
                b: b.from(0, columns.start),
                c: out.wrapping_add(at),
                c_step: plan.n,
                added: if added.is_null() { added } else { added.wrapping_add(at) },
            };
            // SAFETY: row i of a and column j of b are, for each batch, elements first + i·row + p·column of the operands'
            // layouts, which lie inside their storage (`Tensor::from_storage` checks that) and so inside the slices;
            // `Plan::new` has the shapes from `infer_matmul`. The result has batches·m·n elements (`Plan::run` checks that),
            // is exclusively borrowed there, and parts do not share elements of it. What is added has as many (checked there too).
            unsafe { product.compute() };
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
    #[inline(always)]
    fn new(first: *const T, row: isize, column: isize) -> Matrix<T> {
        Matrix { first, steps: Steps { row, column } }
    }

    #[inline(always)]
    fn transposed(self) -> Matrix<T> {
        Matrix { steps: self.steps.turned(), ..self }
    }

    /// Where element `[i, j]` lies.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *const T {
        self.first.wrapping_offset(i as isize * self.steps.row + j as isize * self.steps.column)
    }

    /// The part from row i and column j on.
    #[inline(always)]
    fn from(&self, i: usize, j: usize) -> Matrix<T> {
        Matrix { first: self.at(i, j), steps: self.steps }
    }
}

/// An element type that is multiplied.
pub(super) trait Factor: Element + Float + Scalar {}
impl<T: Element + Float + Scalar> Factor for T {}

#[cfg(test)]
mod tests {
    use super::super::fixture::{naive, rounded, views};
    use super::super::simd::tests::at_every_level;
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
        assert_eq!(rows(&a, &whole([5, 1], DType::F32, 2)), (1, 1), "a column is the row of the transpose");
    }

    /// What every product must be to the bit: for each element one chain of fused multiply-adds in the order of its terms.
    fn reference<T: Factor>(a: &Tensor, b: &Tensor, multiply_add: impl Fn(T, T, T) -> T) -> Vec<T> {
        let out = infer_matmul(&a.meta(), &b.meta()).expect("the test multiplies shapes that agree").shape;
        let lead = out.len() - 2;
        let (m, n, k) = (out[lead], out[lead + 1], a.shape()[a.shape().len() - 1]);
        let expand = |x: &Tensor, rows: usize, columns: usize| -> Vec<T> {
            let shape: Shape = out[..lead].iter().copied().chain([rows, columns]).collect();
            x.expand(shape).to_vec().expect("a tensor of the CPU can be read")
        };
        let (a, b) = (expand(a, m, k), expand(b, k, n));
        let mut y = Vec::new();
        for batch in 0..out[..lead].iter().product() {
            for i in 0..m {
                for j in 0..n {
                    let mut sum = T::ZERO;
                    for p in 0..k {
                        sum = multiply_add(a[(batch * m + i) * k + p], b[(batch * k + p) * n + j], sum);
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    #[track_caller]
    fn assert_is_the_reference<T: Factor>(
        a: &Tensor,
        b: &Tensor,
        parts: usize,
        multiply_add: impl Fn(T, T, T) -> T,
    ) {
        let expected = reference(a, b, multiply_add);
        for (level, y) in at_every_level(|| product::<T>(a, b, None, |_| parts)) {
            let same = T::to_bytes(&y.to_vec::<T>().expect("a tensor of the CPU can be read"))
                == T::to_bytes(&expected);
            assert!(
                same,
                "{} {:?} · {:?} in {parts} parts at {level:?} is not the reference",
                T::DTYPE,
                a.layout(),
                b.layout()
            );
        }
    }

    /// The ways in which a matrix may lie: in rows, in columns, rows and columns with steps between, backwards, repeated.
    fn lying(batch: usize, rows: usize, columns: usize, way: usize, dtype: DType, seed: usize) -> Tensor {
        match way {
            0 => fractions([batch, rows, columns], dtype, seed),
            1 => fractions([batch, columns, rows], dtype, seed).transpose(1, 2),
            2 => fractions([batch, rows, 2 * columns], dtype, seed).slice(2, 0, 2 * columns, 2),
            3 => fractions([batch, columns + 3, rows + 1], dtype, seed)
                .slice(1, 2, columns + 2, 1)
                .slice(2, 1, rows + 1, 1)
                .transpose(1, 2),
            4 => fractions([batch, rows, columns], dtype, seed).flip(1).flip(2),
            5 => fractions([batch, 1, columns], dtype, seed).expand([batch, rows, columns]),
            6 => fractions([batch, rows, 1], dtype, seed).expand([batch, rows, columns]),
            _ => fractions([1, rows, columns], dtype, seed).expand([batch, rows, columns]),
        }
    }

    #[test]
    fn every_element_is_one_chain_of_fused_multiply_adds() {
        let mut draws = 0usize;
        let mut draw = |below: usize| {
            draws += 1;
            ((draws as f64 * 0.618_033_988_75).fract() * 1e6) as usize % below
        };
        for case in 0..400 {
            let sizes = [0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 33, 40, 64, 70];
            let [m, k, n] = [0; 3].map(|_| sizes[draw(sizes.len())]);
            let (batch, ways) = (draw(3) + 1, [draw(8), draw(8)]);
            for dtype in [DType::F32, DType::F64] {
                let a = lying(batch, m, k, ways[0], dtype, case);
                let b = lying(batch, k, n, ways[1], dtype, case + 1);
                let parts = 1 + case % 5;
                match dtype {
                    DType::F32 => assert_is_the_reference(&a, &b, parts, f32::mul_add),
                    _ => assert_is_the_reference(&a, &b, parts, f64::mul_add),
                }
            }
        }
    }

    #[test]
    fn blocks_do_not_show() {
        for (m, k, n) in
            [(25, 1100, 72), (200, 530, 20), (1, 1500, 70), (70, 1500, 1), (2, 700, 30), (13, 3, 3000)]
        {
            for ways in [[0, 0], [1, 0], [0, 1], [1, 1], [2, 4]] {
                for dtype in [DType::F32, DType::F64] {
                    let a = lying(1, m, k, ways[0], dtype, 1);
                    let b = lying(1, k, n, ways[1], dtype, 2);
                    match dtype {
                        DType::F32 => assert_is_the_reference(&a, &b, 1, f32::mul_add),
                        _ => assert_is_the_reference(&a, &b, 1, f64::mul_add),
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_added_is_added_to_the_whole_sum() {
        fn check<T: Factor + std::fmt::Debug>(m: usize, k: usize, n: usize) {
            for (batch, ways) in [(1, [0, 0]), (2, [1, 7]), (1, [1, 1])] {
                let a = lying(batch, m, k, ways[0], T::DTYPE, 1);
                let b = lying(batch, k, n, ways[1], T::DTYPE, 2);
                let r = fractions([batch, m, n], T::DTYPE, 3);
                let sum = Tensor::map(crate::Map::Add, &[&a.matmul(&b).unwrap(), &r]).unwrap();
                for parts in [1, 3] {
                    let found = at_every_level(|| product::<T>(&a, &b, Some(&r), |_| parts));
                    for (level, y) in found {
                        let same = y.to_vec::<T>().unwrap() == sum.to_vec::<T>().unwrap();
                        assert!(same, "{m}×{k}·{k}×{n} of {batch} in {parts} parts at {level:?}");
                    }
                }
            }
        }
        let sizes = [
            (7, 3, 16),
            (25, 1100, 72),
            (1, 300, 70),
            (70, 1500, 1),
            (13, 0, 9),
            (0, 4, 5),
            (128, 64, 64),
            (5, 33, 37),
        ];
        for (m, k, n) in sizes {
            check::<f32>(m, k, n);
            check::<f64>(m, k, n);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        fn same<T: Factor>(a: &Tensor, b: &Tensor, pools: &[rayon::ThreadPool]) {
            let bits =
                |parts| T::to_bytes(&product::<T>(a, b, None, |_| parts).to_vec::<T>().unwrap()).to_vec();
            let alone = bits(1);
            for pool in pools {
                for parts in [2, 3, 8, 50] {
                    assert!(
                        alone == pool.install(|| bits(parts)),
                        "{} {:?} · {:?}, {parts} parts, {} threads",
                        T::DTYPE,
                        a.layout(),
                        b.layout(),
                        pool.current_num_threads()
                    );
                }
            }
        }
        let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for (m, k, n) in
            [(1, 300, 200), (300, 200, 1), (33, 1000, 65), (200, 513, 129), (7, 4000, 9), (16, 16, 2000)]
        {
            for (batch, ways) in [(1, [0, 0]), (3, [0, 1]), (3, [1, 7]), (4, [1, 1])] {
                same::<f32>(
                    &lying(batch, m, k, ways[0], DType::F32, 1),
                    &lying(batch, k, n, ways[1], DType::F32, 2),
                    &pools,
                );
                same::<f64>(
                    &lying(batch, m, k, ways[0], DType::F64, 1),
                    &lying(batch, k, n, ways[1], DType::F64, 2),
                    &pools,
                );
            }
        }
    }

    #[test]
    fn a_row_alone_is_the_row_among_others() {
        let (a, b) = (fractions([3, 50, 700], DType::F32, 1), fractions([700, 90], DType::F32, 2));
        let y = naive(&a.matmul(&b).unwrap());
        for row in [0, 1, 49, 50, 149] {
            let alone = a.reshape([150, 700]).unwrap().slice(0, row, row + 1, 1).matmul(&b).unwrap();
            assert_eq!(naive(&alone), y[row * 90..][..90]);
        }
        for column in [0, 15, 89] {
            let alone = naive(&a.matmul(&b.slice(1, column, column + 1, 1)).unwrap());
            let among: Vec<f64> = y.iter().skip(column).step_by(90).copied().collect();
            assert_eq!(alone, among);
        }
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
