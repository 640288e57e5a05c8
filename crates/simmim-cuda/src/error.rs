//! What can go wrong with a GPU.

use cudarc::driver::sys::CUresult;
use simmim_engine::EngineError;

/// An error of the driver or of what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver library is not there.
    #[error("no NVIDIA driver was found")]
    NoDriver,
    /// The driver is older than the kernels need.
    #[error("the NVIDIA driver knows CUDA {}.{}, and 12.0 is needed", .version / 1000, .version % 1000 / 10)]
    OldDriver {
        /// What `cuDriverGetVersion` gives.
        version: i32,
    },
    /// No device of that number.
    #[error("there is no CUDA device {ordinal}; there are {count}")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A device that the kernels were not compiled for.
    #[error("{name} has compute capability {}.{}, and 8.0 is needed", .capability.0, .capability.1)]
    OldDevice {
        /// The name that it gives itself.
        name: String,
        /// Major and minor.
        capability: (i32, i32),
    },
    /// A head wider than the kernels take.
    #[error("attention with heads of {head_dim} columns, and the kernels take up to {most}")]
    WideHead {
        /// Columns of a head.
        head_dim: usize,
        /// Columns of the widest that there are kernels for.
        most: usize,
    },
    /// The device has less free memory than is asked for.
    #[error("cannot allocate {bytes} bytes for {what} on the device")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {code:?}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// What the driver said.
        code: CUresult,
    },
}

impl CudaError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::NoDriver => "install the driver of the card (nvidia-smi shows it), or compute with --device cpu",
            Self::OldDriver { .. } => "install driver 525 or newer, or compute with --device cpu",
            Self::NoSuchDevice { count: 0, .. } => {
                "the driver sees no card: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or compute with --device cpu"
            }
            Self::NoSuchDevice { .. } => "devices are counted from 0: --device cuda:0 is the first",
            Self::OldDevice { .. } => {
                "the kernels need an Ampere card (A100, RTX 30) or a newer one; compute with --device cpu"
            }
            Self::WideHead { .. } => "take more heads, or compute with --device cpu",
            Self::OutOfMemory { .. } => "take a smaller batch, or cut a step into more parts (train.accumulation)",
            Self::Driver { .. } => return None,
        };
        Some(help.to_owned())
    }
}

impl From<CudaError> for EngineError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { what, bytes } => Self::OutOfMemory { what, bytes },
            other => Self::Device { what: other.to_string(), help: other.help() },
        }
    }
}
