//! Inverse DCT of a block to 8 x 8, 4 x 4, 2 x 2 or 1 pixels.
//!
//! The full size is the accurate integer method of libjpeg (`jidctint`: Loeffler, Ligtenberg, Moschytz, "Practical Fast 1-D
//! DCT Algorithms with 11 Multiplications", 1989; 13 bits of precision, two more between the passes), so that pixels equal
//! PIL's. The smaller sizes give the average of each 2 x 2, 4 x 4 or 8 x 8 pixels, from the coefficients below 4, 2 or 1 in
//! each direction: the average of the k-th basis function over n of 8 samples is the basis function of the smaller
//! transform times a product of cosines. They are integer too: results do not depend on the processor.

#![allow(unsafe_code, reason = "intrinsics between arrays and vectors")]
#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays and their columns")]

/// Bits of the constants.
const BITS: u32 = 13;
/// Additional bits between the passes.
const PASS: u32 = 2;

/// A constant in units of 2^-13.
const fn fix(value: f64) -> i32 {
    (value * (1 << BITS) as f64 + 0.5) as i32
}

const F_0_298: i32 = fix(0.298_631_336);
const F_0_390: i32 = fix(0.390_180_644);
const F_0_541: i32 = fix(0.541_196_1);
const F_0_765: i32 = fix(0.765_366_865);
const F_0_899: i32 = fix(0.899_976_223);
const F_1_175: i32 = fix(1.175_875_602);
const F_1_501: i32 = fix(1.501_321_11);
const F_1_847: i32 = fix(1.847_759_065);
const F_1_961: i32 = fix(1.961_570_56);
const F_2_053: i32 = fix(2.053_119_869);
const F_2_562: i32 = fix(2.562_915_447);
const F_3_072: i32 = fix(3.072_711_026);

/// Indices of the largest coefficients that the sizes 1, 2, 4 and 8 need, in the order of the file.
pub(super) const LAST: [usize; 4] = [0, 4, 24, 63];

/// Writes the pixels of a block of dequantised coefficients (row by row) to `out`, whose rows are `stride` apart. The block
/// becomes `1 << size` pixels wide and high; `largest` is the index of the largest coefficient that may not be zero, in the
/// order of the file.
#[inline(always)]
pub(super) fn inverse<const AVX2: bool>(block: &[i16; 64], largest: usize, size: u32, out: &mut [u8], stride: usize) {
    match size {
        3 if largest == 0 => fill::<8>(average(block[0]), out, stride),
        #[cfg(target_arch = "x86_64")]
        3 if AVX2 => {
            // SAFETY: the constant is true only in code compiled and chosen for AVX2.
            let pixels = unsafe { full_avx2(block) };
            write(&pixels, out, stride);
        }
        3 => write(&full(block), out, stride),
        2 if largest == 0 => fill::<4>(average(block[0]), out, stride),
        2 => write(&quarter(block), out, stride),
        1 => write(&half(block), out, stride),
        _ => out[0] = average(block[0]),
    }
}

#[inline(always)]
fn write<const N: usize>(pixels: &[[u8; N]; N], out: &mut [u8], stride: usize) {
    for (row, line) in pixels.iter().zip(out.chunks_mut(stride)) {
        line[..N].copy_from_slice(row);
    }
}

#[inline(always)]
fn fill<const N: usize>(value: u8, out: &mut [u8], stride: usize) {
    write(&[[value; N]; N], out, stride);
}

