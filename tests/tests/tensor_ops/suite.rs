//! Every primitive of a device against the oracle: all ranks, layouts, dtypes and kinds of values it is defined for.
//! The device is the including crate's: its `place` takes a tensor there, its `cases` says how many cases are enough.

use limpid_tensor::{Activation, DType, Fused, Handed, Layout, Map, Reduce, Tensor};
use limpid_tests::array::{Array, with};
use limpid_tests::case::{
    self, Case, Drawn, Layouts, Numbers, Operand, Values, broadcastable, cases, factors, full_shapes, one,
    permutation, shapes, streams,
};
use limpid_tests::judge::{self, Near, round};
use limpid_tests::naive;
use limpid_tests::property::{self, regressions};

const CASES: u32 = 256;
const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];
const NUMBERS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::I64];
const ALL: [DType; 5] = [DType::F32, DType::F64, DType::BF16, DType::I64, DType::Bool];
const EVERY: [Values; 6] =
    [Values::Interior, Values::Positive, Values::Ties, Values::Huge, Values::Tiny, Values::Special];

fn make(operand: &Operand) -> (Tensor, Numbers) {
    let (x, numbers) = case::make(operand);
    (crate::place(&x), numbers)
}

fn check(name: &str, cases: u32, strategy: Drawn<Case>, property: impl Fn(&Case) -> Result<(), String>) {
    property::check(name, crate::cases(cases), strategy, property);
}

fn made(case: &Case) -> (Vec<Tensor>, Vec<Numbers>) {
    case.operands.iter().map(make).unzip()
}

fn run(f: impl FnOnce() -> limpid_tensor::Result<Tensor>) -> Result<Tensor, String> {
    f().map_err(|e| e.to_string())
}

fn same_numbers(found: &Tensor, dtype: DType, expected: &Numbers) -> Result<(), String> {
    match expected {
        Numbers::Float(x) => judge::exact(found, dtype, x),
        Numbers::Int(x) => judge::ints(found, x),
        Numbers::Bool(x) => judge::bools(found, x),
    }
}

/// `f` of whichever kind of numbers there is.
macro_rules! of_numbers {
    ($x:expr, $a:ident => $body:expr) => {
        match $x {
            Numbers::Float($a) => Numbers::Float($body),
            Numbers::Int($a) => Numbers::Int($body),
            Numbers::Bool($a) => Numbers::Bool($body),
        }
    };
}

#[test]
fn a_case_is_what_it_says_before_anything_is_computed() {
    let operands = broadcastable(3, shapes(0..=5), &ALL, &EVERY, Layouts::Any);
    check("view", 512, cases(operands), |case| {
        for operand in &case.operands {
            let (x, numbers) = make(operand);
            same_numbers(&x, operand.dtype, &numbers)?;
        }
        Ok(())
    });
}

/// Units in the last place between the kernel and the oracle (of which f64 has an error of its own); `None` where the
/// result must be the rounded exact one.
fn ulps(f: Map, dtype: DType) -> Option<f64> {
    use Map::*;
    let (narrow, wide) = match f {
        Neg | Abs | Sign | Sqrt | Recip | Relu | LeakyRelu(_) | Clamp { .. } => return None,
        Add | Sub | Mul | Div | Max | Min => return None,
        Powf(1.0) => return None,
        Exp | Log | Sin | Cos | Pow => (1.0, 2.0),
        // As vectors, off by a little more than one unit.
        Expm1 | Log1p | Tanh => (1.7, 2.0),
        Powf(_) => (2.0, 3.0),
        // The oracle's own series is good to 5 units.
        Erf => (1.8, 6.0),
        Rsqrt => (1.5, 1.5),
        _ => (3.0, 4.0),
    };
    match dtype {
        DType::F32 => Some(narrow),
        DType::F64 => Some(wide),
        _ => Some(1.0),
    }
}

fn float_map(f: Map) {
    let operands = broadcastable(f.arity(), shapes(0..=5), &FLOATS, &EVERY, Layouts::Any);
    check(&format!("map {} {f:?}", f.name()), CASES, cases(operands), |case| {
        let dtype = case.operands[0].dtype;
        let (x, numbers) = made(case);
        let y = run(|| Tensor::map(f, &x.iter().collect::<Vec<_>>()))?;
        let floats: Vec<&Array<f64>> = numbers.iter().map(Numbers::float).collect();
        let expected = naive::broadcast_map(&floats, |v| {
            let value = naive::float_map(f, v);
            let rounded = judge::unit(judge::accumulator(dtype)) + judge::unit(DType::F64);
            match f {
                // The product is rounded before the addition cancels.
                Map::Affine { mul, .. } if value.is_finite() => {
                    Near { value, error: 2.0 * rounded * (v[0] * mul).abs() }
                }
                _ => Near { value, error: 0.0 },
            }
        });
        match ulps(f, dtype) {
            None => judge::exact(&y, dtype, &expected.map(|e| e.value)),
            Some(ulps) => judge::near(&y, dtype, &expected, ulps),
        }
    });
}

