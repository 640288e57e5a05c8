//! Kernels of `attention`. A task takes whole samples, so that the rows it writes are its own.

use super::vector_math::exp;
use super::{Args, Inputs, sum_partials};
use crate::host::dispatch::{madd, vectorised};
use crate::host::gemm::{Extents, MatrixView, Product, multiply, multiply_scratch, prefetch};
use crate::host::{Cpu, Isa, LINE};
use crate::ops::{Attention, AttentionGrad, AttentionSizes, Packing};
use crate::plan::Instruction;

/// Parts into which a batch is cut where the bias needs a gradient: each sums its own, the sums are added in order.
const BIAS_PARTS: usize = 8;

/// Samples that one task takes in the backward.
fn samples_per_part(op: &Attention, batch: usize) -> usize {
    if op.bias { batch.div_ceil(BIAS_PARTS) } else { 1 }
}

fn sizes_of(op: &Attention, i: &Instruction, first: usize) -> AttentionSizes {
    let split = usize::from(op.packing == Packing::Split);
    op.sizes(&i.inputs[first].ty.shape, &i.inputs[first + split].ty.shape)
}

/// A head's scores and their gradients and the working memory of products, for one thread, in floats.
fn head_scratch(s: &AttentionSizes, matrices: usize, isa: Isa) -> usize {
    let [q, t, d] = [s.queries, s.tokens, s.head_dim()];
    let products = [(q, t, d), (q, d, t), (t, d, q)].map(|(m, n, k)| multiply_scratch(isa, Extents { m, n, k }));
    matrices * (q * t).next_multiple_of(LINE) + products.into_iter().max().unwrap_or(0)
}

pub(crate) fn scratch(op: &Attention, i: &Instruction, cpu: &Cpu) -> usize {
    cpu.pool.threads() * head_scratch(&sizes_of(op, i, 0), 1, cpu.isa)
}

pub(crate) fn scratch_grad(op: &AttentionGrad, i: &Instruction, cpu: &Cpu) -> usize {
    let s = sizes_of(&op.forward, i, 3);
    let partial = if op.forward.bias { i.outputs.last().map_or(0, |b| b.ty.len()) } else { 0 };
    let partials = (s.batch.div_ceil(samples_per_part(&op.forward, s.batch)) * partial).next_multiple_of(LINE);
    cpu.pool.threads() * head_scratch(&s, 2, cpu.isa) + partials
}

/// Queries, keys and values of one sample, and its bias.
struct Sample<'a> {
    sizes: AttentionSizes,
    parts: [&'a [f32]; 3],
    strides: [usize; 3],
    bias: Option<Bias<'a>>,
}

#[derive(Clone, Copy)]
struct Bias<'a> {
    data: &'a [f32],
    positions: usize,
    query: Option<&'a [i32]>,
}

impl<'a> Sample<'a> {
    fn of(op: &Attention, inputs: Inputs<'a>, first: usize, b: usize) -> Self {
        let split = usize::from(op.packing == Packing::Split);
        let sizes = op.sizes(inputs.shape(first), inputs.shape(first + split));
        let AttentionSizes { queries, tokens, dim, .. } = sizes;
        let (parts, strides) = match op.packing {
            Packing::Packed => {
                let qkv = &inputs.f32(first)[b * tokens * 3 * dim..(b + 1) * tokens * 3 * dim];
                ([qkv, &qkv[dim..], &qkv[2 * dim..]], [3 * dim; 3])
            }
            Packing::Split => {
                let q = &inputs.f32(first)[b * queries * dim..(b + 1) * queries * dim];
                let kv = &inputs.f32(first + 1)[b * tokens * 2 * dim..(b + 1) * tokens * 2 * dim];
                ([q, kv, &kv[dim..]], [dim, 2 * dim, 2 * dim])
            }
        };
        let bias = op.bias.then(|| Bias {
            data: inputs.f32(first + 1 + split),
            positions: inputs.shape(first + 1 + split)[1],
            query: (split == 1).then(|| &inputs.i32(first + 3)[b * queries..(b + 1) * queries]),
        });
        Self { sizes, parts, strides, bias }
    }

