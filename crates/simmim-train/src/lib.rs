//! Training: recipes, the loop, checkpoints, metrics.
//!
//! A run is a folder ([`RunFolder`]); what it does is a [`Recipe`]; [`Trainer`] joins a model on an executor ([`Session`]) with
//! batches of images.

pub mod checkpoint;
pub mod contact_sheet;
pub mod curves;
mod error;
pub mod features;
pub mod guard;
pub mod metrics;
pub mod metrics_tensorboard;
pub mod overfitting;
pub mod picture;
pub mod probe;
pub mod recipe;
mod run_folder;
pub mod schedule;
mod trainer;
mod trivial;

pub use error::TrainError;
pub use recipe::Recipe;
pub use run_folder::RunFolder;
pub use trainer::{
    Data, Event, LiveProbe, Outcome, Reconstruction, Session, StepResult, Summary, Trainer, choose_accumulation,
    open_data, settle, training_graph, write_encoder,
};
pub use trivial::TrivialLosses;
