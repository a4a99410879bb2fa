//! Whether every operation gives what the CPU gives, and the same bits twice.

#[path = "../kernels/demos.rs"]
pub mod demos;

use limpid_cuda::Cuda;
use limpid_tensor::{Device, Result, Tensor};
use serde_json::{Value, json};

use demos::{Demo, Distance};

/// An operation beside the CPU's.
pub struct Compared {
    pub name: String,
    pub found: std::result::Result<Found, String>,
}

/// What the device computed.
pub struct Found {
    pub distance: Distance,
    /// Whether it computed the same bits twice.
    pub same_bits: bool,
}

impl Compared {
    pub fn is_right(&self) -> bool {
        self.found.as_ref().is_ok_and(|found| found.distance.is_allowed() && found.same_bits)
    }

    pub fn to_json(&self) -> Value {
        match &self.found {
            Ok(Found { distance: Distance { roundings, allowed }, same_bits }) => json!({
                // JSON has no infinity.
                "name": self.name, "roundings": roundings.is_finite().then_some(roundings), "allowed": allowed,
                "same_bits": same_bits, "is_right": self.is_right(),
            }),
            Err(message) => json!({ "name": self.name, "error": message, "is_right": false }),
        }
    }
}

/// Runs all that the card has the instructions and the memory for.
///
/// # Errors
/// If the CPU cannot.
pub fn compare(cuda: &'static Cuda) -> std::result::Result<Vec<Compared>, String> {
    let demos = demos::all();
    demos.iter().filter(|demo| demo.runs_on(cuda)).map(|demo| compare_one(demo, &cuda.device())).collect()
}

fn compare_one(demo: &Demo, device: &Device) -> std::result::Result<Compared, String> {
    let expected = demo.run(&Device::cpu()).map_err(|error| format!("{}: {error}", demo.name))?;
    let found = find(demo, device, &expected).map_err(|error| error.to_string());
    Ok(Compared { name: demo.name.clone(), found })
}

fn find(demo: &Demo, device: &Device, expected: &[Tensor]) -> Result<Found> {
    let (first, second) = (demo.run(device)?, demo.run(device)?);
    let same_bits = first.iter().zip(&second).all(|(a, b)| demos::bits(a) == demos::bits(b));
    Ok(Found { distance: demo.distance(&first, expected), same_bits })
}
