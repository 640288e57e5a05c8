//! Rectangles of row-major matrices, which tasks of the pool hold alone.

#![allow(unsafe_code, reason = "hands out disjoint rectangles of one matrix")]

use super::Pool;
use std::marker::PhantomData;
use std::ops::Range;

/// A rectangle of a row-major matrix, borrowed mutably. The elements between its rows are not part of it.
#[derive(Debug)]
pub struct BlockMut<'a, T = f32> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a block is like a `&mut [T]` of the elements of its rectangle.
unsafe impl<T: Send> Send for BlockMut<'_, T> {}

impl<'a, T> BlockMut<'a, T> {
    /// `rows` rows of `cols` elements, the starts of which are `stride` apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap: a fault of the caller.
    #[must_use]
    pub fn of(slice: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(stride >= cols, "rows of {cols} elements overlap at a stride of {stride}");
        let needed = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(cols));
        assert!(needed.is_some_and(|needed| needed <= slice.len()), "result too short for [{rows}, {cols}]");
        Self { start: slice.as_mut_ptr(), rows, cols, stride, borrowed: PhantomData }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of rows.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Pointer to the first element; rows are [`BlockMut::stride`] apart.
    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&mut self, at: usize) -> &mut [T] {
        assert!(at < self.rows, "row {at} of {}", self.rows);
        // SAFETY: the row lies in the rectangle, which is borrowed mutably through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at * self.stride), self.cols) }
    }

    /// A rectangle of this one.
    ///
    /// # Panics
    /// If it reaches beyond this one.
    #[must_use]
    #[inline(always)]
    pub fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> BlockMut<'_, T> {
        // SAFETY: `self` is borrowed mutably for as long as the part lives.
        unsafe { self.lend(rows, cols) }
    }

    /// Cuts the rectangle into `N` of equal width.
    ///
    /// # Panics
    /// If the width is no multiple of `N`: a fault of the caller.
    #[must_use]
    pub fn columns<const N: usize>(self) -> [BlockMut<'a, T>; N] {
        assert!(self.cols.is_multiple_of(N), "{} columns in {N} parts", self.cols);
        let each = self.cols / N;
        // SAFETY: the ranges of columns do not overlap, and `self`, consumed here, lends nothing else; all live as long as its borrow.
        std::array::from_fn(|i| unsafe { self.lend(0..self.rows, i * each..(i + 1) * each) })
    }

    /// # Safety
    /// No other part that is in use overlaps this one, and `self` outlives the part.
    #[inline(always)]
    unsafe fn lend<'b>(&self, rows: Range<usize>, cols: Range<usize>) -> BlockMut<'b, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        // Where the part is empty, this may lie anywhere: it is not followed.
        let start = self.start.wrapping_add(rows.start.wrapping_mul(self.stride).wrapping_add(cols.start));
        BlockMut { start, rows: rows.len(), cols: cols.len(), stride: self.stride, borrowed: PhantomData }
    }
}

/// A matrix cut into rectangles: each rows range with each columns range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Consecutive ranges.
    pub rows: Vec<Range<usize>>,
    /// Consecutive ranges.
    pub cols: Vec<Range<usize>>,
}

impl Grid {
    fn assert_apart(&self) {
        let apart = |ranges: &[Range<usize>]| ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
        assert!(apart(&self.rows) && apart(&self.cols), "a grid's ranges overlap");
    }
}

/// Matrices that tasks take their rectangles of. They were given away, so that no task can reach them but through its rectangles.
struct Lent<'a, T, const N: usize>([BlockMut<'a, T>; N]);

// SAFETY: through a shared reference nothing can be reached but by `BlockMut::lend`, whose obligation keeps rectangles apart.
unsafe impl<T: Send, const N: usize> Sync for Lent<'_, T, N> {}

