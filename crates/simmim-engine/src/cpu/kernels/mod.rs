//! The processor's kernels: one file for each operation, under the operation's name.

pub(crate) mod adamw;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod cast;
pub(crate) mod cosine_heads;
pub(crate) mod cross_entropy;
pub(crate) mod drain;
pub(crate) mod embed_rows;
pub(crate) mod gather_rows;
pub(crate) mod global_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod mean_tokens;
pub(crate) mod moving_average;
pub(crate) mod patch_gather;
pub(crate) mod pixel_loss;
pub(crate) mod pointwise;
pub(crate) mod qkv_bias;
pub(crate) mod relative_bias;
pub(crate) mod residual;
pub mod vector_math;
pub(crate) mod window_attention;
pub(crate) mod window_normalize;
pub(crate) mod zero;

pub use super::arena::{Args, Inputs, Outputs};
use crate::graph::Bf16;
use crate::host::dispatch::vectorised;
use crate::host::gemm::Tile;
use crate::host::{BlockMut, Cpu};
use crate::ops::Op;
use crate::plan::Instruction;

/// Calls a kernel with the number types of two values.
macro_rules! by_types {
    ($first:expr, $second:expr, $kernel:ident($($arg:expr),*)) => {
        match ($first, $second) {
            (DType::Bf16, DType::Bf16) => $kernel::<Bf16, Bf16>($($arg),*),
            (DType::Bf16, _) => $kernel::<Bf16, f32>($($arg),*),
            (_, DType::Bf16) => $kernel::<f32, Bf16>($($arg),*),
            _ => $kernel::<f32, f32>($($arg),*),
        }
    };
}
pub(super) use by_types;

/// Rows that one partial sum takes: a partition that depends on the shape alone, so that sums over rows do not depend on the
/// number of threads.
pub(crate) const PARTIAL_ROWS: usize = 64;

/// Rows of `columns` floats that make a task worth handing out.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (1 << 14) / columns.max(1) + 1
}

/// Adds the rows of `partials` to `sum`, in order.
pub(crate) fn sum_partials(isa: crate::host::Isa, sum: &mut [f32], partials: &[f32]) {
    partials.chunks_exact(sum.len()).for_each(|partial| add::add_slices(isa, sum, partial));
}

