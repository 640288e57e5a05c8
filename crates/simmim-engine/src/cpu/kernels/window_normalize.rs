//! Kernel of `window_normalize`.

use super::Args;
use crate::host::Cpu;
use crate::ops::WindowNormalize;
use crate::plan::Instruction;

/// Floats of working memory: two sums in double precision for each column, and a thread.
pub(crate) fn scratch(i: &Instruction, cpu: &Cpu) -> usize {
    let width = i.inputs[0].ty.shape.last().copied().unwrap_or(1);
    cpu.pool.threads() * (4 * width).next_multiple_of(16)
}

pub(crate) fn window_normalize(cpu: &Cpu, op: &WindowNormalize, args: &mut Args<'_>) {
    let (inputs, [y], scratch) = args.split::<1>();
    let [height, width] = [2, 3].map(|axis| inputs.shape(0)[axis]);
    let (x, plane) = (inputs.f32(0), height * width);
    cpu.pool.for_parts([y], [plane], x.len() / plane, scratch, |part, [y], scratch| {
        let sums = bytemuck::cast_slice_mut::<f32, f64>(&mut scratch[..4 * width]);
        op.normalize_plane(&x[part * plane..(part + 1) * plane], y, width, sums);
    });
}
