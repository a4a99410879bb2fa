//! Sums of products over named indices: `"bij,bjk->bik"`.
//!
//! Nothing here is an operation of its own. A spec becomes diagonals, sums, permutations, products and matrix products,
//! and their derivatives are its derivative.

use smallvec::SmallVec;

use crate::var::Var;

/// The sum over all indices that the output does not name of the product of the operands, each at its own indices.
///
/// An index is a letter and stands for one axis. `"ij,jk->ik"` is a matrix product, `"bij,bjk->bik"` one for every `b`,
/// `"ij->ji"` a transpose, `"ij->i"` a sum over rows, `"i,j->ij"` an outer product. An index that an operand names twice
/// walks its diagonal: `"ii->"` is a trace. Without `->` the output has the indices that occur once, in alphabetical
/// order (capitals first). Spaces are ignored. Operands are multiplied from left to right, and an index is summed as
/// soon as nothing further on names it.
///
/// ```
/// use limpid_autograd::{Tape, ops::einsum::einsum};
/// use limpid_tensor::{DType, Tensor};
/// let tape = Tape::new();
/// let a = tape.variable(&Tensor::from_f64(&[1.0, 2.0, 3.0, 4.0], [2, 2], DType::F64));
/// let v = tape.variable(&Tensor::from_f64(&[1.0, 10.0], [2], DType::F64));
/// assert_eq!(einsum("ij,j->i", &[a, v]).value()?.to_vec::<f64>()?, [21.0, 43.0]);
/// assert_eq!(einsum("ii", &[a]).item()?, 5.0);
/// assert_eq!(einsum("i,ij,j->", &[v, a, v]).item()?, 451.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// If the spec is malformed, names another number of operands or axes than there are, or gives one index two sizes; if
/// dtypes differ; if two or more operands are not floats. There is no ellipsis and no stretching of size 1.
#[track_caller]
pub fn einsum<'t>(spec: &str, operands: &[Var<'t>]) -> Var<'t> {
    let shapes: Vec<Vec<usize>> = operands.iter().map(|x| x.shape().to_vec()).collect();
    let (inputs, output) = match parse(spec).and_then(|parsed| fits(parsed, &shapes)) {
        Ok(parsed) => parsed,
        Err(message) => panic!("einsum {spec:?}: {message}"),
    };
    let dtype = operands[0].dtype();
    for (i, x) in operands.iter().enumerate() {
        let found = x.dtype();
        assert!(found == dtype, "einsum {spec:?}: operand 0 is {dtype} and operand {i} is {found}");
    }
    assert!(operands.len() == 1 || dtype.is_float(), "einsum {spec:?}: products of {dtype} are not defined");

    let mut product: Option<Term<'t>> = None;
    for (i, (&value, indices)) in operands.iter().zip(&inputs).enumerate() {
        let named_later = |index: &char| inputs[i + 1..].iter().any(|other| other.contains(index));
        let stays = |index: &char| output.contains(index) || named_later(index);
        let mut term = Term { value, indices: indices.clone() }.diagonal();
        product = Some(match product {
            None => term.sum_unless(stays),
            Some(product) => {
                term = term.sum_unless(|index| stays(index) || product.indices.contains(index));
                let product = product.sum_unless(|index| stays(index) || term.indices.contains(index));
                product.times(term, stays)
            }
        });
    }
    match product {
        Some(product) => product.permuted(&output).value,
        None => unreachable!("a spec names at least one operand"),
    }
}

/// The indices of each operand, and those of the result.
type Parsed = (Vec<Vec<char>>, Vec<char>);

fn parse(spec: &str) -> Result<Parsed, String> {
    let spec: String = spec.chars().filter(|c| !c.is_whitespace()).collect();
    if spec.contains("..") {
        return Err("an ellipsis is not supported; name every axis".into());
    }
    let (inputs, output) = match spec.split_once("->") {
        Some((inputs, output)) => (inputs, Some(output)),
        None => (spec.as_str(), None),
    };
    if output.is_some_and(|output| output.contains("->")) {
        return Err("\"->\" occurs twice".into());
    }
    let indices = |part: &str, place: &str| match part.chars().find(|c| !c.is_ascii_alphabetic()) {
        Some(other) => Err(format!("{other:?} in {place} is not an index; an index is one of a–z, A–Z")),
        None => Ok(part.chars().collect::<Vec<char>>()),
    };
    let inputs = inputs.split(',').enumerate().map(|(i, part)| indices(part, &format!("operand {i}")));
    let inputs: Vec<Vec<char>> = inputs.collect::<Result<_, _>>()?;
    let occurs = |index: &char| inputs.iter().flatten().filter(|&other| other == index).count();
    let output = match output {
        Some(output) => indices(output, "the output")?,
        None => {
            let mut once: Vec<char> = inputs.iter().flatten().copied().filter(|i| occurs(i) == 1).collect();
            once.sort_unstable();
            once
        }
    };
    for (i, index) in output.iter().enumerate() {
        if output[..i].contains(index) {
            return Err(format!("the output names index {index:?} twice"));
        }
        if occurs(index) == 0 {
            return Err(format!("the output names index {index:?}, which no operand has"));
        }
    }
    Ok((inputs, output))
}

