//! What a training writes down as it goes: `metrics.jsonl`, event files, speed.

use crate::error::TrainError;
use crate::metrics::{Metrics, Record};
use crate::metrics_tensorboard::EventWriter;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use crate::trivial::TrivialLosses;
use std::time::{Duration, Instant};

/// The open logs of a run and what has come together since their last line.
pub(super) struct Log {
    metrics: Metrics,
    events: Option<EventWriter>,
    batch: usize,
    start: Instant,
    /// Seconds since `start` that did not go into training.
    paused: Duration,
    /// Seconds waited for images before `start`.
    waited: f64,
    /// Sum and number of the losses since the last line.
    losses: (f64, u64),
    /// Steps since `start`.
    steps: u64,
}

impl Log {
    /// Opens the logs of a run that continues after `step`, with the losses that no line holds yet; later lines are dropped.
    pub(super) fn open(run: &RunFolder, recipe: &Recipe, step: u64, losses: (f64, u64)) -> Result<Self, TrainError> {
        let events = match (recipe.log.tensorboard, step) {
            (false, _) => None,
            (true, 0) => Some(EventWriter::open(&run.tensorboard()?)?),
            (true, _) => Some(EventWriter::resume(&run.tensorboard()?, step)?),
        };
        Ok(Self {
            metrics: Metrics::open(&run.metrics(), step)?,
            events,
            batch: recipe.train.batch_size,
            start: Instant::now(),
            paused: Duration::ZERO,
            waited: 0.0,
            losses,
            steps: 0,
        })
    }

    /// Starts the clock; `waited` as [`simmim_data::Loader::wait_seconds`].
    pub(super) fn begin(&mut self, waited: f64) {
        (self.start, self.paused, self.waited, self.steps) = (Instant::now(), Duration::ZERO, waited, 0);
    }

    /// Starts the next line.
    pub(super) fn restart(&mut self, waited: f64) {
        self.begin(waited);
        self.losses = (0.0, 0);
    }

    /// Sum and number of the losses since the last line; of none where one was not finite, which metadata cannot hold.
    pub(super) fn loss_window(&self) -> (f64, u64) {
        if self.losses.0.is_finite() { self.losses } else { (0.0, 0) }
    }

    /// Leaves out time that did not go into training.
    pub(super) fn pause(&mut self, time: Duration) {
        self.paused += time;
    }

    pub(super) fn add(&mut self, loss: f32) {
        self.losses.0 += f64::from(loss);
        self.losses.1 += 1;
        self.steps += 1;
    }

    fn seconds(&self) -> f64 {
        (self.start.elapsed() - self.paused).as_secs_f64().max(1e-9)
    }

    pub(super) fn images_per_second(&self) -> f64 {
        (self.steps * self.batch as u64) as f64 / self.seconds()
    }

    /// Mean loss, speed and share of waiting since the last line; the rest is the caller's.
    pub(super) fn record(&self, waited: f64) -> Record {
        Record {
            loss: (self.losses.0 / self.losses.1.max(1) as f64) as f32,
            images_per_second: self.images_per_second(),
            data_wait: ((waited - self.waited) / self.seconds()).clamp(0.0, 1.0),
            ..Record::default()
        }
    }

    /// Writes a line; with a held-out loss, event files get the constant losses of the trivial predictors beside it.
    pub(super) fn write(&mut self, r: &Record, trivial: Option<TrivialLosses>) -> Result<(), TrainError> {
        self.metrics.write(r)?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let curves = [
            ("train/loss", r.loss),
            ("train/lr", r.lr as f32),
            ("train/grad_norm", r.grad_norm),
            ("train/images_per_second", r.images_per_second as f32),
            ("train/data_wait", r.data_wait as f32),
        ];
        let held_out = r.val_loss.into_iter().flat_map(|loss| {
            let trivial = trivial.into_iter().flat_map(|t| {
                [("validate/mean_color", t.mean_color), ("validate/visible_neighbors", t.visible_neighbors)]
            });
            std::iter::once(("validate/loss", loss)).chain(trivial)
        });
        let probe = r.probe_knn.map(|v| ("probe/knn", v));
        let top1 = r.val_top1.map(|v| ("validate/top1", v));
        for (tag, value) in curves.into_iter().chain(held_out).chain(top1).chain(probe) {
            events.scalar(r.step, tag, value)?;
        }
        events.flush()
    }
}
