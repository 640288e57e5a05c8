//! What the tensors themselves say about a model.

use super::Weights;
use crate::vit::{Position, QkvBias};

/// The architecture as far as shapes and names tell it; weights carry our names.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Width of the tokens.
    pub embed_dim: usize,
    /// Height and width of a patch.
    pub patch_size: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the MLP.
    pub mlp_dim: usize,
    /// Attention heads, where a table of biases tells them.
    pub num_heads: Option<usize>,
    /// Whether there is a class token.
    pub class_token: bool,
    /// Number of register tokens.
    pub registers: usize,
    /// How tokens know where they are.
    pub position: Position,
    /// Mean of the first block's LayerScale; none without it.
    pub layer_scale: Option<f32>,
    /// Bias of the `qkv` layer.
    pub qkv_bias: QkvBias,
    /// Whether a norm follows the last block.
    pub final_norm: bool,
    /// Whether pooled tokens are normalised (`fc_norm`).
    pub pooled_norm: bool,
    /// Classes of a linear classifier.
    pub classes: Option<usize>,
    /// Whether there is a mask token.
    pub mask_token: bool,
    /// Whether there is SimMIM's head.
    pub decoder: bool,
    /// Rows of the positions, those of class token and registers included.
    pub places: Option<usize>,
}

impl Facts {
    /// Reads the architecture off the shapes; none where there is no patch projection or no block.
    #[must_use]
    pub fn of(weights: &Weights) -> Option<Self> {
        let shape = |name: &str| weights.get(name).map(|t| t.shape.as_slice());
        let has = |name: &str| weights.contains_key(name);
        let &[embed_dim, channels, height, width] = shape("encoder.patch_embed.proj.weight")? else { return None };
        let block = |name: &str| name.strip_prefix("encoder.blocks.")?.split('.').next()?.parse::<usize>().ok();
        let depth = weights.keys().filter_map(|name| block(name)).max()?.checked_add(1)?;
        let shared = shape("encoder.rel_pos_bias.relative_position_bias_table");
        let own = shape("encoder.blocks.0.attn.relative_position_bias_table");
        let position = match (has("encoder.pos_embed"), shared, own) {
            (true, ..) => Position::Absolute,
            (_, Some(_), _) => Position::SharedRelative,
            (_, _, Some(_)) => Position::Relative,
            _ => Position::None,
        };
        let places = match position {
            Position::Absolute => shape("encoder.pos_embed").and_then(|s| s.iter().rev().nth(1)).copied(),
            _ => shared.or(own).and_then(|s| s.first()).copied(),
        };
        let gamma = weights.get("encoder.blocks.0.gamma_1");
        Some(Self {
            embed_dim,
            patch_size: (height, width),
            channels,
            depth,
            mlp_dim: *shape("encoder.blocks.0.mlp.fc1.weight")?.first()?,
            num_heads: shared.or(own).and_then(|s| s.get(1)).copied(),
            class_token: has("encoder.cls_token"),
            registers: shape("encoder.reg_token").and_then(|s| s.iter().rev().nth(1)).copied().unwrap_or(0),
            position,
            layer_scale: gamma.map(|g| g.data.iter().sum::<f32>() / g.data.len().max(1) as f32),
            qkv_bias: if has("encoder.blocks.0.attn.q_bias") {
                QkvBias::NoKey
            } else if has("encoder.blocks.0.attn.qkv.bias") {
                QkvBias::Full
            } else {
                QkvBias::None
            },
            final_norm: has("encoder.norm.weight"),
            pooled_norm: has("fc_norm.weight"),
            classes: shape("head.weight").filter(|s| s.len() == 2).map(|s| s[0]),
            mask_token: has("encoder.mask_token"),
            decoder: has("decoder.0.weight"),
            places,
        })
    }

    /// Rows and columns of patches that these positions belong to, where they are a square with or without rows for class token and
    /// registers.
    #[must_use]
    pub fn grid(&self) -> Option<(usize, usize)> {
        let places = self.places?;
        if self.position == Position::Absolute {
            let extra = [usize::from(self.class_token), 0, usize::from(self.class_token) + self.registers, 1];
            return extra.into_iter().find_map(|extra| square(places.checked_sub(extra)?));
        }
        let offsets = square(places.checked_sub(if self.class_token { 3 } else { 0 })?)?.0;
        (offsets % 2 == 1).then(|| (offsets.div_ceil(2), offsets.div_ceil(2)))
    }
}

/// Side of a square of so many places, twice.
pub(super) fn square(places: usize) -> Option<(usize, usize)> {
    let side = places.isqrt();
    (side > 0 && side * side == places).then_some((side, side))
}
