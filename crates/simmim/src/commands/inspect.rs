//! `simmim inspect`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Inspect;
use crate::commands::inspect_weights;
use crate::commands::length::each;
use crate::commands::roofline;
use crate::device::{self, DeviceArguments};
use crate::diagnostics::Failure;
use crate::meter::plural;
use crate::progress::duration;
use simmim_engine::Program;
use simmim_engine::autodiff::differentiate;
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{Build, Variant, simmim_graph};
use simmim_train::pace::{Care, seconds_of_pretraining};
use simmim_train::{Recipe, StepMemory, choose_accumulation, fit, training_graph};
use std::process::ExitCode;

pub(crate) fn run(a: &Inspect) -> Result<ExitCode, Failure> {
    if let Some(weights) = &a.weights {
        return inspect_weights::run(a, weights);
    }
    let mut recipe = Recipe::resolve(a.recipe.recipe.as_deref().unwrap_or("demo"), &a.recipe.set)?;
    recipe.train.memory = a.memory.memory.unwrap_or(recipe.train.memory);
    let config = recipe.simmim_config()?;
    let batch = a.batch.unwrap_or(recipe.train.batch_size);
    let parts = match recipe.train.accumulation {
        0 => choose_accumulation(&config, batch, recipe.budget())?,
        given if batch.is_multiple_of(given) => given,
        given => {
            return Err(Failure::input(
                format!("a batch of {batch} cannot be split into {given} equal parts"),
                "set train.accumulation to a divisor of the batch size, or to 0",
            ));
        }
    };
    let graph = training_graph(&config, batch / parts, parts)?;
    let specs = config.parameters();
    let update = update_graph(&specs, &AdamWConfig::default())?;
    let (lowered, memory) = fit(&graph, std::slice::from_ref(&update), recipe.budget())?;
    let program = Program::compile(&lowered)?;
    let flops = program.flops() * parts as u64;
    let build = Build { batch, variant: Variant::Plain, accumulation: 1, train: true, outputs: false };
    let (mut plain, loss) = simmim_graph(&config, build)?;
    differentiate(&mut plain, loss)?;
    let parameters: usize = specs.iter().map(simmim_models::ParameterSpec::len).sum();
    (recipe.train.batch_size, recipe.train.accumulation) = (batch, parts);
    if a.json {
        println!(
            "{}",
            serde_json::json!({
                "parameters": parameters, "batch": batch, "arena_bytes": program.arena_bytes(),
                "state_bytes": memory.states, "recomputed_blocks": memory.recomputed, "blocks": memory.blocks, "parts": parts, "precision": recipe.train.precision, "flops_per_step": flops, "model_flops_per_step": plain.flops(),
                "seconds_per_step": seconds(&recipe, memory)?,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let e = config.encoder.geometry();
    println!("encoder      {} with {}", recipe.model.name, config.encoder.describe());
    println!(
        "image        {}x{}, {} channels, patches of {}x{}",
        e.image_size.0, e.image_size.1, e.channels, e.patch_size.0, e.patch_size.1
    );
    let (rows, cols) = config.mask_grid();
    println!(
        "mask         {} of {} cells ({rows}x{cols}), {} of {} tokens",
        config.masked_cells(),
        rows * cols,
        config.masked_tokens(),
        e.patches()
    );
    println!("parameters   {parameters}");
    println!(
        "step         {batch} images, {:.2} GFLOP ({:.2} without the exact optimisations)",
        flops as f64 / 1e9,
        plain.flops() as f64 / 1e9
    );
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "memory       {:.1} MiB activations ({parts} part{} of {} images), {:.1} MiB parameters, gradients and moments",
        mib(memory.arena),
        plural(parts),
        batch / parts,
        mib(memory.states)
    );
    println!(
        "recomputed   activations of {} of {} blocks, {:.0} % more operations",
        memory.recomputed,
        memory.blocks,
        100.0 * (program.flops() as f64 / graph.flops() as f64 - 1.0)
    );
    println!("program      {} operations, products of {}", program.instructions().len(), recipe.train.precision);
    if a.parameters {
        specs
            .iter()
            .for_each(|p| println!("{:60} {:?}{}", p.name, p.shape, if p.used { "" } else { "  (not trained)" }));
    }
    if a.graph {
        print!("{lowered}");
    }
    if a.plan {
        print!("{program}");
    }
    if let Some(card) = &a.roofline {
        let update = Program::compile(&update)?;
        roofline::print(card, &program, parts, &update, batch);
    }
    println!("time         {}", time(&recipe, memory)?);
    Ok(ExitCode::SUCCESS)
}

/// Seconds of a step on this machine; none where it takes more memory than is free.
fn seconds(recipe: &Recipe, memory: StepMemory) -> Result<Option<f64>, Failure> {
    let free = available_memory().is_none_or(|bytes| memory.bytes() as u64 <= bytes);
    let executor = || device::open(&DeviceArguments::processor(0));
    Ok(if free { Some(seconds_of_pretraining(recipe, executor()?, Care::Rough)?) } else { None })
}

/// What a training of the recipe's length takes on this machine.
fn time(recipe: &Recipe, memory: StepMemory) -> Result<String, Failure> {
    let Some(seconds) = seconds(recipe, memory)? else {
        return Ok("not measured: a step takes more memory than is free on this machine".into());
    };
    let (steps, epochs) = (recipe.schedule.steps, recipe.schedule.epochs);
    let step = format!("{} a step on this machine, without reading images", each(seconds));
    let images = 1e3 / recipe.train.batch_size as f64;
    Ok(match (steps, epochs) {
        (0, 0) => step,
        (0, _) => format!(
            "{step}; {epochs} epochs take {} for every 1,000 images",
            duration(epochs as f64 * images * seconds)
        ),
        _ => format!("{step}; {steps} steps take about {}", duration(steps as f64 * seconds)),
    })
}

/// Bytes that a process can still have, where the system tells (Linux).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
