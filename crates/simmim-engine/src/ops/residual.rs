//! Residual connection with layer scale and per-sample drop path.
//!
//! # Shapes
//! `x [..., dim]`, `branch [..., dim]`, `gamma [dim]`, `keep [batch]` -> `y [..., dim]`; the rows of `x` are `batch` equal groups.
//!
//! # Mathematics
//! `y = x + keep[sample] gamma branch`. `gamma` is LayerScale (Touvron et al., arXiv 2103.17239, section 2.1); `keep` is 0 or
//! `1 / (1 - p)` (stochastic depth, Huang et al., arXiv 1603.09382).
//!
//! # Backward
//! `grad_x = grad_y`, `grad_branch = keep gamma grad_y`, `grad_gamma = sum keep branch grad_y`.
//!
//! # Saved
//! `branch`, where there is a `gamma`.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// `y = x + keep gamma branch`. Inputs: `x`, `branch`, `gamma` when set, `keep` when set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residual {
    /// Whether there is a layer scale.
    pub gamma: bool,
    /// Whether there is drop path.
    pub keep: bool,
}

/// Gradient of [`Residual`]'s branch and gamma. Inputs: `grad_y`, then with gamma `branch`, `gamma`, then `keep`, then with gamma
/// the gradient of gamma so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResidualGrad {
    /// Whether there is a layer scale.
    pub gamma: bool,
    /// Whether there is drop path.
    pub keep: bool,
}

/// The rows of `x` are as many equal groups as `keep` has elements.
fn check_keep(check: &Check<'_>, at: usize, x: &TensorType) -> Result<(), EngineError> {
    if x.rows().is_multiple_of(check.inputs[at].len()) {
        Ok(())
    } else {
        check.fail(at, "keep", format!("as many elements as divide {} rows", x.rows()))
    }
}

impl Operation for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2 + usize::from(self.gamma) + usize::from(self.keep))?;
        check.len(1, "branch", inputs[0].len())?;
        if self.gamma {
            check.len(2, "gamma", inputs[0].columns())?;
        }
        if self.keep {
            check_keep(&check, 2 + usize::from(self.gamma), &inputs[0])?;
        }
        Ok(vec![inputs[0].clone()])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(1) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        if ctx.wants(1) || (self.gamma && ctx.wants(2)) {
            if self.gamma || self.keep {
                let mut inputs = vec![grad];
                if self.gamma {
                    inputs.extend([ctx.input(1), ctx.input(2)]);
                }
                if self.keep {
                    inputs.push(ctx.input(2 + usize::from(self.gamma)));
                }
                if self.gamma {
                    inputs.push(ctx.gradient_or_zero(2)?);
                }
                let outputs = ctx.emit(ResidualGrad { gamma: self.gamma, keep: self.keep }, &inputs)?;
                ctx.add_gradient(1, outputs[0])?;
                if self.gamma {
                    ctx.set_gradient(2, outputs[1]);
                }
            } else {
                ctx.add_gradient(1, grad)?;
            }
        }
        if ctx.wants(0) {
            ctx.add_gradient(0, grad)?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].columns();
        for (i, y) in outputs[0].iter_mut().enumerate() {
            let gamma = if self.gamma { inputs[2].f64()[i % dim] } else { 1.0 };
            let keep = if self.keep { inputs[2 + usize::from(self.gamma)].group(i, inputs[0].len()) } else { 1.0 };
            *y = inputs[0].f64()[i] + keep * gamma * inputs[1].f64()[i];
        }
    }
}

impl Operation for ResidualGrad {
    fn name(&self) -> &'static str {
        "residual_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 1 + 3 * usize::from(self.gamma) + usize::from(self.keep))?;
        let mut outputs = vec![inputs[0].clone()];
        if self.keep {
            check_keep(&check, 1 + 2 * usize::from(self.gamma), &inputs[0])?;
        }
        if self.gamma {
            check.len(1, "branch", inputs[0].len())?;
            check.len(2, "gamma", inputs[0].columns())?;
            let last = inputs.len() - 1;
            check.len(last, "grad_gamma", inputs[0].columns())?;
            outputs.push(inputs[last].clone());
        }
        Ok(outputs)
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(1) if self.gamma => Precision::Either,
            Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.gamma { vec![(3 + usize::from(self.keep), 1)] } else { Vec::new() }
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (len, dim) = (inputs[0].len(), inputs[0].columns());
        for i in 0..len {
            let g = inputs[0].f64()[i];
            let keep = if self.keep { inputs[1 + 2 * usize::from(self.gamma)].group(i, len) } else { 1.0 };
            let gamma = if self.gamma { inputs[2].f64()[i % dim] } else { 1.0 };
            outputs[0][i] = keep * gamma * g;
            if self.gamma {
                outputs[1][i % dim] += keep * inputs[1].f64()[i] * g;
            }
        }
    }
}
