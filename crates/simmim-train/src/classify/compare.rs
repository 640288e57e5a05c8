//! Does pre-training help? Accuracies of a pre-trained encoder and of what it must beat, fine-tuned and probed, and what they say.

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

/// What is done with an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// It is trained on.
    #[default]
    Finetune,
    /// A linear probe of its features.
    Probe,
}

impl Method {
    /// Its name in tables and sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finetune => "fine-tuned",
            Self::Probe => "probed",
        }
    }
}

/// Where an encoder starts, or what stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// From the weights in question.
    Pretrained,
    /// From random values, trained on.
    Scratch,
    /// Random values as they are, probed.
    Random,
    /// No encoder: raw pixels, probed.
    Pixels,
}

impl Arm {
    /// Its name in files and folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrained => "pretrained",
            Self::Scratch => "scratch",
            Self::Random => "random",
            Self::Pixels => "pixels",
        }
    }

    /// Its name in tables and sentences.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Pretrained => "pre-trained",
            Self::Scratch => "from scratch",
            Self::Random => "random weights",
            Self::Pixels => "raw pixels",
        }
    }
}

/// One training or probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    /// Share of the labelled images.
    pub share: f64,
    /// Their number.
    pub images: usize,
    /// Seed of the choice of images, the order, the head.
    pub seed: u64,
    /// What was done.
    #[serde(default)]
    pub method: Method,
    /// Where the encoder started.
    pub arm: Arm,
    /// Share of the validation images whose class was found, in fine-tuning after the last step.
    pub top1: f64,
    /// Length of the training; 0 for a probe.
    pub steps: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Learning rate of a training.
    #[serde(default)]
    pub lr: Option<f64>,
    /// Layer that a probe looked at, chosen on training images: k for block k, -1 for the final norm.
    #[serde(default)]
    pub layer: Option<i64>,
    /// Strength of l2 of a probe, chosen with it.
    #[serde(default)]
    pub l2: Option<f64>,
}

/// A training by which a learning rate is chosen: on a part of the labelled images, measured on the rest of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateTrial {
    /// Share of the labelled images.
    pub share: f64,
    /// Where the encoder started.
    pub arm: Arm,
    /// The learning rate.
    pub lr: f64,
    /// Images trained on.
    pub images: usize,
    /// Held-out images.
    pub aside: usize,
    /// Share of those whose class was found.
    pub top1: f64,
    /// Cross-entropy on them.
    pub loss: f64,
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

/// What the results at one share of the labels say of the weights against one other arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Share of the labelled images.
    pub share: f64,
    /// Their number.
    pub images: usize,
    /// What was done.
    pub method: Method,
    /// What the weights are compared with.
    pub against: Arm,
    /// Seeds at which both were measured.
    pub seeds: usize,
    /// Accuracy from the weights.
    pub pretrained: Summary,
    /// Accuracy of the other.
    pub other: Summary,
    /// Mean of the differences, seed by seed: positive where the weights were better.
    pub difference: f64,
    /// Where the true difference lies with 95 % confidence (Student's t of the differences); none for one seed.
    pub interval: Option<(f64, f64)>,
}

impl Finding {
    /// A sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let points = |v: f64| format!("{:+.1}", 100.0 * v);
        let other =
            if self.against == Arm::Scratch { "from scratch".into() } else { format!("for {}", self.against.title()) };
        let accuracy = format!(
            "{:.1} % against {:.1} % {other}, {} points",
            100.0 * self.pretrained.mean,
            100.0 * self.other.mean,
            points(self.difference)
        );
        let start =
            format!("with {} of the labels ({} images), {}", percent(self.share), self.images, self.method.name());
        match self.interval {
            None => format!("{start}: {accuracy}; the spread is unknown from one seed"),
            Some((low, high)) => {
                let verdict = match (self.against, low > 0.0, high < 0.0) {
                    (Arm::Pixels, true, _) => "the features beat raw pixels",
                    (Arm::Pixels, _, true) => "raw pixels are better",
                    (_, true, _) => "pre-training helped",
                    (_, _, true) => "pre-training hurt",
                    _ => "no difference beyond the spread",
                };
                let range = format!("95 % interval {} to {} over {} seeds", points(low), points(high), self.seeds);
                format!("{start}: {verdict}, {accuracy} ({range})")
            }
        }
    }
}

