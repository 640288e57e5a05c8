//! Kernels of `embed_rows`.

use super::add::add_slices;
use super::cast::convert;
use super::{Args, rows_per_task};
use crate::graph::{Bf16, DType, Number};
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
    match args.output_type(0) {
        DType::Bf16 => grad_with::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => grad_with::<f32>(cpu, op, args),
    }
}

/// With gradients of the patches of type `G`.
fn grad_with<G: Number>(cpu: &Cpu, op: &EmbedRowsGrad, args: &mut Args<'_>) {
    let f = &op.forward;
    let (inputs, mut outputs, _) = args.parts();
    let (grad, index) = (inputs.f32(0), inputs.i32(1));
    let dim = inputs.shape(0)[1];
    let visible = index.len();
    convert(cpu.isa, &grad[..visible * dim], outputs.take::<G>());
    let mut parameters: [&mut [f32]; 4] = [&mut [], &mut [], &mut [], &mut []];
    parameters.iter_mut().take(f.parameter_count()).for_each(|p| *p = outputs.take());
    let [mask, cls, reg, pos] = f.parameters(0);
    for (row, g) in grad.chunks_exact(dim).enumerate() {
        let (parameter, place, position) = match f.row(row, visible) {
            EmbedRow::Patch => (None, 0, Some(f.offset + index[row] as usize)),
            EmbedRow::Template(t) => (mask, 0, Some(f.offset + t)),
            EmbedRow::Class => (cls, 0, Some(0)),
            EmbedRow::Register(r) => (reg, r, None),
        };
        if let Some(at) = parameter {
            add_slices(cpu.isa, &mut parameters[at][place * dim..(place + 1) * dim], g);
        }
        if let (Some(at), Some(position)) = (pos, position) {
            add_slices(cpu.isa, &mut parameters[at][position * dim..(position + 1) * dim], g);
        }
    }
}
