//! A test case as something that can be written down: what its tensors look like, not what is in them.

use limpid_tensor::{DType, Element, Tensor, bf16};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::array::{Array, with};
use crate::judge::round;

/// The operands of one test, and numbers from which the test chooses its attributes (axes, sizes, flags).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// The tensors.
    pub operands: Vec<Operand>,
    /// Raw material for [`choose`](Case::choose).
    pub choices: Vec<u16>,
}

impl Case {
    /// The `i`-th choice as a number below `n`; it shrinks towards 0.
    pub fn choose(&self, i: usize, n: usize) -> usize {
        usize::from(self.choices[i]) % n
    }

    /// The `i`-th choice as an axis of an operand; `None` if that has rank 0.
    pub fn axis(&self, i: usize, operand: usize) -> Option<usize> {
        match self.operands[operand].shape.len() {
            0 => None,
            rank => Some(self.choose(i, rank)),
        }
    }

    /// The `i`-th choice as a set of axes of an operand, sorted, and perhaps empty.
    pub fn axes(&self, i: usize, operand: usize) -> Vec<usize> {
        (0..self.operands[operand].shape.len()).filter(|axis| self.choices[i] >> axis & 1 == 1).collect()
    }
}

/// One tensor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Operand {
    /// Size along each axis.
    pub shape: Vec<usize>,
    /// The views it is of a contiguous tensor, the last one taken first; none is contiguous.
    pub views: Vec<View>,
    /// Element type.
    #[serde(with = "DTypeName")]
    pub dtype: DType,
    /// What kind of values it holds.
    pub values: Values,
    /// Which values of that kind.
    pub seed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "DType", rename_all = "lowercase")]
enum DTypeName {
    F32,
    F64,
    BF16,
    I64,
    Bool,
}

/// A step away from row-major order. Axes are taken modulo the rank; on a scalar the steps along an axis do nothing.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The axes in the order with this number.
    Permute(usize),
    /// Every `step`-th element of a longer axis.
    Slice {
        /// The axis.
        axis: usize,
        /// Elements left out in front.
        before: usize,
        /// Elements left out behind.
        after: usize,
        /// The distance between two.
        step: usize,
    },
    /// An axis in reverse.
    Flip(usize),
    /// One element repeated along an axis (stride 0).
    Expand(usize),
    /// A part of a longer vector, from this element on.
    Offset(usize),
}

/// A kind of values.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// Of either sign, 0.3 < |x| < 1.7, and (up to 1024 of them) apart from each other, from 1, and from those of
    /// operands with another `seed % 4`. i64: −50..=50.
    Interior,
    /// As interior, without the sign.
    Positive,
    /// −2, −1, −0, 0, 1, 2, most of them more than once.
    Ties,
    /// Of either sign, up to a few thousandths of the largest finite number. i64: of any size.
    Huge,
    /// Of either sign, near the smallest normal number and below.
    Tiny,
    /// Interior with NaN, ±∞, ±0, and the largest finite numbers sprinkled in. i64: with the extremes.
    Special,
    /// Interior with NaN sprinkled in.
    Nan,
    /// `0..n`: an index into an axis of this size.
    Below(usize),
}

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

/// The next of a sequence of well-mixed numbers: SplitMix64 (Steele, Lea, Flood 2014).
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn unit(state: &mut u64) -> f64 {
    (mix(state) >> 11) as f64 / (1u64 << 53) as f64
}

impl Operand {
    /// The tensor, and its elements as found by following the views index by index.
    pub fn make(&self) -> (Tensor, Numbers) {
        match self.dtype {
            DType::F32 => self.floats(|v| v as f32),
            DType::F64 => self.floats(|v| v),
            DType::BF16 => self.floats(bf16::from_f64),
            DType::I64 => {
                let (tensor, array) = view(&self.shape, &self.views, &|n| self.ints(n));
                (tensor, Numbers::Int(array))
            }
            DType::Bool => {
                let bits = |n| self.ints(n).into_iter().map(|v| v & 1 == 1).collect();
                let (tensor, array) = view(&self.shape, &self.views, &bits);
                (tensor, Numbers::Bool(array))
            }
        }
    }

    fn floats<T: Element>(&self, exactly: impl Fn(f64) -> T) -> (Tensor, Numbers) {
        let make = |n| self.numbers(n).into_iter().map(|v| exactly(round(v, self.dtype))).collect();
        let (tensor, array) = view(&self.shape, &self.views, &make);
        (tensor, Numbers::Float(array.map(T::to_f64)))
    }

