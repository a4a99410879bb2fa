//! Elementwise nonlinearities, by name.

use std::f64::consts::SQRT_2;
use std::fmt;
use std::str::FromStr;

use limpid_autograd::Var;
use limpid_tensor::Activation as Fused;

use crate::error::Error;
use crate::module::{Module, Parameters};
use crate::parameter::Parameter;

/// A function applied to each element.
///
/// Its text form is its name, with its parameter in brackets where it has one: `relu`, `elu(0.5)`.
///
/// ```
/// use limpid_nn::Activation;
/// assert_eq!("leaky_relu(0.2)".parse::<Activation>()?, Activation::LeakyRelu(0.2));
/// assert_eq!("elu".parse::<Activation>()?.to_string(), "elu(1)");
/// assert!("rely".parse::<Activation>().is_err());
/// # Ok::<(), limpid_nn::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Activation {
    /// `x`.
    Identity,
    /// `max(x, 0)`; its derivative at 0 is 0.
    Relu,
    /// `x` where positive, else `slope·x`; slope 0.01 unless said.
    LeakyRelu(f64),
    /// `x` where positive, else `α(eˣ − 1)`; α = 1 unless said.
    Elu(f64),
    /// `x·Φ(x)`.
    Gelu,
    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    GeluTanh,
    /// `x·σ(x)`.
    Silu,
    /// `tanh x`.
    Tanh,
    /// `1/(1 + e⁻ˣ)`.
    Sigmoid,
    /// `ln(1 + eˣ)`.
    Softplus,
}

impl Activation {
    /// Every activation, with the usual parameters.
    pub const ALL: [Activation; 10] = [
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu(0.01),
        Activation::Elu(1.0),
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Softplus,
    ];

    /// The name without a parameter.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::LeakyRelu(_) => "leaky_relu",
            Activation::Elu(_) => "elu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
            Activation::Softplus => "softplus",
        }
    }

    /// The function on a tape.
    #[track_caller]
    pub fn apply(self, x: Var<'_>) -> Var<'_> {
        match self {
            Activation::Identity => x,
            Activation::Relu => x.relu(),
            Activation::LeakyRelu(slope) => x.leaky_relu(slope),
            Activation::Elu(alpha) => x.elu(alpha),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Softplus => x.softplus(),
        }
    }

    /// The same activation inside a fused kernel, where its derivative is a function of its result.
    pub fn fused(self) -> Option<Fused> {
        match self {
            Activation::Identity => Some(Fused::Identity),
            Activation::Relu => Some(Fused::Relu),
            Activation::Tanh => Some(Fused::Tanh),
            Activation::Sigmoid => Some(Fused::Sigmoid),
            _ => None,
        }
    }

    /// The factor by which initial weights make up for what the activation does to the size of its operand.
    ///
    /// `1/√E[f(z)²]` for a standard normal z, which keeps the mean square of a layer's result; for identity, tanh and
    /// sigmoid the numbers in general use, 1, 5/3 and 1 (the latter two are fits, not that formula).
    pub fn gain(self) -> f64 {
        match self {
            Activation::Identity | Activation::Sigmoid => 1.0,
            Activation::Relu => SQRT_2,
            Activation::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
            // E[(eᶻ − 1)²; z < 0] = e²Φ(−2) − 2√e·Φ(−1) + ½ for the negative half.
            Activation::Elu(alpha) => (0.5 + alpha * alpha * 0.144_945_417_492_923_8).sqrt().recip(),
            Activation::Gelu => 1.533_530_441_195_676_7,
            Activation::GeluTanh => 1.533_580_521_666_26,
            Activation::Silu => 1.676_532_470_331_167,
            Activation::Tanh => 5.0 / 3.0,
            Activation::Softplus => 1.041_866_835_535_358_6,
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::LeakyRelu(parameter) | Activation::Elu(parameter) => {
                write!(f, "{}({parameter})", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Activation, Error> {
        let wrong = || {
            let names: Vec<&str> = Activation::ALL.iter().map(|a| a.name()).collect();
            let expected = format!("one of {}, or leaky_relu(slope), elu(alpha)", names.join(", "));
            Error::argument("activation", expected, text)
        };
        let Some((name, parameter)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) else {
            return Activation::ALL.into_iter().find(|a| a.name() == text).ok_or_else(wrong);
        };
        match (name, parameter.trim().parse()) {
            ("leaky_relu", Ok(slope)) => Ok(Activation::LeakyRelu(slope)),
            ("elu", Ok(alpha)) => Ok(Activation::Elu(alpha)),
            _ => Err(wrong()),
        }
    }
}

impl Parameters for Activation {
    fn visit<'a>(&'a self, _: &mut dyn FnMut(&'a Parameter)) {}
    fn visit_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Parameter)) {}
}

/// Any shape, any float dtype.
impl Module for Activation {
    fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        self.apply(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpid_autograd::Tape;
    use limpid_tensor::{DType, Tensor};

    #[test]
    fn names_go_there_and_back() {
        for activation in Activation::ALL {
            assert_eq!(activation.to_string().parse::<Activation>().unwrap(), activation);
            assert_eq!(activation.name().parse::<Activation>().unwrap(), activation);
        }
        for wrong in ["", "Relu", "relu(1)", "elu(", "elu()", "elu(x)", "elu)"] {
            let message = wrong.parse::<Activation>().unwrap_err().to_string();
            assert!(message.contains("one of identity, relu") && message.ends_with(wrong), "{message}");
        }
    }

    #[test]
    fn gains_keep_the_mean_square() {
        // The mean square under a standard normal, by the midpoint rule over ±12 in steps of 0.001.
        let z: Vec<f64> = (0..24_000).map(|i| -12.0 + (f64::from(i) + 0.5) * 1e-3).collect();
        let weight = |z: f64| (-0.5 * z * z).exp() * 1e-3 / (2.0 * std::f64::consts::PI).sqrt();
        let tape = Tape::inference();
        let x = tape.constant(&Tensor::from_f64(&z, [z.len()], DType::F64));
        let others = [Activation::LeakyRelu(0.3), Activation::Elu(0.5)];
        for activation in Activation::ALL.into_iter().chain(others) {
            if matches!(activation, Activation::Tanh | Activation::Sigmoid) {
                continue;
            }
            let y = activation.apply(x).value().unwrap().to_vec::<f64>().unwrap();
            let mean_square: f64 = z.iter().zip(&y).map(|(&z, y)| y * y * weight(z)).sum();
            let kept = activation.gain().powi(2) * mean_square;
            assert!((kept - 1.0).abs() < 1e-6, "{activation}: {kept}");
        }
    }
}
