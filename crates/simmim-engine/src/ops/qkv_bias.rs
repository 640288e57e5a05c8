//! Bias of a packed `qkv` layer whose keys have none.
//!
//! # Shapes
//! `q_bias [dim]`, `v_bias [dim]` -> `bias [3 dim]`.
//!
//! # Mathematics
//! `bias = (q_bias, 0, v_bias)`: a key bias shifts all scores of a query alike and has no effect after the softmax
//! (Bao et al., arXiv 2106.08254, official code).
//!
//! # Backward
//! The first and the last third.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Puts the bias together. Inputs: `q_bias`, `v_bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvBias;

/// Gradient of [`QkvBias`], always added. Inputs: `grad_bias`, both gradients so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvBiasGrad;

impl Operation for QkvBias {
    fn name(&self) -> &'static str {
        "qkv_bias"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        check.len(1, "v_bias", inputs[0].len())?;
        Ok(vec![TensorType::f32([3 * inputs[0].len()])])
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let inputs = [grad, ctx.gradient_or_zero(0)?, ctx.gradient_or_zero(1)?];
        let outputs = ctx.emit(QkvBiasGrad, &inputs)?;
        ctx.set_gradient(0, outputs[0]);
        ctx.set_gradient(1, outputs[1]);
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].len();
        outputs[0][..dim].copy_from_slice(inputs[0].f64());
        outputs[0][2 * dim..].copy_from_slice(inputs[1].f64());
    }
}

impl Operation for QkvBiasGrad {
    fn name(&self) -> &'static str {
        "qkv_bias_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 3)?;
        check.len(0, "grad_bias", 3 * inputs[1].len())?;
        check.len(2, "grad_v_bias", inputs[1].len())?;
        Ok(inputs[1..].to_vec())
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(1, 0), (2, 1)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[1].len();
        let grad = inputs[0].f64();
        outputs[0].iter_mut().zip(&grad[..dim]).for_each(|(a, g)| *a += g);
        outputs[1].iter_mut().zip(&grad[2 * dim..]).for_each(|(a, g)| *a += g);
    }
}
