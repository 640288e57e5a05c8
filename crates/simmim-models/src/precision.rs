//! The numbers that a model is computed with.

use crate::names::AVERAGE_PREFIX;
use simmim_engine::mixed::mixed;
use simmim_engine::{EngineError, Graph};
use std::borrow::Cow;

/// The numbers that matrix products multiply. Sums, parameters and all that adds up are floats in either case
/// ([`simmim_engine::mixed`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Float32,
    /// Mixed precision: bfloat16, eight bits of mantissa at the range of floats.
    Bfloat16,
}

impl Precision {
    /// Its name in recipes: `float32`, `bfloat16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// A graph of floats in this precision. Moving averages change without their copies being written, so they are cast in every run.
    ///
    /// # Errors
    /// As [`Graph::verify`].
    pub fn lower(self, graph: &Graph) -> Result<Cow<'_, Graph>, EngineError> {
        match self {
            Self::Float32 => Ok(Cow::Borrowed(graph)),
            Self::Bfloat16 => mixed(graph, |state| !state.starts_with(AVERAGE_PREFIX)).map(Cow::Owned),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    /// Reads `float32` or `bfloat16`, or their short forms `f32` and `bf16`.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "float32" | "f32" => Ok(Self::Float32),
            "bfloat16" | "bf16" => Ok(Self::Bfloat16),
            _ => Err(format!("`{name}` is no precision: float32 (f32) or bfloat16 (bf16)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for precision in [Precision::Float32, Precision::Bfloat16] {
            assert_eq!(precision.name().parse(), Ok(precision));
        }
        assert_eq!("BF16".parse(), Ok(Precision::Bfloat16));
        assert!("fp16".parse::<Precision>().is_err());
    }
}
