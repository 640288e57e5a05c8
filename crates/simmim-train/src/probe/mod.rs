//! Probes: how well classes can be told apart by features, without training the encoder further.
//!
//! [`Prober`] rates one matrix of features at a time, by k nearest neighbours ([`knn`]) and by logistic regression ([`linear`]).
//! Whatever is chosen (k, the strength of l2, the layer) is chosen on a part of the training images; the validation images only
//! measure. [`Report`] holds the ratings of a sweep and says which is best.

pub mod knn;
pub mod labels;
pub mod linear;
mod report;

pub use labels::{Labelled, Split, Task, split};
pub use report::{Kind, KnnScore, LinearScore, Report, Row};

use crate::error::TrainError;
use crate::features::{Layer, Matrix};
use linear::{Classifier, Fit, Standardiser};
use simmim_data::Transform;
use simmim_engine::cpu::Pool;
use std::sync::{Mutex, PoisonError};

/// Numbers of neighbours that are tried.
const KS: [usize; 7] = [1, 5, 10, 20, 50, 100, 200];
/// Strengths of l2 that are tried, strongest first: each fit starts from the one before it.
const L2: [f64; 7] = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// Weaker strengths that may rate lower in a row before the rest is not tried.
const PATIENCE: usize = 2;
/// Most numbers of an image's pixels as a feature.
const MOST_PIXELS: usize = 4096;

/// Which probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Methods {
    /// k nearest neighbours.
    pub knn: bool,
    /// Logistic regression.
    pub linear: bool,
}

