//! How failures reach the user.

use crate::arguments::LogFormat;
use simmim_data::DataError;
use simmim_engine::EngineError;
use simmim_models::ModelError;
use simmim_train::TrainError;
use std::process::ExitCode;

/// A failure with what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    help: Option<String>,
    code: u8,
}

impl Failure {
    /// Wrong arguments or input; nothing was written.
    pub(crate) fn input(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()), code: 2 }
    }

    /// A failure while running.
    pub(crate) fn running(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, code: 1 }
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
        Self { message: e.to_string(), help: e.help(), code: if e.is_input() { 2 } else { 1 } }
    }
}

#[cfg(feature = "cuda")]
impl From<simmim_cuda::CudaError> for Failure {
    fn from(e: simmim_cuda::CudaError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2 }
    }
}

impl From<ModelError> for Failure {
    fn from(e: ModelError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2 }
    }
}

impl From<DataError> for Failure {
    fn from(e: DataError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 2 }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        Self { message: e.to_string(), help: e.help(), code: 1 }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self { message: e.to_string(), help: None, code: 1 }
    }
}
