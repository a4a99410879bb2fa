//! What two runs are compared by: every bit of every element.

use limpid_autograd::Gradients;
use limpid_nn::Parameters;
use limpid_tensor::{DType, Tensor, bf16};

/// Dtype, shape and the bits of each element.
#[derive(Clone, PartialEq, Eq)]
pub struct Bits(String, Vec<u64>);

impl Bits {
    pub fn of(value: &Tensor) -> Bits {
        let bits = match value.dtype() {
            DType::F64 => value.to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect(),
            DType::F32 => value.to_vec::<f32>().unwrap().into_iter().map(|v| v.to_bits().into()).collect(),
            DType::BF16 => value.to_vec::<bf16>().unwrap().into_iter().map(|v| v.to_bits().into()).collect(),
            DType::I64 => value.to_vec::<i64>().unwrap().into_iter().map(|v| v as u64).collect(),
            DType::Bool => value.to_vec::<bool>().unwrap().into_iter().map(u64::from).collect(),
        };
        Bits(value.meta().to_string(), bits)
    }
}

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        self.1.iter().try_for_each(|bits| write!(f, " {bits:x}"))
    }
}

/// Named values.
pub type Listed = Vec<(String, Option<Bits>)>;

/// The gradient of every parameter, `None` where there is none.
pub fn gradients(model: &dyn Parameters, gradients: &Gradients) -> Listed {
    let of = |p: &limpid_nn::Parameter| (p.path().to_string(), gradients.of_parameter(p.id()).map(Bits::of));
    model.parameters().into_iter().map(of).collect()
}

/// Says where two lists part, if they do.
pub fn compare(what: &str, expected: &Listed, found: &Listed) -> Result<(), String> {
    if expected.len() != found.len() {
        return Err(format!("{what}: {} values, expected {}", found.len(), expected.len()));
    }
    for ((name, expected), (of, found)) in expected.iter().zip(found) {
        if name != of || expected != found {
            return Err(format!("{what}: {of} is {found:?}, expected {name} {expected:?}"));
        }
    }
    Ok(())
}
