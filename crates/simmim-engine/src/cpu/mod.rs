//! The processor's executor: one arena, a kernel for each operation on the threads and products of [`crate::host`].

mod arena;
mod executor;
pub mod kernels;

pub use crate::host::Isa;
pub use executor::CpuExecutor;
