//! Models as others load them: weights in their names, and the `config.json` that says what they are.

use super::dialect::Dialect;
use super::fit::of_classifier;
use super::timm::positions_for_registers;
use super::{Tensor, Weights};
use crate::classifier::Pool;
use crate::error::ModelError;
use crate::vit::{Position, QkvBias, VitConfig};
use serde_json::{Map, Value, json};

/// How images are brought to a model.
#[derive(Debug, Clone)]
pub struct Images {
    /// Mean of each channel, of values in 0 to 1.
    pub mean: Vec<f32>,
    /// Deviation of each channel.
    pub std: Vec<f32>,
    /// Whether the resize is cubic, not linear.
    pub bicubic: bool,
    /// Share of the shorter side that the centre crop takes.
    pub crop: f64,
}

/// What a model does.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// Features.
    Encoder,
    /// SimMIM in the official mode: mask token and head are part of it.
    Reconstruction,
    /// Classes, by these tokens.
    Classifier(Pool, Vec<String>),
}

/// A model to be written for others: weights under the official names.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// The encoder.
    pub encoder: &'a VitConfig,
    /// What it does.
    pub purpose: Purpose,
    /// How it sees images.
    pub images: Images,
    /// The weights.
    pub weights: Weights,
}

/// A model as a folder: files by name, and the weights.
#[derive(Debug, Clone)]
pub struct Folder {
    /// JSON files.
    pub files: Vec<(&'static str, Value)>,
    /// Weights for `model.safetensors`.
    pub weights: Weights,
    /// Names of parameters that have no place there.
    pub left: Vec<String>,
    /// Class of the model, for messages.
    pub class: String,
}

pub(super) fn cannot(what: impl Into<String>, help: &str) -> ModelError {
    ModelError::geometry(what, help)
}

impl Model<'_> {
    fn relative(&self) -> bool {
        matches!(self.encoder.position, Position::SharedRelative | Position::Relative)
    }

    /// The bias of the keys adds the same to all scores of a query, so softmax does not see it; models without one lose nothing.
    fn without_key_bias(&self) -> Weights {
        let mut weights = self.weights.clone();
        for block in 0..self.encoder.depth {
            let name = |end: &str| format!("encoder.blocks.{block}.attn.{end}");
            if let Some(t) = weights.remove(&name("qkv.bias")) {
                let dim = t.data.len() / 3;
                let part = |from: usize| Tensor { shape: vec![dim], data: t.data[from..from + dim].to_vec() };
                weights.insert(name("q_bias"), part(0));
                weights.insert(name("v_bias"), part(2 * dim));
            }
        }
        weights
    }

    fn with_key_bias(&self) -> Weights {
        let mut weights = self.weights.clone();
        for block in 0..self.encoder.depth {
            let name = |end: &str| format!("encoder.blocks.{block}.attn.{end}");
            if let (Some(q), Some(v)) = (weights.remove(&name("q_bias")), weights.remove(&name("v_bias"))) {
                let data = [&q.data[..], &vec![0.0; q.data.len()], &v.data].concat();
                weights.insert(name("qkv.bias"), Tensor { shape: vec![data.len()], data });
            }
        }
        weights
    }

