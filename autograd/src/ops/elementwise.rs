//! Functions of one, two or three elements, and what follows from their local derivatives.
//!
//! The derivative of every function of one variable stands in one table, `local_derivative`; those of two and three
//! in [`Elementwise::vjp`]. At kinks: relu′(0) = 0, leaky_relu′(0) = slope, |x|′(0) = 0, sign′ = 0 everywhere, clamp′ =
//! 1 on its bounds, and where `maximum` or `minimum` is a tie each operand takes half.

use limpid_tensor::{Inferred, Map, Meta, Result, Tensor};
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::op::{Cotangents, Derivative, Needs, Op, Pullback, Pushforward};
use crate::var::Var;

/// A function applied element by element, with broadcasting. See [`Map`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Elementwise(pub Map);

/// The derivative of a function of one variable at `x`, where it is `y`. `None` if it is a constant: `slope`.
fn local_derivative<'t>(f: Map, x: Var<'t>, y: Var<'t>) -> Option<Var<'t>> {
    Some(match f {
        Map::Abs => x.sign(),
        Map::Exp => y,
        Map::Expm1 => y + 1.0,
        Map::Log => x.recip(),
        Map::Log1p => (x + 1.0).recip(),
        Map::Sqrt => y.recip() * 0.5,
        Map::Rsqrt => y * y * y * -0.5,
        Map::Recip => -(y * y),
        Map::Sin => x.cos(),
        Map::Cos => -x.sin(),
        Map::Tanh => 1.0 - y * y,
        Map::Sigmoid => y * (1.0 - y),
        Map::Erf => (-(x * x)).exp() * std::f64::consts::FRAC_2_SQRT_PI,
        Map::Softplus => x.sigmoid(),
        Map::Relu => y.sign(),
        Map::LeakyRelu(slope) => where_(x.gt(x.fill(0.0)), x.fill(1.0), x.fill(slope)),
        Map::Elu(alpha) => {
            let side = if keeps_signs(alpha) { y } else { x };
            where_(side.gt(side.fill(0.0)), side.fill(1.0), y + alpha)
        }
        Map::Powf(p) if p != 0.0 => x.powf(p - 1.0) * p,
        Map::Clamp { low, high } => {
            where_(x.ge(x.fill(low)).and(x.le(x.fill(high))), x.fill(1.0), x.fill(0.0))
        }
        _ => return None,
    })
}

/// Whether `elu` with this α is positive only where its operand is, so that its derivative is a function of its result.
fn keeps_signs(alpha: f64) -> bool {
    alpha >= 0.0
}

/// The derivative of a function whose derivative is a constant.
fn slope(f: Map) -> f64 {
    match f {
        Map::Neg => -1.0,
        Map::Sign => 0.0,
        // x⁰ is 1 everywhere, where p·x^(p−1) would be 0·∞ at 0.
        Map::Powf(0.0) => 0.0,
        Map::Affine { mul, .. } => mul,
        _ => unreachable!("{} has a local derivative", f.name()),
    }
}

/// `g·f′(x)`: what both directions do with a function of one variable.
fn chain<'t>(f: Map, x: Var<'t>, y: Var<'t>, g: Var<'t>) -> Var<'t> {
    match local_derivative(f, x, y) {
        Some(derivative) => g * derivative,
        None => g * slope(f),
    }
}

/// How much of the cotangent operand `i` of a maximum takes: 1 where it wins, ½ where the two tie. For a minimum, give
/// the operands in the other order.
fn share_of_maximum<'t>(winner: Var<'t>, loser: Var<'t>) -> Var<'t> {
    let dtype = winner.dtype();
    winner.gt(loser).cast(dtype) + winner.equal(loser).cast(dtype) * 0.5
}

/// `c·b·a^(b−1)`: what a change of a does to aᵇ. At a = b = 0 it is 0, as everywhere else at b = 0.
fn pow_by_base<'t>(a: Var<'t>, b: Var<'t>, c: Var<'t>) -> Var<'t> {
    let (zero_a, zero_b) = (a.equal(a.fill(0.0)), b.equal(b.fill(0.0)));
    let exponent = where_(zero_a.and(zero_b), b.fill(1.0), b - 1.0);
    c * b * a.pow(exponent)
}

