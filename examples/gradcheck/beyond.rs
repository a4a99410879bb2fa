//! Where differences cannot tell: at kinks, what is agreed; at extreme values, that nothing becomes NaN.

use limpid::autograd::check::Property;
use limpid::autograd::check::case::{Case, Operand, Values};
use limpid::tensor::Map;
use limpid::tensor::rng::{Distribution, Key};
use limpid::{DType, Shape, Tape, Tensor, Var};

use crate::subject::Convention;

/// How many cases were looked at, and what was wrong with the first that was wrong.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// Cases that say something.
    pub cases: usize,
    /// Those that are right.
    pub passed: usize,
    /// Those that cannot be decided.
    pub inconclusive: usize,
    /// The first that is wrong.
    pub failure: Option<String>,
}

impl Tally {
    /// Counts a case.
    pub fn count(&mut self, case: &Case, result: Result<(), String>) {
        self.cases += 1;
        match result {
            Ok(()) => self.passed += 1,
            Err(message) => {
                self.failure.get_or_insert_with(|| format!("{message}\n  at {case}"));
            }
        }
    }

    /// Those that are wrong.
    pub fn failed(&self) -> usize {
        self.cases - self.passed - self.inconclusive
    }
}

/// A tensor of random signs with sizes between 0.5 and 1.5.
pub fn weights(shape: &Shape, dtype: DType, seed: u64) -> Tensor {
    let draw = Distribution::Uniform { low: 0.5, high: 1.5 };
    let sizes = Tensor::random(draw, shape, DType::F32, Key::new(seed)).and_then(|x| x.to_f64_vec());
    let key = Key::new(seed).fold_str("sign");
    let sign = |i: usize| if key.bits(i as u64) & 1 == 0 { 1.0 } else { -1.0 };
    let signed = sizes.into_iter().flatten().enumerate().map(|(i, x)| x * sign(i)).collect();
    Tensor::from_vec::<f64>(signed, shape).cast(dtype).expect("the processor can round")
}

/// What the rules say at a case's operands: the value, the gradient of its weighted sum by each float operand (zeros
/// where it does not depend on one), and the tangent along `seed + 1 + i` of operand `i`.
pub struct Derivatives {
    pub value: Vec<f64>,
    pub gradient: Vec<Vec<f64>>,
    pub tangent: Vec<f64>,
    pub cotangent: Tensor,
}

/// The elements of a value.
pub fn numbers(x: Var<'_>) -> limpid::autograd::Result<Vec<f64>> {
    Ok(x.value()?.to_f64_vec().expect("on the processor"))
}

/// Places a case's tensors; floats are tracked.
pub fn place<'t>(tape: &'t Tape, x: &[Tensor]) -> Vec<Var<'t>> {
    x.iter().map(|x| if x.dtype().is_float() { tape.variable(x) } else { tape.constant(x) }).collect()
}

pub fn derivatives(
    property: &Property,
    case: &Case,
    tape: &Tape,
    operands: &[Tensor],
) -> limpid::autograd::Result<Derivatives> {
    let x = place(tape, operands);
    let y = property.apply(&x, case);
    let value = numbers(y)?;
    let cotangent = weights(&y.shape(), y.dtype(), 1);
    let floats: Vec<Var> = x.iter().copied().filter(|x| x.dtype().is_float()).collect();
    let pulled = tape.vjp(y, tape.constant(&cotangent), &floats)?;
    let gradient = floats.iter().zip(pulled).map(|(x, g)| match g {
        Some(g) => numbers(g),
        None => Ok(vec![0.0; x.shape().elements()]),
    });
    let gradient = gradient.collect::<limpid::autograd::Result<_>>()?;
    let along: Vec<(Var, Var)> = floats
        .iter()
        .enumerate()
        .map(|(i, &x)| (x, tape.constant(&weights(&x.shape(), x.dtype(), 2 + i as u64))))
        .collect();
    let tangent = numbers(tape.jvp(y, &along)?)?;
    Ok(Derivatives { value, gradient, tangent, cotangent })
}

/// Compares the rules with what is agreed, in both directions.
pub fn convention(convention: &Convention, case: &Case, tape: &Tape) -> Result<(), String> {
    let operands = case.tensors();
    let found = derivatives(&convention.property, case, tape, &operands).map_err(|e| e.to_string())?;
    let elements = |x: &Tensor| x.to_f64_vec().expect("on the processor");
    let x: Vec<Vec<f64>> = operands.iter().map(elements).collect();
    let shapes: Vec<Vec<usize>> = operands.iter().map(|x| x.shape().to_vec()).collect();
    let u = elements(&found.cotangent);
    let expected = (convention.gradient)(&x, &shapes, &u);
    let (mut forward, mut size) = (0.0, 0.0);
    for (i, (found, expected)) in found.gradient.iter().zip(&expected).enumerate() {
        let v = elements(&weights(&operands[i].shape().clone(), DType::F64, 2 + i as u64));
        for (element, (&f, &e)) in found.iter().zip(expected).enumerate() {
            if (f - e).abs().partial_cmp(&(1e-12 * e.abs().max(1.0))) != Some(std::cmp::Ordering::Less) {
                return Err(format!("the gradient by element {element} of x{i} is {f:e}, agreed is {e:e}"));
            }
            forward += e * v[element];
            size += (e * v[element]).abs();
        }
    }
    let along: f64 = found.tangent.iter().zip(&u).map(|(t, u)| t * u).sum();
    if (along - forward).abs().partial_cmp(&(1e-12 * (1.0 + size))) != Some(std::cmp::Ordering::Less) {
        return Err(format!("⟨J·v, u⟩ is {along:e} by forward mode, agreed is {forward:e}"));
    }
    Ok(())
}

/// The tensors of a case with other values where it has interior or positive ones; positive ones stay so.
pub fn with_values(case: &Case, values: Values) -> Vec<Tensor> {
    let other = |o: &Operand| Operand { values, ..o.clone() }.tensor();
    let tensor = |o: &Operand| match o.values {
        Values::Interior | Values::Normal(_) if o.dtype.is_float() => other(o),
        Values::Positive => Tensor::map(Map::Abs, &[&other(o)]).expect("on the processor"),
        _ => o.tensor(),
    };
    case.operands.iter().map(tensor).collect()
}

/// `None` where the value is not finite; else an error unless the gradient is a number and, where that is finite, the
/// tangent too.
pub fn extreme(property: &Property, case: &Case, operands: &[Tensor]) -> Result<Option<()>, String> {
    let found = derivatives(property, case, &Tape::new(), operands).map_err(|error| error.to_string())?;
    if found.value.iter().any(|y| !y.is_finite()) {
        return Ok(None);
    }
    let number = |what: String, x: &[f64]| match x.iter().position(|x| x.is_nan()) {
        Some(at) => Err(format!("{what} is NaN at element {at}, where the value is finite")),
        None => Ok(()),
    };
    for (i, gradient) in found.gradient.iter().enumerate() {
        number(format!("the gradient by x{i}"), gradient)?;
    }
    if found.gradient.iter().flatten().all(|g| g.is_finite()) {
        number("the tangent".into(), &found.tangent)?;
    }
    Ok(Some(()))
}
