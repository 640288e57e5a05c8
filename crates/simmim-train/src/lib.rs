//! Training: recipes, the loop, checkpoints, metrics.
//!
//! A run is a folder ([`RunFolder`]); what it does is a [`Recipe`]; [`Trainer`] joins a model on an executor ([`Session`]) with
//! batches of images. The loop is the same for every [`Task`]: [`Pretraining`], and [`FineTuning`] of a [`Classifier`], whose
//! scores and comparisons stand in [`classify`].

pub mod checkpoint;
pub mod classify;
mod error;
pub mod guard;
pub mod metrics;
pub mod metrics_tensorboard;
pub mod picture;
pub mod recipe;
mod run_folder;
pub mod schedule;
mod trainer;

pub use error::TrainError;
pub use recipe::Recipe;
pub use run_folder::RunFolder;
pub use trainer::{
    Classifier, Data, Event, FineTuning, LabelledData, Measured, Outcome, Pretraining, Reconstruction, Session,
    StepResult, Summary, Task, Trainer, choose_accumulation, open_data, settle, settle_finetuning, training_graph,
    write_encoder,
};
