//! The training step: forward, backward, clipping and AdamW on random images, the tutorial's task at mask ratio 0.5.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use simmim_engine::autodiff::differentiate;
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::{Executor, Program};
use simmim_models::names::{IMAGES, STEP};
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{Build, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_models::{SimMimConfig, VitConfig};
use simmim_random::{Purpose, Stream};

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for (name, batch) in [("vit_small_patch32_224", 32), ("vit_tiny_patch16_224", 16)] {
        for variant in [Variant::Fast, Variant::Plain] {
            let config = SimMimConfig::tutorial(VitConfig::preset(name).unwrap(), 0.5);
            let build = Build { batch, variant, accumulation: 1, train: true, outputs: false };
            let (mut graph, loss) = simmim_graph(&config, build).unwrap();
            differentiate(&mut graph, loss).unwrap();
            let mut executor = CpuExecutor::new(0).unwrap();
            let program = executor.load(Program::compile(&graph).unwrap()).unwrap();
            let parameters = config.parameters();
            let update = update_graph(&parameters, &AdamWConfig::default()).unwrap();
            let update = executor.load(Program::compile(&update).unwrap()).unwrap();
            for p in parameters.iter().filter(|p| p.used) {
                executor.write_state(&p.name, &p.initial(0)).unwrap();
            }
            let mut stream = Stream::new(0, Purpose::Test, 0, 0);
            let images: Vec<f32> = (0..batch * 3 * 224 * 224).map(|_| stream.normal() as f32).collect();
            let mask = |_| {
                let patches = config.encoder.geometry().patches();
                let mut mask: Vec<bool> = (0..patches).map(|i| i < config.masked_tokens()).collect();
                stream.shuffle(&mut mask);
                mask
            };
            let masks: Vec<Vec<bool>> = (0..batch).map(mask).collect();
            let mut indices = StepIndices::default();
            indices.fill(&config, variant, &masks).unwrap();
            let slots = StepSlots::find(&executor, program).unwrap();
            let (images_slot, step) = (executor.input(program, IMAGES).unwrap(), executor.input(update, STEP).unwrap());
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("{name}/{batch}/{variant:?}"), |b| {
                b.iter(|| {
                    executor.write(images_slot, &images).unwrap();
                    indices.write(&mut executor, &slots).unwrap();
                    executor.run(program).unwrap();
                    executor.write(step, &[1e-4, 0.1, 0.03]).unwrap();
                    executor.run(update).unwrap();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
