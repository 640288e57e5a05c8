//! Kernels of `pixel_loss`.

use super::vector_math::sum_lanes;
use super::{Args, rows_per_task};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::{PixelDistance, PixelLoss, PixelLossGrad};
use crate::plan::Instruction;

pub(crate) fn scratch(i: &Instruction) -> usize {
    let columns = *i.inputs[0].ty.shape.last().unwrap_or(&1);
    i.inputs[0].ty.len() / columns.max(1)
}

pub(crate) fn pixel_loss(cpu: &Cpu, op: &PixelLoss, args: &mut Args<'_>) {
    let (inputs, [loss], scratch) = args.split::<1>();
    let (prediction, target) = (inputs.f32(0), inputs.f32(1));
    let columns = *inputs.shape(0).last().unwrap_or(&1);
    let rows = prediction.len() / columns;
    let sums = &mut scratch[..rows];
    cpu.pool.for_rows([&mut *sums], rows, rows_per_task(columns), |range, [sums]| {
        for (row, sum) in range.zip(sums) {
            let at = row * columns..(row + 1) * columns;
            *sum = row_loss(cpu.isa, &prediction[at.clone()], &target[at], op.kind);
        }
    });
    let total: f64 = if op.weighted {
        sums.iter().zip(inputs.f32(2)).map(|(&s, &w)| f64::from(s) * f64::from(w)).sum()
    } else {
        sums.iter().map(|&s| f64::from(s)).sum()
    };
    loss[0] = (total * f64::from(op.scale)) as f32;
}

pub(crate) fn pixel_loss_grad(cpu: &Cpu, op: &PixelLossGrad, args: &mut Args<'_>) {
    match args.output_type(0) {
        DType::Bf16 => grad_of::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => grad_of::<f32>(cpu, op, args),
    }
}

fn grad_of<G: Number>(cpu: &Cpu, op: &PixelLossGrad, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let grad = outputs.take::<G>();
    let (prediction, target) = (inputs.f32(0), inputs.f32(1));
    let weight = op.forward.weighted.then(|| inputs.f32(2));
    let columns = *inputs.shape(0).last().unwrap_or(&1);
    cpu.pool.for_rows([grad], prediction.len() / columns, rows_per_task(columns), |range, [grad]| {
        for (row, grad) in range.zip(grad.chunks_exact_mut(columns)) {
            let at = row * columns..(row + 1) * columns;
            let scale = op.forward.scale * weight.map_or(1.0, |w| w[row]);
            row_grad(cpu.isa, &prediction[at.clone()], &target[at], scale, op.forward.kind, grad);
        }
    });
}

vectorised! {
    fn row_loss<_FMA>(prediction: &[f32], target: &[f32], kind: PixelDistance) -> f32 {
        let differences = prediction.iter().zip(target).map(|(p, t)| p - t);
        match kind {
            PixelDistance::L1 => sum_lanes(differences.map(f32::abs)),
            PixelDistance::L2 => sum_lanes(differences.map(|d| d * d)),
            PixelDistance::SmoothL1 { beta } => sum_lanes(differences.map(|d| {
                if d.abs() < beta { d * d / (2.0 * beta) } else { d.abs() - 0.5 * beta }
            })),
        }
    }
}

vectorised! {
    fn row_grad<_FMA, G: Number>(
        prediction: &[f32], target: &[f32], scale: f32, kind: PixelDistance, grad: &mut [G],
    ) {
        let sign = |d: f32| if d > 0.0 { 1.0 } else if d < 0.0 { -1.0 } else { d * 0.0 };
        let pairs = grad.iter_mut().zip(prediction.iter().zip(target).map(|(p, t)| p - t));
        match kind {
            PixelDistance::L1 => pairs.for_each(|(g, d)| *g = G::nearest(scale * sign(d))),
            PixelDistance::L2 => pairs.for_each(|(g, d)| *g = G::nearest(scale * 2.0 * d)),
            PixelDistance::SmoothL1 { beta } => {
                pairs.for_each(|(g, d)| {
                    *g = G::nearest(scale * if d.abs() < beta { d / beta } else { sign(d) });
                });
            }
        }
    }
}
