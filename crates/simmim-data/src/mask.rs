//! Which cells of an image are hidden.
//!
//! A mask is a row-major grid of booleans, `true` where a cell is masked. The number of masked cells is the same for
//! every image of a [`MaskSpec`]: the step's shapes depend on it.

use simmim_random::{Purpose, Stream};

use crate::DataError;

/// How masked cells are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// The cells with the largest of independent N(0, 1) draws; `floor(ratio * cells)` of them, as the tutorial does.
    TutorialTokens,
    /// The first `ceil(ratio * cells)` cells of a random permutation, as the official code does.
    Random,
    /// Overlapping random rectangles as in BEiT, completed to exactly `ceil(ratio * cells)` cells.
    Block,
}

/// A family of masks over a grid of cells (mask units), with a fixed number of masked cells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskSpec {
    /// Rows of the grid, in mask units.
    pub rows: usize,
    /// Columns of the grid, in mask units.
    pub cols: usize,
    /// Share of cells to hide, between 0 and 1.
    pub ratio: f64,
    /// How cells are chosen.
    pub kind: MaskKind,
}

impl MaskSpec {
    /// Checks that at least one cell is masked and at least one stays visible.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the value that cannot work.
    pub fn validate(&self) -> Result<(), DataError> {
        let cells = self.cells();
        if cells < 2 {
            let found = format!("{} x {} cells", self.rows, self.cols);
            return Err(DataError::config("mask grid", "at least 2 cells", found));
        }
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            return Err(DataError::config("mask ratio", "a number between 0 and 1", self.ratio));
        }
        let count = self.count();
        if count == 0 || count == cells {
            let expected = format!("a ratio that masks between 1 and {} of the {cells} cells", cells - 1);
            return Err(DataError::config("mask ratio", expected, format!("{} ({count} cells)", self.ratio)));
        }
        Ok(())
    }

    /// Number of cells, `rows * cols`.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.rows * self.cols
    }

    /// Number of masked cells of every mask.
    #[must_use]
    pub fn count(&self) -> usize {
        let wanted = self.ratio * self.cells() as f64;
        let rounded = match self.kind {
            MaskKind::TutorialTokens => wanted.floor(),
            MaskKind::Random | MaskKind::Block => wanted.ceil(),
        };
        // A float to integer cast saturates, and turns NaN into zero.
        (rounded as usize).min(self.cells())
    }

    /// The mask of one sample: `rows * cols` cells, row by row, exactly [`count`](Self::count) of them `true`.
    ///
    /// A pure function of its arguments.
    #[must_use]
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64) -> Vec<bool> {
        let mut stream = Stream::new(seed, Purpose::Mask, epoch, sample);
        let mut mask = vec![false; self.cells()];
        match self.kind {
            MaskKind::TutorialTokens => {
                let noise: Vec<f64> = (0..self.cells()).map(|_| stream.normal()).collect();
                let mut cells: Vec<usize> = (0..self.cells()).collect();
                // Ties have probability zero up to rounding; the stable sort then takes the first cell.
                cells.sort_by(|&a, &b| noise[b].total_cmp(&noise[a]));
                cells[..self.count()].iter().for_each(|&cell| mask[cell] = true);
            }
            MaskKind::Random => {
                let mut cells: Vec<usize> = (0..self.cells()).collect();
                stream.shuffle(&mut cells);
                cells[..self.count()].iter().for_each(|&cell| mask[cell] = true);
            }
            MaskKind::Block => self.draw_blocks(&mut stream, &mut mask),
        }
        mask
    }

    /// BEiT's block-wise masking (arXiv 2106.08254, algorithm 1), then single cells up to the exact count.
    fn draw_blocks(&self, stream: &mut Stream, mask: &mut [bool]) {
        let mut missing = self.count();
        // BEiT takes blocks of at least 16 of its 14 x 14 cells; the same share serves grids of other sizes.
        let smallest = (self.cells() as f64 * 16.0 / 196.0).clamp(1.0, 16.0);
        while missing > 0 {
            let added = (0..10).find_map(|_| self.place_block(stream, mask, smallest, missing));
            match added {
                Some(added) => missing -= added,
                None => break,
            }
        }
        // BEiT stops short when no rectangle fits. Growing the blocks cell by cell keeps the shape and fixes the count.
        while missing > 0 {
            let visible: Vec<usize> = (0..mask.len()).filter(|&cell| !mask[cell]).collect();
            let edge: Vec<usize> = visible.iter().copied().filter(|&cell| self.touches(mask, cell)).collect();
            let pool = if edge.is_empty() { visible } else { edge };
            let Some(&cell) = pool.get(stream.below(pool.len() as u64) as usize) else { break };
            mask[cell] = true;
            missing -= 1;
        }
    }

    /// Tries one rectangle; returns the number of newly masked cells when it fits.
    fn place_block(&self, stream: &mut Stream, mask: &mut [bool], smallest: f64, missing: usize) -> Option<usize> {
        let limit_aspect = (1.0_f64 / 0.3).ln();
        let area = stream.range(smallest.min(missing as f64), missing as f64);
        let aspect = stream.range(-limit_aspect, limit_aspect).exp();
        let height = (area * aspect).sqrt().round() as usize;
        let width = (area / aspect).sqrt().round() as usize;
        if height == 0 || width == 0 || height >= self.rows || width >= self.cols {
            return None;
        }
        let top = stream.below((self.rows - height) as u64 + 1) as usize;
        let left = stream.below((self.cols - width) as u64 + 1) as usize;
        let cells = || (top..top + height).flat_map(|r| (left..left + width).map(move |c| r * self.cols + c));
        let added = cells().filter(|&cell| !mask[cell]).count();
        if added == 0 || added > missing {
            return None;
        }
        cells().for_each(|cell| mask[cell] = true);
        Some(added)
    }

    /// Whether a cell has a masked neighbour above, below, left or right.
    fn touches(&self, mask: &[bool], cell: usize) -> bool {
        let (row, col) = (cell / self.cols, cell % self.cols);
        (row > 0 && mask[cell - self.cols])
            || (row + 1 < self.rows && mask[cell + self.cols])
            || (col > 0 && mask[cell - 1])
            || (col + 1 < self.cols && mask[cell + 1])
    }
}

