//! Attention, forward and backward, over whole sequences and within windows.

use super::{Builder, Operand};
use crate::error::CudaError;
use crate::step::{Address, Kernel, Launch, Values};
use bytemuck::{Pod, Zeroable};
use simmim_engine::ops::{
    Attention, AttentionGrad, AttentionSizes, Packing, WindowAttention, WindowAttentionGrad, WindowSizes,
};

/// `struct Attention` of `attention_tiles.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Layout {
    q: Values,
    kv: Values,
    bias: Address,
    query: Address,
    q_stride: i64,
    kv_stride: i64,
    queries: i32,
    tokens: i32,
    heads: i32,
    head_dim: i32,
    positions: i32,
    scale: f32,
}

/// `struct Saved` of `attention_tiles.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Saved {
    grad_out: Values,
    lse: Address,
    delta: Address,
}

/// Kernels for heads of up to so many columns: forward, backward of queries, keys and bias. Rows of a block: as in `attention.cu`.
struct Kernels {
    head_dim: usize,
    forward: (&'static str, usize),
    queries: (&'static str, usize),
    keys: (&'static str, usize),
    bias: (&'static str, usize),
}

macro_rules! kernels {
    ($file:literal: $($head_dim:literal: [$forward:literal, $queries:literal, $keys:literal, $bias:literal]),*) => {
        [$(Kernels {
            head_dim: $head_dim,
            forward: (concat!($file, "_", $head_dim), $forward),
            queries: (concat!($file, "_grad_queries_", $head_dim), $queries),
            keys: (concat!($file, "_grad_keys_", $head_dim), $keys),
            bias: (concat!($file, "_grad_bias_", $head_dim), $bias),
        }),*]
    };
}

const KERNELS: [Kernels; 4] = kernels!(
    "attention": 32: [64, 32, 32, 32], 64: [64, 32, 32, 32], 96: [32, 32, 32, 32], 128: [32, 16, 16, 32]
);

/// The same within windows.
const WINDOW_KERNELS: [Kernels; 2] = kernels!("window_attention": 32: [64, 32, 32, 32], 64: [64, 32, 32, 32]);

/// Windows of an image's batch for which a block sums the gradient of the bias, at least; and parts of that sum, at most.
const SAMPLES_OF_PART: usize = 16;
const MOST_PARTS: usize = 64;

fn kernels_for(kernels: &'static [Kernels], head_dim: usize) -> Result<&'static Kernels, CudaError> {
    let most = kernels[kernels.len() - 1].head_dim;
    kernels.iter().find(|k| head_dim <= k.head_dim).ok_or(CudaError::WideHead { head_dim, most })
}

fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// How the inputs of a forward attention lie, and its extents.
fn layout(op: &Attention, inputs: &[Operand]) -> (Layout, AttentionSizes) {
    let split = usize::from(op.packing == Packing::Split);
    let sizes = op.sizes(inputs[0].shape(), inputs[split].shape());
    let (kv, strides) = match op.packing {
        Packing::Packed => (inputs[0].values().from(sizes.dim), [3 * sizes.dim; 2]),
        Packing::Split => (inputs[1].values(), [sizes.dim, 2 * sizes.dim]),
    };
    let layout = Layout {
        q: inputs[0].values(),
        kv,
        bias: if op.bias { inputs[1 + split].at } else { Address::NONE },
        query: if op.bias && split == 1 { inputs[3].at } else { Address::NONE },
        q_stride: strides[0] as i64,
        kv_stride: strides[1] as i64,
        queries: int(sizes.queries),
        tokens: int(sizes.tokens),
        heads: int(sizes.heads),
        head_dim: int(sizes.head_dim()),
        positions: if op.bias { int(inputs[1 + split].shape()[1]) } else { 0 },
        scale: 1.0 / (sizes.head_dim() as f32).sqrt(),
    };
    (layout, sizes)
}

/// A launch with a block for each of `samples` and each head, and `rows` of `total` rows.
fn by_rows(file: &'static str, (name, rows): (&'static str, usize), samples: usize, total: usize) -> Launch {
    Launch::new(Kernel(file, name), [samples, total.div_ceil(rows), 1], 2 * rows as u32)
}

/// The sums over heads of `grad_out out`, in the order `[images][heads][tokens]`.
fn delta(b: &mut Builder<'_>, inputs: &[Operand], [images, heads, tokens, head_dim]: [usize; 4]) -> Address {
    let rows = images * heads * tokens;
    let delta = b.scratch(4 * rows);
    let launch = Launch::new(Kernel("attention", "attention_grad_delta"), [rows.div_ceil(4), 1, 1], 128);
    let launch = launch.with(inputs[0].values()).with(inputs[1].values()).address(delta).index(rows);
    b.launch(launch.int(tokens).int(heads).int(head_dim));
    delta
}

pub(super) fn attention(
    b: &mut Builder<'_>,
    op: &Attention,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<(), CudaError> {
    let (layout, sizes) = layout(op, inputs);
    let kernels = kernels_for(&KERNELS, sizes.head_dim())?;
    b.launch(
        by_rows("attention", kernels.forward, sizes.batch * sizes.heads, sizes.queries)
            .with(layout)
            .with(outputs[0].values())
            .address(outputs[1].at),
    );
    Ok(())
}

pub(super) fn attention_grad(
    b: &mut Builder<'_>,
    op: &AttentionGrad,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<(), CudaError> {
    let (layout, sizes) = layout(&op.forward, &inputs[3..]);
    let kernels = kernels_for(&KERNELS, sizes.head_dim())?;
    let delta = delta(b, inputs, [sizes.batch, sizes.heads, sizes.queries, sizes.head_dim()]);
    let saved = Saved { grad_out: inputs[0].values(), lse: inputs[2].at, delta };
    let split = usize::from(op.forward.packing == Packing::Split);
    let grad_kv = if split == 1 { outputs[1].values() } else { outputs[0].values().from(sizes.dim) };
    let passes = [(kernels.queries, sizes.queries, outputs[0].values()), (kernels.keys, sizes.tokens, grad_kv)];
    for (kernel, total, grad) in passes {
        let launch = by_rows("attention", kernel, sizes.batch * sizes.heads, total);
        b.launch(launch.with(layout).with(saved).with(grad));
    }
    if op.forward.bias {
        let grad_bias = &outputs[1 + split];
        let (name, rows) = kernels.bias;
        let grid = [sizes.heads, grad_bias.shape()[1].div_ceil(rows), sizes.tokens.div_ceil(32)];
        let launch = Launch::new(Kernel("attention", name), grid, 2 * rows as u32);
        b.launch(launch.with(layout).with(saved).address(grad_bias.at).int(sizes.batch));
    }
    Ok(())
}

/// `struct Windows` of `window_attention.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Windows {
    qkv: Values,
    index: Address,
    region: Address,
    bias: Address,
    pad: Address,
    grad_pads: Address,
    map: i32,
    windows: i32,
    queries: i32,
    tokens: i32,
    heads: i32,
    head_dim: i32,
    scale: f32,
    unused: f32,
}

/// How the inputs of a forward attention within windows lie, and its extents.
fn windows(op: &WindowAttention, inputs: &[Operand]) -> (Windows, WindowSizes) {
    let sizes = op.sizes(inputs[0].shape(), inputs[1].shape());
    let [region, bias, pad] = op.optional(0).map(|at| at.map_or(Address::NONE, |at| inputs[at].at));
    let windows = Windows {
        qkv: inputs[0].values(),
        index: inputs[1].at,
        region,
        bias,
        pad,
        grad_pads: Address::NONE,
        map: int(sizes.tokens),
        windows: int(sizes.windows),
        queries: int(sizes.places),
        tokens: int(sizes.places),
        heads: int(sizes.heads),
        head_dim: int(sizes.head_dim()),
        scale: op.scale,
        unused: 0.0,
    };
    (windows, sizes)
}

pub(super) fn window_attention(
    b: &mut Builder<'_>,
    op: &WindowAttention,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<(), CudaError> {
    let (windows, s) = windows(op, inputs);
    let kernels = kernels_for(&WINDOW_KERNELS, s.head_dim())?;
    let launch = by_rows("window_attention", kernels.forward, s.batch * s.windows * s.heads, s.places);
    b.launch(launch.with(windows).with(outputs[0].values()).address(outputs[1].at));
    Ok(())
}

pub(super) fn window_attention_grad(
    b: &mut Builder<'_>,
    op: &WindowAttentionGrad,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<(), CudaError> {
    let f = &op.forward;
    let (mut windows, s) = windows(f, &inputs[3..]);
    let kernels = kernels_for(&WINDOW_KERNELS, s.head_dim())?;
    let samples = s.batch * s.windows;
    let delta = delta(b, inputs, [s.batch, s.heads, s.tokens, s.head_dim()]);
    if f.pad {
        windows.grad_pads = b.scratch(4 * samples * s.places * 2 * s.dim);
    }
    let saved = Saved { grad_out: inputs[0].values(), lse: inputs[2].at, delta };
    for kernel in [kernels.queries, kernels.keys] {
        let launch = by_rows("window_attention", kernel, samples * s.heads, s.places);
        b.launch(launch.with(windows).with(saved).with(outputs[0].values()));
    }
    if f.bias {
        let of_part = samples.div_ceil(MOST_PARTS).max(SAMPLES_OF_PART);
        let (number, count) = (samples.div_ceil(of_part), s.heads * s.places * s.places);
        let parts = b.scratch(4 * number * count);
        let (name, rows) = kernels.bias;
        let grid = [number * s.heads, s.places.div_ceil(rows), s.places.div_ceil(32)];
        let launch = Launch::new(Kernel("window_attention", name), grid, 2 * rows as u32);
        b.launch(launch.with(windows).with(saved).address(parts).int(samples).int(of_part));
        b.add_parts(outputs[1].at, parts, number, count);
    }
    if f.pad {
        let kernel = Kernel("window_attention", "window_attention_grad_pad");
        let launch = Launch::new(kernel, [(2 * s.dim).div_ceil(128), 1, 1], 128);
        let launch =
            launch.address(windows.grad_pads).address(windows.index).address(outputs[1 + usize::from(f.bias)].at);
        b.launch(launch.int(s.batch).int(s.windows * s.places).int(s.tokens).int(s.dim));
    }
    Ok(())
}
