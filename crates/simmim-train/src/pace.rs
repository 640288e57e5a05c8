//! How long a training takes on this machine: some of its steps are timed before it begins.

use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::trainer::{FineTuning, LabelledData, Pretraining, Task};
use simmim_data::{Batch, Source};
use simmim_engine::Executor;
use simmim_random::{Purpose, Stream};
use std::time::{Duration, Instant};

/// Share of the time that is left to measurements, pictures and checkpoints.
const RESERVE: f64 = 0.05;
/// Share of a step that a pass without backward takes.
const FORWARD: f64 = 1.0 / 3.0;

/// How carefully steps are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// To tell someone: one step, more where they are short.
    Rough,
    /// To choose a length by: three steps, more where they are short.
    Close,
}

impl Care {
    /// Number of runs, and how long they go on at least.
    fn least(self) -> (usize, Duration) {
        match self {
            Self::Rough => (1, Duration::from_millis(300)),
            Self::Close => (3, Duration::from_secs(2)),
        }
    }
}

/// Seconds of one optimiser step of a settled recipe for pre-training on an executor. A loader that cannot keep up is not in it.
///
/// # Errors
/// Impossible sizes, faults of the device.
pub fn seconds_of_pretraining(recipe: &Recipe, executor: Box<dyn Executor>, care: Care) -> Result<f64, TrainError> {
    let part = one_part(recipe);
    let mut task = Pretraining::steps_only(&part, executor, &Ranks::default())?;
    let values = recipe.simmim_config()?.encoder.geometry().image_values();
    Ok(seconds_per_step(recipe, &mut task, noise(part.train.batch_size, values, u64::MAX), care)?.0)
}

/// As [`seconds_of_pretraining`], for a fine-tuning on images: with its share of the measurements on validation images.
///
/// # Errors
/// As [`seconds_of_pretraining`].
pub fn seconds_of_finetuning(
    recipe: &Recipe,
    data: &LabelledData,
    executor: Box<dyn Executor>,
    care: Care,
) -> Result<f64, TrainError> {
    let part = one_part(recipe);
    let mut task = FineTuning::new(&part, data, executor)?;
    let batch = noise(part.train.batch_size, recipe.transform().values(), data.train.len() as u64);
    let (step, image) = seconds_per_step(recipe, &mut task, batch, care)?;
    // A frozen encoder has no backward.
    let share = if recipe.finetuning()?.0.freeze { 1.0 } else { FORWARD };
    let measured = data.val.spread(recipe.validate.images).len() as f64 * image * share;
    Ok(step + measured / task.measure_every(recipe.steps_per_epoch(data.train.len())) as f64)
}

/// The recipe of the first part of a step alone.
fn one_part(recipe: &Recipe) -> Recipe {
    let mut part = recipe.clone();
    part.train.batch_size /= recipe.train.accumulation.max(1);
    part.train.accumulation = 1;
    part
}

/// A batch of images without content, the first of a source of so many.
fn noise(batch: usize, values: usize, source: u64) -> Batch {
    let mut noise = Stream::new(0, Purpose::Test, 0, 0);
    let samples: Vec<u64> = (0..batch as u64).map(|i| i % source.max(1)).collect();
    let images = (0..batch * values).map(|_| noise.normal() as f32).collect();
    Batch { images, draws: samples.clone(), samples, rows: (0..batch).collect(), epoch: 0, index_in_epoch: 0 }
}

