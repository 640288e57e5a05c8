//! Kernels of `zero`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn zero(_args: &mut Args<'_>) {
    unimplemented!()
}
