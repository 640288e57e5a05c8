//! Weights made to fit a model: what is taken, carried over to other sizes, drawn afresh or left over.

use super::facts::{Facts, square};
use super::interpolate::{apply, bicubic, flexible, geometric};
use super::{Tensor, Translation, Weights};
use crate::classifier::ClassifierConfig;
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::parameters::ParameterSpec;
use std::path::Path;

/// Prefix of the encoder's parameters in a full model.
pub(super) const ENCODER: &str = "encoder.";
const SHARED_TABLE: &str = "encoder.rel_pos_bias.relative_position_bias_table";
const TABLE: &str = "relative_position_bias_table";
const PROJECTION: &str = "encoder.patch_embed.proj.weight";
const CLASS: &str = "encoder.cls_token";
const REGISTERS: &str = "encoder.reg_token";

/// Parts of a SimMIM model that an encoder does not need.
fn of_task(name: &str) -> bool {
    name == "encoder.mask_token" || name.starts_with("decoder.")
}

/// Parts of a classifier that are no part of its encoder.
pub(super) fn of_classifier(name: &str) -> bool {
    name.starts_with("head.") || name.starts_with("fc_norm.")
}

/// Which parameters a file may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// None.
    LackNothing,
    /// Mask token and head of SimMIM.
    LackTask,
    /// Those, class token and registers: training draws them afresh.
    LackTokens,
}

impl May {
    fn lack(self, name: &str) -> bool {
        match self {
            Self::LackNothing => false,
            Self::LackTask => of_task(name),
            Self::LackTokens => of_task(name) || name == CLASS || name == REGISTERS,
        }
    }
}

/// What became of a parameter, or of a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// As it is.
    Taken,
    /// Carried over: from which sizes, by which rule.
    Adapted(String),
    /// Not in the file: the model's own start is kept.
    Fresh,
    /// Not needed by the model.
    Left,
}

/// Weights for a model.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// Parameters under the official names; those drawn afresh are not among them.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// What became of each parameter of the model, then of what the file holds besides.
    pub fates: Vec<(String, Fate)>,
}

/// A model that weights are wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The encoder.
    pub encoder: &'a Encoder,
    /// The parameters.
    pub specs: &'a [ParameterSpec],
    /// What may be missing.
    pub may: May,
    /// Rows and columns of the patches that the weights were trained on, where known; otherwise a square.
    pub grid: Option<(usize, usize)>,
    /// Whether the patch projection may be carried over to another patch size.
    pub resize_patch: bool,
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

/// Weights under our names, whatever dialect they come in; as they are where it is none.
#[must_use]
pub fn with_our_names(weights: Weights) -> Weights {
    let names: Vec<&str> = weights.keys().map(String::as_str).collect();
    match Translation::find(&names) {
        // What no rule knows stays, so that it is named where it does not fit.
        Some(found) => {
            let odd = found.odd();
            let odd: Vec<_> = odd.filter_map(|name| Some((name.to_owned(), weights.get(name)?.clone()))).collect();
            let mut weights = found.apply(weights);
            weights.extend(odd);
            weights
        }
        None => weights,
    }
}

