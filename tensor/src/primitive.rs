//! The closed vocabulary a backend computes, and what each word makes of shapes and dtypes.
//!
//! `infer` answers without computing, in the words a person needs when the answer is no. Recording a program
//! that has not run uses the same functions as running it.

use smallvec::{SmallVec, smallvec};

use crate::{DType, Shape, Tensor};

/// Shape and dtype of a tensor: all that is known of it before it is computed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Size along each axis.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Meta {
    /// A shape and a dtype.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Meta {
        Meta { shape: shape.into(), dtype }
    }

    /// Bytes of the contiguous tensor.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

impl std::fmt::Display for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}{}", self.dtype, self.shape))
    }
}

/// What an operation does to metadata, or the sentence that says why it cannot.
pub type Inferred = Result<Meta, String>;

/// A function of one, two or three elements.
///
/// Floats unless said otherwise. NaN in gives NaN out, `max`, `min`, `clamp` and `relu` included, so that a
/// value that went wrong stays visible.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Map {
    /// −x (also i64).
    Neg,
    /// |x| (also i64).
    Abs,
    /// −1, 0 or 1 (also i64); sign(±0) = 0.
    Sign,
    /// eˣ.
    Exp,
    /// eˣ − 1, accurate near 0.
    Expm1,
    /// ln x.
    Log,
    /// ln(1 + x), accurate near 0.
    Log1p,
    /// √x.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// 1/x.
    Recip,
    /// sin x.
    Sin,
    /// cos x.
    Cos,
    /// tanh x.
    Tanh,
    /// 1/(1 + e⁻ˣ), without overflow.
    Sigmoid,
    /// (2/√π) ∫₀ˣ e^(−t²) dt.
    Erf,
    /// ln(1 + eˣ), without overflow.
    Softplus,
    /// max(x, 0).
    Relu,
    /// x if x > 0, else slope·x.
    LeakyRelu(f64),
    /// x if x > 0, else α(eˣ − 1).
    Elu(f64),
    /// mul·x + add (also i64, where both must be whole).
    Affine {
        /// The factor.
        mul: f64,
        /// The addend.
        add: f64,
    },
    /// xᵖ for a constant p.
    Powf(f64),
    /// min(max(x, low), high).
    Clamp {
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Logical not (bool).
    Not,
    /// a + b (also i64).
    Add,
    /// a − b (also i64).
    Sub,
    /// a·b (also i64).
    Mul,
    /// a/b.
    Div,
    /// aᵇ.
    Pow,
    /// The larger of two (also i64).
    Max,
    /// The smaller of two (also i64).
    Min,
    /// a = b, as bool (any dtype).
    Eq,
    /// a ≠ b, as bool (any dtype).
    Ne,
    /// a < b, as bool (also i64).
    Lt,
    /// a ≤ b, as bool (also i64).
    Le,
    /// a > b, as bool (also i64).
    Gt,
    /// a ≥ b, as bool (also i64).
    Ge,
    /// Logical and (bool).
    And,
    /// Logical or (bool).
    Or,
    /// The second where the first (bool) is true, else the third (any dtype).
    Where,
}

impl Map {
    /// The number of operands: 1, 2 or 3.
    pub fn arity(self) -> usize {
        use Map::*;
        match self {
            Add | Sub | Mul | Div | Pow | Max | Min | Eq | Ne | Lt | Le | Gt | Ge | And | Or => 2,
            Where => 3,
            _ => 1,
        }
    }

