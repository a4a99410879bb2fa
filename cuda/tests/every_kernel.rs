//! Every kernel, in operations whose every access is checked: right, silent, and the same bits in several orders.

#[path = "../examples/kernels/demos.rs"]
mod demos;
mod names;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use limpid_cuda::{Cuda, emulated};
use limpid_tensor::Device;

/// Orders of streams, blocks and threads. `LIMPID_CHECK_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("LIMPID_CHECK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2)
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
            let distance = demos::distance(&results, &expected);
            assert!(distance <= demo.roundings, "{} is {distance} roundings off", demo.name);
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
