//! The host: threads, instruction sets and matrix products, for the processor's kernels and for what is computed outside of programs.

mod block;
pub(crate) mod dispatch;
pub mod gemm;
mod pool;
#[cfg(all(test, simmim_amx))]
mod tile_emulator;

pub use block::{BlockMut, Grid};
pub use dispatch::Isa;
pub use pool::{Pool, Slices};

/// Floats in a cache line.
pub(crate) const LINE: usize = 16;

/// Threads and the instruction set that they use.
#[derive(Debug)]
pub struct Cpu {
    /// The threads.
    pub pool: Pool,
    /// The instruction set.
    pub isa: Isa,
}
