//! Kernel of `moving_average`.

use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};

pub(crate) fn moving_average(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [average], _) = args.split::<1>();
    let (param, decay) = (inputs.f32(1), inputs.f32(2)[0]);
    let len = average.len();
    cpu.pool.for_rows([average], len, rows_per_task(2), |range, [average]| {
        blend(cpu.isa, average, &param[range], decay);
    });
}

vectorised! {
    fn blend<FMA>(average: &mut [f32], param: &[f32], decay: f32) {
        let rest = 1.0 - decay;
        average.iter_mut().zip(param).for_each(|(a, p)| *a = madd::<FMA>(decay, *a, rest * p));
    }
}
