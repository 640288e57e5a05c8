//! A random case of every operation: a small graph around it, of odd shape.
//!
//! Executors are tested against the reference on them, and `simmim selftest` does so on the machine of a user.

#![allow(
    clippy::expect_used,
    reason = "a case that does not fit its operation is a fault of this crate, found by any test"
)]

use simmim_engine::graph::{DType, Graph, Node, TensorType, ValueId};
use simmim_engine::ops::*;
use simmim_engine::reference::Tensor;
use simmim_random::Stream;
use std::collections::HashMap;

/// Builds a small graph around one operation, of random shape.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The operation's variant.
    pub variant: &'static str,
    /// Builds it.
    pub build: fn(&mut Stream) -> Graph,
}

/// Random contents for the inputs of a graph; inputs named `positive...` hold no negative numbers,
/// those named `large...` numbers around 5, on both sides of the clamp of cosine attention.
#[must_use]
pub fn random_inputs(graph: &Graph, stream: &mut Stream) -> HashMap<String, Tensor> {
    graph
        .inputs()
        .map(|(_, v)| {
            let mut draw = || {
                let z = f64::from(stream.normal() as f32);
                match v.name.split(' ').next() {
                    Some("positive") => z.abs(),
                    Some("large") => z + 5.0,
                    _ => z,
                }
            };
            let data = (0..v.ty.len()).map(|_| draw()).collect();
            (v.name.clone(), Tensor::floats(v.ty.shape.clone(), data))
        })
        .collect()
}

/// Largest relative error of a result on floats.
pub const LIMIT: f64 = 2e-5;

/// How far a result in mixed precision may lie from the reference, which rounds what is stored in bfloat16 as the kernels do. Products of
/// rounded operands are exact and their sums floats, so where nothing else is rounded the limit is that of floats. A stored result
/// can fall on the other side of the middle between two numbers: half of 2^-7 and the error of the sum. Attention also rounds
/// probabilities and the gradients of scores, each by 2^-9 of a term; the sums of these may nearly cancel.
#[must_use]
pub fn mixed_limit(graph: &Graph, output: ValueId, variant: &str) -> f64 {
    let rounds =
        |node: &&Node| node.outputs.contains(&output) && node.inputs.iter().any(|v| graph.ty(*v).dtype == DType::Bf16);
    let maker = graph.nodes().iter().find(rounds);
    match maker.map(|node| node.op.name()) {
        _ if variant.contains("Attention") => 1.5 * 2f64.powi(-7),
        Some("cast") => 2f64.powi(-8) + LIMIT,
        _ => LIMIT,
    }
}

struct Builder<'s> {
    graph: Graph,
    stream: &'s mut Stream,
}

impl Builder<'_> {
    fn size(&mut self, most: u64) -> usize {
        1 + self.stream.below(most) as usize
    }

    fn flag(&mut self) -> bool {
        self.stream.below(2) == 1
    }

    fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.graph.input(name, TensorType::f32(shape))
    }

    fn index(&mut self, name: &str, shape: &[usize], bound: usize) -> ValueId {
        let data = (0..shape.iter().product::<usize>()).map(|_| self.stream.below(bound as u64) as i32).collect();
        self.graph.constant(name, shape, data)
    }

    fn finish(mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Graph {
        for (i, value) in self.graph.apply(op, inputs).expect("the case fits").into_iter().enumerate() {
            self.graph.output(format!("y{i}"), value);
        }
        self.graph
    }
}

fn builder(stream: &mut Stream) -> Builder<'_> {
    Builder { graph: Graph::new(), stream }
}

fn row_range(b: &mut Builder<'_>, total: usize) -> (Option<RowRange>, usize) {
    if b.flag() {
        let start = b.stream.below(total as u64) as usize;
        let len = 1 + b.stream.below((total - start) as u64) as usize;
        (Some(RowRange { start, len }), len)
    } else {
        (None, total)
    }
}

