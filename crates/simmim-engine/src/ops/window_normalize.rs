//! Normalises every pixel by mean and variance of the window around it, channel by channel.
//!
//! # Shapes
//! `images [batch, channels, height, width]` -> `y` of the same shape.
//!
//! # Mathematics
//! `y = (x - mean) / sqrt(var + eps)`, over the pixels within `window / 2` of the pixel along both axes that the image has; `var` is
//! unbiased (microsoft/Swin-Transformer, the normalised target of its SimMIM).
//!
//! # Backward
//! None: the images need no gradient.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! An even window, shapes that do not fit.

use super::{Check, Operation};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Normalises pixels. Inputs: `images`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowNormalize {
    /// Side of the window in pixels, odd.
    pub window: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl Operation for WindowNormalize {
    fn name(&self) -> &'static str {
        "window_normalize"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 1)?;
        check.rank(0, "images", 4)?;
        if self.window.is_multiple_of(2) {
            return check.fail(0, "images", format!("an odd window, not one of {}", self.window));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn backward(&self, _ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let [height, width] = [2, 3].map(|axis| inputs[0].shape[axis]);
        let half = self.window / 2;
        for (x, y) in inputs[0].f64().chunks_exact(height * width).zip(outputs[0].chunks_exact_mut(height * width)) {
            for (at, y) in y.iter_mut().enumerate() {
                let (row, col) = (at / width, at % width);
                let rows = row.saturating_sub(half)..(row + half + 1).min(height);
                let cols = col.saturating_sub(half)..(col + half + 1).min(width);
                let around: Vec<f64> = rows.flat_map(|r| cols.clone().map(move |c| x[r * width + c])).collect();
                let mean = around.iter().sum::<f64>() / around.len() as f64;
                let squares: f64 = around.iter().map(|v| (v - mean).powi(2)).sum();
                let var = squares / (around.len() - 1).max(1) as f64;
                *y = (x[at] - mean) / (var + f64::from(self.eps)).sqrt();
            }
        }
    }
}

impl WindowNormalize {
    /// One channel of an image. Sums over windows slide down the rows and along the columns, one visit a pixel for each; `sums`
    /// `[2, width]` is working memory for those of the window's rows in each column.
    pub fn normalize_plane(&self, x: &[f32], y: &mut [f32], width: usize, sums: &mut [f64]) {
        let (height, half) = (x.len() / width, self.window / 2);
        let (ones, squares) = sums.split_at_mut(width);
        ones.fill(0.0);
        squares.fill(0.0);
        let slide = |row: usize, sign: f64, ones: &mut [f64], squares: &mut [f64]| {
            for (v, (one, square)) in x[row * width..(row + 1) * width].iter().zip(ones.iter_mut().zip(squares)) {
                let v = f64::from(*v);
                *one += sign * v;
                *square += sign * v * v;
            }
        };
        (0..half.min(height)).for_each(|row| slide(row, 1.0, ones, squares));
        for row in 0..height {
            if row + half < height {
                slide(row + half, 1.0, ones, squares);
            }
            if row > half {
                slide(row - half - 1, -1.0, ones, squares);
            }
            let rows = (row + half + 1).min(height) - row.saturating_sub(half);
            let at = row * width..(row + 1) * width;
            normalize_row(self, &x[at.clone()], &mut y[at], ones, squares, rows);
        }
    }
}

fn normalize_row(op: &WindowNormalize, x: &[f32], y: &mut [f32], ones: &[f64], squares: &[f64], rows: usize) {
    let (width, half) = (x.len(), op.window / 2);
    let first = half.min(width);
    let (mut one, mut square) = (ones[..first].iter().sum::<f64>(), squares[..first].iter().sum::<f64>());
    for (col, (x, y)) in x.iter().zip(y).enumerate() {
        if col + half < width {
            one += ones[col + half];
            square += squares[col + half];
        }
        if col > half {
            one -= ones[col - half - 1];
            square -= squares[col - half - 1];
        }
        let count = (rows * ((col + half + 1).min(width) - col.saturating_sub(half))) as f64;
        let mean = one / count;
        let var = ((square - one * mean) / (count - 1.0).max(1.0)).max(0.0);
        *y = ((f64::from(*x) - mean) / (var + f64::from(op.eps)).sqrt()) as f32;
    }
}
