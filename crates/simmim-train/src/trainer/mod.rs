//! The training loop.

mod data;
mod held_out;
mod session;

pub use data::{Data, open_data};
pub use session::{Reconstruction, Session, StepResult, choose_accumulation, training_graph};

use crate::checkpoint::{CheckpointStore, Meta};
use crate::error::TrainError;
use crate::guard::{Guard, Verdict};
use crate::metrics::{Metrics, Record};
use crate::recipe::{Reaction, Recipe};
use crate::run_folder::{RunFolder, atomic_write};
use crate::schedule::LearningRate;
use held_out::HeldOut;
use simmim_data::{Batch, Loader, LoaderConfig, MaskSpec, Position, mask};
use simmim_engine::Executor;
use simmim_models::weights::{self, Weights};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Memory that the arena of one part of a step may take where the recipe leaves the number of parts open.
const ARENA_BYTES: usize = 256 << 20;

/// Something that happened while training, for progress and logs.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Length of the training.
        total: u64,
        /// Loss of the step.
        loss: f32,
        /// Images for each second since the last line.
        images_per_second: f64,
    },
    /// A line was written to the metrics.
    Logged(Record),
    /// A checkpoint was written.
    Checkpoint(u64),
    /// Something to know.
    Warning(String),
}

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was asked to stop; a checkpoint was written.
    Stopped,
}

/// What a training did.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// Steps done.
    pub step: u64,
    /// Held-out loss before the first step of the run, where this process began it.
    pub first_val_loss: Option<f32>,
    /// Held-out loss at the end.
    pub val_loss: f32,
}

/// Trains a model in a run folder.
pub struct Trainer {
    recipe: Recipe,
    run: RunFolder,
    session: Session,
    loader: Loader,
    masks: MaskSpec,
    held_out: HeldOut,
    schedule: LearningRate,
    checkpoints: CheckpointStore,
    metrics: Metrics,
    guard: Guard,
    rollbacks: usize,
    threads: usize,
    step: u64,
    window: Window,
    data: Data,
}

/// What has come together since the last line of the metrics.
struct Window {
    start: Instant,
    waited: f64,
    losses: f64,
    steps: u64,
}

impl Window {
    fn new(waited: f64) -> Self {
        Self { start: Instant::now(), waited, losses: 0.0, steps: 0 }
    }
}

impl Trainer {
    /// Prepares a training, from its first step or from the run's last checkpoint. `recipe` must name mean and deviation as
    /// numbers ([`Recipe::fix_statistics`]). Messages about damaged checkpoints go to `tell`.
    ///
    /// # Errors
    /// Impossible sizes, damaged checkpoints, weights of another model.
    pub fn new(
        recipe: Recipe,
        run: RunFolder,
        data: Data,
        executor: Box<dyn Executor>,
        threads: usize,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let config = recipe.simmim_config()?;
        let batch = recipe.train.batch_size;
        let accumulation = match recipe.train.accumulation {
            0 => choose_accumulation(&config, batch, ARENA_BYTES)?,
            given => given,
        };
        let masks = recipe.mask_spec(&config);
        let mut session = Session::new(executor, config, recipe.train.seed)?;
        session.prepare_training(batch / accumulation, accumulation, recipe.adamw())?;
        let checkpoints = CheckpointStore::open(&run.checkpoints())?;
        let mut at = Meta { step: 0, epoch: 0, batch: 0, threads, state_hash: String::new() };
        if let Some((meta, tensors, warnings)) = checkpoints.load_latest()? {
            warnings.into_iter().for_each(|w| tell(Event::Warning(w)));
            session.set_weights(tensors.into_iter().map(|(name, t)| (name, t.data)).collect())?;
            at = meta;
        }
        let loader = Self::loader(&recipe, &data, &at)?;
        let schedule = recipe.learning_rate(loader.batches_per_epoch());
        let held_out = HeldOut::load(&recipe, &data, session.config(), &masks, tell)?;
        let metrics = Metrics::open(&run.metrics(), at.step)?;
        let guard = Guard::new(recipe.guard.spike_factor as f32, recipe.guard.spike_window);
        let (rollbacks, step, window) = (0, at.step, Window::new(0.0));
        Ok(Self {
            recipe,
            run,
            session,
            loader,
            masks,
            held_out,
            schedule,
            checkpoints,
            metrics,
            guard,
            rollbacks,
            threads,
            step,
            window,
            data,
        })
    }

