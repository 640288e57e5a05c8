//! Crop, flip and normalise of the embedded demonstration set through the loader, images for each second.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use simmim_data::{Loader, LoaderConfig, Position, Transform};
use std::sync::Arc;

fn loader(c: &mut Criterion) {
    let mut group = c.benchmark_group("loader");
    for size in [28, 224] {
        let source = Arc::new(simmim_data::demo().unwrap());
        let config = LoaderConfig::new(32, 0, Transform::new((size, size), 3));
        let mut loader = Loader::new(source, config, Position::default()).unwrap();
        group.throughput(Throughput::Elements(32));
        group.bench_function(format!("demo/{size}"), |b| {
            b.iter(|| {
                let batch = loader.next_batch().unwrap();
                loader.recycle(batch);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, loader);
criterion_main!(benches);