/// `c·aᵇ·ln a`: what a change of b does to y = aᵇ. At a = 0 it is 0. (What is not chosen is kept finite, for the sake of
/// the derivatives of this.)
fn pow_by_exponent<'t>(a: Var<'t>, y: Var<'t>, c: Var<'t>) -> Var<'t> {
    let zero = a.equal(a.fill(0.0));
    let log = where_(zero, a.fill(1.0), a).log();
    c * where_(zero, y.fill(0.0), y) * log
}

impl Elementwise {
    /// What operand `i` contributes per unit of change: `(c)·factor`, given a cotangent or tangent `c`.
    fn times_partial<'t>(self, i: usize, x: impl Fn(usize) -> Var<'t>, y: Var<'t>, c: Var<'t>) -> Var<'t> {
        match (self.0, i) {
            (Map::Add, _) | (Map::Sub, 0) => c,
            (Map::Sub, _) => -c,
            (Map::Mul, i) => c * x(1 - i),
            (Map::Div, 0) => c / x(1),
            (Map::Div, _) => -(c * y / x(1)),
            (Map::Pow, 0) => pow_by_base(x(0), x(1), c),
            (Map::Pow, _) => pow_by_exponent(x(0), y, c),
            (Map::Max, i) => c * share_of_maximum(x(i), x(1 - i)),
            (Map::Min, i) => c * share_of_maximum(x(1 - i), x(i)),
            (Map::Where, 1) => where_(x(0), c, c.fill(0.0)),
            (Map::Where, _) => where_(x(0), c.fill(0.0), c),
            (f, _) => chain(f, x(0), y, c),
        }
    }
}

impl Op for Elementwise {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn attributes(&self) -> String {
        match self.0 {
            Map::Affine { mul, add: 0.0 } => format!("·{mul}"),
            Map::Affine { mul: 1.0, add } => format!("+ {add}"),
            Map::Affine { mul, add } => format!("·{mul} + {add}"),
            Map::Powf(p) => format!("p={p}"),
            Map::Clamp { low, high } => format!("[{low}, {high}]"),
            Map::LeakyRelu(slope) => format!("slope={slope}"),
            Map::Elu(alpha) => format!("α={alpha}"),
            _ => String::new(),
        }
    }

    fn infer(&self, x: &[&Meta]) -> Inferred {
        self.0.infer(x)
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Tensor> {
        Tensor::map(self.0, x)
    }

    fn forward_consuming(&self, mut first: Tensor, others: &[&Tensor]) -> Result<Tensor> {
        match (self.0, others) {
            (Map::Add, &[other]) if first.meta() == other.meta() => {
                first.add_in_place(other)?;
                Ok(first)
            }
            (f, &[]) => Tensor::map(f, &[&first]),
            (f, &[b]) => Tensor::map(f, &[&first, b]),
            (f, &[a, b]) => Tensor::map(f, &[&first, a, b]),
            (f, _) => unreachable!("{} takes three operands at most", f.name()),
        }
    }

    fn needs(&self, tracked: &[bool]) -> Needs {
        use Map::*;
        let wants = |i: usize| tracked.get(i).copied().unwrap_or(false);
        match self.0 {
            Powf(0.0) => Needs::NOTHING,
            Abs | Log | Log1p | Sin | Cos | Erf | Softplus | LeakyRelu(_) | Powf(_) | Clamp { .. } => {
                Needs::inputs(&[0])
            }
            Exp | Expm1 | Sqrt | Rsqrt | Recip | Tanh | Sigmoid | Relu => Needs::OUTPUT,
            Elu(alpha) => Needs::OUTPUT.or(Needs::inputs(&[0]).when(!keeps_signs(alpha))),
            Mul => Needs::inputs(&[1]).when(wants(0)).or(Needs::inputs(&[0]).when(wants(1))),
            Div => Needs::inputs(&[1]).or(Needs::OUTPUT.when(wants(1))),
            Pow => {
                Needs::inputs(&[0, 1]).when(wants(0)).or(Needs::inputs(&[0]).or(Needs::OUTPUT).when(wants(1)))
            }
            Max | Min => Needs::inputs(&[0, 1]),
            Where => Needs::inputs(&[0]),
            _ => Needs::NOTHING,
        }
    }

    fn derivative(&self) -> Derivative {
        match self.0 {
            Map::Not | Map::And | Map::Or | Map::Eq | Map::Ne | Map::Lt | Map::Le | Map::Gt | Map::Ge => {
                Derivative::Stops
            }
            _ => Derivative::Exists,
        }
    }

    /// The sign of the distance to each kink; of a comparison, its result.
    fn branches(&self, x: &[&Tensor], y: &Tensor) -> Result<Option<Tensor>> {
        let sign = |x: &Tensor| Tensor::map(Map::Sign, &[x]);
        let side = |bound: f64| sign(&Tensor::map(Map::Affine { mul: 1.0, add: -bound }, &[x[0]])?);
        Ok(Some(match self.0 {
            Map::Abs | Map::Sign | Map::Relu | Map::LeakyRelu(_) | Map::Elu(_) => sign(x[0])?,
            Map::Clamp { low, high } => Tensor::map(Map::Add, &[&side(low)?, &side(high)?])?,
            Map::Max | Map::Min => sign(&Tensor::map(Map::Sub, &[x[0], x[1]])?)?,
            Map::Eq | Map::Ne | Map::Lt | Map::Le | Map::Gt | Map::Ge => y.clone(),
            _ => return Ok(None),
        }))
    }

    fn vjp<'t>(&self, at: &Pullback<'_, 't>) -> Cotangents<'t> {
        at.each(|i| self.times_partial(i, |i| at.x(i), at.y(), at.g()).sum_to_like(at.x(i)))
    }

    fn jvp<'t>(&self, at: &Pushforward<'_, 't>) -> Option<Var<'t>> {
        let shape = at.y().shape();
        at.sum(|i, dx| self.times_partial(i, |i| at.x(i), at.y(), dx.expand(&shape)))
    }
}

/// The elements of `a` where `condition` (bool) holds, those of `b` elsewhere.
#[track_caller]
pub fn where_<'t>(condition: Var<'t>, a: Var<'t>, b: Var<'t>) -> Var<'t> {
    a.tape.record(Elementwise(Map::Where), &[condition, a, b])
}

