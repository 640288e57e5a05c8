//! Does pre-training help? Accuracies of pre-trained and untrained encoders under the same fine-tuning, and what they say.

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// The same for any number beyond.
const T_MANY: f64 = 1.96;

/// Where an encoder starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// From the weights in question.
    Pretrained,
    /// From random values.
    Scratch,
}

impl Arm {
    /// Its name in files and folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrained => "pretrained",
            Self::Scratch => "scratch",
        }
    }
}

/// One training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    /// Share of the labelled images.
    pub share: f64,
    /// Their number.
    pub images: usize,
    /// Seed of the choice of images, the order, the head.
    pub seed: u64,
    /// Where the encoder started.
    pub arm: Arm,
    /// Share of the validation images whose class was found after the last step.
    pub top1: f64,
    /// Length of the training.
    pub steps: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Mean and spread over the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample; 0 for one seed.
    pub spread: f64,
}

impl Summary {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        Self { mean, spread: if values.len() > 1 { (square / (n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// What the trainings at one share of the labels say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Share of the labelled images.
    pub share: f64,
    /// Their number.
    pub images: usize,
    /// Seeds at which both arms were trained.
    pub seeds: usize,
    /// Accuracy from the weights.
    pub pretrained: Summary,
    /// Accuracy from random values.
    pub scratch: Summary,
    /// Mean of the differences, seed by seed: positive where pre-training helped.
    pub difference: f64,
    /// Where the true difference lies with 95 % confidence (Student's t of the differences); none for one seed.
    pub interval: Option<(f64, f64)>,
}

impl Finding {
    /// A sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let points = |v: f64| format!("{:+.1}", 100.0 * v);
        let accuracy = format!(
            "{:.1} % against {:.1} % from scratch, {} points",
            100.0 * self.pretrained.mean,
            100.0 * self.scratch.mean,
            points(self.difference)
        );
        let images = format!("with {} of the labels ({} images)", percent(self.share), self.images);
        match self.interval {
            None => format!("{images}: {accuracy}; one seed says nothing about the spread"),
            Some((low, high)) => {
                let verdict = if low > 0.0 {
                    "pre-training helped"
                } else if high < 0.0 {
                    "pre-training hurt"
                } else {
                    "no difference beyond the spread"
                };
                let range = format!("95 % interval {} to {} over {} seeds", points(low), points(high), self.seeds);
                format!("{images} {verdict}: {accuracy} ({range})")
            }
        }
    }
}

/// A share in per cent, without needless digits.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

/// All trainings of a comparison.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// In any order.
    pub results: Vec<ArmResult>,
}

impl Comparison {
    /// What is known about a training.
    #[must_use]
    pub fn find(&self, share: f64, seed: u64, arm: Arm) -> Option<&ArmResult> {
        self.results.iter().find(|r| r.share == share && r.seed == seed && r.arm == arm)
    }

    /// A finding for every share at which both arms were trained with a seed at least, ascending.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut by_share: BTreeMap<u64, Vec<(&ArmResult, &ArmResult)>> = BTreeMap::new();
        for r in self.results.iter().filter(|r| r.arm == Arm::Pretrained) {
            if let Some(scratch) = self.find(r.share, r.seed, Arm::Scratch) {
                // Positive floats sort as their bits do.
                by_share.entry(r.share.to_bits()).or_default().push((r, scratch));
            }
        }
        by_share.into_values().map(|pairs| Self::finding(&pairs)).collect()
    }

    fn finding(pairs: &[(&ArmResult, &ArmResult)]) -> Finding {
        let of = |f: fn(&(&ArmResult, &ArmResult)) -> f64| Summary::of(&pairs.iter().map(f).collect::<Vec<f64>>());
        let difference = of(|(p, s)| p.top1 - s.top1);
        let n = pairs.len();
        let interval = (n > 1).then(|| {
            let t = T.get(n - 2).copied().unwrap_or(T_MANY);
            let reach = t * difference.spread / (n as f64).sqrt();
            (difference.mean - reach, difference.mean + reach)
        });
        Finding {
            share: pairs[0].0.share,
            images: pairs[0].0.images,
            seeds: n,
            pretrained: of(|(p, _)| p.top1),
            scratch: of(|(_, s)| s.top1),
            difference: difference.mean,
            interval,
        }
    }

    /// The trainings as CSV.
    ///
    /// # Errors
    /// [`TrainError::Internal`] only if memory could not be written to.
    pub fn csv(&self) -> Result<Vec<u8>, TrainError> {
        let failed = |e: String| TrainError::Internal { what: e };
        let mut out = csv::Writer::from_writer(Vec::new());
        self.results.iter().try_for_each(|r| out.serialize(r)).map_err(|e| failed(e.to_string()))?;
        out.into_inner().map_err(|e| failed(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(pairs: &[(f64, f64)]) -> Comparison {
        let result = |seed: usize, arm, top1| ArmResult {
            share: 0.01,
            images: 600,
            seed: seed as u64,
            arm,
            top1,
            steps: 10,
            seconds: 1.0,
        };
        let both =
            |(seed, &(p, s)): (usize, &(f64, f64))| [result(seed, Arm::Pretrained, p), result(seed, Arm::Scratch, s)];
        Comparison { results: pairs.iter().enumerate().flat_map(both).collect() }
    }

    #[test]
    fn the_spread_decides_what_is_said() {
        for (pairs, expected) in [
            (
                &[(0.80, 0.70), (0.81, 0.72), (0.79, 0.70)][..],
                "pre-training helped: 80.0 % against 70.7 % from scratch, +9.3",
            ),
            (&[(0.80, 0.70), (0.70, 0.75), (0.75, 0.72)], "no difference beyond the spread"),
            (&[(0.60, 0.70), (0.61, 0.72), (0.59, 0.70)], "pre-training hurt"),
            (&[(0.80, 0.70)], "one seed says nothing about the spread"),
        ] {
            let sentence = comparison(pairs).findings()[0].sentence();
            assert!(sentence.contains(expected), "{sentence}");
            assert!(sentence.starts_with("with 1 % of the labels (600 images)"), "{sentence}");
        }
    }

    #[test]
    fn the_interval_is_that_of_a_paired_t_test() {
        // scipy.stats: mean 0.0933, standard error 0.00333, t(2) = 4.303.
        let (low, high) = comparison(&[(0.80, 0.70), (0.81, 0.72), (0.79, 0.70)]).findings()[0].interval.unwrap();
        assert!((low - 0.078_99).abs() < 1e-4 && (high - 0.107_68).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn a_seed_of_one_arm_alone_does_not_count() {
        let mut c = comparison(&[(0.8, 0.7), (0.9, 0.7)]);
        c.results.pop();
        assert_eq!(c.findings()[0].seeds, 1);
        c.results.retain(|r| r.arm == Arm::Scratch);
        assert!(c.findings().is_empty());
        assert!(String::from_utf8(c.csv().unwrap()).unwrap().starts_with("share,images,seed,arm,top1,steps,seconds\n"));
    }
}
