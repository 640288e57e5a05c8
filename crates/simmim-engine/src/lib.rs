//! The engine: a training step described as a static graph and run as a compiled program.
//!
//! ```text
//! graph (forward only) -> autodiff -> plan (one arena) -> executor (cpu; cuda later)
//! ```
//!
//! [`graph::Graph`] holds fused operations ([`ops::Op`]) over values of static shape. [`autodiff::differentiate`] appends the
//! backward operations. [`plan::Program`] gives every value an offset in one arena, so that nothing is allocated while a step
//! runs and the peak is known beforehand. An [`executor::Executor`] runs programs; the processor's is [`cpu::CpuExecutor`].

pub mod autodiff;
pub mod cpu;
pub mod error;
pub mod executor;
pub mod graph;
pub mod ops;
pub mod plan;
pub mod reference;

pub use error::EngineError;
pub use executor::{Executor, ProgramId};
pub use graph::{DType, Graph, TensorType, ValueId};
pub use ops::Op;
pub use plan::Program;
