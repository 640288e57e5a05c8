//! Augmentation for fine-tuning: RandAugment, colour jitter and random erasing of single images, mixup and cutmix of batches.
//!
//! Everything is drawn from the stream of the sample (or of the batch), so the same seed and epoch give the same pixels.

mod affine;
mod mix;
mod operations;
mod rand_augment;
mod raster;

pub use affine::Filter;
pub use mix::{Mix, Mixture};
pub use operations::Operation;
pub use rand_augment::RandAugment;
pub use raster::Raster;

use simmim_random::Stream;

use crate::DataError;

/// What happens to a cropped and flipped image before it is normalised, and (erasing) right after.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Random operations; in their place stands [`color_jitter`](Self::color_jitter) where there are none.
    pub rand_augment: Option<RandAugment>,
    /// Largest change of brightness, contrast and saturation, each around 1. As in timm it acts only without
    /// [`rand_augment`](Self::rand_augment).
    pub color_jitter: f64,
    /// Probability that a rectangle is filled with normal noise.
    pub erase: f64,
    /// The filter of rotations, shears and shifts.
    pub filter: Filter,
}

/// Smallest and largest share of the area that is erased, and the smallest aspect ratio (Zhong et al., arXiv 1708.04896).
const ERASED_AREA: (f64, f64) = (0.02, 1.0 / 3.0);
const ERASED_ASPECT: f64 = 0.3;

impl Policy {
    /// Checks every value once.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the value that cannot work.
    pub fn validate(&self) -> Result<(), DataError> {
        if !(0.0..=1.0).contains(&self.erase) {
            return Err(DataError::config("erase", "a probability between 0 and 1", self.erase));
        }
        if !(0.0..=1.0).contains(&self.color_jitter) {
            return Err(DataError::config("color_jitter", "a change between 0 and 1", self.color_jitter));
        }
        self.rand_augment.as_ref().map_or(Ok(()), RandAugment::validate)
    }

    /// Changes an image of `planes` (channels, height, width; pixels in 0..1) and normalises it by `mean` and `std`.
    pub(crate) fn apply(
        &self,
        planes: &mut [f32],
        shape: (usize, usize, usize),
        (mean, std): (&[f32], &[f32]),
        stream: &mut Stream,
    ) {
        if self.rand_augment.is_some() || self.color_jitter > 0.0 {
            let mut raster = Raster::from_planes(planes, shape);
            match &self.rand_augment {
                Some(rand_augment) => rand_augment.apply(&mut raster, mean, self.filter, stream),
                None => jitter(&mut raster, self.color_jitter, stream),
            }
            raster.write(planes);
        }
        let area = shape.1 * shape.2;
        for (plane, (mean, std)) in planes.chunks_exact_mut(area).zip(mean.iter().zip(std)) {
            plane.iter_mut().for_each(|v| *v = (*v - mean) / std);
        }
        if stream.uniform() < self.erase {
            erase(planes, shape, stream);
        }
    }
}

/// torchvision's `ColorJitter` of brightness, contrast and saturation: the three in random order.
fn jitter(raster: &mut Raster, amount: f64, stream: &mut Stream) {
    let mut order = [0, 1, 2];
    stream.shuffle(&mut order);
    for which in order {
        let factor = stream.range((1.0 - amount).max(0.0), 1.0 + amount);
        match which {
            0 => raster.brightness(factor),
            1 => raster.contrast(factor),
            _ => raster.color(factor),
        }
    }
}

/// Random erasing in timm's mode `pixel`: ten tries for a rectangle that fits, filled with standard normal noise.
fn erase(planes: &mut [f32], (channels, height, width): (usize, usize, usize), stream: &mut Stream) {
    for _ in 0..10 {
        let area = stream.range(ERASED_AREA.0, ERASED_AREA.1) * (height * width) as f64;
        let log = ERASED_ASPECT.ln();
        let aspect = stream.range(log, -log).exp();
        let h = (area * aspect).sqrt().round_ties_even() as usize;
        let w = (area / aspect).sqrt().round_ties_even() as usize;
        if w >= width || h >= height {
            continue;
        }
        let top = stream.below((height - h) as u64 + 1) as usize;
        let left = stream.below((width - w) as u64 + 1) as usize;
        for line in (0..channels).flat_map(|c| (top..top + h).map(move |y| (c * height + y) * width + left)) {
            planes[line..line + w].iter_mut().for_each(|v| *v = stream.normal() as f32);
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::Purpose;

    #[test]
    fn erasing_fills_one_rectangle_with_noise() {
        let (mut erased, mut share) = (0, 0.0);
        for sample in 0..200 {
            let mut planes = vec![7.0; 2 * 20 * 30];
            erase(&mut planes, (2, 20, 30), &mut Stream::new(0, Purpose::Test, 0, sample));
            let changed: Vec<usize> = (0..600).filter(|&i| planes[i] != 7.0).collect();
            let (Some(first), Some(last)) = (changed.first(), changed.last()) else { continue };
            let (h, w) = (last / 30 - first / 30 + 1, last % 30 - first % 30 + 1);
            assert_eq!(changed.len(), h * w, "not a rectangle");
            assert!((0..600).all(|i| (planes[i] == 7.0) == (planes[600 + i] == 7.0)), "channels differ in place");
            erased += 1;
            share += changed.len() as f64 / 600.0;
        }
        assert!(erased > 190 && (0.12..0.22).contains(&(share / f64::from(erased))), "{erased} {share}");
    }

    #[test]
    fn the_same_stream_gives_the_same_pixels() {
        let rand_augment = Some(RandAugment { layers: 2, magnitude: 9.0, std: 0.5 });
        let policy = Policy { rand_augment, color_jitter: 0.4, erase: 0.25, filter: Filter::Bicubic };
        let draw = |sample| {
            let mut planes: Vec<f32> = (0..3 * 16 * 16).map(|i| (i * 37 % 256) as f32 / 255.0).collect();
            let mut stream = Stream::new(5, Purpose::Augment, 2, sample);
            policy.apply(&mut planes, (3, 16, 16), (&[0.5; 3], &[0.25; 3]), &mut stream);
            planes
        };
        assert_eq!(draw(3), draw(3));
        assert!((0..8).any(|s| draw(s) != draw(3)));
    }
}
