//! How far narrow kernels are from the f64 ones, in units in the last place.
//!
//! Both run at the same numbers, those of the narrow operands. A unit is the distance between neighbouring numbers of
//! the narrow dtype at the size of the result or of the terms it is made of, whichever is larger: max(|yᵢ|,
//! Σⱼ|∂yᵢ/∂xⱼ·xⱼ|). (A sum whose terms cancel is off by roundings of the terms, however it is computed.) A gradient is
//! measured in the same way, as the function of the operands and of the cotangent that it is.

use limpid::autograd::check::Property;
use limpid::autograd::check::case::Case;
use limpid::{DType, Tape, Tensor, Var};

use crate::beyond::{derivatives, numbers, place};

/// An operation's kernel may be so far off: as much as a converged Sinkhorn or the tail of a GELU, and no more.
pub const LIMIT: f64 = 64.0;

/// The largest distances found.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Ulps {
    pub value: f64,
    pub gradient: f64,
}

impl Ulps {
    /// The larger of both.
    pub fn max(self, other: Ulps) -> Ulps {
        Ulps { value: self.value.max(other.value), gradient: self.gradient.max(other.gradient) }
    }
}

/// The distance between neighbouring numbers of `dtype` around `v`.
fn ulp(v: f64, dtype: DType) -> f64 {
    let (digits, lowest) = if dtype == DType::BF16 { (8, -126) } else { (24, -126) };
    let exponent = if v == 0.0 { lowest } else { (v.abs().log2().floor() as i32).max(lowest) };
    2f64.powi(exponent + 1 - digits)
}

/// For each element of `y`, the size of the terms it is made of.
fn scales<'t>(y: Var<'t>, of: &[Var<'t>]) -> limpid::autograd::Result<Vec<f64>> {
    let tape = y.tape();
    let values = numbers(y)?;
    let operands = of.iter().map(|&x| numbers(x)).collect::<limpid::autograd::Result<Vec<_>>>()?;
    let scale = |(i, value): (usize, &f64)| {
        let mut unit = vec![0.0; values.len()];
        unit[i] = 1.0;
        let row = tape.vjp(y, tape.constant(&Tensor::from_vec(unit, y.shape())), of)?;
        let mut size = 0.0;
        for (x, derivative) in operands.iter().zip(row) {
            let Some(derivative) = derivative else { continue };
            size += x.iter().zip(numbers(derivative)?).map(|(x, d)| (x * d).abs()).sum::<f64>();
        }
        Ok(size.max(value.abs()))
    };
    values.iter().enumerate().map(scale).collect()
}

/// The worst of one case.
pub fn ulps(property: &Property, case: &Case, dtype: DType) -> limpid::autograd::Result<Ulps> {
    let narrow = case.clone().with_floats(dtype).tensors();
    let widen = |x: &Tensor| match x.dtype().is_float() {
        true => x.cast(DType::F64).expect("the processor can widen"),
        false => x.clone(),
    };
    let wide: Vec<Tensor> = narrow.iter().map(widen).collect();
    let found = derivatives(property, case, &Tape::new(), &narrow)?;

    let tape = Tape::new();
    let x = place(&tape, &wide);
    let y = property.apply(&x, case);
    let mut of: Vec<Var> = x.iter().copied().filter(|x| x.dtype().is_float()).collect();
    let worst = |found: &[f64], exact: Vec<f64>, scales: Vec<f64>| {
        let off = found.iter().zip(exact).zip(scales).map(|((f, e), s)| (f - e).abs() / ulp(s, dtype));
        // What is not a number where it should be is infinitely far off.
        off.fold(0.0, |worst, off: f64| if off.is_nan() { f64::INFINITY } else { worst.max(off) })
    };
    let mut ulps = Ulps { value: worst(&found.value, numbers(y)?, scales(y, &of)?), gradient: 0.0 };
    let cotangent = tape.variable(&found.cotangent.cast(DType::F64).expect("the processor can widen"));
    let gradients = tape.vjp(y, cotangent, &of)?;
    of.push(cotangent);
    for (found, exact) in found.gradient.iter().zip(gradients) {
        if let Some(exact) = exact {
            ulps.gradient = ulps.gradient.max(worst(found, numbers(exact)?, scales(exact, &of)?));
        }
    }
    Ok(ulps)
}
