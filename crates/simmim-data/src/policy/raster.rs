//! An 8-bit image, a plane a channel.

/// An image of 8-bit samples in planes, `[channels, height, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raster {
    /// Number of planes.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// The samples.
    pub samples: Vec<u8>,
}

impl Raster {
    /// From planes of pixels in 0..1; what lies outside is cut off.
    pub(crate) fn from_planes(planes: &[f32], (channels, height, width): (usize, usize, usize)) -> Self {
        let samples = planes.iter().map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8).collect();
        Self { channels, height, width, samples }
    }

    /// Back to planes of pixels in 0..1.
    pub(crate) fn write(&self, planes: &mut [f32]) {
        planes.iter_mut().zip(&self.samples).for_each(|(p, &s)| *p = f32::from(s) / 255.0);
    }

    pub(crate) fn planes_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let area = (self.height * self.width).max(1);
        self.samples.chunks_exact_mut(area)
    }

    /// Replaces every sample by its entry in a table.
    pub(crate) fn map(&mut self, table: &[u8; 256]) {
        self.samples.iter_mut().for_each(|s| *s = table[usize::from(*s)]);
    }

    /// The image in gray: PIL's `convert("L")` for three channels, the plane itself for one, the mean for other counts.
    pub(crate) fn gray(&self) -> Vec<u8> {
        let area = self.height * self.width;
        match self.channels {
            1 => self.samples.clone(),
            3 => (0..area)
                .map(|i| {
                    let [r, g, b] = [0, 1, 2].map(|c| u32::from(self.samples[c * area + i]));
                    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
                })
                .collect(),
            n => (0..area)
                .map(|i| {
                    let sum: usize = (0..n).map(|c| usize::from(self.samples[c * area + i])).sum();
                    ((sum + n / 2) / n.max(1)) as u8
                })
                .collect(),
        }
    }

    /// PIL's `Image.blend(other, self, factor)`: `other` at 0, unchanged at 1, beyond it at more.
    pub(crate) fn blend_from(&mut self, other: impl Fn(usize) -> u8, factor: f64) {
        let factor = factor as f32;
        for (i, s) in self.samples.iter_mut().enumerate() {
            let from = f32::from(other(i));
            // PIL cuts off the fraction.
            *s = (from + factor * (f32::from(*s) - from)).clamp(0.0, 255.0) as u8;
        }
    }
}
