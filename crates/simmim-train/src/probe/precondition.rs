//! How curved the objective of a logistic regression is, roughly: enough for steps of about the right length in all directions.
//!
//! The curvature is near `h C + l2`, where `C` is the covariance of the features and `h` the mean variance of a predicted class. Of `C` the
//! largest directions are kept and the rest is taken for a sphere: a Nystrom approximation `B B^T` from products with random columns
//! (Frangella, Tropp, Udell, "Randomized Nystrom preconditioning", 2021). Its inverse for any `h` and `l2` is a small factorisation away
//! (Woodbury), so nothing grows with the cube of the features' length.

use super::parallel_map;
use super::space::{factorise, inverse};
use crate::features::Matrix;
use simmim_engine::host::Pool;
use simmim_engine::host::gemm::{Extents, MatrixView, Product};
use simmim_random::{Purpose, Stream};

/// Directions that are kept of long features. Half as many take up to twice the iterations on raw pixels, more gain little.
const RANK: usize = 256;
/// Features of at most so many numbers keep all directions.
const WHOLE: usize = 2 * RANK;
/// Share of the whole variance below which products in f32 know nothing.
const FLOOR: f64 = 1e-5;
/// Share of the largest product by which the smallest stay positive in spite of rounding.
const JITTER: f64 = 1e-6;
/// Rows of a result that are one task.
const ROWS: usize = 64;

/// The largest directions of standardised features.
#[derive(Debug)]
pub(super) struct Sketch {
    /// `B [dims, rank]`.
    factor: Matrix,
    /// `B^T B`.
    gram: Vec<f64>,
    /// Variance in each of the other directions.
    tail: f64,
}

/// `a b`, its rows spread over the pool.
fn multiply(pool: &Pool, e: Extents, a: MatrixView<'_>, b: MatrixView<'_>) -> Matrix {
    let blocks = parallel_map(pool, e.m.div_ceil(ROWS), |block| {
        let (start, rows) = (block * ROWS, ROWS.min(e.m - block * ROWS));
        let mut out = vec![0.0; rows * e.n];
        let a = MatrixView { data: &a.data[start * a.row_stride..], ..a };
        Product::new(Extents { m: rows, ..e }, a, b).write(&mut out);
        out
    });
    Matrix { rows: e.m, cols: e.n, data: blocks.concat() }
}

/// The columns `[dims, rank]` by which the covariance is multiplied: those of the identity, or random ones of about unit length.
struct Columns(Vec<f32>);

impl Columns {
    fn new(dims: usize, rank: usize) -> Self {
        if rank == dims {
            return Self((0..dims * dims).map(|i| if i / dims == i % dims { 1.0 } else { 0.0 }).collect());
        }
        let mut stream = Stream::new(0, Purpose::Sketch, dims as u64, rank as u64);
        let scale = 1.0 / (dims as f64).sqrt();
        Self((0..dims * rank).map(|_| (stream.normal() * scale) as f32).collect())
    }
}

impl Sketch {
    /// Measures the directions of features whose columns have the mean 0.
    pub(super) fn of(pool: &Pool, x: &Matrix) -> Self {
        let (n, dims) = (x.rows, x.cols);
        let rank = if dims <= WHOLE { dims } else { RANK };
        let columns = Columns::new(dims, rank);
        let (rows, random) = (MatrixView::rows(&x.data, dims), MatrixView::rows(&columns.0, rank));
        // The columns of the identity need no product.
        let through = (rank < dims).then(|| multiply(pool, Extents { m: n, n: rank, k: dims }, rows, random));
        let through = through.as_ref().unwrap_or(x);
        let tall = Extents { m: dims, n: rank, k: n };
        let mut image = multiply(pool, tall, rows.transposed(), MatrixView::rows(&through.data, rank));
        let trace = x.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n.max(1) as f64;
        let floor = (FLOOR * trace).max(f64::from(f32::MIN_POSITIVE));
        let shifted = image.data.iter_mut().zip(&columns.0);
        shifted.for_each(|(v, r)| *v = (f64::from(*v) / n.max(1) as f64 + floor * f64::from(*r)) as f32);
        let square = Extents { m: rank, n: rank, k: dims };
        let view = MatrixView::rows(&image.data, rank);
        let mut core: Vec<f64> =
            multiply(pool, square, random.transposed(), view).data.into_iter().map(f64::from).collect();
        let largest = (0..rank).fold(0.0, |m: f64, i| m.max(core[i * rank + i]));
        (0..rank).for_each(|i| core[i * rank + i] += JITTER * largest);
        factorise(&mut core, rank);
        let root: Vec<f32> = inverse(&core, rank).into_iter().map(|v| v as f32).collect();
        let to_factor = Extents { m: dims, n: rank, k: rank };
        let factor = multiply(pool, to_factor, view, MatrixView::rows(&root, rank).transposed());
        let view = MatrixView::rows(&factor.data, rank);
        let gram = multiply(pool, square, view.transposed(), view).data.into_iter().map(f64::from).collect::<Vec<_>>();
        let kept: f64 = (0..rank).map(|i| gram[i * rank + i]).sum();
        let tail = ((trace - kept) / (dims - rank).max(1) as f64).max(floor);
        Self { factor, gram, tail }
    }