fn linear(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, inside, out) = (b.size(150), b.size(70), b.size(70));
    let (range, _) = row_range(&mut b, out);
    let op = Linear { bias: b.flag(), gelu: b.flag(), rows: range };
    let mut inputs = vec![b.input("x", &[1, rows, inside]), b.input("w", &[out, inside])];
    if op.bias {
        inputs.push(b.input("b", &[out]));
    }
    b.finish(op, &inputs)
}

fn linear_grad_input(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, inside, out) = (b.size(150), b.size(70), b.size(70));
    let (range, len) = row_range(&mut b, out);
    let (accumulate, gelu) = (b.flag(), b.flag());
    let op = LinearGradInput { rows: range, accumulate, gelu: gelu && !accumulate };
    let mut inputs = vec![b.input("g", &[rows, len]), b.input("w", &[out, inside])];
    if op.accumulate || op.gelu {
        inputs.push(b.input("third", &[rows, inside]));
    }
    b.finish(op, &inputs)
}

fn linear_grad_weight(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, inside, out) = (b.size(150), b.size(70), b.size(70));
    let (range, len) = row_range(&mut b, out);
    let op = LinearGradWeight { rows: range, bias: b.flag() };
    let mut inputs = vec![b.input("g", &[rows, len]), b.input("x", &[rows, inside]), b.input("gw", &[out, inside])];
    if op.bias {
        inputs.push(b.input("gb", &[out]));
    }
    b.finish(op, &inputs)
}

fn gelu_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(90), b.size(40)];
    let inputs = [b.input("g", &shape), b.input("slope", &shape)];
    b.finish(GeluGrad, &inputs)
}

fn layer_norm(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, dim) = (b.size(150), 1 + b.size(70));
    let inputs = [b.input("x", &[rows, dim]), b.input("w", &[dim]), b.input("b", &[dim])];
    b.finish(LayerNorm { eps: 1e-5 }, &inputs)
}

fn layer_norm_grad_input(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, dim) = (b.size(150), b.size(70));
    let shape = [rows, dim];
    let mut inputs = vec![b.input("g", &shape), b.input("x", &shape), b.input("w", &[dim])];
    inputs.extend([b.input("mean", &[rows]), b.input("rstd", &[rows])]);
    let accumulate = b.flag();
    if accumulate {
        inputs.push(b.input("acc", &shape));
    }
    b.finish(LayerNormGradInput { accumulate, rounded: false }, &inputs)
}

fn layer_norm_grad_parameters(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, dim) = (b.size(300), b.size(70));
    let mut inputs = vec![b.input("g", &[rows, dim]), b.input("x", &[rows, dim]), b.input("mean", &[rows])];
    inputs.extend([b.input("rstd", &[rows]), b.input("gw", &[dim]), b.input("gb", &[dim])]);
    b.finish(LayerNormGradParameters, &inputs)
}

fn attention_inputs(b: &mut Builder<'_>) -> (Attention, Vec<ValueId>, [usize; 4]) {
    let (batch, tokens, heads) = (b.size(11), b.size(40), b.size(3));
    let dim = heads * b.size(20);
    let op = Attention { heads, packing: if b.flag() { Packing::Packed } else { Packing::Split }, bias: b.flag() };
    let (queries, mut inputs) = match op.packing {
        Packing::Packed => (tokens, vec![b.input("qkv", &[batch, tokens, 3 * dim])]),
        Packing::Split => {
            let queries = b.size(tokens as u64);
            (queries, vec![b.input("q", &[batch, queries, dim]), b.input("kv", &[batch, tokens, 2 * dim])])
        }
    };
    if op.bias {
        inputs.push(b.input("bias", &[heads, tokens, tokens]));
        if op.packing == Packing::Split {
            inputs.push(b.index("query", &[batch, queries], tokens));
        }
    }
    (op, inputs, [batch, queries, tokens, dim])
}

fn attention(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, inputs, _) = attention_inputs(&mut b);
    b.finish(op, &inputs)
}

