//! Kernels of `attention`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn attention(_cpu: &Cpu, _op: &crate::ops::Attention, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn attention_grad(_cpu: &Cpu, _op: &crate::ops::AttentionGrad, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scratch(_op: &crate::ops::Attention, _i: &crate::plan::Instruction, _cpu: &Cpu) -> usize {
    0
}
pub(crate) fn scratch_grad(_op: &crate::ops::AttentionGrad, _i: &crate::plan::Instruction, _cpu: &Cpu) -> usize {
    0
}