    /// The name in printed tapes and messages.
    pub fn name(self) -> &'static str {
        use Map::*;
        match self {
            Neg => "neg",
            Abs => "abs",
            Sign => "sign",
            Exp => "exp",
            Expm1 => "expm1",
            Log => "log",
            Log1p => "log1p",
            Sqrt => "sqrt",
            Rsqrt => "rsqrt",
            Recip => "recip",
            Sin => "sin",
            Cos => "cos",
            Tanh => "tanh",
            Sigmoid => "sigmoid",
            Erf => "erf",
            Softplus => "softplus",
            Relu => "relu",
            LeakyRelu(_) => "leaky_relu",
            Elu(_) => "elu",
            Affine { .. } => "affine",
            Powf(_) => "powf",
            Clamp { .. } => "clamp",
            Not => "not",
            Add => "add",
            Sub => "sub",
            Mul => "mul",
            Div => "div",
            Pow => "pow",
            Max => "maximum",
            Min => "minimum",
            Eq => "eq",
            Ne => "ne",
            Lt => "lt",
            Le => "le",
            Gt => "gt",
            Ge => "ge",
            And => "and",
            Or => "or",
            Where => "where",
        }
    }

    /// Whether these are operands of one shape and one float dtype, and the function is one of floats: then it is defined
    /// for them, and [`infer`](Map::infer) has nothing to find.
    #[inline]
    pub(crate) fn takes_alike(self, x: &[&Tensor]) -> bool {
        let [first, others @ ..] = x else { return false };
        let alike = |t: &&Tensor| t.dtype() == first.dtype() && t.shape() == first.shape();
        self.is_of_floats(first.dtype(), x.len()) && others.iter().all(alike)
    }

    /// Whether it takes so many operands of one shape, all of this dtype, which is one of floats.
    #[inline]
    fn is_of_floats(self, dtype: DType, operands: usize) -> bool {
        let is_logical = matches!(self, Map::Not | Map::And | Map::Or | Map::Where);
        !is_logical && dtype.is_float() && operands == self.arity()
    }

    /// The result's shape and dtype.
    pub fn infer(self, x: &[&Meta]) -> Inferred {
        use Map::*;
        let dtype_of = |dtype| if matches!(self, Eq | Ne | Lt | Le | Gt | Ge) { DType::Bool } else { dtype };
        // Most operands are alike, and there is nothing to find.
        if let [first, others @ ..] = x
            && self.is_of_floats(first.dtype, x.len())
            && others.iter().all(|other| other == first)
        {
            return Ok(Meta { shape: first.shape.clone(), dtype: dtype_of(first.dtype) });
        }
        let name = self.name();
        if x.len() != self.arity() {
            return Err(format!("{name} takes {} operands, found {}", self.arity(), x.len()));
        }
        let values = if self == Where { &x[1..] } else { x };
        let dtype = values[0].dtype;
        if let Some(other) = values.iter().find(|m| m.dtype != dtype) {
            return Err(format!("{name}: operands must have one dtype, found {dtype} and {}", other.dtype));
        }
        let fits = match self {
            Not | And | Or => dtype == DType::Bool,
            Eq | Ne | Where => true,
            Neg | Abs | Sign | Affine { .. } | Add | Sub | Mul | Max | Min | Lt | Le | Gt | Ge => {
                dtype != DType::Bool
            }
            _ => dtype.is_float(),
        };
        if !fits {
            return Err(format!("{name} is not defined for {dtype}"));
        }
        if let Affine { mul, add } = self
            && dtype == DType::I64
            && (mul.fract() != 0.0 || add.fract() != 0.0)
        {
            return Err(format!("{name}: {mul}·x + {add} is not a whole number for an i64 operand"));
        }
        if self == Where && x[0].dtype != DType::Bool {
            return Err(format!("where: the condition must be bool, found {}", x[0].dtype));
        }
        let mut shape = x[0].shape.clone();
        for m in &x[1..] {
            shape = shape.broadcast(&m.shape).ok_or_else(|| {
                let shapes: Vec<String> = x.iter().map(|m| m.shape.to_string()).collect();
                format!("{name}: shapes {} do not broadcast together", shapes.join(" and "))
            })?;
        }
        Ok(Meta { shape, dtype: dtype_of(dtype) })
    }
}

/// How the elements along some axes become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Reduce {
    /// The sum (floats, i64); 0 of nothing. Narrow floats accumulate in f32.
    Sum,
    /// The product (floats, i64); 1 of nothing.
    Prod,
    /// The largest (floats, i64); NaN if there is one.
    Max,
    /// The smallest (floats, i64); NaN if there is one.
    Min,
    /// The index (i64) of the first largest element, along exactly one axis; a NaN counts as largest.
    ArgMax,
}

impl Reduce {
    /// The name in printed tapes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "sum",
            Reduce::Prod => "prod",
            Reduce::Max => "max",
            Reduce::Min => "min",
            Reduce::ArgMax => "argmax",
        }
    }

    /// The result's shape (the axes kept with size 1) and dtype.
    pub fn infer(self, x: &Meta, axes: &[usize]) -> Inferred {
        let name = self.name();
        if x.dtype == DType::Bool {
            return Err(format!("{name} is not defined for bool; cast first"));
        }
        if self == Reduce::ArgMax && axes.len() != 1 {
            return Err(format!("argmax takes one axis, found {}", axes.len()));
        }
        let empty = axes.iter().any(|&a| x.shape[a] == 0);
        if empty && !matches!(self, Reduce::Sum | Reduce::Prod) {
            return Err(format!(
                "{name} over axes {axes:?} of shape {}: there are no elements to choose from",
                x.shape
            ));
        }
        let dtype = if self == Reduce::ArgMax { DType::I64 } else { x.dtype };
        Ok(Meta { shape: x.shape.with_ones(axes), dtype })
    }
}

