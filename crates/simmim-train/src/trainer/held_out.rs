//! Held-out images with fixed masks.

use super::{Data, Event, Session};
use crate::error::TrainError;
use crate::picture;
use crate::recipe::Recipe;
use simmim_data::{MaskSpec, load_centered, mask};
use simmim_models::SimMimConfig;
use std::path::Path;

/// Images of one evaluation run.
const BATCH: usize = 32;
/// Epoch number under which the masks are drawn: no training epoch has it.
const EPOCH: u64 = u64::MAX;

/// Held-out images, in memory.
pub(super) struct HeldOut {
    images: Vec<f32>,
    masks: Vec<Vec<bool>>,
    values: usize,
}

impl HeldOut {
    /// Loads `validate.images` images spread over the held-out set; unreadable ones are passed over.
    pub(super) fn load(
        recipe: &Recipe,
        data: &Data,
        config: &SimMimConfig,
        spec: &MaskSpec,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let transform = recipe.transform();
        let values = transform.values();
        let wanted = recipe.validate.images.max(recipe.reconstruct.images).min(data.held_out.len());
        let indices: Vec<usize> = (0..wanted).map(|i| i * data.held_out.len() / wanted).collect();
        let mut images = vec![0.0; wanted * values];
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let bad = load_centered(&*data.held_out, &indices, &transform, threads, &mut images)?;
        for (row, error) in bad.iter().rev() {
            images.drain(row * values..(row + 1) * values);
            tell(Event::Warning(format!("held-out image passed over: {error}")));
        }
        if images.is_empty()
            && let Some((_, error)) = bad.into_iter().next()
        {
            return Err(error.into());
        }
        let (down, right) = config.tokens_per_cell();
        let count = images.len() / values;
        let draw = |i: usize| {
            let cells = spec.draw(recipe.train.seed, EPOCH, i as u64);
            mask::expand(&cells, spec.rows, spec.cols, down, right)
        };
        Ok(Self { images, masks: (0..count).map(draw).collect(), values })
    }

    /// Mean loss.
    pub(super) fn loss(&self, session: &mut Session) -> Result<f32, TrainError> {
        let mut sum = 0.0;
        for (masks, images) in self.masks.chunks(BATCH).zip(self.images.chunks(BATCH * self.values)) {
            sum += f64::from(session.reconstruct(images, masks)?.loss) * masks.len() as f64;
        }
        Ok((sum / self.masks.len() as f64) as f32)
    }

    /// Draws the first images.
    pub(super) fn draw(&self, session: &mut Session, path: &Path, recipe: &Recipe) -> Result<(), TrainError> {
        let count = recipe.reconstruct.images.min(self.masks.len());
        let (images, masks) = (&self.images[..count * self.values], &self.masks[..count]);
        let r = session.reconstruct(images, masks)?;
        let (mean, std) = recipe.statistics();
        picture::draw(path, session.config(), images, masks, &r, (&mean, &std))
    }
}
