//! Multinomial logistic regression on standardised features.
//!
//! Minimised is `mean cross-entropy + l2 / 2 |W|^2`, the bias unpenalised, from zero or from a given start; the minimum is unique up to a
//! constant added to all biases. scikit-learn's `LogisticRegression(C)` has the same minimum for `l2 = 1 / (C n)`.
//! Products are in f32; probabilities, losses and sums over rows in f64, over a partition that depends on the shapes alone.

use super::parallel_map;
use super::precondition::Sketch;
use super::solver::{BLOCK, Problem, Until, scores_of};
use crate::error::TrainError;
use crate::features::Matrix;
use simmim_engine::host::Pool;

/// The fit has converged where no element of the gradient is larger. scikit-learn's bound too; below it, products in f32 leave
/// the line search nothing but rounding.
pub const TOLERANCE: f64 = 1e-4;
/// A strength of l2 is judged this close to the minimum of the objective: accuracies of raw pixels are then within 0.1 points of their end.
const NEAR: f64 = 1e-4;
/// Iterations after which a fit usually ends, converged or not. Most need fewer than a hundred.
pub const MOST_ITERATIONS: u64 = 500;

/// Mean and deviation of each column.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardiser {
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

impl Standardiser {
    /// Measures columns; a constant one is only shifted.
    #[must_use]
    pub fn of(features: &Matrix) -> Self {
        let n = features.rows.max(1) as f64;
        let (mut mean, mut var) = (vec![0.0; features.cols], vec![0.0; features.cols]);
        let rows = || features.data.chunks_exact(features.cols.max(1));
        rows().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / n));
        for row in rows() {
            for ((s, m), v) in var.iter_mut().zip(&mean).zip(row) {
                *s += (f64::from(*v) - m).powi(2) / n;
            }
        }
        // A column of equal values has a deviation of rounding errors.
        let rstd = |(s, m): (&f64, &f64)| if s.sqrt() > 1e-7 * m.abs() { 1.0 / s.sqrt() } else { 1.0 };
        let rstd = var.iter().zip(&mean).map(rstd).collect();
        Self { mean, rstd }
    }

    /// Every column with mean 0 and deviation 1.
    #[must_use]
    pub fn apply(&self, features: &Matrix) -> Matrix {
        let mut out = features.clone();
        for row in out.data.chunks_exact_mut(features.cols.max(1)) {
            for ((v, m), r) in row.iter_mut().zip(&self.mean).zip(&self.rstd) {
                *v = ((f64::from(*v) - m) * r) as f32;
            }
        }
        out
    }
}

/// A linear classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearClassifier {
    /// Number of classes.
    pub classes: usize,
    /// Length of a feature.
    pub dims: usize,
    /// `[classes, dims]`, then `[classes]` biases.
    pub values: Vec<f64>,
}

/// A fitted classifier and how the fit went.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The classifier.
    pub classifier: LinearClassifier,
    /// Its objective.
    pub objective: f64,
    /// Largest element of the gradient.
    pub gradient: f64,
    /// Iterations it took.
    pub iterations: u64,
    /// Whether it ended because it had taken as many as it may.
    pub capped: bool,
}

impl Fit {
    /// Whether the gradient is small enough.
    #[must_use]
    pub fn converged(&self) -> bool {
        self.gradient <= TOLERANCE
    }
}

impl LinearClassifier {
    /// All zeros.
    #[must_use]
    pub fn zeros(classes: usize, dims: usize) -> Self {
        Self { classes, dims, values: vec![0.0; classes * (dims + 1)] }
    }

    fn weights(&self) -> Vec<f32> {
        self.values[..self.classes * self.dims].iter().map(|&v| v as f32).collect()
    }

    /// The most probable class of each row.
    #[must_use]
    pub fn predict(&self, pool: &Pool, x: &Matrix) -> Vec<usize> {
        let weights = self.weights();
        let bias = &self.values[self.classes * self.dims..];
        let blocks = parallel_map(pool, x.rows.div_ceil(BLOCK), |block| {
            let rows = block * BLOCK..x.rows.min((block + 1) * BLOCK);
            let mut scores = vec![0.0; rows.len() * self.classes];
            scores_of(&mut scores, x, rows, &weights, self.classes);
            let best = |line: &[f32]| {
                let score = |c: usize| f64::from(line[c]) + bias[c];
                (0..self.classes).fold(0, |best, c| if score(c) > score(best) { c } else { best })
            };
            scores.chunks_exact(self.classes).map(best).collect::<Vec<_>>()
        });
        blocks.into_iter().flatten().collect()
    }

    /// Share of rows whose class is found.
    #[must_use]
    pub fn accuracy(&self, pool: &Pool, x: &Matrix, labels: &[usize]) -> f64 {
        let right = self.predict(pool, x).iter().zip(labels).filter(|(a, b)| a == b).count();
        right as f64 / labels.len().max(1) as f64
    }
}

/// Fits classifiers to one matrix of standardised features, under any strength of l2.
pub struct Fitter<'a> {
    problem: Problem<'a>,
    most: u64,
}

