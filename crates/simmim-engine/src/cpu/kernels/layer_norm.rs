//! Kernels of `layer_norm`.

use super::cast::convert;
use super::vector_math::LANES;
use super::{Args, PARTIAL_ROWS, by_types, rows_per_task, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};
use crate::ops::{LayerNorm, LayerNormGradInput};
use crate::plan::Instruction;

pub(crate) fn layer_norm(cpu: &Cpu, op: &LayerNorm, args: &mut Args<'_>) {
    by_types!(args.input_type(0), args.output_type(0), forward(cpu, op, args));
}

fn forward<X: Number, Y: Number>(cpu: &Cpu, op: &LayerNorm, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let (y, mean, rstd) = (outputs.take::<Y>(), outputs.take::<f32>(), outputs.take::<f32>());
    let (x, weight, bias) = (inputs.get::<X>(0), inputs.f32(1), inputs.f32(2));
    let dim = weight.len();
    cpu.pool.for_rows(([y], [mean, rstd]), x.len() / dim, rows_per_task(dim), |range, ([y], [mean, rstd])| {
        let x = &x[range.start * dim..range.end * dim];
        forward_rows(cpu.isa, x, weight, bias, op.eps, y, mean, rstd);
    });
}

vectorised! {
    fn forward_rows<FMA, X: Number, Y: Number>(
        x: &[X], w: &[f32], b: &[f32], eps: f32, y: &mut [Y], means: &mut [f32], rstds: &mut [f32],
    ) {
        let dim = w.len();
        let rows = x.chunks_exact(dim).zip(y.chunks_exact_mut(dim));
        for ((x, y), (mean, rstd)) in rows.zip(means.iter_mut().zip(rstds)) {
            let mut sums = [0.0f32; LANES];
            let (head, tail) = x.as_chunks::<LANES>();
            for chunk in head {
                for l in 0..LANES {
                    sums[l] += chunk[l].value();
                }
            }
            let mu = (sums.iter().sum::<f32>() + tail.iter().map(|v| v.value()).sum::<f32>()) / dim as f32;
            let mut squares = [0.0f32; LANES];
            for chunk in head {
                for l in 0..LANES {
                    let d = chunk[l].value() - mu;
                    squares[l] = madd::<FMA>(d, d, squares[l]);
                }
            }
            let rest: f32 = tail.iter().map(|v| (v.value() - mu) * (v.value() - mu)).sum();
            let r = 1.0 / ((squares.iter().sum::<f32>() + rest) / dim as f32 + eps).sqrt();
            for (y, (x, (w, b))) in y.iter_mut().zip(x.iter().zip(w.iter().zip(b))) {
                *y = Y::nearest(madd::<FMA>((x.value() - mu) * r, *w, *b));
            }
            (*mean, *rstd) = (mu, r);
        }
    }
}

pub(crate) fn layer_norm_grad_input(cpu: &Cpu, op: &LayerNormGradInput, args: &mut Args<'_>) {
    match args.output_type(0) {
        DType::Bf16 => by_types!(args.input_type(0), args.input_type(1), grad_rounded(cpu, op, args)),
        DType::F32 | DType::I32 => by_types!(args.input_type(0), args.input_type(1), grad_floats(cpu, op, args)),
    }
}

fn grad_floats<G: Number, X: Number>(cpu: &Cpu, op: &LayerNormGradInput, args: &mut Args<'_>) {
    grad_input::<G, X, f32>(cpu, op, args);
}

fn grad_rounded<G: Number, X: Number>(cpu: &Cpu, op: &LayerNormGradInput, args: &mut Args<'_>) {
    grad_input::<G, X, Bf16>(cpu, op, args);
}

fn grad_input<G: Number, X: Number, Y: Number>(cpu: &Cpu, op: &LayerNormGradInput, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let (grad, x) = (inputs.get::<G>(0), inputs.get::<X>(1));
    let [weight, mean, rstd] = [2, 3, 4].map(|i| inputs.f32(i));
    let dim = weight.len();
    let (grad_x, rounded) = (outputs.take::<Y>(), if op.rounded { outputs.take::<Bf16>() } else { &mut [] });
    cpu.pool.for_rows(([grad_x], [rounded]), mean.len(), rows_per_task(dim), |range, ([out], [rounded])| {
        for (row, out) in range.clone().zip(out.chunks_exact_mut(dim)) {
            let at = row * dim..(row + 1) * dim;
            grad_row(cpu.isa, &grad[at.clone()], &x[at], weight, mean[row], rstd[row], op.accumulate, out);
        }
        for (row, rounded) in out.chunks_exact(dim).zip(rounded.chunks_exact_mut(dim)) {
            convert(cpu.isa, row, rounded);
        }
    });
}

vectorised! {
    fn grad_row<FMA, G: Number, X: Number, Y: Number>(
        grad: &[G], x: &[X], w: &[f32], mean: f32, rstd: f32, accumulate: bool, out: &mut [Y],
    ) {
        let dim = w.len();
        let (mut sum, mut dot) = ([0.0f32; LANES], [0.0f32; LANES]);
        let whole = dim / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (g, x, w) = (&grad[at..at + LANES], &x[at..at + LANES], &w[at..at + LANES]);
            for l in 0..LANES {
                let g = g[l].value() * w[l];
                sum[l] += g;
                dot[l] = madd::<FMA>(g, (x[l].value() - mean) * rstd, dot[l]);
            }
        }
        let (mut s, mut d) = (sum.iter().sum::<f32>(), dot.iter().sum::<f32>());
        for c in whole..dim {
            s += grad[c].value() * w[c];
            d += grad[c].value() * w[c] * (x[c].value() - mean) * rstd;
        }
        let (s, d) = (s / dim as f32, d / dim as f32);
        let keep = if accumulate { 1.0 } else { 0.0 };
        for (o, (g, (x, w))) in out.iter_mut().zip(grad.iter().zip(x.iter().zip(w))) {
            let xhat = (x.value() - mean) * rstd;
            let value = rstd * (g.value() * w - s - xhat * d);
            *o = Y::nearest(if keep == 1.0 { o.value() + value } else { value });
        }
    }
}

pub(crate) fn scratch_grad_parameters(i: &Instruction) -> usize {
    let dim = i.outputs[0].ty.len();
    i.inputs[0].ty.len().div_ceil(dim * PARTIAL_ROWS) * 2 * dim
}

pub(crate) fn layer_norm_grad_parameters(cpu: &Cpu, args: &mut Args<'_>) {
    by_types!(args.input_type(0), args.input_type(1), grad_parameters(cpu, args));
}

fn grad_parameters<G: Number, X: Number>(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [grad_weight, grad_bias], scratch) = args.split::<2>();
    let (grad, x) = (inputs.get::<G>(0), inputs.get::<X>(1));
    let [mean, rstd] = [2, 3].map(|i| inputs.f32(i));
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
    fn add_row<FMA, G: Number, X: Number>(w: &mut [f32], b: &mut [f32], grad: &[G], x: &[X], mean: f32, rstd: f32) {
        for ((w, b), (g, x)) in w.iter_mut().zip(b).zip(grad.iter().zip(x)) {
            *w = madd::<FMA>(g.value(), (x.value() - mean) * rstd, *w);
            *b += g.value();
        }
    }
}
