//! Crops, flips and normalisation: from an [`Image`] to planar `f32`.

#![allow(unsafe_code, reason = "intrinsics between arrays and vectors")]

use std::cell::RefCell;

use simmim_random::Stream;

use crate::region::Region;
use crate::resize::{Resizer, Target, Window};
use crate::simd::{Isa, vectorised};
use crate::{Background, Channels, DataError, Image, Pixels, Policy, orientation};

/// Per-channel mean of ImageNet, for pixels in 0..1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Per-channel standard deviation of ImageNet, for pixels in 0..1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// A random part of the image, resized: torchvision's `RandomResizedCrop`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomResizedCrop {
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Smallest and largest width divided by height.
    pub ratio: (f64, f64),
}

impl Default for RandomResizedCrop {
    /// The values of SimMIM's pre-training: scale 0.67 to 1, ratio 3/4 to 4/3.
    fn default() -> Self {
        Self { scale: (0.67, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

/// The filter of a resize. Both antialias when they shrink, as PIL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interpolation {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Cubic filter with a = -0.5 (PIL's, not torch's).
    Bicubic,
}

/// How an image becomes a row of a batch: planar `f32` of shape `[channels, height, width]`, normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform {
    /// Height and width of the result, in pixels.
    pub size: (usize, usize),
    /// Channels of the result.
    pub channels: usize,
    /// What shows behind transparency, where alpha is not among the channels.
    pub background: Background,
    /// The random crop of [`apply_random`](Self::apply_random); without it, the centred crop is taken there too.
    pub crop: Option<RandomResizedCrop>,
    /// Probability of a horizontal flip in [`apply_random`](Self::apply_random).
    pub flip: f64,
    /// The resize filter.
    pub interpolation: Interpolation,
    /// Subtracted per channel, for pixels in 0..1.
    pub mean: Vec<f32>,
    /// Divided by per channel, for pixels in 0..1.
    pub std: Vec<f32>,
    /// Further augmentation in [`apply_random`](Self::apply_random).
    pub policy: Option<Policy>,
    /// Share of the centred view's sides that [`apply_centered`](Self::apply_centered) keeps; 224/256 is usual for classifiers.
    pub keep: f64,
}

/// The part of an image that is shown, and whether it is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crop {
    pub(crate) part: Region,
    pub(crate) flip: bool,
}

/// Gives the crop for an image of this width and height.
pub(crate) type Choose<'a> = dyn FnMut((usize, usize)) -> Crop + 'a;

impl Transform {
    /// SimMIM's pre-training augmentation at `size` (height, width): random resized crop, flip with probability 0.5,
    /// bilinear; ImageNet's mean and std for 3 channels, 0.5 and 0.5 for other counts.
    #[must_use]
    pub fn new(size: (usize, usize), channels: usize) -> Self {
        let (mean, std) = if channels == 3 {
            (IMAGENET_MEAN.to_vec(), IMAGENET_STD.to_vec())
        } else {
            (vec![0.5; channels], vec![0.5; channels])
        };
        let crop = Some(RandomResizedCrop::default());
        Self {
            size,
            channels,
            background: Background::default(),
            crop,
            flip: 0.5,
            interpolation: Interpolation::Bilinear,
            mean,
            std,
            policy: None,
            keep: 1.0,
        }
    }

    /// Number of values of one transformed image, `channels * height * width`.
    #[must_use]
    pub fn values(&self) -> usize {
        self.channels * self.size.0 * self.size.1
    }

    /// The channels in which images are to be read for it.
    #[must_use]
    pub fn wanted(&self) -> Channels {
        Channels { count: self.channels, background: self.background }
    }

