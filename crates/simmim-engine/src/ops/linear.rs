//! Linear layer, with exact GELU when asked.
//!
//! # Shapes
//! `x [..., in]`, `weight [out, in]`, `bias [out]` -> `y [..., rows]` (and `slope [..., rows]` with GELU), where `rows` is `out`, or
//! the length of the row range.
//!
//! # Mathematics
//! `pre = x W^T + b`, `y = pre` or `y = gelu(pre)`, `gelu(z) = z/2 (1 + erf(z / sqrt 2))` (Hendrycks and Gimpel,
//! arXiv 1606.08415, section 2; the exact form, not the tanh approximation). `slope = gelu'(pre) = Phi(pre) + pre phi(pre)`, with the
//! normal distribution's function and density.
//!
//! # Backward
//! `grad_x = grad_pre W`, `grad_W = grad_pre^T x`, `grad_b = sum over rows of grad_pre`,
//! `grad_pre = grad_y slope`.
//!
//! # Saved
//! `x`, and with GELU `slope`: function and slope share an exponential, and the backward is one multiplication.
//!
//! # Precision
//! GELU within 5e-7 of `f64`, its slope within 3e-7, over [-6, 6] (`cpu/kernels/vector_math.rs`).
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// A contiguous range of a weight's rows; the queries of a packed `qkv` weight are rows `0..dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

impl RowRange {
    fn of(range: Option<Self>, total: usize) -> Self {
        range.unwrap_or(Self { start: 0, len: total })
    }

    /// The first row after it.
    fn end(self) -> usize {
        self.start.saturating_add(self.len)
    }
}

/// `y = x W^T + b`, then GELU when asked. Inputs: `x`, `weight`, and `bias` when `bias` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Linear {
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether GELU follows; a second output then holds its slope.
    pub gelu: bool,
    /// Use only these rows of the weight and the bias.
    pub rows: Option<RowRange>,
}

/// Gradient of [`Linear`]'s `x`. Inputs: `grad_pre`, `weight`, and the gradient so far when `accumulate` is set. Where `x` is the GELU
/// of values that nothing else reads, `gelu` asks for the gradient of these instead, and its slope is the third input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearGradInput {
    /// The rows that the forward used.
    pub rows: Option<RowRange>,
    /// Add to the third input.
    pub accumulate: bool,
    /// Multiply by the third input, the slope of GELU. Not together with `accumulate`.
    pub gelu: bool,
}

/// Gradient of [`Linear`]'s weight and bias, always added. Inputs: `grad_pre`, `x`, `grad_weight` so far, and `grad_bias` so far
/// when `bias` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearGradWeight {
    /// The rows that the forward used.
    pub rows: Option<RowRange>,
    /// Whether there is a bias.
    pub bias: bool,
}

/// Gradient through GELU, in place. Inputs: `grad_y`, `slope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GeluGrad;

/// Exact GELU in double precision, for references.
#[must_use]
pub fn gelu(z: f64) -> f64 {
    0.5 * z * (1.0 + libm::erf(z * std::f64::consts::FRAC_1_SQRT_2))
}

/// Derivative of [`gelu`].
#[must_use]
pub fn gelu_derivative(z: f64) -> f64 {
    let phi = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    0.5 * (1.0 + libm::erf(z * std::f64::consts::FRAC_1_SQRT_2)) + z * phi
}

fn with_columns(shape: &[usize], columns: usize) -> Vec<usize> {
    shape.iter().take(shape.len().saturating_sub(1)).copied().chain([columns]).collect()
}

fn product_flops(rows: usize, outputs: usize, inputs: usize) -> u64 {
    2u64.saturating_mul(rows as u64).saturating_mul(outputs as u64).saturating_mul(inputs as u64)
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        if self.gelu { "linear_gelu" } else { "linear" }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2 + usize::from(self.bias))?;
        let weight = check.rank(1, "weight", 2)?;
        let rows = RowRange::of(self.rows, weight[0]);
        if rows.end() > weight[0] {
            return check.fail(1, "weight", format!("at least {} rows", rows.end()));
        }
        if inputs[0].columns() != weight[1] || inputs[0].shape.is_empty() {
            return check.fail(0, "x", format!("[..., {}]", weight[1]));
        }
        if self.bias {
            check.len(2, "bias", weight[0])?;
        }
        let y = TensorType::f32(with_columns(&inputs[0].shape, rows.len));
        Ok(if self.gelu { vec![y.clone(), y] } else { vec![y] })
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) => Precision::Product,
            Port::Input(_) => Precision::Float,
            Port::Output(_) => Precision::Either,
        }
    }

    fn flops(&self, inputs: &[TensorType], outputs: &[TensorType]) -> u64 {
        product_flops(inputs[0].rows(), outputs[0].columns(), inputs[0].columns())
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let grad_pre = if self.gelu { ctx.gradient_of(ctx.output(1)) } else { None };
        let grad = match (grad_pre, ctx.grad_output(0)) {
            (Some(grad_pre), _) => grad_pre,
            (None, Some(grad)) if self.gelu => ctx.emit(GeluGrad, &[grad, ctx.output(1)])?[0],
            (None, Some(grad)) => grad,
            (None, None) => return Ok(()),
        };
        let (x, weight) = (ctx.input(0), ctx.input(1));
        if ctx.wants(1) || (self.bias && ctx.wants(2)) {
            let mut inputs = vec![grad, x, ctx.gradient_or_zero(1)?];
            if self.bias {
                inputs.push(ctx.gradient_or_zero(2)?);
            }
            let outputs = ctx.emit(LinearGradWeight { rows: self.rows, bias: self.bias }, &inputs)?;
            ctx.set_gradient(1, outputs[0]);
            if self.bias {
                ctx.set_gradient(2, outputs[1]);
            }
        }
        if !ctx.wants(0) {
            return Ok(());
        }
        if let Some(slope) = ctx.slope_of_gelu(0) {
            let op = LinearGradInput { rows: self.rows, accumulate: false, gelu: true };
            let outputs = ctx.emit(op, &[grad, weight, slope])?;
            // What comes before GELU is no value of the graph; its gradient is kept under the slope, which has none.
            ctx.set_gradient_of(slope, outputs[0]);
            return Ok(());
        }
        let acc = ctx.gradient(0);
        let inputs: Vec<_> = [grad, weight].into_iter().chain(acc).collect();
        let op = LinearGradInput { rows: self.rows, accumulate: acc.is_some(), gelu: false };
        let outputs = ctx.emit(op, &inputs)?;
        ctx.set_gradient(0, outputs[0]);
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (x, w) = (inputs[0].f64(), inputs[1].f64());
        let (total, columns) = (inputs[1].shape[0], inputs[1].shape[1]);
        let range = RowRange::of(self.rows, total);
        for (r, row) in x.chunks_exact(columns).enumerate() {
            for o in 0..range.len {
                let at = range.start + o;
                let dot: f64 = row.iter().zip(&w[at * columns..(at + 1) * columns]).map(|(a, b)| a * b).sum();
                let pre = dot + if self.bias { inputs[2].f64()[at] } else { 0.0 };
                outputs[0][r * range.len + o] = if self.gelu { gelu(pre) } else { pre };
                if self.gelu {
                    outputs[1][r * range.len + o] = gelu_derivative(pre);
                }
            }
        }
    }
}

