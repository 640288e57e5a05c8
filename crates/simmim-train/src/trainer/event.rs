//! What a training tells while it runs and when it ends.

use crate::checkpoint::Best;
use crate::metrics::Record;
use crate::overfitting::Overfitting;
use crate::trivial::TrivialLosses;

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