/// `lse` and `out` come from the forward operation, or the probabilities would overflow.
fn attention_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, forward, [batch, queries, tokens, dim]) = attention_inputs(&mut b);
    let grad = b.input("g", &[batch, queries, dim]);
    let saved = b.graph.apply(op, &forward).expect("the case fits");
    let mut inputs = vec![grad, saved[0], saved[1]];
    inputs.extend(forward);
    if op.bias {
        inputs.push(b.input("gbias", &[op.heads, tokens, tokens]));
    }
    b.finish(AttentionGrad { forward: op }, &inputs)
}

/// Windows whose places hold every token once, in random order, and padding where they are more.
fn window_inputs(b: &mut Builder<'_>) -> (WindowAttention, Vec<ValueId>, [usize; 5]) {
    let (batch, windows, places, heads) = (b.size(7), b.size(5), b.size(40), b.size(3));
    let dim = heads * b.size(40);
    let beyond = b.stream.below((windows * places) as u64) as usize;
    let tokens = windows * places - beyond;
    let op = WindowAttention { heads, scale: 0.4, region: b.flag(), bias: b.flag(), pad: beyond > 0 };
    let mut index: Vec<i32> = (0..windows * places).map(|i| i.min(tokens) as i32).collect();
    b.stream.shuffle(&mut index);
    let mut inputs = vec![b.input("qkv", &[batch, tokens, 3 * dim])];
    inputs.push(b.graph.constant("index", &[windows, places], index));
    if op.region {
        inputs.push(b.index("region", &[windows, places], 3));
    }
    if op.bias {
        inputs.push(b.input("bias", &[heads, places, places]));
    }
    if op.pad {
        inputs.push(b.input("pad", &[3 * dim]));
    }
    (op, inputs, [batch, tokens, dim, windows, places])
}

fn window_attention(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, inputs, _) = window_inputs(&mut b);
    b.finish(op, &inputs)
}

fn window_attention_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, forward, [batch, tokens, dim, _, places]) = window_inputs(&mut b);
    let grad = b.input("g", &[batch, tokens, dim]);
    let saved = b.graph.apply(op, &forward).expect("the case fits");
    let mut inputs = vec![grad, saved[0], saved[1]];
    inputs.extend(forward);
    if op.bias {
        inputs.push(b.input("gbias", &[op.heads, places, places]));
    }
    if op.pad {
        inputs.push(b.input("gpad", &[3 * dim]));
    }
    b.finish(WindowAttentionGrad { forward: op }, &inputs)
}

fn cosine_shape(b: &mut Builder<'_>) -> (usize, [usize; 3]) {
    let heads = b.size(4);
    (heads, [b.size(3), b.size(90), 3 * heads * b.size(40)])
}

fn cast(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(90), b.size(40)];
    let inputs = [b.input("x", &shape)];
    b.finish(Cast, &inputs)
}

fn cosine_heads(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (heads, shape) = cosine_shape(&mut b);
    let inputs = [b.input("qkv", &shape), b.input("large scale", &[heads, 1, 1])];
    b.finish(CosineHeads { heads }, &inputs)
}

fn cosine_heads_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (heads, shape) = cosine_shape(&mut b);
    let mut inputs = vec![b.input("g", &shape), b.input("y", &shape)];
    inputs.push(b.input("positive rnorm", &[shape[0] * shape[1], 2, heads]));
    inputs.extend([b.input("large scale", &[heads, 1, 1]), b.input("gscale", &[heads, 1, 1])]);
    b.finish(CosineHeadsGrad { heads }, &inputs)
}

fn function(b: &mut Builder<'_>) -> Function {
    if b.flag() { Function::Relu } else { Function::Sigmoid { scale: 16.0 } }
}

fn pointwise(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (function, shape) = (function(&mut b), [b.size(90), b.size(40)]);
    let inputs = [b.input("x", &shape)];
    b.finish(Pointwise { function }, &inputs)
}

