//! The training loop.

mod classifier;
mod data;
mod device;
mod finetuning;
mod held_out;
mod live_probe;
mod log;
mod memory;
mod pretraining;
mod session;
mod task;

pub use classifier::Classifier;
pub use data::{Data, open_data};
pub use device::Device;
pub use finetuning::{FineTuning, LabelledData, settle_finetuning};
pub use live_probe::LiveProbe;
pub use memory::{Budget, Recompute, StepMemory, fit};
pub use pretraining::Pretraining;
pub use session::{Reconstruction, Session, StepResult, choose_accumulation, training_graph};
pub use task::{Measured, Task};

use crate::checkpoint::{Best, CheckpointStore, Meta};
use crate::curves;
use crate::error::TrainError;
use crate::guard::{Guard, Verdict};
use crate::metrics::{self, Record};
use crate::overfitting::{Curve, Overfitting};
use crate::plateau::Plateau;
use crate::preprocessing::Preprocessing;
use crate::recipe::{Reaction, Recipe};
use crate::run_folder::RunFolder;
use crate::schedule::LearningRate;
use crate::trivial::TrivialLosses;
use log::Log;
use memory::settle_parts;
use simmim_data::{Loader, LoaderConfig, Position, Source, Transparency};
use simmim_engine::Executor;
use simmim_engine::executor::Machine;
use simmim_models::Precision;
use simmim_models::optimizer::update_graph;
use simmim_models::weights::{self, Weights};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Images after which it is said how many have transparency.
const COUNTED: usize = 4096;

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
    /// The losses of trivial predictors on the held-out images are known.
    Trivial(TrivialLosses),
    /// Something to know.
    Warning(String),
}

/// Says that the run was computed on another instruction set so far.
fn warn_of_change(now: &Machine, before: &str, precision: Precision, tell: &mut dyn FnMut(Event)) {
    if !before.is_empty() && !now.gives_bits_of(before, precision == Precision::Bfloat16) {
        tell(Event::Warning(format!(
            "the run continues with {} instructions, but its checkpoint was made with {before}: the weights will differ in the last \
             bits from those of an uninterrupted run; to keep them equal, set SIMMIM_ISA={before} in the environment",
            now.isa
        )));
    }
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
    /// Held-out accuracy at the end, where there are classes.
    pub val_top1: Option<f32>,
    /// The best held-out accuracy.
    pub best: Option<Best>,
    /// Losses of trivial predictors on the held-out images; unknown where the training was stopped early.
    pub trivial: Option<TrivialLosses>,
    /// The held-out loss rose while the training loss fell.
    pub overfitting: Option<Overfitting>,
    /// First and last accuracy of the kNN probe, with their steps.
    pub probe_knn: Option<[(u64, f32); 2]>,
}

/// Trains a model in a run folder.
pub struct Trainer<T = Pretraining> {
    recipe: Recipe,
    run: RunFolder,
    task: T,
    loader: Loader,
    schedule: LearningRate,
    checkpoints: CheckpointStore,
    log: Log,
    guard: Guard,
    rollbacks: usize,
    step: u64,
    best: Option<Best>,
    images: usize,
    /// Whether the weights at step 0 came from elsewhere, so that an interrupted run could not draw them again.
    given_weights: bool,
    trivial: Option<TrivialLosses>,
    curve: Curve,
    plateau: Plateau,
    /// Whether it was said how many images have transparency.
    transparency_told: bool,
}

/// Settles what a recipe leaves to the data and the plan: mean and deviation, and the parts of a step. A run's `config.toml` is
/// written after this, so that it is complete.
///
/// # Errors
/// Images that cannot be measured, impossible sizes, a step that does not fit into `train.memory`.
pub fn settle(recipe: &mut Recipe, data: &Data) -> Result<(), TrainError> {
    recipe.fix_statistics(&*data.train)?;
    let config = recipe.simmim_config()?;
    let update = update_graph(&config.parameters(), &recipe.adamw())?;
    settle_parts(recipe, &update, |micro, parts| training_graph(&config, micro, parts))
}

impl Trainer {
    /// Prepares a pre-training, from its first step or from the run's last checkpoint. `recipe` must be settled ([`settle`]).
    /// Messages about damaged checkpoints go to `tell`.
    ///
    /// # Errors
    /// Impossible sizes, damaged checkpoints, weights of another model.
    pub fn new(
        recipe: Recipe,
        run: RunFolder,
        data: Data,
        executor: Box<dyn Executor>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let task = Pretraining::new(&recipe, &data, executor)?;
        Self::with_task(recipe, run, data.train, task, tell)
    }

