//! Kernels of `gather_rows`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn gather_rows(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scatter_add_rows(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
