//! A test case as something that can be written down: what its tensors look like, not what is in them.
//!
//! A [`Case`] is a few words. It prints as one line, that line reads back, and the tensors follow from it:
//!
//! ```
//! use limpid_autograd::check::case::Case;
//! let case: Case = "f64[2,3] interior 7 permute(1); i64[2,2] below(3) 1 | 4 0".parse()?;
//! assert_eq!(case.tensors()[0].shape()[..], [2, 3]);
//! assert!(!case.tensors()[0].layout().is_contiguous());
//! assert_eq!(case.choose(0, 3), 1);
//! assert_eq!(case.to_string().parse::<Case>()?, case);
//! # Ok::<(), limpid_autograd::check::case::CaseError>(())
//! ```
//!
//! [`draw`] has the generators: they draw small numbers and make cases of them, so that a failing case shrinks by
//! making the numbers smaller, and is a case of the same kind all the way down. With the feature `proptest` each is a
//! `proptest` strategy.

pub mod draw;
#[cfg(feature = "proptest")]
mod strategy;
mod text;
mod values;

use limpid_tensor::{DType, Element, Layout, Tensor, bf16};

pub use draw::{Draw, Drawn, Layouts, Looks};
pub use text::CaseError;
pub use values::Values;

/// The operands of one test, and numbers from which the test chooses its attributes (axes, sizes, flags).
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// The tensors.
    pub operands: Vec<Operand>,
    /// Raw material for [`choose`](Case::choose).
    pub choices: Vec<u16>,
}

impl Case {
    /// The `i`-th choice as a number below `n`; it shrinks towards 0. A choice that was not made is 0.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn choose(&self, i: usize, n: usize) -> usize {
        usize::from(self.choices.get(i).copied().unwrap_or(0)) % n
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
        let bits = self.choices.get(i).copied().unwrap_or(0);
        (0..self.operands[operand].shape.len()).filter(|axis| bits >> axis & 1 == 1).collect()
    }

    /// The operands' tensors.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.operands.iter().map(Operand::tensor).collect()
    }

    /// The same with every float operand of this dtype.
    pub fn with_floats(mut self, dtype: DType) -> Case {
        self.operands.iter_mut().filter(|o| o.dtype.is_float()).for_each(|o| o.dtype = dtype);
        self
    }
}

/// One tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    /// Size along each axis.
    pub shape: Vec<usize>,
    /// The views it is of a contiguous tensor, the last one taken first; none is contiguous.
    pub views: Vec<View>,
    /// Element type.
    pub dtype: DType,
    /// What kind of values it holds.
    pub values: Values,
    /// Which values of that kind.
    pub seed: u64,
}

/// A step away from row-major order. Axes are taken modulo the rank; on a scalar the steps along an axis do nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

impl Operand {
    /// A contiguous f64 operand.
    pub fn new(shape: impl Into<Vec<usize>>, values: Values, seed: u64) -> Operand {
        Operand { shape: shape.into(), views: Vec::new(), dtype: DType::F64, values, seed }
    }

    /// The tensor. Where the views leave out elements, memory holds values of the same kind.
    pub fn tensor(&self) -> Tensor {
        match self.dtype {
            DType::F32 => self.floats::<f32>(),
            DType::F64 => self.floats::<f64>(),
            DType::BF16 => self.floats::<bf16>(),
            DType::I64 => view(&self.shape, &self.views, &|n| self.ints(n)),
            DType::Bool => view(&self.shape, &self.views, &|n| self.bits(n)),
        }
    }

    fn floats<T: Element>(&self) -> Tensor {
        let rounded = |x: Vec<f64>| x.into_iter().map(T::from_f64).collect::<Vec<T>>();
        match self.values {
            Values::Simplex => {
                let layout = view(&self.shape, &self.views, &|n| vec![T::from_f64(0.0); n]).layout().clone();
                let row = self.shape.last().copied().unwrap_or(1);
                behind(&layout, &rounded(values::simplex(self.numbers(layout.shape().elements()), row)))
            }
            _ => view(&self.shape, &self.views, &|n| rounded(self.numbers(n))),
        }
    }
}

/// A tensor of these elements, in row-major order, behind this layout; contiguous if the layout repeats elements.
pub(super) fn behind<T: Element>(layout: &Layout, elements: &[T]) -> Tensor {
    let repeats = layout.shape().iter().zip(layout.strides()).any(|(&n, &stride)| n > 1 && stride == 0);
    let Some(span) = layout.span().filter(|_| !layout.is_contiguous() && !repeats) else {
        return Tensor::from_slice(elements, layout.shape());
    };
    // What the layout leaves out must not be read: a NaN would show.
    let mut memory = vec![T::from_f64(f64::NAN); span.end];
    for (flat, &element) in elements.iter().enumerate() {
        let (mut rest, mut at) = (flat, layout.offset() as isize);
        for (&n, &stride) in layout.shape().iter().zip(layout.strides()).rev() {
            at += (rest % n) as isize * stride;
            rest /= n;
        }
        memory[at as usize] = element;
    }
    let memory = Tensor::from_vec(memory, [span.end]);
    Tensor::from_storage(memory.storage().clone(), layout.clone(), T::DTYPE)
}

/// A tensor of this shape behind these views; `make` gives as many elements as memory needs.
fn view<T: Element>(shape: &[usize], views: &[View], make: &dyn Fn(usize) -> Vec<T>) -> Tensor {
    let rank = shape.len();
    let Some((&first, rest)) = views.split_first() else {
        return Tensor::from_slice(&make(shape.iter().product()), shape);
    };
    let inside = |shape: &[usize]| view(shape, rest, make);
    match first {
        View::Offset(skip) => {
            let n: usize = shape.iter().product();
            // A copy where the views further in leave nothing else.
            inside(&[skip + n]).slice(0, skip, skip + n, 1).reshape(shape).expect("on the host")
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

fn with(shape: &[usize], axis: usize, size: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[axis] = size;
    shape
}

/// The order of `rank` axes with this number; 0 leaves them in place.
pub fn permutation(mut number: usize, rank: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..rank).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        order.push(left.remove(number % left.len()));
        number /= left.len() + 1;
    }
    order
}
