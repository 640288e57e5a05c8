//! Layer normalisation over the last axis.
//!
//! # Shapes
//! `x [..., dim]`, `weight [dim]`, `bias [dim]` -> `y [..., dim]`, `mean [rows]`, `rstd [rows]`.
//!
//! # Mathematics
//! `y = (x - mean) rstd weight + bias`, `rstd = 1 / sqrt(var + eps)` with the biased variance (Ba, Kiros and Hinton,
//! arXiv 1607.06450, section 3).
//!
//! # Backward
//! With `xhat = (x - mean) rstd` and `g = grad_y weight`:
//! `grad_x = rstd (g - mean(g) - xhat mean(g xhat))`, `grad_weight = sum grad_y xhat`, `grad_bias = sum grad_y`.
//!
//! # Saved
//! `x`, `mean`, `rstd`.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::{DType, TensorType};
use crate::reference::Tensor;

/// Normalises each row. Inputs: `x`, `weight`, `bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

/// Gradient of [`LayerNorm`]'s `x`. Inputs: `grad_y`, `x`, `weight`, `mean`, `rstd`, and the gradient so far when `accumulate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerNormGradInput {
    /// Add to the sixth input.
    pub accumulate: bool,
    /// Give the result in bfloat16 too, as a second output.
    pub rounded: bool,
}

/// Gradient of [`LayerNorm`]'s weight and bias, always added. Inputs: `grad_y`, `x`, `mean`, `rstd`, both gradients so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerNormGradParameters;

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 3)?;
        let dim = inputs[0].columns();
        check.len(1, "weight", dim)?;
        check.len(2, "bias", dim)?;
        let rows = TensorType::f32([inputs[0].rows()]);
        Ok(vec![inputs[0].clone(), rows.clone(), rows])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0) | Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let (x, weight, mean, rstd) = (ctx.input(0), ctx.input(1), ctx.output(1), ctx.output(2));
        if ctx.wants(1) || ctx.wants(2) {
            let inputs = [grad, x, mean, rstd, ctx.gradient_or_zero(1)?, ctx.gradient_or_zero(2)?];
            let outputs = ctx.emit(LayerNormGradParameters, &inputs)?;
            ctx.set_gradient(1, outputs[0]);
            ctx.set_gradient(2, outputs[1]);
        }
        if ctx.wants(0) {
            let acc = ctx.gradient(0);
            let inputs: Vec<_> = [grad, x, weight, mean, rstd].into_iter().chain(acc).collect();
            let outputs = ctx.emit(LayerNormGradInput { accumulate: acc.is_some(), rounded: false }, &inputs)?;
            ctx.set_gradient(0, outputs[0]);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (x, w, b) = (inputs[0].f64(), inputs[1].f64(), inputs[2].f64());
        let dim = w.len();
        for (r, row) in x.chunks_exact(dim).enumerate() {
            let mean = row.iter().sum::<f64>() / dim as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
            let rstd = 1.0 / (var + f64::from(self.eps)).sqrt();
            for c in 0..dim {
                outputs[0][r * dim + c] = (row[c] - mean) * rstd * w[c] + b[c];
            }
            outputs[1][r] = mean;
            outputs[2][r] = rstd;
        }
    }
}

impl Operation for LayerNormGradInput {
    fn name(&self) -> &'static str {
        "layer_norm_grad_input"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 5 + usize::from(self.accumulate))?;
        check.shape(1, "x", &inputs[0].shape)?;
        check.len(2, "weight", inputs[0].columns())?;
        check.len(3, "mean", inputs[0].rows())?;
        check.len(4, "rstd", inputs[0].rows())?;
        if self.accumulate {
            check.len(5, "grad_x", inputs[0].len())?;
        }
        let grad_x = if self.accumulate { inputs[5].clone() } else { TensorType::f32(inputs[0].shape.clone()) };
        let rounded = self.rounded.then(|| grad_x.clone().with_dtype(DType::Bf16));
        Ok([grad_x].into_iter().chain(rounded).collect())
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) => Precision::Either,
            Port::Output(0) if !self.accumulate && !self.rounded => Precision::Either,
            Port::Output(1) => Precision::Rounded,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.accumulate { vec![(5, 0)] } else { Vec::new() }
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let [grad, x, w, mean, rstd] = [0, 1, 2, 3, 4].map(|i| inputs[i].f64());
        let dim = w.len();
        for r in 0..mean.len() {
            let at = r * dim;
            let g: Vec<f64> = (0..dim).map(|c| grad[at + c] * w[c]).collect();
            let xhat: Vec<f64> = (0..dim).map(|c| (x[at + c] - mean[r]) * rstd[r]).collect();
            let mean_g = g.iter().sum::<f64>() / dim as f64;
            let mean_gx = g.iter().zip(&xhat).map(|(a, b)| a * b).sum::<f64>() / dim as f64;
            for c in 0..dim {
                outputs[0][at + c] += rstd[r] * (g[c] - mean_g - xhat[c] * mean_gx);
            }
        }
        if self.rounded {
            outputs[1] = outputs[0].clone();
        }
    }
}

impl Operation for LayerNormGradParameters {
    fn name(&self) -> &'static str {
        "layer_norm_grad_parameters"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 6)?;
        check.shape(1, "x", &inputs[0].shape)?;
        check.len(2, "mean", inputs[0].rows())?;
        check.len(3, "rstd", inputs[0].rows())?;
        check.len(4, "grad_weight", inputs[0].columns())?;
        check.len(5, "grad_bias", inputs[0].columns())?;
        Ok(vec![inputs[4].clone(), inputs[5].clone()])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(4, 0), (5, 1)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let [grad, x, mean, rstd] = [0, 1, 2, 3].map(|i| inputs[i].f64());
        let dim = outputs[0].len();
        for r in 0..mean.len() {
            for c in 0..dim {
                let g = grad[r * dim + c];
                outputs[0][c] += g * (x[r * dim + c] - mean[r]) * rstd[r];
                outputs[1][c] += g;
            }
        }
    }
}
