//! A quick kNN probe of the weights while they are trained.

use super::Session;
use crate::error::TrainError;
use crate::features::{EncoderProgram, Layer, Matrix, Pooling, for_batches};
use crate::probe::knn::{accuracies, nearest, normalised};
use crate::probe::{LabelledSet, LabelledSets};
use crate::recipe::Recipe;
use simmim_data::source::open;
use simmim_data::{DataError, Source, Transform};
use simmim_engine::host::Pool;
use std::path::Path;

/// Images in a pass of the encoder.
const BATCH: usize = 32;
/// Neighbours that vote.
const K: usize = 20;

/// Labelled images by which the weights are probed at intervals. Features are mean-pooled patch tokens; nothing of the training
/// depends on it.
pub struct LiveProbe {
    sources: [Box<dyn Source>; 2],
    sets: [LabelledSet; 2],
    classes: usize,
    layer: Layer,
    transform: Transform,
    threads: usize,
    pool: Pool,
    program: Option<EncoderProgram>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for LiveProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveProbe").field("layer", &self.layer).field("classes", &self.classes).finish_non_exhaustive()
    }
}

impl LiveProbe {
    /// Opens the images that the recipe names, at most `probe.images` of each set; `None` where it names none. The recipe must be
    /// settled ([`super::settle`]).
    ///
    /// # Errors
    /// As [`LabelledSets::new`], and for a layer that the encoder lacks.
    pub fn open(recipe: &Recipe, threads: usize) -> Result<Option<Self>, TrainError> {
        let p = &recipe.probe;
        if p.train_path.is_empty() && p.val_path.is_empty() {
            return Ok(None);
        }
        let paths = [Path::new(&p.train_path), Path::new(&p.val_path)];
        let sources = [open(paths[0])?, open(paths[1])?];
        let sets = LabelledSets::new(&*sources[0], &*sources[1], (Some(paths[0]), Some(paths[1])))?;
        let encoder = recipe.simmim_config()?.encoder;
        let layer = match p.layer {
            0 => Layer::Block((2 * encoder.depth()).div_ceil(3)),
            number => Layer::of(number, &encoder)?,
        };
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { cores() } else { threads };
        Ok(Some(Self {
            sources,
            sets: [sets.train.thinned(p.images), sets.val.thinned(p.images)],
            classes: sets.classes.len(),
            layer,
            transform: recipe.transform(),
            threads,
            pool: Pool::new(threads),
            program: None,
            warnings: sets.warnings,
        }))
    }

    /// What the user should know about the images.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Accuracy of the validation images' nearest neighbours under the session's weights.
    pub(super) fn accuracy(&mut self, session: &mut Session) -> Result<f32, TrainError> {
        let mut program = match self.program.take() {
            Some(known) => known,
            None => session.encoder_program(&[self.layer], BATCH)?,
        };
        let bank = self.features(0, &mut program, session)?;
        let queries = self.features(1, &mut program, session)?;
        self.program = Some(program);
        let near = nearest(&self.pool, &normalised(&bank.0), &normalised(&queries.0), K);
        Ok(accuracies(&near, &bank.1, &queries.1, self.classes, &[K])[0] as f32)
    }

    /// Features and classes of one set; images that cannot be read are left out.
    fn features(
        &self,
        which: usize,
        program: &mut EncoderProgram,
        session: &mut Session,
    ) -> Result<(Matrix, Vec<usize>), TrainError> {
        let set = &self.sets[which];
        let mut features =
            Matrix { cols: program.values(Pooling::Mean).first().copied().unwrap_or(0), ..Matrix::default() };
        let mut labels = Vec::new();
        let reading = (program.batch(), self.threads);
        let source = &*self.sources[which];
        let unread = for_batches(source, &set.images, &self.transform, reading, &mut |range, pixels, unread| {
            let mut take = |_: usize, row: usize, feature: &[f32]| {
                let place = range.start + row;
                if unread.binary_search_by_key(&place, |u| u.0).is_err() {
                    features.data.extend_from_slice(feature);
                    labels.push(set.labels[place]);
                }
            };
            program.run(session.device_mut().executor_mut(), pixels, range.len(), Pooling::Mean, &mut take)
        })?;
        features.rows = labels.len();
        if labels.is_empty() {
            let examples = unread.iter().take(3).map(|(_, e)| e.to_string()).collect::<Vec<_>>().join("; ");
            return Err(DataError::NothingReadable { found: unread.len(), examples }.into());
        }
        Ok((features, labels))
    }
}