impl std::fmt::Debug for Fitter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let x = &self.problem.x;
        f.debug_struct("Fitter").field("rows", &x.rows).field("dims", &x.cols).finish_non_exhaustive()
    }
}

impl<'a> Fitter<'a> {
    /// Measures the features. A fit takes `most` iterations at most, usually [`MOST_ITERATIONS`].
    #[must_use]
    pub fn new(pool: &'a Pool, x: &'a Matrix, labels: &'a [usize], classes: usize, most: u64) -> Self {
        Self { problem: Problem { pool, x, labels, classes, sketch: Sketch::of(pool, x) }, most }
    }

    /// The minimum. `watch` is called after every iteration with their number.
    ///
    /// # Errors
    /// [`TrainError::Input`] for features that are not finite.
    pub fn fit(&self, l2: f64, start: LinearClassifier, watch: &mut dyn FnMut(u64)) -> Result<Fit, TrainError> {
        self.until(Until::Gradient(TOLERANCE), l2, start, watch)
    }

    /// A classifier near the minimum, to compare strengths of l2 by.
    ///
    /// # Errors
    /// As [`Fitter::fit`].
    pub fn near(&self, l2: f64, start: LinearClassifier, watch: &mut dyn FnMut(u64)) -> Result<Fit, TrainError> {
        self.until(Until::Near(NEAR), l2, start, watch)
    }

