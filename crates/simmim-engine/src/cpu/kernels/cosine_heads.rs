//! Kernels of `cosine_heads`.

use super::{Args, by_types, rows_per_task, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};
use crate::ops::{CosineHeads, CosineHeadsGrad, LARGEST_LOGIT_SCALE, SMALLEST_LENGTH};
use crate::plan::Instruction;

/// Rows of which a task sums the gradient of the scales.
const ROWS: usize = super::PARTIAL_ROWS;

pub(crate) fn cosine_heads(cpu: &Cpu, op: &CosineHeads, args: &mut Args<'_>) {
    match args.output_type(0) {
        DType::Bf16 => forward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => forward::<f32>(cpu, op, args),
    }
}

fn forward<Y: Number>(cpu: &Cpu, op: &CosineHeads, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let (y, rnorm) = (outputs.take::<Y>(), outputs.take::<f32>());
    let scales: Vec<f32> = inputs.f32(1).iter().map(|s| s.min(LARGEST_LOGIT_SCALE).exp()).collect();
    let columns = inputs.shape(0).last().copied().unwrap_or(1);
    let rows = y.len() / columns.max(1);
    cpu.pool.for_rows(([y], [rnorm]), rows, rows_per_task(columns), |_, ([y], [rnorm])| {
        normalise_rows(cpu.isa, y, rnorm, &scales, columns, op.heads);
    });
}

vectorised! {
    fn normalise_rows<FMA, Y: Number>(y: &mut [Y], rnorm: &mut [f32], scales: &[f32], columns: usize, heads: usize) {
        let d = columns / 3 / heads;
        for (y, rnorm) in y.chunks_exact_mut(columns).zip(rnorm.chunks_exact_mut(2 * heads)) {
            for (at, (head, rnorm)) in y.chunks_exact_mut(d).zip(rnorm).enumerate() {
                let inverse = 1.0 / product::<FMA, Y, Y>(head, head).sqrt().max(SMALLEST_LENGTH);
                let factor = inverse * if at < heads { scales[at] } else { 1.0 };
                head.iter_mut().for_each(|v| *v = Y::nearest(v.value() * factor));
                *rnorm = inverse;
            }
        }
    }
}

/// Inner product, eight sums side by side.
#[inline(always)]
fn product<const FMA: bool, A: Number, B: Number>(a: &[A], b: &[B]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for l in 0..8 {
            sums[l] = madd::<FMA>(a[l].value(), b[l].value(), sums[l]);
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a.value() * b.value()).sum();
    sums.iter().sum::<f32>() + tail
}

pub(crate) fn scratch_grad(i: &Instruction) -> usize {
    let columns = i.inputs[0].ty.shape.last().copied().unwrap_or(1);
    (i.inputs[0].ty.len() / columns.max(1)).div_ceil(ROWS) * i.outputs[1].ty.len()
}

pub(crate) fn cosine_heads_grad(cpu: &Cpu, op: &CosineHeadsGrad, args: &mut Args<'_>) {
    by_types!(args.output_type(0), args.input_type(1), backward(cpu, op, args));
}

fn backward<G: Number, Y: Number>(cpu: &Cpu, op: &CosineHeadsGrad, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (grad, grad_scale) = (outputs.take::<G>(), outputs.take::<f32>());
    let (y, rnorm, heads) = (inputs.get::<Y>(1), inputs.f32(2), op.heads);
    let scales = inputs.f32(3);
    let factors: Vec<f32> = scales.iter().map(|s| s.min(LARGEST_LOGIT_SCALE).exp()).collect();
    let columns = inputs.shape(1).last().copied().unwrap_or(1);
    let rows = y.len() / columns.max(1);
    let parts = rows.div_ceil(ROWS);
    let partials = &mut scratch[..parts * heads];
    let lens = ([ROWS * columns], [heads]);
    cpu.pool.for_parts(([grad], [&mut *partials]), lens, parts, &mut [], |part, ([grad], [sums]), _| {
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
    fn grad_rows<FMA, G: Number, Y: Number>(
        grad: &mut [G], y: &[Y], rnorm: &[f32], factors: &[f32], sums: &mut [f32], columns: usize,
    ) {
        let heads = factors.len();
        let d = columns / 3 / heads;
        let rows = grad.chunks_exact_mut(columns).zip(y.chunks_exact(columns)).zip(rnorm.chunks_exact(2 * heads));
        for ((grad, y), rnorm) in rows {
            for (at, ((g, y), &inverse)) in grad.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(rnorm).enumerate() {
                let dot = product::<FMA, G, Y>(g, y);
                let t = if at < heads { factors[at] } else { 1.0 };
                if at < heads {
                    sums[at] += dot;
                }
                let along = dot / t;
                for (g, y) in g.iter_mut().zip(y) {
                    *g = G::nearest(inverse * (t * g.value() - y.value() * along));
                }
            }
        }
    }
}
