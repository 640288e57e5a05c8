//! Norm of all gradients together, and the factor that clips it.
//!
//! # Shapes
//! Any number of float tensors -> `norm [1]`, `clip [1]`.
//!
//! # Mathematics
//! `norm = sqrt(sum of all squares)`; `clip = min(1, max_norm / (norm + 1e-6))` as `torch.nn.utils.clip_grad_norm_` does
//! (Pascanu et al., arXiv 1211.5063), 1 without a limit, and NaN where the norm is not finite, which makes
//! [`super::AdamW`] leave the parameters as they are.
//!
//! # Precision
//! The sum is taken in f64 over a partition that depends on the shapes alone.

use super::Operation;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Norm and clipping factor. Inputs: the gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlobalNorm {
    /// Largest norm that is left alone.
    pub max_norm: Option<f32>,
}

impl GlobalNorm {
    /// The clipping factor that belongs to a norm.
    #[must_use]
    pub fn clip(&self, norm: f64) -> f64 {
        match self.max_norm {
            _ if !norm.is_finite() => f64::NAN,
            Some(max) => (f64::from(max) / (norm + 1e-6)).min(1.0),
            None => 1.0,
        }
    }
}

impl Operation for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        if inputs.is_empty() {
            return Err(EngineError::Arity { op: self.name(), expected: 1, found: 0 });
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([1])])
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let norm = inputs.iter().flat_map(|t| t.f64()).map(|v| v * v).sum::<f64>().sqrt();
        outputs[0][0] = norm;
        outputs[1][0] = self.clip(norm);
    }
}
