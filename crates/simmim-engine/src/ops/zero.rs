//! A tensor of zeros: the start of a gradient that several operations add to.
//!
//! # Shapes
//! No inputs -> a float tensor of the given shape.

use super::{Check, Operation};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Zeros of a shape. No inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zero {
    /// The shape.
    pub shape: Vec<usize>,
}

impl Operation for Zero {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 0)?;
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn reference(&self, _inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        outputs[0].fill(0.0);
    }
}