#[test]
fn functions_of_one_float() {
    use Map::*;
    for f in
        [Neg, Abs, Sign, Exp, Expm1, Log, Log1p, Sqrt, Rsqrt, Recip, Sin, Cos, Tanh, Sigmoid, Erf, Softplus]
    {
        float_map(f);
    }
}

#[test]
fn functions_of_one_float_and_constants() {
    use Map::*;
    let affine = |mul, add| Affine { mul, add };
    let powers = [0.0, 0.5, 1.0, 2.0, 3.0, -1.0, -0.5, 1.5, -2.0, 4.0].map(Powf);
    let others = [
        Relu,
        LeakyRelu(0.125),
        LeakyRelu(-0.5),
        Elu(1.0),
        Elu(0.75),
        affine(-1.5, 0.25),
        affine(1.0, -2.0),
        affine(0.0, 3.0),
        Clamp { low: -1.0, high: 1.0 },
        Clamp { low: 0.5, high: f64::INFINITY },
    ];
    powers.into_iter().chain(others).for_each(float_map);
}

#[test]
fn functions_of_two_floats() {
    use Map::*;
    [Add, Sub, Mul, Div, Pow, Max, Min].into_iter().for_each(float_map);
}

#[test]
fn functions_of_integers() {
    use Map::*;
    let constant = Affine { mul: -3.0, add: 5.0 };
    for f in [Neg, Abs, Sign, constant, Add, Sub, Mul, Max, Min] {
        let operands = broadcastable(f.arity(), shapes(0..=5), &[DType::I64], &EVERY, Layouts::Any);
        check(&format!("map {} i64", f.name()), CASES, cases(operands), |case| {
            let (x, numbers) = made(case);
            let y = run(|| Tensor::map(f, &x.iter().collect::<Vec<_>>()))?;
            let ints: Vec<&Array<i64>> = numbers.iter().map(Numbers::int).collect();
            judge::ints(&y, &naive::broadcast_map(&ints, |v| naive::int_map(f, v)))
        });
    }
}

#[test]
fn logic() {
    for f in [Map::Not, Map::And, Map::Or, Map::Eq, Map::Ne] {
        let operands = broadcastable(f.arity(), shapes(0..=5), &[DType::Bool], &EVERY, Layouts::Any);
        check(&format!("map {} bool", f.name()), CASES, cases(operands), |case| {
            let (x, numbers) = made(case);
            let y = run(|| Tensor::map(f, &x.iter().collect::<Vec<_>>()))?;
            let bits: Vec<&Array<bool>> = numbers.iter().map(Numbers::bool).collect();
            judge::bools(
                &y,
                &naive::broadcast_map(&bits, |v| match f {
                    Map::Not => !v[0],
                    Map::And => v[0] && v[1],
                    Map::Or => v[0] || v[1],
                    _ => naive::compare(f, v[0], v[1]),
                }),
            )
        });
    }
}

#[test]
fn comparisons() {
    for f in [Map::Eq, Map::Ne, Map::Lt, Map::Le, Map::Gt, Map::Ge] {
        let operands = broadcastable(2, shapes(0..=5), &NUMBERS, &EVERY, Layouts::Any);
        check(&format!("map {}", f.name()), CASES, cases(operands), |case| {
            let (x, numbers) = made(case);
            let y = run(|| Tensor::map(f, &[&x[0], &x[1]]))?;
            let expected = match (&numbers[0], &numbers[1]) {
                (Numbers::Float(a), Numbers::Float(b)) => {
                    naive::broadcast_map(&[a, b], |v| naive::compare(f, v[0], v[1]))
                }
                (a, b) => naive::broadcast_map(&[a.int(), b.int()], |v| naive::compare(f, v[0], v[1])),
            };
            judge::bools(&y, &expected)
        });
    }
}

#[test]
fn a_choice_between_two() {
    let operands = broadcastable(3, shapes(0..=5), &ALL, &EVERY, Layouts::Any).map(|mut operands| {
        operands[0].dtype = DType::Bool;
        operands
    });
    check("map where", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let y = run(|| Tensor::map(Map::Where, &[&x[0], &x[1], &x[2]]))?;
        let c = numbers[0].bool();
        let expected = match (&numbers[1], &numbers[2]) {
            (Numbers::Float(a), Numbers::Float(b)) => Numbers::Float(naive::where_(c, a, b)),
            (Numbers::Int(a), Numbers::Int(b)) => Numbers::Int(naive::where_(c, a, b)),
            (a, b) => Numbers::Bool(naive::where_(c, a.bool(), b.bool())),
        };
        same_numbers(&y, case.operands[1].dtype, &expected)
    });
}

/// Axes as a caller may write them: counted from the end where a bit of `code` says so. Never an empty list.
fn written(axes: &[usize], rank: usize, code: usize) -> Vec<isize> {
    let count = |&axis: &usize| axis as isize - if code >> axis & 1 == 1 { rank as isize } else { 0 };
    axes.iter().map(count).collect()
}

