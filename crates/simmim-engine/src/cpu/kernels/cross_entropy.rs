//! Kernels of `cross_entropy`.

use super::vector_math::{exp, sum_lanes};
use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::{CrossEntropy, CrossEntropyGrad};
use crate::plan::Instruction;

pub(crate) fn scratch(i: &Instruction) -> usize {
    i.inputs[0].ty.shape[0]
}

pub(crate) fn cross_entropy(cpu: &Cpu, op: &CrossEntropy, args: &mut Args<'_>) {
    let (inputs, [loss], scratch) = args.split::<1>();
    let (logits, targets) = (inputs.f32(0), inputs.f32(1));
    let (rows, classes) = (inputs.shape(0)[0], inputs.shape(0)[1]);
    let sums = &mut scratch[..rows];
    cpu.pool.for_rows([&mut *sums], rows, rows_per_task(classes), |range, [sums]| {
        for (row, sum) in range.zip(sums) {
            let at = row * classes..(row + 1) * classes;
            *sum = row_loss(cpu.isa, &logits[at.clone()], &targets[at]);
        }
    });
    let total: f64 = sums.iter().map(|&s| f64::from(s)).sum();
    loss[0] = (total * f64::from(op.scale)) as f32;
}

pub(crate) fn cross_entropy_grad(cpu: &Cpu, op: &CrossEntropyGrad, args: &mut Args<'_>) {
    let (inputs, [grad], _) = args.split::<1>();
    let (logits, targets) = (inputs.f32(0), inputs.f32(1));
    let (rows, classes) = (inputs.shape(0)[0], inputs.shape(0)[1]);
    cpu.pool.for_rows([grad], rows, rows_per_task(classes), |range, [grad]| {
        for (row, grad) in range.zip(grad.chunks_exact_mut(classes)) {
            let at = row * classes..(row + 1) * classes;
            row_grad(cpu.isa, &logits[at.clone()], &targets[at], op.scale, grad);
        }
    });
}

#[inline(always)]
fn max(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

vectorised! {
    fn row_loss<FMA>(logits: &[f32], targets: &[f32]) -> f32 {
        let max = max(logits);
        let log_sum = sum_lanes(logits.iter().map(|z| exp::<FMA>(z - max))).ln();
        // Relative to the largest logit, so that large common offsets cost no digits.
        sum_lanes(logits.iter().zip(targets).map(|(z, t)| t * (log_sum - (z - max))))
    }
}

vectorised! {
    fn row_grad<FMA>(logits: &[f32], targets: &[f32], scale: f32, grad: &mut [f32]) {
        let max = max(logits);
        grad.iter_mut().zip(logits).for_each(|(g, z)| *g = exp::<FMA>(z - max));
        let factor = sum_lanes(targets.iter().copied()) / sum_lanes(grad.iter().copied());
        grad.iter_mut().zip(targets).for_each(|(g, t)| *g = scale * (*g * factor - t));
    }
}