/// Calls `f` for every task on the pool; the results are in the order of the tasks.
pub(crate) fn parallel_map<T: Send>(pool: &Pool, tasks: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let places: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
    pool.run(tasks, &|task, _| {
        let result = f(task);
        *places[task].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    });
    places.into_iter().filter_map(|p| p.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// The transform that makes pixels into features: at the size of the model's images, or smaller where that gives more than 4096
/// numbers.
#[must_use]
pub fn pixel_transform(transform: &Transform) -> Transform {
    let mut out = transform.clone();
    if transform.values() > MOST_PIXELS {
        let scale = (MOST_PIXELS as f64 / transform.values() as f64).sqrt();
        let side = |pixels: usize| ((pixels as f64 * scale).floor() as usize).max(1);
        out.size = (side(transform.size.0), side(transform.size.1));
    }
    out
}

/// Rates features.
#[derive(Debug)]
pub struct Prober {
    pool: Pool,
    methods: Methods,
    classes: usize,
    train: Vec<usize>,
    val: Vec<usize>,
    split: Split,
    split_labels: [Vec<usize>; 2],
}

impl Prober {
    /// A prober for rows of features with these classes. `threads` 0: one for each core.
    ///
    /// # Errors
    /// As [`split`].
    pub fn new(
        threads: usize,
        methods: Methods,
        classes: usize,
        train: Vec<usize>,
        val: Vec<usize>,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let split = split(&train, classes, seed)?;
        let of = |places: &[usize]| places.iter().map(|&p| train[p]).collect();
        let split_labels = [of(&split.fit), of(&split.check)];
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pool = Pool::new(if threads == 0 { cores() } else { threads });
        Ok(Self { pool, methods, classes, train, val, split, split_labels })
    }

    /// Rates features of the training and validation images.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn rate(&self, kind: Kind, layer: Option<Layer>, train: &Matrix, val: &Matrix) -> Result<Row, TrainError> {
        let parts = [train.select(&self.split.fit), train.select(&self.split.check)];
        let features = match (kind, layer) {
            (Kind::Pixels, _) => "raw pixels".to_owned(),
            (Kind::Random, Some(layer)) => format!("random weights, {layer}"),
            (_, layer) => layer.map(|l| l.to_string()).unwrap_or_default(),
        };
        Ok(Row {
            kind,
            layer: layer.map(Layer::number),
            features,
            dims: train.cols,
            knn: self.methods.knn.then(|| self.knn(&parts, train, val)),
            linear: if self.methods.linear { Some(self.linear(&parts, train, val)?) } else { None },
        })
    }

    fn knn(&self, parts: &[Matrix; 2], train: &Matrix, val: &Matrix) -> KnnScore {
        let [fit, check] = &self.split_labels;
        let ks: Vec<usize> = KS.into_iter().filter(|&k| k == 1 || k <= fit.len()).collect();
        let rate = |bank: &Matrix, bank_labels: &[usize], queries: &Matrix, labels: &[usize], ks: &[usize]| {
            let most = ks.iter().copied().max().unwrap_or(1);
            let near = knn::nearest(&self.pool, &knn::normalised(bank), &knn::normalised(queries), most);
            knn::accuracies(&near, bank_labels, labels, self.classes, ks)
        };
        let sweep = rate(&parts[0], fit, &parts[1], check, &ks);
        let best = (0..ks.len()).fold(0, |best, i| if sweep[i] > sweep[best] { i } else { best });
        let val = rate(train, &self.train, val, &self.val, &[ks[best]]);
        KnnScore { k: ks[best], split_accuracy: sweep[best], val_accuracy: val[0] }
    }

    fn linear(&self, parts: &[Matrix; 2], train: &Matrix, val: &Matrix) -> Result<LinearScore, TrainError> {
        let [fit_labels, check_labels] = &self.split_labels;
        let scale = Standardiser::of(&parts[0]);
        let (fit, check) = (scale.apply(&parts[0]), scale.apply(&parts[1]));
        let mut start = Classifier::zeros(self.classes, train.cols);
        let mut best: Option<(f64, f64, Fit)> = None;
        let mut worse = 0;
        for l2 in L2 {
            let found = linear::fit(&self.pool, &fit, fit_labels, l2, start)?;
            start = found.classifier.clone();
            let accuracy = found.classifier.accuracy(&self.pool, &check, check_labels);
            if best.as_ref().is_none_or(|(_, known, _)| accuracy > *known) {
                best = Some((l2, accuracy, found));
                worse = 0;
            } else {
                worse += 1;
                if worse >= PATIENCE {
                    break;
                }
            }
        }
        let Some((l2, split_accuracy, found)) = best else {
            return Err(TrainError::Internal { what: "no strength of l2 was tried".into() });
        };
        let scale = Standardiser::of(train);
        let whole = linear::fit(&self.pool, &scale.apply(train), &self.train, l2, found.classifier)?;
        let val_accuracy = whole.classifier.accuracy(&self.pool, &scale.apply(val), &self.val);
        let (converged, gradient) = (whole.converged(), whole.gradient);
        Ok(LinearScore { l2, split_accuracy, val_accuracy, converged, gradient })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::{Purpose, Stream};

    /// Classes as clusters, some columns of noise.
    fn data(rows: usize, noise: f64, seed: u64) -> (Matrix, Vec<usize>) {
        let mut stream = Stream::new(seed, Purpose::Test, 3, 0);
        let labels: Vec<usize> = (0..rows).map(|i| i % 3).collect();
        let value = |stream: &mut Stream, l: usize, c: usize| f64::from(u8::from(l == c)) + stream.normal() * noise;
        let data =
            labels.iter().flat_map(|&l| (0..6).map(move |c| (l, c))).map(|(l, c)| value(&mut stream, l, c) as f32);
        (Matrix { rows, cols: 6, data: data.collect() }, labels)
    }

    #[test]
    fn clusters_are_told_apart_noise_is_not_and_threads_change_nothing() {
        let ((train, labels), (val, val_labels)) = (data(300, 0.2, 1), data(200, 0.2, 2));
        let both = Methods { knn: true, linear: true };
        let row = |threads: usize, train: &Matrix, val: &Matrix| {
            let prober = Prober::new(threads, both, 3, labels.clone(), val_labels.clone(), 5).unwrap();
            prober.rate(Kind::Trained, Some(Layer::Block(2)), train, val).unwrap()
        };
        let good = row(1, &train, &val);
        assert_eq!(good, row(3, &train, &val));
        let scores = |r: &Row| (r.knn.clone().unwrap(), r.linear.clone().unwrap());
        let (knn, linear) = scores(&good);
        assert!(knn.val_accuracy > 0.95 && linear.val_accuracy > 0.95 && linear.converged, "{good:?}");
        assert_eq!((good.features.as_str(), good.layer, good.dims), ("block 2", Some(2), 6));
        let noise = |m: &Matrix| Matrix { data: m.data.iter().map(|v| (v * 1e4).sin()).collect(), ..m.clone() };
        let (knn, linear) = scores(&row(2, &noise(&train), &noise(&val)));
        assert!(knn.val_accuracy < 0.5 && linear.val_accuracy < 0.5, "{knn:?} {linear:?}");
    }

    #[test]
    fn pixels_of_large_images_are_shrunk_in_proportion() {
        assert_eq!(pixel_transform(&Transform::new((28, 28), 1)).size, (28, 28));
        let small = pixel_transform(&Transform::new((448, 224), 3));
        assert_eq!((small.size, small.values() <= MOST_PIXELS), ((52, 26), true));
    }
}
