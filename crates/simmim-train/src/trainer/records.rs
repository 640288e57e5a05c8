//! What a training leaves in its run folder. Of several ranks the first alone has it.

use super::Event;
use super::log::Log;
use crate::checkpoint::{CheckpointStore, Meta};
use crate::curves;
use crate::error::TrainError;
use crate::metrics;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use crate::trivial::TrivialLosses;
use simmim_models::weights::Weights;
use std::collections::BTreeSet;

/// The run folder with what is open in it.
pub(super) struct Records {
    pub(super) run: RunFolder,
    pub(super) checkpoints: CheckpointStore,
    pub(super) log: Log,
}

impl Records {
    /// Opens the records of a run that may have been trained before; gives the newest checkpoint where there is one. A recipe that has
    /// changed is written down.
    pub(super) fn open(
        run: RunFolder,
        recipe: &Recipe,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(Self, Option<(Meta, Weights)>), TrainError> {
        let checkpoints = CheckpointStore::open(&run.checkpoints())?;
        let found = checkpoints.load_latest()?;
        if found.is_none() && run.has_results() {
            return Err(TrainError::Run {
                path: run.root().to_owned(),
                what: "the run is finished, but its checkpoints are gone".into(),
                help: "start another run from its model.safetensors with --weights, or start over with --overwrite"
                    .into(),
            });
        }
        let found = found.map(|found| {
            found.damaged.into_iter().for_each(|w| tell(Event::Warning(w)));
            (found.meta, found.tensors)
        });
        if Recipe::from_run(&run.config())? != *recipe {
            run.rewrite_config(&recipe.to_toml())?;
        }
        let (step, window) = found.as_ref().map_or((0, (0.0, 0)), |(meta, _)| (meta.step, meta.loss_window));
        let log = Log::open(&run, recipe, step, window)?;
        Ok((Self { run, checkpoints, log }, found))
    }

    /// The lines of the metrics.
    pub(super) fn lines(&self) -> Result<Vec<metrics::Record>, TrainError> {
        metrics::read(&self.run.metrics())
    }

    pub(super) fn draw_curves(
        &self,
        lines: &[metrics::Record],
        trivial: Option<&TrivialLosses>,
    ) -> Result<(), TrainError> {
        curves::draw(&self.run.curves(), lines, trivial)
    }

    pub(super) fn write_trivial(&self, known: &TrivialLosses) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(known).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        let path = self.run.baselines();
        simmim_files::write(&path, (text + "\n").as_bytes()).map_err(TrainError::io(&path))
    }

    /// Adds images that could not be read to those of the run's earlier parts.
    pub(super) fn write_skipped(&self, skipped: &[(String, String)]) -> Result<(), TrainError> {
        let path = self.run.skipped();
        if skipped.is_empty() {
            return Ok(());
        }
        let line = |(name, reason): &(String, String)| format!("{name}\t{}", reason.replace('\n', " "));
        let mut lines: BTreeSet<String> = skipped.iter().map(line).collect();
        if path.is_file() {
            let before = std::fs::read(&path).map_err(TrainError::io(&path))?;
            lines.extend(String::from_utf8_lossy(&before).lines().map(str::to_owned));
        }
        let text: String = lines.into_iter().map(|line| line + "\n").collect();
        simmim_files::write(&path, text.as_bytes()).map_err(TrainError::io(&path))
    }
}
