//! A function of each element, for small tensors such as the tables of position biases.
//!
//! # Shapes
//! `x [...]` -> `y [...]` of the same shape.
//!
//! # Mathematics
//! `relu(x) = max(x, 0)`; `scaled sigmoid(x) = scale / (1 + exp(-x))`.
//!
//! # Backward
//! `grad_x = grad_y [y > 0]`; `grad_x = grad_y y (1 - y / scale)`.
//!
//! # Saved
//! `y`.
//!
//! # Errors
//! Indices instead of floats.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// What is positive.
    Relu,
    /// The logistic function times a factor.
    Sigmoid {
        /// The factor.
        scale: f32,
    },
}

/// Applies the function. Inputs: `x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pointwise {
    /// The function.
    pub function: Function,
}

/// Gradient of [`Pointwise`], in place. Inputs: `grad_y`, `y`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointwiseGrad {
    /// The function.
    pub function: Function,
}

impl Operation for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 1)?.len(0, "x", inputs[0].len())?;
        Ok(vec![inputs[0].clone()])
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        if ctx.wants(0) {
            let outputs = ctx.emit(PointwiseGrad { function: self.function }, &[grad, ctx.output(0)])?;
            ctx.add_gradient(0, outputs[0])?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        for (y, x) in outputs[0].iter_mut().zip(inputs[0].f64()) {
            *y = match self.function {
                Function::Relu => x.max(0.0),
                Function::Sigmoid { scale } => f64::from(scale) / (1.0 + (-x).exp()),
            };
        }
    }
}

impl Operation for PointwiseGrad {
    fn name(&self) -> &'static str {
        "pointwise_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        check.len(0, "grad_y", inputs[0].len())?;
        check.shape(1, "y", &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        for (g, y) in outputs[0].iter_mut().zip(inputs[1].f64()) {
            *g *= match self.function {
                Function::Relu => f64::from(u8::from(*y > 0.0)),
                Function::Sigmoid { scale } => y * (1.0 - y / f64::from(scale)),
            };
        }
    }
}
