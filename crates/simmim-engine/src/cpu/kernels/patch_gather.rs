//! Kernels of `patch_gather`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn patch_gather(_cpu: &Cpu, _op: &crate::ops::PatchGather, _args: &mut Args<'_>) {
    unimplemented!()
}
