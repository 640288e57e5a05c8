//! Kernels of `mean_tokens`.

use super::add::add_slices;
use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::ops::{MeanTokens, MeanTokensGrad};

pub(crate) fn mean_tokens(cpu: &Cpu, op: &MeanTokens, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
    let x = inputs.f32(0);
    let &[batch, tokens, dim] = inputs.shape(0) else { return };
    let scale = 1.0 / (tokens - op.skip) as f32;
    cpu.pool.for_rows([y], batch, rows_per_task(tokens * dim), |range, [y]| {
        for (image, y) in range.zip(y.chunks_exact_mut(dim)) {
            y.fill(0.0);
            let kept = &x[(image * tokens + op.skip) * dim..(image + 1) * tokens * dim];
            kept.chunks_exact(dim).for_each(|row| add_slices(cpu.isa, y, row));
            y.iter_mut().for_each(|v| *v *= scale);
        }
    });
}

pub(crate) fn mean_tokens_grad(cpu: &Cpu, op: &MeanTokensGrad, args: &mut Args<'_>) {
    let (inputs, [x], _) = args.split::<1>();
    let grad = inputs.f32(0);
    let &[batch, dim] = inputs.shape(0) else { return };
    let scale = 1.0 / (op.tokens - op.skip) as f32;
    cpu.pool.for_rows([x], batch, rows_per_task(op.tokens * dim), |range, [x]| {
        for (image, x) in range.zip(x.chunks_exact_mut(op.tokens * dim)) {
            let (skipped, kept) = x.split_at_mut(op.skip * dim);
            skipped.fill(0.0);
            let grad = &grad[image * dim..(image + 1) * dim];
            for row in kept.chunks_exact_mut(dim) {
                row.iter_mut().zip(grad).for_each(|(x, g)| *x = scale * g);
            }
        }
    });
}
