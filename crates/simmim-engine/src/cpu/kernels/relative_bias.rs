//! Kernels of `relative_bias`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn relative_bias(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn relative_bias_grad(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
