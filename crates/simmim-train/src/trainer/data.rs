//! The images of a run: for training, and held out.

use crate::error::TrainError;
use crate::recipe::Recipe;
use simmim_data::source::{Subset, open, split};
use simmim_data::{Source, demo, demo_held_out};
use std::path::Path;
use std::sync::Arc;

/// Training and held-out images.
#[derive(Clone)]
pub struct Data {
    /// Images to train on.
    pub train: Arc<dyn Source>,
    /// Images to measure on.
    pub held_out: Arc<dyn Source>,
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Data").field("train", &self.train.len()).field("held_out", &self.held_out.len()).finish()
    }
}

/// Opens the images that a recipe names. An empty path is the built-in demo set, which has held-out images of its own.
/// Otherwise they come from `data.val_path`, or are taken from the training images: a tenth at most, one at least where there
/// are two.
///
/// # Errors
/// Missing or empty places.
pub fn open_data(recipe: &Recipe) -> Result<Data, TrainError> {
    let d = &recipe.data;
    if d.path.is_empty() {
        return Ok(Data { train: Arc::new(demo()?), held_out: Arc::new(demo_held_out()?) });
    }
    let train: Arc<dyn Source> = open(Path::new(&d.path))?.into();
    if !d.val_path.is_empty() {
        let held_out: Arc<dyn Source> = open(Path::new(&d.val_path))?.into();
        readable(&*held_out, recipe.model.channels)?;
        return Ok(Data { train, held_out });
    }
    let held = d.held_out.min(train.len() / 10).max(usize::from(train.len() > 1));
    if held == 0 {
        return Ok(Data { held_out: Arc::clone(&train), train });
    }
    let (kept, held) = split(train.len(), held, recipe.train.seed);
    Ok(Data { held_out: Arc::new(Subset::new(Arc::clone(&train), held)?), train: Arc::new(Subset::new(train, kept)?) })
}

/// Refuses held-out images of which none of the first few can be read, before a training begins that could not be judged.
fn readable(images: &dyn Source, channels: usize) -> Result<(), TrainError> {
    const TRIED: usize = 16;
    let mut first = None;
    for i in 0..images.len().min(TRIED) {
        match images.load(i, channels.into()) {
            Ok(_) => return Ok(()),
            Err(e) => first = first.or(Some(e)),
        }
    }
    first.map_or(Ok(()), |e| Err(e.into()))
}
