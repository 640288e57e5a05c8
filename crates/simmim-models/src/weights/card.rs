//! What the files beside weights say about them: `config.json` of Hugging Face or timm, `preprocessor_config.json`, and the options
//! that training programs save in their checkpoints.

use super::format::Stored;
use crate::error::ModelError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Filter of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Linear.
    Bilinear,
    /// Cubic.
    Bicubic,
}

/// Sizes of a Swin transformer's stages; those that are not told are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stages {
    /// Blocks.
    pub depths: Vec<usize>,
    /// Attention heads.
    pub num_heads: Vec<usize>,
    /// Side of a window, in tokens.
    pub window_size: Option<usize>,
    /// Sides of the windows that weights of version 2 were trained with; 0 for those of the stage.
    pub pretrained_windows: Vec<usize>,
    /// Width of the MLP as a multiple of the stage's width.
    pub mlp_ratio: Option<f64>,
}

/// What is known about a model besides its tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// Where it was read; none where nothing was found.
    pub source: Option<PathBuf>,
    /// The model's name, such as `vit_small_patch16_224`.
    pub name: Option<String>,
    /// Class of the model, such as `ViTForMaskedImageModeling`.
    pub class: Option<String>,
    /// Attention heads of a vision transformer.
    pub num_heads: Option<usize>,
    /// What a Swin transformer has for each stage.
    pub stages: Stages,
    /// Width of the tokens.
    pub embed_dim: Option<usize>,
    /// Number of blocks.
    pub depth: Option<usize>,
    /// Width of the MLP.
    pub mlp_dim: Option<usize>,
    /// Height and width of the images.
    pub image_size: Option<(usize, usize)>,
    /// Height and width of a patch.
    pub patch_size: Option<(usize, usize)>,
    /// Channels of the images.
    pub channels: Option<usize>,
    /// Added to the variance by every layer norm.
    pub eps: Option<f64>,
    /// Mean of the channels.
    pub mean: Option<Vec<f64>>,
    /// Deviation of the channels.
    pub std: Option<Vec<f64>>,
    /// Filter of the resize.
    pub resample: Option<Resample>,
    /// Names of the classes, in order.
    pub classes: Vec<String>,
    /// Share of the shorter side that the centre crop takes.
    pub crop: Option<f64>,
    /// Whether pooled patch tokens, not the class token, are classified.
    pub mean_pool: Option<bool>,
    /// How the weights were trained, in words.
    pub training: Vec<String>,
    /// Height and width of a mask cell of SimMIM.
    pub mask_patch: Option<usize>,
    /// Share of the image that was masked.
    pub mask_ratio: Option<f64>,
}

fn number(v: &Value, key: &str) -> Option<usize> {
    v.get(key)?.as_u64().and_then(|v| usize::try_from(v).ok())
}

/// One number for both sides, or two.
fn sides(v: &Value) -> Option<(usize, usize)> {
    let number = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
    match v {
        Value::Array(pair) if pair.len() == 2 => Some((number(&pair[0])?, number(&pair[1])?)),
        Value::Object(map) => Some((number(map.get("height")?)?, number(map.get("width")?)?)),
        _ => number(v).map(|side| (side, side)),
    }
}

fn floats(v: Option<&Value>) -> Option<Vec<f64>> {
    v?.as_array()?.iter().map(Value::as_f64).collect()
}

fn list(v: &Value, key: &str) -> Vec<usize> {
    let numbers = v.get(key).and_then(Value::as_array).map(|values| {
        values.iter().map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok())).collect::<Option<Vec<_>>>()
    });
    numbers.flatten().unwrap_or_default()
}

fn text(v: &Value, key: &str) -> Option<String> {
    v.get(key)?.as_str().map(str::to_owned)
}

/// Reads JSON beside the weights; none where there is no such file.
fn json(path: &Path) -> Result<Option<Value>, ModelError> {
    const LARGEST: u64 = 16 << 20;
    let Ok(known) = std::fs::metadata(path) else { return Ok(None) };
    let wrong = |what: String| ModelError::Format {
        path: path.to_owned(),
        what,
        help: "mend the file, or move the weights away from it and name the model by --model".to_owned(),
    };
    if known.len() > LARGEST {
        return Err(wrong("it is too large for a description of a model".into()));
    }
    let bytes = std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| wrong(format!("it is no valid JSON: {e}")))
}

impl Card {
    /// What is said about these weights: by the files beside them, by the checkpoint itself.
    ///
    /// # Errors
    /// [`ModelError::Format`] for a description that cannot be read, or of a model that this program does not have.
    pub fn of(stored: &Stored) -> Result<Self, ModelError> {
        let folder = stored.path.parent().unwrap_or(Path::new(""));
        let path = folder.join("config.json");
        let mut card = match json(&path)? {
            Some(config) if config.get("model_type").is_some() => Self::hugging_face(&path, &config)?,
            Some(config) if config.get("architecture").is_some() => Self::timm(&path, &config)?,
            _ => Self::notes(&stored.notes),
        };
        if card.class.is_some() || card.name.is_some() || card.num_heads.is_some() || !card.stages.depths.is_empty() {
            let beside = card.class.is_some() || folder.join("config.json").is_file();
            card.source = Some(if beside { path } else { stored.path.clone() });
        }
        if let Some(processor) = json(&folder.join("preprocessor_config.json"))? {
            card.processor(&processor);
        }
        Ok(card)
    }

