//! k nearest neighbours by cosine, weighted by temperature.
//!
//! The classes of the k most similar training images vote with `exp(similarity / 0.07)` (Wu et al., arXiv 1805.01978, section 3.4).
//! Of equal similarities the image that comes first is nearer; of equal votes the class of the smaller number wins.

use super::parallel_map;
use crate::features::Matrix;
use simmim_engine::host::gemm::{Extents, MatrixView, Product, multiply, multiply_scratch};
use simmim_engine::host::{Isa, Pool};
use std::cmp::Ordering;

/// Temperature of the votes.
pub const TEMPERATURE: f64 = 0.07;

/// Queries of one task: with a block of the bank they stay in the cache.
const QUERIES: usize = 64;
const BANK: usize = 1024;

/// A training image and its similarity to a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Row of the bank.
    pub row: usize,
    /// Cosine.
    pub similarity: f32,
}

impl Neighbour {
    fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.row.cmp(&other.row))
    }
}

/// The rows at unit length; rows of zeros stay.
#[must_use]
pub fn normalised(features: &Matrix) -> Matrix {
    let mut out = features.clone();
    for row in out.data.chunks_exact_mut(features.cols.max(1)) {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
    out
}

/// The `k` nearest rows of `bank` for each row of `queries`, nearest first; both at unit length ([`normalised`]).
#[must_use]
pub fn nearest(pool: &Pool, bank: &Matrix, queries: &Matrix, k: usize) -> Vec<Vec<Neighbour>> {
    let k = k.min(bank.rows);
    let tasks = queries.rows.div_ceil(QUERIES);
    let parts = parallel_map(pool, tasks, |task| {
        let rows = task * QUERIES..queries.rows.min((task + 1) * QUERIES);
        let mut found: Vec<Vec<Neighbour>> = vec![Vec::with_capacity(2 * k + BANK); rows.len()];
        let mut similarities = vec![0.0; rows.len() * BANK];
        let isa = Isa::detect();
        let most = Extents { m: rows.len(), n: BANK, k: bank.cols };
        let mut scratch = vec![0.0; multiply_scratch::<f32>(isa, most)];
        let query = MatrixView::rows(&queries.data[rows.start * queries.cols..], queries.cols);
        for start in (0..bank.rows).step_by(BANK) {
            let n = BANK.min(bank.rows - start);
            let e = Extents { m: rows.len(), n, k: bank.cols };
            let block = MatrixView::rows(&bank.data[start * bank.cols..], bank.cols).transposed();
            multiply(isa, &mut similarities, BANK, Product::new(e, query, block), &mut scratch);
            for (found, line) in found.iter_mut().zip(similarities.chunks_exact(BANK)) {
                let new = line[..n].iter().enumerate();
                found.extend(new.map(|(i, &similarity)| Neighbour { row: start + i, similarity }));
                if found.len() > k {
                    found.select_nth_unstable_by(k.saturating_sub(1), Neighbour::order);
                    found.truncate(k);
                }
            }
        }
        found.iter_mut().for_each(|f| f.sort_unstable_by(Neighbour::order));
        found
    });
    parts.into_iter().flatten().collect()
}

/// The class for which the first `k` of a query's neighbours vote.
#[must_use]
pub fn vote(neighbours: &[Neighbour], labels: &[usize], classes: usize, k: usize) -> usize {
    let mut votes = vec![0.0; classes];
    for n in neighbours.iter().take(k) {
        votes[labels[n.row]] += (f64::from(n.similarity) / TEMPERATURE).exp();
    }
    // `max_by` gives the last of equals, so the first is sought from behind.
    let best = votes.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(class, _)| class)
}

