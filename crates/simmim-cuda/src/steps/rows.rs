//! Operations that work row by row.

use super::{Builder, Operand, parts_of};
use crate::step::{Address, Kernel, Launch, Step, Values};
use simmim_engine::ops::{
    CosineHeads, CosineHeadsGrad, CrossEntropy, CrossEntropyGrad, EmbedRows, EmbedRowsGrad, LayerNorm,
    LayerNormGradInput, PatchGather, Residual, ResidualGrad,
};

/// A launch in which a warp takes a row.
fn warp_a_row(kernel: Kernel, rows: usize) -> Launch {
    Launch::new(kernel, [rows.div_ceil(4), 1, 1], 128)
}

pub(super) fn cosine_heads(b: &mut Builder<'_>, op: &CosineHeads, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, head_dim) = (inputs[0].rows(), inputs[0].columns() / 3 / op.heads);
    let launch = warp_a_row(Kernel("cosine_heads", "cosine_heads"), rows * 2 * op.heads);
    let launch = launch.with(outputs[0].values()).address(inputs[1].at).address(outputs[1].at);
    b.launch(launch.index(rows).int(op.heads).int(head_dim));
}

pub(super) fn cosine_heads_grad(b: &mut Builder<'_>, op: &CosineHeadsGrad, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, head_dim) = (inputs[0].rows(), inputs[0].columns() / 3 / op.heads);
    let dots = b.scratch(4 * rows * op.heads);
    let launch = warp_a_row(Kernel("cosine_heads", "cosine_heads_grad"), rows * 2 * op.heads);
    let launch = launch.with(outputs[0].values()).with(inputs[1].values());
    let launch = launch.address(inputs[2].at).address(inputs[3].at);
    b.launch(launch.address(dots).index(rows).int(op.heads).int(head_dim));
    let (number, parts) = b.column_sums(Values::new(dots, false), rows, op.heads);
    let launch = Launch::new(Kernel("cosine_heads", "cosine_heads_grad_scale"), [op.heads.div_ceil(32), 1, 1], 32);
    b.launch(launch.address(outputs[1].at).address(inputs[3].at).address(parts).int(number).int(op.heads));
}

pub(super) fn cross_entropy(b: &mut Builder<'_>, op: &CrossEntropy, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, classes) = (inputs[0].rows(), inputs[0].columns());
    let losses = b.scratch(8 * rows);
    let launch = warp_a_row(Kernel("cross_entropy", "cross_entropy_parts"), rows);
    b.launch(launch.address(inputs[0].at).address(inputs[1].at).address(losses).int(rows).int(classes));
    b.sum_parts(outputs[0].at, losses, rows, op.scale);
}

pub(super) fn cross_entropy_grad(b: &mut Builder<'_>, op: &CrossEntropyGrad, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, classes) = (inputs[0].rows(), inputs[0].columns());
    let launch = warp_a_row(Kernel("cross_entropy", "cross_entropy_grad"), rows);
    let launch = launch.address(inputs[0].at).address(inputs[1].at).address(outputs[0].at);
    b.launch(launch.int(rows).int(classes).with(op.scale));
}

/// The operand at a position that there may be none of.
fn optional(operands: &[Operand], at: Option<usize>) -> Address {
    at.map_or(Address::NONE, |at| operands[at].at)
}

pub(super) fn embed_rows(b: &mut Builder<'_>, op: &EmbedRows, inputs: &[Operand], outputs: &[Operand]) {
    let [mask, cls, reg, pos] = op.parameters(2).map(|at| optional(inputs, at));
    let registers = op.registers * outputs[0].columns();
    let len = outputs[0].len() - registers;
    if registers > 0 {
        // They have no positions and stand behind all others.
        b.push(Step::Copy { to: outputs[0].at.element(len), from: reg, bytes: 4 * registers });
    }
    let launch = Launch::for_each(Kernel("embed_rows", "embed_rows"), len);
    let launch = launch.address(inputs[0].at).address(inputs[1].at).address(mask).address(cls).address(pos);
    let launch = launch.address(outputs[0].at).int(inputs[1].len()).int(op.templates()).index(len);
    b.launch(launch.int(outputs[0].columns()).int(op.offset));
}

pub(super) fn embed_rows_grad(b: &mut Builder<'_>, op: &EmbedRowsGrad, inputs: &[Operand], outputs: &[Operand]) {
    let f = &op.forward;
    let (visible, dim) = (inputs[1].len(), inputs[0].columns());
    let launch = Launch::for_each(Kernel("cast", "cast"), outputs[0].len());
    b.launch(launch.with(inputs[0].values()).with(outputs[0].values()).index(outputs[0].len()));
    let token = |first: usize, sum: Address, rows: usize| {
        let kernel = Kernel("embed_rows", "embed_rows_grad_token");
        let launch = Launch::new(kernel, [dim.div_ceil(128), 1, 1], 128);
        launch.address(inputs[0].at.element(first * dim)).address(sum).int(rows).int(dim)
    };
    let [mask, cls, reg, pos] = f.parameters(1);
    if let Some(at) = reg {
        let first = visible + f.templates() + usize::from(f.cls_token);
        for register in 0..f.registers {
            b.launch(token(first + register, outputs[at].at.element(register * dim), 1));
        }
    }
    if let Some(at) = mask {
        b.launch(token(visible, outputs[at].at, f.templates()));
    }
    if let Some(at) = cls {
        b.launch(token(visible + f.templates(), outputs[at].at, 1));
    }
    if let Some(at) = pos {
        let positions = f.offset + f.tokens;
        let kernel = Kernel("embed_rows", "embed_rows_grad_pos");
        let launch = Launch::new(kernel, [positions, dim.div_ceil(128), 1], 128);
        let launch = launch.address(inputs[0].at).address(inputs[1].at).address(outputs[at].at);
        b.launch(launch.int(visible).int(f.templates()).flag(f.cls_token).int(dim).int(f.offset));
    }
}

