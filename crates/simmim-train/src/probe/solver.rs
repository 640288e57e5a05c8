//! The minimum of a multinomial logistic regression, by L-BFGS on a rough inverse of the curvature ([`Sketch`]).
//!
//! An iteration multiplies the features twice: by a direction, and by the residuals where it ends. Between the two, the length of the
//! step is sought on the scores alone.

use super::parallel_map;
use super::precondition::{Preconditioner, Sketch};
use crate::features::Matrix;
use simmim_engine::host::Pool;
use simmim_engine::host::gemm::{Extents, MatrixView, Product};
use std::collections::VecDeque;
use std::ops::Range;

/// Pairs of steps and changes of the gradient that are remembered.
const MEMORY: usize = 12;
/// Iterations after which the curvature is measured anew.
const REFRESHED: u64 = 40;
/// Scores are multiplied anew so often before what rounding has left is accepted.
const STARTS: usize = 3;
/// Lengths of a step that are tried.
const TRIALS: usize = 12;
/// Slope at the end of a step, as a share of that at its start.
const LEVEL: f64 = 0.3;
/// A small gradient ends a fit only this close to the minimum, as a share of the penalty: under a weak one the objective is flat, and the
/// weights may still be far from their end.
const CLOSE: f64 = 1e-6;
/// Iterations with a small gradient that may be spent on coming closer: rounding may not let them.
const PATIENT: u64 = 60;
/// Least variance of a class that steps are made for.
const LEAST_CURVATURE: f64 = 1e-4;
/// Rows of one product.
pub(super) const BLOCK: usize = 256;
/// Parts of the rows with sums of their own.
const PARTS: usize = 16;

/// When a fit ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Until {
    /// No element of the gradient is larger.
    Gradient(f64),
    /// The objective is this close to its minimum, as far as the curvature is known.
    Near(f64),
}

/// What is fitted.
pub(super) struct Problem<'a> {
    pub(super) pool: &'a Pool,
    pub(super) x: &'a Matrix,
    pub(super) labels: &'a [usize],
    pub(super) classes: usize,
    pub(super) sketch: Sketch,
}

/// Where a fit stands.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) at: Vec<f64>,
    pub(super) value: f64,
    pub(super) gradient: Vec<f64>,
    /// Mean variance of a predicted class.
    curvature: f64,
}

impl Point {
    /// The largest element of the gradient.
    pub(super) fn largest(&self) -> f64 {
        self.gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()))
    }
}

/// What the scores of some rows say.
struct Reading {
    /// Probabilities less the truth, `[rows, classes]`.
    residuals: Vec<f32>,
    loss: f64,
    /// Sum of `1 - sum of p^2`.
    variance: f64,
    /// First and second derivative along the direction.
    slope: f64,
    bend: f64,
}

