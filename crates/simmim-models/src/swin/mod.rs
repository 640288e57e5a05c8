//! Swin transformers, versions 1 and 2: configuration, presets, parameters and forward description.
//!
//! A window that is larger than a stage's map along an axis shrinks to the map there and is not shifted along that axis; a map that a
//! window does not divide is padded below and on the right after the shift (timm's behaviour; the official code can do neither unless
//! the map is square).

mod graph;
mod masked;
mod parameters;
mod presets;
mod windows;

pub(crate) use graph::Stages;
pub(crate) use masked::masked;
pub(crate) use parameters::specs;
pub use windows::{Windows, log_coordinates};

use crate::error::ModelError;

/// Which paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Liu et al., arXiv 2103.14030.
    V1,
    /// Liu et al., arXiv 2111.09883: cosine attention, continuous position bias, norms after the branches.
    V2,
}

/// A Swin transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct SwinConfig {
    /// Which paper.
    pub version: Version,
    /// Height and width of the images, in pixels.
    pub image_size: (usize, usize),
    /// Height and width of a patch, in pixels.
    pub patch_size: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
    /// Width of the first stage's tokens; each stage doubles it.
    pub embed_dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage.
    pub num_heads: Vec<usize>,
    /// Side of a window, in tokens.
    pub window_size: usize,
    /// Version 2: sides of the windows of each stage with which the weights were trained, which scale the coordinates of the position
    /// bias; 0 for the window of the stage.
    pub pretrained_windows: Vec<usize>,
    /// Width of the MLP as a multiple of the stage's width.
    pub mlp_ratio: f64,
    /// Whether learned absolute positions are added to the patches (`absolute_pos_embed`).
    pub absolute: bool,
    /// Drop path rate of the last block; it grows linearly from 0 at the first.
    pub drop_path: f32,
    /// Whether the `qkv` layers have a bias (none for keys in version 2).
    pub qkv_bias: bool,
    /// Whether a layer norm follows the last block.
    pub final_norm: bool,
    /// Added to the variance by every layer norm.
    pub eps: f32,
}

/// One stage: blocks of equal width on one map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Position among the stages.
    pub index: usize,
    /// Number of the first block among all blocks.
    pub first_block: usize,
    /// Blocks.
    pub depth: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Rows and columns of the map.
    pub grid: (usize, usize),
    /// Rows and columns of a window.
    pub window: (usize, usize),
}

impl Stage {
    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// Shift of a block, counted within the stage, along both axes: every second block's windows are shifted by half a window, along the
    /// axes that hold several.
    #[must_use]
    pub fn shift(&self, block: usize) -> (usize, usize) {
        let along = |map: usize, window: usize| if block.is_multiple_of(2) || map <= window { 0 } else { window / 2 };
        (along(self.grid.0, self.window.0), along(self.grid.1, self.window.1))
    }

    /// Rows of a table of relative position biases.
    #[must_use]
    pub fn table_entries(&self) -> usize {
        (2 * self.window.0 - 1) * (2 * self.window.1 - 1)
    }
}

