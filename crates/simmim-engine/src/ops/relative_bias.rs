//! Learned relative position bias, spread from its table to all pairs of tokens.
//!
//! # Shapes
//! `table [entries, heads]`, `index [queries, keys]` (`i32`) -> `bias [heads, queries, keys]`.
//!
//! # Mathematics
//! `bias[h, i, j] = table[index[i, j], h]` (Liu et al., arXiv 2103.14030, section 3.2; Bao et al., arXiv 2106.08254).
//!
//! # Backward
//! `grad_table[index[i, j], h] += grad_bias[h, i, j]`, in the order of the pairs.
//!
//! # Saved
//! `index`.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Spreads the table. Inputs: `table`, `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBias;

/// Gradient of [`RelativeBias`]'s table, always added. Inputs: `grad_bias`, `index`, `grad_table` so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBiasGrad;

impl Operation for RelativeBias {
    fn name(&self) -> &'static str {
        "relative_bias"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        let table = check.rank(0, "table", 2)?;
        let [queries, keys] = inputs[1].shape[..] else { return check.fail(1, "index", "[queries, keys]") };
        Ok(vec![TensorType::f32([table[1], queries, keys])])
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, inputs[0].rows())]
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let inputs = [grad, ctx.input(1), ctx.gradient_or_zero(0)?];
        let outputs = ctx.emit(RelativeBiasGrad, &inputs)?;
        ctx.set_gradient(0, outputs[0]);
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let heads = inputs[0].columns();
        let pairs = inputs[1].len();
        for (o, y) in outputs[0].iter_mut().enumerate() {
            *y = inputs[0].f64()[inputs[1].i32()[o % pairs] as usize * heads + o / pairs];
        }
    }
}

impl Operation for RelativeBiasGrad {
    fn name(&self) -> &'static str {
        "relative_bias_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 3)?;
        let table = check.rank(2, "grad_table", 2)?;
        check.len(0, "grad_bias", table[1].saturating_mul(inputs[1].len()))?;
        Ok(vec![inputs[2].clone()])
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, inputs[2].rows())]
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(2, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let heads = inputs[2].columns();
        let pairs = inputs[1].len();
        for (o, g) in inputs[0].f64().iter().enumerate() {
            outputs[0][inputs[1].i32()[o % pairs] as usize * heads + o / pairs] += g;
        }
    }
}
