//! The training loop.

mod data;
mod held_out;
mod log;
mod session;

pub use data::{Data, open_data};
pub use session::{Reconstruction, Session, StepResult, choose_accumulation, training_graph};

use crate::checkpoint::{CheckpointStore, Meta};
use crate::error::TrainError;
use crate::guard::{Guard, Verdict};
use crate::metrics::{self, Record};
use crate::recipe::{Reaction, Recipe};
use crate::run_folder::{RunFolder, atomic_write};
use crate::schedule::LearningRate;
use held_out::HeldOut;
use log::Log;
use simmim_data::{Batch, Loader, LoaderConfig, MaskSpec, Position, mask};
use simmim_engine::Executor;
use simmim_models::weights::{self, Weights};
use std::collections::BTreeSet;
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
    /// The run's first held-out loss and the step at which it was measured.
    pub first_val_loss: Option<(u64, f32)>,
    /// Held-out loss at the end; not measured where the training was stopped.
    pub val_loss: Option<f32>,
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
    log: Log,
    guard: Guard,
    rollbacks: usize,
    threads: usize,
    step: u64,
    data: Data,
    /// Whether the weights at step 0 came from elsewhere, so that an interrupted run could not draw them again.
    given_weights: bool,
}

/// Settles what a recipe leaves to the data and the plan: mean and deviation, and the parts of a step. A run's `config.toml` is
/// written after this, so that it is complete.
///
/// # Errors
/// Images that cannot be measured, impossible sizes.
pub fn settle(recipe: &mut Recipe, data: &Data) -> Result<(), TrainError> {
    recipe.fix_statistics(&*data.train)?;
    if recipe.train.accumulation == 0 {
        let config = recipe.simmim_config()?;
        recipe.train.accumulation = choose_accumulation(&config, recipe.train.batch_size, ARENA_BYTES)?;
    }
    Ok(())
}

