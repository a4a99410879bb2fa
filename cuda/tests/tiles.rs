//! What a transposed copy costs: no request of a warp takes more sectors or passes over the banks than its bytes need.

mod emulated;

use std::sync::{Arc, Mutex};

use emulated::{assert_same_bits, place, stand_in};
use limpid_emulator::Traffic;
use limpid_tensor::{DType, Tensor};

/// The traffic of the tiles of copying a view.
fn traffic(view: &Tensor) -> (String, Vec<Traffic>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    stand_in().count_traffic(true);
    stand_in().observe(move |launched| {
        let mut log = log.lock().expect("nobody panics with it");
        log.push((launched.kernel.to_string(), launched.report.traffic.clone()));
    });
    assert_same_bits(place(view).contiguous(), view.contiguous(), "a transposed copy");
    stand_in().stop_observing();
    let mut seen = seen.lock().expect("nobody panics with it");
    assert_eq!(seen.len(), 1, "one launch is all it takes: {seen:?}");
    seen.remove(0)
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn tiles_meet_in_no_bank_and_fill_their_sectors() {
    let numbers = |shape: &[usize], dtype| {
        let count = shape.iter().product();
        Tensor::from_f64(&(0..count).map(|i| f64::from(i as u16 % 251)).collect::<Vec<_>>(), shape, dtype)
    };
    for (bytes, view) in [
        (1, numbers(&[64, 128], DType::Bool).transpose(0, 1)),
        (2, numbers(&[64, 128], DType::BF16).transpose(0, 1)),
        (4, numbers(&[64, 128], DType::F32).transpose(0, 1)),
        (8, numbers(&[64, 128], DType::I64).transpose(0, 1)),
        (16, numbers(&[64, 64, 2], DType::F64).permute(&[1, 0, 2])),
    ] {
        let (kernel, lines) = traffic(&view);
        assert_eq!(kernel, format!("tiles_{bytes}"));
        assert_eq!(lines.len(), 4, "load, store to the tile, load from it, store: {lines:?}");
        for line in lines {
            assert!(line.per_request() <= line.ideal(), "{kernel}: {line}");
        }
    }
}
