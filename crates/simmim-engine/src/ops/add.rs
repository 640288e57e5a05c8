//! Sum of two tensors, in place; joins two gradients of one value.
//!
//! # Shapes
//! `a [...]`, `b [...]` of equal shape -> `a + b`.
//!
//! # Backward
//! None: it stands only in backward graphs.

use super::{Check, Operation};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// `a += b`. Inputs: `a`, `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Add;

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 2)?.len(1, "b", inputs[0].len())?;
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        outputs[0].iter_mut().zip(inputs[1].f64()).for_each(|(a, b)| *a += b);
    }
}