/// The result of a matrix product over the last two axes, the leading ones broadcast.
pub fn infer_matmul(a: &Meta, b: &Meta) -> Inferred {
    if a.dtype != b.dtype {
        return Err(format!("matmul: operands must have one dtype, found {} and {}", a.dtype, b.dtype));
    }
    if !a.dtype.is_float() {
        return Err(format!("matmul is not defined for {}", a.dtype));
    }
    let (&[ref lead_a @ .., m, k], &[ref lead_b @ .., k_of_b, n]) = (&a.shape[..], &b.shape[..]) else {
        return Err(format!(
            "matmul: both operands need at least two axes, found {} and {}",
            a.shape, b.shape
        ));
    };
    if k != k_of_b {
        return Err(format!(
            "matmul: {} times {}: the last axis of the first ({k}) must equal the second-to-last of the second ({k_of_b})",
            a.shape, b.shape
        ));
    }
    if lead_a.is_empty() && lead_b.is_empty() {
        return Ok(Meta { shape: [m, n].into(), dtype: a.dtype });
    }
    let lead = Shape::from(lead_a).broadcast(&Shape::from(lead_b)).ok_or_else(|| {
        format!("matmul: the leading axes of {} and {} do not broadcast together", a.shape, b.shape)
    })?;
    Ok(Meta { shape: lead.iter().copied().chain([m, n]).collect(), dtype: a.dtype })
}

/// Checks the index of a gather: i64, x's rank, x's sizes on every axis but `axis`.
pub fn infer_gather(x: &Meta, axis: usize, index: &Meta) -> Inferred {
    if index.dtype != DType::I64 {
        return Err(format!("gather: the index must be i64, found {}", index.dtype));
    }
    let agree = x.shape.len() == index.shape.len() && x.shape.with(axis, 0) == index.shape.with(axis, 0);
    if !agree {
        return Err(format!(
            "gather along axis {axis}: index {} must agree with {} on every other axis",
            index.shape, x.shape
        ));
    }
    Ok(Meta { shape: index.shape.clone(), dtype: x.dtype })
}

/// An activation whose derivative is a function of its output, so that a fused kernel need not keep its input.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Activation {
    /// y = x.
    Identity,
    /// max(x, 0).
    Relu,
    /// tanh x.
    Tanh,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
}

impl Activation {
    /// The elementwise primitive, `None` for the identity.
    pub fn map(self) -> Option<Map> {
        match self {
            Activation::Identity => None,
            Activation::Relu => Some(Map::Relu),
            Activation::Tanh => Some(Map::Tanh),
            Activation::Sigmoid => Some(Map::Sigmoid),
        }
    }
}

/// When Sinkhorn's iteration ends. One step makes every column sum to 1, then every row, so that after it the rows are
/// right and the columns are off by what is called its error: the largest `|column sum − 1|`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stop {
    /// After exactly so many steps.
    Steps(usize),
    /// After the first step whose error is no larger than `error`, for each matrix on its own, or after `at_most`.
    Tolerance {
        /// The error that is good enough.
        error: f64,
        /// Steps after which it ends anyway.
        at_most: usize,
    },
    /// Once the error is a few roundings of the dtype, or after 100,000 steps. Sharp logits want thousands; a matrix whose
    /// zeros leave no room for positive sums only approaches its limit, its error falling like one over the steps.
    Converged,
}

impl Stop {
    /// The most steps there can be.
    pub fn at_most(self) -> usize {
        match self {
            Stop::Steps(steps) => steps,
            Stop::Tolerance { at_most, .. } => at_most,
            Stop::Converged => 100_000,
        }
    }

    /// The error at which n×n matrices of `dtype` are done, if that is what they wait for.
    pub fn error(self, n: usize, dtype: DType) -> Option<f64> {
        match self {
            Stop::Steps(_) => None,
            Stop::Tolerance { error, .. } => Some(error),
            Stop::Converged => {
                let rounding = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
                Some((4.0 + n as f64) * rounding)
            }
        }
    }
}