    fn hugging_face(path: &Path, c: &Value) -> Result<Self, ModelError> {
        let kind = text(c, "model_type").unwrap_or_default();
        let refuse = |what: String| {
            let help =
                "this program knows vit, vit_mae, dinov2, dinov2_with_registers, beit, swin and swinv2 with exact GELU";
            Err(ModelError::Format { path: path.to_owned(), what, help: help.to_owned() })
        };
        const KNOWN: [&str; 8] =
            ["vit", "vit_mae", "dinov2", "dinov2_with_registers", "beit", "data2vec-vision", "swin", "swinv2"];
        if !KNOWN.contains(&&*kind) {
            return refuse(format!("it describes a model of type `{kind}`"));
        }
        let activation = text(c, "hidden_act").unwrap_or_else(|| "gelu".into());
        if activation != "gelu" || c.get("use_swiglu_ffn") == Some(&Value::Bool(true)) {
            return refuse(format!("its MLP has another activation than GELU (`{activation}`, SwiGLU)"));
        }
        let swin = kind.starts_with("swin");
        if swin && c.get("use_absolute_embeddings") == Some(&Value::Bool(true)) {
            return refuse("its positions are absolute, with a row more than there are patches".into());
        }
        // The norms of patches and reductions have 1e-5 there, whatever is said of the others.
        if swin && c.get("layer_norm_eps").and_then(Value::as_f64).is_some_and(|eps| (eps / 1e-5 - 1.0).abs() > 1e-3) {
            return refuse("its norms add another number than 1e-5 to the variance".into());
        }
        let class = c.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).map(str::to_owned);
        let embed_dim = number(c, if swin { "embed_dim" } else { "hidden_size" });
        let ratio = c.get("mlp_ratio").and_then(Value::as_f64);
        let stages = Stages {
            depths: list(c, "depths"),
            num_heads: list(c, "num_heads"),
            window_size: number(c, "window_size"),
            pretrained_windows: list(c, "pretrained_window_sizes"),
            mlp_ratio: ratio,
        };
        let mut card = Self {
            class: Some(class.unwrap_or_else(|| kind.clone())),
            num_heads: number(c, "num_attention_heads"),
            stages: if swin { stages } else { Stages::default() },
            embed_dim,
            depth: number(c, "num_hidden_layers").filter(|_| !swin),
            mlp_dim: if kind.starts_with("dinov2") {
                embed_dim.zip(ratio).map(|(dim, ratio)| (dim as f64 * ratio) as usize)
            } else {
                number(c, "intermediate_size")
            },
            image_size: c.get("image_size").and_then(sides),
            patch_size: c.get("patch_size").and_then(sides),
            channels: number(c, "num_channels"),
            eps: c.get("layer_norm_eps").and_then(Value::as_f64),
            mean_pool: c.get("use_mean_pooling").and_then(Value::as_bool).filter(|_| kind == "beit"),
            ..Self::default()
        };
        card.classes = class_names(c);
        if kind == "vit_mae" {
            card.training.push("masked autoencoder".to_owned());
            card.mask_ratio = c.get("mask_ratio").and_then(Value::as_f64);
        }
        Ok(card)
    }

    fn timm(path: &Path, c: &Value) -> Result<Self, ModelError> {
        let empty = Value::Null;
        let (pretrained, arguments) =
            (c.get("pretrained_cfg").unwrap_or(&empty), c.get("model_args").unwrap_or(&empty));
        let size = pretrained.get("input_size").and_then(Value::as_array);
        let axis = |i: usize| size.and_then(|s| s.get(i)?.as_u64()).and_then(|v| usize::try_from(v).ok());
        let pool = text(arguments, "global_pool").or_else(|| text(c, "global_pool"));
        let labels = c.get("label_names").or_else(|| pretrained.get("label_names")).and_then(Value::as_array);
        let name = text(c, "architecture").unwrap_or_default();
        for family in ["swin_s3_", "swinv2_cr_"] {
            if name.starts_with(family) {
                return Err(ModelError::Format {
                    path: path.to_owned(),
                    what: format!("it describes {name}, a model that differs from the Swin transformers of the papers"),
                    help: "this program knows timm's swin_SIZE_patch4_* and swinv2_SIZE_*".into(),
                });
            }
        }
        let swin = name.starts_with("swin");
        let stages = Stages {
            depths: list(arguments, "depths"),
            num_heads: list(arguments, "num_heads"),
            window_size: arguments.get("window_size").and_then(sides).filter(|(h, w)| h == w).map(|(side, _)| side),
            pretrained_windows: list(arguments, "pretrained_window_sizes"),
            mlp_ratio: arguments.get("mlp_ratio").and_then(Value::as_f64),
        };
        // A Swin transformer's features are wider than its first tokens.
        let features = || number(c, "num_features").filter(|_| !swin);
        let mut card = Self {
            name: Some(name),
            num_heads: number(arguments, "num_heads"),
            stages: if swin { stages } else { Stages::default() },
            embed_dim: number(arguments, "embed_dim").or_else(features),
            depth: number(arguments, "depth"),
            image_size: arguments.get("img_size").and_then(sides).or_else(|| axis(1).zip(axis(2))),
            patch_size: arguments.get("patch_size").and_then(sides),
            channels: number(arguments, "in_chans").or_else(|| axis(0)),
            mean: floats(pretrained.get("mean")),
            std: floats(pretrained.get("std")),
            resample: text(pretrained, "interpolation").and_then(|name| resample(&name)),
            crop: pretrained.get("crop_pct").and_then(Value::as_f64),
            mean_pool: pool.map(|pool| pool == "avg"),
            classes: labels.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            ..Self::default()
        };
        card.eps = arguments.get("norm_eps").and_then(Value::as_f64);
        if let Some(tag) = text(pretrained, "tag").filter(|tag| !tag.is_empty()) {
            card.training.push(tag);
        }
        Ok(card)
    }

    /// Options of microsoft/SimMIM (`config`, a yacs node), of MAE, DINO and timm (`args`).
    fn notes(notes: &Value) -> Self {
        let mut card = Self::default();
        if let Some(config) = notes.get("config").filter(|c| c.get("MODEL").is_some()) {
            card.simmim(config);
        }
        if let Some(options) = notes.get("args") {
            let arch = text(options, "model").or_else(|| text(options, "arch"));
            card.name = arch.map(|name| name.trim_start_matches("mae_").to_owned());
            card.image_size = options.get("input_size").or_else(|| options.get("img_size")).and_then(sides);
            card.mask_ratio = options.get("mask_ratio").and_then(Value::as_f64);
        }
        card.name = card.name.or_else(|| text(notes, "arch"));
        if let Some(epoch) = notes.get("epoch").and_then(Value::as_i64) {
            card.training.push(format!("epoch {epoch}"));
        }
        if let Some(ratio) = card.mask_ratio {
            card.training.push(format!("mask ratio {ratio}"));
        }
        card
    }

    fn simmim(&mut self, config: &Value) {
        let model = &config["MODEL"];
        let (data, vit) = (&config["DATA"], &model["VIT"]);
        self.training.push(format!("microsoft/SimMIM, `{}`", text(model, "NAME").unwrap_or_else(|| "unnamed".into())));
        self.image_size = data.get("IMG_SIZE").and_then(sides);
        self.mask_patch = number(data, "MASK_PATCH_SIZE");
        self.mask_ratio = data.get("MASK_RATIO").and_then(Value::as_f64);
        let swin = match text(model, "TYPE").as_deref() {
            Some("vit") => None,
            Some("swin") => model.get("SWIN"),
            Some("swinv2") => model.get("SWINV2"),
            _ => return,
        };
        if let Some(swin) = swin {
            self.embed_dim = number(swin, "EMBED_DIM");
            self.patch_size = swin.get("PATCH_SIZE").and_then(sides);
            self.channels = number(swin, "IN_CHANS");
            self.stages = Stages {
                depths: list(swin, "DEPTHS"),
                num_heads: list(swin, "NUM_HEADS"),
                window_size: number(swin, "WINDOW_SIZE"),
                pretrained_windows: list(swin, "PRETRAINED_WINDOW_SIZES"),
                mlp_ratio: swin.get("MLP_RATIO").and_then(Value::as_f64),
            };
            return;
        }
        self.num_heads = number(vit, "NUM_HEADS");
        self.embed_dim = number(vit, "EMBED_DIM");
        self.depth = number(vit, "DEPTH");
        self.patch_size = vit.get("PATCH_SIZE").and_then(sides);
        self.channels = number(vit, "IN_CHANS");
    }

    fn processor(&mut self, c: &Value) {
        self.mean = floats(c.get("image_mean")).or_else(|| self.mean.take());
        self.std = floats(c.get("image_std")).or_else(|| self.std.take());
        self.resample = match c.get("resample").and_then(Value::as_u64) {
            Some(2) => Some(Resample::Bilinear),
            Some(3) => Some(Resample::Bicubic),
            _ => self.resample,
        };
    }
}

fn resample(name: &str) -> Option<Resample> {
    match name {
        "bilinear" => Some(Resample::Bilinear),
        "bicubic" => Some(Resample::Bicubic),
        _ => None,
    }
}

/// Names of `id2label` in the order of their numbers; none where they only count (`LABEL_0`).
fn class_names(c: &Value) -> Vec<String> {
    let Some(map) = c.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    let mut names: Vec<(usize, String)> =
        map.iter().filter_map(|(id, name)| Some((id.parse().ok()?, name.as_str()?.to_owned()))).collect();
    names.sort();
    let counted = names.iter().all(|(id, name)| *name == format!("LABEL_{id}"));
    if counted { Vec::new() } else { names.into_iter().map(|(_, name)| name).collect() }
}