    fn until(
        &self,
        until: Until,
        l2: f64,
        start: LinearClassifier,
        watch: &mut dyn FnMut(u64),
    ) -> Result<Fit, TrainError> {
        let (end, iterations) = self.problem.minimise(start.values, l2, until, self.most, watch);
        if !end.value.is_finite() {
            return Err(TrainError::Input {
                what: "the features are not finite".into(),
                help: "the weights have diverged; use an earlier checkpoint".into(),
            });
        }
        let gradient = end.largest();
        let classifier = LinearClassifier { values: end.at, ..start };
        let ended = matches!(until, Until::Gradient(bound) if gradient <= bound);
        let capped = iterations >= self.most && !ended;
        Ok(Fit { objective: end.value, gradient, iterations, capped, classifier })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::{Purpose, Stream};

    fn fit(pool: &Pool, x: &Matrix, labels: &[usize], l2: f64, start: LinearClassifier) -> Result<Fit, TrainError> {
        Fitter::new(pool, x, labels, start.classes, MOST_ITERATIONS).fit(l2, start, &mut |_| {})
    }

    fn data(rows: usize, cols: usize, classes: usize) -> (Matrix, Vec<usize>) {
        let mut stream = Stream::new(3, Purpose::Test, 2, 0);
        let mut data = Vec::new();
        let mut labels = Vec::new();
        for _ in 0..rows {
            let label = stream.below(classes as u64) as usize;
            labels.push(label);
            data.extend(
                (0..cols).map(|c| (stream.normal() * 2.0 + f64::from(u8::from(c % classes == label))) as f32 + 5.0),
            );
        }
        (Matrix { rows, cols, data }, labels)
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        let (x, labels) = data(300, 5, 3);
        let x = Standardiser::of(&x).apply(&x);
        let pool = Pool::new(2);
        let problem = Problem { pool: &pool, x: &x, labels: &labels, classes: 3, sketch: Sketch::of(&pool, &x) };
        let at: Vec<f64> = (0..18).map(|i| f64::from(i % 7) / 4.0 - 0.7).collect();
        let gradient = problem.evaluate(at.clone(), 0.1).0.gradient;
        for (i, expected) in gradient.iter().enumerate() {
            let shifted = |h: f64| {
                let mut at = at.clone();
                at[i] += h;
                problem.evaluate(at, 0.1).0.value
            };
            // Products in f32 bound the precision of the differences.
            let difference = (shifted(0.01) - shifted(-0.01)) / 0.02;
            assert!((difference - expected).abs() < 2e-4, "{i}: {difference} and {expected}");
        }
    }

    #[test]
    fn a_fit_converges_to_one_minimum_from_any_start_for_any_threads() {
        let (x, labels) = data(700, 12, 4);
        let x = Standardiser::of(&x).apply(&x);
        let zero = LinearClassifier::zeros(4, 12);
        let first = fit(&Pool::new(1), &x, &labels, 1e-2, zero.clone()).unwrap();
        assert!(first.converged() && !first.capped, "gradient {} after {}", first.gradient, first.iterations);
        let pool = Pool::new(1);
        let short = Fitter::new(&pool, &x, &labels, 4, 2).fit(1e-2, zero.clone(), &mut |_| {}).unwrap();
        assert!(short.capped && !short.converged() && short.iterations == 2, "{short:?}");
        assert_eq!(first, fit(&Pool::new(3), &x, &labels, 1e-2, zero).unwrap());
        let mut elsewhere = LinearClassifier::zeros(4, 12);
        elsewhere.values[..48].iter_mut().enumerate().for_each(|(i, v)| *v = (i as f64).sin());
        let second = fit(&Pool::new(2), &x, &labels, 1e-2, elsewhere).unwrap();
        assert!(second.converged());
        let pairs = first.classifier.values.iter().zip(&second.classifier.values).take(48);
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 5e-3), "{first:?} {second:?}");
    }

    #[test]
    fn standardised_columns_have_mean_0_and_deviation_1_and_constant_ones_stay_finite() {
        let (mut x, _) = data(50, 4, 2);
        x.data.iter_mut().skip(3).step_by(4).for_each(|v| *v = 0.1);
        let y = Standardiser::of(&x).apply(&x);
        for c in 0..4 {
            let column: Vec<f64> = (0..50).map(|r| f64::from(y.row(r)[c])).collect();
            let mean = column.iter().sum::<f64>() / 50.0;
            let var = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 50.0;
            let expected = if c == 3 { 0.0 } else { 1.0 };
            assert!(mean.abs() < 1e-5 && (var - expected).abs() < 1e-5, "{c}: {mean} {var}");
        }
    }

    #[test]
    fn coefficients_and_accuracies_are_those_of_scikit_learn() {
        let fixture = simmim_testing::Fixture::load("logistic");
        let matrix = |name: &str| {
            let (shape, data) = fixture.floats[name].clone();
            Matrix { rows: shape[0], cols: shape[1], data }
        };
        let labels = |name: &str| fixture.ints[name].1.iter().map(|&l| l as usize).collect::<Vec<_>>();
        let (x, y) = (matrix("x"), labels("y"));
        let scale = Standardiser::of(&x);
        let (x, val) = (scale.apply(&x), scale.apply(&matrix("val_x")));
        let pool = Pool::new(2);
        let classes = fixture.config["classes"].as_u64().unwrap() as usize;
        for (i, l2) in fixture.config["l2"].as_array().unwrap().iter().enumerate() {
            let found = fit(&pool, &x, &y, l2.as_f64().unwrap(), LinearClassifier::zeros(classes, x.cols)).unwrap();
            assert!(found.converged(), "l2 {l2}: gradient {}", found.gradient);
            let values: Vec<f32> = found.classifier.values.iter().map(|&v| v as f32).collect();
            let (weights, bias) = values.split_at(classes * x.cols);
            let worst = simmim_testing::relative_error(weights, &fixture.floats[&format!("coef.{i}")].1);
            let worst_bias = simmim_testing::relative_error(bias, &fixture.floats[&format!("intercept.{i}")].1);
            // The weaker the penalty, the flatter the objective, and the wider what the same gradient allows.
            assert!(worst < 1e-2 && worst_bias < 1e-2, "l2 {l2}: {worst} {worst_bias}");
            let accuracy = found.classifier.accuracy(&pool, &val, &labels("val_y"));
            let expected = fixture.config["val_accuracy"][i].as_f64().unwrap();
            assert!((accuracy - expected).abs() < 0.003, "l2 {l2}: {accuracy} and {expected}");
        }
    }

    #[test]
    fn long_features_of_few_directions_are_fitted_in_few_iterations_though_not_all_directions_are_kept() {
        // Some hundred columns that follow forty hidden ones, and noise, as pixels do.
        let (hidden, labels) = data(900, 40, 4);
        let mut stream = Stream::new(8, Purpose::Test, 3, 0);
        let mix: Vec<f64> = (0..40 * 600).map(|i| stream.normal() / f64::from(1 + i / 600)).collect();
        let mut x = Matrix { rows: 900, cols: 600, data: vec![0.0; 900 * 600] };
        for (out, row) in x.data.chunks_exact_mut(600).zip(hidden.data.chunks_exact(40)) {
            for (c, v) in out.iter_mut().enumerate() {
                let known: f64 =
                    row.iter().zip(0..).map(|(h, i): (&f32, usize)| f64::from(*h) * mix[i * 600 + c]).sum();
                *v = (known + 0.02 * stream.normal()) as f32;
            }
        }
        let x = Standardiser::of(&x).apply(&x);
        let pool = Pool::new(2);
        let fitter = Fitter::new(&pool, &x, &labels, 4, MOST_ITERATIONS);
        let (mut start, mut iterations) = (LinearClassifier::zeros(4, 600), 0);
        for l2 in [1e-1, 1e-2, 1e-3, 1e-4] {
            let mut seen = 0;
            let near = fitter.near(l2, start, &mut |i| seen = i).unwrap();
            assert_eq!(near.iterations, seen);
            iterations += seen;
            start = near.classifier;
            let whole = fitter.fit(l2, start.clone(), &mut |_| {}).unwrap();
            assert!(whole.converged(), "{l2}: {} after {}", whole.gradient, whole.iterations);
            assert!(near.objective - whole.objective < 2.0 * NEAR, "{l2}: {} {}", near.objective, whole.objective);
            iterations += whole.iterations;
        }
        assert!(iterations < 400, "{iterations} iterations");
    }

    #[test]
    fn features_that_are_not_finite_are_refused() {
        let x = Matrix { rows: 2, cols: 1, data: vec![f32::NAN, 1.0] };
        assert!(fit(&Pool::new(1), &x, &[0, 1], 0.1, LinearClassifier::zeros(2, 1)).is_err());
    }
}