#[test]
fn sums_and_products() {
    for f in [Reduce::Sum, Reduce::Prod] {
        let operands = one(shapes(0..=5), &NUMBERS, &EVERY, Layouts::Any);
        check(&format!("reduce {}", f.name()), 4 * CASES, cases(operands), |case| {
            let (x, numbers) = made(case);
            let (dtype, rank) = (case.operands[0].dtype, case.operands[0].shape.len());
            let axes = case.axes(0, 0);
            let y = run(|| x[0].reduce(f, &written(&axes, rank, case.choose(1, 32))))?;
            // No axes at all stand for all of them.
            let axes = if axes.is_empty() { (0..rank).collect() } else { axes };
            match &numbers[0] {
                Numbers::Int(x) if f == Reduce::Sum => judge::ints(
                    &y,
                    &naive::along(x, &axes, |v| v.iter().fold(0i64, |a, &b| a.wrapping_add(b))),
                ),
                Numbers::Int(x) => judge::ints(
                    &y,
                    &naive::along(x, &axes, |v| v.iter().fold(1i64, |a, &b| a.wrapping_mul(b))),
                ),
                x if f == Reduce::Sum => {
                    judge::near(&y, dtype, &naive::along(x.float(), &axes, |v| naive::sum(v, dtype)), 0.5)
                }
                x => {
                    judge::near(&y, dtype, &naive::along(x.float(), &axes, |v| naive::product(v, dtype)), 0.5)
                }
            }
        });
    }
}

#[test]
fn extremes() {
    for f in [Reduce::Max, Reduce::Min] {
        let operands = one(full_shapes(0..=5), &NUMBERS, &EVERY, Layouts::Any);
        check(&format!("reduce {}", f.name()), 4 * CASES, cases(operands), |case| {
            let (x, numbers) = made(case);
            let (dtype, rank) = (case.operands[0].dtype, case.operands[0].shape.len());
            let axes = case.axes(0, 0);
            let y = run(|| x[0].reduce(f, &written(&axes, rank, case.choose(1, 32))))?;
            let axes = if axes.is_empty() { (0..rank).collect() } else { axes };
            match &numbers[0] {
                Numbers::Int(x) => {
                    let pick = if f == Reduce::Max { Ord::max } else { Ord::min };
                    judge::ints(&y, &naive::along(x, &axes, |v| v.iter().copied().reduce(pick).unwrap()))
                }
                x => judge::exact(&y, dtype, &naive::along(x.float(), &axes, |v| naive::extreme(f, v))),
            }
        });
    }
}

#[test]
fn positions_of_the_largest() {
    let operands = one(full_shapes(1..=5), &NUMBERS, &EVERY, Layouts::Any);
    check("reduce argmax", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let axis = case.choose(0, case.operands[0].shape.len());
        let y = run(|| x[0].reduce(Reduce::ArgMax, &[axis as isize]))?;
        judge::ints(
            &y,
            &match &numbers[0] {
                Numbers::Int(x) => naive::along(x, &[axis], naive::argmax),
                x => naive::along(x.float(), &[axis], naive::argmax),
            },
        )
    });
}

#[test]
fn running_sums() {
    let operands = one(shapes(1..=5), &NUMBERS, &EVERY, Layouts::Any);
    check("cumsum", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let dtype = case.operands[0].dtype;
        let axis = case.choose(0, case.operands[0].shape.len());
        let y = run(|| x[0].cumsum(axis as isize))?;
        match &numbers[0] {
            Numbers::Int(x) => judge::ints(
                &y,
                &naive::rows(x, axis, |row| {
                    (1..=row.len()).map(|k| row[..k].iter().fold(0i64, |a, &b| a.wrapping_add(b))).collect()
                }),
            ),
            x => {
                let sums = naive::rows(x.float(), axis, |row| naive::running_sums(row, dtype));
                judge::near(&y, dtype, &sums, 0.5)
            }
        }
    });
}

#[test]
fn matrix_products() {
    let operands = factors(&FLOATS, &EVERY, Layouts::Any);
    check("matmul", 8 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let dtype = case.operands[0].dtype;
        let y = run(|| x[0].matmul(&x[1]))?;
        judge::near(&y, dtype, &naive::matmul(numbers[0].float(), numbers[1].float(), dtype), 0.5)
    });
}

#[test]
fn copies_in_order() {
    let operands = one(shapes(0..=5), &ALL, &EVERY, Layouts::Any);
    check("contiguous", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let y = run(|| x[0].contiguous())?;
        if !y.layout().is_contiguous() {
            return Err(format!("{:?} is not contiguous", y.layout()));
        }
        same_numbers(&y, case.operands[0].dtype, &numbers[0])
    });
}

