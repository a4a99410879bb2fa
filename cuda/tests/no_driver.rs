//! Without a driver everything that asks for a device is told so, and the rest of the process goes on. Alone in its process.

use limpid_cuda::{Cuda, emulated};
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

    // Where no driver was found there is still room for an emulator.
    if cfg!(has_gxx) && found.unwrap_err().to_string().contains("no CUDA driver was found") {
        emulated::install(Default::default()).unwrap();
        let x = x.to(&Cuda::new(0).unwrap().device()).unwrap();
        assert_eq!(Tensor::map(Map::Neg, &[&x]).unwrap().to_vec::<f32>().unwrap(), [-1.0; 3]);
    }
}
