//! The emulated device of a test, every access checked, beside the CPU that it must agree with. Where the variable
//! `LIMPID_TEST_DEVICE` is `cuda`, it is a card.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::OnceLock;

use limpid_cuda::Cuda;
use limpid_cuda::emulated::{self, Config, StandIn};
use limpid_tensor::{Device, Layout, Result, Tensor};

/// Whether tests run on a card. Nobody checks accesses there, counts calls or makes one fail.
pub fn is_card() -> bool {
    std::env::var_os("LIMPID_TEST_DEVICE").is_some_and(|device| device == "cuda")
}

/// The driver that stands in.
///
/// # Panics
/// On a card.
pub fn stand_in() -> &'static StandIn {
    static STAND_IN: OnceLock<&'static StandIn> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        assert!(!is_card(), "this test needs the emulator, and LIMPID_TEST_DEVICE is cuda");
        emulated::keep_apart(true);
        emulated::install(Config { check: true, ..Default::default() })
            .expect("g++ compiles kernels for this processor")
    })
}

pub fn device() -> Device {
    if !is_card() {
        stand_in();
    }
    Cuda::new(0).expect("there is a device").device()
}

/// What the checker has found since it was last asked.
pub fn findings() -> Vec<String> {
    if is_card() { Vec::new() } else { stand_in().take_findings().iter().map(ToString::to_string).collect() }
}

/// The tensor in the memory of the emulated device: the same view of the same storage.
pub fn place(x: &Tensor) -> Tensor {
    let all = Layout::contiguous([x.storage().bytes() / x.dtype().size()]);
    let storage = Tensor::from_storage(x.storage().clone(), all, x.dtype());
    let storage = storage.to(&device()).expect("the device has memory for a test");
    Tensor::from_storage(storage.storage().clone(), x.layout().clone(), x.dtype())
}

/// Asserts that a tensor of the emulated device has the bits of one of the CPU, and that the checker found nothing on the way.
#[track_caller]
pub fn assert_same_bits(found: Result<Tensor>, expected: Result<Tensor>, what: &str) {
    let found = found.and_then(|x| x.to(&Device::cpu()));
    let mistakes = findings();
    assert!(mistakes.is_empty(), "{what}: the checker found\n{}", mistakes.join("\n"));
    let (found, expected) = match (found, expected) {
        (Ok(found), Ok(expected)) => (found, expected.contiguous().expect("the CPU copies")),
        (found, expected) => panic!("{what}: {:?}, the CPU says {:?}", found.err(), expected.err()),
    };
    assert_eq!(found.meta(), expected.meta(), "{what}");
    let (found, expected) = (bytes(&found), bytes(&expected));
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: bytes differ, the first is that");
}

fn bytes(x: &Tensor) -> Vec<u8> {
    let size = x.dtype().size();
    let start = x.layout().offset() * size;
    x.storage().host().expect("it is on the CPU")[start..start + x.elements() * size].to_vec()
}
