//! Kernels of `attention`. A task takes whole samples, so that the rows it writes are its own.
//!
//! Queries, keys and values are floats or bfloat16. Scores, probabilities and their gradients are computed as floats; where they are
//! operands of a product with bfloat16, they are rounded first.

use super::cast::convert;
use super::vector_math::exp;
use super::{Args, Inputs, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::dispatch::{madd, vectorised};
use crate::host::gemm::{Extents, MatrixView, Operand, Product, multiply, multiply_scratch, prefetch};
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
fn head_scratch<O: Operand>(s: &AttentionSizes, matrices: usize, isa: Isa) -> usize {
    let [q, t, d] = [s.queries, s.tokens, s.head_dim()];
    let products = [(q, t, d), (q, d, t), (t, d, q)].map(|(m, n, k)| multiply_scratch::<O>(isa, Extents { m, n, k }));
    let rounded = matrices * Rounded::<O>::floats(q, t) + Written::<O>::floats(q.max(t), d);
    matrices * padded(q * t) + rounded + products.into_iter().max().unwrap_or(0)
}

pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

pub(crate) fn scratch(op: &Attention, i: &Instruction, cpu: &Cpu) -> usize {
    let s = sizes_of(op, i, 0);
    cpu.pool.threads()
        * match i.inputs[0].ty.dtype {
            DType::Bf16 => head_scratch::<Bf16>(&s, 1, cpu.isa),
            DType::F32 | DType::I32 => head_scratch::<f32>(&s, 1, cpu.isa),
        }
}

pub(crate) fn scratch_grad(op: &AttentionGrad, i: &Instruction, cpu: &Cpu) -> usize {
    let s = sizes_of(&op.forward, i, 3);
    let partial = if op.forward.bias { i.outputs.last().map_or(0, |b| b.ty.len()) } else { 0 };
    let partials = padded(s.batch.div_ceil(samples_per_part(&op.forward, s.batch)) * partial);
    let head = match i.inputs[3].ty.dtype {
        DType::Bf16 => head_scratch::<Bf16>(&s, 2, cpu.isa),
        DType::F32 | DType::I32 => head_scratch::<f32>(&s, 2, cpu.isa),
    };
    cpu.pool.threads() * head + partials
}

/// Memory for a matrix of floats that a product takes as an operand of type `O`: none where that is a float itself.
pub(super) struct Rounded<'a, O>(&'a mut [O]);

impl<'a, O: Operand + Number> Rounded<'a, O> {
    /// Takes it from working memory.
    pub(super) fn take(scratch: &mut &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self(bytemuck::cast_slice_mut(take(scratch, Rounded::<O>::floats(rows, cols))))
    }

    /// The operand: `floats [rows, cols]` or what they round to, in rows that end with whole words.
    pub(super) fn of<'s>(&'s mut self, isa: Isa, floats: &'s [f32], cols: usize) -> MatrixView<'s, O> {
        if O::IN_WORD == 1 {
            return MatrixView::rows(bytemuck::cast_slice(floats), cols);
        }
        let stride = cols.next_multiple_of(O::IN_WORD);
        for (from, to) in floats.chunks_exact(cols).zip(self.0.chunks_exact_mut(stride)) {
            convert(isa, from, &mut to[..cols]);
            to[cols..].fill(O::zeroed());
        }
        MatrixView::rows(self.0, stride)
    }
}

impl<O: Operand> Rounded<'_, O> {
    /// Working memory in floats.
    pub(super) fn floats(rows: usize, cols: usize) -> usize {
        if O::IN_WORD == 1 { 0 } else { padded(rows * O::words(cols)) }
    }
}

/// Memory for the floats of a product that is written as `O`: none where that is a float itself.
pub(super) struct Written<'a, O>(&'a mut [f32], std::marker::PhantomData<O>);

impl<'a, O: Operand + Number> Written<'a, O> {
    /// Takes it from working memory.
    pub(super) fn take(scratch: &mut &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self(take(scratch, Written::<O>::floats(rows, cols)), std::marker::PhantomData)
    }

    /// Writes a product `[rows, cols]` to rows of `target`, which are `stride` apart.
    fn write(
        &mut self,
        isa: Isa,
        target: &mut [O],
        stride: usize,
        (rows, cols): (usize, usize),
        p: Product<'_, O>,
        scratch: &mut [f32],
    ) {
        if O::IN_WORD == 1 {
            return multiply(isa, bytemuck::cast_slice_mut(target), stride, p, scratch);
        }
        let floats = &mut self.0[..rows * cols];
        multiply(isa, floats, cols, p, scratch);
        for (from, to) in floats.chunks_exact(cols).zip(target.chunks_mut(stride)) {
            convert(isa, from, &mut to[..cols]);
        }
    }
}

