//! Kernels of `relative_bias`.

use super::{Args, rows_per_task};
use crate::host::Cpu;

pub(crate) fn relative_bias(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [bias], _) = args.split::<1>();
    let (table, index) = (inputs.f32(0), inputs.i32(1));
    let heads = inputs.shape(0)[1];
    cpu.pool.for_rows([bias], heads, rows_per_task(index.len()), |range, [bias]| {
        for (h, row) in range.zip(bias.chunks_exact_mut(index.len())) {
            row.iter_mut().zip(index).for_each(|(y, &i)| *y = table[i as usize * heads + h]);
        }
    });
}

/// One thread: the table is small, and its entries are hit in an order that must not depend on the number of threads.
pub(crate) fn relative_bias_grad(_cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [table], _) = args.split::<1>();
    let (grad, index) = (inputs.f32(0), inputs.i32(1));
    let heads = inputs.shape(2)[1];
    for (h, row) in grad.chunks_exact(index.len()).enumerate() {
        row.iter().zip(index).for_each(|(g, &i)| table[i as usize * heads + h] += g);
    }
}
