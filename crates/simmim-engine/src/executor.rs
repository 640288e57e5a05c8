//! What runs programs. Nothing above this interface names a device's types.

use crate::error::EngineError;
use crate::plan::Program;

/// Names a program loaded into an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramId(pub(crate) usize);

/// Memory that an executor holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// The arena, shared by all loaded programs (one runs at a time).
    pub arena: usize,
    /// Parameters, gradients and moments.
    pub states: usize,
    /// Working memory of the kernels.
    pub scratch: usize,
}

/// Runs programs that share states by name.
///
/// All programs share one arena: an output is readable until another program's input is written or a program runs.
pub trait Executor: Send {
    /// Loads a program. Its states are created as zeros unless a program loaded before has them.
    ///
    /// # Errors
    /// [`EngineError::StateShape`] where a state exists with another shape, [`EngineError::OutOfMemory`].
    fn load(&mut self, program: Program) -> Result<ProgramId, EngineError>;

    /// Writes a float input.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`].
    fn write(&mut self, program: ProgramId, input: &str, data: &[f32]) -> Result<(), EngineError>;

    /// Writes an index input.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`], [`EngineError::Invalid`] for an index out of bounds.
    fn write_indices(&mut self, program: ProgramId, input: &str, data: &[i32]) -> Result<(), EngineError>;

    /// Runs a program.
    ///
    /// # Errors
    /// Only faults of the device; shapes were checked when the program was built.
    fn run(&mut self, program: ProgramId) -> Result<(), EngineError>;

    /// Reads a float output of the last run.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`].
    fn read(&mut self, program: ProgramId, output: &str, into: &mut [f32]) -> Result<(), EngineError>;

    /// Overwrites a state.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`].
    fn write_state(&mut self, name: &str, data: &[f32]) -> Result<(), EngineError>;

    /// Reads a state.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`].
    fn read_state(&mut self, name: &str, into: &mut [f32]) -> Result<(), EngineError>;

    /// Memory held now.
    fn memory(&self) -> Memory;
}
