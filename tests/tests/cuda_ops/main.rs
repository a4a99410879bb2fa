//! Every primitive of the CUDA backend against the oracle: the kernels run on this processor, and every access is checked.

#[cfg(has_gxx)]
#[path = "../tensor_ops/suite.rs"]
mod suite;

#[cfg(has_gxx)]
fn place(x: &limpid_tensor::Tensor) -> limpid_tensor::Tensor {
    limpid_tests::emulated::place(x)
}

/// A kernel takes a thousand times as long as the CPU's own.
#[cfg(has_gxx)]
fn cases(all: u32) -> u32 {
    all / 8
}

#[cfg(not(has_gxx))]
#[test]
#[ignore = "g++ is not installed, which compiles kernels for this processor"]
fn every_primitive() {
    panic!("g++ is not installed");
}
