//! Resizing of a part of an image with PIL's antialiased filters, optionally mirrored.
//!
//! Weights are those of PIL's `precompute_coeffs`, sums are integers with 14 bits (8-bit samples) or floats (others).
//! Unlike PIL, columns are summed before rows: that pass is the cheaper one, and leaves fewer rows to the other.
//!
//! The image may be at a half, a quarter or an eighth of its size already (each pixel the average of a square): the weights
//! of the whole image are then added up over each square, which is closer to filtering the whole image than filtering the
//! small one would be.

#![allow(unsafe_code, reason = "loads, stores and intrinsics of AVX2 that an Isa proves to be there")]

use crate::Interpolation;
use crate::region::Region;
use crate::simd::Isa;

/// Bits of the integer weights.
const BITS: u32 = 14;
/// Weights of a row are summed in groups of this many pixels.
const GROUP: usize = 4;
/// Bytes that may be read behind the last pixel.
const PADDING: usize = 16;

/// The part of a decoded image that is there: `pixels` are those of `window`, in pixels of the image at `1 / 2^shift` of
/// its size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'a, T> {
    pub(crate) pixels: &'a [T],
    pub(crate) channels: usize,
    pub(crate) window: Region,
    pub(crate) shift: u32,
}

/// What to make of a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The part of the image, in pixels of its whole size; its reduction lies inside the window.
    pub(crate) part: Region,
    /// Height and width of the result.
    pub(crate) size: (usize, usize),
    pub(crate) flip: bool,
    pub(crate) interpolation: Interpolation,
}

/// Which pixels make up each pixel of the result along one axis.
#[derive(Default)]
struct Axis {
    /// First pixel and number of pixels.
    spans: Vec<(usize, usize)>,
    /// `taps` weights for each pixel of the result, zero behind its own.
    taps: usize,
    exact: Vec<f32>,
    rounded: Vec<i16>,
    line: Vec<f64>,
}

/// Scratch memory, reused from image to image.
#[derive(Default)]
pub(crate) struct Resizer {
    isa: Isa,
    rows: Axis,
    columns: Axis,
    lines: [Vec<u8>; 2],
    floats: Vec<f32>,
    /// A result that is still to be turned, see [`crate::orientation`].
    pub(crate) turned: Vec<u8>,
}

/// PIL's filters and how far they reach.
fn filter(interpolation: Interpolation) -> (fn(f64) -> f64, f64) {
    fn triangle(x: f64) -> f64 {
        (1.0 - x.abs()).max(0.0)
    }
    fn cubic(x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        if x < 1.0 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * A
        } else {
            0.0
        }
    }
    match interpolation {
        Interpolation::Bilinear => (triangle, 1.0),
        Interpolation::Bicubic => (cubic, 2.0),
    }
}

impl Axis {
    /// Weights for `length` pixels from `start` on, of which `out` are to be made; the pixels at hand begin with
    /// `first` and have `1 / 2^shift` of the size.
    fn prepare(&mut self, (start, length): (usize, usize), out: usize, first: usize, shift: u32, target: &Target) {
        let (filter, reach) = filter(target.interpolation);
        let scale = length as f64 / out as f64;
        let stretch = scale.max(1.0);
        let support = reach * stretch;
        let most = ((support.ceil() as usize * 2 + 1) >> shift) + 2;
        self.taps = most.next_multiple_of(GROUP);
        self.spans.clear();
        self.exact.clear();
        self.exact.resize(out * self.taps, 0.0);
        for i in 0..out {
            let center = (i as f64 + 0.5) * scale;
            let low = (center - support + 0.5).max(0.0) as usize;
            let high = ((center + support + 0.5) as usize).min(length);
            self.line.clear();
            self.line.extend((low..high).map(|x| filter((x as f64 - center + 0.5) / stretch)));
            let sum: f64 = self.line.iter().sum();
            let begin = (start + low) >> shift;
            let weights = &mut self.exact[i * self.taps..(i + 1) * self.taps];
            let mut used = 0;
            for (x, weight) in (start + low..).zip(&self.line) {
                used = (x >> shift) - begin;
                weights[used] += (weight / sum) as f32;
            }
            self.spans.push((begin - first, used + 1));
        }
    }

    /// Turns the results around, so that the last is made first.
    fn mirror(&mut self) {
        self.spans.reverse();
        let (taps, count) = (self.taps, self.spans.len());
        for i in 0..count / 2 {
            let (front, back) = self.exact.split_at_mut((count - 1 - i) * taps);
            front[i * taps..(i + 1) * taps].swap_with_slice(&mut back[..taps]);
        }
    }

