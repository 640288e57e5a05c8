//! Kernel of `patch_gather`.

use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::ops::PatchGather;

pub(crate) fn patch_gather(cpu: &Cpu, op: &PatchGather, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
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
                y.copy_from_slice(&images[start..start + pw]);
            }
            if let Some(eps) = op.normalise {
                normalise(y, eps);
            }
        }
    });
}

fn normalise(patch: &mut [f32], eps: f32) {
    let mean = patch.iter().map(|&v| f64::from(v)).sum::<f64>() / patch.len() as f64;
    let squares = patch.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    let rstd = 1.0 / (squares / (patch.len().max(2) - 1) as f64 + f64::from(eps)).sqrt();
    patch.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * rstd) as f32);
}
