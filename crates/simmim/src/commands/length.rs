//! How long a training is, in steps and on this machine.

use crate::diagnostics::Failure;
use crate::progress::{Progress, duration};
use simmim_train::Recipe;
use simmim_train::pace::Care;

/// Hours above which a training is said to take long.
const LONG: f64 = 6.0;

/// What the arguments say of the length of a training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    minutes: Option<f64>,
    /// They give a length of their own.
    given: bool,
    /// They give a warm-up of their own.
    warmup: bool,
}

/// A positive number of minutes.
pub(crate) fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(m) if m > 0.0 && m.is_finite() => Ok(m),
        _ => Err("give a positive number of minutes".to_owned()),
    }
}

impl Length {
    /// Looks at the values of a recipe that were given as `KEY=VALUE`, those of flags among them.
    pub(crate) fn of(set: &[String], minutes: Option<f64>) -> Self {
        let gives =
            |keys: &[&str]| set.iter().filter_map(|v| v.split_once('=')).any(|(key, _)| keys.contains(&key.trim()));
        Self {
            minutes,
            given: minutes.is_some() || gives(&["schedule.steps", "schedule.epochs"]),
            warmup: gives(&["schedule.warmup_steps", "schedule.warmup_epochs"]),
        }
    }

    /// How carefully steps must be timed.
    pub(crate) fn care(&self) -> Care {
        if self.minutes.is_some() { Care::Close } else { Care::Rough }
    }

    /// Settles a new training on so many images, of which a step takes so many seconds.
    pub(crate) fn settle(
        &self,
        recipe: &mut Recipe,
        images: usize,
        seconds: f64,
        progress: &Progress,
    ) -> Result<(), Failure> {
        if let Some(minutes) = self.minutes {
            recipe.fit_into(minutes, seconds)?;
            let (steps, took) = (recipe.schedule.steps, each(seconds));
            progress.say(&format!("{steps} steps fit into {minutes} minutes, at {took} each"));
        }
        self.settle_warmup(recipe, images);
        Ok(())
    }

    /// Cuts the warm-up to a length that was given.
    pub(crate) fn settle_warmup(&self, recipe: &mut Recipe, images: usize) {
        if self.given {
            recipe.settle_warmup(recipe.steps_per_epoch(images), self.warmup);
        }
    }
}

/// The time of a step.
pub(crate) fn each(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

/// So many steps of so many seconds each, for a sentence.
pub(crate) fn expected(steps: u64, seconds: f64) -> String {
    format!("about {} at {} each", duration(steps as f64 * seconds), each(seconds))
}

/// A warning of a training that takes many hours, with what helps.
pub(crate) fn long_warning(steps: u64, seconds: f64) -> Option<String> {
    let whole = steps as f64 * seconds;
    (whole > LONG * 3600.0).then(|| {
        format!(
            "warning: this takes about {} on this machine; for less, give --minutes 60 (the length, warm-up and schedule follow), or take \
             a smaller model or image size; Ctrl-C saves at any time, and --resume continues",
            duration(whole)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_and_the_warm_up_are_given_by_their_keys() {
        let of = |set: &[&str], minutes| {
            let length = Length::of(&set.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>(), minutes);
            (length.given, length.warmup)
        };
        assert_eq!(of(&["optimizer.lr=1", "schedule.min_lr=0"], None), (false, false));
        assert_eq!(of(&[" schedule.epochs = 3"], None), (true, false));
        assert_eq!(of(&["schedule.steps=3", "schedule.warmup_epochs=1"], None), (true, true));
        assert_eq!(of(&[], Some(2.0)), (true, false));
    }

    #[test]
    fn long_trainings_are_warned_of_in_words_for_people() {
        assert_eq!(expected(1800, 0.062), "about 2 min at 62 ms each");
        assert_eq!(expected(10, 400.0), "about 67 min at 400.0 s each");
        assert_eq!(long_warning(1800, 0.062), None);
        let text = long_warning(8000, 8.5).unwrap();
        assert!(text.contains("about 18.9 h") && text.contains("--minutes"), "{text}");
        assert!(long_warning(488_000, 310.0).unwrap().contains("about 1751 days"));
    }
}