impl Operation for LinearGradInput {
    fn name(&self) -> &'static str {
        if self.gelu { "linear_grad_input_gelu" } else { "linear_grad_input" }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2 + usize::from(self.accumulate || self.gelu))?;
        let weight = check.rank(1, "weight", 2)?;
        let rows = RowRange::of(self.rows, weight[0]);
        if inputs[0].columns() != rows.len || rows.end() > weight[0] {
            return check.fail(0, "grad_pre", format!("[..., {}]", rows.len));
        }
        let shape = with_columns(&inputs[0].shape, weight[1]);
        if self.gelu && self.accumulate {
            return check.fail(2, "slope", "either the slope of GELU or a gradient so far");
        }
        if self.gelu {
            check.len(2, "slope", shape.iter().product())?;
        }
        if self.accumulate {
            check.len(2, "grad_x", shape.iter().product())?;
            return Ok(vec![inputs[2].clone()]);
        }
        Ok(vec![TensorType::f32(shape)])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) => Precision::Product,
            Port::Input(_) | Port::Output(_) if self.accumulate => Precision::Float,
            Port::Input(_) | Port::Output(_) => Precision::Either,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.accumulate { vec![(2, 0)] } else { Vec::new() }
    }

    fn flops(&self, inputs: &[TensorType], outputs: &[TensorType]) -> u64 {
        product_flops(inputs[0].rows(), inputs[0].columns(), outputs[0].columns())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (grad, w) = (inputs[0].f64(), inputs[1].f64());
        let columns = inputs[1].shape[1];
        let range = RowRange::of(self.rows, inputs[1].shape[0]);
        for (r, row) in grad.chunks_exact(range.len).enumerate() {
            for c in 0..columns {
                let dot: f64 = row.iter().enumerate().map(|(o, g)| g * w[(range.start + o) * columns + c]).sum();
                let at = r * columns + c;
                outputs[0][at] += if self.gelu { dot * inputs[2].f64()[at] } else { dot };
            }
        }
    }
}

impl Operation for LinearGradWeight {
    fn name(&self) -> &'static str {
        "linear_grad_weight"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 3 + usize::from(self.bias))?;
        let weight = check.rank(2, "grad_weight", 2)?;
        let rows = RowRange::of(self.rows, weight[0]);
        if inputs[0].columns() != rows.len || rows.end() > weight[0] {
            return check.fail(0, "grad_pre", format!("[..., {}]", rows.len));
        }
        if inputs[1].columns() != weight[1] || inputs[1].rows() != inputs[0].rows() {
            return check.fail(1, "x", format!("[{}, {}]", inputs[0].rows(), weight[1]));
        }
        let mut outputs = vec![inputs[2].clone()];
        if self.bias {
            check.len(3, "grad_bias", weight[0])?;
            outputs.push(inputs[3].clone());
        }
        Ok(outputs)
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1) => Precision::Product,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.bias { vec![(2, 0), (3, 1)] } else { vec![(2, 0)] }
    }

    fn flops(&self, inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        product_flops(inputs[0].rows(), inputs[0].columns(), inputs[1].columns())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let (grad, x) = (inputs[0].f64(), inputs[1].f64());
        let columns = inputs[2].shape[1];
        let range = RowRange::of(self.rows, inputs[2].shape[0]);
        for (g, x) in grad.chunks_exact(range.len).zip(x.chunks_exact(columns)) {
            for (o, g) in g.iter().enumerate() {
                let at = range.start + o;
                for (c, x) in x.iter().enumerate() {
                    outputs[0][at * columns + c] += g * x;
                }
                if self.bias {
                    outputs[1][at] += g;
                }
            }
        }
    }
}

impl Operation for GeluGrad {
    fn name(&self) -> &'static str {
        "gelu_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        check.len(1, "slope", inputs[0].len())?;
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        outputs[0].iter_mut().zip(inputs[1].f64()).for_each(|(g, slope)| *g *= slope);
    }
}
