//! Every operation of the backend, with every access checked: right, silent, and the same bits in several orders.

#[path = "../examples/kernels/demos.rs"]
mod demos;

use limpid_cuda::{Cuda, emulated};
use limpid_tensor::Device;

/// Orders of streams, blocks and threads. `LIMPID_CHECK_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("LIMPID_CHECK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2)
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn operations_agree_with_the_cpu_in_every_order_and_nothing_is_found() {
    let config = emulated::Config { check: true, ..Default::default() };
    let stand_in = emulated::install(config).unwrap();
    emulated::keep_apart(true);
    let device = Cuda::new(0).unwrap().device();
    for demo in demos::all() {
        let expected = demo.run(&Device::cpu()).unwrap();
        let mut first = None;
        for seed in 1..=seeds() {
            stand_in.set_seed(seed);
            let results = demo.run(&device).unwrap();
            let findings: Vec<String> = stand_in.take_findings().iter().map(ToString::to_string).collect();
            assert!(findings.is_empty(), "{}, seed {seed}:\n{}", demo.name, findings.join("\n"));
            let distance = demos::distance(&results, &expected);
            assert!(distance <= demo.roundings, "{} is {distance} roundings off", demo.name);
            let first = first.get_or_insert_with(|| results.clone());
            for (a, b) in first.iter().zip(&results) {
                assert_eq!(demos::bits(a), demos::bits(b), "{}: seed {seed} gives other bits", demo.name);
            }
        }
    }
    let left = stand_in.allocations();
    println!("held at the end: {}", left.join(", "));
}