impl Target<'_> {
    /// Makes weights under our names fit.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
    pub fn fit(&self, mut weights: Weights) -> Result<Fitted, ModelError> {
        let mut notes: Vec<(String, String)> = Vec::new();
        self.norms(&mut weights, &mut notes);
        self.biases(&mut weights, &mut notes);
        self.tables(&mut weights, &mut notes);
        self.positions(&mut weights, &mut notes);
        self.projection(&mut weights, &mut notes);
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        let (mut tensors, mut fates) = (Vec::new(), Vec::new());
        for spec in self.specs {
            match weights.remove(&spec.name) {
                Some(t) if same_layout(&t.shape, &spec.shape) => {
                    let note = notes.iter().find(|(name, _)| *name == spec.name);
                    let fate = note.map_or(Fate::Taken, |(_, how)| Fate::Adapted(how.clone()));
                    fates.push((spec.name.clone(), fate));
                    tensors.push((spec.name.clone(), t.data));
                }
                Some(t) => {
                    misshapen.push(format!("{} ({:?} in the file, {:?} in the model)", spec.name, t.shape, spec.shape));
                }
                None if self.may.lack(&spec.name) => fates.push((spec.name.clone(), Fate::Fresh)),
                None => missing.push(spec.name.clone()),
            }
        }
        // One that pools has no use for the norm after the blocks.
        let norm = |name: &str| name.starts_with("encoder.norm.");
        let harmless =
            |name: &str| self.may != May::LackNothing && (of_task(name) || of_classifier(name) || norm(name));
        let dropped = |name: &str| self.may == May::LackTokens && (name == CLASS || name == REGISTERS);
        let (left, unexpected): (Vec<String>, Vec<String>) =
            weights.into_keys().partition(|name| harmless(name) || dropped(name));
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            fates.extend(left.into_iter().map(|name| (name, Fate::Left)));
            Ok(Fitted { tensors, fates })
        } else {
            Err(ModelError::Mismatch { path: self.path.to_owned(), missing, unexpected, misshapen })
        }
    }

    fn spec(&self, name: &str) -> Option<&ParameterSpec> {
        self.specs.iter().find(|s| s.name == name)
    }

    /// A classifier that pools before it normalises has no norm after its blocks: its `fc_norm` takes that place.
    fn norms(&self, weights: &mut Weights, notes: &mut Vec<(String, String)>) {
        let pools = self.spec("fc_norm.weight").is_some();
        for end in ["weight", "bias"] {
            let (norm, pooled) = (format!("encoder.norm.{end}"), format!("fc_norm.{end}"));
            let wanted = self.spec(&norm).is_some();
            if wanted
                && !pools
                && !weights.contains_key(&norm)
                && let Some(tensor) = weights.remove(&pooled)
            {
                weights.insert(norm.clone(), tensor);
                notes.push((norm, format!("{pooled}, meant for the pooled tokens")));
            }
        }
    }

    /// Between one bias of queries, keys and values, and two without one for keys.
    fn biases(&self, weights: &mut Weights, notes: &mut Vec<(String, String)>) {
        for block in 0..self.encoder.depth() {
            let name = |end: &str| format!("encoder.blocks.{block}.attn.{end}");
            let [whole, queries, values] = [name("qkv.bias"), name("q_bias"), name("v_bias")];
            let dim = self.encoder.embed_dim();
            let part = |data: &[f32]| Tensor { shape: vec![dim], data: data.to_vec() };
            if self.spec(&queries).is_some()
                && let Some(t) = weights.get(&whole)
                && t.data.len() == 3 * dim
                && t.data[dim..2 * dim].iter().all(|&v| v == 0.0)
                && let Some(t) = weights.remove(&whole)
            {
                weights.insert(queries.clone(), part(&t.data[..dim]));
                weights.insert(values.clone(), part(&t.data[2 * dim..]));
                notes.push((queries, format!("{whole}, whose keys have none")));
                notes.push((values, format!("{whole}, whose keys have none")));
            } else if self.spec(&whole).is_some() && weights.contains_key(&queries) {
                let [q, v] = [weights.remove(&queries), weights.remove(&values)].map(|t| t.map(|t| t.data));
                let (q, v) = (q.unwrap_or_default(), v.unwrap_or_default());
                let data = [&q[..], &vec![0.0; dim], &v].concat();
                weights.insert(whole.clone(), Tensor { shape: vec![data.len()], data });
                notes.push((whole, "q_bias, zeros and v_bias".to_owned()));
            }
        }
    }

    /// A shared table goes to every block that has its own; tables of another grid are carried over.
    fn tables(&self, weights: &mut Weights, notes: &mut Vec<(String, String)>) {
        let made_anew = ["relative_position_index", "relative_coords_table", "attn_mask"];
        weights.retain(|name, _| !made_anew.iter().any(|end| name.ends_with(end)));
        if self.spec(SHARED_TABLE).is_none()
            && self.spec("encoder.blocks.0.attn.relative_position_bias_table").is_some()
            && let Some(table) = weights.remove(SHARED_TABLE)
        {
            for block in 0..self.encoder.depth() {
                let name = format!("encoder.blocks.{block}.attn.{TABLE}");
                notes.push((name.clone(), "the table that all blocks share".to_owned()));
                weights.insert(name, table.clone());
            }
        }
        for spec in self.specs.iter().filter(|s| s.name.ends_with(TABLE)) {
            if let Some(tensor) = weights.get_mut(&spec.name)
                && tensor.shape != spec.shape
                && let Some((resized, grid)) = self.resized_table(tensor, spec)
            {
                *tensor = resized;
                notes.push((spec.name.clone(), format!("{} patches, geometric grid", show(grid))));
            }
        }
    }

    fn resized_table(&self, tensor: &Tensor, spec: &ParameterSpec) -> Option<(Tensor, (usize, usize))> {
        let (new_rows, new_cols) = self.encoder.bias_grid(&spec.name)?;
        let heads = *spec.shape.last()?;
        if tensor.shape.last() != Some(&heads) {
            return None;
        }
        // The three rows of the class token stand behind the others and are kept.
        let places =
            (tensor.data.len() / heads).checked_sub(if self.encoder.geometry().class_token { 3 } else { 0 })?;
        let offsets = |(rows, cols): (usize, usize)| (2 * rows - 1) * (2 * cols - 1);
        let half = |(side, _): (usize, usize)| (side.div_ceil(2), side.div_ceil(2));
        let grid = self.grid.filter(|&g| offsets(g) == places).or_else(|| square(places).map(half))?;
        if offsets(grid) != places {
            return None;
        }
        let (rows, cols) = grid;
        let mut data =
            apply(&geometric(rows, new_rows), &geometric(cols, new_cols), &tensor.data[..places * heads], heads);
        data.extend_from_slice(&tensor.data[places * heads..]);
        Some((Tensor { shape: spec.shape.clone(), data }, grid))
    }

    /// Positions: of patches alone or with rows for class token and registers in the file, of class token and patches here. What the
    /// rows of registers held is added to the registers, which comes to the same.
    fn positions(&self, weights: &mut Weights, notes: &mut Vec<(String, String)>) {
        let Some(spec) = self.specs.iter().find(|s| s.name.ends_with("pos_embed")) else { return };
        let Some(tensor) = weights.get(&spec.name) else { return };
        let (dim, geometry) = (self.encoder.embed_dim(), self.encoder.geometry());
        let wanted = usize::from(geometry.class_token);
        if tensor.shape.last() != Some(&dim) {
            return;
        }
        let places = tensor.data.len() / dim;
        let facts = Facts::of(weights);
        let (class, registers) = facts.as_ref().map_or((false, 0), |f| (f.class_token, f.registers));
        let class = usize::from(class);
        let new = geometry.patch_grid();
        let known = |extra: usize| {
            let patches = places.checked_sub(extra)?;
            let named = [self.grid, Some(new)].into_iter().flatten().find(|(rows, cols)| rows * cols == patches);
            named.or_else(|| square(patches)).map(|grid| (extra, grid))
        };
        // Rows before those of the patches: the class token's, none, registers' too, or a class token's that is not there.
        let Some((extra, grid)) = [class, 0, class + registers, 1].into_iter().find_map(known) else { return };
        let (before, patches) = tensor.data.split_at(extra * dim);
        let of_class = if extra > 0 && class + wanted > 0 { before[..dim].to_vec() } else { vec![0.0; dim] };
        let of_registers =
            before.get(class * dim..).filter(|_| extra == class + registers).unwrap_or_default().to_vec();
        let mut data = if wanted == 1 { of_class } else { Vec::new() };
        data.extend(apply(&bicubic(grid.0, new.0), &bicubic(grid.1, new.1), patches, dim));
        let how = match (grid == new, extra == wanted) {
            (true, true) => None,
            (true, false) => Some(format!("{extra} rows before those of the patches")),
            (false, _) => Some(format!("{} patches, bicubic", show(grid))),
        };
        let adapted = Tensor { shape: spec.shape.clone(), data };
        if let Some(how) = how {
            notes.push((spec.name.clone(), how));
        }
        weights.insert(spec.name.clone(), adapted);
        if registers > 0
            && !of_registers.is_empty()
            && let Some(tokens) = weights.get_mut(REGISTERS)
        {
            tokens.data.iter_mut().zip(of_registers).for_each(|(t, p)| *t += p);
            notes.push((REGISTERS.to_owned(), "with their positions".to_owned()));
        }
    }

    /// The patch projection: channels by timm's rule, another patch size where that was asked for.
    fn projection(&self, weights: &mut Weights, notes: &mut Vec<(String, String)>) {
        let (Some(spec), Some(tensor)) = (self.spec(PROJECTION), weights.get_mut(PROJECTION)) else { return };
        let (&[out, channels, height, width], &[_, wanted, new_height, new_width]) =
            (tensor.shape.as_slice(), spec.shape.as_slice())
        else {
            return;
        };
        if channels != wanted
            && let Some(data) = other_channels(&tensor.data, (out, channels, height * width), wanted)
        {
            *tensor = Tensor { shape: vec![out, wanted, height, width], data };
            notes.push((PROJECTION.to_owned(), format!("{channels} channels")));
        }
        if (height, width) != (new_height, new_width) && self.resize_patch {
            let (down, right) = (flexible(height, new_height), flexible(width, new_width));
            let kernels = tensor.data.chunks_exact((height * width).max(1));
            let data = kernels.flat_map(|kernel| apply(&down, &right, kernel, 1)).collect();
            *tensor = Tensor { shape: vec![out, tensor.shape[1], new_height, new_width], data };
            notes.push((PROJECTION.to_owned(), format!("patches of {}, pseudo-inverse resize", show((height, width)))));
        }
    }
}

