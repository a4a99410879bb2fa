//! Every kernel of the processor's backend, and steps of the optimisers, with one thread.
//!
//! `cargo bench -p limpid-bench --bench kernels -- matmul` times one group.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use limpid_autograd::Tape;
use limpid_bench::cases;
use limpid_nn::optim::{Adam, Optimizer, Sgd};
use limpid_nn::residual::Identity;
use limpid_nn::{Init, Mlp, MlpConfig, Module, clip_norm, gradient_norms};
use limpid_tensor::{DType, HostMemory, Tensor, set_threads};

fn kernels(c: &mut Criterion) {
    set_threads(1).expect("nothing has been computed yet");
    for case in cases::all() {
        // A benchmark that is filtered out never asks for its operands.
        let mut prepared = None;
        c.benchmark_group(case.group).bench_function(&case.name, |b| {
            let prepared =
                prepared.get_or_insert_with(|| case.prepare().expect("the processor can compute it"));
            b.iter(|| prepared.run());
        });
        HostMemory::release_pool();
    }
}

/// Updates of the two-moons network's 40 weights, and of one large one, by gradients that stay the same.
fn optimizers(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimizer");
    for width in [64, 1024] {
        let config = MlpConfig { width, ..MlpConfig::default() };
        let mut model = Mlp::new(&Init::new(0), config, |_| Box::new(Identity));
        let tape = Tape::new();
        let y = model.forward(tape.constant(&Tensor::ones([2, 2], DType::F32)));
        let mut gradients = tape.backward((y * y).sum(&[])).expect("everything is finite");
        // The weights are changed in their own memory only where the tape does not refer to them.
        drop(tape);
        let optimizers: [(&str, Box<dyn Optimizer>); 3] = [
            ("sgd", Box::new(Sgd::new())),
            ("momentum", Box::new(Sgd::new().with_momentum(0.9))),
            ("adamw", Box::new(Adam::adamw())),
        ];
        for (name, mut optimizer) in optimizers {
            group.bench_function(format!("{name}, width {width}"), |b| {
                b.iter(|| optimizer.step(&mut model, &gradients, 1e-6).expect("the gradients are finite"));
            });
        }
        group.bench_function(format!("norms, width {width}"), |b| {
            b.iter(|| gradient_norms(&model, &gradients).expect("the gradients are finite"));
        });
        group.bench_function(format!("clipping, width {width}"), |b| {
            b.iter(|| clip_norm(&model, &mut gradients, 1e-3).expect("the gradients are finite"));
        });
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(10);
    targets = kernels, optimizers
}
criterion_main!(all);
