//! Progress on standard error: a bar on a terminal, plain lines otherwise, JSON when asked.

#![allow(clippy::print_stderr, reason = "standard error is for progress and logs")]

use crate::arguments::LogFormat;
use indicatif::{ProgressBar, ProgressStyle};
use simmim_train::Event;
use simmim_train::metrics::Record;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between plain lines.
const QUIET: Duration = Duration::from_secs(5);

/// Shows what happens in a run.
pub(crate) struct Progress {
    format: LogFormat,
    bar: Option<ProgressBar>,
    last: Option<Instant>,
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
        Self { format, bar, last: None }
    }

    /// A sentence for the user.
    pub(crate) fn say(&self, text: &str) {
        match (&self.bar, self.format) {
            (Some(bar), _) => bar.println(text),
            (None, LogFormat::Text) => eprintln!("{text}"),
            (None, LogFormat::Json) => eprintln!("{}", serde_json::json!({ "event": "message", "text": text })),
        }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event) {
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
                "held-out loss of predictors that learn nothing: mean colour {:.4}, mean of the visible neighbours {:.4}",
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
        self.say(&format!("step {step}: loss {loss:.4}{held_out}{probe}, lr {lr:.2e}, {speed:.1} images/s"));
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
