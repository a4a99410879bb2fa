//! Two devices in one process: each has its own memory, modules and stream.

use std::panic::{AssertUnwindSafe, catch_unwind};

use limpid_cuda::{Cuda, emulated};
use limpid_tensor::{DType, Device, Map, Tensor};

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tensors_live_on_the_device_they_were_put_on() {
    // `LIMPID_TEST_DEVICE=cuda`: on cards, if there are two.
    let is_card = std::env::var_os("LIMPID_TEST_DEVICE").is_some_and(|device| device == "cuda");
    let stand_in = (!is_card).then(|| {
        let config = emulated::Config { devices: 2, check: true, ..Default::default() };
        emulated::install(config).unwrap()
    });
    let count = Cuda::count().unwrap();
    if is_card && count < 2 {
        println!("there is one card, and this test needs two");
        return;
    }
    let [first, second] = [0, 1].map(|ordinal| Cuda::new(ordinal).unwrap());
    assert_eq!([first.device().to_string(), second.device().to_string()], ["cuda:0", "cuda:1"]);
    assert_ne!(first.device(), second.device());

    let x = Tensor::arange(0.0, 1000.0, 1.0, DType::F32);
    let on = |cuda: &'static Cuda| x.to(&cuda.device()).unwrap();
    let (a, b) = (on(first), on(second));
    // Work of both is queued before either is read.
    let (a, b) = (Tensor::map(Map::Add, &[&a, &a]).unwrap(), Tensor::map(Map::Mul, &[&b, &b]).unwrap());
    let moved = a.to(&second.device()).unwrap();
    assert_eq!(moved.device(), &second.device());
    let sum = Tensor::map(Map::Add, &[&moved, &b]).unwrap().to(&Device::cpu()).unwrap();
    let expected: Vec<f32> = (0..1000).map(|i| (2 * i + i * i) as f32).collect();
    assert_eq!(sum.to_vec::<f32>().unwrap(), expected);
    assert!(first.memory_report().pool.used > 0 && second.memory_report().pool.used > 0);

    let mixed = catch_unwind(AssertUnwindSafe(|| drop(Tensor::map(Map::Add, &[&a, &b]))));
    let message = mixed.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(*message, "add: operands are on different devices, cuda:0 and cuda:1");

    let missing = Cuda::new(count).unwrap_err().to_string();
    assert_eq!(missing, format!("cuda:{count}: there is no such device; the driver has {count}"));
    if let Some(stand_in) = stand_in {
        assert_eq!((count, stand_in.take_findings()), (2, Vec::new()));
    }
}
