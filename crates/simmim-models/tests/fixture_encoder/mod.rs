//! The encoder that a fixture's configuration describes.

use serde_json::Value;
use simmim_models::swin::{SwinConfig, Version};
use simmim_models::{Encoder, Position, PositionInit, QkvBias, VitConfig, WeightInit};

pub(crate) fn pair(v: &Value) -> (usize, usize) {
    (v[0].as_u64().unwrap() as usize, v[1].as_u64().unwrap() as usize)
}

pub(crate) fn encoder(c: &Value) -> Encoder {
    if c["version"].is_u64() { swin(c).into() } else { vit(c).into() }
}

fn swin(c: &Value) -> SwinConfig {
    let numbers =
        |key: &str| c[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect::<Vec<_>>();
    let number = |key: &str| c[key].as_u64().unwrap() as usize;
    SwinConfig {
        version: if number("version") == 2 { Version::V2 } else { Version::V1 },
        image_size: pair(&c["image_size"]),
        patch_size: pair(&c["patch_size"]),
        channels: number("channels"),
        embed_dim: number("embed_dim"),
        depths: numbers("depths"),
        num_heads: numbers("num_heads"),
        window_size: number("window_size"),
        pretrained_windows: Vec::new(),
        mlp_ratio: c["mlp_ratio"].as_f64().unwrap(),
        absolute: c["absolute"].as_bool().unwrap(),
        drop_path: 0.0,
        qkv_bias: true,
        final_norm: true,
        eps: 1e-5,
    }
}

fn vit(c: &Value) -> VitConfig {
    let number = |key: &str| c[key].as_u64().unwrap() as usize;
    let text = |key: &str| c[key].as_str().unwrap();
    let scale = c["layer_scale"].as_f64().unwrap() as f32;
    VitConfig {
        image_size: pair(&c["image_size"]),
        patch_size: pair(&c["patch_size"]),
        channels: number("channels"),
        embed_dim: number("embed_dim"),
        depth: number("depth"),
        num_heads: number("num_heads"),
        mlp_ratio: c["mlp_ratio"].as_f64().unwrap(),
        class_token: c["class_token"].as_bool().unwrap(),
        registers: 0,
        position: match text("position") {
            "absolute" => Position::Absolute,
            "shared_relative" => Position::SharedRelative,
            _ => Position::Relative,
        },
        position_init: PositionInit::Normal,
        weight_init: WeightInit::Normal,
        layer_scale: (scale > 0.0).then_some(scale),
        drop_path: 0.0,
        qkv_bias: if text("qkv_bias") == "full" { QkvBias::Full } else { QkvBias::NoKey },
        final_norm: true,
        eps: 1e-6,
    }
}
