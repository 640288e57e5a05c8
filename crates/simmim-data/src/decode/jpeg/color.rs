//! From planes of luma and chroma to interleaved RGB, as libjpeg does it: chroma is upsampled with a triangle filter
//! (`fancy_upsampling`), colours are converted with 16-bit constants (ITU-R BT.601, full range).

use crate::simd::vectorised;

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

vectorised! {
    /// Converts a row; `out` holds three bytes for each pixel.
    pub(super) fn convert<AVX2>(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
            pixel.copy_from_slice(&rgb(y, cb, cr));
        }
    }
}