#[test]
fn views_of_views() {
    let operands = one(shapes(0..=5), &ALL, &EVERY, Layouts::Any);
    check("views", 8 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let shape = case.operands[0].shape.clone();
        let (rank, dtype) = (shape.len(), case.operands[0].dtype);
        let order = permutation(case.choose(1, 120), rank);
        let (y, expected) = match (case.choose(0, 5), case.axis(2, 0)) {
            (0, _) => (x[0].permute(&order), of_numbers!(&numbers[0], a => a.permute(&order))),
            (1, Some(axis)) => (x[0].flip(axis), of_numbers!(&numbers[0], a => a.flip(axis))),
            (2, Some(axis)) => {
                let start = case.choose(3, shape[axis] + 1);
                let end = start + case.choose(4, shape[axis] - start + 1);
                let step = 1 + case.choose(5, 3);
                let y = x[0].slice(axis, start, end, step);
                (y, of_numbers!(&numbers[0], a => a.slice(axis, start, end, step)))
            }
            (3, _) => {
                let larger: Vec<usize> =
                    [2].iter().chain(&shape).map(|&n| if n == 1 { 3 } else { n }).collect();
                (x[0].expand(&larger[..]), of_numbers!(&numbers[0], a => a.expand(&larger)))
            }
            _ => {
                // Joins the axes on either side of one of them, and puts axes of size 1 between.
                let cut = case.choose(3, rank + 1);
                let (front, back) = shape.split_at(cut);
                let other = [front.iter().product(), 1, back.iter().product()];
                (run(|| x[0].reshape(other))?, of_numbers!(&numbers[0], a => a.reshape(&other)))
            }
        };
        same_numbers(&y, dtype, &expected)
    });
}

#[test]
fn casts() {
    let operands = one(shapes(0..=5), &ALL, &EVERY, Layouts::Any);
    check("cast", 16 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let to = ALL[case.choose(0, ALL.len())];
        let y = run(|| x[0].cast(to))?;
        let expected = match (&numbers[0], to) {
            (Numbers::Float(x), DType::I64) => Numbers::Int(x.map(naive::truncate)),
            (Numbers::Float(x), DType::Bool) => Numbers::Bool(x.map(|v| v != 0.0)),
            (Numbers::Float(x), to) => Numbers::Float(x.map(|v| round(v, to))),
            (Numbers::Int(x), DType::I64) => Numbers::Int(x.clone()),
            (Numbers::Int(x), DType::Bool) => Numbers::Bool(x.map(|v| v != 0)),
            (Numbers::Int(x), to) => Numbers::Float(x.map(|v| naive::nearest(v, to))),
            (Numbers::Bool(x), DType::I64) => Numbers::Int(x.map(i64::from)),
            (Numbers::Bool(x), DType::Bool) => Numbers::Bool(x.clone()),
            (Numbers::Bool(x), _) => Numbers::Float(x.map(|v| f64::from(u8::from(v)))),
        };
        match expected {
            // Already of the dtype: no second rounding through f32.
            Numbers::Float(x) => judge::near(&y, to, &x.map(|value| Near { value, error: 0.0 }), 0.0),
            other => same_numbers(&y, to, &other),
        }
    });
}

#[test]
fn parts_put_together() {
    let operands = one(shapes(1..=5), &ALL, &EVERY, Layouts::Any);
    check("assemble", 8 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let (shape, dtype) = (x[0].shape().clone(), x[0].dtype());
        let axis = case.choose(0, shape.len());
        let (n, gap, step) = (shape[axis], case.choose(1, 4), 1 + case.choose(2, 3));
        // The tensor itself, every `step`-th place from `gap` on, and its mirror image behind.
        let end = gap + n * step;
        let whole = Layout::contiguous(shape.with(axis, end + n));
        let (strided, mirrored) =
            (whole.slice(axis, gap, end, step), whole.slice(axis, end, end + n, 1).flip(axis));
        let parts = [(strided, &x[0]), (mirrored, &x[0])];
        let y = run(|| Tensor::assemble(x[0].device(), whole.shape(), dtype, &parts))?;
        fn place<T: Copy>(x: &Array<T>, zero: T, axis: usize, gap: usize, step: usize) -> Array<T> {
            let n = x.shape[axis];
            let end = gap + n * step;
            Array::from_fn(&with(&x.shape, axis, end + n), |index| match index[axis] {
                i if i >= end => x.at(&with(index, axis, n - 1 - (i - end))),
                i if i >= gap && (i - gap).is_multiple_of(step) => x.at(&with(index, axis, (i - gap) / step)),
                _ => zero,
            })
        }
        let expected = match &numbers[0] {
            Numbers::Float(x) => Numbers::Float(place(x, 0.0, axis, gap, step)),
            Numbers::Int(x) => Numbers::Int(place(x, 0, axis, gap, step)),
            Numbers::Bool(x) => Numbers::Bool(place(x, false, axis, gap, step)),
        };
        same_numbers(&y, dtype, &expected)
    });
}

/// A tensor, an index into one of its axes (choice 0), and as many values of the tensor's dtype.
fn indexed(dtypes: &[DType]) -> Drawn<Case> {
    let three = broadcastable(3, shapes(1..=4), dtypes, &EVERY, Layouts::Any);
    cases(three).map(|mut case| {
        let size = case.choose(5, 9);
        case.operands.iter_mut().skip(1).for_each(|o| o.shape.clear());
        let axis = case.axis(0, 0);
        let Some(axis) = axis else {
            case.operands[0].shape = vec![1];
            return point(case, 0, size);
        };
        point(case, axis, size)
    })
}

