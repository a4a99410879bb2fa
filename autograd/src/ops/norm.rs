//! Normalising each row: layer norm and RMS norm.
//!
//! Both derivatives start from x: the statistics of a row are computed again in the rule, which costs less than
//! keeping them would save, and makes every higher order follow.

use std::cell::LazyCell;

use limpid_tensor::{Fused, Inferred, Meta, Result, Tensor};

use crate::op::{Cotangents, Needs, Op, Pullback, Pushforward};
use crate::ops::fused;
use crate::ops::softmax::row_sum;
use crate::ops::together::Together;
use crate::shared::Shared;
use crate::var::Var;

/// `y = x̂∘γ + β` with `x̂ = (x − mean)·r`, `r = 1/√(var + eps)`, over the last axis: x `[.., C]`, γ and β `[C]`; var is
/// the mean of `(x − mean)²`.
///
/// With `ĝ = ȳ∘γ`: `x̄ = r·(ĝ − mean(ĝ) − x̂·mean(ĝ∘x̂))`, `γ̄ = Σ_rows ȳ∘x̂`, `β̄ = Σ_rows ȳ`.
///
/// It is an RMS norm of the centred row, and so is its rule: as x̂ has mean 0, x̄ is the centred `r·(ĝ − x̂·mean(ĝ∘x̂))`.
///
/// J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// `y = x̂∘γ` with `x̂ = x·r`, `r = 1/√(mean(x²) + eps)`, over the last axis: x `[.., C]`, γ `[C]`.
///
/// With `ĝ = ȳ∘γ`: `x̄ = r·(ĝ − x̂·mean(ĝ∘x̂))`, `γ̄ = Σ_rows ȳ∘x̂`.
///
/// B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
}

/// One of the cotangents that the vjp of [`LayerNorm`] hands back: x, γ and ȳ → the cotangent of operand `of`.
#[derive(Debug)]
struct LayerNormBackward {
    eps: f64,
    of: usize,
    together: Shared<Together>,
}

/// One of the cotangents that the vjp of [`RmsNorm`] hands back: x, γ and ȳ → the cotangent of operand `of`.
#[derive(Debug)]
struct RmsNormBackward {
    eps: f64,
    of: usize,
    together: Shared<Together>,
}

/// The normalised rows x̂, and r, by which they were scaled.
struct Normalised<'t> {
    x: Var<'t>,
    r: Var<'t>,
}