    /// Part `p` (0 q, 1 k, 2 v) of head `h`, `[rows, head_dim]`.
    fn head(&self, p: usize, h: usize) -> MatrixView<'a> {
        MatrixView::rows(&self.parts[p][h * self.sizes.head_dim()..], self.strides[p])
    }

    /// Prefetches row `row` of the queries, keys and values of a head, where there is one: its rows lie too far apart for the hardware
    /// prefetcher.
    #[inline(always)]
    fn prefetch_row(&self, h: usize, row: usize) {
        if h >= self.sizes.heads {
            return;
        }
        for p in 0..3 {
            let start = row * self.strides[p] + h * self.sizes.head_dim();
            for line in (start..start + self.sizes.head_dim()).step_by(LINE) {
                if let Some(at) = self.parts[p].get(line) {
                    prefetch(at);
                }
            }
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.sizes.head_dim() as f32).sqrt()
    }

    /// Extents of the scores.
    fn scores_extents(&self) -> Extents {
        Extents { m: self.sizes.queries, n: self.sizes.tokens, k: self.sizes.head_dim() }
    }

    /// `scores = q k^T scale`, without the bias.
    fn scores(&self, isa: Isa, h: usize, scores: &mut [f32], scratch: &mut [f32]) {
        let e = self.scores_extents();
        let p = Product::new(e, self.head(0, h), self.head(1, h).transposed()).scaled(self.scale());
        multiply(isa, scores, e.n, p, scratch);
    }

    fn bias_start(&self, h: usize, query: usize) -> Option<usize> {
        let bias = self.bias?;
        let row = bias.query.map_or(query, |index| index[query] as usize);
        Some((h * bias.positions + row) * self.sizes.tokens)
    }

    fn bias_row(&self, h: usize, query: usize) -> Option<&'a [f32]> {
        let start = self.bias_start(h, query)?;
        self.bias.map(|b| &b.data[start..start + self.sizes.tokens])
    }
}

pub(crate) fn attention(cpu: &Cpu, op: &Attention, args: &mut Args<'_>) {
    let (inputs, [out, lse], scratch) = args.split::<2>();
    let first = Sample::of(op, inputs, 0, 0).sizes;
    let lens = [first.queries * first.dim, first.heads * first.queries];
    cpu.pool.for_parts([out, lse], lens, first.batch, scratch, |b, [out, lse], scratch| {
        let sample = Sample::of(op, inputs, 0, b);
        let s = sample.sizes;
        let (scores, scratch) = scratch.split_at_mut((s.queries * s.tokens).next_multiple_of(LINE));
        let scores = &mut scores[..s.queries * s.tokens];
        for h in 0..s.heads {
            sample.scores(cpu.isa, h, scores, scratch);
            for (q, row) in scores.chunks_exact_mut(s.tokens).enumerate() {
                lse[h * s.queries + q] = softmax_row(cpu.isa, row, sample.bias_row(h, q));
                sample.prefetch_row(h + 1, q);
            }
            let e = Extents { m: s.queries, n: s.head_dim(), k: s.tokens };
            let target = &mut out[h * s.head_dim()..];
            multiply(
                cpu.isa,
                target,
                s.dim,
                Product::new(e, MatrixView::rows(scores, s.tokens), sample.head(2, h)),
                scratch,
            );
        }
    });
}

vectorised! {
    /// Adds the bias and turns scores into probabilities; returns the logarithm of the sum of exponentials.
    pub(super) fn softmax_row<FMA>(row: &mut [f32], bias: Option<&[f32]>) -> f32 {
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (head, tail) = row.as_chunks::<16>();
        for chunk in head {
            for l in 0..16 {
                lanes[l] = lanes[l].max(chunk[l]);
            }
        }
        let max = folded(lanes, f32::max);
        let max = tail.iter().copied().fold(max, f32::max);
        let mut sums = [0.0f32; 16];
        let (head, tail) = row.as_chunks_mut::<16>();
        for chunk in head {
            for l in 0..16 {
                chunk[l] = exp::<FMA>(chunk[l] - max);
                sums[l] += chunk[l];
            }
        }
        let mut sum = folded(sums, |a, b| a + b);
        for s in tail {
            *s = exp::<FMA>(*s - max);
            sum += *s;
        }
        let inverse = 1.0 / sum;
        row.iter_mut().for_each(|s| *s *= inverse);
        max + sum.ln()
    }
}

/// One number of sixteen, halves by halves, which are vectors too.
#[inline(always)]
fn folded(mut lanes: [f32; 16], with: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = with(lanes[l], lanes[l + half]);
        }
    }
    lanes[0]
}

vectorised! {
    pub(super) fn dot<FMA>(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0.0; 16];
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..16 {
                sums[l] = madd::<FMA>(a[l], b[l], sums[l]);
            }
        }
        folded(sums, |a, b| a + b) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
    }
}

pub(crate) fn attention_grad(cpu: &Cpu, op: &AttentionGrad, args: &mut Args<'_>) {
    match (op.forward.packing, op.forward.bias) {
        (Packing::Packed, false) => {
            let (inputs, [grad_qkv], scratch) = args.split::<1>();
            backward(cpu, op, inputs, [grad_qkv, &mut []], &mut [], scratch);
        }
        (Packing::Packed, true) => {
            let (inputs, [grad_qkv, grad_bias], scratch) = args.split::<2>();
            backward(cpu, op, inputs, [grad_qkv, &mut []], grad_bias, scratch);
        }
        (Packing::Split, false) => {
            let (inputs, [grad_q, grad_kv], scratch) = args.split::<2>();
            backward(cpu, op, inputs, [grad_q, grad_kv], &mut [], scratch);
        }
        (Packing::Split, true) => {
            let (inputs, [grad_q, grad_kv, grad_bias], scratch) = args.split::<3>();
            backward(cpu, op, inputs, [grad_q, grad_kv], grad_bias, scratch);
        }
    }
}