impl<'t> Var<'t> {
    #[track_caller]
    fn map(self, f: Map) -> Var<'t> {
        self.tape.record(Elementwise(f), &[self])
    }

    #[track_caller]
    fn map2(self, f: Map, other: Var<'t>) -> Var<'t> {
        self.tape.record(Elementwise(f), &[self, other])
    }

    /// A constant scalar of this value's dtype and device.
    #[track_caller]
    pub fn fill(self, value: f64) -> Var<'t> {
        self.tape.scalar(value, self.dtype())
    }

    /// |x|; its derivative is sign(x), 0 at 0.
    #[track_caller]
    pub fn abs(self) -> Var<'t> {
        self.map(Map::Abs)
    }

    /// −1, 0 or 1; its derivative is 0.
    #[track_caller]
    pub fn sign(self) -> Var<'t> {
        self.map(Map::Sign)
    }

    /// eˣ.
    #[track_caller]
    pub fn exp(self) -> Var<'t> {
        self.map(Map::Exp)
    }

    /// eˣ − 1, accurate near 0.
    #[track_caller]
    pub fn expm1(self) -> Var<'t> {
        self.map(Map::Expm1)
    }

    /// ln x.
    #[track_caller]
    pub fn log(self) -> Var<'t> {
        self.map(Map::Log)
    }

    /// ln(1 + x), accurate near 0.
    #[track_caller]
    pub fn log1p(self) -> Var<'t> {
        self.map(Map::Log1p)
    }

    /// √x.
    #[track_caller]
    pub fn sqrt(self) -> Var<'t> {
        self.map(Map::Sqrt)
    }

    /// 1/√x.
    #[track_caller]
    pub fn rsqrt(self) -> Var<'t> {
        self.map(Map::Rsqrt)
    }

    /// 1/x.
    #[track_caller]
    pub fn recip(self) -> Var<'t> {
        self.map(Map::Recip)
    }

    /// sin x.
    #[track_caller]
    pub fn sin(self) -> Var<'t> {
        self.map(Map::Sin)
    }

    /// cos x.
    #[track_caller]
    pub fn cos(self) -> Var<'t> {
        self.map(Map::Cos)
    }

    /// tanh x.
    #[track_caller]
    pub fn tanh(self) -> Var<'t> {
        self.map(Map::Tanh)
    }

    /// 1/(1 + e⁻ˣ).
    #[track_caller]
    pub fn sigmoid(self) -> Var<'t> {
        self.map(Map::Sigmoid)
    }

    /// The error function.
    #[track_caller]
    pub fn erf(self) -> Var<'t> {
        self.map(Map::Erf)
    }

    /// ln(1 + eˣ).
    #[track_caller]
    pub fn softplus(self) -> Var<'t> {
        self.map(Map::Softplus)
    }

    /// max(x, 0); its derivative at 0 is 0.
    #[track_caller]
    pub fn relu(self) -> Var<'t> {
        self.map(Map::Relu)
    }

    /// x for positive x, else `slope`·x; its derivative at 0 is `slope`.
    #[track_caller]
    pub fn leaky_relu(self, slope: f64) -> Var<'t> {
        self.map(Map::LeakyRelu(slope))
    }

    /// x for positive x, else `alpha`(eˣ − 1).
    #[track_caller]
    pub fn elu(self, alpha: f64) -> Var<'t> {
        self.map(Map::Elu(alpha))
    }

    /// xᵖ for a constant p.
    #[track_caller]
    pub fn powf(self, p: f64) -> Var<'t> {
        self.map(Map::Powf(p))
    }

    /// Confines to `low..=high`; the derivative on a bound is 1.
    #[track_caller]
    pub fn clamp(self, low: f64, high: f64) -> Var<'t> {
        assert!(low <= high, "clamp: the lower bound {low} is above the upper bound {high}");
        self.map(Map::Clamp { low, high })
    }

    /// Logical not (bool).
    #[track_caller]
    #[allow(clippy::should_implement_trait)]
    pub fn not(self) -> Var<'t> {
        self.map(Map::Not)
    }

    /// aᵇ; where a = 0 the derivative by b is 0.
    #[track_caller]
    pub fn pow(self, exponent: Var<'t>) -> Var<'t> {
        self.map2(Map::Pow, exponent)
    }

    /// The larger of two; where they tie each takes half of the gradient.
    #[track_caller]
    pub fn maximum(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Max, other)
    }

    /// The smaller of two; where they tie each takes half of the gradient.
    #[track_caller]
    pub fn minimum(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Min, other)
    }

    /// Where two are equal, as bool.
    #[track_caller]
    pub fn equal(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Eq, other)
    }

    /// Where two differ, as bool.
    #[track_caller]
    pub fn not_equal(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Ne, other)
    }

    /// Where this is less, as bool.
    #[track_caller]
    pub fn lt(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Lt, other)
    }

    /// Where this is less or equal, as bool.
    #[track_caller]
    pub fn le(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Le, other)
    }

    /// Where this is greater, as bool.
    #[track_caller]
    pub fn gt(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Gt, other)
    }

    /// Where this is greater or equal, as bool.
    #[track_caller]
    pub fn ge(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Ge, other)
    }

    /// Where both hold (bool).
    #[track_caller]
    pub fn and(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::And, other)
    }

    /// Where either holds (bool).
    #[track_caller]
    pub fn or(self, other: Var<'t>) -> Var<'t> {
        self.map2(Map::Or, other)
    }
}

