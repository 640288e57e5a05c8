//! Progress on standard error: a bar on a terminal, plain lines otherwise, JSON when asked.

#![allow(clippy::print_stderr, reason = "standard error is for progress and logs")]

use crate::arguments::LogFormat;
use indicatif::{ProgressBar, ProgressStyle};
use simmim_train::metrics::Record;
use simmim_train::{Event, Ranks};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between plain lines.
const QUIET: Duration = Duration::from_secs(5);

/// Shows what happens in a run.
pub(crate) struct Progress {
    /// Another rank speaks for this one.
    silent: bool,
    format: LogFormat,
    bar: Option<ProgressBar>,
    last: Option<Instant>,
    pace: Pace,
}

/// How far a run has come since when.
struct Pace {
    start: Instant,
    /// Steps that were done at the start.
    done: u64,
    total: u64,
}

impl Pace {
    /// The time that is left at the mean speed so far, for a sentence; nothing before the first step and after the last.
    fn left(&self, step: u64, elapsed: Duration) -> Option<String> {
        let (done, left) = (step.checked_sub(self.done)?, self.total.checked_sub(step)?);
        if done == 0 || left == 0 {
            return None;
        }
        Some(format!("{} left", duration(elapsed.as_secs_f64() * left as f64 / done as f64)))
    }
}

/// A time in the unit that people would take.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

impl Progress {
    pub(crate) fn new(format: LogFormat, done: u64, total: u64) -> Self {
        let bar = (format == LogFormat::Text && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { silent: false, format, bar, last: None, pace: Pace { start: Instant::now(), done, total } }
    }

    /// The progress of a rank, of which the first speaks for all.
    pub(crate) fn of_rank(ranks: &Ranks, format: LogFormat, done: u64, total: u64) -> Self {
        match ranks.is_first() {
            true => Self::new(format, done, total),
            false => Self { silent: true, ..Self::new(LogFormat::Json, done, total) },
        }
    }

    /// A sentence for the user.
    pub(crate) fn say(&self, text: &str) {
        if self.silent {
            return;
        }
        match (&self.bar, self.format) {
            (Some(bar), _) => bar.println(text),
            (None, LogFormat::Text) => eprintln!("{text}"),
            (None, LogFormat::Json) => eprintln!("{}", serde_json::json!({ "event": "message", "text": text })),
        }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event) {
        if self.silent {
            return;
        }
        match event {
            Event::Step { step, loss, images_per_second, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    bar.set_message(format!("loss {loss:.4}, {images_per_second:.1} images/s"));
                }
            }
            Event::Logged(record) => self.logged(record),
            Event::Checkpoint(step) if self.format == LogFormat::Json => {
                eprintln!("{}", serde_json::json!({ "event": "checkpoint", "step": step }));
            }
            Event::Checkpoint(_) => {}
            Event::Trivial(t) if self.format == LogFormat::Json => {
                eprintln!("{}", serde_json::json!({ "event": "baselines", "losses": t }));
            }
            Event::Trivial(t) => self.say(&format!(
                "held-out loss of trivial predictors: mean colour {:.4}, mean of visible neighbours {:.4}",
                t.mean_color, t.visible_neighbors
            )),
            Event::Warning(text) if self.format == LogFormat::Json => {
                eprintln!("{}", serde_json::json!({ "event": "warning", "text": text }));
            }
            Event::Warning(text) => self.say(&format!("warning: {text}")),
        }
    }

    fn logged(&mut self, r: &Record) {
        if self.format == LogFormat::Json {
            eprintln!("{}", serde_json::json!({ "event": "step", "metrics": r }));
            return;
        }
        let recent = self.last.is_some_and(|at| at.elapsed() < QUIET);
        if r.val_loss.is_none() && r.probe_knn.is_none() && (self.bar.is_some() || recent) {
            return;
        }
        self.last = Some(Instant::now());
        let top1 = r.val_top1.map(|v| format!(", top-1 {:.2} %", 100.0 * v)).unwrap_or_default();
        let held_out = r.val_loss.map(|v| format!(", held-out {v:.4}{top1}")).unwrap_or_default();
        let probe = r.probe_knn.map(|v| format!(", kNN {:.1} %", v * 100.0)).unwrap_or_default();
        let (step, loss, lr, speed) = (r.step, r.loss, r.lr, r.images_per_second);
        let left = self.pace.left(step, self.pace.start.elapsed()).map(|left| format!(", {left}")).unwrap_or_default();
        self.say(&format!("step {step}: loss {loss:.4}{held_out}{probe}, lr {lr:.2e}, {speed:.1} images/s{left}"));
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_steps_of_this_start() {
        let pace = Pace { start: Instant::now(), done: 100, total: 1000 };
        let left = |step, seconds| pace.left(step, Duration::from_secs(seconds));
        assert_eq!(left(200, 10).unwrap(), "80 s left");
        assert_eq!(left(200, 100).unwrap(), "13 min left");
        assert_eq!(left(200, 3600).unwrap(), "8.0 h left");
        assert_eq!((left(100, 5), left(1000, 90), left(50, 5)), (None, None, None));
    }
}
