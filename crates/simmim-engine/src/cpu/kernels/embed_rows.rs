//! Kernels of `embed_rows`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn embed_rows(_cpu: &Cpu, _op: &crate::ops::EmbedRows, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn embed_rows_grad(_cpu: &Cpu, _op: &crate::ops::EmbedRowsGrad, _args: &mut Args<'_>) {
    unimplemented!()
}
