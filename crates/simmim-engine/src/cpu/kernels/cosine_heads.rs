//! Kernels of `cosine_heads`.

use super::{Args, rows_per_task, sum_partials};
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};
use crate::ops::{CosineHeads, CosineHeadsGrad, LARGEST_LOGIT_SCALE, SMALLEST_LENGTH};
use crate::plan::Instruction;

/// Rows of which a task sums the gradient of the scales.
const ROWS: usize = super::PARTIAL_ROWS;

pub(crate) fn cosine_heads(cpu: &Cpu, op: &CosineHeads, args: &mut Args<'_>) {
    let (inputs, [y, rnorm], _) = args.split::<2>();
    let scales: Vec<f32> = inputs.f32(1).iter().map(|s| s.min(LARGEST_LOGIT_SCALE).exp()).collect();
    let columns = inputs.shape(0).last().copied().unwrap_or(1);
    let rows = y.len() / columns.max(1);
    cpu.pool.for_rows([y, rnorm], rows, rows_per_task(columns), |_, [y, rnorm]| {
        normalise_rows(cpu.isa, y, rnorm, &scales, columns, op.heads);
    });
}

vectorised! {
    fn normalise_rows<FMA>(y: &mut [f32], rnorm: &mut [f32], scales: &[f32], columns: usize, heads: usize) {
        let d = columns / 3 / heads;
        for (y, rnorm) in y.chunks_exact_mut(columns).zip(rnorm.chunks_exact_mut(2 * heads)) {
            for (at, (head, rnorm)) in y.chunks_exact_mut(d).zip(rnorm).enumerate() {
                let inverse = 1.0 / product::<FMA>(head, head).sqrt().max(SMALLEST_LENGTH);
                let factor = inverse * if at < heads { scales[at] } else { 1.0 };
                head.iter_mut().for_each(|v| *v *= factor);
                *rnorm = inverse;
            }
        }
    }
}

/// Inner product, eight sums side by side.
#[inline(always)]
fn product<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for l in 0..8 {
            sums[l] = madd::<FMA>(a[l], b[l], sums[l]);
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

pub(crate) fn scratch_grad(i: &Instruction) -> usize {
    let columns = i.inputs[0].ty.shape.last().copied().unwrap_or(1);
    (i.inputs[0].ty.len() / columns.max(1)).div_ceil(ROWS) * i.outputs[1].ty.len()
}

pub(crate) fn cosine_heads_grad(cpu: &Cpu, op: &CosineHeadsGrad, args: &mut Args<'_>) {
    let (inputs, [grad, grad_scale], scratch) = args.split::<2>();
    let (y, rnorm, heads) = (inputs.f32(1), inputs.f32(2), op.heads);
    let scales = inputs.f32(3);
    let factors: Vec<f32> = scales.iter().map(|s| s.min(LARGEST_LOGIT_SCALE).exp()).collect();
    let columns = inputs.shape(1).last().copied().unwrap_or(1);
    let rows = y.len() / columns.max(1);
    let parts = rows.div_ceil(ROWS);
    let partials = &mut scratch[..parts * heads];
    cpu.pool.for_parts([grad, &mut *partials], [ROWS * columns, heads], parts, &mut [], |part, [grad, sums], _| {
        sums.fill(0.0);
        let (y, rnorm) = (&y[part * ROWS * columns..], &rnorm[part * ROWS * 2 * heads..]);
        grad_rows(cpu.isa, grad, y, rnorm, &factors, sums, columns);
    });
    // What is cut off follows the parameter no more.
    for (at, _) in scales.iter().enumerate().filter(|(_, s)| **s > LARGEST_LOGIT_SCALE) {
        partials.iter_mut().skip(at).step_by(heads).for_each(|s| *s = 0.0);
    }
    sum_partials(cpu.isa, grad_scale, partials);
}

vectorised! {
    fn grad_rows<FMA>(grad: &mut [f32], y: &[f32], rnorm: &[f32], factors: &[f32], sums: &mut [f32], columns: usize) {
        let heads = factors.len();
        let d = columns / 3 / heads;
        let rows = grad.chunks_exact_mut(columns).zip(y.chunks_exact(columns)).zip(rnorm.chunks_exact(2 * heads));
        for ((grad, y), rnorm) in rows {
            for (at, ((g, y), &inverse)) in grad.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(rnorm).enumerate() {
                let dot = product::<FMA>(g, y);
                let t = if at < heads { factors[at] } else { 1.0 };
                if at < heads {
                    sums[at] += dot;
                }
                let along = dot / t;
                g.iter_mut().zip(y).for_each(|(g, y)| *g = inverse * (t * *g - y * along));
            }
        }
    }
}
