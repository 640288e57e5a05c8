//! Kernels of `adamw`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn adamw(_cpu: &Cpu, _op: &crate::ops::AdamW, _args: &mut Args<'_>) {
    unimplemented!()
}
