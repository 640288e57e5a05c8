//! Tables of rules for Swin transformers.

use super::rules::{Rule, same, stacked, unfolded};

/// What microsoft/SimMIM, microsoft/Swin-Transformer and timm agree on: all but where a reduction stands.
pub(super) const SWIN: &[Rule] = &[
    same("encoder.absolute_pos_embed", &["absolute_pos_embed"]),
    same("encoder.patch_embed.proj.*", &["patch_embed.proj.*"]),
    same("encoder.patch_embed.norm.*", &["patch_embed.norm.*"]),
    same("encoder.layers.#.blocks.#.norm1.*", &["layers.#.blocks.#.norm1.*"]),
    same("encoder.layers.#.blocks.#.attn.qkv.*", &["layers.#.blocks.#.attn.qkv.*"]),
    same("encoder.layers.#.blocks.#.attn.q_bias", &["layers.#.blocks.#.attn.q_bias"]),
    same("encoder.layers.#.blocks.#.attn.v_bias", &["layers.#.blocks.#.attn.v_bias"]),
    same(TABLE, &["layers.#.blocks.#.attn.relative_position_bias_table"]),
    same("encoder.layers.#.blocks.#.attn.logit_scale", &["layers.#.blocks.#.attn.logit_scale"]),
    same("encoder.layers.#.blocks.#.attn.cpb_mlp.0.*", &["layers.#.blocks.#.attn.cpb_mlp.0.*"]),
    same("encoder.layers.#.blocks.#.attn.cpb_mlp.2.*", &["layers.#.blocks.#.attn.cpb_mlp.2.*"]),
    same("encoder.layers.#.blocks.#.attn.proj.*", &["layers.#.blocks.#.attn.proj.*"]),
    same("encoder.layers.#.blocks.#.norm2.*", &["layers.#.blocks.#.norm2.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc1.*", &["layers.#.blocks.#.mlp.fc1.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc2.*", &["layers.#.blocks.#.mlp.fc2.*"]),
    same("encoder.norm.*", &["norm.*"]),
];

const TABLE: &str = "encoder.layers.#.blocks.#.attn.relative_position_bias_table";

/// The official code reduces at the end of a stage.
pub(super) const AT_THE_END: &[Rule] = &[
    same("encoder.layers.#.downsample.reduction.*", &["layers.#.downsample.reduction.*"]),
    same("encoder.layers.#.downsample.norm.*", &["layers.#.downsample.norm.*"]),
];

/// timm reduces at the start of the next one.
pub(super) const AT_THE_START: &[Rule] = &[
    same("encoder.layers.#.downsample.reduction.*", &["layers.#+1.downsample.reduction.*"]),
    same("encoder.layers.#.downsample.norm.*", &["layers.#+1.downsample.norm.*"]),
];

/// The official mask token.
pub(super) const MASK_TOKEN: &[Rule] = &[same("encoder.mask_token", &["mask_token"])];

/// timm's linear classifier of a model with a map.
pub(super) const TIMM_HEAD: &[Rule] = &[same("head.*", &["head.fc.*"])];

/// What Hugging Face's two versions agree on.
pub(super) const HF_SWIN: &[Rule] = &[
    same("encoder.mask_token", &["embeddings.mask_token"]),
    same("encoder.patch_embed.proj.*", &["embeddings.patch_embeddings.projection.*"]),
    same("encoder.patch_embed.norm.*", &["embeddings.norm.*"]),
    same("encoder.layers.#.blocks.#.norm1.*", &["encoder.layers.#.blocks.#.layernorm_before.*"]),
    same("encoder.layers.#.blocks.#.attn.proj.*", &["encoder.layers.#.blocks.#.attention.output.dense.*"]),
    same("encoder.layers.#.blocks.#.norm2.*", &["encoder.layers.#.blocks.#.layernorm_after.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc1.*", &["encoder.layers.#.blocks.#.intermediate.dense.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc2.*", &["encoder.layers.#.blocks.#.output.dense.*"]),
    same("encoder.layers.#.downsample.reduction.*", &["encoder.layers.#.downsample.reduction.*"]),
    same("encoder.layers.#.downsample.norm.*", &["encoder.layers.#.downsample.norm.*"]),
    same("encoder.norm.*", &["layernorm.*"]),
];

/// Attention of version 1.
pub(super) const HF_SWIN_V1: &[Rule] = &[
    stacked(
        "encoder.layers.#.blocks.#.attn.qkv.*",
        &[
            "encoder.layers.#.blocks.#.attention.self.query.*",
            "encoder.layers.#.blocks.#.attention.self.key.*",
            "encoder.layers.#.blocks.#.attention.self.value.*",
        ],
    ),
    same(TABLE, &["encoder.layers.#.blocks.#.attention.self.relative_position_bias_table"]),
];

/// The names that version 1 has in memory since transformers 5; files keep the older ones.
pub(super) const HF_SWIN_IN_MEMORY: &[Rule] = &[
    stacked(
        "encoder.layers.#.blocks.#.attn.qkv.*",
        &[
            "encoder.layers.#.blocks.#.attention.q_proj.*",
            "encoder.layers.#.blocks.#.attention.k_proj.*",
            "encoder.layers.#.blocks.#.attention.v_proj.*",
        ],
    ),
    same("encoder.layers.#.blocks.#.attn.proj.*", &["encoder.layers.#.blocks.#.attention.o_proj.*"]),
    same(TABLE, &["encoder.layers.#.blocks.#.attention.relative_position_bias.relative_position_bias_table"]),
    same("encoder.layers.#.blocks.#.mlp.fc1.*", &["encoder.layers.#.blocks.#.mlp.fc1.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc2.*", &["encoder.layers.#.blocks.#.mlp.fc2.*"]),
];

/// Attention of version 2, whose keys have no bias.
pub(super) const HF_SWIN_V2: &[Rule] = &[
    stacked(
        "encoder.layers.#.blocks.#.attn.qkv.weight",
        &[
            "encoder.layers.#.blocks.#.attention.self.query.weight",
            "encoder.layers.#.blocks.#.attention.self.key.weight",
            "encoder.layers.#.blocks.#.attention.self.value.weight",
        ],
    ),
    same("encoder.layers.#.blocks.#.attn.q_bias", &["encoder.layers.#.blocks.#.attention.self.query.bias"]),
    same("encoder.layers.#.blocks.#.attn.v_bias", &["encoder.layers.#.blocks.#.attention.self.value.bias"]),
    same("encoder.layers.#.blocks.#.attn.logit_scale", &["encoder.layers.#.blocks.#.attention.self.logit_scale"]),
    same(
        "encoder.layers.#.blocks.#.attn.cpb_mlp.0.*",
        &["encoder.layers.#.blocks.#.attention.self.continuous_position_bias_mlp.0.*"],
    ),
    same(
        "encoder.layers.#.blocks.#.attn.cpb_mlp.2.*",
        &["encoder.layers.#.blocks.#.attention.self.continuous_position_bias_mlp.2.*"],
    ),
];

/// What mmpretrain's two versions agree on. The norm at the end counts the stages.
pub(super) const MM_SWIN: &[Rule] = &[
    same("encoder.absolute_pos_embed", &["absolute_pos_embed"]),
    same("encoder.mask_token", &["mask_token"]),
    same("encoder.patch_embed.proj.*", &["patch_embed.projection.*"]),
    same("encoder.patch_embed.norm.*", &["patch_embed.norm.*"]),
    same("encoder.layers.#.blocks.#.norm1.*", &["stages.#.blocks.#.norm1.*"]),
    same("encoder.layers.#.blocks.#.attn.qkv.*", &["stages.#.blocks.#.attn.w_msa.qkv.*"]),
    same("encoder.layers.#.blocks.#.attn.proj.*", &["stages.#.blocks.#.attn.w_msa.proj.*"]),
    same("encoder.layers.#.blocks.#.norm2.*", &["stages.#.blocks.#.norm2.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc1.*", &["stages.#.blocks.#.ffn.layers.0.0.*"]),
    same("encoder.layers.#.blocks.#.mlp.fc2.*", &["stages.#.blocks.#.ffn.layers.1.*"]),
    same("encoder.norm.*", &["norm3.*"]),
    same("encoder.norm.*", &["norm2.*"]),
    same("encoder.norm.*", &["norm1.*"]),
    same("encoder.norm.*", &["norm0.*"]),
];

/// mmpretrain's version 1 cuts the four tokens of a reduction out by `unfold`, and norms them before.
pub(super) const MM_SWIN_V1: &[Rule] = &[
    same(TABLE, &["stages.#.blocks.#.attn.w_msa.relative_position_bias_table"]),
    unfolded("encoder.layers.#.downsample.reduction.*", &["stages.#.downsample.reduction.*"]),
    unfolded("encoder.layers.#.downsample.norm.*", &["stages.#.downsample.norm.*"]),
];

/// Its version 2 does so at the start of the next stage, and norms what they are reduced to.
pub(super) const MM_SWIN_V2: &[Rule] = &[
    same("encoder.layers.#.blocks.#.attn.q_bias", &["stages.#.blocks.#.attn.w_msa.q_bias"]),
    same("encoder.layers.#.blocks.#.attn.v_bias", &["stages.#.blocks.#.attn.w_msa.v_bias"]),
    same("encoder.layers.#.blocks.#.attn.logit_scale", &["stages.#.blocks.#.attn.w_msa.logit_scale"]),
    same("encoder.layers.#.blocks.#.attn.cpb_mlp.0.*", &["stages.#.blocks.#.attn.w_msa.cpb_mlp.0.*"]),
    same("encoder.layers.#.blocks.#.attn.cpb_mlp.2.*", &["stages.#.blocks.#.attn.w_msa.cpb_mlp.2.*"]),
    unfolded("encoder.layers.#.downsample.reduction.*", &["stages.#+1.downsample.reduction.*"]),
    same("encoder.layers.#.downsample.norm.*", &["stages.#+1.downsample.norm.*"]),
];

/// mmpretrain's head on a backbone that ends with a map.
pub(super) const MM_HEAD: &[Rule] = &[same("head.*", &["head.fc.*"]), same("decoder.0.*", &["neck.decoder.0.*"])];