    /// Integer weights, whose sum is exactly one: a plain surface stays what it is.
    fn round(&mut self) {
        self.rounded.clear();
        self.rounded.extend(self.exact.iter().map(|w| ((w * (1 << BITS) as f32 + 32768.5) as i32 - 32768) as i16));
        for weights in self.rounded.chunks_exact_mut(self.taps) {
            let missing = (1 << BITS) - weights.iter().map(|&w| i32::from(w)).sum::<i32>();
            if let Some(largest) = weights.iter_mut().max() {
                *largest += missing as i16;
            }
        }
    }
}

impl Resizer {
    fn prepare<T>(&mut self, source: &Window<'_, T>, target: &Target) {
        let Target { part, size: (height, width), .. } = *target;
        let Region { left, top, .. } = source.window;
        self.rows.prepare((part.top, part.height), height, top, source.shift, target);
        self.columns.prepare((part.left, part.width), width, left, source.shift, target);
        if target.flip {
            self.columns.mirror();
        }
    }

    /// Resizes 8-bit samples into `out`, interleaved, of shape `[height, width, channels]`.
    pub(crate) fn bytes(&mut self, source: &Window<'_, u8>, target: &Target, out: &mut [u8]) {
        self.prepare(source, target);
        self.rows.round();
        self.columns.round();
        let channels = source.channels;
        let stride = source.window.width * channels;
        for line in &mut self.lines {
            line.resize(stride + self.columns.taps * channels + PADDING, 0);
        }
        let (isa, rows, columns) = (self.isa, &self.rows, &self.columns);
        let [first, second] = &mut self.lines;
        let lines = out.chunks_mut(2 * target.size.1 * channels);
        for (pair, lines) in lines.enumerate() {
            let (upper, lower) = lines.split_at_mut(target.size.1 * channels);
            for (y, line) in (2 * pair..rows.spans.len()).zip([&mut first[..], &mut second[..]]) {
                let (start, count) = rows.spans[y];
                let weights = &rows.rounded[y * rows.taps..][..count];
                sum_rows(isa, &source.pixels[start * stride..], stride, weights, &mut line[..stride]);
            }
            sum_columns(isa, [&first[..], &second[..]], channels, columns, [upper, lower]);
        }
    }

    /// Resizes samples of any depth into `out`, interleaved.
    pub(crate) fn floats<T: Copy>(
        &mut self,
        source: &Window<'_, T>,
        target: &Target,
        value: impl Fn(T) -> f32,
        out: &mut [f32],
    ) {
        self.prepare(source, target);
        let channels = source.channels;
        let stride = source.window.width * channels;
        let Self { rows, columns, floats, .. } = self;
        for (y, line) in out.chunks_exact_mut(target.size.1 * channels).enumerate() {
            let (start, count) = rows.spans[y];
            floats.clear();
            floats.resize(stride, 0.0);
            for (weight, row) in
                rows.exact[y * rows.taps..][..count].iter().zip(source.pixels[start * stride..].chunks(stride))
            {
                floats.iter_mut().zip(row).for_each(|(sum, &v)| *sum += weight * value(v));
            }
            for (x, pixel) in line.chunks_exact_mut(channels).enumerate() {
                let (start, count) = columns.spans[x];
                pixel.fill(0.0);
                for (weight, part) in
                    columns.exact[x * columns.taps..][..count].iter().zip(floats[start * channels..].chunks(channels))
                {
                    pixel.iter_mut().zip(part).for_each(|(sum, v)| *sum += weight * v);
                }
            }
        }
    }
}

fn narrow(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Writes the weighted sum of as many rows as there are weights.
fn sum_rows(isa: Isa, pixels: &[u8], stride: usize, weights: &[i16], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() && stride >= 16 && !weights.is_empty() && pixels.len() >= stride * weights.len() {
        // SAFETY: 1. the processor has AVX2; 2. rows of at least 16 bytes lie inside `pixels`, one for each weight.
        unsafe { sum_rows_avx2(pixels, stride, weights, out) };
        return;
    }
    let _ = isa;
    for (x, out) in out.iter_mut().enumerate() {
        let rows = weights.iter().zip(pixels[x..].iter().step_by(stride));
        *out = narrow(rows.map(|(&w, &v)| i32::from(w) * i32::from(v)).sum::<i32>() + (1 << (BITS - 1)));
    }
}

/// # Safety
/// 1. The processor has AVX2. 2. `stride` is at least 16, there is at least one weight, and `pixels` holds a row of `stride`
///    bytes for each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_rows_avx2(pixels: &[u8], stride: usize, weights: &[i16], out: &mut [u8]) {
    use std::arch::x86_64::*;
    let mut x = 0;
    while x < stride {
        // The last step overlaps the one before it.
        let at = x.min(stride - 16);
        let mut low = _mm256_set1_epi32(1 << (BITS - 1));
        let mut high = low;
        for (k, pair) in weights.chunks(2).enumerate() {
            let (row, next) = (2 * k, (2 * k + 1).min(weights.len() - 1));
            // SAFETY: both rows lie inside `pixels` (2), and `at + 16 <= stride`.
            let (a, b) = unsafe {
                let load = |row: usize| _mm_loadu_si128(pixels.as_ptr().add(row * stride + at).cast());
                (_mm256_cvtepu8_epi16(load(row)), _mm256_cvtepu8_epi16(load(next)))
            };
            let second = pair.get(1).copied().unwrap_or(0);
            let both = _mm256_set1_epi32((i32::from(second) << 16) | (i32::from(pair[0]) & 0xffff));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), both));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), both));
        }
        let shift = |v| _mm256_srai_epi32::<{ BITS as i32 }>(v);
        let words = _mm256_packs_epi32(shift(low), shift(high));
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let part: &mut [u8] = &mut out[at..at + 16];
        // SAFETY: the slice has 16 bytes.
        unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), bytes) };
        x += 16;
    }
}

