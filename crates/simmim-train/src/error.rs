//! What can go wrong in a run.

use simmim_data::DataError;
use simmim_engine::EngineError;
use simmim_models::ModelError;
use std::path::{Path, PathBuf};

/// An error of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A recipe with a wrong key or value.
    #[error("{origin}: {what}")]
    Recipe {
        /// The recipe, file or flag.
        origin: String,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// A run folder that cannot be used.
    #[error("{}: {what}", path.display())]
    Run {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// A checkpoint that is not whole.
    #[error("{}: damaged: {what}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A checkpoint that a later version of the program wrote.
    #[error("{}: checkpoint format {format}, this version reads up to {reads}", path.display())]
    NewerCheckpoint {
        /// The folder.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The last format that is read.
        reads: u32,
        /// The oldest version that reads it; empty where it does not say.
        needs: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Training that cannot go on.
    #[error("step {step}: {what}")]
    Diverged {
        /// The step.
        step: u64,
        /// What happened.
        what: String,
    },
    /// Something given that cannot be used.
    #[error("{what}")]
    Input {
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// A fault of the program.
    #[error("internal: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
    /// A fault of the data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A fault of the model's description or weights.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A fault of the engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl TrainError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Recipe { help, .. } | Self::Run { help, .. } | Self::Input { help, .. } => Some(help.clone()),
            Self::Checkpoint { .. } => {
                Some("delete this checkpoint and continue with --resume, which takes the one before it".to_owned())
            }
            Self::NewerCheckpoint { needs, .. } => {
                let version = if needs.is_empty() { "a later version of simmim" } else { &format!("simmim {needs} or later") };
                Some(format!("continue with {version}; nothing was changed"))
            }
            Self::Diverged { .. } => Some(
                "earlier checkpoints are intact: continue with --resume and a lower optimizer.lr, a longer warm-up or a lower \
                 optimizer.clip_norm; guard.on_nan and guard.on_spike control the reaction"
                    .to_owned(),
            ),
            Self::Data(e) => e.help(),
            Self::Model(e) => e.help(),
            Self::Io { .. } | Self::Internal { .. } | Self::Engine(_) => None,
        }
    }

    /// Whether the fault lies in what the user gave, found before anything was written.
    #[must_use]
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Recipe { .. }
                | Self::Run { .. }
                | Self::Checkpoint { .. }
                | Self::NewerCheckpoint { .. }
                | Self::Input { .. }
                | Self::Data(_)
                | Self::Model(_)
        )
    }

    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
