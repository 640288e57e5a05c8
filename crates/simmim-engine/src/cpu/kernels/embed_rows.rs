//! Kernels of `embed_rows`.

use super::add::add_slices;
use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::ops::{EmbedRow, EmbedRows, EmbedRowsGrad};

pub(crate) fn embed_rows(cpu: &Cpu, op: &EmbedRows, args: &mut Args<'_>) {
    let (inputs, [rows], _) = args.split::<1>();
    let (patches, index) = (inputs.f32(0), inputs.i32(1));
    let dim = inputs.shape(0)[2];
    let [mask, cls, reg, pos] = op.parameters(2).map(|at| at.map(|at| inputs.f32(at)));
    let (visible, total) = (index.len(), rows.len() / dim);
    cpu.pool.for_rows([rows], total, rows_per_task(dim), |range, [rows]| {
        for (row, y) in range.zip(rows.chunks_exact_mut(dim)) {
            let (token, position) = match op.row(row, visible) {
                EmbedRow::Patch => (Some(&patches[row * dim..(row + 1) * dim]), Some(op.offset + index[row] as usize)),
                EmbedRow::Template(t) => (mask, Some(op.offset + t)),
                EmbedRow::Class => (cls, Some(0)),
                EmbedRow::Register(r) => (reg.map(|reg| &reg[r * dim..(r + 1) * dim]), None),
            };
            if let Some(token) = token {
                y.copy_from_slice(token);
            }
            if let (Some(pos), Some(position)) = (pos, position) {
                add_slices(cpu.isa, y, &pos[position * dim..(position + 1) * dim]);
            }
        }
    });
}

/// The parameters' gradients are sums over rows in the order of the rows; they are small beside the products, so one thread
/// takes them while the copy of the patches is shared.
pub(crate) fn embed_rows_grad(cpu: &Cpu, op: &EmbedRowsGrad, args: &mut Args<'_>) {
    match op.forward.parameter_count() {
        0 => {
            let (inputs, [patches], _) = args.split::<1>();
            let len = patches.len();
            patches.copy_from_slice(&inputs.f32(0)[..len]);
        }
        1 => grad_with::<2>(cpu, op, args),
        2 => grad_with::<3>(cpu, op, args),
        3 => grad_with::<4>(cpu, op, args),
        _ => grad_with::<5>(cpu, op, args),
    }
}

fn grad_with<const N: usize>(cpu: &Cpu, op: &EmbedRowsGrad, args: &mut Args<'_>) {
    let f = &op.forward;
    let (inputs, outputs, _) = args.split::<N>();
    let (grad, index) = (inputs.f32(0), inputs.i32(1));
    let dim = inputs.shape(0)[1];
    let visible = index.len();
    outputs[0].copy_from_slice(&grad[..visible * dim]);
    let [mask, cls, reg, pos] = f.parameters(1);
    for (row, g) in grad.chunks_exact(dim).enumerate() {
        let (parameter, place, position) = match f.row(row, visible) {
            EmbedRow::Patch => (None, 0, Some(f.offset + index[row] as usize)),
            EmbedRow::Template(t) => (mask, 0, Some(f.offset + t)),
            EmbedRow::Class => (cls, 0, Some(0)),
            EmbedRow::Register(r) => (reg, r, None),
        };
        if let Some(at) = parameter {
            add_slices(cpu.isa, &mut outputs[at][place * dim..(place + 1) * dim], g);
        }
        if let (Some(at), Some(position)) = (pos, position) {
            add_slices(cpu.isa, &mut outputs[at][position * dim..(position + 1) * dim], g);
        }
    }
}