fn point(mut case: Case, axis: usize, size: usize) -> Case {
    let n = case.operands[0].shape[axis];
    let chosen = with(&case.operands[0].shape, axis, if n == 0 { 0 } else { size });
    let [_, index, src] = &mut case.operands[..] else { unreachable!("three operands") };
    (index.shape, src.shape) = (chosen.clone(), chosen);
    (index.dtype, index.values) = (DType::I64, Values::Below(n.max(1)));
    case.choices[0] = axis as u16;
    case
}

#[test]
fn elements_chosen_by_index() {
    check("gather", 4 * CASES, indexed(&ALL), |case| {
        let (x, numbers) = made(case);
        let axis = case.choose(0, x[0].shape().len());
        let y = run(|| x[0].gather(axis as isize, &x[1]))?;
        let index = numbers[1].int();
        same_numbers(&y, x[0].dtype(), &of_numbers!(&numbers[0], a => naive::gather(a, axis, index)))
    });
}

#[test]
fn elements_added_by_index() {
    check("scatter_add", 4 * CASES, indexed(&NUMBERS), |case| {
        let (x, numbers) = made(case);
        let (axis, dtype) = (case.choose(0, x[0].shape().len()), x[0].dtype());
        let y = run(|| x[0].scatter_add(axis as isize, &x[1], &x[2]))?;
        let index = numbers[1].int();
        match (&numbers[0], &numbers[2]) {
            (Numbers::Int(base), Numbers::Int(src)) => {
                let terms = naive::scatter_terms(base, axis, index, src);
                let sums = terms.iter().map(|t| t.iter().fold(0i64, |a, &b| a.wrapping_add(b))).collect();
                judge::ints(&y, &Array::new(&base.shape, sums))
            }
            (base, src) => {
                let base = base.float();
                let terms = naive::scatter_terms(base, axis, index, src.float());
                let sums = terms.iter().map(|t| naive::sequential_sum(t, dtype)).collect();
                judge::exact(&y, dtype, &Array::new(&base.shape, sums))
            }
        }
    });
}

#[test]
fn an_index_out_of_range_is_an_error() {
    check("gather beyond", CASES, indexed(&[DType::F32]), |case| {
        let (x, numbers) = made(case);
        let axis = case.choose(0, x[0].shape().len());
        let (mut wrong, n) = (numbers[1].int().clone(), x[0].shape()[axis] as i64);
        if wrong.data.is_empty() {
            return Ok(());
        }
        let at = case.choose(1, wrong.data.len());
        wrong.data[at] = if case.choose(2, 2) == 0 { n } else { -1 };
        let index = crate::place(&Tensor::from_slice(&wrong.data, &wrong.shape[..]));
        // Not every device waits for its kernels: some say it when results are read.
        let gathered = x[0].gather(axis as isize, &index).and_then(|y| y.to_f64_vec());
        let added = x[0].scatter_add(axis as isize, &index, &x[2]).and_then(|y| y.to_f64_vec());
        match (gathered, added) {
            (Err(_), Err(_)) => Ok(()),
            _ => Err(format!("index {} of an axis of {n} is taken", wrong.data[at])),
        }
    });
}

#[test]
fn orders() {
    let operands = one(shapes(1..=5), &ALL, &EVERY, Layouts::Any);
    check("argsort", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let (axis, descending) = (case.choose(0, x[0].shape().len()), case.choose(1, 2) == 1);
        let y = run(|| x[0].argsort(axis as isize, descending))?;
        let expected = match &numbers[0] {
            Numbers::Float(x) => naive::rows(x, axis, |row| naive::argsort(row, descending)),
            Numbers::Int(x) => naive::rows(x, axis, |row| naive::argsort(row, descending)),
            Numbers::Bool(x) => naive::rows(x, axis, |row| naive::argsort(row, descending)),
        };
        judge::ints(&y, &expected)
    });
}

fn fused(f: Fused, x: &[&Tensor]) -> Result<Tensor, String> {
    Tensor::fused(f, x).ok_or_else(|| format!("the CPU has no kernel for {f:?}"))?.map_err(|e| e.to_string())
}

#[test]
fn fused_softmax_and_its_logarithm() {
    let operands = one(full_shapes(1..=4), &FLOATS, &EVERY, Layouts::Any);
    check("fused softmax", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let (dtype, last) = (x[0].dtype(), x[0].shape().len() - 1);
        let (floats, x) = (numbers[0].float(), &x[0]);
        judge::near(
            &fused(Fused::Softmax, &[x])?,
            dtype,
            &naive::rows(floats, last, |r| naive::softmax(r, dtype)),
            1.0,
        )?;
        let logarithms = naive::rows(floats, last, |row| naive::log_softmax(row, dtype));
        judge::near(&fused(Fused::LogSoftmax, &[x])?, dtype, &logarithms, 1.0)
    });
}

/// Rows of two operands of one shape, as arrays.
fn two_rows(a: &Array<f64>, b: &Array<f64>, f: impl Fn(&[f64], &[f64]) -> Vec<Near>) -> Array<Near> {
    let width = *a.shape.last().expect("there is an axis");
    let rows = a.data.chunks(width).zip(b.data.chunks(width));
    Array::new(&a.shape, rows.flat_map(|(a, b)| f(a, b)).collect())
}