impl SwinConfig {
    /// The transformer of a timm name, such as `swin_tiny_patch4_window7_224` or `swinv2_base_window12_192`.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] with the nearest names, [`ModelError::Geometry`].
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        presets::parse(name)
    }

    /// Rows and columns of the patch grid.
    #[must_use]
    pub fn patch_grid(&self) -> (usize, usize) {
        (self.image_size.0 / self.patch_size.0, self.image_size.1 / self.patch_size.1)
    }

    /// Number of patches.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.patch_grid().0 * self.patch_grid().1
    }

    /// Pixels between the tokens of the last stage, down and across.
    #[must_use]
    pub fn stride(&self) -> (usize, usize) {
        let factor = 1 << self.depths.len().saturating_sub(1).min(20);
        (self.patch_size.0 * factor, self.patch_size.1 * factor)
    }

    /// Width of the last stage.
    #[must_use]
    pub fn out_dim(&self) -> usize {
        self.embed_dim << self.depths.len().saturating_sub(1).min(20)
    }

    /// Number of blocks.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depths.iter().sum()
    }

    /// The stages of a valid configuration.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        let (rows, cols) = self.patch_grid();
        let mut first_block = 0;
        let stage = |(index, (&depth, &heads)): (usize, (&usize, &usize))| {
            let grid = (rows >> index, cols >> index);
            let window = (self.window_size.min(grid.0), self.window_size.min(grid.1));
            first_block += depth;
            Stage {
                index,
                first_block: first_block - depth,
                depth,
                width: self.embed_dim << index,
                heads,
                grid,
                window,
            }
        };
        self.depths.iter().zip(&self.num_heads).enumerate().map(stage).collect()
    }

    /// Width of the MLP at a width of tokens.
    #[must_use]
    pub fn mlp_dim(&self, width: usize) -> usize {
        (width as f64 * self.mlp_ratio) as usize
    }

    /// Drop path rate of a block, counted from 0 over all stages.
    #[must_use]
    pub fn drop_path_of(&self, block: usize) -> f32 {
        let depth = self.depth();
        if depth < 2 { 0.0 } else { self.drop_path * block as f32 / (depth - 1) as f32 }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.validate_stages()?;
        let ((h, w), (sh, sw)) = (self.image_size, self.stride());
        if sh == 0 || sw == 0 || h == 0 || w == 0 || !h.is_multiple_of(sh) || !w.is_multiple_of(sw) {
            let near = |size: usize, stride: usize| (size / stride.max(1)).max(1) * stride.max(1);
            let patch = format!("{}x{}", self.patch_size.0, self.patch_size.1);
            return Err(ModelError::geometry(
                format!("images of {h}x{w} cannot be halved {} times after patches of {patch}", self.depths.len() - 1),
                format!("set model.image_size to a multiple of {sh}x{sw}, such as [{}, {}]", near(h, sh), near(w, sw)),
            ));
        }
        if self.window_size < 2 {
            return Err(ModelError::geometry(
                format!("windows of {0}x{0} tokens relate nothing", self.window_size),
                "set model.window_size to 2 or more; 7 is usual for 224 pixels",
            ));
        }
        if self.channels == 0 || self.mlp_dim(self.embed_dim) == 0 {
            return Err(ModelError::geometry(
                format!("channels {} and MLP ratio {} must be positive", self.channels, self.mlp_ratio),
                "set model.channels and model.mlp_ratio",
            ));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            let what = format!("drop path {} is not in [0, 1)", self.drop_path);
            return Err(ModelError::geometry(what, "set model.drop_path"));
        }
        Ok(())
    }

    fn validate_stages(&self) -> Result<(), ModelError> {
        let stages = self.depths.len();
        if stages == 0 || stages > 8 || self.depths.contains(&0) {
            return Err(ModelError::geometry(
                format!("model.depths is {:?}", self.depths),
                "give a positive number of blocks for each of one to eight stages, such as [2, 2, 6, 2]",
            ));
        }
        if self.num_heads.len() != stages {
            return Err(ModelError::geometry(
                format!("{} numbers of heads for {stages} stages", self.num_heads.len()),
                format!("set model.num_heads to {stages} numbers, one for each of model.depths"),
            ));
        }
        if !self.pretrained_windows.is_empty() && self.pretrained_windows.len() != stages {
            return Err(ModelError::geometry(
                format!("{} pre-trained windows for {stages} stages", self.pretrained_windows.len()),
                format!("set model.pretrained_windows to {stages} numbers, one for each of model.depths"),
            ));
        }
        for (index, &heads) in self.num_heads.iter().enumerate() {
            let width = self.embed_dim << index;
            if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
                return Err(ModelError::geometry(
                    format!("{heads} heads do not divide stage {index}'s width of {width}"),
                    "set model.num_heads so that each divides its stage's width, such as [3, 6, 12, 24] for 96",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_a_known_model() {
        let swin = SwinConfig::preset("swin_tiny_patch4_window7_224").unwrap();
        let found: Vec<_> = swin.stages().iter().map(|s| (s.width, s.grid, s.window, s.first_block)).collect();
        let expected = [
            (96, (56, 56), (7, 7), 0),
            (192, (28, 28), (7, 7), 2),
            (384, (14, 14), (7, 7), 4),
            (768, (7, 7), (7, 7), 10),
        ];
        assert_eq!(found, expected);
        assert_eq!((swin.stride(), swin.out_dim(), swin.depth()), ((32, 32), 768, 12));
        let shifts: Vec<_> = swin.stages().iter().map(|s| s.shift(1)).collect();
        assert_eq!(shifts, [(3, 3), (3, 3), (3, 3), (0, 0)]);
    }

    #[test]
    fn impossible_sizes_say_what_to_do() {
        let good = SwinConfig::preset("swin_tiny_patch4_window7_224").unwrap();
        let with = |change: &dyn Fn(&mut SwinConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(with(&|c| c.num_heads = vec![3, 6]), "2 numbers of heads for 4 stages");
        assert_eq!(
            with(&|c| c.image_size = (200, 224)),
            "images of 200x224 cannot be halved 3 times after patches of 4x4"
        );
        assert_eq!(with(&|c| c.window_size = 1), "windows of 1x1 tokens relate nothing");
        assert_eq!(with(&|c| c.depths = vec![2, 0, 6, 2]), "model.depths is [2, 0, 6, 2]");
        assert_eq!(with(&|c| c.num_heads = vec![3, 6, 12, 25]), "25 heads do not divide stage 3's width of 768");
    }
}
