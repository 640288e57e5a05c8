//! RandAugment (Cubuk et al., arXiv 1909.13719) with timm's increasing magnitudes, `rand-mM-mstdS-inc1`.

use simmim_random::Stream;

use super::{Filter, Operation, Raster};
use crate::DataError;

/// The magnitude at which every operation is strongest.
const STRONGEST: f64 = 10.0;
/// Probability of each chosen operation.
const PROBABILITY: f64 = 0.5;
/// Number of operations to choose from.
const OPERATIONS: u64 = 15;

/// How many operations of what strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandAugment {
    /// Operations chosen for an image, with replacement; each happens with probability 0.5.
    pub layers: usize,
    /// Mean strength, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of the strength.
    pub std: f64,
}

impl RandAugment {
    pub(super) fn validate(&self) -> Result<(), DataError> {
        if !(0.0..=STRONGEST).contains(&self.magnitude) {
            return Err(DataError::config("rand_magnitude", "a strength between 0 and 10", self.magnitude));
        }
        if !(self.std.is_finite() && self.std >= 0.0) {
            return Err(DataError::config("rand_std", "a number that is not negative", self.std));
        }
        Ok(())
    }

    /// Draws and applies the operations; what comes into view is filled with the mean colour.
    pub(super) fn apply(&self, raster: &mut Raster, mean: &[f32], filter: Filter, stream: &mut Stream) {
        let fill: Vec<u8> = mean.iter().map(|m| (255.0 * m).round().clamp(0.0, 255.0) as u8).collect();
        for _ in 0..self.layers {
            let which = stream.below(OPERATIONS);
            if stream.uniform() >= PROBABILITY {
                continue;
            }
            let level = (self.magnitude + self.std * stream.normal()).clamp(0.0, STRONGEST) / STRONGEST;
            raster.apply(Self::operation(which, level, stream.uniform() < 0.5), filter, &fill);
        }
    }

    /// Operation number `which` of timm's increasing set at a level of 0 to 1; `negate` turns its direction where it has one.
    #[must_use]
    pub fn operation(which: u64, level: f64, negate: bool) -> Operation {
        let sign = if negate { -1.0 } else { 1.0 };
        let enhance = (1.0 + sign * level * 0.9).max(0.1);
        match which {
            0 => Operation::AutoContrast,
            1 => Operation::Equalize,
            2 => Operation::Invert,
            3 => Operation::Rotate(sign * level * 30.0),
            4 => Operation::Posterize(4 - (level * 4.0) as u32),
            5 => Operation::Solarize(256 - ((level * 256.0) as u32).min(256)),
            6 => Operation::SolarizeAdd(((level * 110.0) as u32).min(128)),
            7 => Operation::Color(enhance),
            8 => Operation::Contrast(enhance),
            9 => Operation::Brightness(enhance),
            10 => Operation::Sharpness(enhance),
            11 => Operation::ShearX(sign * level * 0.3),
            12 => Operation::ShearY(sign * level * 0.3),
            13 => Operation::TranslateX(sign * level * 0.45),
            _ => Operation::TranslateY(sign * level * 0.45),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::Purpose;

    #[test]
    fn magnitudes_are_timms() {
        for (which, level, negate, expected) in [
            (3, 0.9, true, Operation::Rotate(-27.0)),
            (4, 0.9, false, Operation::Posterize(1)),
            (5, 0.9, false, Operation::Solarize(26)),
            (6, 0.9, false, Operation::SolarizeAdd(99)),
            (4, 1.0, false, Operation::Posterize(0)),
            (5, 1.0, false, Operation::Solarize(0)),
            (9, 1.0, true, Operation::Brightness(0.1)),
            (14, 1.0, false, Operation::TranslateY(0.45)),
        ] {
            assert_eq!(RandAugment::operation(which, level, negate), expected);
        }
    }

    #[test]
    fn images_of_any_number_of_channels_and_size_survive_every_operation() {
        for (channels, height, width) in [(1, 28, 28), (3, 1, 1), (5, 2, 9), (3, 3, 2)] {
            for which in 0..OPERATIONS {
                let samples = (0..channels * height * width).map(|i| (i * 53 % 256) as u8).collect();
                let mut raster = Raster { channels, height, width, samples };
                for level in [0.0, 0.5, 1.0] {
                    raster.apply(RandAugment::operation(which, level, true), Filter::Bicubic, &vec![7; channels]);
                }
                assert_eq!(raster.samples.len(), channels * height * width);
            }
        }
    }

    #[test]
    fn half_of_the_chosen_operations_happen() {
        let augment = RandAugment { layers: 1, magnitude: 9.0, std: 0.5 };
        let unchanged = (0..2000u64)
            .filter(|&sample| {
                let samples: Vec<u8> = (0..3 * 64).map(|i| (i * 41 % 251) as u8).collect();
                let mut raster = Raster { channels: 3, height: 8, width: 8, samples: samples.clone() };
                let mut stream = Stream::new(0, Purpose::Test, 1, sample);
                augment.apply(&mut raster, &[0.5; 3], Filter::Bilinear, &mut stream);
                raster.samples == samples
            })
            .count();
        assert!((900..1200).contains(&unchanged), "{unchanged}");
    }
}
