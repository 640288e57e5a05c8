//! The processor's executor: a thread pool, kernels chosen for the instruction set at run time, one arena.

mod arena;
mod block;
mod dispatch;
mod executor;
pub mod gemm;
pub mod kernels;
mod pool;

pub use block::BlockMut;
pub use dispatch::Isa;
pub use executor::CpuExecutor;
pub use pool::Pool;

/// Floats in a cache line.
pub(crate) const LINE: usize = 16;

/// What every kernel runs on.
#[derive(Debug)]
pub struct Cpu {
    /// The threads.
    pub pool: Pool,
    /// The instruction set.
    pub isa: Isa,
}