#[test]
fn fused_derivatives_of_softmax_and_its_logarithm() {
    let values = [Values::Interior, Values::Positive, Values::Ties, Values::Tiny];
    let operands =
        broadcastable(2, full_shapes(1..=4), &FLOATS, &values, Layouts::Any).map(|mut operands| {
            if operands[0].shape.is_empty() {
                operands[0].shape = vec![1];
            }
            operands[1].shape = operands[0].shape.clone();
            operands
        });
    check("fused softmax_backward", 4 * CASES, cases(operands), |case| {
        let (x, numbers) = made(case);
        let (dtype, [y, g]) = (x[0].dtype(), [0, 1].map(|i| numbers[i].float()));
        let expected = two_rows(y, g, |y, g| naive::softmax_backward(y, g, dtype));
        judge::near(&fused(Fused::SoftmaxBackward, &[&x[0], &x[1]])?, dtype, &expected, 1.0)?;
        let expected = two_rows(y, g, |y, g| naive::log_softmax_backward(y, g, dtype));
        judge::near(&fused(Fused::LogSoftmaxBackward, &[&x[0], &x[1]])?, dtype, &expected, 1.0)
    });
}

/// Logits, labels, and numbers for each row.
fn classified(values: &[Values]) -> Drawn<Vec<Operand>> {
    broadcastable(3, full_shapes(2..=2), &FLOATS, values, Layouts::Any).map(|mut operands| {
        let classes = *operands[0].shape.last().unwrap_or(&1);
        let rows = operands[0].shape.iter().rev().nth(1).copied().unwrap_or(1);
        operands[0].shape = vec![rows, classes];
        operands.iter_mut().skip(1).for_each(|o| o.shape = vec![rows]);
        (operands[1].dtype, operands[1].values) = (DType::I64, Values::Below(classes));
        operands
    })
}

#[test]
fn fused_derivative_of_cross_entropy() {
    let values = [Values::Interior, Values::Positive, Values::Ties, Values::Tiny];
    check("fused cross_entropy_backward", 4 * CASES, cases(classified(&values)), |case| {
        let (x, numbers) = made(case);
        let (dtype, [logits, g]) = (x[0].dtype(), [0, 2].map(|i| numbers[i].float()));
        let labels = numbers[1].int();
        let rows = logits.data.chunks(logits.shape[1]).zip(&labels.data).zip(&g.data);
        let cotangents = rows
            .flat_map(|((row, &label), &g)| naive::cross_entropy_backward(row, label as usize, g, dtype))
            .collect();
        let dx = fused(Fused::CrossEntropyBackward, &[&x[0], &x[1], &x[2]])?;
        judge::near(&dx, dtype, &Array::new(&logits.shape, cotangents), 1.0)
    });
}

#[test]
fn fused_cross_entropy() {
    check("fused cross_entropy", 4 * CASES, cases(classified(&EVERY)), |case| {
        let (x, numbers) = made(case);
        let dtype = x[0].dtype();
        let y = fused(Fused::CrossEntropy, &[&x[0], &x[1]])?;
        let logarithms = naive::rows(numbers[0].float(), 1, |row| naive::log_softmax(row, dtype));
        let labels = numbers[1].int();
        let expected = Array::from_fn(&labels.shape, |i| {
            let chosen = logarithms.at(&[i[0], labels.at(i) as usize]);
            Near { value: -chosen.value, ..chosen }
        });
        judge::near(&y, dtype, &expected, 1.0)
    });
}

/// Rows x, and per-column operands.
fn with_columns(values: &[Values]) -> Drawn<Case> {
    let operands = broadcastable(3, full_shapes(1..=4), &FLOATS, values, Layouts::Any).map(|mut operands| {
        if operands[0].shape.is_empty() {
            operands[0].shape = vec![1];
        }
        let columns = operands[0].shape[operands[0].shape.len() - 1];
        operands.iter_mut().skip(1).for_each(|o| o.shape = vec![columns]);
        operands
    });
    cases(operands)
}

#[test]
fn fused_norms() {
    check("fused norms", 4 * CASES, with_columns(&[Values::Interior, Values::Ties, Values::Tiny]), |case| {
        let (x, numbers) = made(case);
        let (dtype, last) = (x[0].dtype(), x[0].shape().len() - 1);
        let eps = [1e-5, 1e-3][case.choose(0, 2)];
        let [rows, gain, bias] = [0, 1, 2].map(|i| numbers[i].float());
        let y = fused(Fused::LayerNorm { eps }, &[&x[0], &x[1], &x[2]])?;
        let expected =
            naive::rows(rows, last, |row| naive::layer_norm(row, &gain.data, &bias.data, eps, dtype));
        judge::near(&y, dtype, &expected, 1.0)?;
        let y = fused(Fused::RmsNorm { eps }, &[&x[0], &x[1]])?;
        judge::near(
            &y,
            dtype,
            &naive::rows(rows, last, |row| naive::rms_norm(row, &gain.data, eps, dtype)),
            1.0,
        )
    });
}

