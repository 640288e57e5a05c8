//! Weights in timm's names, and the call that makes their model.

use super::fit::{ENCODER, of_classifier};
use super::{Tensor, Weights};
use crate::encoder::Encoder;
use crate::swin::{SwinConfig, Version};
use crate::vit::{Position, QkvBias, VitConfig};

/// The name of a reduction's parameter at another stage: timm counts it to the stage that it leads to, the official code to the one
/// before.
pub(super) fn moved_reduction(name: &str, by: isize) -> String {
    let moved = || {
        let (stage, tail) = name.strip_prefix("layers.")?.split_once(".downsample.")?;
        let stage = stage.parse::<usize>().ok()?.checked_add_signed(by)?;
        Some(format!("layers.{stage}.downsample.{tail}"))
    };
    moved().unwrap_or_else(|| name.to_owned())
}

/// timm gives registers positions too: rows of zeros, which change nothing.
pub(super) fn positions_for_registers(encoder: &mut Weights) {
    let registers = encoder.get("reg_token").map_or(0, |t| t.shape[1]);
    let class = usize::from(encoder.contains_key("cls_token"));
    if let Some(positions) = encoder.get_mut("pos_embed").filter(|_| registers > 0) {
        let dim = positions.shape[2];
        positions.data.splice(class * dim..class * dim, vec![0.0; registers * dim]);
        positions.shape[1] += registers;
    }
}

/// The encoder of a full model in timm's names: no prefix, no mask token, no head; layer scale as `ls1.gamma` and `ls2.gamma`,
/// the biases of queries and values joined to `qkv.bias` with zeros for the keys. Relative position bias tables keep their
/// official names: timm's `vit_*` have none.
#[must_use]
pub fn encoder_to_timm(weights: Weights) -> Weights {
    let mut encoder: Weights = weights
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(ENCODER)?.to_owned(), tensor)))
        .filter(|(name, _)| name != "mask_token")
        .collect();
    let queries = encoder.keys().filter(|n| n.starts_with("blocks."));
    let queries: Vec<String> = queries.filter_map(|n| Some(n.strip_suffix("q_bias")?.to_owned())).collect();
    for base in queries {
        let part = |encoder: &mut Weights, name: &str| encoder.remove(&format!("{base}{name}")).map(|t| t.data);
        let mut data = part(&mut encoder, "q_bias").unwrap_or_default();
        let dim = data.len();
        data.resize(2 * dim, 0.0);
        data.extend(part(&mut encoder, "v_bias").unwrap_or_else(|| vec![0.0; dim]));
        encoder.insert(format!("{base}qkv.bias"), Tensor { shape: vec![3 * dim], data });
    }
    positions_for_registers(&mut encoder);
    let renamed =
        |name: String| moved_reduction(&name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma"), 1);
    encoder.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect()
}

/// The call of timm that makes a model for an exported encoder: features without head, patch tokens averaged. None where timm's
/// `VisionTransformer` has no such model: it knows no relative position biases.
#[must_use]
pub fn timm_call(encoder: &Encoder) -> Option<String> {
    match encoder {
        Encoder::Vit(c) => vit_call(c),
        Encoder::Swin(c) => swin_call(c),
    }
}

fn pair((a, b): (usize, usize)) -> String {
    if a == b { a.to_string() } else { format!("({a}, {b})") }
}

/// timm's Swin transformers have no absolute positions.
fn swin_call(c: &SwinConfig) -> Option<String> {
    if c.absolute || !c.final_norm {
        return None;
    }
    let class = if c.version == Version::V1 { "SwinTransformer" } else { "SwinTransformerV2" };
    let module = if c.version == Version::V1 { "swin_transformer" } else { "swin_transformer_v2" };
    let list = |values: &[usize]| {
        let comma = if values.len() == 1 { "," } else { "" };
        format!("({}{comma})", values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    };
    let mut call = format!(
        "timm.models.{module}.{class}(img_size={}, patch_size={}, in_chans={}, embed_dim={}, depths={}, num_heads={}, window_size={}",
        pair(c.image_size),
        pair(c.patch_size),
        c.channels,
        c.embed_dim,
        list(&c.depths),
        list(&c.num_heads),
        c.window_size
    );
    let mut other = |unusual: bool, text: String| {
        if unusual {
            call.push_str(&text)
        }
    };
    other(c.mlp_ratio != 4.0, format!(", mlp_ratio={}", c.mlp_ratio));
    other(!c.qkv_bias, ", qkv_bias=False".into());
    let pretrained = c.version == Version::V2 && c.pretrained_windows.iter().any(|&w| w > 0);
    other(pretrained, format!(", pretrained_window_sizes={}", list(&c.pretrained_windows)));
    call.push_str(", num_classes=0, global_pool='avg')");
    Some(call)
}

fn vit_call(c: &VitConfig) -> Option<String> {
    if matches!(c.position, Position::SharedRelative | Position::Relative) {
        return None;
    }
    let mut call = format!(
        "timm.models.VisionTransformer(img_size={}, patch_size={}, in_chans={}, embed_dim={}, depth={}, num_heads={}",
        pair(c.image_size),
        pair(c.patch_size),
        c.channels,
        c.embed_dim,
        c.depth,
        c.num_heads
    );
    let mut other = |unusual: bool, text: String| {
        if unusual {
            call.push_str(&text)
        }
    };
    other(c.mlp_ratio != 4.0, format!(", mlp_ratio={}", c.mlp_ratio));
    other(!c.class_token, ", class_token=False".into());
    other(c.registers > 0, format!(", reg_tokens={}", c.registers));
    other(c.position == Position::None, ", pos_embed='none'".into());
    other(c.layer_scale.is_some(), format!(", init_values={}", c.layer_scale.unwrap_or_default()));
    other(c.qkv_bias == QkvBias::None, ", qkv_bias=False".into());
    other(!c.final_norm, ", final_norm=False".into());
    call.push_str(", num_classes=0, global_pool='avg', fc_norm=False)");
    Some(call)
}

/// A classifier in timm's names: those of [`encoder_to_timm`], `fc_norm` and `head` as they are.
#[must_use]
pub fn classifier_to_timm(weights: &Weights) -> Weights {
    let swin = weights.keys().any(|k| k.starts_with("encoder.layers."));
    let renamed = |k: &str| if swin { k.replace("head.", "head.fc.") } else { k.to_owned() };
    let classifier = weights.iter().filter(|(k, _)| of_classifier(k)).map(|(k, t)| (renamed(k), t.clone()));
    let classifier: Vec<_> = classifier.collect();
    let mut out = encoder_to_timm(weights.clone());
    out.extend(classifier);
    out
}
