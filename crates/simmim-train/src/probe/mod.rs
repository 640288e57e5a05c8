//! Probes: how well classes can be told apart by features, without training the encoder further.
//!
//! [`Prober`] rates one matrix of features at a time, by k nearest neighbours ([`knn`]) and by logistic regression ([`linear`]).
//! Everything selected (k, the [`Space`] of the neighbours, the l2 strength, the layer) is selected on held-out training images
//! ([`folds`], or [`groups::group_folds`] where images belong together); validation images are used for measurement only. [`Report`] holds the ratings of a sweep and says which is best.

pub mod groups;
pub mod knn;
pub mod labels;
pub mod linear;
mod precondition;
mod report;
mod solver;
pub mod space;

pub use labels::{LabelledSet, LabelledSets, Split, folds, split};
pub use report::{Kind, KnnScore, LinearScore, Report, Row, Written};
pub use space::Space;

use crate::error::TrainError;
use crate::features::{Layer, Matrix};
use linear::{Fit, Fitter, LinearClassifier, MOST_ITERATIONS, Standardiser};
use simmim_data::Transform;
use simmim_engine::host::Pool;
use space::Change;
use std::sync::{Mutex, PoisonError};

/// Numbers of neighbours that are tried.
const KS: [usize; 7] = [1, 5, 10, 20, 50, 100, 200];
/// Strengths of l2 that are tried, strongest first: each fit starts from the one before it.
const L2: [f64; 7] = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// Weaker strengths that may rate lower in a row before the rest is not tried.
const PATIENCE: usize = 2;
/// Strength of l2 where no image can be held out to select it.
pub const FIXED_L2: f64 = 0.1;
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

/// What features are, for people.
#[must_use]
pub fn features_of(kind: Kind, layer: Option<Layer>) -> String {
    match (kind, layer) {
        (Kind::Pixels, _) => "raw pixels".to_owned(),
        (Kind::Random, Some(layer)) => format!("random weights, {layer}"),
        (_, layer) => layer.map(|l| l.to_string()).unwrap_or_default(),
    }
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

/// How far a rating has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// `kNN` or `linear`.
    pub method: &'static str,
    /// Fits that are done; of neighbours, searches.
    pub done: usize,
    /// Most fits that the rating may take.
    pub most: usize,
    /// Iterations of the fit under way.
    pub iterations: u64,
}

/// Counts the fits of a rating.
struct Counter<'a> {
    watch: &'a mut dyn FnMut(Stage),
    stage: Stage,
    /// Iterations of all fits.
    iterations: u64,
    /// Fits that ended because they had taken as many as they may.
    capped: usize,
}

impl<'a> Counter<'a> {
    fn new(method: &'static str, most: usize, watch: &'a mut dyn FnMut(Stage)) -> Self {
        Self { watch, stage: Stage { method, done: 0, most, iterations: 0 }, iterations: 0, capped: 0 }
    }

    /// Tells that the fit under way has taken so many iterations.
    fn at(&mut self, iterations: u64) {
        self.stage.iterations = iterations;
        (self.watch)(self.stage);
    }

    /// Tells that so many fits are done.
    fn done(&mut self, fits: usize) {
        self.stage.done = fits;
        self.at(0);
    }

    /// A fit is done.
    fn ended(&mut self, fit: &Fit) {
        self.iterations += fit.iterations;
        self.capped += usize::from(fit.capped);
        self.done(self.stage.done + 1);
    }
}

/// Held-out training images, and those left to fit on, with their classes.
#[derive(Debug)]
struct Part {
    split: Split,
    fit: Vec<usize>,
    check: Vec<usize>,
}

/// A strength of l2, the accuracy on the held-out images, and a classifier to start from.
struct Chosen {
    l2: f64,
    accuracy: f64,
    start: LinearClassifier,
}

/// Rates features.
#[derive(Debug)]
pub struct Prober {
    pool: Pool,
    methods: Methods,
    classes: usize,
    train: Vec<usize>,
    val: Vec<usize>,
    parts: Vec<Part>,
    most_iterations: u64,
}

