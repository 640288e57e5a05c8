//! Kernels of `pixel_loss`.

use super::Args;
use crate::cpu::Cpu;
pub(crate) fn pixel_loss(_cpu: &Cpu, _op: &crate::ops::PixelLoss, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn pixel_loss_grad(_cpu: &Cpu, _op: &crate::ops::PixelLossGrad, _args: &mut Args<'_>) {
    unimplemented!()
}
pub(crate) fn scratch(_i: &crate::plan::Instruction) -> usize {
    0
}