vectorised! {
    /// Rounds the values of a tile to its place in a block.
    pub(crate) fn round_block<_FMA>(values: &mut BlockMut<'_>, to: &mut BlockMut<'_, Bf16>, place: &Tile) {
        for (i, row) in place.rows.clone().enumerate() {
            let (from, to) = (values.row(i), &mut to.row(row)[place.cols.clone()]);
            let ((from, from_tail), (to, to_tail)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
            for (from, to) in from.iter().zip(to) {
                *to = from.map(Bf16::nearest);
            }
            from_tail.iter().zip(to_tail).for_each(|(&from, to)| *to = Bf16::nearest(from));
        }
    }
}

/// Runs the kernel of an operation.
pub(super) fn run(cpu: &Cpu, op: &Op, args: &mut Args<'_>) {
    match op {
        Op::AdamW(op) => adamw::adamw(cpu, op, args),
        Op::Add(_) => add::add(cpu, args),
        Op::Attention(op) => attention::attention(cpu, op, args),
        Op::AttentionGrad(op) => attention::attention_grad(cpu, op, args),
        Op::Cast(_) => cast::cast(cpu, args),
        Op::CosineHeads(op) => cosine_heads::cosine_heads(cpu, op, args),
        Op::CosineHeadsGrad(op) => cosine_heads::cosine_heads_grad(cpu, op, args),
        Op::CrossEntropy(op) => cross_entropy::cross_entropy(cpu, op, args),
        Op::CrossEntropyGrad(op) => cross_entropy::cross_entropy_grad(cpu, op, args),
        Op::Drain(_) => drain::drain(args),
        Op::EmbedRows(op) => embed_rows::embed_rows(cpu, op, args),
        Op::EmbedRowsGrad(op) => embed_rows::embed_rows_grad(cpu, op, args),
        Op::GatherRows(_) => gather_rows::gather_rows(cpu, args),
        Op::GeluGrad(_) => linear::gelu_grad(cpu, args),
        Op::GlobalNorm(op) => global_norm::global_norm(cpu, op, args),
        Op::LayerNorm(op) => layer_norm::layer_norm(cpu, op, args),
        Op::LayerNormGradInput(op) => layer_norm::layer_norm_grad_input(cpu, op, args),
        Op::LayerNormGradParameters(_) => layer_norm::layer_norm_grad_parameters(cpu, args),
        Op::Linear(op) => linear::linear(cpu, op, args),
        Op::LinearGradInput(op) => linear::linear_grad_input(cpu, op, args),
        Op::LinearGradWeight(op) => linear::linear_grad_weight(cpu, op, args),
        Op::MeanTokens(op) => mean_tokens::mean_tokens(cpu, op, args),
        Op::MeanTokensGrad(op) => mean_tokens::mean_tokens_grad(cpu, op, args),
        Op::MovingAverage(_) => moving_average::moving_average(cpu, args),
        Op::PatchGather(op) => patch_gather::patch_gather(cpu, op, args),
        Op::PixelLoss(op) => pixel_loss::pixel_loss(cpu, op, args),
        Op::PixelLossGrad(op) => pixel_loss::pixel_loss_grad(cpu, op, args),
        Op::Pointwise(op) => pointwise::pointwise(cpu, op.function, args),
        Op::PointwiseGrad(op) => pointwise::pointwise_grad(cpu, op.function, args),
        Op::QkvBias(_) => qkv_bias::qkv_bias(args),
        Op::QkvBiasGrad(_) => qkv_bias::qkv_bias_grad(args),
        Op::RelativeBias(_) => relative_bias::relative_bias(cpu, args),
        Op::RelativeBiasGrad(_) => relative_bias::relative_bias_grad(cpu, args),
        // The contents stand in the output already.
        Op::Reshape(_) => {}
        Op::Residual(op) => residual::residual(cpu, op, args),
        Op::ResidualGrad(op) => residual::residual_grad(cpu, op, args),
        Op::ScatterAddRows(op) => gather_rows::scatter_add_rows(cpu, op, args),
        Op::WindowAttention(op) => window_attention::window_attention(cpu, op, args),
        Op::WindowAttentionGrad(op) => window_attention::window_attention_grad(cpu, op, args),
        Op::WindowNormalize(op) => window_normalize::window_normalize(cpu, op, args),
        Op::Zero(_) => zero::zero(args),
    }
}

/// Floats of working memory that an instruction needs. Kept beside [`run`]: a kernel finds this much in `Args::split`.
pub(super) fn scratch(instruction: &Instruction, cpu: &Cpu) -> usize {
    match &instruction.op {
        Op::Attention(op) => attention::scratch(op, instruction, cpu),
        Op::AttentionGrad(op) => attention::scratch_grad(op, instruction, cpu),
        Op::CosineHeadsGrad(_) => cosine_heads::scratch_grad(instruction),
        Op::CrossEntropy(_) => cross_entropy::scratch(instruction),
        Op::GlobalNorm(_) => global_norm::scratch(instruction),
        Op::LayerNormGradParameters(_) => layer_norm::scratch_grad_parameters(instruction),
        Op::Linear(op) => linear::scratch(op, instruction, cpu),
        Op::LinearGradInput(op) => linear::scratch_grad_input(op, instruction, cpu),
        Op::LinearGradWeight(op) => linear::scratch_grad_weight(op, instruction, cpu),
        Op::PixelLoss(_) => pixel_loss::scratch(instruction),
        Op::ResidualGrad(_) => residual::scratch_grad(instruction),
        Op::WindowAttention(op) => window_attention::scratch(op, instruction, cpu),
        Op::WindowAttentionGrad(op) => window_attention::scratch_grad(op, instruction, cpu),
        Op::WindowNormalize(_) => window_normalize::scratch(instruction, cpu),
        Op::AdamW(_)
        | Op::Add(_)
        | Op::Cast(_)
        | Op::CosineHeads(_)
        | Op::CrossEntropyGrad(_)
        | Op::Drain(_)
        | Op::EmbedRows(_)
        | Op::EmbedRowsGrad(_)
        | Op::GatherRows(_)
        | Op::GeluGrad(_)
        | Op::LayerNorm(_)
        | Op::LayerNormGradInput(_)
        | Op::MeanTokens(_)
        | Op::MeanTokensGrad(_)
        | Op::MovingAverage(_)
        | Op::PatchGather(_)
        | Op::PixelLossGrad(_)
        | Op::Pointwise(_)
        | Op::PointwiseGrad(_)
        | Op::QkvBias(_)
        | Op::QkvBiasGrad(_)
        | Op::RelativeBias(_)
        | Op::RelativeBiasGrad(_)
        | Op::Reshape(_)
        | Op::Residual(_)
        | Op::ScatterAddRows(_)
        | Op::Zero(_) => 0,
    }
}
