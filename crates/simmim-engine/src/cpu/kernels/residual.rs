//! Kernels of `residual`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn residual(_cpu: &Cpu, _op: &crate::ops::Residual, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn residual_grad(_cpu: &Cpu, _op: &crate::ops::ResidualGrad, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scratch_grad(_i: &crate::plan::Instruction) -> usize {
    0
}