    /// The model.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.task.session()
    }

    /// Probes the weights at the intervals of `probe.every_steps`.
    pub fn set_probe(&mut self, probe: Option<LiveProbe>) {
        self.task.probe = probe;
    }
}

impl<T: Task> Trainer<T> {
    /// As [`Trainer::new`], for any task on batches of `train`.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_task(
        recipe: Recipe,
        run: RunFolder,
        train: Arc<dyn Source>,
        mut task: T,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let checkpoints = CheckpointStore::open(&run.checkpoints())?;
        let mut at = Meta::default();
        if let Some(found) = checkpoints.load_latest()? {
            found.damaged.into_iter().for_each(|w| tell(Event::Warning(w)));
            task.device_mut().restore(&run.checkpoints(), found.tensors)?;
            at = found.meta;
            warn_of_change(&task.device().executor().machine(), &at.isa, recipe.train.precision, tell);
        } else if run.has_results() {
            return Err(TrainError::Run {
                path: run.root().to_owned(),
                what: "the run is finished, but its checkpoints are gone".into(),
                help: "start another run from its model.safetensors with --weights, or start over with --overwrite"
                    .into(),
            });
        }
        if Recipe::from_run(&run.config())? != recipe {
            run.rewrite_config(&recipe.to_toml())?;
        }
        let images = train.len();
        let loader = Self::loader(&recipe, train, &at)?;
        let schedule = recipe.learning_rate(loader.batches_per_epoch());
        let log = Log::open(&run, &recipe, at.step, at.loss_window)?;
        let curve = Curve::of(&metrics::read(&run.metrics())?);
        let mut guard = Guard::new(recipe.guard.spike_factor as f32, recipe.guard.spike_window);
        guard.restore(&at.recent_losses);
        let (rollbacks, step, best, given_weights) = (at.rollbacks, at.step, at.best, false);
        let plateau = Plateau::of(&recipe);
        Ok(Self {
            recipe,
            run,
            task,
            loader,
            schedule,
            checkpoints,
            log,
            guard,
            rollbacks,
            step,
            best,
            images,
            given_weights,
            trivial: None,
            curve,
            plateau,
            transparency_told: false,
        })
    }

    fn loader(recipe: &Recipe, train: Arc<dyn Source>, at: &Meta) -> Result<Loader, TrainError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let mut config = LoaderConfig::new(recipe.train.batch_size, recipe.train.seed, recipe.transform());
        config.workers = if recipe.data.workers == 0 { cores() } else { recipe.data.workers };
        config.prefetch = recipe.data.prefetch.max(1);
        config.max_errors = recipe.data.max_errors;
        (config.reading, config.cache) = recipe.reading();
        let start = Position { epoch: at.epoch, batch_index: at.batch };
        Ok(Loader::new(train, config, start)?)
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> &T {
        &self.task
    }

    /// The task, for what comes after the training.
    #[must_use]
    pub fn into_task(self) -> T {
        self.task
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

    /// Steps of the warm-up, in which the learning rate rises.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.schedule.warmup_steps
    }

    /// What would help a run whose loss stays at that of one colour.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        self.plateau.remedy()
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
        self.task.device_mut().set_weights(weights)
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
        self.log.begin(self.loader.wait_seconds());
        let mut measured = None;
        while self.step < self.schedule.total_steps && !stop.load(Ordering::Relaxed) {
            match self.one_step(tell) {
                Ok(now) => measured = now,
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
        self.tell_transparency(1, tell);
        self.save(tell)?;
        if finished {
            if measured.is_none() {
                measured = self.task.measure(tell)?;
            }
            self.learn_trivial(true, tell)?;
            self.task.draw(&self.run, self.step, tell)?;
            self.task.write_results(&self.run)?;
        }
        self.write_skipped()?;
        let records = metrics::read(&self.run.metrics())?;
        self.draw_curves(&records)?;
        Ok(self.summary(finished, measured, &records))
    }

    fn draw_curves(&self, records: &[Record]) -> Result<(), TrainError> {
        curves::draw(&self.run.curves(), records, self.trivial.as_ref())
    }

    fn summary(&self, finished: bool, measured: Option<Measured>, records: &[Record]) -> Summary {
        let probe = |r: &Record| r.probe_knn.map(|v| (r.step, v));
        let first = records.iter().find_map(probe);
        let last = records.iter().rev().find_map(probe);
        Summary {
            outcome: if finished { Outcome::Finished } else { Outcome::Stopped },
            step: self.step,
            first_val_loss: records.iter().find_map(|r| r.val_loss.map(|v| (r.step, v))),
            val_loss: measured.filter(|_| finished).map(|m| m.loss),
            val_top1: measured.filter(|_| finished).and_then(|m| m.top1),
            best: self.best,
            trivial: self.trivial,
            overfitting: self.curve.overfitting(),
            probe_knn: first.zip(last).map(|(first, last)| [first, last]),
        }
    }

    /// Takes the losses of the trivial predictors once they are known, and writes them down.
    fn learn_trivial(&mut self, wait: bool, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        if self.trivial.is_none()
            && let Some(known) = self.task.trivial(wait, tell)?
        {
            self.trivial = Some(known);
            let text =
                serde_json::to_string_pretty(&known).map_err(|e| TrainError::Internal { what: e.to_string() })?;
            let path = self.run.baselines();
            simmim_files::write(&path, (text + "\n").as_bytes()).map_err(TrainError::io(&path))?;
            tell(Event::Trivial(known));
        }
        Ok(())
    }

    /// Says once what was done with transparency, as soon as so many images are read.
    fn tell_transparency(&mut self, enough: usize, tell: &mut dyn FnMut(Event)) {
        let Transparency { images, transparent } = self.loader.transparency();
        if self.transparency_told || images < enough {
            return;
        }
        self.transparency_told = true;
        if transparent > 0 {
            let done = match self.recipe.data.background.as_str() {
                "drop" => "dropped, hidden colours show".to_owned(),
                color => format!("composited on {color}"),
            };
            tell(Event::Warning(format!(
                "{transparent} of {images} images have transparency: {done} (data.background = \"{}\")",
                self.recipe.data.background
            )));
        }
    }

    /// One step with everything that is due after it; returns what was measured on held-out images.
    fn one_step(&mut self, tell: &mut dyn FnMut(Event)) -> Result<Option<Measured>, TrainError> {
        let mut batch = self.loader.next_batch()?;
        self.tell_transparency(COUNTED.min(self.images), tell);
        let rate = self.schedule.at(self.step);
        self.task.accumulate(&mut batch, self.step)?;
        self.loader.recycle(batch);
        let result = self.task.update(self.step, rate)?;
        self.step += 1;
        if self.judge(result, tell)? {
            return Ok(None);
        }
        self.log.add(result.loss);
        let now = self.step;
        let due = |every: u64| every > 0 && now.is_multiple_of(every);
        let last = self.step == self.schedule.total_steps;
        let measure = due(self.task.measure_every(self.loader.batches_per_epoch())) || last;
        let (draw, save) = (due(self.task.draw_every()), due(self.recipe.checkpoint.every_steps));
        let (step, total, loss) = (self.step, self.schedule.total_steps, result.loss);
        tell(Event::Step { step, total, loss, images_per_second: self.log.images_per_second() });
        let probe = self.task.probes() && (due(self.recipe.probe.every_steps) || last);
        let mut measured = None;
        self.learn_trivial(measure, tell)?;
        if measure || probe || due(self.recipe.log.every_steps) {
            let epoch = self.step as f64 / self.loader.batches_per_epoch() as f64;
            let window = self.log.record(self.loader.wait_seconds());
            let mut record = Record { step, epoch, lr: rate.lr, grad_norm: result.grad_norm, ..window };
            if measure {
                measured = self.measure(tell)?;
            }
            record.val_loss = measured.map(|m| m.loss);
            record.val_top1 = measured.and_then(|m| m.top1);
            if probe {
                record.probe_knn = self.task.probe()?;
            }
            self.log.write(&record, self.trivial)?;
            self.watch(&record, tell);
            tell(Event::Logged(record));
            self.log.restart(self.loader.wait_seconds());
        }
        let pause = Instant::now();
        if measure {
            self.draw_curves(&metrics::read(&self.run.metrics())?)?;
        }
        if draw {
            self.task.draw(&self.run, self.step, tell)?;
        }
        if save {
            self.save(tell)?;
        }
        self.log.pause(pause.elapsed());
        Ok(measured)
    }

    /// Measures, and keeps the weights where they are the best so far; of equal ones the later, which were trained longer.
    fn measure(&mut self, tell: &mut dyn FnMut(Event)) -> Result<Option<Measured>, TrainError> {
        let measured = self.task.measure(tell)?;
        if let Some(top1) = measured.and_then(|m| m.top1)
            && self.best.is_none_or(|best| top1 >= best.top1)
        {
            self.best = Some(Best { step: self.step, top1 });
            self.task.keep_best(&self.run)?;
        }
        Ok(measured)
    }

    /// Warns of a loss that stands still at that of one colour or doubles, and when the held-out loss begins to rise while the
    /// training loss falls.
    fn watch(&mut self, record: &Record, tell: &mut dyn FnMut(Event)) {
        self.plateau.add(record, self.trivial.as_ref()).into_iter().for_each(|w| tell(Event::Warning(w)));
        let before = self.curve.overfitting();
        self.curve.add(record);
        if let (None, Some(Overfitting { best, last })) = (before, self.curve.overfitting()) {
            tell(Event::Warning(format!(
                "the held-out loss rises while the training loss falls: {:.4} after step {}, {:.4} after step {}; the model \
                 begins to overfit",
                best.val, best.step, last.val, last.step
            )));
        }
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
                format!("the loss is {}, the median of recent losses {median}", result.loss),
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
                what: format!("{what}, and there is no checkpoint to roll back to"),
            });
        };
        found.damaged.into_iter().for_each(|w| tell(Event::Warning(w)));
        let failed = self.step;
        self.task.device_mut().restore(&self.run.checkpoints(), found.tensors)?;
        self.best = found.meta.best;
        self.step = found.meta.step;
        self.log = Log::open(&self.run, &self.recipe, self.step, found.meta.loss_window)?;
        self.curve = Curve::of(&metrics::read(&self.run.metrics())?);
        self.log.begin(self.loader.wait_seconds());
        self.guard.restore(&found.meta.recent_losses);
        tell(Event::Warning(format!("step {failed}: {what}; rolled back to step {}", self.step)));
        Ok(true)
    }

    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let at = self.loader.position();
        let machine = self.task.device().executor().machine();
        let meta = Meta {
            step: self.step,
            epoch: at.epoch,
            batch: at.batch_index,
            threads: machine.threads,
            isa: machine.isa,
            recent_losses: self.guard.recent(),
            loss_window: self.log.loss_window(),
            rollbacks: self.rollbacks,
            best: self.best,
            classes: self.task.classes().to_vec(),
        };
        let device = self.task.device_mut();
        let shapes = device.checkpoint_shapes();
        let fetch = |name: &str| device.read_tensor(name);
        if let Some(moved) = self.checkpoints.save(&meta, shapes, fetch, self.recipe.checkpoint.keep)? {
            tell(Event::Warning(format!(
                "the checkpoint of step {} was damaged and is now {}; delete it once you no longer need it",
                self.step,
                moved.display()
            )));
        }
        tell(Event::Checkpoint(self.step));
        Ok(())
    }

    /// Adds the images that could not be read to those of the run's earlier parts.
    fn write_skipped(&self) -> Result<(), TrainError> {
        let path = self.run.skipped();
        let skipped = self.skipped();
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

    /// Names and reasons of the unreadable images so far: of those to train on, then of those to measure on, which may have the same
    /// names.
    #[must_use]
    pub fn skipped(&self) -> Vec<(String, String)> {
        let mut skipped = self.loader.skipped();
        let held_out = self.task.unreadable().iter();
        skipped.extend(held_out.map(|(name, reason)| (name.clone(), format!("held out: {reason}"))));
        skipped
    }

    /// Number of training images.
    #[must_use]
    pub fn images(&self) -> usize {
        self.images
    }
}

/// Writes the encoder of a full model in timm's names, with what it needs to know of its images in the metadata ([`Preprocessing`]).
///
/// # Errors
/// [`TrainError::Model`].
pub fn write_encoder(path: &Path, weights: Weights, images: &Preprocessing) -> Result<(), TrainError> {
    let text =
        serde_json::to_string(&images.description()).map_err(|e| TrainError::Internal { what: e.to_string() })?;
    Ok(weights::write_described(path, &weights::encoder_to_timm(weights), Some(text))?)
}
