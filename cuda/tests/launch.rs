//! What a driver is asked for when a kernel is launched.

mod emulated;

use emulated::{place, stand_in};
use limpid_tensor::{DType, Fused, Stop, Tensor};

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn how_much_shared_memory_a_kernel_may_have_is_said_once() {
    // Keeps more than the 48 KiB that a block has unasked.
    let x = place(&Tensor::zeros([1, 120, 120], DType::F32));
    let scale = || Tensor::fused(Fused::Sinkhorn(Stop::Steps(1)), &[&x]).unwrap().unwrap();
    scale();
    let asked = |name: &str| stand_in().calls().get(name).copied().unwrap_or(0);
    let loaded = asked("cuModuleGetFunction");
    assert_eq!(asked("cuFuncSetAttribute"), loaded, "once for each kernel, when it is loaded");
    let (launched, again) = (asked("cuLaunchKernel"), scale());
    assert!(asked("cuLaunchKernel") > launched);
    assert_eq!(asked("cuFuncSetAttribute"), loaded);
    assert!((again.to_f64_vec().unwrap()[0] - 1.0 / 120.0).abs() < 1e-6);
    assert_eq!(stand_in().take_findings(), []);
}
