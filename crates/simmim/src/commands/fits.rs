//! How far the fits of a probe have come, on standard error.

#![allow(clippy::print_stderr, reason = "standard error is for progress and logs")]

use crate::arguments::LogFormat;
use crate::meter::{plural, say};
use crate::progress::duration;
use indicatif::{ProgressBar, ProgressStyle};
use simmim_train::probe::{LinearScore, Stage};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between plain lines.
const QUIET: Duration = Duration::from_secs(5);
/// Share of a rating that goes into neighbours where there are linear fits too.
const NEIGHBORS: f64 = 0.2;
/// Iterations of a usual fit.
const USUAL: f64 = 40.0;
/// Steps of a bar.
const STEPS: f64 = 1000.0;

/// Tells how far a number of ratings has come.
pub(crate) struct Fits {
    format: LogFormat,
    terminal: bool,
    /// Both methods are rated.
    both: bool,
    start: Instant,
    last: Instant,
    /// Work of all ratings, in units that the caller chooses, and of those that are done.
    total: f64,
    done: f64,
}

impl Fits {
    /// For ratings of so much work altogether.
    pub(crate) fn new(format: LogFormat, both: bool, total: f64) -> Self {
        let terminal = format == LogFormat::Text && std::io::stderr().is_terminal();
        let now = Instant::now();
        Self { format, terminal, both, start: now, last: now, total, done: 0.0 }
    }

    /// Rates `what`, which is so much work; `f` is given the function to tell its stages to.
    pub(crate) fn rate<T>(&mut self, what: &str, work: f64, f: impl FnOnce(&mut dyn FnMut(Stage)) -> T) -> T {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new(STEPS as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        let result = f(&mut |stage| self.at(what, work, stage, bar.as_ref()));
        bar.iter().for_each(ProgressBar::finish_and_clear);
        self.done += work;
        result
    }

    fn at(&mut self, what: &str, work: f64, stage: Stage, bar: Option<&ProgressBar>) {
        if bar.is_none() && self.last.elapsed() < QUIET {
            return;
        }
        self.last = Instant::now();
        let share = (self.done + work * share_of(stage, self.both)) / self.total;
        let left = (share > 0.0).then(|| self.start.elapsed().as_secs_f64() * (1.0 / share - 1.0));
        match (bar, self.format) {
            (Some(bar), _) => {
                bar.set_position((share * STEPS) as u64);
                bar.set_message(text(what, stage, left));
            }
            (None, LogFormat::Text) => eprintln!("{}", text(what, stage, left)),
            (None, LogFormat::Json) => eprintln!(
                "{}",
                serde_json::json!({ "event": "fit", "features": what, "method": stage.method, "done": stage.done, "most": stage.most,
                    "iterations": stage.iterations, "seconds_left": left })
            ),
        }
    }
}

/// The share of a rating that is done.
fn share_of(stage: Stage, both: bool) -> f64 {
    let under_way = stage.iterations as f64 / (stage.iterations as f64 + USUAL);
    let within = (stage.done as f64 + under_way) / stage.most.max(1) as f64;
    match (both, stage.method) {
        (false, _) => within,
        (true, "kNN") => NEIGHBORS * within,
        (true, _) => NEIGHBORS + (1.0 - NEIGHBORS) * within,
    }
}

fn text(what: &str, stage: Stage, left: Option<f64>) -> String {
    let Stage { method, done, most, iterations } = stage;
    let now = (done + 1).min(most);
    let step = if method == "kNN" { "search" } else { "fit" };
    let iterations = if iterations > 0 { format!(", {iterations} iterations") } else { String::new() };
    let left = left.map(|left| format!(", about {} left", duration(left))).unwrap_or_default();
    format!("{what}, {method}: {step} {now} of at most {most}{iterations}{left}")
}

/// Warns of fits that ended before their minimum.
pub(crate) fn warn_of_cap(format: LogFormat, what: &str, score: &LinearScore, most: u64) {
    if score.capped > 0 {
        let (fits, has) = if score.capped == 1 { ("fit", "has") } else { ("fits", "have") };
        let last = if score.converged {
            "the last one, which VAL is measured with, has converged".to_owned()
        } else {
            format!("the largest element of the last gradient is {:.0e}", score.gradient)
        };
        let text = format!(
            "{what}: {} linear {fits} {has} ended after {most} iteration{}, before the minimum; {last}; --max-iterations allows more",
            score.capped,
            plural(usize::try_from(most).unwrap_or(usize::MAX))
        );
        say(format, "warning", &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_with_the_time_left() {
        let stage = Stage { method: "linear", done: 2, most: 8, iterations: 41 };
        assert_eq!(
            text("raw pixels", stage, Some(40.0)),
            "raw pixels, linear: fit 3 of at most 8, 41 iterations, about 40 s left"
        );
        let end = Stage { method: "kNN", done: 4, most: 4, iterations: 0 };
        assert_eq!(text("block 1", end, None), "block 1, kNN: search 4 of at most 4");
        assert!((share_of(end, true) - NEIGHBORS).abs() < 1e-9 && share_of(end, false) == 1.0);
        let begun = Stage { iterations: 40, ..stage };
        assert!((share_of(begun, true) - (NEIGHBORS + (1.0 - NEIGHBORS) * 2.5 / 8.0)).abs() < 1e-9);
    }
}