    /// For `timm.create_model("local-dir:PATH", pretrained=True)`.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] where timm has no such model.
    pub fn timm(&self) -> Result<Folder, ModelError> {
        let e = self.encoder;
        if (e.eps / 1e-6 - 1.0).abs() > 1e-3 {
            return Err(cannot(
                format!("timm's norms add 1e-6 to the variance, the model's {:e}", e.eps),
                "export to hf or onnx",
            ));
        }
        let (mut weights, left, architecture, arguments) = if self.relative() {
            if !e.class_token {
                return Err(cannot("timm's BEiT has a class token, the model has none", "export to onnx or official"));
            }
            let (weights, left) = Dialect::Official.write(&self.without_key_bias(), false);
            (weights, left, "beit_base_patch16_224", self.timm_beit())
        } else {
            let (weights, left) = Dialect::Timm.write(&self.with_key_bias(), false);
            (weights, left, "vit_base_patch16_224", self.timm_vit())
        };
        weights.retain(|name, _| name != "mask_token" && !name.starts_with("decoder."));
        positions_for_registers(&mut weights);
        let classes = if let Purpose::Classifier(_, classes) = &self.purpose { classes.clone() } else { Vec::new() };
        let pool = match (&self.purpose, self.relative()) {
            (Purpose::Classifier(Pool::Cls, _), _) | (Purpose::Encoder | Purpose::Reconstruction, true) => "token",
            _ => "avg",
        };
        let size = [e.channels, e.image_size.0, e.image_size.1];
        let head = (pool, "head");
        let config = timm_config(architecture, e.embed_dim, size, head, &classes, arguments, &self.images);
        let left = left.into_iter().filter(|name| !of_task(name)).collect();
        Ok(Folder { files: vec![("config.json", config)], weights, left, class: architecture.to_owned() })
    }

    fn timm_common(&self) -> Map<String, Value> {
        let e = self.encoder;
        let mut arguments = Map::new();
        let mut set = |key: &str, value: Value| arguments.insert(key.to_owned(), value);
        set("img_size", json!([e.image_size.0, e.image_size.1]));
        set("patch_size", json!([e.patch_size.0, e.patch_size.1]));
        set("in_chans", e.channels.into());
        set("embed_dim", e.embed_dim.into());
        set("depth", e.depth.into());
        set("num_heads", e.num_heads.into());
        set("mlp_ratio", e.mlp_ratio.into());
        set("qkv_bias", (e.qkv_bias != QkvBias::None).into());
        arguments
    }

    fn timm_vit(&self) -> Map<String, Value> {
        let e = self.encoder;
        let mut arguments = self.timm_common();
        let pools = matches!(self.purpose, Purpose::Classifier(Pool::Mean, _));
        let mut set = |key: &str, value: Value| arguments.insert(key.to_owned(), value);
        set("class_token", e.class_token.into());
        set("pos_embed", if e.position == Position::None { "none" } else { "learn" }.into());
        set("reg_tokens", e.registers.into());
        set("init_values", e.layer_scale.map_or(Value::Null, |v| rounded(&[v])[0].into()));
        set("fc_norm", pools.into());
        set("final_norm", (e.final_norm || pools).into());
        arguments
    }

    fn timm_beit(&self) -> Map<String, Value> {
        let e = self.encoder;
        let mut arguments = self.timm_common();
        let mut set = |key: &str, value: Value| arguments.insert(key.to_owned(), value);
        set("use_abs_pos_emb", false.into());
        set("use_rel_pos_bias", (e.position == Position::Relative).into());
        set("use_shared_rel_pos_bias", (e.position == Position::SharedRelative).into());
        set("init_values", e.layer_scale.map_or(Value::Null, |v| rounded(&[v])[0].into()));
        arguments
    }