    fn numbers(&self, n: usize) -> Vec<f64> {
        let mut state = self.seed;
        let start = mix(&mut state);
        let stride = mix(&mut state) | 1;
        // Odd strides visit every residue modulo 1024 before one comes again.
        let lattice = |i: usize| {
            let place = (start.wrapping_add(stride.wrapping_mul(i as u64)) % 1024) as f64;
            let between = ((self.seed % 4) as f64 + 0.5) / 4.0;
            0.3 + 1.4 * (place + between) / 1024.0
        };
        let (largest, smallest): (f64, f64) = match self.dtype {
            DType::F64 => (f64::MAX, f64::MIN_POSITIVE),
            DType::F32 => (f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE)),
            _ => (bf16::MAX.to_f64(), bf16::MIN_POSITIVE.to_f64()),
        };
        (0..n)
            .map(|i| {
                let bits = mix(&mut state);
                let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
                match self.values {
                    Values::Interior => sign * lattice(i),
                    Values::Positive => lattice(i),
                    Values::Ties => [-2.0, -1.0, -0.0, 0.0, 1.0, 2.0][(bits >> 1) as usize % 6],
                    Values::Huge => sign * largest * 2f64.powf(-9.0 - 20.0 * unit(&mut state)),
                    Values::Tiny => sign * smallest * 2f64.powf(8.0 - 30.0 * unit(&mut state)),
                    Values::Special => match bits >> 1 & 15 {
                        0 => f64::NAN,
                        1 => f64::INFINITY,
                        2 => f64::NEG_INFINITY,
                        3 => sign * 0.0,
                        4 => sign * largest,
                        5 => sign,
                        _ => sign * lattice(i),
                    },
                    Values::Nan if bits >> 1 & 7 == 0 => f64::NAN,
                    Values::Nan => sign * lattice(i),
                    Values::Below(_) => panic!("{:?} are indices, not floats", self.values),
                }
            })
            .collect()
    }

    fn ints(&self, n: usize) -> Vec<i64> {
        let mut state = self.seed;
        (0..n)
            .map(|_| {
                let bits = mix(&mut state);
                let below = |n: u64| (bits >> 8) % n;
                match self.values {
                    Values::Interior | Values::Nan => below(101) as i64 - 50,
                    Values::Positive => below(50) as i64 + 1,
                    Values::Ties => below(5) as i64 - 2,
                    Values::Tiny => below(3) as i64 - 1,
                    Values::Huge => bits as i64 >> (mix(&mut state) % 60),
                    Values::Special => match bits & 7 {
                        0 => i64::MIN,
                        1 => i64::MAX,
                        _ => below(101) as i64 - 50,
                    },
                    Values::Below(n) => below(n as u64) as i64,
                }
            })
            .collect()
    }
}

/// A tensor of this shape behind these views, and the same as an array.
fn view<T: Element>(shape: &[usize], views: &[View], make: &dyn Fn(usize) -> Vec<T>) -> (Tensor, Array<T>) {
    let rank = shape.len();
    let Some((&first, rest)) = views.split_first() else {
        let data = make(shape.iter().product());
        return (Tensor::from_slice(&data, shape), Array::new(shape, data));
    };
    let inside = |shape: &[usize]| view(shape, rest, make);
    match first {
        View::Offset(skip) => {
            let n: usize = shape.iter().product();
            let (x, a) = inside(&[skip + n]);
            let x = x.slice(0, skip, skip + n, 1).reshape(shape).expect("on the host");
            (x, a.slice(0, skip, skip + n, 1).reshape(shape))
        }
        _ if rank == 0 => inside(shape),
        View::Permute(number) => {
            let order = permutation(number, rank);
            let mut from = vec![0; rank];
            order.iter().zip(shape).for_each(|(&axis, &n)| from[axis] = n);
            let (x, a) = inside(&from);
            (x.permute(&order), a.permute(&order))
        }
        View::Slice { axis, before, after, step } => {
            let axis = axis % rank;
            let end = before + shape[axis] * step;
            let (x, a) = inside(&with(shape, axis, end + after));
            (x.slice(axis, before, end, step), a.slice(axis, before, end, step))
        }
        View::Flip(axis) => {
            let (x, a) = inside(shape);
            (x.flip(axis % rank), a.flip(axis % rank))
        }
        View::Expand(axis) => {
            let (x, a) = inside(&with(shape, axis % rank, 1));
            (x.expand(shape), a.expand(shape))
        }
    }
}

/// The order of `rank` axes with this number; 0 leaves them in place.
pub fn permutation(mut number: usize, rank: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..rank).collect();
    let mut order = Vec::with_capacity(rank);
    while !left.is_empty() {
        order.push(left.remove(number % left.len()));
        number /= left.len() + 1;
    }
    order
}

/// Which layouts a strategy draws.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layouts {
    /// All of them.
    Any,
    /// Those in which no element is repeated.
    Dense,
}