impl Trainer {
    /// Prepares a training, from its first step or from the run's last checkpoint. `recipe` must be settled ([`settle`]).
    /// Messages about damaged checkpoints go to `tell`.
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
        let (batch, accumulation) = (recipe.train.batch_size, recipe.train.accumulation.max(1));
        let masks = recipe.mask_spec(&config);
        let held_out = HeldOut::start(&recipe, &data, &config, &masks);
        let mut session = Session::new(executor, config, recipe.train.seed)?;
        session.prepare_training(batch / accumulation, accumulation, recipe.adamw())?;
        let checkpoints = CheckpointStore::open(&run.checkpoints())?;
        let mut at = Meta { threads, ..Meta::default() };
        if let Some(found) = checkpoints.load_latest()? {
            found.damaged.into_iter().for_each(|w| tell(Event::Warning(w)));
            session.restore(&run.checkpoints(), found.tensors)?;
            at = found.meta;
        }
        let loader = Self::loader(&recipe, &data, &at)?;
        let schedule = recipe.learning_rate(loader.batches_per_epoch());
        let log = Log::open(&run, &recipe, at.step)?;
        let mut guard = Guard::new(recipe.guard.spike_factor as f32, recipe.guard.spike_window);
        guard.restore(&at.recent_losses);
        let (rollbacks, step, given_weights) = (at.rollbacks, at.step, false);
        Ok(Self {
            recipe,
            run,
            session,
            loader,
            masks,
            held_out,
            schedule,
            checkpoints,
            log,
            guard,
            rollbacks,
            threads,
            step,
            data,
            given_weights,
        })
    }

    fn loader(recipe: &Recipe, data: &Data, at: &Meta) -> Result<Loader, TrainError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let mut config = LoaderConfig::new(recipe.train.batch_size, recipe.train.seed, recipe.transform());
        config.workers = if recipe.data.workers == 0 { cores() } else { recipe.data.workers };
        config.prefetch = recipe.data.prefetch.max(1);
        config.max_errors = recipe.data.max_errors;
        (config.reading, config.cache) = recipe.reading();
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
        self.given_weights = true;
        self.session.set_weights(weights)
    }

    /// Trains until the end, or until `stop` is set. Then writes a checkpoint, and at the end the encoder, the full model and a
    /// picture.
    ///
    /// # Errors
    /// Faults of data and disk, a loss that diverges. Checkpoints written before stay; where the data fail, one more is written.
    pub fn run(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<Summary, TrainError> {
        if self.step == 0 && self.given_weights {
            self.save(tell)?;
        }
        self.log.restart(self.loader.wait_seconds());
        let mut val_loss = None;
        while self.step < self.schedule.total_steps && !stop.load(Ordering::Relaxed) {
            match self.one_step(tell) {
                Ok(measured) => val_loss = measured,
                Err(e) => {
                    if matches!(e, TrainError::Data(_)) {
                        self.save(tell)?;
                    }
                    self.write_skipped()?;
                    return Err(e);
                }
            }
        }
        let finished = self.step >= self.schedule.total_steps;
        self.save(tell)?;
        if finished {
            if val_loss.is_none() {
                val_loss = Some(self.held_out.loss(&mut self.session, tell)?);
            }
            self.write_results(tell)?;
        }
        self.write_skipped()?;
        let first = |r: &Record| r.val_loss.map(|v| (r.step, v));
        Ok(Summary {
            outcome: if finished { Outcome::Finished } else { Outcome::Stopped },
            step: self.step,
            first_val_loss: metrics::read(&self.run.metrics())?.iter().find_map(first),
            val_loss: val_loss.filter(|_| finished),
        })
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
        self.log.add(result.loss);
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let last = self.step == self.schedule.total_steps;
        let validate = due(self.recipe.validate.every_steps) || last;
        let (draw, save) = (due(self.recipe.reconstruct.every_steps), due(self.recipe.checkpoint.every_steps));
        let (step, total, loss) = (self.step, self.schedule.total_steps, result.loss);
        tell(Event::Step { step, total, loss, images_per_second: self.log.images_per_second() });
        let mut val_loss = None;
        if validate || due(self.recipe.log.every_steps) {
            let epoch = self.step as f64 / self.loader.batches_per_epoch() as f64;
            let window = self.log.record(self.loader.wait_seconds());
            let mut record = Record { step, epoch, lr, grad_norm: result.grad_norm, ..window };
            if validate {
                val_loss = Some(self.held_out.loss(&mut self.session, tell)?);
            }
            record.val_loss = val_loss;
            self.log.write(&record)?;
            tell(Event::Logged(record));
            self.log.restart(self.loader.wait_seconds());
        }
        let pause = Instant::now();
        if draw {
            self.draw(tell)?;
        }
        if save {
            self.save(tell)?;
        }
        self.log.pause(pause.elapsed());
        Ok(val_loss)
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
        let Some(found) = self.checkpoints.load_latest()? else {
            return Err(TrainError::Diverged {
                step: self.step,
                what: format!("{what}, and there is no checkpoint yet"),
            });
        };
        let failed = self.step;
        self.session.restore(&self.run.checkpoints(), found.tensors)?;
        self.step = found.meta.step;
        self.log = Log::open(&self.run, &self.recipe, self.step)?;
        self.log.restart(self.loader.wait_seconds());
        self.guard.restore(&found.meta.recent_losses);
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
            recent_losses: self.guard.recent(),
            rollbacks: self.rollbacks,
        };
        let session = &mut self.session;
        let shapes = session.checkpoint_shapes();
        self.checkpoints.save(meta, shapes, |name| session.read_tensor(name), self.recipe.checkpoint.keep)?;
        tell(Event::Checkpoint(self.step));
        Ok(())
    }

    fn draw(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let path = self.run.reconstruction(self.step);
        self.held_out.draw(&mut self.session, &path, &self.recipe, tell)
    }

    fn write_results(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        self.draw(tell)?;
        let weights = self.session.weights()?;
        weights::write(&self.run.model(), &weights)?;
        write_encoder(&self.run.encoder(), &weights)
    }

    /// Adds the images that could not be read to those of the run's earlier parts.
    fn write_skipped(&self) -> Result<(), TrainError> {
        let path = self.run.skipped();
        let skipped = self.loader.skipped();
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
        atomic_write(&path, text.as_bytes())
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
