//! Weights of a pre-trained encoder for a classifier, as the official fine-tuning loads them.

use super::interpolate::{apply, bicubic, geometric};
use super::names::{self, ENCODER};
use super::{Tensor, Weights};
use crate::classifier::ClassifierConfig;
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::parameters::ParameterSpec;
use crate::vit::Position;
use std::path::Path;

const SHARED_TABLE: &str = "encoder.rel_pos_bias.relative_position_bias_table";
const TABLE: &str = "relative_position_bias_table";

/// Picks the encoder's parameters for a classifier out of pre-trained weights (a full model, or a bare encoder in timm's names):
/// mask token, prediction head, classifier heads and, where tokens are pooled, the final norm are left out; a shared bias table is
/// copied to every block that has its own; positions learned on another grid are interpolated. `grid` is that of the weights
/// (rows and columns of patches) where it is known; otherwise it is taken for a square.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn encoder_for_classifier(
    path: &Path,
    config: &ClassifierConfig,
    mut weights: Weights,
    grid: Option<(usize, usize)>,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    let specs: Vec<ParameterSpec> = config.parameters().into_iter().filter(|p| p.name.starts_with(ENCODER)).collect();
    weights.retain(|k, _| !(names::optional(k) || names::of_classifier(k)));
    let mut weights = names::with_official_names(&specs, weights);
    let made_anew = ["relative_position_index", "relative_coords_table", "attn_mask"];
    weights.retain(|k, _| !made_anew.iter().any(|name| k.ends_with(name)));
    if !config.final_norm() {
        weights.retain(|k, _| k != "encoder.norm.weight" && k != "encoder.norm.bias");
    }
    if let Encoder::Vit(encoder) = &config.encoder
        && encoder.position == Position::Relative
        && let Some(table) = weights.remove(SHARED_TABLE)
    {
        for block in 0..encoder.depth {
            weights.insert(format!("encoder.blocks.{block}.attn.{TABLE}"), table.clone());
        }
    }
    for spec in &specs {
        if let Some(tensor) = weights.get_mut(&spec.name)
            && tensor.shape != spec.shape
            && let Some(resized) = resize(config, spec, tensor, grid)
        {
            *tensor = resized;
        }
    }
    names::pick(path, &specs, weights, false)
}

/// A position parameter of another grid at the classifier's; none where it is something else, or its grid is not known.
fn resize(
    config: &ClassifierConfig,
    spec: &ParameterSpec,
    tensor: &Tensor,
    grid: Option<(usize, usize)>,
) -> Option<Tensor> {
    let class = usize::from(config.encoder.geometry().class_token);
    if tensor.shape.last() != spec.shape.last() {
        return None;
    }
    let dim = *spec.shape.last()?;
    let square = |places: usize| Some(places.isqrt()).filter(|side| side * side == places).map(|side| (side, side));
    if spec.name.ends_with("pos_embed") {
        let places = (tensor.data.len() / dim).checked_sub(class)?;
        let (rows, cols) = grid.filter(|(r, c)| r * c == places).or_else(|| square(places))?;
        let (new_rows, new_cols) = config.encoder.geometry().patch_grid();
        let mut data = tensor.data[..class * dim].to_vec();
        let patches = &tensor.data[class * dim..];
        data.extend(apply(&bicubic(rows, new_rows), &bicubic(cols, new_cols), patches, dim));
        return Some(Tensor { shape: spec.shape.clone(), data });
    }
    if spec.name.ends_with(TABLE) {
        // The three rows of the class token stand behind the others and are kept.
        let places = (tensor.data.len() / dim).checked_sub(3 * class)?;
        let (new_rows, new_cols) = config.encoder.bias_grid(&spec.name)?;
        let offsets = |(rows, cols): (usize, usize)| (2 * rows - 1) * (2 * cols - 1);
        let known = grid.filter(|&g| offsets(g) == places);
        let (rows, cols) = known.or_else(|| square(places).map(|(side, _)| (side.div_ceil(2), side.div_ceil(2))))?;
        if offsets((rows, cols)) != places {
            return None;
        }
        let mut data = apply(&geometric(rows, new_rows), &geometric(cols, new_cols), &tensor.data[..places * dim], dim);
        data.extend_from_slice(&tensor.data[places * dim..]);
        return Some(Tensor { shape: spec.shape.clone(), data });
    }
    None
}

