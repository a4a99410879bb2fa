//! Steps of training, blocks of every variant, and one connection, with one thread.
//!
//! `step` is a step of the two-moons experiment (20 layers, width 64, 128 points), `block` the forward and backward pass of a
//! network of one block, `connection` that of mHC around nothing (n = 4, C = 256, 4096 tokens).

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use limpid_bench::networks::{Block, Connected, Training};
use limpid_nn::residual::Variant;
use limpid_tensor::set_threads;

fn networks(c: &mut Criterion) {
    set_threads(1).expect("nothing has been computed yet");
    let mut group = c.benchmark_group("step");
    for variant in Variant::ALL {
        group.bench_function(variant.name(), |b| {
            let mut training = Training::new(variant, 20, 64, 128).expect("every variant has this size");
            b.iter(|| training.step().expect("everything is finite"));
        });
    }
    for (width, batch) in [(256, 512), (1024, 512)] {
        group.bench_function(format!("residual, width {width}, batch {batch}"), |b| {
            let mut training =
                Training::new(Variant::Residual, 20, width, batch).expect("every variant has this size");
            b.iter(|| training.step().expect("everything is finite"));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("block");
    for variant in Variant::ALL {
        group.bench_function(variant.name(), |b| {
            let mut block = Block::new(variant).expect("every variant has this size");
            b.iter(|| block.differentiate().expect("everything is finite"));
        });
    }
    group.finish();
    c.benchmark_group("connection").bench_function("mhc", |b| {
        let mut connected = Connected::new(4096, 256);
        b.iter(|| connected.differentiate().expect("everything is finite"));
    });
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10);
    targets = networks
}
criterion_main!(all);