impl<'a, T, const N: usize> Lent<'a, T, N> {
    /// A method, so that closures capture the whole.
    fn each(&self) -> [&BlockMut<'a, T>; N] {
        self.0.each_ref()
    }
}

impl Pool {
    /// Calls `f(i, j, a rectangle of each matrix, working memory)` for every range of rows `i` and of columns `j`. Each matrix, of both
    /// kinds, has a shape and a grid of its own; the grids have equally many ranges.
    ///
    /// # Panics
    /// If grids differ in their number of ranges, or ranges overlap or reach beyond a matrix: a fault of the caller.
    pub fn for_grids<T: Send, U: Send, const M: usize, const N: usize>(
        &self,
        first: [(BlockMut<'_, T>, &Grid); M],
        second: [(BlockMut<'_, U>, &Grid); N],
        scratch: &mut [f32],
        f: impl Fn(usize, usize, [BlockMut<'_, T>; M], [BlockMut<'_, U>; N], &mut [f32]) + Sync,
    ) {
        let (of_first, of_second) = (first.each_ref().map(|(_, grid)| *grid), second.each_ref().map(|(_, grid)| *grid));
        let (first, second) = (Lent(first.map(|(matrix, _)| matrix)), Lent(second.map(|(matrix, _)| matrix)));
        let Some(any) = of_first.first().or(of_second.first()) else { return };
        let (rows, cols) = (any.rows.len(), any.cols.len());
        for grid in of_first.iter().chain(&of_second) {
            assert!((grid.rows.len(), grid.cols.len()) == (rows, cols), "grids of different sizes");
            grid.assert_apart();
        }
        self.for_scratch(rows * cols, scratch, |task, scratch| {
            let (i, j) = (task / cols, task % cols);
            let of = |grid: &Grid| (grid.rows[i].clone(), grid.cols[j].clone());
            let parts = std::array::from_fn(|m| {
                let (rows, cols) = of(of_first[m]);
                // SAFETY: the ranges of a grid do not overlap (asserted) and each task runs once, so no two tasks share an element; the
                // matrices stay borrowed until all tasks are done.
                unsafe { first.each()[m].lend(rows, cols) }
            });
            let others = std::array::from_fn(|m| {
                let (rows, cols) = of(of_second[m]);
                // SAFETY: as above.
                unsafe { second.each()[m].lend(rows, cols) }
            });
            f(i, j, parts, others, scratch);
        });
    }

    /// Calls `f(rows, columns, the rectangle of each matrix, working memory)` for every rectangle of a grid. All matrices of both
    /// kinds have the same shape; the working memory is that of [`Pool::for_scratch`].
    ///
    /// # Panics
    /// If the ranges of the grid overlap or reach beyond a matrix: a fault of the caller.
    pub fn for_blocks<T: Send, U: Send, const M: usize, const N: usize>(
        &self,
        first: [BlockMut<'_, T>; M],
        second: [BlockMut<'_, U>; N],
        grid: &Grid,
        scratch: &mut [f32],
        f: impl Fn(Range<usize>, Range<usize>, [BlockMut<'_, T>; M], [BlockMut<'_, U>; N], &mut [f32]) + Sync,
    ) {
        grid.assert_apart();
        let (first, second) = (Lent(first), Lent(second));
        self.for_scratch(grid.rows.len() * grid.cols.len(), scratch, |task, scratch| {
            let rows = grid.rows[task / grid.cols.len()].clone();
            let cols = grid.cols[task % grid.cols.len()].clone();
            // SAFETY: the ranges do not overlap (asserted) and each task runs once, so no two tasks share an element; the
            // matrices stay borrowed until all tasks are done.
            let of_first = first.each().map(|m| unsafe { m.lend(rows.clone(), cols.clone()) });
            // SAFETY: as above.
            let of_second = second.each().map(|m| unsafe { m.lend(rows.clone(), cols.clone()) });
            f(rows, cols, of_first, of_second, scratch);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_belongs_to_one_rectangle() {
        let (rows, cols, stride) = (7, 10, 12);
        let grid = Grid { rows: vec![0..3, 3..4, 4..7], cols: vec![0..4, 4..10] };
        for threads in [1, 3] {
            let mut data = vec![0.0; rows * stride];
            let mut other = vec![0u16; rows * cols];
            let mut scratch = vec![0.0; 3 * 16];
            let (first, second) =
                ([BlockMut::of(&mut data, rows, cols, stride)], [BlockMut::of(&mut other, rows, cols, cols)]);
            Pool::new(threads).for_blocks(
                first,
                second,
                &grid,
                &mut scratch,
                |rows, cols, [mut a], [mut b], scratch| {
                    assert!(scratch.len() >= 16);
                    for (i, row) in rows.enumerate() {
                        for (j, col) in cols.clone().enumerate() {
                            a.row(i)[j] += (row * 10 + col) as f32;
                            b.part(i..i + 1, j..j + 1).row(0)[0] += 1;
                        }
                    }
                },
            );
            for (at, &v) in data.iter().enumerate() {
                let (row, col) = (at / stride, at % stride);
                assert_eq!(v, if col < cols { (row * 10 + col) as f32 } else { 0.0 });
            }
            assert!(other.iter().all(|&v| v == 1));
        }
    }

    #[test]
    fn matrices_of_different_shapes_are_cut_alike() {
        let (mut wide, mut flat) = (vec![0.0; 6 * 8], vec![0u16; 4]);
        let (grid, cells) = (
            Grid { rows: vec![0..2, 2..6], cols: vec![0..1, 1..4] },
            Grid { rows: vec![0..1, 1..2], cols: vec![0..1, 1..2] },
        );
        let [left, right] = BlockMut::of(&mut wide, 6, 8, 8).columns::<2>();
        let (sides, cells) = ([(left, &grid), (right, &grid)], [(BlockMut::of(&mut flat, 2, 2, 2), &cells)]);
        Pool::new(2).for_grids(sides, cells, &mut [], |i, j, [mut left, mut right], [mut cell], _| {
            for row in 0..left.rows() {
                left.row(row).fill((10 * i + j) as f32);
                right.row(row).fill((100 + 10 * i + j) as f32);
            }
            cell.row(0)[0] = (10 * i + j) as u16;
        });
        for (at, &v) in wide.iter().enumerate() {
            let (row, col) = (at / 8, at % 8);
            let expected = 100 * (col / 4) + 10 * usize::from(row >= 2) + usize::from(col % 4 >= 1);
            assert_eq!(v, expected as f32);
        }
        assert_eq!(flat, [0, 1, 10, 11]);
    }

    #[test]
    #[should_panic(expected = "result too short")]
    fn a_slice_that_is_too_short_is_refused() {
        let _ = BlockMut::of(&mut [0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "result too short")]
    fn a_size_that_wraps_around_is_refused() {
        // 2^63 * 2 + 2 is 2 where it wraps around.
        let _ = BlockMut::of(&mut [0.0; 5], 3, 2, 1 << (usize::BITS - 1));
    }

    #[test]
    fn empty_parts_at_the_end_are_empty() {
        let mut data = [0.0; 4];
        let mut block = BlockMut::of(&mut data, 1, 2, usize::MAX);
        assert_eq!(block.part(1..1, 2..2).rows(), 0);
        assert_eq!(block.part(0..1, 2..2).row(0), []);
    }

    #[test]
    #[should_panic(expected = "ranges overlap")]
    fn overlapping_ranges_are_refused() {
        let mut data = [0.0; 4];
        let grid = Grid { rows: vec![0..2, 1..2], cols: vec![0..1, 1..2] };
        let none: [BlockMut<'_>; 0] = [];
        Pool::new(1).for_blocks([BlockMut::of(&mut data, 2, 2, 2)], none, &grid, &mut [], |_, _, _, _, _| ());
    }
}
