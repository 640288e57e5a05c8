//! Kernels of `gather_rows`.

use super::add::add_slices;
use super::cast::convert;
use super::{Args, by_types, rows_per_task};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;

pub(crate) fn gather_rows(cpu: &Cpu, args: &mut Args<'_>) {
    by_types!(args.input_type(0), args.output_type(0), gather(cpu, args));
}

fn gather<X: Number, Y: Number>(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let (x, index, y) = (inputs.get::<X>(0), inputs.i32(1), outputs.take::<Y>());
    let dim = y.len() / index.len().max(1);
    cpu.pool.for_rows([y], index.len(), rows_per_task(dim), |range, [y]| {
        for (y, &row) in y.chunks_exact_mut(dim).zip(&index[range]) {
            let x = &x[row as usize * dim..(row as usize + 1) * dim];
            convert(cpu.isa, x, y);
        }
    });
}

/// Each task owns a range of the target's rows and walks the whole index: every row is summed in the order of the index, by one
/// task, so the result does not depend on the number of threads.
pub(crate) fn scatter_add_rows(cpu: &Cpu, op: &crate::ops::ScatterAddRows, args: &mut Args<'_>) {
    match args.input_type(0) {
        DType::Bf16 => scatter_add::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => scatter_add::<f32>(cpu, op, args),
    }
}

fn scatter_add<G: Number>(cpu: &Cpu, op: &crate::ops::ScatterAddRows, args: &mut Args<'_>) {
    let (inputs, [x], _) = args.split::<1>();
    let (grad, index) = (inputs.get::<G>(0), inputs.i32(1));
    let dim = *op.shape.last().unwrap_or(&1);
    let rows = x.len() / dim.max(1);
    let step = rows.div_ceil(2 * cpu.pool.threads()).max(rows_per_task(dim));
    cpu.pool.for_rows([x], rows, step, |range, [x]| {
        if !op.accumulate {
            x.fill(0.0);
        }
        for (g, &row) in grad.chunks_exact(dim).zip(index) {
            if range.contains(&(row as usize)) {
                let at = (row as usize - range.start) * dim;
                add_slices(cpu.isa, &mut x[at..at + dim], g);
            }
        }
    });
}
