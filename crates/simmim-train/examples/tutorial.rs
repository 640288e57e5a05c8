//! The tutorial's loop: a ViT by its timm name, SimMIM around it, AdamW, batches from a folder, weights out.
//!
//!     cargo run --release -p simmim-train --example tutorial -- FOLDER

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use simmim_data::{Loader, LoaderConfig, MaskKind, MaskSpec, Position, Transform, source};
use simmim_engine::cpu::CpuExecutor;
use simmim_models::optimizer::AdamWConfig;
use simmim_models::{SimMimConfig, VitConfig};
use simmim_train::{Preprocessing, Session, write_encoder};
use std::{error::Error, path::Path, sync::Arc};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("give a folder of images")?;
    let (batch, seed) = (32, 0);
    let vit = VitConfig::preset("vit_small_patch32_224")?;
    let (rows, cols) = vit.grid();
    let simmim = SimMimConfig::tutorial(vit, 0.5);
    let masks = MaskSpec { rows, cols, ratio: 0.5, kind: MaskKind::TutorialTokens };
    let mut session = Session::new(Box::new(CpuExecutor::new(0)?), simmim, seed)?;
    session.prepare_training(batch, 1, AdamWConfig { weight_decay: 5e-2, ..AdamWConfig::default() })?;
    let images: Arc<dyn simmim_data::Source> = source::open(Path::new(&folder))?.into();
    let transform = Transform::new((224, 224), 3);
    let config = LoaderConfig::new(batch, seed, transform.clone());
    let mut loader = Loader::new(images, config, Position::default())?;
    for step in 0..100 {
        let batch = loader.next_batch()?;
        let masks: Vec<_> = batch.draws.iter().map(|&sample| masks.draw(seed, batch.epoch, sample)).collect();
        let result = session.train_step(&batch.images, &masks, seed, step, 1e-4)?;
        println!("step {step}: loss {:.5}", result.loss);
        loader.recycle(batch);
    }
    write_encoder(Path::new("encoder.safetensors"), session.weights()?, &Preprocessing::of(&transform))?;
    Ok(())
}
