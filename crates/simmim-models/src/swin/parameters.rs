//! Parameters of a Swin transformer, in the order of its layers.

use super::{Stage, SwinConfig, Version};
use crate::parameters::{Init, ParameterSpec};

/// Hidden units of the MLP that gives the continuous position bias.
pub(super) const CPB_HIDDEN: usize = 512;

const ZERO: Init = Init::Constant(0.0);
const ONE: Init = Init::Constant(1.0);
/// The official code cuts at +-2 in absolute terms, a hundred standard deviations away.
const WEIGHT: Init = Init::TruncatedNormal { std: 0.02, cut: 2.0, scale: 1.0 };

/// The parameters, with names behind `prefix`. Layers for layer-wise decay are those of the official code: a reduction counts to the block
/// before it, and absolute positions to the top.
pub(crate) fn specs(c: &SwinConfig, prefix: &str) -> Vec<ParameterSpec> {
    let spec = |name: &str, shape: &[usize], init: Init| ParameterSpec::new(format!("{prefix}{name}"), shape, init);
    let mut list = Vec::new();
    let (dim, (height, width)) = (c.embed_dim, c.patch_size);
    if c.absolute {
        list.push(spec("absolute_pos_embed", &[1, c.patches(), dim], WEIGHT));
    }
    // PyTorch's start of a convolution, which the official code leaves as it is.
    let uniform = Init::Uniform { bound: 1.0 / ((c.channels * height * width) as f32).sqrt() };
    list.push(spec("patch_embed.proj.weight", &[dim, c.channels, height, width], uniform).in_layer(0));
    list.push(spec("patch_embed.proj.bias", &[dim], uniform).in_layer(0));
    list.push(spec("patch_embed.norm.weight", &[dim], ONE).in_layer(0));
    list.push(spec("patch_embed.norm.bias", &[dim], ZERO).in_layer(0));
    let stages = c.stages();
    for stage in &stages {
        for block in 0..stage.depth {
            let layer = stage.first_block + block + 1;
            block_specs(c, stage, block, &mut |name, shape, init| list.push(spec(name, shape, init).in_layer(layer)));
        }
        if stage.index + 1 < stages.len() {
            let mut add = |tail: &str, shape: &[usize], init: Init| {
                let name = format!("layers.{}.downsample.{tail}", stage.index);
                list.push(spec(&name, shape, init).in_layer(stage.first_block + stage.depth));
            };
            let normed = if c.version == Version::V1 { 4 * stage.width } else { 2 * stage.width };
            add("reduction.weight", &[2 * stage.width, 4 * stage.width], WEIGHT);
            add("norm.weight", &[normed], ONE);
            add("norm.bias", &[normed], ZERO);
        }
    }
    if c.final_norm {
        list.push(spec("norm.weight", &[c.out_dim()], ONE));
        list.push(spec("norm.bias", &[c.out_dim()], ZERO));
    }
    list
}

fn block_specs(c: &SwinConfig, stage: &Stage, block: usize, add: &mut impl FnMut(&str, &[usize], Init)) {
    let (dim, heads, mlp) = (stage.width, stage.heads, c.mlp_dim(stage.width));
    let mut add = |name: &str, shape: &[usize], init: Init| {
        add(&format!("layers.{}.blocks.{block}.{name}", stage.index), shape, init);
    };
    // Norms behind the branches start at zero, so that a new block changes nothing.
    let norm = if c.version == Version::V1 { ONE } else { ZERO };
    add("norm1.weight", &[dim], norm);
    add("norm1.bias", &[dim], ZERO);
    match c.version {
        Version::V1 => add("attn.relative_position_bias_table", &[stage.table_entries(), heads], WEIGHT),
        Version::V2 => {
            add("attn.logit_scale", &[heads, 1, 1], Init::Constant(std::f32::consts::LN_10));
            add("attn.cpb_mlp.0.weight", &[CPB_HIDDEN, 2], WEIGHT);
            add("attn.cpb_mlp.0.bias", &[CPB_HIDDEN], ZERO);
            add("attn.cpb_mlp.2.weight", &[heads, CPB_HIDDEN], WEIGHT);
        }
    }
    add("attn.qkv.weight", &[3 * dim, dim], WEIGHT);
    match (c.version, c.qkv_bias) {
        (_, false) => {}
        (Version::V1, true) => add("attn.qkv.bias", &[3 * dim], ZERO),
        (Version::V2, true) => {
            add("attn.q_bias", &[dim], ZERO);
            add("attn.v_bias", &[dim], ZERO);
        }
    }
    add("attn.proj.weight", &[dim, dim], WEIGHT);
    add("attn.proj.bias", &[dim], ZERO);
    add("norm2.weight", &[dim], norm);
    add("norm2.bias", &[dim], ZERO);
    add("mlp.fc1.weight", &[mlp, dim], WEIGHT);
    add("mlp.fc1.bias", &[mlp], ZERO);
    add("mlp.fc2.weight", &[dim, mlp], WEIGHT);
    add("mlp.fc2.bias", &[dim], ZERO);
}