    fn loader(recipe: &Recipe, data: &Data, at: &Meta) -> Result<Loader, TrainError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let mut config = LoaderConfig::new(recipe.train.batch_size, recipe.train.seed, recipe.transform());
        config.workers = if recipe.data.workers == 0 { cores() } else { recipe.data.workers };
        config.prefetch = recipe.data.prefetch.max(1);
        config.max_errors = recipe.data.max_errors;
        let start = Position { epoch: at.epoch, batch_index: at.batch };
        Ok(Loader::new(Arc::clone(&data.train), config, start)?)
    }

    /// The model.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Length of the training in steps.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.schedule.total_steps
    }

    /// The run folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.run.root()
    }

    /// Starts from given weights instead of random ones.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        self.session.set_weights(weights)
    }

    /// Trains until the end, or until `stop` is set. Then writes a checkpoint, and at the end the encoder, the full model and a
    /// picture.
    ///
    /// # Errors
    /// Faults of data and disk, a loss that diverges. Checkpoints written before stay.
    pub fn run(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<Summary, TrainError> {
        let first = if self.step == 0 { Some(self.held_out.loss(&mut self.session)?) } else { None };
        self.window = Window::new(self.loader.wait_seconds());
        let mut val_loss = None;
        while self.step < self.schedule.total_steps && !stop.load(Ordering::Relaxed) {
            val_loss = self.one_step(tell)?;
        }
        let finished = self.step >= self.schedule.total_steps;
        if self.checkpoints.steps()?.last() != Some(&self.step) {
            self.save(tell)?;
        }
        let val_loss = match val_loss {
            Some(v) => v,
            None => self.held_out.loss(&mut self.session)?,
        };
        if finished {
            self.write_results()?;
        }
        self.write_skipped()?;
        let outcome = if finished { Outcome::Finished } else { Outcome::Stopped };
        Ok(Summary { outcome, step: self.step, first_val_loss: first, val_loss })
    }

    /// One step with everything that is due after it; returns the held-out loss where it was measured.
    fn one_step(&mut self, tell: &mut dyn FnMut(Event)) -> Result<Option<f32>, TrainError> {
        let batch = self.loader.next_batch()?;
        let lr = self.schedule.at(self.step);
        let masks = self.draw_masks(&batch);
        let result = self.session.train_step(&batch.images, &masks, self.recipe.train.seed, self.step, lr)?;
        self.loader.recycle(batch);
        self.step += 1;
        if self.judge(result, tell)? {
            return Ok(None);
        }
        if result.loss.is_finite() {
            self.window.losses += f64::from(result.loss);
            self.window.steps += 1;
        }
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let last = self.step == self.schedule.total_steps;
        let (log, validate) = (due(self.recipe.log.every_steps), due(self.recipe.validate.every_steps) || last);
        let (draw, save) = (due(self.recipe.reconstruct.every_steps), due(self.recipe.checkpoint.every_steps));
        let total = self.schedule.total_steps;
        let images_per_second = self.images_per_second();
        tell(Event::Step { step: self.step, total, loss: result.loss, images_per_second });
        let mut val_loss = None;
        if log || validate {
            let mut record = self.record(result, lr, images_per_second);
            if validate {
                record.val_loss = Some(self.held_out.loss(&mut self.session)?);
            }
            val_loss = record.val_loss;
            self.metrics.write(&record)?;
            tell(Event::Logged(record));
            self.window = Window::new(self.loader.wait_seconds());
        }
        if draw {
            self.draw()?;
        }
        if save {
            self.save(tell)?;
        }
        Ok(val_loss)
    }

    fn images_per_second(&self) -> f64 {
        let images = (self.window.steps * self.recipe.train.batch_size as u64) as f64;
        images / self.window.start.elapsed().as_secs_f64().max(1e-9)
    }

    fn record(&self, result: StepResult, lr: f64, images_per_second: f64) -> Record {
        let waited = self.loader.wait_seconds() - self.window.waited;
        Record {
            step: self.step,
            epoch: self.step as f64 / self.loader.batches_per_epoch() as f64,
            loss: (self.window.losses / self.window.steps.max(1) as f64) as f32,
            lr,
            grad_norm: result.grad_norm,
            images_per_second,
            data_wait: (waited / self.window.start.elapsed().as_secs_f64().max(1e-9)).min(1.0),
            val_loss: None,
        }
    }

    fn draw_masks(&self, batch: &Batch) -> Vec<Vec<bool>> {
        let (down, right) = self.session.config().tokens_per_cell();
        let draw = |&sample: &u64| {
            let cells = self.masks.draw(self.recipe.train.seed, batch.epoch, sample);
            mask::expand(&cells, self.masks.rows, self.masks.cols, down, right)
        };
        batch.draws.iter().map(draw).collect()
    }

    /// Reacts to a step that went wrong; true where the training went back to a checkpoint.
    fn judge(&mut self, result: StepResult, tell: &mut dyn FnMut(Event)) -> Result<bool, TrainError> {
        let (reaction, what) = match self.guard.observe(result.loss, result.grad_norm) {
            Verdict::Fine => return Ok(false),
            Verdict::NotFinite { what } => {
                let what = format!("{what} is not finite (loss {}, gradient norm {})", result.loss, result.grad_norm);
                (self.recipe.guard.on_nan, what)
            }
            Verdict::Spike { median } => (
                self.recipe.guard.on_spike,
                format!("the loss is {}, the median of the last ones {median}", result.loss),
            ),
        };
        match reaction {
            Reaction::Ignore => Ok(false),
            Reaction::Warn => {
                tell(Event::Warning(format!("step {}: {what}", self.step)));
                Ok(false)
            }
            Reaction::Rollback if self.rollbacks < self.recipe.guard.max_rollbacks => {
                self.rollbacks += 1;
                self.roll_back(&what, tell)
            }
            Reaction::Stop | Reaction::Rollback => Err(TrainError::Diverged { step: self.step, what }),
        }
    }

    /// Goes back to the weights of the last checkpoint, but on with the data after the step that failed.
    fn roll_back(&mut self, what: &str, tell: &mut dyn FnMut(Event)) -> Result<bool, TrainError> {
        let Some((meta, tensors, _)) = self.checkpoints.load_latest()? else {
            return Err(TrainError::Diverged {
                step: self.step,
                what: format!("{what}, and there is no checkpoint yet"),
            });
        };
        let failed = self.step;
        self.session.set_weights(tensors.into_iter().map(|(name, t)| (name, t.data)).collect())?;
        self.step = meta.step;
        self.metrics = Metrics::open(&self.run.metrics(), self.step)?;
        self.guard = Guard::new(self.recipe.guard.spike_factor as f32, self.recipe.guard.spike_window);
        self.window = Window::new(self.loader.wait_seconds());
        tell(Event::Warning(format!("step {failed}: {what}; back to the weights of step {}", self.step)));
        Ok(true)
    }

    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let at = self.loader.position();
        let meta = Meta {
            step: self.step,
            epoch: at.epoch,
            batch: at.batch_index,
            threads: self.threads,
            state_hash: String::new(),
        };
        let mut tensors = self.session.weights()?;
        tensors.append(&mut self.session.moments()?);
        self.checkpoints.save(meta, &tensors, self.recipe.checkpoint.keep)?;
        tell(Event::Checkpoint(self.step));
        Ok(())
    }

    fn draw(&mut self) -> Result<(), TrainError> {
        let path = self.run.reconstruction(self.step);
        self.held_out.draw(&mut self.session, &path, &self.recipe)
    }

    fn write_results(&mut self) -> Result<(), TrainError> {
        self.draw()?;
        let weights = self.session.weights()?;
        weights::write(&self.run.model(), &weights)?;
        write_encoder(&self.run.encoder(), &weights)
    }

    fn write_skipped(&self) -> Result<(), TrainError> {
        let skipped = self.loader.skipped();
        if skipped.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> =
            skipped.iter().map(|(name, reason)| format!("{name}\t{}\n", reason.replace('\n', " "))).collect();
        atomic_write(&self.run.skipped(), lines.concat().as_bytes())
    }

    /// Unreadable images so far.
    #[must_use]
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }

    /// Number of training images.
    #[must_use]
    pub fn images(&self) -> usize {
        self.data.train.len()
    }
}

/// Writes the encoder of a full model in timm's names.
///
/// # Errors
/// [`TrainError::Model`].
pub fn write_encoder(path: &Path, weights: &Weights) -> Result<(), TrainError> {
    Ok(weights::write(path, &weights::encoder_to_timm(weights))?)
}