impl<'t> Neg for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn neg(self) -> Var<'t> {
        self.map(Map::Neg)
    }
}

/// An arithmetic operator between values, and between a value and a number. (A macro, because the source line of the
/// caller passes through an operator but not through a closure.)
macro_rules! operator {
    ($trait:ident, $method:ident, |$x:ident, $n:ident| $with_number:expr, $number_with:expr) => {
        impl<'t> $trait for Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: Var<'t>) -> Var<'t> {
                self.map2(Map::$trait, other)
            }
        }

        impl<'t> $trait<f64> for Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, $n: f64) -> Var<'t> {
                let $x = self;
                $with_number
            }
        }

        impl<'t> $trait<Var<'t>> for f64 {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, $x: Var<'t>) -> Var<'t> {
                let $n = self;
                $number_with
            }
        }
    };
}

operator!(Add, add, |x, n| x.map(Map::Affine { mul: 1.0, add: n }), x.map(Map::Affine { mul: 1.0, add: n }));
operator!(
    Sub,
    sub,
    |x, n| x.map(Map::Affine { mul: 1.0, add: -n }),
    x.map(Map::Affine { mul: -1.0, add: n })
);
operator!(Mul, mul, |x, n| x.map(Map::Affine { mul: n, add: 0.0 }), x.map(Map::Affine { mul: n, add: 0.0 }));
operator!(Div, div, |x, n| x.map2(Map::Div, x.fill(n)), x.fill(n).map2(Map::Div, x));
