//! From planes of luma and chroma to interleaved RGB, as libjpeg does it: chroma is upsampled with a triangle filter
//! (`fancy_upsampling`), colours are converted with 16-bit constants (ITU-R BT.601, full range).

#![allow(unsafe_code, reason = "intrinsics between arrays and vectors")]

use crate::simd::{Isa, vectorised};

vectorised! {
    /// Doubles the width of a row of chroma: each pixel is three parts its own sample and one part the next one's.
    pub(super) fn upsample_width<AVX2>(row: &[u8], sums: &mut [u16], out: &mut [u8]) {
        padded(sums, row.iter().map(|&v| u16::from(v)));
        double(sums, (1, 2), 2, out);
    }
}

vectorised! {
    /// Doubles width and height of chroma, for one row of the result: `near` is the row that it lies in, `far` the one that
    /// it borders on.
    pub(super) fn upsample_both<AVX2>(near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
        padded(sums, near.iter().zip(far).map(|(&a, &b)| 3 * u16::from(a) + u16::from(b)));
        double(sums, (8, 7), 4, out);
    }
}

/// Writes samples between copies of the first and the last one.
#[inline(always)]
fn padded(sums: &mut [u16], samples: impl ExactSizeIterator<Item = u16>) {
    let n = samples.len();
    sums[1..=n].iter_mut().zip(samples).for_each(|(sum, v)| *sum = v);
    (sums[0], sums[n + 1]) = (sums[1], sums[n]);
}

#[inline(always)]
fn double(sums: &[u16], round: (u16, u16), shift: u32, out: &mut [u8]) {
    let n = out.len() / 2;
    let (before, here, after) = (&sums[..n], &sums[1..=n], &sums[2..n + 2]);
    for (((pair, &a), &b), &c) in out.chunks_exact_mut(2).zip(before).zip(here).zip(after) {
        pair[0] = ((3 * b + a + round.0) >> shift) as u8;
        pair[1] = ((3 * b + c + round.1) >> shift) as u8;
    }
}

/// One pixel. The products equal `(c * x + 2^15) >> 16` with c = 1.402, 1.772 and so on in units of 2^-16, written so that
/// they fit 16 bits times 16 bits.
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i16::from(y), i16::from(cb) - 128, i16::from(cr) - 128);
    let high = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    // 1.402 = 1 + 26345 / 65536, 1.772 = 2 - 14942 / 65536.
    let red = y + cr + ((high(2 * cr, 26345) + 1) >> 1);
    let blue = y + 2 * cb + ((high(2 * cb, -14942) + 1) >> 1);
    // -0.34414 = -22554 / 65536, -0.71414 = 18734 / 65536 - 1.
    let green = y - cr + ((i32::from(cb) * -22554 + i32::from(cr) * 18734 + (1 << 15)) >> 16) as i16;
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// Converts a row; `out` holds three bytes for each pixel.
pub(super) fn convert(isa: Isa, luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let done = if isa.has_avx2() {
        // SAFETY: the processor has AVX2.
        unsafe { convert_avx2(luma, cb, cr, out) }
    } else {
        0
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    convert_plain(isa, &luma[done..], &cb[done..], &cr[done..], &mut out[3 * done..]);
}

/// Converts as many whole groups of 16 pixels as there are, and returns how many pixels these are. The same sums as
/// [`rgb`], 16 at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn convert_avx2(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
    use std::arch::x86_64::*;
    let groups = luma.as_chunks::<16>().0.iter().zip(cb.as_chunks::<16>().0).zip(cr.as_chunks::<16>().0);
    let mut done = 0;
    for (((y, cb), cr), out) in groups.zip(out.as_chunks_mut::<48>().0) {
        let load = |bytes: &[u8; 16]| {
            // SAFETY: both are 16 bytes of plain numbers.
            _mm256_cvtepu8_epi16(unsafe { std::mem::transmute::<[u8; 16], __m128i>(*bytes) })
        };
        let middle = _mm256_set1_epi16(128);
        let (y, cb, cr) = (load(y), _mm256_sub_epi16(load(cb), middle), _mm256_sub_epi16(load(cr), middle));
        let one = _mm256_set1_epi16(1);
        let rounded = |twice: __m256i, factor: i16| {
            _mm256_srai_epi16::<1>(_mm256_add_epi16(_mm256_mulhi_epi16(twice, _mm256_set1_epi16(factor)), one))
        };
        let (cb2, cr2) = (_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr));
        let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), rounded(cr2, 26345));
        let blue = _mm256_add_epi16(_mm256_add_epi16(y, cb2), rounded(cb2, -14942));
        let factors = _mm256_set1_epi32((18734 << 16) | (-22554 & 0xffff));
        let half = _mm256_set1_epi32(1 << 15);
        let sum = |pairs| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pairs, factors), half));
        let sums = _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr)));
        let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), sums);
        let narrow =
            |words: __m256i| _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let (red, green, blue) = (narrow(red), narrow(green), narrow(blue));
        for (part, (r, g, b)) in out.as_chunks_mut::<16>().0.iter_mut().zip(PLACES) {
            let place = |mask: [i8; 16], bytes: __m128i| {
                // SAFETY: both are 16 bytes of plain numbers.
                _mm_shuffle_epi8(bytes, unsafe { std::mem::transmute::<[i8; 16], __m128i>(mask) })
            };
            let mixed = _mm_or_si128(_mm_or_si128(place(r, red), place(g, green)), place(b, blue));
            // SAFETY: both are 16 bytes of plain numbers.
            *part = unsafe { std::mem::transmute::<__m128i, [u8; 16]>(mixed) };
        }
        done += 16;
    }
    done
}

/// For each 16 bytes of 16 interleaved pixels, which red, green and blue bytes they take; -1 for none.
#[cfg(target_arch = "x86_64")]
const PLACES: [([i8; 16], [i8; 16], [i8; 16]); 3] = {
    let mut places = [([-1; 16], [-1; 16], [-1; 16]); 3];
    let mut byte = 0;
    while byte < 48 {
        let place = &mut places[byte / 16];
        let of_channel = match byte % 3 {
            0 => &mut place.0,
            1 => &mut place.1,
            _ => &mut place.2,
        };
        of_channel[byte % 16] = (byte / 3) as i8;
        byte += 1;
    }
    places
};

vectorised! {
    fn convert_plain<AVX2>(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
            pixel.copy_from_slice(&rgb(y, cb, cr));
        }
    }
}
