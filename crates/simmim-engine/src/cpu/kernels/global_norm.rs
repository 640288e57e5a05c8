//! Kernel of `global_norm`.

use super::Args;
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::GlobalNorm;

/// Floats whose squares are summed together before the sum is widened to f64.
const CHUNK: usize = 1 << 12;

pub(crate) fn global_norm(cpu: &Cpu, op: &GlobalNorm, args: &mut Args<'_>) {
    let (inputs, [norm, clip], scratch) = args.split::<2>();
    let mut total = 0.0f64;
    for i in 0..inputs.count() {
        let x = inputs.f32(i);
        let parts = x.len().div_ceil(CHUNK);
        let sums = &mut scratch[..parts];
        cpu.pool.for_rows([&mut *sums], parts, 16, |range, [sums]| {
            for (part, sum) in range.zip(sums) {
                *sum = sum_of_squares(cpu.isa, &x[part * CHUNK..x.len().min((part + 1) * CHUNK)]);
            }
        });
        total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
    }
    let value = total.sqrt();
    norm[0] = value as f32;
    clip[0] = op.clip(value) as f32;
}

pub(crate) fn scratch(i: &crate::plan::Instruction) -> usize {
    i.inputs.iter().map(|b| b.ty.len().div_ceil(CHUNK)).max().unwrap_or(0)
}

vectorised! {
    fn sum_of_squares<FMA>(x: &[f32]) -> f32 {
        let mut sums = [0.0f32; 32];
        let (head, tail) = x.as_chunks::<32>();
        for chunk in head {
            for l in 0..32 {
                sums[l] = crate::host::dispatch::madd::<FMA>(chunk[l], chunk[l], sums[l]);
            }
        }
        sums.iter().sum::<f32>() + tail.iter().map(|v| v * v).sum::<f32>()
    }
}