/// How an optimiser changes a weight w by its gradient g: η is the learning rate, λ the decay, t the number of the step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Descent {
    /// `g ← g + λw`, `v ← μv + g`, `w ← w − ηv`; with Nesterov `w ← w − η(g + μv)`. Where μ is 0 there is no v, and
    /// `w ← w − ηg`.
    Momentum {
        /// μ.
        momentum: f64,
        /// Whether the step looks ahead.
        nesterov: bool,
    },
    /// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `w ← w − (η/(1 − β₁ᵗ))·m/(√v/√(1 − β₂ᵗ) + ε)`, after `g ← g + λw`;
    /// or, decoupled, `w ← (1 − ηλ)w` instead.
    Adam {
        /// β₁ and β₂.
        betas: [f64; 2],
        /// ε.
        eps: f64,
        /// Whether the decay leaves the gradient alone.
        decoupled: bool,
    },
}

impl Descent {
    /// How many tensors are remembered of each weight: v, or m and v.
    pub fn remembers(self) -> usize {
        match self {
            Descent::Momentum { momentum, .. } => usize::from(momentum > 0.0),
            Descent::Adam { .. } => 2,
        }
    }
}

/// The learning rate of a step.
#[derive(Clone, Copy, Debug)]
pub enum Rate<'a> {
    /// This number. A step in a captured graph has it in every replay.
    Number(f64),
    /// What this tensor, f64 `[]`, holds when the step runs: a finite number from 0, which nobody checks on a device.
    Stored(&'a Tensor),
}

/// What the weights of a step have in common.
#[derive(Clone, Copy, Debug)]
pub struct Pace<'a> {
    /// The learning rate before it is scaled.
    pub rate: Rate<'a>,
    /// What [`norm_and_scale`](crate::Backend::norm_and_scale) makes of the gradients: each is multiplied by the scale, and
    /// where that is 0 the step changes nothing.
    pub clip: Option<&'a Tensor>,
}

/// One weight in a step of an optimiser. Its tensors, but for the count and the copy, have one shape and one dtype, f32 or
/// f64; the gradient of one in f32 may be bf16.
#[derive(Debug)]
pub struct WeightStep {
    /// w, which is changed.
    pub weight: Tensor,
    /// g.
    pub gradient: Tensor,
    /// What is remembered of earlier steps, which is changed: as many as [`Descent::remembers`], wherever they lie. None
    /// before the first step, where all are zeros.
    pub memory: SmallVec<[Tensor; 2]>,
    /// How many steps were made, i64 `[]`, wherever it lies; the step counts itself. t is one more than before.
    pub steps: Tensor,
    /// Of one in f32, if it has one: w rounded to bf16, on its device. It is written where w is: the bits of
    /// [`Tensor::cast`].
    pub copy: Option<Tensor>,
    /// What the rate of the step is multiplied by; the product is η.
    pub rate_scale: f64,
    /// λ.
    pub weight_decay: f64,
}

