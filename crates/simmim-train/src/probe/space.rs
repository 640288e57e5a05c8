//! Spaces in which features are compared: as they are, standardised, whitened.
//!
//! Cosines are ruled by the directions in which features vary most, and by what all images share. Whitening evens both out:
//! `y = W (x - mean)` with `W^T W = C^-1`, where `C = (1 - s) S + s (tr S / d) I` is the covariance `S` shrunk a little towards a
//! sphere (Ledoit and Wolf, J. Multivariate Analysis 88, 2004, with a fixed `s`). Cosines and distances depend on `W^T W` alone, so
//! the inverse of the Cholesky factor of `C` serves as well as the eigenvectors by which PCA whitens. Everything is fitted on
//! training images. Products are in f32 over centred columns, their sums and the factor in f64, over a partition that depends on
//! the shapes alone.

use super::linear::Standardiser;
use super::parallel_map;
use crate::features::Matrix;
use serde::{Deserialize, Serialize};
use simmim_engine::host::Pool;
use simmim_engine::host::gemm::{Extents, MatrixView, Product};

/// Share of the sphere in the covariance.
pub const SHRINKAGE: f64 = 1e-3;
/// Most numbers of a feature that are whitened: time grows with the cube.
pub const MOST_WHITENED: usize = 4096;
/// Rows of one product.
const ROWS: usize = 512;
/// Columns of the covariance of one task.
const COLUMNS: usize = 64;

/// How features are changed before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Not at all.
    Plain,
    /// Every column at mean 0 and deviation 1.
    Standardised,
    /// All directions alike.
    Whitened,
}

impl Space {
    /// All of them, the simplest first.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Standardised, Self::Whitened];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Standardised => "standardised",
            Self::Whitened => "whitened",
        }
    }

    /// Fits the change to features; none where they are too long to be whitened.
    #[must_use]
    pub fn fit(self, pool: &Pool, features: &Matrix) -> Option<Change> {
        match self {
            Self::Plain => Some(Change::None),
            Self::Standardised => Some(Change::Standardise(Standardiser::of(features))),
            Self::Whitened if features.cols > MOST_WHITENED => None,
            Self::Whitened => Some(Change::Whiten(Whitener::of(pool, features, SHRINKAGE))),
        }
    }
}

/// A fitted change.
#[derive(Debug, Clone)]
pub enum Change {
    /// Nothing.
    None,
    /// Standardising.
    Standardise(Standardiser),
    /// Whitening.
    Whiten(Whitener),
}

impl Change {
    /// The changed features.
    #[must_use]
    pub fn apply(&self, pool: &Pool, features: &Matrix) -> Matrix {
        match self {
            Self::None => features.clone(),
            Self::Standardise(s) => s.apply(features),
            Self::Whiten(w) => w.apply(pool, features),
        }
    }
}

/// A fitted whitening.
#[derive(Debug, Clone)]
pub struct Whitener {
    mean: Vec<f64>,
    /// `W [dims, dims]`, lower triangular.
    matrix: Vec<f32>,
}

impl Whitener {
    /// Measures mean and covariance, the latter shrunk by a share of 0 to 1; without any it must have full rank.
    #[must_use]
    pub fn of(pool: &Pool, features: &Matrix, shrinkage: f64) -> Self {
        let dims = features.cols;
        let mean = mean(features);
        let mut covariance = covariance(pool, &centred(features, &mean));
        let trace: f64 = (0..dims).map(|i| covariance[i * dims + i]).sum();
        // Features that are all alike have no direction: they are only shifted.
        let sphere = if trace > 0.0 { shrinkage * trace / dims as f64 } else { 1.0 };
        covariance.iter_mut().for_each(|v| *v *= 1.0 - shrinkage);
        (0..dims).for_each(|i| covariance[i * dims + i] += sphere);
        factorise(&mut covariance, dims);
        Self { mean, matrix: inverse(&covariance, dims).into_iter().map(|v| v as f32).collect() }
    }

