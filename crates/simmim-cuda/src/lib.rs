//! Runs programs of `simmim-engine` on NVIDIA GPUs.
//!
//! ```text
//! program -> steps/ (launches, products, copies with their addresses) -> driver (streams, captured graphs)
//! ```
//!
//! Building needs no CUDA: the driver is loaded while the program runs, the kernels (`kernels/*.cu`) are committed as PTX, of which
//! the driver makes code for the card at hand, and cuBLASLt is used where it is found. Where none of this is there,
//! [`CudaExecutor::open`] says so.

mod blas;
mod driver;
mod error;
mod executor;
mod modules;
mod staging;
mod step;
mod steps;

pub use driver::device_count;
pub use error::CudaError;
pub use executor::{CudaExecutor, Products};
