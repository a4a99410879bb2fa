//! A linear layer in one pass, and one whose result is added to something else.

use std::cell::LazyCell;

use limpid_tensor::{Activation, Fused, Inferred, Map, Meta, Result, Shape, Tensor};
use smallvec::SmallVec;

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::ops::elementwise::Elementwise;
use crate::ops::fused;
use crate::ops::together::Together;
use crate::shared::Shared;
use crate::var::Var;

/// `y = act(x·Wᵀ + b)`: x `[.., in]`, W `[out, in]`, optional b `[out]` → `[.., out]`.
///
/// With `z̄ = ȳ ∘ act′`, which is a function of y, and rows for all leading axes together:
/// `x̄ = z̄·W`, `W̄ = z̄ᵀ·x`, `b̄ = Σ_rows z̄`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Linear {
    /// The activation.
    pub activation: Activation,
}

/// `y = r + x·Wᵀ + b`: r `[.., out]`, x `[.., in]`, W `[out, in]`, optional b `[out]` → `[.., out]`.
///
/// With rows for all leading axes together: `r̄ = ȳ`, `x̄ = ȳ·W`, `W̄ = ȳᵀ·x`, `b̄ = Σ_rows ȳ`.
///
/// There is no activation, although kernels have one ([`Fused::LinearAdd`]): its derivative is a function of its result,
/// which y, having r in it, does not show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinearAdd;

/// One of the two that the vjp of [`Linear`] begins with: y and ȳ → z̄ (0) or b̄ (1).
#[derive(Debug)]
struct LinearBackward {
    activation: Activation,
    of: usize,
    together: Shared<Together>,
}

/// `c ∘ act′`, given the activation's result y.
fn chain<'t>(activation: Activation, y: Var<'t>, c: Var<'t>) -> Var<'t> {
    match activation {
        Activation::Identity => c,
        Activation::Relu => c * y.sign(),
        Activation::Tanh => c * (1.0 - y * y),
        Activation::Sigmoid => c * (y * (1.0 - y)),
        other => unreachable!("linear: {other:?} has no derivative by its result"),
    }
}

/// Where relu, whose result is y, lets pass.
fn branches(activation: Activation, y: &Tensor) -> Result<Option<Tensor>> {
    match activation {
        Activation::Relu => Tensor::map(Map::Sign, &[y]).map(Some),
        _ => Ok(None),
    }
}

/// All leading axes as one.
fn rows(v: Var<'_>) -> Var<'_> {
    let shape = v.shape();
    let (&columns, leading) = shape.split_last().expect("infer has seen to the rank");
    v.reshape([leading.iter().product(), columns])
}

/// The result of a product of x with W and b, which is optional.
fn infer_product(name: &str, x: &[&Meta]) -> Inferred {
    let (w, b) = (x[1], x.get(2));
    if let Some(other) = x.iter().find(|m| m.dtype != x[0].dtype) {
        return Err(format!("operands must have one dtype, found {} and {}", x[0].dtype, other.dtype));
    }
    if !x[0].dtype.is_float() {
        return Err(format!("{name} is not defined for {}", x[0].dtype));
    }
    let &[out, columns] = &w.shape[..] else {
        return Err(format!("the weight must be [out, in], found {}", w.shape));
    };
    if x[0].shape.last() != Some(&columns) {
        return Err(format!(
            "the last axis of {} must have the size `in` of the weight {}",
            x[0].shape, w.shape
        ));
    }
    match b {
        Some(b) if b.shape[..] != [out] => {
            Err(format!("the bias for weight {} must be [{out}], found {}", w.shape, b.shape))
        }
        _ => Ok(Meta { shape: x[0].shape.with(x[0].shape.len() - 1, out), dtype: w.dtype }),
    }
}

/// The cotangent of operand i of (x, W, b) of a product, given the product's.
fn product_cotangent<'t>(i: usize, g: Var<'t>, x: &[Var<'t>]) -> Var<'t> {
    match i {
        0 => rows(g).matmul(x[1]).reshape(x[0].shape()),
        1 => rows(g).transpose(0, 1).matmul(rows(x[0])),
        _ => g.sum_to(&x[2].shape()),
    }
}

/// What the tangent of operand i of (x, W, b) of a product contributes to that of the product, which has `shape`.
fn product_tangent<'t>(i: usize, dx: Var<'t>, x: &[Var<'t>], shape: Shape) -> Var<'t> {
    match i {
        0 => dx.linear(x[1], None, Activation::Identity),
        1 => x[0].linear(dx, None, Activation::Identity),
        _ => dx.expand(shape),
    }
}

/// `x·Wᵀ + b`, by primitives.
fn product<'t>(x: &[Var<'t>]) -> Var<'t> {
    let product = x[0].matmul(x[1].transpose(0, 1));
    x.get(2).map_or(product, |&b| product + b)
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn attributes(&self) -> String {
        self.activation.map().map_or_else(String::new, |f| f.name().into())
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_product(self.name(), x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::Linear(self.activation), x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        let products = Needs::inputs(&[1]).when(tracked[0]).or(Needs::inputs(&[0]).when(tracked[1]));
        products.or(Needs::OUTPUT.when(self.activation != Activation::Identity))
    }

    fn branches(&self, _x: &[&Tensor], y: &Tensor) -> Result<Option<Tensor>> {
        branches(self.activation, y)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let activation = self.activation;
        if activation == Activation::Identity {
            return at.each(|i| product_cotangent(i, at.g(), &at.x));
        }
        let wanted = [at.wants(0) || at.wants(1), at.arity() == 3 && at.wants(2)];
        let kernel = Fused::LinearBackward(activation);
        let together = Shared::holding(Together::new(at, kernel, wanted.into_iter().collect()));
        let part = |of| {
            let part = LinearBackward { activation, of, together: together.clone() };
            at.g().tape().record(part, &[at.y(), at.g()])
        };
        let dz = LazyCell::new(|| part(0));
        at.each(|i| if i < 2 { product_cotangent(i, *dz, &at.x) } else { part(1) })
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let dz = at.sum(|i, dx| product_tangent(i, dx, &at.x, at.y().shape()))?;
        Some(chain(self.activation, at.y(), dz))
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let z = product(x);
        Some(self.activation.map().map_or(z, |f| z.tape().record(Elementwise(f), &[z])))
    }

    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        let n = y.shape.elements() as u64;
        let products = 2 * n * x[1].shape[1] as u64;
        products + n * (u64::from(x.len() == 3) + u64::from(self.activation != Activation::Identity))
    }
}