    /// Whitened features.
    #[must_use]
    pub fn apply(&self, pool: &Pool, features: &Matrix) -> Matrix {
        let dims = features.cols;
        let centred = centred(features, &self.mean);
        let blocks = parallel_map(pool, features.rows.div_ceil(ROWS), |block| {
            let rows = block * ROWS..features.rows.min((block + 1) * ROWS);
            let mut out = vec![0.0; rows.len() * dims];
            let e = Extents { m: rows.len(), n: dims, k: dims };
            let x = MatrixView::rows(&centred.data[rows.start * dims..], dims);
            Product::new(e, x, MatrixView::rows(&self.matrix, dims).transposed()).write(&mut out);
            out
        });
        Matrix { data: blocks.concat(), ..*features }
    }
}

fn mean(features: &Matrix) -> Vec<f64> {
    let mut mean = vec![0.0; features.cols];
    for row in features.data.chunks_exact(features.cols.max(1)) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
    }
    mean.iter_mut().for_each(|m| *m /= features.rows.max(1) as f64);
    mean
}

fn centred(features: &Matrix, mean: &[f64]) -> Matrix {
    let mut out = features.clone();
    for row in out.data.chunks_exact_mut(features.cols.max(1)) {
        row.iter_mut().zip(mean).for_each(|(v, m)| *v = (f64::from(*v) - m) as f32);
    }
    out
}

/// The lower triangle of the covariance of centred features, `[dims, dims]`.
fn covariance(pool: &Pool, x: &Matrix) -> Vec<f64> {
    let dims = x.cols;
    let strips = parallel_map(pool, dims.div_ceil(COLUMNS), |strip| {
        let (from, to) = (strip * COLUMNS, dims.min((strip + 1) * COLUMNS));
        let (height, mut sums, mut product) = (to - from, vec![0.0; (to - from) * to], vec![0.0; (to - from) * to]);
        for start in (0..x.rows).step_by(ROWS) {
            let e = Extents { m: height, n: to, k: ROWS.min(x.rows - start) };
            let rows = &x.data[start * dims..];
            let left = MatrixView::rows(&rows[from..], dims).transposed();
            Product::new(e, left, MatrixView::rows(rows, dims)).write(&mut product);
            sums.iter_mut().zip(&product).for_each(|(s, p)| *s += f64::from(*p));
        }
        sums
    });
    let mut out = vec![0.0; dims * dims];
    for (strip, sums) in strips.iter().enumerate() {
        let to = dims.min((strip + 1) * COLUMNS);
        for (line, row) in sums.chunks_exact(to).zip(strip * COLUMNS..to) {
            out[row * dims..row * dims + to].iter_mut().zip(line).for_each(|(o, s)| *o = s / x.rows.max(1) as f64);
        }
    }
    out
}

/// `a . b`, in eight sums that fit vector registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// The Cholesky factor, in place of the lower triangle.
pub(super) fn factorise(a: &mut [f64], dims: usize) {
    for i in 0..dims {
        let (above, rest) = a.split_at_mut(i * dims);
        for j in 0..i {
            let known = &above[j * dims..];
            rest[j] = (rest[j] - dot(&rest[..j], &known[..j])) / known[j];
        }
        let square = rest[i] - dot(&rest[..i], &rest[..i]);
        // Rounding may take a direction without variance below zero.
        rest[i] = square.max(f64::MIN_POSITIVE).sqrt();
    }
}

