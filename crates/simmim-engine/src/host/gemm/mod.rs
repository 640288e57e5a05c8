//! Matrix products.
//!
//! [`multiply`] is one product on one thread; [`product`] spreads one over the pool. On vectors both copy ("pack") a few columns of `b` at a
//! time, a panel, into the order in which the micro-kernel reads them, and cut long sums into chunks that the caches hold (Goto and
//! van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Rows of `a` are read in place; only where `a` is
//! transposed are they packed too. While a tile is computed, the rows of the next one are prefetched.
//!
//! Where the processor has tile registers, large products of [`product`] run on them (`amx/`), all operands packed.
//!
//! Operands are floats or [`Bf16`](crate::graph::Bf16) ([`Operand`]); sums are floats. The kernels see operands as words of four bytes along
//! the sums: a float, or two numbers of sixteen bits, whose products are added by one instruction where the processor has it. So rows read
//! in place, panels, chunks and tiles are one text for both.
//!
//! The order in which an element's terms are added depends on the length of the sum, on how `a` lies in memory, and on whether the product is
//! wide and long enough for tiles: not on threads, nor on the number of rows.

#[cfg(simmim_amx)]
mod amx;
#[cfg(not(simmim_amx))]
#[path = "amx/absent.rs"]
mod amx;
mod grid;
mod kernel;
mod operand;
mod pack;
mod peak;
mod simd;

use super::block::BlockMut;
use super::dispatch::{IsaKind, TileRegisters};
use super::{Cpu, Isa, LINE};
use crate::graph::Element;
use grid::{Costs, Even, grid};
use kernel::Rows;
pub(crate) use kernel::prefetch;
pub use operand::{MatrixView, Operand};
pub use peak::peaks;
use std::ops::Range;

/// Longest sum, in words, between two visits to the result, where rows of `a` are read in place: a panel of `b` of that length stays in the
/// first-level cache.
const CHUNK_IN_PLACE: usize = 800;

/// The same where they are packed, several tiles at once, which take room too.
const CHUNK_PACKED: usize = 512;

/// Floats of `b` that are packed at once: they stay in the second-level cache while all rows of `a` pass by.
const PACKED_FLOATS: usize = 300_000;

/// What copying a float costs, in multiplications and additions of a tile: a share of the time, measured roughly.
const PACKING: usize = 16;

/// Extents of a product: `[m, k] x [k, n] -> [m, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// `alpha a b`, to which `bias [n]` and what the result holds may be added.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a, O: Operand = f32> {
    extents: Extents,
    a: MatrixView<'a, O>,
    b: MatrixView<'a, O>,
    alpha: f32,
    accumulate: bool,
    bias: Option<&'a [f32]>,
    epilogue_operand: EpilogueOperand<'a>,
    padded: bool,
}

/// A contiguous matrix `[m, n]` that the epilogue reads, as bytes.
#[derive(Debug, Clone, Copy)]
struct EpilogueOperand<'a> {
    bytes: &'a [u8],
    /// Bytes of an element.
    element: usize,
}

impl<'a, O: Operand> Product<'a, O> {
    /// The plain product.
    ///
    /// # Panics
    /// If a view is too short for the extents: a fault of the caller.
    #[must_use]
    pub fn new(extents: Extents, a: MatrixView<'a, O>, b: MatrixView<'a, O>) -> Self {
        assert!(a.holds(extents.m, extents.k) && b.holds(extents.k, extents.n), "operand too short for {extents:?}");
        let epilogue_operand = EpilogueOperand { bytes: &[], element: 1 };
        Self { extents, a, b, alpha: 1.0, accumulate: false, bias: None, epilogue_operand, padded: false }
    }

    /// With rows of `a` that a finite number follows, so that they can be read in whole words.
    ///
    /// # Panics
    /// If none follows: a fault of the caller.
    #[must_use]
    pub fn with_padded_rows(self) -> Self {
        assert!(self.a.holds(self.extents.m, self.extents.k + 1), "nothing follows the rows of {:?}", self.extents);
        Self { padded: true, ..self }
    }