/// Share of queries whose class is found, for each `k`.
#[must_use]
pub fn accuracies(
    neighbours: &[Vec<Neighbour>],
    bank_labels: &[usize],
    labels: &[usize],
    classes: usize,
    ks: &[usize],
) -> Vec<f64> {
    let share = |&k: &usize| {
        let right = neighbours.iter().zip(labels).filter(|(n, l)| vote(n, bank_labels, classes, k) == **l).count();
        right as f64 / labels.len().max(1) as f64
    };
    ks.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plain reference: every similarity in f64, all sorted.
    fn reference(bank: &Matrix, queries: &Matrix) -> Vec<Vec<(f64, usize)>> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let all = |q: usize| {
            let mut all: Vec<(f64, usize)> = (0..bank.rows).map(|r| (dot(queries.row(q), bank.row(r)), r)).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all
        };
        (0..queries.rows).map(all).collect()
    }

    fn votes(all: &[(f64, usize)], labels: &[usize], classes: usize, k: usize) -> Vec<f64> {
        let mut votes = vec![0.0; classes];
        all.iter().take(k).for_each(|(s, r)| votes[labels[*r]] += (s / TEMPERATURE).exp());
        votes
    }

    fn matrix(rows: usize, cols: usize, data: impl Iterator<Item = f32>) -> Matrix {
        Matrix { rows, cols, data: data.take(rows * cols).collect() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        // Entries of +-1 in 16 dimensions have exact cosines, multiples of 1/8: full of ties, and every choice must be the same.
        #[test]
        fn exact_similarities_give_exactly_the_neighbours_of_brute_force(
            (bank, queries, k, threads) in (1usize..1500, 1usize..100, 1usize..40, 1usize..4),
            seed in any::<u64>(),
        ) {
            let mut stream = simmim_random::Stream::new(seed, simmim_random::Purpose::Test, 0, 0);
            let signs: Vec<f32> = (0..16 * (bank + queries)).map(|_| if stream.uniform() < 0.5 { 0.25 } else { -0.25 }).collect();
            let bank_features = matrix(bank, 16, signs.iter().copied());
            let query_features = matrix(queries, 16, signs[16 * bank..].iter().copied());
            let labels: Vec<usize> = (0..bank).map(|_| stream.below(5) as usize).collect();
            let found = nearest(&Pool::new(threads), &bank_features, &query_features, k);
            for (found, all) in found.iter().zip(reference(&bank_features, &query_features)) {
                let rows: Vec<usize> = found.iter().map(|n| n.row).collect();
                let expected: Vec<usize> = all.iter().take(k).map(|(_, r)| *r).collect();
                prop_assert_eq!(rows, expected);
                let votes = votes(&all, &labels, 5, k);
                let first = (0..5).fold(0, |best, c| if votes[c] > votes[best] { c } else { best });
                prop_assert_eq!(vote(found, &labels, 5, k), first);
            }
        }

        // Other similarities differ by rounding: a class may only differ where the votes are that close.
        #[test]
        fn any_similarities_give_the_classes_of_brute_force(
            (bank, queries, cols, k) in (1usize..300, 1usize..70, 1usize..40, 1usize..30),
            seed in any::<u64>(),
        ) {
            let mut stream = simmim_random::Stream::new(seed, simmim_random::Purpose::Test, 1, 0);
            let mut draw = |rows: usize| normalised(&matrix(rows, cols, std::iter::from_fn(|| Some(stream.normal() as f32))));
            let (bank_features, query_features) = (draw(bank), draw(queries));
            let labels: Vec<usize> = (0..bank).map(|i| i * 7 % 3).collect();
            let found = nearest(&Pool::new(2), &bank_features, &query_features, k);
            for (found, all) in found.iter().zip(reference(&bank_features, &query_features)) {
                prop_assert_eq!(found.len(), k.min(bank));
                let close = k < bank && all[k - 1].0 - all[k].0 < 1e-5;
                let votes = votes(&all, &labels, 3, k);
                let best = votes.iter().copied().fold(f64::MIN, f64::max);
                let chosen = vote(found, &labels, 3, k);
                prop_assert!(close || votes[chosen] >= best * (1.0 - 1e-3), "{votes:?}, chosen {chosen}");
            }
        }
    }

    #[test]
    fn the_weights_follow_the_temperature() {
        // One near neighbour outvotes two that are farther by more than 0.07 ln 2 = 0.0485.
        let near = |s: f32| [(0, 0.9), (1, s), (2, s)].map(|(row, similarity)| Neighbour { row, similarity });
        assert_eq!(vote(&near(0.851), &[1, 0, 0], 2, 3), 1);
        assert_eq!(vote(&near(0.852), &[1, 0, 0], 2, 3), 0);
        assert_eq!(vote(&near(0.9), &[1, 0, 0], 2, 1), 1);
    }
}