fn pointwise_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (function, shape) = (function(&mut b), [b.size(90), b.size(40)]);
    let inputs = [b.input("g", &shape), b.input("y", &shape)];
    b.finish(PointwiseGrad { function }, &inputs)
}

fn window_normalize(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(3), b.size(4), b.size(20), 1 + b.size(20)];
    let inputs = [b.input("images", &shape)];
    let window = 3 + 2 * b.stream.below(12) as usize;
    b.finish(WindowNormalize { window, eps: 1e-2 }, &inputs)
}

fn reshape(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let [x, y, z] = [b.size(9), b.size(9), b.size(9)];
    let inputs = [b.input("x", &[x, y, z])];
    b.finish(Reshape { shape: vec![z, x * y] }, &inputs)
}

fn residual_flags(b: &mut Builder<'_>) -> (bool, bool, usize, usize, usize) {
    (b.flag(), b.flag(), b.size(5), b.size(60), b.size(50))
}

fn residual(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (gamma, keep, batch, tokens, dim) = residual_flags(&mut b);
    let mut inputs = vec![b.input("x", &[batch, tokens, dim]), b.input("branch", &[batch, tokens, dim])];
    if gamma {
        inputs.push(b.input("gamma", &[dim]));
    }
    if keep {
        inputs.push(b.input("keep", &[batch]));
    }
    b.finish(Residual { gamma, keep }, &inputs)
}

fn residual_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (gamma, keep, batch, tokens, dim) = residual_flags(&mut b);
    let mut inputs = vec![b.input("g", &[batch, tokens, dim])];
    if gamma {
        inputs.extend([b.input("branch", &[batch, tokens, dim]), b.input("gamma", &[dim])]);
    }
    if keep {
        inputs.push(b.input("keep", &[batch]));
    }
    if gamma {
        inputs.push(b.input("ggamma", &[dim]));
    }
    b.finish(ResidualGrad { gamma, keep }, &inputs)
}

fn gather_rows(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, dim, count) = (b.size(60), b.size(40), b.size(60));
    let inputs = [b.input("x", &[rows, dim]), b.index("index", &[2, count], rows)];
    b.finish(GatherRows, &inputs)
}

fn scatter_add_rows(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (rows, dim, count, accumulate) = (b.size(60), b.size(40), b.size(60), b.flag());
    let mut inputs = vec![b.input("g", &[2, count, dim]), b.index("index", &[2, count], rows)];
    if accumulate {
        inputs.push(b.input("acc", &[rows, dim]));
    }
    b.finish(ScatterAddRows { shape: vec![rows, dim], accumulate }, &inputs)
}

fn patch_gather(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (batch, channels, patch) = (b.size(3), b.size(5), (b.size(5), 1 + b.size(4)));
    let (rows, cols, count) = (b.size(4), b.size(4), b.size(9));
    let images = b.input("images", &[batch, channels, rows * patch.0, cols * patch.1]);
    let index = b.index("index", &[batch, count], rows * cols);
    let normalise = b.flag().then_some(1e-6);
    b.finish(PatchGather { patch, normalise }, &[images, index])
}

fn embed_shape(b: &mut Builder<'_>) -> (EmbedRows, [usize; 3]) {
    let cls_token = b.flag();
    let offset = if cls_token { 1 } else { b.stream.below(2) as usize };
    let registers = b.stream.below(4) as usize;
    let op = EmbedRows { tokens: b.size(20), mask_token: b.flag(), cls_token, registers, pos_embed: b.flag(), offset };
    (op, [b.size(4), b.size(20), b.size(40)])
}

fn embed_parameters(b: &mut Builder<'_>, op: EmbedRows, dim: usize, inputs: &mut Vec<ValueId>) {
    if op.mask_token {
        inputs.push(b.input("mask_token", &[1, 1, dim]));
    }
    if op.cls_token {
        inputs.push(b.input("cls_token", &[1, 1, dim]));
    }
    if op.registers > 0 {
        inputs.push(b.input("reg_token", &[1, op.registers, dim]));
    }
    if op.pos_embed {
        inputs.push(b.input("pos_embed", &[1, op.offset + op.tokens, dim]));
    }
}