    /// Multiplied by a factor.
    #[must_use]
    pub fn scaled(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Added to what the result holds when `accumulate` is set.
    #[must_use]
    pub fn accumulated(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Plus a row `[n]`.
    ///
    /// # Panics
    /// If it has another length: a fault of the caller.
    #[must_use]
    pub fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        assert!(bias.is_none_or(|b| b.len() == self.extents.n), "bias of the wrong length for {:?}", self.extents);
        Self { bias, ..self }
    }

    /// With a matrix `[m, n]` that the epilogue reads: its tiles are prefetched.
    #[must_use]
    pub fn with_epilogue_operand<T: Element>(self, matrix: &'a [T]) -> Self {
        let epilogue_operand = EpilogueOperand { bytes: bytemuck::cast_slice(matrix), element: size_of::<T>() };
        Self { epilogue_operand, ..self }
    }

    /// Writes the product to a contiguous `c [m, n]` on the calling thread, on the widest instruction set, with working memory of its own:
    /// for use outside of programs.
    ///
    /// # Panics
    /// If `c` is too short: a fault of the caller.
    pub fn write(self, c: &mut [f32]) {
        let isa = Isa::detect();
        multiply(isa, c, self.extents.n, self, &mut vec![0.0; multiply_scratch::<O>(isa, self.extents)]);
    }

    /// Whether rows of `a` are packed, because they do not lie in one piece or end within a word.
    fn packs_rows(&self) -> bool {
        self.a.col_stride != 1 || !(self.padded || self.extents.k.is_multiple_of(O::IN_WORD))
    }

    /// Prefetches what the epilogue of a tile writes and reads, but for the result itself.
    #[inline(always)]
    fn prefetch<T: Element>(&self, place: &Tile, others: &mut [BlockMut<'_, T>]) {
        for other in others {
            kernel::prefetch_tile(other, &place.rows, &place.cols);
        }
        if !self.epilogue_operand.bytes.is_empty() {
            kernel::prefetch_rows(self.epilogue_operand, self.extents.n, place);
        }
    }

    /// What is added to the sums of the chunk that starts at `start`.
    #[inline(always)]
    fn epilogue(&self, start: usize, cols: Range<usize>) -> kernel::Epilogue<'a> {
        let bias = self.bias.filter(|_| start == 0).map(|b| &b[cols]);
        kernel::Epilogue { alpha: self.alpha, accumulate: self.accumulate || start > 0, bias }
    }
}

/// How the sums and the columns of a product are cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Terms in the longest chunk of the sums.
    chunk: usize,
    /// The same in words.
    words: usize,
    /// Columns of `b` that are packed at once.
    cols: usize,
}

impl Cut {
    /// `whole` sums are not cut: what has no floats to be added to is finished in one visit.
    fn new<O: Operand>(isa: Isa, e: Extents, packs_rows: bool, whole: bool) -> Self {
        let k = O::words(e.k);
        let longest = if packs_rows { CHUNK_PACKED } else { CHUNK_IN_PLACE };
        let parts = if whole { 1 } else { k.div_ceil(longest).max(1) };
        let words = k.div_ceil(parts).next_multiple_of(8).max(8);
        let width = kernel::panel_width(isa);
        let cols = e.n.next_multiple_of(width).min((PACKED_FLOATS / words / width).max(1) * width);
        Self { chunk: words * O::IN_WORD, words, cols }
    }

    /// The chunks of a sum of length `k`; one empty chunk where there is nothing to add.
    fn chunks(self, k: usize) -> impl Iterator<Item = Range<usize>> {
        (0..k.div_ceil(self.chunk).max(1)).map(move |at| at * self.chunk..k.min((at + 1) * self.chunk))
    }

    /// Words of the packed columns.
    fn packed_b(self) -> usize {
        self.words * self.cols
    }

    /// Words of the packed rows and columns.
    fn packed(self) -> usize {
        (self.packed_b() + self.words * pack::GROUP * kernel::TILE_STRIDE).next_multiple_of(LINE)
    }
}

/// Working memory of [`multiply`], in floats: a multiple of a cache line.
#[must_use]
pub fn multiply_scratch<O: Operand>(isa: Isa, e: Extents) -> usize {
    Cut::new::<O>(isa, e, false, false).packed().max(Cut::new::<O>(isa, e, true, false).packed())
}

/// Working memory of [`product`], in floats.
#[must_use]
pub fn product_scratch<O: Operand>(cpu: &Cpu, e: Extents) -> usize {
    if tiles(cpu.isa, e).is_some() {
        // Only what is not a product of floats can be finished without floats.
        let whole = if O::IN_WORD > 1 { amx::scratch::<O>(e, true) } else { 0 };
        return cpu.pool.threads() * amx::scratch::<O>(e, false).max(whole);
    }
    let whole = [false, true].map(|packs_rows| Cut::new::<O>(cpu.isa, e, packs_rows, true).packed());
    cpu.pool.threads() * whole.into_iter().fold(multiply_scratch::<O>(cpu.isa, e), usize::max)
}