/// `x W^T` without bias, for some rows.
pub(super) fn scores_of(scores: &mut [f32], x: &Matrix, rows: Range<usize>, weights: &[f32], classes: usize) {
    let e = Extents { m: rows.len(), n: classes, k: x.cols };
    let features = MatrixView::rows(&x.data[rows.start * x.cols..], x.cols);
    Product::new(e, features, MatrixView::rows(weights, x.cols).transposed()).write(scores);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Problem<'_> {
    /// Rows of a part.
    fn rows_of_part(&self) -> usize {
        self.x.rows.div_ceil(PARTS).next_multiple_of(BLOCK).max(1)
    }

    fn part(&self, part: usize) -> Range<usize> {
        let step = self.rows_of_part();
        (part * step).min(self.x.rows)..((part + 1) * step).min(self.x.rows)
    }

    fn over_parts<T: Send>(&self, f: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
        parallel_map(self.pool, self.x.rows.div_ceil(self.rows_of_part()), |part| f(self.part(part)))
    }

    /// `x W^T + b`, or the change of it along a direction.
    fn scores(&self, values: &[f64]) -> Vec<f64> {
        let (classes, split) = (self.classes, self.classes * self.x.cols);
        let weights: Vec<f32> = values[..split].iter().map(|&v| v as f32).collect();
        let bias = &values[split..];
        let blocks = parallel_map(self.pool, self.x.rows.div_ceil(BLOCK), |block| {
            let rows = block * BLOCK..self.x.rows.min((block + 1) * BLOCK);
            let mut scores = vec![0.0; rows.len() * classes];
            scores_of(&mut scores, self.x, rows, &weights, classes);
            let with_bias = |line: &[f32]| line.iter().zip(bias).map(|(s, b)| f64::from(*s) + b).collect::<Vec<_>>();
            scores.chunks_exact(classes).flat_map(with_bias).collect::<Vec<f64>>()
        });
        blocks.concat()
    }

    /// Reads `scores + length change`.
    fn read(&self, scores: &[f64], change: &[f64], length: f64) -> Vec<Reading> {
        let classes = self.classes;
        self.over_parts(|rows| {
            let all = rows.start * classes..rows.end * classes;
            let mut out = Reading { residuals: vec![0.0; all.len()], loss: 0.0, variance: 0.0, slope: 0.0, bend: 0.0 };
            let lines = scores[all.clone()].chunks_exact(classes).zip(change[all].chunks_exact(classes));
            let mut p = vec![0.0; classes];
            let residuals = out.residuals.chunks_exact_mut(classes);
            for (((score, change), &label), residual) in lines.zip(&self.labels[rows]).zip(residuals) {
                p.iter_mut().zip(score).zip(change).for_each(|((p, s), c)| *p = s + length * c);
                let top = p.iter().copied().fold(f64::MIN, f64::max);
                let right = p[label];
                p.iter_mut().for_each(|p| *p = (*p - top).exp());
                let sum: f64 = p.iter().sum();
                out.loss += sum.ln() + top - right;
                let (mut squares, mut mean, mut square) = (0.0, 0.0, 0.0);
                for ((p, c), r) in p.iter_mut().zip(change).zip(residual.iter_mut()) {
                    *p /= sum;
                    squares += *p * *p;
                    mean += *p * c;
                    square += *p * c * c;
                    *r = *p as f32;
                }
                residual[label] -= 1.0;
                out.variance += 1.0 - squares;
                out.slope += mean - change[label];
                out.bend += square - mean * mean;
            }
            out
        })
    }

    /// Value and gradient where `readings` were taken.
    fn point(&self, at: Vec<f64>, readings: &[Reading], l2: f64) -> Point {
        let (n, dims, classes) = (self.x.rows as f64, self.x.cols, self.classes);
        let split = classes * dims;
        let gradients = parallel_map(self.pool, readings.len(), |part| {
            let residuals = &readings[part].residuals;
            let (mut sums, mut product) = (vec![0.0; at.len()], vec![0.0; split]);
            for (start, lines) in self.part(part).step_by(BLOCK).zip(residuals.chunks(BLOCK * classes)) {
                let e = Extents { m: classes, n: dims, k: lines.len() / classes };
                let features = MatrixView::rows(&self.x.data[start * dims..], dims);
                Product::new(e, MatrixView::rows(lines, classes).transposed(), features).write(&mut product);
                sums.iter_mut().zip(&product).for_each(|(g, p)| *g += f64::from(*p));
            }
            for line in residuals.chunks_exact(classes) {
                sums[split..].iter_mut().zip(line).for_each(|(g, r)| *g += f64::from(*r));
            }
            sums
        });
        let mut gradient = vec![0.0; at.len()];
        gradients.iter().for_each(|sums| gradient.iter_mut().zip(sums).for_each(|(g, s)| *g += s / n));
        gradient[..split].iter_mut().zip(&at).for_each(|(g, w)| *g += l2 * w);
        let loss: f64 = readings.iter().map(|r| r.loss).sum();
        let value = loss / n + l2 / 2.0 * dot(&at[..split], &at[..split]);
        let variance: f64 = readings.iter().map(|r| r.variance).sum();
        let curvature = (variance / n / (classes.max(2) - 1) as f64).max(LEAST_CURVATURE);
        Point { at, value, gradient, curvature }
    }

    /// Value and gradient from scratch, with the scores.
    pub(super) fn evaluate(&self, at: Vec<f64>, l2: f64) -> (Point, Vec<f64>) {
        let scores = self.scores(&at);
        let readings = self.read(&scores, &scores, 0.0);
        (self.point(at, &readings, l2), scores)
    }

    /// Goes from `start` until the fit has ended, or `most` iterations are over; `watch` is called after each. Returns the end and
    /// the number of iterations.
    pub(super) fn minimise(
        &self,
        start: Vec<f64>,
        l2: f64,
        until: Until,
        most: u64,
        watch: &mut dyn FnMut(u64),
    ) -> (Point, u64) {
        let (mut point, mut scores) = self.evaluate(start, l2);
        let (mut iterations, mut small) = (0, 0);
        for _ in 0..STARTS {
            let mut memory = Memory::new(self.sketch.at(self.pool, point.curvature, l2));
            let began = iterations;
            while iterations < most && point.value.is_finite() {
                if iterations > began && (iterations - began).is_multiple_of(REFRESHED) {
                    memory = Memory::new(self.sketch.at(self.pool, point.curvature, l2));
                }
                let direction = memory.direction(self.pool, &point.gradient, self.classes);
                let slope = dot(&point.gradient, &direction);
                let ended = match until {
                    Until::Gradient(bound) if point.largest() <= bound => {
                        small += 1;
                        let weights = &point.at[..self.classes * self.x.cols];
                        -slope <= CLOSE * l2 * dot(weights, weights) || small > PATIENT
                    }
                    Until::Gradient(_) => false,
                    Until::Near(bound) => -slope / 2.0 <= bound,
                };
                // Rounding may leave nowhere to go.
                if ended || slope.is_nan() || slope >= 0.0 {
                    break;
                }
                let next = self.step(&point, &mut scores, &direction, slope, l2);
                memory.remember(&point, &next);
                point = next;
                iterations += 1;
                watch(iterations);
            }
            // The scores have been added up: what they say is checked.
            (point, scores) = self.evaluate(point.at, l2);
            let ended = match until {
                Until::Gradient(bound) => point.largest() <= bound,
                Until::Near(_) => true,
            };
            if ended || iterations == began || iterations >= most || !point.value.is_finite() {
                break;
            }
        }
        (point, iterations)
    }

    /// A step along a direction, so long that little slope is left.
    fn step(&self, from: &Point, scores: &mut [f64], direction: &[f64], slope: f64, l2: f64) -> Point {
        let (n, split) = (self.x.rows as f64, self.classes * self.x.cols);
        let change = self.scores(direction);
        let across = l2 * dot(&from.at[..split], &direction[..split]);
        let along = l2 * dot(&direction[..split], &direction[..split]);
        let (mut length, mut short, mut long) = (1.0, 0.0, f64::INFINITY);
        let mut readings = self.read(scores, &change, length);
        for _ in 1..TRIALS {
            let sum = |of: fn(&Reading) -> f64| readings.iter().map(of).sum::<f64>() / n;
            let left = sum(|r| r.slope) + across + length * along;
            if left.abs() <= LEVEL * slope.abs() {
                break;
            }
            if left > 0.0 {
                long = length
            } else {
                short = length
            }
            let newton = length - left / (sum(|r| r.bend) + along).max(f64::MIN_POSITIVE);
            let between = if long.is_finite() { f64::midpoint(short, long) } else { 2.0 * length };
            length = if newton > short && newton < long.min(10.0 * length) { newton } else { between };
            readings = self.read(scores, &change, length);
        }
        scores.iter_mut().zip(&change).for_each(|(s, c)| *s += length * c);
        let at = from.at.iter().zip(direction).map(|(w, d)| w + length * d).collect();
        self.point(at, &readings, l2)
    }
}

