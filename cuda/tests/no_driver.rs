//! Without a driver everything that asks for a device is told so, and the rest of the process goes on.

use limpid_cuda::Cuda;
use limpid_tensor::{DType, Map, Tensor};

#[test]
fn asking_for_a_device_says_what_is_missing() {
    let found = Cuda::count();
    if found.is_ok() {
        println!("there is a driver here");
        return;
    }
    for _ in 0..2 {
        let error = Cuda::new(0).unwrap_err().to_string();
        let reasons = ["cuda: no CUDA driver was found", "cuda: the CUDA driver"];
        assert!(reasons.iter().any(|reason| error.starts_with(reason)), "{error}");
    }
    let x = Tensor::ones([3], DType::F32);
    assert_eq!(Tensor::map(Map::Neg, &[&x]).unwrap().to_vec::<f32>().unwrap(), [-1.0; 3]);
}
