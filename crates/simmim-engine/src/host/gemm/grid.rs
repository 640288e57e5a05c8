//! How a product is cut into parts for threads.

use super::Extents;
use crate::host::block::Grid;
use std::ops::Range;

/// What the micro-kernel and its packing ask of a cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Rows and columns of a tile.
    pub(super) tile: (usize, usize),
    /// What copying a float of `a` and one of `b` costs, in multiplications and additions of a tile.
    pub(super) packing: (usize, usize),
}

/// `0..len` cut into as few ranges as `most` allows, all but the last a multiple of `unit` and as even as that allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Even {
    len: usize,
    /// How many ranges.
    pub(super) count: usize,
    /// Length of a range, and how many of the first are a unit longer.
    each: usize,
    longer: usize,
    unit: usize,
    next: usize,
}

impl Even {
    pub(super) fn new(len: usize, most: usize, unit: usize) -> Self {
        let units = len.div_ceil(unit);
        let count = len.div_ceil(most).min(units);
        let parts = count.max(1);
        Self { len, count, each: units / parts * unit, longer: units % parts, unit, next: 0 }
    }

    /// The range of that number; an empty one beyond the last.
    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> Range<usize> {
        let bound = |at: usize| (at * self.each + at.min(self.longer) * self.unit).min(self.len);
        if at < self.count { bound(at)..bound(at + 1) } else { self.len..self.len }
    }
}

impl Iterator for Even {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let range = (self.next < self.count).then(|| self.get(self.next));
        self.next += 1;
        range
    }
}

/// Cuts a result into one part for each thread, or fewer: along rows and columns such that the largest part, and what its thread
/// packs for it, is smallest.
pub(super) fn grid(threads: usize, e: Extents, costs: Costs) -> Grid {
    let (height, width) = costs.tile;
    let cost = |by_rows: usize, by_cols: usize| {
        let rows = e.m.div_ceil(height).div_ceil(by_rows) * height;
        let cols = e.n.div_ceil(width).div_ceil(by_cols) * width;
        rows * cols + costs.packing.0 * rows + costs.packing.1 * cols
    };
    let cuts = (1..=threads).map(|by_rows| (by_rows, threads / by_rows));
    let (by_rows, by_cols) = cuts.min_by_key(|&(r, c)| cost(r, c)).unwrap_or((1, 1));
    let cut = |len: usize, parts: usize, unit: usize| {
        let most = len.div_ceil(unit).div_ceil(parts) * unit;
        Even::new(len, most.max(1), unit).collect()
    };
    Grid { rows: cut(e.m, by_rows, height), cols: cut(e.n, by_cols, width) }
}

#[cfg(test)]
mod tests {
    use super::super::costs;
    use super::*;
    use crate::host::Isa;

    #[test]
    fn ranges_cover_everything_once() {
        for (len, most, unit) in
            [(1, 8, 1), (8, 8, 1), (9, 8, 1), (50, 48, 16), (384, 48, 16), (130, 48, 16), (17, 16, 8)]
        {
            let ranges: Vec<_> = Even::new(len, most, unit).collect();
            assert_eq!(ranges.len(), len.div_ceil(most), "{len} {most} {unit}");
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, len));
            assert!(ranges.windows(2).all(|w| w[0].end == w[1].start && w[0].end % unit == 0));
            assert!(ranges.iter().all(|r| r.len() <= most));
        }
    }

    #[test]
    fn a_grid_has_a_part_for_each_thread_where_there_is_enough() {
        for isa in Isa::available() {
            for threads in [1, 2, 3, 4, 16] {
                for (m, n, k) in [(784, 1536, 384), (784, 384, 1536), (1536, 384, 784), (1, 1000, 64), (4000, 7, 64)] {
                    let e = Extents { m, n, k };
                    let grid = grid(threads, e, costs::<f32>(isa, e, false));
                    assert!(grid.rows.len() * grid.cols.len() <= threads);
                    let largest = grid.rows.iter().map(Range::len).max().unwrap_or(0)
                        * grid.cols.iter().map(Range::len).max().unwrap_or(0);
                    assert!(m * n < 3 * threads * largest, "{m} {n}");
                    assert!(largest * threads <= 3 * m * n || largest <= 48 * 8, "{m} {n} {threads}: {grid:?}");
                }
            }
        }
    }
}
