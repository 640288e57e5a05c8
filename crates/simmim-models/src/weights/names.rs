//! Names of parameters here and elsewhere.

use super::{Tensor, Weights};
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::parameters::ParameterSpec;
use crate::swin::{SwinConfig, Version};
use crate::vit::{Position, QkvBias, VitConfig};
use std::path::Path;

/// Prefix of the encoder's parameters in a full model.
pub(super) const ENCODER: &str = "encoder.";

/// Parameters that a file may lack: an encoder has neither mask token nor head.
pub(super) fn optional(name: &str) -> bool {
    name.ends_with("mask_token") || name.starts_with("decoder.")
}

/// Parameters of a classifier that are no part of its encoder.
pub(super) fn of_classifier(name: &str) -> bool {
    name.starts_with("head.") || name.starts_with("fc_norm.")
}

/// Picks the model's parameters out of a file, under the official names. The file may hold a full model (`encoder.*`,
/// `decoder.*`) or a bare encoder in timm's names; a classifier's `head.*` and `fc_norm.*` are ignored, and in a bare encoder
/// the mask token and the head may be missing (they are then left out of the result). With `whole` nothing may be missing. A classifier that
/// pools before it normalises has no norm after its blocks: its `fc_norm` takes that place.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn match_parameters(
    path: &Path,
    specs: &[ParameterSpec],
    mut weights: Weights,
    whole: bool,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    if normalises_pooled(&weights) {
        let prefix = if weights.keys().any(|k| k.starts_with(ENCODER)) { ENCODER } else { "" };
        for end in ["weight", "bias"] {
            if let Some(tensor) = weights.remove(&format!("fc_norm.{end}")) {
                weights.insert(format!("{prefix}norm.{end}"), tensor);
            }
        }
    }
    weights.retain(|k, _| !of_classifier(k));
    pick(path, specs, with_official_names(specs, weights), whole)
}

/// Whether these are the weights of a classifier that normalises pooled tokens (`fc_norm`) and not each token (`norm`).
#[must_use]
pub fn normalises_pooled(weights: &Weights) -> bool {
    let has = |name: &str| weights.contains_key(name);
    has("fc_norm.weight") && !has("norm.weight") && !has("encoder.norm.weight")
}

/// Classes of the classifier that these weights are, if they are one's.
#[must_use]
pub fn head_classes(weights: &Weights) -> Option<usize> {
    let head = weights.get("head.weight").or_else(|| weights.get("head.fc.weight"));
    head.and_then(|head| head.shape.first().copied())
}

/// Weights under the official names, where they are an encoder's or a classifier's under timm's.
pub(super) fn with_official_names(specs: &[ParameterSpec], weights: Weights) -> Weights {
    if weights.keys().any(|k| k.starts_with(ENCODER)) {
        return weights;
    }
    // Bare official weights reduce at the end of a stage already.
    let by = if weights.keys().any(|k| k.starts_with("layers.0.downsample.")) { 0 } else { -1 };
    let official = |k: &str| match of_classifier(k) {
        true => k.replace("head.fc.", "head."),
        false => format!("{ENCODER}{}", moved_reduction(&from_timm(k), by)),
    };
    let mut weights = weights.into_iter().map(|(k, t)| (official(&k), t)).collect();
    split_key_bias(specs, &mut weights);
    weights
}

/// The tensors of the specifications, in their order.
pub(super) fn pick(
    path: &Path,
    specs: &[ParameterSpec],
    mut weights: Weights,
    whole: bool,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    let (mut missing, mut misshapen, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for spec in specs {
        match weights.remove(&spec.name) {
            Some(t) if same_layout(&t.shape, &spec.shape) => found.push((spec.name.clone(), t.data)),
            Some(t) => {
                misshapen.push(format!("{} ({:?} in the file, {:?} in the model)", spec.name, t.shape, spec.shape))
            }
            None if !whole && optional(&spec.name) => {}
            None => missing.push(spec.name.clone()),
        }
    }
    let unexpected: Vec<String> = weights.into_keys().filter(|k| whole || !optional(k)).collect();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        Ok(found)
    } else {
        Err(ModelError::Mismatch { path: path.to_owned(), missing, unexpected, misshapen })
    }
}

/// Whether two shapes mean the same elements in the same order: a convolution of size one is a linear layer.
fn same_layout(file: &[usize], model: &[usize]) -> bool {
    let linear = |shape: &[usize]| match *shape {
        [out, inputs, 1, 1] => vec![out, inputs],
        _ => shape.to_vec(),
    };
    linear(file) == linear(model)
}

/// timm's layer scale to the official names.
fn from_timm(name: &str) -> String {
    name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")
}

/// The name of a reduction's parameter at another stage: timm counts it to the stage that it leads to, the official code to the one
/// before.
fn moved_reduction(name: &str, by: isize) -> String {
    let moved = || {
        let (stage, tail) = name.strip_prefix("layers.")?.split_once(".downsample.")?;
        let stage = stage.parse::<usize>().ok()?.checked_add_signed(by)?;
        Some(format!("layers.{stage}.downsample.{tail}"))
    };
    moved().unwrap_or_else(|| name.to_owned())
}