pub(super) fn layer_norm(b: &mut Builder<'_>, op: &LayerNorm, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, dim) = (inputs[0].rows(), inputs[0].columns());
    let launch = warp_a_row(Kernel("layer_norm", "layer_norm"), rows);
    let launch = launch.with(inputs[0].values()).address(inputs[1].at).address(inputs[2].at);
    let launch = launch.with(outputs[0].values());
    b.launch(launch.address(outputs[1].at).address(outputs[2].at).int(rows).int(dim).with(op.eps));
}

pub(super) fn layer_norm_grad_input(
    b: &mut Builder<'_>,
    op: &LayerNormGradInput,
    inputs: &[Operand],
    outputs: &[Operand],
) {
    let (rows, dim) = (inputs[0].rows(), inputs[0].columns());
    let launch = warp_a_row(Kernel("layer_norm", "layer_norm_grad_input"), rows);
    let launch = launch.with(inputs[0].values()).with(inputs[1].values());
    let launch = inputs[2..5].iter().fold(launch, |launch, operand| launch.address(operand.at));
    let copy = if op.rounded { outputs[1].at } else { Address::NONE };
    b.launch(launch.with(outputs[0].values()).address(copy).int(rows).int(dim).flag(op.accumulate));
}

pub(super) fn layer_norm_grad_parameters(b: &mut Builder<'_>, inputs: &[Operand], outputs: &[Operand]) {
    let (rows, dim) = (inputs[0].rows(), inputs[0].columns());
    let (parts, rows_of_part) = parts_of(rows);
    let sums = b.scratch(2 * 4 * parts * dim);
    let kernel = Kernel("layer_norm", "layer_norm_grad_parameters");
    let launch = Launch::new(kernel, [dim.div_ceil(32), parts, 1], 256);
    let launch = launch.with(inputs[0].values()).with(inputs[1].values());
    let launch = launch.address(inputs[2].at).address(inputs[3].at);
    b.launch(launch.address(sums).int(rows).int(dim).int(rows_of_part));
    b.add_parts(outputs[0].at, sums, parts, dim);
    b.add_parts(outputs[1].at, sums.element(parts * dim), parts, dim);
}

pub(super) fn patch_gather(b: &mut Builder<'_>, op: &PatchGather, inputs: &[Operand], outputs: &[Operand]) {
    let [_, channels, height, width] = [0, 1, 2, 3].map(|axis| inputs[0].shape()[axis]);
    let patches = inputs[1].shape()[1];
    let launch = Launch::new(Kernel("patch_gather", "patch_gather"), [inputs[1].len(), 1, 1], 128);
    let launch = launch.address(inputs[0].at).address(inputs[1].at).with(outputs[0].values());
    let launch = launch.int(patches).int(channels);
    let launch = launch.int(height).int(width).int(op.patch.0).int(op.patch.1);
    b.launch(launch.flag(op.normalise.is_some()).with(op.normalise.unwrap_or(0.0)));
}

pub(super) fn residual(b: &mut Builder<'_>, op: &Residual, inputs: &[Operand], outputs: &[Operand]) {
    let len = outputs[0].len();
    let keep = op.keep.then(|| 2 + usize::from(op.gamma));
    let group = keep.map_or(len, |at| len / inputs[at].len());
    let launch = Launch::for_each(Kernel("residual", "residual"), len);
    let launch = launch.address(inputs[0].at).with(inputs[1].values());
    let launch = launch.address(optional(inputs, op.gamma.then_some(2)));
    let launch = launch.address(optional(inputs, keep)).address(outputs[0].at);
    b.launch(launch.index(len).int(inputs[0].columns()).index(group));
}

pub(super) fn residual_grad(b: &mut Builder<'_>, op: &ResidualGrad, inputs: &[Operand], outputs: &[Operand]) {
    let (len, rows, dim) = (inputs[0].len(), inputs[0].rows(), inputs[0].columns());
    let keep = op.keep.then(|| 1 + 2 * usize::from(op.gamma));
    let groups = keep.map_or(1, |at| inputs[at].len());
    let launch = Launch::for_each(Kernel("residual", "residual_grad"), len);
    let launch = launch.address(inputs[0].at).address(optional(inputs, op.gamma.then_some(2)));
    let launch = launch.address(optional(inputs, keep)).with(outputs[0].values());
    b.launch(launch.index(len).int(dim).index(len / groups));
    if op.gamma {
        let (parts, rows_of_part) = parts_of(rows);
        let sums = b.scratch(4 * parts * dim);
        let kernel = Kernel("residual", "residual_grad_gamma");
        let launch = Launch::new(kernel, [dim.div_ceil(32), parts, 1], 256);
        let launch =
            launch.address(inputs[0].at).with(inputs[1].values()).address(optional(inputs, keep)).address(sums);
        b.launch(launch.int(rows).int(dim).int(rows_of_part).int(rows / groups));
        b.add_parts(outputs[1].at, sums, parts, dim);
    }
}
