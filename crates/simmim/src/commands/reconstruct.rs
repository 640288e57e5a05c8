//! `simmim reconstruct`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Reconstruct;
use crate::commands::weights;
use crate::diagnostics::Failure;
use simmim_data::{MaskSpec, load_centered, mask};
use simmim_engine::cpu::CpuExecutor;
use simmim_models::SimMimConfig;
use simmim_models::weights::{Tensor, Weights, match_parameters, write};
use simmim_train::{Session, open_data, picture};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(a: &Reconstruct) -> Result<ExitCode, Failure> {
    let mut model = weights::resolve(&a.weights)?;
    let specs = model.config.parameters();
    let tensors = match_parameters(&model.path, &specs, model.weights, true)?;
    if let Some(data) = &a.data {
        model.recipe.data.path = data.display().to_string();
        model.recipe.data.val_path = model.recipe.data.path.clone();
    }
    let data = open_data(&model.recipe)?;
    model.recipe.fix_statistics(&*data.train)?;
    let transform = model.recipe.transform();
    let count = a.images.min(data.held_out.len()).max(1);
    let indices: Vec<usize> = (0..count).collect();
    let mut images = vec![0.0; count * transform.values()];
    if let Some((_, error)) = load_centered(&*data.held_out, &indices, &transform, 2, &mut images)?.into_iter().next() {
        return Err(error.into());
    }
    let spec = model.recipe.mask_spec(&model.config);
    let cells = match &a.mask {
        Some(path) => read_masks(path, &spec, model.config.masked_cells(), count)?,
        None => (0..count).map(|i| spec.draw(a.seed, 0, i as u64)).collect(),
    };
    let (down, right) = model.config.tokens_per_cell();
    let masks: Vec<Vec<bool>> = cells.iter().map(|m| mask::expand(m, spec.rows, spec.cols, down, right)).collect();
    let mut session = Session::new(Box::new(CpuExecutor::new(a.weights.threads)?), model.config.clone(), 0)?;
    session.set_weights(tensors)?;
    let r = session.reconstruct(&images, &masks)?;
    let (mean, std) = model.recipe.statistics();
    picture::draw(&a.out, &model.config, &images, &masks, &r, (&mean, &std))?;
    if let Some(path) = &a.values {
        write_values(path, &model.config, &spec, &cells, &r)?;
    }
    println!("loss {:.6} on {count} images; picture: {}", r.loss, a.out.display());
    Ok(ExitCode::SUCCESS)
}

/// A 0/1 array `[images, rows, cols]`.
fn read_masks(path: &Path, spec: &MaskSpec, hidden: usize, images: usize) -> Result<Vec<Vec<bool>>, Failure> {
    let fail = |what: String| {
        let help = format!(
            "give a 0/1 array of shape [{images}, {}, {}] with {hidden} ones for each image",
            spec.rows, spec.cols
        );
        Failure::input(format!("{}: {what}", path.display()), help)
    };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let parse = || npyz::NpyFile::new(&bytes[..]).map_err(|e| fail(e.to_string()));
    let shape: Vec<u64> = parse()?.shape().to_vec();
    if shape != [images as u64, spec.rows as u64, spec.cols as u64] {
        return Err(fail(format!("its shape is {shape:?}")));
    }
    let values: Vec<bool> = if let Ok(v) = parse()?.into_vec::<bool>() {
        v
    } else if let Ok(v) = parse()?.into_vec::<u8>() {
        v.into_iter().map(|v| v != 0).collect()
    } else if let Ok(v) = parse()?.into_vec::<i64>() {
        v.into_iter().map(|v| v != 0).collect()
    } else if let Ok(v) = parse()?.into_vec::<i32>() {
        v.into_iter().map(|v| v != 0).collect()
    } else if let Ok(v) = parse()?.into_vec::<f32>() {
        v.into_iter().map(|v| v != 0.0).collect()
    } else {
        return Err(fail("its elements are neither bool, u8, i32, i64 nor f32".into()));
    };
    let masks: Vec<Vec<bool>> = values.chunks(spec.cells()).map(<[bool]>::to_vec).collect();
    match masks.iter().position(|m| m.iter().filter(|&&v| v).count() != hidden) {
        Some(bad) => Err(fail(format!("the mask of image {bad} has another number of ones"))),
        None => Ok(masks),
    }
}

fn write_values(
    path: &Path,
    config: &SimMimConfig,
    spec: &MaskSpec,
    cells: &[Vec<bool>],
    r: &simmim_train::Reconstruction,
) -> Result<(), Failure> {
    let (images, c) = (cells.len(), &config.encoder);
    let shape = vec![images, c.channels, c.image_size.0, c.image_size.1];
    let planes = |patches: &[f32]| picture::assemble(config, patches, &r.positions, images);
    let mask = cells.iter().flatten().map(|&m| f32::from(u8::from(m))).collect();
    let values: Weights = [
        ("mask".to_owned(), Tensor { shape: vec![images, spec.rows, spec.cols], data: mask }),
        ("target".to_owned(), Tensor { shape: shape.clone(), data: planes(&r.target) }),
        ("prediction".to_owned(), Tensor { shape, data: planes(&r.prediction) }),
        ("loss".to_owned(), Tensor { shape: vec![1], data: vec![r.loss] }),
    ]
    .into();
    Ok(write(path, &values)?)
}
