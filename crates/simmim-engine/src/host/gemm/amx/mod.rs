//! Products on the tile registers of newer processors (Intel AMX), as exact as those on vectors.
//!
//! Tiles multiply bfloat16, eight bits, sixteen times as fast as vectors multiply floats. An operand in bfloat16 is one part ([`parts`]). One of
//! floats is cut into three parts of eight bits, and of the nine products of parts those six are added that matter: the other three are 2^-23 of a term at most and
//! an eighth of that on average (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", 2019). Sums are floats, rounded to the nearest, but a tile adds 32 terms before it adds them to the sum, so that errors are
//! a half to a third of those of vectors in ordinary products. That holds for operands from 2^-100 to 2^127: below, their last parts count as
//! zero, and what is larger than bfloat16 holds, or infinite, gives NaN.

mod kernel;
mod pack;
mod parts;

use super::grid::Even;
use super::{Cut, Extents, Operand, Product, Tile, shifted};
use crate::graph::Element;
use crate::host::dispatch::TileRegisters;
use crate::host::{BlockMut, LINE};
use kernel::{BLOCK, Configured, DEPTH, Prefetch, Sums, packed};
use pack::{Layout, pack};
pub(super) use parts::Parts;
use std::ops::Range;

/// Parts of elements in the longest sum between two visits to the result.
const CHUNK: usize = 1536;

/// Parts of lines of `b` that are packed at once: at two bytes each they stay in the second-level cache.
const PACKED_PARTS: usize = 600_000;

/// Blocks of rows of `a` that are packed at once where their terms lie apart, so that longer pieces of each term are read.
const GROUP: usize = 4;

/// What copying and splitting a float costs, in multiplications and additions of a block: measured roughly.
pub(super) const PACKING: usize = 64;

/// Rows and columns of a block of the result.
pub(super) const SIDE: usize = BLOCK;

/// Whether a product is long and wide enough for packing to pay. The number of rows does not count, so that a row's result never depends on
/// how many there are.
pub(super) fn pays(e: Extents) -> bool {
    e.n >= 2 * BLOCK && e.k >= 2 * DEPTH
}

/// Working memory of [`part`], in floats: a multiple of a cache line. `whole` as for [`cut`].
pub(super) fn scratch<O: Operand>(e: Extents, whole: bool) -> usize {
    let cut = cut::<O>(e, whole);
    space::<O>(cut.chunk, cut.cols) + space::<O>(cut.chunk, GROUP * BLOCK) + LINE
}

/// `whole` sums are not cut: what has no floats to be added to is finished in one visit.
fn cut<O: Operand>(e: Extents, whole: bool) -> Cut {
    let visits = if whole { 1 } else { e.k.div_ceil(CHUNK / O::COUNT).max(1) };
    let chunk = e.k.div_ceil(visits).next_multiple_of(DEPTH).max(DEPTH);
    let most = (PACKED_PARTS / O::COUNT / chunk / BLOCK).max(1) * BLOCK;
    Cut { chunk, words: O::words(chunk), cols: e.n.next_multiple_of(BLOCK).min(most) }
}

/// Floats that some lines of packed terms take.
fn space<O: Operand>(terms: usize, lines: usize) -> usize {
    terms.div_ceil(DEPTH) * lines.div_ceil(BLOCK) * packed::<O>()
}