/// What L-BFGS knows of the curvature.
struct Memory {
    rough: Preconditioner,
    /// Steps, changes of the gradient, and one over their product.
    pairs: VecDeque<(Vec<f64>, Vec<f64>, f64)>,
}

impl Memory {
    fn new(rough: Preconditioner) -> Self {
        Self { rough, pairs: VecDeque::new() }
    }

    fn remember(&mut self, from: &Point, to: &Point) {
        let less = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        let (step, change) = (less(&to.at, &from.at), less(&to.gradient, &from.gradient));
        let product = dot(&step, &change);
        // Rounding may bend the objective the wrong way.
        if product > 0.0 {
            self.pairs.push_back((step, change, 1.0 / product));
            if self.pairs.len() > MEMORY {
                self.pairs.pop_front();
            }
        }
    }

    /// The two loops of Nocedal and Wright, "Numerical Optimization", algorithm 7.4.
    fn direction(&self, pool: &Pool, gradient: &[f64], classes: usize) -> Vec<f64> {
        let subtract = |from: &mut [f64], what: &[f64], times: f64| {
            from.iter_mut().zip(what).for_each(|(f, w)| *f -= times * w);
        };
        let mut rest = gradient.to_vec();
        let mut shares = Vec::new();
        for (step, change, rho) in self.pairs.iter().rev() {
            let share = rho * dot(step, &rest);
            subtract(&mut rest, change, share);
            shares.push(share);
        }
        let mut out = self.rough.apply(pool, &rest, classes);
        for ((step, change, rho), share) in self.pairs.iter().zip(shares.iter().rev()) {
            let again = rho * dot(change, &out);
            subtract(&mut out, step, again - share);
        }
        out.iter_mut().for_each(|v| *v = -*v);
        out
    }
}
