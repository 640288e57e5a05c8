//! Every operation alone, at the sizes of a ViT-S with 32-pixel patches and 16 images of 224 x 224 (half of the patches hidden),
//! on all cores. Inputs are standard normal and written anew before each run, outside the measured time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use criterion::{Criterion, criterion_group, criterion_main};
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::graph::{Graph, TensorType, ValueId};
use simmim_engine::ops::*;
use simmim_engine::{Executor, InputSlot, Program};
use simmim_random::{Purpose, Stream};
use std::time::{Duration, Instant};

const BATCH: usize = 16;
const TOKENS: usize = 49;
const VISIBLE: usize = 25;
const ROWS: usize = BATCH * TOKENS;
const DIM: usize = 384;
const HIDDEN: usize = 4 * DIM;
const HEADS: usize = 6;
const PATCH: usize = 3 * 32 * 32;

/// A graph of one operation.
struct Bench {
    graph: Graph,
    inputs: Vec<ValueId>,
}

impl Bench {
    /// With one float input for each shape.
    fn new(shapes: &[&[usize]]) -> Self {
        let bench = Self { graph: Graph::new(), inputs: Vec::new() };
        shapes.iter().fold(bench, |bench, shape| bench.input(shape))
    }

    fn input(mut self, shape: &[usize]) -> Self {
        let name = format!("x{}", self.inputs.len());
        self.inputs.push(self.graph.input(name, TensorType::f32(shape)));
        self
    }

    fn index(mut self, shape: &[usize], bound: usize) -> Self {
        let mut stream = Stream::new(1, Purpose::Test, 0, 0);
        let data = (0..shape.iter().product::<usize>()).map(|_| stream.below(bound as u64) as i32).collect();
        let name = format!("index{}", self.inputs.len());
        self.inputs.push(self.graph.constant(&name, shape, data));
        self
    }

    fn run(mut self, c: &mut Criterion, name: &str, op: impl Into<Op>) {
        for (i, value) in self.graph.apply(op, &self.inputs).unwrap().into_iter().enumerate() {
            self.graph.output(format!("y{i}"), value);
        }
        let mut stream = Stream::new(0, Purpose::Test, 0, 0);
        let mut draw = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
        let mut executor = CpuExecutor::new(0).unwrap();
        let id = executor.load(Program::compile(&self.graph).unwrap()).unwrap();
        let inputs: Vec<(InputSlot, Vec<f32>)> =
            self.graph.inputs().map(|(_, v)| (executor.input(id, &v.name).unwrap(), draw(v.ty.len()))).collect();
        c.bench_function(name, |b| {
            b.iter_custom(|runs| {
                let mut total = Duration::ZERO;
                for _ in 0..runs {
                    inputs.iter().for_each(|(slot, data)| executor.write(*slot, data).unwrap());
                    let start = Instant::now();
                    executor.run(id).unwrap();
                    total += start.elapsed();
                }
                total
            });
        });
    }
}

fn products(c: &mut Criterion) {
    let linear = Linear { bias: true, gelu: false, rows: None };
    for (name, inside, out, gelu) in
        [("qkv", DIM, 3 * DIM, false), ("fc1_gelu", DIM, HIDDEN, true), ("fc2", HIDDEN, DIM, false)]
    {
        let b = Bench::new(&[&[1, ROWS, inside], &[out, inside], &[out]]);
        b.run(c, &format!("linear/{name}"), Linear { gelu, ..linear });
        let b = Bench::new(&[&[ROWS, out], &[out, inside]]);
        b.run(c, &format!("linear_grad_input/{name}"), LinearGradInput::default());
        let b = Bench::new(&[&[ROWS, out], &[ROWS, inside], &[out, inside], &[out]]);
        b.run(c, &format!("linear_grad_weight/{name}"), LinearGradWeight { rows: None, bias: true });
    }
    Bench::new(&[&[ROWS, HIDDEN], &[ROWS, HIDDEN]]).run(c, "gelu_grad", GeluGrad);
}

fn attention(c: &mut Criterion) {
    let op = Attention { heads: HEADS, packing: Packing::Packed, bias: true };
    let (qkv, bias) = ([BATCH, TOKENS, 3 * DIM], [HEADS, TOKENS, TOKENS]);
    Bench::new(&[&qkv, &bias]).run(c, "attention", op);
    let mut b = Bench::new(&[&[BATCH, TOKENS, DIM], &qkv, &bias, &bias]);
    let saved = b.graph.apply(op, &[b.inputs[1], b.inputs[2]]).unwrap();
    b.inputs.splice(1..1, saved);
    b.run(c, "attention_and_attention_grad", AttentionGrad { forward: op });
    let entries = 13 * 13 + 3;
    Bench::new(&[&[entries, HEADS]]).index(&[TOKENS, TOKENS], entries).run(c, "relative_bias", RelativeBias);
    let b = Bench::new(&[&bias]).index(&[TOKENS, TOKENS], entries).input(&[entries, HEADS]);
    b.run(c, "relative_bias_grad", RelativeBiasGrad);
    Bench::new(&[&[DIM], &[DIM]]).run(c, "qkv_bias", QkvBias);
    Bench::new(&[&[3 * DIM], &[DIM], &[DIM]]).run(c, "qkv_bias_grad", QkvBiasGrad);
}

