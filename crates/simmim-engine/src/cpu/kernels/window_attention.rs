//! Kernels of `window_attention`. A task takes one head of whole images, so that the columns it writes are its own.
//!
//! Windows are small: what surrounds the products costs as much as they do. So scores stand transposed, a row for each key and a column for
//! each query, whose number is rounded up to whole vectors. Softmax then goes down columns, sixteen queries at once, without a sum
//! across a vector, and two of the three products of the backward read its matrices along rows.
//!
//! As in `attention`, scores and what follows from them are floats, rounded where they are operands of a product with bfloat16.

use super::attention::{Rounded, folded, of_rounded, padded, take};
use super::cast::convert;
use super::vector_math::{LANES, exp, ln};
use super::{Args, Inputs, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::dispatch::{madd, vectorised};
use crate::host::gemm::{Extents, MatrixView, Operand, Product, multiply, multiply_scratch, prefetch};
use crate::host::{BlockMut, Cpu, Grid, Isa, LINE};
use crate::ops::{REGION_MASK, WindowAttention, WindowAttentionGrad, WindowSizes};
use crate::plan::Instruction;

/// Parts into which a batch is cut where parameters need gradients: each sums its own, the sums are added in order.
const SUM_PARTS: usize = 8;

/// Images that one task takes in the backward.
fn images_per_part(op: &WindowAttention, batch: usize) -> usize {
    if op.added() > 0 { batch.div_ceil(SUM_PARTS) } else { 1 }
}

/// Columns of a matrix of scores: a place's queries in whole vectors.
fn across(s: &WindowSizes) -> usize {
    s.places.next_multiple_of(LANES)
}

/// Working memory of one thread: `rows` operands and a result `[places, head_dim]`, `scores` matrices `[places, across]` with what they
/// round to, a bias of that size, two numbers for each query, and that of products.
fn thread_scratch<O: Operand>(s: &WindowSizes, rows: usize, scores: usize, isa: Isa) -> usize {
    let (n, across, d) = (s.places, across(s), s.head_dim());
    let products = [(n, across, d), (n, d, n)].map(|(m, n, k)| multiply_scratch::<O>(isa, Extents { m, n, k }));
    let matrices = scores * (padded(n * across) + Rounded::<O>::floats(n, across)) + padded(n * across);
    let operands = rows * padded(O::words(across * d)) + padded(n * d);
    operands + matrices + 2 * padded(across) + products[0].max(products[1])
}

pub(crate) fn scratch(op: &WindowAttention, i: &Instruction, cpu: &Cpu) -> usize {
    let s = op.sizes(&i.inputs[0].ty.shape, &i.inputs[1].ty.shape);
    cpu.pool.threads()
        * match i.inputs[0].ty.dtype {
            DType::Bf16 => thread_scratch::<Bf16>(&s, 3, 1, cpu.isa),
            DType::F32 | DType::I32 => thread_scratch::<f32>(&s, 3, 1, cpu.isa),
        }
}

pub(crate) fn scratch_grad(op: &WindowAttentionGrad, i: &Instruction, cpu: &Cpu) -> usize {
    let f = &op.forward;
    let s = f.sizes(&i.inputs[3].ty.shape, &i.inputs[4].ty.shape);
    let [bias, pad] = sums(f, &s);
    let parts = s.batch.div_ceil(images_per_part(f, s.batch));
    let thread = match i.inputs[3].ty.dtype {
        DType::Bf16 => thread_scratch::<Bf16>(&s, 4, 2, cpu.isa),
        DType::F32 | DType::I32 => thread_scratch::<f32>(&s, 4, 2, cpu.isa),
    };
    padded(parts * s.heads * bias) + padded(parts * s.heads * pad) + cpu.pool.threads() * thread
}

/// Floats of the sums that a task keeps for the gradients of `bias` and of `pad` (keys and values).
fn sums(op: &WindowAttention, s: &WindowSizes) -> [usize; 2] {
    [if op.bias { s.places * across(s) } else { 0 }, if op.pad { 2 * s.head_dim() } else { 0 }]
}

/// One head of one image.
#[derive(Clone, Copy)]
struct Head<'a, O> {
    sizes: WindowSizes,
    scale: f32,
    qkv: &'a [O],
    index: &'a [i32],
    region: Option<&'a [i32]>,
    bias: Option<&'a [f32]>,
    pad: Option<&'a [f32]>,
    column: usize,
}

