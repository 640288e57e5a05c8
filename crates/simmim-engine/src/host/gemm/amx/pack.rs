//! Operands in the order in which tiles are read.

#![allow(unsafe_code, reason = "vector instructions, which a proof of tile registers shows to be there")]

use super::super::MatrixView;
use super::kernel::{BLOCK, DEPTH, TILE, packed};
use super::parts::Parts;
use crate::host::dispatch::TileRegisters;
use std::ops::Range;

/// Lines of a tile, and pairs of terms.
pub(super) const SIDE: usize = 16;

/// What the rows of a tile are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Lines; their terms lie beside each other: `a`.
    Lines,
    /// Pairs of terms; lines lie beside each other: `b`.
    Terms,
}

/// Packs `lines` of `from [line, term]` for the sums over `chunk`: for each [`BLOCK`] lines and each [`DEPTH`] terms, two tiles of each part.
/// Four bytes hold two terms of a line, which [`Parts`] chooses; what lies beyond the lines and terms is zero.
///
/// # Panics
/// If `from` ends before the last of them, or `to` is shorter than [`packed`] floats for each: a fault of the caller.
pub(super) fn pack<O: Parts>(
    _proof: TileRegisters,
    to: &mut [f32],
    layout: Layout,
    from: MatrixView<'_, O>,
    lines: Range<usize>,
    chunk: Range<usize>,
) {
    let last = |r: &Range<usize>, stride: usize| r.end.saturating_sub(1) * stride;
    let reached = last(&lines, from.row_stride) + last(&chunk, from.col_stride);
    assert!(lines.is_empty() || chunk.is_empty() || reached < from.data.len(), "operand too short");
    let (blocks, depth) = (lines.len().div_ceil(BLOCK), chunk.len().div_ceil(DEPTH));
    let mut buffer = [O::default(); SIDE * DEPTH];
    let mut one = |block: usize, step: usize| {
        let (line, term) = (lines.start + block * BLOCK, chunk.start + step * DEPTH);
        let terms = term..chunk.end.min(term + DEPTH);
        let to = &mut to[(block * depth + step) * packed::<O>()..][..packed::<O>()];
        for half in 0..2 {
            let first = line + half * SIDE;
            let lines = first.min(lines.end)..lines.end.min(first + SIDE);
            // SAFETY: a `TileRegisters` exists only where the processor has AVX-512 with BF16.
            unsafe { pack_square(&mut to[half * TILE..], layout, from, lines, terms.clone(), &mut buffer) };
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
unsafe fn pack_square<O: Parts>(
    to: &mut [f32],
    layout: Layout,
    from: MatrixView<'_, O>,
    lines: Range<usize>,
    terms: Range<usize>,
    buffer: &mut [O; SIDE * DEPTH],
) {
    if lines.is_empty() {
        return to.chunks_mut(2 * TILE).take(O::COUNT).for_each(|part| part[..TILE].fill(0.0));
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

/// Sixteen lines of 32 terms.
pub(in crate::host::gemm) struct Square<'a, O> {
    pub(super) from: &'a [O],
    /// Whether the terms of a line are contiguous, or the lines of a term.
    pub(super) by_lines: bool,
    /// From line to line, or from term to term.
    pub(super) stride: usize,
}

impl<'a, O> Square<'a, O> {
    fn new(from: MatrixView<'a, O>, line: usize, term: usize) -> Self {
        let by_lines = from.col_stride == 1;
        Self { from: from.from(line, term), by_lines, stride: if by_lines { from.row_stride } else { from.col_stride } }
    }

    fn is_whole(&self) -> bool {
        let (long, short) = if self.by_lines { (SIDE, DEPTH) } else { (DEPTH, SIDE) };
        (long - 1) * self.stride + short <= self.from.len()
    }
}

/// A square that is not whole, or whose terms and lines both lie apart: copied, with zeros around it.
fn copied<'a, O: Parts>(
    buffer: &'a mut [O; SIDE * DEPTH],
    from: MatrixView<'_, O>,
    lines: Range<usize>,
    terms: Range<usize>,
) -> Square<'a, O> {
    let by_lines = from.col_stride == 1;
    buffer.fill(O::default());
    for (i, line) in lines.enumerate() {
        for (j, term) in terms.clone().enumerate() {
            let at = if by_lines { i * DEPTH + j } else { j * SIDE + i };
            buffer[at] = from.data[line * from.row_stride + term * from.col_stride];
        }
    }
    Square { from: buffer, by_lines, stride: if by_lines { DEPTH } else { SIDE } }
}

/// Whether a tile of each part can be written, and the square read.
fn fits<O: Parts>(to: &[f32], square: &Square<'_, O>) -> bool {
    to.len() >= packed::<O>() - TILE && square.is_whole()
}

/// Tiles whose rows are the square's.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn plain<O: Parts>(to: &mut [f32], square: &Square<'_, O>) {
    assert!(fits(to, square), "tiles of {} floats", to.len());
    for i in 0..SIDE {
        // The hardware prefetcher follows lines that are read in order.
        if !square.by_lines {
            O::prefetch_next(square, i);
        }
        // SAFETY: the caller's obligation; the lengths are asserted.
        unsafe { O::store(to.as_mut_ptr().add(i * SIDE), 2 * TILE, O::load(square, i)) };
    }
}

/// Tiles whose rows are those of the square's transpose.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
unsafe fn transposed<O: Parts>(to: &mut [f32], square: &Square<'_, O>) {
    assert!(fits(to, square), "tiles of {} floats", to.len());
    // SAFETY: the caller's obligation; the lengths are asserted.
    unsafe {
        let mut rows = [O::load(square, 0); SIDE];
        for (i, row) in rows.iter_mut().enumerate() {
            O::prefetch_next(square, i);
            *row = O::load(square, i);
        }
        for (i, row) in O::transpose(rows).into_iter().enumerate() {
            O::store(to.as_mut_ptr().add(i * SIDE), 2 * TILE, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Bf16;
    use simmim_random::{Purpose, Stream};

    /// Where the parts of a line's term are, of the step of [`DEPTH`] terms: the word, and whether its upper half. `pairs` gives the pair of
    /// a term and its place in it.
    fn place<O: Parts>(layout: Layout, line: usize, term: usize, pairs: fn(usize) -> (usize, bool)) -> (usize, bool) {
        let (p, upper) = pairs(term % DEPTH);
        let (row, lane) = if layout == Layout::Lines { (line % SIDE, p) } else { (p, line % SIDE) };
        (term / DEPTH * packed::<O>() + line / SIDE * TILE + row * SIDE + lane, upper)
    }

    fn half(word: f32, upper: bool) -> f32 {
        let bits = word.to_bits();
        f32::from_bits(if upper { bits & 0xffff_0000 } else { bits << 16 })
    }

    /// The parts of a float.
    fn parts(packed: &[f32], layout: Layout, line: usize, term: usize) -> [f32; 3] {
        let (at, upper) = place::<f32>(layout, line, term, |t| (t % SIDE, t >= SIDE));
        [0, 1, 2].map(|part| half(packed[at + part * 2 * TILE], upper))
    }

    /// Packs parts of a matrix in every layout and looks at each element.
    fn every_layout<O: Parts>(
        elements: &[O],
        (rows, cols): (usize, usize),
        check: impl Fn(&[f32], Layout, [usize; 2], O),
    ) {
        let Some(proof) = TileRegisters::ask() else { return };
        let views = [
            MatrixView::rows(elements, cols),
            MatrixView::rows(elements, rows).transposed(),
            MatrixView { data: elements, row_stride: 2 * cols, col_stride: 2 },
        ];
        for (view, layout) in views.iter().flat_map(|v| [(*v, Layout::Lines), (*v, Layout::Terms)]) {
            for (lines, terms) in [(0..32, 0..64), (3..35, 5..37), (1..2, 2..3), (4..21, 1..71), (39..40, 0..75)] {
                let mut to = vec![f32::NAN; terms.len().div_ceil(DEPTH) * packed::<O>()];
                pack(proof, &mut to, layout, view, lines.clone(), terms.clone());
                for line in 0..BLOCK {
                    for term in 0..terms.len().next_multiple_of(DEPTH) {
                        let inside = line < lines.len() && term < terms.len();
                        let at = (lines.start + line) * view.row_stride + (terms.start + term) * view.col_stride;
                        check(&to, layout, [line, term], if inside { view.data[at] } else { O::default() });
                    }
                }
            }
        }
    }

    #[test]
    fn every_layout_holds_all_bits_of_a_float() {
        let mut stream = Stream::new(7, Purpose::Test, 0, 0);
        let (rows, cols) = (40, 75);
        let floats: Vec<f32> =
            (0..2 * rows * cols).map(|i| stream.normal() as f32 * 2f32.powi(i as i32 % 60 - 30)).collect();
        every_layout(&floats, (rows, cols), |packed, layout, [line, term], x| {
            let found = parts(packed, layout, line, term);
            assert_eq!(found.map(f64::from).iter().sum::<f64>(), f64::from(x), "{layout:?} line {line} term {term}");
            assert!(found[1].abs() <= found[0].abs() / 256.0 && found[2].abs() <= found[0].abs() / 65536.0);
        });
    }

    #[test]
    fn every_layout_holds_bfloat16_as_it_is() {
        let numbers: Vec<Bf16> = (0..2 * 40 * 75u16).map(|i| Bf16::from_bits(i.wrapping_mul(11))).collect();
        every_layout(&numbers, (40, 75), |packed, layout, [line, term], x| {
            let (at, upper) = place::<Bf16>(layout, line, term, |t| (t / 2, t % 2 == 1));
            let found = half(packed[at], upper).to_bits() >> 16;
            assert_eq!(found, u32::from(x.to_bits()), "{layout:?} line {line} term {term}");
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let Some(proof) = TileRegisters::ask() else { return };
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_ffff)] {
            let mut to = vec![0.0; packed::<f32>()];
            pack(proof, &mut to, Layout::Lines, MatrixView::rows(&[bad; 32], 32), 0..1, 0..32);
            assert!(parts(&to, Layout::Lines, 0, 3).iter().any(|x| !x.is_finite()));
        }
    }
}
