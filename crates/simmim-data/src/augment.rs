//! Crops, flips and normalisation: from an [`Image`] to planar `f32`.

use std::cell::RefCell;

use fast_image_resize::images::{CroppedImage, Image as Target, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use simmim_random::Stream;

use crate::{DataError, Image, Pixels, Policy};

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

/// A part of an image: left, top, width, height in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Region {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

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
        let region = match self.crop {
            Some(crop) => crop.draw(stream, image.width, image.height),
            None => self.centered(image.width, image.height),
        };
        let flip = stream.uniform() < self.flip;
        let Some(policy) = &self.policy else { return self.render(image, region, flip, out) };
        self.plain(self.size).render(image, region, flip, out)?;
        policy.apply(out, (self.channels, self.size.0, self.size.1), (&self.mean, &self.std), stream);
        Ok(())
    }

    /// The same at another size, pixels left in 0..1.
    fn plain(&self, size: (usize, usize)) -> Self {
        let (mean, std) = (vec![0.0; self.channels], vec![1.0; self.channels]);
        Self { size, mean, std, policy: None, keep: 1.0, ..*self }
    }

    /// Writes the centred view of `image` to `out`, of shape `[channels, height, width]`: the largest centred part with
    /// the result's aspect ratio, to whole pixels, resized. (Resizing to cover and cutting out the centre gives the
    /// same to rounding, but would take unbounded memory for very long images.)
    ///
    /// # Errors
    /// [`DataError::Config`] when `out` or the image's channels do not fit the transform.
    pub fn apply_centered(&self, image: &Image, out: &mut [f32]) -> Result<(), DataError> {
        if self.keep < 1.0 {
            return self.cut_centered(image, out);
        }
        self.render(image, self.centered(image.width, image.height), false, out)
    }

    /// The centred view at `1 / keep` of the size, of which the centre is cut out.
    fn cut_centered(&self, image: &Image, out: &mut [f32]) -> Result<(), DataError> {
        let (height, width) = self.size;
        let larger = |side: usize| (side as f64 / self.keep + 1e-9) as usize;
        let (full_height, full_width) = (larger(height), larger(width));
        let mut full = vec![0.0; self.channels * full_height * full_width];
        let transform = Self {
            size: (full_height, full_width),
            policy: None,
            keep: 1.0,
            mean: self.mean.clone(),
            std: self.std.clone(),
            ..*self
        };
        transform.apply_centered(image, &mut full)?;
        if out.len() != self.values() {
            return Err(DataError::config("output", format!("{} values", self.values()), out.len()));
        }
        let (top, left) = ((full_height - height) / 2, (full_width - width) / 2);
        for (i, line) in out.chunks_exact_mut(width).enumerate() {
            let at = (i / height * full_height + top + i % height) * full_width + left;
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

    fn render(&self, image: &Image, region: Region, flip: bool, out: &mut [f32]) -> Result<(), DataError> {
        if image.channels != self.channels || self.mean.len() != self.channels || self.std.len() != self.channels {
            return Err(DataError::config(
                "channels",
                format!("an image of {} channels", self.channels),
                image.channels,
            ));
        }
        if out.len() != self.values() {
            return Err(DataError::config("output", format!("{} values", self.values()), out.len()));
        }
        let samples = image.width * image.height * image.channels;
        if samples == 0 || image.pixels.len() != samples {
            return Err(DataError::config("pixels", format!("{samples} samples, more than 0"), image.pixels.len()));
        }
        // Resizing needs working memory; one per thread, so that a worker allocates it once.
        SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            match &image.pixels {
                Pixels::U8(v) => self.resample(v, image, region, flip, scratch, out),
                Pixels::U16(v) => self.resample(v, image, region, flip, scratch, out),
                Pixels::F32(v) => self.resample(v, image, region, flip, scratch, out),
            }
        })
    }

    fn resample<T: Sample>(
        &self,
        samples: &[T],
        image: &Image,
        region: Region,
        flip: bool,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), DataError> {
        let (height, width) = self.size;
        let channels = self.channels;
        let (resized, plane, resizer) = T::buffers(scratch);
        if channels <= T::TYPES.len() {
            resized.resize(height * width * channels, T::default());
            let source = View { samples, width: image.width, height: image.height, channels };
            self.resize(&source, region, resizer, resized)?;
            for channel in 0..channels {
                self.write_plane(channel, &resized[channel..], channels, flip, out);
            }
            return Ok(());
        }
        // The resizer knows up to four channels; more are resized one by one.
        resized.resize(height * width, T::default());
        for channel in 0..channels {
            plane.clear();
            plane.extend(samples.iter().skip(channel).step_by(channels));
            let source = View { samples: plane.as_slice(), width: image.width, height: image.height, channels: 1 };
            self.resize(&source, region, resizer, resized)?;
            self.write_plane(channel, resized, 1, flip, out);
        }
        Ok(())
    }

    /// Resizes a region.
    fn resize<T: Sample>(
        &self,
        source: &View<'_, T>,
        region: Region,
        resizer: &mut Resizer,
        resized: &mut [T],
    ) -> Result<(), DataError> {
        let internal = |e: &dyn std::fmt::Display| DataError::config("resize", "a region inside the image", e);
        let kind = T::TYPES[source.channels - 1];
        let (width, height) = (source.width as u32, source.height as u32);
        let view =
            ImageRef::new(width, height, bytemuck::cast_slice(source.samples), kind).map_err(|e| internal(&e))?;
        let (out_height, out_width) = (self.size.0 as u32, self.size.1 as u32);
        let target = bytemuck::cast_slice_mut(resized);
        let mut target = Target::from_slice_u8(out_width, out_height, target, kind).map_err(|e| internal(&e))?;
        let filter = match self.interpolation {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        // Alpha, where there is any, is a channel like the others.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        // Cut first, so that the filter does not see beyond the crop, as torchvision does. A view is also safer than
        // the resizer's own crop box: for some boxes between pixels, fast_image_resize 6.1 computes a first column
        // behind the second and its index arithmetic overflows.
        let Region { left, top, width, height } = region;
        let part =
            CroppedImage::new(&view, left as u32, top as u32, width as u32, height as u32).map_err(|e| internal(&e))?;
        resizer.resize(&part, &mut target, &options).map_err(|e| internal(&e))
    }

    /// Normalises one channel of interleaved samples into its plane of `out`.
    fn write_plane<T: Sample>(&self, channel: usize, samples: &[T], stride: usize, flip: bool, out: &mut [f32]) {
        let (height, width) = self.size;
        let scale = 1.0 / (T::WHITE * self.std[channel]);
        let shift = -self.mean[channel] / self.std[channel];
        let plane = &mut out[channel * height * width..(channel + 1) * height * width];
        for (row, line) in plane.chunks_exact_mut(width).enumerate() {
            let values = samples[row * width * stride..].iter().step_by(stride).map(|v| v.to_f32() * scale + shift);
            if flip {
                line.iter_mut().rev().zip(values).for_each(|(o, v)| *o = v);
            } else {
                line.iter_mut().zip(values).for_each(|(o, v)| *o = v);
            }
        }
    }
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

/// Interleaved samples with their shape.
struct View<'a, T> {
    samples: &'a [T],
    width: usize,
    height: usize,
    channels: usize,
}

