//! Swin transformers as others load them.

use super::dialect::Dialect;
use super::fit::of_classifier;
use super::hub::{Folder, Images, Purpose, cannot, class_pairs, of_task, processor, sides, timm_config};
use super::{Tensor, Weights};
use crate::error::ModelError;
use crate::swin::{SwinConfig, Version};
use serde_json::{Map, Value, json};

/// A Swin transformer to be written for others: weights under the official names.
#[derive(Debug, Clone)]
pub struct SwinModel<'a> {
    /// The encoder.
    pub encoder: &'a SwinConfig,
    /// What it does.
    pub purpose: Purpose,
    /// How it sees images.
    pub images: Images,
    /// The weights.
    pub weights: Weights,
}

impl SwinModel<'_> {
    fn classes(&self) -> &[String] {
        if let Purpose::Classifier(_, classes) = &self.purpose { classes } else { &[] }
    }

    fn check(&self, library: &str) -> Result<(), ModelError> {
        let e = self.encoder;
        let what = if e.absolute {
            "no absolute positions that are the model's"
        } else if !e.final_norm {
            "a norm after the blocks, the model has none"
        } else if (e.eps / 1e-5 - 1.0).abs() > 1e-3 {
            "norms that add 1e-5 to the variance"
        } else {
            return Ok(());
        };
        Err(cannot(format!("{library}'s Swin transformers have {what}"), "export to official or onnx"))
    }

    /// For `timm.create_model("local-dir:PATH", pretrained=True)`.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] where timm has no such model.
    pub fn timm(&self) -> Result<Folder, ModelError> {
        self.check("timm")?;
        let e = self.encoder;
        // Every release of timm knows the official names by the reduction of the first stage; of its own names, older ones only those of
        // classifiers.
        let dialect = if e.depths.len() > 1 { Dialect::OfficialSwin } else { Dialect::TimmSwin };
        let (mut weights, left) = dialect.write(&self.weights, false);
        weights.retain(|name, _| !of_task(name));
        let architecture = match e.version {
            Version::V1 => "swin_tiny_patch4_window7_224",
            Version::V2 => "swinv2_tiny_window8_256",
        };
        let mut arguments = Map::new();
        let mut set = |key: &str, value: Value| arguments.insert(key.to_owned(), value);
        set("img_size", json!([e.image_size.0, e.image_size.1]));
        set("patch_size", sides(e.patch_size));
        set("in_chans", e.channels.into());
        set("embed_dim", e.embed_dim.into());
        set("depths", e.depths.clone().into());
        set("num_heads", e.num_heads.clone().into());
        set("window_size", e.window_size.into());
        set("mlp_ratio", e.mlp_ratio.into());
        set("qkv_bias", e.qkv_bias.into());
        if e.version == Version::V2 {
            set("pretrained_window_sizes", self.pretrained_windows().into());
        }
        let size = [e.channels, e.image_size.0, e.image_size.1];
        let head = ("avg", "head.fc");
        let config = timm_config(architecture, e.out_dim(), size, head, self.classes(), arguments, &self.images);
        let left = left.into_iter().filter(|name| !of_task(name)).collect();
        Ok(Folder { files: vec![("config.json", config)], weights, left, class: architecture.to_owned() })
    }

    /// Windows that the weights were trained with, 0 for those of the stage.
    fn pretrained_windows(&self) -> Vec<usize> {
        let given = &self.encoder.pretrained_windows;
        (0..self.encoder.depths.len()).map(|stage| given.get(stage).copied().unwrap_or(0)).collect()
    }

    /// For Hugging Face's `AutoModel`, `AutoImageProcessor`, and `AutoModelForMaskedImageModeling` or `AutoModelForImageClassification`.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] where it has no such model.
    pub fn hugging_face(&self) -> Result<Folder, ModelError> {
        self.check("Hugging Face")?;
        let e = self.encoder;
        if let Some(why) = e.differs_in_hugging_face() {
            return Err(cannot(
                format!("Hugging Face computes something else at this size: {why}"),
                "export to timm or onnx, or set model.window_size and model.image_size so that windows divide every map",
            ));
        }
        let (dialect, kind, family) = match e.version {
            Version::V1 => (Dialect::HfSwin, "swin", "Swin"),
            Version::V2 => (Dialect::HfSwinV2, "swinv2", "Swinv2"),
        };
        let square = e.patch_size.0 == e.patch_size.1 && e.image_size.0 == e.image_size.1;
        let task = match self.purpose {
            Purpose::Classifier(..) => "ForImageClassification",
            Purpose::Reconstruction if square => "ForMaskedImageModeling",
            _ => "Model",
        };
        let class = format!("{family}{task}");
        let (mut weights, mut left) = dialect.write(&self.weights, task != "Model");
        if task != "ForMaskedImageModeling" {
            weights.retain(|name, _| !of_task(name));
        }
        left.retain(|name| !of_task(name));
        let mut config = json!({
            "architectures": [class],
            "model_type": kind,
            "image_size": sides(e.image_size),
            "patch_size": sides(e.patch_size),
            "num_channels": e.channels,
            "embed_dim": e.embed_dim,
            "depths": e.depths,
            "num_heads": e.num_heads,
            "window_size": e.window_size,
            "mlp_ratio": e.mlp_ratio,
            "qkv_bias": e.qkv_bias,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
            "use_absolute_embeddings": false,
            "layer_norm_eps": 1e-5,
            "encoder_stride": e.stride().0,
            "dtype": "float32",
        });
        if e.version == Version::V2 {
            config["pretrained_window_sizes"] = self.pretrained_windows().into();
        }
        class_pairs(&mut config, self.classes());
        Ok(Folder {
            files: vec![("config.json", config), ("preprocessor_config.json", processor(e.image_size, &self.images))],
            weights,
            left,
            class,
        })
    }

    /// The names of microsoft/SimMIM.
    #[must_use]
    pub fn official(&self) -> Weights {
        if matches!(self.purpose, Purpose::Classifier(..)) {
            // Fine-tuned models there stand without prefix.
            return Dialect::OfficialSwin.write(&self.weights, false).0;
        }
        let encoder = self.weights.iter().filter(|(name, _)| !of_classifier(name));
        encoder.map(|(name, tensor): (&String, &Tensor)| (name.clone(), tensor.clone())).collect()
    }
}
