//! The training loop.

mod classifier;
mod data;
mod device;
mod event;
mod finetuning;
mod held_out;
mod live_probe;
mod log;
mod memory;
mod pretraining;
mod records;
mod session;
mod task;

pub use classifier::Classifier;
pub use data::{Data, open_data};
pub use device::Device;
pub use event::{Event, Outcome, Summary};
pub use finetuning::{FineTuning, LabelledData, settle_finetuning};
pub use live_probe::LiveProbe;
pub use memory::{Budget, Recompute, StepMemory, fit};
pub use pretraining::Pretraining;
pub use session::{Reconstruction, Session, StepResult, choose_accumulation, training_graph};
pub use task::{Measured, Task};

use crate::checkpoint::{Best, Meta};
use crate::error::TrainError;
use crate::guard::{Guard, Verdict};
use crate::metrics::Record;
use crate::overfitting::{Curve, Overfitting};
use crate::plateau::Plateau;
use crate::preprocessing::Preprocessing;
use crate::ranks::Ranks;
use crate::recipe::{Reaction, Recipe};
use crate::run_folder::RunFolder;
use crate::schedule::LearningRate;
use crate::trivial::TrivialLosses;
use device::update_graphs;
use log::Log;
use memory::settle_parts;
use records::Records;
use simmim_data::{Loader, LoaderConfig, Position, Source, Transparency};
use simmim_engine::Executor;
use simmim_engine::executor::Machine;
use simmim_models::Precision;
use simmim_models::weights::{self, Weights};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Images after which it is said how many have transparency.
const COUNTED: usize = 4096;
/// Steps between comparisons of the weights of all ranks.
const COMPARED: u64 = 100;

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

/// Trains a model in a run folder.
pub struct Trainer<T = Pretraining> {
    recipe: Recipe,
    ranks: Ranks,
    /// None where another rank keeps them.
    records: Option<Records>,
    task: T,
    loader: Loader,
    /// Where the next batch that all ranks have lies.
    position: Position,
    schedule: LearningRate,
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

/// Settles what a recipe leaves to the data and the plan: mean and deviation, and the parts of a step on so many ranks. A
/// run's `config.toml` is written after this, so that it is complete.
///
/// # Errors
/// Images that cannot be measured, impossible sizes, a batch that the ranks cannot share equally, a step that does not fit into `train.memory`.
pub fn settle(recipe: &mut Recipe, data: &Data, ranks: usize) -> Result<(), TrainError> {
    recipe.fix_statistics(&*data.train)?;
    let config = recipe.simmim_config()?;
    let updates = update_graphs(&config.parameters(), &recipe.adamw(), false, recipe.share_of_moments(ranks))?;
    settle_parts(recipe, &updates, ranks, |micro, parts| training_graph(&config, micro, parts))
}

/// The number of training images, which has to be that of all ranks.
fn same_images(train: &dyn Source, ranks: &Ranks) -> Result<usize, TrainError> {
    let counts = ranks.gather(&train.len())?;
    let here = match counts.iter().position(|&count| count != counts[0]) {
        Some(rank) if rank == ranks.rank() => Err(TrainError::Input {
            what: format!("{} training images are found here, {} by rank 0", counts[rank], counts[0]),
            help: "give all ranks the same images, on a file system that they share or as equal copies".into(),
        }),
        _ => Ok(counts[0]),
    };
    ranks.agree(here)
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
        Self::among(recipe, Some(run), data, executor, Ranks::default(), tell)
    }

    /// As [`Trainer::new`], as one of several ranks, the first of which has the run folder.
    ///
    /// # Errors
    /// As [`Trainer::new`], and failures of other ranks.
    pub fn among(
        recipe: Recipe,
        run: Option<RunFolder>,
        data: Data,
        executor: Box<dyn Executor>,
        ranks: Ranks,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let task = ranks.agree(Pretraining::new(&recipe, &data, executor, &ranks))?;
        Self::with_task(recipe, run, data.train, task, ranks, tell)
    }

