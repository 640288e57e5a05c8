//! Cuts chosen patches out of planar images, normalising each when asked.
//!
//! # Shapes
//! `images [batch, channels, height, width]`, `index [batch, patches]` (`i32`, row-major positions in the patch grid) ->
//! `y [batch, patches, channels patch_height patch_width]`, the columns in the order (channel, row, column).
//!
//! # Mathematics
//! With `normalise = eps`: each patch becomes `(x - mean) / sqrt(var + eps)` over all its values, with the unbiased variance
//! (He et al., arXiv 2111.06377, section 3, "reconstruction target").
//!
//! # Backward
//! None: the images need no gradient.
//!
//! # Saved
//! Nothing.
//!
//! # Errors
//! A patch that does not divide the image, shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// Cuts patches. Inputs: `images`, `index`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchGather {
    /// Height and width of a patch.
    pub patch: (usize, usize),
    /// Normalise each patch, with this added to its variance.
    pub normalise: Option<f32>,
}

impl Operation for PatchGather {
    fn name(&self) -> &'static str {
        "patch_gather"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2)?;
        let images = check.rank(0, "images", 4)?;
        let (height, width) = self.patch;
        if height == 0 || width == 0 || images[2] % height != 0 || images[3] % width != 0 {
            return check.fail(0, "images", format!("height and width multiples of {height} and {width}"));
        }
        if inputs[1].shape.len() != 2 || inputs[1].shape[0] != images[0] {
            return check.fail(1, "index", format!("[{}, patches]", images[0]));
        }
        Ok(vec![TensorType::f32([images[0], inputs[1].shape[1], images[1] * height * width])])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Output(0) if self.normalise.is_none() => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, (inputs[0].shape[2] / self.patch.0) * (inputs[0].shape[3] / self.patch.1))]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let [_, channels, height, width] = [0, 1, 2, 3].map(|i| inputs[0].shape[i]);
        let (ph, pw) = self.patch;
        let size = channels * ph * pw;
        let patches = inputs[1].shape[1];
        for (r, (y, &at)) in outputs[0].chunks_exact_mut(size).zip(inputs[1].i32()).enumerate() {
            let (top, left) = (at as usize / (width / pw) * ph, at as usize % (width / pw) * pw);
            for (o, y) in y.iter_mut().enumerate() {
                let (c, i, j) = (o / (ph * pw), o / pw % ph, o % pw);
                *y = inputs[0].f64()[((r / patches * channels + c) * height + top + i) * width + left + j];
            }
            if let Some(eps) = self.normalise {
                let mean = y.iter().sum::<f64>() / size as f64;
                let var = y.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (size.max(2) - 1) as f64;
                y.iter_mut().for_each(|v| *v = (*v - mean) / (var + f64::from(eps)).sqrt());
            }
        }
    }
}