/// A function of tensors that a backend may compute in one pass. Each has an expansion into primitives, beside
/// its derivative in the autograd crate, that it is checked against.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub enum Fused {
    /// `act(x·wᵀ + b)`: x `[.., in]`, w `[out, in]`, optional b `[out]` → `[.., out]`.
    Linear(Activation),
    /// `act(x·wᵀ + b) + r`: r `[.., out]`, x `[.., in]`, w `[out, in]`, optional b `[out]` → `[.., out]`.
    LinearAdd(Activation),
    /// Where the vjp of [`Linear`](Fused::Linear) begins: its result y and the cotangent g of that, both `[.., C]`, → that of
    /// the sum that the activation was applied to, `g∘act′`, which is a function of y, `[.., C]`, and of b, `Σ_rows g∘act′`,
    /// `[C]`.
    LinearBackward(Activation),
    /// `exp(x − max x)/Σ exp(x − max x)` over the last axis.
    Softmax,
    /// The vjp of [`Softmax`](Fused::Softmax), `y∘(g − Σ g∘y)`: its result y and the cotangent g of that, both `[.., C]`, →
    /// `[.., C]`.
    SoftmaxBackward,
    /// `x − max x − ln Σ exp(x − max x)` over the last axis.
    LogSoftmax,
    /// The vjp of [`LogSoftmax`](Fused::LogSoftmax), `g − exp(y)·Σ g`: its result y and the cotangent g of that, both
    /// `[.., C]`, → `[.., C]`.
    LogSoftmaxBackward,
    /// `−log_softmax(logits)[label]` per row: logits `[N, C]`, labels i64 `[N]` → `[N]`.
    CrossEntropy,
    /// The vjp of [`CrossEntropy`](Fused::CrossEntropy), `g·(softmax(logits) − onehot(label))` per row: logits `[N, C]`, labels
    /// i64 `[N]` and the cotangent g `[N]` of the losses → `[N, C]`.
    CrossEntropyBackward,
    /// `(x − mean)/√(var + eps)·γ + β` over the last axis, the variance about a number of the row: x `[.., C]`, γ `[C]`, β `[C]`.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// The vjp of [`LayerNorm`](Fused::LayerNorm): x, γ and the cotangent g of the result, `[.., C]`, → those of x `[.., C]`, γ
    /// and β `[C]`. With x̂ the normalised row, r what it was scaled by and `ĝ = g∘γ`: `r·(ĝ − mean(ĝ) − x̂·mean(ĝ∘x̂))`,
    /// `Σ_rows g∘x̂` and `Σ_rows g`.
    LayerNormBackward {
        /// Added to the variance.
        eps: f64,
    },
    /// `x/√(mean(x²) + eps)·γ` over the last axis: x `[.., C]`, γ `[C]`.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
    },
    /// The vjp of [`RmsNorm`](Fused::RmsNorm): x, γ and the cotangent g of the result, `[.., C]`, → those of x `[.., C]` and γ
    /// `[C]`. With x̂ the normalised row, r what it was scaled by and `ĝ = g∘γ`: `r·(ĝ − x̂·mean(ĝ∘x̂))` and
    /// `Σ_rows g∘x̂`.
    RmsNormBackward {
        /// Added to the mean square.
        eps: f64,
    },
    /// `exp(x)` with its columns, then its rows, divided by their sums, again and again: x `[.., n, n]` → `[.., n, n]`.
    Sinkhorn(Stop),
    /// The vjp of [`Sinkhorn`](Fused::Sinkhorn): x and the cotangent of its result, both `[.., n, n]`, → `[.., n, n]`.
    SinkhornBackward(Stop),
    /// How many steps [`Sinkhorn`](Fused::Sinkhorn) takes: x `[.., n, n]` → i64 `[.., 1, 1]`.
    SinkhornSteps(Stop),
    /// What coefficients between n streams X `[.., n, C]` are computed from: with v = vec(X) and r = √(mean(v²) + eps), side by
    /// side `v·φ₁/r`, …, `v·φₖ/r` and r. X, then φ `[nC, mᵢ]` → `[.., Σmᵢ + 1]`.
    ///
    /// As in the other words for streams, X and what has its channels have one dtype, and coefficients, φ and sums are f32
    /// where that is bf16.
    StreamProject {
        /// Added to the mean square.
        eps: f64,
    },
    /// The vjp of [`StreamProject`](Fused::StreamProject), and with it the other shares in X̄. X, φ₁ … φₖ, the result, its
    /// cotangent, and the operands of [`StreamCotangent`](Fused::StreamCotangent) → X̄ (their sum), φ̄₁ … φ̄ₖ.
    StreamProjectBackward(Handed),
    /// `a·X`: X `[.., n, C]`, a `[.., n]` → `[.., C]`.
    StreamRead,
    /// The cotangent of a in [`StreamRead`](Fused::StreamRead): X `[.., n, C]`, that of the result `[.., C]` → `[.., n]`.
    StreamReadBackward,
    /// `A·X + bᵀ ⊗ F`: X `[.., n, C]`, F `[.., C]`, A `[.., n, n]`, b `[.., n]` → `[.., n, C]`.
    StreamWrite,
    /// Several [`StreamWrite`](Fused::StreamWrite)s, each of what the one before gave: X, then F, A and b of each → what each
    /// gives, with the bits that it has by itself.
    StreamWrites,
    /// The cotangents of F, A and b in [`StreamWrite`](Fused::StreamWrite): X `[.., n, C]`, F `[.., C]`, b `[.., n]`, that of the
    /// result `[.., n, C]` → `[.., C]`, `[.., n, n]`, `[.., n]`.
    StreamWriteBackward,
    /// The cotangent of X from what reads and writes it, `Aᵀ·G + aᵀ ⊗ H`, G and H being those of what was written and read:
    /// G `[.., n, C]` and A `[.., n, n]` if it was written, H `[.., C]` and a `[.., n]` if it was read → `[.., n, C]`.
    StreamCotangent(Handed),
}