/// Some rows and columns of a product, on the calling thread; the blocks hold just these.
#[allow(clippy::too_many_arguments, reason = "a block of each output, and what is done with them")]
pub(super) fn part<O: Operand, T: Element, const M: usize, const N: usize>(
    proof: TileRegisters,
    p: &Product<'_, O>,
    rows: Range<usize>,
    cols: Range<usize>,
    mut floats: [BlockMut<'_>; M],
    mut others: [BlockMut<'_, T>; N],
    scratch: &mut [f32],
    finish: &(impl Fn(&Tile, &mut BlockMut<'_>, &mut [BlockMut<'_, T>; N]) + Sync),
) {
    let cut = cut::<O>(p.extents, M == 0);
    let (k, step) = (p.extents.k, packed::<O>());
    // Tiles that lie across cache lines are read at half the speed.
    let skipped = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    let (packed_b, packed_a) = scratch[skipped..].split_at_mut(space::<O>(cut.chunk, cut.cols));
    let tiles = Configured::new(proof);
    let (mut sums, mut passing) = (Sums::zero(), [0.0; BLOCK * BLOCK]);
    let tiles_of_rows = Even::new(rows.len(), BLOCK, BLOCK);
    let group = if p.a.col_stride == 1 { 1 } else { GROUP };
    for chunk in cut.chunks(k) {
        let depth = chunk.len().div_ceil(DEPTH);
        for block in Even::new(cols.len(), cut.cols, BLOCK) {
            let panels = Even::new(block.len(), BLOCK, BLOCK);
            let columns = shifted(&block, cols.start);
            pack(proof, packed_b, Layout::Terms, p.b.transposed(), columns, chunk.clone());
            for (t, lines) in tiles_of_rows.enumerate() {
                if t % group == 0 {
                    let all = rows.start + lines.start..rows.end.min(rows.start + lines.start + group * BLOCK);
                    pack(proof, packed_a, Layout::Lines, p.a, all, chunk.clone());
                }
                let packed_a = &packed_a[t % group * depth * step..];
                for (panel, b) in panels.zip(packed_b.chunks_exact(depth * step)) {
                    let place = Tile {
                        first: (rows.start, cols.start),
                        rows: lines.clone(),
                        cols: shifted(&panel, block.start),
                    };
                    let prefetches = prefetches(p, &place, &mut floats, &mut others, chunk.end == k);
                    kernel::multiply::<O>(&tiles, depth, packed_a, b, prefetches, &mut sums);
                    let epilogue = p.epilogue(chunk.start, shifted(&place.cols, cols.start));
                    let mut c = match floats.first_mut() {
                        Some(c) => c.part(place.rows.clone(), place.cols.clone()),
                        None => BlockMut::of(&mut passing, lines.len(), panel.len(), panel.len()),
                    };
                    kernel::finish(&tiles, &sums, &epilogue, &mut c);
                    if chunk.end == k {
                        finish(&place, &mut c, &mut others);
                    }
                }
            }
        }
    }
}

/// Computes a block of the result over and over from packed operands that the caches hold; returns the floating point operations of one.
pub(super) fn near<O: Operand>(proof: TileRegisters, k: usize, times: usize) -> usize {
    let (depth, step) = (k.div_ceil(DEPTH), packed::<O>());
    // Two ones in bfloat16; zeros take less power, and the clock may rise.
    let memory = vec![f32::from_bits(0x3f80_3f80); 2 * depth * step + LINE];
    let (a, b) = memory[memory.as_ptr().align_offset(4 * LINE).min(LINE)..].split_at(depth * step);
    let (tiles, mut sums) = (Configured::new(proof), Sums::zero());
    let nothing = Prefetch { start: a.as_ptr().cast(), stride: 0 };
    for _ in 0..times {
        kernel::multiply::<O>(&tiles, depth, a, b, [nothing; 2], &mut sums);
    }
    2 * BLOCK * BLOCK * depth * DEPTH
}

/// What is written and what is read where a block is finished.
#[inline(always)]
fn prefetches<O: Operand, T: Element, const M: usize, const N: usize>(
    p: &Product<'_, O>,
    place: &Tile,
    floats: &mut [BlockMut<'_>; M],
    others: &mut [BlockMut<'_, T>; N],
    finishes: bool,
) -> [Prefetch; 2] {
    let other = if finishes { others.first_mut().map(|block| rows_of(block, place)) } else { None };
    let operand = p.epilogue_operand;
    let read = (finishes && !operand.bytes.is_empty()).then(|| {
        let stride = p.extents.n * operand.element;
        let (row, col) = (place.first.0 + place.rows.start, place.first.1 + place.cols.start);
        Prefetch { start: operand.bytes.as_ptr().wrapping_add(row * stride + col * operand.element), stride }
    });
    let first = floats.first_mut().map(|block| rows_of(block, place)).or(other).or(read);
    let first = first.unwrap_or(Prefetch { start: p.a.data.as_ptr().cast(), stride: 0 });
    [first, if M == 1 { other.or(read) } else { read }.unwrap_or(first)]
}

/// The rows of a tile in a block.
#[inline(always)]
fn rows_of<T: Element>(block: &mut BlockMut<'_, T>, place: &Tile) -> Prefetch {
    let stride = block.stride() * size_of::<T>();
    let start = block.as_mut_ptr().cast::<u8>().cast_const();
    Prefetch { start: start.wrapping_add(place.rows.start * stride + place.cols.start * size_of::<T>()), stride }
}

#[cfg(test)]
mod tests {
    use super::super::{Cpu, MatrixView, NOTHING, product, product_scratch};
    use super::*;
    use crate::host::{Isa, Pool};
    use simmim_random::{Purpose, Stream};

    /// The largest error of an element, as a share of the sum of its terms' absolute values.
    fn error(isa: Isa, e: Extents, a: &[f32], b: &[f32]) -> f64 {
        let cpu = Cpu { pool: Pool::new(2), isa };
        let (mut c, mut scratch) = (vec![0.0; e.m * e.n], vec![0.0; product_scratch::<f32>(&cpu, e)]);
        let p = Product::new(e, MatrixView::rows(a, e.k), MatrixView::rows(b, e.n));
        product(&cpu, [&mut c], NOTHING, p, &mut scratch, |_, _, _| ());
        let mut worst = 0.0f64;
        for (at, &found) in c.iter().enumerate() {
            let terms = (0..e.k).map(|t| f64::from(a[at / e.n * e.k + t]) * f64::from(b[t * e.n + at % e.n]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            worst = worst.max((f64::from(found) - sum).abs() / size);
        }
        worst
    }

    #[test]
    fn a_row_is_the_same_among_any_number_of_rows() {
        let Some(isa) = Isa::named("amx") else { return };
        let mut stream = Stream::new(12, Purpose::Test, 0, 0);
        let (n, k) = (90, 1100);
        let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| stream.normal() as f32).collect() };
        let (a, b) = (draw(150 * k), draw(k * n));
        let rows = |m: usize, threads: usize| {
            let (cpu, e) = (Cpu { pool: Pool::new(threads), isa }, Extents { m, n, k });
            let (mut c, mut scratch) = (vec![0.0; m * n], vec![f32::NAN; product_scratch::<f32>(&cpu, e)]);
            let p = Product::new(e, MatrixView::rows(&a, k), MatrixView::rows(&b, n));
            product(&cpu, [&mut c], NOTHING, p, &mut scratch, |_, _, _| ());
            c
        };
        let all = rows(150, 3);
        for m in [1, 17, 33, 149] {
            assert_eq!(rows(m, 1), all[..m * n], "{m} rows");
        }
    }

    #[test]
    #[should_panic(expected = "tiles are in use")]
    fn tiles_are_not_configured_twice() {
        // Where there are none, the message alone.
        let Some(proof) = TileRegisters::ask() else { panic!("tiles are in use") };
        let _first = Configured::new(proof);
        let _second = Configured::new(proof);
    }

    #[test]
    fn a_product_on_tiles_is_as_exact_as_one_on_vectors() {
        let (Some(tiles), Some(vectors)) = (Isa::named("amx"), Isa::named("avx512")) else { return };
        let mut stream = Stream::new(11, Purpose::Test, 0, 0);
        // Where a few terms outweigh all others, what the dropped products leave out shows.
        for (spread, k, share) in [(0, 64, 0.8), (0, 384, 0.8), (0, 3000, 0.8), (20, 200, 2.0), (60, 1000, 2.0)] {
            let e = Extents { m: 70, n: 80, k };
            let mut draw = |len: usize| -> Vec<f32> {
                (0..len)
                    .map(|i| stream.normal() as f32 * 2f32.powi((i * 7 % (spread + 1)) as i32 - spread as i32 / 2))
                    .collect()
            };
            let (a, b) = (draw(e.m * k), draw(k * e.n));
            let (on_tiles, on_vectors) = (error(tiles, e, &a, &b), error(vectors, e, &a, &b));
            assert!(on_tiles <= share * on_vectors, "{k} terms: {on_tiles:e} on tiles, {on_vectors:e} on vectors");
        }
    }
}