fn views(layouts: Layouts) -> BoxedStrategy<Vec<View>> {
    let slice = (0..5usize, 0..3usize, 0..3usize, 1..4usize)
        .prop_map(|(axis, before, after, step)| View::Slice { axis, before, after, step });
    let dense = prop_oneof![
        (0..120usize).prop_map(View::Permute),
        slice,
        (0..5usize).prop_map(View::Flip),
        (1..6usize).prop_map(View::Offset),
    ];
    match layouts {
        Layouts::Dense => vec(dense, 0..3).boxed(),
        Layouts::Any => vec(prop_oneof![5 => dense, 1 => (0..5usize).prop_map(View::Expand)], 0..3).boxed(),
    }
}

/// Sizes different from each other but for 0 and 1; small ones where there are many axes.
fn sizes(codes: &[usize]) -> Vec<usize> {
    let mut pool = match codes.len() {
        0..=2 => vec![2, 3, 4, 5, 8, 17, 33, 71],
        3 => vec![2, 3, 4, 5, 7, 12],
        _ => vec![2, 3, 4, 5, 6],
    };
    let size = |&code: &usize| match code {
        0..=1 => 1,
        15 => 0,
        _ => pool.remove(code % pool.len()),
    };
    codes.iter().map(size).collect()
}

/// Shapes of `ranks`.
pub fn shapes(ranks: std::ops::RangeInclusive<usize>) -> BoxedStrategy<Vec<usize>> {
    vec(0..16usize, ranks).prop_map(|codes| sizes(&codes)).boxed()
}

/// Shapes of `ranks` in which no size is 0.
pub fn full_shapes(ranks: std::ops::RangeInclusive<usize>) -> BoxedStrategy<Vec<usize>> {
    vec(0..15usize, ranks).prop_map(|codes| sizes(&codes)).boxed()
}

fn dress(
    shapes: BoxedStrategy<Vec<Vec<usize>>>,
    dtypes: &[DType],
    values: &[Values],
    layouts: Layouts,
) -> BoxedStrategy<Vec<Operand>> {
    let (dtypes, values) = (dtypes.to_vec(), values.to_vec());
    let looks = vec((views(layouts), 0..1u64 << 16), 3);
    (shapes, looks, proptest::sample::select(dtypes), proptest::sample::select(values))
        .prop_map(|(shapes, looks, dtype, values)| {
            let dress = |(i, (shape, (views, seed)))| {
                // Another residue for each operand, so that the interior values of no two are the same.
                Operand { shape, views, dtype, values, seed: seed * 4 + i as u64 }
            };
            shapes.into_iter().zip(looks).enumerate().map(dress).collect()
        })
        .boxed()
}

/// One operand.
pub fn one(
    shapes: BoxedStrategy<Vec<usize>>,
    dtypes: &[DType],
    values: &[Values],
    layouts: Layouts,
) -> BoxedStrategy<Vec<Operand>> {
    dress(shapes.prop_map(|shape| vec![shape]).boxed(), dtypes, values, layouts)
}

/// Up to three operands whose shapes broadcast together.
pub fn broadcastable(
    n: usize,
    shapes: BoxedStrategy<Vec<usize>>,
    dtypes: &[DType],
    values: &[Values],
    layouts: Layouts,
) -> BoxedStrategy<Vec<Operand>> {
    let shapes = (shapes, vec((0..3usize, 0..32usize), n)).prop_map(|(shape, cuts)| {
        let cut = |(missing, ones): (usize, usize)| {
            let kept = shape.iter().enumerate().skip(missing.min(shape.len()));
            kept.map(|(axis, &n)| if ones >> axis & 1 == 1 { 1 } else { n }).collect()
        };
        cuts.into_iter().map(cut).collect()
    });
    dress(shapes.boxed(), dtypes, values, layouts)
}

/// Two operands of a matrix product: sizes that differ from each other, leading axes that broadcast.
pub fn factors(dtypes: &[DType], values: &[Values], layouts: Layouts) -> BoxedStrategy<Vec<Operand>> {
    let shapes = (vec(0..16usize, 3), vec(0..16usize, 0..3), vec((0..3usize, 0..4usize), 2));
    let shapes = shapes.prop_map(|(product, batch, cuts)| {
        let codes: Vec<usize> = product.iter().chain(&batch).copied().collect();
        let all = sizes(&codes);
        let ((m, k, n), batch) = ((all[0], all[1], all[2]), &all[3..]);
        let lead = |(missing, ones): (usize, usize)| {
            let kept = batch.iter().enumerate().skip(missing.min(batch.len()));
            kept.map(move |(axis, &n)| if ones >> axis & 1 == 1 { 1 } else { n })
        };
        vec![lead(cuts[0]).chain([m, k]).collect(), lead(cuts[1]).chain([k, n]).collect()]
    });
    dress(shapes.boxed(), dtypes, values, layouts)
}

/// Cases with these operands.
pub fn cases(operands: BoxedStrategy<Vec<Operand>>) -> BoxedStrategy<Case> {
    (operands, vec(any::<u16>(), 6)).prop_map(|(operands, choices)| Case { operands, choices }).boxed()
}
