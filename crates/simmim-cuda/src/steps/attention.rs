//! Attention, forward and backward.

use super::{Builder, Operand};
use crate::error::CudaError;
use crate::step::{Address, Kernel, Launch};
use bytemuck::{Pod, Zeroable};
use simmim_engine::ops::{Attention, AttentionGrad, AttentionSizes, Packing};

/// `struct Attention` of `attention_tiles.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Layout {
    q: Address,
    kv: Address,
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

/// `struct Saved` of `attention.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Saved {
    grad_out: Address,
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

const KERNELS: [Kernels; 4] = [
    Kernels {
        head_dim: 32,
        forward: ("attention_32", 64),
        queries: ("attention_grad_queries_32", 32),
        keys: ("attention_grad_keys_32", 32),
        bias: ("attention_grad_bias_32", 32),
    },
    Kernels {
        head_dim: 64,
        forward: ("attention_64", 64),
        queries: ("attention_grad_queries_64", 32),
        keys: ("attention_grad_keys_64", 32),
        bias: ("attention_grad_bias_64", 32),
    },
    Kernels {
        head_dim: 96,
        forward: ("attention_96", 32),
        queries: ("attention_grad_queries_96", 32),
        keys: ("attention_grad_keys_96", 32),
        bias: ("attention_grad_bias_96", 32),
    },
    Kernels {
        head_dim: 128,
        forward: ("attention_128", 32),
        queries: ("attention_grad_queries_128", 16),
        keys: ("attention_grad_keys_128", 16),
        bias: ("attention_grad_bias_128", 32),
    },
];

fn kernels_for(head_dim: usize) -> Result<&'static Kernels, CudaError> {
    KERNELS.iter().find(|k| head_dim <= k.head_dim).ok_or(CudaError::WideHead { head_dim })
}

/// How the inputs of a forward attention lie, and its extents.
fn layout(op: &Attention, inputs: &[Operand]) -> (Layout, AttentionSizes) {
    let split = usize::from(op.packing == Packing::Split);
    let sizes = op.sizes(inputs[0].shape(), inputs[split].shape());
    let int = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
    let (kv, strides) = match op.packing {
        Packing::Packed => (inputs[0].at.element(sizes.dim), [3 * sizes.dim; 2]),
        Packing::Split => (inputs[1].at, [sizes.dim, 2 * sizes.dim]),
    };
    let layout = Layout {
        q: inputs[0].at,
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

/// A launch with a block for each sample and head, and `rows` of `total` rows.
fn by_rows((name, rows): (&'static str, usize), sizes: &AttentionSizes, total: usize) -> Launch {
    Launch::new(Kernel("attention", name), [sizes.batch * sizes.heads, total.div_ceil(rows), 1], 2 * rows as u32)
}

pub(super) fn attention(
    b: &mut Builder<'_>,
    op: &Attention,
    inputs: &[Operand],
    outputs: &[Operand],
) -> Result<(), CudaError> {
    let (layout, sizes) = layout(op, inputs);
    let kernels = kernels_for(sizes.head_dim())?;
    b.launch(
        by_rows(kernels.forward, &sizes, sizes.queries).with(layout).address(outputs[0].at).address(outputs[1].at),
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
    let kernels = kernels_for(sizes.head_dim())?;
    let rows = sizes.batch * sizes.heads * sizes.queries;
    let delta = b.scratch(4 * rows);
    let launch = Launch::new(Kernel("attention", "attention_grad_delta"), [rows.div_ceil(4), 1, 1], 128);
    let launch = launch.address(inputs[0].at).address(inputs[1].at).address(delta).index(rows);
    b.launch(launch.int(sizes.queries).int(sizes.heads).int(sizes.head_dim()));
    let saved = Saved { grad_out: inputs[0].at, lse: inputs[2].at, delta };
    let split = usize::from(op.forward.packing == Packing::Split);
    let grad_kv = if split == 1 { outputs[1].at } else { outputs[0].at.element(sizes.dim) };
    b.launch(by_rows(kernels.queries, &sizes, sizes.queries).with(layout).with(saved).address(outputs[0].at));
    b.launch(by_rows(kernels.keys, &sizes, sizes.tokens).with(layout).with(saved).address(grad_kv));
    if op.forward.bias {
        let grad_bias = &outputs[1 + split];
        let (name, rows) = kernels.bias;
        let grid = [sizes.heads, grad_bias.shape()[1].div_ceil(rows), sizes.tokens.div_ceil(32)];
        let launch = Launch::new(Kernel("attention", name), grid, 2 * rows as u32);
        b.launch(launch.with(layout).with(saved).address(grad_bias.at).int(sizes.batch));
    }
    Ok(())
}
