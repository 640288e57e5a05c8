//! Operands as three parts of eight bits each, in the order in which tiles are read.
//!
//! `x = x0 + x1 + x2`, where `x0` is `x` rounded to bfloat16, `x1` what is left of it, rounded, and `x2` what is left then: 24 bits and their
//! signs, so that nothing of a float is lost but what lies below the smallest normal number, 2^-126.

#![allow(unsafe_code, reason = "vector instructions, which the caller knows to be there")]

use super::super::MatrixView;
use super::kernel::{BLOCK, DEPTH, PACKED};
use crate::host::dispatch::TileRegisters;
use crate::host::gemm::kernel::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Lines of a tile, and pairs of terms.
const SIDE: usize = 16;

/// Floats from a tile of the first part to the end of that of the third.
const REACH: usize = PACKED - SIDE * SIDE;

/// What the rows of a tile are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Lines; their terms lie beside each other: `a`.
    Lines,
    /// Pairs of terms; lines lie beside each other: `b`.
    Terms,
}

/// Packs `lines` of `from [line, term]` for the sums over `chunk`: for each [`BLOCK`] lines and each [`DEPTH`] terms, three parts of two tiles.
/// Four bytes hold terms `p` and `p + 16` of a line; what lies beyond the lines and terms is zero.
///
/// # Panics
/// If `from` ends before the last of them, or `to` is shorter than [`PACKED`] floats for each: a fault of the caller.
pub(super) fn pack(
    _proof: TileRegisters,
    to: &mut [f32],
    layout: Layout,
    from: MatrixView<'_>,
    lines: Range<usize>,
    chunk: Range<usize>,
) {
    let last = |r: &Range<usize>, stride: usize| r.end.saturating_sub(1) * stride;
    let reached = last(&lines, from.row_stride) + last(&chunk, from.col_stride);
    assert!(lines.is_empty() || chunk.is_empty() || reached < from.data.len(), "operand too short");
    let (blocks, depth) = (lines.len().div_ceil(BLOCK), chunk.len().div_ceil(DEPTH));
    let mut buffer = [0.0; SIDE * DEPTH];
    let mut one = |block: usize, step: usize| {
        let (line, term) = (lines.start + block * BLOCK, chunk.start + step * DEPTH);
        let terms = term..chunk.end.min(term + DEPTH);
        let to = &mut to[(block * depth + step) * PACKED..][..PACKED];
        for half in 0..2 {
            let first = line + half * SIDE;
            let lines = first.min(lines.end)..lines.end.min(first + SIDE);
            // SAFETY: a `TileRegisters` exists only where the processor has AVX-512 with BF16.
            unsafe { pack_square(&mut to[half * SIDE * SIDE..], layout, from, lines, terms.clone(), &mut buffer) };
        }
    };
    // Along contiguous memory, which the hardware prefetcher follows.
    if from.col_stride == 1 {
        (0..blocks).for_each(|block| (0..depth).for_each(|step| one(block, step)));
    } else {
        (0..depth).for_each(|step| (0..blocks).for_each(|block| one(block, step)));
    }
}

/// Packs at most 16 lines of 32 terms.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn pack_square(
    to: &mut [f32],
    layout: Layout,
    from: MatrixView<'_>,
    lines: Range<usize>,
    terms: Range<usize>,
    buffer: &mut [f32; SIDE * DEPTH],
) {
    if lines.is_empty() {
        return clear(to);
    }
    let whole = (lines.len(), terms.len()) == (SIDE, DEPTH) && (from.row_stride == 1 || from.col_stride == 1);
    let square = if whole { Square::new(from, lines.start, terms.start) } else { copied(buffer, from, lines, terms) };
    // SAFETY: the caller's obligation; `square` holds 16 lines of 32 terms.
    unsafe {
        if square.by_lines == (layout == Layout::Lines) {
            plain(to, &square);
        } else {
            transposed(to, &square);
        }
    }
}

/// Sixteen lines of 32 terms. Vector `i` of sixteen floats is terms 0 to 15 of line `i`, or term `i` of all lines.
struct Square<'a> {
    from: &'a [f32],
    by_lines: bool,
    stride: usize,
}

