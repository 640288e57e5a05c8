//! `simmim embed`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{Embed, Pool};
use crate::commands::weights;
use crate::diagnostics::Failure;
use npyz::WriterBuilder;
use simmim_data::{Source, load_centered, source};
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::{Executor, Program, ProgramId};
use simmim_models::vit::{EncoderOutputs, encoder_graph};
use simmim_models::weights::match_parameters;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

pub(crate) fn run(a: &Embed) -> Result<ExitCode, Failure> {
    let model = weights::resolve(&a.weights)?;
    let encoder = &model.config.encoder;
    if a.pool == Pool::Cls && !encoder.class_token {
        return Err(Failure::input("the model has no class token", "take --pool mean"));
    }
    let (outputs, name) = match a.layer {
        -1 => (EncoderOutputs::Norm, "norm".to_owned()),
        k => (EncoderOutputs::Blocks(vec![usize::try_from(k).unwrap_or(0)]), format!("block.{k}")),
    };
    let specs: Vec<_> = model.config.parameters();
    let mut tensors = model.weights;
    // An encoder's file has no mask token and no head; a full model's are not needed here.
    tensors.retain(|name, _| !name.ends_with("mask_token") && !name.starts_with("decoder."));
    let tensors = match_parameters(&model.path, &specs, tensors, false)?;
    let mut recipe = model.recipe;
    let images = source::open(&a.data)?;
    recipe.fix_statistics(&*images)?;
    let graph = encoder_graph(encoder, a.batch, &outputs)?;
    let mut executor = CpuExecutor::new(a.weights.threads)?;
    let program = Program::compile(&graph)?;
    let needed: Vec<String> = program.states.iter().map(|(name, _)| name.clone()).collect();
    let id = executor.load(program)?;
    for (name, data) in tensors.iter().filter(|(name, _)| needed.contains(name)) {
        executor.write_state(name, data)?;
    }
    let (tokens, dim) = (encoder.tokens(), encoder.embed_dim);
    let class = usize::from(encoder.class_token);
    let pooled = |tokens_of: &[f32]| -> Vec<f32> {
        match a.pool {
            Pool::None => tokens_of.to_vec(),
            Pool::Cls => tokens_of[..dim].to_vec(),
            Pool::Mean => {
                let patches = tokens_of[class * dim..].chunks_exact(dim);
                let count = patches.len() as f32;
                let mut mean = vec![0.0; dim];
                patches.for_each(|t| mean.iter_mut().zip(t).for_each(|(m, v)| *m += v / count));
                mean
            }
        }
    };
    let count = images.len() as u64;
    let shape: Vec<u64> =
        if a.pool == Pool::None { vec![count, tokens as u64, dim as u64] } else { vec![count, dim as u64] };
    let file = BufWriter::new(File::create(&a.out).map_err(|e| Failure::running(format!("{}: {e}", a.out.display())))?);
    let mut out = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    let mut rows = vec![0.0; a.batch * tokens * dim];
    for start in (0..images.len()).step_by(a.batch) {
        let here = a.batch.min(images.len() - start);
        one_batch(&mut executor, id, &recipe, &*images, start..start + here, a.batch)?;
        executor.read(id, &name, &mut rows)?;
        for tokens_of in rows.chunks_exact(tokens * dim).take(here) {
            out.extend(pooled(tokens_of))?;
        }
    }
    out.finish()?;
    let names = a.out.with_extension("files.txt");
    let mut list = BufWriter::new(File::create(&names)?);
    for i in 0..images.len() {
        writeln!(list, "{}", images.name(i))?;
    }
    list.flush()?;
    println!("{} with shape {shape:?}; its rows are named in {}", a.out.display(), names.display());
    Ok(ExitCode::SUCCESS)
}

fn one_batch(
    executor: &mut CpuExecutor,
    id: ProgramId,
    recipe: &simmim_train::Recipe,
    images: &dyn Source,
    range: std::ops::Range<usize>,
    batch: usize,
) -> Result<(), Failure> {
    let transform = recipe.transform();
    let mut pixels = vec![0.0; batch * transform.values()];
    let indices: Vec<usize> = range.collect();
    let part = &mut pixels[..indices.len() * transform.values()];
    if let Some((_, error)) = load_centered(images, &indices, &transform, executor.threads(), part)?.into_iter().next()
    {
        return Err(error.into());
    }
    executor.write(id, "images", &pixels)?;
    Ok(executor.run(id)?)
}