/// A full `qkv.bias` for a model without a key bias, where the file's key bias is zero.
fn split_key_bias(specs: &[ParameterSpec], weights: &mut Weights) {
    for spec in specs.iter().filter(|s| s.name.ends_with("attn.q_bias")) {
        let base = spec.name.trim_end_matches("q_bias");
        let key = format!("{base}qkv.bias");
        let dim = spec.len();
        let fits = |t: &Tensor| t.data.len() == 3 * dim && t.data[dim..2 * dim].iter().all(|&v| v == 0.0);
        if weights.get(&key).is_some_and(fits)
            && let Some(t) = weights.remove(&key)
        {
            let part = |from: usize| Tensor { shape: vec![dim], data: t.data[from..from + dim].to_vec() };
            weights.insert(spec.name.clone(), part(0));
            weights.insert(format!("{base}v_bias"), part(2 * dim));
        }
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
    other(c.position == Position::None, ", pos_embed='none'".into());
    other(c.layer_scale.is_some(), format!(", init_values={}", c.layer_scale.unwrap_or_default()));
    other(c.qkv_bias == QkvBias::None, ", qkv_bias=False".into());
    other(!c.final_norm, ", final_norm=False".into());
    call.push_str(", num_classes=0, global_pool='avg', fc_norm=False)");
    Some(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimMimConfig;

    fn config() -> SimMimConfig {
        let mut encoder = VitConfig::preset("vit_tiny_patch8_16").unwrap();
        (encoder.embed_dim, encoder.depth, encoder.layer_scale, encoder.qkv_bias) = (12, 2, Some(0.1), QkvBias::NoKey);
        SimMimConfig::official(encoder, (8, 8), 0.5)
    }

    fn full(config: &SimMimConfig) -> Weights {
        let tensor = |s: &ParameterSpec| Tensor { shape: s.shape.clone(), data: s.initial(3) };
        config.parameters().iter().map(|s| (s.name.clone(), tensor(s))).collect()
    }

    #[test]
    fn an_encoder_goes_out_under_timms_names_and_comes_back() {
        let config = config();
        let weights = full(&config);
        let timm = encoder_to_timm(weights.clone());
        assert!(timm.contains_key("blocks.1.attn.qkv.bias") && timm.contains_key("blocks.0.ls1.gamma"));
        assert!(!timm.keys().any(|k| k.contains("mask_token") || k.contains("decoder") || k.contains("q_bias")));
        let back = match_parameters(Path::new("x"), &config.parameters(), timm, false).unwrap();
        assert_eq!(back.len(), config.parameters().len() - 3);
        assert!(back.iter().all(|(name, data)| *data == weights[name].data));
    }

    #[test]
    fn a_classifiers_norm_takes_the_place_of_the_encoders() {
        let config = config();
        let whole = full(&config);
        for prefixed in [true, false] {
            let mut weights = if prefixed { whole.clone() } else { encoder_to_timm(whole.clone()) };
            weights.retain(|name, _| !name.ends_with("mask_token") && !name.starts_with("decoder."));
            for end in ["weight", "bias"] {
                let norm = if prefixed { format!("encoder.norm.{end}") } else { format!("norm.{end}") };
                let tensor = weights.remove(&norm).unwrap();
                weights.insert(format!("fc_norm.{end}"), tensor);
            }
            weights.insert("head.weight".into(), Tensor { shape: vec![3, 12], data: vec![0.0; 36] });
            assert!(normalises_pooled(&weights) && !normalises_pooled(&whole));
            assert_eq!((head_classes(&weights), head_classes(&whole)), (Some(3), None));
            let found = match_parameters(Path::new("x"), &config.parameters(), weights, false).unwrap();
            let norm = found.iter().find(|(name, _)| name == "encoder.norm.weight").unwrap();
            assert_eq!(norm.1, whole["encoder.norm.weight"].data);
        }
    }

    #[test]
    fn a_kernel_in_another_order_is_refused_and_a_linear_layer_for_one_of_size_one_taken() {
        let config = config();
        let specs = config.parameters();
        let with = |name: &str, shape: &[usize]| {
            let mut weights = full(&config);
            weights.get_mut(name).unwrap().shape = shape.to_vec();
            match_parameters(Path::new("x"), &specs, weights, true).map_err(|e| e.to_string())
        };
        let (kernel, head) = ("encoder.patch_embed.proj.weight", "decoder.0.weight");
        for shape in [&[12, 8, 8, 3][..], &[8, 8, 3, 12], &[12, 192], &[12, 3, 64], &[12, 192, 1, 1]] {
            let error = with(kernel, shape).unwrap_err();
            assert!(error.contains(&format!("{kernel} ({shape:?} in the file")), "{error}");
        }
        assert!(with(head, &[192, 12]).is_ok());
        for shape in [&[12, 192][..], &[12, 192, 1, 1], &[192, 1, 12, 1]] {
            assert!(with(head, shape).unwrap_err().contains(head), "{shape:?}");
        }
    }

    #[test]
    fn all_differences_are_listed_at_once() {
        let config = config();
        let mut weights = full(&config);
        weights.remove("encoder.norm.bias");
        weights.insert("encoder.extra".into(), Tensor { shape: vec![1], data: vec![0.0] });
        weights.insert("encoder.norm.weight".into(), Tensor { shape: vec![5], data: vec![0.0; 5] });
        let error = match_parameters(Path::new("w.safetensors"), &config.parameters(), weights, true).unwrap_err();
        let text = error.to_string();
        for part in
            ["w.safetensors", "missing: encoder.norm.bias", "unexpected: encoder.extra", "[5] in the file, [12]"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}
