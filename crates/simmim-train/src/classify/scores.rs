//! Accuracy, confusion and calibration of a classifier.

use serde::Serialize;

/// Bins of the calibration error (Guo et al., arXiv 1706.04599, section 2).
const BINS: usize = 15;

/// Probabilities of a row of logits.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&z| f64::from(z - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// What is counted over the images of a set.
#[derive(Debug, Clone)]
pub struct Scores {
    classes: Vec<String>,
    /// Images by true class and predicted class.
    confusion: Vec<Vec<u64>>,
    /// Images whose class is among the first k predictions, for k from 1 on.
    within: Vec<u64>,
    loss: f64,
    images: u64,
    /// Images, found classes and confidence of each bin.
    bins: [(u64, u64, f64); BINS],
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScore {
    /// Its name.
    pub class: String,
    /// Images of it.
    pub images: u64,
    /// Share of them that was found; none without images.
    pub recall: Option<f64>,
    /// Share of the images taken for it that are of it; none where none was taken for it.
    pub precision: Option<f64>,
}

impl Scores {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(classes: Vec<String>) -> Self {
        let n = classes.len();
        Self {
            confusion: vec![vec![0; n]; n],
            within: vec![0; n],
            classes,
            loss: 0.0,
            images: 0,
            bins: [(0, 0, 0.0); BINS],
        }
    }

    /// Counts an image by its class and its logits. Of equal logits the first class wins.
    pub fn add(&mut self, label: usize, logits: &[f32]) {
        let p = softmax(logits);
        // What does not lie clearly behind lies before: a label without a number counts as found by nobody.
        let behind = |i: usize, v: f32| v < logits[label] || (v == logits[label] && i > label);
        let rank = logits.iter().enumerate().filter(|&(i, &v)| i != label && !behind(i, v)).count();
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        self.within.iter_mut().skip(rank).for_each(|n| *n += 1);
        self.confusion[label][best] += 1;
        self.loss -= p[label].max(f64::MIN_POSITIVE).ln();
        self.images += 1;
        let confidence = p[best];
        let bin = &mut self.bins[((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1];
        *bin = (bin.0 + 1, bin.1 + u64::from(best == label), bin.2 + confidence);
    }

    /// Names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Images counted.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.images
    }

    /// Images by true class (rows) and predicted class (columns).
    #[must_use]
    pub fn confusion(&self) -> &[Vec<u64>] {
        &self.confusion
    }

    /// Share of the images whose class is among the first `k` predictions.
    #[must_use]
    pub fn top(&self, k: usize) -> f64 {
        let within = k.min(self.within.len()).checked_sub(1).map_or(0, |at| self.within[at]);
        within as f64 / self.images.max(1) as f64
    }

    /// Mean cross-entropy.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss / self.images.max(1) as f64
    }

    /// Images, those whose class is the first prediction, and the sum of their cross-entropies: what ranks add up.
    pub(crate) fn totals(&self) -> [f64; 3] {
        [self.images as f64, self.within.first().copied().unwrap_or_default() as f64, self.loss]
    }

    /// Expected calibration error: the mean distance of confidence and accuracy over 15 equal bins of confidence, weighted by
    /// their images.
    #[must_use]
    pub fn calibration_error(&self) -> f64 {
        let distance = |(_, found, confidence): &(u64, u64, f64)| (*found as f64 - confidence).abs();
        self.bins.iter().map(distance).sum::<f64>() / self.images.max(1) as f64
    }

    /// Every class.
    #[must_use]
    pub fn per_class(&self) -> Vec<ClassScore> {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let row = |(i, class): (usize, &String)| {
            let (images, found) = (self.confusion[i].iter().sum(), self.confusion[i][i]);
            let taken = self.confusion.iter().map(|row| row[i]).sum();
            ClassScore { class: class.clone(), images, recall: share(found, images), precision: share(found, taken) }
        };
        self.classes.iter().enumerate().map(row).collect()
    }

    /// All of it as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "images": self.images, "top1": self.top(1), "top5": self.top(5), "loss": self.loss(),
            "calibration_error": self.calibration_error(), "classes": self.classes, "per_class": self.per_class(),
            "confusion": self.confusion,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("c{i}")).collect()
    }

    #[test]
    fn counts_are_those_of_a_small_example() {
        let mut s = Scores::new(names(3));
        s.add(0, &[2.0, 1.0, 0.0]);
        s.add(1, &[2.0, 1.0, 0.0]);
        s.add(2, &[2.0, 1.0, 0.0]);
        s.add(2, &[0.0, 0.0, 5.0]);
        assert_eq!((s.top(1), s.top(2), s.top(3), s.top(5)), (0.5, 0.75, 1.0, 1.0));
        assert_eq!(s.confusion(), [[1, 0, 0], [1, 0, 0], [1, 0, 1]]);
        let classes = s.per_class();
        assert_eq!((classes[2].recall, classes[0].precision, classes[1].precision), (Some(0.5), Some(1.0 / 3.0), None));
        let p = softmax(&[2.0, 1.0, 0.0]);
        let expected = -(p[0].ln() + p[1].ln() + p[2].ln() + softmax(&[0.0, 0.0, 5.0])[2].ln()) / 4.0;
        assert!((s.loss() - expected).abs() < 1e-12);
    }

    #[test]
    fn a_calibrated_classifier_has_no_calibration_error_and_a_boastful_one_has() {
        let (mut good, mut bad) = (Scores::new(names(2)), Scores::new(names(2)));
        let logit = (0.75f32 / 0.25).ln();
        for i in 0..400 {
            good.add(usize::from(i % 4 == 0), &[logit, 0.0]);
            bad.add(usize::from(i % 4 == 0), &[20.0, 0.0]);
        }
        assert!(good.calibration_error() < 1e-6, "{}", good.calibration_error());
        assert!((bad.calibration_error() - 0.25).abs() < 1e-6, "{}", bad.calibration_error());
    }

    #[test]
    fn numbers_that_are_not_finite_do_not_count_as_found() {
        let mut s = Scores::new(names(2));
        s.add(1, &[f32::NAN, f32::NAN]);
        assert_eq!((s.images(), s.top(1)), (1, 0.0));
        assert_eq!(s.confusion()[1][0], 1);
    }
}