    /// Checks every value once, so that applying can only fail on a wrong image.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the value that cannot work.
    pub fn validate(&self) -> Result<(), DataError> {
        let (height, width) = self.size;
        if height == 0 || width == 0 || height > 1 << 15 || width > 1 << 15 {
            return Err(DataError::config("image size", "1 to 32768 pixels a side", format!("{height} x {width}")));
        }
        if self.channels == 0 {
            return Err(DataError::config("channels", "at least 1", 0));
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != self.channels {
                return Err(DataError::config(key, format!("{} values, one per channel", self.channels), values.len()));
            }
        }
        if let Some(bad) = self.mean.iter().find(|m| !m.is_finite()) {
            return Err(DataError::config("mean", "finite numbers", bad));
        }
        if let Some(bad) = self.std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(DataError::config("std", "positive numbers", bad));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(DataError::config("flip", "a probability between 0 and 1", self.flip));
        }
        if !(self.keep > 0.0 && self.keep <= 1.0) {
            return Err(DataError::config("eval_crop", "a share above 0 and up to 1", self.keep));
        }
        if let Some(policy) = &self.policy {
            policy.validate()?;
        }
        if let Some(RandomResizedCrop { scale, ratio }) = self.crop {
            if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0) {
                let found = format!("{} to {}", scale.0, scale.1);
                return Err(DataError::config("crop scale", "two rising shares above 0 and up to 1", found));
            }
            if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
                let found = format!("{} to {}", ratio.0, ratio.1);
                return Err(DataError::config("crop ratio", "two rising positive numbers", found));
            }
        }
        Ok(())
    }

    /// Writes a random view of `image` to `out`, of shape `[channels, height, width]`.
    ///
    /// The crop follows torchvision's rule: ten tries for an area and an aspect ratio, then the largest centred crop
    /// within the ratio bounds. The same stream gives the same view.
    ///
    /// # Errors
    /// [`DataError::Config`] when `out` or the image's channels do not fit the transform.
    pub fn apply_random(&self, image: &Image, stream: &mut Stream, out: &mut [f32]) -> Result<(), DataError> {
        self.random_through(stream, out, |transform, choose, out| {
            transform.render(image, choose((image.width, image.height)), out)
        })
    }

    /// Writes the centred view of `image` to `out`, of shape `[channels, height, width]`: the largest centred part with
    /// the result's aspect ratio, to whole pixels, resized. (Resizing to cover and cutting out the centre gives the
    /// same to rounding, but would take unbounded memory for very long images.)
    ///
    /// # Errors
    /// [`DataError::Config`] when `out` or the image's channels do not fit the transform.
    pub fn apply_centered(&self, image: &Image, out: &mut [f32]) -> Result<(), DataError> {
        self.centered_through(out, |transform, choose, out| {
            transform.render(image, choose((image.width, image.height)), out)
        })
    }

    /// Writes a random view by `render(transform, choose, out)`, where `choose` gives the crop for the size of the image, and
    /// changes it as the policy says.
    pub(crate) fn random_through(
        &self,
        stream: &mut Stream,
        out: &mut [f32],
        render: impl FnOnce(&Self, &mut Choose<'_>, &mut [f32]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut choose = |size| self.random_crop(size, stream);
        let Some(policy) = &self.policy else { return render(self, &mut choose, out) };
        // A policy works on pixels in 0..1.
        let (mean, std) = (vec![0.0; self.channels], vec![1.0; self.channels]);
        let plain = Self { mean, std, policy: None, ..*self };
        render(&plain, &mut choose, out)?;
        policy.apply(out, (self.channels, self.size.0, self.size.1), (&self.mean, &self.std), stream);
        Ok(())
    }

    /// Writes the centred view by `render`, see [`random_through`](Self::random_through): where less than all of it is kept, at
    /// `1 / keep` of the size, of which the centre is cut out.
    pub(crate) fn centered_through(
        &self,
        out: &mut [f32],
        render: impl FnOnce(&Self, &mut Choose<'_>, &mut [f32]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        if self.keep >= 1.0 {
            return render(self, &mut |size| self.centered_crop(size), out);
        }
        let (height, width) = self.size;
        let larger = |side: usize| (side as f64 / self.keep + 1e-9) as usize;
        let size = (larger(height), larger(width));
        let (mean, std) = (self.mean.clone(), self.std.clone());
        let whole = Self { size, mean, std, policy: None, keep: 1.0, ..*self };
        let mut full = vec![0.0; whole.values()];
        render(&whole, &mut |size| whole.centered_crop(size), &mut full)?;
        if out.len() != self.values() {
            return Err(DataError::config("output", format!("{} values", self.values()), out.len()));
        }
        let (top, left) = ((size.0 - height) / 2, (size.1 - width) / 2);
        for (i, line) in out.chunks_exact_mut(width).enumerate() {
            let at = (i / height * size.0 + top + i % height) * size.1 + left;
            line.copy_from_slice(&full[at..at + width]);
        }
        Ok(())
    }

    /// The largest centred part of an image with the aspect ratio of the result, in whole pixels.
    fn centered(&self, width: usize, height: usize) -> Region {
        let ratio = self.size.1 as f64 / self.size.0 as f64;
        let w = ((height as f64 * ratio).round() as usize).clamp(1, width.max(1));
        let h = ((width as f64 / ratio).round() as usize).clamp(1, height.max(1));
        Region { left: (width - w.min(width)) / 2, top: (height - h.min(height)) / 2, width: w, height: h }
    }

    /// The random part and flip that `stream` gives for an image of this size.
    pub(crate) fn random_crop(&self, (width, height): (usize, usize), stream: &mut Stream) -> Crop {
        let part = match self.crop {
            Some(crop) => crop.draw(stream, width, height),
            None => self.centered(width, height),
        };
        Crop { part, flip: stream.uniform() < self.flip }
    }

    /// The centred part of an image of this size.
    pub(crate) fn centered_crop(&self, (width, height): (usize, usize)) -> Crop {
        Crop { part: self.centered(width, height), flip: false }
    }

    /// Checks that `out` and images of `channels` channels fit this transform.
    pub(crate) fn check(&self, channels: usize, out: &[f32]) -> Result<(), DataError> {
        if channels != self.channels || self.mean.len() != self.channels || self.std.len() != self.channels {
            return Err(DataError::config("channels", format!("an image of {} channels", self.channels), channels));
        }
        if out.len() != self.values() {
            return Err(DataError::config("output", format!("{} values", self.values()), out.len()));
        }
        Ok(())
    }

    /// Writes a view of a decoded image to `out`.
    pub(crate) fn render(&self, image: &Image, crop: Crop, out: &mut [f32]) -> Result<(), DataError> {
        self.check(image.channels, out)?;
        let samples = image.width * image.height * image.channels;
        if samples == 0 || image.pixels.len() != samples {
            return Err(DataError::config("pixels", format!("{samples} samples, more than 0"), image.pixels.len()));
        }
        let window = Region::whole(image.width, image.height);
        SCRATCH.with(|scratch| {
            let Scratch { resizer, resized, floats } = &mut *scratch.borrow_mut();
            match &image.pixels {
                Pixels::U8(pixels) => {
                    let source = Window { pixels: pixels.as_slice(), channels: image.channels, window, shift: 0 };
                    self.resize_bytes(&source, crop, 1, resizer, resized);
                    self.normalise_bytes(resized, out);
                }
                Pixels::U16(pixels) => {
                    let source = Window { pixels: pixels.as_slice(), channels: image.channels, window, shift: 0 };
                    self.resize_floats(&source, crop, f32::from, resizer, floats);
                    // The cubic filter swings over; 16 bits would have cut that off.
                    self.write_planes(floats, 65535.0, |v: f32| v.clamp(0.0, 65535.0), out);
                }
                Pixels::F32(pixels) => {
                    let source = Window { pixels: pixels.as_slice(), channels: image.channels, window, shift: 0 };
                    self.resize_floats(&source, crop, |v| v, resizer, floats);
                    self.write_planes(floats, 1.0, |v| v, out);
                }
            }
        });
        Ok(())
    }

    /// The first half of a view of 8-bit pixels: cut out, resized, turned as `orientation` (EXIF) says, flipped; interleaved
    /// bytes of shape `[height, width, channels]`. The part of `crop` is one of the image
    /// as stored, the flip one of the image as shown. What changes colours belongs
    /// between this and [`normalise_bytes`](Self::normalise_bytes).
    pub(crate) fn resize_bytes(
        &self,
        source: &Window<'_, u8>,
        crop: Crop,
        orientation: u8,
        resizer: &mut Resizer,
        resized: &mut Vec<u8>,
    ) {
        resized.resize(self.values(), 0);
        let Crop { part, flip } = crop;
        let target = Target { part, size: self.size, flip, interpolation: self.interpolation };
        if orientation == 1 {
            resizer.bytes(source, &target, resized);
        } else {
            orientation::resize(source, &target, orientation, resizer, resized);
        }
    }

    fn resize_floats<T: Copy>(
        &self,
        source: &Window<'_, T>,
        crop: Crop,
        value: impl Fn(T) -> f32,
        resizer: &mut Resizer,
        resized: &mut Vec<f32>,
    ) {
        resized.resize(self.values(), 0.0);
        let Crop { part, flip } = crop;
        let target = Target { part, size: self.size, flip, interpolation: self.interpolation };
        resizer.floats(source, &target, value, resized);
    }

    /// The second half: interleaved bytes to normalised planes.
    pub(crate) fn normalise_bytes(&self, resized: &[u8], out: &mut [f32]) {
        if self.channels == 3 {
            let linear = [self.linear(0, 255.0), self.linear(1, 255.0), self.linear(2, 255.0)];
            normalise_colours(Isa::detect(), resized, &linear.map(|l| l.0), &linear.map(|l| l.1), out);
        } else {
            self.write_planes(resized, 255.0, f32::from, out);
        }
    }

    /// What samples of a channel are multiplied by and what is added then.
    fn linear(&self, channel: usize, white: f32) -> (f32, f32) {
        (1.0 / (white * self.std[channel]), -self.mean[channel] / self.std[channel])
    }

    fn write_planes<T: Copy>(&self, samples: &[T], white: f32, value: impl Fn(T) -> f32, out: &mut [f32]) {
        let planes = out.chunks_exact_mut(self.size.0 * self.size.1);
        for (channel, plane) in planes.enumerate() {
            let (scale, shift) = self.linear(channel, white);
            let values = samples[channel..].iter().step_by(self.channels);
            plane.iter_mut().zip(values).for_each(|(o, &v)| *o = value(v) * scale + shift);
        }
    }
}

