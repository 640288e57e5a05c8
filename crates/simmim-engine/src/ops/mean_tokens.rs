//! Mean over the tokens of each image, the first ones left out.
//!
//! # Shapes
//! `x [batch, tokens, dim]` -> `y [batch, dim]`.
//!
//! # Mathematics
//! `y[b] = 1 / (tokens - skip) sum_{t >= skip} x[b, t]`. With a class token `skip` is 1: it is not part of the image.
//!
//! # Backward
//! `grad_x[b, t] = grad_y[b] / (tokens - skip)` from `skip` on, zero before.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! Shapes that do not fit, no token left.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The mean. Inputs: `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeanTokens {
    /// Tokens left out at the start of each image.
    pub skip: usize,
}

/// Gradient of [`MeanTokens`]. Inputs: `grad_y [batch, dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeanTokensGrad {
    /// Tokens of each image.
    pub tokens: usize,
    /// Tokens left out at the start of each image.
    pub skip: usize,
}

impl Operation for MeanTokens {
    fn name(&self) -> &'static str {
        "mean_tokens"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 1)?;
        let shape = check.rank(0, "x", 3)?;
        if shape[1] <= self.skip {
            return check.fail(0, "x", format!("more than {} tokens", self.skip));
        }
        Ok(vec![TensorType::f32([shape[0], shape[2]])])
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        if ctx.wants(0) {
            let op = MeanTokensGrad { tokens: ctx.input_shape(0)[1], skip: self.skip };
            let outputs = ctx.emit(op, &[grad])?;
            ctx.add_gradient(0, outputs[0])?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (tokens, dim) = (inputs[0].shape[1], inputs[0].columns());
        let scale = 1.0 / (tokens - self.skip) as f64;
        for (y, x) in outputs[0].chunks_exact_mut(dim).zip(inputs[0].f64().chunks_exact(tokens * dim)) {
            for row in x.chunks_exact(dim).skip(self.skip) {
                y.iter_mut().zip(row).for_each(|(y, x)| *y += scale * x);
            }
        }
    }
}

impl Operation for MeanTokensGrad {
    fn name(&self) -> &'static str {
        "mean_tokens_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 1)?;
        let shape = check.rank(0, "grad_y", 2)?;
        if self.tokens <= self.skip {
            return check.fail(0, "grad_y", format!("more than {} tokens, not {}", self.skip, self.tokens));
        }
        Ok(vec![TensorType::f32([shape[0], self.tokens, shape[1]])])
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].columns();
        let scale = 1.0 / (self.tokens - self.skip) as f64;
        for (i, row) in outputs[0].chunks_exact_mut(dim).enumerate() {
            let (image, token) = (i / self.tokens, i % self.tokens);
            let grad = &inputs[0].f64()[image * dim..(image + 1) * dim];
            let factor = if token < self.skip { 0.0 } else { scale };
            row.iter_mut().zip(grad).for_each(|(g, y)| *g = factor * y);
        }
    }
}
