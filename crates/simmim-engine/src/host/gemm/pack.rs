//! Copies of operands in the order in which the micro-kernel reads them.
//!
//! What lies beyond the rows and columns in question is never used, but the micro-kernel computes with it: it is other elements or
//! zeros, because what the memory held may be numbers below the smallest normal one, which take a hundred times as long.

#![allow(unsafe_code, reason = "vector instructions, chosen by an Isa that proves they are there")]

use super::kernel::{TILE_STRIDE, lanes, prefetch};
use super::{MatrixView, Operand};
use crate::graph::Bf16;
#[cfg(simmim_x86)]
use crate::host::dispatch::IsaKind;
use crate::host::dispatch::vectorised;
use crate::host::{Isa, LINE};
use std::ops::Range;

/// Rows between the one that is copied and the one that is prefetched: they lie too far apart for the hardware prefetcher.
const AHEAD: usize = 8;

/// Most lines of a tile or panel.
const MOST_LINES: usize = 48;

/// Lines that are transposed at once.
const LINES: usize = 8;

/// Tiles of rows of `a` that are packed together.
pub(super) const GROUP: usize = 8;

/// Packs at most [`GROUP`] tiles of rows of `a`, which count from row `start`, for sums over `chunk`: one after the other, each
/// `[words of the chunk, TILE_STRIDE]`.
pub(super) fn tiles<O: Operand>(
    isa: Isa,
    packed: &mut [f32],
    a: MatrixView<'_, O>,
    start: usize,
    tiles: impl Iterator<Item = Range<usize>>,
    chunk: Range<usize>,
) {
    let size = O::words(chunk.len()) * TILE_STRIDE;
    if size == 0 {
        return;
    }
    if a.row_stride != 1 {
        for (packed, tile) in packed.chunks_exact_mut(size).zip(tiles) {
            lines(isa, packed, TILE_STRIDE, a, start + tile.start..start + tile.end, chunk.clone());
        }
        return;
    }
    // Transposed rows: a line of the source holds a column of all these tiles, so that it is read once.
    let (mut offsets, mut count, mut rows) = ([0; GROUP], 0, 0..0);
    for tile in tiles.take(GROUP) {
        rows = if count == 0 { tile.clone() } else { rows.start..tile.end };
        offsets[count] = tile.start - rows.start;
        count += 1;
    }
    let from = &a.data[start + rows.start + chunk.start * a.col_stride..];
    let source = Columns { from, step: a.col_stride, lines: rows.len(), terms: chunk.len() };
    O::spread(isa, packed, &offsets[..count], source);
}

/// Columns of `lines` elements, the starts of which are `step` apart: one for each term of the sums.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a, O> {
    from: &'a [O],
    step: usize,
    lines: usize,
    terms: usize,
}

impl<'a, O: Operand> Columns<'a, O> {
    /// The columns of the `at`-th word from its first line on; of a last word that holds one number only, an empty second one.
    #[inline(always)]
    fn of_word(&self, at: usize) -> [&'a [O]; 2] {
        let term = at * O::IN_WORD;
        let second = if term + 1 < self.terms { &self.from[(term + 1) * self.step..] } else { &[] };
        [&self.from[term * self.step..], second]
    }

    /// Brings near what is read soon: the columns lie too far apart for the hardware prefetcher.
    #[inline(always)]
    fn prefetch(&self, word: usize, lines: usize) {
        for term in 0..O::IN_WORD {
            let start = ((word + AHEAD) * O::IN_WORD + term) * self.step;
            for line in (0..lines).step_by(LINE * O::IN_WORD) {
                prefetch(self.from.as_ptr().wrapping_add(start + line).cast());
            }
        }
    }
}