    /// What turns gradients into steps where a class varies by `curvature` and under a strength of l2.
    pub(super) fn at(&self, pool: &Pool, curvature: f64, l2: f64) -> Preconditioner {
        let (dims, rank) = (self.factor.rows, self.factor.cols);
        let sphere = l2 + curvature * self.tail;
        let mut inner = self.gram.clone();
        (0..rank).for_each(|i| inner[i * rank + i] += sphere / curvature);
        factorise(&mut inner, rank);
        let root: Vec<f32> = inverse(&inner, rank).into_iter().map(|v| v as f32).collect();
        let factor = MatrixView::rows(&self.factor.data, rank).transposed();
        let half = multiply(pool, Extents { m: rank, n: dims, k: rank }, MatrixView::rows(&root, rank), factor);
        Preconditioner { half, sphere, bias: curvature }
    }
}

/// The inverse of the rough curvature: `(1 - T^T T) / sphere` for weights.
#[derive(Debug)]
pub(super) struct Preconditioner {
    /// `T [rank, dims]`.
    half: Matrix,
    sphere: f64,
    bias: f64,
}

impl Preconditioner {
    /// The step for a gradient `[classes, dims]`, then `[classes]` biases.
    pub(super) fn apply(&self, pool: &Pool, gradient: &[f64], classes: usize) -> Vec<f64> {
        let (rank, dims) = (self.half.rows, self.half.cols);
        let (weights, bias) = gradient.split_at(classes * dims);
        // A factor that keeps small numbers in the range of f32.
        let largest = weights.iter().fold(0.0, |m: f64, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
        let rows: Vec<f32> = weights.iter().map(|v| (v / largest) as f32).collect();
        let half = MatrixView::rows(&self.half.data, dims);
        let e = Extents { m: rank, n: classes, k: dims };
        let inner = multiply(pool, e, half, MatrixView::rows(&rows, dims).transposed());
        let e = Extents { m: dims, n: classes, k: rank };
        let known = multiply(pool, e, half.transposed(), MatrixView::rows(&inner.data, classes));
        let step = |(i, v): (usize, &f64)| {
            let (class, dim) = (i / dims, i % dims);
            (v - largest * f64::from(known.data[dim * classes + class])) / self.sphere
        };
        weights.iter().enumerate().map(step).chain(bias.iter().map(|v| v / self.bias)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns with a shared part, of mean 0.
    fn correlated(rows: usize, cols: usize) -> Matrix {
        let mut stream = Stream::new(5, Purpose::Test, 6, 0);
        let mut data = vec![0.0; rows * cols];
        for row in data.chunks_exact_mut(cols) {
            let shared = stream.normal();
            row.iter_mut().enumerate().for_each(|(c, v)| *v = (shared * (c % 3) as f64 + stream.normal()) as f32);
        }
        let x = Matrix { rows, cols, data };
        super::super::linear::Standardiser::of(&x).apply(&x)
    }

    #[test]
    fn with_all_directions_it_is_the_inverse() {
        let (x, classes, curvature, l2) = (correlated(400, 20), 3, 0.2, 0.01);
        let pool = Pool::new(2);
        let step: Vec<f64> = (0..classes * 21).map(|i| (i as f64).sin()).collect();
        // The gradient that belongs to the step: (h C + l2) for weights, h for biases.
        let mut gradient: Vec<f64> = step.iter().map(|v| v * curvature).collect();
        for class in 0..classes {
            let weights = &step[class * 20..(class + 1) * 20];
            let mut out: Vec<f64> = weights.iter().map(|w| l2 * w).collect();
            for r in 0..x.rows {
                let along: f64 = x.row(r).iter().zip(weights).map(|(v, w)| f64::from(*v) * w).sum();
                let share = curvature * along / x.rows as f64;
                out.iter_mut().zip(x.row(r)).for_each(|(o, v)| *o += share * f64::from(*v));
            }
            gradient[class * 20..(class + 1) * 20].copy_from_slice(&out);
        }
        let sketch = Sketch::of(&pool, &x);
        let found = sketch.at(&pool, curvature, l2).apply(&pool, &gradient, classes);
        for (found, expected) in found.iter().zip(&step) {
            assert!((found - expected).abs() < 2e-3, "{found} and {expected}");
        }
        assert_eq!(found, Sketch::of(&Pool::new(3), &x).at(&Pool::new(1), curvature, l2).apply(&pool, &gradient, 3));
    }

    #[test]
    fn constant_columns_and_few_rows_stay_finite() {
        let pool = Pool::new(1);
        for x in [correlated(3, 300), Matrix { rows: 4, cols: 2, data: vec![0.0; 8] }] {
            let gradient = vec![1.0; 2 * (x.cols + 1)];
            let step = Sketch::of(&pool, &x).at(&pool, 0.1, 1e-6).apply(&pool, &gradient, 2);
            assert!(step.iter().all(|v| v.is_finite()), "{step:?}");
            assert!(step.iter().zip(&gradient).map(|(s, g)| s * g).sum::<f64>() > 0.0);
        }
    }
}
