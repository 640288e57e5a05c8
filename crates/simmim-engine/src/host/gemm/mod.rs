//! Matrix products.
//!
//! [`multiply`] is one product on one thread; [`product`] spreads one over the pool. On vectors both copy ("pack") a few columns of `b` at a
//! time, a panel, into the order in which the micro-kernel reads them, and cut long sums into chunks that the caches hold (Goto and
//! van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Rows of `a` are read in place; only where `a` is
//! transposed are they packed too. While a tile is computed, the rows of the next one are prefetched.
//!
//! Where the processor has tile registers, large products of [`product`] run on them (`amx/`), all operands packed.
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
mod pack;
mod peak;
mod simd;

use super::block::BlockMut;
use super::dispatch::{IsaKind, TileRegisters};
use super::{Cpu, Isa, LINE};
use grid::{Costs, Even, grid};
use kernel::Rows;
pub(crate) use kernel::prefetch;
pub use peak::peaks;
use std::ops::Range;

/// Longest sum between two visits to the result, where rows of `a` are read in place: a panel of `b` of that length stays in the
/// first-level cache.
const CHUNK_IN_PLACE: usize = 800;

/// The same where they are packed, several tiles at once, which take room too.
const CHUNK_PACKED: usize = 512;

/// Floats of `b` that are packed at once: they stay in the second-level cache while all rows of `a` pass by.
const PACKED_FLOATS: usize = 300_000;

/// What copying a float costs, in multiplications and additions of a tile: a share of the time, measured roughly.
const PACKING: usize = 16;

/// A matrix in a slice, with strides.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// Rows one after the other, `stride` apart.
    #[must_use]
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The same matrix, transposed.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        let last = |extent: usize, stride: usize| (extent - 1).checked_mul(stride);
        rows == 0
            || cols == 0
            || last(rows, self.row_stride)
                .zip(last(cols, self.col_stride))
                .and_then(|(row, col)| row.checked_add(col))
                .is_some_and(|last| last < self.data.len())
    }

    /// The elements from one on.
    fn from(&self, row: usize, col: usize) -> &'a [f32] {
        &self.data[row * self.row_stride + col * self.col_stride..]
    }
}

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
pub struct Product<'a> {
    extents: Extents,
    a: MatrixView<'a>,
    b: MatrixView<'a>,
    alpha: f32,
    accumulate: bool,
    bias: Option<&'a [f32]>,
    epilogue_operand: &'a [f32],
}

