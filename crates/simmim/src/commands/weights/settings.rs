//! What a weight file tells about its model, as values of a recipe.

use simmim_models::weights::{Facts, Loaded, Resample};
use simmim_models::{Position, QkvBias, VitConfig};

/// A name that stands for models of no preset; every size is given beside it.
const ANY: &str = "vit_tiny_patch16_224";

fn pair((a, b): (usize, usize)) -> String {
    format!("[{a}, {b}]")
}

/// What is there and what is not: no sizes.
pub(crate) fn presence(f: &Facts, eps: Option<f64>) -> Vec<String> {
    let position = match f.position {
        Position::Absolute => "absolute",
        Position::SharedRelative => "shared_relative",
        Position::Relative => "relative",
        Position::None => "none",
    };
    let qkv_bias = match f.qkv_bias {
        QkvBias::Full => "full",
        QkvBias::NoKey => "no_key",
        QkvBias::None => "none",
    };
    // The value says where LayerScale starts, which the weights replace; zero would say that there is none.
    let layer_scale = if f.layer_scale.is_some() { 0.1 } else { 0.0 };
    let mut set = vec![
        format!("model.class_token={}", f.class_token),
        format!("model.registers={}", f.registers),
        format!("model.position={position}"),
        format!("model.qkv_bias={qkv_bias}"),
        format!("model.layer_scale={layer_scale:?}"),
        format!("model.final_norm={}", f.final_norm || f.pooled_norm),
    ];
    set.extend(eps.map(|eps| format!("model.eps={eps:?}")));
    set
}

/// Sizes of the encoder but those of its images.
pub(crate) fn sizes(f: &Facts, num_heads: usize) -> Vec<String> {
    let mut ratio = f.mlp_dim as f64 / f.embed_dim as f64;
    // A width of the MLP is rounded down from the ratio.
    while ((f.embed_dim as f64 * ratio) as usize) < f.mlp_dim {
        ratio = ratio.next_up();
    }
    vec![
        format!("model.patch_size={}", pair(f.patch_size)),
        format!("model.embed_dim={}", f.embed_dim),
        format!("model.depth={}", f.depth),
        format!("model.num_heads={num_heads}"),
        format!("model.mlp_ratio={ratio:?}"),
    ]
}

/// All values of a recipe that the file tells; none where it does not say the number of heads or the size of the images.
pub(crate) fn complete(loaded: &Loaded) -> Option<Vec<String>> {
    let known = loaded.card.name.as_deref().filter(|name| VitConfig::preset(name).is_ok());
    let mut set = vec![format!("model.name={}", known.unwrap_or(ANY))];
    set.extend(sizes(&loaded.facts, loaded.num_heads()?));
    set.push(format!("model.image_size={}", pair(loaded.image_size()?)));
    set.push(format!("model.channels={}", loaded.facts.channels));
    set.extend(presence(&loaded.facts, loaded.card.eps));
    set.extend(images(loaded));
    set.extend(loaded.card.mask_patch.map(|side| format!("simmim.mask_patch={side}")));
    set.extend(loaded.card.mask_ratio.map(|ratio| format!("simmim.mask_ratio={ratio:?}")));
    Some(set)
}

/// How images are brought to the model.
fn images(loaded: &Loaded) -> Vec<String> {
    let card = &loaded.card;
    let list = |key: &str, values: &Option<Vec<f64>>| {
        let values = values.as_ref().filter(|v| v.len() == loaded.facts.channels)?;
        Some(format!("data.{key}={values:?}"))
    };
    let filter = card.resample.map(|r| match r {
        Resample::Bilinear => "data.interpolation=bilinear".to_owned(),
        Resample::Bicubic => "data.interpolation=bicubic".to_owned(),
    });
    list("mean", &card.mean).into_iter().chain(list("std", &card.std)).chain(filter).collect()
}
