//! Multinomial logistic regression on standardised features.
//!
//! Minimised is `mean cross-entropy + l2 / 2 |W|^2`, the bias unpenalised, by L-BFGS from zero or from a given start; the minimum is
//! unique up to a constant added to all biases. scikit-learn's `LogisticRegression(C)` has the same minimum for `l2 = 1 / (C n)`.
//! Products are in f32; probabilities, losses and sums over rows in f64, over a partition that depends on the shapes alone.

use super::parallel_map;
use crate::error::TrainError;
use crate::features::Matrix;
use argmin::core::{CostFunction, Error, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use simmim_engine::host::Pool;
use simmim_engine::host::gemm::{Extents, MatrixView, Product};
use std::sync::{Mutex, PoisonError};

/// The fit has converged where no element of the gradient is larger. scikit-learn's bound too; below it, products in f32 leave
/// the line search nothing but rounding.
pub const TOLERANCE: f64 = 1e-4;
/// Pairs of steps and changes of the gradient that L-BFGS remembers.
const MEMORY: usize = 12;
/// Iterations before a fit is given up as not converged.
const MOST_ITERATIONS: u64 = 2000;
/// Starts: where rounding ends a line search before the gradient is small, the curvature is learnt anew.
const STARTS: usize = 3;
/// Rows of one product.
const BLOCK: usize = 256;
/// Parts of the rows with sums of their own.
const PARTS: usize = 16;

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
    /// Iterations of L-BFGS.
    pub iterations: u64,
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

/// `x W^T` without bias, for some rows.
fn scores_of(scores: &mut [f32], x: &Matrix, rows: std::ops::Range<usize>, weights: &[f32], classes: usize) {
    let e = Extents { m: rows.len(), n: classes, k: x.cols };
    let features = MatrixView::rows(&x.data[rows.start * x.cols..], x.cols);
    Product::new(e, features, MatrixView::rows(weights, x.cols).transposed()).write(scores);
}

/// The function that is minimised.
struct Objective<'a> {
    pool: &'a Pool,
    x: &'a Matrix,
    labels: &'a [usize],
    classes: usize,
    l2: f64,
    /// The last point with its value and gradient: the line search asks for both, one after the other.
    last: Mutex<Option<Point>>,
}

#[derive(Clone)]
struct Point {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Objective<'_> {
    fn point(&self, at: &[f64]) -> Point {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(known) if known.at == at => known.clone(),
            _ => last.insert(self.evaluate(at)).clone(),
        }
    }

    fn evaluate(&self, at: &[f64]) -> Point {
        let (n, dims) = (self.x.rows, self.x.cols);
        let split = self.classes * dims;
        let weights: Vec<f32> = at[..split].iter().map(|&v| v as f32).collect();
        let step = n.div_ceil(PARTS).next_multiple_of(BLOCK);
        let parts = parallel_map(self.pool, n.div_ceil(step), |part| {
            self.part(part * step..n.min((part + 1) * step), &weights, &at[split..])
        });
        let (mut value, mut gradient) = (0.0, vec![0.0; at.len()]);
        for (loss, sums) in parts {
            value += loss;
            gradient.iter_mut().zip(sums).for_each(|(g, s)| *g += s);
        }
        value /= n as f64;
        gradient.iter_mut().for_each(|g| *g /= n as f64);
        value += self.l2 / 2.0 * at[..split].iter().map(|w| w * w).sum::<f64>();
        gradient[..split].iter_mut().zip(at).for_each(|(g, w)| *g += self.l2 * w);
        Point { at: at.to_vec(), value, gradient }
    }

    /// Loss and gradient summed over some rows.
    fn part(&self, rows: std::ops::Range<usize>, weights: &[f32], bias: &[f64]) -> (f64, Vec<f64>) {
        let (classes, dims) = (self.classes, self.x.cols);
        let (mut loss, mut gradient) = (0.0, vec![0.0; classes * (dims + 1)]);
        let (mut scores, mut sums) = (vec![0.0; BLOCK * classes], vec![0.0; classes * dims]);
        for start in rows.clone().step_by(BLOCK) {
            let end = rows.end.min(start + BLOCK);
            scores_of(&mut scores, self.x, start..end, weights, classes);
            let labels = &self.labels[start..end];
            for (line, &label) in scores.chunks_exact_mut(classes).zip(labels) {
                let score = |line: &[f32], c: usize| f64::from(line[c]) + bias[c];
                let top = (0..classes).map(|c| score(line, c)).fold(f64::MIN, f64::max);
                let sum: f64 = (0..classes).map(|c| (score(line, c) - top).exp()).sum();
                loss += sum.ln() + top - score(line, label);
                for c in 0..classes {
                    let residual = (score(line, c) - top).exp() / sum - f64::from(u8::from(c == label));
                    gradient[classes * dims + c] += residual;
                    line[c] = residual as f32;
                }
            }
            let e = Extents { m: classes, n: dims, k: labels.len() };
            let features = MatrixView::rows(&self.x.data[start * dims..], dims);
            Product::new(e, MatrixView::rows(&scores, classes).transposed(), features).write(&mut sums);
            gradient.iter_mut().zip(&sums).for_each(|(g, p)| *g += f64::from(*p));
        }
        (loss, gradient)
    }
}

