//! What a weight file tells about its model, as values of a recipe.

use simmim_models::swin::Version;
use simmim_models::weights::{Facts, Loaded, Resample, Structure, SwinFacts, ratio};
use simmim_models::{Encoder, Position, QkvBias, SwinConfig};

/// Names that stand for models of no preset; every size is given beside them.
const ANY: &str = "vit_tiny_patch16_224";
const ANY_SWIN: &str = "swin_tiny_patch4_window7_224";
const ANY_SWIN_V2: &str = "swinv2_tiny_window8_256";

fn pair((a, b): (usize, usize)) -> String {
    format!("[{a}, {b}]")
}

/// What is there and what is not: no sizes.
pub(crate) fn presence(structure: &Structure, eps: Option<f64>) -> Vec<String> {
    match structure {
        Structure::Vit(facts) => presence_in_vit(facts, eps),
        Structure::Swin(facts) => presence_in_swin(facts),
    }
}

fn presence_in_swin(f: &SwinFacts) -> Vec<String> {
    let position = if f.places.is_some() { "absolute" } else { "relative" };
    let mut set = vec![format!("model.position={position}"), format!("model.final_norm={}", f.final_norm)];
    if !f.qkv_bias {
        set.push("model.qkv_bias=none".to_owned());
    }
    set
}

/// As [`presence`], of a vision transformer.
pub(crate) fn presence_in_vit(f: &Facts, eps: Option<f64>) -> Vec<String> {
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

/// Sizes of a vision transformer but those of its images.
pub(crate) fn sizes(f: &Facts, num_heads: usize) -> Vec<String> {
    vec![
        format!("model.patch_size={}", pair(f.patch_size)),
        format!("model.embed_dim={}", f.embed_dim),
        format!("model.depth={}", f.depth),
        format!("model.num_heads={num_heads}"),
        format!("model.mlp_ratio={:?}", ratio(f.mlp_dim, f.embed_dim)),
    ]
}

fn sizes_of_swin(c: &SwinConfig) -> Vec<String> {
    let mut set = vec![
        format!("model.patch_size={}", pair(c.patch_size)),
        format!("model.embed_dim={}", c.embed_dim),
        format!("model.depths={:?}", c.depths),
        format!("model.num_heads={:?}", c.num_heads),
        format!("model.window_size={}", c.window_size),
        format!("model.mlp_ratio={:?}", c.mlp_ratio),
    ];
    if c.version == Version::V2 {
        let windows = c.depths.iter().enumerate().map(|(stage, _)| c.pretrained_windows.get(stage).copied());
        set.push(format!("model.pretrained_windows={:?}", windows.map(Option::unwrap_or_default).collect::<Vec<_>>()));
    }
    set
}

/// All values of a recipe that the file tells; none where it does not say the heads, the windows or the size of the images.
pub(crate) fn complete(loaded: &Loaded) -> Option<Vec<String>> {
    let encoder = loaded.encoder()?;
    let any = match &encoder {
        Encoder::Vit(_) => ANY,
        Encoder::Swin(c) if c.version == Version::V1 => ANY_SWIN,
        Encoder::Swin(_) => ANY_SWIN_V2,
    };
    let family = |e: &Encoder| match e {
        Encoder::Vit(_) => None,
        Encoder::Swin(c) => Some(c.version),
    };
    let same = |name: &&str| Encoder::preset(name).is_ok_and(|named| family(&named) == family(&encoder));
    let mut set = vec![format!("model.name={}", loaded.card.name.as_deref().filter(same).unwrap_or(any))];
    set.extend(match (&loaded.facts, &encoder) {
        (Structure::Vit(facts), Encoder::Vit(c)) => sizes(facts, c.num_heads),
        (_, Encoder::Swin(c)) => sizes_of_swin(c),
        (Structure::Swin(_), Encoder::Vit(_)) => return None,
    });
    set.push(format!("model.image_size={}", pair(encoder.geometry().image_size)));
    set.push(format!("model.channels={}", loaded.facts.channels()));
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
        let values = values.as_ref().filter(|v| v.len() == loaded.facts.channels())?;
        Some(format!("data.{key}={values:?}"))
    };
    let filter = card.resample.map(|r| match r {
        Resample::Bilinear => "data.interpolation=bilinear".to_owned(),
        Resample::Bicubic => "data.interpolation=bicubic".to_owned(),
    });
    list("mean", &card.mean).into_iter().chain(list("std", &card.std)).chain(filter).collect()
}
