//! How long a training takes on this machine: some of its steps are timed before it begins.

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::trainer::Session;
use simmim_data::mask;
use simmim_engine::Executor;
use simmim_random::{Purpose, Stream};
use std::time::{Duration, Instant};

/// Steps are timed until they have taken this long, three at least.
const TIMED: Duration = Duration::from_secs(2);
/// Share of the time that is left to measurements, pictures and checkpoints.
const RESERVE: f64 = 0.05;

/// Seconds of one optimiser step of a settled recipe on an executor: the median of a few on noise, without the first, which
/// touches the memory. A loader that cannot keep up is not in it.
///
/// # Errors
/// Impossible sizes, faults of the device.
pub fn seconds_per_step(recipe: &Recipe, executor: Box<dyn Executor>) -> Result<f64, TrainError> {
    let config = recipe.simmim_config()?;
    let (batch, parts) = (recipe.train.batch_size, recipe.train.accumulation.max(1));
    let spec = recipe.mask_spec(&config);
    let (down, right) = config.tokens_per_cell();
    let draw = |i: usize| mask::expand(&spec.draw(0, 0, i as u64), spec.rows, spec.cols, down, right);
    let masks: Vec<Vec<bool>> = (0..batch).map(draw).collect();
    let mut noise = Stream::new(0, Purpose::Test, 0, 0);
    let images: Vec<f32> =
        (0..batch * config.encoder.geometry().image_values()).map(|_| noise.normal() as f32).collect();
    let mut session = Session::new(executor, config, 0)?.within(recipe.budget());
    session.prepare_training(batch / parts, parts, recipe.adamw())?;
    let mut step = |i: u64| {
        let start = Instant::now();
        session.train_step(&images, &masks, 0, i, 1e-4).map(|_| start.elapsed())
    };
    step(0)?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed() < TIMED {
        times.push(step(times.len() as u64 + 1)?);
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64())
}

impl Recipe {
    /// Makes the training as long as fits into so many minutes at so many seconds a step. The warm-up takes a tenth of it at most.
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
        self.shorten_warmup();
        Ok(())
    }

    /// Cuts a warm-up given in steps to a tenth of a length given in steps.
    pub fn shorten_warmup(&mut self) {
        if self.schedule.steps > 0 {
            self.schedule.warmup_steps = self.schedule.warmup_steps.min(self.schedule.steps / 10);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_engine::cpu::CpuExecutor;

    #[test]
    fn a_recipe_is_cut_to_the_time() {
        let mut recipe =
            Recipe::resolve("demo", &["schedule.epochs=7".into(), "schedule.warmup_steps=60".into()]).unwrap();
        recipe.fit_into(1.0, 0.1).unwrap();
        assert_eq!((recipe.schedule.epochs, recipe.schedule.steps, recipe.schedule.warmup_steps), (0, 570, 57));
        recipe.fit_into(10.0, 0.1).unwrap();
        assert_eq!((recipe.schedule.steps, recipe.schedule.warmup_steps), (5700, 57));
        let error = recipe.fit_into(0.01, 2.0).unwrap_err();
        assert!(error.to_string().contains("0.01 minutes do not suffice for one step"), "{error}");
    }

    #[test]
    fn steps_are_timed() {
        let set = ["train.batch_size=2", "train.accumulation=1", "model.depth=1"].map(str::to_owned);
        let mut recipe = Recipe::resolve("demo", &set).unwrap();
        recipe.data.mean = crate::recipe::Statistic::Given(vec![0.5]);
        recipe.data.std = crate::recipe::Statistic::Given(vec![0.5]);
        let seconds = seconds_per_step(&recipe, Box::new(CpuExecutor::new(1).unwrap())).unwrap();
        assert!(seconds > 0.0 && seconds.is_finite());
    }
}
