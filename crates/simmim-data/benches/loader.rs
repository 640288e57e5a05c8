//! Images for each second: crop, flip and normalise of the embedded demonstration set through the loader, and what a policy of
//! fine-tuning adds to one view.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use simmim_data::policy::Filter;
use simmim_data::{Loader, LoaderConfig, Mix, Policy, Position, RandAugment, Source, Transform};
use simmim_random::{Purpose, Stream};
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

/// One view of 224 x 224 with nothing, and with the parts of the official fine-tuning policy.
fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy/224");
    let image = simmim_data::demo().unwrap().load(0, 3.into()).unwrap();
    let none = Policy { rand_augment: None, color_jitter: 0.0, erase: 0.0, filter: Filter::Bicubic };
    let rand_augment = Some(RandAugment { layers: 2, magnitude: 9.0, std: 0.5 });
    let cases = [
        ("no_policy", None),
        ("rand_augment", Some(Policy { rand_augment, ..none.clone() })),
        ("color_jitter", Some(Policy { color_jitter: 0.4, ..none.clone() })),
        ("erase", Some(Policy { erase: 1.0, ..none })),
    ];
    group.throughput(Throughput::Elements(1));
    for (name, policy) in cases {
        let transform = Transform { policy, ..Transform::new((224, 224), 3) };
        let (mut view, mut sample) = (vec![0.0; transform.values()], 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                sample += 1;
                let mut stream = Stream::new(0, Purpose::Augment, 0, sample);
                transform.apply_random(&image, &mut stream, &mut view).unwrap();
            });
        });
    }
    group.finish();
}

/// Mixing a batch of 32 images of 224 x 224.
fn mix(c: &mut Criterion) {
    let mut group = c.benchmark_group("mix/224");
    group.throughput(Throughput::Elements(32));
    for (name, mixup, cutmix) in [("mixup", 0.8, 0.0), ("cutmix", 0.0, 1.0)] {
        let mix = Mix { mixup, cutmix, ..Mix::NONE };
        let values = 3 * 224 * 224;
        let mut images: Vec<f32> = (0..32 * values).map(|i| (i % 251) as f32).collect();
        let mut batch = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                batch += 1;
                mix.draw(0, 0, batch, (224, 224)).apply(&mut images, values, (224, 224));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, loader, policy, mix);
criterion_main!(benches);
