//! Which keys of `[model]` belong to which family of encoders, and the encoder that they make.

use super::convert::pair;
use super::{Heads, Model, PositionInitKind, PositionKind, QkvBiasKind, Recipe, WeightInitKind, lookup, wrong};
use crate::error::TrainError;
use simmim_models::swin::{Stage, Version};
use simmim_models::{Encoder, Position, PositionInit, QkvBias, SwinConfig, VitConfig, WeightInit};
use toml::{Table, Value};

/// Keys that one family alone has, with what the others have in their place.
const VIT_ONLY: [(&str, &str); 7] = [
    ("model.depth", "set model.depths to the blocks of each stage"),
    ("model.class_token", "a Swin transformer has none; leave the key out"),
    ("model.registers", "a Swin transformer has none; leave the key out"),
    ("model.eps", "norms of a Swin transformer add 1e-5; leave the key out"),
    ("model.position_init", "absolute positions of a Swin transformer start as normal numbers; leave the key out"),
    ("model.weight_init", "matrices of a Swin transformer start as normal numbers; leave the key out"),
    ("model.layer_scale", "a Swin transformer has none; leave the key out"),
];
const SWIN_ONLY: [(&str, &str); 3] = [
    ("model.depths", "set model.depth to the number of blocks"),
    ("model.window_size", "every token of a ViT attends to all; leave the key out"),
    ("model.pretrained_windows", "every token of a ViT attends to all; leave the key out"),
];

fn size((a, b): (usize, usize)) -> Value {
    numbers(&[a, b])
}

fn numbers(values: &[usize]) -> Value {
    Value::Array(values.iter().map(|&v| number(v)).collect())
}

fn number(value: usize) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A float as the shortest decimal that means it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The keys that a preset gives.
pub(super) fn preset(encoder: &Encoder) -> Vec<(&'static str, Value)> {
    let g = encoder.geometry();
    let mut keys = vec![
        ("model.image_size", size(g.image_size)),
        ("model.patch_size", size(g.patch_size)),
        ("model.channels", number(g.channels)),
        ("model.embed_dim", number(encoder.embed_dim())),
    ];
    match encoder {
        Encoder::Vit(c) => keys.extend([
            ("model.depth", number(c.depth)),
            ("model.num_heads", number(c.num_heads)),
            ("model.mlp_ratio", Value::Float(c.mlp_ratio)),
            ("model.class_token", Value::Boolean(c.class_token)),
            ("model.registers", number(c.registers)),
            ("model.eps", Value::Float(1e-6)),
            ("model.position_init", Value::String("normal".into())),
            ("model.weight_init", Value::String("normal".into())),
            ("model.layer_scale", Value::Float(c.layer_scale.map_or(0.0, decimal))),
        ]),
        Encoder::Swin(c) => {
            keys.extend([
                ("model.depths", numbers(&c.depths)),
                ("model.num_heads", numbers(&c.num_heads)),
                ("model.window_size", number(c.window_size)),
                ("model.mlp_ratio", Value::Float(c.mlp_ratio)),
                ("model.position", Value::String("relative".into())),
            ]);
            if c.version == Version::V2 {
                keys.push(("model.qkv_bias", Value::String("no_key".into())));
                let pretrained = c.depths.iter().enumerate().map(|(stage, _)| c.pretrained_windows.get(stage).copied());
                let pretrained: Vec<usize> = pretrained.map(Option::unwrap_or_default).collect();
                keys.push(("model.pretrained_windows", numbers(&pretrained)));
            }
        }
    }
    keys
}

/// Refuses keys of another family.
pub(super) fn check_keys(encoder: &Encoder, given: &Table, origin: &str, set: &[String]) -> Result<(), TrainError> {
    let (foreign, family) = match encoder {
        Encoder::Vit(_) => (SWIN_ONLY.as_slice(), "ViT"),
        Encoder::Swin(_) => (VIT_ONLY.as_slice(), "Swin transformer"),
    };
    match foreign.iter().find(|(key, _)| lookup(given, key).is_some()) {
        None => Ok(()),
        Some((key, help)) => {
            let flag = set.iter().rev().find(|a| a.split_once('=').is_some_and(|(k, _)| k.trim() == *key));
            let origin = flag.map_or_else(|| origin.to_owned(), |a| format!("--set {a}"));
            Err(wrong(&origin, format!("{key} is no key of a {family}"), *help))
        }
    }
}