/// What packing does with each type of operands: copies compiled for the instruction sets.
pub(super) trait Pack: Sized {
    /// Fills one tile for each offset: `tile[word, i]` is the word of line `offset + i`.
    fn spread(isa: Isa, packed: &mut [f32], offsets: &[usize], source: Columns<'_, Self>);

    /// Writes `packed[word, i]`, the word of line `i`, in rows of `width`, a multiple of eight. What lies beyond the lines is copied too
    /// where it is there, because a copy of known length is a few instructions.
    fn copy(isa: Isa, packed: &mut [f32], width: usize, source: Columns<'_, Self>);
}

impl Pack for f32 {
    fn spread(isa: Isa, packed: &mut [f32], offsets: &[usize], source: Columns<'_, Self>) {
        spread_floats(isa, packed, offsets, source);
    }

    fn copy(isa: Isa, packed: &mut [f32], width: usize, source: Columns<'_, Self>) {
        copy_floats(isa, packed, width, source);
    }
}

impl Pack for Bf16 {
    fn spread(isa: Isa, packed: &mut [f32], offsets: &[usize], source: Columns<'_, Self>) {
        spread_pairs(isa, packed, offsets, source);
    }

    fn copy(isa: Isa, packed: &mut [f32], width: usize, source: Columns<'_, Self>) {
        copy_pairs(isa, packed, width, source);
    }
}

vectorised! {
    fn spread_floats<_FMA>(packed: &mut [f32], offsets: &[usize], source: Columns<'_, f32>) {
        let (packed, _) = packed.as_chunks_mut::<TILE_STRIDE>();
        for p in 0..source.terms {
            source.prefetch(p, source.lines);
            let [from, _] = source.of_word(p);
            for (tile, &offset) in offsets.iter().enumerate() {
                let to = &mut packed[tile * source.terms + p];
                // One branch copies arrays, the other is a call: two slices would become one `memmove` of unknown length.
                match from[offset..].first_chunk::<TILE_STRIDE>() {
                    Some(whole) => *to = *whole,
                    None => copy_rest(to, &from[offset..source.lines]),
                }
            }
        }
    }
}

vectorised! {
    fn spread_pairs<_FMA>(packed: &mut [f32], offsets: &[usize], source: Columns<'_, Bf16>) {
        let (packed, _) = packed.as_chunks_mut::<TILE_STRIDE>();
        let words = Bf16::words(source.terms);
        for p in 0..words {
            source.prefetch(p, source.lines);
            let [first, second] = source.of_word(p);
            for (tile, &offset) in offsets.iter().enumerate() {
                let to = &mut packed[tile * words + p];
                let wholes = (first[offset..].first_chunk(), second.get(offset..).and_then(|s| s.first_chunk()));
                match wholes {
                    (Some(first), Some(second)) => *to = interleave::<TILE_STRIDE>(first, second),
                    _ => pair_rest(to, &first[offset..source.lines], second.get(offset..source.lines).unwrap_or(&[])),
                }
            }
        }
    }
}

/// The words of two columns.
#[inline(always)]
fn interleave<const N: usize>(first: &[Bf16; N], second: &[Bf16; N]) -> [f32; N] {
    std::array::from_fn(|i| Bf16::word(first[i], second[i]))
}

/// Copies what a line still holds.
#[cold]
#[inline(never)]
fn copy_rest(to: &mut [f32; TILE_STRIDE], rest: &[f32]) {
    to.fill(0.0);
    to[..rest.len()].copy_from_slice(rest);
}

/// Pairs what two columns still hold; the second may hold nothing.
#[cold]
#[inline(never)]
fn pair_rest(to: &mut [f32], first: &[Bf16], second: &[Bf16]) {
    to.fill(0.0);
    for (i, (to, &first)) in to.iter_mut().zip(first).enumerate() {
        *to = Bf16::word(first, second.get(i).copied().unwrap_or_default());
    }
}

/// Packs columns of `b` for sums over `chunk`, as `[words of the chunk, width]`; the width is that of whole vectors.
pub(super) fn panel<O: Operand>(
    isa: Isa,
    packed: &mut [f32],
    b: MatrixView<'_, O>,
    chunk: Range<usize>,
    cols: Range<usize>,
) {
    let width = cols.len().next_multiple_of(lanes(isa));
    lines(isa, packed, width, b.transposed(), cols, chunk);
}

/// Writes `packed[word, i]`, the word of line `lines.start + i` of `from`, its columns counted from `chunk.start`; rows of `packed` are
/// `stride` apart.
fn lines<O: Operand>(
    isa: Isa,
    packed: &mut [f32],
    stride: usize,
    from: MatrixView<'_, O>,
    lines: Range<usize>,
    chunk: Range<usize>,
) {
    if chunk.is_empty() || lines.is_empty() {
        return;
    }
    let whole = chunk.len() / O::IN_WORD;
    if from.row_stride == 1 {
        let start = lines.start + chunk.start * from.col_stride;
        let (from, step) = (&from.data[start..], from.col_stride);
        return O::copy(isa, packed, stride, Columns { from, step, lines: lines.len(), terms: chunk.len() });
    }
    let mut rest = 0..O::words(chunk.len());
    if from.col_stride == 1 && whole > 0 {
        let bytes = bytemuck::cast_slice(&from.data[lines.start * from.row_stride + chunk.start..]);
        let step = from.row_stride * size_of::<O>();
        transpose(isa, packed, stride, Lines { from: bytes, step, count: lines.len(), len: whole });
        rest.start = whole;
    }
    for p in rest {
        let packed = &mut packed[p * stride..(p + 1) * stride];
        packed.fill(0.0);
        let term = chunk.start + p * O::IN_WORD;
        for (line, x) in lines.clone().zip(packed) {
            let at = line * from.row_stride + term * from.col_stride;
            let second = if term + 1 < chunk.end { from.data[at + from.col_stride] } else { O::zeroed() };
            *x = O::word(from.data[at], second);
        }
    }
}

vectorised! {
    fn copy_floats<_FMA>(packed: &mut [f32], width: usize, source: Columns<'_, f32>) {
        for (p, packed) in packed.chunks_exact_mut(width).take(source.terms).enumerate() {
            source.prefetch(p, width);
            let [from, _] = source.of_word(p);
            if from.len() < width {
                packed.fill(0.0);
                packed[..source.lines].copy_from_slice(&from[..source.lines]);
                continue;
            }
            let (from, _) = from[..width].as_chunks::<8>();
            let (to, _) = packed.as_chunks_mut::<8>();
            // Written out: a loop would become a call of `memcpy`.
            match (to, from) {
                ([a, b, c, d, e, f], from) => {
                    (*a, *b, *c, *d, *e, *f) = (from[0], from[1], from[2], from[3], from[4], from[5]);
                }
                ([a, b, c, d], from) => (*a, *b, *c, *d) = (from[0], from[1], from[2], from[3]),
                ([a, b], from) => (*a, *b) = (from[0], from[1]),
                (to, from) => to.copy_from_slice(from),
            }
        }
    }
}

vectorised! {
    fn copy_pairs<_FMA>(packed: &mut [f32], width: usize, source: Columns<'_, Bf16>) {
        for (p, packed) in packed.chunks_exact_mut(width).take(Bf16::words(source.terms)).enumerate() {
            source.prefetch(p, width);
            let [first, second] = source.of_word(p);
            if first.len().min(second.len()) < width {
                pair_rest(packed, &first[..source.lines], second.get(..source.lines).unwrap_or(&[]));
                continue;
            }
            let (to, _) = packed.as_chunks_mut::<8>();
            let (first, second) = (first.as_chunks::<8>().0, second.as_chunks::<8>().0);
            for (to, (first, second)) in to.iter_mut().zip(first.iter().zip(second)) {
                *to = interleave::<8>(first, second);
            }
        }
    }
}

/// Lines of `len` words, the starts of which are `step` bytes apart.
#[derive(Clone, Copy)]
struct Lines<'a> {
    from: &'a [u8],
    step: usize,
    count: usize,
    len: usize,
}

/// Bytes of a word.
const WORD: usize = size_of::<f32>();

impl Lines<'_> {
    /// The byte at which the `i`-th line starts. Where there are fewer, the last one stands for those that the kernel does not use.
    fn start(&self, i: usize) -> usize {
        i.min(self.count - 1) * self.step
    }
}

