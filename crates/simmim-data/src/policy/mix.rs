//! Mixup (Zhang et al., arXiv 1710.09412), cutmix (Yun et al., arXiv 1905.04899) and label smoothing (Szegedy et al., arXiv
//! 1512.00567), one mixture for each batch, as timm's `Mixup` in mode `batch`.

use simmim_random::{Purpose, Stream};

use crate::DataError;

/// How batches are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Parameter of mixup's Beta distribution; 0 for none.
    pub mixup: f64,
    /// Parameter of cutmix's Beta distribution; 0 for none.
    pub cutmix: f64,
    /// Probability that a batch is mixed.
    pub probability: f64,
    /// Probability of cutmix where both are on.
    pub switch: f64,
    /// Share of every label that is spread over all classes.
    pub smoothing: f64,
}

/// What one batch is mixed by: image i with image n - 1 - i.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixture {
    /// Not at all.
    None,
    /// `share` of the image itself, the rest of the other.
    Mixup {
        /// Share of the image itself.
        share: f64,
    },
    /// A rectangle of the other image.
    Cutmix {
        /// Top, bottom, left, right in pixels; bottom and right are outside.
        rectangle: [usize; 4],
        /// Share of the image that is left, of whole pixels.
        share: f64,
    },
}

impl Mix {
    /// Labels as they are.
    pub const NONE: Self = Self { mixup: 0.0, cutmix: 0.0, probability: 1.0, switch: 0.5, smoothing: 0.0 };

    /// Checks every value once.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the value that cannot work.
    pub fn validate(&self) -> Result<(), DataError> {
        for (key, value) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(DataError::config(key, "a number that is not negative", value));
            }
        }
        let shares =
            [("mix_probability", self.probability), ("mix_switch", self.switch), ("label_smoothing", self.smoothing)];
        for (key, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(DataError::config(key, "a share between 0 and 1", value));
            }
        }
        Ok(())
    }

    /// Draws the mixture of a batch of images of `(height, width)`: a pure function of `(seed, epoch, batch)`.
    #[must_use]
    pub fn draw(&self, seed: u64, epoch: u64, batch: u64, (height, width): (usize, usize)) -> Mixture {
        let mut stream = Stream::new(seed, Purpose::Mix, epoch, batch);
        if (self.mixup == 0.0 && self.cutmix == 0.0) || stream.uniform() >= self.probability {
            return Mixture::None;
        }
        let both = self.mixup > 0.0 && self.cutmix > 0.0;
        let cut = if both { stream.uniform() < self.switch } else { self.cutmix > 0.0 };
        let alpha = if cut { self.cutmix } else { self.mixup };
        let share = stream.beta(alpha, alpha);
        if !cut {
            return Mixture::Mixup { share };
        }
        let center = (stream.below(height as u64) as usize, stream.below(width as u64) as usize);
        Mixture::cutmix((height, width), share, center)
    }

    /// Soft labels `[batch, classes]` of a mixed batch: smoothed one-hot labels of each image and of its partner, by their shares.
    #[must_use]
    pub fn targets(&self, mixture: Mixture, labels: &[usize], classes: usize) -> Vec<f32> {
        let share = match mixture {
            Mixture::None => 1.0,
            Mixture::Mixup { share } | Mixture::Cutmix { share, .. } => share,
        };
        let off = self.smoothing / classes as f64;
        let mut targets = vec![off as f32; labels.len() * classes];
        for (row, (&own, &other)) in targets.chunks_exact_mut(classes).zip(labels.iter().zip(labels.iter().rev())) {
            for (label, share) in [(own, share), (other, 1.0 - share)] {
                row[label] = (f64::from(row[label]) + share * (1.0 - self.smoothing)) as f32;
            }
        }
        targets
    }
}

