//! What the tensors themselves say about a model.

use super::Weights;
use crate::swin::Version;
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
        let (embed_dim, channels, (height, width)) = projection(weights)?;
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

/// A Swin transformer as far as shapes and names tell it; weights carry our names.
#[derive(Debug, Clone, PartialEq)]
pub struct SwinFacts {
    /// Which paper.
    pub version: Version,
    /// Width of the first stage's tokens.
    pub embed_dim: usize,
    /// Height and width of a patch.
    pub patch_size: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage.
    pub num_heads: Vec<usize>,
    /// Width of the first stage's MLP.
    pub mlp_dim: usize,
    /// Sides of the windows of each stage, where tables of square windows tell them: in version 1.
    pub windows: Option<Vec<usize>>,
    /// Patches that have a learned position each; none without absolute positions.
    pub places: Option<usize>,
    /// Whether the `qkv` layers have a bias.
    pub qkv_bias: bool,
    /// Whether a norm follows the last block.
    pub final_norm: bool,
    /// Classes of a linear classifier.
    pub classes: Option<usize>,
    /// Whether there is a mask token.
    pub mask_token: bool,
    /// Whether there is SimMIM's head.
    pub decoder: bool,
}

impl SwinFacts {
    /// Reads the architecture off the shapes; none where there is no patch projection or a stage without blocks.
    #[must_use]
    pub fn of(weights: &Weights) -> Option<Self> {
        let shape = |name: &str| weights.get(name).map(|t| t.shape.as_slice());
        let has = |name: &str| weights.contains_key(name);
        let (embed_dim, channels, (height, width)) = projection(weights)?;
        let mut depths: Vec<usize> = Vec::new();
        for name in weights.keys() {
            let Some((stage, rest)) = name.strip_prefix("encoder.layers.").and_then(|n| n.split_once('.')) else {
                continue;
            };
            let block = rest.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            // More stages would not fit a shape, more blocks no file.
            let stage = stage.parse::<usize>().ok().filter(|&stage| stage < 16);
            if let (Some(stage), Some(block)) = (stage, block.filter(|&block| block < weights.len())) {
                depths.resize(depths.len().max(stage + 1), 0);
                depths[stage] = depths[stage].max(block + 1);
            }
        }
        if depths.is_empty() || depths.contains(&0) {
            return None;
        }
        let first = |stage: usize, end: &str| format!("encoder.layers.{stage}.blocks.0.{end}");
        let table = |stage: usize| shape(&first(stage, "attn.relative_position_bias_table"));
        let version = if has(&first(0, "attn.logit_scale")) { Version::V2 } else { Version::V1 };
        let heads = |stage: usize| match version {
            Version::V1 => table(stage)?.get(1).copied(),
            Version::V2 => shape(&first(stage, "attn.logit_scale"))?.first().copied(),
        };
        let window = |stage: usize| {
            let (side, _) = square(*table(stage)?.first()?)?;
            (side % 2 == 1).then_some(side.div_ceil(2))
        };
        Some(Self {
            version,
            embed_dim,
            patch_size: (height, width),
            channels,
            num_heads: (0..depths.len()).map(heads).collect::<Option<_>>()?,
            mlp_dim: *shape(&first(0, "mlp.fc1.weight"))?.first()?,
            windows: (0..depths.len()).map(window).collect(),
            depths,
            places: shape("encoder.absolute_pos_embed").and_then(|s| s.iter().rev().nth(1)).copied(),
            qkv_bias: has(&first(0, "attn.qkv.bias")) || has(&first(0, "attn.q_bias")),
            final_norm: has("encoder.norm.weight"),
            classes: shape("head.weight").filter(|s| s.len() == 2).map(|s| s[0]),
            mask_token: has("encoder.mask_token"),
            decoder: has("decoder.0.weight"),
        })
    }

    /// Pixels between the tokens of the last stage, down and across.
    #[must_use]
    pub fn stride(&self) -> (usize, usize) {
        let factor = 1usize << (self.depths.len() - 1);
        (self.patch_size.0.saturating_mul(factor), self.patch_size.1.saturating_mul(factor))
    }
}

/// What tensors say about a model of either family.
#[derive(Debug, Clone, PartialEq)]
pub enum Structure {
    /// A vision transformer.
    Vit(Facts),
    /// A Swin transformer.
    Swin(SwinFacts),
}

impl Structure {
    /// Reads the architecture off the shapes; none where they are those of neither family.
    #[must_use]
    pub fn of(weights: &Weights) -> Option<Self> {
        Facts::of(weights).map(Self::Vit).or_else(|| SwinFacts::of(weights).map(Self::Swin))
    }

    /// Channels of the images.
    #[must_use]
    pub fn channels(&self) -> usize {
        match self {
            Self::Vit(f) => f.channels,
            Self::Swin(f) => f.channels,
        }
    }

    /// Classes of a linear classifier.
    #[must_use]
    pub fn classes(&self) -> Option<usize> {
        match self {
            Self::Vit(f) => f.classes,
            Self::Swin(f) => f.classes,
        }
    }
}

/// Width, channels and patch of a projection that has values.
fn projection(weights: &Weights) -> Option<(usize, usize, (usize, usize))> {
    let shape = &weights.get("encoder.patch_embed.proj.weight")?.shape;
    match shape[..] {
        [dim, channels, height, width] if !shape.contains(&0) => Some((dim, channels, (height, width))),
        _ => None,
    }
}

/// The ratio that gives the width of an MLP, which is rounded down.
#[must_use]
pub fn ratio(mlp_dim: usize, width: usize) -> f64 {
    let mut ratio = mlp_dim as f64 / width as f64;
    if ((width as f64 * ratio) as usize) < mlp_dim {
        ratio = ratio.next_up();
    }
    ratio
}

/// Side of a square of so many places, twice.
pub(super) fn square(places: usize) -> Option<(usize, usize)> {
    let side = places.isqrt();
    (side > 0 && side * side == places).then_some((side, side))
}