    /// The model.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.task.session()
    }

    /// Probes the weights at the intervals of `probe.every_steps`. Of several ranks the first does.
    pub fn set_probe(&mut self, probe: Option<LiveProbe>) {
        self.task.probe = probe;
    }
}

impl<T: Task> Trainer<T> {
    /// As [`Trainer::among`], for any task on batches of `train`.
    ///
    /// # Errors
    /// As [`Trainer::among`].
    pub fn with_task(
        recipe: Recipe,
        run: Option<RunFolder>,
        train: Arc<dyn Source>,
        mut task: T,
        ranks: Ranks,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let (mut records, mut curve) = (None, Curve::default());
        // The others get position and weights from the first, which alone needs to see the run folder.
        let at = ranks.ask_first(|| {
            let Some(run) = run else { return Err(TrainError::Internal { what: "rank 0 has no run folder".into() }) };
            let (opened, found) = Records::open(run, &recipe, tell)?;
            curve = Curve::of(&opened.lines()?);
            let at = found.map_or(Ok(Meta::default()), |(meta, tensors)| {
                task.device_mut().restore(&opened.run.checkpoints(), tensors)?;
                warn_of_change(&task.device().executor().machine(), &meta.isa, recipe.train.precision, tell);
                Ok::<_, TrainError>(meta)
            })?;
            records = Some(opened);
            Ok(at)
        })?;
        let images = same_images(&*train, &ranks)?;
        let loader = ranks.agree(Self::loader(&recipe, train, &at, &ranks))?;
        let schedule = recipe.learning_rate(loader.batches_per_epoch());
        let mut guard = Guard::new(recipe.guard.spike_factor as f32, recipe.guard.spike_window);
        guard.restore(&at.recent_losses);
        let (rollbacks, step, best, given_weights) = (at.rollbacks, at.step, at.best, false);
        let (plateau, position) = (Plateau::of(&recipe), loader.position());
        Ok(Self {
            recipe,
            ranks,
            records,
            task,
            loader,
            position,
            schedule,
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

    fn loader(recipe: &Recipe, train: Arc<dyn Source>, at: &Meta, ranks: &Ranks) -> Result<Loader, TrainError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let share = recipe.share(ranks.world())?;
        let mut config = LoaderConfig::new(share, recipe.train.seed, recipe.transform());
        (config.world, config.rank, config.mirrored) = (ranks.world(), ranks.rank(), recipe.mixes());
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

    /// The run folder; none where another rank keeps it.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.records.as_ref().map(|records| records.run.root())
    }

    /// The ranks of the training.
    #[must_use]
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Starts from given weights instead of random ones. Of several ranks the first gives its own to the others.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        self.given_weights = true;
        self.task.device_mut().set_weights(weights)
    }

    /// Trains until the end, or until `stop` is set, on any rank. Then writes a checkpoint, and at the end the encoder, the full model and a
    /// picture.
    ///
    /// # Errors
    /// Faults of data and disk, a loss that diverges. Checkpoints written before stay; where the data fail, one more is written.
    pub fn run(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<Summary, TrainError> {
        let mut silence = |_| {};
        // The first rank tells what all of them do.
        let tell: &mut dyn FnMut(Event) = if self.ranks.is_first() { tell } else { &mut silence };
        self.task.device_mut().share_states()?;
        if self.ranks.any(self.step == 0 && self.given_weights)? {
            let begun = self.save(tell);
            self.ranks.agree(begun)?;
        }
        self.begin_log();
        let mut measured = None;
        while self.step < self.schedule.total_steps && !self.ranks.any(stop.load(Ordering::Relaxed))? {
            match self.one_step(tell) {
                Ok(now) => measured = now,
                Err(e) => {
                    if e.is_data() {
                        self.save(tell)?;
                    }
                    // Where ranks fail alone the others are no longer there to be asked.
                    if self.ranks.world() == 1 || e.is_shared() {
                        self.write_skipped()?;
                    }
                    return Err(e);
                }
            }
        }
        let finished = self.step >= self.schedule.total_steps;
        self.tell_transparency(1, tell);
        self.compare_ranks()?;
        let saved = self.save(tell);
        self.ranks.agree(saved)?;
        if finished && measured.is_none() {
            measured = self.task.measure(&self.ranks, tell)?;
        }
        let concluded = self.conclude(finished, measured, tell);
        let summary = self.ranks.agree(concluded)?;
        self.write_skipped()?;
        Ok(summary)
    }

    /// Writes what a training leaves.
    fn conclude(
        &mut self,
        finished: bool,
        measured: Option<Measured>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Summary, TrainError> {
        if finished {
            self.learn_trivial(true, tell)?;
        }
        let Some(records) = &self.records else { return Ok(self.summary(finished, measured, &[])) };
        if finished {
            self.task.draw(&records.run, self.step, tell)?;
            self.task.write_results(&records.run)?;
        }
        let lines = records.lines()?;
        records.draw_curves(&lines, self.trivial.as_ref())?;
        Ok(self.summary(finished, measured, &lines))
    }

    fn begin_log(&mut self) {
        let waited = self.loader.wait_seconds();
        self.records.iter_mut().for_each(|records| records.log.begin(waited));
    }

    /// Makes sure that all ranks have the same weights.
    fn compare_ranks(&mut self) -> Result<(), TrainError> {
        let device = self.task.device_mut();
        let names: BTreeSet<String> = device.parameters().iter().map(|p| p.name.clone()).collect();
        self.ranks.compare_states(device.executor_mut(), self.step, |name| names.contains(name))
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
            && let Some(records) = &self.records
            && let Some(known) = self.task.trivial(wait, tell)?
        {
            self.trivial = Some(known);
            records.write_trivial(&known)?;
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
        let batch = self.loader.next_batch().map_err(TrainError::from);
        let mut batch = self.ranks.agree(batch)?;
        self.position = self.loader.position();
        self.tell_transparency(COUNTED.min(self.images), tell);
        let rate = self.schedule.at(self.step);
        self.task.accumulate(&mut batch, self.step)?;
        self.loader.recycle(batch);
        let result = self.task.update(self.step, rate)?;
        self.step += 1;
        if self.judge(result, tell)? {
            return Ok(None);
        }
        let now = self.step;
        let due = |every: u64| every > 0 && now.is_multiple_of(every);
        let last = self.step == self.schedule.total_steps;
        let (draw, save) = (due(self.task.draw_every()), due(self.recipe.checkpoint.every_steps));
        if let Some(records) = &mut self.records {
            records.log.add(result.loss);
            let (step, total, loss) = (self.step, self.schedule.total_steps, result.loss);
            tell(Event::Step { step, total, loss, images_per_second: records.log.images_per_second() });
        }
        if due(COMPARED) || save {
            self.compare_ranks()?;
        }
        let measure = due(self.task.measure_every(self.loader.batches_per_epoch())) || last;
        // Speed is that of the training, without what is done now.
        let window = self.records.as_ref().map(|records| records.log.record(self.loader.wait_seconds()));
        let trivial = self.learn_trivial(measure, tell);
        let measured = if measure { self.task.measure(&self.ranks, tell)? } else { None };
        let kept = self.keep_best(measured);
        let probe = due(self.recipe.probe.every_steps) || last;
        let logged = if measure || probe || due(self.recipe.log.every_steps) {
            let epoch = self.step as f64 / self.loader.batches_per_epoch() as f64;
            let of_step = Record {
                step: self.step,
                epoch,
                lr: rate.lr,
                grad_norm: result.grad_norm,
                ..window.unwrap_or_default()
            };
            self.write_line(of_step, measured, probe, tell)
        } else {
            Ok(())
        };
        let written = self.write_due([measure, draw, save], tell);
        self.ranks.agree(trivial.and(kept).and(logged).and(written))?;
        Ok(measured)
    }

    /// Writes a line of the metrics, where this rank has them.
    fn write_line(
        &mut self,
        mut record: Record,
        measured: Option<Measured>,
        probe: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let Some(records) = &mut self.records else { return Ok(()) };
        record.val_loss = measured.map(|m| m.loss);
        record.val_top1 = measured.and_then(|m| m.top1);
        if probe {
            record.probe_knn = self.task.probe()?;
        }
        records.log.write(&record, self.trivial)?;
        records.log.restart(self.loader.wait_seconds());
        self.watch(&record, tell);
        tell(Event::Logged(record));
        Ok(())
    }

    /// Draws and saves, where this rank does.
    fn write_due(&mut self, [measured, draw, save]: [bool; 3], tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let pause = Instant::now();
        if let (true, Some(records)) = (measured, &self.records) {
            records.draw_curves(&records.lines()?, self.trivial.as_ref())?;
        }
        if let (true, Some(records)) = (draw, &self.records) {
            self.task.draw(&records.run, self.step, tell)?;
        }
        if save {
            self.save(tell)?;
        }
        self.records.iter_mut().for_each(|records| records.log.pause(pause.elapsed()));
        Ok(())
    }

    /// Keeps the weights where they are the best so far; of equal ones the later, which were trained longer.
    fn keep_best(&mut self, measured: Option<Measured>) -> Result<(), TrainError> {
        if let Some(top1) = measured.and_then(|m| m.top1)
            && self.best.is_none_or(|best| top1 >= best.top1)
        {
            self.best = Some(Best { step: self.step, top1 });
            if let Some(records) = &self.records {
                self.task.keep_best(&records.run)?;
            }
        }
        Ok(())
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
        let failed = self.step;
        let meta = self.ranks.ask_first(|| {
            let Some(records) = &mut self.records else { return Ok(Meta::default()) };
            let Some(found) = records.checkpoints.load_latest()? else {
                let what = format!("{what}, and there is no checkpoint to roll back to");
                return Err(TrainError::Diverged { step: failed, what });
            };
            found.damaged.into_iter().for_each(|w| tell(Event::Warning(w)));
            self.task.device_mut().restore(&records.run.checkpoints(), found.tensors)?;
            records.log = Log::open(&records.run, &self.recipe, found.meta.step, found.meta.loss_window)?;
            self.curve = Curve::of(&records.lines()?);
            Ok(found.meta)
        })?;
        self.task.device_mut().share_states()?;
        (self.best, self.step) = (meta.best, meta.step);
        self.begin_log();
        self.guard.restore(&meta.recent_losses);
        tell(Event::Warning(format!("step {failed}: {what}; rolled back to step {}", self.step)));
        Ok(true)
    }

    /// Writes a checkpoint, where this rank does; the others have the moments that they keep ready.
    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let Some(records) = &mut self.records else {
            return self.task.device_mut().with_all_moments(None::<fn(&mut Device) -> _>).map(|_: Option<()>| ());
        };
        let at = self.position;
        let machine = self.task.device().executor().machine();
        let meta = Meta {
            step: self.step,
            epoch: at.epoch,
            batch: at.batch_index,
            threads: machine.threads,
            isa: machine.isa,
            recent_losses: self.guard.recent(),
            loss_window: records.log.loss_window(),
            rollbacks: self.rollbacks,
            best: self.best,
            classes: self.task.classes().to_vec(),
        };
        let keep = self.recipe.checkpoint.keep;
        let write = |device: &mut Device| {
            let shapes = device.checkpoint_shapes();
            records.checkpoints.save(&meta, shapes, |name| device.read_tensor(name), keep)
        };
        if let Some(moved) = self.task.device_mut().with_all_moments(Some(write))?.flatten() {
            tell(Event::Warning(format!(
                "the checkpoint of step {} was damaged and is now {}; delete it once you no longer need it",
                self.step,
                moved.display()
            )));
        }
        tell(Event::Checkpoint(self.step));
        Ok(())
    }

    /// Writes down the images that could not be read on any rank.
    fn write_skipped(&self) -> Result<(), TrainError> {
        let skipped = self.ranks.gather(&self.skipped())?.concat();
        self.records.as_ref().map_or(Ok(()), |records| records.write_skipped(&skipped))
    }

    /// Names and reasons of the unreadable images so far: of those to train on, then of those to measure on, which may have the same
    /// names. Of several ranks each knows its own.
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
