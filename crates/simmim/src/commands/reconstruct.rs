//! `simmim reconstruct`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Reconstruct;
use crate::commands::{check_output, mask_file, warn_of_runs, weights};
use crate::device;
use crate::diagnostics::Failure;
use simmim_data::{MaskSpec, load_centered, mask, source};
use simmim_models::weights::{Tensor, Weights, match_parameters, write};
use simmim_models::{SimMimConfig, Target};
use simmim_train::{Session, open_data, picture};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(a: &Reconstruct) -> Result<ExitCode, Failure> {
    [Some(&a.out), a.values.as_ref()].into_iter().flatten().try_for_each(|path| check_output(path))?;
    let mut model = weights::resolve(&a.weights)?;
    let specs = model.config.parameters();
    let tensors = match_parameters(&model.given.path, &model.config.encoder, &specs, model.given.weights, true)?;
    if let Some(data) = &a.data {
        model.recipe.data.path = data.display().to_string();
        model.recipe.data.val_path = model.recipe.data.path.clone();
    }
    let data = open_data(&model.recipe)?;
    warn_of_runs(&*data.train);
    model.recipe.fix_statistics(&*data.train)?;
    let transform = model.recipe.transform();
    let labels: Vec<Option<usize>> = (0..data.held_out.len()).map(|i| data.held_out.label(i)).collect();
    let indices = source::spread(&labels, a.images.max(1), a.seed);
    let count = indices.len();
    let mut images = vec![0.0; count * transform.values()];
    if let Some((_, error)) = load_centered(&*data.held_out, &indices, &transform, 2, &mut images)?.into_iter().next() {
        return Err(error.into());
    }
    let spec = model.recipe.mask_spec(&model.config);
    let cells = match &a.mask {
        Some(path) => mask_file::read(path, &spec, count)?,
        None => (0..count).map(|i| spec.draw(a.seed, 0, i as u64)).collect(),
    };
    mask_file::fit(&mut model.config, &cells)?;
    let (down, right) = model.config.tokens_per_cell();
    let masks: Vec<Vec<bool>> = cells.iter().map(|m| mask::expand(m, spec.rows, spec.cols, down, right)).collect();
    let mut session = Session::new(device::open(&a.weights.device)?, model.config.clone(), 0)?
        .in_precision(a.weights.device.precision());
    session.device_mut().set_weights(tensors)?;
    let r = session.reconstruct(&images, &masks)?;
    let (mean, std) = model.recipe.statistics();
    picture::draw(&a.out, &model.config, &images, &masks, &r, (&mean, &std))?;
    if let Some(path) = &a.values {
        write_values(path, &model.config, &spec, &cells, (&images, &r))?;
    }
    println!("loss {:.6} on {count} images; picture: {}", r.loss, a.out.display());
    if count < data.held_out.len() {
        let names: Vec<String> = indices.iter().map(|&i| data.held_out.name(i)).collect();
        println!("images, from the top: {}", names.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn write_values(
    path: &Path,
    config: &SimMimConfig,
    spec: &MaskSpec,
    cells: &[Vec<bool>],
    (pixels, r): (&[f32], &simmim_train::Reconstruction),
) -> Result<(), Failure> {
    let (images, c) = (cells.len(), config.encoder.geometry());
    let shape = vec![images, c.channels, c.image_size.0, c.image_size.1];
    let planes = |patches: &[f32]| picture::assemble(config, patches, &r.positions, images);
    // Pixels are known everywhere; normalised patches only where the model was asked.
    let target = if config.target == Target::Pixels { pixels.to_vec() } else { planes(&r.target) };
    let mask = cells.iter().flatten().map(|&m| f32::from(u8::from(m))).collect();
    let values: Weights = [
        ("mask".to_owned(), Tensor { shape: vec![images, spec.rows, spec.cols], data: mask }),
        ("target".to_owned(), Tensor { shape: shape.clone(), data: target }),
        ("prediction".to_owned(), Tensor { shape, data: planes(&r.prediction) }),
        ("loss".to_owned(), Tensor { shape: vec![1], data: vec![r.loss] }),
    ]
    .into();
    Ok(write(path, &values)?)
}