fn embed_rows(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, [batch, visible, dim]) = embed_shape(&mut b);
    let mut inputs = vec![b.input("patches", &[batch, visible, dim]), b.index("index", &[batch, visible], op.tokens)];
    embed_parameters(&mut b, op, dim, &mut inputs);
    b.finish(op, &inputs)
}

fn embed_rows_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, [batch, visible, dim]) = embed_shape(&mut b);
    let rows = batch * visible + op.templates() + op.special();
    let mut inputs = vec![b.input("g", &[rows, dim]), b.index("index", &[batch, visible], op.tokens)];
    embed_parameters(&mut b, op, dim, &mut inputs);
    b.finish(EmbedRowsGrad { forward: op }, &inputs)
}

fn relative_shape(b: &mut Builder<'_>) -> [usize; 4] {
    [b.size(30), b.size(4), b.size(12), b.size(12)]
}

fn relative_bias(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let [entries, heads, queries, keys] = relative_shape(&mut b);
    let inputs = [b.input("table", &[entries, heads]), b.index("index", &[queries, keys], entries)];
    b.finish(RelativeBias, &inputs)
}

fn relative_bias_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let [entries, heads, queries, keys] = relative_shape(&mut b);
    let index = b.index("index", &[queries, keys], entries);
    let inputs = [b.input("g", &[heads, queries, keys]), index, b.input("gtable", &[entries, heads])];
    b.finish(RelativeBiasGrad, &inputs)
}

fn qkv_bias(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let dim = b.size(50);
    let inputs = [b.input("q", &[dim]), b.input("v", &[dim])];
    b.finish(QkvBias, &inputs)
}

fn qkv_bias_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let dim = b.size(50);
    let inputs = [b.input("g", &[3 * dim]), b.input("q", &[dim]), b.input("v", &[dim])];
    b.finish(QkvBiasGrad, &inputs)
}

fn loss_inputs(b: &mut Builder<'_>) -> (PixelLoss, Vec<ValueId>) {
    let kinds = [PixelDistance::L1, PixelDistance::L2, PixelDistance::SmoothL1 { beta: 0.7 }];
    let kind = kinds[b.stream.below(3) as usize];
    let op = PixelLoss { kind, scale: 0.37, weighted: b.flag() };
    let (rows, columns) = (b.size(90), b.size(50));
    let mut inputs = vec![b.input("p", &[rows, columns]), b.input("t", &[rows, columns])];
    if op.weighted {
        inputs.push(b.input("weight", &[rows]));
    }
    (op, inputs)
}

fn pixel_loss(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (mut op, mut inputs) = loss_inputs(&mut b);
    // Weights of both signs can cancel to almost nothing, of which no relative error makes sense.
    op.weighted = false;
    inputs.truncate(2);
    b.finish(op, &inputs)
}

fn pixel_loss_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (op, inputs) = loss_inputs(&mut b);
    b.finish(PixelLossGrad { forward: op }, &inputs)
}

/// Classes from one to more than fill a vector; targets are sums of two labels, smoothed or not.
fn class_inputs(b: &mut Builder<'_>) -> Vec<ValueId> {
    let shape = [b.size(90), b.size(50)];
    vec![b.input("logits", &shape), b.input("positive targets", &shape)]
}

fn cross_entropy(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let inputs = class_inputs(&mut b);
    b.finish(CrossEntropy { scale: 0.37 }, &inputs)
}

fn cross_entropy_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let inputs = class_inputs(&mut b);
    b.finish(CrossEntropyGrad { scale: 0.37 }, &inputs)
}

fn mean_tokens(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (skip, shape) = (b.stream.below(3) as usize, [b.size(9), 2 + b.size(30), b.size(70)]);
    let inputs = [b.input("x", &shape)];
    b.finish(MeanTokens { skip }, &inputs)
}