/// A share in per cent, without needless digits.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

/// All trainings and probes of a comparison.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// In any order.
    pub results: Vec<ArmResult>,
    /// Trainings by which learning rates were chosen, in any order.
    pub trials: Vec<RateTrial>,
}

/// What the weights and another arm gave at the same share, seed and method.
type Pair<'a> = (&'a ArmResult, &'a ArmResult);

impl Comparison {
    /// What is known about a training or probe.
    #[must_use]
    pub fn find(&self, share: f64, seed: u64, method: Method, arm: Arm) -> Option<&ArmResult> {
        let same = |r: &&ArmResult| (r.share, r.seed, r.method, r.arm) == (share, seed, method, arm);
        self.results.iter().find(same)
    }

    /// The learning rate that is best on the held-out images: by accuracy, then by cross-entropy, then the first tried.
    #[must_use]
    pub fn best_rate(&self, share: f64, arm: Arm) -> Option<f64> {
        let better = |a: &RateTrial, b: &RateTrial| a.top1 > b.top1 || (a.top1 == b.top1 && a.loss < b.loss);
        let trials = self.trials.iter().filter(|t| (t.share, t.arm) == (share, arm));
        trials.reduce(|best, t| if better(t, best) { t } else { best }).map(|t| t.lr)
    }

