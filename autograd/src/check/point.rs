//! A function at a point: its value, its branches, and what its rules say there.

use std::rc::Rc;

use limpid_tensor::Tensor;
use limpid_tensor::rng::Key;

use super::Function;
use super::case::behind;
use super::mutate::Mutation;
use crate::error::Result;
use crate::tape::{Tape, tensors};
use crate::var::Var;

/// The elements of every float input, in row-major order.
pub(super) type Point = Vec<Vec<f64>>;

/// A function with the inputs it is checked at.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub f: Function<'a>,
    pub inputs: &'a [Tensor],
    /// The inputs that derivatives are taken by.
    pub variables: &'a [usize],
    pub seed: u64,
    /// What is done to the derivative rules, if it is a check that is checked.
    pub mutation: Option<&'a Rc<Mutation>>,
}

/// Which branch each element of a node's result is on.
#[derive(Clone, PartialEq)]
pub(super) struct Branch {
    pub node: usize,
    pub sides: Vec<f64>,
}

/// What the function is at a point.
pub(super) struct Value {
    pub y: Vec<f64>,
    pub branches: Vec<Branch>,
}

/// The first place where two points are on different branches: node and element.
pub(super) fn crossing(a: &[Branch], b: &[Branch]) -> Option<(usize, usize)> {
    for (a, b) in a.iter().zip(b) {
        let differs = |(x, y): (&f64, &f64)| x.to_bits() != y.to_bits();
        if a.node != b.node || a.sides.len() != b.sides.len() {
            return Some((a.node.min(b.node), 0));
        }
        if let Some(element) = a.sides.iter().zip(&b.sides).position(differs) {
            return Some((a.node, element));
        }
    }
    let longer = if a.len() > b.len() { a } else { b };
    longer.get(a.len().min(b.len())).map(|branch| (branch.node, 0))
}

/// Neumaier's compensated sum: its error does not grow with the number of terms.
pub(super) fn sum(terms: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0);
    for x in terms {
        let next = sum + x;
        lost += if sum.abs() >= x.abs() { (sum - next) + x } else { (x - next) + sum };
        sum = next;
    }
    sum + lost
}

/// ⟨a, b⟩.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// √Σ(a·b)²: what the roundings of the terms of ⟨a, b⟩ add up to, relative to theirs. One of the two is a probe, whose signs
/// are random. (To allow for the sum of the terms' sizes would hide more, the more of them there are.)
pub(super) fn size(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a * b).abs()));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    // Scaled, so that no square overflows.
    largest * sum(a.iter().zip(b).map(|(a, b)| (a * b / largest).powi(2))).sqrt()
}

/// A number of either sign whose size is in `least..least + width`.
fn signed(bits: u64, least: f64, width: f64) -> f64 {
    let size = least + width * limpid_tensor::rng::unit(bits);
    if bits & 1 == 0 { size } else { -size }
}

/// The elements of a value as f64.
pub(super) fn numbers(x: Var<'_>) -> Result<Vec<f64>> {
    x.value()?.to_f64_vec().map_err(|e| x.tape().backend_error(x, e))
}

