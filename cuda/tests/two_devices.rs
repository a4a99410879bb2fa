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

    // Views go as what they show, nothing waits on the way, and a block that was given back on the way is not written
    // before it has been read.
    let before = stand_in.map(|stand_in| stand_in.calls());
    let mut sums = Vec::new();
    for round in 0..8 {
        let shown = on(first).reshape([10, 100]).unwrap().transpose(0, 1).slice(0, round, 100, 7);
        let moved = Tensor::map(Map::Add, &[&shown, &shown]).unwrap().to(&second.device()).unwrap();
        sums.push(Tensor::map(Map::Neg, &[&moved]).unwrap());
    }
    for (round, sum) in sums.iter().enumerate() {
        let of = |i: usize, j: usize| -2.0 * (100 * j + round + 7 * i) as f32;
        let expected: Vec<f32> = (0..sum.shape()[0]).flat_map(|i| (0..10).map(move |j| of(i, j))).collect();
        assert_eq!(sum.to_vec::<f32>().unwrap(), expected, "round {round}");
    }
    if let (Some(before), Some(stand_in)) = (before, stand_in) {
        let more = |name: &str| {
            stand_in.calls().get(name).copied().unwrap_or(0) - before.get(name).copied().unwrap_or(0)
        };
        assert_eq!(more("cuMemcpyPeerAsync"), 8);
        assert_eq!(more("cuMemcpyDtoHAsync_v2"), 8, "only what is read goes to the host");
        assert_eq!(more("cuStreamSynchronize"), 0);
    }

    // Nothing reads on the first device what goes to the second; it is told on the way.
    let index = Tensor::from_vec(vec![0i64, 1000], [2]).to(&first.device()).unwrap();
    let wrong = on(first).gather(0, &index).and_then(|y| y.to(&second.device())).unwrap_err().to_string();
    assert_eq!(wrong, "cuda:0: gather along axis 0: the index at element 1 is outside 0..1000");
    let captured = first.capture(|| b.to(&first.device())).err().unwrap().to_string();
    assert_eq!(
        captured,
        "cuda:0: a tensor of cuda:1 is needed while a graph is captured, which belongs to one device"
    );
    assert_eq!(
        Tensor::zeros([0], DType::F32).to(&first.device()).unwrap().to(&second.device()).unwrap().elements(),
        0
    );

    let mixed = catch_unwind(AssertUnwindSafe(|| drop(Tensor::map(Map::Add, &[&a, &b]))));
    let message = mixed.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(*message, "add: operands are on different devices, cuda:0 and cuda:1");

    let missing = Cuda::new(count).unwrap_err().to_string();
    assert_eq!(missing, format!("cuda:{count}: there is no such device; the driver has {count}"));
    if let Some(stand_in) = stand_in {
        assert_eq!((count, stand_in.take_findings()), (2, Vec::new()));
    }
}
