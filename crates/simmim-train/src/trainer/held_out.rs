//! Held-out images with fixed masks.

use super::{Data, Event, Session};
use crate::error::TrainError;
use crate::features::{Unread, for_batches};
use crate::picture;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::trivial::TrivialLosses;
use simmim_data::source::spread;
use simmim_data::{MaskSpec, Source, Transform, load_centered, mask};
use simmim_models::SimMimConfig;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Images of one evaluation run.
const BATCH: usize = 32;
/// Epoch number under which the masks are drawn: no training epoch has it.
const EPOCH: u64 = u64::MAX;

/// Held-out images. Which of them can be read is found out while the first steps run, so that training starts at once.
pub(super) enum HeldOut {
    Loading(JoinHandle<Result<(Images, Vec<String>), TrainError>>),
    Ready(Box<Images>),
    /// Loading has failed, and its error was given out; or there are no images, where only steps are taken.
    Absent,
}

/// The images that can be read, with their masks. Pixels are read anew for each measurement: kept ones would take more memory than
/// the batches of the training.
pub(super) struct Images {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
    masks: Vec<Vec<bool>>,
    transform: Transform,
    trivial: TrivialLosses,
    /// Names and reasons of those that were passed over.
    unreadable: Vec<(String, String)>,
}

impl Images {
    /// Sum of the losses of one rank's share: every so many batches.
    fn loss(&self, session: &mut Session, ranks: &Ranks) -> Result<f64, TrainError> {
        let all: Vec<usize> = (0..self.indices.len()).collect();
        let share: Vec<usize> =
            all.chunks(BATCH).skip(ranks.rank()).step_by(ranks.world()).flatten().copied().collect();
        if share.is_empty() {
            return Ok(0.0);
        }
        let indices: Vec<usize> = share.iter().map(|&place| self.indices[place]).collect();
        let (values, mut sum) = (self.transform.values(), 0.0);
        let mut batch = |range: Range<usize>, pixels: &[f32], _: &[Unread]| {
            let masks: Vec<Vec<bool>> = share[range].iter().map(|&place| self.masks[place].clone()).collect();
            let loss = session.reconstruct(&pixels[..masks.len() * values], &masks)?.loss;
            sum += f64::from(loss) * masks.len() as f64;
            Ok(())
        };
        let unread = for_batches(&*self.source, &indices, &self.transform, (BATCH, threads()), &mut batch)?;
        unread.into_iter().next().map_or(Ok(sum), |(_, error)| Err(error.into()))
    }
}

/// Threads that read held-out images: half of the cores, since training continues.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

impl HeldOut {
    /// Begins to read `validate.images` images spread over the held-out set; unreadable ones are passed over.
    pub(super) fn start(recipe: &Recipe, data: &Data, config: &SimMimConfig, spec: &MaskSpec) -> Self {
        let (recipe, data, config, spec) = (recipe.clone(), data.clone(), config.clone(), *spec);
        Self::Loading(std::thread::spawn(move || load(&recipe, &data, &config, &spec)))
    }

    fn ready(&mut self, tell: &mut dyn FnMut(Event)) -> Result<&Images, TrainError> {
        *self = match std::mem::replace(self, Self::Absent) {
            Self::Loading(thread) => {
                let (images, warnings) = thread
                    .join()
                    .map_err(|_| TrainError::Internal { what: "the held-out images' thread".into() })??;
                warnings.into_iter().for_each(|w| tell(Event::Warning(w)));
                Self::Ready(Box::new(images))
            }
            known => known,
        };
        match self {
            Self::Ready(images) => Ok(images),
            _ => Err(TrainError::Internal { what: "there are no held-out images".into() }),
        }
    }