#[test]
fn fused_derivatives_of_norms() {
    let cases = with_columns(&[Values::Interior, Values::Ties, Values::Positive]).map(|mut case| {
        case.operands[2].shape = case.operands[0].shape.clone();
        case
    });
    check("fused norms backward", 4 * CASES, cases, |case| {
        let (x, numbers) = made(case);
        let dtype = x[0].dtype();
        let eps = [1e-5, 1e-3][case.choose(0, 2)];
        let [rows, gain, g] = [0, 1, 2].map(|i| numbers[i].float());
        for (centred, f) in
            [(true, Fused::LayerNormBackward { eps }), (false, Fused::RmsNormBackward { eps })]
        {
            let results = Tensor::fused_all(f, &[&x[0], &x[1], &x[2]])
                .ok_or_else(|| format!("there is no kernel for {f:?}"))?
                .map_err(|e| e.to_string())?;
            let expected = naive::norm_backward(centred, rows, &gain.data, g, eps, dtype);
            assert_eq!(results.len(), if centred { 3 } else { 2 });
            for (found, expected) in results.iter().zip(&expected) {
                judge::near(found, dtype, expected, 1.0)?;
            }
        }
        Ok(())
    });
}

#[test]
fn fused_linear() {
    let cases = with_columns(&EVERY).map(|mut case| {
        let out = case.choose(5, 9);
        let inner = case.operands[1].shape[0];
        case.operands[1].shape = vec![out, inner];
        case.operands[2].shape = vec![out];
        case
    });
    let activations = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];
    check("fused linear", 8 * CASES, cases, |case| {
        let (x, numbers) = made(case);
        let (dtype, activation) = (x[0].dtype(), activations[case.choose(0, 4)]);
        let operands = if case.choose(1, 4) == 0 { &x[..2] } else { &x[..] };
        let y = fused(Fused::Linear(activation), &operands.iter().collect::<Vec<_>>())?;
        let [rows, w, b] = [0, 1, 2].map(|i| numbers[i].float());
        let b = (operands.len() == 3).then_some(b);
        judge::near(&y, dtype, &naive::linear(rows, w, b, activation, dtype), 4.0)
    });
}

#[test]
fn fused_linear_add() {
    let values = [Values::Interior, Values::Positive, Values::Ties, Values::Tiny, Values::Special];
    let operands = broadcastable(4, full_shapes(1..=4), &FLOATS, &values, Layouts::Any);
    let cases = cases(operands).map(|mut case| {
        if case.operands[1].shape.is_empty() {
            case.operands[1].shape = vec![3];
        }
        let (out, x) = (case.choose(5, 9), case.operands[1].shape.clone());
        let last = x.len() - 1;
        case.operands[0].shape = with(&x, last, out);
        case.operands[2].shape = vec![out, x[last]];
        case.operands[3].shape = vec![out];
        case
    });
    let activations = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];
    check("fused linear_add", 8 * CASES, cases, |case| {
        let (x, numbers) = made(case);
        let (dtype, activation) = (x[0].dtype(), activations[case.choose(0, 4)]);
        let operands = if case.choose(1, 4) == 0 { &x[..3] } else { &x[..] };
        let y = fused(Fused::LinearAdd(activation), &operands.iter().collect::<Vec<_>>())?;
        let [r, rows, w, b] = [0, 1, 2, 3].map(|i| numbers[i].float());
        let b = (operands.len() == 4).then_some(b);
        let layer = naive::linear(rows, w, b, activation, dtype);
        judge::near(&y, dtype, &naive::added(r, &layer, dtype), 4.0)
    });
}

#[test]
fn fused_derivative_of_linear() {
    let cases = with_columns(&EVERY).map(|mut case| {
        case.operands[1].shape = case.operands[0].shape.clone();
        case
    });
    let activations = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Sigmoid];
    check("fused linear_backward", 8 * CASES, cases, |case| {
        let (x, numbers) = made(case);
        let (dtype, activation) = (x[0].dtype(), activations[case.choose(0, 4)]);
        let f = Fused::LinearBackward(activation);
        let results = Tensor::fused_all(f, &[&x[0], &x[1]])
            .ok_or_else(|| format!("there is no kernel for {f:?}"))?
            .map_err(|e| e.to_string())?;
        let expected = naive::linear_backward(numbers[0].float(), numbers[1].float(), activation, dtype);
        let [dz, db] = &results[..] else { return Err(format!("{} results, expected 2", results.len())) };
        judge::exact(dz, dtype, &expected[0].map(|near| near.value))?;
        judge::near(db, dtype, &expected[1], 0.5)
    });
}

/// The results of a word for streams, each near what is expected of it.
fn streams_are_near(f: Fused, x: &[&Tensor], expected: &[(DType, Array<Near>)]) -> Result<(), String> {
    let results = Tensor::fused_all(f, x).ok_or_else(|| format!("there is no kernel for {f:?}"))?;
    let results = results.map_err(|e| e.to_string())?;
    if results.len() != expected.len() {
        return Err(format!("{f:?} has {} results, expected {}", results.len(), expected.len()));
    }
    for (i, (y, (dtype, expected))) in results.iter().zip(expected).enumerate() {
        judge::near(y, *dtype, expected, 1.0).map_err(|why| format!("{f:?}, result {i}: {why}"))?;
    }
    Ok(())
}

