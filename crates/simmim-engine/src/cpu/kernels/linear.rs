//! Kernels of `linear`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn gelu_grad(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn linear(_cpu: &Cpu, _op: &crate::ops::Linear, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn linear_grad_input(_cpu: &Cpu, _op: &crate::ops::LinearGradInput, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn linear_grad_weight(_cpu: &Cpu, _op: &crate::ops::LinearGradWeight, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scratch(_i: &crate::plan::Instruction, _cpu: &Cpu) -> usize {
    0
}
