//! Gather of rows by index, and its transpose.
//!
//! # Shapes
//! `x [..., dim]` seen as `[rows, dim]`, `index [...]` (`i32`) -> `y [..., dim]`.
//!
//! # Mathematics
//! `y[i] = x[index[i]]`. An index may name a row several times (a template row serves the whole batch) or never.
//!
//! # Backward
//! `grad_x[index[i]] += grad_y[i]`, in the order of `i`, so that the result does not depend on the number of threads. Where a constant index
//! names every row once, that is a gather by the inverse.
//!
//! # Saved
//! `index`.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::{TensorType, columns, elements};
use crate::reference::Tensor;

/// The inverse of an index that names each of `rows` rows once.
fn inverse(index: &[i32], rows: usize) -> Option<Vec<i32>> {
    if index.len() != rows {
        return None;
    }
    let mut inverse = vec![-1; rows];
    for (at, &row) in (0..).zip(index) {
        let place = inverse.get_mut(usize::try_from(row).ok()?)?;
        if std::mem::replace(place, at) != -1 {
            return None;
        }
    }
    Some(inverse)
}

/// `y[i] = x[index[i]]`. Inputs: `x`, `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatherRows;

/// The transpose of [`GatherRows`]. Inputs: `grad_y`, `index`, and the gradient so far when `accumulate` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScatterAddRows {
    /// Shape of the gradient.
    pub shape: Vec<usize>,
    /// Add to the third input.
    pub accumulate: bool,
}

impl Operation for GatherRows {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        Check::new(self.name(), inputs, 2)?;
        let mut shape = inputs[1].shape.clone();
        shape.push(inputs[0].columns());
        Ok(vec![TensorType::f32(shape)])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0) | Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, inputs[0].rows())]
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        if ctx.wants(0) {
            let rows = ctx.input_shape(0).split_last().map_or_else(Vec::new, |(_, rows)| rows.to_vec());
            if let Some(inverse) = ctx.indices(1).and_then(|index| inverse(index, rows.iter().product())) {
                let index = ctx.constant("inverse", &rows, inverse);
                let outputs = ctx.emit(Self, &[grad, index])?;
                return ctx.add_gradient(0, outputs[0]);
            }
            let acc = ctx.gradient(0);
            let op = ScatterAddRows { shape: ctx.input_shape(0).to_vec(), accumulate: acc.is_some() };
            let inputs: Vec<_> = [grad, ctx.input(1)].into_iter().chain(acc).collect();
            let outputs = ctx.emit(op, &inputs)?;
            ctx.set_gradient(0, outputs[0]);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].columns();
        for (y, &row) in outputs[0].chunks_exact_mut(dim).zip(inputs[1].i32()) {
            let row = row as usize;
            y.copy_from_slice(&inputs[0].f64()[row * dim..(row + 1) * dim]);
        }
    }
}

impl Operation for ScatterAddRows {
    fn name(&self) -> &'static str {
        "scatter_add_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2 + usize::from(self.accumulate))?;
        check.len(0, "grad_y", inputs[1].len().saturating_mul(columns(&self.shape)))?;
        if self.accumulate {
            check.shape(2, "grad_x", &self.shape)?;
        }
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn index_bounds(&self, _inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, elements(&self.shape) / columns(&self.shape).max(1))]
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.accumulate { vec![(2, 0)] } else { Vec::new() }
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].columns();
        for (g, &row) in inputs[0].f64().chunks_exact(dim).zip(inputs[1].i32()) {
            for (c, g) in g.iter().enumerate() {
                outputs[0][row as usize * dim + c] += g;
            }
        }
    }
}
