//! Kernels of `add`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn add(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