    /// A finding for every share, method and other arm that was measured at a seed at least together with the weights: by share,
    /// ascending, then by method and arm.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut by_place: BTreeMap<(u64, Method, Arm), Vec<Pair<'_>>> = BTreeMap::new();
        for other in self.results.iter().filter(|r| r.arm != Arm::Pretrained) {
            if let Some(own) = self.find(other.share, other.seed, other.method, Arm::Pretrained) {
                // Positive floats sort as their bits do.
                by_place.entry((other.share.to_bits(), other.method, other.arm)).or_default().push((own, other));
            }
        }
        by_place.into_values().map(|pairs| Self::finding(&pairs)).collect()
    }

    fn finding(pairs: &[Pair<'_>]) -> Finding {
        let of = |f: fn(&Pair<'_>) -> f64| Summary::of(&pairs.iter().map(f).collect::<Vec<f64>>());
        let difference = of(|(p, s)| p.top1 - s.top1);
        let n = pairs.len();
        let interval = (n > 1).then(|| {
            let t = T.get(n - 2).copied().unwrap_or(T_MANY);
            let reach = t * difference.spread / (n as f64).sqrt();
            (difference.mean - reach, difference.mean + reach)
        });
        let (own, other) = pairs[0];
        Finding {
            share: own.share,
            images: own.images,
            method: own.method,
            against: other.arm,
            seeds: n,
            pretrained: of(|(p, _)| p.top1),
            other: of(|(_, s)| s.top1),
            difference: difference.mean,
            interval,
        }
    }

    /// For every share the way with the highest mean accuracy, as a sentence.
    #[must_use]
    pub fn best_ways(&self) -> Vec<String> {
        let mut ways: BTreeMap<u64, BTreeMap<(Method, Arm), Vec<f64>>> = BTreeMap::new();
        for r in &self.results {
            ways.entry(r.share.to_bits()).or_default().entry((r.method, r.arm)).or_default().push(r.top1);
        }
        let sentence = |(share, ways): (u64, BTreeMap<(Method, Arm), Vec<f64>>)| {
            let means = ways.into_iter().map(|(way, values)| (way, Summary::of(&values).mean));
            let ((method, arm), mean) = means.reduce(|best, way| if way.1 > best.1 { way } else { best })?;
            let share = percent(f64::from_bits(share));
            Some(format!("best with {share} of the labels: {}, {}, {:.1} %", arm.title(), method.name(), 100.0 * mean))
        };
        ways.into_iter().filter_map(sentence).collect()
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

    fn result(seed: usize, method: Method, arm: Arm, top1: f64) -> ArmResult {
        let (share, images, steps, seconds) = (0.01, 600, 10, 1.0);
        let seed = seed as u64;
        ArmResult { share, images, seed, method, arm, top1, steps, seconds, lr: None, layer: None, l2: None }
    }

    fn comparison_of(method: Method, other: Arm, pairs: &[(f64, f64)]) -> Comparison {
        let both = |(seed, &(p, s)): (usize, &(f64, f64))| {
            [result(seed, method, Arm::Pretrained, p), result(seed, method, other, s)]
        };
        Comparison { results: pairs.iter().enumerate().flat_map(both).collect(), trials: Vec::new() }
    }

    fn comparison(pairs: &[(f64, f64)]) -> Comparison {
        comparison_of(Method::Finetune, Arm::Scratch, pairs)
    }

    #[test]
    fn the_spread_decides_what_is_said() {
        for (pairs, expected) in [
            (
                &[(0.80, 0.70), (0.81, 0.72), (0.79, 0.70)][..],
                "pre-training helped, 80.0 % against 70.7 % from scratch, +9.3",
            ),
            (&[(0.80, 0.70), (0.70, 0.75), (0.75, 0.72)], "no difference beyond the spread"),
            (&[(0.60, 0.70), (0.61, 0.72), (0.59, 0.70)], "pre-training hurt"),
            (&[(0.80, 0.70)], "the spread is unknown from one seed"),
        ] {
            let sentence = comparison(pairs).findings()[0].sentence();
            assert!(sentence.contains(expected), "{sentence}");
            assert!(sentence.starts_with("with 1 % of the labels (600 images), fine-tuned:"), "{sentence}");
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
        assert!(
            String::from_utf8(c.csv().unwrap())
                .unwrap()
                .starts_with("share,images,seed,method,arm,top1,steps,seconds,lr,layer,l2\n")
        );
    }

    #[test]
    fn methods_and_arms_are_told_apart() {
        let pairs = [(0.80, 0.70), (0.81, 0.72), (0.79, 0.70)];
        let turned = pairs.map(|(a, b)| (b, a));
        let mut c = comparison(&pairs);
        c.results.extend(comparison_of(Method::Probe, Arm::Pixels, &turned).results);
        c.results.extend((0..2).map(|seed| result(seed, Method::Probe, Arm::Random, 0.5)));
        let findings = c.findings();
        let places: Vec<_> = findings.iter().map(|f| (f.method, f.against, f.seeds)).collect();
        let expected =
            [(Method::Finetune, Arm::Scratch, 3), (Method::Probe, Arm::Random, 2), (Method::Probe, Arm::Pixels, 3)];
        assert_eq!(places, expected);
        let sentence = findings[2].sentence();
        assert!(sentence.contains("probed: raw pixels are better, 70.7 % against 80.0 % for raw pixels"), "{sentence}");
        assert!(findings[1].sentence().contains("probed: pre-training helped"), "{}", findings[1].sentence());
        assert_eq!(c.best_ways(), ["best with 1 % of the labels: pre-trained, fine-tuned, 80.0 %"]);
    }

    #[test]
    fn the_rate_that_is_best_on_held_out_images_is_used() {
        let trial = |arm, lr, top1, loss| RateTrial { share: 0.1, arm, lr, images: 48, aside: 12, top1, loss };
        let trials = vec![
            trial(Arm::Scratch, 1e-3, 0.5, 2.0),
            trial(Arm::Scratch, 5e-4, 0.75, 1.0),
            trial(Arm::Scratch, 2e-4, 0.75, 0.9),
            trial(Arm::Pretrained, 1e-2, 1.0, 0.1),
            trial(Arm::Scratch, 1e-4, 0.75, f64::NAN),
        ];
        let c = Comparison { trials, ..Comparison::default() };
        assert_eq!((c.best_rate(0.1, Arm::Scratch), c.best_rate(0.1, Arm::Pretrained)), (Some(2e-4), Some(1e-2)));
        assert_eq!(c.best_rate(0.2, Arm::Scratch), None);
    }
}
