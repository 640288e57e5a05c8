//! Which token stands where: shift, partition and mask of a stage's windows as indices.

use super::Stage;

/// The windows of one map, shifted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Number of windows.
    pub count: usize,
    /// Places of a window.
    pub places: usize,
    /// The token at each place, `[count, places]`; the number of tokens where a window reaches beyond the map.
    pub index: Vec<i32>,
    /// The region of each place, `[count, places]`, where windows are shifted: what the shift has brought together from different borders
    /// of the map does not attend to each other.
    pub region: Option<Vec<i32>>,
}

impl Windows {
    /// The windows of a stage at a shift.
    #[must_use]
    pub fn of(stage: &Stage, shift: (usize, usize)) -> Self {
        let ((rows, cols), (height, width)) = (stage.grid, stage.window);
        let (down, right) = (rows.div_ceil(height), cols.div_ceil(width));
        let tokens = rows * cols;
        let (mut index, mut region) = (Vec::new(), Vec::new());
        for window in 0..down * right {
            for place in 0..height * width {
                let (y, x) = (window / right * height + place / width, window % right * width + place % width);
                let token =
                    if y < rows && x < cols { (y + shift.0) % rows * cols + (x + shift.1) % cols } else { tokens };
                index.push(token as i32);
                region.push(border(y, down * height, height, shift.0) * 3 + border(x, right * width, width, shift.1));
            }
        }
        let region = (shift != (0, 0)).then_some(region);
        Self { count: down * right, places: height * width, index, region }
    }

    /// Whether windows reach beyond the map.
    #[must_use]
    pub fn padded(&self, stage: &Stage) -> bool {
        self.index.len() > stage.tokens()
    }
}

/// The region of a place along one axis: before the last window, in it, and in the part of it that the shift has brought from the other
/// side.
fn border(at: usize, len: usize, window: usize, shift: usize) -> i32 {
    if shift == 0 || at < len - window {
        0
    } else if at < len - shift {
        1
    } else {
        2
    }
}

/// Relative offsets of a window's places on a logarithmic scale, `[(2 height - 1)(2 width - 1), 2]`, as the continuous position bias of
/// version 2 takes them: divided by the largest offset of a window (the pre-trained one's where `pretrained` is not 0), times 8, then
/// `sign(t) log2(|t| + 1) / log2 8` (Liu et al., arXiv 2111.09883, section 3.3 and official code). Along an axis of one place, where the
/// official code divides by zero, the offset is 0.
#[must_use]
pub fn log_coordinates(window: (usize, usize), pretrained: usize) -> Vec<f32> {
    let along = |offset: isize, side: usize| {
        let largest = if pretrained > 0 { pretrained } else { side }.saturating_sub(1).max(1);
        let t = offset as f64 / largest as f64 * 8.0;
        (t.signum() * (t.abs() + 1.0).log2() / 3.0) as f32
    };
    let offsets = |side: usize| 1 - side as isize..side as isize;
    offsets(window.0)
        .flat_map(|y| offsets(window.1).flat_map(move |x| [(y, window.0), (x, window.1)]))
        .map(|(offset, side)| if offset == 0 { 0.0 } else { along(offset, side) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(grid: (usize, usize), window: (usize, usize)) -> Stage {
        Stage { index: 0, first_block: 0, depth: 2, width: 8, heads: 1, grid, window }
    }

    #[test]
    fn a_shifted_map_has_regions_at_its_borders() {
        let windows = Windows::of(&stage((4, 4), (2, 2)), (1, 1));
        assert_eq!(windows.index[..4], [5, 6, 9, 10]);
        assert_eq!(windows.index[12..], [15, 12, 3, 0]);
        assert_eq!(windows.region.unwrap()[12..], [4, 5, 7, 8]);
        assert!(Windows::of(&stage((4, 4), (2, 2)), (0, 0)).region.is_none());
    }

    #[test]
    fn every_token_stands_at_one_place() {
        for (grid, window, shift) in [((5, 7), (3, 4), (1, 2)), ((8, 8), (7, 7), (3, 3)), ((3, 6), (3, 4), (0, 2))] {
            let (stage, windows) = (stage(grid, window), Windows::of(&stage(grid, window), shift));
            let mut seen: Vec<i32> = windows.index.iter().copied().filter(|&t| (t as usize) < stage.tokens()).collect();
            seen.sort_unstable();
            assert!(seen.iter().enumerate().all(|(i, &t)| i as i32 == t) && seen.len() == stage.tokens());
            assert_eq!(windows.padded(&stage), windows.index.contains(&(stage.tokens() as i32)));
        }
    }
}
