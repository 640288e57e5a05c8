//! Training: recipes, the loop, checkpoints, metrics.
//!
//! A run is a folder ([`RunFolder`]); what it does is a [`Recipe`]; [`Trainer`] joins a model on an executor ([`Session`]) with
//! batches of images. The loop is the same for every [`Task`]: [`Pretraining`], and [`FineTuning`] of a [`Classifier`], whose
//! scores and comparisons stand in [`classify`].
//!
//! ```
//! use simmim_engine::cpu::CpuExecutor;
//! use simmim_models::{SimMimConfig, VitConfig, optimizer::AdamWConfig};
//! use simmim_train::Session;
//!
//! let mut vit = VitConfig::preset("vit_tiny_patch8_16")?;
//! vit.depth = 2;
//! let simmim = SimMimConfig::tutorial(vit, 0.5);
//! let mut session = Session::new(Box::new(CpuExecutor::new(2)?), simmim, 0)?;
//! session.prepare_training(4, 1, AdamWConfig::default())?;
//! // Four images of 3 x 16 x 16; of each, two of the four patches are hidden.
//! let images: Vec<f32> = (0..4 * 3 * 16 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
//! let masks = vec![vec![true, false, false, true]; 4];
//! let first = session.train_step(&images, &masks, 0, 0, 1e-3)?.loss;
//! let mut last = first;
//! for step in 1..20 {
//!     last = session.train_step(&images, &masks, 0, step, 1e-3)?.loss;
//! }
//! assert!(last < first);
//! # Ok::<(), simmim_train::TrainError>(())
//! ```

mod canvas;
pub mod checkpoint;
pub mod classify;
pub mod contact_sheet;
pub mod curves;
mod error;
pub mod features;
pub mod guard;
pub mod metrics;
pub mod metrics_tensorboard;
pub mod overfitting;
pub mod pace;
pub mod picture;
pub mod plateau;
mod preprocessing;
pub mod probe;
pub mod ranks;
pub mod recipe;
mod run_folder;
pub mod schedule;
mod trainer;
mod trivial;

pub use error::{RankFailure, TrainError};
pub use preprocessing::Preprocessing;
pub use ranks::Ranks;
pub use recipe::Recipe;
pub use run_folder::RunFolder;
pub use trainer::{
    Budget, Classifier, Data, Device, Event, FineTuning, LabelledData, LiveProbe, Measured, Outcome, Pretraining,
    Recompute, Reconstruction, Session, StepMemory, StepResult, Summary, Task, Trainer, choose_accumulation, fit,
    open_data, settle, settle_finetuning, training_graph, write_encoder,
};
pub use trivial::TrivialLosses;
