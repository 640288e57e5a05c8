//! The engine: a training step described as a static graph and run as a compiled program.
//!
//! ```text
//! graph (forward only) -> autodiff -> plan (one arena) -> executor (cpu; cuda later)
//! ```
//!
//! [`graph::Graph`] holds fused operations ([`ops::Op`]) over values of static shape. [`autodiff::differentiate`] appends the
//! backward operations, and [`mixed::mixed`] puts the matrix products in bfloat16 where that is wanted. [`plan::Program`] gives every value an offset in one arena, so that nothing is allocated while a step
//! runs and the peak is known beforehand. An [`executor::Executor`] runs programs; the processor's is [`cpu::CpuExecutor`].
//!
//! ```
//! use simmim_engine::graph::TensorType;
//! use simmim_engine::ops::{Linear, PixelDistance, PixelLoss};
//! use simmim_engine::{Executor, Graph, Program, autodiff, cpu::CpuExecutor};
//!
//! // Forward only: the mean of |x W^T - target|.
//! let mut graph = Graph::new();
//! let x = graph.input("x", TensorType::f32([2, 3]));
//! let target = graph.input("target", TensorType::f32([2, 1]));
//! let weight = graph.state("weight", &[1, 3]);
//! let y = graph.apply1(Linear::default(), &[x, weight])?;
//! let mean = PixelLoss { kind: PixelDistance::L1, scale: 0.5, weighted: false };
//! let loss = graph.apply1(mean, &[y, target])?;
//! graph.output("loss", loss);
//! autodiff::differentiate(&mut graph, loss)?;
//!
//! let program = Program::compile(&graph)?;
//! println!("{} bytes for all values of the step", program.arena_bytes());
//! let mut executor = CpuExecutor::new(1)?;
//! let step = executor.load(program)?;
//! let (x, target) = (executor.input(step, "x")?, executor.input(step, "target")?);
//! let loss = executor.output(step, "loss")?;
//! executor.write_state("weight", &[1.0, 0.0, -1.0])?;
//! executor.write(x, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! executor.write(target, &[0.0, 0.0])?;
//! executor.run(step)?;
//! let (mut mean, mut gradient) = ([0.0], [0.0; 3]);
//! executor.read(loss, &mut mean)?;
//! executor.read_state("grad.weight", &mut gradient)?;
//! assert_eq!((mean, gradient), ([2.0], [-2.5, -3.5, -4.5]));
//! # Ok::<(), simmim_engine::EngineError>(())
//! ```

// So that unit tests can use the cases of the integration tests.
#[cfg(test)]
extern crate self as simmim_engine;

pub mod autodiff;
pub mod cpu;
pub mod error;
pub mod executor;
pub mod graph;
pub mod host;
pub mod mixed;
pub mod ops;
pub mod plan;
pub mod recompute;
pub mod reference;

pub use error::EngineError;
pub use executor::{Executor, InputSlot, OutputSlot, ProgramId};
pub use graph::{DType, Element, Graph, TensorType, ValueId};
pub use ops::Op;
pub use plan::Program;