impl CostFunction for &Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, at: &Vec<f64>) -> Result<f64, Error> {
        Ok(self.point(at).value)
    }
}

impl Gradient for &Objective<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, at: &Vec<f64>) -> Result<Vec<f64>, Error> {
        Ok(self.point(at).gradient)
    }
}

/// Fits a classifier to standardised features, from `start` on.
///
/// # Errors
/// [`TrainError::Input`] for features that are not finite.
pub fn fit(pool: &Pool, x: &Matrix, labels: &[usize], l2: f64, start: LinearClassifier) -> Result<Fit, TrainError> {
    let objective = Objective { pool, x, labels, classes: start.classes, l2, last: Mutex::new(None) };
    let mut best = objective.point(&start.values);
    if !best.value.is_finite() {
        return Err(TrainError::Input {
            what: "the features are not finite".into(),
            help: "the weights have diverged; use an earlier checkpoint".into(),
        });
    }
    let largest = |p: &Point| p.gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
    let mut iterations = 0;
    for _ in 0..STARTS {
        if largest(&best) <= TOLERANCE {
            break;
        }
        // The norm is never below the largest element.
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY)
            .with_tolerance_grad(TOLERANCE)
            .and_then(|s| s.with_tolerance_cost(0.0))
            .map_err(|e| TrainError::Internal { what: e.to_string() })?;
        let run = Executor::new(&objective, solver)
            .configure(|state| state.param(best.at.clone()).max_iters(MOST_ITERATIONS))
            .ctrlc(false)
            .run()
            .map_err(|e| TrainError::Internal { what: format!("the fit failed: {e}") })?;
        iterations += run.state().get_iter();
        let Some(found) = run.state().get_best_param() else { break };
        let found = objective.point(found);
        let better = found.value < best.value || largest(&found) < largest(&best);
        if !better {
            break;
        }
        best = found;
    }
    let gradient = largest(&best);
    Ok(Fit { objective: best.value, gradient, iterations, classifier: LinearClassifier { values: best.at, ..start } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_random::{Purpose, Stream};

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
        let objective = Objective { pool: &pool, x: &x, labels: &labels, classes: 3, l2: 0.1, last: Mutex::new(None) };
        let at: Vec<f64> = (0..18).map(|i| f64::from(i % 7) / 4.0 - 0.7).collect();
        let gradient = objective.evaluate(&at).gradient;
        for (i, expected) in gradient.iter().enumerate() {
            let shifted = |h: f64| {
                let mut at = at.clone();
                at[i] += h;
                objective.evaluate(&at).value
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
        assert!(first.converged(), "gradient {} after {}", first.gradient, first.iterations);
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
    fn features_that_are_not_finite_are_refused() {
        let x = Matrix { rows: 2, cols: 1, data: vec![f32::NAN, 1.0] };
        assert!(fit(&Pool::new(1), &x, &[0, 1], 0.1, LinearClassifier::zeros(2, 1)).is_err());
    }
}