    /// For Hugging Face's `AutoModel`, `AutoImageProcessor`, and `AutoModelForMaskedImageModeling` or
    /// `AutoModelForImageClassification`.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] where it has no such model.
    pub fn hugging_face(&self) -> Result<Folder, ModelError> {
        let e = self.encoder;
        if !e.class_token {
            return Err(cannot(
                "Hugging Face's vision transformers have a class token, the model has none",
                "export to timm or onnx",
            ));
        }
        if e.qkv_bias == QkvBias::None && (self.relative() || e.layer_scale.is_some()) {
            return Err(cannot(
                "Hugging Face has no such model without biases of queries and values",
                "export to timm or onnx",
            ));
        }
        let pools = matches!(self.purpose, Purpose::Classifier(Pool::Mean, _));
        if !(e.final_norm || pools) {
            return Err(cannot(
                "Hugging Face's vision transformers have a norm after the blocks, the model has none",
                "export to timm or onnx",
            ));
        }
        let plain = e.position == Position::Absolute && !pools;
        let (dialect, class, config) = match (plain, e.layer_scale.is_some() || e.registers > 0) {
            (true, false) => self.hf_vit()?,
            (true, true) if !matches!(self.purpose, Purpose::Classifier(..)) => self.hf_dinov2()?,
            _ => self.hf_beit()?,
        };
        let biases = if dialect == Dialect::HfBeit { self.without_key_bias() } else { self.with_key_bias() };
        let inside = class.contains("For");
        let (mut weights, mut left) = dialect.write(&biases, inside);
        if class == "ViTModel" {
            weights.retain(|name, _| !name.ends_with("mask_token") && !name.starts_with("decoder."));
        }
        if dialect == Dialect::HfDinoV2 {
            let dim = e.embed_dim;
            let prefix = "embeddings.mask_token".to_owned();
            weights.insert(prefix, Tensor { shape: vec![1, dim], data: vec![0.0; dim] });
            if e.layer_scale.is_none() {
                return Err(cannot(
                    "Hugging Face has no model with registers and without LayerScale",
                    "export to timm or onnx",
                ));
            }
        }
        if dialect == Dialect::HfBeit {
            weights.retain(|name, _| !name.ends_with("mask_token"));
        }
        left.retain(|name| !of_task(name));
        Ok(Folder {
            files: vec![("config.json", config), ("preprocessor_config.json", processor(e.image_size, &self.images))],
            weights,
            left,
            class,
        })
    }

    fn hf_common(&self, kind: &str, class: &str) -> Value {
        let e = self.encoder;
        let mut config = json!({
            "architectures": [class],
            "model_type": kind,
            "hidden_size": e.embed_dim,
            "num_hidden_layers": e.depth,
            "num_attention_heads": e.num_heads,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": rounded(&[e.eps])[0],
            "image_size": sides(e.image_size),
            "patch_size": sides(e.patch_size),
            "num_channels": e.channels,
            "dtype": "float32",
        });
        if let Purpose::Classifier(_, classes) = &self.purpose {
            class_pairs(&mut config, classes);
        }
        config
    }

    fn hf_vit(&self) -> Result<(Dialect, String, Value), ModelError> {
        let e = self.encoder;
        let square = e.patch_size.0 == e.patch_size.1 && e.image_size.0 == e.image_size.1;
        let class = match self.purpose {
            Purpose::Classifier(..) => "ViTForImageClassification",
            Purpose::Reconstruction if square => "ViTForMaskedImageModeling",
            _ => "ViTModel",
        };
        let mut config = self.hf_common("vit", class);
        config["intermediate_size"] = e.mlp_dim().into();
        config["qkv_bias"] = (e.qkv_bias != QkvBias::None).into();
        config["encoder_stride"] = e.patch_size.0.into();
        Ok((Dialect::HfVit, class.to_owned(), config))
    }

    fn hf_dinov2(&self) -> Result<(Dialect, String, Value), ModelError> {
        let e = self.encoder;
        let ratio = e.mlp_dim() / e.embed_dim;
        if ratio * e.embed_dim != e.mlp_dim() {
            return Err(cannot(
                "Hugging Face's DINOv2 has an MLP of whole multiples of the width",
                "export to timm or onnx",
            ));
        }
        let (kind, class) = if e.registers > 0 {
            ("dinov2_with_registers", "Dinov2WithRegistersModel")
        } else {
            ("dinov2", "Dinov2Model")
        };
        let mut config = self.hf_common(kind, class);
        config["mlp_ratio"] = ratio.into();
        config["qkv_bias"] = true.into();
        config["layerscale_value"] = 1.0.into();
        config["use_swiglu_ffn"] = false.into();
        if e.registers > 0 {
            config["num_register_tokens"] = e.registers.into();
        }
        Ok((Dialect::HfDinoV2, class.to_owned(), config))
    }

