//! Kernels of `window_attention`. A task takes one head of whole images, so that the columns it writes are its own.
//!
//! As in `attention`, scores and what follows from them are floats, rounded where they are operands of a product with bfloat16.

use super::attention::{Rounded, dot, grad_scores_row, of_rounded, padded, softmax_row, take};
use super::cast::convert;
use super::{Args, Inputs, sum_partials};
use crate::graph::{Bf16, DType, Number};
use crate::host::dispatch::vectorised;
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

/// Working memory of one thread: `rows` operands and a result `[places, head_dim]`, `scores` matrices `[places, places]` with what they round
/// to, and that of products.
fn thread_scratch<O: Operand>(s: &WindowSizes, rows: usize, scores: usize, isa: Isa) -> usize {
    let (n, d) = (s.places, s.head_dim());
    let products = [(n, n, d), (n, d, n)].map(|(m, n, k)| multiply_scratch::<O>(isa, Extents { m, n, k }));
    let matrices = scores * (padded(n * n) + Rounded::<O>::floats(n, n));
    rows * padded(O::words(n * d)) + padded(n * d) + matrices + products[0].max(products[1])
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
    [if op.bias { s.places * s.places } else { 0 }, if op.pad { 2 * s.head_dim() } else { 0 }]
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
        let (dim, d) = (self.sizes.dim, self.sizes.head_dim());
        let column = p * dim + self.column;
        for (to, &token) in to.chunks_exact_mut(d).zip(tokens) {
            match (self.qkv.get(token as usize * 3 * dim..), self.pad) {
                (Some([]) | None, Some(pad)) => convert(isa, &pad[column..column + d], to),
                (Some([]) | None, None) => to.fill(O::zeroed()),
                (Some(row), _) => to.copy_from_slice(&row[column..column + d]),
            }
        }
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

    /// `scores = scale q k^T + mask`, without the bias.
    fn scores(&self, isa: Isa, w: usize, q: &[O], k: &[O], scores: &mut [f32], scratch: &mut [f32]) {
        let (n, d) = (self.sizes.places, self.sizes.head_dim());
        let e = Extents { m: n, n, k: d };
        let p = Product::new(e, MatrixView::rows(q, d), MatrixView::rows(k, d).transposed()).scaled(self.scale);
        multiply(isa, scores, n, p, scratch);
        if let Some(regions) = self.regions(w) {
            for (row, &own) in scores.chunks_exact_mut(n).zip(regions) {
                mask_row(isa, row, regions, own);
            }
        }
    }

    fn bias_row(&self, place: usize) -> Option<&'a [f32]> {
        self.bias.map(|bias| &bias[place * self.sizes.places..(place + 1) * self.sizes.places])
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
        let [q, k, v] = [0; 3].map(|_| take_rows::<O>(&mut scratch, n * d));
        let (result, scores) = (take(&mut scratch, n * d), take(&mut scratch, n * n));
        let mut rounded = Rounded::<O>::take(&mut scratch, n, n);
        for (w, lse) in lse.row(0).chunks_exact_mut(n).enumerate() {
            let tokens = head.tokens(w);
            for (p, rows) in [&mut *q, k, v].into_iter().enumerate() {
                head.gather(cpu.isa, p, tokens, rows);
            }
            head.scores(cpu.isa, w, q, k, scores, scratch);
            for (place, (row, lse)) in scores.chunks_exact_mut(n).zip(lse).enumerate() {
                *lse = softmax_row(cpu.isa, row, head.bias_row(place));
                head.prefetch_place(w + 1, place);
            }
            let e = Extents { m: n, n: d, k: n };
            let p = of_rounded(e, rounded.of(cpu.isa, scores, n), MatrixView::rows(v, d));
            multiply(cpu.isa, result, d, p, scratch);
            scatter(cpu.isa, &mut out, tokens, result);
        }
    });
}

/// Takes room for operands from working memory.
fn take_rows<'a, O: Operand>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [O] {
    &mut bytemuck::cast_slice_mut(take(scratch, O::words(len)))[..len]
}

/// Writes rows to the tokens that they belong to; what lies beyond the map is dropped.
fn scatter<O: Number>(isa: Isa, to: &mut BlockMut<'_, O>, tokens: &[i32], rows: &[f32]) {
    for (row, &token) in rows.chunks_exact(to.cols()).zip(tokens) {
        if (token as usize) < to.rows() {
            convert(isa, row, to.row(token as usize));
        }
    }
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
        sum_partials(cpu.isa, grad_bias, of_bias);
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
    let (n, d) = (s.places, s.head_dim());
    let rows = b * s.tokens * s.dim..(b + 1) * s.tokens * s.dim;
    let (grad, out) = (&inputs.get::<O>(0)[rows.clone()], &inputs.get::<O>(1)[rows]);
    let per_head = s.windows * n;
    let lse = &inputs.f32(2)[(b * s.heads + h) * per_head..(b * s.heads + h + 1) * per_head];
    let [q, k, v, grad_out] = [0; 4].map(|_| take_rows::<O>(&mut scratch, n * d));
    let result = take(&mut scratch, n * d);
    let [p, grad_s] = [0; 2].map(|_| take(&mut scratch, n * n));
    let [mut rounded_p, mut rounded_grad] = [0; 2].map(|_| Rounded::<O>::take(&mut scratch, n, n));
    for (w, lse) in lse.chunks_exact(n).enumerate() {
        let tokens = head.tokens(w);
        for (part, rows) in [&mut *q, k, v].into_iter().enumerate() {
            head.gather(isa, part, tokens, rows);
        }
        for (to, &token) in grad_out.chunks_exact_mut(d).zip(tokens) {
            match grad.get(token as usize * s.dim + head.column..) {
                Some(row) if (token as usize) < s.tokens => to.copy_from_slice(&row[..d]),
                _ => to.fill(O::zeroed()),
            }
        }
        head.scores(isa, w, q, k, p, scratch);
        let (of_out, of_v) = (MatrixView::rows(grad_out, d), MatrixView::rows(v, d).transposed());
        multiply(isa, grad_s, n, Product::new(Extents { m: n, n, k: d }, of_out, of_v), scratch);
        for (place, (&token, &lse)) in tokens.iter().zip(lse).enumerate() {
            let at = place * n..(place + 1) * n;
            let delta = match out.get(token as usize * s.dim + head.column..) {
                Some(row) if (token as usize) < s.tokens => dot(isa, &grad_out[place * d..(place + 1) * d], &row[..d]),
                _ => 0.0,
            };
            head.prefetch_place(w + 1, place);
            if let Some(&next) = head.index.get((w + 1) * n + place) {
                let start = next as usize * s.dim + head.column;
                prefetch_row(grad, start, d);
                prefetch_row(out, start, d);
            }
            grad_scores_row(isa, &mut p[at.clone()], &mut grad_s[at], head.bias_row(place), lse, delta);
        }
        if op.bias {
            super::add::add_slices(isa, bias_sum, grad_s);
        }
        let over_places = Extents { m: n, n: d, k: n };
        let (grad_s, p) = (rounded_grad.of(isa, grad_s, n), rounded_p.of(isa, p, n));
        let grad_q = of_rounded(over_places, grad_s, MatrixView::rows(k, d)).scaled(head.scale);
        let grad_k = Product::new(over_places, grad_s.transposed(), MatrixView::rows(q, d)).scaled(head.scale);
        let grad_v = Product::new(over_places, p.transposed(), MatrixView::rows(grad_out, d));
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