/// Writes `to[p, i] = lines[i][p]`, rows of `to` being `stride` apart.
///
/// # Panics
/// If a slice is too short: a fault of the caller.
fn transpose(isa: Isa, to: &mut [f32], stride: usize, lines: Lines<'_>) {
    let end = lines.start(lines.count) + lines.len * WORD;
    assert!(lines.count > 0 && end <= lines.from.len(), "lines too short");
    assert!(stride.is_multiple_of(LINES) && lines.count <= stride.min(MOST_LINES), "{} lines at {stride}", lines.count);
    assert!(stride <= MOST_LINES && lines.len * stride <= to.len(), "packed lines do not fit");
    match isa.kind() {
        // SAFETY: (1) an `Isa` of this kind exists only where the processor has AVX2; (2) lengths are asserted above.
        #[cfg(simmim_x86)]
        IsaKind::Amx(_) | IsaKind::Avx512Bf16 | IsaKind::Avx512 | IsaKind::Avx2 => unsafe {
            transpose_avx2(to, stride, lines)
        },
        _ => transpose_columns(to, stride, lines, 0..lines.len),
    }
}

/// The plain transposition of some columns.
fn transpose_columns(to: &mut [f32], stride: usize, lines: Lines<'_>, columns: Range<usize>) {
    for p in columns {
        for i in 0..stride {
            let word = &lines.from[lines.start(i) + p * WORD..];
            to[p * stride + i] = word.first_chunk().map_or(0.0, |word| f32::from_ne_bytes(*word));
        }
    }
}

