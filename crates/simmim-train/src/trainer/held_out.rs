//! Held-out images with fixed masks.

use super::{Data, Event, Session};
use crate::error::TrainError;
use crate::picture;
use crate::recipe::Recipe;
use crate::trivial::TrivialLosses;
use simmim_data::{MaskSpec, load_centered, mask};
use simmim_models::SimMimConfig;
use std::path::Path;
use std::thread::JoinHandle;

/// Images of one evaluation run.
const BATCH: usize = 32;
/// Epoch number under which the masks are drawn: no training epoch has it.
const EPOCH: u64 = u64::MAX;

/// Held-out images, in memory once they are needed. They are read while the first steps run, so that training starts at once.
pub(super) enum HeldOut {
    Loading(JoinHandle<Result<(Images, Vec<String>), TrainError>>),
    Ready(Images),
    /// Loading has failed; its error was given out.
    Failed,
}

pub(super) struct Images {
    images: Vec<f32>,
    masks: Vec<Vec<bool>>,
    values: usize,
    trivial: TrivialLosses,
}

impl HeldOut {
    /// Begins to load `validate.images` images spread over the held-out set; unreadable ones are passed over.
    pub(super) fn start(recipe: &Recipe, data: &Data, config: &SimMimConfig, spec: &MaskSpec) -> Self {
        let (recipe, data, config, spec) = (recipe.clone(), data.clone(), config.clone(), *spec);
        Self::Loading(std::thread::spawn(move || load(&recipe, &data, &config, &spec)))
    }

    fn ready(&mut self, tell: &mut dyn FnMut(Event)) -> Result<&Images, TrainError> {
        *self = match std::mem::replace(self, Self::Failed) {
            Self::Loading(thread) => {
                let (images, warnings) = thread
                    .join()
                    .map_err(|_| TrainError::Internal { what: "the held-out images' thread".into() })??;
                warnings.into_iter().for_each(|w| tell(Event::Warning(w)));
                Self::Ready(images)
            }
            known => known,
        };
        match self {
            Self::Ready(images) => Ok(images),
            _ => Err(TrainError::Internal { what: "there are no held-out images".into() }),
        }
    }

    /// Losses of the trivial predictors; nothing yet where the images are still being read, unless `wait` says to.
    pub(super) fn trivial(
        &mut self,
        wait: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<TrivialLosses>, TrainError> {
        match self {
            Self::Loading(thread) if !wait && !thread.is_finished() => Ok(None),
            _ => Ok(Some(self.ready(tell)?).filter(|held| !held.masks.is_empty()).map(|held| held.trivial)),
        }
    }

    /// Mean loss; none where no image could be read.
    pub(super) fn loss(
        &mut self,
        session: &mut Session,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<f32>, TrainError> {
        let held = self.ready(tell)?;
        if held.masks.is_empty() {
            return Ok(None);
        }
        let mut sum = 0.0;
        for (masks, images) in held.masks.chunks(BATCH).zip(held.images.chunks(BATCH * held.values)) {
            sum += f64::from(session.reconstruct(images, masks)?.loss) * masks.len() as f64;
        }
        Ok(Some((sum / held.masks.len() as f64) as f32))
    }

    /// Draws the first images.
    pub(super) fn draw(
        &mut self,
        session: &mut Session,
        path: &Path,
        recipe: &Recipe,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let held = self.ready(tell)?;
        let count = recipe.reconstruct.images.min(held.masks.len());
        if count == 0 {
            return Ok(());
        }
        let (images, masks) = (&held.images[..count * held.values], &held.masks[..count]);
        let r = session.reconstruct(images, masks)?;
        let (mean, std) = recipe.statistics();
        picture::draw(path, session.config(), images, masks, &r, (&mean, &std))
    }
}

fn load(
    recipe: &Recipe,
    data: &Data,
    config: &SimMimConfig,
    spec: &MaskSpec,
) -> Result<(Images, Vec<String>), TrainError> {
    let transform = recipe.transform();
    let values = transform.values();
    let wanted = recipe.validate.images.max(recipe.reconstruct.images).min(data.held_out.len());
    let indices: Vec<usize> = (0..wanted).map(|i| i * data.held_out.len() / wanted).collect();
    let mut images = vec![0.0; wanted * values];
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
    let bad = load_centered(&*data.held_out, &indices, &transform, threads, &mut images)?;
    let mut warnings = Vec::new();
    for (row, error) in bad.iter().rev() {
        images.drain(row * values..(row + 1) * values);
        warnings.push(format!("held-out image passed over: {error}"));
    }
    if images.is_empty() {
        warnings.push("no held-out image could be read: there is no held-out loss and no picture".into());
    }
    let (down, right) = config.tokens_per_cell();
    let count = images.len() / values;
    let draw = |i: usize| {
        let cells = spec.draw(recipe.train.seed, EPOCH, i as u64);
        mask::expand(&cells, spec.rows, spec.cols, down, right)
    };
    let masks: Vec<Vec<bool>> = (0..count).map(draw).collect();
    let trivial = TrivialLosses::measure(config, &images, &masks);
    Ok((Images { images, masks, values, trivial }, warnings))
}
