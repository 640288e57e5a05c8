//! Kernels of `residual`.

use super::{Args, PARTIAL_ROWS, by_types, rows_per_task, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::{Residual, ResidualGrad};
use crate::plan::Instruction;

/// The factor of a row: its sample's drop path.
fn keep_of<'a>(keep: Option<&'a [f32]>, rows: usize) -> impl Fn(usize) -> f32 + Sync + 'a {
    move |row| keep.map_or(1.0, |keep| keep[row * keep.len() / rows])
}

pub(crate) fn residual(cpu: &Cpu, op: &Residual, args: &mut Args<'_>) {
    match args.input_type(1) {
        DType::Bf16 => forward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => forward::<f32>(cpu, op, args),
    }
}

fn forward<B: Number>(cpu: &Cpu, op: &Residual, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
    let (x, branch) = (inputs.f32(0), inputs.get::<B>(1));
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
    fn residual_row<_FMA, B: Number>(y: &mut [f32], x: &[f32], branch: &[B], gamma: Option<&[f32]>, keep: f32) {
        let pairs = y.iter_mut().zip(x.iter().zip(branch));
        match gamma {
            Some(gamma) => pairs.zip(gamma).for_each(|((y, (x, b)), g)| *y = x + keep * g * b.value()),
            None => pairs.for_each(|(y, (x, b))| *y = x + keep * b.value()),
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
    let branch = if op.gamma { args.input_type(1) } else { DType::F32 };
    by_types!(branch, args.output_type(0), backward(cpu, op, args));
}

/// With a branch of `B`, whose gradient is written as `G`.
fn backward<B: Number, G: Number>(cpu: &Cpu, op: &ResidualGrad, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (grad, grad_branch) = (inputs.f32(0), outputs.take::<G>());
    let dim = *inputs.shape(0).last().unwrap_or(&1);
    let rows = grad_branch.len() / dim;
    let gamma = op.gamma.then(|| inputs.f32(2));
    let keep = keep_of(op.keep.then(|| inputs.f32(1 + 2 * usize::from(op.gamma))), rows);
    cpu.pool.for_rows([grad_branch], rows, rows_per_task(dim), |range, [out]| {
        for (row, out) in range.zip(out.chunks_exact_mut(dim)) {
            scale_row(cpu.isa, out, &grad[row * dim..(row + 1) * dim], gamma, keep(row));
        }
    });
    if op.gamma {
        let (branch, parts) = (inputs.get::<B>(1), rows.div_ceil(PARTIAL_ROWS));
        let partial = &mut scratch[..parts * dim];
        cpu.pool.for_rows([&mut *partial], parts, 1, |range, [partial]| {
            for (part, sum) in range.zip(partial.chunks_exact_mut(dim)) {
                sum.fill(0.0);
                for row in part * PARTIAL_ROWS..rows.min((part + 1) * PARTIAL_ROWS) {
                    let at = row * dim..(row + 1) * dim;
                    add_scaled_product(cpu.isa, sum, &grad[at.clone()], &branch[at], keep(row));
                }
            }
        });
        sum_partials(cpu.isa, outputs.take(), partial);
    }
}

vectorised! {
    fn scale_row<_FMA, G: Number>(out: &mut [G], grad: &[f32], gamma: Option<&[f32]>, keep: f32) {
        match gamma {
            Some(gamma) => {
                out.iter_mut().zip(grad).zip(gamma).for_each(|((o, g), s)| *o = G::nearest(keep * s * g));
            }
            None => out.iter_mut().zip(grad).for_each(|(o, g)| *o = G::nearest(keep * g)),
        }
    }
}

vectorised! {
    fn add_scaled_product<_FMA, B: Number>(sum: &mut [f32], a: &[f32], b: &[B], scale: f32) {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += scale * a * b.value());
    }
}
