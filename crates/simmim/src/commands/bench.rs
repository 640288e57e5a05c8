//! `simmim bench`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, the profile to standard error"
)]

use crate::arguments::{BenchLoader, BenchStep};
use crate::commands::parse_size;
use crate::diagnostics::Failure;
use simmim_data::{Loader, LoaderConfig, Position, Source, Transform, demo, source};
use simmim_engine::cpu::{CpuExecutor, Isa};
use simmim_engine::{Executor, Program};
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{StepIndices, Variant};
use simmim_models::{SimMimConfig, VitConfig};
use simmim_random::{Purpose, Stream};
use simmim_train::{choose_accumulation, training_graph};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Memory of the arena where the number of parts is left open.
const ARENA_BYTES: usize = 256 << 20;

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn step(a: &BenchStep) -> Result<ExitCode, Failure> {
    let mut encoder = VitConfig::preset(&a.model)?;
    if let Some(size) = &a.image_size {
        encoder.image_size = parse_size(size)?;
    }
    let config = SimMimConfig::tutorial(encoder, a.mask_ratio);
    config.validate()?;
    if a.batch == 0 || a.steps == 0 || (a.accumulation > 0 && !a.batch.is_multiple_of(a.accumulation)) {
        return Err(Failure::input(
            "batch and steps are positive, and accumulation divides the batch",
            "see simmim bench step --help",
        ));
    }
    let isa = match &a.isa {
        None => Isa::detect(),
        Some(name) => Isa::named(name).ok_or_else(|| {
            let here: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            Failure::input(format!("this processor has no `{name}`"), format!("it has {}", here.join(", ")))
        })?,
    };
    let parts = if a.accumulation == 0 { choose_accumulation(&config, a.batch, ARENA_BYTES)? } else { a.accumulation };
    let micro = a.batch / parts;
    let graph = training_graph(&config, micro, parts)?;
    let program = Program::compile(&graph)?;
    let mut executor = CpuExecutor::with_isa(a.threads, isa)?;
    let id = executor.load(program)?;
    let specs = config.parameters();
    let update = executor.load(Program::compile(&update_graph(&specs, &AdamWConfig::default())?)?)?;
    for p in specs.iter().filter(|p| p.used) {
        executor.write_state(&p.name, &p.initial(0))?;
    }
    let mut stream = Stream::new(0, Purpose::Test, 0, 0);
    let values = config.encoder.channels * config.encoder.image_size.0 * config.encoder.image_size.1;
    let images: Vec<f32> = (0..micro * values).map(|_| stream.normal() as f32).collect();
    let draw = |_| {
        let mut mask: Vec<bool> = (0..config.encoder.patches()).map(|i| i < config.masked_tokens()).collect();
        stream.shuffle(&mut mask);
        mask
    };
    let masks: Vec<Vec<bool>> = (0..micro).map(draw).collect();
    let mut indices = StepIndices::default();
    let mut times = Vec::new();
    for at in 0..a.steps + 2 {
        if at == 2 {
            executor.set_profile(a.profile);
        }
        let start = Instant::now();
        for _ in 0..parts {
            executor.write(id, "images", &images)?;
            indices.fill(&config, Variant::Fast, &masks)?;
            indices.write(&mut executor, id, &config, Variant::Fast)?;
            executor.run(id)?;
        }
        executor.write(update, "step", &AdamWConfig::default().step_input(1e-4, at as u64 + 1))?;
        executor.run(update)?;
        if at >= 2 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let seconds = median(&mut times);
    let memory = executor.memory();
    let flops = graph.flops() * parts as u64;
    if a.profile {
        profile(&executor, &[id, update], a.steps);
    }
    if a.json {
        println!(
            "{}",
            serde_json::json!({
                "model": a.model, "batch": a.batch, "accumulation": parts, "threads": executor.threads(), "isa": isa.name(),
                "images_per_second": a.batch as f64 / seconds, "milliseconds": seconds * 1e3, "arena_bytes": memory.arena,
                "state_bytes": memory.states, "flops_per_step": flops,
            })
        );
    } else {
        println!(
            "{:.1} images/s, {:.1} ms a step of {} images ({parts} parts)",
            a.batch as f64 / seconds,
            seconds * 1e3,
            a.batch
        );
        println!("{:.1} GFLOP/s on {} threads, {}", flops as f64 / seconds / 1e9, executor.threads(), isa.name());
    }
    Ok(ExitCode::SUCCESS)
}

/// Time, GFLOP/s and GB/s of each operation, over all its places in the step.
fn profile(executor: &CpuExecutor, programs: &[simmim_engine::ProgramId], steps: usize) {
    let mut by_op: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
    for t in programs.iter().flat_map(|&p| executor.timings(p)) {
        let entry = by_op.entry(t.op).or_default();
        *entry = (entry.0 + t.seconds, entry.1 + t.flops, entry.2 + t.bytes);
    }
    let total: f64 = by_op.values().map(|v| v.0).sum();
    let mut rows: Vec<_> = by_op.into_iter().collect();
    rows.sort_by(|x, y| y.1.0.total_cmp(&x.1.0));
    eprintln!("{:28} {:>10} {:>7} {:>9} {:>8}", "operation", "ms / step", "share", "GFLOP/s", "GB/s");
    for (op, (seconds, flops, bytes)) in rows {
        let each = (seconds / steps as f64).max(1e-12);
        let (gflops, gbytes) = (flops as f64 / each / 1e9, bytes as f64 / each / 1e9);
        eprintln!("{op:28} {:>10.3} {:>6.1}% {gflops:>9.1} {gbytes:>8.1}", each * 1e3, 100.0 * seconds / total);
    }
}

pub(crate) fn loader(a: &BenchLoader) -> Result<ExitCode, Failure> {
    let images: Arc<dyn Source> = match &a.data {
        Some(path) => source::open(path)?.into(),
        None => Arc::new(demo()?),
    };
    let threads = if a.threads == 0 { std::thread::available_parallelism()?.get() } else { a.threads };
    let mut config = LoaderConfig::new(32, 0, Transform::new(parse_size(&a.image_size)?, a.channels));
    (config.workers, config.prefetch) = (threads, 2 * threads);
    let batch = config.batch;
    let mut loader = Loader::new(images, config, Position::default())?;
    let first = loader.next_batch()?;
    loader.recycle(first);
    let batches = a.images.div_ceil(batch).max(1);
    let start = Instant::now();
    for _ in 0..batches {
        let next = loader.next_batch()?;
        loader.recycle(next);
    }
    let speed = (batches * batch) as f64 / start.elapsed().as_secs_f64();
    if a.json {
        println!(
            "{}",
            serde_json::json!({ "images_per_second": speed, "threads": threads, "images": batches * batch })
        );
    } else {
        println!("{speed:.1} images/s on {threads} threads");
    }
    Ok(ExitCode::SUCCESS)
}
