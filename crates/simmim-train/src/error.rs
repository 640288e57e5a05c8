//! What can go wrong in a run.

use serde::{Deserialize, Serialize};
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
    /// A failure on one of several ranks, for which all stop.
    #[error(transparent)]
    Rank(RankFailure),
    /// Ranks that are missing, found by one that waits for them. The others may not know.
    #[error("{what}")]
    Ranks {
        /// Which, and how it was noticed.
        what: String,
    },
    /// Weights that are no longer the same on all ranks.
    #[error("step {step}: the weights of rank {rank} of {ranks} differ from those of the others")]
    RanksDiffer {
        /// The rank whose weights are not those of most.
        rank: usize,
        /// Number of ranks.
        ranks: usize,
        /// Steps done.
        step: u64,
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

/// What a rank tells the others when it fails.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankFailure {
    /// The rank.
    pub rank: usize,
    /// What happened there.
    pub what: String,
    /// What the user can do.
    pub help: Option<String>,
    /// Whether the fault lies in what the user gave.
    pub input: bool,
    /// Whether the data failed, so that the weights are worth a checkpoint.
    pub data: bool,
}

impl std::fmt::Display for RankFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rank {
            // It speaks for all anyway.
            0 => write!(f, "{}", self.what),
            rank => write!(f, "rank {rank}: {}", self.what),
        }
    }
}

impl std::error::Error for RankFailure {}

impl TrainError {
    /// For the other ranks.
    pub(crate) fn at_rank(self, rank: usize) -> RankFailure {
        let (input, data) = (self.is_input(), self.is_data());
        match self {
            Self::Rank(known) => known,
            other => RankFailure { rank, help: other.help(), what: other.to_string(), input, data },
        }
    }

    /// Whether all ranks have this error: one of them is enough to tell it. Any other leaves the rest waiting.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Rank(_) | Self::RanksDiffer { .. } | Self::Diverged { .. })
    }

    /// Whether the data failed.
    pub(crate) fn is_data(&self) -> bool {
        match self {
            Self::Data(_) => true,
            Self::Rank(failure) => failure.data,
            _ => false,
        }
    }

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
            Self::Rank(failure) => failure.help.clone(),
            Self::Ranks { .. } => Some(
                "look at its machine; what the first rank does alone (pictures, probes, checkpoints) counts as well, and train.rank_timeout allows \
                 longer; go on with --resume"
                    .to_owned(),
            ),
            Self::RanksDiffer { .. } => Some(
                "its processor or memory may be faulty, or its kernels are others (SIMMIM_ISA sets them for all); earlier checkpoints are \
                 intact: continue with --resume"
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
        matches!(self, Self::Rank(failure) if failure.input)
            || matches!(
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
