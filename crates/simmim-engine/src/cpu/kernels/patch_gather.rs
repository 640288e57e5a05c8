//! Kernel of `patch_gather`.

use super::cast::convert;
use super::{Args, rows_per_task};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::ops::PatchGather;

pub(crate) fn patch_gather(cpu: &Cpu, op: &PatchGather, args: &mut Args<'_>) {
    match args.output_type(0) {
        DType::Bf16 => gather(cpu, op, args, |_: &mut [Bf16]| ()),
        DType::F32 | DType::I32 => {
            gather(cpu, op, args, |y| op.normalise.into_iter().for_each(|eps| normalise(y, eps)))
        }
    }
}

/// Copies patches and finishes each.
fn gather<Y: Number>(cpu: &Cpu, op: &PatchGather, args: &mut Args<'_>, finish: impl Fn(&mut [Y]) + Sync) {
    let (inputs, mut outputs, _) = args.parts();
    let y = outputs.take::<Y>();
    let (images, index) = (inputs.f32(0), inputs.i32(1));
    let [_, channels, height, width] = [0, 1, 2, 3].map(|i| inputs.shape(0)[i]);
    let (ph, pw) = op.patch;
    let (size, patches) = (channels * ph * pw, inputs.shape(1)[1]);
    cpu.pool.for_rows([y], index.len(), rows_per_task(size), |range, [y]| {
        for (row, y) in range.zip(y.chunks_exact_mut(size)) {
            let at = index[row] as usize;
            let (top, left) = (at / (width / pw) * ph, at % (width / pw) * pw);
            for (line, y) in y.chunks_exact_mut(pw).enumerate() {
                let start = ((row / patches * channels + line / ph) * height + top + line % ph) * width + left;
                convert(cpu.isa, &images[start..start + pw], y);
            }
            finish(y);
        }
    });
}

fn normalise(patch: &mut [f32], eps: f32) {
    let mean = patch.iter().map(|&v| f64::from(v)).sum::<f64>() / patch.len() as f64;
    let squares = patch.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    let rstd = 1.0 / (squares / (patch.len().max(2) - 1) as f64 + f64::from(eps)).sqrt();
    patch.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * rstd) as f32);
}
