//! What can go wrong when a graph is built, planned or run.

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
    /// A gradient was asked for an operation that has none.
    #[error("{op} has no backward rule for its input {input}")]
    NoBackward {
        /// The operation's name.
        op: &'static str,
        /// The input whose gradient is wanted.
        input: usize,
    },
    /// No value or state of that name.
    #[error("the program has no {kind} named `{name}`; it has: {known}")]
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
    /// A state was declared twice with different shapes.
    #[error("state `{name}` was loaded with shape {expected:?} and is now declared with {found:?}")]
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
    /// A graph that breaks an invariant; a fault of the program, not of its user.
    #[error("invalid graph: {0}")]
    Invalid(String),
}