/// The inverse of a lower triangle; zeros above.
pub(super) fn inverse(l: &[f64], dims: usize) -> Vec<f64> {
    let mut out = vec![0.0; dims * dims];
    for i in 0..dims {
        let (above, rest) = out.split_at_mut(i * dims);
        let row = &mut rest[..=i];
        for j in 0..i {
            let factor = l[i * dims + j];
            row[..=j].iter_mut().zip(&above[j * dims..]).for_each(|(o, v)| *o -= factor * v);
        }
        row[i] = 1.0;
        let pivot = l[i * dims + i];
        row.iter_mut().for_each(|v| *v /= pivot);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::knn::normalised;
    use super::*;
    use simmim_random::{Purpose, Stream};

    fn noise(rows: usize, cols: usize) -> Matrix {
        let mut stream = Stream::new(4, Purpose::Test, 9, 0);
        let mut data = Vec::new();
        for _ in 0..rows {
            let shared = stream.normal();
            data.extend((0..cols).map(|c| (3.0 + shared * 2.0 + stream.normal() * (0.1 + c as f64 / 8.0)) as f32));
        }
        Matrix { rows, cols, data }
    }

    fn plain_covariance(x: &Matrix) -> Vec<f64> {
        let m = mean(x);
        let at = |r: usize, c: usize| f64::from(x.row(r)[c]) - m[c];
        let element = |i: usize, j: usize| (0..x.rows).map(|r| at(r, i) * at(r, j)).sum::<f64>() / x.rows as f64;
        (0..x.cols).flat_map(|i| (0..x.cols).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
    }

    #[test]
    fn whitened_features_have_the_identity_as_covariance_for_any_threads() {
        let x = noise(1500, 70);
        let y = Whitener::of(&Pool::new(2), &x, 0.0).apply(&Pool::new(3), &x);
        assert_eq!(y, Whitener::of(&Pool::new(1), &x, 0.0).apply(&Pool::new(1), &x));
        for (at, v) in plain_covariance(&y).into_iter().enumerate() {
            let expected = f64::from(u8::from(at / 70 == at % 70));
            assert!((v - expected).abs() < 1e-3, "{at}: {v}");
        }
    }

    #[test]
    fn columns_without_variance_and_more_columns_than_rows_stay_finite() {
        let mut x = noise(20, 40);
        x.data.iter_mut().step_by(40).for_each(|v| *v = 0.1);
        for features in [x, Matrix { rows: 3, cols: 2, data: vec![1.0; 6] }] {
            let y = Whitener::of(&Pool::new(2), &features, SHRINKAGE).apply(&Pool::new(2), &features);
            assert!(y.data.iter().all(|v| v.is_finite() && v.abs() < 1e3), "{y:?}");
        }
    }

    #[test]
    fn cosines_are_those_of_whitening_by_principal_components() {
        let fixture = simmim_testing::Fixture::load("whitening");
        let matrix = |name: &str| {
            let (shape, data) = fixture.floats[name].clone();
            Matrix { rows: shape[0], cols: shape[1], data }
        };
        let (train, queries) = (matrix("train"), matrix("queries"));
        let pool = Pool::new(2);
        for (shrinkage, name) in [(0.0, "cosines.sklearn"), (SHRINKAGE, "cosines.shrunk")] {
            let whitener = Whitener::of(&pool, &train, shrinkage);
            let of = |m: &Matrix| normalised(&whitener.apply(&pool, m));
            let (bank, queries) = (of(&train), of(&queries));
            let cosine = |q: usize, r: usize| queries.row(q).iter().zip(bank.row(r)).map(|(a, b)| a * b).sum::<f32>();
            let found: Vec<f32> = (0..queries.rows)
                .flat_map(|q| (0..bank.rows).map(move |r| (q, r)))
                .map(|(q, r)| cosine(q, r))
                .collect();
            let worst = simmim_testing::relative_error(&found, &fixture.floats[name].1);
            // Rounding of f32 products, times the condition of the covariance.
            assert!(worst < 2e-3, "{name}: {worst}");
        }
        let (bare, shrunk) = (&fixture.floats["cosines.sklearn"].1, &fixture.floats["cosines.shrunk"].1);
        assert!(simmim_testing::relative_error(bare, shrunk) > 1e-2, "the fixture would not notice the shrinkage");
    }
}