/// The first stage of a Swin-T at 224 pixels, and of a Swin-B at 192 with windows of 6: windows with a bias, of one region each.
fn window_attention(c: &mut Criterion) {
    for (name, tokens, places, heads) in [("7", 3136, 49, 3), ("6", 2304, 36, 4)] {
        let (dim, windows) = (32 * heads, tokens / places);
        let op = WindowAttention { heads, scale: 0.18, region: true, bias: true, pad: false };
        let qkv: &[usize] = &[2, tokens, 3 * dim];
        let bias: &[usize] = &[heads, places, places];
        let with = |b: Bench| b.index(&[windows, places], tokens).index(&[windows, places], 1).input(bias);
        with(Bench::new(&[qkv])).run(c, &format!("window_attention/{name}"), op);
        let mut b = with(Bench::new(&[&[2, tokens, dim], qkv]));
        let saved = b.graph.apply(op, &b.inputs[1..]).unwrap();
        b.inputs.splice(1..1, saved);
        let b = b.input(bias);
        b.run(c, &format!("window_attention_and_window_attention_grad/{name}"), WindowAttentionGrad { forward: op });
    }
}

fn norms_and_residuals(c: &mut Criterion) {
    let rows = [ROWS, DIM];
    Bench::new(&[&rows, &[DIM], &[DIM]]).run(c, "layer_norm", LayerNorm { eps: 1e-6 });
    let b = Bench::new(&[&rows, &rows, &[DIM], &[ROWS], &[ROWS], &rows]);
    b.run(c, "layer_norm_grad_input", LayerNormGradInput { accumulate: true, rounded: false });
    let b = Bench::new(&[&rows, &rows, &[ROWS], &[ROWS], &[DIM], &[DIM]]);
    b.run(c, "layer_norm_grad_parameters", LayerNormGradParameters);
    let tokens = [BATCH, TOKENS, DIM];
    let b = Bench::new(&[&tokens, &tokens, &[DIM], &[BATCH]]);
    b.run(c, "residual", Residual { gamma: true, keep: true });
    let b = Bench::new(&[&tokens, &tokens, &[DIM], &[BATCH], &[DIM]]);
    b.run(c, "residual_grad", ResidualGrad { gamma: true, keep: true });
    Bench::new(&[&rows, &rows]).run(c, "add", Add);
}

fn rows(c: &mut Criterion) {
    let sources = BATCH * VISIBLE + TOKENS;
    let b = Bench::new(&[&[sources, DIM]]).index(&[BATCH, TOKENS], sources);
    b.run(c, "gather_rows", GatherRows);
    let b = Bench::new(&[&[BATCH, TOKENS, DIM]]).index(&[BATCH, TOKENS], sources);
    b.run(c, "scatter_add_rows", ScatterAddRows { shape: vec![sources, DIM], accumulate: false });
    Bench::new(&[&[BATCH, TOKENS, DIM]]).run(c, "mean_tokens", MeanTokens { skip: 1 });
    Bench::new(&[&[BATCH, DIM]]).run(c, "mean_tokens_grad", MeanTokensGrad { tokens: TOKENS, skip: 1 });
    let b = Bench::new(&[&[BATCH, 3, 224, 224]]).index(&[BATCH, VISIBLE], TOKENS);
    b.run(c, "patch_gather", PatchGather { patch: (32, 32), normalise: Some(1e-6) });
    let op = EmbedRows { tokens: TOKENS, mask_token: true, cls_token: false, registers: 0, pos_embed: true, offset: 0 };
    let parameters: [&[usize]; 2] = [&[1, 1, DIM], &[1, TOKENS, DIM]];
    let with = |b: Bench| parameters.iter().fold(b.index(&[BATCH, VISIBLE], TOKENS), |b, shape| b.input(shape));
    with(Bench::new(&[&[BATCH, VISIBLE, DIM]])).run(c, "embed_rows", op);
    with(Bench::new(&[&[sources, DIM]])).run(c, "embed_rows_grad", EmbedRowsGrad { forward: op });
}

fn loss_and_update(c: &mut Criterion) {
    let hidden = [BATCH * (TOKENS - VISIBLE), PATCH];
    let op = PixelLoss { kind: PixelDistance::L1, scale: 1.0, weighted: false };
    Bench::new(&[&hidden, &hidden]).run(c, "pixel_loss", op);
    Bench::new(&[&hidden, &hidden]).run(c, "pixel_loss_grad", PixelLossGrad { forward: op });
    let classes: [usize; 2] = [BATCH, 1000];
    Bench::new(&[&classes, &classes]).run(c, "cross_entropy", CrossEntropy { scale: 1.0 });
    Bench::new(&[&classes, &classes]).run(c, "cross_entropy_grad", CrossEntropyGrad { scale: 1.0 });
    let weight = [HIDDEN, DIM];
    Bench::new(&[&weight, &weight, &weight]).run(c, "global_norm", GlobalNorm { max_norm: Some(1.0) });
    let op = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05, lr_scale: 1.0, copy: false, start: 0 };
    Bench::new(&[&weight, &weight, &weight, &weight, &[4], &[1]]).run(c, "adamw", op);
    Bench::new(&[&weight, &weight, &[1]]).run(c, "moving_average", MovingAverage);
    Bench::new(&[&[1]]).run(c, "drain", Drain);
    Bench::new(&[]).run(c, "zero", Zero { shape: vec![HIDDEN, DIM] });
}

criterion_group!(benches, products, attention, window_attention, norms_and_residuals, rows, loss_and_update);
criterion_main!(benches);