impl<'a, O: Operand + Number> Head<'a, O> {
    /// `first` is the number of the input `qkv`.
    fn of(op: &WindowAttention, inputs: Inputs<'a>, first: usize, b: usize, h: usize) -> Self {
        let sizes = op.sizes(inputs.shape(first), inputs.shape(first + 1));
        let [region, bias, pad] = op.optional(first);
        let image = sizes.tokens * 3 * sizes.dim;
        let scores = sizes.places * sizes.places;
        Self {
            sizes,
            scale: op.scale,
            qkv: &inputs.get::<O>(first)[b * image..(b + 1) * image],
            index: inputs.i32(first + 1),
            region: region.map(|at| inputs.i32(at)),
            bias: bias.map(|at| &inputs.f32(at)[h * scores..(h + 1) * scores]),
            pad: pad.map(|at| inputs.f32(at)),
            column: h * sizes.head_dim(),
        }
    }

    /// The tokens at the places of a window.
    fn tokens(&self, w: usize) -> &'a [i32] {
        &self.index[w * self.sizes.places..(w + 1) * self.sizes.places]
    }

    /// The regions of a window, where it has several.
    fn regions(&self, w: usize) -> Option<&'a [i32]> {
        let regions = &self.region?[w * self.sizes.places..(w + 1) * self.sizes.places];
        regions.iter().any(|r| *r != regions[0]).then_some(regions)
    }

    /// Copies part `p` (0 q, 1 k, 2 v) of a window to `[places, head_dim]`.
    fn gather(&self, isa: Isa, p: usize, tokens: &[i32], to: &mut [O]) {
        let (dim, d, column) = (self.sizes.dim, self.sizes.head_dim(), p * self.sizes.dim + self.column);
        gather(isa, to, d, &self.qkv[column..], 3 * dim, tokens);
        if let Some(pad) = self.pad {
            let beyond = to.chunks_exact_mut(d).zip(tokens).filter(|(_, token)| **token as usize >= self.sizes.tokens);
            beyond.for_each(|(row, _)| convert(isa, &pad[column..column + d], row));
        }
    }

    /// The bias of the head as scores stand, in working memory; zeros where there is none.
    fn transposed_bias<'s>(&self, scratch: &mut &'s mut [f32]) -> &'s [f32] {
        let (n, across) = (self.sizes.places, across(&self.sizes));
        let to = take(scratch, n * across);
        to.fill(0.0);
        for (query, bias) in self.bias.unwrap_or_default().chunks_exact(n).enumerate() {
            bias.iter().zip(to[query..].iter_mut().step_by(across)).for_each(|(bias, to)| *to = *bias);
        }
        to
    }

    /// Brings near what is read at a place of window `w`, where there is such a window: its rows lie too far apart for the processor to
    /// foresee.
    #[inline(always)]
    fn prefetch_place(&self, w: usize, place: usize) {
        let Some(&token) = self.index.get(w * self.sizes.places + place) else { return };
        for p in 0..3 {
            prefetch_row(
                self.qkv,
                token as usize * 3 * self.sizes.dim + p * self.sizes.dim + self.column,
                self.sizes.head_dim(),
            );
        }
    }

    /// Brings near what is read in window `w` of a matrix `[tokens, dim]` from the head's columns on.
    fn prefetch_rows(&self, w: usize, from: &[O]) {
        let tokens = self.index.get(w * self.sizes.places..(w + 1) * self.sizes.places).unwrap_or_default();
        tokens.iter().for_each(|&token| prefetch_row(from, token as usize * self.sizes.dim, self.sizes.head_dim()));
    }

    /// Brings near what is read in window `w`.
    fn prefetch_window(&self, w: usize) {
        (0..self.sizes.places).for_each(|place| self.prefetch_place(w, place));
    }

    /// `scores [keys, across] = scale k q^T + mask`, without the bias; `q` has rows for all columns.
    fn scores(&self, isa: Isa, w: usize, q: &[O], k: &[O], scores: &mut [f32], scratch: &mut [f32]) {
        self.keys_times_queries(isa, k, q, self.scale, scores, scratch);
        if let Some(regions) = self.regions(w) {
            for (row, &own) in scores.chunks_exact_mut(across(&self.sizes)).zip(regions) {
                mask_row(isa, row, regions, own);
            }
        }
    }

    /// `scale keys queries^T`, `[places, head_dim]` by `[across, head_dim]`.
    fn keys_times_queries(&self, isa: Isa, keys: &[O], queries: &[O], scale: f32, to: &mut [f32], scratch: &mut [f32]) {
        let (n, across, d) = (self.sizes.places, across(&self.sizes), self.sizes.head_dim());
        let e = Extents { m: n, n: across, k: d };
        let p = Product::new(e, MatrixView::rows(keys, d), MatrixView::rows(queries, d).transposed()).scaled(scale);
        multiply(isa, to, across, p, scratch);
    }
}