/// A mask of `rows x cols` units as a mask of tokens, each unit `factor_rows x factor_cols` tokens.
///
/// Returns `rows * factor_rows * cols * factor_cols` cells, row by row.
#[must_use]
pub fn expand(mask: &[bool], rows: usize, cols: usize, factor_rows: usize, factor_cols: usize) -> Vec<bool> {
    debug_assert_eq!(mask.len(), rows * cols);
    let mut tokens = Vec::with_capacity(mask.len() * factor_rows * factor_cols);
    for row in mask.chunks_exact(cols.max(1)) {
        for _ in 0..factor_rows {
            tokens.extend(row.iter().flat_map(|&masked| std::iter::repeat_n(masked, factor_cols)));
        }
    }
    tokens
}

/// AvgDist of the SimMIM paper (section 4.1.2): the mean Euclidean distance, in pixels, from the pixels of masked cells
/// to the nearest visible pixel. Each cell is `unit_height x unit_width` pixels.
///
/// `None` when nothing is masked or nothing is visible.
#[must_use]
pub fn avg_dist(mask: &[bool], rows: usize, cols: usize, unit_height: usize, unit_width: usize) -> Option<f64> {
    let pixels = expand(mask, rows, cols, unit_height, unit_width);
    let width = cols * unit_width;
    let masked = pixels.iter().filter(|&&m| m).count();
    if masked == 0 || masked == pixels.len() {
        return None;
    }
    // Squared distance transform, separable: along columns by two sweeps, along rows by a lower envelope of parabolas.
    let mut squared = column_distances(&pixels, width);
    for row in squared.chunks_exact_mut(width) {
        let envelope = lower_envelope(row);
        row.copy_from_slice(&envelope);
    }
    let sum: f64 = pixels.iter().zip(&squared).filter(|&(&m, _)| m).map(|(_, &d)| d.sqrt()).sum();
    Some(sum / masked as f64)
}

/// Squared distance of every pixel to the nearest visible pixel of its own column; infinite where there is none.
fn column_distances(pixels: &[bool], width: usize) -> Vec<f64> {
    let height = pixels.len() / width;
    let mut distances = vec![f64::INFINITY; pixels.len()];
    for col in 0..width {
        let down: Vec<usize> = (0..height).collect();
        for rows in [down.clone(), down.into_iter().rev().collect()] {
            let mut distance = f64::INFINITY;
            for row in rows {
                let at = row * width + col;
                distance = if pixels[at] { distance + 1.0 } else { 0.0 };
                distances[at] = distances[at].min(distance);
            }
        }
    }
    distances.iter_mut().for_each(|d| *d *= *d);
    distances
}

/// `min over j of heights[j] + (i - j)^2` for every i (Felzenszwalb and Huttenlocher 2012).
fn lower_envelope(heights: &[f64]) -> Vec<f64> {
    let mut parabolas: Vec<(usize, f64)> = Vec::with_capacity(heights.len());
    for (j, &height) in heights.iter().enumerate().filter(|(_, h)| h.is_finite()) {
        let x = j as f64;
        let mut start = f64::NEG_INFINITY;
        while let Some(&(other, other_start)) = parabolas.last() {
            let o = other as f64;
            start = ((height + x * x) - (heights[other] + o * o)) / (2.0 * (x - o));
            if start > other_start {
                break;
            }
            parabolas.pop();
            start = f64::NEG_INFINITY;
        }
        parabolas.push((j, start));
    }
    let mut current = 0;
    (0..heights.len())
        .map(|i| {
            while parabolas.get(current + 1).is_some_and(|&(_, start)| start < i as f64) {
                current += 1;
            }
            parabolas.get(current).map_or(f64::INFINITY, |&(j, _)| heights[j] + (i as f64 - j as f64).powi(2))
        })
        .collect()
}
