//! A CUDA device for suites that run on any device: this processor, or a card where the variable `LIMPID_TEST_DEVICE` is
//! `cuda`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use limpid_cuda::Cuda;
use limpid_cuda::emulated::{self, StandIn};
use limpid_tensor::{Layout, Tensor};

/// The device, and unless it is a card, the driver that stands in. Every access of every kernel is checked there, unless the
/// variable `LIMPID_EMULATE` is `fast`.
///
/// # Panics
/// If there is no such device, or no `g++` to emulate one.
pub fn device() -> (&'static Cuda, Option<&'static StandIn>) {
    static DEVICE: OnceLock<(&'static Cuda, Option<&'static StandIn>)> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let is_card = std::env::var("LIMPID_TEST_DEVICE").as_deref() == Ok("cuda");
        let stand_in = (!is_card).then(|| {
            let check = std::env::var("LIMPID_EMULATE").as_deref() != Ok("fast");
            let config = emulated::Config { check, ..Default::default() };
            emulated::keep_apart(check);
            emulated::install(config).expect("g++ compiles kernels for this processor")
        });
        (Cuda::new(0).expect("there is a device"), stand_in)
    })
}

/// How often each function of the driver is called in `body`. `None` on a card, whose driver does not count.
pub fn calls(body: impl FnOnce()) -> Option<BTreeMap<&'static str, u64>> {
    let stand_in = device().1;
    if let Some(stand_in) = stand_in {
        stand_in.reset_calls();
    }
    body();
    stand_in.map(StandIn::calls)
}

/// The tensor in the memory of the device: the same view of the same storage.
///
/// # Panics
/// If the checker has found something in an earlier kernel.
pub fn place(x: &Tensor) -> Tensor {
    let (cuda, _) = device();
    assert_silent();
    let all = Layout::contiguous([x.storage().bytes() / x.dtype().size()]);
    let storage = Tensor::from_storage(x.storage().clone(), all, x.dtype());
    let storage = storage.to(&cuda.device()).expect("the device has memory for a test");
    Tensor::from_storage(storage.storage().clone(), x.layout().clone(), x.dtype())
}

/// # Panics
/// If the checker has found something, with all of it.
#[track_caller]
pub fn assert_silent() {
    let findings = device().1.map(|stand_in| stand_in.take_findings()).unwrap_or_default();
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "the checker found:\n{}", lines.join("\n"));
}
