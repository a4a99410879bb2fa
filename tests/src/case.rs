//! The cases of the primitives' tests: their operands as the oracle sees them, and how they are drawn, with axes of size
//! 0 and sizes around those of blocks and vector registers.

use std::ops::RangeInclusive;

pub use limpid_autograd::check::case::draw::{Draw, Drawn, Layouts, Looks};
pub use limpid_autograd::check::case::{Case, Operand, Values, View, permutation};
use limpid_tensor::{DType, Tensor};

use crate::array::{Array, with};
use crate::judge::round;

/// The numbers of an operand, for the oracle.
#[derive(Clone, PartialEq, Debug)]
pub enum Numbers {
    /// Of f32, f64 or bf16: exactly the elements.
    Float(Array<f64>),
    /// Of i64.
    Int(Array<i64>),
    /// Of bool.
    Bool(Array<bool>),
}

impl Numbers {
    /// The elements of a float operand.
    pub fn float(&self) -> &Array<f64> {
        match self {
            Numbers::Float(x) => x,
            other => panic!("expected floats, found {other:?}"),
        }
    }

    /// The elements of an i64 operand.
    pub fn int(&self) -> &Array<i64> {
        match self {
            Numbers::Int(x) => x,
            other => panic!("expected i64, found {other:?}"),
        }
    }

    /// The elements of a bool operand.
    pub fn bool(&self) -> &Array<bool> {
        match self {
            Numbers::Bool(x) => x,
            other => panic!("expected bool, found {other:?}"),
        }
    }
}

/// The tensor, and its elements as found by following the views index by index.
pub fn make(operand: &Operand) -> (Tensor, Numbers) {
    let numbers = match operand.dtype {
        DType::I64 => Numbers::Int(follow(&operand.shape, &operand.views, &|n| operand.ints(n))),
        DType::Bool => Numbers::Bool(follow(&operand.shape, &operand.views, &|n| operand.bits(n))),
        dtype => {
            let rounded = |n| operand.numbers(n).into_iter().map(|v| round(v, dtype)).collect();
            Numbers::Float(follow(&operand.shape, &operand.views, &rounded))
        }
    };
    (operand.tensor(), numbers)
}

/// What an array of this shape behind these views holds.
fn follow<T: Copy>(shape: &[usize], views: &[View], make: &dyn Fn(usize) -> Vec<T>) -> Array<T> {
    let rank = shape.len();
    let Some((&first, rest)) = views.split_first() else {
        return Array::new(shape, make(shape.iter().product()));
    };
    let inside = |shape: &[usize]| follow(shape, rest, make);
    match first {
        View::Offset(skip) => {
            let n: usize = shape.iter().product();
            inside(&[skip + n]).slice(0, skip, skip + n, 1).reshape(shape)
        }
        _ if rank == 0 => inside(shape),
        View::Permute(number) => {
            let order = permutation(number, rank);
            let mut from = vec![0; rank];
            order.iter().zip(shape).for_each(|(&axis, &n)| from[axis] = n);
            inside(&from).permute(&order)
        }
        View::Slice { axis, before, after, step } => {
            let axis = axis % rank;
            let end = before + shape[axis] * step;
            inside(&with(shape, axis, end + after)).slice(axis, before, end, step)
        }
        View::Flip(axis) => inside(shape).flip(axis % rank),
        View::Expand(axis) => inside(&with(shape, axis % rank, 1)).expand(shape),
    }
}

/// Sizes different from each other but for 0 and 1; small ones where there are many axes.
fn sizes(draw: &mut Draw, n: usize, smallest: usize) -> Vec<usize> {
    let mut pool = match n {
        0..=2 => vec![2, 3, 4, 5, 8, 17, 33, 71],
        3 => vec![2, 3, 4, 5, 7, 12],
        _ => vec![2, 3, 4, 5, 6],
    };
    let size = |_| match draw.below(16) {
        0..=1 => 1,
        15 => smallest,
        code => pool.remove(code % pool.len()),
    };
    (0..n).map(size).collect()
}

