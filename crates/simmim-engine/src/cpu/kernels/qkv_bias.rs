//! Kernels of `qkv_bias`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn qkv_bias(_args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn qkv_bias_grad(_args: &mut Args<'_>) {
    unimplemented!()
}
