//! What stands in for the module where there are no tile registers, or no system call that permits them.

use super::{Extents, Product, Tile};
use crate::host::BlockMut;
use crate::host::dispatch::TileRegisters;
use std::ops::Range;

pub(super) const PACKING: usize = 0;
pub(super) const SIDE: usize = 1;

pub(super) fn pays(_: Extents) -> bool {
    false
}

pub(super) fn scratch(_: Extents) -> usize {
    0
}

pub(super) fn part<const N: usize>(
    proof: TileRegisters,
    _: &Product<'_>,
    _: Range<usize>,
    _: Range<usize>,
    _: [BlockMut<'_>; N],
    _: &mut [f32],
    _: &(impl Fn(&Tile, &mut [BlockMut<'_>; N]) + Sync),
) {
    proof.absurd()
}

pub(super) fn near(proof: TileRegisters, _: usize, _: usize) -> usize {
    proof.absurd()
}