fn show((rows, cols): (usize, usize)) -> String {
    format!("{rows}x{cols}")
}

/// Whether two shapes mean the same elements in the same order: a convolution of size one is a linear layer, and single axes in front
/// do not matter (`[1, dim]` for `[1, 1, dim]`).
fn same_layout(file: &[usize], model: &[usize]) -> bool {
    let bare = |shape: &[usize]| match *shape {
        [out, inputs, 1, 1] => vec![out, inputs],
        _ => shape.iter().copied().skip_while(|&d| d == 1).collect(),
    };
    bare(file) == bare(model)
}

/// timm's rule for other channels: many to one are summed; three are repeated and scaled, so that a gray image in each of them gives the
/// same. None for anything else.
fn other_channels(data: &[f32], (out, channels, pixels): (usize, usize, usize), wanted: usize) -> Option<Vec<f32>> {
    let plane = |o: usize, c: usize| &data[(o * channels + c) * pixels..][..pixels];
    if wanted == 1 {
        let summed = (0..out).flat_map(|o| (0..pixels).map(move |p| (0..channels).map(|c| plane(o, c)[p]).sum()));
        return Some(summed.collect());
    }
    if channels != 3 {
        return None;
    }
    let scale = 3.0 / wanted as f32;
    let repeated = (0..out).flat_map(|o| (0..wanted).flat_map(move |c| plane(o, c % 3).iter().map(move |v| v * scale)));
    Some(repeated.collect())
}

