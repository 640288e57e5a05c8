//! Takes out what a state has summed, and leaves zeros.
//!
//! # Shapes
//! `sum [...]` -> the zeroed `sum`, in place, and `total [...]`, what it held.
//!
//! # Mathematics
//! `total = sum`, then `sum = 0`: what the parts of a step have added up is read once, and the next step begins at zero, as gradients
//! do in [`super::AdamW`].
//!
//! # Backward
//! None: it stands only in the optimiser's graph.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! None of its own.

use super::{Check, Operation};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Empties a sum. Inputs: `sum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain;

impl Operation for Drain {
    fn name(&self) -> &'static str {
        "drain"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 1)?;
        Ok(vec![inputs[0].clone(), inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        outputs[1].copy_from_slice(inputs[0].f64());
        outputs[0].fill(0.0);
    }
}