/// The mean over the last axis, which stays with size 1.
fn row_mean(v: Var<'_>) -> Var<'_> {
    let shape = v.shape();
    row_sum(v) * (1.0 / shape[shape.len() - 1] as f64)
}

fn centred(v: Var<'_>) -> Var<'_> {
    v - row_mean(v)
}

impl<'t> Normalised<'t> {
    /// Rows scaled to a mean square of 1.
    fn scaled(x: Var<'t>, eps: f64) -> Normalised<'t> {
        let r = (row_mean(x * x) + eps).rsqrt();
        Normalised { x: x * r, r }
    }

    /// `r·(v − x̂·mean(v∘x̂))`: the Jacobian of the scaling, which is symmetric, times `v`.
    fn times_jacobian(&self, v: Var<'t>) -> Var<'t> {
        self.r * (v - self.x * row_mean(v * self.x))
    }
}

/// Checks `[.., C]` against operands `[C]`, which are called `names` in messages.
fn infer_columns(name: &str, x: &[&Meta], names: &[&str]) -> Inferred {
    if !x[0].dtype.is_float() {
        return Err(format!("{name} is not defined for {}", x[0].dtype));
    }
    let Some(&columns) = x[0].shape.last() else {
        return Err(format!("{name} needs an axis, found shape {}", x[0].shape));
    };
    for (operand, what) in x[1..].iter().zip(names) {
        if operand.shape[..] != [columns] {
            return Err(format!("{what} for {} must be [{columns}], found {}", x[0].shape, operand.shape));
        }
        if operand.dtype != x[0].dtype {
            let (a, b) = (x[0].dtype, operand.dtype);
            return Err(format!("operands must have one dtype, found {a} and {b}"));
        }
    }
    Ok(x[0].clone())
}

/// What both norms read: x for anything that x̂ is in, γ for x̄. β̄ reads nothing.
fn needs(tracked: &[bool]) -> Needs {
    Needs::inputs(&[0]).when(tracked[0] || tracked[1]).or(Needs::inputs(&[1]).when(tracked[0]))
}

/// What the kernels of both vjps take. No cotangent but x̄ depends on γ: without x̄ they take ones for it, and γ need not be
/// held.
fn operands<'t>(at: &Pullback<'_, 't>) -> [Var<'t>; 3] {
    let gain = if at.wants(0) { at.x(1) } else { at.g().fill(1.0).expand(at.x(1).shape()) };
    [at.x(0), gain, at.g()]
}

/// The metadata of the cotangent of operand `of`.
fn infer_cotangent(name: &str, x: &[&Meta], of: usize) -> Inferred {
    infer_columns(name, &x[..2], &["γ"])?;
    if x[2] != x[0] {
        return Err(format!("expected a cotangent {}, found {}", x[0], x[2]));
    }
    Ok(x[usize::from(of > 0)].clone())
}

/// What the expansion of the cotangent of operand `of` reads.
fn needs_of_cotangent(of: usize) -> Needs {
    Needs::inputs([&[0, 1, 2][..], &[0, 2], &[2]][of])
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attributes(&self) -> String {
        format!("ε={}", self.eps)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_columns(self.name(), x, &["γ", "β"])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::LayerNorm { eps: self.eps }, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        needs(tracked)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        if !at.wants(0) && !at.wants(1) {
            return at.each(|i| at.g().sum_to(&at.x(i).shape()));
        }
        let eps = self.eps;
        let part = |of, together| LayerNormBackward { eps, of, together };
        Together::cotangents(at, Fused::LayerNormBackward { eps }, &operands(at), part)
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let normalised = LazyCell::new(|| Normalised::scaled(centred(at.x(0)), self.eps));
        at.sum(|i, dx| match i {
            0 => normalised.times_jacobian(centred(dx)) * at.x(1),
            1 => normalised.x * dx,
            _ => dx.expand(at.y().shape()),
        })
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(Normalised::scaled(centred(x[0]), self.eps).x * x[1] + x[2])
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        7 * x[0].shape.elements() as u64
    }
}

impl Op for LayerNormBackward {
    fn name(&self) -> &'static str {
        ["layer_norm_backward", "layer_norm_gain_backward", "layer_norm_bias_backward"][self.of]
    }

    fn attributes(&self) -> String {
        format!("ε={}", self.eps)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_cotangent(self.name(), x, self.of)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        self.together.result(self.of, self, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        needs_of_cotangent(self.of)
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let (gain, g) = (x[1], x[2]);
        let normalised = || Normalised::scaled(centred(x[0]), self.eps);
        Some(match self.of {
            0 => centred(normalised().times_jacobian(g * gain)),
            1 => (g * normalised().x).sum_to(&gain.shape()),
            _ => g.sum_to(&gain.shape()),
        })
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        [12, 2, 1][self.of] * x[0].shape.elements() as u64
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn attributes(&self) -> String {
        format!("ε={}", self.eps)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_columns(self.name(), x, &["γ"])
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        fused(self, Fused::RmsNorm { eps: self.eps }, x)
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        needs(tracked)
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        let eps = self.eps;
        let part = |of, together| RmsNormBackward { eps, of, together };
        Together::cotangents(at, Fused::RmsNormBackward { eps }, &operands(at), part)
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let normalised = LazyCell::new(|| Normalised::scaled(at.x(0), self.eps));
        at.sum(|i, dx| match i {
            0 => normalised.times_jacobian(dx) * at.x(1),
            _ => normalised.x * dx,
        })
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        Some(Normalised::scaled(x[0], self.eps).x * x[1])
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        4 * x[0].shape.elements() as u64
    }
}

impl Op for RmsNormBackward {
    fn name(&self) -> &'static str {
        ["rms_norm_backward", "rms_norm_gain_backward"][self.of]
    }

    fn attributes(&self) -> String {
        format!("ε={}", self.eps)
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        infer_cotangent(self.name(), x, self.of)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        self.together.result(self.of, self, x)
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        needs_of_cotangent(self.of)
    }

    fn expand<'t>(&self, x: &[Var<'t>]) -> Option<Var<'t>> {
        let (gain, g) = (x[1], x[2]);
        let normalised = Normalised::scaled(x[0], self.eps);
        Some(match self.of {
            0 => normalised.times_jacobian(g * gain),
            _ => (g * normalised.x).sum_to(&gain.shape()),
        })
    }

    fn flops(&self, x: &[&Meta], _y: &Meta) -> u64 {
        [9, 2][self.of] * x[0].shape.elements() as u64
    }
}

impl<'t> Var<'t> {
    /// `(x − mean)/√(var + eps)∘γ + β` over the last axis: x `[.., C]`, γ and β `[C]`.
    ///
    /// ```
    /// use limpid_autograd::Tape;
    /// use limpid_tensor::{DType, Tensor};
    /// let tape = Tape::new();
    /// let x = tape.variable(&Tensor::from_vec(vec![1.0f64, 3.0], [1, 2]));
    /// let (gamma, beta) = (tape.scalar(2.0, DType::F64).expand([2]), tape.scalar(5.0, DType::F64).expand([2]));
    /// let y = x.layer_norm(gamma, beta, 0.0);
    /// assert_eq!(y.value().unwrap().to_vec::<f64>().unwrap(), [3.0, 7.0]);
    /// ```
    ///
    /// # Panics
    /// If the shapes are not these, or the dtypes differ.
    #[track_caller]
    pub fn layer_norm(self, gamma: Var<'t>, beta: Var<'t>, eps: f64) -> Var<'t> {
        self.tape().record(LayerNorm { eps }, &[self, gamma, beta])
    }

    /// `x/√(mean(x²) + eps)∘γ` over the last axis: x `[.., C]`, γ `[C]`.
    ///
    /// # Panics
    /// If the shapes are not these, or the dtypes differ.
    #[track_caller]
    pub fn rms_norm(self, gamma: Var<'t>, eps: f64) -> Var<'t> {
        self.tape().record(RmsNorm { eps }, &[self, gamma])
    }
}
