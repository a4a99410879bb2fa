//! A driver that cannot be used is one clear error, and the CPU goes on. Alone in its process, whose driver it is.

use limpid_cuda::Cuda;
use limpid_cuda::emulated::{Config, install};
use limpid_tensor::{DType, Map, Tensor};

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_driver_that_is_too_old_is_told_by_its_version() {
    let driver = install(Config { driver_version: 12_040, ..Config::default() }).unwrap();
    let error = || Cuda::new(0).unwrap_err().to_string();
    driver.fail_next("cuDriverGetVersion", 999);
    assert_eq!(error(), "cuda: the CUDA driver does not say its version: error 999");
    driver.fail_next("cuDriverGetVersion", 34);
    assert_eq!(
        error(),
        "cuda: the libcuda.so.1 that the system finds is a toolkit's stub, for linking only; its folder must not come \
         before the driver's where the system looks for libraries (LD_LIBRARY_PATH)"
    );
    for _ in 0..2 {
        assert_eq!(error(), "cuda: the CUDA driver is for CUDA 12.4, expected 13.0 or later");
    }
    assert!(!driver.calls().contains_key("cuInit"), "nothing was begun with it");
    let x = Tensor::ones([3], DType::F32);
    assert_eq!(Tensor::map(Map::Neg, &[&x]).unwrap().to_vec::<f32>().unwrap(), [-1.0; 3]);
}
