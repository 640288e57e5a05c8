//! Copies of operands in the order in which the micro-kernel reads them.
//!
//! What lies beyond the rows and columns in question is never used, but the micro-kernel computes with it: it is other elements or
//! zeros, because what the memory held may be numbers below the smallest normal one, which take a hundred times as long.

#![allow(unsafe_code, reason = "vector instructions, chosen by an Isa that proves they are there")]

use super::MatrixView;
use super::kernel::{TILE_STRIDE, lanes, prefetch};
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
/// `[chunk, TILE_STRIDE]`.
pub(super) fn tiles(
    isa: Isa,
    packed: &mut [f32],
    a: MatrixView<'_>,
    start: usize,
    tiles: impl Iterator<Item = Range<usize>>,
    chunk: Range<usize>,
) {
    let size = chunk.len() * TILE_STRIDE;
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
    spread(isa, packed, &offsets[..count], from, a.col_stride, rows.len(), chunk.len());
}

vectorised! {
    /// Fills one tile for each offset: `tile[p, i] = from[p * step + offset + i]`, of which `len` floats of a line belong to the tiles.
    fn spread<FMA>(packed: &mut [f32], offsets: &[usize], from: &[f32], step: usize, len: usize, columns: usize) {
        let (packed, _) = packed.as_chunks_mut::<TILE_STRIDE>();
        for p in 0..columns {
            for line in (0..len).step_by(LINE) {
                prefetch(from.as_ptr().wrapping_add((p + AHEAD) * step + line));
            }
            let from = &from[p * step..];
            for (tile, &offset) in offsets.iter().enumerate() {
                let to = &mut packed[tile * columns + p];
                // One branch copies arrays, the other is a call: two slices would become one `memmove` of unknown length.
                match from[offset..].first_chunk::<TILE_STRIDE>() {
                    Some(whole) => *to = *whole,
                    None => copy_rest(to, &from[offset..len]),
                }
            }
        }
    }
}

/// Copies what a line still holds.
#[cold]
#[inline(never)]
fn copy_rest(to: &mut [f32; TILE_STRIDE], rest: &[f32]) {
    to.fill(0.0);
    to[..rest.len()].copy_from_slice(rest);
}

/// Packs columns of `b` for sums over `chunk`, as `[chunk, width]`; the width is that of whole vectors.
pub(super) fn panel(isa: Isa, packed: &mut [f32], b: MatrixView<'_>, chunk: Range<usize>, cols: Range<usize>) {
    let width = cols.len().next_multiple_of(lanes(isa));
    lines(isa, packed, width, b.transposed(), cols, chunk);
}

/// Writes `packed[p, i] = from[lines.start + i, chunk.start + p]`, rows of `packed` being `stride` apart.
fn lines(isa: Isa, packed: &mut [f32], stride: usize, from: MatrixView<'_>, lines: Range<usize>, chunk: Range<usize>) {
    if chunk.is_empty() || lines.is_empty() {
        return;
    }
    let (count, row_stride) = (lines.len(), from.row_stride);
    if from.row_stride == 1 {
        let start = lines.start + chunk.start * from.col_stride;
        let (from, step, rows) = (&from.data[start..], from.col_stride, chunk.len());
        copy(isa, packed, stride, from, step, count, rows);
    } else if from.col_stride == 1 {
        let from = &from.data[lines.start * from.row_stride + chunk.start..];
        transpose(isa, packed, stride, Lines { from, step: row_stride, count, len: chunk.len() });
    } else {
        for (packed, p) in packed.chunks_exact_mut(stride).zip(chunk) {
            packed.fill(0.0);
            for (i, x) in packed.iter_mut().take(count).enumerate() {
                *x = from.data[(lines.start + i) * from.row_stride + p * from.col_stride];
            }
        }
    }
}

vectorised! {
    /// Writes `packed[p, i] = from[p * step + i]` for `i` below `count` and `p` below `rows`, in rows of `width`, a multiple of eight. What
    /// lies beyond `count` is copied too where it is there, because a copy of known length is a few instructions.
    fn copy<FMA>(packed: &mut [f32], width: usize, from: &[f32], step: usize, count: usize, rows: usize) {
        for (p, packed) in packed.chunks_exact_mut(width).take(rows).enumerate() {
            for line in (0..width).step_by(LINE) {
                prefetch(from.as_ptr().wrapping_add((p + AHEAD) * step + line));
            }
            let from = &from[p * step..];
            if from.len() < width {
                packed.fill(0.0);
                packed[..count].copy_from_slice(&from[..count]);
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

/// Lines of `len` floats, the starts of which are `step` apart.
#[derive(Clone, Copy)]
struct Lines<'a> {
    from: &'a [f32],
    step: usize,
    count: usize,
    len: usize,
}

impl Lines<'_> {
    /// Start of the `i`-th line. Where there are fewer, the last one stands for those that the kernel does not use.
    fn start(&self, i: usize) -> usize {
        i.min(self.count - 1) * self.step
    }
}

/// Writes `to[p, i] = lines[i][p]`, rows of `to` being `stride` apart.
///
/// # Panics
/// If a slice is too short: a fault of the caller.
fn transpose(isa: Isa, to: &mut [f32], stride: usize, lines: Lines<'_>) {
    assert!(lines.count > 0 && lines.start(lines.count) + lines.len <= lines.from.len(), "lines too short");
    assert!(stride.is_multiple_of(LINES) && lines.count <= stride.min(MOST_LINES), "{} lines at {stride}", lines.count);
    assert!(stride <= MOST_LINES && lines.len * stride <= to.len(), "packed lines do not fit");
    match isa.kind() {
        // SAFETY: (1) an `Isa` of this kind exists only where the processor has AVX2; (2) lengths are asserted above.
        #[cfg(simmim_x86)]
        IsaKind::Amx(_) | IsaKind::Avx512 | IsaKind::Avx2 => unsafe { transpose_avx2(to, stride, lines) },
        _ => transpose_columns(to, stride, lines, 0..lines.len),
    }
}

/// The plain transposition of some columns.
fn transpose_columns(to: &mut [f32], stride: usize, lines: Lines<'_>, columns: Range<usize>) {
    for p in columns {
        for i in 0..stride {
            to[p * stride + i] = lines.from[lines.start(i) + p];
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
                // SAFETY: obligations 1 and 2: every line holds `p + 8` floats, and `to` the 8 rows from `p` on with
                // `group + 8` floats each.
                unsafe {
                    let line = |i| _mm256_loadu_ps(lines.from.as_ptr().add(starts[group + i] + p));
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