fn drawn(ranks: RangeInclusive<usize>, smallest: usize) -> Drawn<Vec<usize>> {
    Drawn::new(move |draw| {
        let rank = ranks.start() + draw.below(ranks.end() - ranks.start() + 1);
        sizes(draw, rank, smallest)
    })
}

/// Shapes of `ranks`.
pub fn shapes(ranks: RangeInclusive<usize>) -> Drawn<Vec<usize>> {
    drawn(ranks, 0)
}

/// Shapes of `ranks` in which no size is 0.
pub fn full_shapes(ranks: RangeInclusive<usize>) -> Drawn<Vec<usize>> {
    drawn(ranks, 1)
}

/// What operands look like.
pub fn looks(dtypes: &[DType], values: &[Values], layouts: Layouts) -> Looks {
    Looks { dtypes: dtypes.to_vec(), values: values.to_vec(), layouts }
}

/// One operand.
pub fn one(
    shapes: Drawn<Vec<usize>>,
    dtypes: &[DType],
    values: &[Values],
    layouts: Layouts,
) -> Drawn<Vec<Operand>> {
    let looks = looks(dtypes, values, layouts);
    Drawn::new(move |draw| {
        let shape = shapes.draw(draw);
        draw.operands(vec![shape], &looks)
    })
}

/// `n` operands whose shapes broadcast together.
pub fn broadcastable(
    n: usize,
    shapes: Drawn<Vec<usize>>,
    dtypes: &[DType],
    values: &[Values],
    layouts: Layouts,
) -> Drawn<Vec<Operand>> {
    let looks = looks(dtypes, values, layouts);
    Drawn::new(move |draw| {
        let shape = shapes.draw(draw);
        let shapes = (0..n).map(|_| draw.broadcasts_to(&shape)).collect();
        draw.operands(shapes, &looks)
    })
}

/// Two operands of a matrix product: sizes that differ from each other, leading axes that broadcast.
pub fn factors(dtypes: &[DType], values: &[Values], layouts: Layouts) -> Drawn<Vec<Operand>> {
    let looks = looks(dtypes, values, layouts);
    Drawn::new(move |draw| {
        let batch = draw.below(3);
        let all = sizes(draw, 3 + batch, 0);
        let (m, k, n) = (all[0], all[1], all[2]);
        let (a, b) = (draw.broadcasts_to(&all[3..]), draw.broadcasts_to(&all[3..]));
        draw.operands(vec![[&a[..], &[m, k]].concat(), [&b[..], &[k, n]].concat()], &looks)
    })
}

/// Operands of the words for streams: X and G `[.., n, C]`, F and H `[.., C]`, a and b `[.., n]`, A `[.., n, n]`, two φ `[nC, m]`,
/// and what is of the shape of a projection on them. Coefficients are f32 where streams are bf16.
pub fn streams(dtypes: &[DType], values: &[Values], layouts: Layouts) -> Drawn<Vec<Operand>> {
    let looks = looks(dtypes, values, layouts);
    Drawn::new(move |draw| {
        let (axes, n) = (draw.below(3), [4, 2, 1, 3, 8, 5][draw.below(6)]);
        let lead = sizes(draw, 1 + axes, 0);
        let (&c, lead) = lead.split_last().expect("there is at least one");
        let columns = [n, n * n, 1, 0, 17];
        let (first, second) = (columns[draw.below(5)], columns[draw.below(5)]);
        let of = |own: &[usize]| [lead, own].concat();
        let one = first + second + 1;
        let own = [&[n, c][..], &[n, c], &[c], &[c], &[n], &[n], &[n, n]].map(of);
        let shapes = own.into_iter().chain([vec![n * c, first], vec![n * c, second], of(&[one])]).collect();
        let mut operands = draw.operands(shapes, &looks);
        for coefficient in operands[4..].iter_mut().filter(|operand| operand.dtype == DType::BF16) {
            coefficient.dtype = DType::F32;
        }
        operands
    })
}

/// Cases with these operands.
pub fn cases(operands: Drawn<Vec<Operand>>) -> Drawn<Case> {
    Drawn::new(move |draw| {
        let operands = operands.draw(draw);
        draw.case(operands)
    })
}