/// Brings `len` floats near, where they are there.
#[inline(always)]
fn prefetch_row<O: Operand>(from: &[O], start: usize, len: usize) {
    for line in (start..start + len).step_by(LINE * O::IN_WORD) {
        if let Some(at) = from.get(line) {
            prefetch(std::ptr::from_ref(at).cast());
        }
    }
}

vectorised! {
    /// Masks the places of other regions.
    fn mask_row<_FMA>(row: &mut [f32], regions: &[i32], own: i32) {
        for (s, &region) in row.iter_mut().zip(regions) {
            *s += if region == own { 0.0 } else { REGION_MASK };
        }
    }
}

vectorised! {
    /// Copies the first `width` columns of rows of `from`, `stride` apart; what lies beyond them is left out.
    fn gather<_FMA, O: Number>(to: &mut [O], width: usize, from: &[O], stride: usize, tokens: &[i32]) {
        for (to, &token) in to.chunks_exact_mut(width).zip(tokens) {
            let Some(row) = from.get(token as usize * stride..).and_then(|row| row.get(..width)) else { continue };
            let ((from, from_tail), (to, to_tail)) = (row.as_chunks::<LANES>(), to.as_chunks_mut::<LANES>());
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
            for (to, from) in to_tail.iter_mut().zip(from_tail) {
                *to = *from;
            }
        }
    }
}

vectorised! {
    /// Writes rows to the tokens that they belong to; what lies beyond the map is dropped.
    fn scatter<_FMA, O: Number>(to: &mut BlockMut<'_, O>, tokens: &[i32], rows: &[f32]) {
        for (from, &token) in rows.chunks_exact(to.cols()).zip(tokens) {
            if (token as usize) >= to.rows() {
                continue;
            }
            let ((from, from_tail), (to, to_tail)) = (from.as_chunks::<LANES>(), to.row(token as usize).as_chunks_mut::<LANES>());
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.map(O::nearest);
            }
            for (to, from) in to_tail.iter_mut().zip(from_tail) {
                *to = O::nearest(*from);
            }
        }
    }
}

vectorised! {
    /// Adds the bias to scores and turns them into exponentials, for each column; `sums` receives their sums, `lse` the logarithms with the
    /// largest score added back.
    fn exponentials<FMA>(scores: &mut [f32], bias: &[f32], sums: &mut [f32], lse: &mut [f32]) {
        let across = sums.len();
        let max = lse;
        max.fill(f32::NEG_INFINITY);
        for (row, bias) in scores.chunks_exact_mut(across).zip(bias.chunks_exact(across)) {
            for ((s, bias), max) in row.iter_mut().zip(bias).zip(max.iter_mut()) {
                *s += bias;
                *max = max.max(*s);
            }
        }
        sums.fill(0.0);
        for row in scores.chunks_exact_mut(across) {
            for ((s, max), sum) in row.iter_mut().zip(max.iter()).zip(sums.iter_mut()) {
                *s = exp::<FMA>(*s - max);
                *sum += *s;
            }
        }
        for (max, sum) in max.iter_mut().zip(sums) {
            *max += ln::<FMA>(*sum);
        }
    }
}

vectorised! {
    /// Divides each row by its number.
    fn divide_rows<_FMA>(rows: &mut [f32], width: usize, by: &[f32]) {
        for (row, by) in rows.chunks_exact_mut(width).zip(by) {
            let inverse = 1.0 / by;
            for v in row {
                *v *= inverse;
            }
        }
    }
}