/// Picks the model's parameters out of weights in any dialect. With `whole` nothing may be missing or left over; otherwise mask token
/// and head of SimMIM may be missing, and what belongs to a task or a classifier is ignored.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn match_parameters(
    path: &Path,
    encoder: &Encoder,
    specs: &[ParameterSpec],
    weights: Weights,
    whole: bool,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    let may = if whole { May::LackNothing } else { May::LackTask };
    let target = Target { path, encoder, specs, may, grid: None, resize_patch: false };
    Ok(target.fit(with_our_names(weights))?.tensors)
}

/// Picks the encoder's parameters for a classifier out of pre-trained weights in any dialect: mask token, prediction head, classifier
/// heads and, where tokens are pooled, the final norm are left out; a shared bias table is copied to every block that has its own;
/// positions learned on another grid are carried over. `grid` is that of the weights (rows and columns of patches) where it is
/// known; otherwise it is taken for a square.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn encoder_for_classifier(
    path: &Path,
    config: &ClassifierConfig,
    weights: Weights,
    grid: Option<(usize, usize)>,
    resize_patch: bool,
) -> Result<Fitted, ModelError> {
    let specs: Vec<ParameterSpec> = config.parameters().into_iter().filter(|p| p.name.starts_with(ENCODER)).collect();
    let target =
        Target { path, encoder: &config.used_encoder(), specs: &specs, may: May::LackTokens, grid, resize_patch };
    target.fit(with_our_names(weights))
}

