//! Kernels of `residual`.

use super::{Args, Inputs, PARTIAL_ROWS, rows_per_task, sum_partials};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::{Residual, ResidualGrad};
use crate::plan::Instruction;

/// The factor of a row: its sample's drop path.
fn keep_of<'a>(keep: Option<&'a [f32]>, rows: usize) -> impl Fn(usize) -> f32 + Sync + 'a {
    move |row| keep.map_or(1.0, |keep| keep[row * keep.len() / rows])
}

pub(crate) fn residual(cpu: &Cpu, op: &Residual, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
    let (x, branch) = (inputs.f32(0), inputs.f32(1));
    let gamma = op.gamma.then(|| inputs.f32(2));
    let dim = *inputs.shape(0).last().unwrap_or(&1);
    let rows = y.len() / dim;
    let keep = keep_of(op.keep.then(|| inputs.f32(2 + usize::from(op.gamma))), rows);
    cpu.pool.for_rows([y], rows, rows_per_task(dim), |range, [y]| {
        for (row, y) in range.zip(y.chunks_exact_mut(dim)) {
            let at = row * dim..(row + 1) * dim;
            residual_row(cpu.isa, y, &x[at.clone()], &branch[at], gamma, keep(row));
        }
    });
}

vectorised! {
    fn residual_row<_FMA>(y: &mut [f32], x: &[f32], branch: &[f32], gamma: Option<&[f32]>, keep: f32) {
        let pairs = y.iter_mut().zip(x.iter().zip(branch));
        match gamma {
            Some(gamma) => pairs.zip(gamma).for_each(|((y, (x, b)), g)| *y = x + keep * g * b),
            None => pairs.for_each(|(y, (x, b))| *y = x + keep * b),
        }
    }
}

pub(crate) fn scratch_grad(i: &Instruction) -> usize {
    if i.outputs.len() == 2 {
        i.inputs[0].ty.len().div_ceil(i.outputs[1].ty.len() * PARTIAL_ROWS) * i.outputs[1].ty.len()
    } else {
        0
    }
}

pub(crate) fn residual_grad(cpu: &Cpu, op: &ResidualGrad, args: &mut Args<'_>) {
    if op.gamma {
        let (inputs, [grad_branch, grad_gamma], scratch) = args.split::<2>();
        let dim = grad_gamma.len();
        let rows = grad_branch.len() / dim;
        let parts = rows.div_ceil(PARTIAL_ROWS);
        let partial = &mut scratch[..parts * dim];
        scale_rows(cpu, op, inputs, grad_branch, dim);
        let (grad, branch) = (inputs.f32(0), inputs.f32(1));
        let keep = keep_of(op.keep.then(|| inputs.f32(3)), rows);
        cpu.pool.for_rows([partial], parts, 1, |range, [partial]| {
            for (part, sum) in range.zip(partial.chunks_exact_mut(dim)) {
                sum.fill(0.0);
                for row in part * PARTIAL_ROWS..rows.min((part + 1) * PARTIAL_ROWS) {
                    let at = row * dim..(row + 1) * dim;
                    add_scaled_product(cpu.isa, sum, &grad[at.clone()], &branch[at], keep(row));
                }
            }
        });
        sum_partials(cpu.isa, grad_gamma, &scratch[..parts * dim]);
    } else {
        let (inputs, [grad_branch], _) = args.split::<1>();
        let dim = *inputs.shape(0).last().unwrap_or(&1);
        scale_rows(cpu, op, inputs, grad_branch, dim);
    }
}

fn scale_rows(cpu: &Cpu, op: &ResidualGrad, inputs: Inputs<'_>, grad_branch: &mut [f32], dim: usize) {
    let grad = inputs.f32(0);
    let gamma = op.gamma.then(|| inputs.f32(2));
    let rows = grad_branch.len() / dim;
    let keep = keep_of(op.keep.then(|| inputs.f32(1 + 2 * usize::from(op.gamma))), rows);
    cpu.pool.for_rows([grad_branch], rows, rows_per_task(dim), |range, [out]| {
        for (row, out) in range.zip(out.chunks_exact_mut(dim)) {
            scale_row(cpu.isa, out, &grad[row * dim..(row + 1) * dim], gamma, keep(row));
        }
    });
}

vectorised! {
    fn scale_row<_FMA>(out: &mut [f32], grad: &[f32], gamma: Option<&[f32]>, keep: f32) {
        match gamma {
            Some(gamma) => out.iter_mut().zip(grad).zip(gamma).for_each(|((o, g), s)| *o = keep * s * g),
            None => out.iter_mut().zip(grad).for_each(|(o, g)| *o = keep * g),
        }
    }
}

vectorised! {
    fn add_scaled_product<_FMA>(sum: &mut [f32], a: &[f32], b: &[f32], scale: f32) {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += scale * a * b);
    }
}