fn clamp(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

/// The pixel of a block whose other coefficients are zero.
fn average(dc: i16) -> u8 {
    clamp((i32::from(dc) + 4) >> 3)
}

/// One pass over columns in lanes, with the intermediate sums that the AVX2 version forms: 16 bits in, saturated
/// 16 bits out, 32 bits between with wrapping (damaged files only), so that both agree on every input.
fn pass(input: &[[i16; 8]; 8], shift: u32) -> [[i16; 8]; 8] {
    let mut out = [[0i16; 8]; 8];
    for lane in 0..8 {
        let x = |row: usize| input[row][lane];
        // Products of two pairs and their sum, as one instruction does it.
        let pair = |a: i16, p: i32, b: i16, q: i32| (i32::from(a) * p).wrapping_add(i32::from(b) * q);
        let tmp2 = pair(x(2), F_0_541, x(6), F_0_541 - F_1_847);
        let tmp3 = pair(x(2), F_0_541 + F_0_765, x(6), F_0_541);
        let tmp0 = pair(x(0), 1 << BITS, x(4), 1 << BITS);
        let tmp1 = pair(x(0), 1 << BITS, x(4), -(1 << BITS));
        let even = [tmp0.wrapping_add(tmp3), tmp1.wrapping_add(tmp2), tmp1.wrapping_sub(tmp2), tmp0.wrapping_sub(tmp3)];
        let (z3, z4) = (x(7).wrapping_add(x(3)), x(5).wrapping_add(x(1)));
        let a = pair(z3, F_1_175 - F_1_961, z4, F_1_175);
        let b = pair(z3, F_1_175, z4, F_1_175 - F_0_390);
        let odd = [
            pair(x(7), -F_0_899, x(1), F_1_501 - F_0_899).wrapping_add(b),
            pair(x(5), -F_2_562, x(3), F_3_072 - F_2_562).wrapping_add(a),
            pair(x(5), F_2_053 - F_2_562, x(3), -F_2_562).wrapping_add(b),
            pair(x(7), F_0_298 - F_0_899, x(1), -F_0_899).wrapping_add(a),
        ];
        for i in 0..4 {
            let even = even[i].wrapping_add(1 << (shift - 1));
            let narrow = |v: i32| (v >> shift).clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16;
            out[i][lane] = narrow(even.wrapping_add(odd[i]));
            out[7 - i][lane] = narrow(even.wrapping_sub(odd[i]));
        }
    }
    out
}

fn transpose(x: &[[i16; 8]; 8]) -> [[i16; 8]; 8] {
    std::array::from_fn(|i| std::array::from_fn(|j| x[j][i]))
}

/// All 8 x 8 pixels.
fn full(block: &[i16; 64]) -> [[u8; 8]; 8] {
    let rows: [[i16; 8]; 8] = std::array::from_fn(|r| std::array::from_fn(|c| block[r * 8 + c]));
    let columns = transpose(&pass(&rows, BITS - PASS));
    let pixels = transpose(&pass(&columns, BITS + PASS + 3));
    pixels.map(|row| row.map(|v| clamp(i32::from(v))))
}

/// 4 x 4 averages of 2 x 2 pixels.
#[inline(always)]
fn quarter(block: &[i16; 64]) -> [[u8; 4]; 4] {
    use std::f64::consts::FRAC_1_SQRT_2;
    // cos(k pi / 16) / 2 times the basis of the transform of 4 samples.
    const C0: i32 = fix(FRAC_1_SQRT_2 / 2.0);
    const C2: i32 = fix(0.923_879_533 / 2.0 * FRAC_1_SQRT_2);
    const A1: i32 = fix(0.980_785_280 / 2.0 * 0.923_879_533);
    const B1: i32 = fix(0.980_785_280 / 2.0 * 0.382_683_432);
    const A3: i32 = fix(0.831_469_612 / 2.0 * 0.382_683_432);
    const B3: i32 = fix(0.831_469_612 / 2.0 * 0.923_879_533);
    #[inline(always)]
    fn pass(x: [i32; 4], shift: u32) -> [i32; 4] {
        let round = 1 << (shift - 1);
        let (sum, difference) = (C0 * x[0] + C2 * x[2] + round, C0 * x[0] - C2 * x[2] + round);
        let (outer, inner) = (A1 * x[1] + A3 * x[3], B1 * x[1] - B3 * x[3]);
        [sum + outer, difference + inner, difference - inner, sum - outer].map(|v| v >> shift)
    }
    let mut columns = [[0; 4]; 4];
    for c in 0..4 {
        let column = pass([0, 1, 2, 3].map(|r| i32::from(block[r * 8 + c])), BITS - PASS);
        for r in 0..4 {
            columns[r][c] = column[r];
        }
    }
    columns.map(|row| pass(row, BITS + PASS).map(clamp))
}

/// 2 x 2 averages of 4 x 4 pixels.
#[inline(always)]
fn half(block: &[i16; 64]) -> [[u8; 2]; 2] {
    // (1/2) cos(pi/16) cos(pi/8) cos(pi/4), the average of the first basis function over four samples, times the constant one
    // (1 / sqrt(8)) and times itself; the product of two constants is 1/8.
    const SIDE: i32 = fix(0.113_265_918);
    const CORNER: i32 = fix(0.102_633_221);
    let at = |i: usize| i32::from(block[i]);
    let (dc, x, y, xy) = ((at(0) << (BITS - 3)) + (1 << (BITS - 1)), at(1) * SIDE, at(8) * SIDE, at(9) * CORNER);
    [[dc + x + y + xy, dc - x + y - xy], [dc + x - y - xy, dc - x - y + xy]].map(|row| row.map(|v| clamp(v >> BITS)))
}

/// [`full`] with AVX2: the same sums, eight columns at a time.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn full_avx2(block: &[i16; 64]) -> [[u8; 8]; 8] {
    use std::arch::x86_64::*;

    type Rows = [__m128i; 8];

    #[inline]
    #[target_feature(enable = "avx2")]
    fn interleave(a: __m128i, b: __m128i) -> __m256i {
        _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
    }

    /// The sum of `a * p + b * q` in each column.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pair(ab: __m256i, p: i32, q: i32) -> __m256i {
        _mm256_madd_epi16(ab, _mm256_set1_epi32((q << 16) | (p & 0xffff)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn pass<const SHIFT: i32>(x: Rows) -> Rows {
        let x26 = interleave(x[2], x[6]);
        let x04 = interleave(x[0], x[4]);
        let tmp2 = pair(x26, F_0_541, F_0_541 - F_1_847);
        let tmp3 = pair(x26, F_0_541 + F_0_765, F_0_541);
        let round = _mm256_set1_epi32(1 << (SHIFT - 1));
        let tmp0 = _mm256_add_epi32(pair(x04, 1 << BITS, 1 << BITS), round);
        let tmp1 = _mm256_add_epi32(pair(x04, 1 << BITS, -(1 << BITS)), round);
        let even = [
            _mm256_add_epi32(tmp0, tmp3),
            _mm256_add_epi32(tmp1, tmp2),
            _mm256_sub_epi32(tmp1, tmp2),
            _mm256_sub_epi32(tmp0, tmp3),
        ];
        let z34 = interleave(_mm_add_epi16(x[7], x[3]), _mm_add_epi16(x[5], x[1]));
        let a = pair(z34, F_1_175 - F_1_961, F_1_175);
        let b = pair(z34, F_1_175, F_1_175 - F_0_390);
        let (x71, x53) = (interleave(x[7], x[1]), interleave(x[5], x[3]));
        let odd = [
            _mm256_add_epi32(pair(x71, -F_0_899, F_1_501 - F_0_899), b),
            _mm256_add_epi32(pair(x53, -F_2_562, F_3_072 - F_2_562), a),
            _mm256_add_epi32(pair(x53, F_2_053 - F_2_562, -F_2_562), b),
            _mm256_add_epi32(pair(x71, F_0_298 - F_0_899, -F_0_899), a),
        ];
        let mut out = [_mm_setzero_si128(); 8];
        for i in 0..4 {
            let sum = _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(even[i], odd[i]));
            let difference = _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(even[i], odd[i]));
            // The halves of both: sum 0-3, difference 0-3, sum 4-7, difference 4-7.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(sum, difference));
            out[i] = _mm256_castsi256_si128(both);
            out[7 - i] = _mm256_extracti128_si256::<1>(both);
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(x: Rows) -> Rows {
        let low = |i: usize, j: usize| _mm_unpacklo_epi16(x[i], x[j]);
        let high = |i: usize, j: usize| _mm_unpackhi_epi16(x[i], x[j]);
        let (a0, a1, a2, a3) = (low(0, 1), low(2, 3), low(4, 5), low(6, 7));
        let (b0, b1, b2, b3) = (high(0, 1), high(2, 3), high(4, 5), high(6, 7));
        let (c0, c1) = (_mm_unpacklo_epi32(a0, a1), _mm_unpackhi_epi32(a0, a1));
        let (c2, c3) = (_mm_unpacklo_epi32(a2, a3), _mm_unpackhi_epi32(a2, a3));
        let (d0, d1) = (_mm_unpacklo_epi32(b0, b1), _mm_unpackhi_epi32(b0, b1));
        let (d2, d3) = (_mm_unpacklo_epi32(b2, b3), _mm_unpackhi_epi32(b2, b3));
        [
            _mm_unpacklo_epi64(c0, c2),
            _mm_unpackhi_epi64(c0, c2),
            _mm_unpacklo_epi64(c1, c3),
            _mm_unpackhi_epi64(c1, c3),
            _mm_unpacklo_epi64(d0, d2),
            _mm_unpackhi_epi64(d0, d2),
            _mm_unpacklo_epi64(d1, d3),
            _mm_unpackhi_epi64(d1, d3),
        ]
    }

    // SAFETY: both are 128 bytes of plain numbers.
    let rows: Rows = unsafe { std::mem::transmute_copy(block) };
    let columns = transpose(pass::<{ (BITS - PASS) as i32 }>(rows));
    let pixels = transpose(pass::<{ (BITS + PASS + 3) as i32 }>(columns));
    let half = _mm_set1_epi16(128);
    let bytes: [__m128i; 4] = std::array::from_fn(|i| {
        let shifted = |row: __m128i| _mm_adds_epi16(row, half);
        _mm_packus_epi16(shifted(pixels[2 * i]), shifted(pixels[2 * i + 1]))
    });
    // SAFETY: both are 64 bytes of plain numbers.
    unsafe { std::mem::transmute(bytes) }
}
