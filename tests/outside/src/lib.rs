//! Two operations that limpid does not have, as a user of it adds them: the function, its derivative in both directions,
//! and what the derivative reads. Nothing but `limpid` is depended on.

use limpid::autograd::{Cotangents, Needs, Pullback, Pushforward};
use limpid::tensor::{Inferred, Map, Meta, Result};
use limpid::{Op, Tensor, Var};

/// `mish(x) = x·tanh(softplus(x))` (D. Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019), of a
/// float tensor of any shape.
///
/// ```
/// use limpid::{Tape, Tensor};
/// use limpid_outside::mish;
///
/// let tape = Tape::new();
/// let x = tape.variable(&Tensor::from_vec(vec![0.0f64, 1.0], [2]));
/// let y = mish(x);
/// assert_eq!(y.value()?.to_vec::<f64>()?[0], 0.0);
/// let slope = tape.backward(y.sum(&[]))?.of(x).unwrap().to_vec::<f64>()?;
/// assert!((slope[0] - 0.6).abs() < 1e-15); // tanh(ln 2) = 3/5
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// If `x` is not a float.
#[track_caller]
pub fn mish(x: Var<'_>) -> Var<'_> {
    x.tape().record(Mish, &[x])
}

/// What [`mish`] records.
#[derive(Debug)]
pub struct Mish;

impl Mish {
    /// `t + x·(1 − t²)·σ(x)` with `t = tanh(softplus(x))`.
    fn slope(x: Var<'_>) -> Var<'_> {
        let t = x.softplus().tanh();
        t + x * (1.0 - t * t) * x.sigmoid()
    }
}

impl Op for Mish {
    fn name(&self) -> &'static str {
        "mish"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Softplus.infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let t = Tensor::map(Map::Tanh, &[&Tensor::map(Map::Softplus, x)?])?;
        Tensor::map(Map::Mul, &[x[0], &t])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0])
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| at.g() * Mish::slope(at.x(i)))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| dx * Mish::slope(at.x(i)))
    }
}

/// The smooth relative of Huber's loss, `√(1 + (a − b)²) − 1` element by element, with broadcasting: near 0 a parabola,
/// far away `|a − b| − 1`.
///
/// ```
/// use limpid::{Tape, Tensor};
/// use limpid_outside::pseudo_huber;
///
/// let tape = Tape::new();
/// let prediction = tape.variable(&Tensor::from_vec(vec![0.0f64, 1.0, 2.0, 3.0], [2, 2]));
/// let target = tape.constant(&Tensor::from_vec(vec![0.0f64, 1.0], [2]));
/// assert_eq!(pseudo_huber(prediction, target).value()?.to_vec::<f64>()?[..2], [0.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// If the shapes do not broadcast, or the dtypes differ.
#[track_caller]
pub fn pseudo_huber<'t>(a: Var<'t>, b: Var<'t>) -> Var<'t> {
    a.tape().record(PseudoHuber, &[a, b])
}

/// What [`pseudo_huber`] records.
#[derive(Debug)]
pub struct PseudoHuber;

impl PseudoHuber {
    /// By a: `(a − b)/√(1 + (a − b)²)`. By b it is the negative.
    fn slope<'t>(operand: usize, a: Var<'t>, b: Var<'t>) -> Var<'t> {
        let d = if operand == 0 { a - b } else { b - a };
        d * (d * d + 1.0).rsqrt()
    }
}

impl Op for PseudoHuber {
    fn name(&self) -> &'static str {
        "pseudo_huber"
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        Map::Sub.infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        let d = Tensor::map(Map::Sub, x)?;
        let square = Tensor::map(Map::Mul, &[&d, &d])?;
        let root = Tensor::map(Map::Sqrt, &[&Tensor::map(Map::Affine { mul: 1.0, add: 1.0 }, &[&square])?])?;
        Tensor::map(Map::Affine { mul: 1.0, add: -1.0 }, &[&root])
    }

    fn needs(&self, _tracked: &[bool]) -> Needs {
        Needs::inputs(&[0, 1])
    }

    /// What broadcasting repeats adds up again.
    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| (at.g() * PseudoHuber::slope(i, at.x(0), at.x(1))).sum_to(&at.x(i).shape()))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        at.sum(|i, dx| dx * PseudoHuber::slope(i, at.x(0), at.x(1)))
    }
}