vectorised! {
    /// The products of rows of `grad` with the tokens' rows of `out`, the first `width` columns of rows `stride` apart; zero beyond them.
    fn row_products<FMA, O: Number>(to: &mut [f32], grad: &[O], width: usize, out: &[O], stride: usize, tokens: &[i32]) {
        for ((to, grad), &token) in to.iter_mut().zip(grad.chunks_exact(width)).zip(tokens) {
            *to = 0.0;
            let Some(out) = out.get(token as usize * stride..).and_then(|row| row.get(..width)) else { continue };
            let mut sums = [0.0; LANES];
            let ((grad, grad_tail), (out, out_tail)) = (grad.as_chunks::<LANES>(), out.as_chunks::<LANES>());
            for (grad, out) in grad.iter().zip(out) {
                for l in 0..LANES {
                    sums[l] = madd::<FMA>(grad[l].value(), out[l].value(), sums[l]);
                }
            }
            *to = folded(sums, |a, b| a + b);
            for (grad, out) in grad_tail.iter().zip(out_tail) {
                *to = madd::<FMA>(grad.value(), out.value(), *to);
            }
        }
    }
}

vectorised! {
    /// Turns scores into probabilities and their gradients into gradients of the scores.
    fn grad_scores<FMA>(p: &mut [f32], grad: &mut [f32], bias: &[f32], lse: &[f32], delta: &[f32]) {
        let across = lse.len();
        let rows = p.chunks_exact_mut(across).zip(grad.chunks_exact_mut(across)).zip(bias.chunks_exact(across));
        for ((p, grad), bias) in rows {
            for ((p, grad), ((bias, lse), delta)) in p.iter_mut().zip(grad).zip(bias.iter().zip(lse).zip(delta)) {
                *p = exp::<FMA>(*p + bias - lse);
                *grad = *p * (*grad - delta);
            }
        }
    }
}

/// `count` ranges one after the other, each of `each`, cut off at `end`.
fn ranges(count: usize, each: usize, end: usize) -> Vec<std::ops::Range<usize>> {
    (0..count).map(|i| (i * each).min(end)..((i + 1) * each).min(end)).collect()
}

pub(crate) fn window_attention(cpu: &Cpu, op: &WindowAttention, args: &mut Args<'_>) {
    match args.input_type(0) {
        DType::Bf16 => forward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => forward::<f32>(cpu, op, args),
    }
}

fn forward<O: Operand + Number>(cpu: &Cpu, op: &WindowAttention, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (out, lse) = (outputs.take::<O>(), outputs.take::<f32>());
    let s = op.sizes(inputs.shape(0), inputs.shape(1));
    let (n, d, per_head) = (s.places, s.head_dim(), s.windows * s.places);
    let outs = Grid { rows: ranges(s.batch, s.tokens, s.batch * s.tokens), cols: ranges(s.heads, d, s.dim) };
    let lses = Grid { rows: ranges(s.batch, 1, s.batch), cols: ranges(s.heads, per_head, s.heads * per_head) };
    let out = [(BlockMut::of(out, s.batch * s.tokens, s.dim, s.dim), &outs)];
    let lse = [(BlockMut::of(lse, s.batch, s.heads * per_head, s.heads * per_head), &lses)];
    cpu.pool.for_grids(out, lse, scratch, |b, h, [mut out], [mut lse], mut scratch| {
        let head = Head::<O>::of(op, inputs, 0, b, h);
        let across = across(&s);
        let [q, k, v] = [across, n, n].map(|rows| take_rows::<O>(&mut scratch, rows * d));
        q[n * d..].fill(O::zeroed());
        let (result, scores) = (take(&mut scratch, n * d), take(&mut scratch, n * across));
        let [sums, logarithms] = [0; 2].map(|_| take(&mut scratch, across));
        let mut rounded = Rounded::<O>::take(&mut scratch, n, across);
        let bias = head.transposed_bias(&mut scratch);
        for (w, lse) in lse.row(0).chunks_exact_mut(n).enumerate() {
            let tokens = head.tokens(w);
            for (p, rows) in [&mut *q, k, v].into_iter().enumerate() {
                head.gather(cpu.isa, p, tokens, rows);
            }
            head.prefetch_window(w + 1);
            head.scores(cpu.isa, w, q, k, scores, scratch);
            exponentials(cpu.isa, scores, bias, sums, logarithms);
            lse.copy_from_slice(&logarithms[..n]);
            let e = Extents { m: n, n: d, k: n };
            let p = Product::new(e, rounded.of(cpu.isa, scores, across).transposed(), MatrixView::rows(v, d));
            multiply(cpu.isa, result, d, p, scratch);
            divide_rows(cpu.isa, result, d, sums);
            scatter(cpu.isa, &mut out, tokens, result);
        }
    });
}