impl<O: Operand> Written<'_, O> {
    /// Working memory in floats.
    pub(super) fn floats(rows: usize, cols: usize) -> usize {
        if O::IN_WORD == 1 { 0 } else { padded(rows * cols) }
    }
}

/// Takes a piece of working memory, a multiple of a cache line.
pub(super) fn take<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (piece, rest) = std::mem::take(scratch).split_at_mut(padded(len));
    *scratch = rest;
    &mut piece[..len]
}

/// A product whose rows of `a` are an operand made by [`Rounded`].
pub(super) fn of_rounded<'a, O: Operand>(e: Extents, a: MatrixView<'a, O>, b: MatrixView<'a, O>) -> Product<'a, O> {
    let p = Product::new(e, a, b);
    if e.k.is_multiple_of(O::IN_WORD) { p } else { p.with_padded_rows() }
}

/// Queries, keys and values of one sample, and its bias.
struct Sample<'a, O> {
    sizes: AttentionSizes,
    parts: [&'a [O]; 3],
    strides: [usize; 3],
    bias: Option<Bias<'a>>,
}

#[derive(Clone, Copy)]
struct Bias<'a> {
    data: &'a [f32],
    positions: usize,
    query: Option<&'a [i32]>,
}

impl<'a, O: Operand> Sample<'a, O> {
    fn of(op: &Attention, inputs: Inputs<'a>, first: usize, b: usize) -> Self {
        let split = usize::from(op.packing == Packing::Split);
        let sizes = op.sizes(inputs.shape(first), inputs.shape(first + split));
        let AttentionSizes { queries, tokens, dim, .. } = sizes;
        let (parts, strides) = match op.packing {
            Packing::Packed => {
                let qkv = &inputs.get::<O>(first)[b * tokens * 3 * dim..(b + 1) * tokens * 3 * dim];
                ([qkv, &qkv[dim..], &qkv[2 * dim..]], [3 * dim; 3])
            }
            Packing::Split => {
                let q = &inputs.get::<O>(first)[b * queries * dim..(b + 1) * queries * dim];
                let kv = &inputs.get::<O>(first + 1)[b * tokens * 2 * dim..(b + 1) * tokens * 2 * dim];
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
    fn head(&self, p: usize, h: usize) -> MatrixView<'a, O> {
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
            for line in (start..start + self.sizes.head_dim()).step_by(LINE * O::IN_WORD) {
                if let Some(at) = self.parts[p].get(line) {
                    prefetch(std::ptr::from_ref(at).cast());
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
    match args.input_type(0) {
        DType::Bf16 => forward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => forward::<f32>(cpu, op, args),
    }
}

fn forward<O: Operand + Number>(cpu: &Cpu, op: &Attention, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (out, lse) = (outputs.take::<O>(), outputs.take::<f32>());
    let first = Sample::<O>::of(op, inputs, 0, 0).sizes;
    let lens = ([first.queries * first.dim], [first.heads * first.queries]);
    cpu.pool.for_parts(([out], [lse]), lens, first.batch, scratch, |b, ([out], [lse]), mut scratch| {
        let sample = Sample::<O>::of(op, inputs, 0, b);
        let s = sample.sizes;
        let scores = take(&mut scratch, s.queries * s.tokens);
        let mut rounded = Rounded::<O>::take(&mut scratch, s.queries, s.tokens);
        let mut written = Written::<O>::take(&mut scratch, s.queries, s.head_dim());
        for h in 0..s.heads {
            sample.scores(cpu.isa, h, scores, scratch);
            for (q, row) in scores.chunks_exact_mut(s.tokens).enumerate() {
                lse[h * s.queries + q] = softmax_row(cpu.isa, row, sample.bias_row(h, q));
                sample.prefetch_row(h + 1, q);
            }
            let e = Extents { m: s.queries, n: s.head_dim(), k: s.tokens };
            let p = of_rounded(e, rounded.of(cpu.isa, scores, s.tokens), sample.head(2, h));
            written.write(cpu.isa, &mut out[h * s.head_dim()..], s.dim, (e.m, e.n), p, scratch);
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
pub(super) fn folded(mut lanes: [f32; 16], with: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = with(lanes[l], lanes[l + half]);
        }
    }
    lanes[0]
}

vectorised! {
    pub(super) fn dot<FMA, T: Number>(a: &[T], b: &[T]) -> f32 {
        let mut sums = [0.0; 16];
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..16 {
                sums[l] = madd::<FMA>(a[l].value(), b[l].value(), sums[l]);
            }
        }
        folded(sums, |a, b| a + b) + a_tail.iter().zip(b_tail).map(|(a, b)| a.value() * b.value()).sum::<f32>()
    }
}

pub(crate) fn attention_grad(cpu: &Cpu, op: &AttentionGrad, args: &mut Args<'_>) {
    match args.input_type(3) {
        DType::Bf16 => backward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => backward::<f32>(cpu, op, args),
    }
}

fn backward<O: Operand + Number>(cpu: &Cpu, op: &AttentionGrad, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let first = outputs.take::<O>();
    let second = if op.forward.packing == Packing::Split { outputs.take::<O>() } else { &mut [] };
    let grad_bias = if op.forward.bias { outputs.take::<f32>() } else { &mut [] };
    let s = Sample::<O>::of(&op.forward, inputs, 3, 0).sizes;
    let samples = samples_per_part(&op.forward, s.batch);
    let parts = s.batch.div_ceil(samples);
    let (partials, scratch) = scratch.split_at_mut(padded(parts * grad_bias.len()));
    let partials = &mut partials[..parts * grad_bias.len()];
    let lens = [first.len() / s.batch, second.len() / s.batch];
    let part_lens = (lens.map(|len| len * samples), [grad_bias.len()]);
    let slices = ([first, second], [&mut *partials]);
    cpu.pool.for_parts(slices, part_lens, parts, scratch, |part, ([first, second], [bias]), scratch| {
        bias.fill(0.0);
        for (at, b) in (part * samples..s.batch.min((part + 1) * samples)).enumerate() {
            let first = &mut first[at * lens[0]..(at + 1) * lens[0]];
            let second = &mut second[at * lens[1]..(at + 1) * lens[1]];
            backward_sample(cpu.isa, op, inputs, b, [first, second], bias, scratch);
        }
    });
    if !grad_bias.is_empty() {
        sum_partials(cpu.isa, grad_bias, partials);
    }
}

fn backward_sample<O: Operand + Number>(
    isa: Isa,
    op: &AttentionGrad,
    inputs: Inputs<'_>,
    b: usize,
    [first, second]: [&mut [O]; 2],
    grad_bias: &mut [f32],
    mut scratch: &mut [f32],
) {
    let sample = Sample::<O>::of(&op.forward, inputs, 3, b);
    let s = sample.sizes;
    let d = s.head_dim();
    let rows = b * s.queries * s.dim..(b + 1) * s.queries * s.dim;
    let (grad, out) = (&inputs.get::<O>(0)[rows.clone()], &inputs.get::<O>(1)[rows]);
    let lse = &inputs.f32(2)[b * s.heads * s.queries..];
    let [p, grad_s] = [0; 2].map(|_| take(&mut scratch, s.queries * s.tokens));
    let [mut rounded_p, mut rounded_grad] = [0; 2].map(|_| Rounded::<O>::take(&mut scratch, s.queries, s.tokens));
    let mut written = Written::<O>::take(&mut scratch, s.queries.max(s.tokens), d);
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
        let (p, grad_s) = (rounded_p.of(isa, p, s.tokens), rounded_grad.of(isa, grad_s, s.tokens));
        let over_queries = Extents { m: s.tokens, n: d, k: s.queries };
        let over_tokens = Extents { m: s.queries, n: d, k: s.tokens };
        let [q_stride, k_stride, _] = sample.strides;
        let (q, k) = (sample.head(0, h), sample.head(1, h));
        let grad_q = of_rounded(over_tokens, grad_s, k).scaled(sample.scale());
        let grad_k = Product::new(over_queries, grad_s.transposed(), q).scaled(sample.scale());
        let grad_v = Product::new(over_queries, p.transposed(), grad_head);
        written.write(isa, &mut first[h * d..], q_stride, (s.queries, d), grad_q, scratch);
        let (keys, at) = if op.forward.packing == Packing::Packed { (&mut *first, s.dim) } else { (&mut *second, 0) };
        written.write(isa, &mut keys[at + h * d..], k_stride, (s.tokens, d), grad_k, scratch);
        written.write(isa, &mut keys[at + s.dim + h * d..], k_stride, (s.tokens, d), grad_v, scratch);
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
