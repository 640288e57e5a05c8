//! `simmim bench embed`: what the features of images cost, without data loading.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use super::{WARM_UP, encoder, median, peak_memory};
use crate::arguments::BenchEmbed;
use crate::device;
use crate::diagnostics::Failure;
use simmim_engine::Program;
use simmim_models::SimMimConfig;
use simmim_models::encoder::{EncoderOutputs, encoder_graph};
use simmim_models::names::{IMAGES, NORMED_TOKENS};
use simmim_random::{Purpose, Stream};
use std::process::ExitCode;
use std::time::Instant;

pub(crate) fn run(BenchEmbed { what: a }: &BenchEmbed) -> Result<ExitCode, Failure> {
    let encoder = encoder(a)?;
    let precision = a.device.precision();
    let graph = encoder_graph(&encoder, a.batch, &EncoderOutputs::Norm)?;
    let mut executor = device::open_with(&a.device, a.isa.as_deref())?;
    let program = executor.load(Program::compile(&*precision.lower(&graph)?)?)?;
    let parameters = SimMimConfig::tutorial(encoder.clone(), 0.5).parameters();
    for p in parameters.iter().filter(|p| graph.find_state(&p.name).is_some()) {
        executor.write_state(&p.name, &p.initial(0))?;
    }
    let mut stream = Stream::new(0, Purpose::Test, 0, 0);
    let images: Vec<f32> = (0..a.batch * encoder.geometry().image_values()).map(|_| stream.normal() as f32).collect();
    let (input, output) = (executor.input(program, IMAGES)?, executor.output(program, NORMED_TOKENS)?);
    let mut tokens = vec![0.0; graph.outputs().iter().map(|(_, value)| graph.ty(*value).len()).sum()];
    let mut times = Vec::new();
    for at in 0..a.steps + WARM_UP {
        let start = Instant::now();
        executor.write(input, &images)?;
        executor.run(program)?;
        executor.read(output, &mut tokens)?;
        if at >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let seconds = median(times);
    let (machine, memory) = (executor.machine(), executor.memory());
    let speed = a.batch as f64 / seconds;
    if a.json {
        let result = serde_json::json!({
            "model": a.model, "batch": a.batch, "device": machine.device, "threads": machine.threads, "isa": machine.isa,
            "precision": precision.name(), "images_per_second": speed, "milliseconds": 1e3 * seconds,
            "arena_bytes": memory.arena, "state_bytes": memory.states, "peak_rss_bytes": peak_memory(),
            "flops": graph.flops(),
        });
        println!("{result}");
    } else {
        println!(
            "{speed:.1} images/s, {:.1} ms per pass of {} images; {:.1} GFLOP/s ({}, {precision})",
            1e3 * seconds,
            a.batch,
            graph.flops() as f64 / seconds / 1e9,
            machine.isa
        );
    }
    Ok(ExitCode::SUCCESS)
}