/// `c = p` on the calling thread. Rows of `c` are `c_stride` apart; `scratch` holds at least [`multiply_scratch`] floats.
///
/// # Panics
/// If `c` or `scratch` is too short for the extents: a fault of the caller.
pub fn multiply<O: Operand>(isa: Isa, c: &mut [f32], c_stride: usize, p: Product<'_, O>, scratch: &mut [f32]) {
    let Extents { m, n, .. } = p.extents;
    if m > 0 && n > 0 {
        let others: [BlockMut<'_>; 0] = [];
        part(isa, &p, 0..m, 0..n, [BlockMut::of(c, m, n, c_stride)], others, scratch, &|_, _, _| ());
    }
}

/// A finished tile within the block of a thread. It is told as numbers, not as smaller blocks, because what is written to the stack
/// in other pieces than it is read waits for all that was stored before, the tile among it.
#[derive(Debug, Clone)]
pub struct Tile {
    /// Row and column of the outputs at which the blocks begin.
    pub first: (usize, usize),
    /// Rows within the blocks.
    pub rows: Range<usize>,
    /// Columns within the blocks.
    pub cols: Range<usize>,
}

/// What [`product`] has besides the floats it computes, where that is nothing.
pub const NOTHING: [&mut [f32]; 0] = [];

/// `floats[0] = p` over the pool; all outputs are contiguous `[m, n]`. `finish(tile, its values, a block of each of the others)` is the
/// epilogue: it runs on every tile of the result as soon as it is there, while the caches hold it, and may write what else is made of it.
/// Without `floats`, the epilogue alone sees the result. `scratch` holds at least [`product_scratch`] floats.
///
/// # Panics
/// If an output or `scratch` is too short for the extents, or a product of floats has nowhere to be written: a fault of the caller.
pub fn product<O: Operand, T: Element, const M: usize, const N: usize>(
    cpu: &Cpu,
    floats: [&mut [f32]; M],
    others: [&mut [T]; N],
    p: Product<'_, O>,
    scratch: &mut [f32],
    finish: impl Fn(&Tile, &mut BlockMut<'_>, &mut [BlockMut<'_, T>; N]) + Sync,
) {
    const { assert!(M <= 1) };
    assert!(M == 1 || O::IN_WORD > 1, "a product of floats has nowhere to be written");
    let Extents { m, n, .. } = p.extents;
    if m == 0 || n == 0 {
        return;
    }
    let (floats, others) = (floats.map(|o| BlockMut::of(o, m, n, n)), others.map(|o| BlockMut::of(o, m, n, n)));
    let grid = grid(cpu.pool.threads(), p.extents, costs::<O>(cpu.isa, p.extents, p.packs_rows()));
    cpu.pool.for_blocks(floats, others, &grid, scratch, |rows, cols, floats, others, scratch| {
        if let Some(tiles) = tiles(cpu.isa, p.extents) {
            return amx::part(tiles, &p, rows, cols, floats, others, scratch, &finish);
        }
        part(cpu.isa, &p, rows, cols, floats, others, scratch, &finish);
    });
}

/// The tile registers, where there are any and the product is large enough for them.
fn tiles(isa: Isa, e: Extents) -> Option<TileRegisters> {
    match isa.kind() {
        IsaKind::Amx(tiles) if amx::pays(e) => Some(tiles),
        _ => None,
    }
}

/// What a cut of a product has to weigh.
fn costs<O: Operand>(isa: Isa, e: Extents, packs_rows: bool) -> Costs {
    if tiles(isa, e).is_some() {
        return Costs { tile: (amx::SIDE, amx::SIDE), packing: (amx::PACKING, amx::PACKING) };
    }
    Costs {
        tile: (kernel::tile_rows::<O>(isa), kernel::panel_width(isa)),
        packing: (if packs_rows { PACKING } else { 0 }, PACKING),
    }
}