/// Which shares in the cotangent of streams there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handed {
    /// From a write: `Aᵀ·G`.
    pub written: bool,
    /// From a read: `aᵀ ⊗ H`.
    pub read: bool,
}

impl Handed {
    /// The number of operands that they are made of.
    pub fn operands(self) -> usize {
        2 * (usize::from(self.written) + usize::from(self.read))
    }
}

/// f32 for bf16, else the dtype itself: what coefficients between streams have.
fn widened(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

impl Fused {
    /// Whether some operands are f32 where others are bf16.
    pub(crate) fn mixes_dtypes(self) -> bool {
        use Fused::*;
        matches!(
            self,
            StreamProject { .. }
                | StreamProjectBackward(_)
                | StreamRead
                | StreamReadBackward
                | StreamWrite
                | StreamWrites
                | StreamWriteBackward
                | StreamCotangent(_)
        )
    }

    /// The results' shapes and dtypes for operands that fit.
    pub fn results(self, x: &[&Meta]) -> SmallVec<[Meta; 3]> {
        let (shape, dtype) = (&x[0].shape, x[0].dtype);
        let only = match self {
            Fused::Linear(_) => Meta { shape: shape.with(shape.len() - 1, x[1].shape[0]), dtype },
            Fused::LinearBackward(_) => {
                let columns = shape[shape.len() - 1];
                return smallvec![x[0].clone(), Meta { shape: Shape::from([columns]), dtype }];
            }
            Fused::CrossEntropy => Meta { shape: x[1].shape.clone(), dtype },
            Fused::SinkhornSteps(_) => {
                let rank = shape.len();
                Meta { shape: shape.with_ones(&[rank - 2, rank - 1]), dtype: DType::I64 }
            }
            Fused::LayerNormBackward { .. } => return smallvec![x[0].clone(), x[1].clone(), x[1].clone()],
            Fused::RmsNormBackward { .. } => return smallvec![x[0].clone(), x[1].clone()],
            Fused::LinearAdd(_)
            | Fused::Softmax
            | Fused::SoftmaxBackward
            | Fused::LogSoftmax
            | Fused::LogSoftmaxBackward
            | Fused::CrossEntropyBackward
            | Fused::LayerNorm { .. }
            | Fused::RmsNorm { .. }
            | Fused::Sinkhorn(_)
            | Fused::SinkhornBackward(_)
            | Fused::StreamWrite => x[0].clone(),
            Fused::StreamProject { .. } => {
                let columns: usize = x[1..].iter().map(|phi| phi.shape[1]).sum();
                let lead = &shape[..shape.len() - 2];
                Meta { shape: lead.iter().copied().chain([columns + 1]).collect(), dtype: widened(dtype) }
            }
            Fused::StreamProjectBackward(handed) => {
                let phi = &x[1..x.len() - 2 - handed.operands()];
                return [x[0]].iter().chain(phi).map(|&meta| meta.clone()).collect();
            }
            Fused::StreamRead => Meta { shape: shape.without(&[shape.len() - 2]), dtype },
            Fused::StreamReadBackward => {
                Meta { shape: shape.without(&[shape.len() - 1]), dtype: widened(dtype) }
            }
            Fused::StreamWrites => return x[1..].chunks(3).map(|_| x[0].clone()).collect(),
            Fused::StreamWriteBackward => {
                let of = |like: &Shape| Meta { shape: like.clone(), dtype: widened(dtype) };
                let (b, n) = (shape.without(&[shape.len() - 1]), shape[shape.len() - 2]);
                let mix: Shape = b.iter().copied().chain([n]).collect();
                return smallvec![x[1].clone(), of(&mix), of(&b)];
            }
            Fused::StreamCotangent(Handed { written: true, .. }) => x[0].clone(),
            Fused::StreamCotangent(_) => {
                let n = x[1].shape[x[1].shape.len() - 1];
                let (&channels, lead) = shape.split_last().expect("H has channels");
                Meta { shape: lead.iter().copied().chain([n, channels]).collect(), dtype }
            }
        };
        smallvec![only]
    }
}