/// Takes room for operands from working memory.
fn take_rows<'a, O: Operand>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [O] {
    &mut bytemuck::cast_slice_mut(take(scratch, O::words(len)))[..len]
}

pub(crate) fn window_attention_grad(cpu: &Cpu, op: &WindowAttentionGrad, args: &mut Args<'_>) {
    match args.input_type(3) {
        DType::Bf16 => backward::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => backward::<f32>(cpu, op, args),
    }
}

fn backward<O: Operand + Number>(cpu: &Cpu, op: &WindowAttentionGrad, args: &mut Args<'_>) {
    let f = &op.forward;
    let (inputs, mut outputs, scratch) = args.parts();
    let grad_qkv = outputs.take::<O>();
    let grad_bias = if f.bias { outputs.take::<f32>() } else { &mut [] };
    let grad_pad = if f.pad { outputs.take::<f32>() } else { &mut [] };
    let s = f.sizes(inputs.shape(3), inputs.shape(4));
    let images = images_per_part(f, s.batch);
    let parts = s.batch.div_ceil(images);
    let [bias, pad] = sums(f, &s);
    let lens = [parts * s.heads * bias, parts * s.heads * pad];
    let (of_bias, rest) = scratch.split_at_mut(padded(lens[0]));
    let (of_pad, rest) = rest.split_at_mut(padded(lens[1]));
    let (of_bias, of_pad) = (&mut of_bias[..lens[0]], &mut of_pad[..lens[1]]);
    let rows = s.batch * s.tokens;
    let grads = Grid { rows: ranges(parts, images * s.tokens, rows), cols: ranges(s.heads, s.head_dim(), s.dim) };
    let bias_grid = Grid { rows: ranges(parts, 1, parts), cols: ranges(s.heads, bias, s.heads * bias) };
    let pad_grid = Grid { rows: ranges(parts, 1, parts), cols: ranges(s.heads, pad, s.heads * pad) };
    let qkv = BlockMut::of(grad_qkv, rows, 3 * s.dim, 3 * s.dim).columns::<3>().map(|part| (part, &grads));
    let summed = [
        (BlockMut::of(&mut *of_bias, parts, s.heads * bias, s.heads * bias), &bias_grid),
        (BlockMut::of(&mut *of_pad, parts, s.heads * pad, s.heads * pad), &pad_grid),
    ];
    cpu.pool.for_grids(qkv, summed, rest, |part, h, mut grads, [mut bias, mut pad], scratch| {
        let (bias, pad) = (bias.row(0), pad.row(0));
        bias.fill(0.0);
        pad.fill(0.0);
        for (at, b) in (part * images..s.batch.min((part + 1) * images)).enumerate() {
            let rows = at * s.tokens..(at + 1) * s.tokens;
            let image = grads.each_mut().map(|g| {
                let cols = 0..g.cols();
                g.part(rows.clone(), cols)
            });
            backward_head::<O>(cpu.isa, f, inputs, (b, h), image, [&mut *bias, &mut *pad], scratch);
        }
    });
    if bias > 0 {
        let (sum, rest) = of_bias.split_at_mut(s.heads * bias);
        sum_partials(cpu.isa, sum, rest);
        let heads = grad_bias.chunks_exact_mut(s.places * s.places).zip(sum.chunks_exact(bias));
        heads.for_each(|(to, sum)| add_transposed(to, s.places, sum));
    }
    for (at, sum) in of_pad.chunks_exact(pad.max(1)).enumerate() {
        let (column, d) = (at % s.heads * s.head_dim(), s.head_dim());
        for (part, sum) in sum.chunks_exact(d).enumerate() {
            let start = (1 + part) * s.dim + column;
            grad_pad[start..start + d].iter_mut().zip(sum).for_each(|(g, s)| *g += s);
        }
    }
}