impl Op for LinearBackward {
    fn name(&self) -> &'static str {
        ["linear_backward", "linear_bias_backward"][self.of]
    }

    fn attributes(&self) -> String {
        self.activation.map().map_or_else(String::new, |f| f.name().into())
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        if x[0] != x[1] {
            return Err(format!("expected a cotangent {}, found {}", x[0], x[1]));
        }
        let mut results = Fused::LinearBackward(self.activation).results(x);
        Ok(results.swap_remove(self.of))
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        self.together.result(self.of, self, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1])
    }

    fn branches(&self, x: &[&Tensor], _y: &Tensor) -> Result<Option<Tensor>> {
        branches(self.activation, x[0])
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let dz = chain(self.activation, x[0], x[1]);
        let shape = dz.shape();
        Some(if self.of == 0 { dz } else { dz.sum_to(&Shape::from(&shape[shape.len() - 1..])) })
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        [2, 1][self.of] * x[0].shape.elements() as u64
    }
}

impl Op for LinearAdd {
    fn name(&self) -> &'static str {
        "linear_add"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        let product = infer_product(self.name(), &x[1..])?;
        if *x[0] != product {
            return Err(format!("the product is {product}, what it is added to {}", x[0]));
        }
        Ok(product)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::LinearAdd(Activation::Identity), x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        Needs::inputs(&[2]).when(tracked[1]).or(Needs::inputs(&[1]).when(tracked[2]))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| match i {
            0 => at.g(),
            _ => product_cotangent(i - 1, at.g(), &at.x[1..]),
        })
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| match i {
            0 => dx,
            _ => product_tangent(i - 1, dx, &at.x[1..], at.y().shape()),
        })
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(x[0] + product(&x[1..]))
    }

    fn flops(&self, x: &[&Meta], y: &Meta) -> u64 {
        Linear { activation: Activation::Identity }.flops(&x[1..], y) + y.shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// `act(x·Wᵀ + b)` over the last axis: x `[.., in]`, w `[out, in]`, b `[out]` → `[.., out]`.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{Activation, DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.constant(&Tensor::from_vec(vec![1.0f64, 2.0], [1, 2]));
    /// let w = tape.variable(&Tensor::from_vec(vec![1.0f64, 1.0, 1.0, -1.0], [2, 2]));
    /// let b = tape.variable(&Tensor::from_vec(vec![0.5f64, 0.5], [2]));
    /// let y = x.linear(w, Some(b), Activation::Relu);
    /// assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), [3.5, 0.0]);
    /// let gradients = tape.backward(y.sum(&[])).unwrap();
    /// assert_eq!(gradients.of(w).unwrap().to_vec::<f64>().unwrap(), [1.0, 2.0, 0.0, 0.0]);
    /// ```
    ///
    /// # Panics
    /// If the shapes are not these, or the dtypes differ.
    #[track_caller]
    pub fn linear(self, w: Var<'t>, b: Option<Var<'t>>, activation: Activation) -> Var<'t> {
        let x: SmallVec<[Var<'t>; 3]> = [self, w].into_iter().chain(b).collect();
        self.tape().record(Linear { activation }, &x)
    }

    /// `self + x·Wᵀ + b`, the sum taken while the product is written: `self` `[.., out]`, x `[.., in]`, w `[out, in]`, b `[out]`.
    /// The bits are those of `self + x.linear(w, b, Activation::Identity)`; of bf16, which is rounded once, one rounding fewer.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::Tensor;
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 2.0], [1, 2]));
    /// let w = tape.constant(&Tensor::from_vec(vec![1.0f64, 1.0, 1.0, -1.0], [2, 2]));
    /// let y = x.linear_add(x, w, None);
    /// assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), [4.0, 1.0]);
    /// let gradients = tape.backward(y.sum(&[])).unwrap();
    /// assert_eq!(gradients.of(x).unwrap().to_vec::<f64>().unwrap(), [3.0, 1.0]);
    /// ```
    ///
    /// # Panics
    /// If the shapes are not these, or the dtypes differ.
    #[track_caller]
    pub fn linear_add(self, x: Var<'t>, w: Var<'t>, b: Option<Var<'t>>) -> Var<'t> {
        let x: SmallVec<[Var<'t>; 4]> = [self, x, w].into_iter().chain(b).collect();
        self.tape().record(LinearAdd, &x)
    }
}
