//! What a recipe holds. Every value of a resolved recipe is written out, so a run's `config.toml` is complete.

use crate::trainer::Recompute;
use serde::{Deserialize, Serialize};
use simmim_models::Precision;

/// All settings of a run. The meaning of each key stands in [`super::KEYS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "each key is documented once, in the table that `recipes show` prints")]
pub struct Recipe {
    pub model: Model,
    pub simmim: SimMim,
    pub data: Data,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub train: Train,
    pub validate: Every,
    pub reconstruct: Every,
    pub probe: Probe,
    pub log: Log,
    pub checkpoint: Checkpoint,
    pub guard: Guard,
    /// Only in recipes for fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<FineTune>,
    /// Only in recipes for fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
}

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs, reason = "each key is documented once, in the table that `recipes show` prints")]
        pub struct $name { $($(#[$of_field])* pub $field: $ty),* }
    };
}

section!(
    /// The encoder.
    Model {
        name: String, image_size: [usize; 2], patch_size: [usize; 2], channels: usize, embed_dim: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        depth: Option<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        depths: Option<Vec<usize>>,
        num_heads: Heads,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window_size: Option<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pretrained_windows: Option<Vec<usize>>,
        mlp_ratio: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class_token: Option<bool>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registers: Option<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eps: Option<f64>,
        position: PositionKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position_init: Option<PositionInitKind>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight_init: Option<WeightInitKind>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layer_scale: Option<f64>,
        drop_path: f64, qkv_bias: QkvBiasKind, final_norm: bool,
    }
);
section!(
    /// Mask, target and loss.
    SimMim {
        mode: ModeKind, mask_patch: [usize; 2], mask_ratio: f64, mask_kind: MaskKind, target: TargetKind, target_window: usize, loss: LossName,
        area: AreaKind, head: HeadKind,
    }
);
section!(
    /// Images.
    Data {
        path: String, val_path: String, held_out: usize, random_crop: bool, crop_scale: [f64; 2], crop_ratio: [f64; 2], flip: f64,
        interpolation: InterpolationKind, background: String, mean: Statistic, std: Statistic, workers: usize, prefetch: usize, max_errors: usize,
        scaled_decoding: bool, cache: CacheKind, cache_size: usize, cache_limit: u64, cache_path: String,
    }
);
section!(
    /// AdamW.
    Optimizer { lr: f64, scale_lr: bool, betas: [f64; 2], eps: f64, weight_decay: f64, clip_norm: f64 }
);
section!(
    /// Length and learning rate.
    Schedule {
        epochs: u64, steps: u64, kind: ScheduleKind, warmup_epochs: f64, warmup_steps: u64, warmup_lr: f64,
        warmup_prefix: bool, min_lr: f64,
        milestones: Vec<f64>, gamma: f64,
    }
);
section!(
    /// The step.
    Train {
        batch_size: usize, accumulation: usize, seed: u64, precision: Precision, recompute: Recompute, memory: u64,
        bucket_bytes: usize, gradient_precision: Precision, shard_optimizer: bool, rank_timeout: u64,
    }
);
section!(
    /// Something done at intervals on some held-out images.
    Every { every_steps: u64, images: usize }
);
section!(
    /// A probe of the weights at intervals.
    Probe { train_path: String, val_path: String, every_steps: u64, images: usize, layer: i64 }
);
section!(
    /// Metrics.
    Log { every_steps: u64, tensorboard: bool }
);
section!(
    /// Checkpoints.
    Checkpoint { every_steps: u64, keep: usize }
);
section!(
    /// What to do when training goes wrong.
    Guard { on_nan: Reaction, on_spike: Reaction, spike_factor: f64, spike_window: usize, max_rollbacks: usize }
);

section!(
    /// The classifier.
    FineTune {
        pool: PoolKind, per_block_bias: bool, layer_decay: f64, head_scale: f64, freeze: bool, ema: f64, validate_epochs: f64,
        eval_crop: f64,
    }
);
section!(
    /// What happens to images and labels while fine-tuning.
    Augment {
        rand_layers: usize, rand_magnitude: f64, rand_std: f64, color_jitter: f64, erase: f64, mixup: f64, cutmix: f64,
        mix_probability: f64, mix_switch: f64, label_smoothing: f64,
    }
);

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($variant:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs, reason = "the variants are the words that recipes use")]
        pub enum $name { $($variant),* }
    };
}

choice!(
    /// `model.position`.
    PositionKind { Absolute, SharedRelative, Relative, None }
);
choice!(
    /// `model.position_init`.
    PositionInitKind { Normal, Sincos }
);
choice!(
    /// `model.weight_init`.
    WeightInitKind { Normal, Xavier }
);
choice!(
    /// `model.qkv_bias`.
    QkvBiasKind { Full, NoKey, None }
);
choice!(
    /// `finetune.pool`.
    PoolKind { Mean, Cls }
);
choice!(
    /// `simmim.mode`.
    ModeKind { Tutorial, Official }
);
choice!(
    /// `simmim.mask_kind`.
    MaskKind { Random, Block }
);
choice!(
    /// `simmim.target`.
    TargetKind { Pixels, Normalized, WindowNormalized }
);
choice!(
    /// `simmim.area`.
    AreaKind { Masked, Full }
);
choice!(
    /// `simmim.head`.
    HeadKind { Linear, Mlp }
);
choice!(
    /// `data.cache`.
    CacheKind { None, Memory, Disk }
);
choice!(
    /// `data.interpolation`.
    InterpolationKind { Bilinear, Bicubic }
);
choice!(
    /// `schedule.kind`.
    ScheduleKind { Cosine, MultiStep, Linear, Constant }
);
choice!(
    /// `guard.on_nan` and `guard.on_spike`.
    Reaction { Ignore, Warn, Stop, Rollback }
);

/// `simmim.loss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the variants are the words that recipes use")]
pub enum LossName {
    L1,
    L2,
    #[serde(rename = "smooth_l1")]
    SmoothL1,
}

/// `model.num_heads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Heads {
    /// Those of a ViT, or of the first stage, doubled from stage to stage.
    First(usize),
    /// Those of each stage.
    Each(Vec<usize>),
}

/// `data.mean` and `data.std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Statistic {
    /// `"imagenet"` or `"measure"`.
    Named(String),
    /// One number for each channel, of pixels in 0 to 1.
    Given(Vec<f32>),
}