    fn hf_beit(&self) -> Result<(Dialect, String, Value), ModelError> {
        let e = self.encoder;
        if e.registers > 0 {
            return Err(cannot("Hugging Face has no such classifier with registers", "export to timm or onnx"));
        }
        let class = match self.purpose {
            Purpose::Classifier(Pool::Mean, _) => "BeitForImageClassification",
            Purpose::Classifier(Pool::Cls, _) => "BeitForImageClassification",
            _ => "BeitModel",
        };
        let mut config = self.hf_common("beit", class);
        config["intermediate_size"] = e.mlp_dim().into();
        config["use_mask_token"] = false.into();
        config["use_absolute_position_embeddings"] = (e.position == Position::Absolute).into();
        config["use_relative_position_bias"] = (e.position == Position::Relative).into();
        config["use_shared_relative_position_bias"] = (e.position == Position::SharedRelative).into();
        config["layer_scale_init_value"] = e.layer_scale.map_or(0.0, f64::from).into();
        config["drop_path_rate"] = 0.0.into();
        config["use_mean_pooling"] = matches!(self.purpose, Purpose::Classifier(Pool::Mean, _)).into();
        Ok((Dialect::HfBeit, class.to_owned(), config))
    }

    /// The names of microsoft/SimMIM. `per_block`: a shared table of biases is copied to every block.
    #[must_use]
    pub fn official(&self, per_block: bool) -> Weights {
        let mut weights = self.weights.clone();
        const SHARED: &str = "encoder.rel_pos_bias.relative_position_bias_table";
        if per_block && let Some(table) = weights.remove(SHARED) {
            for block in 0..self.encoder.depth {
                weights.insert(format!("encoder.blocks.{block}.attn.relative_position_bias_table"), table.clone());
            }
        }
        if matches!(self.purpose, Purpose::Classifier(..)) {
            // Fine-tuned models there stand without prefix.
            return Dialect::Official.write(&weights, false).0;
        }
        weights.retain(|name, _| !of_classifier(name));
        weights
    }
}

pub(super) fn of_task(name: &str) -> bool {
    name.ends_with("mask_token") || name.starts_with("decoder.")
}

/// One number where both sides are equal.
pub(super) fn sides((height, width): (usize, usize)) -> Value {
    if height == width { json!(height) } else { json!([height, width]) }
}

/// Names of the classes as Hugging Face keeps them; nothing for no classes.
pub(super) fn class_pairs(config: &mut Value, classes: &[String]) {
    if classes.is_empty() {
        return;
    }
    let pairs = || classes.iter().enumerate();
    config["id2label"] = pairs().map(|(i, name)| (i.to_string(), json!(name))).collect::<Map<_, _>>().into();
    config["label2id"] = pairs().map(|(i, name)| (name.clone(), json!(i))).collect::<Map<_, _>>().into();
}

/// `preprocessor_config.json`.
pub(super) fn processor((height, width): (usize, usize), images: &Images) -> Value {
    json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": true,
        "size": { "height": height, "width": width },
        "resample": if images.bicubic { 3 } else { 2 },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": rounded(&images.mean),
        "image_std": rounded(&images.std),
    })
}

/// timm's `config.json`. `head`: how tokens are pooled, and the name of the classifier.
pub(super) fn timm_config(
    architecture: &str,
    features: usize,
    input_size: [usize; 3],
    (pool, head): (&str, &str),
    classes: &[String],
    mut arguments: Map<String, Value>,
    images: &Images,
) -> Value {
    arguments.insert("num_classes".into(), classes.len().into());
    arguments.insert("global_pool".into(), pool.into());
    let mut config = json!({
        "architecture": architecture,
        "num_classes": classes.len(),
        "num_features": features,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": input_size,
            "fixed_input_size": true,
            "interpolation": if images.bicubic { "bicubic" } else { "bilinear" },
            "crop_pct": images.crop,
            "crop_mode": "center",
            "mean": rounded(&images.mean),
            "std": rounded(&images.std),
            "num_classes": classes.len(),
            "first_conv": "patch_embed.proj",
            "classifier": head,
        },
    });
    if !classes.is_empty() {
        config["label_names"] = classes.into();
    }
    config
}

/// Floats as the shortest decimals that mean them.
fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| v.to_string().parse().unwrap_or(f64::from(*v))).collect()
}
