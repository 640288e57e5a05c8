//! Kernels of `layer_norm`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn layer_norm(_cpu: &Cpu, _op: &crate::ops::LayerNorm, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn layer_norm_grad_input(_cpu: &Cpu, _op: &crate::ops::LayerNormGradInput, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn layer_norm_grad_parameters(_cpu: &Cpu, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scratch_grad_parameters(_i: &crate::plan::Instruction) -> usize {
    0
}
