//! Speed of work that goes through images, on standard error.

#![allow(clippy::print_stderr, reason = "standard error is for progress and logs")]

use crate::arguments::LogFormat;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between plain lines.
const QUIET: Duration = Duration::from_secs(5);

/// Counts images.
pub(crate) struct Meter {
    what: String,
    total: usize,
    format: LogFormat,
    bar: Option<ProgressBar>,
    start: Instant,
    last: Instant,
}

impl Meter {
    pub(crate) fn new(format: LogFormat, what: impl Into<String>, total: usize) -> Self {
        let bar = (format == LogFormat::Text && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = ProgressStyle::with_template("{prefix}: {bar:30} {pos}/{len}, {per_sec}, {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        let what = what.into();
        if let Some(bar) = &bar {
            bar.set_prefix(what.clone());
        }
        Self { what, total, format, bar, start: Instant::now(), last: Instant::now() }
    }

    /// So many images are done.
    pub(crate) fn at(&mut self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if self.last.elapsed() > QUIET && done < self.total {
            self.last = Instant::now();
            self.line(done);
        }
    }

    /// The last line.
    pub(crate) fn finish(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.line(done);
    }

    fn line(&self, done: usize) {
        let seconds = self.start.elapsed().as_secs_f64();
        let speed = done as f64 / seconds.max(1e-9);
        match self.format {
            LogFormat::Text => {
                eprintln!("{}: {done} of {} images, {seconds:.1} s, {speed:.0} images/s", self.what, self.total);
            }
            LogFormat::Json => {
                let (what, total) = (&self.what, self.total);
                let line = serde_json::json!({ "event": "images", "what": what, "done": done, "total": total,
                    "seconds": seconds, "images_per_second": speed });
                eprintln!("{line}");
            }
        }
    }
}

/// What makes a noun one of so many.
pub(crate) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A sentence for the user.
pub(crate) fn say(format: LogFormat, event: &str, text: &str) {
    match format {
        LogFormat::Text if event == "message" => eprintln!("{text}"),
        LogFormat::Text => eprintln!("{event}: {text}"),
        LogFormat::Json => eprintln!("{}", serde_json::json!({ "event": event, "text": text })),
    }
}

/// Names images that were passed over, the first few of them.
pub(crate) fn warn_unreadable<'a>(format: LogFormat, count: usize, reasons: impl Iterator<Item = &'a str>) {
    const SHOWN: usize = 5;
    if count > 0 {
        let examples: Vec<&str> = reasons.take(SHOWN).collect();
        let were = if count == 1 { "image could not be read and was" } else { "images could not be read and were" };
        let more = if count > SHOWN { format!("; and {} more", count - SHOWN) } else { String::new() };
        say(format, "warning", &format!("{count} {were} skipped: {}{more}", examples.join("; ")));
    }
}
