//! Every kernel, in operations whose every access is checked: right, silent, and the same bits in several orders.

#[path = "../examples/kernels/demos.rs"]
mod demos;
mod names;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use limpid_cuda::{Cuda, emulated};
use limpid_tensor::{DType, Device, Tensor};

/// Orders of streams, blocks and threads. `LIMPID_CHECK_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("LIMPID_CHECK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2)
}

/// What every demo is judged by sees a last digit, and a few of the last.
#[test]
fn results_that_are_a_little_off_are_not_allowed() {
    let demos = demos::all();
    for (name, digits) in [("exp bf16 [13, 17]", 7), ("exp f32 [13, 17]", 23), ("exp f64 [13, 17]", 52)] {
        let demo = demos.iter().find(|demo| demo.name == name).expect("it is one of them");
        let expected = demo.run(&Device::cpu()).unwrap();
        // Every element up to `below`, in whole units of its last digit.
        let off = |units: f64, below: usize| -> Vec<Tensor> {
            let of = |y: &Tensor| {
                let of_element = |(i, v): (usize, f64)| {
                    let unit = 2f64.powi(v.log2().floor() as i32 - digits);
                    if i < below { v + units * unit } else { v }
                };
                let values: Vec<f64> =
                    y.to_f64_vec().unwrap().into_iter().enumerate().map(of_element).collect();
                Tensor::from_f64(&values, y.shape(), y.dtype())
            };
            expected.iter().map(of).collect()
        };
        let is_allowed = |units, below| demo.distance(&off(units, below), &expected).is_allowed();
        assert_eq!(demo.distance(&expected, &expected).roundings, 0.0);
        assert!(is_allowed(1.0, 1), "{name}: the last digit of one element");
        assert!(!is_allowed(17.0, 1), "{name}: its last digits");
        if expected[0].dtype() == DType::BF16 {
            assert!(!is_allowed(3.0, 1), "{name}: three of a digit that is known");
            assert!(!is_allowed(1.0, 110), "{name}: every second is rounded otherwise");
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn every_kernel_agrees_with_the_cpu_in_every_order_and_nothing_is_found() {
    let config = emulated::Config { check: true, ..Default::default() };
    let stand_in = emulated::install(config).unwrap();
    emulated::keep_apart(true);
    let launched: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let log = launched.clone();
    stand_in.observe(move |launch| {
        log.lock().expect("nobody panics with it").insert(launch.kernel.to_string());
    });
    let cuda = Cuda::new(0).unwrap();
    let device = cuda.device();
    for demo in demos::all() {
        assert!(demo.runs_on(cuda), "{}", demo.name);
        let expected = demo.run(&Device::cpu()).unwrap();
        let mut first = None;
        for seed in 1..=seeds() {
            stand_in.set_seed(seed);
            let results = demo.run(&device).unwrap();
            let findings: Vec<String> = stand_in.take_findings().iter().map(ToString::to_string).collect();
            assert!(findings.is_empty(), "{}, seed {seed}:\n{}", demo.name, findings.join("\n"));
            let distance = demo.distance(&results, &expected);
            assert!(distance.is_allowed(), "{}: {distance:?}", demo.name);
            let first = first.get_or_insert_with(|| results.clone());
            for (a, b) in first.iter().zip(&results) {
                assert_eq!(demos::bits(a), demos::bits(b), "{}: seed {seed} gives other bits", demo.name);
            }
        }
    }
    stand_in.stop_observing();
    let launched = std::mem::take(&mut *launched.lock().expect("nobody panics with it"));
    let every = names::every_kernel();
    let missed: Vec<&String> = every.keys().filter(|kernel| !launched.contains(*kernel)).collect();
    assert!(
        missed.is_empty(),
        "{} of {} kernels are launched by no operation: {missed:?}",
        missed.len(),
        every.len()
    );
    let left = stand_in.allocations();
    println!("held at the end: {}", left.join(", "));
}