/// Picks all parameters of a classifier out of a file that holds one, under the official names or timm's.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn match_classifier(
    path: &Path,
    specs: &[ParameterSpec],
    weights: Weights,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    names::pick(path, specs, names::with_official_names(specs, weights), true)
}

/// A classifier in timm's names: those of [`super::encoder_to_timm`], `fc_norm` and `head` as they are.
#[must_use]
pub fn classifier_to_timm(weights: &Weights) -> Weights {
    let swin = weights.keys().any(|k| k.starts_with("encoder.layers."));
    let renamed = |k: &str| if swin { k.replace("head.", "head.fc.") } else { k.to_owned() };
    let classifier = weights.iter().filter(|(k, _)| names::of_classifier(k)).map(|(k, t)| (renamed(k), t.clone()));
    let classifier: Vec<_> = classifier.collect();
    let mut out = super::encoder_to_timm(weights.clone());
    out.extend(classifier);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Position, QkvBias, SimMimConfig, VitConfig};

    fn encoder(position: Position, side: usize) -> VitConfig {
        let mut encoder = VitConfig::preset("vit_tiny_patch8_32").unwrap();
        (encoder.embed_dim, encoder.depth, encoder.image_size) = (12, 2, (side, side));
        VitConfig { position, layer_scale: Some(0.1), qkv_bias: QkvBias::NoKey, ..encoder }
    }

    fn all(specs: &[ParameterSpec]) -> Weights {
        specs.iter().map(|s| (s.name.clone(), Tensor { shape: s.shape.clone(), data: s.initial(3) })).collect()
    }

    #[test]
    fn a_shared_table_goes_to_every_block_and_nothing_of_the_task_comes_along() {
        let pretrained = SimMimConfig::official(encoder(Position::SharedRelative, 32), (8, 8), 0.5);
        let mut weights = all(&pretrained.parameters());
        let table: Vec<f32> = (0..weights[SHARED_TABLE].data.len()).map(|i| i as f32).collect();
        weights.get_mut(SHARED_TABLE).unwrap().data.clone_from(&table);
        let config = ClassifierConfig::new(encoder(Position::Relative, 32), 3);
        let found = encoder_for_classifier(Path::new("w"), &config, weights, None).unwrap();
        let wanted = config.parameters().len() - 4;
        assert_eq!(found.len(), wanted);
        for block in 0..2 {
            let name = format!("encoder.blocks.{block}.attn.relative_position_bias_table");
            assert!(found.iter().any(|(n, data)| *n == name && *data == table), "{name}");
        }
    }

    #[test]
    fn another_width_is_refused_with_both_shapes() {
        let weights = all(&SimMimConfig::official(encoder(Position::Absolute, 32), (8, 8), 0.5).parameters());
        let mut other = encoder(Position::Absolute, 32);
        other.embed_dim = 24;
        let error =
            encoder_for_classifier(Path::new("w"), &ClassifierConfig::new(other, 3), weights, None).unwrap_err();
        assert!(error.to_string().contains("in the file"), "{error}");
    }

    #[test]
    fn a_classifier_goes_out_under_timms_names_and_comes_back() {
        let config = ClassifierConfig::new(encoder(Position::Absolute, 32), 3);
        let weights = all(&config.parameters());
        let timm = classifier_to_timm(&weights);
        assert!(
            timm.contains_key("head.weight") && timm.contains_key("fc_norm.bias") && timm.contains_key("pos_embed")
        );
        let back = match_classifier(Path::new("w"), &config.parameters(), timm).unwrap();
        assert!(back.iter().all(|(name, data)| *data == weights[name].data));
        assert_eq!(back.len(), weights.len());
    }
}
