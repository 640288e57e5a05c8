//! The same elements under another shape. Where the input is read no more, nothing is done.
//!
//! # Shapes
//! `x [...]` -> `y` of the given shape, which holds as many elements.
//!
//! # Backward
//! `grad_y` in the shape of `x`.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! Another number of elements.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::{TensorType, elements};
use crate::reference::Tensor;

/// Changes the shape. Inputs: `x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshape {
    /// The shape of the result.
    pub shape: Vec<usize>,
}

impl Operation for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 1)?;
        check.len(0, "x", elements(&self.shape))?;
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        if ctx.wants(0) {
            let outputs = ctx.emit(Self { shape: ctx.input_shape(0).to_vec() }, &[grad])?;
            ctx.add_gradient(0, outputs[0])?;
        }
        Ok(())
    }

    /// The contents stand in the output already.
    fn reference(&self, _inputs: &[Tensor], _outputs: &mut [Vec<f64>]) {}
}