    /// Names and reasons of the images that were passed over, as far as they are known.
    pub(super) fn unreadable(&self) -> &[(String, String)] {
        match self {
            Self::Ready(images) => &images.unreadable,
            _ => &[],
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

    /// Mean loss, over all ranks; none where no image could be read.
    pub(super) fn loss(
        &mut self,
        session: &mut Session,
        ranks: &Ranks,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<f32>, TrainError> {
        let share = self.ready(tell).and_then(|held| Ok((held.masks.len(), held.loss(session, ranks)?)));
        let (count, sum) = ranks.agree(share)?;
        let mut sum = [sum];
        ranks.sum(&mut sum)?;
        Ok((count > 0).then(|| (sum[0] / count as f64) as f32))
    }

    /// Draws some of the images to `path`, if there are any: always the same ones, spread over all and over the classes.
    pub(super) fn draw(
        &mut self,
        session: &mut Session,
        path: impl FnOnce() -> Result<PathBuf, TrainError>,
        recipe: &Recipe,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let held = self.ready(tell)?;
        let labels: Vec<Option<usize>> = held.indices.iter().map(|&i| held.source.label(i)).collect();
        let chosen = spread(&labels, recipe.reconstruct.images, recipe.train.seed);
        if chosen.is_empty() {
            return Ok(());
        }
        let indices: Vec<usize> = chosen.iter().map(|&i| held.indices[i]).collect();
        let masks: Vec<Vec<bool>> = chosen.iter().map(|&i| held.masks[i].clone()).collect();
        let mut images = vec![0.0; indices.len() * held.transform.values()];
        let unread = load_centered(&*held.source, &indices, &held.transform, threads(), &mut images)?;
        if let Some((_, error)) = unread.into_iter().next() {
            return Err(error.into());
        }
        let r = session.reconstruct(&images, &masks)?;
        let (mean, std) = recipe.statistics();
        picture::draw(&path()?, session.config(), &images, &masks, &r, (&mean, &std))
    }
}

fn load(
    recipe: &Recipe,
    data: &Data,
    config: &SimMimConfig,
    spec: &MaskSpec,
) -> Result<(Images, Vec<String>), TrainError> {
    let (transform, source) = (recipe.transform(), Arc::clone(&data.held_out));
    let values = transform.values();
    let wanted = recipe.validate.images.max(recipe.reconstruct.images).min(source.len());
    let chosen: Vec<usize> = (0..wanted).map(|i| i * source.len() / wanted).collect();
    let (down, right) = config.tokens_per_cell();
    let draw = |i: usize| {
        let cells = spec.draw(recipe.train.seed, EPOCH, i as u64);
        mask::expand(&cells, spec.rows, spec.cols, down, right)
    };
    let (mut indices, mut masks, mut sums) = (Vec::new(), Vec::new(), [0.0; 2]);
    let mut batch = |range: Range<usize>, pixels: &[f32], unread: &[Unread]| {
        for (place, image) in range.zip(pixels.chunks_exact(values)) {
            if unread.iter().all(|(bad, _)| *bad != place) {
                let mask = draw(indices.len());
                let trivial = TrivialLosses::measure(config, image, std::slice::from_ref(&mask));
                sums[0] += f64::from(trivial.mean_color);
                sums[1] += f64::from(trivial.visible_neighbors);
                indices.push(chosen[place]);
                masks.push(mask);
            }
        }
        Ok(())
    };
    let unread = for_batches(&*source, &chosen, &transform, (BATCH, threads()), &mut batch)?;
    let mut warnings: Vec<String> = unread.iter().map(|(_, e)| format!("held-out image skipped: {e}")).collect();
    if indices.is_empty() {
        warnings.push("no held-out image could be read, so there is no held-out loss and no picture".into());
    }
    let unreadable = unread.into_iter().map(|(place, e)| (source.name(chosen[place]), e.to_string())).collect();
    let [mean_color, visible_neighbors] = sums.map(|sum| (sum / indices.len() as f64) as f32);
    let trivial = TrivialLosses { mean_color, visible_neighbors };
    Ok((Images { source, indices, masks, transform, trivial, unreadable }, warnings))
}