/// Makes the pixels of two rows (the second result may be empty) from lines that are padded behind their ends.
fn sum_columns(isa: Isa, lines: [&[u8]; 2], channels: usize, axis: &Axis, out: [&mut [u8]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() && matches!(channels, 3 | 4) {
        let most = axis.spans.iter().map(|s| s.0).max().unwrap_or(0) + axis.taps;
        assert!(lines.iter().all(|line| line.len() >= most * channels + PADDING - GROUP), "lines are padded");
        // SAFETY: 1. the processor has AVX2; 2. `most` is behind the last pixel of any group, and a group of 4 pixels that
        // begins at `most - 4` is read as 16 bytes.
        unsafe {
            if channels == 3 {
                sum_columns_avx2::<3>(lines, axis, out);
            } else {
                sum_columns_avx2::<4>(lines, axis, out);
            }
        }
        return;
    }
    let _ = isa;
    for (line, out) in lines.into_iter().zip(out) {
        for (x, pixel) in out.chunks_exact_mut(channels).enumerate() {
            let (start, count) = axis.spans[x];
            let weights = &axis.rounded[x * axis.taps..][..count];
            for (channel, value) in pixel.iter_mut().enumerate() {
                let samples = line[start * channels + channel..].iter().step_by(channels);
                let sum: i32 = weights.iter().zip(samples).map(|(&w, &v)| i32::from(w) * i32::from(v)).sum();
                *value = narrow(sum + (1 << (BITS - 1)));
            }
        }
    }
}

/// # Safety
/// 1. The processor has AVX2. 2. `CHANNELS` is 3 or 4, and each line holds 16 bytes from the start of every group of pixels on.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_columns_avx2<const CHANNELS: usize>(lines: [&[u8]; 2], axis: &Axis, out: [&mut [u8]; 2]) {
    use std::arch::x86_64::*;
    // For each channel the samples of two neighbours, as 16-bit numbers side by side.
    let pair = |first: usize| -> __m256i {
        let mut mask = [-1i8; 32];
        for lane in [0, 16] {
            for c in 0..CHANNELS {
                mask[lane + 4 * c] = (first * CHANNELS + c) as i8;
                mask[lane + 4 * c + 2] = ((first + 1) * CHANNELS + c) as i8;
            }
        }
        // SAFETY: both are 32 bytes of plain numbers.
        unsafe { std::mem::transmute(mask) }
    };
    let (front, back) = (pair(0), pair(2));
    let [upper, lower] = out;
    let twofold = !lower.is_empty();
    for (x, (&(start, count), weights)) in axis.spans.iter().zip(axis.rounded.chunks_exact(axis.taps)).enumerate() {
        let mut sum = _mm256_set1_epi32(1 << (BITS - 1));
        for (group, w) in weights[..count.next_multiple_of(GROUP)].chunks_exact(GROUP).enumerate() {
            let at = (start + group * GROUP) * CHANNELS;
            // SAFETY: 16 bytes from `at` on are inside both lines (2).
            let both = unsafe {
                let load = |line: &[u8]| _mm_loadu_si128(line.as_ptr().add(at).cast());
                _mm256_set_m128i(load(lines[1]), load(lines[0]))
            };
            let weight = |i: usize| _mm256_set1_epi32((i32::from(w[i + 1]) << 16) | (i32::from(w[i]) & 0xffff));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(both, front), weight(0)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(both, back), weight(2)));
        }
        let words = _mm256_srai_epi32::<{ BITS as i32 }>(sum);
        let words = _mm256_packs_epi32(words, words);
        let bytes = _mm256_packus_epi16(words, words);
        let first = _mm256_extract_epi32::<0>(bytes).to_le_bytes();
        upper[x * CHANNELS..][..CHANNELS].copy_from_slice(&first[..CHANNELS]);
        if twofold {
            let second = _mm256_extract_epi32::<4>(bytes).to_le_bytes();
            lower[x * CHANNELS..][..CHANNELS].copy_from_slice(&second[..CHANNELS]);
        }
    }
}
