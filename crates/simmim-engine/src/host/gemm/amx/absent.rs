//! What stands in for the module where there are no tile registers, or no system call that permits them.

use super::{Extents, Operand, Product, Tile};
use crate::graph::Element;
use crate::host::BlockMut;
use crate::host::dispatch::TileRegisters;
use std::ops::Range;

pub(super) const PACKING: usize = 0;
pub(super) const SIDE: usize = 1;

/// What elements have to do with tiles: nothing.
pub(in crate::host::gemm) trait Parts {}

impl Parts for f32 {}
impl Parts for crate::graph::Bf16 {}

pub(super) fn pays(_: Extents) -> bool {
    false
}

pub(super) fn scratch<O: Operand>(_: Extents, _: bool) -> usize {
    0
}

#[allow(clippy::too_many_arguments, reason = "those of the module that this one stands for")]
pub(super) fn part<O: Operand, T: Element, const M: usize, const N: usize>(
    proof: TileRegisters,
    _: &Product<'_, O>,
    _: Range<usize>,
    _: Range<usize>,
    _: [BlockMut<'_>; M],
    _: [BlockMut<'_, T>; N],
    _: &mut [f32],
    _: &(impl Fn(&Tile, &mut BlockMut<'_>, &mut [BlockMut<'_, T>; N]) + Sync),
) {
    proof.absurd()
}

pub(super) fn near<O: Operand>(proof: TileRegisters, _: usize, _: usize) -> usize {
    proof.absurd()
}
