//! Regression loss on pixels.
//!
//! # Shapes
//! `prediction [..., columns]`, `target [..., columns]`, `weight [rows]` -> `loss [1]`.
//!
//! # Mathematics
//! `loss = scale sum weight[row] f(prediction - target)`; `f(d)` is `|d|`, `d^2`, or smooth L1: `d^2 / (2 beta)` where
//! `|d| < beta`, else `|d| - beta / 2` (Xie et al., arXiv 2111.09886, section 3.4). The number of masked values is the same for
//! every image, so the mean's divisor is part of the static `scale`.
//!
//! # Backward
//! `grad_prediction = scale weight f'(prediction - target)`, with `f'(0) = 0` for L1. Targets and weights get no gradient. The loss is where differentiation starts.
//!
//! # Saved
//! The inputs.
//!
//! # Precision
//! Differences in f32, the sum in f64 over a partition that depends on the shape alone.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The function of the difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelDistance {
    /// Absolute difference.
    L1,
    /// Squared difference.
    L2,
    /// Squared near zero, absolute beyond `beta`.
    SmoothL1 {
        /// Where the two parts meet; positive.
        beta: f32,
    },
}

impl PixelDistance {
    /// `f(d)`.
    #[must_use]
    pub fn value(self, d: f64) -> f64 {
        match self {
            Self::L1 => d.abs(),
            Self::L2 => d * d,
            Self::SmoothL1 { beta } if d.abs() < f64::from(beta) => d * d / (2.0 * f64::from(beta)),
            Self::SmoothL1 { beta } => d.abs() - f64::from(beta) / 2.0,
        }
    }

    /// `f'(d)`.
    #[must_use]
    pub fn derivative(self, d: f64) -> f64 {
        let sign = if d == 0.0 { 0.0 } else { d.signum() };
        match self {
            Self::L1 => sign,
            Self::L2 => 2.0 * d,
            Self::SmoothL1 { beta } if d.abs() < f64::from(beta) => d / f64::from(beta),
            Self::SmoothL1 { .. } => sign,
        }
    }
}

/// The loss. Inputs: `prediction`, `target`, `weight` when set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelLoss {
    /// The function of the difference.
    pub kind: PixelDistance,
    /// Factor of the sum.
    pub scale: f32,
    /// Whether each row has a weight.
    pub weighted: bool,
}

/// Gradient of [`PixelLoss`]'s prediction. Inputs: as the forward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelLossGrad {
    /// The forward operation.
    pub forward: PixelLoss,
}

impl PixelLoss {
    fn check(&self, name: &'static str, inputs: &[TensorType]) -> Result<(), EngineError> {
        let check = Check::new(name, inputs, 2 + usize::from(self.weighted))?;
        check.len(1, "target", inputs[0].len())?;
        if self.weighted {
            check.len(2, "weight", inputs[0].rows())?;
        }
        Ok(())
    }

    fn weight(&self, inputs: &[Tensor], i: usize) -> f64 {
        f64::from(self.scale) * if self.weighted { inputs[2].f64()[i / inputs[0].columns()] } else { 1.0 }
    }
}

impl Operation for PixelLoss {
    fn name(&self) -> &'static str {
        "pixel_loss"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        self.check(self.name(), inputs)?;
        Ok(vec![TensorType::f32([1])])
    }

    fn is_loss(&self) -> bool {
        true
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        if let Some(input) = (1..2 + usize::from(self.weighted)).find(|&i| ctx.wants(i)) {
            return Err(EngineError::NoBackward { op: self.name(), input });
        }
        let inputs: Vec<_> = (0..2 + usize::from(self.weighted)).map(|i| ctx.input(i)).collect();
        let outputs = ctx.emit(PixelLossGrad { forward: *self }, &inputs)?;
        ctx.add_gradient(0, outputs[0])
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let pairs = inputs[0].f64().iter().zip(inputs[1].f64());
        outputs[0][0] = pairs.enumerate().map(|(i, (p, t))| self.weight(inputs, i) * self.kind.value(p - t)).sum();
    }
}

impl Operation for PixelLossGrad {
    fn name(&self) -> &'static str {
        "pixel_loss_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        self.forward.check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        for (i, g) in outputs[0].iter_mut().enumerate() {
            let d = inputs[0].f64()[i] - inputs[1].f64()[i];
            *g = self.forward.weight(inputs, i) * self.forward.kind.derivative(d);
        }
    }
}
