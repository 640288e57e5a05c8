//! The operations of RandAugment on 8-bit images, as PIL's `ImageOps` and `ImageEnhance` and timm's `auto_augment` define them.

use super::{Filter, Raster};

/// An operation with its argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Stretches each channel to the full range.
    AutoContrast,
    /// Gives each channel a flat histogram.
    Equalize,
    /// The negative.
    Invert,
    /// Counter-clockwise, degrees.
    Rotate(f64),
    /// Keeps so many of the upper bits.
    Posterize(u32),
    /// Inverts samples from this threshold on.
    Solarize(u32),
    /// Adds this to samples below 128.
    SolarizeAdd(u32),
    /// Saturation: 0 is gray, 1 unchanged. Nothing happens to one channel.
    Color(f64),
    /// Contrast: 0 is the mean gray, 1 unchanged.
    Contrast(f64),
    /// Brightness: 0 is black, 1 unchanged.
    Brightness(f64),
    /// Sharpness: 0 is smoothed, 1 unchanged.
    Sharpness(f64),
    /// Shift of each row by this share of its height coordinate.
    ShearX(f64),
    /// Shift of each column by this share of its width coordinate.
    ShearY(f64),
    /// Shift by this share of the width.
    TranslateX(f64),
    /// Shift by this share of the height.
    TranslateY(f64),
}

impl Raster {
    /// Applies an operation; `fill` is the colour of what comes into view from outside.
    pub fn apply(&mut self, operation: Operation, filter: Filter, fill: &[u8]) {
        match operation {
            Operation::AutoContrast => self.auto_contrast(),
            Operation::Equalize => self.equalize(),
            Operation::Invert => self.samples.iter_mut().for_each(|s| *s = 255 - *s),
            Operation::Rotate(degrees) => self.rotate(degrees, filter, fill),
            Operation::Posterize(bits) => {
                let mask = if bits >= 8 { 255 } else { !((1u16 << (8 - bits)) - 1) as u8 };
                self.samples.iter_mut().for_each(|s| *s &= mask);
            }
            Operation::Solarize(threshold) => {
                self.samples.iter_mut().filter(|s| u32::from(**s) >= threshold).for_each(|s| *s = 255 - *s);
            }
            Operation::SolarizeAdd(add) => {
                let lift = |s: u8| if s < 128 { (u32::from(s) + add).min(255) as u8 } else { s };
                self.samples.iter_mut().for_each(|s| *s = lift(*s));
            }
            Operation::Color(factor) => self.color(factor),
            Operation::Contrast(factor) => self.contrast(factor),
            Operation::Brightness(factor) => self.brightness(factor),
            Operation::Sharpness(factor) => self.sharpness(factor),
            Operation::ShearX(s) => self.affine([1.0, s, 0.0, 0.0, 1.0, 0.0], filter, fill),
            Operation::ShearY(s) => self.affine([1.0, 0.0, 0.0, s, 1.0, 0.0], filter, fill),
            Operation::TranslateX(s) => {
                self.affine([1.0, 0.0, s * self.width as f64, 0.0, 1.0, 0.0], filter, fill);
            }
            Operation::TranslateY(s) => {
                self.affine([1.0, 0.0, 0.0, 0.0, 1.0, s * self.height as f64], filter, fill);
            }
        }
    }

    fn auto_contrast(&mut self) {
        for plane in self.planes_mut() {
            let (Some(&low), Some(&high)) = (plane.iter().min(), plane.iter().max()) else { continue };
            if high > low {
                let scale = 255.0 / f64::from(high - low);
                let offset = -f64::from(low) * scale;
                plane.iter_mut().for_each(|s| *s = (f64::from(*s) * scale + offset).clamp(0.0, 255.0) as u8);
            }
        }
    }

    fn equalize(&mut self) {
        for plane in self.planes_mut() {
            let mut histogram = [0usize; 256];
            plane.iter().for_each(|&s| histogram[usize::from(s)] += 1);
            let last = histogram.iter().rev().copied().find(|&n| n > 0).unwrap_or(0);
            let step = (plane.len() - last) / 255;
            if step == 0 {
                continue;
            }
            let mut table = [0u8; 256];
            let mut below = step / 2;
            for (entry, count) in table.iter_mut().zip(histogram) {
                *entry = (below / step).min(255) as u8;
                below += count;
            }
            plane.iter_mut().for_each(|s| *s = table[usize::from(*s)]);
        }
    }

    pub(crate) fn brightness(&mut self, factor: f64) {
        let mut table = [0u8; 256];
        for (value, entry) in table.iter_mut().enumerate() {
            *entry = (factor as f32 * value as f32).clamp(0.0, 255.0) as u8;
        }
        self.map(&table);
    }

    pub(crate) fn contrast(&mut self, factor: f64) {
        let gray = self.gray();
        let sum: u64 = gray.iter().map(|&v| u64::from(v)).sum();
        let mean = (sum as f64 / gray.len().max(1) as f64 + 0.5) as u8;
        self.blend_from(|_| mean, factor);
    }

    pub(crate) fn color(&mut self, factor: f64) {
        if self.channels == 3 {
            let (gray, area) = (self.gray(), self.height * self.width);
            self.blend_from(|i| gray[i % area], factor);
        }
    }

    fn sharpness(&mut self, factor: f64) {
        let smooth = self.smoothed();
        self.blend_from(|i| smooth[i], factor);
    }

    /// PIL's filter `SMOOTH`: the pixel five times, its eight neighbours once; the border stays.
    fn smoothed(&self) -> Vec<u8> {
        let (height, width) = (self.height, self.width);
        let mut out = self.samples.clone();
        for (plane, out) in self.samples.chunks_exact(height * width).zip(out.chunks_exact_mut(height * width)) {
            for y in 1..height.saturating_sub(1) {
                for x in 1..width.saturating_sub(1) {
                    let at = y * width + x;
                    let rows = [at - width, at, at + width];
                    let around: u32 =
                        rows.iter().flat_map(|&r| &plane[r - 1..=r + 1]).map(|&v| u32::from(v)).sum::<u32>();
                    let sum = around + 4 * u32::from(plane[at]);
                    out[at] = (f64::from(sum) / 13.0 + 0.5) as u8;
                }
            }
        }
        out
    }
}