/// # Safety
/// (1) The processor has AVX2. (2) Lengths are as [`transpose`] asserts.
#[cfg(simmim_x86)]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(to: &mut [f32], stride: usize, lines: Lines<'_>) {
    use std::arch::x86_64::*;
    /// Columns that are done for all groups before the next ones: a cache line of each source.
    const COLUMNS: usize = 16;
    let whole = lines.len / LINES * LINES;
    let starts: [usize; MOST_LINES] = std::array::from_fn(|i| lines.start(i));
    for columns in (0..whole).step_by(COLUMNS) {
        for group in (0..stride.min(MOST_LINES)).step_by(LINES) {
            for p in (columns..whole.min(columns + COLUMNS)).step_by(LINES) {
                // SAFETY: obligations 1 and 2: every line holds `p + 8` words, and `to` the 8 rows from `p` on with
                // `group + 8` floats each.
                unsafe {
                    let line = |i| _mm256_loadu_ps(lines.from.as_ptr().add(starts[group + i] + p * WORD).cast());
                    let r: [__m256; LINES] = std::array::from_fn(line);
                    let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let ((a0, a1), (a2, a3)) = (pair(r[0], r[1]), pair(r[2], r[3]));
                    let ((a4, a5), (a6, a7)) = (pair(r[4], r[5]), pair(r[6], r[7]));
                    let low = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
                    let high = |a, b| _mm256_shuffle_ps::<0xee>(a, b);
                    let upper = [low(a0, a2), high(a0, a2), low(a1, a3), high(a1, a3)];
                    let lower = [low(a4, a6), high(a4, a6), low(a5, a7), high(a5, a7)];
                    let to = to.as_mut_ptr().add(p * stride + group);
                    for i in 0..4 {
                        _mm256_storeu_ps(to.add(i * stride), _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
                        _mm256_storeu_ps(to.add((i + 4) * stride), _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
                    }
                }
            }
        }
    }
    transpose_columns(to, stride, lines, whole..lines.len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_is_packed_alike() {
        let (rows, cols) = (23, 19);
        let by_rows: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        let by_cols: Vec<f32> = (0..rows * cols).map(|i| (i % rows * cols + i / rows) as f32).collect();
        let spread: Vec<f32> = by_rows.iter().flat_map(|&x| [x, -1.0]).collect();
        let views = [
            MatrixView::rows(&by_rows, cols),
            MatrixView::rows(&by_cols, rows).transposed(),
            MatrixView { data: &spread, row_stride: 2 * cols, col_stride: 2 },
        ];
        for isa in Isa::available() {
            for view in views {
                let mut packed = vec![f32::NAN; 3 * 17 * TILE_STRIDE];
                let heights = super::super::Even::new(20, 7, 1);
                tiles(isa, &mut packed, view, 3, heights, 1..18);
                assert!(packed.iter().all(|x| !x.is_nan()), "what lies beyond the rows is what the memory held");
                for (tile, packed) in heights.zip(packed.chunks_exact(17 * TILE_STRIDE)) {
                    for p in 0..17 {
                        for (i, row) in tile.clone().enumerate() {
                            assert_eq!(packed[p * TILE_STRIDE + i], ((3 + row) * cols + p + 1) as f32);
                        }
                    }
                }
                let panel_cols = 2..19;
                let width = panel_cols.len().next_multiple_of(lanes(isa));
                let mut packed = vec![f32::NAN; 20 * width];
                panel(isa, &mut packed, view, 2..22, panel_cols.clone());
                assert!(packed.iter().all(|x| !x.is_nan()), "what lies beyond the columns is what the memory held");
                for p in 0..20 {
                    for (i, col) in panel_cols.clone().enumerate() {
                        assert_eq!(packed[p * width + i], ((p + 2) * cols + col) as f32);
                    }
                }
            }
        }
    }
}
