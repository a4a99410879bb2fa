//! What recording and differentiating cost by themselves. The element is a node: `thrpt` is nodes a second.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use limpid_bench::tape::{Chain, NODES};

fn chain(c: &mut Criterion) {
    let mut group = c.benchmark_group("tape");
    group.throughput(Throughput::Elements(NODES as u64));
    let mut chain = Chain::new();
    group.bench_function("record h = h + x", |b| b.iter(|| chain.record().expect("sums are finite")));
    group.bench_function("record and differentiate h = h + x", |b| {
        b.iter(|| chain.differentiate().expect("sums are finite"));
    });
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = chain
}
criterion_main!(all);