fn mean_tokens_grad(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let (skip, tokens, shape) = (b.stream.below(3) as usize, 2 + b.size(30), [b.size(9), b.size(70)]);
    let inputs = [b.input("g", &shape)];
    b.finish(MeanTokensGrad { tokens, skip }, &inputs)
}

fn moving_average(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(200), b.size(60)];
    let inputs = [b.input("average", &shape), b.input("param", &shape), b.input("decay", &[1])];
    b.finish(MovingAverage, &inputs)
}

fn add(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(300), b.size(90)];
    let inputs = [b.input("a", &shape), b.input("b", &shape)];
    b.finish(Add, &inputs)
}

fn drain(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(300), b.size(90)];
    let inputs = [b.input("sum", &shape)];
    b.finish(Drain, &inputs)
}

fn zero(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = vec![b.size(9), b.size(9)];
    b.finish(Zero { shape }, &[])
}

fn global_norm(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let count = b.size(5);
    let inputs: Vec<ValueId> = (0..count)
        .map(|i| {
            let len = b.size(9000);
            b.input(&format!("g{i}"), &[len])
        })
        .collect();
    let max_norm = b.flag().then_some(0.5);
    b.finish(GlobalNorm { max_norm }, &inputs)
}

fn adamw(s: &mut Stream) -> Graph {
    let mut b = builder(s);
    let shape = [b.size(200), b.size(60)];
    let len = shape[0] * shape[1];
    // The moments of all, or of a part.
    let part = if b.flag() && len > 1 { b.size(len as u64 - 1) } else { len };
    let start = if part < len { b.size((len - part) as u64 + 1) - 1 } else { 0 };
    let moments = if part < len { vec![part] } else { shape.to_vec() };
    let inputs = [
        b.input("param", &shape),
        b.input("grad", &shape),
        b.input("m", &moments),
        b.input("positive v", &moments),
        b.input("positive step", &[4]),
        b.input("clip", &[1]),
    ];
    b.finish(
        AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.05, lr_scale: 0.5, copy: false, start },
        &inputs,
    )
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    macro_rules! table {
        ($($variant:ident => $build:ident),* $(,)?) => {
            vec![$(Case { variant: stringify!($variant), build: $build }),*]
        };
    }
    table!(
        AdamW => adamw, Add => add, Attention => attention, AttentionGrad => attention_grad, Cast => cast, CosineHeads => cosine_heads,
        CosineHeadsGrad => cosine_heads_grad, CrossEntropy => cross_entropy,
        CrossEntropyGrad => cross_entropy_grad, Drain => drain, EmbedRows => embed_rows,
        EmbedRowsGrad => embed_rows_grad, GatherRows => gather_rows, GeluGrad => gelu_grad, GlobalNorm => global_norm,
        LayerNorm => layer_norm, LayerNormGradInput => layer_norm_grad_input,
        LayerNormGradParameters => layer_norm_grad_parameters, Linear => linear, LinearGradInput => linear_grad_input,
        LinearGradWeight => linear_grad_weight, MeanTokens => mean_tokens, MeanTokensGrad => mean_tokens_grad,
        MovingAverage => moving_average, PatchGather => patch_gather, PixelLoss => pixel_loss,
        PixelLossGrad => pixel_loss_grad, Pointwise => pointwise, PointwiseGrad => pointwise_grad, QkvBias => qkv_bias, QkvBiasGrad => qkv_bias_grad,
        RelativeBias => relative_bias, RelativeBiasGrad => relative_bias_grad, Reshape => reshape, Residual => residual,
        ResidualGrad => residual_grad, ScatterAddRows => scatter_add_rows, WindowAttention => window_attention,
        WindowAttentionGrad => window_attention_grad, WindowNormalize => window_normalize, Zero => zero,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_operation_has_a_case() {
        let covered: BTreeSet<&str> = cases().iter().map(|c| c.variant).collect();
        let all: BTreeSet<&str> = Op::VARIANTS.iter().copied().collect();
        assert_eq!(all, covered);
    }
}