impl Mixture {
    /// Cutmix of images of `(height, width)` that leaves about `share` of each: a rectangle around `center` (row, column), of the
    /// images' aspect ratio. Of an odd side the larger half lies below or right of the centre, as in timm 1.0.31's `rand_bbox` (the
    /// original halves both down); what hangs over the border is cut off.
    #[must_use]
    pub fn cutmix((height, width): (usize, usize), share: f64, center: (usize, usize)) -> Self {
        let side = (1.0 - share).sqrt();
        let span = |center: usize, len: usize| {
            let cut = (len as f64 * side) as usize;
            [center.saturating_sub(cut / 2), (center + cut.div_ceil(2)).min(len)]
        };
        let ([top, bottom], [left, right]) = (span(center.0, height), span(center.1, width));
        let share = 1.0 - ((bottom - top) * (right - left)) as f64 / (height * width) as f64;
        Self::Cutmix { rectangle: [top, bottom, left, right], share }
    }

    /// Mixes a batch of images, each `[channels, height, width]`.
    pub fn apply(self, images: &mut [f32], values: usize, (height, width): (usize, usize)) {
        let count = images.len() / values.max(1);
        for i in 0..count.div_ceil(2) {
            let j = count - 1 - i;
            if i == j {
                continue;
            }
            let (low, high) = images.split_at_mut(j * values);
            let (a, b) = (&mut low[i * values..(i + 1) * values], &mut high[..values]);
            match self {
                Self::None => {}
                Self::Mixup { share } => {
                    let (own, rest) = (share as f32, (1.0 - share) as f32);
                    for (a, b) in a.iter_mut().zip(b) {
                        (*a, *b) = (own * *a + rest * *b, own * *b + rest * *a);
                    }
                }
                Self::Cutmix { rectangle: [top, bottom, left, right], .. } => {
                    for line in (0..values / (height * width).max(1)).flat_map(|c| (top..bottom).map(move |y| (c, y))) {
                        let at = (line.0 * height + line.1) * width;
                        a[at + left..at + right].swap_with_slice(&mut b[at + left..at + right]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Mix = Mix { mixup: 0.8, cutmix: 1.0, probability: 1.0, switch: 0.5, smoothing: 0.1 };

    #[test]
    fn smoothed_and_mixed_labels_sum_to_one() {
        let targets = BOTH.targets(Mixture::Mixup { share: 0.3 }, &[2, 0, 2], 4);
        for row in targets.chunks(4) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        assert!((targets[5] - 0.025).abs() < 1e-7 && (targets[4] - 0.925).abs() < 1e-6, "the middle mixes with itself");
        let plain = Mix::NONE.targets(Mixture::None, &[1, 0], 2);
        assert_eq!(plain, [0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_cutmix_share_is_the_area_left() {
        let (mut cut, mut mixed) = (0, 0);
        for batch in 0..400 {
            let mixture = BOTH.draw(1, 0, batch, (6, 10));
            assert_eq!(mixture, BOTH.draw(1, 0, batch, (6, 10)));
            match mixture {
                Mixture::Cutmix { share, .. } => {
                    cut += 1;
                    let mut images: Vec<f32> = [vec![0.0; 120], vec![1.0; 120]].concat();
                    mixture.apply(&mut images, 120, (6, 10));
                    let foreign = images[..120].iter().sum::<f32>() / 120.0;
                    assert!((f64::from(foreign) - (1.0 - share)).abs() < 1e-6);
                    assert_eq!(images[..120].iter().sum::<f32>() + images[120..].iter().sum::<f32>(), 120.0);
                }
                Mixture::Mixup { share } => {
                    mixed += 1;
                    let mut images = vec![0.0, 1.0, 5.0, 2.0];
                    mixture.apply(&mut images, 1, (1, 1));
                    let expected = [2.0 * (1.0 - share), share + 5.0 * (1.0 - share)];
                    assert!((f64::from(images[0]) - expected[0]).abs() < 1e-6);
                    assert!((f64::from(images[1]) - expected[1]).abs() < 1e-6);
                }
                Mixture::None => panic!("nothing was mixed"),
            }
        }
        assert!((150..250).contains(&cut) && mixed > 150, "{cut} {mixed}");
    }
}