/// Whether operands of these shapes are what the spec names.
fn fits((inputs, output): Parsed, shapes: &[Vec<usize>]) -> Result<Parsed, String> {
    if inputs.len() != shapes.len() {
        let (named, given) = (inputs.len(), shapes.len());
        return Err(format!("the number of operands is {named} in the spec and {given} in the call"));
    }
    let mut sizes: Vec<(char, usize, usize)> = Vec::new();
    for (operand, (indices, shape)) in inputs.iter().zip(shapes).enumerate() {
        if indices.len() != shape.len() {
            let indices: String = indices.iter().collect();
            return Err(format!(
                "operand {operand} is named {indices:?}, {} axes, and has shape {shape:?}",
                indices.len()
            ));
        }
        for (&index, &size) in indices.iter().zip(shape) {
            match sizes.iter().find(|(other, ..)| *other == index) {
                Some(&(_, first, other)) if other != size => {
                    return Err(format!(
                        "index {index:?} has size {other} in operand {first} of shape {:?} and size {size} in operand \
                         {operand} of shape {shape:?}",
                        shapes[first]
                    ));
                }
                Some(_) => {}
                None => sizes.push((index, operand, size)),
            }
        }
    }
    Ok((inputs, output))
}

/// A value whose axes have names.
struct Term<'t> {
    value: Var<'t>,
    indices: Vec<char>,
}

impl<'t> Term<'t> {
    fn axis(&self, index: char) -> Option<usize> {
        self.indices.iter().position(|&other| other == index)
    }

    fn size(&self, indices: &[char]) -> SmallVec<[usize; 6]> {
        let shape = self.value.shape();
        indices.iter().filter_map(|&index| self.axis(index)).map(|axis| shape[axis]).collect()
    }

    /// The axes in the order of `indices`, which are this term's.
    #[track_caller]
    fn permuted(mut self, indices: &[char]) -> Term<'t> {
        if self.indices != indices {
            let order: SmallVec<[usize; 6]> = indices.iter().filter_map(|&index| self.axis(index)).collect();
            self.value = self.value.permute(&order);
            self.indices = indices.to_vec();
        }
        self
    }

    /// Makes one axis of those that have one name: of the n² pairs of positions, every (n + 1)-th is on the diagonal.
    #[track_caller]
    fn diagonal(mut self) -> Term<'t> {
        while let Some(second) =
            (1..self.indices.len()).find(|&a| self.indices[..a].contains(&self.indices[a]))
        {
            let index = self.indices[second];
            let first = self.indices.iter().position(|&other| other == index).unwrap_or(second);
            let others = (0..self.indices.len()).filter(|&a| a != first && a != second);
            let order: SmallVec<[usize; 6]> = others.clone().chain([first, second]).collect();
            self.indices = others.map(|a| self.indices[a]).chain([index]).collect();
            let pairs = self.value.permute(&order).flatten(self.indices.len() - 1);
            let n = self.value.shape()[first];
            self.value = pairs.slice(-1, 0, n * n, n + 1);
        }
        self
    }

    /// Sums over the indices that do not stay.
    #[track_caller]
    fn sum_unless(mut self, stays: impl Fn(&char) -> bool) -> Term<'t> {
        let gone: Vec<isize> =
            (0..self.indices.len()).filter(|&a| !stays(&self.indices[a])).map(|a| a as isize).collect();
        if !gone.is_empty() {
            self.value = self.value.sum(&gone);
            self.indices.retain(stays);
        }
        self
    }

    /// The product of two terms, summed over the indices of both that do not stay.
    #[track_caller]
    fn times(self, other: Term<'t>, stays: impl Fn(&char) -> bool) -> Term<'t> {
        let (shared, left): (Vec<char>, Vec<char>) =
            self.indices.iter().partition(|index| other.indices.contains(index));
        let (batch, summed): (Vec<char>, Vec<char>) = shared.iter().partition(|index| stays(index));
        let right: Vec<char> = other.indices.iter().copied().filter(|i| !shared.contains(i)).collect();
        let (batch_size, left_size, right_size) = (self.size(&batch), self.size(&left), other.size(&right));
        let indices = [&batch[..], &left, &right].concat();
        let a = self.permuted(&[&batch[..], &left, &summed].concat()).value;
        let b = other.permuted(&[&batch[..], &summed, &right].concat()).value;

        let value = if summed.is_empty() {
            // Both stretch over what only the other has.
            let ones = |n: usize| std::iter::repeat_n(1, n);
            let b_shape: Vec<usize> =
                batch_size.iter().copied().chain(ones(left.len())).chain(right_size).collect();
            let a_shape: Vec<usize> =
                batch_size.into_iter().chain(left_size).chain(ones(right.len())).collect();
            a.reshape(a_shape) * b.reshape(b_shape)
        } else {
            let joined = |sizes: &[usize]| -> usize { sizes.iter().product() };
            let shape = a.shape();
            let k = joined(&shape[batch.len() + left.len()..]);
            let a_shape: Vec<usize> = batch_size.iter().copied().chain([joined(&left_size), k]).collect();
            let b_shape: Vec<usize> = batch_size.iter().copied().chain([k, joined(&right_size)]).collect();
            let y_shape: Vec<usize> = batch_size.into_iter().chain(left_size).chain(right_size).collect();
            a.reshape(a_shape).matmul(b.reshape(b_shape)).reshape(y_shape)
        };
        Term { value, indices }
    }
}
