//! Products on the tile registers of newer processors (Intel AMX), as exact as those on vectors.
//!
//! Tiles multiply bfloat16, eight bits, sixteen times as fast as vectors multiply floats. An operand is therefore cut into three parts of
//! eight bits ([`split`]), and of the nine products of parts those six are added that matter: the other three are 2^-23 of a term at most and
//! an eighth of that on average (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", 2019). Sums are floats, rounded to the nearest, but a tile adds 32 terms before it adds them to the sum, so that errors are
//! a half to a third of those of vectors in ordinary products. That holds for operands from 2^-100 to 2^127: below, their last parts count as
//! zero, and what is larger than bfloat16 holds, or infinite, gives NaN.

mod kernel;
mod split;

use super::grid::Even;
use super::{Cut, Extents, Product, Tile, shifted};
use crate::graph::Element;
use crate::host::dispatch::TileRegisters;
use crate::host::{BlockMut, LINE};
use kernel::{BLOCK, Configured, DEPTH, PACKED, Prefetch, Sums};
use split::{Layout, pack};
use std::ops::Range;

/// Longest sum between two visits to the result.
const CHUNK: usize = 512;

/// Terms of lines of `b` that are packed at once: at six bytes each they stay in the second-level cache.
const PACKED_FLOATS: usize = 200_000;

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

/// Working memory of [`part`], in floats: a multiple of a cache line.
pub(super) fn scratch(e: Extents) -> usize {
    let cut = cut(e);
    packed(cut.chunk, cut.cols) + packed(cut.chunk, GROUP * BLOCK) + LINE
}

fn cut(e: Extents) -> Cut {
    let chunk = e.k.div_ceil(e.k.div_ceil(CHUNK).max(1)).next_multiple_of(DEPTH).max(DEPTH);
    Cut { chunk, words: chunk, cols: e.n.next_multiple_of(BLOCK).min((PACKED_FLOATS / chunk / BLOCK).max(1) * BLOCK) }
}

/// Floats that some lines of packed terms take.
fn packed(terms: usize, lines: usize) -> usize {
    terms.div_ceil(DEPTH) * lines.div_ceil(BLOCK) * PACKED
}

/// Some rows and columns of a product, on the calling thread; `outputs` hold just these.
#[allow(clippy::too_many_arguments, reason = "a block of each output, and what is done with them")]
pub(super) fn part<T: Element, const M: usize, const N: usize>(
    proof: TileRegisters,
    p: &Product<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    mut floats: [BlockMut<'_>; M],
    mut others: [BlockMut<'_, T>; N],
    scratch: &mut [f32],
    finish: &(impl Fn(&Tile, &mut BlockMut<'_>, &mut [BlockMut<'_, T>; N]) + Sync),
) {
    let Some(result) = floats.first_mut() else { unreachable!("products of floats are written as floats") };
    let cut = cut(p.extents);
    let k = p.extents.k;
    // Tiles that lie across cache lines are read at half the speed.
    let skipped = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    let (packed_b, packed_a) = scratch[skipped..].split_at_mut(packed(cut.chunk, cut.cols));
    let tiles = Configured::new(proof);
    let mut sums = Sums::zero();
    let tiles_of_rows = Even::new(rows.len(), BLOCK, BLOCK);
    let group = if p.packs_rows() { GROUP } else { 1 };
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
                let packed_a = &packed_a[t % group * depth * PACKED..];
                for (panel, b) in panels.zip(packed_b.chunks_exact(depth * PACKED)) {
                    let place = Tile {
                        first: (rows.start, cols.start),
                        rows: lines.clone(),
                        cols: shifted(&panel, block.start),
                    };
                    let prefetches = prefetches(p, &place, result, &mut others, chunk.end == k);
                    kernel::multiply(&tiles, depth, packed_a, b, prefetches, &mut sums);
                    let epilogue = p.epilogue(chunk.start, shifted(&place.cols, cols.start));
                    let mut c = result.part(place.rows.clone(), place.cols.clone());
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
pub(super) fn near(proof: TileRegisters, k: usize, times: usize) -> usize {
    let depth = k.div_ceil(DEPTH);
    // Two ones in bfloat16; zeros take less power, and the clock may rise.
    let memory = vec![f32::from_bits(0x3f80_3f80); 2 * depth * PACKED + LINE];
    let (a, b) = memory[memory.as_ptr().align_offset(4 * LINE).min(LINE)..].split_at(depth * PACKED);
    let (tiles, mut sums) = (Configured::new(proof), Sums::zero());
    let nothing = Prefetch { start: a.as_ptr(), stride: 0 };
    for _ in 0..times {
        kernel::multiply(&tiles, depth, a, b, [nothing; 2], &mut sums);
    }
    2 * BLOCK * BLOCK * depth * DEPTH
}

/// What is written and what is read where a block is finished. All lie as wide apart as floats do.
#[inline(always)]
fn prefetches<T: Element, const N: usize>(
    p: &Product<'_>,
    place: &Tile,
    result: &mut BlockMut<'_>,
    others: &mut [BlockMut<'_, T>; N],
    finishes: bool,
) -> [Prefetch; 2] {
    let (row, col) = (place.rows.start, place.cols.start);
    let start = result.as_mut_ptr().wrapping_add(row * result.stride() + col);
    let first = Prefetch { start, stride: result.stride() };
    let second = match others.first_mut() {
        _ if !finishes => first,
        Some(other) if size_of::<T>() == size_of::<f32>() => {
            let stride = other.stride();
            Prefetch { start: other.as_mut_ptr().wrapping_add(row * stride + col).cast(), stride }
        }
        None if p.epilogue_operand.element == size_of::<f32>() && !p.epilogue_operand.bytes.is_empty() => {
            let stride = p.extents.n;
            let at = (place.first.0 + row) * stride + place.first.1 + col;
            Prefetch { start: p.epilogue_operand.bytes.as_ptr().cast::<f32>().wrapping_add(at), stride }
        }
        _ => first,
    };
    [first, second]
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
