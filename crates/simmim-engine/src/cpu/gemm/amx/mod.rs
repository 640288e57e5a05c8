//! Products on the tile registers of newer processors (Intel AMX), as exact as those on vectors.
//!
//! Tiles multiply bfloat16, eight bits, sixteen times as fast as vectors multiply floats. An operand is therefore cut into three parts of
//! eight bits ([`split`]), and of the nine products of parts those six are added that matter: the other three are 2^-23 of a term at most and
//! an eighth of that on average (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", 2019). Sums are floats, rounded to the nearest, but a tile adds 32 terms before it adds them to the sum, so that errors are
//! a half to a third of those of vectors in ordinary products. Numbers below 2^-126 count as zero, and an infinite operand gives NaN.

mod kernel;
mod split;

use super::grid::Even;
use super::kernel::LINE;
use super::{Cut, Extents, Place, Product, shifted};
use crate::cpu::BlockMut;
use crate::cpu::dispatch::TileRegisters;
use kernel::{BLOCK, DEPTH, PACKED, Sums, Tiles};
use split::{Layout, pack};
use std::ops::Range;

/// Longest sum between two visits to the result.
const CHUNK: usize = 512;

/// Terms of lines of `b` that are packed at once: at six bytes each they stay in the second-level cache.
const NEAR: usize = 200_000;

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
    packed(cut.chunk, cut.cols) + packed(cut.chunk, BLOCK) + LINE
}

fn cut(e: Extents) -> Cut {
    let chunk = e.k.div_ceil(e.k.div_ceil(CHUNK).max(1)).next_multiple_of(DEPTH).max(DEPTH);
    Cut { chunk, cols: e.n.next_multiple_of(BLOCK).min((NEAR / chunk / BLOCK).max(1) * BLOCK) }
}

/// Floats that some lines of packed terms take.
fn packed(terms: usize, lines: usize) -> usize {
    terms.div_ceil(DEPTH) * lines.div_ceil(BLOCK) * PACKED
}

/// Some rows and columns of a product, on the calling thread; `outputs` hold just these.
pub(super) fn part<const N: usize>(
    proof: TileRegisters,
    p: &Product<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    mut outputs: [BlockMut<'_>; N],
    scratch: &mut [f32],
    finish: &(impl Fn(&Place, &mut [BlockMut<'_>; N]) + Sync),
) {
    let cut = cut(p.extents);
    let k = p.extents.k;
    // Tiles that lie across cache lines are read at half the speed.
    let skipped = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    let (packed_b, packed_a) = scratch[skipped..].split_at_mut(packed(cut.chunk, cut.cols));
    let tiles = Tiles::configure(proof);
    let mut sums = Sums::zero();
    for chunk in cut.chunks(k) {
        let depth = chunk.len().div_ceil(DEPTH);
        for block in Even::new(cols.len(), cut.cols, BLOCK) {
            let panels = Even::new(block.len(), BLOCK, BLOCK);
            for (panel, packed) in panels.zip(packed_b.chunks_exact_mut(depth * PACKED)) {
                let lines = shifted(&panel, cols.start + block.start);
                pack(proof, packed, Layout::Terms, p.b.transposed(), lines, chunk.clone());
            }
            for lines in Even::new(rows.len(), BLOCK, BLOCK) {
                pack(proof, packed_a, Layout::Lines, p.a, shifted(&lines, rows.start), chunk.clone());
                for (panel, b) in panels.zip(packed_b.chunks_exact(depth * PACKED)) {
                    let place = Place {
                        first: (rows.start, cols.start),
                        rows: lines.clone(),
                        cols: shifted(&panel, block.start),
                    };
                    if chunk.end == k {
                        p.prefetch(&place, &mut outputs);
                    }
                    kernel::multiply(&tiles, depth, packed_a, b, &mut sums);
                    let ending = p.ending(chunk.start, shifted(&place.cols, cols.start));
                    let mut c = outputs[0].part(place.rows.clone(), place.cols.clone());
                    kernel::finish(&tiles, &sums, &ending, &mut c);
                    if chunk.end == k {
                        finish(&place, &mut outputs);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cpu, View, product, product_scratch};
    use super::*;
    use crate::cpu::{Isa, Pool};
    use simmim_random::{Purpose, Stream};

    /// The largest error of an element, as a share of the sum of its terms' absolute values.
    fn error(isa: Isa, e: Extents, a: &[f32], b: &[f32]) -> f64 {
        let cpu = Cpu { pool: Pool::new(2), isa };
        let (mut c, mut scratch) = (vec![0.0; e.m * e.n], vec![0.0; product_scratch(&cpu, e)]);
        let p = Product::new(e, View::rows(a, e.k), View::rows(b, e.n));
        product(&cpu, [&mut c], p, &mut scratch, |_, _| ());
        let mut worst = 0.0f64;
        for (at, &found) in c.iter().enumerate() {
            let terms = (0..e.k).map(|t| f64::from(a[at / e.n * e.k + t]) * f64::from(b[t * e.n + at % e.n]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            worst = worst.max((f64::from(found) - sum).abs() / size);
        }
        worst
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
