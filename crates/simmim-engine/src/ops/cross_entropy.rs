//! Cross-entropy of soft labels, fused with softmax.
//!
//! # Shapes
//! `logits [batch, classes]`, `targets [batch, classes]` -> `loss [1]`.
//!
//! # Mathematics
//! `loss = scale sum_b sum_c -targets[b, c] log softmax(logits[b])[c]`. With `S` the sum of a row of targets and `lse` the row's
//! log-sum-exp that is `S lse - targets logits`: one pass, and no logarithm of a probability that rounds to zero. Rows of targets
//! usually sum to one: smoothed labels (Szegedy et al., arXiv 1512.00567, section 7) and mixtures of two (Zhang et al., arXiv
//! 1710.09412; Yun et al., arXiv 1905.04899). The mean over the batch is part of the static `scale`.
//!
//! # Backward
//! `grad_logits = scale (S softmax(logits) - targets)`. Targets get no gradient. The loss is where differentiation starts.
//!
//! # Saved
//! The inputs: the softmax is computed again, it is a sliver of the step.
//!
//! # Precision
//! Rows in f32, their sum in f64 over a partition that depends on the shape alone.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The loss. Inputs: `logits`, `targets`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// Factor of the sum.
    pub scale: f32,
}

/// Gradient of [`CrossEntropy`]'s logits. Inputs: as the forward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropyGrad {
    /// Factor of the sum.
    pub scale: f32,
}

fn check(name: &'static str, inputs: &[TensorType]) -> Result<(), EngineError> {
    let check = Check::new(name, inputs, 2)?;
    let shape = check.rank(0, "logits", 2)?;
    check.shape(1, "targets", shape)
}

/// Softmax and log-sum-exp of a row.
fn softmax(row: &[f64]) -> (Vec<f64>, f64) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
    let lse = max + sum.ln();
    (row.iter().map(|v| (v - lse).exp()).collect(), lse)
}

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        check(self.name(), inputs)?;
        Ok(vec![TensorType::f32([1])])
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        if ctx.wants(1) {
            return Err(EngineError::NoBackward { op: self.name(), input: 1 });
        }
        let inputs = [ctx.input(0), ctx.input(1)];
        let outputs = ctx.emit(CrossEntropyGrad { scale: self.scale }, &inputs)?;
        ctx.add_gradient(0, outputs[0])
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let classes = inputs[0].columns();
        let rows = inputs[0].f64().chunks_exact(classes).zip(inputs[1].f64().chunks_exact(classes));
        let loss = |(logits, targets): (&[f64], &[f64])| {
            let lse = softmax(logits).1;
            logits.iter().zip(targets).map(|(z, t)| t * (lse - z)).sum::<f64>()
        };
        outputs[0][0] = f64::from(self.scale) * rows.map(loss).sum::<f64>();
    }
}

impl Operation for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross_entropy_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let classes = inputs[0].columns();
        let rows = inputs[0].f64().chunks_exact(classes).zip(inputs[1].f64().chunks_exact(classes));
        for ((logits, targets), grad) in rows.zip(outputs[0].chunks_exact_mut(classes)) {
            let (p, total) = (softmax(logits).0, targets.iter().sum::<f64>());
            for (g, (p, t)) in grad.iter_mut().zip(p.iter().zip(targets)) {
                *g = f64::from(self.scale) * (total * p - t);
            }
        }
    }
}
