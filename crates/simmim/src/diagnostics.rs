//! How failures reach the user.

use crate::arguments::LogFormat;
use simmim_data::DataError;
use simmim_engine::EngineError;
use simmim_models::ModelError;
use simmim_train::{RankFailure, TrainError};
use std::process::ExitCode;

/// A failure with what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    help: Option<String>,
    code: u8,
    /// All ranks of a training have it.
    shared: bool,
}

impl Failure {
    /// Wrong arguments or input; nothing was written.
    pub(crate) fn input(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()), code: 2, shared: false }
    }

    /// A failure while running.
    pub(crate) fn running(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, code: 1, shared: false }
    }

    /// For the other ranks of a training.
    pub(crate) fn at_rank(self, rank: usize) -> TrainError {
        let Self { message: what, help, code, .. } = self;
        TrainError::Rank(RankFailure { rank, what, help, input: code == 2, data: false })
    }

    /// Whether all ranks of a training have it.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The same, after something was written.
    pub(crate) fn after_start(self) -> Self {
        Self { code: 1, ..self }
    }

    /// Prints to standard error and gives the exit code.
    #[allow(clippy::print_stderr, reason = "this is where failures are shown")]
    pub(crate) fn report(&self, format: LogFormat) -> ExitCode {
        match format {
            LogFormat::Text => {
                eprintln!("error: {}", self.message);
                if let Some(help) = &self.help {
                    eprintln!("help: {help}");
                }
            }
            LogFormat::Json => {
                eprintln!("{}", serde_json::json!({ "event": "error", "message": self.message, "help": self.help }));
            }
        }
        ExitCode::from(self.code)
    }
}

impl From<TrainError> for Failure {
    fn from(e: TrainError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: if e.is_input() { 2 } else { 1 }, shared: e.is_shared() }
    }
}

#[cfg(feature = "cuda")]
impl From<simmim_cuda::CudaError> for Failure {
    fn from(e: simmim_cuda::CudaError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2, shared: false }
    }
}

impl From<ModelError> for Failure {
    fn from(e: ModelError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2, shared: false }
    }
}

impl From<DataError> for Failure {
    fn from(e: DataError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2, shared: false }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 1, shared: false }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self { message: e.to_string(), help: None, code: 1, shared: false }
    }
}
