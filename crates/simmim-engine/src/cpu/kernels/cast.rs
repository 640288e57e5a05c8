//! Kernel of `cast`.

use super::{Args, by_types, rows_per_task};
use crate::graph::{Bf16, DType, Number};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;

pub(crate) fn cast(cpu: &Cpu, args: &mut Args<'_>) {
    by_types!(args.input_type(0), args.output_type(0), between(cpu, args));
}

fn between<X: Number, Y: Number>(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let (x, y) = (inputs.get::<X>(0), outputs.take::<Y>());
    let len = y.len();
    cpu.pool.for_rows([y], len, rows_per_task(2), |range, [y]| convert(cpu.isa, &x[range], y));
}

vectorised! {
    /// Writes each number as one of the other type.
    pub(super) fn convert<_FMA, X: Number, Y: Number>(from: &[X], to: &mut [Y]) {
        let ((from, from_tail), (to, to_tail)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
        for (from, to) in from.iter().zip(to) {
            *to = from.map(|x| Y::nearest(x.value()));
        }
        from_tail.iter().zip(to_tail).for_each(|(from, to)| *to = Y::nearest(from.value()));
    }
}