impl<'a> Product<'a> {
    /// The plain product.
    ///
    /// # Panics
    /// If a view is too short for the extents: a fault of the caller.
    #[must_use]
    pub fn new(extents: Extents, a: MatrixView<'a>, b: MatrixView<'a>) -> Self {
        assert!(a.holds(extents.m, extents.k) && b.holds(extents.k, extents.n), "operand too short for {extents:?}");
        Self { extents, a, b, alpha: 1.0, accumulate: false, bias: None, epilogue_operand: &[] }
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
    pub fn with_epilogue_operand(self, matrix: &'a [f32]) -> Self {
        Self { epilogue_operand: matrix, ..self }
    }

    /// Writes the product to a contiguous `c [m, n]` on the calling thread, on the widest instruction set, with working memory of its own:
    /// for use outside of programs.
    ///
    /// # Panics
    /// If `c` is too short: a fault of the caller.
    pub fn write(self, c: &mut [f32]) {
        let isa = Isa::detect();
        multiply(isa, c, self.extents.n, self, &mut vec![0.0; multiply_scratch(isa, self.extents)]);
    }

    /// Whether rows of `a` are packed, because they do not lie in one piece.
    fn packs_rows(&self) -> bool {
        self.a.col_stride != 1
    }

    /// Prefetches what the epilogue of a tile writes and reads, but for the result itself.
    #[inline(always)]
    fn prefetch(&self, place: &Tile, outputs: &mut [BlockMut<'_>]) {
        for output in &mut outputs[1..] {
            kernel::prefetch_tile(output, &place.rows, &place.cols);
        }
        if !self.epilogue_operand.is_empty() {
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
    /// Length of the longest chunk of the sums.
    chunk: usize,
    /// Columns of `b` that are packed at once.
    cols: usize,
}

impl Cut {
    fn new(isa: Isa, e: Extents, packs_rows: bool) -> Self {
        let longest = if packs_rows { CHUNK_PACKED } else { CHUNK_IN_PLACE };
        let chunk = e.k.div_ceil(e.k.div_ceil(longest).max(1)).next_multiple_of(8).max(8);
        let width = kernel::panel_width(isa);
        Self { chunk, cols: e.n.next_multiple_of(width).min((PACKED_FLOATS / chunk / width).max(1) * width) }
    }

    /// The chunks of a sum of length `k`; one empty chunk where there is nothing to add.
    fn chunks(self, k: usize) -> impl Iterator<Item = Range<usize>> {
        (0..k.div_ceil(self.chunk).max(1)).map(move |at| at * self.chunk..k.min((at + 1) * self.chunk))
    }

    /// Floats of the packed columns.
    fn packed_b(self) -> usize {
        self.chunk * self.cols
    }

    /// Floats of the packed rows and columns.
    fn packed(self) -> usize {
        (self.packed_b() + self.chunk * pack::GROUP * kernel::TILE_STRIDE).next_multiple_of(LINE)
    }
}

/// Working memory of [`multiply`], in floats: a multiple of a cache line.
#[must_use]
pub fn multiply_scratch(isa: Isa, e: Extents) -> usize {
    Cut::new(isa, e, false).packed().max(Cut::new(isa, e, true).packed())
}

/// Working memory of [`product`], in floats.
#[must_use]
pub fn product_scratch(cpu: &Cpu, e: Extents) -> usize {
    if tiles(cpu.isa, e).is_some() {
        return cpu.pool.threads() * amx::scratch(e);
    }
    cpu.pool.threads() * multiply_scratch(cpu.isa, e)
}

/// `c = p` on the calling thread. Rows of `c` are `c_stride` apart; `scratch` holds at least [`multiply_scratch`] floats.
///
/// # Panics
/// If `c` or `scratch` is too short for the extents: a fault of the caller.
pub fn multiply(isa: Isa, c: &mut [f32], c_stride: usize, p: Product<'_>, scratch: &mut [f32]) {
    let Extents { m, n, .. } = p.extents;
    if m > 0 && n > 0 {
        part(isa, &p, 0..m, 0..n, [BlockMut::of(c, m, n, c_stride)], scratch, &|_, _| ());
    }
}

/// A finished tile within a block of each output. It is told as numbers, not as smaller blocks, because what is written to the stack
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

/// `outputs[0] = p` over the pool; all outputs are contiguous `[m, n]`. `finish(tile, a block of each output)` is the epilogue: it runs on
/// every tile of the result as soon as it is there, while the caches hold it. `scratch` holds at least [`product_scratch`] floats.
///
/// # Panics
/// If an output or `scratch` is too short for the extents: a fault of the caller.
pub fn product<const N: usize>(
    cpu: &Cpu,
    outputs: [&mut [f32]; N],
    p: Product<'_>,
    scratch: &mut [f32],
    finish: impl Fn(&Tile, &mut [BlockMut<'_>; N]) + Sync,
) {
    let Extents { m, n, .. } = p.extents;
    if m == 0 || n == 0 {
        return;
    }
    let outputs = outputs.map(|o| BlockMut::of(o, m, n, n));
    let grid = grid(cpu.pool.threads(), p.extents, costs(cpu.isa, p.extents, p.packs_rows()));
    cpu.pool.for_blocks(outputs, &grid, scratch, |rows, cols, outputs, scratch| {
        if let Some(tiles) = tiles(cpu.isa, p.extents) {
            return amx::part(tiles, &p, rows, cols, outputs, scratch, &finish);
        }
        part(cpu.isa, &p, rows, cols, outputs, scratch, &finish);
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
fn costs(isa: Isa, e: Extents, packs_rows: bool) -> Costs {
    if tiles(isa, e).is_some() {
        return Costs { tile: (amx::SIDE, amx::SIDE), packing: (amx::PACKING, amx::PACKING) };
    }
    Costs {
        tile: (kernel::tile_rows(isa), kernel::panel_width(isa)),
        packing: (if packs_rows { PACKING } else { 0 }, PACKING),
    }
}

/// Some rows and columns of a product, on the calling thread; `outputs` hold just these.
fn part<const N: usize>(
    isa: Isa,
    p: &Product<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    mut outputs: [BlockMut<'_>; N],
    scratch: &mut [f32],
    finish: &(impl Fn(&Tile, &mut [BlockMut<'_>; N]) + Sync),
) {
    let k = p.extents.k;
    let cut = Cut::new(isa, p.extents, p.packs_rows());
    let (packed_b, packed_a) = scratch.split_at_mut(cut.packed_b());
    let tiles = Even::new(rows.len(), kernel::tile_rows(isa), 1);
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
                            p.prefetch(&place, &mut outputs);
                        }
                        let next = if panel.start == 0 { a.to_next(tile.len()) } else { 0 };
                        let operands = kernel::Operands { k: chunk.len(), a: a.rows(t, &tile), next, b };
                        let epilogue = p.epilogue(chunk.start, shifted(&place.cols, cols.start));
                        let mut c = outputs[0].part(place.rows.clone(), place.cols.clone());
                        kernel::tile(isa, operands, epilogue, &mut c);
                        if chunk.end == k {
                            finish(&place, &mut outputs);
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
    fn pack(isa: Isa, packed: &'a mut [f32], b: MatrixView<'_>, chunk: Range<usize>, cols: Range<usize>) -> Self {
        let width = kernel::panel_width(isa);
        let (panels, size) = (Even::new(cols.len(), width, kernel::lanes(isa)), chunk.len() * width);
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
    k: usize,
    /// The first tile's number.
    first: usize,
    /// All rows, with the distance between them.
    in_place: Option<(&'a [f32], usize)>,
    packed: &'a [f32],
}

impl<'a> RowTiles<'a> {
    /// Packs the tiles where they cannot be read in place. They count from row `start`.
    fn of(
        isa: Isa,
        p: &Product<'a>,
        start: usize,
        tiles: Even,
        group: Range<usize>,
        chunk: &Range<usize>,
        packed: &'a mut [f32],
    ) -> Self {
        let (k, first) = (chunk.len(), group.start);
        if !p.packs_rows() && k > 0 {
            return Self { k, first, in_place: Some((p.a.from(start, chunk.start), p.a.row_stride)), packed };
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

    /// Floats from a tile of that height to the next where it is read in place; packed ones are in the caches.
    fn to_next(&self, rows: usize) -> usize {
        self.in_place.map_or(0, |(_, stride)| rows * stride)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;
    use simmim_random::{Purpose, Stream};

    struct Case {
        e: Extents,
        a: Vec<f32>,
        b: Vec<f32>,
        c: Vec<f32>,
        bias: Vec<f32>,
        flipped: (bool, bool),
    }

    impl Case {
        fn new(e: Extents, flipped: (bool, bool), seed: u64) -> Self {
            let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
            let mut draw = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
            // Rows are two floats longer than needed, so that strides and extents differ.
            let pad = |rows: usize, cols: usize, flip: bool| if flip { (rows + 2) * cols } else { rows * (cols + 2) };
            let a = draw(pad(e.m, e.k, flipped.0));
            Self { e, a, b: draw(pad(e.k, e.n, flipped.1)), c: draw(e.m * (e.n + 3)), bias: draw(e.n), flipped }
        }

        fn view<'a>(data: &'a [f32], rows: usize, cols: usize, flip: bool) -> MatrixView<'a> {
            if flip { MatrixView::rows(data, rows + 2).transposed() } else { MatrixView::rows(data, cols + 2) }
        }

        fn product(&self, alpha: f32, accumulate: bool, bias: bool) -> Product<'_> {
            let Extents { m, n, k } = self.e;
            let (a, b) = (Self::view(&self.a, m, k, self.flipped.0), Self::view(&self.b, k, n, self.flipped.1));
            Product::new(self.e, a, b).scaled(alpha).accumulated(accumulate).with_bias(bias.then_some(&self.bias))
        }

        /// The plain product in double precision, for contiguous rows of the result.
        fn reference(&self, p: &Product<'_>, before: &[f32]) -> Vec<f32> {
            let Extents { m, n, k } = self.e;
            let at = |v: MatrixView<'_>, i: usize, j: usize| f64::from(v.data[i * v.row_stride + j * v.col_stride]);
            let mut out = Vec::new();
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|t| at(p.a, i, t) * at(p.b, t, j)).sum();
                    let held = if p.accumulate { f64::from(before[i * n + j]) } else { 0.0 };
                    out.push((f64::from(p.alpha) * sum + held + p.bias.map_or(0.0, |b| f64::from(b[j]))) as f32);
                }
            }
            out
        }
    }

    fn assert_close(found: &[f32], truth: &[f32], what: &str) {
        for (at, (a, b)) in found.iter().zip(truth).enumerate() {
            assert!((a - b).abs() <= 2e-4 * (1.0 + b.abs()), "{what}: element {at} is {a}, expected {b}");
        }
    }

    const EXTENTS: [(usize, usize, usize); 20] = [
        (1, 1, 1),
        (1, 33, 7),
        (5, 1, 64),
        (14, 32, 8),
        (15, 31, 9),
        (13, 17, 0),
        (49, 49, 64),
        (49, 64, 49),
        (6, 16, 513),
        (28, 65, 1030),
        (171, 48, 20),
        (340, 15, 3),
        (97, 130, 77),
        (2, 200, 600),
        (700, 40, 1024),
        (33, 150, 49),
        (1, 64, 64),
        (47, 70, 65),
        (65, 1100, 70),
        (130, 96, 1100),
    ];

    #[test]
    fn both_forms_agree_with_the_plain_product_on_every_instruction_set() {
        for (seed, (m, n, k)) in EXTENTS.into_iter().enumerate() {
            for variant in 0..8 {
                let flipped = (variant & 1 == 1, variant & 2 == 2);
                let case = Case::new(Extents { m, n, k }, flipped, seed as u64);
                let p = case.product([1.0, -0.7][variant / 4], variant % 3 == 1, variant % 2 == 0);
                let before = &case.c[..m * n];
                let truth = case.reference(&p, before);
                for isa in Isa::available() {
                    let what = format!("{m}x{n}x{k} variant {variant} on {}", isa.name());
                    let mut apart = vec![7.0; m * (n + 3)];
                    for (row, before) in apart.chunks_exact_mut(n + 3).zip(before.chunks_exact(n)) {
                        row[..n].copy_from_slice(before);
                    }
                    multiply(isa, &mut apart, n + 3, p, &mut vec![f32::NAN; multiply_scratch(isa, case.e)]);
                    let rows: Vec<f32> = apart.chunks_exact(n + 3).flat_map(|row| row[..n].to_vec()).collect();
                    assert_close(&rows, &truth, &what);
                    assert!(apart.chunks_exact(n + 3).all(|row| row[n..] == [7.0; 3]), "{what} wrote between rows");
                    let mut first: Option<Vec<f32>> = None;
                    for threads in [1, 3] {
                        let cpu = Cpu { pool: Pool::new(threads), isa };
                        let (mut c, mut doubled) = (before.to_vec(), vec![0.0; m * n]);
                        let mut scratch = vec![f32::NAN; product_scratch(&cpu, case.e)];
                        product(&cpu, [&mut c, &mut doubled], p, &mut scratch, |place, [c, doubled]| {
                            for i in place.rows.clone() {
                                for j in place.cols.clone() {
                                    doubled.row(i)[j] += 2.0 * c.row(i)[j] + (place.first.1 + j) as f32;
                                }
                            }
                        });
                        if tiles(isa, case.e).is_some() {
                            assert_close(&c, &truth, &what);
                        } else {
                            assert!(c == rows, "{what}: the pool's product differs with {threads} threads");
                        }
                        assert!(
                            *first.get_or_insert(c.clone()) == c,
                            "{what}: the product differs with {threads} threads"
                        );
                        let once = c.iter().zip(&doubled).enumerate().all(|(i, (c, d))| 2.0 * c + (i % n) as f32 == *d);
                        assert!(once, "{what}: parts are not finished once");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "operand too short")]
    fn a_view_that_is_too_short_is_refused() {
        let e = Extents { m: 2, n: 2, k: 2 };
        let p = Product::new(e, MatrixView::rows(&[0.0; 3], 2), MatrixView::rows(&[0.0; 4], 2));
        multiply(Isa::detect(), &mut [0.0; 4], 2, p, &mut vec![0.0; multiply_scratch(Isa::detect(), e)]);
    }

    #[test]
    #[should_panic(expected = "result too short")]
    fn a_result_that_is_too_short_is_refused() {
        let e = Extents { m: 2, n: 2, k: 2 };
        let p = Product::new(e, MatrixView::rows(&[0.0; 4], 2), MatrixView::rows(&[0.0; 4], 2));
        multiply(Isa::detect(), &mut [0.0; 3], 2, p, &mut vec![0.0; multiply_scratch(Isa::detect(), e)]);
    }
}
