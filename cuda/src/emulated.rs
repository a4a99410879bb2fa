//! Devices that are this processor: the same host code and the same kernels, without a card.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use limpid_emulator::standin;
pub use limpid_emulator::standin::{Config, StandIn};
use limpid_tensor::{Error, Result};

use crate::library::Opened;

static INSTALLED: AtomicBool = AtomicBool::new(false);
static APART: AtomicBool = AtomicBool::new(false);

/// Makes every CUDA device of this process an emulated one. Must come before anything else asks for a device, and cannot be
/// undone. Needs `g++`, which compiles the kernels.
///
/// # Errors
/// If there is no `g++`, or the system's driver or compiler has been opened already.
pub fn install(config: Config) -> Result<&'static StandIn> {
    let fail = |message: String| Error::Device { device: "emulator".into(), message };
    // Held meanwhile, so that nobody opens the system's.
    let opened = Opened::lock();
    if opened.is_settled() && !is_installed() {
        let message = "the system's driver or compiler is open in this process already, and an emulator must come first";
        return Err(fail(message.into()));
    }
    let stand_in = standin::install(config).map_err(|error| fail(error.to_string()))?;
    INSTALLED.store(true, Ordering::Release);
    Ok(stand_in)
}

/// Whether this process emulates its devices.
pub fn is_installed() -> bool {
    INSTALLED.load(Ordering::Acquire)
}

/// Makes every tensor from now on an allocation of its own, so that the checker sees an access that goes from one into
/// another, or a read of what an earlier one has left. Otherwise they are pieces of a pool, as on a card. Graphs have a pool
/// either way.
pub fn keep_apart(apart: bool) {
    APART.store(apart, Ordering::Release);
}

/// Whether tensors are allocations of their own.
pub(crate) fn keeps_apart() -> bool {
    is_installed() && APART.load(Ordering::Acquire)
}

/// Where compiled kernels are kept, unless a [`Config`] says otherwise.
pub fn cache_folder() -> PathBuf {
    Config::default().cache
}
