//! Operands as the parts of eight bits that tiles multiply.
//!
//! A float is three of them: `x = x0 + x1 + x2`, where `x0` is `x` rounded to bfloat16, `x1` what is left of it, rounded, and `x2` what is left
//! then: 24 bits and their signs, so that nothing of a float is lost but what lies below the smallest normal number, 2^-126. A number in
//! bfloat16 is its only part.

#![allow(unsafe_code, reason = "vector instructions, which the caller knows to be there")]

use super::pack::{SIDE, Square};
use crate::graph::Bf16;
use crate::host::gemm::kernel::prefetch;
use std::arch::x86_64::*;

/// How elements of a type become tiles. A square is 16 lines of 32 terms, and so one tile for each part; rows of a tile are read from the
/// square, or from its transpose.
pub(in crate::host::gemm) trait Parts: Copy + Default {
    /// Parts of an element.
    const COUNT: usize;

    /// What becomes a row of a tile of each part: pairs of terms, 16 of one line or one of 16 lines.
    type Row: Copy;

    /// Row `i` of a square: of a line where it lies by lines, else of a pair of terms.
    ///
    /// # Safety
    /// (1) The processor has AVX-512 with BF16. (2) The square's slice holds 16 lines of 32 terms. (3) `i` is below 16.
    unsafe fn load(square: &Square<'_, Self>, i: usize) -> Self::Row;

    /// The rows of the transpose.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16.
    unsafe fn transpose(rows: [Self::Row; SIDE]) -> [Self::Row; SIDE];

    /// Writes a row of a tile of each part, `distance` floats from one part to the next.
    ///
    /// # Safety
    /// (1) The processor has AVX-512 with BF16. (2) From `to` on, 16 floats of each part may be written.
    unsafe fn store(to: *mut f32, distance: usize, row: Self::Row);

    /// Prefetches what row `i` of the square of the next terms reads, or of the one after it where they follow in the same lines.
    fn prefetch_next(square: &Square<'_, Self>, i: usize);
}

impl Parts for f32 {
    const COUNT: usize = 3;

    /// Terms 0 to 15 and 16 to 31 of a line, or a term and the one 16 further of all lines.
    type Row = (__m512, __m512);

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn load(square: &Square<'_, f32>, i: usize) -> (__m512, __m512) {
        let between = if square.by_lines { SIDE } else { SIDE * square.stride };
        // SAFETY: obligations 2 and 3.
        unsafe {
            let from = square.from.as_ptr().add(i * square.stride);
            (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(between)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn transpose(rows: [(__m512, __m512); SIDE]) -> [(__m512, __m512); SIDE] {
        let (low, high) = (transpose(rows.map(|row| row.0)), transpose(rows.map(|row| row.1)));
        std::array::from_fn(|i| (low[i], high[i]))
    }

    /// A term of the first vector beside that of the second.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn store(to: *mut f32, distance: usize, (mut low, mut high): (__m512, __m512)) {
        let beside = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
        for part in 0..Self::COUNT {
            // SAFETY: both are 64 bytes of any bits.
            let rounded: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
            let pairs = _mm512_permutexvar_epi16(beside, rounded);
            // SAFETY: obligation 2.
            unsafe { _mm512_storeu_ps(to.add(part * distance), _mm512_castsi512_ps(pairs)) };
            // Exact: what is left of a float when its first bits are taken is a float.
            low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
            high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)));
        }
    }

    #[inline(always)]
    fn prefetch_next(square: &Square<'_, f32>, i: usize) {
        if square.by_lines {
            let from = square.from.as_ptr().wrapping_add(i * square.stride + 4 * SIDE);
            prefetch(from);
            prefetch(from.wrapping_add(SIDE));
        } else {
            let from = square.from.as_ptr().wrapping_add((2 * SIDE + i) * square.stride);
            prefetch(from);
            prefetch(from.wrapping_add(SIDE * square.stride));
        }
    }
}

impl Parts for Bf16 {
    const COUNT: usize = 1;

    /// Pairs of adjacent terms: of a line, or one pair of all lines.
    type Row = __m512;

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn load(square: &Square<'_, Bf16>, i: usize) -> __m512 {
        let from = square.from.as_ptr();
        // SAFETY: obligations 2 and 3: a line is 64 bytes, and so are two terms of 16 lines.
        unsafe {
            if square.by_lines {
                return _mm512_loadu_ps(from.add(i * square.stride).cast());
            }
            let first = _mm256_loadu_si256(from.add(2 * i * square.stride).cast());
            let second = _mm256_loadu_si256(from.add((2 * i + 1) * square.stride).cast());
            let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(first), second))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn transpose(rows: [__m512; SIDE]) -> [__m512; SIDE] {
        transpose(rows)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    unsafe fn store(to: *mut f32, _: usize, row: __m512) {
        // SAFETY: obligation 2.
        unsafe { _mm512_storeu_ps(to, row) };
    }

    #[inline(always)]
    fn prefetch_next(square: &Square<'_, Bf16>, i: usize) {
        let (from, stride) = (square.from.as_ptr(), square.stride);
        if square.by_lines {
            prefetch(from.wrapping_add(i * stride + 4 * SIDE).cast());
        } else {
            for term in [2 * i, 2 * i + 1] {
                prefetch(from.wrapping_add((2 * SIDE + term) * stride).cast());
            }
        }
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
