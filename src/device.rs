//! Which device is meant by a name.

use limpid_tensor::{Device, Error, Result};

/// The device of this name: `cpu`; `cuda` or `cuda:1`, a card; `emulator`, a CUDA device that is this processor and runs
/// the same kernels, slowly. The last two need the feature `cuda`.
///
/// ```
/// assert_eq!(limpid::device("cpu")?, limpid::Device::cpu());
/// assert_eq!(limpid::device("gpu").unwrap_err().to_string(), "gpu: expected cpu, cuda, cuda:N or emulator");
/// # Ok::<(), limpid::tensor::Error>(())
/// ```
///
/// # Errors
/// If there is no such device, or no driver or compiler for it.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::cpu()),
        "cuda" => cuda(0, name),
        "emulator" => emulator(),
        _ => match name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) {
            Some(ordinal) => cuda(ordinal, name),
            None => Err(refused(name, "expected cpu, cuda, cuda:N or emulator")),
        },
    }
}

fn refused(name: &str, message: &str) -> Error {
    Error::Device { device: name.into(), message: message.into() }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize, _name: &str) -> Result<Device> {
    Ok(limpid_cuda::Cuda::new(ordinal)?.device())
}

#[cfg(feature = "cuda")]
fn emulator() -> Result<Device> {
    if !limpid_cuda::emulated::is_installed() {
        limpid_cuda::emulated::install(Default::default())?;
    }
    cuda(0, "emulator")
}

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize, name: &str) -> Result<Device> {
    Err(refused(name, "this program was built without CUDA; build it with `--features cuda`"))
}

#[cfg(not(feature = "cuda"))]
fn emulator() -> Result<Device> {
    cuda(0, "emulator")
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_the_feature_is_named() {
        for name in ["cuda", "cuda:0", "cuda:7", "emulator"] {
            assert_eq!(
                device(name).unwrap_err().to_string(),
                format!("{name}: this program was built without CUDA; build it with `--features cuda`")
            );
        }
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use limpid_cuda::emulated::{Config, install};

    #[test]
    fn an_emulator_that_is_installed_is_the_one_that_is_meant() {
        // A driver that is not found now may be emulated later.
        drop(device("cuda"));
        // Not the configuration that `device` would choose.
        match install(Config { memory: 64 << 20, ..Config::default() }) {
            Ok(_) => assert_eq!(device("emulator").unwrap(), device("cuda").unwrap()),
            Err(error) => println!("no emulator here: {error}"),
        }
    }
}
