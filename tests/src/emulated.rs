//! A CUDA device that is this processor, for suites that run on any device.

use std::sync::OnceLock;

use limpid_cuda::Cuda;
use limpid_cuda::emulated::{self, StandIn};
use limpid_tensor::{Layout, Tensor};

/// The emulated device and the driver that stands in for it. Every access of every kernel is checked, unless the variable
/// `LIMPID_EMULATE` is `fast`.
///
/// # Panics
/// If there is no `g++`.
pub fn device() -> (&'static Cuda, &'static StandIn) {
    static DEVICE: OnceLock<(&'static Cuda, &'static StandIn)> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let check = std::env::var("LIMPID_EMULATE").as_deref() != Ok("fast");
        let config = emulated::Config { check, ..Default::default() };
        emulated::keep_apart(check);
        let stand_in = emulated::install(config).expect("g++ compiles kernels for this processor");
        (Cuda::new(0).expect("the emulator has one device"), stand_in)
    })
}

/// The tensor in the memory of the emulated device: the same view of the same storage.
///
/// # Panics
/// If the checker has found something in an earlier kernel.
pub fn place(x: &Tensor) -> Tensor {
    let (cuda, _) = device();
    assert_silent();
    let all = Layout::contiguous([x.storage().bytes() / x.dtype().size()]);
    let storage = Tensor::from_storage(x.storage().clone(), all, x.dtype());
    let storage = storage.to(&cuda.device()).expect("the emulator has memory for a test");
    Tensor::from_storage(storage.storage().clone(), x.layout().clone(), x.dtype())
}

/// # Panics
/// If the checker has found something, with all of it.
#[track_caller]
pub fn assert_silent() {
    let findings = device().1.take_findings();
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "the checker found:\n{}", lines.join("\n"));
}