fn backward(
    cpu: &Cpu,
    op: &AttentionGrad,
    inputs: Inputs<'_>,
    grads: [&mut [f32]; 2],
    grad_bias: &mut [f32],
    scratch: &mut [f32],
) {
    let s = Sample::of(&op.forward, inputs, 3, 0).sizes;
    let samples = samples_per_part(&op.forward, s.batch);
    let parts = s.batch.div_ceil(samples);
    let (partials, scratch) = scratch.split_at_mut((parts * grad_bias.len()).next_multiple_of(LINE));
    let partials = &mut partials[..parts * grad_bias.len()];
    let [first, second] = grads;
    let lens = [first.len() / s.batch, second.len() / s.batch];
    let part_lens = [lens[0] * samples, lens[1] * samples, grad_bias.len()];
    cpu.pool.for_parts(
        [first, second, &mut *partials],
        part_lens,
        parts,
        scratch,
        |part, [first, second, bias], scratch| {
            bias.fill(0.0);
            for (at, b) in (part * samples..s.batch.min((part + 1) * samples)).enumerate() {
                let first = &mut first[at * lens[0]..(at + 1) * lens[0]];
                let second = &mut second[at * lens[1]..(at + 1) * lens[1]];
                backward_sample(cpu.isa, op, inputs, b, [first, second], bias, scratch);
            }
        },
    );
    if !grad_bias.is_empty() {
        sum_partials(cpu.isa, grad_bias, partials);
    }
}

fn backward_sample(
    isa: Isa,
    op: &AttentionGrad,
    inputs: Inputs<'_>,
    b: usize,
    [first, second]: [&mut [f32]; 2],
    grad_bias: &mut [f32],
    scratch: &mut [f32],
) {
    let sample = Sample::of(&op.forward, inputs, 3, b);
    let s = sample.sizes;
    let d = s.head_dim();
    let rows = b * s.queries * s.dim..(b + 1) * s.queries * s.dim;
    let (grad, out) = (&inputs.f32(0)[rows.clone()], &inputs.f32(1)[rows]);
    let lse = &inputs.f32(2)[b * s.heads * s.queries..];
    let size = s.queries * s.tokens;
    let (p, scratch) = scratch.split_at_mut(size.next_multiple_of(LINE));
    let (grad_s, scratch) = scratch.split_at_mut(size.next_multiple_of(LINE));
    let (p, grad_s) = (&mut p[..size], &mut grad_s[..size]);
    for h in 0..s.heads {
        let grad_head = MatrixView::rows(&grad[h * d..], s.dim);
        sample.scores(isa, h, p, scratch);
        let grad_p = Product::new(sample.scores_extents(), grad_head, sample.head(2, h).transposed());
        multiply(isa, grad_s, s.tokens, grad_p, scratch);
        for q in 0..s.queries {
            let at = q * s.tokens..(q + 1) * s.tokens;
            let head = q * s.dim + h * d..q * s.dim + (h + 1) * d;
            sample.prefetch_row(h + 1, q);
            let delta = dot(isa, &grad[head.clone()], &out[head]);
            let (p, grad_s) = (&mut p[at.clone()], &mut grad_s[at]);
            grad_scores_row(isa, p, grad_s, sample.bias_row(h, q), lse[h * s.queries + q], delta);
            if let Some(start) = sample.bias_start(h, q) {
                super::add::add_slices(isa, &mut grad_bias[start..start + s.tokens], grad_s);
            }
        }
        let (p, grad_s) = (MatrixView::rows(p, s.tokens), MatrixView::rows(grad_s, s.tokens));
        let over_queries = Extents { m: s.tokens, n: d, k: s.queries };
        let over_tokens = Extents { m: s.queries, n: d, k: s.tokens };
        let [q_stride, k_stride, _] = sample.strides;
        let (q, k) = (sample.head(0, h), sample.head(1, h));
        let grad_q = Product::new(over_tokens, grad_s, k).scaled(sample.scale());
        let grad_k = Product::new(over_queries, grad_s.transposed(), q).scaled(sample.scale());
        let grad_v = Product::new(over_queries, p.transposed(), grad_head);
        multiply(isa, &mut first[h * d..], q_stride, grad_q, scratch);
        let (keys, at) = if op.forward.packing == Packing::Packed { (&mut *first, s.dim) } else { (&mut *second, 0) };
        multiply(isa, &mut keys[at + h * d..], k_stride, grad_k, scratch);
        multiply(isa, &mut keys[at + s.dim + h * d..], k_stride, grad_v, scratch);
    }
}

vectorised! {
    /// Turns scores into probabilities and their gradients into gradients of the scores.
    pub(super) fn grad_scores_row<FMA>(p: &mut [f32], grad: &mut [f32], bias: Option<&[f32]>, lse: f32, delta: f32) {
        if let Some(bias) = bias {
            p.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        for (p, g) in p.iter_mut().zip(grad) {
            *p = exp::<FMA>(*p - lse);
            *g = madd::<FMA>(*p, *g, -*p * delta);
        }
    }
}
