//! Vision transformers: configuration, presets, parameters and forward description.

mod graph;
mod masked;
mod parameters;
mod presets;
mod relative;
mod sincos;

pub(crate) use graph::{Blocks, Rows};
pub(crate) use masked::masked;
pub(crate) use parameters::{InitStyle, specs};
pub(crate) use presets::distance;
pub use relative::relative_position_index;
pub use sincos::sincos_positions;

use crate::error::ModelError;

/// How a transformer knows where its tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Learned, added to the tokens: `pos_embed`.
    Absolute,
    /// One relative bias table for all blocks: `rel_pos_bias.relative_position_bias_table`.
    SharedRelative,
    /// A relative bias table in each block.
    Relative,
    /// Not at all.
    None,
}

/// How learned absolute positions start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionInit {
    /// Small normal numbers, as in timm and in the official SimMIM code.
    Normal,
    /// The two-dimensional sines and cosines of MAE (He et al., arXiv 2111.06377), which stay learned.
    SinCos,
}

/// How the matrices of an encoder start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightInit {
    /// Small normal numbers of a fixed deviation, as the reproduced implementation has them.
    Normal,
    /// Uniform with a deviation that follows from the sizes of the layer (Glorot and Bengio, 2010), as in MAE; the patch projection too.
    Xavier,
}

/// Bias of the `qkv` layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvBias {
    /// `attn.qkv.bias`.
    Full,
    /// `attn.q_bias` and `attn.v_bias`; keys have none (BEiT).
    NoKey,
    /// None.
    None,
}

/// The two branches of a block.
pub(crate) const BRANCHES: [&str; 2] = ["attn", "mlp"];

/// A vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Height and width of the images, in pixels.
    pub image_size: (usize, usize),
    /// Height and width of a patch, in pixels.
    pub patch_size: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
    /// Width of the tokens.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of the MLP as a multiple of `embed_dim`.
    pub mlp_ratio: f64,
    /// Whether there is a class token.
    pub class_token: bool,
    /// Register tokens, which follow the class token and have no positions.
    pub registers: usize,
    /// Positions.
    pub position: Position,
    /// How absolute positions start.
    pub position_init: PositionInit,
    /// How matrices start.
    pub weight_init: WeightInit,
    /// Initial value of LayerScale; none without it.
    pub layer_scale: Option<f32>,
    /// Drop path rate of the last block; it grows linearly from 0 at the first.
    pub drop_path: f32,
    /// Bias of the `qkv` layer.
    pub qkv_bias: QkvBias,
    /// Whether a layer norm follows the last block.
    pub final_norm: bool,
    /// Added to the variance by every layer norm.
    pub eps: f32,
}

impl VitConfig {
    /// The transformer of a timm name, such as `vit_small_patch32_224`.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] with the nearest names, [`ModelError::Geometry`].
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        presets::parse(name)
    }

    /// Rows and columns of the patch grid.
    #[must_use]
    pub fn grid(&self) -> (usize, usize) {
        (self.image_size.0 / self.patch_size.0, self.image_size.1 / self.patch_size.1)
    }

    /// Number of patches.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.grid().0 * self.grid().1
    }

    /// Number of tokens, class token and registers included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.patches() + self.prefix()
    }

    /// Tokens before those of the patches: class token and registers.
    #[must_use]
    pub fn prefix(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }

    /// Rows of absolute positions: of the class token and of the patches.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.patches() + usize::from(self.class_token)
    }

    /// Values of a patch: channels, height, width.
    #[must_use]
    pub fn patch_values(&self) -> usize {
        self.channels * self.patch_size.0 * self.patch_size.1
    }

    /// Width of the MLP.
    #[must_use]
    pub fn mlp_dim(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Whether there are absolute positions that start as sines and cosines.
    #[must_use]
    pub(crate) fn starts_as_sincos(&self) -> bool {
        self.position == Position::Absolute && self.position_init == PositionInit::SinCos
    }

    /// Drop path rate of a block, counted from 0.
    #[must_use]
    pub fn drop_path_of(&self, block: usize) -> f32 {
        if self.depth < 2 { 0.0 } else { self.drop_path * block as f32 / (self.depth - 1) as f32 }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        let (h, w) = self.image_size;
        let (ph, pw) = self.patch_size;
        if ph == 0 || pw == 0 || h == 0 || w == 0 || !h.is_multiple_of(ph) || !w.is_multiple_of(pw) {
            let near = |size: usize, patch: usize| (size / patch.max(1)).max(1) * patch.max(1);
            return Err(ModelError::geometry(
                format!("patches of {ph}x{pw} do not divide images of {h}x{w}"),
                format!("set model.image_size to a multiple, such as [{}, {}]", near(h, ph), near(w, pw)),
            ));
        }
        if self.num_heads == 0 || self.embed_dim == 0 || !self.embed_dim.is_multiple_of(self.num_heads) {
            let fit: Vec<String> = (1..=self.embed_dim.min(32))
                .filter(|n| self.embed_dim.is_multiple_of(*n))
                .map(|n| n.to_string())
                .collect();
            return Err(ModelError::geometry(
                format!("{} heads do not divide a width of {}", self.num_heads, self.embed_dim),
                format!("set model.num_heads to one of {}", fit.join(", ")),
            ));
        }
        if self.depth == 0 || self.channels == 0 || self.mlp_dim() == 0 {
            return Err(ModelError::geometry(
                format!(
                    "depth {}, channels {} and MLP width {} must be positive",
                    self.depth,
                    self.channels,
                    self.mlp_dim()
                ),
                "set model.depth, model.channels and model.mlp_ratio",
            ));
        }
        if self.starts_as_sincos() && !self.embed_dim.is_multiple_of(4) {
            return Err(ModelError::geometry(
                format!("sine-cosine positions need a width that is a multiple of 4, found {}", self.embed_dim),
                "set model.embed_dim to a multiple of 4, or model.position_init to \"normal\"",
            ));
        }
        if self.registers > 0 && matches!(self.position, Position::SharedRelative | Position::Relative) {
            return Err(ModelError::geometry(
                format!("{} registers have no place among relative positions", self.registers),
                "set model.registers = 0, or model.position = \"absolute\"",
            ));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return Err(ModelError::geometry(
                format!("drop path {} is not in [0, 1)", self.drop_path),
                "set model.drop_path",
            ));
        }
        Ok(())
    }
}