/// Three interleaved channels to planes, each sample times `scale` plus `shift` of its channel.
fn normalise_colours(isa: Isa, samples: &[u8], scale: &[f32; 3], shift: &[f32; 3], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: the processor has AVX2.
        unsafe { normalise_colours_avx2(samples, scale, shift, out) };
        return;
    }
    normalise_pixels(isa, samples, scale, shift, out, 0);
}

vectorised! {
    /// Pixels from number `first` on.
    fn normalise_pixels<AVX2>(samples: &[u8], scale: &[f32; 3], shift: &[f32; 3], out: &mut [f32], first: usize) {
        let plane = out.len() / 3;
        for (c, (scale, shift)) in scale.iter().zip(shift).enumerate() {
            let values = samples[3 * first..].chunks_exact(3).map(|pixel| f32::from(pixel[c]) * scale + shift);
            out[c * plane + first..(c + 1) * plane].iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
    }
}

/// [`normalise_pixels`], eight at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn normalise_colours_avx2(samples: &[u8], scale: &[f32; 3], shift: &[f32; 3], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let plane = out.len() / 3;
    let (red, rest) = out.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    // Four pixels of three bytes: all reds, all greens, all blues.
    let sort = _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
    let planes =
        red.as_chunks_mut::<8>().0.iter_mut().zip(green.as_chunks_mut::<8>().0).zip(blue.as_chunks_mut::<8>().0);
    let mut done = 0;
    // Each step looks at 28 bytes and uses 24 of them.
    for ((red, green), blue) in planes {
        let Some(bytes) = samples.get(3 * done..).and_then(|rest| rest.first_chunk::<28>()) else { break };
        let load = |at: usize| {
            // SAFETY: 16 bytes from 0 or 12 on lie within the 28.
            let four = unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) };
            _mm_shuffle_epi8(four, sort)
        };
        let (first, second) = (load(0), load(12));
        let both = _mm_unpacklo_epi32(first, second);
        let last = _mm_unpackhi_epi32(first, second);
        let parts = [both, _mm_srli_si128::<8>(both), last];
        for (c, (eight, out)) in parts.into_iter().zip([red, green, blue]).enumerate() {
            let value = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
            let value = _mm256_add_ps(_mm256_mul_ps(value, _mm256_set1_ps(scale[c])), _mm256_set1_ps(shift[c]));
            // SAFETY: both are eight floats.
            *out = unsafe { std::mem::transmute::<__m256, [f32; 8]>(value) };
        }
        done += 8;
    }
    normalise_pixels(Isa::detect(), samples, scale, shift, out, done);
}

