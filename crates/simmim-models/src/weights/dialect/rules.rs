//! Tables of rules: what a parameter is called here and in a dialect.

/// How the tensors of a rule become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The same tensor.
    Same,
    /// Several, stacked along the first axis.
    Stacked,
    /// The last axis holds four tokens that are joined; theirs counts them within a channel and by rows, ours channels within a token and by
    /// columns.
    Unfolded,
}

/// A parameter under our name and under theirs. `#` stands for the number of a block or stage, `#+1` for the one after it, `*` for the last
/// part of a name (`weight`, `bias`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) ours: &'static str,
    pub(super) theirs: &'static [&'static str],
    pub(super) how: How,
}

pub(super) const fn same(ours: &'static str, theirs: &'static [&'static str]) -> Rule {
    Rule { ours, theirs, how: How::Same }
}

pub(super) const fn stacked(ours: &'static str, theirs: &'static [&'static str]) -> Rule {
    Rule { ours, theirs, how: How::Stacked }
}

pub(super) const fn unfolded(ours: &'static str, theirs: &'static [&'static str]) -> Rule {
    Rule { ours, theirs, how: How::Unfolded }
}

/// What the original ViT code in PyTorch, and all that descend from it, agree on.
pub(super) const BLOCKS: &[Rule] = &[
    same("encoder.cls_token", &["cls_token"]),
    same("encoder.pos_embed", &["pos_embed"]),
    same("encoder.patch_embed.proj.*", &["patch_embed.proj.*"]),
    same("encoder.blocks.#.norm1.*", &["blocks.#.norm1.*"]),
    same("encoder.blocks.#.attn.qkv.*", &["blocks.#.attn.qkv.*"]),
    same("encoder.blocks.#.attn.proj.*", &["blocks.#.attn.proj.*"]),
    same("encoder.blocks.#.norm2.*", &["blocks.#.norm2.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["blocks.#.mlp.fc1.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["blocks.#.mlp.fc2.*"]),
    same("encoder.norm.*", &["norm.*"]),
];

/// microsoft/SimMIM and BEiT: LayerScale as `gamma_1`, no bias for keys, relative position bias.
pub(super) const OFFICIAL: &[Rule] = &[
    same("encoder.mask_token", &["mask_token"]),
    same("encoder.blocks.#.gamma_1", &["blocks.#.gamma_1"]),
    same("encoder.blocks.#.gamma_2", &["blocks.#.gamma_2"]),
    same("encoder.blocks.#.attn.q_bias", &["blocks.#.attn.q_bias"]),
    same("encoder.blocks.#.attn.v_bias", &["blocks.#.attn.v_bias"]),
    same("encoder.rel_pos_bias.relative_position_bias_table", &["rel_pos_bias.relative_position_bias_table"]),
    same("encoder.blocks.#.attn.relative_position_bias_table", &["blocks.#.attn.relative_position_bias_table"]),
];

/// Registers under the name that this program gives them.
pub(super) const REGISTERS: &[Rule] = &[same("encoder.reg_token", &["reg_token"])];

/// LayerScale as timm names it.
pub(super) const LAYER_SCALE: &[Rule] = &[
    same("encoder.blocks.#.gamma_1", &["blocks.#.ls1.gamma"]),
    same("encoder.blocks.#.gamma_2", &["blocks.#.ls2.gamma"]),
];

/// What else timm's BEiT has in common with the official names.
pub(super) const RELATIVE: &[Rule] = &[
    same("encoder.blocks.#.attn.q_bias", &["blocks.#.attn.q_bias"]),
    same("encoder.blocks.#.attn.v_bias", &["blocks.#.attn.v_bias"]),
    same("encoder.rel_pos_bias.relative_position_bias_table", &["rel_pos_bias.relative_position_bias_table"]),
    same("encoder.blocks.#.attn.relative_position_bias_table", &["blocks.#.attn.relative_position_bias_table"]),
];

/// A linear classifier behind the norm of pooled tokens.
pub(super) const HEAD: &[Rule] = &[same("fc_norm.*", &["fc_norm.*"]), same("head.*", &["head.*"])];

/// The official head of SimMIM.
pub(super) const DECODER: &[Rule] = &[same("decoder.0.*", &["decoder.0.*"])];

/// DINOv2's registers.
pub(super) const DINOV2: &[Rule] = &[same("encoder.reg_token", &["register_tokens"])];

/// Attention and tokens in Hugging Face's ViT family.
pub(super) const HF_COMMON: &[Rule] = &[
    same("encoder.cls_token", &["embeddings.cls_token"]),
    same("encoder.pos_embed", &["embeddings.position_embeddings"]),
    same("encoder.patch_embed.proj.*", &["embeddings.patch_embeddings.projection.*"]),
    stacked(
        "encoder.blocks.#.attn.qkv.*",
        &[
            "encoder.layer.#.attention.attention.query.*",
            "encoder.layer.#.attention.attention.key.*",
            "encoder.layer.#.attention.attention.value.*",
        ],
    ),
    same("encoder.blocks.#.attn.proj.*", &["encoder.layer.#.attention.output.dense.*"]),
    same("encoder.norm.*", &["layernorm.*"]),
];

/// Hugging Face's ViT and ViTMAE.
pub(super) const HF_VIT: &[Rule] = &[
    same("encoder.blocks.#.norm1.*", &["encoder.layer.#.layernorm_before.*"]),
    same("encoder.blocks.#.norm2.*", &["encoder.layer.#.layernorm_after.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["encoder.layer.#.intermediate.dense.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["encoder.layer.#.output.dense.*"]),
];

/// The names that Hugging Face's ViT and ViTMAE have in memory since transformers 5; files keep the older ones.
pub(super) const HF_IN_MEMORY: &[Rule] = &[
    stacked(
        "encoder.blocks.#.attn.qkv.*",
        &["layers.#.attention.q_proj.*", "layers.#.attention.k_proj.*", "layers.#.attention.v_proj.*"],
    ),
    same("encoder.blocks.#.attn.proj.*", &["layers.#.attention.o_proj.*"]),
    same("encoder.blocks.#.norm1.*", &["layers.#.layernorm_before.*"]),
    same("encoder.blocks.#.norm2.*", &["layers.#.layernorm_after.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["layers.#.mlp.fc1.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["layers.#.mlp.fc2.*"]),
];

/// The same of DINOv2.
pub(super) const HF_DINOV2_IN_MEMORY: &[Rule] = &[
    stacked(
        "encoder.blocks.#.attn.qkv.*",
        &[
            "encoder.layer.#.attention.q_proj.*",
            "encoder.layer.#.attention.k_proj.*",
            "encoder.layer.#.attention.v_proj.*",
        ],
    ),
    same("encoder.blocks.#.attn.proj.*", &["encoder.layer.#.attention.o_proj.*"]),
];

/// Of a ViT for masked images the mask token is a parameter.
pub(super) const HF_MASK_TOKEN: &[Rule] = &[same("encoder.mask_token", &["embeddings.mask_token"])];

/// Hugging Face's DINOv2, with registers or without.
pub(super) const HF_DINOV2: &[Rule] = &[
    same("encoder.reg_token", &["embeddings.register_tokens"]),
    same("encoder.blocks.#.norm1.*", &["encoder.layer.#.norm1.*"]),
    same("encoder.blocks.#.norm2.*", &["encoder.layer.#.norm2.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["encoder.layer.#.mlp.fc1.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["encoder.layer.#.mlp.fc2.*"]),
    same("encoder.blocks.#.gamma_1", &["encoder.layer.#.layer_scale1.lambda1"]),
    same("encoder.blocks.#.gamma_2", &["encoder.layer.#.layer_scale2.lambda1"]),
];

/// Hugging Face's BEiT: relative tables, no bias for keys.
pub(super) const HF_BEIT: &[Rule] = &[
    same("encoder.blocks.#.norm1.*", &["encoder.layer.#.layernorm_before.*"]),
    same("encoder.blocks.#.norm2.*", &["encoder.layer.#.layernorm_after.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["encoder.layer.#.intermediate.dense.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["encoder.layer.#.output.dense.*"]),
    same("encoder.blocks.#.gamma_1", &["encoder.layer.#.lambda_1"]),
    same("encoder.blocks.#.gamma_2", &["encoder.layer.#.lambda_2"]),
    same("encoder.mask_token", &["embeddings.mask_token"]),
    same("encoder.cls_token", &["embeddings.cls_token"]),
    same("encoder.pos_embed", &["embeddings.position_embeddings"]),
    same("encoder.patch_embed.proj.*", &["embeddings.patch_embeddings.projection.*"]),
    stacked(
        "encoder.blocks.#.attn.qkv.weight",
        &[
            "encoder.layer.#.attention.attention.query.weight",
            "encoder.layer.#.attention.attention.key.weight",
            "encoder.layer.#.attention.attention.value.weight",
        ],
    ),
    same("encoder.blocks.#.attn.q_bias", &["encoder.layer.#.attention.attention.query.bias"]),
    same("encoder.blocks.#.attn.v_bias", &["encoder.layer.#.attention.attention.value.bias"]),
    same("encoder.blocks.#.attn.proj.*", &["encoder.layer.#.attention.output.dense.*"]),
    same(
        "encoder.rel_pos_bias.relative_position_bias_table",
        &["encoder.relative_position_bias.relative_position_bias_table"],
    ),
    same(
        "encoder.blocks.#.attn.relative_position_bias_table",
        &["encoder.layer.#.attention.attention.relative_position_bias.relative_position_bias_table"],
    ),
    same("encoder.norm.*", &["layernorm.*"]),
    same("fc_norm.*", &["pooler.layernorm.*"]),
];

/// The classifier of Hugging Face's models.
pub(super) const HF_HEAD: &[Rule] = &[same("head.*", &["classifier.*"])];

/// mmpretrain's ViT and BEiT.
pub(super) const MMPRETRAIN: &[Rule] = &[
    same("encoder.cls_token", &["cls_token"]),
    same("encoder.pos_embed", &["pos_embed"]),
    same("encoder.mask_token", &["mask_token"]),
    same("encoder.patch_embed.proj.*", &["patch_embed.projection.*"]),
    same("encoder.blocks.#.norm1.*", &["layers.#.ln1.*"]),
    same("encoder.blocks.#.attn.qkv.*", &["layers.#.attn.qkv.*"]),
    same("encoder.blocks.#.attn.proj.*", &["layers.#.attn.proj.*"]),
    same("encoder.blocks.#.gamma_1", &["layers.#.attn.gamma1.weight"]),
    same("encoder.blocks.#.norm2.*", &["layers.#.ln2.*"]),
    same("encoder.blocks.#.mlp.fc1.*", &["layers.#.ffn.layers.0.0.*"]),
    same("encoder.blocks.#.mlp.fc2.*", &["layers.#.ffn.layers.1.*"]),
    same("encoder.blocks.#.gamma_2", &["layers.#.ffn.gamma2.weight"]),
    same("encoder.blocks.#.gamma_1", &["layers.#.gamma_1"]),
    same("encoder.blocks.#.gamma_2", &["layers.#.gamma_2"]),
    same("encoder.blocks.#.attn.q_bias", &["layers.#.attn.q_bias"]),
    same("encoder.blocks.#.attn.v_bias", &["layers.#.attn.v_bias"]),
    same("encoder.blocks.#.attn.relative_position_bias_table", &["layers.#.attn.relative_position_bias_table"]),
    same("encoder.norm.*", &["ln1.*"]),
    same("fc_norm.*", &["ln2.*"]),
];

/// mmpretrain's parts around the backbone.
pub(super) const MMPRETRAIN_HEAD: &[Rule] =
    &[same("head.*", &["head.layers.head.*"]), same("decoder.0.*", &["neck.decoder.0.*"])];

/// A name that fits a pattern: what its `#` and `*` stand for.
pub(super) fn capture(pattern: &str, name: &str) -> Option<Vec<String>> {
    let (mut pattern, mut parts) = (pattern.split('.'), name.split('.'));
    let mut captured = Vec::new();
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<usize>().ok()).flatten();
    loop {
        match (pattern.next(), parts.next()) {
            (None, None) => return Some(captured),
            (Some("#"), Some(part)) => captured.push(number(part)?.to_string()),
            (Some("#+1"), Some(part)) => captured.push(number(part)?.checked_sub(1)?.to_string()),
            (Some("*"), Some(part)) if matches!(part, "weight" | "bias") => captured.push(part.to_owned()),
            (Some(expected), Some(part)) if expected == part => {}
            _ => return None,
        }
    }
}

/// A pattern with these values for its `#` and `*`.
pub(super) fn fill(pattern: &str, values: &[String]) -> String {
    let mut values = values.iter().map(String::as_str);
    let mut next = || values.next().unwrap_or_default();
    let filled = pattern.split('.').map(|part| match part {
        "#" | "*" => next().to_owned(),
        // A captured number is one.
        "#+1" => next().parse::<usize>().map_or_else(|_| String::new(), |stage| stage.saturating_add(1).to_string()),
        part => part.to_owned(),
    });
    filled.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_numbers_and_last_parts() {
        let values = ["11", "bias"].map(String::from);
        assert_eq!(capture("blocks.#.norm1.*", "blocks.11.norm1.bias"), Some(values.to_vec()));
        assert_eq!(fill("encoder.layer.#.norm1.*", &values), "encoder.layer.11.norm1.bias");
        assert_eq!(capture("stages.#+1.norm1.*", "stages.12.norm1.bias"), Some(values.to_vec()));
        assert_eq!(fill("stages.#+1.norm1.*", &values), "stages.12.norm1.bias");
        assert_eq!(capture("stages.#+1.norm1.*", "stages.0.norm1.bias"), None);
        for other in ["blocks.x.norm1.bias", "blocks.1.norm1", "blocks.1.norm1.bias.x", "blocks..norm1.bias"] {
            assert_eq!(capture("blocks.#.norm1.*", other), None, "{other}");
        }
    }
}