impl Model {
    /// The encoder; whether its sizes fit is for whoever builds on it to check.
    pub(super) fn encoder(&self) -> Encoder {
        match &self.depths {
            Some(depths) => Encoder::Swin(self.swin(depths)),
            None => Encoder::Vit(self.vit()),
        }
    }

    fn vit(&self) -> VitConfig {
        VitConfig {
            image_size: pair(self.image_size),
            patch_size: pair(self.patch_size),
            channels: self.channels,
            embed_dim: self.embed_dim,
            depth: self.depth.unwrap_or(0),
            num_heads: self.num_heads.each(1).first().copied().unwrap_or(0),
            mlp_ratio: self.mlp_ratio,
            class_token: self.class_token.unwrap_or(true),
            registers: self.registers.unwrap_or(0),
            position: match self.position {
                PositionKind::Absolute => Position::Absolute,
                PositionKind::SharedRelative => Position::SharedRelative,
                PositionKind::Relative => Position::Relative,
                PositionKind::None => Position::None,
            },
            position_init: match self.position_init {
                Some(PositionInitKind::Sincos) => PositionInit::SinCos,
                Some(PositionInitKind::Normal) | None => PositionInit::Normal,
            },
            weight_init: match self.weight_init {
                Some(WeightInitKind::Xavier) => WeightInit::Xavier,
                Some(WeightInitKind::Normal) | None => WeightInit::Normal,
            },
            layer_scale: self.layer_scale.filter(|&s| s != 0.0).map(|s| s as f32),
            drop_path: self.drop_path as f32,
            qkv_bias: match self.qkv_bias {
                QkvBiasKind::Full => QkvBias::Full,
                QkvBiasKind::NoKey => QkvBias::NoKey,
                QkvBiasKind::None => QkvBias::None,
            },
            final_norm: self.final_norm,
            eps: self.eps.unwrap_or(1e-6) as f32,
        }
    }

    fn swin(&self, depths: &[usize]) -> SwinConfig {
        let version = if self.name.starts_with("swinv2") { Version::V2 } else { Version::V1 };
        let pretrained = self.pretrained_windows.clone().unwrap_or_default();
        SwinConfig {
            version,
            image_size: pair(self.image_size),
            patch_size: pair(self.patch_size),
            channels: self.channels,
            embed_dim: self.embed_dim,
            depths: depths.to_vec(),
            num_heads: self.num_heads.each(depths.len()),
            window_size: self.window_size.unwrap_or(0),
            pretrained_windows: if pretrained.iter().any(|&w| w > 0) { pretrained } else { Vec::new() },
            mlp_ratio: self.mlp_ratio,
            absolute: self.position == PositionKind::Absolute,
            drop_path: self.drop_path as f32,
            qkv_bias: self.qkv_bias != QkvBiasKind::None,
            final_norm: self.final_norm,
            eps: 1e-5,
        }
    }
}

impl Recipe {
    /// Where windows of a Swin v2 differ from those that its weights were trained with, the coordinates of its position biases go on to be
    /// measured by the old ones, as in the official fine-tuning.
    pub(super) fn keep_windows_of(&mut self, model: &Self) {
        let (Encoder::Swin(old), Encoder::Swin(new)) = (model.model.encoder(), self.model.encoder()) else { return };
        let v2 = old.version == Version::V2 && new.version == Version::V2;
        if !v2 || !new.pretrained_windows.is_empty() || old.depths.len() != new.depths.len() {
            return;
        }
        let side = |stage: &Stage| stage.window.0.max(stage.window.1);
        let trained = |stage: Stage| {
            let given = old.pretrained_windows.get(stage.index).copied();
            given.filter(|&w| w > 0).unwrap_or_else(|| side(&stage))
        };
        let windows: Vec<usize> = old.stages().into_iter().map(trained).collect();
        if windows != new.stages().iter().map(side).collect::<Vec<_>>() {
            self.model.pretrained_windows = Some(windows);
        }
    }
}

impl Heads {
    /// The heads of each stage: a single number is that of the first, doubled from stage to stage as widths are.
    fn each(&self, stages: usize) -> Vec<usize> {
        match self {
            Self::First(heads) => (0..stages).map(|s| heads.saturating_mul(1 << s.min(32))).collect(),
            Self::Each(heads) => heads.clone(),
        }
    }
}