impl<'a> Square<'a> {
    fn new(from: MatrixView<'a>, line: usize, term: usize) -> Self {
        let by_lines = from.col_stride == 1;
        Self { from: from.from(line, term), by_lines, stride: if by_lines { from.row_stride } else { from.col_stride } }
    }

    /// Where the vectors of pair `i` begin, and how many floats there are between them.
    fn pair(&self, i: usize) -> (usize, usize) {
        if self.by_lines { (i * self.stride, SIDE) } else { (i * self.stride, SIDE * self.stride) }
    }

    /// Vectors of pair `i`.
    ///
    /// # Safety
    /// (1) The processor has AVX-512. (2) The slice holds 16 lines of 32 terms.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(&self, i: usize) -> (__m512, __m512) {
        let (start, between) = self.pair(i);
        // SAFETY: obligation 2.
        unsafe {
            let from = self.from.as_ptr().add(start);
            (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(between)))
        }
    }

    /// Prefetches the square of the next terms, or the one after it where they follow in the same lines.
    #[inline(always)]
    fn prefetch_next(&self, i: usize) {
        if self.by_lines {
            let from = self.from.as_ptr().wrapping_add(i * self.stride + 2 * DEPTH);
            prefetch(from);
            prefetch(from.wrapping_add(SIDE));
        } else {
            let from = self.from.as_ptr().wrapping_add((DEPTH + i) * self.stride);
            prefetch(from);
            prefetch(from.wrapping_add(SIDE * self.stride));
        }
    }
}

/// A square that is not whole, or whose terms and lines both lie apart: copied, with zeros around it.
fn copied<'a>(
    buffer: &'a mut [f32; SIDE * DEPTH],
    from: MatrixView<'_>,
    lines: Range<usize>,
    terms: Range<usize>,
) -> Square<'a> {
    let by_lines = from.col_stride == 1;
    buffer.fill(0.0);
    for (i, line) in lines.enumerate() {
        for (j, term) in terms.clone().enumerate() {
            let at = if by_lines { i * DEPTH + j } else { j * SIDE + i };
            buffer[at] = from.data[line * from.row_stride + term * from.col_stride];
        }
    }
    Square { from: buffer, by_lines, stride: if by_lines { DEPTH } else { SIDE } }
}

/// Zeroes a tile in each part.
fn clear(to: &mut [f32]) {
    for part in to.chunks_mut(2 * SIDE * SIDE).take(3) {
        part[..SIDE * SIDE].fill(0.0);
    }
}

/// A row for each vector.
///
/// # Safety
/// (1) The processor has AVX-512 with BF16. (2) `square` holds 16 lines of 32 terms.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn plain(to: &mut [f32], square: &Square<'_>) {
    assert!(to.len() >= REACH, "tiles of {} floats", to.len());
    for i in 0..SIDE {
        // The hardware prefetcher follows lines that are read in order.
        if !square.by_lines {
            square.prefetch_next(i);
        }
        // SAFETY: the caller's obligations.
        unsafe {
            let (low, high) = square.load(i);
            split(to, i, low, high);
        }
    }
}

/// A row for each lane of the vectors.
///
/// # Safety
/// Those of [`plain`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn transposed(to: &mut [f32], square: &Square<'_>) {
    assert!(to.len() >= REACH, "tiles of {} floats", to.len());
    let mut low = [_mm512_setzero_ps(); SIDE];
    let mut high = [_mm512_setzero_ps(); SIDE];
    for i in 0..SIDE {
        square.prefetch_next(i);
        // SAFETY: the caller's obligations.
        unsafe { (low[i], high[i]) = square.load(i) };
    }
    let (low, high) = (transpose(low), transpose(high));
    for i in 0..SIDE {
        // SAFETY: the caller's obligations.
        unsafe { split(to, i, low[i], high[i]) };
    }
}

/// Writes the parts of two vectors to row `row` of a tile of each part, a term of the first beside that of the second.
///
/// # Safety
/// (1) The processor has AVX-512 with BF16. (2) `to` holds [`REACH`] floats, and `row` is below 16.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn split(to: &mut [f32], row: usize, mut low: __m512, mut high: __m512) {
    debug_assert!(to.len() >= REACH && row < SIDE);
    let beside = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for part in 0..3 {
        // SAFETY: both are 64 bytes of any bits.
        let rounded: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
        let pairs = _mm512_permutexvar_epi16(beside, rounded);
        // SAFETY: obligation 2.
        unsafe {
            _mm512_storeu_ps(to.as_mut_ptr().add(part * 2 * SIDE * SIDE + row * SIDE), _mm512_castsi512_ps(pairs))
        };
        // Exact: what is left of a float when its first bits are taken is a float.
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)));
    }
}