impl Prober {
    /// A prober for rows of features with these classes, which chooses on the held-out images of `parts` ([`folds`]). Without parts it
    /// chooses nothing: l2 is [`FIXED_L2`], and there is no accuracy to choose a layer by (it is not a number). `threads` 0: one for each
    /// core.
    #[must_use]
    pub fn new(
        threads: usize,
        methods: Methods,
        classes: usize,
        train: Vec<usize>,
        val: Vec<usize>,
        parts: Vec<Split>,
    ) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pool = Pool::new(if threads == 0 { cores() } else { threads });
        let part = |split: Split| {
            let of = |places: &[usize]| places.iter().map(|&p| train[p]).collect();
            Part { fit: of(&split.fit), check: of(&split.check), split }
        };
        let parts = parts.into_iter().map(part).collect();
        Self { pool, methods, classes, train, val, parts, most_iterations: MOST_ITERATIONS }
    }

    /// The same, with fits of so many iterations at most.
    #[must_use]
    pub fn at_most(self, iterations: u64) -> Self {
        Self { most_iterations: iterations, ..self }
    }

    /// Rates features of the training and validation images; `watch` is told how far it is after every iteration of a fit.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn rate(
        &self,
        (kind, layer): (Kind, Option<Layer>),
        train: &Matrix,
        val: &Matrix,
        watch: &mut dyn FnMut(Stage),
    ) -> Result<Row, TrainError> {
        Ok(Row {
            kind,
            layer: layer.map(Layer::number),
            features: features_of(kind, layer),
            dims: train.cols,
            knn: self.methods.knn.then(|| self.knn(train, val, watch)),
            linear: if self.methods.linear { Some(self.linear(train, val, watch)?) } else { None },
        })
    }

    /// The candidate (training and validation features) whose linear probe is best on the held-out images, and its rating; the
    /// others are not measured on the validation images. Of equals the first wins; `fallback` if nothing is held out. `watch` as for
    /// [`Prober::rate`].
    ///
    /// # Errors
    /// Features that are not finite, no candidates.
    pub fn best_linear(
        &self,
        candidates: &[(Matrix, &Matrix)],
        fallback: usize,
        watch: &mut dyn FnMut(Stage),
    ) -> Result<(usize, LinearScore), TrainError> {
        let mut counter = Counter::new("linear", candidates.len() * self.fits() + 1, watch);
        let mut best: Option<(usize, Chosen)> = None;
        for (i, (train, _)) in candidates.iter().enumerate().filter(|(i, _)| !self.parts.is_empty() || *i == fallback) {
            let chosen = self.choose_l2(train, &mut counter)?;
            if best.as_ref().is_none_or(|(_, known)| chosen.accuracy > known.accuracy) {
                best = Some((i, chosen));
            }
        }
        let (i, chosen) = best.ok_or_else(|| TrainError::Internal { what: "no features to choose among".into() })?;
        let (train, val) = &candidates[i];
        Ok((i, self.measure(chosen, train, val, &mut counter)?))
    }

    /// Shares over all parts of what was found in each, given as a share of its held-out images.
    fn pooled(&self, shares: impl Iterator<Item = f64>) -> f64 {
        let images = |part: &Part| part.check.len() as f64;
        let found: f64 = self.parts.iter().zip(shares).map(|(part, share)| share * images(part)).sum();
        found / self.parts.iter().map(images).sum::<f64>()
    }

    /// Most fits by which l2 is chosen.
    fn fits(&self) -> usize {
        L2.len() * self.parts.len()
    }

    fn knn(&self, train: &Matrix, val: &Matrix, watch: &mut dyn FnMut(Stage)) -> KnnScore {
        let mut counter = Counter::new("kNN", Space::ALL.len() * self.parts.len() + 1, watch);
        let smallest = self.parts.iter().map(|p| p.fit.len()).min().unwrap_or(0);
        let ks: Vec<usize> = KS.into_iter().filter(|&k| k == 1 || k <= smallest).collect();
        let near = |change: &Change, bank: &Matrix, queries: &Matrix, k: usize| {
            let of = |m: &Matrix| knn::normalised(&change.apply(&self.pool, m));
            knn::nearest(&self.pool, &of(bank), &of(queries), k)
        };
        let mut best = (Space::Plain, 1, f64::NAN);
        for space in Space::ALL {
            let mut sweep = |part: &Part| {
                let (fit, check) = (train.select(&part.split.fit), train.select(&part.split.check));
                let near = near(&space.fit(&self.pool, &fit)?, &fit, &check, ks.last().copied().unwrap_or(1));
                counter.done(counter.stage.done + 1);
                Some(knn::accuracies(&near, &part.fit, &part.check, self.classes, &ks))
            };
            let Some(sweeps) = self.parts.iter().map(&mut sweep).collect::<Option<Vec<_>>>() else { continue };
            for (i, &k) in ks.iter().enumerate() {
                let accuracy = self.pooled(sweeps.iter().map(|s| s[i]));
                if best.2.is_nan() || accuracy > best.2 {
                    best = (space, k, accuracy);
                }
            }
        }
        let (space, k, split_accuracy) = best;
        // Whitening that was chosen could be fitted, so it can be again.
        let change = space.fit(&self.pool, train).unwrap_or(Change::None);
        let near = near(&change, train, val, k);
        let val_accuracy = knn::accuracies(&near, &self.train, &self.val, self.classes, &[k])[0];
        KnnScore { k, space, split_accuracy, val_accuracy }
    }

    fn linear(&self, train: &Matrix, val: &Matrix, watch: &mut dyn FnMut(Stage)) -> Result<LinearScore, TrainError> {
        let mut counter = Counter::new("linear", self.fits() + 1, watch);
        self.measure(self.choose_l2(train, &mut counter)?, train, val, &mut counter)
    }

    /// The strength of l2 that is best on the held-out images.
    fn choose_l2(&self, train: &Matrix, counter: &mut Counter<'_>) -> Result<Chosen, TrainError> {
        let first = counter.stage.done;
        let zeros = LinearClassifier::zeros(self.classes, train.cols);
        if self.parts.is_empty() {
            return Ok(Chosen { l2: FIXED_L2, accuracy: f64::NAN, start: zeros });
        }
        let standardised = |part: &Part| {
            let fit = train.select(&part.split.fit);
            let scale = Standardiser::of(&fit);
            (scale.apply(&fit), scale.apply(&train.select(&part.split.check)))
        };
        let features: Vec<(Matrix, Matrix)> = self.parts.iter().map(standardised).collect();
        let fitters: Vec<Fitter<'_>> = (self.parts.iter().zip(&features))
            .map(|(part, (fit, _))| Fitter::new(&self.pool, fit, &part.fit, self.classes, self.most_iterations))
            .collect();
        let mut starts = vec![zeros; self.parts.len()];
        let mut best: Option<Chosen> = None;
        let mut worse = 0;
        for l2 in L2 {
            let mut shares = Vec::new();
            for (((part, (_, check)), fitter), start) in self.parts.iter().zip(&features).zip(&fitters).zip(&mut starts)
            {
                let near = fitter.near(l2, start.clone(), &mut |i| counter.at(i))?;
                counter.ended(&near);
                *start = near.classifier;
                shares.push(start.accuracy(&self.pool, check, &part.check));
            }
            let accuracy = self.pooled(shares.into_iter());
            if best.as_ref().is_none_or(|known| accuracy > known.accuracy) {
                best = Some(Chosen { l2, accuracy, start: starts[0].clone() });
                worse = 0;
            } else {
                worse += 1;
                if worse >= PATIENCE {
                    break;
                }
            }
        }
        // Strengths that were not worth trying are done.
        counter.done(first + self.fits());
        best.ok_or_else(|| TrainError::Internal { what: "no strength of l2 was tried".into() })
    }

    /// Fits all training images and measures on the validation images.
    fn measure(
        &self,
        chosen: Chosen,
        train: &Matrix,
        val: &Matrix,
        counter: &mut Counter<'_>,
    ) -> Result<LinearScore, TrainError> {
        let scale = Standardiser::of(train);
        let x = scale.apply(train);
        let fitter = Fitter::new(&self.pool, &x, &self.train, self.classes, self.most_iterations);
        let whole = fitter.fit(chosen.l2, chosen.start, &mut |i| counter.at(i))?;
        counter.ended(&whole);
        let val_accuracy = whole.classifier.accuracy(&self.pool, &scale.apply(val), &self.val);
        let (converged, gradient) = (whole.converged(), whole.gradient);
        let (l2, split_accuracy) = (chosen.l2, chosen.accuracy);
        let (iterations, capped) = (counter.iterations, counter.capped);
        Ok(LinearScore { l2, split_accuracy, val_accuracy, converged, gradient, iterations, capped })
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

    /// A rating tells how far it is: never back, to the end, every iteration.
    fn told(stages: &[Stage], score: &LinearScore) {
        let linear: Vec<&Stage> = stages.iter().filter(|s| s.method == "linear").collect();
        assert!(linear.windows(2).all(|w| w[0].done <= w[1].done), "{linear:?}");
        let last = linear.last().unwrap();
        assert_eq!((last.done, last.most), (36, 36), "7 strengths, 5 folds, the whole");
        let iterations = linear.iter().filter(|s| s.iterations > 0).count();
        assert_eq!((iterations as u64, score.capped), (score.iterations, 0));
        assert_eq!(stages.iter().filter(|s| s.method == "kNN").count(), 15, "three spaces, five folds");
    }

    #[test]
    fn clusters_are_told_apart_noise_is_not_and_threads_change_nothing() {
        let ((train, labels), (val, val_labels)) = (data(300, 0.2, 1), data(200, 0.2, 2));
        let both = Methods { knn: true, linear: true };
        let row = |threads: usize, train: &Matrix, val: &Matrix| {
            let parts = folds(&labels, 3, 5).unwrap();
            let prober = Prober::new(threads, both, 3, labels.clone(), val_labels.clone(), parts);
            let mut stages = Vec::new();
            let row = prober.rate((Kind::Trained, Some(Layer::Block(2))), train, val, &mut |s| stages.push(s)).unwrap();
            told(&stages, row.linear.as_ref().unwrap());
            row
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

    /// What brute force finds: every space, every k, every fold, all similarities sorted.
    fn brute(train: &Matrix, labels: &[usize], classes: usize, seed: u64) -> Vec<(Space, usize, f64)> {
        let pool = Pool::new(1);
        let mut found = Vec::new();
        for space in Space::ALL {
            for k in KS.into_iter().filter(|&k| k <= labels.len() * 4 / 5 - classes) {
                let (mut right, mut seen) = (0, 0);
                for part in folds(labels, classes, seed).unwrap() {
                    let fit = train.select(&part.fit);
                    let change = space.fit(&pool, &fit).unwrap();
                    let (bank, queries) = (change.apply(&pool, &fit), change.apply(&pool, &train.select(&part.check)));
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                    for (q, &place) in part.check.iter().enumerate() {
                        let query = queries.row(q);
                        let cosine = |r: usize| {
                            let row = bank.row(r);
                            dot(query, row) / (dot(query, query) * dot(row, row)).sqrt()
                        };
                        let mut all: Vec<(f64, usize)> =
                            (0..bank.rows).map(|r| (cosine(r), labels[part.fit[r]])).collect();
                        all.sort_by(|a, b| b.0.total_cmp(&a.0));
                        let mut votes = vec![0.0; classes];
                        all[..k].iter().for_each(|(s, class)| votes[*class] += (s / knn::TEMPERATURE).exp());
                        let best = (0..classes).fold(0, |best, c| if votes[c] > votes[best] { c } else { best });
                        right += usize::from(best == labels[place]);
                        seen += 1;
                    }
                }
                found.push((space, k, f64::from(right as u32) / f64::from(seen as u32)));
            }
        }
        found
    }

    #[test]
    fn the_space_of_the_neighbours_is_chosen_as_brute_force_chooses_it() {
        // Columns of widely different scale around a common offset, classes in the smallest: only evened out they show.
        let (train, labels) = data(300, 0.2, 1);
        let (val, val_labels) = data(200, 0.2, 2);
        let hidden = |m: &Matrix, seed: u64| {
            let mut stream = Stream::new(seed, Purpose::Test, 4, 0);
            let mut data = Vec::new();
            for r in 0..m.rows {
                let (shared, other) = (stream.normal(), stream.normal());
                let mixed = m.row(r).iter().enumerate().map(|(c, v)| {
                    f64::from(*v) + 40.0 + 9.0 * shared + if c % 2 == 0 { 5.0 * other } else { -4.0 * other }
                });
                data.extend(mixed.map(|v| v as f32));
            }
            Matrix { data, ..m.clone() }
        };
        let (train, val) = (hidden(&train, 7), hidden(&val, 8));
        let knn = Methods { knn: true, linear: false };
        let prober = Prober::new(2, knn, 3, labels.clone(), val_labels, folds(&labels, 3, 5).unwrap());
        let score = prober.rate((Kind::Trained, None), &train, &val, &mut |_| {}).unwrap().knn.unwrap();
        let found = brute(&train, &labels, 3, 5);
        let best = found.iter().fold(found[0], |best, f| if f.2 > best.2 { *f } else { best });
        assert_eq!((score.space, score.k), (best.0, best.1), "{score:?} {found:?}");
        assert!((score.split_accuracy - best.2).abs() < 1e-9);
        let plain = found.iter().filter(|f| f.0 == Space::Plain).map(|f| f.2).fold(0.0, f64::max);
        assert!(score.space == Space::Whitened && score.val_accuracy > plain + 0.05, "{score:?} {plain}");
    }

    #[test]
    fn the_layer_is_selected_on_held_out_images_and_without_any_the_fallback_is_taken() {
        let ((good, labels), (good_val, val_labels)) = (data(60, 0.3, 1), data(200, 0.3, 2));
        let (bad, _) = data(60, 30.0, 3);
        let (bad_val, _) = data(200, 30.0, 4);
        let linear = Methods { knn: false, linear: true };
        let parts = folds(&labels, 3, 0).unwrap();
        let prober = Prober::new(1, linear, 3, labels, val_labels.clone(), parts);
        let candidates = [(bad.clone(), &bad_val), (good.clone(), &good_val)];
        let (chosen, score) = prober.best_linear(&candidates, 0, &mut |_| {}).unwrap();
        assert_eq!(chosen, 1);
        let alone = prober.rate((Kind::Trained, None), &good, &good_val, &mut |_| {}).unwrap().linear.unwrap();
        assert!(score.iterations > alone.iterations, "those of both candidates count");
        assert_eq!(LinearScore { iterations: alone.iterations, ..score }, alone);
        let capped = prober.at_most(1).rate((Kind::Trained, None), &good, &good_val, &mut |_| {}).unwrap();
        let capped = capped.linear.unwrap();
        assert!(capped.capped > 0 && !capped.converged, "{capped:?}");
        // One image of each class: nothing can be held out.
        let few = [bad.select(&[0, 1, 2]), good.select(&[0, 1, 2])];
        let prober = Prober::new(1, linear, 3, vec![0, 1, 2], val_labels, Vec::new());
        let candidates = [(few[0].clone(), &bad_val), (few[1].clone(), &good_val)];
        let (chosen, score) = prober.best_linear(&candidates, 1, &mut |_| {}).unwrap();
        assert_eq!((chosen, score.l2), (1, FIXED_L2));
        assert!(score.val_accuracy > 0.4 && score.split_accuracy.is_nan(), "{score:?}");
    }

    #[test]
    fn pixels_of_large_images_are_shrunk_in_proportion() {
        assert_eq!(pixel_transform(&Transform::new((28, 28), 1)).size, (28, 28));
        let small = pixel_transform(&Transform::new((448, 224), 3));
        assert_eq!((small.size, small.values() <= MOST_PIXELS), ((52, 26), true));
    }
}