/// Working memory of one thread: the resized image, one plane of a many-band image, the resizer's own buffers.
#[derive(Default)]
struct Scratch {
    u8: (Vec<u8>, Vec<u8>),
    u16: (Vec<u16>, Vec<u16>),
    f32: (Vec<f32>, Vec<f32>),
    resizer: Resizer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A depth of samples that the resizer knows.
trait Sample: bytemuck::Pod + Default {
    /// The resizer's pixel types for 1 to 4 channels.
    const TYPES: [PixelType; 4];
    /// The value of white.
    const WHITE: f32;
    /// Resized image, plane, resizer.
    fn buffers(scratch: &mut Scratch) -> (&mut Vec<Self>, &mut Vec<Self>, &mut Resizer);
    fn to_f32(self) -> f32;
}

impl Sample for u8 {
    const TYPES: [PixelType; 4] = [PixelType::U8, PixelType::U8x2, PixelType::U8x3, PixelType::U8x4];
    const WHITE: f32 = 255.0;
    fn buffers(s: &mut Scratch) -> (&mut Vec<Self>, &mut Vec<Self>, &mut Resizer) {
        (&mut s.u8.0, &mut s.u8.1, &mut s.resizer)
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Sample for u16 {
    const TYPES: [PixelType; 4] = [PixelType::U16, PixelType::U16x2, PixelType::U16x3, PixelType::U16x4];
    const WHITE: f32 = 65535.0;
    fn buffers(s: &mut Scratch) -> (&mut Vec<Self>, &mut Vec<Self>, &mut Resizer) {
        (&mut s.u16.0, &mut s.u16.1, &mut s.resizer)
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Sample for f32 {
    const TYPES: [PixelType; 4] = [PixelType::F32, PixelType::F32x2, PixelType::F32x3, PixelType::F32x4];
    const WHITE: f32 = 1.0;
    fn buffers(s: &mut Scratch) -> (&mut Vec<Self>, &mut Vec<Self>, &mut Resizer) {
        (&mut s.f32.0, &mut s.f32.1, &mut s.resizer)
    }
    fn to_f32(self) -> f32 {
        self
    }
}
