//! Kernel of `add`.

use super::{Args, rows_per_task};
use crate::graph::Number;
use crate::host::Cpu;
use crate::host::dispatch::vectorised;

pub(crate) fn add(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [a], _) = args.split::<1>();
    let (b, len) = (inputs.f32(1), a.len());
    cpu.pool.for_rows([a], len, rows_per_task(1), |range, [a]| add_slices(cpu.isa, a, &b[range]));
}

vectorised! {
    pub(crate) fn add_slices<_FMA, T: Number>(a: &mut [f32], b: &[T]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b.value());
    }
}