/// `result[i][j] = rows[j][i]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; SIDE]) -> [__m512; SIDE] {
    let mut pairs = rows;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Fours of lanes: quad[4 g + c] holds column 4 l + c of rows 4 g .. 4 g + 4 in its l-th four.
    let mut quads = pairs;
    for g in (0..SIDE).step_by(4) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| _mm512_castps_pd(pairs[g + i]));
        quads[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        quads[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        quads[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        quads[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    let mut columns = quads;
    for c in 0..4 {
        let (a, b) = (quads[c], quads[4 + c]);
        let (p, q) = (quads[8 + c], quads[12 + c]);
        let (ab02, ab13) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (pq02, pq13) = (_mm512_shuffle_f32x4::<0x88>(p, q), _mm512_shuffle_f32x4::<0xdd>(p, q));
        columns[c] = _mm512_shuffle_f32x4::<0x88>(ab02, pq02);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab13, pq13);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab02, pq02);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab13, pq13);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::{Purpose, Stream};

    /// The parts of a line's term, as [`pack`] has written them.
    fn parts(packed: &[f32], layout: Layout, line: usize, term: usize) -> [f32; 3] {
        let (p, upper) = (term % SIDE, term % DEPTH >= SIDE);
        let (row, lane) = if layout == Layout::Lines { (line % SIDE, p) } else { (p, line % SIDE) };
        [0, 1, 2].map(|part| {
            let at = term / DEPTH * PACKED + part * 512 + line / SIDE * 256 + row * SIDE + lane;
            let bits = packed[at].to_bits();
            f32::from_bits(if upper { bits & 0xffff_0000 } else { bits << 16 })
        })
    }

    #[test]
    fn every_layout_holds_all_bits_of_a_float() {
        let Some(proof) = TileRegisters::ask() else { return };
        let mut stream = Stream::new(7, Purpose::Test, 0, 0);
        let (rows, cols) = (40, 75);
        let floats: Vec<f32> =
            (0..2 * rows * cols).map(|i| stream.normal() as f32 * 2f32.powi(i as i32 % 60 - 30)).collect();
        let views = [
            MatrixView::rows(&floats, cols),
            MatrixView::rows(&floats, rows).transposed(),
            MatrixView { data: &floats, row_stride: 2 * cols, col_stride: 2 },
        ];
        for (view, layout) in views.iter().flat_map(|v| [(*v, Layout::Lines), (*v, Layout::Terms)]) {
            for (lines, terms) in [(0..32, 0..64), (3..35, 5..37), (1..2, 2..3), (4..21, 1..71), (39..40, 0..75)] {
                let mut packed = vec![f32::NAN; terms.len().div_ceil(DEPTH) * PACKED];
                pack(proof, &mut packed, layout, view, lines.clone(), terms.clone());
                for line in 0..BLOCK {
                    for term in 0..terms.len().next_multiple_of(DEPTH) {
                        let found = parts(&packed, layout, line, term);
                        let inside = line < lines.len() && term < terms.len();
                        let x = if inside {
                            view.data[(lines.start + line) * view.row_stride + (terms.start + term) * view.col_stride]
                        } else {
                            0.0
                        };
                        assert_eq!(
                            found.map(f64::from).iter().sum::<f64>(),
                            f64::from(x),
                            "{layout:?} line {line} term {term}"
                        );
                        assert!(found[1].abs() <= found[0].abs() / 256.0 && found[2].abs() <= found[0].abs() / 65536.0);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let Some(proof) = TileRegisters::ask() else { return };
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)] {
            let mut packed = vec![0.0; PACKED];
            pack(proof, &mut packed, Layout::Lines, MatrixView::rows(&[bad; 32], 32), 0..1, 0..32);
            assert!(parts(&packed, Layout::Lines, 0, 3).iter().any(|x| !x.is_finite()));
        }
    }
}
