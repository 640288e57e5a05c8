//! Another element type for the same numbers.
//!
//! # Shapes
//! `x [...]` -> `y [...]`.
//!
//! # Mathematics
//! `y = x`, rounded to the nearest number of the other type, of two equally near ones to the even one.
//!
//! # Backward
//! None: casts are inserted after differentiation ([`crate::mixed`]).
//!
//! # Errors
//! None.

use super::{Check, Operation, Port, Precision};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The same numbers in the element type of its output. Input: `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast;

impl Operation for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 1)?;
        Ok(vec![TensorType::f32(inputs[0].shape.clone())])
    }

    fn precision(&self, _port: Port) -> Precision {
        Precision::Either
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        outputs[0].copy_from_slice(inputs[0].f64());
    }
}