/// Picks all parameters of a classifier out of weights that hold one, in any dialect.
///
/// # Errors
/// [`ModelError::Mismatch`] with all missing, unexpected and misshapen keys.
pub fn match_classifier(
    path: &Path,
    config: &ClassifierConfig,
    weights: Weights,
) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
    match_parameters(path, &config.used_encoder(), &config.parameters(), weights, true)
}

#[cfg(test)]
mod tests {
    use super::super::timm::{classifier_to_timm, encoder_to_timm};
    use super::*;
    use crate::{Position, QkvBias, SimMimConfig, VitConfig};

    fn small() -> SimMimConfig {
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
        let config = small();
        let weights = full(&config);
        let timm = encoder_to_timm(weights.clone());
        assert!(timm.contains_key("blocks.1.attn.qkv.bias") && timm.contains_key("blocks.0.ls1.gamma"));
        assert!(!timm.keys().any(|k| k.contains("mask_token") || k.contains("decoder") || k.contains("q_bias")));
        let back = match_parameters(Path::new("x"), &config.encoder, &config.parameters(), timm, false).unwrap();
        assert_eq!(back.len(), config.parameters().len() - 3);
        assert!(back.iter().all(|(name, data)| *data == weights[name].data));
    }

    #[test]
    fn a_classifiers_norm_takes_the_place_of_the_encoders() {
        let config = small();
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
            let found =
                match_parameters(Path::new("x"), &config.encoder, &config.parameters(), weights, false).unwrap();
            let norm = found.iter().find(|(name, _)| name == "encoder.norm.weight").unwrap();
            assert_eq!(norm.1, whole["encoder.norm.weight"].data);
        }
    }

    #[test]
    fn a_kernel_in_another_order_is_refused_and_a_linear_layer_for_one_of_size_one_taken() {
        let config = small();
        let specs = config.parameters();
        let with = |name: &str, shape: &[usize]| {
            let mut weights = full(&config);
            weights.get_mut(name).unwrap().shape = shape.to_vec();
            match_parameters(Path::new("x"), &config.encoder, &specs, weights, true).map_err(|e| e.to_string())
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
        let config = small();
        let mut weights = full(&config);
        weights.remove("encoder.norm.bias");
        weights.insert("encoder.extra".into(), Tensor { shape: vec![1], data: vec![0.0] });
        weights.insert("encoder.norm.weight".into(), Tensor { shape: vec![5], data: vec![0.0; 5] });
        let error = match_parameters(Path::new("w.safetensors"), &config.encoder, &config.parameters(), weights, true)
            .unwrap_err();
        let text = error.to_string();
        for part in
            ["w.safetensors", "missing: encoder.norm.bias", "unexpected: encoder.extra", "[5] in the file, [12]"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

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
        let found = encoder_for_classifier(Path::new("w"), &config, weights, None, false).unwrap().tensors;
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
            encoder_for_classifier(Path::new("w"), &ClassifierConfig::new(other, 3), weights, None, false).unwrap_err();
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
        let back = match_classifier(Path::new("w"), &config, timm).unwrap();
        assert!(back.iter().all(|(name, data)| *data == weights[name].data));
        assert_eq!(back.len(), weights.len());
    }
}