impl Problem<'_> {
    pub fn tape(&self) -> Tape {
        let device = self.inputs.first().map_or_else(limpid_tensor::Device::cpu, |x| x.device().clone());
        Tape::new().with_device(device).with_seed(self.seed).with_mutation(self.mutation.cloned())
    }

    /// The point that is checked; an empty entry for each input that is not a float.
    pub fn base(&self) -> Point {
        let numbers = |x: &Tensor| match x.dtype().is_float() {
            true => x.to_f64_vec().unwrap_or_default(),
            false => Vec::new(),
        };
        self.inputs.iter().map(numbers).collect()
    }

    /// How far apart values of an input are, for choosing steps: its largest element, at most 1.
    pub fn scale(&self, i: usize) -> f64 {
        let largest = self.base()[i].iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // A power of two, so that scaling a step by it does not round.
        if largest == 0.0 || largest >= 1.0 { 1.0 } else { largest.log2().floor().max(-1000.0).exp2() }
    }

    /// A random direction for input `i`: random signs, so that an error in one entry of a Jacobian is neither lost in
    /// the others nor multiplied by 0, and sizes that differ, because as many +1 as −1 would cancel exactly (six signs
    /// do in 31 % of cases, and a sum over them sees nothing).
    pub fn direction(&self, i: usize, probe: usize) -> Vec<f64> {
        let key = Key::new(self.seed).fold_str("direction").fold(i as u64).fold(probe as u64);
        (0..self.inputs[i].elements() as u64).map(|j| signed(key.bits(j), 0.75, 0.5)).collect()
    }

    /// A random cotangent: of either sign, different for every element, and nowhere near 0.
    pub fn cotangent(&self, probe: usize, outputs: usize) -> Vec<f64> {
        let key = Key::new(self.seed).fold_str("cotangent").fold(probe as u64);
        (0..outputs as u64).map(|i| signed(key.bits(i), 0.5, 1.0)).collect()
    }

    /// An input with other values behind the same layout, unless that repeats elements.
    fn like(&self, i: usize, values: &[f64]) -> Tensor {
        let x = &self.inputs[i];
        behind(x.layout(), values).to(x.device()).unwrap_or_else(|_| x.clone())
    }

    /// Places the inputs with float values from `point`; those in `variables` are tracked.
    pub fn place<'t>(&self, tape: &'t Tape, point: Option<&Point>, variables: &[usize]) -> Vec<Var<'t>> {
        let place = |(i, x): (usize, &Tensor)| {
            let value = match point {
                Some(point) if x.dtype().is_float() => self.like(i, &point[i]),
                _ => x.clone(),
            };
            let name = Some(format!("x{i}").into());
            tape.leaf(value, variables.contains(&i), name)
        };
        self.inputs.iter().enumerate().map(place).collect()
    }

    /// The function's value and branches.
    pub fn value(&self, point: &Point) -> Result<Value> {
        let tape = self.tape();
        let y = (self.f)(&self.place(&tape, Some(point), &[]));
        let mut branches = Vec::new();
        for node in 0..tape.len() {
            let Some(op) = tape.nodes.borrow()[node].op.clone() else { continue };
            let operands = tape.operands(node as u32)?;
            let var = tape.var(node as u32);
            let described = op.branches(&tensors(&operands), &var.value()?);
            let sides = described.and_then(|b| b.map(|b| b.to_f64_vec()).transpose());
            if let Some(sides) = sides.map_err(|e| tape.backend_error(var, e))? {
                branches.push(Branch { node, sides });
            }
        }
        Ok(Value { y: numbers(y)?, branches })
    }

    /// `Jᵀ·u` by reverse mode, for the inputs in `wanted`.
    pub fn pull(&self, point: Option<&Point>, u: &[f64], wanted: &[usize]) -> Result<Vec<Vec<f64>>> {
        let tape = self.tape();
        let x = self.place(&tape, point, wanted);
        let y = (self.f)(&x);
        let g = tape.constant_here(&Tensor::from_slice(u, y.shape()));
        let xs: Vec<Var> = wanted.iter().map(|&i| x[i]).collect();
        let found = tape.vjp(y, g, &xs)?;
        found
            .into_iter()
            .zip(&xs)
            .map(|(c, x)| c.map_or(Ok(vec![0.0; x.shape().elements()]), numbers))
            .collect()
    }

    /// `Jᵀ·u` for every u, from one recorded program.
    pub fn pull_all(&self, us: impl Iterator<Item = Vec<f64>>, wanted: usize) -> Result<Vec<Vec<f64>>> {
        let tape = self.tape();
        let x = self.place(&tape, None, &[wanted]);
        let y = (self.f)(&x);
        let n = x[wanted].shape().elements();
        let row = |u: Vec<f64>| {
            let mark = tape.len();
            let g = tape.constant_here(&Tensor::from_vec(u, y.shape()));
            let row = tape.vjp(y, g, &[x[wanted]])?[0].map_or(Ok(vec![0.0; n]), numbers);
            tape.truncate(mark);
            row
        };
        us.map(row).collect()
    }

    /// `J·v` by forward mode; `None` is no tangent.
    pub fn push(&self, v: &[Option<Vec<f64>>]) -> Result<Vec<f64>> {
        let tape = self.tape();
        let x = self.place(&tape, None, self.variables);
        let y = (self.f)(&x);
        let tangent = |(x, v): (&Var<'_>, &Option<Vec<f64>>)| {
            Some((x.index(), tape.constant_here(&Tensor::from_slice(v.as_ref()?, x.shape()))))
        };
        let tangents: Vec<_> = x.iter().zip(v).filter_map(tangent).collect();
        let pairs: Vec<(Var, Var)> = tangents.iter().map(|&(i, v)| (tape.var(i as u32), v)).collect();
        numbers(tape.jvp(y, &pairs)?)
    }

    /// The function followed by a smooth curved one of every element, contracted with u: `Σ uᵢ·c·exp(yᵢ/2c)`.
    ///
    /// Its second derivative is not 0 where that of f is (f may be linear), so that a check of it has something to see.
    pub fn curved<'t>(&self, x: &[Var<'t>], u: &[f64], c: f64) -> Var<'t> {
        let y = (self.f)(x);
        let u = y.tape().constant_here(&Tensor::from_slice(u, y.shape()));
        ((y * (0.5 / c)).exp() * (u * c)).sum(&[])
    }

    /// The site of a node of the recorded program.
    pub fn site(&self, node: usize) -> String {
        let tape = self.tape();
        (self.f)(&self.place(&tape, None, self.variables));
        if node < tape.len() { tape.site(node as u32).to_string() } else { "the program".into() }
    }
}
