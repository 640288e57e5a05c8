//! How fast products, attention and a whole step are.

use super::{Report, Subject, Verdict};
use crate::diagnostics::Failure;
use simmim_engine::ops::{Attention, Linear, Packing};
use simmim_engine::{EngineError, Executor, Graph, Program};
use simmim_models::optimizer::AdamWConfig;
use simmim_models::{Precision, SimMimConfig, VitConfig};
use simmim_random::{Purpose, Stream};
use simmim_train::Session;
use std::time::Instant;

/// Seconds that a measurement takes at least.
const SECONDS: f64 = 0.5;

/// Floating point operations a second of a graph whose operands are states.
fn rate(executor: &mut dyn Executor, graph: &Graph) -> Result<f64, EngineError> {
    let id = executor.load(Program::compile(graph)?)?;
    // The first runs prepare libraries and capture the program.
    for _ in 0..3 {
        executor.run(id)?;
    }
    executor.wait()?;
    let (start, mut runs) = (Instant::now(), 0u32);
    while start.elapsed().as_secs_f64() < SECONDS {
        executor.run(id)?;
        runs += 1;
        // A device takes runs faster than it does them.
        if runs.is_multiple_of(8) {
            executor.wait()?;
        }
    }
    executor.wait()?;
    Ok(f64::from(runs) * graph.flops() as f64 / start.elapsed().as_secs_f64())
}

fn product(rows: usize, outputs: usize, inputs: usize) -> Result<Graph, EngineError> {
    let mut graph = Graph::new();
    let operands = [
        graph.state(&format!("x.{rows}x{inputs}"), &[rows, inputs]),
        graph.state(&format!("w.{outputs}x{inputs}"), &[outputs, inputs]),
    ];
    let y = graph.apply1(Linear::default(), &operands)?;
    graph.output("y", y);
    Ok(graph)
}

fn attention(batch: usize, tokens: usize, heads: usize) -> Result<Graph, EngineError> {
    let mut graph = Graph::new();
    let qkv = graph.state(&format!("qkv.{batch}x{tokens}"), &[batch, tokens, 3 * 64 * heads]);
    let y = graph.apply1(Attention { heads, packing: Packing::Packed, bias: false }, &[qkv])?;
    graph.output("y", y);
    Ok(graph)
}

/// Images a second of training steps on random images, after warming up.
fn images_a_second(
    executor: Box<dyn Executor>,
    model: &str,
    batch: usize,
    precision: Precision,
) -> Result<f64, Failure> {
    let encoder = VitConfig::preset(model)?;
    let config = SimMimConfig::tutorial(encoder, 0.5);
    let mut stream = Stream::new(0, Purpose::Test, 0, 0);
    let images: Vec<f32> =
        (0..batch * config.encoder.geometry().image_values()).map(|_| stream.normal() as f32).collect();
    let masks: Vec<Vec<bool>> = (0..batch).map(|_| super::training::mask(&config, &mut stream)).collect();
    let mut session = Session::new(executor, config, 0)?.in_precision(precision);
    session.prepare_training(batch, 1, AdamWConfig::default())?;
    let mut at = 0;
    let mut step = || {
        at += 1;
        session.train_step(&images, &masks, 0, at, 1e-4).map(drop)
    };
    for _ in 0..3 {
        step()?;
    }
    let (start, mut steps) = (Instant::now(), 0);
    while steps < 3 || start.elapsed().as_secs_f64() < 2.0 * SECONDS {
        step()?;
        steps += 1;
    }
    Ok((steps * batch) as f64 / start.elapsed().as_secs_f64())
}

pub(super) fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), Failure> {
    for precision in [Precision::Float32, Precision::Bfloat16] {
        measure_in(precision, subject, report)?;
    }
    Ok(())
}

fn measure_in(precision: Precision, subject: &Subject<'_>, report: &mut Report) -> Result<(), Failure> {
    let mut executor = subject.open()?;
    let device = executor.machine().device != "cpu";
    // A card needs more work at once than a processor before it is busy.
    let (rows, batch, model_batch) = if device { (25_216, 128, 128) } else { (1_576, 8, 8) };
    for (outputs, inputs) in [(2304, 768), (3072, 768), (768, 3072)] {
        let speed = rate(&mut *executor, &*precision.lower(&product(rows, outputs, inputs)?)?)?;
        report.line(
            &format!("product {rows} x {outputs} x {inputs} in {precision}"),
            &format!("{:.0} GFLOP/s", speed / 1e9),
            &Verdict::Measured,
        );
    }
    let speed = rate(&mut *executor, &*precision.lower(&attention(batch, 197, 12)?)?)?;
    report.line(
        &format!("attention of {batch} x 12 x 197 x 64 in {precision}"),
        &format!("{:.0} GFLOP/s", speed / 1e9),
        &Verdict::Measured,
    );
    drop(executor);
    let model = "vit_small_patch32_224";
    let speed = images_a_second(subject.open()?, model, model_batch, precision)?;
    let what = format!("step of {model}, batch {model_batch}, in {precision}");
    report.line(&what, &format!("{speed:.1} images/s"), &Verdict::Measured);
    Ok(())
}
