//! Queries and keys of unit length, for scaled cosine attention.
//!
//! # Shapes
//! `qkv [..., 3 dim]`, `logit_scale [heads]` (any shape of that length) -> `y [..., 3 dim]`, `rnorm [rows, 2, heads]`; head `h` owns
//! columns `h head_dim .. (h + 1) head_dim` of each part.
//!
//! # Mathematics
//! `q' = exp(min(logit_scale, log 100)) q / |q|`, `k' = k / |k|`, `v' = v`, head by head (Liu et al., arXiv 2111.09883, section 3.3 and
//! official code), with lengths of at least 1e-12. `rnorm = 1 / |q|, 1 / |k|`.
//!
//! # Backward
//! With `t = exp(min(logit_scale, log 100))`, `n = q / |q|` and `g = grad_q'`: `grad_q = t / |q| (g - n (n . g))`, keys alike with
//! `t = 1`; `grad_logit_scale = sum over rows of q' . g` where the scale is not cut off.
//!
//! # Saved
//! `y`, `rnorm`. Both operations work in place.
//!
//! # Errors
//! Heads that do not divide the width, shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The largest logit scale, log 100.
pub const LARGEST_LOGIT_SCALE: f32 = 4.605_170_2;

/// The smallest length that is divided by.
pub const SMALLEST_LENGTH: f32 = 1e-12;

/// Normalises queries and keys. Inputs: `qkv`, `logit_scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CosineHeads {
    /// Number of heads.
    pub heads: usize,
}

/// Gradient of [`CosineHeads`]. Inputs: `grad_y`, `y`, `rnorm`, `logit_scale`, `grad_logit_scale` so far. Outputs: `grad_qkv`,
/// `grad_logit_scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CosineHeadsGrad {
    /// Number of heads.
    pub heads: usize,
}

fn check_width(check: &Check<'_>, inputs: &[TensorType], heads: usize) -> Result<(), EngineError> {
    if !heads.checked_mul(3).is_some_and(|parts| parts > 0 && inputs[0].columns().is_multiple_of(parts)) {
        return check.fail(0, "qkv", format!("[..., 3 dim] with dim a multiple of {heads} heads"));
    }
    check.len(0, "qkv", inputs[0].len())
}

/// Factor of the queries of a head, and whether it follows the parameter.
fn factor(logit_scale: f64) -> (f64, bool) {
    let largest = f64::from(LARGEST_LOGIT_SCALE);
    (logit_scale.min(largest).exp(), logit_scale <= largest)
}

impl Operation for CosineHeads {
    fn name(&self) -> &'static str {
        "cosine_heads"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        check_width(&check, inputs, self.heads)?;
        check.len(1, "logit_scale", self.heads)?;
        Ok(vec![inputs[0].clone(), TensorType::f32([inputs[0].rows(), 2, self.heads])])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0) | Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let so_far = ctx.gradient_or_zero(1)?;
        let inputs = [grad, ctx.output(0), ctx.output(1), ctx.input(1), so_far];
        let outputs = ctx.emit(CosineHeadsGrad { heads: self.heads }, &inputs)?;
        ctx.add_gradient(0, outputs[0])?;
        ctx.set_gradient(1, outputs[1]);
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (y, rnorm) = outputs.split_at_mut(1);
        let (y, rnorm) = (&mut y[0], &mut rnorm[0]);
        let d = inputs[0].columns() / 3 / self.heads;
        // Heads of queries, keys and values in turn.
        for (i, head) in y.chunks_exact_mut(d).enumerate() {
            let (row, part, h) = (i / (3 * self.heads), i / self.heads % 3, i % self.heads);
            if part == 2 {
                continue;
            }
            let inverse = 1.0 / head.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::from(SMALLEST_LENGTH));
            let t = if part == 0 { factor(inputs[1].f64()[h]).0 } else { 1.0 };
            head.iter_mut().for_each(|v| *v *= t * inverse);
            rnorm[(row * 2 + part) * self.heads + h] = inverse;
        }
    }
}

impl Operation for CosineHeadsGrad {
    fn name(&self) -> &'static str {
        "cosine_heads_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 5)?;
        check_width(&check, inputs, self.heads)?;
        check.shape(1, "y", &inputs[0].shape)?;
        check.shape(2, "rnorm", &[inputs[0].rows(), 2, self.heads])?;
        check.len(3, "logit_scale", self.heads)?;
        check.len(4, "grad_logit_scale", self.heads)?;
        Ok(vec![inputs[0].clone(), inputs[4].clone()])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) | Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (4, 1)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (grad, scales) = outputs.split_at_mut(1);
        let d = inputs[0].columns() / 3 / self.heads;
        for (i, (g, y)) in grad[0].chunks_exact_mut(d).zip(inputs[1].f64().chunks_exact(d)).enumerate() {
            let (row, part, h) = (i / (3 * self.heads), i / self.heads % 3, i % self.heads);
            if part == 2 {
                continue;
            }
            let inverse = inputs[2].f64()[(row * 2 + part) * self.heads + h];
            let (t, follows) = if part == 0 { factor(inputs[3].f64()[h]) } else { (1.0, false) };
            let dot: f64 = g.iter().zip(y).map(|(g, y)| g * y).sum();
            if follows {
                scales[0][h] += dot;
            }
            g.iter_mut().zip(y).for_each(|(g, y)| *g = inverse * (t * *g - y / t * dot));
        }
    }
}
