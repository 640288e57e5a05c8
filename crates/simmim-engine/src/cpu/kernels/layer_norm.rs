//! Kernels of `layer_norm`.

use super::vector_math::LANES;
use super::{Args, PARTIAL_ROWS, rows_per_task, sum_partials};
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};
use crate::ops::{LayerNorm, LayerNormGradInput};
use crate::plan::Instruction;

pub(crate) fn layer_norm(cpu: &Cpu, op: &LayerNorm, args: &mut Args<'_>) {
    let (inputs, [y, mean, rstd], _) = args.split::<3>();
    let (x, weight, bias) = (inputs.f32(0), inputs.f32(1), inputs.f32(2));
    let dim = weight.len();
    cpu.pool.for_rows([y, mean, rstd], x.len() / dim, rows_per_task(dim), |range, [y, mean, rstd]| {
        let x = &x[range.start * dim..range.end * dim];
        forward_rows(cpu.isa, x, weight, bias, op.eps, y, mean, rstd);
    });
}

vectorised! {
    fn forward_rows<FMA>(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32], means: &mut [f32], rstds: &mut [f32]) {
        let dim = w.len();
        let rows = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
        for ((x, y), (mean, rstd)) in rows.zip(means.iter_mut().zip(rstds)) {
            let mut sums = [0.0f32; LANES];
            let (head, tail) = x.as_chunks::<LANES>();
            for chunk in head {
                for l in 0..LANES {
                    sums[l] += chunk[l];
                }
            }
            let mu = (sums.iter().sum::<f32>() + tail.iter().sum::<f32>()) / dim as f32;
            let mut squares = [0.0f32; LANES];
            for chunk in head {
                for l in 0..LANES {
                    let d = chunk[l] - mu;
                    squares[l] = madd::<FMA>(d, d, squares[l]);
                }
            }
            let rest: f32 = tail.iter().map(|v| (v - mu) * (v - mu)).sum();
            let r = 1.0 / ((squares.iter().sum::<f32>() + rest) / dim as f32 + eps).sqrt();
            for (y, (x, (w, b))) in y.iter_mut().zip(x.iter().zip(w.iter().zip(b))) {
                *y = madd::<FMA>((x - mu) * r, *w, *b);
            }
            (*mean, *rstd) = (mu, r);
        }
    }
}

pub(crate) fn layer_norm_grad_input(cpu: &Cpu, op: &LayerNormGradInput, args: &mut Args<'_>) {
    let (inputs, [grad_x], _) = args.split::<1>();
    let [grad, x, weight, mean, rstd] = [0, 1, 2, 3, 4].map(|i| inputs.f32(i));
    let dim = weight.len();
    cpu.pool.for_rows([grad_x], mean.len(), rows_per_task(dim), |range, [out]| {
        for (row, out) in range.zip(out.chunks_exact_mut(dim)) {
            let at = row * dim..(row + 1) * dim;
            grad_row(cpu.isa, &grad[at.clone()], &x[at], weight, mean[row], rstd[row], op.accumulate, out);
        }
    });
}

vectorised! {
    fn grad_row<FMA>(grad: &[f32], x: &[f32], w: &[f32], mean: f32, rstd: f32, accumulate: bool, out: &mut [f32]) {
        let dim = w.len();
        let (mut sum, mut dot) = ([0.0f32; LANES], [0.0f32; LANES]);
        let whole = dim / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (g, x, w) = (&grad[at..at + LANES], &x[at..at + LANES], &w[at..at + LANES]);
            for l in 0..LANES {
                let g = g[l] * w[l];
                sum[l] += g;
                dot[l] = madd::<FMA>(g, (x[l] - mean) * rstd, dot[l]);
            }
        }
        let (mut s, mut d) = (sum.iter().sum::<f32>(), dot.iter().sum::<f32>());
        for c in whole..dim {
            s += grad[c] * w[c];
            d += grad[c] * w[c] * (x[c] - mean) * rstd;
        }
        let (s, d) = (s / dim as f32, d / dim as f32);
        let keep = if accumulate { 1.0 } else { 0.0 };
        for (o, (g, (x, w))) in out.iter_mut().zip(grad.iter().zip(x.iter().zip(w))) {
            let xhat = (x - mean) * rstd;
            let value = rstd * (g * w - s - xhat * d);
            *o = if keep == 1.0 { *o + value } else { value };
        }
    }
}

pub(crate) fn scratch_grad_parameters(i: &Instruction) -> usize {
    let dim = i.outputs[0].ty.len();
    i.inputs[0].ty.len().div_ceil(dim * PARTIAL_ROWS) * 2 * dim
}

pub(crate) fn layer_norm_grad_parameters(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [grad_weight, grad_bias], scratch) = args.split::<2>();
    let [grad, x, mean, rstd] = [0, 1, 2, 3].map(|i| inputs.f32(i));
    let (dim, rows) = (grad_weight.len(), mean.len());
    let parts = rows.div_ceil(PARTIAL_ROWS);
    let (weights, biases) = scratch[..2 * parts * dim].split_at_mut(parts * dim);
    cpu.pool.for_rows([&mut *weights, &mut *biases], parts, 1, |range, [weights, biases]| {
        for (part, (w, b)) in range.zip(weights.chunks_exact_mut(dim).zip(biases.chunks_exact_mut(dim))) {
            w.fill(0.0);
            b.fill(0.0);
            for row in part * PARTIAL_ROWS..rows.min((part + 1) * PARTIAL_ROWS) {
                let at = row * dim..(row + 1) * dim;
                add_row(cpu.isa, w, b, &grad[at.clone()], &x[at], mean[row], rstd[row]);
            }
        }
    });
    sum_partials(cpu.isa, grad_weight, weights);
    sum_partials(cpu.isa, grad_bias, biases);
}

vectorised! {
    fn add_row<FMA>(w: &mut [f32], b: &mut [f32], grad: &[f32], x: &[f32], mean: f32, rstd: f32) {
        for ((w, b), (g, x)) in w.iter_mut().zip(b).zip(grad.iter().zip(x)) {
            *w = madd::<FMA>(*g, (x - mean) * rstd, *w);
            *b += g;
        }
    }
}
