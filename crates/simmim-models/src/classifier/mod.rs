//! A classifier on an encoder: pooled tokens, a norm, one linear layer (the fine-tuning of Xie et al., arXiv 2111.09886).

mod graph;

pub use graph::{ClassifierBuild, classifier_graph};

use crate::error::ModelError;
use crate::parameters::{Init, ParameterSpec};
use crate::vit::{InitStyle, VitConfig, specs};

/// How the tokens of an image become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Mean of the patch tokens, then a new norm `fc_norm`; the encoder's own final norm is not used.
    Mean,
    /// The class token after the encoder's final norm.
    Cls,
}

/// Encoder, pooling and number of classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierConfig {
    /// The encoder.
    pub encoder: VitConfig,
    /// Number of classes.
    pub classes: usize,
    /// How tokens are pooled.
    pub pool: Pool,
    /// Factor of the head's starting values.
    pub head_scale: f32,
    /// Learning rate of a block as a share of the one above it; 1 for all alike.
    pub layer_decay: f64,
    /// Whether the encoder stays as it is.
    pub freeze: bool,
}

impl ClassifierConfig {
    /// Mean pooling and the official head, all layers trained at one rate.
    #[must_use]
    pub fn new(encoder: VitConfig, classes: usize) -> Self {
        Self { encoder, classes, pool: Pool::Mean, head_scale: 0.001, layer_decay: 1.0, freeze: false }
    }

    /// Checks that sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.encoder.validate()?;
        if self.classes < 2 {
            return Err(ModelError::geometry(
                format!("a classifier of {} classes has nothing to tell apart", self.classes),
                "give images of two classes at least",
            ));
        }
        if self.pool == Pool::Cls && !self.encoder.class_token {
            return Err(ModelError::geometry("the encoder has no class token to pool", "set finetune.pool = \"mean\""));
        }
        Ok(())
    }

    /// Whether the encoder's final norm is part of the classifier.
    #[must_use]
    pub fn final_norm(&self) -> bool {
        self.pool == Pool::Cls && self.encoder.final_norm
    }

    /// The encoder as the classifier uses it.
    #[must_use]
    pub fn used_encoder(&self) -> VitConfig {
        VitConfig { final_norm: self.final_norm(), ..self.encoder.clone() }
    }

    /// All parameters in the order of the layers, the encoder's behind `encoder.`, with the learning rates of layer-wise decay.
    #[must_use]
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let dim = self.encoder.embed_dim;
        let mut list = specs(&self.used_encoder(), "encoder.", InitStyle::Official);
        if self.pool == Pool::Mean {
            list.push(ParameterSpec::new("fc_norm.weight", &[dim], Init::Constant(1.0)));
            list.push(ParameterSpec::new("fc_norm.bias", &[dim], Init::Constant(0.0)));
        }
        let head = Init::TruncatedNormal { std: 0.02, cut: 0.02, scale: self.head_scale };
        list.push(ParameterSpec::new("head.weight", &[self.classes, dim], head));
        list.push(ParameterSpec::new("head.bias", &[self.classes], Init::Constant(0.0)));
        let top = self.encoder.layers() + 1;
        for p in &mut list {
            let layer = p.layer.unwrap_or(top);
            p.lr_scale = self.layer_decay.powi((top - layer) as i32) as f32;
            p.used = !(self.freeze && p.name.starts_with("encoder."));
        }
        list
    }
}