fn backward_head<O: Operand + Number>(
    isa: Isa,
    op: &WindowAttention,
    inputs: Inputs<'_>,
    (b, h): (usize, usize),
    mut grads: [BlockMut<'_, O>; 3],
    [bias_sum, pad_sum]: [&mut [f32]; 2],
    mut scratch: &mut [f32],
) {
    let head = Head::<O>::of(op, inputs, 3, b, h);
    let s = head.sizes;
    let (n, across, d) = (s.places, across(&s), s.head_dim());
    let rows = b * s.tokens * s.dim + head.column..(b + 1) * s.tokens * s.dim;
    let (grad, out) = (&inputs.get::<O>(0)[rows.clone()], &inputs.get::<O>(1)[rows]);
    let per_head = s.windows * n;
    let lse = &inputs.f32(2)[(b * s.heads + h) * per_head..(b * s.heads + h + 1) * per_head];
    let [q, grad_out, k, v] = [across, across, n, n].map(|rows| take_rows::<O>(&mut scratch, rows * d));
    [&mut *q, grad_out].into_iter().for_each(|rows| rows[n * d..].fill(O::zeroed()));
    let result = take(&mut scratch, n * d);
    let [p, grad_s] = [0; 2].map(|_| take(&mut scratch, n * across));
    let [logarithms, delta] = [0; 2].map(|_| take(&mut scratch, across));
    [&mut *logarithms, delta].into_iter().for_each(|numbers| numbers[n..].fill(0.0));
    let [mut rounded_p, mut rounded_grad] = [0; 2].map(|_| Rounded::<O>::take(&mut scratch, n, across));
    let bias = head.transposed_bias(&mut scratch);
    for (w, lse) in lse.chunks_exact(n).enumerate() {
        let tokens = head.tokens(w);
        for (part, rows) in [&mut *q, k, v].into_iter().enumerate() {
            head.gather(isa, part, tokens, rows);
        }
        gather(isa, grad_out, d, grad, s.dim, tokens);
        if op.pad {
            let beyond = grad_out.chunks_exact_mut(d).zip(tokens).filter(|(_, token)| **token as usize >= s.tokens);
            beyond.for_each(|(row, _)| row.fill(O::zeroed()));
        }
        head.prefetch_window(w + 1);
        [grad, out].into_iter().for_each(|rows| head.prefetch_rows(w + 1, rows));
        head.scores(isa, w, q, k, p, scratch);
        head.keys_times_queries(isa, v, grad_out, 1.0, grad_s, scratch);
        logarithms[..n].copy_from_slice(lse);
        row_products(isa, delta, grad_out, d, out, s.dim, tokens);
        grad_scores(isa, p, grad_s, bias, logarithms, delta);
        if op.bias {
            super::add::add_slices(isa, bias_sum, grad_s);
        }
        let over_places = Extents { m: n, n: d, k: n };
        let (grad_s, p) = (rounded_grad.of(isa, grad_s, across), rounded_p.of(isa, p, across));
        let grad_q = Product::new(over_places, grad_s.transposed(), MatrixView::rows(k, d)).scaled(head.scale);
        let grad_k = of_rounded(over_places, grad_s, MatrixView::rows(q, d)).scaled(head.scale);
        let grad_v = of_rounded(over_places, p, MatrixView::rows(grad_out, d));
        for (part, product) in [grad_q, grad_k, grad_v].into_iter().enumerate() {
            multiply(isa, result, d, product, scratch);
            scatter(isa, &mut grads[part], tokens, result);
            if part > 0 && op.pad {
                let sum = &mut pad_sum[(part - 1) * d..part * d];
                let beyond = result.chunks_exact(d).zip(tokens).filter(|(_, token)| **token as usize >= s.tokens);
                beyond.for_each(|(row, _)| super::add::add_slices(isa, sum, row));
            }
        }
    }
}

/// Adds a sum that stands as scores do to a gradient `[places, places]`.
fn add_transposed(to: &mut [f32], places: usize, sum: &[f32]) {
    for (key, row) in sum.chunks_exact(sum.len() / places).enumerate() {
        row[..places].iter().enumerate().for_each(|(query, v)| to[query * places + key] += v);
    }
}
