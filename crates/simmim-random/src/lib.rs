//! Counter-based random streams.
//!
//! Every random choice of a run (initial weights, sampling order, crops, flips, masks, drop path) is read from a
//! [`Stream`] that is a pure function of `(seed, purpose, epoch, sample)`. Nothing depends on thread timing, on the
//! number of workers, or on what was drawn before for another sample.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is used for. Two purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `sample` is a hash of the parameter's name, see [`Stream::for_name`].
    Init = 1,
    /// The order in which an epoch visits the samples.
    Order = 2,
    /// Crops, flips and other augmentation of one sample.
    Augment = 3,
    /// The mask of one sample.
    Mask = 4,
    /// Drop path decisions of one optimiser step.
    DropPath = 5,
    /// The split into training and held-out samples.
    Split = 6,
    /// Tests and benchmarks.
    Test = 7,
    /// Mixup and cutmix of one batch.
    Mix = 20,
    /// The choice of labelled images; `sample` is the class.
    Labels = 21,
    /// The choice of images for pictures.
    Spread = 22,
    /// Random columns that a matrix is sketched by.
    Sketch = 23,
}

/// A stream of random numbers, positioned by `(seed, purpose, epoch, sample)`.
#[derive(Debug, Clone)]
pub struct Stream {
    rng: ChaCha8Rng,
    spare_normal: Option<f64>,
}

impl Stream {
    /// Opens the stream of `(seed, purpose, epoch, sample)`.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, sample: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..12].copy_from_slice(&(purpose as u32).to_le_bytes());
        key[16..24].copy_from_slice(&epoch.to_le_bytes());
        key[24..].copy_from_slice(&sample.to_le_bytes());
        Self { rng: ChaCha8Rng::from_seed(key), spare_normal: None }
    }

    /// Opens a stream for a named thing (a parameter), independent of the order in which names are visited.
    #[must_use]
    pub fn for_name(seed: u64, purpose: Purpose, name: &str) -> Self {
        // FNV-1a: stable across platforms and releases, which the standard hasher does not promise.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self::new(seed, purpose, 0, hash)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in `0..n`, without bias (Lemire's method). `n` must be positive; zero yields 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.bits()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(z) = self.spare_normal.take() {
            return z;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare_normal = Some(radius * sin);
        radius * cos
    }

    /// Normal with standard deviation `std`, redrawn until it lies in `[low, high]`.
    pub fn truncated_normal(&mut self, std: f64, low: f64, high: f64) -> f64 {
        loop {
            let z = self.normal() * std;
            if (low..=high).contains(&z) {
                return z;
            }
        }
    }

    /// Gamma with this shape and scale 1 (Marsaglia and Tsang 2000; below 1 by the power of a uniform number).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * (1.0 - self.uniform()).powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let z = self.normal();
            let v = (1.0 + c * z).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * z * z + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta distributed; both parameters must be positive.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        // Both round to zero only for tiny parameters, whose mass lies at the ends.
        if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(self.uniform() < a / (a + b))) }
    }

    /// Uniformly random order of `items` (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_positions_give_equal_numbers_and_others_differ() {
        let draw = |s, p, e, i| Stream::new(s, p, e, i).bits();
        assert_eq!(draw(1, Purpose::Mask, 2, 3), draw(1, Purpose::Mask, 2, 3));
        let base = draw(1, Purpose::Mask, 2, 3);
        for other in [
            draw(2, Purpose::Mask, 2, 3),
            draw(1, Purpose::Augment, 2, 3),
            draw(1, Purpose::Mask, 3, 3),
            draw(1, Purpose::Mask, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn moments_of_the_normal_are_right() {
        let mut s = Stream::new(7, Purpose::Test, 0, 0);
        let draws: Vec<f64> = (0..100_000).map(|_| s.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let var = draws.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.015 && (var - 1.0).abs() < 0.02, "{mean} {var}");
    }

    #[test]
    fn moments_of_beta_are_right() {
        for (a, b) in [(0.8, 0.8), (1.0, 1.0), (2.0, 5.0)] {
            let mut s = Stream::new(7, Purpose::Test, 0, 3);
            let draws: Vec<f64> = (0..50_000).map(|_| s.beta(a, b)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            let truth = a * b / ((a + b) * (a + b) * (a + b + 1.0));
            assert!((mean - a / (a + b)).abs() < 0.01 && (var / truth - 1.0).abs() < 0.05, "{a} {b}: {mean} {var}");
            assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
        }
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut s = Stream::new(7, Purpose::Test, 0, 1);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[s.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..100).collect();
        Stream::new(7, Purpose::Test, 0, 2).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