/// Seconds of a step and of an image in it: the medians of a few runs of one part of it, without the first, which touches the memory.
fn seconds_per_step(
    recipe: &Recipe,
    task: &mut impl Task,
    mut batch: Batch,
    care: Care,
) -> Result<(f64, f64), TrainError> {
    let (runs, time) = care.least();
    let update = |task: &mut _, step: u64, batch: Option<&mut Batch>| {
        let start = Instant::now();
        if let Some(batch) = batch {
            Task::accumulate(task, batch, step)?;
        }
        Task::update(task, step, 1e-4.into())?;
        Ok::<_, TrainError>(start.elapsed())
    };
    update(task, 0, Some(&mut batch))?;
    let (start, mut whole, mut alone) = (Instant::now(), Vec::new(), Vec::new());
    while whole.len() < runs || start.elapsed() < time {
        let step = whole.len() as u64 + 1;
        whole.push(update(task, step, Some(&mut batch))?);
        // Only the update waits for the device, so a part is what it adds to one.
        alone.push(update(task, step, None)?);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let alone = median(&mut alone);
    let part = (median(&mut whole) - alone).max(0.0);
    let parts = recipe.train.accumulation.max(1) as f64;
    Ok((parts * part + alone, part / batch.samples.len().max(1) as f64))
}

impl Recipe {
    /// Steps of an epoch over so many images.
    #[must_use]
    pub fn steps_per_epoch(&self, images: usize) -> u64 {
        (images / self.train.batch_size.max(1)).max(1) as u64
    }

    /// Makes the training as long as fits into so many minutes at so many seconds a step.
    ///
    /// # Errors
    /// [`TrainError::Input`] where not one step fits.
    pub fn fit_into(&mut self, minutes: f64, seconds_per_step: f64) -> Result<(), TrainError> {
        let steps = (minutes * 60.0 * (1.0 - RESERVE) / seconds_per_step).floor();
        if steps < 1.0 {
            return Err(TrainError::Input {
                what: format!("{minutes} minutes do not suffice for one step, which takes {seconds_per_step:.1} s"),
                help: "give more minutes, or take a smaller train.batch_size or model".into(),
            });
        }
        self.schedule.epochs = 0;
        self.schedule.steps = steps as u64;
        Ok(())
    }

    /// Settles the warm-up of a recipe whose length was changed: it takes a tenth of the length at most, unless it was `asked` for as it
    /// is.
    pub fn settle_warmup(&mut self, steps_per_epoch: u64, asked: bool) {
        let total = self.total_steps(steps_per_epoch);
        let s = &mut self.schedule;
        let own = match s.warmup_steps {
            0 => (s.warmup_epochs * steps_per_epoch as f64).round() as u64,
            steps => steps,
        };
        let settled = if asked { own } else { own.min(total / 10) };
        if settled != self.learning_rate(steps_per_epoch).warmup_steps {
            (self.schedule.warmup_steps, self.schedule.warmup_epochs) = (settled, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::{LabelledSource, demo, demo_held_out};
    use simmim_engine::cpu::CpuExecutor;
    use std::path::Path;
    use std::sync::Arc;

    fn recipe(name: &str, set: &[&str]) -> Recipe {
        let set: Vec<String> = set.iter().map(|v| (*v).to_owned()).collect();
        Recipe::resolve_for(name, &set, Some(&Recipe::resolve("demo", &[]).unwrap())).unwrap()
    }

    #[test]
    fn a_recipe_is_cut_to_the_time() {
        let mut recipe = recipe("demo", &["schedule.epochs=7", "schedule.warmup_steps=60"]);
        recipe.fit_into(1.0, 0.1).unwrap();
        assert_eq!((recipe.schedule.epochs, recipe.schedule.steps), (0, 570));
        recipe.fit_into(10.0, 0.1).unwrap();
        assert_eq!(recipe.schedule.steps, 5700);
        let error = recipe.fit_into(0.01, 2.0).unwrap_err();
        assert!(error.to_string().contains("0.01 minutes do not suffice for one step"), "{error}");
    }

    #[test]
    fn a_warm_up_takes_a_tenth_at_most_unless_it_was_asked_for() {
        let settled = |set: &[&str], asked: bool| {
            let mut recipe = recipe("finetune_small_images", set);
            recipe.settle_warmup(94, asked);
            let rate = recipe.learning_rate(94);
            (rate.warmup_steps, rate.total_steps, recipe.schedule.warmup_epochs)
        };
        let epochs = "schedule.warmup_epochs=3";
        for (set, asked, expected) in [
            // The recipe's own length: three of thirty epochs.
            (&[][..], false, (282, 2820, 3.0)),
            (&["schedule.epochs=5"], false, (47, 470, 0.0)),
            (&["schedule.epochs=60"], false, (282, 5640, 3.0)),
            (&["schedule.steps=50"], false, (5, 50, 0.0)),
            (&["schedule.steps=5"], false, (0, 5, 0.0)),
            (&["schedule.steps=50", "schedule.warmup_steps=40"], false, (5, 50, 0.0)),
            (&["schedule.steps=50", "schedule.warmup_steps=40"], true, (40, 50, 0.0)),
            (&["schedule.steps=500", epochs], true, (282, 500, 0.0)),
            (&["schedule.epochs=5", epochs], true, (282, 470, 3.0)),
        ] {
            assert_eq!(settled(set, asked), expected, "{set:?} {asked}");
        }
    }

    #[test]
    fn steps_of_both_tasks_are_timed_and_parts_and_measurements_count() {
        let executor = || Box::new(CpuExecutor::new(1).unwrap());
        let small =
            ["train.batch_size=8", "train.accumulation=1", "model.depth=1", "data.mean=[0.5]", "data.std=[0.5]"];
        let seconds = |parts: &str| {
            let recipe = recipe("demo", &[&small[..], &[parts]].concat());
            seconds_of_pretraining(&recipe, executor(), Care::Rough).unwrap()
        };
        assert!(seconds("train.accumulation=1") > 0.0 && seconds("train.accumulation=4").is_finite());
        let name = Path::new("demo");
        let train = LabelledSource::new(Arc::new(demo().unwrap()), name).unwrap();
        let val = LabelledSource::with_classes(Arc::new(demo_held_out().unwrap()), name, train.class_names()).unwrap();
        let data = LabelledData { train, val };
        // Two measurements on 1,000 images for every step of 8 take far longer than the step.
        let seconds = |every: &str| {
            let recipe = recipe("finetune_small_images", &[&small[..], &[every]].concat());
            seconds_of_finetuning(&recipe, &data, executor(), Care::Rough).unwrap()
        };
        let (rarely, always) = (seconds("validate.every_steps=100000"), seconds("validate.every_steps=1"));
        assert!(rarely > 0.0 && always > 5.0 * rarely, "{rarely} {always}");
    }
}