/// Which shares in the cotangent of streams a case has.
fn handed(case: &Case) -> Handed {
    Handed { written: case.choose(0, 2) == 0, read: case.choose(1, 2) == 0 }
}

/// The operands of those shares.
fn of_shares<T: Copy>(handed: Handed, [g, mix]: [T; 2], [h, a]: [T; 2]) -> Vec<T> {
    let written = handed.written.then_some([g, mix]);
    written.into_iter().chain(handed.read.then_some([h, a])).flatten().collect()
}

#[test]
fn fused_reads_and_writes_of_streams() {
    check("fused streams", 4 * CASES, cases(streams(&FLOATS, &EVERY, Layouts::Any)), |case| {
        let (operands, numbers) = made(case);
        let [x, g, f, h, a, b, mix] = &operands[..7] else { unreachable!("as drawn") };
        let [xs, gs, fs, hs, of_a, of_b, of_mix] = std::array::from_fn(|i| numbers[i].float());
        let (dtype, wide, shape) = (x.dtype(), a.dtype(), &xs.shape[..]);
        let read = naive::stream_read(xs, of_a, dtype);
        streams_are_near(Fused::StreamRead, &[x, a], &[(dtype, read)])?;
        let products = naive::stream_products(xs, hs, dtype);
        streams_are_near(Fused::StreamReadBackward, &[x, h], &[(wide, products)])?;
        let written = naive::stream_write(shape, Some((of_mix, xs)), false, Some((of_b, fs)), dtype);
        streams_are_near(Fused::StreamWrite, &[x, f, mix, b], &[(dtype, written)])?;
        let cotangents = [
            (dtype, naive::stream_read(gs, of_b, dtype)),
            (wide, naive::stream_products(gs, xs, dtype)),
            (wide, naive::stream_products(gs, fs, dtype)),
        ];
        streams_are_near(Fused::StreamWriteBackward, &[x, f, b, g], &cotangents)?;
        let handed = handed(case);
        if handed == Handed::default() {
            return Ok(());
        }
        let (written, read) = (handed.written.then_some((of_mix, gs)), handed.read.then_some((of_a, hs)));
        let shares = naive::stream_write(shape, written, true, read, dtype);
        let operands = of_shares(handed, [g, mix], [h, a]);
        streams_are_near(Fused::StreamCotangent(handed), &operands, &[(dtype, shares)])
    });
}

#[test]
fn fused_projections_of_streams() {
    let values = [Values::Interior, Values::Positive, Values::Ties, Values::Tiny];
    check("fused projections", 4 * CASES, cases(streams(&FLOATS, &values, Layouts::Any)), |case| {
        let (operands, numbers) = made(case);
        let [x, g, _, h, a, _, mix, phi @ .., dy] = &operands[..] else { unreachable!("as drawn") };
        let [xs, gs, _, hs, of_a, _, of_mix, phi_0, phi_1, dys] = std::array::from_fn(|i| numbers[i].float());
        let (dtype, wide, eps) = (x.dtype(), a.dtype(), [1e-3, 1.0][case.choose(2, 2)]);
        let count = case.choose(3, 3);
        let (phi, phis) = (&phi[..count], &[phi_0, phi_1][..count]);
        let of_phi = || [x].into_iter().chain(phi);
        let y = naive::stream_project(xs, phis, eps, dtype);
        let project = Fused::StreamProject { eps };
        streams_are_near(project, &of_phi().collect::<Vec<_>>(), &[(wide, y.clone())])?;

        // As many columns of what is drawn as there are.
        let (last, columns) = (dys.shape.len() - 1, y.shape[y.shape.len() - 1]);
        let (dy, dys) = (dy.slice(last, 0, columns, 1), dys.slice(last, 0, columns, 1));
        let y = y.map(|near| round(near.value, wide));
        let placed = crate::place(&Tensor::from_f64(&y.data, &y.shape[..], wide));
        let handed = handed(case);
        let (written, read) = (handed.written.then_some((of_mix, gs)), handed.read.then_some((of_a, hs)));
        let shares = naive::stream_write(&xs.shape, written, true, read, dtype);
        let expected = naive::stream_project_backward(xs, phis, [&y, &dys], shares, dtype);
        let dtypes = [dtype].into_iter().chain([wide; 2]);
        let expected: Vec<(DType, Array<Near>)> = dtypes.zip(expected).collect();
        let shares = of_shares(handed, [g, mix], [h, a]);
        let operands: Vec<&Tensor> = of_phi().chain([&placed, &dy]).chain(shares).collect();
        streams_are_near(Fused::StreamProjectBackward(handed), &operands, &expected)
    });
}

#[test]
fn the_table_of_regressions_names_cases_that_can_be_made() {
    for (property, case) in regressions() {
        assert!(!property.is_empty() && case.choices.len() == 6, "{property}");
        for operand in &case.operands {
            let (x, _) = make(operand);
            assert_eq!(x.shape()[..], operand.shape[..]);
        }
    }
}
