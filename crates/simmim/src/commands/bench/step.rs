//! `simmim bench step`: what a training step costs, without data loading.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, the profile to standard error"
)]

use super::{WARM_UP, encoder, median, peak_memory};
use crate::arguments::BenchStep;
use crate::device;
use crate::diagnostics::Failure;
use crate::meter::plural;
use simmim_engine::autodiff::differentiate;
use simmim_engine::executor::Peaks;
use simmim_engine::mixed::{copies, keep_copies};
use simmim_engine::{Executor, InputSlot, Program, ProgramId};
use simmim_models::SimMimConfig;
use simmim_models::names::{IMAGES, STEP};
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{Build, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_random::{Purpose, Stream};
use simmim_train::{Budget, Recompute, choose_accumulation, fit, training_graph};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Time given to each of the two measurements of the peak.
const PEAK_SECONDS: f64 = 0.3;

/// The programs of a step, and one part's input: standard normal images, each with a mask of its own.
struct Bench {
    config: SimMimConfig,
    executor: Box<dyn Executor>,
    part: ProgramId,
    part_images: InputSlot,
    part_indices: StepSlots,
    update: ProgramId,
    update_step: InputSlot,
    parts: usize,
    /// What the step needs, and what the model needs where nothing is left out.
    flops: u64,
    model_flops: u64,
    images: Vec<f32>,
    masks: Vec<Vec<bool>>,
    indices: StepIndices,
}

impl Bench {
    fn new(config: SimMimConfig, a: &BenchStep) -> Result<Self, Failure> {
        let budget = Budget {
            precision: a.what.device.precision(),
            recompute: if a.recompute { Recompute::Block } else { Recompute::Auto },
            memory: a.memory.memory.unwrap_or(0),
        };
        let parts =
            if a.accumulation == 0 { choose_accumulation(&config, a.what.batch, budget)? } else { a.accumulation };
        let micro = a.what.batch / parts;
        let graph = training_graph(&config, micro, parts)?;
        let flops = graph.flops() * parts as u64;
        let build = Build { batch: micro, variant: Variant::Plain, accumulation: parts, train: true, outputs: false };
        let (mut plain, loss) = simmim_graph(&config, build)?;
        differentiate(&mut plain, loss)?;
        let model_flops = plain.flops() * parts as u64;
        let mut executor = device::open_with(&a.what.device, a.what.isa.as_deref())?;
        let specs = config.parameters();
        let update = update_graph(&specs, &AdamWConfig::default())?;
        let (graph, _) = fit(&graph, std::slice::from_ref(&update), budget)?;
        let part = executor.load(Program::compile(&graph)?)?;
        let update = keep_copies(&update, &copies(&graph))?;
        let update = executor.load(Program::compile(&update)?)?;
        for p in specs.iter().filter(|p| p.used) {
            executor.write_state(&p.name, &p.initial(0))?;
        }
        let mut stream = Stream::new(0, Purpose::Test, 0, 0);
        let images = (0..micro * config.encoder.geometry().image_values()).map(|_| stream.normal() as f32).collect();
        let mut draw = |_| {
            let ((rows, cols), (down, right)) = (config.mask_grid(), config.tokens_per_cell());
            let mut cells: Vec<bool> = (0..rows * cols).map(|i| i < config.masked_cells()).collect();
            stream.shuffle(&mut cells);
            simmim_data::mask::expand(&cells, rows, cols, down, right)
        };
        let masks = (0..micro).map(&mut draw).collect();
        Ok(Self {
            part_images: executor.input(part, IMAGES)?,
            part_indices: StepSlots::find(&*executor, part)?,
            update_step: executor.input(update, STEP)?,
            indices: StepIndices::default(),
            config,
            executor,
            part,
            update,
            parts,
            flops,
            model_flops,
            images,
            masks,
        })
    }

    fn step(&mut self, step: u64) -> Result<(), Failure> {
        for _ in 0..self.parts {
            self.executor.write(self.part_images, &self.images)?;
            self.indices.fill(&self.config, Variant::Fast, &self.masks)?;
            self.indices.write(&mut *self.executor, &self.part_indices)?;
            self.executor.run(self.part)?;
        }
        self.executor.write(self.update_step, &AdamWConfig::default().step_input(1e-4, step))?;
        self.executor.run(self.update)?;
        Ok(self.executor.wait()?)
    }

    /// Median of the measured steps in seconds.
    fn measure(&mut self, steps: usize, profile: bool) -> Result<f64, Failure> {
        let mut times = Vec::new();
        for at in 0..steps + WARM_UP {
            if at == WARM_UP {
                self.executor.set_profile(profile);
            }
            let start = Instant::now();
            self.step(at as u64 + 1)?;
            if at >= WARM_UP {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(median(times))
    }

    /// Time, GFLOP/s and GB/s of each operation and shape of its first result, over all its places in the step.
    fn profile(&mut self, steps: usize) -> Result<(), Failure> {
        let mut by_op: BTreeMap<(&str, Vec<usize>), (f64, u64, usize)> = BTreeMap::new();
        for (program, runs) in [(self.part, self.parts), (self.update, 1)] {
            for t in self.executor.timings(program)? {
                let entry = by_op.entry((t.op, t.shape)).or_default();
                let seconds = t.seconds / steps as f64;
                *entry = (entry.0 + seconds, entry.1 + t.flops * runs as u64, entry.2 + t.bytes * runs);
            }
        }
        let total: f64 = by_op.values().map(|v| v.0).sum();
        let mut rows: Vec<_> = by_op.into_iter().collect();
        rows.sort_by(|x, y| y.1.0.total_cmp(&x.1.0));
        eprintln!(
            "{:26} {:18} {:>9} {:>7} {:>9} {:>8}",
            "operation", "result", "ms / step", "share", "GFLOP/s", "GB/s"
        );
        for ((op, shape), (seconds, flops, bytes)) in rows {
            let shape = format!("{shape:?}");
            let each = seconds.max(1e-12);
            let (gflops, gbytes) = (flops as f64 / each / 1e9, bytes as f64 / each / 1e9);
            let (ms, share) = (each * 1e3, 100.0 * seconds / total);
            eprintln!("{op:26} {shape:18} {ms:>9.3} {share:>6.1}% {gflops:>9.1} {gbytes:>8.1}");
        }
        Ok(())
    }
}

fn config(a: &BenchStep) -> Result<SimMimConfig, Failure> {
    let encoder = encoder(&a.what)?;
    let g = encoder.geometry();
    let config = match g.stride == g.patch_size {
        true => SimMimConfig::tutorial(encoder, a.mask_ratio),
        false => SimMimConfig::official(encoder, g.stride, a.mask_ratio),
    };
    config.validate()?;
    if a.accumulation > 0 && !a.what.batch.is_multiple_of(a.accumulation) {
        return Err(Failure::input(
            format!(
                "--accumulation {}: a batch of {} images cannot be split into that many equal parts",
                a.accumulation, a.what.batch
            ),
            "use a divisor of --batch, or 0 to fit memory",
        ));
    }
    Ok(config)
}

pub(crate) fn run(a: &BenchStep) -> Result<ExitCode, Failure> {
    let mut bench = Bench::new(config(a)?, a)?;
    // Before and after, because a shared machine is not equally fast all the time.
    let before = bench.executor.peaks(PEAK_SECONDS);
    let seconds = bench.measure(a.what.steps, a.profile)?;
    let peaks = before.zip(bench.executor.peaks(PEAK_SECONDS)).map(|(before, after)| before.max(after));
    let (memory, machine) = (bench.executor.memory(), bench.executor.machine());
    let (speed, milliseconds) = (a.what.batch as f64 / seconds, seconds * 1e3);
    if a.profile {
        bench.profile(a.what.steps)?;
    }
    if a.what.json {
        let result = serde_json::json!({
            "model": a.what.model, "batch": a.what.batch, "accumulation": bench.parts, "device": machine.device, "threads": machine.threads, "isa": machine.isa,
            "precision": a.what.device.precision().name(), "images_per_second": speed, "milliseconds": milliseconds, "arena_bytes": memory.arena,
            "state_bytes": memory.states, "peak_rss_bytes": peak_memory(), "flops_per_step": bench.flops, "model_flops_per_step": bench.model_flops, "peak_flops": peaks.map(|p| p.vectors),
            "tile_peak_flops": peaks.and_then(|p| p.tiles), "bf16_peak_flops": peaks.and_then(|p| p.bf16),
        });
        println!("{result}");
    } else {
        let (batch, parts) = (a.what.batch, bench.parts);
        println!(
            "{speed:.1} images/s, {milliseconds:.1} ms per step of {batch} images ({parts} part{})",
            plural(parts)
        );
        let rate = |flops: u64| flops as f64 / seconds / 1e9;
        println!(
            "{:.1} GFLOP/s on {} thread{}, {}, {}; {:.1} as model FLOPs{}",
            rate(bench.flops),
            machine.threads,
            plural(machine.threads),
            machine.isa,
            a.what.device.precision(),
            rate(bench.model_flops),
            peaks.map(|peaks| format!(", {}", shares(1e9 * rate(bench.model_flops), peaks))).unwrap_or_default()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What is reached of each peak, in words.
fn shares(flops: f64, peaks: Peaks) -> String {
    let share = |peak: f64| format!("{:.0} % of the {:.1}", 1e2 * flops / peak, peak / 1e9);
    let vectors = format!("{} that vectors reach near the core", share(peaks.vectors));
    let more = [(peaks.tiles, "of tile registers"), (peaks.bf16, "in bfloat16")];
    more.into_iter().fold(vectors, |text, (peak, what)| match peak {
        Some(peak) => format!("{text}, {} {what}", share(peak)),
        None => text,
    })
}
