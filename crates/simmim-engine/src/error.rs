//! What can go wrong when a graph is built, planned or run.

use crate::graph::DType;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// An operation was given inputs whose shapes do not fit it.
    #[error("{op}: input {input} ({role}) has shape {found:?}, expected {expected}")]
    Shape {
        /// The operation's name.
        op: &'static str,
        /// Which input.
        input: usize,
        /// What the input is for.
        role: &'static str,
        /// What would fit.
        expected: String,
        /// What was given.
        found: Vec<usize>,
    },
    /// An operation was given an input of another element type.
    #[error("{op}: input {input} holds {found}, expected {expected}")]
    DType {
        /// The operation's name.
        op: &'static str,
        /// Which input.
        input: usize,
        /// What would fit.
        expected: DType,
        /// What was given.
        found: DType,
    },
    /// An operation was given the wrong number of inputs.
    #[error("{op}: {found} inputs, expected {expected}")]
    Arity {
        /// The operation's name.
        op: &'static str,
        /// How many it takes.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// An operation would define a value without elements, or one that no memory can hold.
    #[error("{op}: a result of shape {shape:?} is empty or larger than any memory")]
    ImpossibleResult {
        /// The operation's name.
        op: &'static str,
        /// The shape of the result.
        shape: Vec<usize>,
    },
    /// A gradient was asked for an operation that has none.
    #[error("{op} has no backward rule for its input {input}")]
    NoBackward {
        /// The operation's name.
        op: &'static str,
        /// The input whose gradient is wanted.
        input: usize,
    },
    /// Differentiation was to start at a value that is no loss.
    #[error("`{value}` is no loss: differentiation starts at the output of a loss operation")]
    NotALoss {
        /// The value's name.
        value: String,
    },
    /// A trained state that the loss depends on was left without a gradient.
    #[error("the loss depends on `{state}`, but no operation gave it a gradient")]
    NoGradient {
        /// The state.
        state: String,
    },
    /// No value or state of that name.
    #[error("there is no {kind} named `{name}`; there are: {known}")]
    Unknown {
        /// Input, output or state.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Data whose length does not fit the value it is written to or read from.
    #[error("`{name}` holds {expected} values, {found} were given")]
    Length {
        /// The value or state.
        name: String,
        /// Its length.
        expected: usize,
        /// The length given.
        found: usize,
    },
    /// Data of another element type than the value it is written to.
    #[error("`{name}` holds {expected}, {found} was given")]
    ValueType {
        /// The value.
        name: String,
        /// Its element type.
        expected: DType,
        /// The element type given.
        found: DType,
    },
    /// An index that leads out of what it points into.
    #[error("index {index} in `{name}` is not in 0..{bound}")]
    Index {
        /// The input or constant that holds it.
        name: String,
        /// The index.
        index: i32,
        /// The first one that is too large.
        bound: usize,
    },
    /// A program was to run before all of its inputs were written.
    #[error("input `{input}` was not written since the last run")]
    NotWritten {
        /// The input.
        input: String,
    },
    /// An output was to be read after something else took its place.
    #[error("output `{output}` is gone: something was written, loaded or run since its program ran")]
    Overwritten {
        /// The output.
        output: String,
    },
    /// A state was declared twice with different shapes.
    #[error("state `{name}` has shape {expected:?} and is declared again with {found:?}")]
    StateShape {
        /// The state.
        name: String,
        /// Its first shape.
        expected: Vec<usize>,
        /// The other shape.
        found: Vec<usize>,
    },
    /// The arena or a state could not be allocated.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A device could not do what it was asked for.
    #[error("{what}")]
    Device {
        /// What went wrong.
        what: String,
        /// What the user can do.
        help: Option<String>,
    },
    /// A graph or a program that breaks an invariant; a fault of the code that built it, not of a user.
    #[error("internal fault: {0}")]
    Invalid(String),
}

impl EngineError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::OutOfMemory { .. } => {
                Some("take a smaller batch, or cut a step into more parts (train.accumulation)".to_owned())
            }
            Self::Device { help, .. } => help.clone(),
            _ => None,
        }
    }
}