impl RandomResizedCrop {
    /// The rule of torchvision's `RandomResizedCrop.get_params`.
    fn draw(&self, stream: &mut Stream, width: usize, height: usize) -> Region {
        let area = width as f64 * height as f64;
        let log_ratio = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..10 {
            let target = area * stream.range(self.scale.0, self.scale.1);
            let aspect = stream.range(log_ratio.0, log_ratio.1).exp();
            let w = (target * aspect).sqrt().round_ties_even() as usize;
            let h = (target / aspect).sqrt().round_ties_even() as usize;
            if 0 < w && w <= width && 0 < h && h <= height {
                let top = stream.below((height - h) as u64 + 1) as usize;
                let left = stream.below((width - w) as u64 + 1) as usize;
                return Region { left, top, width: w, height: h };
            }
        }
        let ratio = width as f64 / height as f64;
        let (w, h) = if ratio < self.ratio.0 {
            (width, (width as f64 / self.ratio.0).round_ties_even() as usize)
        } else if ratio > self.ratio.1 {
            ((height as f64 * self.ratio.1).round_ties_even() as usize, height)
        } else {
            (width, height)
        };
        let (w, h) = (w.clamp(1, width), h.clamp(1, height));
        Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

/// Working memory of one thread.
#[derive(Default)]
struct Scratch {
    resizer: Resizer,
    resized: Vec<u8>,
    floats: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