/// Some rows and columns of a product, on the calling thread; the blocks hold just these.
#[allow(clippy::too_many_arguments, reason = "a block of each output, and what is done with them")]
fn part<O: Operand, T: Element, const M: usize, const N: usize>(
    isa: Isa,
    p: &Product<'_, O>,
    rows: Range<usize>,
    cols: Range<usize>,
    mut floats: [BlockMut<'_>; M],
    mut others: [BlockMut<'_, T>; N],
    scratch: &mut [f32],
    finish: &(impl Fn(&Tile, &mut BlockMut<'_>, &mut [BlockMut<'_, T>; N]) + Sync),
) {
    let k = p.extents.k;
    let cut = Cut::new::<O>(isa, p.extents, p.packs_rows(), M == 0);
    let (packed_b, packed_a) = scratch.split_at_mut(cut.packed_b());
    let tiles = Even::new(rows.len(), kernel::tile_rows::<O>(isa), 1);
    let mut passing = [0.0; kernel::LARGEST];
    for chunk in cut.chunks(k) {
        for block in Even::new(cols.len(), cut.cols, kernel::panel_width(isa)) {
            let panels = Panels::pack(isa, packed_b, p.b, chunk.clone(), shifted(&block, cols.start));
            for first in (0..tiles.count).step_by(pack::GROUP) {
                let group = first..tiles.count.min(first + pack::GROUP);
                let a = RowTiles::of(isa, p, rows.start, tiles, group.clone(), &chunk, packed_a);
                for t in group {
                    let tile = tiles.get(t);
                    for (panel, b) in panels.iter() {
                        let place = Tile {
                            first: (rows.start, cols.start),
                            rows: tile.clone(),
                            cols: shifted(&panel, block.start),
                        };
                        if chunk.end == k {
                            p.prefetch(&place, &mut others);
                        }
                        let next = if panel.start == 0 { a.to_next(tile.len()) } else { 0 };
                        let operands = kernel::Operands { k: O::words(chunk.len()), a: a.rows(t, &tile), next, b };
                        let epilogue = p.epilogue(chunk.start, shifted(&place.cols, cols.start));
                        let mut c = match floats.first_mut() {
                            Some(c) => c.part(place.rows.clone(), place.cols.clone()),
                            None => BlockMut::of(&mut passing, tile.len(), panel.len(), panel.len()),
                        };
                        kernel::tile::<O>(isa, operands, epilogue, &mut c);
                        if chunk.end == k {
                            finish(&place, &mut c, &mut others);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn shifted(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

/// Packed columns of `b`.
struct Panels<'a> {
    panels: Even,
    /// Floats from one to the next.
    size: usize,
    packed: &'a [f32],
}

impl<'a> Panels<'a> {
    fn pack<O: Operand>(
        isa: Isa,
        packed: &'a mut [f32],
        b: MatrixView<'_, O>,
        chunk: Range<usize>,
        cols: Range<usize>,
    ) -> Self {
        let width = kernel::panel_width(isa);
        let (panels, size) = (Even::new(cols.len(), width, kernel::lanes(isa)), O::words(chunk.len()) * width);
        for (panel, packed) in panels.zip(packed.chunks_exact_mut(size.max(1))) {
            pack::panel(isa, packed, b, chunk.clone(), shifted(&panel, cols.start));
        }
        Self { panels, size, packed }
    }

    /// Columns, counted from the first, and what is packed of them.
    fn iter(&self) -> impl Iterator<Item = (Range<usize>, &'a [f32])> {
        let (packed, size) = (self.packed, self.size);
        self.panels.enumerate().map(move |(at, panel)| (panel, &packed[at * size..]))
    }
}

/// Where some tiles of rows of `a` are read for one chunk of the sums.
struct RowTiles<'a> {
    /// Words of the chunk.
    k: usize,
    /// The first tile's number.
    first: usize,
    /// All rows as bytes, with the distance between them.
    in_place: Option<(&'a [u8], usize)>,
    packed: &'a [f32],
}

impl<'a> RowTiles<'a> {
    /// Packs the tiles where they cannot be read in place. They count from row `start`.
    fn of<O: Operand>(
        isa: Isa,
        p: &Product<'a, O>,
        start: usize,
        tiles: Even,
        group: Range<usize>,
        chunk: &Range<usize>,
        packed: &'a mut [f32],
    ) -> Self {
        let (k, first) = (O::words(chunk.len()), group.start);
        if !p.packs_rows() && k > 0 {
            let rows = bytemuck::cast_slice(p.a.from(start, chunk.start));
            return Self { k, first, in_place: Some((rows, p.a.row_stride * size_of::<O>())), packed };
        }
        pack::tiles(isa, packed, p.a, start, group.map(|t| tiles.get(t)), chunk.clone());
        Self { k, first, in_place: None, packed }
    }

    #[inline(always)]
    fn rows(&self, tile: usize, rows: &Range<usize>) -> Rows<'_> {
        match self.in_place {
            Some((a, stride)) => Rows::InPlace(&a[rows.start * stride..], stride),
            None => Rows::Packed(&self.packed[(tile - self.first) * self.k * kernel::TILE_STRIDE..]),
        }
    }

    /// Bytes from a tile of that height to the next where it is read in place; packed ones are in the caches.
    fn to_next(&self, rows: usize) -> usize {
        self.in_place.map_or(0, |(_, stride)| rows * stride)
    }
}

#[cfg(test)]
mod tests;
